//! A bar on standard error.

#[cfg(feature = "progress")]
mod bar {
    use std::io::IsTerminal;
    use std::time::Duration;

    use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

    /// How far a map has come.
    #[derive(Debug)]
    pub(in crate::pool) struct Progress(ProgressBar);

    impl Progress {
        /// A bar up to `items`, or a count where it is not known how many there are. It draws nothing where standard error
        /// is no terminal.
        pub(in crate::pool) fn new(name: &str, items: Option<u64>) -> Self {
            if !std::io::stderr().is_terminal() {
                return Progress(ProgressBar::hidden());
            }
            let bar = ProgressBar::with_draw_target(items, ProgressDrawTarget::stderr());
            let template = match items {
                Some(_) => "{msg} {wide_bar} {pos}/{len} {per_sec} {eta}",
                None => "{msg} {spinner} {pos} {per_sec}",
            };
            // The templates are this file's own.
            if let Ok(style) = ProgressStyle::with_template(template) {
                bar.set_style(style);
            }
            bar.set_message(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(500));
            Progress(bar)
        }

        /// So many items are done.
        pub(in crate::pool) fn at(&mut self, done: u64) {
            self.0.set_position(done);
        }

        pub(in crate::pool) fn one_more(&mut self) {
            self.0.inc(1);
        }
    }

    impl Drop for Progress {
        fn drop(&mut self) {
            self.0.finish();
        }
    }
}

#[cfg(not(feature = "progress"))]
mod bar {
    /// Without the feature there is none.
    #[derive(Debug)]
    pub(in crate::pool) enum Progress {}

    impl Progress {
        pub(in crate::pool) fn at(&mut self, _done: u64) {
            match *self {}
        }

        pub(in crate::pool) fn one_more(&mut self) {
            match *self {}
        }
    }
}

pub(super) use bar::Progress;
