//! The ZIP-7 page's five tables, each claim beside what was measured here, or what the shapes of a 4B model come to.
//!
//! Sizes of a 4B model are arithmetic over Qwen3-4B's true shapes: a budget is carried over at equal bits a weight, an
//! adapter at equal rank. What the page's hardware would do is not computed from ours: ratios are, where they mean something.

use super::summary::{Spread, Summary};
use crate::{commands::bench, sizes::format_bytes};
use bitdelta_model::layout::linears;
use serde::Serialize;

/// One table.
#[derive(Debug, Clone, Serialize)]
pub struct Table {
    /// What it is about.
    pub title: &'static str,
    /// Columns.
    pub head: Vec<&'static str>,
    /// Rows, as wide as the head.
    pub rows: Vec<Vec<String>>,
    /// Where claim and measurement differ, and why.
    pub note: String,
}

/// Users that the page counts with.
const USERS: f64 = 10_000.0;
/// Dollars a gigabyte and month: the page's own price of S3.
const STORAGE_PRICE: f64 = 0.023;
/// Dollars a GPU and month: the page's $1,500 for ten A100.
const GPU_PRICE: f64 = 150.0;
/// An A100's memory, and what of it is left for variants beside a 4B base in bf16 and as much again for KV pages.
const GPU_BYTES: f64 = 80e9;
/// Group of the page's dense codes, with an f16 scale each.
const GROUP: f64 = 128.0;
/// Tokens of an answer, for the page's million requests a day.
const ANSWER: f64 = 64.0;

/// What a user's variant takes of a 4B model.
struct Shape {
    base: f64,
    weights: f64,
    /// Σ (rows + cols) over the linears: entries of rank-1 factors.
    edges: f64,
}

impl Shape {
    fn qwen3_4b() -> Self {
        let config = bench::qwen3_4b();
        let linears = linears(&config);
        let weights: f64 = linears.iter().map(|linear| (linear.rows * linear.cols) as f64).sum();
        let edges = linears.iter().map(|linear| (linear.rows + linear.cols) as f64).sum();
        let tables = (config.vocab * config.hidden * if config.tied { 1 } else { 2 }) as f64;
        Self { base: 2.0 * (weights + tables), weights, edges }
    }

    fn lora(&self, rank: f64) -> f64 {
        2.0 * rank * self.edges
    }

    fn dense(&self, bits: f64) -> f64 {
        self.weights * (bits + 16.0 / GROUP) / 8.0
    }

    /// At as many bits a weight as the entry has here.
    fn at_equal_bits(&self, entry: &Summary) -> Option<f64> {
        Some(self.weights * entry.bits_per_weight?.median / 8.0)
    }
}

/// One method of the page: its name there, and its claims.
struct Claim {
    name: &'static str,
    per_user: &'static str,
    all_users: &'static str,
    price: &'static str,
    gpus: &'static str,
    gpu_price: &'static str,
}

const FULL: Claim = Claim {
    name: "full fine-tune, bf16",
    per_user: "10 GB",
    all_users: "100 TB",
    price: "$2,300",
    gpus: "10,000",
    gpu_price: "$1.5M",
};
const LORA_16: Claim = Claim {
    name: "LoRA r=16, f16",
    per_user: "100 MB",
    all_users: "1 TB",
    price: "$23",
    gpus: "100",
    gpu_price: "$15,000",
};
const LORA_8: Claim =
    Claim { name: "LoRA r=8, f16", per_user: "50 MB", all_users: "500 GB", price: "-", gpus: "-", gpu_price: "-" };
const BITDELTA: Claim = Claim {
    name: "BitDelta, 1 bit, group 128",
    per_user: "10 MB",
    all_users: "110 GB",
    price: "$2.50",
    gpus: "10",
    gpu_price: "$1,500",
};

/// All five, of the first task's entries. `base_speed` is the base's alone in the same batch.
pub fn tables(summaries: &[Summary], base_speed: Option<f64>) -> Vec<Table> {
    let task = summaries.first().map(|summary| summary.task.clone()).unwrap_or_default();
    let of_task: Vec<&Summary> = summaries.iter().filter(|summary| summary.task == task).collect();
    let shape = Shape::qwen3_4b();
    let sized = sized(&shape, &of_task);
    vec![
        memory(&shape, &sized),
        speed(&of_task, base_speed),
        quality(summaries),
        storage(&shape, &sized),
        serving(&shape, &sized, &of_task),
    ]
}

