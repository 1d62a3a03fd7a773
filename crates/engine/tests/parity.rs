//! The engine's numbers against those of `transformers` (golden files of tiny random models, see
//! `tests/golden/make_tiny.py`), against merged weights, and against itself in other company.

use bitdelta_delta::{
    BitDeltaConfig, Extra, GroupSize, Info, LinearDelta, Part, Variant, exact_factors, factor,
    part::dequantize,
    quantize,
    tread::{Levels, Step},
};
use bitdelta_engine::{BaseDtype, Engine, EngineOptions, Error, KvDtype, Model, ModelOptions, Resident, Sampling};
use bitdelta_model::{Base, Dtype};
use half::f16;
use safetensors::SafeTensors;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

/// Two f32 forward passes whose sums run in another order differ by about 1e-5 on logits of size 1 to 10;
/// any wrong constant (an epsilon, a rotary frequency) moves them by 1e-2 and more.
const LOGIT_TOLERANCE: f32 = 2e-4;

/// Tokens of a request in the tests of company: past one prefill chunk and one page of the cache.
const ANSWER: usize = 40;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name)
}

fn load(path: &Path) -> Arc<Model> {
    let base = Base::open(path.to_str().expect("a plain path")).expect("the base opens");
    Arc::new(
        Model::load(Arc::new(base), ModelOptions { threads: 2, ..ModelOptions::default() }).expect("the base loads"),
    )
}

/// One golden file.
struct Golden(Vec<u8>);

impl Golden {
    fn open(path: &Path) -> Self {
        Self(std::fs::read(path).expect("a golden file"))
    }

    fn chunks<const N: usize>(&self, name: &str) -> Vec<[u8; N]> {
        let file = SafeTensors::deserialize(&self.0).expect("safetensors");
        let tensor = file.tensor(name).expect("a golden tensor");
        tensor.data().chunks_exact(N).map(|bytes| bytes.try_into().expect("N bytes")).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.chunks(name).into_iter().map(|bytes| u32::try_from(i64::from_le_bytes(bytes)).expect("an id")).collect()
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.chunks(name).into_iter().map(f32::from_le_bytes).collect()
    }
}

/// Logits of `positions`, one after another.
fn logits(
    model: &Model,
    tokens: &[u32],
    positions: std::ops::Range<usize>,
    variant: Option<&Arc<Resident>>,
) -> Vec<f32> {
    let mut out = Vec::new();
    let mut expected = positions.start;
    let mut each = |position: usize, row: &[f32]| {
        assert_eq!(position, expected, "positions come in order");
        expected += 1;
        out.extend_from_slice(row);
    };
    model.logits(tokens, positions.clone(), variant, &mut each).expect("logits");
    assert_eq!(expected, positions.end, "every position came");
    out
}

#[track_caller]
fn assert_close(found: &[f32], expected: &[f32], tolerance: f32, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: lengths");
    let worst =
        (0..found.len()).max_by(|&a, &b| (found[a] - expected[a]).abs().total_cmp(&(found[b] - expected[b]).abs()));
    let at = worst.expect("logits are not empty");
    let distance = (found[at] - expected[at]).abs();
    // Not `>`: NaN must fail too.
    assert!(distance <= tolerance, "{what}: {} at {at}, expected {}: off by {distance}", found[at], expected[at]);
}

/// The model of `folder`'s golden file computes its logits and its greedy continuation.
#[track_caller]
fn assert_parity(folder: &str) {
    let model = load(&golden(folder));
    let expected = Golden::open(&golden(folder).join("golden.safetensors"));
    let prompt = expected.ids("input_ids");
    let found = logits(&model, &prompt, 0..prompt.len(), None);
    assert_close(&found, &expected.floats("logits"), LOGIT_TOLERANCE, folder);

    let engine = Engine::start(model, EngineOptions::default()).expect("an engine");
    let greedy = expected.ids("greedy_ids");
    let finish = engine.generate(prompt, None, greedy_sampling(), greedy.len(), vec![]).expect("an answer").1;
    assert_eq!(finish.tokens, greedy, "{folder}: greedy continuation");
}

