//! Managers: what their objects do, and that proxies travel.

use std::collections::HashMap;

use procession::manager::{CallError, Dict, List, Manager, ManagerError, Namespace, Proxy, Service};
use procession::{JoinableQueue, Lock, Pipe, Process, Queue, StartMethod, Value};
use serde::{Deserialize, Serialize};
use test_support::{AmongThreads, eventually, watchdog};

/// An object that counts, and can be told to misbehave.
struct Counter {
    count: i64,
    lists: Vec<List<u32>>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Add(i64),
    Panic(String),
    Keep(List<u32>),
    PushToKept(u32),
    TakeKept,
}

#[derive(Debug, Serialize, Deserialize)]
enum Response {
    Count(i64),
    List(Option<List<u32>>),
}

impl Service for Counter {
    const NAME: &'static str = "counter";
    type Arguments = i64;
    type Request = Request;
    type Response = Response;

    fn create(count: i64) -> Self {
        assert!(count >= 0, "a counter below zero");
        Counter { count, lists: Vec::new() }
    }

    fn handle(&mut self, request: Request) -> Response {
        match request {
            Request::Add(n) => self.count += n,
            Request::Panic(message) => {
                self.count = -1;
                panic!("{message}");
            }
            Request::Keep(list) => self.lists.push(list),
            Request::PushToKept(n) => self.lists.iter().for_each(|list| list.push(&n).expect("push")),
            Request::TakeKept => return Response::List(self.lists.pop()),
        }
        Response::Count(self.count)
    }
}

#[test]
fn a_dict_is_a_dict() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let dict: Dict<String, Vec<u32>> = manager.dict().unwrap();
    assert!(dict.is_empty().unwrap());
    assert_eq!(dict.insert("b", &vec![1]).unwrap(), None);
    assert_eq!(dict.insert("b", &vec![2]).unwrap(), Some(vec![1]));
    dict.set("a", &vec![]).unwrap();
    assert_eq!(dict.get("b").unwrap(), Some(vec![2]));
    assert_eq!(dict.get("c").unwrap(), None);
    assert!(dict.contains_key("a").unwrap());
    assert!(!dict.contains_key("c").unwrap());
    assert_eq!(dict.get_or_insert("b", &vec![9]).unwrap(), [2]);
    assert_eq!(dict.get_or_insert("c", &vec![9]).unwrap(), [9]);
    assert_eq!(dict.len().unwrap(), 3);
    // In the order in which the keys came.
    assert_eq!(dict.keys().unwrap(), ["b", "a", "c"]);
    assert_eq!(dict.values().unwrap(), [vec![2], vec![], vec![9]]);
    let items = [("b".to_owned(), vec![2]), ("a".to_owned(), vec![]), ("c".to_owned(), vec![9])];
    assert_eq!(dict.items().unwrap(), items);
    assert_eq!(dict.remove("a").unwrap(), Some(vec![]));
    assert_eq!(dict.remove("a").unwrap(), None);
    let more = HashMap::from([("d".to_owned(), vec![4]), ("b".to_owned(), vec![7])]);
    dict.extend(&more).unwrap();
    assert_eq!(dict.get("b").unwrap(), Some(vec![7]));
    assert_eq!(dict.len().unwrap(), 3);
    let grown = dict.update("d", |old| [old.unwrap(), vec![5]].concat()).unwrap();
    assert_eq!(grown, [4, 5]);
    assert_eq!(dict.update("new", |old| vec![u32::from(old.is_none())]).unwrap(), [1]);
    dict.clear().unwrap();
    assert_eq!(dict.keys().unwrap(), Vec::<String>::new());
}

