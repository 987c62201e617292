//! The Python package: a virtual environment below `target/` with the package in it, and what is run there.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::steps::{Failure, Tool, root};

/// The oldest minor version of Python 3 that the package is for.
const OLDEST: u32 = 11;
/// What the tests need beside the package.
const REQUIREMENTS: &str = "python/tests/requirements.txt";

/// How the package's own classes are compiled.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Dev,
    Release,
}

/// Python in an environment that has the package as it is now and what the tests need. `PYTHON` names another interpreter
/// than `python3` to make it with.
pub(crate) fn python(profile: Profile) -> Result<Tool, Failure> {
    let interpreter = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let folder = root().join("target/python").join(version(&interpreter)?);
    let bin = folder.join("bin");
    prepare(&interpreter, &folder, &bin)?;
    let maturin = Tool(Command::new(bin.join("maturin")))
        .args(["develop", "--quiet", "--target-dir"])
        // Apart from cargo's, for maturin builds with settings of its own.
        .args([root().join("target/python/build")])
        .args((profile == Profile::Release).then_some("--release"));
    in_environment(maturin, &folder).folder(root()).run()?;
    Ok(in_environment(Tool(Command::new(bin.join("python"))), &folder))
}

/// The tests of the package, or those whose name contains the filter.
pub(crate) fn test(filter: Option<&OsStr>) -> Result<(), Failure> {
    /// pytest's exit status when no test was selected.
    const NO_TESTS: u8 = 5;
    let mut pytest = python(Profile::Dev)?.args(["-m", "pytest", "--quiet"]).folder(root());
    if let Some(filter) = filter {
        pytest = pytest.args([OsStr::new("-k"), filter]);
    }
    match pytest.run() {
        Err(failure) if filter.is_some() && failure.status == NO_TESTS => Ok(()),
        other => other,
    }
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
fn prepare(interpreter: &OsStr, folder: &Path, bin: &Path) -> Result<(), Failure> {
    let wrong = |path: &Path| {
        let path = path.to_owned();
        move |error| Failure::new(format!("{}: {error}", path.display()))
    };
    let requirements = root().join(REQUIREMENTS);
    let wanted = fs::read(&requirements).map_err(wrong(&requirements))?;
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
    let pip = Tool(Command::new(bin.join("python")))
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement"])
        .args([&requirements]);
    pip.run()?;
    fs::write(&complete, wanted).map_err(wrong(&complete))
}

fn in_environment(mut tool: Tool, folder: &Path) -> Tool {
    tool.0.env("VIRTUAL_ENV", folder).env_remove("CONDA_PREFIX").env_remove("PYTHONHOME");
    tool
}