fn greedy_sampling() -> Sampling {
    Sampling { temperature: 0.0, top_p: 1.0, top_k: 0, seed: 0 }
}

/// Draws from the whole distribution: a changed bit in the logits changes the answer sooner or later.
fn sampling(seed: u64) -> Sampling {
    Sampling { temperature: 1.0, top_p: 1.0, top_k: 0, seed }
}

#[test]
fn tied_llama_equals_transformers() {
    assert_parity("tiny-llama");
}

#[test]
fn a_fine_tuned_llama_equals_transformers() {
    assert_parity("tiny-llama-ft");
}

#[test]
fn llama3_with_scaled_rope_biases_and_its_own_head_equals_transformers() {
    assert_parity("tiny-llama3");
}

#[test]
fn sharded_bf16_qwen3_with_qk_norm_equals_transformers() {
    assert_parity("tiny-qwen3");
}

#[test]
fn gguf_files_equal_transformers_on_the_dequantised_weights() {
    for kind in ["f32", "q8_0", "q4_1"] {
        let model = load(&golden(&format!("tiny-llama-gguf/{kind}.gguf")));
        let file = match kind {
            "f32" => "tiny-llama/golden.safetensors".to_owned(),
            _ => format!("tiny-llama-gguf/{kind}.golden.safetensors"),
        };
        let expected = Golden::open(&golden(&file));
        let prompt = expected.ids("input_ids");
        let found = logits(&model, &prompt, 0..prompt.len(), None);
        assert_close(&found, &expected.floats("logits"), LOGIT_TOLERANCE, kind);
    }
}

#[test]
fn an_int8_base_keeps_the_weights_of_a_quantised_gguf_file() {
    // Only activations are rounded, to 15 bits: a tenth of what rounding the weights to 8 bits would do.
    const TOLERANCE: f32 = 5e-3;
    let open = |kind: &str| {
        let path = golden(&format!("tiny-llama-gguf/{kind}.gguf"));
        let base = Arc::new(Base::open(path.to_str().expect("a plain path")).expect("the base opens"));
        let options = ModelOptions { threads: 2, base_dtype: BaseDtype::Int8, kv_dtype: KvDtype::F32 };
        Arc::new(Model::load(base, options).expect("the base loads"))
    };
    for kind in ["q8_0", "q4_1"] {
        let model = open(kind);
        let expected = Golden::open(&golden(&format!("tiny-llama-gguf/{kind}.golden.safetensors")));
        let prompt = expected.ids("input_ids");
        let found = logits(&model, &prompt, 0..prompt.len(), None);
        assert_close(&found, &expected.floats("logits"), TOLERANCE, kind);
    }
    let (floats, nibbles) = (open("f32").bytes(), open("q4_1").bytes());
    assert!(nibbles * 10 < floats * 8, "4-bit codes take {nibbles} bytes, floats rounded to 8 bits {floats}");
}

/// How a test's variant holds each linear's difference.
type MakeParts<'a> = &'a dyn Fn(&str, &[f32], usize, usize) -> Vec<Part>;

/// The fine-tuned twin of tiny-llama as a variant, with its norms.
fn twin(base: &Base, parts: MakeParts<'_>) -> Variant {
    let tuned = Base::open(golden("tiny-llama-ft").to_str().expect("a plain path")).expect("the twin opens");
    let difference = |name: &str| -> Vec<f32> {
        let (before, after) = (base.tensor_f32(name).expect(name), tuned.tensor_f32(name).expect(name));
        after.iter().zip(&before).map(|(after, before)| after - before).collect()
    };
    let linears = base.linears().iter().map(|linear| LinearDelta {
        rows: linear.rows,
        cols: linear.cols,
        parts: parts(&linear.name, &difference(&linear.name), linear.rows, linear.cols),
        relative_error: None,
    });
    let info = Info::new(base.fingerprint(), "tiny-llama", BitDeltaConfig::default(), "model");
    let mut variant = Variant::new(info, linears.collect());
    for (tensor, reference) in base.tensors().iter().enumerate() {
        if reference.name.contains("norm") {
            let values = difference(&reference.name).iter().map(|&x| f16::from_f32(x).to_bits()).collect();
            variant.extras.push(Extra { tensor, values });
        }
    }
    variant
}

