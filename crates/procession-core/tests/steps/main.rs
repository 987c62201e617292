//! Every death at every step: a process ends itself before each change of shared memory, in turn, in each of the operations, and those who
//! survive it go on.
//!
//! A [`harness::Situation`] is run once for each step of its victim. Which steps there are is read off the sources, and
//! those that no situation came to fail the test ([`sites`]).
//!
//! Has a `main` of its own: its processes come from plain forks, which want a program without other threads.
//!
//! `ONLY=` runs the situations whose name contains it; `PAIRS=all` also those of all two deaths in a row, the second in whoever repairs what
//! the first has left, of which otherwise some are tried.

mod harness;
mod meetings;
mod objects;
mod queue;
mod sites;
mod tasks;
mod waits;

use harness::Run;

fn main() {
    let mut run = Run::new();
    queue::situations(&mut run);
    waits::situations(&mut run);
    tasks::situations(&mut run);
    objects::situations(&mut run);
    meetings::situations(&mut run);
    run.report();
    if run.is_whole() {
        sites::check(&run.visited());
    }
    println!("test steps ... ok");
}
