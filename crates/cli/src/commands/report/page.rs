//! What the report says, three times: a page with plots (HTML), Markdown, and all figures (JSON).

use super::{
    plan::Family,
    runs::write as write_file,
    study::Row,
    summary::{Spread, Summary},
    tables::tables,
};
use crate::{
    Context, Error,
    commands::plot::{Plot, Series},
    sizes::format_bytes,
};
use bitdelta_kernels::Isa;
use minijinja::{Environment, Value, context, syntax::SyntaxConfig, value::Serde};
use serde_json::json;
use std::path::Path;

/// The page, in the report's folder.
pub const HTML_FILE: &str = "report.html";

/// What was written.
pub struct Written {
    /// `report.md`
    pub markdown: String,
    /// `report.json`
    pub json: String,
}

/// What is drawn against the bytes.
struct Drawn {
    title: &'static str,
    /// Beside the axis.
    axis: &'static str,
    figure: fn(&Summary) -> Option<Spread>,
}

const PLOTS: [Drawn; 4] = [
    Drawn { title: "quality against bytes", axis: "retention", figure: |entry| entry.retention },
    Drawn {
        title: "exact answers against bytes",
        axis: "share of held-out answers exact",
        figure: |entry| entry.exact,
    },
    Drawn {
        title: "distance to the full fine-tune",
        axis: "KL(fine-tune ‖ variant), nats a token",
        figure: |entry| entry.kl,
    },
    Drawn { title: "drift", axis: "rise of the loss on general text", figure: |entry| entry.drift },
];

/// Columns of the main table.
const COLUMNS: [&str; 13] = [
    "how it was made",
    "bytes",
    "bits a weight",
    "retention",
    "loss",
    "KL",
    "exact",
    "drift",
    "rate",
    "seconds",
    "memory",
    "load",
    "tokens/s",
];

/// Writes the report into `folder`.
///
/// # Errors
/// A folder that cannot be written.
pub fn write(
    folder: &Path,
    model: &str,
    rows: &[Row],
    summaries: &[Summary],
    base_speed: Option<f64>,
) -> Result<Written, Error> {
    let mut tasks: Vec<&str> = summaries.iter().map(|summary| summary.task.as_str()).collect();
    tasks.dedup();
    let claims = tables(summaries, base_speed);
    let seeds = rows.iter().map(|row| row.runs.len()).max().unwrap_or_default();
    let mut sections = Vec::new();
    for task in tasks {
        let of_task: Vec<&Summary> = summaries.iter().filter(|summary| summary.task == task).collect();
        let table: Vec<Vec<String>> = of_task.iter().map(|summary| cells(summary)).collect();
        sections.push(context! { task, table, plots => plots(task, &of_task)? });
    }
    let commands: Vec<Value> = rows
        .iter()
        .filter_map(|row| {
            let command = row.runs.first()?.command.clone();
            Some(context! { task => row.task.clone(), label => row.label.clone(), command })
        })
        .collect();
    let machine = format!(
        "{} threads, {}",
        std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        Isa::selected().name()
    );
    let values = context! {
        model, seeds, sections, commands,
        machine => machine.clone(),
        claims => Value::from(Serde(&claims)),
        columns => COLUMNS,
        base_speed => base_speed.map(|speed| format!("{speed:.0}")),
    };
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.context("setting up the templates")?);
    let mut render = |name: &'static str, template: &'static str| {
        let doing = || format!("writing {name}");
        environment.add_template(name, template).context(doing())?;
        environment.get_template(name).and_then(|template| template.render(&values)).context(doing())
    };
    let html = render(HTML_FILE, include_str!("report.html"))?;
    let markdown = render("report.md", include_str!("report.md"))?;
    let figures = json!({
        "model": model, "seeds": seeds, "machine": machine, "base_tokens_per_second": base_speed,
        "summaries": summaries, "runs": rows, "claims": claims,
    });
    let json = serde_json::to_string_pretty(&figures).context("writing JSON")? + "\n";
    for (name, content) in [(HTML_FILE, &html), ("report.md", &markdown), ("report.json", &json)] {
        write_file(&folder.join(name), content.as_bytes())?;
    }
    Ok(Written { markdown, json })
}

impl Spread {
    /// The median, and the ends where they differ as written.
    pub fn text(self, digits: usize) -> String {
        // What rounds to nothing has no sign.
        let smallest = 0.5 / 10f64.powi(digits as i32);
        self.text_as(&|value| format!("{:.digits$}", if value.abs() < smallest { 0.0 } else { value }))
    }

    fn text_as(self, write: &dyn Fn(f64) -> String) -> String {
        let (least, greatest) = (write(self.least), write(self.greatest));
        let median = write(self.median);
        if least == greatest { median } else { format!("{median} ({least} to {greatest})") }
    }
}

/// One row of the main table.
fn cells(summary: &Summary) -> Vec<String> {
    let text = |spread: Option<Spread>, write: &dyn Fn(f64) -> String| {
        spread.map_or_else(|| "-".to_owned(), |spread| spread.text_as(write))
    };
    let digits = |spread: Option<Spread>, digits: usize| spread.map_or_else(|| "-".to_owned(), |s| s.text(digits));
    let middle = |spread: Option<Spread>, write: &dyn Fn(f64) -> String| {
        spread.map_or_else(|| "-".to_owned(), |spread| write(spread.median))
    };
    let bytes = |value: f64| format_bytes(value as u64);
    vec![
        summary.label.clone(),
        text(summary.bytes, &bytes),
        middle(summary.bits_per_weight, &|value| format!("{value:.4}")),
        digits(summary.retention, 3),
        digits(summary.loss, 3),
        digits(summary.kl, 3),
        digits(summary.exact, 3),
        text(summary.drift, &|value| format!("{:+.1} %", 100.0 * value)),
        summary.rate.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1e}")),
        middle(summary.seconds, &|value| format!("{value:.0}")),
        middle(summary.peak_memory, &bytes),
        middle(summary.load_seconds, &|value| format!("{:.1} ms", 1000.0 * value)),
        middle(summary.tokens_per_second, &|value| format!("{value:.0}")),
    ]
}

/// Every plot that has points, as SVG.
fn plots(task: &str, entries: &[&Summary]) -> Result<Vec<Value>, Error> {
    let mut all = Vec::new();
    for Drawn { title, axis, figure } in PLOTS {
        let mut series: Vec<Series> = Vec::new();
        for family in Family::ALL {
            let points = entries.iter().filter(|entry| entry.family == family);
            let mut points: Vec<(f64, f64)> =
                points.filter_map(|entry| Some((entry.bytes?.median, figure(entry)?.median))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            if !points.is_empty() {
                series.push(Series { label: family.label().to_owned(), points, peer: family.is_peer() });
            }
        }
        if series.is_empty() {
            continue;
        }
        let plot = Plot {
            title: format!("{task}: {title}"),
            x: "bytes of the file".into(),
            y: axis.into(),
            base: 10.0,
            x_label: |value| format_bytes(value as u64),
            y_label: |value| format!("{value:.2}"),
            bottom: None,
            series,
        };
        all.push(context! { title, svg => plot.svg()? });
    }
    Ok(all)
}
