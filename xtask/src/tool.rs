//! Running cargo and other programs.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The workspace, and the one of the benchmarks, as folders below the project's.
pub(crate) const ROOT: &str = "";
pub(crate) const BENCHES: &str = "benches";

/// Why a command ends without success, and the exit status that says so.
pub(crate) struct Failure {
    /// What to tell; nothing when the program that failed has told already.
    pub(crate) message: Option<String>,
    pub(crate) status: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Failure { message: Some(message.into()), status: 1 }
    }
}

/// A program to run, in the caller's folder unless told.
pub(crate) struct Tool(pub(crate) Command);

/// A cargo command on one of the workspaces.
pub(crate) fn cargo(subcommand: &str, workspace: &str) -> Tool {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.arg(subcommand).arg("--manifest-path").arg(manifest(workspace));
    Tool(command)
}

/// A command of this tool. Not by its path: cargo replaces the file there when a step builds this tool with other features.
pub(crate) fn this() -> Tool {
    Tool(Command::new("/proc/self/exe"))
}

/// The project's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the project's folder")
}

/// The manifest of a workspace.
pub(crate) fn manifest(workspace: &str) -> PathBuf {
    root().join(workspace).join("Cargo.toml")
}

impl Tool {
    pub(crate) fn args<S: AsRef<OsStr>>(mut self, args: impl IntoIterator<Item = S>) -> Self {
        self.0.args(args);
        self
    }

    pub(crate) fn folder(mut self, folder: &Path) -> Self {
        self.0.current_dir(folder);
        self
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.0.env(name, value);
        self
    }

    /// Runs it to its end. Its exit status becomes the failure's.
    pub(crate) fn run(mut self) -> Result<(), Failure> {
        let status = self.0.status().map_err(|error| self.not_started(&error))?;
        match status.code() {
            Some(0) => Ok(()),
            Some(code) => Err(Failure { message: None, status: u8::try_from(code).unwrap_or(1) }),
            None => Err(Failure::new(format!("{} was ended: {status}", self.name()))),
        }
    }

    /// What it prints on standard output; nothing of that is shown.
    pub(crate) fn output(mut self, stderr: Stdio) -> Result<Vec<u8>, Failure> {
        let output = self.0.stderr(stderr).output().map_err(|error| self.not_started(&error))?;
        if output.status.success() {
            Ok(output.stdout)
        } else {
            Err(Failure::new(format!("{} failed", self.name())))
        }
    }

    pub(crate) fn not_started(&self, error: &std::io::Error) -> Failure {
        Failure::new(format!("cannot start {}: {error}", self.name()))
    }

    fn name(&self) -> String {
        self.0.get_program().to_string_lossy().into_owned()
    }
}
