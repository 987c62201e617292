//! The output against that of the system's own `sha256sum`.

mod support;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Write;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use support::{assert_same, checksum, expected, run};

/// The user that owns nothing, on Linux systems by convention.
const NOBODY: u32 = 65534;

/// A tree with all that names and contents can be.
fn odd_tree() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &[u8]| dir.path().join(OsStr::from_bytes(name));
    let names: [&[u8]; 10] = [
        b"plain",
        b"with a blank",
        b"-leading-dash",
        b"new\nline",
        b"back\\slash",
        b"carriage\rreturn",
        b"not \xff\xfe utf-8",
        b"tab\tand\x01control",
        "schöne Grüße".as_bytes(),
        b"*",
    ];
    for name in names {
        fs::write(at(name), name).unwrap();
    }
    fs::write(at(b"empty"), b"").unwrap();
    fs::create_dir_all(at(b"deep/er\n/and\xff/deeper")).unwrap();
    fs::write(at(b"deep/er\n/and\xff/deeper/file"), b"deep").unwrap();
    // Sorted by bytes, these two come in another order than by the parts of their paths.
    fs::create_dir(at(b"sort")).unwrap();
    fs::write(at(b"sort/x"), b"1").unwrap();
    fs::write(at(b"sort!"), b"2").unwrap();
    symlink("plain", at(b"a link")).unwrap();
    symlink("nowhere", at(b"a broken link")).unwrap();
    symlink(".", at(b"a loop")).unwrap();
    let mut big = fs::File::create(at(b"big")).unwrap();
    let block: Vec<u8> = (0..1 << 20).map(|n: u32| (n % 251) as u8).collect();
    for _ in 0..40 {
        big.write_all(&block).unwrap();
    }
    for n in 0..300 {
        fs::write(at(format!("many-{n}").as_bytes()), vec![n as u8; n * 37]).unwrap();
    }
    dir
}

/// Real input: the libraries of the toolchain that built this.
fn toolchain() -> PathBuf {
    let output = run(Command::new("rustc").args(["--print", "target-libdir"]));
    let mut path = output.stdout;
    assert_eq!(path.pop(), Some(b'\n'));
    PathBuf::from(OsString::from_vec(path))
}

#[test]
fn odd_names_and_contents() {
    let dir = odd_tree();
    assert_same(&run(checksum().arg(dir.path())), &expected(dir.path()));
    assert_same(&run(checksum().arg("--pool").arg(dir.path())), &expected(dir.path()));
}

#[test]
fn odd_names_and_contents_with_more_workers_than_cores() {
    let dir = odd_tree();
    assert_same(&run(checksum().args(["--workers", "7"]).arg(dir.path())), &expected(dir.path()));
}

#[test]
fn odd_names_and_contents_under_kills() {
    let dir = odd_tree();
    let expected = expected(dir.path());
    for workers in ["1", "3"] {
        assert_same(&run(checksum().args(["--chaos", "--workers", workers]).arg(dir.path())), &expected);
        let pooled = run(checksum().args(["--pool", "--chaos", "--workers", workers]).arg(dir.path()));
        assert_same(&pooled, &expected);
    }
}

#[test]
fn real_files() {
    let dir = toolchain();
    let expected = expected(&dir);
    assert_same(&run(checksum().arg(&dir)), &expected);
    assert_same(&run(checksum().arg("--pool").arg(&dir)), &expected);
}

#[test]
fn real_files_under_kills() {
    let dir = toolchain();
    let expected = expected(&dir);
    for form in [&[][..], &["--pool"]] {
        let output = run(checksum().args(["--chaos", "--workers", "3"]).args(form).arg(&dir));
        assert_same(&output, &expected);
        // Hashing more than 100 MB takes longer than the 50 ms between kills.
        let summary = String::from_utf8(output.stderr).unwrap();
        let killed = summary.trim_end().strip_suffix(" killed").and_then(|text| text.rsplit_once(", "));
        let killed: u32 = killed.unwrap_or_else(|| panic!("no count: {summary}")).1.parse().unwrap();
        assert!(killed > 0, "nobody was killed: {summary}");
    }
}

