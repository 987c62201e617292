//! Locks that anybody releases, recursive ones, and values with one.

use super::*;

pub(super) fn use_lock(with: &With<Lock>) {
    with.mended(with.object.acquire(soon()));
    with.section();
    with.object.release().expect("it is mine");
}

fn use_rlock(with: &With<RLock>) {
    with.mended(with.object.acquire(soon()));
    with.mended(with.object.acquire(soon()));
    with.section();
    with.object.release().expect("it is mine");
    with.object.release().expect("it is mine");
}

/// Only a lock that is free, or the thread's own, is taken so.
fn use_free_rlock(with: &With<RLock>) {
    if !with.object.acquire_free() {
        with.mended(with.object.acquire(soon()));
    }
    assert!(with.object.acquire_free());
    with.section();
    with.object.release().expect("it is mine");
    with.object.release().expect("it is mine");
}

pub(super) fn situations(run: &mut Run) {
    run.each_death(Situation {
        name: "lock: taken and released",
        prepare: || with(Lock::new(true).expect("a lock")),
        victim: use_lock,
        meanwhile: None,
        second: Some(use_lock),
        survivor: |with, _| {
            use_lock(with);
            assert!(!with.object.is_locked());
        },
    });
    run.each_death(Situation {
        name: "lock: released for another",
        prepare: || {
            let with = with(Lock::new(true).expect("a lock"));
            assert_eq!(with.object.acquire(soon()), Acquisition::Acquired);
            with.beside(use_lock)
        },
        victim: |with| {
            with.object.release().expect("it is locked");
            assert!(!with.object.release_if_taken_by(procession_sys::identity::Identity::current()));
        },
        meanwhile: None,
        second: None,
        survivor: |with, _| {
            if with.object.is_mine() {
                with.object.release().expect("it is locked");
            }
            with.others_are_served();
            use_lock(with);
        },
    });
    run.each_death(Situation {
        name: "lock: waited for, another waits too",
        prepare: || {
            let with = with(Lock::new(true).expect("a lock"));
            assert_eq!(with.object.acquire(soon()), Acquisition::Acquired);
            with.beside(use_lock)
        },
        victim: use_lock,
        meanwhile: Some(|with| with.object.release().expect("it is locked")),
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            use_lock(with);
            assert!(!with.object.is_locked());
        },
    });
    run.each_death(Situation {
        name: "lock: of the dead, another waits too",
        prepare: || {
            let with = with(Lock::new(true).expect("a lock"));
            die_after(|| assert_eq!(with.object.acquire(soon()), Acquisition::Acquired));
            with.beside(use_lock)
        },
        victim: use_lock,
        meanwhile: None,
        second: Some(use_lock),
        survivor: |with, _| {
            with.others_are_served();
            use_lock(with);
        },
    });
    run.each_death(Situation {
        name: "rlock: taken twice and released",
        prepare: || with(RLock::new(true).expect("a lock")),
        victim: use_rlock,
        meanwhile: None,
        second: Some(use_rlock),
        survivor: |with, _| use_rlock(with),
    });
    run.each_death(Situation {
        name: "rlock: taken twice where it is free",
        prepare: || with(RLock::new(true).expect("a lock")),
        victim: use_free_rlock,
        meanwhile: None,
        second: Some(use_rlock),
        survivor: |with, _| use_free_rlock(with),
    });
    run.each_death(Situation {
        name: "rlock: waited for, another waits too",
        prepare: || {
            let with = with(RLock::new(true).expect("a lock"));
            assert_eq!(with.object.acquire(soon()), Acquisition::Acquired);
            with.beside(use_rlock)
        },
        victim: use_rlock,
        meanwhile: Some(|with| with.object.release().expect("it is mine")),
        second: None,
        survivor: |with, _| {
            with.others_are_served();
            use_rlock(with);
        },
    });
    run.each_death(Situation {
        name: "value: changed under its lock",
        // SAFETY: there are no slices of it.
        prepare: || with(unsafe { Block::with_lock(8, 2, true) }.expect("a value")),
        victim: |with| {
            with.mended(with.object.acquire(soon()));
            with.object.write(0, &1u64.to_ne_bytes());
            with.object.write(1, &1u64.to_ne_bytes());
            with.object.release().expect("it is mine");
        },
        meanwhile: None,
        second: None,
        survivor: |with, died| {
            let acquisition = with.object.acquire(soon());
            let (mut first, mut second) = ([0; 8], [0; 8]);
            with.object.read(0, &mut first);
            with.object.read(1, &mut second);
            assert!(first == second || matches!(acquisition, Acquisition::AcquiredFromDead(_)));
            assert!(died || u64::from_ne_bytes(first) == 1);
            with.object.release().expect("it is mine");
        },
    });
}
