//! Two consumers for as long as there are tasks: the producer waits until all tasks are done, and the consumers, which
//! are daemons, end with it.

use std::thread::sleep;
use std::time::Duration;

use procession::{Error, JoinableQueue, Process};

fn consume((name, tasks): (String, JoinableQueue<u32>)) {
    loop {
        let task = tasks.get().expect("the queue is whole");
        sleep(Duration::from_millis(50)); // work
        println!("{name}: task {} is done", *task);
        // If this process died before here, the other one would get the task.
        task.done().expect("the queue is whole");
    }
}

fn main() -> Result<(), Error> {
    let tasks = JoinableQueue::unbounded()?;
    for name in ["consumer 1", "consumer 2"] {
        Process::builder(consume, (name.to_owned(), tasks.clone())).daemon(true).start()?;
    }
    for n in 1..=6 {
        tasks.put(&n)?;
    }
    println!("main: 6 tasks put");
    tasks.join()?;
    println!("main: all tasks are done, {} are left", tasks.unfinished());
    Ok(())
}
