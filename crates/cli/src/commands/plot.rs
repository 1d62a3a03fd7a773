//! Lines and points over a logarithmic axis, as SVG.

use crate::Error;
use plotters::prelude::*;
use std::ops::Range;

/// What is drawn.
#[derive(Debug, Clone)]
pub struct Plot {
    /// Above it.
    pub title: String,
    /// Under the x axis, which is logarithmic.
    pub x: String,
    /// Beside the y axis.
    pub y: String,
    /// Base of the x axis' logarithm.
    pub base: f64,
    /// What a number on the x axis is written as.
    pub x_label: fn(f64) -> String,
    /// The same on the y axis.
    pub y_label: fn(f64) -> String,
    /// The y axis begins here; `None`: a little below the lowest point.
    pub bottom: Option<f64>,
    /// The lines.
    pub series: Vec<Series>,
}

/// One line of the plot.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub label: String,
    /// (x, y), x above 0
    pub points: Vec<(f64, f64)>,
    /// Drawn as hollow points, to tell it from our own.
    pub peer: bool,
}

/// Numbers along the x axis, about: more of them would overlap within a decade.
const X_LABELS: usize = 6;
/// Width and height in pixels.
const SIZE: (u32, u32) = (900, 560);

impl Plot {
    /// The picture as SVG text.
    ///
    /// # Errors
    /// [`Error::Failed`] when there is nothing to draw.
    pub fn svg(&self) -> Result<String, Error> {
        let failed = |error: &dyn std::fmt::Display| Error::Failed(format!("drawing {}: {error}", self.title));
        let points: Vec<(f64, f64)> = self.series.iter().flat_map(|series| series.points.iter().copied()).collect();
        if points.is_empty() {
            return Err(failed(&"there is no figure to draw"));
        }
        let range = |values: &dyn Fn(&(f64, f64)) -> f64| {
            let found = points.iter().map(values);
            found.fold(f64::INFINITY..f64::NEG_INFINITY, |range, x| range.start.min(x)..range.end.max(x))
        };
        let (x, y) = (range(&|point| point.0), range(&|point| point.1));
        // Of equal values, too, there is an axis.
        let room = (0.08 * (y.end - y.start)).max(1e-3 * y.end.abs()).max(1e-3);
        let bottom = self.bottom.unwrap_or(y.start - room);
        let top = if self.bottom.is_some() { y.end * 1.1 } else { y.end + room };
        let mut text = String::new();
        self.render(&mut text, x.start / 1.2..x.end * 1.2, bottom..top).map_err(|error| failed(&*error))?;
        Ok(text)
    }

    fn render(&self, text: &mut String, x: Range<f64>, y: Range<f64>) -> Result<(), Box<dyn std::error::Error>> {
        let area = SVGBackend::with_string(text, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(&self.title, ("sans-serif", 18))
            .margin(12)
            .x_label_area_size(42)
            .y_label_area_size(64)
            .build_cartesian_2d(x.log_scale().base(self.base), y)?;
        chart
            .configure_mesh()
            .x_desc(&self.x)
            .y_desc(&self.y)
            .x_labels(X_LABELS)
            .max_light_lines(1)
            .x_label_formatter(&|value: &f64| (self.x_label)(*value))
            .y_label_formatter(&|value: &f64| (self.y_label)(*value))
            .draw()?;
        for (index, Series { label, points, peer }) in self.series.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let style = ShapeStyle { color: colour, filled: !peer, stroke_width: 2 };
            chart.draw_series(LineSeries::new(points.clone(), style.stroke_width(if *peer { 1 } else { 2 })))?;
            chart
                .draw_series(points.iter().map(|point| Circle::new(*point, 4, style)))?
                .label(label)
                .legend(move |(x, y)| Circle::new((x + 10, y), 4, style));
        }
        let legend =
            if self.bottom.is_some() { SeriesLabelPosition::UpperLeft } else { SeriesLabelPosition::LowerRight };
        chart
            .configure_series_labels()
            .position(legend)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.3))
            .draw()?;
        area.present()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_in_the_legend_and_in_the_plot() {
        let series = |label: &str, peer| Series { label: label.into(), points: vec![(1.0, 10.0), (8.0, 60.0)], peer };
        let mut plot = Plot {
            title: "decode".into(),
            x: "requests".into(),
            y: "tokens".into(),
            base: 2.0,
            x_label: |x| format!("{x:.0}"),
            y_label: |y| format!("{y:.0}"),
            bottom: Some(0.0),
            series: vec![series("ours", false), series("theirs", true)],
        };
        let svg = plot.svg().expect("drawn");
        assert!(svg.starts_with("<svg") && svg.contains("ours") && svg.contains("theirs"), "{svg}");
        // Two points of each series, and one in the legend.
        assert_eq!(svg.matches("<circle").count(), 6);
        plot.series.clear();
        assert!(plot.svg().is_err());
    }
}
