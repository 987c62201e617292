//! Which processes there are, and what they have of this library.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;

/// A process as `/proc` shows it.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its command, without arguments.
    pub name: String,
    /// The letter of its state.
    pub state: char,
    /// The parent's number.
    pub parent: u32,
}

/// What there is of a process; `None` when there is nothing left.
pub fn process(pid: u32) -> Option<Entry> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let (state, parent) = (fields.next()?.chars().next()?, fields.next()?.parse().ok()?);
    Some(Entry { name: name.into(), state, parent })
}

/// The process's state letter and its parent; `None` when there is no such process.
pub fn process_state(pid: u32) -> Option<(char, u32)> {
    process(pid).map(|entry| (entry.state, entry.parent))
}

/// Whether it has ended: there is no such process any more, or only its status.
pub fn has_ended(pid: u32) -> bool {
    process(pid).is_none_or(|entry| entry.state == 'Z')
}

/// All processes.
pub fn processes() -> BTreeMap<u32, Entry> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter_map(|pid| Some((pid, process(pid)?))).collect()
}

/// The processes below this one.
pub fn descendants(of: u32) -> BTreeMap<u32, Entry> {
    let all = processes();
    let mut found = BTreeMap::new();
    let mut next = vec![of];
    while let Some(parent) = next.pop() {
        for (pid, entry) in all.iter().filter(|(_, entry)| entry.parent == parent) {
            found.insert(*pid, entry.clone());
            next.push(*pid);
        }
    }
    found
}

/// The inodes of the memfds of this library that a process has open or mapped.
pub fn memfds(pid: u32) -> BTreeSet<u64> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        let link = fs::read_link(entry.path()).unwrap_or_default();
        if link.to_string_lossy().starts_with("/memfd:procession")
            && let Ok(about) = fs::metadata(entry.path())
        {
            found.insert(about.ino());
        }
    }
    for line in fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default().lines() {
        if line.contains("/memfd:procession")
            && let Some(inode) = line.split_ascii_whitespace().nth(4)
        {
            found.insert(inode.parse().unwrap());
        }
    }
    found
}
