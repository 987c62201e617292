//! Peers side by side in one run: contenders take turns within a round, and rounds are repeated, because the
//! speed of a shared machine moves by a factor of two from hour to hour.

mod contender;
mod ours;
mod payload;
mod peers;
mod report;
mod stage;
mod tables;
mod workload;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;

use crate::contender::Result;
use crate::report::Score;
use crate::tables::{Row, Table, Unit};

/// Compares ways to move messages between processes.
#[derive(Parser)]
struct Arguments {
    /// Only workloads whose name contains this
    filter: Option<String>,
    /// Shorter trials and three rounds: rougher figures in a fraction of the time
    #[arg(long)]
    quick: bool,
    /// How often each contender has its turn [default: 5, or 3 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: Option<u16>,
    /// Only contenders whose name contains this, and the reference; may be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// The contender that ratios are taken to, where it takes part [default: each workload's own]
    #[arg(long, value_name = "NAME")]
    reference: Option<String>,
    /// Writes the figures, each round's too, to a file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Lists workloads and contenders, and measures nothing
    #[arg(long)]
    list: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<()> {
    let rounds = arguments.rounds.unwrap_or(if arguments.quick { 3 } else { 5 });
    let target = if arguments.quick { Duration::from_millis(100) } else { Duration::from_millis(400) };
    let mut results = Vec::new();
    let mut matched = false;
    for mut table in tables::all(5 * target) {
        let wanted = arguments.filter.as_ref().is_none_or(|filter| table.name.contains(filter.as_str()));
        let reference = reference_of(&table, arguments.reference.as_deref());
        table.rows.retain(|row| {
            let named = arguments.only.iter().any(|name| row.name.contains(name.as_str()));
            arguments.only.is_empty() || named || row.name == reference
        });
        if !wanted || table.rows.is_empty() {
            continue;
        }
        matched = true;
        if arguments.list {
            println!(
                "{}: {}",
                table.name,
                table.rows.iter().map(|row| row.name).collect::<Vec<_>>().join("; ")
            );
            continue;
        }
        let scores = measure(&table, rounds.into(), target);
        print!("{}", report::markdown(&table, reference, &scores));
        // What is still buffered at a fork would be printed by the child too.
        std::io::stdout().flush()?;
        results.push(report::to_json(&table, reference, &scores));
    }
    if !matched {
        return Err("no workload of that name; --list shows them".into());
    }
    if let Some(path) = &arguments.json {
        let text = serde_json::to_string_pretty(&results)?;
        std::fs::write(path, text).map_err(|error| format!("cannot write {}: {error}", path.display()))?;
    }
    Ok(())
}

/// The first contender whose name contains what was asked for, or the table's own choice.
fn reference_of(table: &Table, asked: Option<&str>) -> &'static str {
    let named = asked.and_then(|asked| table.rows.iter().find(|row| row.name.contains(asked)));
    named.map_or(table.reference, |row| row.name)
}

/// All rounds of a workload. In each the contenders have their turns one after another, beginning with
/// another one each time.
fn measure(table: &Table, rounds: usize, target: Duration) -> Vec<Score> {
    let mut counts = Vec::new();
    let mut scores = Vec::new();
    for row in &table.rows {
        let count = calibrate(table.unit, row, target.as_secs_f64());
        scores.push(Score {
            name: row.name,
            rounds: count.as_ref().map(|_| Vec::new()).map_err(|e| e.to_string()),
        });
        counts.push(count.unwrap_or(0));
    }
    for round in 0..rounds {
        for turn in 0..table.rows.len() {
            let index = (turn + round) % table.rows.len();
            let score = &mut scores[index];
            if let Ok(samples) = &mut score.rounds {
                match (table.rows[index].run)(counts[index]) {
                    Ok(sample) => samples.push(sample),
                    Err(error) => score.rounds = Err(error.to_string()),
                }
            }
        }
    }
    scores
}

/// How many messages or round trips make a trial of about `target` seconds.
fn calibrate(unit: Unit, row: &Row, target: f64) -> Result<u64> {
    match unit {
        Unit::Share => Ok(0),
        Unit::Time(pause) => {
            let sample = (row.run)(100)?;
            Ok(((target / (sample.value + pause.as_secs_f64())) as u64).max(100))
        }
        Unit::Rate(_) => {
            let mut count = 256;
            loop {
                let rate = (row.run)(count)?.value;
                if count as f64 / rate >= target / 8.0 {
                    return Ok((rate * target) as u64);
                }
                count *= 8;
            }
        }
    }
}
