//! Tasks that are done, lost, begun again, cancelled and taken back.

use std::time::Duration;

use procession_core::pool::{
    Assignment, Cancelled, Fenced, Lost, Next, Outcome, Report, Task, TaskId, WorkQueue, who_lost,
};
use procession_core::queue::{GetError, RingError};
use procession_sys::clock::Deadline;
use procession_sys::identity::Identity;
use test_support::fork;

fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

fn task(job: u64, index: u32) -> TaskId {
    TaskId { job, index }
}

fn submit(work: &WorkQueue, id: TaskId, retries: u32) {
    work.tasks().put(&[&Task { id, retries }.to_bytes()[..], b"payload"].concat(), soon()).expect("room");
}

fn take(work: &WorkQueue) -> Assignment {
    match work.take(soon()).expect("a task") {
        Next::Task(assignment) => assignment,
        Next::Leave => panic!("nobody is to leave"),
    }
}

fn reports(work: &WorkQueue) -> Vec<(Report, Vec<u8>)> {
    work.reports()
        .get_many(1000, Deadline::Now)
        .unwrap_or_default()
        .into_iter()
        .map(|message| (Report::read(&message).expect("a report"), message[Report::LEN..].to_vec()))
        .collect()
}

/// Runs a worker in a forked child that dies at the end of `work`, and waits for it.
fn in_a_worker_that_dies(work: impl FnOnce()) -> Identity {
    let child = fork(work);
    let identity =
        Identity::of_pid(rustix::process::Pid::from_raw(child.pid()).expect("a pid")).expect("my child");
    child.join();
    identity
}

#[test]
fn a_task_is_done_and_reported() {
    let work = WorkQueue::new().expect("a pool");
    let work = WorkQueue::from_handle(&work.to_handle().expect("a handle")).expect("the same");
    submit(&work, task(1, 2), 0);
    let assignment = take(&work);
    assert_eq!((assignment.task.id, assignment.payload()), (task(1, 2), &b"payload"[..]));
    assert_eq!(work.running().expect("sound"), [(Identity::current(), task(1, 2))]);
    let report = Report { id: assignment.task.id, outcome: Outcome::Returned };
    work.report(report, b"result").expect("room");
    assignment.done().expect("it is mine");
    assert_eq!(reports(&work), [(report, b"result".to_vec())]);
    assert_eq!(work.running().expect("sound"), []);
    assert_eq!(work.lost().expect("sound"), []);
}

#[test]
fn the_pool_finds_what_a_dead_worker_had() {
    let work = WorkQueue::new().expect("a pool");
    submit(&work, task(1, 0), 0);
    submit(&work, task(2, 0), 0);
    let dead = in_a_worker_that_dies(|| std::mem::forget(take(&work)));
    assert_eq!(work.lost().expect("sound"), [Lost { id: task(1, 0), worker: Some(dead) }]);
    assert_eq!(work.lost().expect("sound"), []);
    assert_eq!(take(&work).task.id, task(2, 0));
}

#[test]
fn the_next_worker_reports_what_a_dead_one_had() {
    let work = WorkQueue::new().expect("a pool");
    submit(&work, task(1, 0), 0);
    let dead = in_a_worker_that_dies(|| std::mem::forget(take(&work)));
    work.tasks().trim().expect("sound");
    assert!(matches!(work.take(Deadline::Now), Err(GetError::Empty)));
    let reports = reports(&work);
    assert_eq!(reports[0].0, Report { id: task(1, 0), outcome: Outcome::Lost });
    assert_eq!(who_lost(&reports[0].1), Some(dead));
}

#[test]
fn a_task_is_begun_again_as_often_as_it_may_be() {
    let work = WorkQueue::new().expect("a pool");
    submit(&work, task(1, 0), 2);
    submit(&work, task(2, 0), 2);
    for _ in 0..3 {
        assert_eq!(work.lost().expect("sound"), []);
        in_a_worker_that_dies(|| {
            let assignment = take(&work);
            assert_eq!(assignment.task.id, task(1, 0));
            std::mem::forget(assignment);
        });
    }
    assert_eq!(work.lost().expect("sound").len(), 1);
    assert_eq!(take(&work).task.id, task(2, 0));
}

