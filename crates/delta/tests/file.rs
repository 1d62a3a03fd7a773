//! Claims about the variant file: what goes in comes out, and nothing else comes out.
#![allow(clippy::unwrap_used)]

use bitdelta_delta::{
    BitDeltaConfig, Error, Extra, GroupSize, Info, LinearDelta, Part, Variant, exact_factors, factor, file, metrics,
    quantize,
    quantize::{Codes, pack},
    tread::{Levels, Step},
};
use bitdelta_kernels::SparseRows;
use proptest::prelude::*;
use std::path::Path;

/// Everything that is not payload, for 210 linears: the promise of the format.
const OVERHEAD: u64 = 1500;

fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    (0..n)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * 1e-3
        })
        .collect()
}

fn info() -> Info {
    Info::new(&"ab".repeat(32), "tiny", BitDeltaConfig::default(), "model:0123456789abcdef")
}

/// One of every kind, in odd shapes.
fn small() -> Variant {
    let config = BitDeltaConfig { group_size: Some(GroupSize::Elements(32)), ..BitDeltaConfig::default() };
    let dense = quantize("w", &noise(3 * 70, 1), 3, 70, &config).unwrap();
    let offset = BitDeltaConfig { bits: 2, symmetric: false, ..config };
    let linear = |rows, cols, parts| LinearDelta { rows, cols, parts, relative_error: None };
    let mut variant = Variant::new(
        info(),
        vec![
            linear(3, 70, vec![dense, factor("w", &noise(2 * 70, 2), &noise(3 * 2, 3), (3, 2, 70), 4).unwrap()]),
            linear(5, 1, vec![quantize("w", &noise(5, 4), 5, 1, &offset).unwrap()]),
            linear(2, 2, vec![Part::Full { rows: 2, cols: 2, values: vec![1, 2, 3, 4] }]),
            linear(9, 9, vec![]),
            linear(3, 70, vec![exact_factors("w", &noise(2 * 70, 5), &[0.5; 3 * 2], (3, 2, 70), 2.0).unwrap()]),
        ],
    );
    let coded = |values: usize, cols| {
        let steps = [Step::nearest(4e-4), Step::nearest(1e-3)];
        Levels::of(&noise(values, 6), cols, &steps, 0.1).pack("w").unwrap()
    };
    variant.linears.push(linear(5, 70, vec![Part::LowRank { a: coded(2 * 70, 70), bt: coded(2 * 5, 5) }]));
    // Rows in the same stream: many levels, and few; the second has a row of zeros.
    let rows = |deviation: f32| Levels::of(&noise(3 * 70, 8), 70, &[Step::nearest(deviation); 3], 0.0);
    let mut few = rows(1.6e-3);
    few.levels[70..140].fill(0);
    few.steps[1] = None;
    variant.linears.push(linear(
        3,
        70,
        vec![Part::Dense(rows(5e-4).pack("w").unwrap()), Part::Sparse(few.sparse().unwrap())],
    ));
    variant.linears[3].relative_error = Some(0.0);
    variant.extras = vec![Extra { tensor: 1, values: vec![15360; 3] }, Extra { tensor: 7, values: vec![0, 1] }];
    variant
}

fn parse(bytes: &[u8]) -> Result<Variant, Error> {
    Variant::from_bytes(bytes, Path::new("user.safetensors")).map(|(variant, _)| variant)
}

#[test]
fn a_variant_survives_its_file_and_the_file_its_variant() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("user.safetensors");
    let variant = small();
    let bytes = variant.write(&path).unwrap();
    assert_eq!(bytes, std::fs::metadata(&path).unwrap().len());
    let (read, hash) = Variant::read_hashed(&path).unwrap();
    assert_eq!(read, variant);
    assert_eq!(hash, variant.content_hash().unwrap());
    assert_eq!(read.to_bytes().unwrap(), std::fs::read(&path).unwrap());
    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(names.len(), 1, "no temporary file stays behind");
}

#[test]
fn a_folder_with_a_variant_in_it_will_do() {
    let folder = tempfile::tempdir().unwrap();
    small().write(&folder.path().join(file::FILE_NAME)).unwrap();
    assert_eq!(Variant::read(folder.path()).unwrap(), small());
}

