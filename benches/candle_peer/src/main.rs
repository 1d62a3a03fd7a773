//! candle's figures for the table of `make bench`: its quantised Llama on the same GGUF, prompt tokens, lengths and threads as
//! `bitdelta bench`, greedy, the prompts inside the clock of `decode`, the fastest of a few runs. No adapter: candle has none
//! that it could batch.
//!
//! usage: candle-peer MODEL.gguf DTYPE THREADS PROMPT GENERATE PREFILL RUNS BATCH...

use candle_core::{DType, Device, Result, Tensor, quantized::gguf_file};
use candle_transformers::models::quantized_llama::ModelWeights;
use serde_json::json;
use std::{fs::File, io::BufReader, time::Instant};

/// The prompt that `bitdelta bench` gives this request.
fn prompt_tokens(request: usize, length: usize, vocab: usize) -> Vec<u32> {
    (0..length).map(|i| ((request * 7919 + i * 104_729 + 11) % vocab) as u32).collect()
}

/// `count` greedy tokens for each of `batch` prompts, all rows in one batch.
fn generate(model: &mut ModelWeights, vocab: usize, batch: usize, prompt: usize, count: usize) -> Result<Vec<u32>> {
    let tokens: Vec<u32> = (0..batch).flat_map(|request| prompt_tokens(request, prompt, vocab)).collect();
    let mut input = Tensor::from_vec(tokens, (batch, prompt), &Device::Cpu)?;
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
    let [threads, prompt, count, prefill, runs, batches @ ..] = numbers.as_slice() else { panic!("too few arguments") };
    let mut file = BufReader::new(File::open(model)?);
    let content = gguf_file::Content::read(&mut file)?;
    let vocab = content.tensor_infos["token_embd.weight"].shape.dims()[0];
    let mut weights = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
    let mut figures = Vec::new();
    let mut measure = |what: &str, batch: usize, prompt: usize, count: usize| -> Result<()> {
        let mut seconds = f64::INFINITY;
        // The first run warms up.
        for run in 0..=*runs {
            let begun = Instant::now();
            generate(&mut weights, vocab, batch, prompt, count)?;
            if run > 0 {
                seconds = seconds.min(begun.elapsed().as_secs_f64());
            }
        }
        let speed = (batch * if what == "decode" { count } else { prompt }) as f64 / seconds;
        eprintln!("candle {dtype} {what} batch {batch}: {speed:.1} tokens/s");
        figures.push(json!({
            "peer": "candle", "what": what, "adapter": "base", "base_dtype": dtype, "threads": threads, "batch": batch,
            "prompt": prompt, "generate": count, "tokens_per_second": speed, "seconds": seconds,
        }));
        Ok(())
    };
    for batch in batches {
        measure("decode", *batch, *prompt, *count)?;
    }
    if *prefill > 0 {
        measure("prefill", 1, *prefill, 1)?;
    }
    println!("{}", json!({ "peer": "candle", "version": "candle-transformers 0.11", "figures": figures }));
    Ok(())
}
