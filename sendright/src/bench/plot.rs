//! What was measured as pictures: SVG that takes its text colour from the page around it.
//!
//! It owns axes, scales and the colours of lines. It must never know what is on the page beside a picture.

use std::error::Error;

use perf::Recorder;
use perf::run::Measured;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::output::Failure;

/// Of each picture, in pixels; a page may show it smaller.
const SIZE: (u32, u32) = (720, 340);

/// The height of one bar and of what is above and below all of them.
const BAR: u32 = 24;
const BAR_FRAME: u32 = 72;

/// The height of what is below the axis: a line of numbers, and one that says what they are.
const LABELS: u32 = 52;

/// A colour that means the page's own: no line has it, and what has it is given the page's when the picture
/// is drawn.
const INK: RGBColor = RGBColor(1, 2, 3);
const INK_WRITTEN: &str = "#010203";

/// Lines and bars, in order; they begin anew where there are more. Each can be seen on white and on black.
const COLOURS: [RGBColor; 14] = [
    RGBColor(136, 136, 136),
    RGBColor(31, 119, 200),
    RGBColor(230, 110, 20),
    RGBColor(50, 150, 60),
    RGBColor(205, 60, 70),
    RGBColor(140, 100, 200),
    RGBColor(150, 100, 80),
    RGBColor(215, 100, 170),
    RGBColor(160, 160, 30),
    RGBColor(20, 160, 180),
    RGBColor(90, 90, 220),
    RGBColor(110, 130, 60),
    RGBColor(200, 140, 90),
    RGBColor(100, 140, 170),
];

/// The last quantile shown: beyond it there is one call in 100,000.
const NINES: f64 = 1e5;

/// The colour of a row's line, as the page writes it.
pub fn colour(row: usize) -> String {
    let RGBColor(red, green, blue) = COLOURS[row % COLOURS.len()];
    format!("#{red:02x}{green:02x}{blue:02x}")
}

/// How long calls took: from left to right ever fewer of them, from the bottom up ever longer.
pub fn latencies(rows: &[Measured]) -> Result<String, Failure> {
    picture(SIZE, |area| {
        let longest = rows.iter().map(|row| row.row.max_ns).max().unwrap_or(1).max(1) as f64;
        let shortest = rows.iter().map(|row| row.recorder.quantile_ns(0.0)).min().unwrap_or(1).max(1) as f64;
        let times = (shortest / 1.2 / 1e3)..(longest * 1.2 / 1e3);
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_right(44)
            .x_label_area_size(LABELS)
            .y_label_area_size(64)
            .build_cartesian_2d((1.0..NINES).log_scale(), times.log_scale())?;
        chart
            .configure_mesh()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.16))
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 18, &INK))
            .x_desc("of all calls, no longer than")
            .y_desc("µs")
            .x_label_formatter(&|fewer| percentage(*fewer))
            .y_label_formatter(&|time| format!("{time}"))
            .draw()?;
        for (index, row) in rows.iter().enumerate() {
            let line = quantiles(&row.recorder);
            chart.draw_series(LineSeries::new(line, COLOURS[index % COLOURS.len()].stroke_width(2)))?;
        }
        Ok(())
    })
}

/// Calls per second: a bar for each row, from the top down. From nothing on, so that twice the length is
/// twice as many.
pub fn throughput(rows: &[Measured]) -> Result<String, Failure> {
    let height = BAR * rows.len() as u32 + BAR_FRAME;
    picture((SIZE.0, height), |area| {
        let most = rows.iter().map(|row| row.row.calls_per_s).fold(1.0, f64::max);
        let count = rows.len() as f64;
        let mut chart = ChartBuilder::on(area)
            .margin(8)
            .margin_left(28)
            .margin_right(56)
            .x_label_area_size(LABELS)
            .build_cartesian_2d(0.0..most * 1.02, 0.0..count)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .axis_style(INK.mix(0.5))
            .bold_line_style(INK.mix(0.16))
            .light_line_style(TRANSPARENT)
            .label_style(("sans-serif", 18, &INK))
            .x_labels(5)
            .x_desc("calls per second")
            .x_label_formatter(&|rate| crate::output::grouped(*rate as u64))
            .draw()?;
        for (index, row) in rows.iter().enumerate() {
            let bottom = count - 1.0 - index as f64;
            let bar = [(0.0, bottom + 0.15), (row.row.calls_per_s, bottom + 0.85)];
            let colour = COLOURS[index % COLOURS.len()].filled();
            chart.draw_series(std::iter::once(Rectangle::new(bar, colour)))?;
        }
        Ok(())
    })
}

/// 10 leaves the slowest tenth: 90 %.
fn percentage(fewer: f64) -> String {
    let nines = fewer.log10().round().max(0.0) as usize;
    format!("{:.*} %", nines.saturating_sub(2), (1.0 - 1.0 / fewer) * 100.0)
}

/// Points from the fastest to the slowest, close enough for a line.
fn quantiles(recorder: &Recorder) -> Vec<(f64, f64)> {
    // Beyond as many calls as there were, there is only the longest again.
    let last = (recorder.calls() as f64).clamp(1.0, NINES);
    let steps = 100;
    let points = (0..=steps).map(|step| last.powf(f64::from(step) / f64::from(steps)));
    points.map(|fewer| (fewer, recorder.quantile_ns(1.0 - 1.0 / fewer) as f64 / 1e3)).collect()
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

fn picture(
    size: (u32, u32),
    draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn Error>>,
) -> Result<String, Failure> {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, size).into_drawing_area();
    let drawn = draw(&area).and_then(|()| Ok(area.present()?));
    drop(area);
    drawn.map_err(|error| Failure::new(format_args!("a plot cannot be drawn: {error}")))?;
    // In a page a picture needs no declaration of what it is, and shrinks with its column.
    let inside =
        svg.split_once('>').map_or(svg.as_str(), |(_, inside)| inside).replace(INK_WRITTEN, "currentColor");
    Ok(format!("<svg viewBox=\"0 0 {} {}\" role=\"img\">{inside}", size.0, size.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_of_ten_is_a_number_of_nines() {
        let expected = ["0 %", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"];
        for (power, expected) in (0..).zip(expected) {
            assert_eq!(percentage(10_f64.powi(power)), expected);
        }
    }
}