#[test]
fn every_flipped_byte_is_an_error() {
    let bytes = small().to_bytes().unwrap();
    for at in 0..bytes.len() {
        for flip in [1, 0x20, 0x80, 0xff] {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            assert!(parse(&changed).is_err(), "byte {at} of {} ^ {flip:#x} went unnoticed", bytes.len());
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = small().to_bytes().unwrap();
    for length in 0..bytes.len() {
        let error = parse(&bytes[..length]).unwrap_err();
        assert!(matches!(error, Error::Truncated { .. }), "{length}: {error}");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(matches!(parse(&longer), Err(Error::Truncated { .. })));
}

#[test]
fn a_changed_payload_is_a_hash_mismatch_that_says_what_to_do() {
    let mut bytes = small().to_bytes().unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    let error = parse(&bytes).unwrap_err();
    assert!(matches!(error, Error::HashMismatch { .. }));
    assert!(error.to_string().contains("user.safetensors is damaged"), "{error}");
}

#[test]
fn another_safetensors_file_is_not_a_variant() {
    let bytes =
        safetensors::serialize(std::iter::empty::<(&str, safetensors::tensor::TensorView<'_>)>(), None).unwrap();
    assert!(matches!(parse(&bytes), Err(Error::NotAVariant { .. })));
    assert!(matches!(parse(b"GGUF\x03\0\0\0\0\0\0\0 and what follows"), Err(Error::NotAVariant { .. })));
    let error = Variant::read(Path::new("/dev/null")).unwrap_err();
    assert!(matches!(error, Error::NotAVariant { .. }), "{error}");
}

#[test]
fn a_later_version_is_refused_by_number() {
    let bytes = small().to_bytes().unwrap();
    let at = bytes.windows(13).position(|w| w == b"\"bitdelta\":\"1").unwrap() + 12;
    let mut later = bytes;
    later[at] = b'2';
    let error = parse(&later).unwrap_err();
    assert!(matches!(&error, Error::UnsupportedVersion { found, supported: 1, .. } if found == "2"), "{error}");
}

#[test]
fn a_missing_file_names_its_path() {
    let error = Variant::read(Path::new("/nowhere/user.safetensors")).unwrap_err();
    assert!(error.to_string().contains("/nowhere/user.safetensors"), "{error}");
}

#[test]
fn an_inconsistent_variant_is_not_written() {
    type Damage = fn(&mut Variant);
    let damages: [(&str, Damage); 8] = [
        ("shape", |v| v.linears[0].rows = 4),
        ("length", |v| {
            if let Part::Dense(m) = &mut v.linears[0].parts[0] {
                m.planes.pop();
            }
        }),
        ("pad bits", |v| {
            if let Part::Dense(m) = &mut v.linears[0].parts[0] {
                m.planes[1] |= 1 << 63
            }
        }),
        ("infinite scale", |v| {
            if let Part::Dense(m) = &mut v.linears[0].parts[0] {
                m.scales[0] = 0x7c00
            }
        }),
        ("nan tensor scale", |v| {
            if let Part::Dense(m) = &mut v.linears[0].parts[0] {
                m.tensor_scale = f32::NAN
            }
        }),
        ("extras out of order", |v| v.extras.swap(0, 1)),
        ("sparse scale", |v| {
            let mut rows = SparseRows::new(70).unwrap();
            assert!((0..3).all(|_| rows.push([(1, 1)], 0.123)));
            v.linears[6].parts[1] = Part::Sparse(rows);
        }),
        ("version", |v| v.info.version = 2),
    ];
    for (name, damage) in damages {
        let mut variant = small();
        damage(&mut variant);
        assert!(matches!(variant.to_bytes(), Err(Error::Unwritable { .. })), "{name}");
    }
}

#[test]
fn everything_but_payload_of_210_linears_stays_under_the_promise() {
    let shapes = [(576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536)];
    let codes = Codes { bits: 1, group: 64, symmetric: true, clip: None };
    let matrices = shapes.map(|(rows, cols)| pack("w", &noise(rows * cols, 9), rows, cols, codes).unwrap());
    let linears = (0..210).map(|i| {
        let matrix = matrices[i % 7].clone();
        // Errors that no compressor could predict.
        let relative_error = Some(0.3 + (i * 7919 % 210) as f32 / 700.0);
        LinearDelta { rows: matrix.rows, cols: matrix.cols, parts: vec![Part::Dense(matrix)], relative_error }
    });
    let mut variant = Variant::new(info(), linears.collect());
    variant.extras = (0..61).map(|i| Extra { tensor: 3 + i * 5, values: vec![0; 576] }).collect();
    variant.info.notes.insert("made_by".into(), "bitdelta compress, from a pair of HF folders".into());
    variant
        .info
        .notes
        .insert("fidelity".into(), serde_json::json!({"mean_relative_error": 0.6012345, "loss": 1.234567}));
    let overhead = variant.to_bytes().unwrap().len() as u64 - variant.payload_bytes();
    assert!(overhead <= OVERHEAD, "{overhead} bytes");
}

#[test]
fn crafted_headers_and_infos_are_errors_not_panics() {
    // Arrays of the right names and hash, whose contents are someone else's: the reader must name the section.
    let craft = |manifest: &[u8], payload: &[u8], info: &[u8]| {
        let mut hasher = blake3::Hasher::new();
        for array in [manifest, payload, info] {
            hasher.update(&(array.len() as u64).to_le_bytes()).update(array);
        }
        let stamp = format!("1:{}", hasher.finalize().to_hex());
        let view =
            |bytes| safetensors::tensor::TensorView::new(safetensors::Dtype::U8, vec![<[u8]>::len(bytes)], bytes);
        safetensors::serialize(
            [("manifest", view(manifest).unwrap()), ("payload", view(payload).unwrap()), ("info", view(info).unwrap())],
            Some([("bitdelta".to_owned(), stamp)].into()),
        )
        .unwrap()
    };
    let good = zstd::bulk::compress(&serde_json::to_vec(&info()).unwrap(), 3).unwrap();
    let bomb = zstd::bulk::compress(&vec![b' '; 64 << 20], 3).unwrap();
    let deep = zstd::bulk::compress("[".repeat(1 << 19).as_bytes(), 3).unwrap();
    assert!(parse(&craft(&[0, 0, 0], &[], &good)).unwrap().linears.is_empty());
    let huge_shape = [1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 1, 0, 0, 0];
    type Case<'a> = (&'a str, &'a [u8], &'a [u8], &'a [u8]);
    let cases: [Case<'_>; 9] = [
        ("info", &[0, 0, 0], &[], b"no zstd"),
        ("info", &[0, 0, 0], &[], &bomb),
        ("info", &[0, 0, 0], &[], &deep),
        ("manifest", &[0, 0], &[], &good),
        ("manifest", &[0, 1, 0, 0, 0], &[], &good),
        ("manifest", &[0xff; 12], &[], &good),
        ("payload", &huge_shape, &[], &good),
        ("payload", &[0, 0, 0], &[0], &good),
        ("payload", &[1, 1, 1, 1, 2, 1, 0, 0, 0], &[0x00, 0x7c], &good),
    ];
    for (wanted, manifest, payload, info) in cases {
        match parse(&craft(manifest, payload, info)) {
            Err(Error::Malformed { section, .. }) => assert_eq!(section, wanted, "{manifest:?}"),
            other => panic!("{manifest:?} {wanted}: {other:?}"),
        }
    }
}

#[test]
fn a_crafted_manifest_is_malformed_not_a_panic() {
    // Any bytes as a manifest, stamped with the right hash, through the public door.
    let variant = small();
    let bytes = variant.to_bytes().unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let stamp = metadata.metadata().as_ref().unwrap()["bitdelta"].clone();
    let span = |name| {
        let (start, end) = metadata.info(name).unwrap().data_offsets;
        header + start..header + end
    };
    for at in span("manifest") {
        for flip in 1..=255u8 {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            let mut hasher = blake3::Hasher::new();
            for name in ["manifest", "payload", "info"] {
                hasher.update(&(span(name).len() as u64).to_le_bytes()).update(&changed[span(name)]);
            }
            let restamped = format!("1:{}", hasher.finalize().to_hex());
            let where_ = changed.windows(stamp.len()).position(|w| w == stamp.as_bytes()).unwrap();
            changed[where_..where_ + stamp.len()].copy_from_slice(restamped.as_bytes());
            match parse(&changed) {
                Ok(other) => assert_ne!(other, variant),
                Err(error) => assert!(matches!(error, Error::Malformed { .. }), "{error}"),
            }
        }
    }
}

#[test]
fn two_halves_are_the_whole_where_nothing_is_coded() {
    let mut variant = small();
    assert!(file::Stored::open(&variant.to_bytes().unwrap(), Path::new("v")).unwrap().halves().is_none(), "coded");
    variant.linears.truncate(5);
    // Few levels are kept one by one, without a stream.
    let mut levels = Levels { cols: 500, steps: vec![None; 300], levels: vec![0; 300 * 500] };
    (levels.levels[7], levels.steps[0]) = (3, Some(Step::nearest(0.01)));
    let parts = vec![Part::Sparse(levels.sparse().unwrap())];
    variant.linears.insert(0, LinearDelta { rows: 300, cols: 500, parts, relative_error: None });
    let bytes = variant.to_bytes().unwrap();
    let stored = file::Stored::open(&bytes, Path::new("v")).unwrap();
    let count = variant.linears.len();
    for middle in 0..=count {
        let mut linears = Vec::new();
        let none = stored.decode_some(0..middle, &mut |linear| linears.push(linear)).unwrap();
        let extras = stored.decode_some(middle..count, &mut |linear| linears.push(linear)).unwrap();
        assert_eq!((linears, extras), (variant.linears.clone(), variant.extras.clone()), "halves at {middle}");
        assert!(none.is_empty() || middle == count);
    }
    let [first, second] = stored.halves().unwrap();
    assert_eq!((first, second), (0..1, 1..count), "by their weights");
}

#[test]
fn sparse_rows_without_a_stream_are_kept_one_by_one() {
    // So few levels that a coded stream would hold too many elements a byte, and none at all.
    for kept in [0usize, 3] {
        let (rows, cols) = (300, 500);
        let mut levels = Levels { cols, steps: vec![None; rows], levels: vec![0; rows * cols] };
        for row in 0..kept {
            levels.levels[row * 71 * cols + row] = -7;
            levels.steps[row * 71] = Some(Step::nearest(0.01));
        }
        let parts = vec![Part::Sparse(levels.sparse().unwrap())];
        let variant = Variant::new(info(), vec![LinearDelta { rows, cols, parts, relative_error: None }]);
        let bytes = variant.to_bytes().unwrap();
        assert_eq!(parse(&bytes).unwrap(), variant, "{kept} levels");
        assert!(bytes.len() > 4 * rows, "{kept} levels: a step and a count for each row");
    }
}

#[test]
fn codes_of_more_bits_than_their_levels_need_are_stored_as_they_are() {
    let mut levels = Levels::of(&noise(2 * 70, 9), 70, &[Step::nearest(6e-4); 2], 0.0);
    assert_eq!(levels.pack("w").unwrap().bits, 3);
    levels.levels[0] = 8;
    let mut four = levels.pack("w").unwrap();
    // The code of 8 without its highest bit is that of 0, of which a reader would make fewer bits.
    let last_plane = 3 * four.words_per_row();
    four.planes[last_plane] &= !1;
    assert_eq!((four.value(0, 0), Levels::of_matrix(&four)), (0.0, None));
    let part = LinearDelta { rows: 2, cols: 70, parts: vec![Part::Dense(four)], relative_error: None };
    let variant = Variant::new(info(), vec![part]);
    assert_eq!(parse(&variant.to_bytes().unwrap()).unwrap(), variant);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_sum_of_coded_kinds_survives_the_file(
        shapes in prop::collection::vec((1usize..9, 1usize..200), 1..4), deviation in 1e-4f32..3e-3, seed: u32,
    ) {
        let linears = shapes.iter().zip(0..).map(|((rows, cols), i)| {
            let steps = vec![Step::nearest(deviation); *rows];
            let levels = Levels::of(&noise(rows * cols, seed ^ i), *cols, &steps, 0.1);
            let parts = vec![
                Part::Sparse(levels.sparse().unwrap()),
                Part::Dense(levels.pack("w").unwrap()),
            ];
            LinearDelta { rows: *rows, cols: *cols, parts, relative_error: None }
        });
        let variant = Variant::new(info(), linears.collect());
        let bytes = variant.to_bytes().unwrap();
        prop_assert_eq!(parse(&bytes).unwrap(), variant);
    }

    #[test]
    fn any_shape_group_and_width_survives_the_file(
        (rows, cols) in (1usize..9, 1usize..300),
        bits in prop::sample::select(vec![1u8, 2, 4]),
        group in prop::option::of(32u32..=256),
        symmetric: bool,
        seed: u32,
    ) {
        let group_size = Some(group.map_or(GroupSize::Row, GroupSize::Elements));
        let config = BitDeltaConfig { bits, group_size, symmetric, ..BitDeltaConfig::default() };
        let delta = noise(rows * cols, seed);
        let parts = vec![quantize("w", &delta, rows, cols, &config).unwrap()];
        let error = metrics::relative_error(&parts, &delta, cols);
        prop_assert!(error <= 1.0, "{error}");
        let linears = vec![LinearDelta { rows, cols, parts, relative_error: None }];
        let variant = Variant::new(info(), linears);
        prop_assert_eq!(parse(&variant.to_bytes().unwrap()).unwrap(), variant);
    }

    #[test]
    fn any_bytes_are_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(parse(&bytes).is_err());
    }
}
