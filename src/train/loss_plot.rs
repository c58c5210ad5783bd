//! Losses and the learning rate over the steps, as SVG.

use std::error::Error;
use std::ops::Range;

use candle_core::{DType, Tensor};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use crate::notebook::Rich;
use crate::notebook::html::{frame, image};

/// Pixels as the reader sees them.
const WIDTH: u32 = 760;
const LOSS_HEIGHT: u32 = 300;
const RATE_HEIGHT: u32 = 126;
/// Plotters rounds to whole units, which shows as steps in a slanting line: it draws this many times larger.
const SCALE: u32 = 4;
/// The margin left of both panels, so that their axes align.
const LEFT: u32 = 66 * SCALE;
/// Room for the labels of the steps.
const BOTTOM: u32 = 44 * SCALE;
/// The width of strong lines.
const STROKE: u32 = 2 * SCALE;
/// The radius of dots.
const DOT: i32 = 4 * SCALE as i32;
/// A curve of more points than this is thinned out.
const MOST_POINTS: usize = 800;
/// A curve that will have at least this many points at its last step gets a smoothed companion.
const WORTH_SMOOTHING: usize = 60;

/// Middle grey: reads on white and on black.
const INK: RGBColor = RGBColor(0x80, 0x84, 0x8b);
const TRAIN: RGBColor = RGBColor(0x3b, 0x82, 0xf6);
const EVAL: RGBColor = RGBColor(0xe8, 0x71, 0x0a);
const RATE: RGBColor = RGBColor(0x8a, 0x6f, 0xd1);

/// A curve: steps and values. A value that is not finite is a gap.
type Points = Vec<(usize, f64)>;

/// The losses of a training run over its steps, with the learning rate below.
///
/// ```
/// use cloze::train::LossPlot;
/// let svg = LossPlot::new()
///     .train((1..=100).map(|step| (step, 5.0 / (step as f64).sqrt())))
///     .eval([(50, 1.1), (100, 0.9)])
///     .to_svg();
/// assert!(svg.starts_with("<svg"));
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LossPlot {
    train: Points,
    eval: Points,
    learning_rate: Points,
    last_step: usize,
}

impl LossPlot {
    /// Returns a plot without curves.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the training loss: steps, counted from 1, and mean losses in nats.
    #[must_use]
    pub fn train(mut self, points: impl IntoIterator<Item = (usize, f64)>) -> Self {
        self.train = points.into_iter().collect();
        self
    }

    /// Returns the training loss of every step, from the first.
    ///
    /// ```
    /// use cloze::train::LossPlot;
    /// let losses: Vec<f32> = vec![4.0, 3.5, 3.2];
    /// let plot = LossPlot::new().losses(&losses);
    /// assert_eq!(plot, LossPlot::new().train([(1, 4.0), (2, 3.5), (3, f64::from(3.2f32))]));
    /// ```
    #[must_use]
    pub fn losses<L: Into<f64> + Copy>(self, losses: &[L]) -> Self {
        let steps = losses.iter().enumerate();
        self.train(steps.map(|(step, &loss)| (step + 1, loss.into())))
    }

    /// Adds the loss of the next step: a scalar, as [`MlmLoss::mean`](crate::model::MlmLoss::mean) gives it. On a GPU this waits
    /// for the step.
    ///
    /// ```
    /// use cloze::prelude::*;
    ///
    /// let mut plot = LossPlot::new();
    /// for loss in [4.0f32, 3.5, 3.2] {
    ///     plot.push(&Tensor::new(loss, &Device::Cpu)?)?;
    /// }
    /// plot.push_eval(3.4);
    /// assert_eq!(plot, LossPlot::new().losses(&[4.0f32, 3.5, 3.2]).eval([(3, 3.4)]));
    /// # Ok::<(), cloze::Error>(())
    /// ```
    ///
    /// # Errors
    /// When it is no scalar.
    pub fn push(&mut self, loss: &Tensor) -> crate::Result<()> {
        let loss = loss.to_dtype(DType::F64)?.to_scalar()?;
        self.train.push((self.pushed() + 1, loss));
        Ok(())
    }

    /// Adds an evaluation's loss after the last step that there is.
    pub fn push_eval(&mut self, loss: impl Into<f64>) {
        self.eval.push((self.pushed(), loss.into()));
    }

    /// Returns the number of the last step with a training loss.
    fn pushed(&self) -> usize {
        self.train.last().map_or(0, |&(step, _)| step)
    }

    /// Sets the evaluation loss, drawn with a dot for every evaluation.
    #[must_use]
    pub fn eval(mut self, points: impl IntoIterator<Item = (usize, f64)>) -> Self {
        self.eval = points.into_iter().collect();
        self
    }

