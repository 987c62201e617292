//! Gets of queues without a process that is left to put.

use std::time::Duration;

use procession::process::{self, Fork};
use procession::queue::GetError;
use procession::{Event, JoinableQueue, Process, Queue, RawValue, StartMethod, Value};
use test_support::{eventually, watchdog};

const METHODS: [StartMethod; 3] = [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer];

/// Longer than a consumer takes to notice.
const LONG: Duration = Duration::from_millis(1500);

fn queue() -> Queue<u32> {
    Queue::builder().abandonable(true).build().unwrap()
}

fn is_abandoned<T>(got: Result<T, GetError>) -> bool {
    matches!(got, Err(GetError::Abandoned))
}

/// Runs a test in a process that has no threads but its first one, as most programs.
fn alone(test: fn(StartMethod)) {
    for method in METHODS {
        let process = Process::spawn(test, method).unwrap();
        process.join().unwrap_or_else(|error| panic!("{method:?}: {error}"));
    }
}

fn start<A>(method: StartMethod, function: fn(A), argument: A) -> Process<()>
where
    A: serde::Serialize + serde::de::DeserializeOwned + Clone + 'static,
{
    Process::builder(function, argument).start_method(method).start().unwrap()
}

fn put_and_end(queue: Queue<u32>) {
    queue.put(&1).unwrap();
}

fn put_and_be_killed(queue: Queue<u32>) {
    queue.put(&1).unwrap();
    procession_sys::process::kill_self()
}

#[test]
fn a_get_fails_when_the_last_producer_has_ended() {
    let _watchdog = watchdog();
    alone(|method| {
        for produce in [put_and_end, put_and_be_killed] {
            let queue = queue();
            let producers = [start(method, produce, queue.clone()), start(method, produce, queue.clone())];
            // However long they take to begin: no producer is missed.
            assert_eq!((queue.get().unwrap(), queue.get().unwrap()), (1, 1));
            assert!(is_abandoned(queue.get()));
            drop(producers);
            assert!(is_abandoned(queue.get()), "and again");
        }
    });
}

#[test]
fn a_producer_that_is_started_after_all_had_ended_is_waited_for() {
    let _watchdog = watchdog();
    alone(|method| {
        let queue = queue();
        assert!(is_abandoned(queue.get()));
        let produce = |queue: Queue<u32>| {
            std::thread::sleep(LONG);
            queue.put(&1).unwrap();
        };
        let producer = start(method, produce, queue.clone());
        assert_eq!(queue.get().unwrap(), 1);
        producer.join().unwrap();
        assert!(is_abandoned(queue.get()));
    });
}

#[test]
fn a_process_that_has_the_queue_is_waited_for() {
    let _watchdog = watchdog();
    alone(|method| {
        let queue = queue();
        let may_end = Event::new().unwrap();
        let producer = start(
            method,
            |(queue, may_end): (Queue<u32>, Event)| {
                std::thread::sleep(LONG);
                queue.put(&1).unwrap();
                assert!(may_end.wait(None));
            },
            (queue.clone(), may_end.clone()),
        );
        assert_eq!(queue.get().unwrap(), 1);
        assert!(matches!(queue.get_timeout(LONG), Err(GetError::Empty)));
        may_end.set();
        assert!(is_abandoned(queue.get()));
        producer.join().unwrap();
    });
}

#[test]
fn each_of_several_consumers_is_told() {
    let _watchdog = watchdog();
    alone(|method| {
        let queue = queue();
        let told = Value::new(0_u32).unwrap();
        let consume = |(queue, told): (Queue<u32>, Value<u32>)| {
            for got in &queue {
                got.unwrap();
            }
            told.update(|told| *told += 1).unwrap();
            // A consumer that got the error keeps no other waiting while it does something else.
            eventually("all are told", || told.get().unwrap() == 4);
        };
        let consumers: Vec<_> =
            (0..4).map(|_| start(method, consume, (queue.clone(), told.clone()))).collect();
        let producer = start(method, put_and_be_killed, queue.clone());
        drop(queue);
        for consumer in consumers {
            consumer.join().unwrap();
        }
        drop(producer);
    });
}

