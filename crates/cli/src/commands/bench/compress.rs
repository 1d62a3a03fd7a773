//! `bitdelta bench compress`: a random pair of one matrix into packed codes, by the code that `bitdelta compress` runs.

use super::print_json;
use crate::{Context, Error, commands::progress::Bar, output, sizes::format_bytes};
use bitdelta_delta::{BitDeltaConfig, GroupSize, Part, Values, quantize_pair};
use serde::Serialize;
use std::time::Instant;

/// Arguments of `bench compress`.
#[derive(Debug, Clone, clap::Args)]
pub struct CompressArgs {
    /// Outputs of the matrix
    #[arg(long, value_name = "N", default_value_t = 9728)]
    rows: usize,
    /// Inputs of the matrix
    #[arg(long, value_name = "N", default_value_t = 2560)]
    cols: usize,
    /// Type of both models' weights
    #[arg(long, value_name = "TYPE", default_value = "bf16")]
    dtype: Dtype,
    /// Bits a weight: 1, 2 or 4
    #[arg(long, value_name = "N", default_value_t = 1)]
    bits: u8,
    /// Inputs that share a scale: 32 to 256, or row
    #[arg(long, value_name = "N|row", default_value = "128")]
    group_size: GroupSize,
    /// Keep outliers as they are
    #[arg(long)]
    no_clip: bool,
    /// Threads that compute; 0 is one per core
    #[arg(long, value_name = "N", default_value_t = 0)]
    threads: usize,
    /// Runs; the fastest counts
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: usize,
    /// JSON on stdout
    #[arg(long)]
    json: bool,
}

/// The values of `--dtype`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Dtype {
    /// bfloat16
    Bf16,
    /// 32-bit floats
    F32,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
struct Measured {
    what: &'static str,
    isa: &'static str,
    threads: usize,
    rows: usize,
    cols: usize,
    dtype: String,
    bits: u8,
    group_size: GroupSize,
    clip_outliers: bool,
    seconds: f64,
    /// Both matrices.
    input_bytes: u64,
    /// The packed codes.
    output_bytes: u64,
    /// `input_bytes` ÷ `seconds`.
    bytes_per_second: f64,
    /// Read bandwidth of this machine with as many threads, in bytes a second.
    read_bandwidth: f64,
    /// `bytes_per_second` ÷ `read_bandwidth`.
    bandwidth_share: f64,
}

/// A matrix's elements.
enum Matrix {
    Bf16(Vec<u16>),
    F32(Vec<f32>),
}

impl Matrix {
    fn values(&self) -> Values<'_> {
        match self {
            Self::Bf16(bits) => Values::Bf16(bits),
            Self::F32(values) => Values::F32(values),
        }
    }
}

/// Measures.
///
/// # Errors
/// Options out of range, or threads that the system does not give.
pub fn run(args: &CompressArgs) -> Result<(), Error> {
    let elements = args.rows.checked_mul(args.cols).filter(|elements| *elements > 0 && *elements < 1 << 32);
    let (Some(elements), 1..) = (elements, args.runs) else {
        let message = "--rows, --cols and --runs are at least 1, and rows · cols at most 4,294,967,295";
        return Err(Error::Usage(message.to_owned()));
    };
    let config = BitDeltaConfig {
        bits: args.bits,
        group_size: Some(args.group_size),
        clip_outliers: !args.no_clip,
        ..BitDeltaConfig::default()
    };
    config.validate().map_err(|error| Error::Usage(error.to_string()))?;
    let pool = rayon::ThreadPoolBuilder::new().num_threads(args.threads).build().context("starting threads")?;
    let threads = pool.current_num_threads();
    let bar = Bar::new();
    let read_bandwidth = bar.during("measuring the memory", || bitdelta_kernels::read_bandwidth(threads));
    let (base, tuned) = bar.during("making a pair", || pair(args.dtype, elements));

    let once = || {
        let begun = Instant::now();
        let part = quantize_pair("matrix", base.values(), tuned.values(), args.rows, args.cols, &config);
        part.map(|part| (begun.elapsed().as_secs_f64(), part)).context("compressing")
    };
    let (fastest, part) = pool.install(|| {
        bar.during("compressing", || -> Result<(f64, Part), Error> {
            let mut best = once()?;
            for _ in 0..args.runs {
                let next = once()?;
                if next.0 < best.0 {
                    best = next;
                }
            }
            Ok(best)
        })
    })?;
    let width = if args.dtype == Dtype::F32 { 4 } else { 2 };
    let input_bytes = 2 * width * elements as u64;
    let bytes_per_second = input_bytes as f64 / fastest;
    let measured = Measured {
        what: "compress",
        isa: bitdelta_kernels::Isa::selected().name(),
        threads,
        rows: args.rows,
        cols: args.cols,
        dtype: format!("{:?}", args.dtype).to_lowercase(),
        bits: args.bits,
        group_size: args.group_size,
        clip_outliers: config.clip_outliers,
        seconds: fastest,
        input_bytes,
        output_bytes: part.bytes(),
        bytes_per_second,
        read_bandwidth,
        bandwidth_share: bytes_per_second / read_bandwidth,
    };
    if args.json { print_json(&measured) } else { print(&measured) }
}

fn print(m: &Measured) -> Result<(), Error> {
    output::line(&format!(
        "compress: {}/s of input, {:.0} % of the read bandwidth ({} x {} {} pair to {} bit, {} to {}, {:.1} ms; {} threads, {}, {}/s)",
        format_bytes(m.bytes_per_second as u64),
        100.0 * m.bandwidth_share,
        m.rows,
        m.cols,
        m.dtype,
        m.bits,
        format_bytes(m.input_bytes),
        format_bytes(m.output_bytes),
        1e3 * m.seconds,
        m.threads,
        m.isa,
        format_bytes(m.read_bandwidth as u64),
    ))
}

/// A random pair, the second matrix near the first: sums of uniform numbers, near enough to normal.
fn pair(dtype: Dtype, elements: usize) -> (Matrix, Matrix) {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64;
    let mut normal = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let sum: u64 = (0..4).map(|i| state >> (16 * i) & 0xFFFF).sum();
        // Four uniform numbers: mean 2 · 65535, variance 4 · 65536² ÷ 12.
        (sum as f32 - 131_070.0) / 37_837.0
    };
    let pairs = (0..elements).map(|_| {
        let base = 0.02 * normal();
        (base, base + 0.001 * normal())
    });
    match dtype {
        Dtype::F32 => {
            let (base, tuned) = pairs.unzip();
            (Matrix::F32(base), Matrix::F32(tuned))
        }
        Dtype::Bf16 => {
            let bits = |value: f32| half::bf16::from_f32(value).to_bits();
            let (base, tuned) = pairs.map(|(base, tuned)| (bits(base), bits(tuned))).unzip();
            (Matrix::Bf16(base), Matrix::Bf16(tuned))
        }
    }
}
