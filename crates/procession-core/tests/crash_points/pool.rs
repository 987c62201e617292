//! Workers of a pool: what they take, report and acknowledge.

use procession_core::pool::{Cancelled, Fenced, Next, Outcome, Report, Task, TaskId, WorkQueue};
use procession_sys::clock::Deadline;

use crate::harness::{Run, Situation, fork};
use crate::queue::soon;

/// A pool with tasks of jobs 1, 2 …, each with so many retries.
fn work(retries: &[u32]) -> WorkQueue {
    let work = WorkQueue::new().expect("a pool");
    for (job, retries) in (1..).zip(retries) {
        let task = Task { id: TaskId { job, index: 0 }, retries: *retries };
        work.tasks().put(&task.to_bytes(), soon()).expect("room");
    }
    work
}

/// Does the next task, as a worker does.
fn do_one(work: &WorkQueue) -> u64 {
    match work.take(soon()).expect("a task") {
        Next::Task(assignment) => {
            let id = assignment.task.id;
            work.report(Report { id, outcome: Outcome::Returned }, &[]).expect("room");
            assignment.done().expect("it is mine");
            id.job
        }
        Next::Leave => panic!("nobody is to leave"),
    }
}

/// A worker that dies with the next task.
fn die_with_one(work: &WorkQueue) {
    fork(|| {
        std::mem::forget(work.take(soon()));
        // SAFETY: ends the process without dropping what it has.
        unsafe { libc::_exit(0) }
    })
    .wait();
}

/// All that is reported of the jobs, first to last, once nothing is left to do. What is lost comes after what was reported.
fn ends(work: &WorkQueue) -> Vec<(u64, Outcome)> {
    let mut ends = Vec::new();
    loop {
        let lost = work.lost().expect("sound");
        let taken = work.take(Deadline::Now);
        if let Ok(reports) = work.reports().get_many(100, Deadline::Now) {
            for report in reports {
                let report = Report::read(&report).expect("a report");
                ends.push((report.id.job, report.outcome));
            }
        }
        ends.extend(lost.into_iter().map(|lost| (lost.id.job, Outcome::Lost)));
        match taken {
            Ok(Next::Task(assignment)) => {
                ends.push((assignment.task.id.job, Outcome::Ready));
                assignment.done().expect("it is mine");
            }
            Ok(Next::Leave) => panic!("nobody is to leave"),
            Err(_) if work.tasks().unfinished() == 0 => return ends,
            Err(_) => {}
        }
    }
}

/// How a job ended first: what comes later, the pool takes no notice of. `Ready` stands for a task that was left to be done.
fn first(ends: &[(u64, Outcome)], job: u64) -> Outcome {
    ends.iter().find(|end| end.0 == job).expect("every job has an end").1
}

pub(crate) fn situations(run: &mut Run) {
    run.each_death(Situation {
        name: "pool: a task is taken, reported and acknowledged",
        prepare: || work(&[0, 0]),
        victim: |work| assert_eq!(do_one(work), 1),
        meanwhile: None,
        second: None,
        survivor: |work, died| {
            let ends = ends(work);
            let end = first(&ends, 1);
            let untouched_or = [Outcome::Returned, Outcome::Lost, Outcome::Ready];
            assert!(if died { untouched_or.contains(&end) } else { end == Outcome::Returned }, "{ends:?}");
            assert_eq!(first(&ends, 2), Outcome::Ready);
            // It is not begun by another once it was taken.
            assert!(end == Outcome::Ready || !ends.contains(&(1, Outcome::Ready)), "{ends:?}");
        },
    });
    run.each_death(Situation {
        name: "pool: a task with a retry is taken, reported and acknowledged",
        prepare: || work(&[1]),
        victim: |work| assert_eq!(do_one(work), 1),
        meanwhile: None,
        second: None,
        survivor: |work, died| {
            let ends = ends(work);
            let end = first(&ends, 1);
            assert!(end == Outcome::Returned || died && end == Outcome::Ready, "{ends:?}");
        },
    });
    run.each_death(Situation {
        name: "pool: a task that a dead worker left is reported as lost",
        prepare: || {
            let work = work(&[0, 0]);
            die_with_one(&work);
            work.tasks().trim().expect("sound");
            work
        },
        victim: |work| assert_eq!(do_one(work), 2),
        meanwhile: None,
        second: None,
        survivor: |work, died| {
            let ends = ends(work);
            assert_eq!(first(&ends, 1), Outcome::Lost);
            let end = first(&ends, 2);
            assert!(end == Outcome::Returned || died && end != Outcome::Cancelled, "{ends:?}");
        },
    });
    run.each_death(Situation {
        name: "pool: a cancelled task is passed over",
        prepare: || {
            let work = work(&[0, 0]);
            work.cancel_unless_running(1).expect("sound");
            work
        },
        victim: |work| assert_eq!(do_one(work), 2),
        meanwhile: None,
        second: None,
        survivor: |work, _| {
            let ends = ends(work);
            assert!([Outcome::Cancelled, Outcome::Lost].contains(&first(&ends, 1)), "{ends:?}");
        },
    });
    run.each_death(Situation {
        name: "pool: its own words change, and a worker leaves",
        prepare: || work(&[0, 0]),
        victim: |work| {
            work.cancel_unless_running(7).expect("sound");
            work.cancel(8).expect("sound");
            work.forget_cancelled(8);
            let Ok(Next::Task(assignment)) = work.take(soon()) else { panic!("a task") };
            let TaskId { job, index } = assignment.task.id;
            assert!(matches!(work.cancel_unless_running(job), Ok(Cancelled::Running(_))));
            let me = std::process::id();
            assert!(matches!(work.fence_if_running(me, job, Some(index)), Ok(Fenced::Yes(_))));
            work.unfence(me);
            assignment.done().expect("it is mine");
            work.release(2).expect("room");
            assert!(matches!(work.take(soon()), Ok(Next::Leave)));
            assert_eq!(work.recall(), 1);
        },
        meanwhile: None,
        second: None,
        survivor: |work, _| {
            // Whatever the words say, who is to work takes what is left.
            work.recall();
            assert!((0..3).any(|_| do_one(work) == 2));
        },
    });
    run.each_death(Situation {
        name: "pool: handles that nobody opened are declared opened",
        prepare: || work(&[0]),
        victim: |work| {
            drop(work.to_handle().expect("a handle"));
            work.disown_handles();
        },
        meanwhile: None,
        second: None,
        survivor: |work, _| {
            let again = WorkQueue::from_handle(&work.to_handle().expect("a handle")).expect("the same");
            assert_eq!(do_one(&again), 1);
        },
    });
}