fn config(bits: u8, group: GroupSize, symmetric: bool) -> BitDeltaConfig {
    BitDeltaConfig { bits, group_size: Some(group), symmetric, ..Default::default() }
}

/// Two components of a difference, by power iteration: enough for a low-rank part that means something.
fn low_rank(name: &str, delta: &[f32], rows: usize, cols: usize) -> Part {
    const RANK: usize = 2;
    let mut rest = delta.to_vec();
    let (mut a, mut b) = (vec![0.0; RANK * cols], vec![0.0; rows * RANK]);
    for r in 0..RANK {
        let mut right: Vec<f32> = (0..cols).map(|i| 1.0 + (i % 7) as f32).collect();
        let mut left = vec![0.0; rows];
        for _ in 0..20 {
            let norm = right.iter().map(|x| x * x).sum::<f32>().sqrt();
            right.iter_mut().for_each(|x| *x /= norm);
            for (o, left) in left.iter_mut().enumerate() {
                *left = (0..cols).map(|i| rest[o * cols + i] * right[i]).sum();
            }
            for (i, right) in right.iter_mut().enumerate() {
                *right = (0..rows).map(|o| rest[o * cols + i] * left[o]).sum();
            }
        }
        let norm = right.iter().map(|x| x * x).sum::<f32>().sqrt();
        right.iter_mut().for_each(|x| *x /= norm);
        for o in 0..rows {
            left[o] = (0..cols).map(|i| rest[o * cols + i] * right[i]).sum();
            b[o * RANK + r] = left[o];
            for i in 0..cols {
                rest[o * cols + i] -= left[o] * right[i];
            }
        }
        a[r * cols..][..cols].copy_from_slice(&right);
    }
    factor(name, &a, &b, (rows, RANK, cols), 4).expect("a low-rank part")
}

/// The part with its factors as floats: A in f32, B in f16.
fn exactly(part: Part) -> Part {
    let Part::LowRank { a, bt } = part else { unreachable!("a low-rank part") };
    let (rows, rank, cols) = (bt.cols, a.rows, a.cols);
    let round = |x: f32| f16::from_f32(x).to_f32();
    let b: Vec<f32> = (0..rows * rank).map(|at| round(bt.value(at % rank, at / rank))).collect();
    exact_factors("w", &a.dequantize(), &b, (rows, rank, cols), 0.75).expect("a low-rank part")
}

/// Writes base + variant as a folder of plain f32 weights.
fn merge(base: &Base, variant: &Variant, dir: &Path) {
    let mut add = |name: &str, mut values: Vec<f32>| {
        let place = base.matrices().position(|matrix| matrix.name == name);
        if let Some(linear) = place.and_then(|place| variant.linears.get(place)) {
            let delta = dequantize(&linear.parts, linear.rows, linear.cols);
            values.iter_mut().zip(delta).for_each(|(value, delta)| *value += delta);
        }
        for extra in variant.extras.iter().filter(|extra| base.tensors()[extra.tensor].name == name) {
            extra.add_to(&mut values);
        }
        Ok(values)
    };
    base.export_hf(dir, Dtype::F32, &mut add).expect("an exported folder");
}

/// The variant, written and read, on its base is the base merged with it, and moves the base's logits `plain`.
fn assert_equals_merged(model: &Model, variant: &Variant, tokens: &[u32], plain: &[f32], kind: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let file = dir.path().join("user.safetensors");
    variant.write(&file).expect("a variant file");
    let read = Variant::read(&file).expect("the same variant");
    let resident = model.prepare("user", &file, read).expect("a resident variant");
    let found = logits(model, tokens, 0..tokens.len(), Some(&resident));

    let merged = dir.path().join("merged");
    merge(model.base(), variant, &merged);
    let expected = logits(&load(&merged), tokens, 0..tokens.len(), None);
    assert_close(&found, &expected, LOGIT_TOLERANCE, kind);
    let moved = found.iter().zip(plain).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(moved > 100.0 * LOGIT_TOLERANCE, "{kind}: the variant changes nothing ({moved})");
}