#[test]
fn consumers_that_put_what_follows_are_not_abandoned() {
    let _watchdog = watchdog();
    alone(|method| {
        let queue = queue();
        let count = Value::new(0_u32).unwrap();
        // Each number is followed by two smaller ones, after a time in which the others find
        // nothing.
        let work = |(queue, count): (Queue<u32>, Value<u32>)| {
            for number in &queue {
                let number = number.unwrap();
                std::thread::sleep(Duration::from_millis(400));
                count.update(|count| *count += 1).unwrap();
                for _ in 0..2 * u32::from(number > 0) {
                    queue.put(&(number - 1)).unwrap();
                }
            }
        };
        queue.put(&3).unwrap();
        let workers: Vec<_> = (0..3).map(|_| start(method, work, (queue.clone(), count.clone()))).collect();
        drop(queue);
        for worker in workers {
            worker.join().unwrap();
        }
        assert_eq!(count.get().unwrap(), 15);
    });
}

#[test]
fn a_handle_on_its_way_is_waited_for() {
    let _watchdog = watchdog();
    alone(|method| {
        let (queue, carrier) = (queue(), Queue::<Queue<u32>>::unbounded().unwrap());
        carrier.put(&queue).unwrap();
        let producer = start(
            method,
            |carrier: Queue<Queue<u32>>| {
                std::thread::sleep(LONG);
                carrier.get().unwrap().put(&1).unwrap();
            },
            carrier,
        );
        assert_eq!(queue.get().unwrap(), 1);
        assert!(is_abandoned(queue.get()));
        producer.join().unwrap();
    });
}

#[test]
fn forked_processes_count_by_themselves() {
    let _watchdog = watchdog();
    alone(|_| {
        let queue = queue();
        let Fork::Parent(child) = process::fork().unwrap() else {
            // The child of a child, whose parent does not stay.
            if let Fork::Child = process::fork().unwrap() {
                std::thread::sleep(LONG);
                queue.put(&1).unwrap();
            }
            process::exit(0)
        };
        child.wait().unwrap();
        assert_eq!(queue.get().unwrap(), 1);
        assert!(is_abandoned(queue.get()));
    });
}

#[test]
fn gets_of_every_form() {
    let _watchdog = watchdog();
    let queue = queue();
    assert!(matches!(queue.try_get(), Err(GetError::Empty)), "what does not wait says nothing of others");
    assert!(is_abandoned(queue.get()));
    assert!(is_abandoned(queue.get_timeout(Duration::from_millis(20))));
    assert!(is_abandoned(queue.get_timeout(Duration::from_secs(60))));
    assert!(is_abandoned(queue.get_many(5)));
    assert!(is_abandoned(queue.get_bytes()));
    assert!(queue.iter().next().is_none());
    queue.put(&1).unwrap();
    assert_eq!(queue.get().unwrap(), 1);
    queue.shutdown(false).unwrap();
    assert!(matches!(queue.get(), Err(GetError::ShutDown)));
    let name = format!("abandoned-{}", std::process::id());
    let named = Queue::<u32>::builder().abandonable(true).create(&name).unwrap();
    assert!(is_abandoned(named.get()));
    let plain = Queue::<u32>::unbounded().unwrap();
    assert!(matches!(plain.get_timeout(LONG), Err(GetError::Empty)), "without the option");
}

#[test]
fn a_task_of_a_killed_consumer_comes_before_the_end() {
    let _watchdog = watchdog();
    alone(|method| {
        let tasks = JoinableQueue::<u32>::builder().abandonable(true).build().unwrap();
        tasks.put(&1).unwrap();
        let taken = RawValue::new(0_u32).unwrap();
        let take = |(tasks, taken): (JoinableQueue<u32>, RawValue<u32>)| {
            let _task = tasks.get().unwrap();
            taken.set(1);
            std::thread::sleep(LONG);
            procession_sys::process::kill_self()
        };
        let consumer = start(method, take, (tasks.clone(), taken.clone()));
        eventually("it is taken", || taken.get() == 1);
        tasks.get().unwrap().done().unwrap();
        assert!(is_abandoned(tasks.get().map(drop)));
        drop(consumer);
    });
}
