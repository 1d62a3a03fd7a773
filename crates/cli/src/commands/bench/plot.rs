//! Tokens a second against the batch, as an SVG file.

use crate::Error;
use plotters::prelude::*;
use std::path::Path;

/// One line of the plot.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub label: String,
    /// (batch, tokens a second)
    pub points: Vec<(usize, f64)>,
    /// Drawn as hollow points, to tell it from our own.
    pub peer: bool,
}

/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 560);

/// Draws all series into `path`.
///
/// # Errors
/// [`Error::Step`] when there is nothing to draw or the file cannot be written.
pub fn draw(path: &Path, title: &str, series: &[Series]) -> Result<(), Error> {
    let failed = |error: &dyn std::fmt::Display| Error::Failed(format!("drawing {}: {error}", path.display()));
    let all = || series.iter().flat_map(|series| series.points.iter().copied());
    let (Some(first), Some(last)) = (all().map(|(batch, _)| batch).min(), all().map(|(batch, _)| batch).max()) else {
        return Err(failed(&"there is no figure to draw"));
    };
    let top = all().map(|(_, speed)| speed).fold(0.0, f64::max) * 1.1;
    let mut text = String::new();
    render(&mut text, title, series, (first, last), top).map_err(|error| failed(&error))?;
    std::fs::write(path, text).map_err(|error| failed(&error))
}

fn render(
    text: &mut String,
    title: &str,
    series: &[Series],
    (first, last): (usize, usize),
    top: f64,
) -> Result<(), Box<dyn std::error::Error>> {
    let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let batches = (first as f64 / 1.2..last as f64 * 1.2).log_scale().base(2.0);
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(batches, 0.0..top)?;
    let mesh = |value: &f64| format!("{value:.0}");
    chart
        .configure_mesh()
        .x_desc("requests at the same time")
        .y_desc("tokens a second, in all")
        .x_label_formatter(&mesh)
        .y_label_formatter(&mesh)
        .draw()?;
    for (index, Series { label, points, peer }) in series.iter().enumerate() {
        let colour = Palette99::pick(index).to_rgba();
        let style = ShapeStyle { color: colour, filled: !peer, stroke_width: 2 };
        let points: Vec<(f64, f64)> = points.iter().map(|(batch, speed)| (*batch as f64, *speed)).collect();
        chart.draw_series(LineSeries::new(points.clone(), style.stroke_width(if *peer { 1 } else { 2 })))?;
        chart
            .draw_series(points.into_iter().map(|point| Circle::new(point, 4, style)))?
            .label(label)
            .legend(move |(x, y)| Circle::new((x + 10, y), 4, style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_in_the_legend_and_in_the_plot() {
        let keep = tempfile::tempdir().expect("a folder");
        let path = keep.path().join("plot.svg");
        let series = |label: &str, peer| Series { label: label.into(), points: vec![(1, 10.0), (8, 60.0)], peer };
        draw(&path, "decode", &[series("ours", false), series("theirs", true)]).expect("drawn");
        let svg = std::fs::read_to_string(&path).expect("written");
        assert!(svg.starts_with("<svg") && svg.contains("ours") && svg.contains("theirs"), "{svg}");
        // Two points of each series, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(draw(&path, "nothing", &[]).is_err());
    }
}
