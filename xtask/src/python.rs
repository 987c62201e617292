//! The Python package: a virtual environment below `target/` with the package in it, and what is run there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::tool::{Failure, ROOT, Tool, cargo, root, this};

/// The oldest minor version of Python 3 that the package is for.
const OLDEST: u32 = 11;

/// The newest that may be installed.
const NEWEST: u32 = 16;

/// What else is in an environment.
#[derive(Clone, Copy)]
pub(crate) enum With {
    /// What the tests need.
    Tests,
    /// The software that the package is tried with.
    Software,
}

impl With {
    /// The folder with the list, and with what is run.
    fn folder(self) -> PathBuf {
        root().join("python").join(match self {
            With::Tests => "tests",
            With::Software => "software",
        })
    }
}

/// How the package's own classes are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

impl Profile {
    /// The one for `--dev`, or that for users.
    pub(crate) fn of(dev: bool) -> Profile {
        if dev { Profile::Dev } else { Profile::Release }
    }
}

/// A virtual environment.
struct Environment {
    folder: PathBuf,
}

impl Environment {
    /// The one of an interpreter, with all that is required there.
    fn prepare(interpreter: &OsStr, with: With) -> Result<Self, Failure> {
        let name = match with {
            With::Tests => version(interpreter)?,
            With::Software => version(interpreter)? + "-software",
        };
        let environment = Environment { folder: root().join("target/python").join(name) };
        prepare(interpreter, &environment.folder, &with.folder().join("requirements.txt"))?;
        Ok(environment)
    }

    /// A program in it.
    fn tool(&self, name: &str) -> Tool {
        in_environment(Tool(Command::new(self.folder.join("bin").join(name))), &self.folder)
    }

    /// Builds the package as it is now into it.
    fn install(&self, profile: Profile) -> Result<(), Failure> {
        let maturin = self
            .tool("maturin")
            .args(["develop", "--quiet", "--target-dir"])
            // Apart from cargo's, for maturin builds with settings of its own.
            .args([root().join("target/python/build")])
            .args((profile == Profile::Release).then_some("--release"));
        // What it says on standard output is no part of what the caller's program prints.
        maturin.folder(root()).output(Stdio::inherit()).map(drop)
    }
}

/// The interpreter that environments are made with.
fn interpreter() -> std::ffi::OsString {
    std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into())
}

/// Python in an environment that has the package as it is now. `PYTHON` names another interpreter than `python3` to make it with.
pub(crate) fn python(profile: Profile, with: With) -> Result<Tool, Failure> {
    let environment = Environment::prepare(&interpreter(), with)?;
    environment.install(profile)?;
    Ok(environment.tool("python"))
}

/// The tests of the package, or those whose name contains the filter.
pub(crate) fn test(filter: Option<&OsStr>) -> Result<(), Failure> {
    /// Tests that run at once: they wait for each other's processes more than they compute.
    const JOBS: &str = "3";
    /// pytest's exit status when no test was selected.
    const NO_TESTS: u8 = 5;
    let pytest = ["-m", "pytest", "--quiet", "--numprocesses", JOBS];
    // Built here, where other builds may be waited for: a test that waits so long counts as hung.
    cargo("build", ROOT).args(["--quiet", "--package", "interop"]).run()?;
    let this = std::env::current_exe().map_err(|error| Failure::new(format!("xtask: {error}")))?;
    let mut pytest = python(Profile::Dev, With::Tests)?.args(pytest).folder(root());
    pytest.0.env("INTEROP", this.with_file_name("interop"));
    if let Some(filter) = filter {
        pytest = pytest.args([OsStr::new("-k"), filter]);
    }
    match pytest.run() {
        Err(failure) if filter.is_some() && failure.status == NO_TESTS => Ok(()),
        other => other,
    }
}

/// Format and lints of everything in Python.
pub(crate) fn lints() -> Result<(), Failure> {
    // Of the source as it is: the package need not be built.
    let environment = Environment::prepare(&interpreter(), With::Tests)?;
    for command in [["format", "--check"], ["check", "--quiet"]] {
        environment.tool("ruff").args(command).folder(root()).run()?;
    }
    Ok(())
}

