//! `bitdelta bench sweep`: one figure for each batch size and each way to spread users over it, as a JSON array and a plot.

use super::{
    Machine, Setting, What,
    base::BenchBase,
    machine, print_json,
    serving::{self, Measured},
    variants,
};
use crate::{
    Context, Error,
    commands::{
        plot::{Plot, Series},
        progress::Bar,
    },
};
use serde::Deserialize;
use std::{fs, path::PathBuf, str::FromStr};

/// Arguments of `bench sweep`.
#[derive(Debug, Clone, clap::Args)]
pub struct SweepArgs {
    #[command(flatten)]
    base: BenchBase,
    /// What is timed
    #[arg(long, value_name = "WHAT", default_value = "decode")]
    what: What,
    /// Numbers of requests at the same time
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "1,2,4,8,16,32,64")]
    batch: Vec<usize>,
    /// Distinct users among them: a number, or `each` for one a request; 0 asks the base alone
    #[arg(long, value_name = "N,…", value_delimiter = ',', default_value = "0,1,each")]
    users: Vec<Users>,
    /// What the variants are made of
    #[arg(long, value_name = "KIND", default_value = "dense1")]
    kind: variants::Kind,
    /// Tokens of each prompt; by default 32, and 512 for prefill
    #[arg(long, value_name = "N")]
    prompt: Option<usize>,
    /// Tokens of each answer, for decode
    #[arg(long, value_name = "N", default_value_t = 64)]
    generate: usize,
    /// Runs of each; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 3)]
    runs: usize,
    /// Draw tokens a second against the batch into this SVG file
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Add the figures of this file to the plot: what `make bench` wrote, or a script in benches/ printed
    #[arg(long, value_name = "FILE", requires = "plot")]
    peers: Option<PathBuf>,
    /// A JSON array on stdout
    #[arg(long)]
    json: bool,
}

/// How many distinct users a batch has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Users {
    /// As many as requests.
    Each,
    /// This many, or as many as requests where these are fewer.
    Count(usize),
}

impl FromStr for Users {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let expected = || format!("{text:?} is neither a number nor `each`");
        if text == "each" { Ok(Self::Each) } else { text.parse().map(Self::Count).map_err(|_| expected()) }
    }
}

impl Users {
    fn of(self, batch: usize) -> usize {
        match self {
            Self::Each => batch,
            Self::Count(count) => count.min(batch),
        }
    }

    fn label(self, kind: &str) -> String {
        match self {
            Self::Each => format!("a {kind} variant each"),
            Self::Count(0) => "base alone".to_owned(),
            Self::Count(1) => format!("one {kind} variant for all"),
            Self::Count(count) => format!("{count} {kind} variants"),
        }
    }
}

/// A peer's figure, as the scripts in `benches/` print it.
#[derive(Debug, Clone, Deserialize)]
struct PeerFigure {
    peer: String,
    what: String,
    #[serde(default)]
    adapter: String,
    #[serde(default)]
    base_dtype: String,
    #[serde(default)]
    batch: usize,
    #[serde(default)]
    tokens_per_second: f64,
}

/// A peers' file: nothing but `figures` is read.
#[derive(Debug, Clone, Deserialize)]
struct Peers {
    figures: Vec<PeerFigure>,
}

