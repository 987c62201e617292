//! The tests under ThreadSanitizer and AddressSanitizer, with a nightly toolchain.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;

use crate::test::{Total, run_counting};
use crate::tool::{Failure, Tool, manifest, root};

/// What to look for
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sanitizer {
    /// Data races between the threads of a process (ThreadSanitizer)
    Thread,
    /// Use of memory that is not there, or no longer, and leaked memory (AddressSanitizer, LeakSanitizer)
    Address,
}

/// What a sanitizer cannot run, and why.
struct Exclusion {
    under: &'static [Sanitizer],
    what: What,
    /// For who reads this list, and printed with each run.
    reason: &'static str,
}

enum What {
    /// Test programs, by their names.
    Programs(&'static [&'static str]),
    /// Modules of test programs, as in `pool::deaths`.
    Modules(&'static [&'static str]),
    /// Tests of all programs, by parts of their names.
    Tests(&'static [&'static str]),
}

const EXCLUSIONS: &[Exclusion] = &[
    Exclusion {
        under: &[Sanitizer::Thread, Sanitizer::Address],
        what: What::Programs(&["crash_points"]),
        reason: "a build of its own for thousands of processes with one thread, each of which kills itself",
    },
    Exclusion {
        under: &[Sanitizer::Thread],
        what: What::Programs(&["kills"]),
        reason: "processes with one thread, whose races it cannot see",
    },
    Exclusion {
        under: &[Sanitizer::Thread, Sanitizer::Address],
        what: What::Modules(&["adversity::killed_trees"]),
        reason: "hundreds of processes, each of which takes long to start with the sanitizer and is killed; their work is \
                 that of the other tests",
    },
    Exclusion {
        under: &[Sanitizer::Thread, Sanitizer::Address],
        what: What::Modules(&["adversity::leaks", "adversity::programs", "adversity::scarcity"]),
        reason: "they limit or count threads, descriptors, mappings and memory, of which the sanitizer has its own",
    },
    Exclusion {
        under: &[Sanitizer::Thread],
        what: What::Modules(&[
            "channels::handles",
            "manager::deaths",
            "manager::forks",
            "manager::objects",
            "processes::death",
            "processes::posix",
            "processes::start",
        ]),
        reason: "they start programs by the hundred, each of which takes long with the sanitizer, and fork, which the \
                 sanitizer's own thread forbids",
    },
    Exclusion {
        under: &[Sanitizer::Thread],
        what: What::Tests(&["hostile::"]),
        reason: "a peer that writes over a lock lets two threads in, whose race is meant; the others have one thread",
    },
    Exclusion {
        under: &[Sanitizer::Thread],
        what: What::Tests(&["a_program_that_sent_a_pipe_through_a_queue_can_fork"]),
        reason: "a program may fork that has no threads but the library's; the sanitizer has one of its own",
    },
    Exclusion {
        under: &[Sanitizer::Thread],
        what: What::Tests(&["agrees_with_a_vecdeque"]),
        reason: "one thread, and minutes of it",
    },
    Exclusion {
        under: &[Sanitizer::Address],
        what: What::Tests(&["a_dropped_manager_leaves_nothing"]),
        reason: "it measures memory, of which the sanitizer has its own",
    },
    Exclusion {
        under: &[Sanitizer::Address],
        what: What::Tests(&["processes_live_without_proc", "without_proc_errors_name_it"]),
        reason: "LeakSanitizer reads /proc at the process's exit, and these tests unmount it",
    },
    Exclusion {
        under: &[Sanitizer::Address],
        what: What::Tests(&["a_panic_is_an_error_with_its_message_and_place"]),
        reason: "it asks for the exit status of a process that panicked, which is the sanitizer's where memory was left",
    },
    Exclusion {
        under: &[Sanitizer::Thread, Sanitizer::Address],
        what: What::Tests(&["own_code_has_an_offset_and_a_library_has_none"]),
        reason: "functions of the C library are the sanitizer's own, in the program itself",
    },
    Exclusion {
        under: &[Sanitizer::Thread],
        what: What::Tests(&["helper_process::", "without_descriptors_a_process_knows_itself"]),
        reason: "it takes a clone() that shares the memory for a fork, and its thread for two",
    },
];

