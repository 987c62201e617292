//! From trials to tables: medians of rounds, ratios within a round, Markdown and JSON.

use std::fmt::Write;

use serde_json::{Value, json};

use crate::tables::{Table, Unit};
use crate::workload::Sample;

/// What one contender reached: a sample a round, or why there is none.
pub struct Score {
    /// The contender.
    pub name: &'static str,
    /// One entry a round, or the first failure.
    pub rounds: Result<Vec<Sample>, String>,
}

impl Score {
    fn values(&self) -> Option<Vec<f64>> {
        self.rounds.as_ref().ok().map(|rounds| rounds.iter().map(|sample| sample.value).collect())
    }

    fn tails(&self) -> Option<Vec<f64>> {
        self.rounds.as_ref().ok().and_then(|rounds| rounds.iter().map(|sample| sample.tail).collect())
    }
}

/// The middle value; the mean of the two middle ones for an even number. `None` for no values.
pub fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    if values.len() % 2 == 1 { Some(upper) } else { Some((values[values.len() / 2 - 1] + upper) / 2.0) }
}

/// The median over the rounds of this score by the reference's of the same round: the machine's speed drifts,
/// and both saw the same machine there.
fn ratio(score: &Score, reference: Option<&Score>) -> Option<f64> {
    let pairs = score.values()?.into_iter().zip(reference?.values()?);
    // A share of nothing has no ratio.
    median(pairs.map(|(value, reference)| value / reference).collect()).filter(|ratio| ratio.is_finite())
}

/// A Markdown table of one workload.
pub fn markdown(table: &Table, reference: &str, scores: &[Score]) -> String {
    let base = scores.iter().find(|score| score.name == reference);
    let by_time = matches!(table.unit, Unit::Time(_));
    let (figure, tail) = match table.unit {
        Unit::Rate(_) => ("messages", ""),
        Unit::Time(_) => ("p50", " p99 |"),
        Unit::Share => ("of one core", ""),
    };
    let mut text = format!("\n### {}\n\n| contender | {figure} |{tail} range | ratio |\n", table.name);
    text.push_str(if by_time {
        "| --- | ---: | ---: | ---: | ---: |\n"
    } else {
        "| --- | ---: | ---: | ---: |\n"
    });
    for score in scores {
        let Some(values) = score.values() else {
            let reason = score.rounds.as_ref().err().map_or("", String::as_str);
            let blank = if by_time { " |" } else { "" };
            let _ = writeln!(text, "| {} | failed: {reason} |{blank} | |", score.name);
            continue;
        };
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let middle = median(values).map_or(String::new(), |value| figure_of(table.unit, value));
        let range = format!("{} – {}", brief(table.unit, least), brief(table.unit, most));
        let tail = match score.tails().and_then(median) {
            Some(tail) => format!(" {} |", seconds(tail)),
            None => String::new(),
        };
        let ratio = ratio(score, base).map_or("–".into(), |ratio| format!("{} ×", significant(ratio)));
        let _ = writeln!(text, "| {} | {middle} |{tail} {range} | {ratio} |", score.name);
    }
    if base.is_some() {
        let _ = writeln!(text, "\nRatio: to {reference}, the median of the rounds.");
    }
    text
}

/// The same for programs; rates in messages a second, times in seconds.
pub fn to_json(table: &Table, reference: &str, scores: &[Score]) -> Value {
    let base = scores.iter().find(|score| score.name == reference);
    let rows: Vec<Value> = scores
        .iter()
        .map(|score| match &score.rounds {
            Ok(_) => json!({
                "name": score.name,
                "median": score.values().and_then(median),
                "p99": score.tails().and_then(median),
                "ratio": ratio(score, base),
                "rounds": score.values(),
            }),
            Err(error) => json!({ "name": score.name, "error": error }),
        })
        .collect();
    let unit = match table.unit {
        Unit::Rate(_) => "messages/s",
        Unit::Time(_) => "s",
        Unit::Share => "cores",
    };
    json!({ "workload": table.name, "unit": unit, "reference": reference, "rows": rows })
}

fn figure_of(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Rate(Some(size)) if size >= 1024 => {
            format!("{}/s, {} GB/s", scaled(value), significant(value * size as f64 / 1e9))
        }
        Unit::Rate(_) => format!("{}/s, {} ns", scaled(value), significant(1e9 / value)),
        _ => brief(unit, value),
    }
}

fn brief(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Rate(_) => scaled(value),
        Unit::Time(_) => seconds(value),
        Unit::Share => format!("{:.2} %", value * 100.0),
    }
}

fn scaled(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{} M", significant(v / 1e6)),
        v if v >= 1e3 => format!("{} k", significant(v / 1e3)),
        v => significant(v),
    }
}

fn seconds(value: f64) -> String {
    match value {
        v if v >= 1e-3 => format!("{} ms", significant(v * 1e3)),
        v if v >= 1e-6 => format!("{} µs", significant(v * 1e6)),
        v => format!("{} ns", significant(v * 1e9)),
    }
}

/// Three digits.
fn significant(value: f64) -> String {
    match value {
        v if v >= 100.0 => format!("{v:.0}"),
        v if v >= 10.0 => format!("{v:.1}"),
        v if v >= 1.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(vec![4.0, 1.0, 2.0, 3.0]), Some(2.5));
        assert_eq!(median(vec![]), None);
    }

    #[test]
    fn ratios_are_taken_within_a_round() {
        let score = |name, values: [f64; 3]| Score {
            name,
            rounds: Ok(values.map(|value| Sample { value, tail: None }).to_vec()),
        };
        let (slow, fast) = (score("slow", [1.0, 10.0, 100.0]), score("fast", [2.0, 20.0, 200.0]));
        assert_eq!(ratio(&fast, Some(&slow)), Some(2.0));
        assert_eq!(ratio(&fast, None), None);
    }
}
