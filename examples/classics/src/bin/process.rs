//! Processes with a name and arguments, one of them a daemon.

use std::thread::sleep;
use std::time::Duration;

use procession::process::{JoinError, getpid, getppid};
use procession::{Error, Process, current};

fn greet((greeting, times): (String, usize)) -> String {
    println!("{}: process {}, parent {}", current().name(), getpid(), getppid());
    [greeting.as_str()].repeat(times).join(" ")
}

fn sleep_for_ever(_: ()) {
    loop {
        sleep(Duration::from_secs(60));
    }
}

fn main() -> Result<(), Error> {
    println!("{}: process {}", current().name(), getpid());
    let greeter = Process::builder(greet, ("hello".to_owned(), 3)).name("greeter").start()?;
    println!("main: started {}, process {}, daemon: {}", greeter.name(), greeter.pid(), greeter.is_daemon());
    println!("main: greeter returned {:?}", greeter.join()?);
    println!("main: greeter is alive: {}, exit code {:?}", greeter.is_alive(), greeter.exitcode());

    let sleeper = Process::builder(sleep_for_ever, ()).name("sleeper").daemon(true).start()?;
    println!("main: started {}, process {}, daemon: {}", sleeper.name(), sleeper.pid(), sleeper.is_daemon());
    println!("main: sleeper is alive: {}, exit code {:?}", sleeper.is_alive(), sleeper.exitcode());
    sleeper.terminate()?;
    match sleeper.join() {
        Err(error @ JoinError::Killed { .. }) => println!("main: {error}"),
        other => panic!("the sleeper ended otherwise: {other:?}"),
    }
    println!("main: sleeper is alive: {}, exit code {:?}", sleeper.is_alive(), sleeper.exitcode());

    // A daemon that nobody ends, ends with this program.
    Process::builder(sleep_for_ever, ()).daemon(true).start()?;
    Ok(())
}
