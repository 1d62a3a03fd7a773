//! The list of experiences, and whether a change of it is worth keeping.
//!
//! A lesson may be added, or take the place of the entry that it resembles most. Every list that is tried answers the same
//! prompts with the same seeds as the list it would replace, and is kept only where the mean reward rises by more than
//! the standard error of the difference. By the same measure an entry goes when the list is no worse without it.

use crate::Error;
use std::collections::HashSet;

/// Rises smaller than this are rounding.
const LEAST_RISE: f64 = 1e-9;
/// Share of words that two lessons have in common from which one may be the other's better wording.
const ALIKE: f64 = 0.3;

/// The rewards of the answers that a list gets, always in the same order; `None` when the run is to stop.
pub(super) type Measure<'a> = &'a mut dyn FnMut(&[String]) -> Result<Option<Vec<f64>>, Error>;

/// How much rewards rose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rise {
    /// Mean reward before.
    pub before: f64,
    /// Mean reward after.
    pub after: f64,
    /// Standard error of their difference.
    pub error: f64,
}

/// What became of some lessons.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Improved {
    /// The list with those that were kept.
    pub list: Vec<String>,
    /// Those that were not.
    pub refused: Vec<String>,
    /// The largest rise, kept or not.
    pub best: Option<Rise>,
}

impl Rise {
    /// Of the same answers' rewards before and after.
    pub fn of(before: &[f64], after: &[f64]) -> Self {
        let count = before.len().max(1) as f64;
        let differences: Vec<f64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let difference = differences.iter().sum::<f64>() / count;
        let squares: f64 = differences.iter().map(|one| (one - difference).powi(2)).sum();
        let error = (squares / (count - 1.0).max(1.0) / count).sqrt();
        Self { before: mean(before), after: mean(after), error }
    }

    /// By how much.
    pub fn difference(&self) -> f64 {
        self.after - self.before
    }

    /// Whether it is more than chance gives every other time.
    pub fn counts(&self) -> bool {
        self.difference() > LEAST_RISE.max(self.error)
    }
}

/// The mean of rewards.
pub(super) fn mean(rewards: &[f64]) -> f64 {
    rewards.iter().sum::<f64>() / rewards.len().max(1) as f64
}

/// Tries each lesson on the list, which holds `most` at most. `None` when the run is to stop.
pub(super) fn improve(
    list: &[String],
    lessons: &[String],
    most: usize,
    measure: Measure<'_>,
) -> Result<Option<Improved>, Error> {
    let mut found = Improved { list: list.to_vec(), ..Improved::default() };
    if lessons.is_empty() {
        return Ok(Some(found));
    }
    let Some(mut rewards) = measure(list)? else { return Ok(None) };
    for lesson in lessons {
        let mut better: Option<(Rise, Vec<String>, Vec<f64>)> = None;
        for edited in edits(&found.list, lesson, most) {
            let Some(with) = measure(&edited)? else { return Ok(None) };
            let rise = Rise::of(&rewards, &with);
            if found.best.is_none_or(|best| rise.difference() > best.difference()) {
                found.best = Some(rise);
            }
            if rise.counts() && better.as_ref().is_none_or(|(best, ..)| rise.after > best.after) {
                better = Some((rise, edited, with));
            }
        }
        match better {
            Some((_, edited, with)) => (found.list, rewards) = (edited, with),
            None => found.refused.push(lesson.clone()),
        }
    }
    Ok(Some(found))
}

/// The list without the entries that nothing is lost without, the newest tried first. `None` when the run is to stop.
pub(super) fn prune(list: &[String], measure: Measure<'_>) -> Result<Option<Vec<String>>, Error> {
    let mut kept = list.to_vec();
    if kept.is_empty() {
        return Ok(Some(kept));
    }
    let Some(mut rewards) = measure(&kept)? else { return Ok(None) };
    for at in (0..list.len()).rev() {
        let mut without = kept.clone();
        without.remove(at);
        let Some(found) = measure(&without)? else { return Ok(None) };
        if !Rise::of(&found, &rewards).counts() {
            (kept, rewards) = (without, found);
        }
    }
    Ok(Some(kept))
}