    /// Sets the learning rate, drawn in a separate panel.
    #[must_use]
    pub fn learning_rate(mut self, points: impl IntoIterator<Item = (usize, f64)>) -> Self {
        self.learning_rate = points.into_iter().collect();
        self
    }

    /// Extends the axis to `step`, for a run in progress.
    #[must_use]
    pub fn up_to(mut self, step: usize) -> Self {
        self.last_step = step;
        self
    }

    /// Returns the plot as an SVG document on a transparent ground, in colours for light and for dark pages.
    pub fn to_svg(&self) -> String {
        let with_rate = finite(&self.learning_rate).next().is_some();
        let height = LOSS_HEIGHT + if with_rate { RATE_HEIGHT } else { 0 };
        let mut svg = String::new();
        let drawn = {
            let root = SVGBackend::with_string(&mut svg, (WIDTH * SCALE, height * SCALE))
                .into_drawing_area();
            self.draw(&root, with_rate)
        };
        if let Err(error) = drawn {
            // Drawing into memory has nothing that could fail but the plot's own arithmetic.
            tracing::warn!("the loss plot could not be drawn: {error}");
        }
        let size = |factor: u32| {
            format!(
                "width=\"{}\" height=\"{}\"",
                WIDTH * factor,
                height * factor
            )
        };
        svg.replacen(&size(SCALE), &size(1), 1)
    }

    fn draw(&self, root: &Area, with_rate: bool) -> Result<(), Box<dyn Error>> {
        let (top, bottom) = root.split_vertically(LOSS_HEIGHT * SCALE);
        self.draw_losses(&top, !with_rate)?;
        if with_rate {
            self.draw_rate(&bottom)?;
        }
        root.present()?;
        Ok(())
    }

    /// From 0 to the last step there is, or that was asked for.
    fn steps(&self) -> Range<f64> {
        let curves = [&self.train, &self.eval, &self.learning_rate];
        let last = curves.into_iter().flatten().map(|point| point.0).max();
        0.0..last.unwrap_or(10).max(self.last_step).max(1) as f64
    }