impl Sanitizer {
    fn name(self) -> &'static str {
        match self {
            Sanitizer::Thread => "thread",
            Sanitizer::Address => "address",
        }
    }

    /// Whether the standard library has to be instrumented too: otherwise its own locks and channels would look like races.
    fn needs_std(self) -> bool {
        self == Sanitizer::Thread
    }

    /// The variable of its options, and those that the tests need.
    fn options(self) -> (&'static str, &'static str) {
        match self {
            // A child that is forked among threads may start some of its own.
            Sanitizer::Thread => ("TSAN_OPTIONS", "die_after_fork=0"),
            // Running out of memory is an error that the library returns.
            Sanitizer::Address => ("ASAN_OPTIONS", "detect_leaks=1:allocator_may_return_null=1"),
        }
    }
}

/// What has been run under one of them.
struct Outcome {
    sanitizer: Sanitizer,
    total: Total,
    passed: bool,
    took: Duration,
}

/// Runs the tests of the libraries under each of them, or under the one that is named, and says what was run.
pub(crate) fn run(which: Option<Sanitizer>) -> Result<(), Failure> {
    let all = [Sanitizer::Thread, Sanitizer::Address];
    let chosen: Vec<_> =
        all.into_iter().filter(|sanitizer| which.is_none_or(|which| which == *sanitizer)).collect();
    let host = host(chosen.iter().any(|sanitizer| sanitizer.needs_std()))?;
    let mut outcomes = Vec::new();
    for sanitizer in chosen {
        eprintln!("== tests under the {} sanitizer", sanitizer.name());
        outcomes.push(test(sanitizer, &host)?);
    }
    outcomes.iter().for_each(Outcome::tell);
    match outcomes.iter().all(|outcome| outcome.passed) {
        true => Ok(()),
        false => Err(Failure { message: None, status: 1 }),
    }
}

impl Outcome {
    fn tell(&self) {
        let Outcome { sanitizer, total, passed, took } = self;
        let verdict = if *passed { "passed" } else { "FAILED" };
        println!(
            "\n== tests under the {} sanitizer {verdict} in {:.0} s: {total}",
            sanitizer.name(),
            took.as_secs_f64()
        );
        for Exclusion { what, reason, .. } in exclusions(*sanitizer) {
            let (kind, names) = match what {
                What::Programs(names) => ("test programs", names),
                What::Modules(names) => ("modules", names),
                What::Tests(names) => ("tests", names),
            };
            println!("without the {kind} {}: {reason}", names.join(", "));
        }
    }
}

fn exclusions(sanitizer: Sanitizer) -> impl Iterator<Item = &'static Exclusion> {
    EXCLUSIONS.iter().filter(move |exclusion| exclusion.under.contains(&sanitizer))
}

