//! What can go wrong while data is read, a model is trained, or a pair is compressed and measured.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A training example is not what its format asks for.
    #[error("{path}: {place}: {field}: {problem}")]
    Data {
        /// The file.
        path: PathBuf,
        /// Where in the file: a line ("line 12") or an example of a JSON array ("example 3").
        place: String,
        /// The field, or "example" for the whole.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A data set's name is neither a path nor in `dataset_info.json`.
    #[error("dataset `{name}`: {problem}")]
    Dataset {
        /// As it was asked for.
        name: String,
        /// What was looked for, and where.
        problem: String,
    },
    /// A setting has a value that makes no sense.
    #[error("{name}: {problem}")]
    Setting {
        /// The setting's name, as in the flag without dashes.
        name: String,
        /// What it must be, and what it was.
        problem: String,
    },
    /// A setting of this name does not exist.
    #[error("unknown setting `{name}`{}", nearest.as_ref().map(|n| format!("; did you mean `{n}`?")).unwrap_or_default())]
    UnknownSetting {
        /// As it was given.
        name: String,
        /// The closest known name.
        nearest: Option<String>,
    },
    /// The run needs more memory than the machine has to give.
    #[error("training needs about {needed} but only {available} is available: {help}")]
    Memory {
        /// Estimated need, in words ("3.2 GB").
        needed: String,
        /// What is free, in words.
        available: String,
        /// Which settings would lower the need.
        help: String,
    },
    /// The program that rewards answers failed, or said something else than one number an answer.
    #[error("reward_command `{command}`: {problem}")]
    Reward {
        /// As it was given.
        command: String,
        /// What went wrong.
        problem: String,
    },
    /// No experience is worth keeping.
    #[error("{}", nothing_learnt(*lessons, *kept, *measured, *without))]
    NothingLearnt {
        /// Lessons that were tried.
        lessons: usize,
        /// Those that were kept until the end.
        kept: usize,
        /// Mean rewards without and with those that were kept, or around the best that was tried.
        measured: Option<(f64, f64)>,
        /// Mean reward of the base.
        without: f64,
    },
    /// A checkpoint cannot be continued from.
    #[error("checkpoint {path}: {problem}")]
    Checkpoint {
        /// Its folder.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The stop flag was raised; everything up to here is saved.
    #[error("stopped after step {step}; the same command again continues from {}", checkpoint.display())]
    Interrupted {
        /// Optimiser steps done.
        step: usize,
        /// Where they are saved.
        checkpoint: PathBuf,
    },
    /// The loss is no longer a number.
    #[error("the loss became {loss} at step {step}: lower learning_rate (now {learning_rate}) or set max_grad_norm")]
    Diverged {
        /// Optimiser step.
        step: usize,
        /// The loss.
        loss: f64,
        /// The rate then in force.
        learning_rate: f64,
    },
    /// Two models that are not base and fine-tune of one shape.
    #[error("{base} and {finetuned} are no pair: {problem}")]
    Pair {
        /// The base.
        base: PathBuf,
        /// The fine-tuned model.
        finetuned: PathBuf,
        /// What differs.
        problem: String,
    },
    /// Not even an empty variant fits.
    #[error("{bytes} bytes are too few: a variant of this base takes at least {least}, with nothing in it")]
    Budget {
        /// What was asked for.
        bytes: u64,
        /// The smallest file.
        least: u64,
    },
    /// A variant that cannot be moved to another base.
    #[error("{variant} cannot be moved from {from} to {to}: {problem}")]
    Rebase {
        /// The variant's file.
        variant: PathBuf,
        /// Name of the base it was made on.
        from: String,
        /// Name of the base it was to fit.
        to: String,
        /// Why not, and what to do.
        problem: String,
    },
    /// The base model.
    #[error(transparent)]
    Model(#[from] bitdelta_model::base::Error),
    /// The variant, or quantising it.
    #[error(transparent)]
    Delta(#[from] bitdelta_delta::file::Error),
    /// The engine.
    #[error(transparent)]
    Engine(#[from] bitdelta_engine::Error),
    /// A tensor operation of the training graph.
    #[error("training graph: {0}")]
    Graph(#[from] candle_core::Error),
}

/// Both figures, and what to do.
fn nothing_learnt(lessons: usize, kept: usize, measured: Option<(f64, f64)>, without: f64) -> String {
    let found = match measured {
        Some((before, after)) if kept > 0 => {
            format!(
                "the mean reward is {before:.4} without and {after:.4} with the {kept} experiences that were learnt"
            )
        }
        Some((before, after)) => {
            format!("of {lessons} lessons none raised the mean reward; the best took it from {before:.4} to {after:.4}")
        }
        None => format!(
            "no lesson came of any group of answers, whose mean reward is {without:.4}: they were rewarded alike, or the \
             model said nothing that is a rule"
        ),
    };
    format!(
        "nothing was learnt that helps: {found}. No variant was written. Try more prompts or epochs, a larger \
         grpo_group_size, or a stronger base; or give rules of your own (preferences), or train weights \
         (finetuning_type lowrank)"
    )
}

impl Error {
    /// An [`Error::Io`] at `path`.
    pub(crate) fn io(path: impl Into<PathBuf>, source: std::io::Error) -> Self {
        Self::Io { path: path.into(), source }
    }

    /// An [`Error::Setting`].
    pub(crate) fn setting(name: &str, problem: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), problem: problem.into() }
    }
}
