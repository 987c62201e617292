//! How a new process can be made.

use serde::{Deserialize, Serialize};

/// How a new process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum StartMethod {
    /// The program is executed once more and runs the function in place of `main`. Works with threads, and the new
    /// process has nothing of this one but its arguments, environment, working directory and standard output and error.
    /// Its only program argument is the program's name.
    Spawn,
    /// This process is copied. The fastest for a small program; refused when it has other threads.
    Fork,
    /// A small process, executed when first needed, is copied. Works with threads; a start costs less than with
    /// spawn. The server keeps the environment and working directory of when it was started, ends with
    /// this process and is started again if it was killed.
    ForkServer,
}

impl StartMethod {
    /// All of them, the default first.
    pub const ALL: [StartMethod; 3] = [StartMethod::Spawn, StartMethod::Fork, StartMethod::ForkServer];
}