fn test(sanitizer: Sanitizer, host: &str) -> Result<Outcome, Failure> {
    let start = Instant::now();
    let (variable, needed) = sanitizer.options();
    let options = match std::env::var(variable) {
        Ok(given) => format!("{needed}:{given}"),
        Err(_) => needed.to_owned(),
    };
    let build = || {
        let tool = nightly("cargo").args(["test", "--manifest-path"]).args([manifest("")]);
        // A folder of its own: other flags build everything anew.
        let folder = root().join("target").join(format!("sanitize-{}", sanitizer.name()));
        // With a target, build scripts and macros are not instrumented.
        let tool = tool.args(["--target-dir"]).args([folder]).args(["--target", host, "--no-fail-fast"]);
        tool.args(sanitizer.needs_std().then_some("-Zbuild-std"))
            .env(
                "RUSTFLAGS",
                &format!("-Zsanitizer={} -Cunsafe-allow-abi-mismatch=sanitizer", sanitizer.name()),
            )
            // What is instrumented runs several times as long without optimisation; reports need no more than lines.
            .env("CARGO_PROFILE_DEV_OPT_LEVEL", "1")
            .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
            .env("CARGO_INCREMENTAL", "0")
            .env(variable, &options)
            // Each case of hostile memory is a process of its own.
            .env("CASES", &std::env::var("CASES").unwrap_or_else(|_| "50".into()))
    };
    let (mut total, mut passed) = (Total::default(), true);
    for package in ["procession-sys", "procession-core", "procession"] {
        let programs = test_programs(package)?;
        // Those in the library's own files, then each program's.
        for program in std::iter::once(None).chain(programs.iter().map(|name| Some(name.as_str()))) {
            let Some(skipped) = skipped(sanitizer, program) else { continue };
            let tool = build().args(["--package", package]);
            let tool = match program {
                None => tool.args(["--lib"]),
                Some(program) => tool.args(["--test", program]),
            };
            let (more, all) = run_counting(tool.args(["--", "--test-threads=2"]).args(skipped))?;
            total += more;
            passed &= all;
        }
    }
    Ok(Outcome { sanitizer, total, passed, took: start.elapsed() })
}

/// What a test program, or the library's own tests, is told to leave out; `None` when it is left out itself.
fn skipped(sanitizer: Sanitizer, program: Option<&str>) -> Option<Vec<String>> {
    let mut skipped = Vec::new();
    for Exclusion { what, .. } in exclusions(sanitizer) {
        match what {
            What::Programs(names) => {
                if program.is_some_and(|program| names.contains(&program)) {
                    return None;
                }
            }
            What::Modules(names) => {
                let modules = names.iter().filter_map(|name| name.split_once("::"));
                let of_it = modules.filter(|(of, _)| program == Some(*of));
                skipped.extend(of_it.map(|(_, module)| format!("{module}::")));
            }
            What::Tests(names) => skipped.extend(names.iter().map(|name| (*name).to_owned())),
        }
    }
    Some(skipped.into_iter().flat_map(|name| ["--skip".to_owned(), name]).collect())
}

/// The names of a package's test programs.
fn test_programs(package: &str) -> Result<Vec<String>, Failure> {
    let folder = root().join("crates").join(package).join("tests");
    let failed = |error| Failure::new(format!("cannot read {}: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        // `kills.rs`, `crash_points/main.rs`, but no module that several of them share.
        if path.extension().is_some_and(|extension| extension == "rs") || path.join("main.rs").exists() {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

/// A tool of the nightly toolchain. (The variable CARGO names this program's own.)
fn nightly(tool: &str) -> Tool {
    let mut command = Command::new("rustup");
    command.args(["run", "nightly", tool]).env_remove("CARGO").env_remove("RUSTUP_TOOLCHAIN");
    Tool(command)
}

/// The target to build for, after a look at whether the toolchain has all that is needed.
fn host(needs_std: bool) -> Result<String, Failure> {
    let missing = |what: &str, how: &str| {
        Failure::new(format!("sanitizers need {what}: install it with `rustup {how}`"))
    };
    let version = nightly("rustc")
        .args(["-vV"])
        .output(Stdio::null())
        .map_err(|_| missing("a nightly toolchain", "toolchain install nightly --component rust-src"))?;
    let version = String::from_utf8_lossy(&version).into_owned();
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let sysroot = nightly("rustc").args(["--print", "sysroot"]).output(Stdio::inherit())?;
    let sysroot = String::from_utf8_lossy(&sysroot);
    let library = Path::new(sysroot.trim_end()).join("lib/rustlib/src/rust/library/Cargo.toml");
    if needs_std && !library.exists() {
        return Err(missing("the standard library's source", "component add rust-src --toolchain nightly"));
    }
    host.map(str::to_owned).ok_or_else(|| Failure::new("rustc does not say what it builds for"))
}
