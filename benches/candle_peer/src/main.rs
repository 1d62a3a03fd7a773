//! candle's figures for the table of `make bench`: its quantised Llama on the same GGUF, prompt tokens, lengths and threads as
//! `bitdelta bench`, greedy, the prompt inside the clock of `decode`, the fastest of a few runs. One request on the base alone:
//! candle's quantised Llama refuses a batch of several sequences (it slices the last position of each, and multiplies
//! contiguous rows only), and has no adapters.
//!
//! usage: candle-peer MODEL.gguf DTYPE THREADS PROMPT GENERATE PREFILL RUNS

use candle_core::{DType, Device, Result, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::json;
use std::{fs::File, io::BufReader, time::Instant};

/// `count` greedy tokens after the prompt that `bitdelta bench` gives its first request; the last of them.
fn generate(model: &mut ModelWeights, vocab: usize, prompt: usize, count: usize) -> Result<Vec<u32>> {
    let tokens: Vec<u32> = (0..prompt).map(|i| ((i * 104_729 + 11) % vocab) as u32).collect();
    let mut input = Tensor::from_vec(tokens, (1, prompt), &Device::Cpu)?;
    let mut last = Vec::new();
    for done in 0..count {
        let position = if done == 0 { 0 } else { prompt + done - 1 };
        let logits = model.forward(&input, position)?.to_dtype(DType::F32)?;
        let next = logits.argmax(candle_core::D::Minus1)?;
        last = next.to_vec1()?;
        input = next.unsqueeze(1)?;
    }
    Ok(last)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, dtype, numbers @ ..] = arguments.as_slice() else { panic!("usage: see the head of main.rs") };
    let numbers: Vec<usize> = numbers.iter().map(|text| text.parse().expect("a number")).collect();
    let [threads, prompt, count, prefill, runs] = numbers.as_slice() else { panic!("usage: see the head of main.rs") };
    let mut file = BufReader::new(File::open(model)?);
    let content = gguf_file::Content::read(&mut file)?;
    let vocab = content.tensor_infos["token_embd.weight"].shape.dims()[0];
    let mut weights = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut figures = Vec::new();
    let mut measure = |what: &str, prompt: usize, count: usize| -> Result<()> {
        let mut seconds = f64::INFINITY;
        // The first run warms up.
        for run in 0..=*runs {
            let begun = Instant::now();
            generate(&mut weights, vocab, prompt, count)?;
            if run > 0 {
                seconds = seconds.min(begun.elapsed().as_secs_f64());
            }
        }
        let speed = if what == "decode" { count } else { prompt } as f64 / seconds;
        eprintln!("candle {dtype} {what}: {speed:.1} tokens/s");
        figures.push(json!({
            "peer": "candle", "what": what, "adapter": "base", "base_dtype": dtype, "threads": threads, "batch": 1,
            "prompt": prompt, "generate": count, "tokens_per_second": speed, "seconds": seconds,
        }));
        Ok(())
    };
    measure("decode", *prompt, *count)?;
    if *prefill > 0 {
        measure("prefill", *prefill, 1)?;
    }
    println!("{}", json!({ "peer": "candle", "version": "candle-transformers 0.11", "figures": figures }));
    Ok(())
}
