//! What a process has of the system, and which processes there are.
#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;

/// What a process has, and has to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Resources {
    /// Open descriptors.
    pub(crate) descriptors: usize,
    /// Mappings of this library's memfds and of files in `/dev/shm`.
    pub(crate) shared: usize,
    /// All mappings.
    pub(crate) mappings: usize,
    pub(crate) threads: usize,
    /// Resident memory in KiB.
    pub(crate) resident: u64,
}

impl Resources {
    /// The calling process's.
    pub(crate) fn now() -> Resources {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Resources {
            // One is the open directory itself.
            descriptors: fs::read_dir("/proc/self/fd").unwrap().count() - 1,
            shared: maps.lines().filter(|line| is_shared(line)).count(),
            mappings: maps.lines().count(),
            threads: field("Threads:") as usize,
            resident: field("VmRSS:"),
        }
    }

    /// Whether this is `before` again, but for `descriptors` more (and as many mappings), what the allocator keeps in a few
    /// mappings, and `resident` KiB.
    pub(crate) fn is_back(self, before: Resources, descriptors: usize, resident: u64) -> bool {
        self.descriptors <= before.descriptors + descriptors
            && self.shared <= before.shared + descriptors
            && self.mappings <= before.mappings + descriptors + 16
            && self.threads <= before.threads
            && self.resident <= before.resident + resident
    }
}

impl fmt::Display for Resources {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors, {} shared mappings of {}, {} threads, {} KiB resident",
            self.descriptors, self.shared, self.mappings, self.threads, self.resident
        )
    }
}

fn is_shared(line: &str) -> bool {
    line.contains("/memfd:procession") || line.contains("/dev/shm/")
}

/// A process as `/proc` shows it.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) state: char,
    pub(crate) parent: u32,
}

/// All processes.
pub(crate) fn processes() -> BTreeMap<u32, Entry> {
    let pids = fs::read_dir("/proc").unwrap().flatten();
    pids.filter_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.split_once('(')?.1.rsplit_once(')')?;
        let mut fields = rest.split_ascii_whitespace();
        let (state, parent) = (fields.next()?.chars().next()?, fields.next()?.parse().ok()?);
        Some((pid, Entry { name: name.into(), state, parent }))
    })
    .collect()
}

/// The processes below this one.
pub(crate) fn descendants(of: u32) -> BTreeMap<u32, Entry> {
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
pub(crate) fn memfds(pid: u32) -> BTreeSet<u64> {
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
