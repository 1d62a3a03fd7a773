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

/// Edits (insertions, deletions, replacements of a byte) between two names.
fn distance(a: &str, b: &str) -> usize {
    let mut previous: Vec<usize> = (0..=b.len()).collect();
    for (i, from) in a.bytes().enumerate() {
        let mut row = vec![i + 1];
        for (j, to) in b.bytes().enumerate() {
            row.push((previous[j] + usize::from(from != to)).min(previous[j + 1] + 1).min(row[j] + 1));
        }
        previous = row;
    }
    previous[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_understood_and_another_word_is_not() {
        let known = ["models", "model", "serve"];
        assert_eq!(nearest("modles", known).as_deref(), Some("models"));
        assert_eq!(nearest("serv", known).as_deref(), Some("serve"));
        assert_eq!(nearest("weather", known), None);
    }
}
