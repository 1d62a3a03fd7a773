//! Sizes in bytes as people write them: `340KB`, `10MB` and `1GB` are decimal, `1KiB`, `1MiB` and `1GiB` binary.

/// Bytes of a size such as `340KB`, `1.5GiB` or `4096` (a plain number is bytes). Letters may be of either case.
///
/// # Errors
/// A sentence that says what is accepted; a `clap` value parser shows it beside the argument.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let unit_at = text.find(|c: char| !c.is_ascii_digit() && c != '.' && c != '_').unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_at);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}: KB, MB, GB are decimal, KiB, MiB, GiB binary")),
    };
    let number = number.replace('_', "");
    let bytes = match number.parse::<u64>() {
        Ok(whole) => whole.checked_mul(factor),
        Err(_) => number.parse::<f64>().ok().map(|value| (value * factor as f64).round() as u64),
    };
    match bytes {
        Some(bytes) if bytes < 1 << 60 => Ok(bytes),
        _ => Err(format!("{text:?} is not a size: write it as 340KB, 1.5GiB or 4096")),
    }
}

/// A size for people: three figures and a decimal unit, as in `1.23 MB`.
pub fn format_bytes(bytes: u64) -> String {
    let value = bytes as f64;
    let (value, unit) = match bytes {
        0..1_000 => return format!("{bytes} B"),
        1_000..1_000_000 => (value / 1e3, "KB"),
        1_000_000..1_000_000_000 => (value / 1e6, "MB"),
        _ => (value / 1e9, "GB"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimal_and_binary_units_differ() {
        assert_eq!(parse_bytes("340KB"), Ok(340_000));
        assert_eq!(parse_bytes("1GB"), Ok(1_000_000_000));
        assert_eq!(parse_bytes("1 GiB"), Ok(1 << 30));
        assert_eq!(parse_bytes("1.5kib"), Ok(1536));
        assert_eq!(parse_bytes("4_096"), Ok(4096));
    }

    #[test]
    fn nonsense_is_refused_with_what_is_accepted() {
        assert!(parse_bytes("10 parsecs").unwrap_err().contains("KiB"));
        assert!(parse_bytes("").unwrap_err().contains("340KB"));
        assert!(parse_bytes("-1MB").is_err());
        assert!(parse_bytes("99999999999999999999GB").is_err());
    }

    #[test]
    fn sizes_are_printed_with_three_figures() {
        assert_eq!(format_bytes(999), "999 B");
        assert_eq!(format_bytes(1_234_567), "1.23 MB");
        assert_eq!(format_bytes(345_678_901), "346 MB");
    }
}
