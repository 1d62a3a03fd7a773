//! The name that somebody meant, for messages about one that is unknown.

/// The known name with the fewest edits from `name`, if they are few enough to be a slip.
pub fn nearest<'a>(name: &str, known: impl IntoIterator<Item = &'a str>) -> Option<String> {
    known
        .into_iter()
        .map(|known| (distance(name, known), known))
        .min()
        .filter(|(distance, _)| *distance <= name.len().max(3) / 3)
        .map(|(_, known)| known.to_owned())
}

/// Edits (insertions, deletions, replacements of a byte, and swaps of two neighbours) between two names.
fn distance(a: &str, b: &str) -> usize {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 0..a.len() {
        let mut row = vec![i + 1];
        for j in 0..b.len() {
            let replaced = rows[i][j] + usize::from(a[i] != b[j]);
            let mut edits = replaced.min(rows[i][j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                edits = edits.min(rows[i - 1][j - 1] + 1);
            }
            row.push(edits);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_another_word_is_not() {
        let known = ["models", "model", "serve"];
        assert_eq!(nearest("modles", known).as_deref(), Some("models"));
        assert_eq!(nearest("serv", known).as_deref(), Some("serve"));
        assert_eq!(nearest("prot", ["host", "port"]).as_deref(), Some("port"), "a swap is one slip");
        assert_eq!(nearest("weather", known), None);
    }
}