#[test]
fn what_was_cancelled_is_passed_over() {
    let work = WorkQueue::new().expect("a pool");
    for job in 1..=3 {
        submit(&work, task(job, 0), 0);
    }
    assert_eq!(work.cancel_unless_running(1).expect("sound"), Cancelled::Yes);
    let second = take(&work);
    assert_eq!(second.task.id, task(2, 0));
    assert_eq!(reports(&work), [(Report { id: task(1, 0), outcome: Outcome::Cancelled }, Vec::new())]);
    work.forget_cancelled(1);
    assert_eq!(work.cancel_unless_running(2).expect("sound"), Cancelled::Running(Identity::current()));
    assert_eq!(work.cancel(2).expect("sound"), (true, vec![(Identity::current(), task(2, 0))]));
    second.done().expect("it is mine");
    work.forget_cancelled(2);
    assert_eq!(take(&work).task.id, task(3, 0));
}

#[test]
fn more_cannot_be_cancelled_than_there_is_room_for() {
    let work = WorkQueue::new().expect("a pool");
    let cancels = |job: u64| work.cancel_unless_running(job).expect("sound") == Cancelled::Yes;
    let count = (1..1_000_000).take_while(|job| cancels(*job)).count() as u64;
    assert!((60_000..999_999).contains(&count));
    (2..=count).for_each(|job| work.forget_cancelled(job));
    assert!(cancels(1_000_000));
    // Each that is forgotten makes room for one.
    assert_eq!((2..=count).filter(|job| cancels(*job)).count() as u64, count - 2);
    (1..=count).for_each(|job| work.forget_cancelled(job));
    for job in [1, count, 1_000_000] {
        submit(&work, task(job, 0), 0);
    }
    for job in [1, count] {
        let assignment = take(&work);
        assert_eq!(assignment.task.id, task(job, 0));
        assignment.done().expect("it is mine");
    }
    submit(&work, task(5, 0), 0);
    assert_eq!(take(&work).task.id, task(5, 0));
    assert_eq!(reports(&work).len(), 1);
}

#[test]
fn each_worker_decides_alone_or_the_pool_does() {
    let work = WorkQueue::new().expect("a pool");
    for job in 1..=300 {
        submit(&work, task(job, 0), 0);
    }
    work.close().expect("sound");
    let worker = {
        let work = work.clone();
        std::thread::spawn(move || {
            let mut done = Vec::new();
            while let Ok(Next::Task(assignment)) = work.take(soon()) {
                done.push(assignment.task.id.job);
                assignment.done().expect("it is mine");
            }
            done
        })
    };
    let cancelled: Vec<u64> = (1..=300)
        .rev()
        .filter(|job| work.cancel_unless_running(*job).expect("sound") == Cancelled::Yes)
        .collect();
    let done = worker.join().expect("no panic");
    let passed_over: Vec<u64> = reports(&work).iter().map(|(report, _)| report.id.job).collect();
    // What had been done by then counts as cancelled in vain.
    assert!(passed_over.iter().all(|job| cancelled.contains(job)));
    assert_eq!(passed_over.len() + done.len(), 300);
    assert!(done.iter().all(|job| !passed_over.contains(job)));
}

#[test]
fn a_job_is_not_cancelled_while_a_task_of_it_runs() {
    let work = WorkQueue::new().expect("a pool");
    for index in 0..10_000 {
        submit(&work, task(1, index), 0);
    }
    work.close().expect("sound");
    let runs = take(&work);
    let others = {
        let work = work.clone();
        std::thread::spawn(move || {
            while let Ok(Next::Task(assignment)) = work.take(Deadline::Now) {
                assignment.done().expect("it is mine");
            }
        })
    };
    while !others.is_finished() {
        assert!(matches!(work.cancel_unless_running(1).expect("sound"), Cancelled::Running(_)));
    }
    others.join().expect("no panic");
    assert_eq!(reports(&work), []);
    runs.done().expect("it is mine");
    assert_eq!(work.cancel_unless_running(1).expect("sound"), Cancelled::Yes);
}

#[test]
fn a_cancelled_task_of_a_dead_worker_is_not_begun_again() {
    let work = WorkQueue::new().expect("a pool");
    submit(&work, task(1, 0), 5);
    let dead = in_a_worker_that_dies(|| std::mem::forget(take(&work)));
    assert_eq!(work.lost().expect("sound"), []);
    assert!(work.cancel(1).expect("sound").0);
    assert_eq!(work.lost().expect("sound"), [Lost { id: task(1, 0), worker: Some(dead) }]);
}

