//! Explores the models, and prints how many states each has. Ends with an error when one does not hold, after the way to the state
//! that must not be.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use procession_models::suite;

fn main() -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let mut states = 0;
    println!("{:<9} {:<82} {:>9} {:>6} {:>8}", "model", "bounds", "states", "depth", "time");
    for entry in suite::entries() {
        let outcome = entry.explore(threads);
        let result = if outcome.counterexample.is_some() { "FAILS" } else { "holds" };
        let (model, bounds, time) = (entry.model, &entry.bounds, seconds(outcome.time));
        println!("{model:<9} {bounds:<82} {:>9} {:>6} {time:>8} {result}", outcome.states, outcome.depth);
        if let Some(counterexample) = outcome.counterexample {
            println!("\n{counterexample}");
            return ExitCode::FAILURE;
        }
        states += outcome.states;
    }
    let mutants = suite::mutants();
    for (name, explore) in &mutants {
        if explore(threads).counterexample.is_none() {
            println!("\n{name}: made on purpose, and not found: the model cannot see it");
            return ExitCode::FAILURE;
        }
    }
    let (mistakes, time) = (mutants.len(), seconds(start.elapsed()));
    println!("{states} states; {mistakes} mistakes made on purpose, all found; {time}");
    ExitCode::SUCCESS
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