#[test]
fn a_relative_path_is_printed_as_it_was_given() {
    let dir = odd_tree();
    fs::create_dir(dir.path().join("-d")).unwrap();
    fs::write(dir.path().join("-d/file"), "x").unwrap();
    for given in [".", "./", "deep/", "-d"] {
        let output = run(checksum().current_dir(dir.path()).arg("--").arg(given));
        let found = run(Command::new("sh").current_dir(dir.path()).args([
            "-c",
            // `find` takes a path that begins with a dash for an option.
            r#"case $1 in -*) cd -- "$1" && find . -type f -print0 | sed -z "s:^\.:$1:";; *) find "$1" -type f -print0;; esac"#,
            "sh",
            given,
        ]));
        let mut paths: Vec<&[u8]> =
            found.stdout.split(|byte| *byte == 0).filter(|path| !path.is_empty()).collect();
        paths.sort_unstable();
        let paths = paths.iter().map(|path| OsStr::from_bytes(path));
        let wanted = run(Command::new("sha256sum").current_dir(dir.path()).arg("--").args(paths));
        assert_same(&output, &wanted.stdout);
    }
}

#[test]
fn an_empty_folder_prints_nothing() {
    let dir = tempfile::tempdir().unwrap();
    assert_same(&run(checksum().arg(dir.path())), b"");
    assert_same(&run(checksum().arg("--chaos").arg(dir.path())), b"");
    assert_same(&run(checksum().arg("--pool").arg(dir.path())), b"");
}

#[test]
fn a_link_to_a_folder_is_followed_when_it_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("real")).unwrap();
    fs::write(dir.path().join("real/file"), "x").unwrap();
    symlink("real", dir.path().join("link")).unwrap();
    let with_slash = dir.path().join("link/");
    assert_same(&run(checksum().arg(&with_slash)), &expected(&with_slash));
}

#[test]
fn what_cannot_be_read_is_named_and_the_rest_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(at("readable"), "x").unwrap();
    fs::write(at("secret"), "y").unwrap();
    fs::set_permissions(at("secret"), fs::Permissions::from_mode(0o000)).unwrap();
    fs::create_dir(at("closed")).unwrap();
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o000)).unwrap();
    // A copy, because another user may not reach the folder that this was built in.
    let program = tempfile::tempdir().unwrap();
    fs::set_permissions(program.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let copy = program.path().join("checksum");
    fs::copy(env!("CARGO_BIN_EXE_checksum"), &copy).unwrap();

    let mut command = Command::new(&copy);
    if rustix::process::geteuid().is_root() {
        // Root may read everything.
        command.uid(NOBODY).gid(NOBODY);
    }
    let output = run(command.arg("--quiet").arg(dir.path()).current_dir("/"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    let complaint = |name| format!("checksum: {}: Permission denied\n", at(name).display());
    assert_eq!(stderr, complaint("closed") + &complaint("secret"));
    assert_eq!(output.status.code(), Some(1));
    let readable = run(Command::new("sha256sum").arg(at("readable")));
    assert_eq!(output.stdout, readable.stdout);
    fs::set_permissions(at("closed"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn what_is_no_folder_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    for (path, reason) in
        [(dir.path().join("missing"), "No such file or directory"), (file, "Not a directory")]
    {
        let output = run(checksum().arg(&path));
        assert_eq!(output.status.code(), Some(2));
        assert_eq!(output.stdout, b"");
        assert_eq!(
            String::from_utf8(output.stderr).unwrap(),
            format!("checksum: {}: {reason}\n", path.display())
        );
    }
}

#[test]
fn wrong_usage_is_an_error() {
    for arguments in [vec![], vec!["--workers", "0", "."], vec!["--workers", "many", "."], vec!["a", "b"]] {
        let output = run(checksum().args(&arguments));
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert_eq!(output.stdout, b"");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn the_summary_counts_and_quiet_hides_it() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a"), "12345").unwrap();
    fs::write(dir.path().join("b"), "678").unwrap();
    let summary = String::from_utf8(run(checksum().args(["--workers", "2"]).arg(dir.path())).stderr).unwrap();
    assert!(summary.starts_with("2 files, 8 bytes in "), "{summary}");
    assert!(summary.ends_with(" s with 2 workers\n"), "{summary}");
    assert_eq!(run(checksum().arg("--quiet").arg(dir.path())).stderr, b"");
}