#[test]
fn there_is_room_to_fence_all_workers_of_a_pool() {
    let work = WorkQueue::new().expect("a pool");
    submit(&work, task(1, 0), 0);
    let assignment = take(&work);
    let me = std::process::id();
    let fence = || work.fence_if_running(me, 1, Some(0)).expect("sound");
    assert!((0..500).all(|_| fence() == Fenced::Yes(task(1, 0))));
    let more = (0..10_000).take_while(|_| fence() != Fenced::NoRoom).count();
    assert!(more < 10_000);
    work.unfence(me);
    assert_eq!(fence(), Fenced::Yes(task(1, 0)));
    assignment.done().expect("it is mine");
    assert_eq!(fence(), Fenced::NotRunning);
    assert!(matches!(work.take(Deadline::Now), Ok(Next::Leave)));
}

#[test]
fn a_report_waits_for_memory_that_others_have() {
    const MIB: u64 = 1 << 20;
    let work = WorkQueue::new().expect("a pool");
    let error = |needed| RingError::Limit { used: 20 * MIB, needed, max_bytes: 20 * MIB };
    assert!(!work.may_be_freed(&error(15 * MIB)));
    // One that is being put, by another worker.
    let reserved = work.reports().reserve(8 << 20).expect("room");
    assert!(work.may_be_freed(&error(15 * MIB)) && !work.may_be_collected(&error(15 * MIB)));
    assert!(!work.may_be_freed(&error(20 * MIB)), "it would not fit alone");
    reserved.commit(Deadline::Never).expect("room");
    assert!(work.may_be_freed(&error(15 * MIB)) && work.may_be_collected(&error(15 * MIB)));
    let taken = work.reports().get_many(1, Deadline::Now).expect("a report");
    assert!(work.may_be_freed(&error(15 * MIB)) && !work.may_be_collected(&error(15 * MIB)));
    drop(taken);
    assert!(!work.may_be_freed(&error(15 * MIB)));
}

#[test]
fn so_many_workers_leave_as_are_released() {
    let work = WorkQueue::new().expect("a pool");
    submit(&work, task(1, 0), 0);
    work.release(2).expect("room");
    assert!(matches!(work.take(soon()), Ok(Next::Leave)));
    assert_eq!(work.recall(), 1);
    assert_eq!(take(&work).task.id, task(1, 0));
    assert!(matches!(work.take(Deadline::Now), Err(GetError::Empty)));
}

#[test]
fn what_has_not_begun_is_taken_back() {
    let work = WorkQueue::new().expect("a pool");
    for index in 0..3 {
        submit(&work, task(1, index), 0);
    }
    let first = take(&work);
    assert_eq!(work.take_back().expect("sound"), Some(task(1, 1)));
    assert_eq!(work.take_back().expect("sound"), Some(task(1, 2)));
    assert_eq!(work.take_back().expect("sound"), None);
    first.done().expect("it is mine");
    work.terminate().expect("sound");
    assert!(matches!(work.take(soon()), Err(GetError::ShutDown)));
}

#[test]
fn a_lent_message_outlives_its_task() {
    const LEN: usize = 1 << 20;
    let work = WorkQueue::new().expect("a pool");
    let tasks = work.tasks();
    let message = [&Task { id: task(1, 0), retries: 0 }.to_bytes()[..], &[7; LEN]].concat();
    for gives_back_first in [false, true] {
        tasks.put(&message, soon()).expect("room");
        let (delivery, lent) = take(&work).delivery.lend().expect("it is mine");
        let mut lent = lent.into_mapping().expect("room for a mapping");
        assert_eq!(work.running().expect("sound"), [(Identity::current(), task(1, 0))]);
        lent[LEN] = 8;
        let mut lent = Some(lent);
        if gives_back_first {
            lent = None;
        }
        assert_eq!(tasks.unfinished(), 1);
        delivery.done().expect("it is mine");
        assert_eq!(tasks.unfinished(), 0);
        assert_eq!(work.running().expect("sound"), []);
        // Another message does not come to lie where this one is used.
        tasks.put(&message, soon()).expect("room");
        assert!(lent.as_ref().is_none_or(|lent| lent[LEN] == 8));
        take(&work).done().expect("it is mine");
        drop(lent);
        tasks.trim().expect("sound");
        assert!(tasks.memory_used() < LEN as u64, "{} bytes are left", tasks.memory_used());
    }
}

