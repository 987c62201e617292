//! The smaller models hold, and each mistake made on purpose is found.

use procession_models::suite;

#[test]
fn the_smaller_models_hold() {
    for entry in suite::entries().into_iter().filter(|entry| entry.small) {
        let outcome = entry.explore(2);
        if let Some(counterexample) = outcome.counterexample {
            panic!("{}: {}: {counterexample}", entry.model, entry.bounds);
        }
        assert!(outcome.states > 100, "{}: {}: hardly any states", entry.model, entry.bounds);
    }
}

#[test]
fn mistakes_are_found() {
    let blind: Vec<String> = (suite::mutants().into_iter())
        .filter(|(_, explore)| explore(2).counterexample.is_none())
        .map(|(name, _)| name)
        .collect();
    assert!(blind.is_empty(), "made on purpose and not found: {blind:?}");
}
