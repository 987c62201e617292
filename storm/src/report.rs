//! What is printed.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use procession::StartMethod;

use crate::kinds::Kind;
use crate::roles::DOINGS;
use crate::turn::Record;
use crate::watch::Stall;

pub(crate) struct Report {
    seed: u64,
    rows: Vec<(&'static str, Record)>,
}

impl Report {
    pub(crate) fn new(seed: u64, kinds: &[&Kind]) -> Self {
        Report { seed, rows: kinds.iter().map(|kind| (kind.name, Record::default())).collect() }
    }

    pub(crate) fn add(&mut self, kind: &Kind, record: &Record) {
        for (name, sum) in &mut self.rows {
            if *name == kind.name {
                sum.add(record);
            }
        }
    }

    /// A line for each kind, then the totals.
    pub(crate) fn print(&self, time: Duration) {
        println!(
            "{:15} {:>6} {:>6} {:>6} {:>10} {:>13} {:>13} {:>6}  longest stall (ms; with what is excused)",
            "", "kills", "stops", "starts", "messages", "lost/allowed", "twice/allowed", "told"
        );
        let mut total = Record::default();
        for (name, record) in &self.rows {
            line(name, record);
            total.add(record);
        }
        line("total", &total);
        let blows = &total.blows;
        let methods: Vec<String> = StartMethod::ALL
            .iter()
            .zip(blows.starts)
            .map(|(method, starts)| format!("{starts} by {method:?}"))
            .collect();
        println!(
            "{} started ({}), and {} by them; {} killed while stopped, {} with children, the fork server {} times",
            blows.starts.iter().sum::<u64>(),
            methods.join(", "),
            blows.nested_starts,
            blows.kills_while_stopped,
            blows.trees,
            blows.servers
        );
        let stalls: BTreeMap<&str, &Stall> =
            total.progress.stalls.iter().map(|(role, stall)| (*role, stall)).collect();
        let stalls: Vec<String> = stalls
            .iter()
            .map(|(role, stall)| format!("{role} {} ms {}", stall.net / 1000, stall.doing()))
            .collect();
        println!("longest stalls: {}", stalls.join(", "));
        println!(
            "excused: {:.1} s in which somebody was stopped who had what others wait for, {:.1} s in which the machine ran others; {:.1} s in all",
            total.progress.stopped as f64 / 1e6,
            total.progress.late as f64 / 1e6,
            time.as_secs_f64()
        );
        let amid: Vec<String> = DOINGS
            .iter()
            .zip(total.amid)
            .filter(|(_, kills)| *kills != 0)
            .map(|(doing, kills)| format!("{kills} {doing}"))
            .collect();
        println!("killed, or ended with who was killed: {}", amid.join(", "));
        let ran: Vec<String> =
            self.rows.iter().map(|(name, record)| format!("{name} {}", record.turns)).collect();
        println!("turns: {}", ran.join(", "));
        println!("seed {}", self.seed);
    }

    /// Why the storm failed, and where to look.
    pub(crate) fn explain(&self, record: &Record, kind: &Kind, folder: &Path) {
        eprintln!("FAILED in {}:", kind.name);
        for fault in &record.tally.faults {
            eprintln!("  {fault}");
        }
        eprintln!("the logs, and the state of the objects in plain words: {}", folder.display());
        eprintln!("again: cargo xtask storm --only {} --seed {}", kind.name, self.seed);
    }
}

fn line(name: &str, record: &Record) {
    let (blows, tally) = (&record.blows, &record.tally);
    let stall = match record.progress.longest() {
        None => String::new(),
        Some((role, stall)) => {
            format!("{:>5} ({}) {role} {}", stall.net / 1000, stall.raw / 1000, stall.doing())
        }
    };
    println!(
        "{name:15} {:>6} {:>6} {:>6} {:>10} {:>13} {:>13} {:>6}  {stall}",
        blows.kills,
        blows.stops,
        blows.starts.iter().sum::<u64>() + blows.nested_starts,
        tally.acknowledged,
        format!("{}/{}", tally.lost, tally.lost_allowed),
        format!("{}/{}", tally.repeated, tally.repeated_allowed),
        tally.told
    );
}
