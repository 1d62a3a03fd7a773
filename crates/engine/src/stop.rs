//! Stop texts: ending an answer where one appears, never showing a part of it.

/// Watches an answer as it grows.
pub(crate) struct StopTexts {
    stops: Vec<String>,
    /// Text that may be the beginning of a stop text, so is not shown yet.
    held: String,
}

impl StopTexts {
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Adds text. Returns what may be shown now, and whether a stop text has ended the answer.
    pub fn push(&mut self, text: &str) -> (String, bool) {
        self.held.push_str(text);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop)).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep_from = self.held.char_indices().map(|(at, _)| at).find(|at| self.may_begin_a_stop(*at));
        let rest = self.held.split_off(keep_from.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back, when the answer ends without a stop text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    fn may_begin_a_stop(&self, at: usize) -> bool {
        self.stops.iter().any(|stop| stop.starts_with(&self.held[at..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut watch = StopTexts::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut shown = Vec::new();
        for piece in pieces {
            let (text, stopped) = watch.push(piece);
            shown.push(text);
            if stopped {
                return (shown, true);
            }
        }
        shown.push(watch.finish());
        (shown, false)
    }

    #[test]
    fn without_stops_text_passes_at_once() {
        assert_eq!(run(&[], &["a", "b"]), (vec!["a".into(), "b".into(), String::new()], false));
    }

    #[test]
    fn a_stop_split_over_pieces_is_never_shown() {
        assert_eq!(run(&["END"], &["one E", "N", "D two"]), (vec!["one ".into(), String::new(), String::new()], true));
    }

    #[test]
    fn what_only_looked_like_a_stop_is_shown_late() {
        assert_eq!(run(&["END"], &["one E", "gg"]), (vec!["one ".into(), "Egg".into(), String::new()], false));
    }

    #[test]
    fn the_earliest_of_several_stops_wins() {
        assert_eq!(run(&["two", "\n"], &["one\ntwo"]), (vec!["one".into()], true));
    }

    #[test]
    fn held_text_is_shown_when_the_answer_ends() {
        assert_eq!(run(&["émile"], &["caf", "é"]), (vec!["caf".into(), String::new(), "é".into()], false));
    }
}
