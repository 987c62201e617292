//! Value, Array and their raw forms.

use procession::shared::{Array, RawArray, RawValue, Value};
use procession::sync::{CreateError, Event, LockError, OpenError};
use test_support::{fork, sleep_until_killed, watchdog};

#[derive(Clone, Copy, Debug, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Point {
    x: f64,
    y: f64,
    name: [u8; 8],
}

#[test]
fn values_of_several_types() {
    let number = Value::new(-7_i32).unwrap();
    assert_eq!(number.get().unwrap(), -7);
    number.set(i32::MAX).unwrap();
    assert_eq!(number.get().unwrap(), i32::MAX);
    assert_eq!(number.update(|n| std::mem::replace(n, 5)).unwrap(), i32::MAX);
    assert_eq!(number.get().unwrap(), 5);
    let point = Point { x: 1.5, y: -0.0, name: *b"somewher" };
    let shared = Value::new(point).unwrap();
    shared.lock().unwrap().x = 2.5;
    assert_eq!(shared.get().unwrap(), Point { x: 2.5, ..point });
    assert_eq!(Value::new(3_u8).unwrap().get().unwrap(), 3);
    assert_eq!(RawValue::new(point).unwrap().get(), point);
    assert_eq!(RawValue::new([1_u8, 2, 3]).unwrap().get(), [1, 2, 3]);
    assert_eq!(RawValue::new(-3_i16).unwrap().get(), -3);
}

#[test]
fn four_processes_add_to_a_value_and_an_array() {
    let _dog = watchdog();
    const ROUNDS: u64 = 10_000;
    let (value, array) = (Value::new(0_u64).unwrap(), Array::<u64>::new(3).unwrap());
    let work = || {
        for i in 0..ROUNDS {
            value.update(|n| *n += 1).unwrap();
            array.update(|array| array[i as usize % 3] += 1).unwrap();
        }
    };
    let children: Vec<_> = (0..4).map(|_| fork(work)).collect();
    children.into_iter().for_each(|child| child.join());
    assert_eq!(value.get().unwrap(), 4 * ROUNDS);
    assert_eq!(array.to_vec().unwrap().iter().sum::<u64>(), 4 * ROUNDS);
}

#[test]
fn arrays_as_slices() {
    let array = Array::from_slice(&[3_i64, 1, 2]).unwrap();
    assert_eq!((array.len(), array.get(1).unwrap()), (3, 1));
    array.set(2, 9).unwrap();
    {
        let mut guard = array.lock().unwrap();
        guard.sort_unstable();
        assert_eq!(guard[1..], [3, 9]);
    }
    assert_eq!(array.to_vec().unwrap(), [1, 3, 9]);
    let raw = RawArray::from_slice(&[1_u16, 2, 3]).unwrap();
    raw.set(0, 7);
    raw.write(1, &[8, 9]);
    let mut two = [0; 2];
    raw.read(1, &mut two);
    assert_eq!((raw.get(0), two, raw.to_vec()), (7, [8, 9], vec![7, 8, 9]));
    assert_eq!(raw.iter().sum::<u16>(), 24);
    let bytes = RawArray::from_slice(b"some bytes").unwrap();
    assert_eq!(bytes.to_vec(), b"some bytes");
}

#[test]
fn empty_arrays() {
    let array = Array::<f32>::new(0).unwrap();
    assert!(array.is_empty() && array.to_vec().unwrap().is_empty());
    assert!(array.lock().unwrap().is_empty());
    let raw = RawArray::<u8>::from_slice(&[]).unwrap();
    assert!(raw.is_empty() && raw.to_vec().is_empty() && raw.iter().next().is_none());
}

#[test]
fn an_index_out_of_bounds_panics_and_leaves_the_lock_free() {
    let array = Array::<u32>::new(4).unwrap();
    let raw = RawArray::<u32>::new(4).unwrap();
    let panics = |work: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).is_err();
    assert!(panics(&|| drop(array.get(4))));
    assert!(panics(&|| drop(array.set(usize::MAX, 1))));
    assert!(panics(&|| assert_eq!(raw.get(4), 0)));
    assert!(panics(&|| raw.set(usize::MAX, 1)));
    assert!(panics(&|| raw.write(3, &[1, 2])));
    assert!(panics(&|| raw.read(5, &mut [])));
    raw.read(4, &mut []);
    assert!(array.try_lock().is_ok());
}