#[test]
fn base_plus_packed_delta_equals_merged_weights_for_every_kind() {
    let model = load(&golden("tiny-llama"));
    let base = model.base();
    let dense = |bits, group, symmetric| {
        move |name: &str, delta: &[f32], rows: usize, cols: usize| {
            vec![quantize(name, delta, rows, cols, &config(bits, group, symmetric)).expect("codes")]
        }
    };
    let full = |name: &str, delta: &[f32], rows: usize, cols: usize| {
        let config = BitDeltaConfig { enable_compression: false, ..Default::default() };
        vec![quantize(name, delta, rows, cols, &config).expect("f16 values")]
    };
    let sum = |name: &str, delta: &[f32], rows: usize, cols: usize| {
        let first = low_rank(name, delta, rows, cols);
        let rest: Vec<f32> = delta
            .iter()
            .zip(dequantize(std::slice::from_ref(&first), rows, cols))
            .map(|(all, known)| all - known)
            .collect();
        vec![first, quantize(name, &rest, rows, cols, &config(1, GroupSize::Row, true)).expect("signs")]
    };
    let skip = |name: &str, delta: &[f32], rows: usize, cols: usize| match name.contains("mlp") {
        true => Vec::new(),
        false => vec![quantize(name, delta, rows, cols, &config(1, GroupSize::Elements(32), true)).expect("signs")],
    };
    let exact = |name: &str, delta: &[f32], rows: usize, cols: usize| vec![exactly(low_rank(name, delta, rows, cols))];
    let levels = |delta: &[f32], cols: usize, steps: f32| {
        let spread = (delta.iter().map(|x| x * x).sum::<f32>() / delta.len() as f32).sqrt();
        Levels::of(delta, cols, &vec![Step::nearest(steps * spread); delta.len() / cols], 0.15)
    };
    let few = |_: &str, delta: &[f32], _: usize, cols: usize| {
        vec![Part::Sparse(levels(delta, cols, 2.5).sparse().expect("rows that are not too wide"))]
    };
    let coded = |name: &str, delta: &[f32], rows: usize, cols: usize| {
        let first = low_rank(name, delta, rows, cols);
        let known = dequantize(std::slice::from_ref(&first), rows, cols);
        let rest: Vec<f32> = delta.iter().zip(known).map(|(all, known)| all - known).collect();
        vec![first, Part::Dense(levels(&rest, cols, 0.8).pack(name).expect("levels"))]
    };
    let kinds: [(&str, MakeParts<'_>); 11] = [
        ("a few levels of each row", &few),
        ("low rank and coded levels of the rest", &coded),
        ("factors as floats", &exact),
        ("1 bit, group 64 with a tail", &dense(1, GroupSize::Elements(64), true)),
        ("1 bit, whole rows", &dense(1, GroupSize::Row, true)),
        ("1 bit with offsets", &dense(1, GroupSize::Elements(32), false)),
        ("2 bits", &dense(2, GroupSize::Elements(64), true)),
        ("4 bits with offsets", &dense(4, GroupSize::Elements(40), false)),
        ("f16", &full),
        ("low rank and signs of the rest", &sum),
        ("attention alone", &skip),
    ];
    let golden = Golden::open(&golden("tiny-llama/golden.safetensors"));
    let tokens = golden.ids("input_ids");
    let plain = golden.floats("logits");
    for (kind, parts) in kinds {
        let variant = twin(base, parts);
        assert_equals_merged(&model, &variant, &tokens, &plain, kind);
    }
}

/// Adds a difference of the base's tables, of the size that a fine-tune makes.
fn add_tables(base: &Base, variant: &mut Variant, parts: MakeParts<'_>) {
    for table in base.tables() {
        let (rows, cols) = (table.rows, table.cols);
        let values = base.tensor_f32(&table.name).expect("a table");
        // Another row's values, halved: any row or column out of place shows.
        let delta: Vec<f32> = (0..rows * cols).map(|at| 0.5 * values[(at + 5 * cols) % (rows * cols)]).collect();
        let parts = parts(&table.name, &delta, rows, cols);
        variant.linears.push(LinearDelta { rows, cols, parts, relative_error: None });
    }
}

/// A variant that leaves every linear alone.
fn unchanged(base: &Base) -> Variant {
    let linears = base.linears().iter();
    let skip = |linear: &bitdelta_model::Linear| LinearDelta {
        rows: linear.rows,
        cols: linear.cols,
        parts: Vec::new(),
        relative_error: Some(0.0),
    };
    let info = Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "model");
    Variant::new(info, linears.map(skip).collect())
}

