//! `bitdelta chat`: talk to the base or to one user's variant in the terminal, here or on a running server.
mod local;
mod remote;

use crate::{
    Context, Error,
    commands::{base::BaseArgs, progress::Bar},
    interrupt::Interrupt,
    output,
};
use bitdelta_model::chat::Message;
use bitdelta_train::progress::Progress;
use serde_json::{Value, json};
use std::{
    io::{BufRead, IsTerminal},
    path::PathBuf,
};

/// Arguments of `chat`.
#[derive(Debug, Clone, clap::Args)]
pub struct ChatArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// Whose variant answers; without it the base does
    #[arg(long, value_name = "USER", conflicts_with = "variant")]
    user: Option<String>,
    /// Folder that holds the user's variant
    #[arg(long, value_name = "DIR")]
    variants_dir: Option<PathBuf>,
    /// A variant by its file instead of by user
    #[arg(long, value_name = "FILE", conflicts_with = "url")]
    variant: Option<PathBuf>,
    /// Talk to a running server; nothing is loaded here
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Key for a server that asks for one
    #[arg(long, value_name = "KEY", env = "BITDELTA_API_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Ask this, print the answer, and end
    #[arg(long, value_name = "TEXT")]
    prompt: Option<String>,
    /// A system turn before the first
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// JSON on stdout: a line for each whole answer, of --prompt or of each line of the input
    #[arg(long)]
    json: bool,
}

/// How answers are chosen.
#[derive(Debug, Clone, clap::Args)]
struct SamplingArgs {
    /// 0 answers with the likeliest token
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    temperature: f32,
    /// Keep the likeliest tokens up to this probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    top_p: f32,
    /// Same seed, same answer
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Most tokens of one answer
    #[arg(long, value_name = "N", default_value_t = 512)]
    max_tokens: usize,
}

/// Whoever answers.
trait Partner {
    /// Answers the conversation; `show` takes text as it comes and says whether to go on.
    fn answer(&self, messages: &[Message], show: &mut dyn FnMut(&str) -> bool) -> Result<Answer, Error>;
}

/// What was said, as far as it came.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    /// Why it ended and what it took; null where it was broken off.
    finish_reason: Value,
    usage: Value,
}

/// Talks until `/quit`, the end of the input, or once with `--prompt`.
///
/// # Errors
/// Whatever keeps the model or variant from loading, or a single question from being answered.
pub fn run(args: &ChatArgs) -> Result<(), Error> {
    let partner: Box<dyn Partner> = match &args.url {
        Some(url) => Box::new(remote::Remote::connect(url, args)?),
        None => Box::new(local::Local::load(args)?),
    };
    let (interrupt, system) = (Interrupt::watch()?, args.system.clone());
    let mut chat = Chat { partner, interrupt, system, messages: Vec::new(), json: args.json };
    chat.reset();
    match &args.prompt {
        Some(prompt) => {
            chat.turn(prompt)?;
            if chat.interrupt.asked() { Err(Error::Interrupted) } else { Ok(()) }
        }
        None => chat.talk(),
    }
}

struct Chat {
    partner: Box<dyn Partner>,
    interrupt: Interrupt,
    system: Option<String>,
    messages: Vec<Message>,
    json: bool,
}

impl Chat {
    fn reset(&mut self) {
        self.messages = self.system.iter().map(|system| message("system", system)).collect();
    }

    fn talk(&mut self) -> Result<(), Error> {
        let interactive = std::io::stdin().is_terminal() && !self.json;
        if interactive {
            output::line("/reset forgets the conversation, /quit ends, Ctrl-C stops an answer")?;
        }
        loop {
            if interactive {
                output::text("> ")?;
            }
            let mut line = String::new();
            if std::io::stdin().lock().read_line(&mut line).context("reading your turn")? == 0 {
                return Ok(());
            }
            match line.trim() {
                "" => {}
                "/quit" | "/exit" => return Ok(()),
                "/reset" => self.reset(),
                command if command.starts_with('/') => {
                    Bar::new().say(&format!("{command} is no command; /reset and /quit are"));
                }
                said => {
                    // One turn that cannot be answered does not end the conversation of a person.
                    match self.turn(said) {
                        Err(error) if interactive => Bar::new().say(&format!("error: {error}")),
                        result => result?,
                    }
                }
            }
        }
    }

    /// One question and its answer, printed as it comes. A question without an answer is not kept.
    fn turn(&mut self, said: &str) -> Result<(), Error> {
        self.messages.push(message("user", said));
        let (interrupt, mut printed) = (&self.interrupt, Ok(()));
        let answer = interrupt.during(|| {
            self.partner.answer(&self.messages, &mut |text| {
                if !text.is_empty() && !self.json {
                    printed = output::text(text);
                }
                printed.is_ok() && !interrupt.asked()
            })
        });
        match answer {
            Ok(answer) => {
                self.messages.push(message("assistant", &answer.text));
                if self.json {
                    return output::line(&answer.json().to_string());
                }
            }
            Err(error) => {
                self.messages.pop();
                return Err(error);
            }
        }
        printed?;
        output::line("")
    }
}

impl Answer {
    fn json(&self) -> Value {
        json!({"answer": self.text, "finish_reason": self.finish_reason, "usage": self.usage})
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}