/// The checksum example.
pub(crate) fn demo(profile: Profile) -> Result<Tool, Failure> {
    Ok(python(profile, With::Tests)?.args([root().join("examples/checksum.py")]))
}

/// The storm over processes in Python.
pub(crate) fn storm(profile: Profile) -> Result<Tool, Failure> {
    Ok(python(profile, With::Tests)?.args([root().join("python/storm.py")]))
}

/// Runs CPython's own tests against the package.
pub(crate) fn conformance<S: AsRef<OsStr>>(arguments: impl IntoIterator<Item = S>) -> Result<(), Failure> {
    let runner = With::Tests.folder().join("cpython/run.py");
    python(Profile::Dev, With::Tests)?.args([runner]).args(arguments).run()
}

/// The tests of the package with each minor version of Python that is installed, but for the one that the other commands use.
pub(crate) fn interpreters() -> Result<(), Failure> {
    let own = version(&interpreter())?;
    let mut run = 0;
    for minor in OLDEST..=NEWEST {
        let (number, program) = (format!("3.{minor}"), format!("python3.{minor}"));
        if number == own {
            continue;
        }
        if Tool(Command::new(&program)).args(["--version"]).output(Stdio::null()).is_err() {
            println!("without Python {number}: it is not installed");
            continue;
        }
        println!("== the tests with Python {number}");
        let tests = this().args(["test", "--python"]);
        tests.env("PYTHON", &program).run()?;
        run += 1;
    }
    println!("{run} other versions of Python");
    Ok(())
}

/// Tries the package with software that was written for `multiprocessing`.
pub(crate) fn software() -> Result<(), Failure> {
    let pytest = python(Profile::Release, With::Software)?.args(["-m", "pytest", "--quiet"]);
    pytest.args([With::Software.folder()]).folder(root()).run()
}

/// `3.11`, say.
fn version(interpreter: &OsStr) -> Result<String, Failure> {
    let script = "import sys; print('%d %d' % sys.version_info[:2])";
    let output = Tool(Command::new(interpreter)).args(["-c", script]).output(Stdio::inherit())?;
    let output = String::from_utf8_lossy(&output);
    let (major, minor) = output.trim().split_once(' ').unwrap_or_default();
    match (major, minor.parse::<u32>()) {
        ("3", Ok(minor)) if minor >= OLDEST => Ok(format!("3.{minor}")),
        _ => Err(Failure::new(format!(
            "{} is Python {major}.{minor}, but 3.{OLDEST} or newer is needed: name one with PYTHON=…",
            Path::new(interpreter).display()
        ))),
    }
}

/// Makes the environment, unless it is there with the same requirements.
fn prepare(interpreter: &OsStr, folder: &Path, requirements: &Path) -> Result<(), Failure> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error| Failure::new(format!("{}: {error}", path.display()))
    };
    let wanted = fs::read(requirements).map_err(wrong(requirements))?;
    let complete: PathBuf = folder.join("complete");
    if fs::read(&complete).is_ok_and(|there| there == wanted) {
        return Ok(());
    }
    let venv = Tool(Command::new(interpreter)).args(["-m", "venv", "--clear"]).args([folder]);
    venv.run().map_err(|failure| Failure {
        message: Some(
            "Python cannot make a virtual environment: is its package python3-venv installed?".into(),
        ),
        ..failure
    })?;
    let pip = Tool(Command::new(folder.join("bin/python")))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .args([requirements]);
    pip.run()?;
    fs::write(&complete, wanted).map_err(wrong(&complete))
}

fn in_environment(mut tool: Tool, folder: &Path) -> Tool {
    tool.0.env("VIRTUAL_ENV", folder).env_remove("CONDA_PREFIX").env_remove("PYTHONHOME");
    // Without bytecode files, each spawned process compiles the package, and starts twice as slowly.
    tool.0.env_remove("PYTHONDONTWRITEBYTECODE");
    tool
}
