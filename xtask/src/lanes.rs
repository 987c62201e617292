//! The lanes: which steps a change has to pass at once, before it is merged, and each night.
//!
//! A step is a command of this tool. Tracks run beside each other; a track's steps run one after another. Steps of several
//! tracks may build for the same folder, where cargo lets one build wait for the other.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use crate::tool::{Failure, root, this};

/// A command of this tool.
struct Step(&'static [&'static str]);

/// Steps that need each other's builds, or the machine's memory.
type Track = &'static [Step];

/// What a contributor runs before each commit.
const CHECK: &[Track] = &[
    &[
        Step(&["lint", "rust"]),
        Step(&["test", "--quick"]),
        Step(&["demo", "--dev", "--chaos", "--verify", "crates"]),
    ],
    &[Step(&["lint", "python"]), Step(&["demo", "--dev", "--python", "--chaos", "--verify", "crates"])],
];

/// What a change has to pass.
const CI: &[Track] = &[
    &[Step(&["lint", "rust"]), Step(&["doc"]), Step(&["test", "--rust"])],
    &[
        Step(&["lint", "python"]),
        Step(&["test", "--python"]),
        Step(&["demo", "--dev", "--python", "--chaos", "--verify"]),
        Step(&["storm", "--dev", "--python", "--seconds", "20"]),
        Step(&["conformance", "--quick"]),
    ],
    &[
        Step(&["models"]),
        Step(&["steps"]),
        Step(&["storm", "--dev", "--seconds", "40"]),
        Step(&["demo", "--dev", "--chaos", "--verify"]),
    ],
];

/// What takes too long for each change. One after another: the storms and the sanitizers want the machine for themselves.
const NIGHTLY: &[Track] = &[&[
    Step(&["storm", "--seconds", "1800"]),
    Step(&["storm", "--python", "--seconds", "600"]),
    Step(&["conformance"]),
    Step(&["software"]),
    Step(&["interpreters"]),
    Step(&["msrv"]),
    Step(&["sanitize"]),
    Step(&["steps", "--pairs"]),
]];

/// Runs the lane of a contributor.
pub(crate) fn check() -> Result<(), Failure> {
    run("check", CHECK)
}

/// Runs the lane of a change.
pub(crate) fn ci() -> Result<(), Failure> {
    run("ci", CI)
}

/// Runs the long lane. A step that fails does not keep the others from running.
pub(crate) fn nightly() -> Result<(), Failure> {
    run("nightly", NIGHTLY)
}

/// A lane as it runs.
struct Lane {
    /// Where the output of steps goes until they end.
    folder: PathBuf,
    failed: Mutex<Vec<String>>,
    /// Whether a failure keeps further steps from starting.
    stops: bool,
}

fn run(name: &str, tracks: &[Track]) -> Result<(), Failure> {
    let folder = root().join("target/lanes").join(name);
    std::fs::create_dir_all(&folder).map_err(|error| wrong(&folder, &error))?;
    let lane = Lane { folder, failed: Mutex::default(), stops: name != "nightly" };
    let start = Instant::now();
    thread::scope(|scope| {
        for track in tracks {
            scope.spawn(|| lane.run(track));
        }
    });
    let failed = lane.failed.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    let took =
        format!("{:.0} s, with {:.0} s of the processors", start.elapsed().as_secs_f64(), processors());
    match failed.as_slice() {
        [] => {
            eprintln!("== {name}: passed in {took}");
            Ok(())
        }
        failed => Err(Failure::new(format!("{name} failed after {took}: {}", failed.join(", ")))),
    }
}

impl Lane {
    fn run(&self, track: Track) {
        for step in track {
            if self.stops && !self.lock().is_empty() {
                return;
            }
            let name = step.0.join(" ");
            eprintln!("== {name}");
            if let Err(failure) = self.run_step(&name, step) {
                let reason = failure.message.map(|message| format!(" ({message})")).unwrap_or_default();
                self.lock().push(format!("`cargo xtask {name}`{reason}"));
            }
        }
    }

    /// Runs a step to its end, and shows what it printed in one piece.
    fn run_step(&self, name: &str, step: &Step) -> Result<(), Failure> {
        let path = self.folder.join(name.replace(' ', "-") + ".log");
        let open = || -> io::Result<_> {
            let file = File::create(&path)?;
            Ok((file.try_clone()?, file))
        };
        let (out, err) = open().map_err(|error| wrong(&path, &error))?;
        let mut tool = this().args(step.0).folder(root());
        tool.0.stdin(Stdio::null()).stdout(out).stderr(err);
        let start = Instant::now();
        let outcome = tool.run();
        let seconds = start.elapsed().as_secs_f64();
        let printed = std::fs::read(&path).map_err(|error| wrong(&path, &error))?;
        // Locked, so that steps of other tracks do not write in between.
        let mut stderr = io::stderr().lock();
        let end = if outcome.is_ok() { "passed" } else { "FAILED" };
        let shown =
            stderr.write_all(&printed).and_then(|()| writeln!(stderr, "== {name}: {end} in {seconds:.1} s"));
        outcome.and_then(|()| shown.map_err(|error| wrong(Path::new("standard error"), &error)))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<String>> {
        self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn wrong(path: &Path, error: &io::Error) -> Failure {
    Failure::new(format!("{}: {error}", path.display()))
}

/// Seconds that the processors worked for the steps that have ended; 0 where the system does not say.
fn processors() -> f64 {
    /// What the kernel counts in, on every Linux.
    const TICKS: f64 = 100.0;
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace();
    // cutime and cstime, the 16th and the 17th; those before the parenthesis are two.
    fields.skip(13).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>() / TICKS
}