/// Measures.
///
/// # Errors
/// As `bench decode`; a peers' file that cannot be read, a plot that cannot be written.
pub fn run(args: &SweepArgs) -> Result<(), Error> {
    let (prompt, generate) = match args.what {
        What::Decode => (args.prompt.unwrap_or(32), args.generate),
        What::Prefill => (args.prompt.unwrap_or(512), 1),
    };
    let setting = |batch| Setting { what: args.what, batch, prompt, generate, runs: args.runs };
    args.batch.iter().try_for_each(|batch| setting(*batch).check())?;
    let peers = args.peers.as_ref().map(|path| peers(path, args.what)).transpose()?.unwrap_or_default();

    let bar = Bar::new();
    let source = variants::Source::Random(args.kind);
    let machine = machine(&args.base, source, &bar)?;
    let most = args.batch.iter().flat_map(|batch| args.users.iter().map(|users| users.of(*batch))).max().unwrap_or(0);
    let variants = bar.during("making variants", || source.residents(&machine.model, most))?;
    let (mut all, mut series): (Vec<Measured>, Vec<Series>) = (Vec::new(), Vec::new());
    for users in &args.users {
        let mut points = Vec::new();
        for batch in &args.batch {
            let doing = format!("measuring {} of {batch}, {}", args.what.name(), users.label(&args.kind.name()));
            let variants = &variants[..users.of(*batch)];
            let measured = bar.during(&doing, || serving::measure_engine(&machine, variants, setting(*batch)))?;
            if !args.json {
                measured.print()?;
            }
            points.push((measured.batch as f64, measured.tokens_per_second));
            all.push(measured);
        }
        series.push(Series { label: users.label(&args.kind.name()), points, peer: false });
    }
    if let Some(path) = &args.plot {
        series.extend(peers);
        let whole = |value: f64| format!("{value:.0}");
        let plot = Plot {
            title: title(args.what, prompt, generate, &machine),
            x: "requests at the same time".into(),
            y: "tokens a second, in all".into(),
            base: 2.0,
            x_label: whole,
            y_label: whole,
            bottom: Some(0.0),
            series,
        };
        fs::write(path, plot.svg()?).context(format!("writing {}", path.display()))?;
    }
    if args.json { print_json(&all) } else { Ok(()) }
}

fn title(what: What, prompt: usize, generate: usize, machine: &Machine) -> String {
    let length = if what == What::Decode { format!("{prompt} + {generate}") } else { prompt.to_string() };
    let (model, threads) = (&machine.model, machine.model.threads());
    format!("{} {}, {}, {length} tokens, {threads} threads", what.name(), model.base().name, machine.base_dtype)
}

/// The peers' figures of the same kind, a series for each peer, adapter and type; of several of one batch the fastest.
fn peers(path: &PathBuf, what: What) -> Result<Vec<Series>, Error> {
    let doing = || format!("reading the peers' figures in {}", path.display());
    let text = fs::read(path).context(doing())?;
    let peers: Peers = serde_json::from_slice(&text).context(doing())?;
    let mut series: Vec<Series> = Vec::new();
    for figure in peers.figures.into_iter().filter(|figure| figure.what == what.name() && figure.batch > 0) {
        let label = format!("{} {} {}", figure.peer, figure.base_dtype, figure.adapter.replace('_', " "));
        let point = (figure.batch as f64, figure.tokens_per_second);
        let Some(known) = series.iter_mut().find(|series| series.label == label) else {
            series.push(Series { label, points: vec![point], peer: true });
            continue;
        };
        match known.points.iter_mut().find(|(batch, _)| *batch == point.0) {
            Some((_, fastest)) => *fastest = fastest.max(point.1),
            None => known.points.push(point),
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_never_more_than_requests() {
        assert_eq!("each".parse::<Users>().map(|users| users.of(8)), Ok(8));
        assert_eq!("3".parse::<Users>().map(|users| users.of(8)), Ok(3));
        assert_eq!("3".parse::<Users>().map(|users| users.of(2)), Ok(2));
        assert!("many".parse::<Users>().is_err());
    }

    #[test]
    fn figures_of_one_peer_and_adapter_are_one_series_of_the_fastest() {
        let keep = tempfile::tempdir().expect("a folder");
        let path = keep.path().join("peers.json");
        let figure = |what: &str, adapter: &str, batch: usize, speed: f64| serde_json::json!({ "peer": "p", "what": what, "adapter": adapter, "batch": batch, "tokens_per_second": speed });
        let decode =
            [("base", 1, 10.0), ("base", 8, 40.0), ("lora_each", 8, 20.0), ("base", 1, 12.0), ("base", 8, 30.0)]
                .map(|(adapter, batch, speed)| figure("decode", adapter, batch, speed));
        let figures = [&decode[..], &[figure("prefill", "base", 1, 100.0)]].concat();
        let all = serde_json::json!({ "figures": figures });
        fs::write(&path, all.to_string()).expect("written");
        let series = peers(&path, What::Decode).expect("read");
        let points: Vec<_> = series.iter().map(|series| series.points.clone()).collect();
        assert_eq!(points, [vec![(1.0, 12.0), (8.0, 40.0)], vec![(8.0, 20.0)]]);
        fs::write(&path, "[]").expect("written");
        assert!(peers(&path, What::Decode).is_err());
    }
}