#[test]
fn large_arrays_have_memory_of_their_own() {
    let _dog = watchdog();
    let array = Array::<u64>::new(1 << 20).unwrap();
    fork(|| array.set((1 << 20) - 1, 42).unwrap()).join();
    assert_eq!(array.get((1 << 20) - 1).unwrap(), 42);
    assert_eq!(array.to_vec().unwrap().iter().sum::<u64>(), 42);
}

#[test]
fn more_than_there_is_is_an_error() {
    let more_than_memory = procession_sys::memory::limit() as usize + 1;
    for len in [usize::MAX, usize::MAX / 8, usize::MAX / 64, 1 << 50, 1 << 40, more_than_memory] {
        match Array::<u64>::new(len) {
            Err(CreateError::Invalid { .. } | CreateError::System { .. }) => {}
            other => panic!("{len}: {other:?}"),
        }
        assert!(RawArray::<u64>::new(len).is_err());
    }
}

#[test]
fn a_second_guard_in_one_thread_is_an_error() {
    let _dog = watchdog();
    let (value, array) = (Value::new(1_u8).unwrap(), Array::<u8>::new(1).unwrap());
    let guards = (value.lock().unwrap(), array.lock().unwrap());
    assert!(matches!(value.lock(), Err(LockError::WouldDeadlock)));
    assert!(matches!(value.get(), Err(LockError::WouldDeadlock)));
    assert!(matches!(value.clone().set(2), Err(LockError::WouldDeadlock)));
    assert!(matches!(array.to_vec(), Err(LockError::WouldDeadlock)));
    std::thread::scope(|scope| {
        scope.spawn(|| assert!(matches!(value.try_lock(), Err(LockError::WouldBlock))));
    });
    let copy = Value::<u8>::from_bytes(&value.to_bytes().unwrap()).unwrap();
    assert!(matches!(copy.try_lock(), Err(LockError::WouldDeadlock)));
    drop(guards);
    assert_eq!(value.get().unwrap(), 1);
}

#[test]
fn a_death_in_the_middle_of_a_change_is_told() {
    let _dog = watchdog();
    for round in 0..20 {
        let (value, changing) = (Value::new([1_u64; 2]).unwrap(), Event::new().unwrap());
        let child = fork(|| {
            let _ = value.update(|value| {
                value[0] = 2;
                changing.set();
                sleep_until_killed();
            });
        });
        changing.wait(None);
        child.kill();
        match round % 4 {
            0 => match value.lock() {
                Err(LockError::OwnerDied(mut guard)) => {
                    assert_eq!(*guard, [2, 1]);
                    assert!(guard.dead_owner().is_some());
                    *guard = [2, 2];
                }
                other => panic!("{other:?}"),
            },
            2 => match value.update(|value| std::mem::replace(value, [2, 2])) {
                Err(LockError::OwnerDied([2, 1])) => {}
                other => panic!("{other:?}"),
            },
            1 => {
                assert_eq!(value.get().unwrap_err().recover().unwrap(), [2, 1]);
                value.set([2, 2]).unwrap();
            }
            _ => assert!(matches!(value.set([2, 2]), Err(LockError::OwnerDied(())))),
        }
        assert_eq!(value.get().unwrap(), [2, 2]);
    }
}

#[test]
fn the_handle_of_another_type_is_refused() {
    let value = Value::new(1_u64).unwrap();
    let bytes = value.to_bytes().unwrap();
    assert!(Value::<u64>::from_bytes(&bytes).is_ok());
    assert!(matches!(Value::<u32>::from_bytes(&bytes), Err(OpenError::Malformed(_))));
    assert!(matches!(RawValue::<u64>::from_bytes(&bytes), Err(OpenError::Malformed(_))));
    let array = Array::<u64>::new(2).unwrap().to_bytes().unwrap();
    assert!(matches!(Value::<u64>::from_bytes(&array), Err(OpenError::Malformed(_))));
    assert!(procession::sync::Lock::from_bytes(&bytes).is_err());
}
