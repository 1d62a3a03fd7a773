//! Random variants of the true shapes.

use crate::{Context, Error};
use bitdelta_delta::{BitDeltaConfig, Info, LinearDelta, PackedMatrix, Variant, part::Part};
use bitdelta_engine::{Model, Resident};
use std::{path::Path, sync::Arc};

/// What a variant is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// One bit a weight, a scale for 64.
    Dense1,
    /// Two bits a weight, a scale for 64.
    Dense2,
    /// Four bits a weight, a scale for 64.
    Dense4,
    /// Rank 16 at 4 bits.
    Lowrank16,
    /// Rank 4 at 4 bits.
    Lowrank4,
}

/// User `user`'s variant; so small in effect that answers stay language.
pub fn random(model: &Model, kind: Kind, user: usize) -> Result<Arc<Resident>, Error> {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ (user as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
    let linears = model.base().linears().iter().map(|linear| {
        let mut packed = |bits, rows, cols| random_matrix(&mut state, bits, rows, cols);
        let part = match kind {
            Kind::Dense1 => Part::Dense(packed(1, linear.rows, linear.cols)),
            Kind::Dense2 => Part::Dense(packed(2, linear.rows, linear.cols)),
            Kind::Dense4 => Part::Dense(packed(4, linear.rows, linear.cols)),
            Kind::Lowrank16 => Part::LowRank { a: packed(4, 16, linear.cols), bt: packed(4, 16, linear.rows) },
            Kind::Lowrank4 => Part::LowRank { a: packed(4, 4, linear.cols), bt: packed(4, 4, linear.rows) },
        };
        LinearDelta { rows: linear.rows, cols: linear.cols, parts: vec![part], relative_error: None }
    });
    let linears = linears.collect();
    let base = model.base();
    let variant = Variant::new(Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "model"), linears);
    model.prepare(&format!("user-{user}"), Path::new("in memory"), variant).context("making a variant")
}

fn random_matrix(state: &mut u64, bits: u8, rows: usize, cols: usize) -> PackedMatrix {
    let words = cols.div_ceil(64);
    let last = if cols.is_multiple_of(64) { u64::MAX } else { (1 << (cols % 64)) - 1 };
    let mut next = || {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        *state
    };
    let planes = (0..rows * usize::from(bits) * words)
        .map(|i| if i % words + 1 == words { next() & last } else { next() })
        .collect();
    // f16 1.0, times a scale like that of a real delta.
    let scales = vec![0x3C00; rows * cols.div_ceil(64)];
    PackedMatrix { bits, rows, cols, group: 64, planes, scales, offsets: Vec::new(), tensor_scale: 1e-4 }
}