#[test]
fn a_list_is_a_list() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let list: List<String> = manager.list().unwrap();
    let text = |text: &str| text.to_owned();
    assert_eq!(list.pop().unwrap(), None);
    list.push(&text("b")).unwrap();
    list.extend(&[text("c"), text("d")]).unwrap();
    list.insert(0, &text("a")).unwrap();
    list.insert(4, &text("e")).unwrap();
    assert_eq!(list.to_vec().unwrap(), ["a", "b", "c", "d", "e"]);
    assert_eq!(list.get(2).unwrap().as_deref(), Some("c"));
    assert_eq!(list.get(5).unwrap(), None);
    list.set(2, &text("C")).unwrap();
    assert_eq!(list.remove(0).unwrap(), "a");
    assert_eq!(list.pop().unwrap().as_deref(), Some("e"));
    assert_eq!(list.len().unwrap(), 3);
    assert_eq!(list.update(0, |b| b + "!").unwrap(), "b!");
    let longest = list.update_all(|list| {
        list.sort();
        list.iter().map(String::len).max()
    });
    assert_eq!(longest.unwrap(), Some(2));
    assert_eq!(list.to_vec().unwrap(), ["C", "b!", "d"]);
    for wrong in [
        list.set(3, &text("x")),
        list.insert(4, &text("x")),
        list.remove(3).map(drop),
        list.update(3, |_| unreachable!()).map(drop),
    ] {
        let error = wrong.unwrap_err();
        assert!(matches!(error, CallError::Index { len: 3, .. }), "{error}");
    }
    list.clear().unwrap();
    assert!(list.is_empty().unwrap());

    let numbers: List<u32> = manager.list().unwrap();
    let many: Vec<u32> = (0..1000).collect();
    numbers.extend(&many).unwrap();
    assert_eq!(numbers.iter().collect::<Result<Vec<_>, _>>().unwrap(), many);
    assert_eq!((&numbers).into_iter().count(), 1000);
}

