//! Which chat template a prompt is to be made with.

use crate::{Resident, backend::Backend};
use bitdelta_model::chat::{Template, Tokenizer};

/// The template that a variant was trained with, the model's own for the base: asked with another one, a fine-tune loses
/// part of what it learnt. With it comes a sentence for whoever asked, if the variant's template is not to be had.
pub fn template<B: Backend>(tokenizer: &Tokenizer, variant: Option<&Resident<B>>) -> (Template, Option<String>) {
    let Some(variant) = variant else { return (Template::Model, None) };
    let trained_with = variant.info().template.as_str();
    let own = tokenizer.template_id(&Template::Model);
    match Template::from_name(trained_with) {
        Some(template) => (template, None),
        None if trained_with == own => (Template::Model, None),
        None => {
            let user = variant.user();
            let sentence = format!(
                "the variant of {user} was trained with the chat template {trained_with}, which this model does not \
                 have; its own ({own}) is used, and part of what was learnt may be lost"
            );
            (Template::Model, Some(sentence))
        }
    }
}
