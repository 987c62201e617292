//! A manager: a dict, a list, a namespace, a queue and an object of a type of one's own, shared by processes; one of them
//! knows only the address and the key.

use procession::connection::Address;
use procession::manager::{Dict, List, Proxy, Service};
use procession::{Error, Manager, Process, Queue};
use serde::{Deserialize, Serialize};

/// Keeps scores.
struct Scores(Vec<(String, u32)>);

#[derive(Serialize, Deserialize)]
enum Request {
    Add(String, u32),
    Best,
}

impl Service for Scores {
    const NAME: &'static str = "scores";
    type Arguments = ();
    type Request = Request;
    type Response = Option<(String, u32)>;

    fn create((): ()) -> Self {
        Scores(Vec::new())
    }

    fn handle(&mut self, request: Request) -> Option<(String, u32)> {
        if let Request::Add(name, score) = request {
            self.0.push((name, score));
        }
        self.0.iter().max_by_key(|(_, score)| *score).cloned()
    }
}

type Shared = (Dict<String, usize>, List<String>, Proxy<Scores>);

fn worker((name, (lengths, log, scores)): (String, Shared)) {
    lengths.set(&name, &name.len()).expect("set");
    lengths.update("together", |sum| sum.unwrap_or(0) + name.len()).expect("update");
    scores.call(&Request::Add(name.clone(), 10 * name.len() as u32)).expect("call");
    log.push(&name).expect("push");
}

/// Another program could be on another machine.
fn visitor((address, key): (Address, Vec<u8>)) -> Result<(), String> {
    let visit = || {
        let manager = Manager::connect(&address, key.as_slice())?;
        let guestbook = manager.named_namespace("guestbook")?;
        let queue: Queue<String> = guestbook.get("queue")?.expect("a queue");
        queue.put(&guestbook.get::<String>("greeting")?.expect("a greeting"))?;
        guestbook.set("visitors", &1)?;
        Ok::<(), Error>(())
    };
    visit().map_err(|error| error.to_string())
}

fn main() -> Result<(), Error> {
    let manager = Manager::builder().register::<Scores>().start()?;
    let shared: Shared = (manager.dict()?, manager.list()?, manager.create(&())?);
    let workers: Vec<_> = ["anna", "bo", "carla"]
        .iter()
        .map(|name| Process::spawn(worker, (name.to_string(), shared.clone())))
        .collect::<Result<_, _>>()?;
    for worker in workers {
        worker.join()?;
    }
    let (lengths, log, scores) = &shared;
    log.update_all(|names| names.sort())?;
    println!("log: {:?}", log.to_vec()?);
    println!("carla has {:?} letters, all together {:?}", lengths.get("carla")?, lengths.get("together")?);
    println!("best: {:?}", scores.call(&Request::Best)?);

    let (guestbook, queue) = (manager.named_namespace("guestbook")?, manager.queue::<String>()?);
    guestbook.set("queue", &queue)?;
    guestbook.set("greeting", "hello")?;
    let reach = (manager.address().clone(), manager.authkey().as_bytes().to_vec());
    println!("visit: {:?}", Process::spawn(visitor, reach)?.join()?);
    println!("in the queue: {:?}, visitors: {:?}", queue.get()?, guestbook.get::<u32>("visitors")?);

    println!("objects: {}", manager.objects()?);
    manager.shutdown()?;
    println!("after the end: {}", guestbook.names().is_err());
    Ok(())
}