fn codes(bits: u8, group: GroupSize, symmetric: bool) -> impl Fn(&str, &[f32], usize, usize) -> Vec<Part> {
    move |name, delta, rows, cols| {
        vec![quantize(name, delta, rows, cols, &config(bits, group, symmetric)).expect("codes")]
    }
}

#[test]
fn tables_plus_packed_deltas_equal_merged_weights_with_a_tied_head_and_with_one_of_its_own() {
    let full = |name: &str, delta: &[f32], rows: usize, cols: usize| {
        let config = BitDeltaConfig { enable_compression: false, ..Default::default() };
        vec![quantize(name, delta, rows, cols, &config).expect("f16 values")]
    };
    let sum = |name: &str, delta: &[f32], rows: usize, cols: usize| {
        let signs = quantize(name, delta, rows, cols, &config(1, GroupSize::Row, true)).expect("signs");
        vec![low_rank(name, delta, rows, cols), signs]
    };
    let head_alone = |name: &str, delta: &[f32], rows: usize, cols: usize| match name {
        "lm_head.weight" => full(name, delta, rows, cols),
        _ => Vec::new(),
    };
    let exact = |name: &str, delta: &[f32], rows: usize, cols: usize| vec![exactly(low_rank(name, delta, rows, cols))];
    let (signs, four) = (codes(1, GroupSize::Elements(40), true), codes(4, GroupSize::Elements(64), false));
    let cases: [(&str, &str, MakeParts<'_>); 8] = [
        ("tiny-llama", "factors as floats", &exact),
        ("tiny-llama", "signs", &signs),
        ("tiny-llama", "4 bits with offsets", &four),
        ("tiny-llama", "low rank and signs", &sum),
        ("tiny-llama3", "signs", &signs),
        ("tiny-llama3", "low rank and signs", &sum),
        ("tiny-llama3", "f16", &full),
        ("tiny-llama3", "f16, the head alone", &head_alone),
    ];
    for (folder, kind, parts) in cases {
        let model = load(&golden(folder));
        let base = model.base();
        let expected = Golden::open(&golden(folder).join("golden.safetensors"));
        let (tokens, plain) = (expected.ids("input_ids"), expected.floats("logits"));
        let mut variant = unchanged(base);
        add_tables(base, &mut variant, parts);
        assert_equals_merged(&model, &variant, &tokens, &plain, &format!("{folder}, {kind}"));
    }
}

#[test]
fn a_variant_with_some_of_the_tables_or_a_misshapen_one_is_refused() {
    let model = load(&golden("tiny-llama3"));
    let refused = |variant: Variant| {
        let error = model.prepare("user", Path::new("user.safetensors"), variant).err().expect("a refusal");
        assert!(matches!(error, Error::Shape { .. }), "{error}");
        error.to_string()
    };
    let mut variant = unchanged(model.base());
    add_tables(model.base(), &mut variant, &codes(1, GroupSize::Row, true));
    let mut one = variant.clone();
    one.linears.pop();
    assert!(refused(one).contains("15 matrices, the base has 14 linears (16 with"));
    let mut short = variant;
    short.linears[15] = LinearDelta { rows: 3, cols: 2, parts: Vec::new(), relative_error: None };
    assert!(refused(short).contains("lm_head.weight has shape (3, 2)"));
}

/// Two users' variants of tiny-llama, tables and all, ready to run.
fn two_users(model: &Model) -> [Arc<Resident>; 2] {
    let mut one = twin(model.base(), &|name, delta, rows, cols| {
        vec![quantize(name, delta, rows, cols, &config(1, GroupSize::Elements(64), true)).expect("signs")]
    });
    add_tables(model.base(), &mut one, &codes(1, GroupSize::Elements(64), true));
    let mut two = twin(model.base(), &|name, delta, rows, cols| {
        let opposite: Vec<f32> = delta.iter().map(|x| -x).collect();
        vec![low_rank(name, &opposite, rows, cols)]
    });
    add_tables(model.base(), &mut two, &|name, delta, rows, cols| vec![low_rank(name, delta, rows, cols)]);
    let prepare = |user, variant| model.prepare(user, Path::new("in memory"), variant).expect("a resident variant");
    [prepare("one", one), prepare("two", two)]
}

#[test]
fn an_answer_does_not_depend_on_its_company() {
    let model = load(&golden("tiny-llama"));
    let [one, two] = two_users(&model);
    let tokens = Golden::open(&golden("tiny-llama/golden.safetensors")).ids("input_ids");
    let requests: Vec<_> = [Some(&one), Some(&two), None]
        .into_iter()
        .cycle()
        .take(9)
        .enumerate()
        .map(|(i, variant)| (tokens[i..tokens.len() - 3 * (i % 4)].to_vec(), variant.cloned(), sampling(i as u64)))
        .collect();
    let engine = Engine::start(model, EngineOptions::default()).expect("an engine");
    let answer = |(prompt, variant, sampling): &(Vec<u32>, Option<Arc<Resident>>, Sampling)| {
        engine.generate(prompt.clone(), variant.clone(), sampling.clone(), ANSWER, vec![]).expect("an answer").1.tokens
    };
    let alone: Vec<_> = requests.iter().map(answer).collect();
    assert!(alone.iter().any(|tokens| tokens.len() > ANSWER / 2), "the answers are too short to tell: {alone:?}");
    let together: Vec<_> = thread::scope(|scope| {
        let running: Vec<_> = requests.iter().map(|request| scope.spawn(|| answer(request))).collect();
        running.into_iter().map(|thread| thread.join().expect("an answer")).collect()
    });
    assert_eq!(together, alone);
}

#[test]
fn the_prefill_chunk_does_not_show_in_the_answer() {
    let tokens = Golden::open(&golden("tiny-llama/golden.safetensors")).ids("input_ids");
    let answers = [1, 7, 16, 256].map(|prefill_chunk| {
        let model = load(&golden("tiny-llama"));
        let [one, _] = two_users(&model);
        let options = EngineOptions { prefill_chunk, ..Default::default() };
        let engine = Engine::start(model, options).expect("an engine");
        engine.generate(tokens.clone(), Some(one), sampling(5), ANSWER, vec![]).expect("an answer").1.tokens
    });
    assert!(answers.iter().all(|answer| *answer == answers[3]), "{answers:?}");
}

#[test]
fn logits_of_some_positions_are_those_of_all_bit_for_bit() {
    let model = load(&golden("tiny-llama3"));
    let tokens = Golden::open(&golden("tiny-llama3/golden.safetensors")).ids("input_ids");
    let mut variant = unchanged(model.base());
    add_tables(model.base(), &mut variant, &codes(2, GroupSize::Elements(64), true));
    let variant = model.prepare("user", Path::new("in memory"), variant).expect("a resident variant");
    let bits = |range| logits(&model, &tokens, range, Some(&variant)).into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let all = bits(0..tokens.len());
    let vocab = all.len() / tokens.len();
    for range in [0..1, 5..17, 40..tokens.len()] {
        assert_eq!(bits(range.clone()), all[range.start * vocab..range.end * vocab], "{range:?}");
    }
    let shorter = &tokens[..20];
    let alone: Vec<_> = logits(&model, shorter, 0..20, Some(&variant)).into_iter().map(f32::to_bits).collect();
    assert_eq!(alone, all[..20 * vocab], "later tokens do not reach back");
}
