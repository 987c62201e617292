//! Explores the models.
use procession_models::{check::*, machine::*, delivery::*};
fn main() {
    let a: Vec<String> = std::env::args().skip(1).collect();
    let deaths = a[0].parse().unwrap();
    let producers = a[1].split(',').map(|p| p.bytes().map(|b| b == b'L').collect()).collect();
    let consumers = a[2].bytes().map(|b| match b { b'P' => Use::Plain, b'D' => Use::Done, b'G' => Use::GiveBack, _ => Use::Own }).collect();
    let base = Tasks { producers, consumers, joinable: a[3] != "n", joiner: a[3] == "j", mutant: None };
    let o = check(Machine { protocol: base.clone(), deaths }, 2);
    println!("states {} depth {} {:?}", o.states, o.depth, o.time);
    if let Some(c) = o.counterexample { println!("{c}"); return; }
    if a.len() > 4 { return }
    for mu in [Mutant::QueuedAfterTail, Mutant::SeqAfterQueued, Mutant::TakenAfterHead, Mutant::UnpublishedTakesCount, Mutant::FreedBeforeRead, Mutant::NotRebuilt, Mutant::HeldAfterHead, Mutant::ChargedAfterHead, Mutant::ChargeNotUndone, Mutant::SweepNotAnnounced, Mutant::TakesNotUndone, Mutant::ReturnedBeforeCounted, Mutant::TailNotLookedAtAgain] {
        let o = check(Machine { protocol: Tasks { mutant: Some(mu), ..base.clone() }, deaths }, 2);
        println!("{mu:?} states {} depth {} {:?} {}", o.states, o.depth, o.time, o.counterexample.map_or("NOT FOUND".into(), |c| c.what));
    }
}