    fn draw_losses(&self, area: &Area, is_last: bool) -> Result<(), Box<dyn Error>> {
        let losses = finite(&self.train).chain(finite(&self.eval));
        let range = padded(losses.map(|point| point.1));
        let empty = range.is_none();
        let range = range.unwrap_or(0.0..1.0);
        let mut chart = ChartBuilder::on(area)
            .margin_top(10 * SCALE)
            .margin_right(30 * SCALE)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(
                LabelAreaPosition::Bottom,
                if is_last { BOTTOM } else { 12 * SCALE },
            )
            .build_cartesian_2d(self.steps(), range.clone())?;
        let decimals = decimals(&range);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.22).stroke_width(SCALE))
            .set_all_tick_mark_size(5 * SCALE)
            .axis_style(INK.mix(0.6).stroke_width(SCALE))
            .label_style(label(12))
            .axis_desc_style(label(13))
            .y_labels(6)
            .x_labels(if is_last { 9 } else { 0 })
            .y_desc("loss (nats per masked token)")
            .x_desc(if is_last { "step" } else { "" })
            .x_label_formatter(&|step| whole(*step))
            .y_label_formatter(&|loss| format!("{loss:.decimals$}"))
            .draw()?;
        if empty {
            let middle = (
                (WIDTH * SCALE) as i32 / 2,
                ((LOSS_HEIGHT - 28) * SCALE) as i32 / 2,
            );
            let style = label(14).pos(Pos::new(HPos::Center, VPos::Center));
            area.draw_text("no loss recorded yet", &style, middle)?;
            return Ok(());
        }
        let dash = |color: RGBColor| {
            move |(x, y): (i32, i32)| {
                PathElement::new([(x, y), (x + 5 * DOT, y)], color.stroke_width(STROKE))
            }
        };
        if finite(&self.train).next().is_some() {
            let smooth = smoothed(&self.train, self.steps().end);
            let faint = if smooth.is_some() { 0.35 } else { 1.0 };
            let width = if smooth.is_some() { SCALE } else { STROKE };
            for run in runs(&self.train) {
                chart.draw_series(LineSeries::new(run, TRAIN.mix(faint).stroke_width(width)))?;
            }
            let dots = lonely(&self.train);
            chart.draw_series(dots.map(|dot| Circle::new(dot, DOT, TRAIN.filled())))?;
            let name = match &smooth {
                Some(_) => "training loss (smoothed)",
                None => "training loss",
            };
            for run in smooth.as_ref().map(runs).unwrap_or_default() {
                chart.draw_series(LineSeries::new(run, TRAIN.stroke_width(STROKE)))?;
            }
            chart
                .draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?
                .label(name)
                .legend(dash(TRAIN));
        }
        if finite(&self.eval).next().is_some() {
            for run in runs(&self.eval) {
                chart.draw_series(LineSeries::new(run, EVAL.stroke_width(STROKE)))?;
            }
            // Thousands of dots would be a band.
            let dots: Vec<_> = thinned(finite(&self.eval).collect(), 100);
            chart
                .draw_series(
                    dots.into_iter()
                        .map(|dot| Circle::new(dot, DOT, EVAL.filled())),
                )?
                .label("validation loss")
                .legend(move |(x, y)| {
                    EmptyElement::at((x, y))
                        + PathElement::new([(0, 0), (5 * DOT, 0)], EVAL.stroke_width(STROKE))
                        + Circle::new((5 * DOT / 2, 0), DOT, EVAL.filled())
                });
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .margin(6 * SCALE)
            .legend_area_size(26 * SCALE)
            .label_font(label(13))
            .draw()?;
        Ok(())
    }

    fn draw_rate(&self, area: &Area) -> Result<(), Box<dyn Error>> {
        let highest = finite(&self.learning_rate).map(|point| point.1);
        let highest = highest.fold(0.0, f64::max);
        let top = if highest > 0.0 { highest * 1.12 } else { 1.0 };
        let mut chart = ChartBuilder::on(area)
            .margin_top(8 * SCALE)
            .margin_right(30 * SCALE)
            .set_label_area_size(LabelAreaPosition::Left, LEFT)
            .set_label_area_size(LabelAreaPosition::Bottom, BOTTOM)
            .build_cartesian_2d(self.steps(), 0.0..top)?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.22).stroke_width(SCALE))
            .set_all_tick_mark_size(5 * SCALE)
            .axis_style(INK.mix(0.6).stroke_width(SCALE))
            .label_style(label(12))
            .axis_desc_style(label(13))
            .y_labels(3)
            .x_labels(9)
            .y_desc("learning rate")
            .x_desc("step")
            .x_label_formatter(&|step| whole(*step))
            .y_label_formatter(&|rate| rate_label(*rate))
            .draw()?;
        for run in runs(&self.learning_rate) {
            let ends = [run[0].0, run[run.len() - 1].0];
            let ground = [(ends[1], 0.0), (ends[0], 0.0)];
            let area = run.iter().copied().chain(ground).collect::<Vec<_>>();
            chart.draw_series([Polygon::new(area, RATE.mix(0.15))])?;
            chart.draw_series(LineSeries::new(run, RATE.stroke_width(STROKE)))?;
        }
        let dots = lonely(&self.learning_rate);
        chart.draw_series(dots.map(|dot| Circle::new(dot, DOT, RATE.filled())))?;
        Ok(())
    }

    /// Returns the plot as an HTML element.
    pub(crate) fn image(&self) -> String {
        let last = |points: &Points| finite(points).last().map(|point| point.1);
        let mut description = "Loss over training steps".to_owned();
        if let Some(loss) = last(&self.train) {
            description += &format!("; last training loss {loss:.4}");
        }
        if let Some(loss) = last(&self.eval) {
            description += &format!("; last validation loss {loss:.4}");
        }
        image(&self.to_svg(), WIDTH, &description)
    }
}

impl Rich for LossPlot {
    fn to_html(&self) -> String {
        frame(&self.image())
    }