/// The lists that a lesson may lead to: with it, where there is room, and with it in the place of what it resembles.
fn edits(list: &[String], lesson: &str, most: usize) -> Vec<Vec<String>> {
    let mut lists = Vec::new();
    if list.len() < most {
        lists.push(list.iter().cloned().chain([lesson.to_owned()]).collect());
    }
    let likeness = |at: &usize| alike(&list[*at], lesson);
    let nearest = (0..list.len()).max_by(|a, b| likeness(a).total_cmp(&likeness(b)));
    if let Some(at) = nearest.filter(|at| list.len() >= most || likeness(at) >= ALIKE) {
        let mut edited = list.to_vec();
        lesson.clone_into(&mut edited[at]);
        lists.push(edited);
    }
    lists
}

/// Words in common over all words.
fn alike(a: &str, b: &str) -> f64 {
    let words = |text: &str| -> HashSet<String> {
        let words = text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect()
    };
    let (a, b) = (words(a), words(b));
    let all = a.union(&b).count();
    if all == 0 { 0.0 } else { a.intersection(&b).count() as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four answers: "brief" is worth half a point, "loud" costs a fifth, and every rule a hundredth.
    fn worth(list: &[String]) -> Vec<f64> {
        let has = |word: &str| if list.iter().any(|rule| rule.contains(word)) { 1.0 } else { 0.0 };
        let value = 0.5 * has("brief") - 0.2 * has("loud") - 0.01 * list.len() as f64;
        [0.1, 0.2, 0.3, 0.4].map(|start| start + value).to_vec()
    }

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn improved(list: &[&str], lessons: &[&str], most: usize) -> Improved {
        let mut measure = |list: &[String]| Ok(Some(worth(list)));
        improve(&texts(list), &texts(lessons), most, &mut measure).expect("measured").expect("not stopped")
    }

    #[test]
    fn what_raises_the_reward_is_kept_and_the_rest_is_not() {
        let found = improved(&[], &["Be loud.", "Be brief.", "Be brief again."], 8);
        assert_eq!(found.list, ["Be brief."]);
        assert_eq!(found.refused, ["Be loud.", "Be brief again."]);
        let best = found.best.expect("three were tried");
        assert!((best.difference() - 0.49).abs() < 1e-12 && best.error < 1e-12, "{best:?}");
    }

    #[test]
    fn a_better_wording_takes_the_place_of_the_old_one() {
        assert_eq!(improved(&["Be loud and clear."], &["Be brief and clear."], 8).list, ["Be brief and clear."]);
        assert_eq!(improved(&["Be loud."], &["Keep it brief"], 1).list, ["Keep it brief"], "a full list");
    }

    #[test]
    fn entries_that_nothing_is_lost_without_go() {
        let mut measure = |list: &[String]| Ok(Some(worth(list)));
        let list = texts(&["Be loud.", "Be brief.", "Be kind."]);
        assert_eq!(prune(&list, &mut measure).expect("measured").expect("not stopped"), ["Be brief."]);
        assert_eq!(prune(&[], &mut measure).expect("measured").expect("not stopped"), Vec::<String>::new());
    }

    #[test]
    fn chance_is_no_rise() {
        let rise = Rise::of(&[0.0, 1.0, 0.0, 1.0], &[1.0, 0.0, 1.0, 1.0]);
        assert!(rise.difference() > 0.2 && rise.error > rise.difference() && !rise.counts(), "{rise:?}");
        assert!(Rise::of(&[0.0; 4], &[1.0; 4]).counts());
        assert!(!Rise::of(&[0.5; 4], &[0.5; 4]).counts());
    }

    #[test]
    fn a_stop_ends_it_at_once() {
        let mut calls = 0;
        let mut measure = |list: &[String]| {
            calls += 1;
            Ok((calls < 2).then(|| worth(list)))
        };
        assert_eq!(improve(&[], &texts(&["a", "b", "c"]), 8, &mut measure).expect("no error"), None);
        assert_eq!(calls, 2);
    }
}
