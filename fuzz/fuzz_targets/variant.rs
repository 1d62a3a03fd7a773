//! The variant reader on any bytes, and on any three arrays behind a right hash: an error or a variant that writes the
//! same bytes again, never a panic.
#![no_main]

use bitdelta_delta::Variant;
use libfuzzer_sys::fuzz_target;
use safetensors::{Dtype, tensor::TensorView};
use std::path::Path;

fuzz_target!(|data: (&[u8], [&[u8]; 3])| {
    let (file, arrays) = data;
    check(file);
    check(&stamped(arrays));
});

fn check(bytes: &[u8]) {
    if let Ok((variant, hash)) = Variant::from_bytes(bytes, Path::new("fuzz")) {
        let again = variant.to_bytes().expect("what was read can be written");
        let (read, _) = Variant::from_bytes(&again, Path::new("fuzz")).expect("what was written can be read");
        // JSON and compression of `info` have many spellings: contents are equal, bytes need not be.
        assert_eq!(read, variant);
        assert_eq!(hash.len(), 64);
    }
}

/// A file of these arrays (manifest, payload, info) with the hash that they have.
fn stamped(arrays: [&[u8]; 3]) -> Vec<u8> {
    let mut hasher = blake3::Hasher::new();
    for array in arrays {
        hasher.update(&(array.len() as u64).to_le_bytes()).update(array);
    }
    let stamp = format!("1:{}", hasher.finalize().to_hex());
    let views = ["manifest", "payload", "info"].into_iter().zip(arrays).map(|(name, bytes)| {
        (name, TensorView::new(Dtype::U8, vec![bytes.len()], bytes).expect("a byte array of its own length"))
    });
    safetensors::serialize(views, Some([("bitdelta".to_owned(), stamp)].into())).expect("three arrays serialise")
}
