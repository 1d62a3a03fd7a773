//! Train, compress, check, publish.

use super::{DemoArgs, User};
use crate::{
    Context, Error,
    commands::{progress::Bar, publish},
    interrupt::Interrupt,
};
use bitdelta_delta::file::Variant;
use bitdelta_engine::Model;
use bitdelta_model::{Base, chat::Template};
use bitdelta_train::{
    TrainConfig, data,
    evaluate::{Subject, evaluate},
    run::{Outcome, run_on},
};
use std::{path::Path, sync::Arc};

/// What training needs besides a user.
pub(super) struct Learn<'a> {
    pub args: &'a DemoArgs,
    pub base: &'a Base,
    pub interrupt: &'a Interrupt,
}

/// A trained and compressed variant.
pub(super) struct Trained {
    user: String,
    outcome: Outcome,
    seconds: f64,
}

/// A variant that was measured and lies where servers find it.
pub(super) struct Checked {
    pub user: String,
    pub bytes: u64,
    pub bits_per_weight: f64,
    pub seconds: f64,
    pub tokens_per_second: f64,
    /// Mean held-out loss of an answer's token: base, trained weights, compressed variant.
    pub loss_base: f64,
    pub loss_trained: f64,
    pub loss_variant: f64,
    /// (base − variant) / (base − trained).
    pub retention: f64,
    /// Share of held-out answers whose every token is the likeliest.
    pub exact: f64,
}

impl Learn<'_> {
    /// Trains one user's low-rank variant and quantises it.
    ///
    /// # Errors
    /// What training returns.
    pub fn train(&self, user: &User) -> Result<Trained, Error> {
        let begun = std::time::Instant::now();
        let file = |split| self.args.data.join(format!("{}.{split}.jsonl", user.name)).display().to_string();
        let config = TrainConfig {
            model_name_or_path: self.base.path.display().to_string(),
            dataset: file("train"),
            eval_dataset: Some(file("held")),
            output_dir: self.args.output.join("training").join(&user.name),
            overwrite_output_dir: true,
            num_train_epochs: if self.args.short { SHORT_EPOCHS } else { EPOCHS },
            per_device_train_batch_size: 4,
            warmup_steps: 3,
            ..TrainConfig::default()
        };
        let doing = format!("training {}'s variant", user.name);
        let bar = Bar::new();
        let train = || run_on(self.base, &config, &bar, self.interrupt.flag());
        let outcome = self.interrupt.during(train).context(doing)?;
        Ok(Trained { user: user.name.clone(), outcome, seconds: begun.elapsed().as_secs_f64() })
    }
}

const EPOCHS: f64 = 4.0;
const SHORT_EPOCHS: f64 = 3.0;

/// Measures the variant file with the engine that will serve it, and puts it into the variants folder.
///
/// # Errors
/// A file that does not read or fit, or I/O.
pub(super) fn check_and_publish(args: &DemoArgs, model: &Arc<Model>, trained: &Trained) -> Result<Checked, Error> {
    let Trained { user, outcome, seconds } = trained;
    let doing = || format!("checking {user}'s variant");
    let held = args.data.join(format!("{user}.held.jsonl"));
    let conversations = data::load(&held.display().to_string(), Path::new(".")).context(doing())?;
    let variant = Variant::read(&outcome.path).context(doing())?;
    let subject = Subject { base: model, variant, path: &outcome.path, bytes: outcome.bytes, finetuned: None };
    let report = evaluate(subject, &Template::Model, &conversations, &Bar::new()).context(doing())?;
    publish::publish(&outcome.path, &variants_dir(args), user)?;
    let loss_trained = outcome.loss_trained.unwrap_or(report.loss_variant);
    Ok(Checked {
        user: user.clone(),
        bytes: outcome.bytes,
        bits_per_weight: report.bits_per_weight,
        seconds: *seconds,
        tokens_per_second: outcome.tokens_per_second,
        loss_base: report.loss_base,
        loss_trained,
        loss_variant: report.loss_variant,
        retention: (report.loss_base - report.loss_variant) / (report.loss_base - loss_trained),
        exact: report.exact,
    })
}

/// Where the demo publishes.
pub(super) fn variants_dir(args: &DemoArgs) -> std::path::PathBuf {
    args.output.join("variants")
}
