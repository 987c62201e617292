//! Explores the models, and prints how many states each has. Ends with an error when one does not hold, after the way to the state
//! that must not be. With a model's name as argument, only that model.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use procession_models::{orders, suite};

fn main() -> ExitCode {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    let mut states = 0;
    println!("{:<9} {:<82} {:>9} {:>6} {:>8}", "model", "bounds", "states", "depth", "time");
    let only = std::env::args().nth(1);
    let is_asked_for = |name: &str| only.as_ref().is_none_or(|only| name.starts_with(only.as_str()));
    for entry in suite::entries().into_iter().filter(|entry| is_asked_for(entry.model)) {
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
    let mut mutants = suite::mutants();
    mutants.retain(|(name, _)| is_asked_for(name));
    let mut blind = false;
    for (name, explore) in &mutants {
        if explore(threads).counterexample.is_none() {
            println!("\n{name}: made on purpose, and not found: the model cannot see it");
            blind = true;
        }
    }
    if blind {
        return ExitCode::FAILURE;
    }
    let mut executions = 0;
    if is_asked_for("orders") {
        match weaken_orders() {
            Some(explored) => executions = explored,
            None => return ExitCode::FAILURE,
        }
    }
    let (mistakes, time) = (mutants.len(), seconds(start.elapsed()));
    println!(
        "{states} states, {executions} executions; {mistakes} mistakes made on purpose, all found; {time}"
    );
    ExitCode::SUCCESS
}

/// Checks the memory orders, and that each is needed or excused; how many executions there were, unless something is wrong.
fn weaken_orders() -> Option<usize> {
    let mut executions = 0;
    for check in orders::checks() {
        let outcome = check.explore();
        let (name, time) = (check.name, seconds(outcome.time));
        let result = if outcome.failure.is_some() { "FAILS" } else { "holds" };
        println!("{:<9} {name:<82} {:>9} {:>6} {time:>8} {result}", "orders", outcome.executions, "");
        if let Some(failure) = outcome.failure {
            println!("\n{failure}");
            return None;
        }
        executions += outcome.executions;
        // The kernel publishes a death by its store to the robust word: the check must need that store.
        if name.contains("dies") && !check.needs_the_kernel() {
            println!("\n{name}: holds without the order of the store that the kernel makes at a death");
            return None;
        }
    }
    let all = orders::orders();
    if let Some(order) = all.iter().find(|order| order.found == order.reason.is_some()) {
        println!(
            "\n{}, weakened to {}: found {}, but {:?}",
            order.place, order.weakened, order.found, order.reason
        );
        return None;
    }
    let excuses = |order: &orders::Order, (file, text, _): (&str, &str, &str)| {
        order.place.starts_with(file) && order.place.contains(text)
    };
    if let Some((file, text, _)) =
        orders::NOT_FELT.iter().find(|excuse| !all.iter().any(|order| excuses(order, **excuse)))
    {
        println!("\n{file}: {text}: is excused, but is the order of no check");
        return None;
    }
    let needed = all.iter().filter(|order| order.found).count();
    println!("{} orders weakened: {needed} found, the others excused", all.len());
    Some(executions)
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}