#[test]
fn a_namespace_has_values_of_all_types() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let namespace: Namespace = manager.namespace().unwrap();
    namespace.set("x", &1.5_f64).unwrap();
    namespace.set("name", "a text").unwrap();
    assert_eq!(namespace.get::<f64>("x").unwrap(), Some(1.5));
    assert_eq!(namespace.get::<String>("name").unwrap().as_deref(), Some("a text"));
    assert_eq!(namespace.get::<u8>("none").unwrap(), None);
    let error = namespace.get::<String>("x").unwrap_err();
    assert!(matches!(error, CallError::Deserialize { len: 9, .. }), "{error}");
    // Any integer that it fits into will do.
    namespace.set("five", &5).unwrap();
    assert_eq!(namespace.get::<u8>("five").unwrap(), Some(5));
    namespace.set("five", &-5_i64).unwrap();
    assert!(matches!(namespace.get::<u8>("five"), Err(CallError::Deserialize { .. })));
    assert!(namespace.remove("five").unwrap());
    assert_eq!(namespace.update("n", |n: Option<u32>| n.unwrap_or(7) + 1).unwrap(), 8);
    assert_eq!(namespace.names().unwrap(), ["x", "name", "n"]);
    assert!(namespace.remove("x").unwrap() && !namespace.remove("x").unwrap());
    assert!(!namespace.contains("x").unwrap() && namespace.contains("n").unwrap());
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Either {
    Number(u64),
    Text(String),
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Skips {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    note: Option<u8>,
    a: u8,
}

/// A type whose requests, responses and arguments are of these types.
struct Echo<A, Q, R>(std::marker::PhantomData<(A, Q, R)>);

macro_rules! echo {
    ($name:literal, $arguments:ty, $request:ty, $response:ty, $answer:expr) => {
        impl Service for Echo<$arguments, $request, $response> {
            const NAME: &'static str = $name;
            type Arguments = $arguments;
            type Request = $request;
            type Response = $response;

            fn create(_: $arguments) -> Self {
                Echo(std::marker::PhantomData)
            }

            fn handle(&mut self, _: $request) -> $response {
                $answer
            }
        }
    };
}

echo!("arguments", Either, u8, u8, 1);
echo!("request", u8, Either, u8, 1);
echo!("response", u8, u8, Either, panic!("the call was to be refused"));

#[test]
fn what_could_not_be_read_back_is_not_kept() {
    let _watchdog = watchdog();
    fn refused<T>(result: Result<T, CallError>) {
        match result.map(drop) {
            Err(CallError::Serialize { cause, .. }) => {
                assert!(cause.to_string().contains("could not be read back"), "{cause}");
            }
            other => panic!("{other:?}"),
        }
    }
    let manager = Manager::builder()
        .register::<Echo<Either, u8, u8>>()
        .register::<Echo<u8, Either, u8>>()
        .register::<Echo<u8, u8, Either>>()
        .start()
        .unwrap();
    let either = Either::Number(1);
    let list = manager.list::<Either>().unwrap();
    refused(list.push(&either));
    refused(list.insert(0, &either));
    refused(list.set(0, &either));
    refused(list.extend([&either]));
    refused(list.update_all(|list| list.push(either.clone())));
    assert!(list.is_empty().unwrap());
    let dict = manager.dict::<u8, Either>().unwrap();
    refused(dict.set(&1, &either));
    refused(dict.insert(&1, &either));
    refused(dict.get_or_insert(&1, &either));
    refused(dict.extend([(&1, &either)]));
    refused(dict.update(&1, |_| either.clone()));
    assert!(dict.is_empty().unwrap());
    let dict = manager.dict::<Either, u8>().unwrap();
    refused(dict.set(&either, &1));
    refused(dict.update(&either, |_| 1));
    assert!(dict.is_empty().unwrap());
    refused(manager.create::<Echo<Either, u8, u8>>(&either));
    refused(manager.create::<Echo<u8, Either, u8>>(&1).unwrap().call(&either));
    refused(manager.create::<Echo<u8, u8, Either>>(&1).unwrap().call(&1));

    // A namespace says what its values are.
    let namespace = manager.namespace().unwrap();
    for value in [either, Either::Text("a".into())] {
        namespace.set("value", &value).unwrap();
        assert_eq!(namespace.get("value").unwrap(), Some(value));
    }
    for value in [Skips { note: None, a: 1 }, Skips { note: Some(2), a: 1 }] {
        namespace.set("value", &value).unwrap();
        assert_eq!(namespace.get("value").unwrap(), Some(value));
    }
}

#[test]
fn a_registered_type_answers_and_outlives_its_panics() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Counter>().start().unwrap();
    let counter: Proxy<Counter> = manager.create(&5).unwrap();
    assert!(matches!(counter.call(&Request::Add(2)), Ok(Response::Count(7))));
    let error = counter.call(&Request::Panic("on purpose".into())).unwrap_err();
    let CallError::Panicked { message, location, .. } = &error else { panic!("{error}") };
    assert_eq!(message, "on purpose");
    assert!(location.as_ref().unwrap().contains(file!()), "{location:?}");
    assert!(error.to_string().contains("on purpose"), "{error}");
    // As the panic left it.
    assert!(matches!(counter.call(&Request::Add(0)), Ok(Response::Count(-1))));

    let error = manager.create::<Counter>(&-1).unwrap_err();
    assert!(
        matches!(&error, CallError::Panicked { message, .. } if message == "a counter below zero"),
        "{error}"
    );
    assert_eq!(manager.objects().unwrap(), 1);
    let plain = Manager::new().unwrap();
    let error = plain.create::<Counter>(&1).unwrap_err();
    assert!(matches!(&error, CallError::NotRegistered { .. }), "{error}");
    let error = Manager::builder().register::<Counter>().register::<Counter>().start().unwrap_err();
    assert!(matches!(&error, ManagerError::Register { name: "counter", .. }), "{error}");
}

#[test]
fn a_handler_may_use_its_own_manager() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Counter>().start().unwrap();
    let counter: Proxy<Counter> = manager.create(&0).unwrap();
    let list = manager.list().unwrap();
    counter.call(&Request::Keep(list.clone())).unwrap();
    counter.call(&Request::PushToKept(3)).unwrap();
    assert_eq!(list.to_vec().unwrap(), [3]);
    drop(list);
    assert_eq!(manager.objects().unwrap(), 2);
    let Response::List(Some(list)) = counter.call(&Request::TakeKept).unwrap() else { panic!("no list") };
    assert_eq!(list.to_vec().unwrap(), [3]);
    drop(list);
    eventually("the list is gone", || manager.objects().unwrap() == 1);
}

