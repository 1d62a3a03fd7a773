//! From a model's HF tensor names to the names that llama.cpp's converter gives them.

/// GGUF name of an HF tensor of the Llama family: `model.layers.3.mlp.up_proj.weight` → `blk.3.ffn_up.weight`.
///
/// Only names that [`crate::layout`] makes are asked for, so an unknown name comes back as it is and is found missing.
pub(crate) fn gguf_name(hf: &str) -> String {
    match hf {
        "model.embed_tokens.weight" => return "token_embd.weight".into(),
        "model.norm.weight" => return "output_norm.weight".into(),
        "lm_head.weight" => return "output.weight".into(),
        _ => {}
    }
    let parts = hf.strip_prefix("model.layers.").and_then(|rest| {
        let (layer, rest) = rest.split_once('.')?;
        let (module, field) = rest.rsplit_once('.')?;
        Some((layer, module, field))
    });
    let Some((layer, module, field)) = parts else { return hf.to_owned() };
    let module = match module {
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        _ => return hf.to_owned(),
    };
    format!("blk.{layer}.{module}.{field}")
}

#[cfg(test)]
mod tests {
    use super::gguf_name;

    #[test]
    fn names_follow_the_converter() {
        assert_eq!(gguf_name("model.layers.12.self_attn.o_proj.bias"), "blk.12.attn_output.bias");
        assert_eq!(gguf_name("model.layers.0.post_attention_layernorm.weight"), "blk.0.ffn_norm.weight");
        assert_eq!(gguf_name("lm_head.weight"), "output.weight");
        assert_eq!(gguf_name("model.layers.0.rotary.inv_freq"), "model.layers.0.rotary.inv_freq");
    }
}