#[test]
#[should_panic = "a lent message is written to through Message::into_mapping"]
fn a_lent_message_is_read_only() {
    let work = WorkQueue::new().expect("a pool");
    work.tasks().put(&Task { id: task(1, 0), retries: 0 }.to_bytes(), soon()).expect("room");
    let (_delivery, mut lent) = take(&work).delivery.lend().expect("it is mine");
    lent[0] = 8;
}

#[test]
fn the_task_of_a_lent_message_is_found_when_its_worker_dies() {
    let work = WorkQueue::new().expect("a pool");
    let message = [&Task { id: task(1, 0), retries: 0 }.to_bytes()[..], &[7; 1 << 20]].concat();
    work.tasks().put(&message, soon()).expect("room");
    let dead = in_a_worker_that_dies(|| std::mem::forget(take(&work).delivery.lend()));
    assert_eq!(work.lost().expect("sound"), [Lost { id: task(1, 0), worker: Some(dead) }]);
    // One that has acknowledged, and dies with the message.
    work.tasks().put(&message, soon()).expect("room");
    in_a_worker_that_dies(|| {
        let (delivery, lent) = take(&work).delivery.lend().expect("it is mine");
        delivery.done().expect("it is mine");
        std::mem::forget(lent);
    });
    assert_eq!(work.lost().expect("sound"), []);
    work.tasks().trim().expect("sound");
    assert!(work.tasks().memory_used() < 1 << 20, "{} bytes are left", work.tasks().memory_used());
}

/// Starts a process that is stopped while it has the lock under which tasks are taken.
fn stopped_with_the_lock(work: &WorkQueue) -> i32 {
    // SAFETY: the child uses only the objects that it inherits, and ends by `_exit`.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0);
    if pid == 0 {
        let stop = |_: Vec<()>| {
            // SAFETY: stops the process.
            unsafe { libc::raise(libc::SIGSTOP) }
        };
        let stopped = work.tasks().with_deliveries(Deadline::Never, |_, _| None, stop);
        // SAFETY: ends the process.
        unsafe { libc::_exit(stopped.map_or(1, |_| 0)) }
    }
    let mut status = 0;
    // SAFETY: waits until the child is stopped.
    assert_eq!(unsafe { libc::waitpid(pid, &mut status, libc::WUNTRACED) }, pid);
    assert!(libc::WIFSTOPPED(status), "{status}");
    pid
}

#[test]
fn a_stopped_process_with_the_lock_hides_no_task_and_no_death() {
    let work = WorkQueue::new().expect("a pool");
    (0..3).for_each(|index| submit(&work, task(1, index), index / 2));
    let dead = [(); 2].map(|()| in_a_worker_that_dies(|| std::mem::forget(take(&work))));
    let mine = take(&work);
    let me = Identity::current();
    let stopped = stopped_with_the_lock(&work);
    let mut running = work.running().expect("sound");
    running.sort_by_key(|(_, id)| id.index);
    assert_eq!(running, [(dead[0], task(1, 0)), (dead[1], task(1, 1)), (me, task(1, 2))]);
    let fence = |job| work.fence_if_running(me.pid_number(), job, None).expect("sound");
    assert_eq!(fence(2), Fenced::NotRunning);
    assert_eq!(fence(1), Fenced::Yes(task(1, 2)));
    work.unfence(me.pid_number());
    let all =
        [Lost { id: task(1, 0), worker: Some(dead[0]) }, Lost { id: task(1, 1), worker: Some(dead[1]) }];
    for complete in [false, false, true] {
        if complete {
            // SAFETY: continues and collects the child of this test.
            unsafe {
                assert_eq!(libc::kill(stopped, libc::SIGCONT), 0);
                assert_eq!(libc::waitpid(stopped, std::ptr::null_mut(), 0), stopped);
            }
        }
        let (mut lost, is_all) = work.find_lost().expect("sound");
        lost.sort_by_key(|lost| lost.id.index);
        assert_eq!((&lost[..], is_all), (&all[..], complete));
    }
    assert_eq!(work.find_lost().expect("sound"), (vec![], true));
    mine.done().expect("it is mine");
}
