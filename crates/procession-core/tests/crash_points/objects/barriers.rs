//! Parties that meet, or do not.

use super::*;

fn arrive(with: &With<Barrier>) -> Result<u32, BarrierError> {
    with.object.wait(soon(), None, &mut || false)
}

/// After a reset two meet again, and again.
fn barrier_works(with: &With<Barrier>) {
    with.object.reset();
    for _ in 0..3 {
        let other = fork(|| {
            arrive(with).expect("both live");
        });
        arrive(with).expect("both live");
        assert_eq!(other.wait(), End::Done);
    }
}

/// Arrives, and is told soon how it went, whoever died.
fn arrive_and_be_told(with: &With<Barrier>) {
    let started = Instant::now();
    let _ = arrive(with);
    assert!(started.elapsed() < LONG / 2, "nobody told this party");
}

fn two() -> With<Barrier> {
    with(Barrier::new(2).expect("a barrier"))
}

pub(super) fn situations(run: &mut Run) {
    run.each_death(Situation {
        name: "barrier: the victim is first",
        prepare: two,
        victim: |with| {
            let _ = arrive(with);
        },
        meanwhile: Some(|with| {
            // Broken when the victim has died, or released if it died after the round was complete.
            let _ = with.object.wait(Deadline::after(Duration::from_millis(400)), None, &mut || false);
        }),
        second: None,
        survivor: |with, _| barrier_works(with),
    });
    run.each_death(Situation {
        name: "barrier: the victim is last, and acts",
        prepare: || {
            two().beside(|with| {
                let _ = with.object.wait(Deadline::after(Duration::from_millis(400)), None, &mut || false);
            })
        },
        victim: |with| {
            with.object.wait(soon(), Some(&mut || true), &mut || false).expect("both live");
        },
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            barrier_works(with);
        },
    });
    run.each_death(Situation {
        name: "barrier: the victim is last",
        prepare: || two().beside(arrive_and_be_told),
        victim: |with| {
            arrive(with).expect("both live");
        },
        meanwhile: None,
        second: Some(|with| with.object.abort()),
        survivor: |with, died| {
            if died && with.object.waiting() == 1 {
                // It has died before it arrived.
                with.object.abort();
            }
            with.others_are_served();
            barrier_works(with);
        },
    });
    run.each_death(Situation {
        name: "barrier: a party that died is found",
        prepare: || {
            let with = two();
            let dead = fork(|| {
                let _ = arrive(&with);
            });
            dead.until_asleep();
            dead.kill();
            std::thread::sleep(Duration::from_millis(110));
            with
        },
        victim: |with| assert_eq!(arrive(with), Err(BarrierError::Broken)),
        meanwhile: None,
        second: None,
        survivor: |with, _| barrier_works(with),
    });
    run.each_death(Situation {
        name: "barrier: broken by somebody who is no party",
        prepare: || {
            let three = with(Barrier::new(3).expect("a barrier"));
            three.beside(arrive_and_be_told).beside(arrive_and_be_told)
        },
        victim: |with| with.object.abort(),
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            if !with.object.is_broken() && with.object.waiting() == 2 {
                with.object.abort();
            }
            with.others_are_served();
            assert!(with.object.is_broken());
        },
    });
    run.each_death(Situation {
        name: "barrier: time-outs, interruptions, aborts and resets",
        prepare: two,
        victim: |with| {
            let interrupted = with.object.wait(soon(), None, &mut || true);
            assert_eq!(interrupted, Err(BarrierError::Interrupted));
            let late = with.object.wait(Deadline::after(Duration::from_millis(1)), None, &mut || false);
            assert_eq!(late, Err(BarrierError::Broken));
            with.object.reset();
            with.object.abort();
            with.object.reset();
        },
        meanwhile: None,
        second: Some(|with| with.object.reset()),
        survivor: |with, _| barrier_works(with),
    });
}
