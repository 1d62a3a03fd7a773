//! The base that a bench runs: a model that is there, or random weights of a published model's shape.

use crate::{Context, Error, commands::base::BaseArgs, commands::progress::Bar, sizes::format_bytes};
use bitdelta_engine::Model;
use bitdelta_model::{Architecture, Base, ModelConfig, RopeScaling, random_bytes, write_random};
use clap::ValueEnum;
use std::{path::PathBuf, sync::Arc};

/// Which base a bench runs, and on what.
#[derive(Debug, Clone, clap::Args)]
pub struct BenchBase {
    #[command(flatten)]
    pub base: BaseArgs,
    /// Random weights of this model's true shape, in place of --model: written once, as bf16, into --cache-dir
    #[arg(long, value_name = "SHAPE")]
    shape: Option<Shape>,
    /// Where models of --shape are kept (0.3, 1.2 and 8 GB); by default a folder in your cache
    #[arg(long, value_name = "DIR", requires = "shape")]
    cache_dir: Option<PathBuf>,
}

/// The values of `--shape`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Shape {
    /// SmolLM2-135M
    #[value(name = "smollm2-135m")]
    Smollm2,
    /// Qwen3-0.6B
    #[value(name = "qwen3-0.6b")]
    Qwen3Small,
    /// Qwen3-4B
    #[value(name = "qwen3-4b")]
    Qwen3Four,
}

impl BenchBase {
    /// Opens and loads the base.
    ///
    /// # Errors
    /// No base named, one that cannot be opened, a disk or a memory that it does not fit in.
    pub fn load(&self, bar: &Bar) -> Result<Arc<Model>, Error> {
        let doing = "loading the base model";
        let name = match self.shape {
            Some(shape) => self.random(shape, bar)?,
            None => self.base.check()?,
        };
        let mut base = Base::open(&name).context(doing)?;
        // Every answer has its full length.
        base.config.eos.clear();
        let options = self.base.options();
        bar.during(doing, || Model::load(Arc::new(base), options).map(Arc::new)).context(doing)
    }

    /// `--base-dtype` as a word.
    pub fn dtype(&self) -> String {
        format!("{:?}", self.base.base_dtype).to_lowercase()
    }

    /// The folder of a random model, made at first use.
    fn random(&self, shape: Shape, bar: &Bar) -> Result<String, Error> {
        let name = shape.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let folder = match &self.cache_dir {
            Some(dir) => dir.clone(),
            None => default_cache()?,
        };
        let folder = folder.join(format!("random-{name}"));
        if !folder.exists() {
            let config = shape.config();
            let bytes = format_bytes(random_bytes(&config));
            let doing = format!("writing {bytes} of random weights to {}", folder.display());
            bar.during(&doing, || write_random(&config, &folder)).context(doing.clone())?;
        }
        let not_unicode = || Error::Usage(format!("--cache-dir {} is not UTF-8", folder.display()));
        folder.to_str().map(str::to_owned).ok_or_else(not_unicode)
    }
}

/// `$XDG_CACHE_HOME/bitdelta`, else `~/.cache/bitdelta`.
fn default_cache() -> Result<PathBuf, Error> {
    let named = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let cache = named("XDG_CACHE_HOME").or_else(|| named("HOME").map(|home| home.join(".cache")));
    let missing = "no cache folder is known (neither XDG_CACHE_HOME nor HOME is set): pass --cache-dir DIR";
    cache.map(|cache| cache.join("bitdelta")).ok_or_else(|| Error::Usage(missing.to_owned()))
}

impl Shape {
    /// The published model's configuration.
    pub(super) fn config(self) -> ModelConfig {
        let qwen3 = |hidden, layers, heads, intermediate| ModelConfig {
            architecture: Architecture::Qwen3,
            hidden,
            layers,
            heads,
            kv_heads: 8,
            head_dim: 128,
            intermediate,
            vocab: 151_936,
            rms_eps: 1e-6,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            tied: true,
            qk_norm: true,
            attention_bias: false,
            mlp_bias: false,
            max_positions: 40_960,
            eos: Vec::new(),
            bos: None,
        };
        match self {
            Self::Smollm2 => ModelConfig {
                architecture: Architecture::Llama,
                kv_heads: 3,
                head_dim: 64,
                vocab: 49_152,
                rms_eps: 1e-5,
                rope_theta: 1e5,
                qk_norm: false,
                max_positions: 8192,
                ..qwen3(576, 30, 9, 1536)
            },
            Self::Qwen3Small => qwen3(1024, 28, 16, 3072),
            Self::Qwen3Four => qwen3(2560, 36, 32, 9728),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitdelta_model::layout::linears;

    #[test]
    fn the_shapes_have_the_published_numbers_of_weights() {
        let in_linears = |shape: Shape| linears(&shape.config()).iter().map(|l| l.rows * l.cols).sum::<usize>();
        assert_eq!(in_linears(Shape::Smollm2), 106_168_320);
        assert_eq!(in_linears(Shape::Qwen3Small), 440_401_920);
        assert_eq!(in_linears(Shape::Qwen3Four), 3_633_315_840);
        // Total parameters as the model cards have them: 134,515,008, 596,049,920 and 4,022,468,096, two bytes each.
        assert_eq!(random_bytes(&Shape::Smollm2.config()), 2 * 134_515_008);
        assert_eq!(random_bytes(&Shape::Qwen3Small.config()), 2 * 596_049_920);
        assert_eq!(random_bytes(&Shape::Qwen3Four.config()), 2 * 4_022_468_096);
    }
}