    fn to_text(&self) -> String {
        let line = |name: &str, points: &Points| {
            let mut losses = finite(points).map(|point| point.1);
            let first = losses.next()?;
            let last = losses.last().unwrap_or(first);
            Some(format!(
                "{name}: {first:.4} → {last:.4} in {} points",
                points.len()
            ))
        };
        let lines = [
            line("training loss", &self.train),
            line("validation loss", &self.eval),
        ];
        let lines: Vec<String> = lines.into_iter().flatten().collect();
        if lines.is_empty() {
            return "no loss recorded yet".to_owned();
        }
        lines.join("\n")
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Grey text of `size` pixels.
fn label(size: u32) -> TextStyle<'static> {
    // Plotters takes the height of a line for the size of its letters.
    let size = f64::from(size * SCALE) * 1.24;
    ("sans-serif", size).into_font().color(&INK)
}

/// Returns the points that can be drawn.
fn finite(points: &Points) -> impl Iterator<Item = (f64, f64)> {
    let points = points.iter().map(|&(step, value)| (step as f64, value));
    points.filter(|(_, value)| value.is_finite())
}

/// Returns the segments between gaps, thinned out together to what is visible.
fn runs(points: &Points) -> Vec<Vec<(f64, f64)>> {
    let stretches = points.split(|(_, value)| !value.is_finite());
    stretches
        .filter(|run| run.len() > 1)
        .map(|run| {
            let share = MOST_POINTS * run.len() / points.len();
            thinned(
                run.iter().map(|&(x, y)| (x as f64, y)).collect(),
                share.max(2),
            )
        })
        .collect()
}

/// Points with a gap, or nothing, on both sides: a line would not show them.
fn lonely(points: &Points) -> impl Iterator<Item = (f64, f64)> {
    let stretches = points.split(|(_, value)| !value.is_finite());
    let lonely = stretches.filter(|run| run.len() == 1);
    lonely.map(|run| (run[0].0 as f64, run[0].1))
}

/// At most about `most` of `points`: the lowest and the highest of each bucket, so that no spike is lost.
fn thinned(points: Vec<(f64, f64)>, most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most.max(4) {
        return points;
    }
    let last = points[points.len() - 1];
    let bucket = (2 * points.len()).div_ceil(most.max(4));
    let mut kept = Vec::with_capacity(most + 2);
    for chunk in points.chunks(bucket) {
        let by_value = |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let lowest = chunk.iter().enumerate().min_by(by_value);
        let highest = chunk.iter().enumerate().max_by(by_value);
        if let (Some((low, _)), Some((high, _))) = (lowest, highest) {
            kept.push(chunk[low.min(high)]);
            if low != high {
                kept.push(chunk[low.max(high)]);
            }
        }
    }
    // Where the curve stands now is what people look at first.
    if kept.last() != Some(&last) {
        kept.push(last);
    }
    kept
}

/// Returns a running mean of the points so far, where the curve is long enough to need one; older points fade over a
/// fortieth of all steps.
///
/// It only looks back, and its decay depends on the number of steps, not of points, so the curve of a run in progress
/// never changes where it is already drawn, and it starts where the losses start.
fn smoothed(points: &Points, last_step: f64) -> Option<Points> {
    let finite: Vec<(f64, f64)> = finite(points).collect();
    let (first, last) = (finite.first()?, finite.last()?);
    let spacing = (last.0 - first.0) / (finite.len() - 1).max(1) as f64;
    if finite.len() < 2 || last_step < spacing * WORTH_SMOOTHING as f64 {
        return None;
    }
    let fade = last_step / 40.0;
    let (mut sum, mut weight, mut before) = (0.0, 0.0, first.0);
    let smooth = points.iter().map(|&(step, value)| {
        if !value.is_finite() {
            return (step, value);
        }
        let keep = (-(step as f64 - before).abs() / fade).exp();
        sum = keep * sum + value;
        weight = keep * weight + 1.0;
        before = step as f64;
        (step, sum / weight)
    });
    Some(smooth.collect())
}

/// From the lowest to the highest value with some air around.
fn padded(values: impl Iterator<Item = f64>) -> Option<Range<f64>> {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    if low > high {
        return None;
    }
    let air = match high - low {
        0.0 => (high.abs() * 0.1).max(1e-3),
        spread => spread * 0.06,
    };
    Some(low - air..high + air)
}

/// Returns how many decimals are needed to distinguish the labels of an axis.
fn decimals(range: &Range<f64>) -> usize {
    let spread = range.end - range.start;
    (1.0 - spread.log10().floor()).clamp(0.0, 8.0) as usize
}

/// Steps are whole; labels between them stay empty.
fn whole(step: f64) -> String {
    if (step - step.round()).abs() > 1e-6 {
        return String::new();
    }
    crate::notebook::html::thousands(step.round() as usize)
}

/// 0.00002 as `2e-5`.
fn rate_label(rate: f64) -> String {
    if rate == 0.0 {
        return "0".to_owned();
    }
    format!("{rate:.1e}").replace(".0e", "e")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a loss that falls, with noise that repeats.
    fn losses(steps: usize) -> Points {
        let noise = |step: usize| ((step * 7919) % 101) as f64 / 101.0 - 0.5;
        (1..=steps)
            .map(|step| (step, 5.0 - 3.0 * step as f64 / 1000.0 + noise(step)))
            .collect()
    }

    #[test]
    fn smoothing_only_looks_back() {
        let whole = smoothed(&losses(1000), 1000.0).expect("a smooth curve");
        for so_far in [80, 500, 999] {
            let part = smoothed(&losses(so_far), 1000.0).expect("a smooth curve");
            assert_eq!(part[..], whole[..so_far]);
        }
        // It begins where the losses begin.
        assert_eq!(whole[0], losses(1)[0]);
    }

    #[test]
    fn smoothing_removes_noise_and_keeps_gaps() {
        let mut points = losses(1000);
        points[500].1 = f64::NAN;
        let smooth = smoothed(&points, 1000.0).expect("a smooth curve");
        assert!(smooth[500].1.is_nan());
        let jump = |points: &Points| {
            let jumps = points.windows(2).map(|pair| (pair[1].1 - pair[0].1).abs());
            jumps.filter(|jump| jump.is_finite()).sum::<f64>() / points.len() as f64
        };
        assert!(jump(&smooth) < jump(&points) / 10.0);
        assert_eq!(smoothed(&losses(30), 30.0), None);
    }
}
