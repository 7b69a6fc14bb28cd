//! Charts of what experiments have found, from their lines of JSON.

use std::collections::{BTreeMap, BTreeSet};

use plotters::{
    chart::{ChartBuilder, SeriesLabelPosition},
    drawing::IntoDrawingArea,
    element::{Circle, EmptyElement, PathElement, Rectangle, Text},
    prelude::SVGBackend,
    series::LineSeries,
    style::{
        BLACK, Color, IntoFont, RGBColor, ShapeStyle, WHITE,
        text_anchor::{HPos, Pos, VPos},
    },
};
use serde_json::Value;

use super::Policy;

type Line = serde_json::Map<String, Value>;
type Drawn<T> = Result<T, Box<dyn std::error::Error>>;

const FONT: &str = "sans-serif";

/// Colours of the policies, in their order.
const COLOURS: [RGBColor; 2] = [RGBColor(170, 60, 50), RGBColor(40, 90, 160)];

/// Draws a chart of lines of JSON: `grid COLUMN` is a table of how many were slow, and for how long, with a figure in
/// each field; `detection` is how long it takes until a member that is gone is held for dead, by the size of the cluster.
///
/// # Errors
/// If there is no such chart, or the lines do not hold what it needs.
pub fn plot(chart: &str, column: Option<&str>, lines: &str) -> Result<String, String> {
    let lines: Vec<Line> = lines
        .lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| serde_json::from_str(line).map_err(|error| format!("{line}: {error}")))
        .collect::<Result<_, _>>()?;
    let mut svg = String::new();
    let drawn = match chart {
        "grid" => grid(&lines, column.unwrap_or("false_dead"), &mut svg),
        "detection" => detection(&lines, &mut svg),
        _ => return Err(format!("{chart} is no chart")),
    };
    drawn.map_err(|error| error.to_string())?;
    Ok(svg)
}

fn number(line: &Line, column: &str) -> Option<f64> {
    line.get(column).and_then(Value::as_f64)
}

fn is_of(line: &Line, policy: Policy) -> bool {
    line.get("policy").and_then(Value::as_str) == Some(policy.name())
}

/// Values of a column, from the least, as far as a thousandth tells.
fn values(lines: &[Line], column: &str) -> Vec<f64> {
    let all: BTreeSet<_> =
        lines.iter().filter_map(|line| number(line, column)).map(|value| (value * 1000.0) as i64).collect();
    all.into_iter().map(|value| value as f64 / 1000.0).collect()
}

/// A field: a sum of counts, or a mean of seconds.
fn field(lines: &[&Line], column: &str) -> Option<f64> {
    let all: Vec<_> = lines.iter().filter_map(|line| number(line, column)).collect();
    let sum: f64 = all.iter().sum();
    match all.len() {
        0 => None,
        n if column.ends_with("_s") => Some(sum / n as f64),
        _ => Some(sum),
    }
}

fn grid(lines: &[Line], column: &str, svg: &mut String) -> Drawn<()> {
    let (slow, stopped) = (values(lines, "slow"), values(lines, "stopped_s"));
    if slow.is_empty() || stopped.is_empty() {
        return Err("these lines are of no grid".into());
    }
    let fields = |policy: Policy| {
        let mut fields = BTreeMap::new();
        for (x, slow) in slow.iter().enumerate() {
            for (y, stopped) in stopped.iter().enumerate() {
                let at = |line: &&Line| {
                    let is =
                        |column, value: f64| number(line, column).is_some_and(|n| (n - value).abs() < 0.002);
                    is_of(line, policy) && is("slow", *slow) && is("stopped_s", *stopped)
                };
                let here: Vec<_> = lines.iter().filter(at).collect();
                fields.insert((x, y), field(&here, column));
            }
        }
        fields
    };
    let shade = |value: f64| (1.0 + value).ln();
    let all = Policy::ALL.map(fields);
    let most = all.iter().flat_map(BTreeMap::values).flatten().copied().fold(0.0, f64::max).max(1.0);

    let root = SVGBackend::with_string(svg, (860, 300)).into_drawing_area();
    root.fill(&WHITE)?;
    for ((area, policy), fields) in root.split_evenly((1, 2)).iter().zip(Policy::ALL).zip(all) {
        let (wide, high) = (slow.len() as f64, stopped.len() as f64);
        let mut chart = ChartBuilder::on(area)
            .caption(format!("{}: {}", policy.name(), column.replace('_', " ")), (FONT, 16))
            .margin(8)
            .x_label_area_size(38)
            .y_label_area_size(52)
            .build_cartesian_2d(0.0..wide, 0.0..high)?;
        let label = |values: &[f64], at: f64, of: fn(f64) -> String| {
            // Labels stand in the middle of their fields.
            let here = (at.fract() - 0.5).abs() < 0.01;
            values.get(at as usize).filter(|_| here).map_or(String::new(), |value| of(*value))
        };
        chart
            .configure_mesh()
            .disable_mesh()
            .x_labels(slow.len() * 2 + 1)
            .y_labels(stopped.len() * 2 + 1)
            .x_label_formatter(&|at| label(&slow, *at, |n| format!("{n:.0}")))
            .y_label_formatter(&|at| label(&stopped, *at, |n| format!("{n:.1}")))
            .x_desc("slow members")
            .y_desc("stopped, s")
            .label_style((FONT, 12))
            .draw()?;
        for ((x, y), value) in fields {
            let (left, bottom) = (x as f64, y as f64);
            let share = value.map_or(0.0, |value| shade(value) / shade(most));
            let colour = COLOURS[1].mix(0.75 * share);
            chart.draw_series([Rectangle::new(
                [(left + 0.02, bottom + 0.02), (left + 0.98, bottom + 0.98)],
                ShapeStyle { color: colour, filled: true, stroke_width: 0 },
            )])?;
            let text = match value {
                None => "-".to_owned(),
                Some(value) if column.ends_with("_s") => format!("{value:.1}"),
                Some(value) => format!("{value:.0}"),
            };
            let middle = Pos::new(HPos::Center, VPos::Center);
            let colour = if share > 0.6 { &WHITE } else { &BLACK };
            let style = (FONT, 13).into_font().color(colour).pos(middle);
            chart.draw_series([
                EmptyElement::at((left + 0.5, bottom + 0.5)) + Text::new(text, (0, 0), style)
            ])?;
        }
    }
    root.present()?;
    Ok(())
}

