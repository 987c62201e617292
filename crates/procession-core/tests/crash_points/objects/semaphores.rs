//! Permits, counted or each with its holder.

use super::*;

fn use_permit(with: &With<Semaphore>) {
    assert!(with.object.acquire(soon()), "not served");
    with.object.release().expect("it is mine");
}

pub(super) fn situations(run: &mut Run) {
    run.each_death(Situation {
        name: "semaphore: counted, one released for two",
        prepare: || with(Semaphore::counting(0, 10).expect("a semaphore")).beside(use_permit),
        victim: use_permit,
        meanwhile: Some(|with| with.object.release().expect("below its bound")),
        second: None,
        survivor: |with, died| {
            // A plain semaphore does not know who died with its permit.
            if died && with.object.value() == 0 {
                with.object.release().expect("below its bound");
            }
            with.others_are_served();
            use_permit(with);
        },
    });
    run.each_death(Situation {
        name: "semaphore: robust, taken and released",
        prepare: || with(Semaphore::robust(2).expect("a semaphore")),
        victim: use_permit,
        meanwhile: None,
        second: Some(use_permit),
        survivor: |with, _| {
            assert!(with.object.acquire(soon()) && with.object.acquire(soon()), "not served");
            assert_eq!(with.object.value(), 0);
        },
    });
    run.each_death(Situation {
        name: "semaphore: robust, permits of the dead",
        prepare: || {
            let with = with(Semaphore::robust(2).expect("a semaphore"));
            die_after(|| assert!(with.object.acquire(soon()) && with.object.acquire(soon())));
            with
        },
        victim: use_permit,
        meanwhile: None,
        second: Some(use_permit),
        survivor: |with, _| {
            assert!(with.object.acquire(soon()) && with.object.acquire(soon()), "not served");
        },
    });
    run.each_death(Situation {
        name: "semaphore: robust, permits of the dead, another waits too",
        prepare: || {
            let with = with(Semaphore::robust(2).expect("a semaphore"));
            die_after(|| assert!(with.object.acquire(soon()) && with.object.acquire(soon())));
            with.beside(use_permit)
        },
        victim: use_permit,
        meanwhile: None,
        second: Some(use_permit),
        survivor: |with, _| {
            with.others_are_served();
            assert!(with.object.acquire(soon()) && with.object.acquire(soon()), "not served");
        },
    });
}
