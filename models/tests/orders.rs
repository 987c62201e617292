//! The memory orders are strong enough, and of each it is known whether it is needed.
//!
//! Has a `main` of its own: an exploration that fails stays in its panic for ever, and the harness of the tests would wait for it.

use procession_models::orders;

fn orders_are_strong_enough() {
    for check in orders::checks() {
        let outcome = check.explore();
        assert!(outcome.failure.is_none(), "{}: {}", check.name, outcome.failure.unwrap_or_default());
    }
}

fn orders_are_needed_or_excused() {
    let orders = orders::orders();
    let wrong: Vec<_> = orders.iter().filter(|order| order.found == order.reason.is_some()).collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    // Each excuse is for an order that there is.
    for (file, text, _) in orders::NOT_FELT {
        let used = |order: &&orders::Order| order.place.starts_with(file) && order.place.contains(text);
        assert!(orders.iter().any(|order| used(&order)), "{file}: {text}");
    }
}

fn what_the_dead_did_is_seen_through_the_kernel() {
    for check in orders::checks().iter().filter(|check| check.name.contains("dies")) {
        assert!(check.needs_the_kernel(), "{}", check.name);
    }
}

fn main() {
    orders_are_strong_enough();
    orders_are_needed_or_excused();
    what_the_dead_did_is_seen_through_the_kernel();
    println!("test orders ... ok");
}
