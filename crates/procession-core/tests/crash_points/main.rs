//! Every death at every step: a process ends itself before each change of shared memory, in turn, in each of the operations, and those who
//! survive it go on.
//!
//! A [`harness::Situation`] is run once for each step of its victim. Which steps there are is read off the sources, and
//! those that no situation came to fail the test ([`sites`]).
//!
//! Beside that, [`stops`]: a process is stopped at each step, and others continue. And [`wakes`]:
//! no process dies, and none checks again while it sleeps.
//!
//! Has a `main` of its own: its processes come from plain forks, which want a program without other threads.
//!
//! `ONLY=` runs the situations whose name contains it; `PAIRS=all` also those of all two deaths in a row, the second in whoever repairs what
//! the first has left, of which otherwise some are tried.

mod harness;
mod objects;
mod pool;
mod queue;
mod sites;
mod stops;
mod tasks;
mod wakes;

use harness::Run;

fn main() {
    let mut run = Run::new();
    queue::situations(&mut run);
    tasks::situations(&mut run);
    pool::situations(&mut run);
    objects::situations(&mut run);
    stops::situations(&mut run);
    wakes::situations(&mut run);
    run.report();
    if run.is_whole() {
        sites::check(&run.visited());
    }
    println!("test steps ... ok");
}
