//! A thread-local value that exists while a function runs.

use std::cell::RefCell;
use std::fmt;
use std::mem::ManuallyDrop;
use std::thread::LocalKey;

/// A thread-local place for a value that the functions inside of a call use.
///
/// A thread-local that has a destructor is gone in an exit handler, and in the destructors of
/// other thread-locals. This one has none: [`Entered`] drops the value when the call ends.
pub struct Scoped<T>(RefCell<ManuallyDrop<Option<T>>>);

impl<T: 'static> Scoped<T> {
    /// A place without a value.
    pub const fn empty() -> Self {
        Scoped(RefCell::new(ManuallyDrop::new(None)))
    }

    /// Sets the value until the returned guard is dropped, which restores the value of an outer call.
    pub fn enter(place: &'static LocalKey<Self>, value: T) -> Entered<T> {
        let outer = Self::replace(place, Some(value));
        Entered { place, outer }
    }

    /// Calls `use_it` with the value, `None` outside of all calls.
    pub fn with<R>(place: &'static LocalKey<Self>, use_it: impl FnOnce(Option<&mut T>) -> R) -> R {
        place.with(|place| use_it(place.0.borrow_mut().as_mut()))
    }

    /// Whether there is a value.
    pub fn is_set(place: &'static LocalKey<Self>) -> bool {
        Self::with(place, |value| value.is_some())
    }

    fn replace(place: &'static LocalKey<Self>, value: Option<T>) -> Option<T> {
        place.with(|place| std::mem::replace(&mut **place.0.borrow_mut(), value))
    }
}

impl<T> fmt::Debug for Scoped<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scoped").finish_non_exhaustive()
    }
}

/// A call that has set the value of a [`Scoped`].
#[must_use = "dropping it ends the call"]
pub struct Entered<T: 'static> {
    place: &'static LocalKey<Scoped<T>>,
    outer: Option<T>,
}

impl<T> Entered<T> {
    /// Ends the call and returns its value.
    pub fn leave(mut self) -> Option<T> {
        let value = Scoped::replace(self.place, self.outer.take());
        // The guard is empty, and its drop would replace the outer value.
        std::mem::forget(self);
        value
    }
}

impl<T> Drop for Entered<T> {
    fn drop(&mut self) {
        // The place is no longer borrowed when the value is dropped, which may use the place.
        drop(Scoped::replace(self.place, self.outer.take()));
    }
}

impl<T> fmt::Debug for Entered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entered").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    thread_local! {
        static PLACE: Scoped<Vec<u32>> = const { Scoped::empty() };
    }

    fn add(number: u32) {
        Scoped::with(&PLACE, |numbers| numbers.expect("inside of a call").push(number));
    }

    #[test]
    fn an_inner_call_has_a_value_of_its_own() {
        let outer = Scoped::enter(&PLACE, vec![1]);
        add(2);
        let inner = Scoped::enter(&PLACE, Vec::new());
        add(3);
        assert_eq!(inner.leave(), Some(vec![3]));
        add(4);
        assert_eq!(outer.leave(), Some(vec![1, 2, 4]));
        assert!(!Scoped::is_set(&PLACE));
    }

    #[test]
    fn a_panic_restores_the_outer_value() {
        let outer = Scoped::enter(&PLACE, vec![1]);
        let unwound = std::panic::catch_unwind(|| {
            let _inner = Scoped::enter(&PLACE, vec![2]);
            std::panic::resume_unwind(Box::new("unwinding"));
        });
        assert!(unwound.is_err());
        assert_eq!(outer.leave(), Some(vec![1]));
    }
}
