//! Random variants of the true shapes.

use crate::{Context, Error, sizes::format_bytes};
use bitdelta_delta::{BitDeltaConfig, Info, LinearDelta, PackedMatrix, Variant, file, part::Part};
use bitdelta_engine::{Model, Resident};
use bitdelta_model::{Base, memory};
use std::{fs, path::Path, sync::Arc};

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

/// Inputs a scale.
const GROUP: usize = 64;

impl Kind {
    /// The word in reports.
    pub fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }

    /// What a linear's delta is made of: (bits, rows, cols) of each packed matrix.
    fn matrices(self, rows: usize, cols: usize) -> Vec<(u8, usize, usize)> {
        let low_rank = |rank| vec![(4, rank, cols), (4, rank, rows)];
        match self {
            Self::Dense1 => vec![(1, rows, cols)],
            Self::Dense2 => vec![(2, rows, cols)],
            Self::Dense4 => vec![(4, rows, cols)],
            Self::Lowrank16 => low_rank(16),
            Self::Lowrank4 => low_rank(4),
        }
    }

    /// Bytes of a variant of `base`, packed: codes, a scale for each group, and each matrix's own.
    fn bytes(self, base: &Base) -> u64 {
        let matrices = base.linears().iter().flat_map(|linear| self.matrices(linear.rows, linear.cols));
        let row = |bits: u8, cols: usize| usize::from(bits) * cols.div_ceil(64) * 8 + cols.div_ceil(GROUP) * 2;
        matrices.map(|(bits, rows, cols)| (rows * row(bits, cols) + 4) as u64).sum()
    }
}

/// Where users' variants come from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Random ones, each another.
    Random(Kind),
    /// Copies of one file.
    Copies(&'a Path),
}

impl Source<'_> {
    /// The words in reports.
    pub fn name(self) -> String {
        match self {
            Self::Random(kind) => kind.name(),
            Self::Copies(path) => path.display().to_string(),
        }
    }

    /// Bits of a dense variant's codes.
    pub fn bits(self) -> Option<u8> {
        let Self::Random(kind) = self else { return None };
        match kind.matrices(1, 1)[..] {
            [(bits, ..)] => Some(bits),
            _ => None,
        }
    }

    /// The variants of `users` users, ready to run.
    ///
    /// # Errors
    /// A damaged file, one of another base; [`Error::Failed`] where the memory does not hold as many, before any is made.
    pub fn residents(self, model: &Model, users: usize) -> Result<Vec<Arc<Resident>>, Error> {
        let ready = |user: usize, path: &Path, variant: Variant| {
            model.prepare(&user.to_string(), path, variant).context("making a variant")
        };
        let residents = match self {
            Self::Random(kind) => {
                check_memory(kind.bytes(model.base()), users, memory::available())?;
                let path = Path::new("in memory");
                (0..users).map(|user| ready(user, path, random(model.base(), kind, user))).collect()
            }
            Self::Copies(path) => {
                let path = file::locate(path);
                let variant = Variant::read(&path).context("reading the variant")?;
                check_memory(variant.payload_bytes(), users, memory::available())?;
                (0..users).map(|user| ready(user, &path, variant.clone())).collect()
            }
        };
        // What they were made from; in a server the registry sees to it.
        bitdelta_kernels::give_back_free_memory();
        residents
    }

    /// The variants of `users` users as files in `folder`, named after their numbers.
    ///
    /// # Errors
    /// As [`Self::residents`]; a folder that cannot be written to.
    pub fn files(self, model: &Model, users: usize, folder: &Path) -> Result<(), Error> {
        if let Self::Random(kind) = self {
            check_memory(kind.bytes(model.base()), users, memory::available())?;
        }
        for user in 0..users {
            let file = folder.join(format!("{user}.safetensors"));
            match self {
                Self::Random(kind) => random(model.base(), kind, user).write(&file).context("writing a variant")?,
                Self::Copies(path) => fs::copy(file::locate(path), &file).context("copying the variant")?,
            };
        }
        Ok(())
    }
}

/// While the last variant is made, it is there three times: as parts, as its file's bytes, and repacked.
fn check_memory(bytes: u64, users: usize, available: Option<u64>) -> Result<(), Error> {
    let Some(available) = available else { return Ok(()) };
    let fit = (available / bytes.max(1)).saturating_sub(2);
    if users as u64 <= fit {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "{users} variants of {} do not fit in the {} of memory that are available: at most {fit} do",
        format_bytes(bytes),
        format_bytes(available)
    )))
}

/// User `user`'s variant; so small in effect that answers stay language.
pub fn random(base: &Base, kind: Kind, user: usize) -> Variant {
    let mut state = 0x9E37_79B9_7F4A_7C15_u64 ^ (user as u64 + 1).wrapping_mul(0xD1B5_4A32_D192_ED03);
    let linears = base.linears().iter().map(|linear| {
        let shapes = kind.matrices(linear.rows, linear.cols);
        let mut matrices = shapes.into_iter().map(|(bits, rows, cols)| random_matrix(&mut state, bits, rows, cols));
        let part = match (matrices.next(), matrices.next()) {
            (Some(a), Some(bt)) => Some(Part::LowRank { a, bt }),
            (Some(dense), None) => Some(Part::Dense(dense)),
            _ => None,
        };
        LinearDelta { rows: linear.rows, cols: linear.cols, parts: part.into_iter().collect(), relative_error: None }
    });
    let linears = linears.collect();
    Variant::new(Info::new(base.fingerprint(), &base.name, BitDeltaConfig::default(), "model"), linears)
}

/// A matrix whose codes are random.
pub fn random_matrix(state: &mut u64, bits: u8, rows: usize, cols: usize) -> PackedMatrix {
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
    let scales = vec![0x3C00; rows * cols.div_ceil(GROUP)];
    PackedMatrix { bits, rows, cols, group: GROUP, planes, scales, offsets: Vec::new(), tensor_scale: 1e-4 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Base {
        Base::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/golden/tiny-llama")).expect("the golden model")
    }

    #[test]
    fn a_random_variant_has_the_bytes_that_memory_is_planned_for() {
        let base = base();
        for kind in [Kind::Dense1, Kind::Dense2, Kind::Dense4, Kind::Lowrank16, Kind::Lowrank4] {
            let variant = random(&base, kind, 3);
            assert_eq!(variant.payload_bytes(), kind.bytes(&base), "{kind:?}");
            assert_ne!(variant.to_bytes().expect("valid"), random(&base, kind, 4).to_bytes().expect("valid"));
        }
    }

    #[test]
    fn more_users_than_memory_holds_are_refused_with_the_number_that_fit() {
        assert!(check_memory(100, 3, Some(500)).is_ok());
        let message = check_memory(100, 4, Some(500)).expect_err("too many").to_string();
        assert!(message.contains("at most 3"), "{message}");
        assert!(check_memory(100, 4, None).is_ok());
    }
}
