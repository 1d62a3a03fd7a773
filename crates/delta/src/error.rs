//! What can go wrong between a weight and a variant file, always with what, where, expected and found.

use std::path::PathBuf;

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read or written. Test: `a_missing_file_names_its_path`.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A field of [`crate::BitDeltaConfig`] outside its range. Test: `each_field_out_of_range_is_named`.
    #[error("{field} = {value} is not allowed: expected {expected}")]
    Config {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// Values that do not fill their stated shape. Test: `a_wrong_length_is_a_shape_error`.
    #[error("{tensor}: {found} values for a shape of {rows} x {cols} (both at least 1)")]
    Shape {
        /// Name of the tensor.
        tensor: String,
        /// Stated rows.
        rows: usize,
        /// Stated columns.
        cols: usize,
        /// Values given.
        found: usize,
    },
    /// NaN or infinity. Test: `nan_and_infinity_are_named_with_row_and_column`.
    #[error("{tensor}[{row}, {col}] is {value}: only finite weights can be compressed")]
    NonFinite {
        /// Name of the tensor.
        tensor: String,
        /// Row of the first such value.
        row: usize,
        /// Its column.
        col: usize,
        /// NaN, inf or -inf.
        value: f32,
    },
    /// A finite value too large to fit in f32 arithmetic. Test: `a_delta_near_the_end_of_f32_is_refused`.
    #[error("{tensor}[{row}, {col}] is {value}: a delta may be at most {limit} in magnitude")]
    TooLarge {
        /// Name of the tensor.
        tensor: String,
        /// Row of the first such value.
        row: usize,
        /// Its column.
        col: usize,
        /// The value.
        value: f32,
        /// The largest magnitude allowed.
        limit: f32,
    },
    /// The file is something else than a variant. Test: `another_safetensors_file_is_not_a_variant`.
    #[error("{path} is not a variant file ({reason}); `bitdelta compress` and `bitdelta train` write them")]
    NotAVariant {
        /// The file.
        path: PathBuf,
        /// What gave it away.
        reason: String,
    },
    /// A variant file of a later format. Test: `a_later_version_is_refused_by_number`.
    #[error("{path} has variant format version {found}; this build reads version {supported}: update bitdelta")]
    UnsupportedVersion {
        /// The file.
        path: PathBuf,
        /// Version found.
        found: String,
        /// Version this build reads.
        supported: u32,
    },
    /// The file ends early. Test: `every_truncation_is_an_error`.
    #[error("{path} is cut short: {reason}; fetch or write it again")]
    Truncated {
        /// The file.
        path: PathBuf,
        /// What is missing.
        reason: String,
    },
    /// Bytes changed since the file was written. Test: `every_flipped_byte_is_an_error`.
    #[error(
        "{path} is damaged: its content hashes to {found}, it was written with {expected}; fetch or write it again"
    )]
    HashMismatch {
        /// The file.
        path: PathBuf,
        /// The hash that the file states.
        expected: String,
        /// The hash of its bytes.
        found: String,
    },
    /// A file whose hash is right but whose content contradicts itself. Test: `a_crafted_manifest_is_malformed_not_a_panic`.
    #[error("{path} is malformed in its {section}: {reason}; it was not written by bitdelta, do not use it")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// header, manifest, payload or info.
        section: &'static str,
        /// What contradicts what.
        reason: String,
    },
    /// A variant in memory that no file can hold. Test: `an_inconsistent_variant_is_not_written`.
    #[error("the variant cannot be written: {reason}")]
    Unwritable {
        /// What is wrong with it.
        reason: String,
    },
}