/// Each method's bytes a user on a 4B model, with the page's claims where it makes any.
fn sized(shape: &Shape, entries: &[&Summary]) -> Vec<(String, Option<&'static Claim>, f64)> {
    let mut all = vec![
        (FULL.name.to_owned(), Some(&FULL), shape.base),
        (LORA_16.name.to_owned(), Some(&LORA_16), shape.lora(16.0)),
        (LORA_8.name.to_owned(), Some(&LORA_8), shape.lora(8.0)),
        (BITDELTA.name.to_owned(), Some(&BITDELTA), shape.dense(1.0)),
    ];
    let budgets = entries.iter().filter(|entry| entry.id.starts_with("trained-"));
    all.extend(budgets.filter_map(|entry| {
        Some((
            format!("budget, as {} here", format_bytes(entry.bytes?.median as u64)),
            None,
            shape.at_equal_bits(entry)?,
        ))
    }));
    all
}

fn bytes(bytes: f64) -> String {
    format_bytes(bytes as u64)
}

fn memory(shape: &Shape, sized: &[(String, Option<&'static Claim>, f64)]) -> Table {
    let row = |(name, claim, per_user): &(String, Option<&'static Claim>, f64)| {
        let claimed = |of: fn(&Claim) -> &'static str| claim.map_or("-", of).to_owned();
        vec![
            name.clone(),
            claimed(|claim| claim.per_user),
            bytes(*per_user),
            claimed(|claim| claim.all_users),
            bytes(shape.base + USERS * per_user),
        ]
    };
    Table {
        title: "Memory: Qwen3-4B and 10,000 users",
        head: vec!["method", "page: a user", "here: a user", "page: all", "here: base and all"],
        rows: sized.iter().map(row).collect(),
        note: format!(
            "Qwen3-4B's {:.2} billion weights in attention and MLP at one bit are {} by themselves: the page's 10 MB is \
             {:.3} bits a weight, which no dense code reaches; a budget does. A base of 4B takes {} in bf16, not 10 GB, and \
             a LoRA file of rank 16 over all projections {}, not 100 MB.",
            shape.weights / 1e9,
            bytes(shape.weights / 8.0),
            8.0 * 10e6 / shape.weights,
            bytes(shape.base),
            bytes(shape.lora(16.0)),
        ),
    }
}

fn speed(entries: &[&Summary], base: Option<f64>) -> Table {
    let find = |id: &str| entries.iter().find(|entry| entry.id == id).and_then(|entry| entry.tokens_per_second);
    let row = |name: String, claim: &str, ratio: &str, found: Option<f64>| {
        let share = found.zip(base).map_or_else(|| "-".to_owned(), |(found, base)| format!("{:.2}", found / base));
        let found = found.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0}"));
        vec![name, claim.to_owned(), ratio.to_owned(), found, share]
    };
    let median = |spread: Option<Spread>| spread.map(|spread| spread.median);
    let mut rows = vec![
        row("one model for all".into(), "45", "1.00", base),
        row(LORA_16.name.into(), "42", "0.93", median(find("lora-r16"))),
        row("1 bit, group 64".into(), "43", "0.96", median(find("bits1"))),
    ];
    let budgets = entries.iter().filter(|entry| entry.id.starts_with("trained-"));
    rows.extend(budgets.map(|entry| row(entry.label.clone(), "43", "0.96", median(entry.tokens_per_second))));
    Table {
        title: "Inference speed, a variant for each request of a batch",
        head: vec!["method", "page: tokens/s", "of full", "here: tokens/s", "of the base"],
        rows,
        note: "The page times one request on a GPU and does not say how; here a full batch of distinct users shares \
               each pass of the base, on this machine's CPU, prompts inside the clock. A dense bit for each weight of a \
               small base is bound by its own bytes and additions; small variants cost little."
            .to_owned(),
    }
}

fn quality(summaries: &[Summary]) -> Table {
    let mut tasks: Vec<&str> = summaries.iter().map(|summary| summary.task.as_str()).collect();
    tasks.dedup();
    let mut rows = Vec::new();
    let claims = [
        ("full", "82.7 %"),
        ("lora-r16", "81.5 %"),
        ("lora-r8", "79.3 %"),
        ("bits1", "80.8 %"),
        ("bits1-data", "80.8 %"),
    ];
    for task in tasks {
        for summary in summaries.iter().filter(|summary| summary.task == task) {
            let claim = claims.iter().find(|(id, _)| *id == summary.id).map(|(_, claim)| *claim);
            let claim = claim.or_else(|| summary.id.starts_with("trained-").then_some("80.8 %"));
            let Some(claim) = claim else { continue };
            let figure = |spread: Option<Spread>, digits| spread.map_or_else(|| "-".to_owned(), |s| s.text(digits));
            rows.push(vec![
                task.to_owned(),
                summary.label.clone(),
                claim.to_owned(),
                figure(summary.retention, 3),
                figure(summary.exact, 3),
            ]);
        }
    }
    Table {
        title: "Quality",
        head: vec!["task", "method", "page: AIME24", "here: retention", "here: exact answers"],
        rows,
        note: "The page's figures come from another work, on a model of 671 billion weights without any delta. Here: held-out \
               answers of this report's tasks; retention 1 is the full fine-tune's gain over the base."
            .to_owned(),
    }
}

fn storage(shape: &Shape, sized: &[(String, Option<&'static Claim>, f64)]) -> Table {
    let row = |(name, claim, per_user): &(String, Option<&'static Claim>, f64)| {
        let stored = USERS * per_user;
        vec![
            name.clone(),
            claim.map_or("-", |claim| claim.price).to_owned(),
            bytes(stored),
            dollars(stored / 1e9 * STORAGE_PRICE),
        ]
    };
    Table {
        title: "Storage cost, 10,000 users, a month",
        head: vec!["method", "page: cost", "here: stored", "here: cost"],
        rows: sized.iter().map(row).collect(),
        note: format!(
            "At the page's price of ${STORAGE_PRICE} a GB and month; variants alone, the base of {} is stored once.",
            bytes(shape.base)
        ),
    }
}

fn serving(shape: &Shape, sized: &[(String, Option<&'static Claim>, f64)], entries: &[&Summary]) -> Table {
    let room = GPU_BYTES - 2.0 * shape.base;
    let row = |(name, claim, per_user): &(String, Option<&'static Claim>, f64)| {
        let claimed = |of: fn(&Claim) -> &'static str| claim.map_or("-", of).to_owned();
        let fit = (room / per_user).floor();
        let gpus = (USERS / fit).ceil();
        vec![
            name.clone(),
            claimed(|claim| claim.gpus),
            claimed(|claim| claim.gpu_price),
            format!("{fit:.0}"),
            format!("{gpus:.0}"),
            dollars(gpus * GPU_PRICE),
        ]
    };
    let measured =
        entries.iter().filter(|entry| entry.id.starts_with("trained-")).find_map(|entry| entry.tokens_per_second);
    let wanted = 1e6 * ANSWER / 86_400.0;
    let here = measured.map_or_else(String::new, |speed| {
        format!(
            " By tokens instead: a million answers of {ANSWER:.0} tokens a day are {wanted:.0} tokens/s on average, which \
             {:.1} machines like this one give on this report's base ({:.0} tokens/s each).",
            wanted / speed.median,
            speed.median
        )
    });
    Table {
        title: "Serving cost, 10,000 users, a month",
        head: vec!["method", "page: GPUs", "page: cost", "here: users in one's memory", "GPUs that hold all", "cost"],
        rows: sized.iter().map(row).collect(),
        note: format!(
            "Arithmetic of memory alone: an 80 GB device with a 4B base in bf16 and as much for KV pages, all variants held at \
             once, at the page's ${GPU_PRICE:.0} a GPU and month (far below what an A100 rents for). Variants that are not \
             asked for need not be held: they load in milliseconds.{here}"
        ),
    }
}

/// With thousands separated; cents below a hundred.
fn dollars(amount: f64) -> String {
    if amount < 100.0 {
        return format!("${amount:.2}");
    }
    let digits = format!("{amount:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    format!("${text}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shapes_of_4b_are_those_of_the_published_model() {
        let shape = Shape::qwen3_4b();
        assert!((3.6e9..3.7e9).contains(&shape.weights), "{}", shape.weights);
        assert!((60e6..70e6).contains(&shape.lora(16.0)), "{}", shape.lora(16.0));
        // One bit and an f16 scale for 128: 1.125 bits.
        assert_eq!(shape.dense(1.0), shape.weights * 1.125 / 8.0);
    }

    #[test]
    fn dollars_have_their_thousands_apart() {
        assert_eq!(dollars(2.5), "$2.50");
        assert_eq!(dollars(150.0), "$150");
        assert_eq!(dollars(1_500_000.4), "$1,500,000");
    }
}
