//! Explores the models.
use procession_models::{check::*, machine::*, wait::*};
fn main() {
    let a: Vec<usize> = std::env::args().skip(1).map(|a| a.parse().unwrap()).collect();
    let deaths = a[0] as u8;
    for wake in [Wake::Fenced, Wake::AfterSeqCst, Wake::Settled] { for all in [false, true] { for slices in [false, true] {
    let base = Waiting { waiters: a[1], wakers: a[2], wake, all, slices, mutant: None };
    let machine = Machine { protocol: base.clone(), deaths };
    if slices { let o = check_that_all_ends(&machine); 
    println!("{wake:?} all {all} ends: states {} depth {} {:?}", o.states, o.depth, o.time);
    if let Some(c) = o.counterexample { println!("{c}"); return; }
    }
    let o = check(machine, 2);
    println!("{wake:?} all {all} slices {slices} states {} depth {} {:?}", o.states, o.depth, o.time);
    if let Some(c) = o.counterexample { println!("{c}"); return; }
    if !slices { 
    for mu in [Mutant::NoSecondLook, Mutant::TicketAfterArrival, Mutant::ArrivalsStored, Mutant::NoEpoch, Mutant::LookBeforeChange, Mutant::NoBarrier, Mutant::SettlesTooShort] {
        let o = check(Machine { protocol: Waiting { mutant: Some(mu), ..base.clone() }, deaths }, 2);
        println!("{mu:?} states {} depth {} {:?} {}", o.states, o.depth, o.time, o.counterexample.map_or("NOT FOUND".into(), |c| c.what));
    } } }}}
}