fn work((dict, list, counter, tasks, lock): Everything) -> List<u32> {
    let _guard = lock.lock().unwrap();
    dict.update(&1, |n| n.unwrap_or(0) + 1).unwrap();
    list.push(&7).unwrap();
    counter.call(&Request::Add(1)).unwrap();
    tasks.put(&list).unwrap();
    list
}

type Everything = (Dict<u32, u32>, List<u32>, Proxy<Counter>, Queue<List<u32>>, Lock);

#[test]
fn proxies_go_into_processes_however_they_start() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Counter>().start().unwrap();
    let everything: Everything = (
        manager.dict().unwrap(),
        manager.list().unwrap(),
        manager.create(&0).unwrap(),
        manager.queue().unwrap(),
        manager.lock().unwrap(),
    );
    for (n, method) in (1..).zip(StartMethod::ALL) {
        let process = Process::builder(work, everything.clone()).start_method(method).among_threads();
        let list = process.start().unwrap().join().unwrap();
        assert!(list.is_same(&everything.1));
        assert_eq!(list.len().unwrap(), n);
        assert!(everything.3.get().unwrap().is_same(&list));
        assert_eq!(everything.0.get(&1).unwrap(), Some(n as u32));
    }
    assert!(matches!(everything.2.call(&Request::Add(0)), Ok(Response::Count(3))));
    assert_eq!(manager.objects().unwrap(), 3);
}

#[test]
fn a_proxy_on_its_way_keeps_its_object() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let queue: Queue<List<u32>> = manager.queue().unwrap();
    let tasks: JoinableQueue<List<u32>> = manager.joinable_queue().unwrap();
    let (receiver, sender) = Pipe::one_way::<List<u32>>().unwrap();
    for n in 0..3 {
        let list = manager.list().unwrap();
        list.push(&n).unwrap();
        match n {
            0 => queue.put(&list).unwrap(),
            1 => tasks.put(&list).unwrap(),
            _ => sender.send(&list).unwrap(),
        }
    }
    assert_eq!(manager.objects().unwrap(), 3);
    assert_eq!(queue.get().unwrap().to_vec().unwrap(), [0]);
    eventually("the first is gone", || manager.objects().unwrap() == 2);
    // A task that is handed out again is read again.
    for _ in 0..3 {
        let delivery = tasks.get().unwrap();
        assert_eq!(delivery.to_vec().unwrap(), [1]);
        drop(delivery);
        assert_eq!(manager.objects().unwrap(), 2);
    }
    tasks.get().unwrap().done().unwrap();
    eventually("the second is gone", || manager.objects().unwrap() == 1);
    assert_eq!(receiver.recv().unwrap().to_vec().unwrap(), [2]);
    eventually("the third is gone", || manager.objects().unwrap() == 0);
    // A put that fails leaves nothing either.
    queue.shutdown(false).unwrap();
    let list = manager.list().unwrap();
    assert!(queue.put(&list).is_err());
    drop(list);
    eventually("the fourth is gone", || manager.objects().unwrap() == 0);
}

#[test]
fn objects_within_objects_are_counted() {
    let _watchdog = watchdog();
    let manager = Manager::new().unwrap();
    let outer: Dict<String, Dict<String, List<u32>>> = manager.dict().unwrap();
    let inner = manager.dict().unwrap();
    let list = manager.list().unwrap();
    list.push(&1).unwrap();
    inner.set("list", &list).unwrap();
    outer.set("inner", &inner).unwrap();
    drop((inner, list));
    assert_eq!(manager.objects().unwrap(), 3);
    let list = outer.get("inner").unwrap().unwrap().get("list").unwrap().unwrap();
    assert_eq!(list.to_vec().unwrap(), [1]);
    assert_eq!(outer.values().unwrap().len(), 1);
    outer.clear().unwrap();
    eventually("only the list is left with its dict", || manager.objects().unwrap() == 2);
    assert_eq!(list.to_vec().unwrap(), [1]);
    drop(list);
    eventually("the list is gone", || manager.objects().unwrap() == 1);

    // A long chain ends without using up a stack.
    type Link = List<Box<Chain>>;
    #[derive(Serialize, Deserialize)]
    struct Chain(Link);
    let mut first: Link = manager.list().unwrap();
    for _ in 0..20_000 {
        let next = manager.list().unwrap();
        next.push(&Box::new(Chain(first))).unwrap();
        first = next;
    }
    assert_eq!(manager.objects().unwrap(), 20_002);
    drop(first);
    eventually("the chain is gone", || manager.objects().unwrap() == 1);
}

