//! Opening a base on any bytes: as a GGUF file, and as the safetensors file of a small model's folder.
#![no_main]

use bitdelta_model::Base;
use libfuzzer_sys::fuzz_target;
use std::{fs, path::Path};

/// The files of a model's folder beside its weights.
const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny-llama");

fuzz_target!(|data: &[u8]| {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gguf = folder.path().join("fuzz.gguf");
    fs::write(&gguf, data).expect("writing the input");
    open(&gguf);
    for name in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(Path::new(FOLDER).join(name), folder.path().join(name)).expect("copying the folder");
    }
    fs::write(folder.path().join("model.safetensors"), data).expect("writing the input");
    open(folder.path());
});

fn open(path: &Path) {
    let Ok(base) = Base::open(path.to_str().expect("a plain path")) else { return };
    for tensor in base.tensors() {
        // A header may promise any shape that its file really holds; the values are read to prove it.
        let _values = base.tensor_f32(&tensor.name);
    }
}