fn detection(lines: &[Line], svg: &mut String) -> Drawn<()> {
    let silent = |line: &&Line| {
        line.get("end").and_then(Value::as_str) == Some("host") && number(line, "loss_%") == Some(0.0)
    };
    let lines: Vec<_> = lines.iter().filter(silent).cloned().collect();
    let sizes = values(&lines, "nodes");
    let (Some(least), Some(most)) = (sizes.first(), sizes.last()) else {
        return Err("these lines are not of swim".into());
    };
    let columns = [
        ("dead_s", "dead, first (median)"),
        ("dead_p99_s", "dead, first (p99)"),
        ("all_know_s", "all know (median)"),
    ];
    let top = columns.iter().flat_map(|(column, _)| values(&lines, column)).fold(1.0, f64::max);
    let root = SVGBackend::with_string(svg, (860, 380)).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption("One of N is gone with its host: how soon it is held for dead", (FONT, 16))
        .margin(8)
        .x_label_area_size(40)
        .y_label_area_size(46)
        .build_cartesian_2d(least.log2() - 0.1..most.log2() + 0.1, 0.0..top * 1.1)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .x_labels((most / least).log2() as usize + 1)
        .x_label_formatter(&|at| format!("{:.0}", at.exp2()))
        .x_desc("nodes")
        .y_desc("seconds after the crash")
        .label_style((FONT, 12))
        .draw()?;
    for (policy, colour) in Policy::ALL.into_iter().zip(COLOURS) {
        for (which, (column, what)) in columns.into_iter().enumerate() {
            let mut points: Vec<_> = lines
                .iter()
                .filter(|line| is_of(line, policy))
                .filter_map(|line| Some((number(line, "nodes")?.log2(), number(line, column)?)))
                .collect();
            points.sort_by(|one, other| one.0.total_cmp(&other.0));
            // The median is the thick line; who knows how late is told by the thin ones.
            let style = colour.mix([1.0, 0.35, 0.65][which]).stroke_width([3, 1, 1][which]);
            chart
                .draw_series(LineSeries::new(points.iter().copied(), style))?
                .label(format!("{}: {what}", policy.name()))
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
            chart.draw_series(points.iter().map(|at| Circle::new(*at, 2, style.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .label_font((FONT, 12))
        .draw()?;
    drop(chart);
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_holds_each_figure_of_both_policies() {
        let line = |policy: &str, slow: u32, stopped: f64, running: f64, n: u32| {
            format!(
                r#"{{"policy":"{policy}","slow":{slow},"stopped_s":{stopped},"running_s":{running},"false_dead":{n}}}"#
            )
        };
        let lines = [
            line("memberlist", 1, 2.048, 0.004, 1000),
            line("memberlist", 1, 2.048, 0.064, 234),
            line("ours", 1, 2.048, 0.004, 17),
            line("ours", 4, 8.192, 0.004, 0),
        ];
        let svg = plot("grid", None, &lines.join("\n")).unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("1234") && svg.contains("\n17\n"), "{svg}");
        assert!(svg.len() < 40 << 10, "{}", svg.len());
    }

    #[test]
    fn detection_needs_the_lines_of_swim() {
        let line = |policy: &str, nodes: u32, dead: f64| {
            format!(
                r#"{{"policy":"{policy}","end":"host","loss_%":0.0,"nodes":{nodes},"dead_s":{dead},"dead_p99_s":{dead},"all_know_s":{dead}}}"#
            )
        };
        let lines = [
            line("memberlist", 8, 9.0),
            line("memberlist", 128, 10.0),
            line("ours", 8, 5.0),
            line("ours", 128, 6.0),
        ];
        let svg = plot("detection", None, &lines.join("\n")).unwrap();
        assert!(svg.contains("ours: dead, first (median)") && svg.len() < 40 << 10, "{svg}");
        assert!(plot("detection", None, "").is_err());
        assert!(plot("pie", None, "").is_err());
    }
}
