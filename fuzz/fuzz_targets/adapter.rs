//! Opening an adapter of any two files on a small base: an error, or factors whose shapes fit.
#![no_main]

use bitdelta_model::{Adapter, Base};
use libfuzzer_sys::fuzz_target;
use std::{fs, sync::OnceLock};

const BASE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/tiny-llama3");

fuzz_target!(|files: (&[u8], &[u8])| {
    static OPENED: OnceLock<Base> = OnceLock::new();
    let base = OPENED.get_or_init(|| Base::open(BASE).expect("the golden model"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    fs::write(folder.path().join("adapter_config.json"), files.0).expect("writing the input");
    fs::write(folder.path().join("adapter_model.safetensors"), files.1).expect("writing the input");
    let Ok(adapter) = Adapter::open(folder.path(), base) else { return };
    for matrix in base.matrices() {
        if let Ok(Some(factors)) = adapter.factors(&matrix.name) {
            assert_eq!(factors.a.len(), factors.rank * matrix.cols);
            assert_eq!(factors.b.len(), factors.rank * matrix.rows);
        }
    }
});
