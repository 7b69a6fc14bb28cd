//! What an experiment has found, as a table or as lines of JSON.

use std::{fmt::Write, time::Duration};

/// A figure.
#[derive(Clone, Debug)]
pub enum Figure {
    /// A name.
    Text(String),
    /// A count, or a parameter.
    Count(u64),
    /// A measure.
    Number(f64),
    /// What has not happened.
    Never,
}

impl From<&str> for Figure {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Figure {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<usize> for Figure {
    fn from(n: usize) -> Self {
        Self::Count(n as u64)
    }
}

impl From<u64> for Figure {
    fn from(n: u64) -> Self {
        Self::Count(n)
    }
}

impl From<f64> for Figure {
    fn from(n: f64) -> Self {
        Self::Number(n)
    }
}

impl From<Duration> for Figure {
    /// In seconds.
    fn from(time: Duration) -> Self {
        Self::Number(time.as_secs_f64())
    }
}

impl<T: Into<Figure>> From<Option<T>> for Figure {
    fn from(figure: Option<T>) -> Self {
        figure.map_or(Self::Never, Into::into)
    }
}

impl Figure {
    fn text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Count(n) => n.to_string(),
            Self::Number(n) => format!("{n:.2}"),
            Self::Never => "-".to_owned(),
        }
    }

    fn json(&self) -> serde_json::Value {
        match self {
            Self::Text(text) => text.as_str().into(),
            Self::Count(n) => (*n).into(),
            Self::Number(n) => ((n * 1000.0).round() / 1000.0).into(),
            Self::Never => serde_json::Value::Null,
        }
    }
}

/// A line of a table: names of columns, and what stands there.
pub type Row = Vec<(&'static str, Figure)>;

/// Lines as Markdown, aligned.
pub fn markdown(rows: &[Row]) -> String {
    let Some(first) = rows.first() else { return String::new() };
    let columns: Vec<_> = first.iter().map(|(name, _)| *name).collect();
    let cells: Vec<Vec<_>> =
        rows.iter().map(|row| row.iter().map(|(_, figure)| figure.text()).collect()).collect();
    let width = |i: usize| cells.iter().map(|row| row[i].len()).chain([columns[i].len()]).max().unwrap_or(0);
    let mut out = String::new();
    let mut line = |row: &[&str]| {
        for (i, cell) in row.iter().enumerate() {
            let _ = write!(out, "| {cell:>width$} ", width = width(i));
        }
        out.push_str("|\n");
    };
    line(&columns);
    let dashes: Vec<_> = (0..columns.len()).map(|i| "-".repeat(width(i))).collect();
    line(&dashes.iter().map(String::as_str).collect::<Vec<_>>());
    for row in &cells {
        line(&row.iter().map(String::as_str).collect::<Vec<_>>());
    }
    out
}

/// Lines of JSON.
pub fn json(rows: &[Row]) -> String {
    let object = |row: &Row| {
        serde_json::Value::Object(
            row.iter().map(|(name, figure)| ((*name).to_owned(), figure.json())).collect(),
        )
    };
    rows.iter().map(|row| format!("{}\n", object(row))).collect()
}

/// The value below which so large a share of the values lies; nothing of nothing.
pub fn quantile(values: &mut [Duration], share: f64) -> Option<Duration> {
    values.sort_unstable();
    let at = (values.len() as f64 * share).ceil() as usize;
    values.get(at.max(1) - 1).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_aligned_and_says_the_same_as_its_json() {
        let rows: Vec<Row> = vec![
            vec![("policy", "ours".into()), ("n", 128_usize.into()), ("dead", Some(1.5).into())],
            vec![("policy", "memberlist".into()), ("n", 8_usize.into()), ("dead", None::<f64>.into())],
        ];
        let text = markdown(&rows);
        assert!(text.lines().all(|line| line.len() == text.lines().next().unwrap().len()), "{text}");
        assert!(text.contains("|       ours | 128 | 1.50 |"), "{text}");
        let lines = json(&rows);
        let read: Vec<serde_json::Value> =
            lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |policy: &str, n: u64, dead: Option<f64>| serde_json::json!({"policy": policy, "n": n, "dead": dead});
        assert_eq!(read, [of("ours", 128, Some(1.5)), of("memberlist", 8, None)]);
    }

    #[test]
    fn a_quantile_is_one_of_the_values() {
        let mut values: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(quantile(&mut values, 0.5), Some(Duration::from_millis(50)));
        assert_eq!(quantile(&mut values, 0.99), Some(Duration::from_millis(99)));
        assert_eq!(quantile(&mut [], 0.5), None);
    }
}