#[test]
fn shared_memory_in_a_dict_outlives_who_put_it_there() {
    let _watchdog = watchdog();
    fn fill(namespace: Namespace) {
        let (queue, value) = (Queue::<u32>::unbounded().unwrap(), Value::new(0_u32).unwrap());
        queue.put(&5).unwrap();
        value.set(6).unwrap();
        namespace.set("both", &(queue, value)).unwrap();
        let (receiver, sender) = Pipe::one_way::<u32>().unwrap();
        sender.send(&7).unwrap();
        namespace.set("pipe", &receiver).unwrap();
    }
    let manager = Manager::new().unwrap();
    let namespace = manager.namespace().unwrap();
    Process::spawn(fill, namespace.clone()).unwrap().join().unwrap();
    for _ in 0..2 {
        let (queue, value) = namespace.get::<(Queue<u32>, Value<u32>)>("both").unwrap().unwrap();
        assert_eq!((queue.len(), value.get().unwrap()), (1, 6));
    }
    let receiver = namespace.get::<procession::Receiver<u32>>("pipe").unwrap().unwrap();
    assert_eq!(receiver.recv().unwrap(), 7);
    let dict: Dict<String, Lock> = manager.dict().unwrap();
    dict.set("lock", &manager.lock().unwrap()).unwrap();
    let (one, other) = (dict.get("lock").unwrap().unwrap(), dict.get("lock").unwrap().unwrap());
    let _guard = one.lock().unwrap();
    assert!(other.try_lock().is_err());
    let error = manager.dict::<Lock, u8>().unwrap().set(&one, &1).unwrap_err();
    assert!(matches!(&error, CallError::Send { .. }), "{error}");
}

#[test]
fn names_are_found_by_all() {
    let _watchdog = watchdog();
    let manager = Manager::builder().register::<Counter>().start().unwrap();
    let other = Manager::connect(manager.address(), manager.authkey().clone()).unwrap();
    manager.named_list::<u32>("list").unwrap().push(&1).unwrap();
    assert_eq!(other.named_list::<u32>("list").unwrap().to_vec().unwrap(), [1]);
    let counter = manager.named::<Counter>("counter", &3).unwrap();
    let same = other.named::<Counter>("counter", &100).unwrap();
    assert!(counter.is_same(&same));
    assert!(matches!(same.call(&Request::Add(1)), Ok(Response::Count(4))));
    let error = other.named_dict::<u8, u8>("list").unwrap_err();
    assert!(matches!(&error, CallError::Kind { .. }), "{error}");
    assert!(error.to_string().contains("is a list, not a dict"), "{error}");
    assert!(manager.named::<Counter>("bad", &-1).is_err());
    assert_eq!(manager.objects().unwrap(), 2);
    assert!(other.forget("list").unwrap());
    assert!(!other.forget("list").unwrap());
    eventually("the list is gone", || manager.objects().unwrap() == 1);
    assert!(other.named_list::<u32>("list").unwrap().is_empty().unwrap());
}

#[test]
fn updates_are_one_step() {
    let _watchdog = watchdog();
    const EACH: u32 = 100;
    let manager = Manager::new().unwrap();
    let (dict, list) = (manager.dict::<u8, u32>().unwrap(), manager.list::<u32>().unwrap());
    list.push(&0).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let (dict, list) = (dict.clone(), list.clone());
            scope.spawn(move || {
                for _ in 0..EACH {
                    dict.update(&0, |n| n.unwrap_or(0) + 1).unwrap();
                    list.update(0, |n| n + 1).unwrap();
                    list.update_all(|list| list[0] += 1).unwrap();
                }
            });
        }
    });
    assert_eq!(dict.get(&0).unwrap(), Some(4 * EACH));
    assert_eq!(list.to_vec().unwrap(), [8 * EACH]);
}
