//! What must be as it was: processes, shared memory, descriptors, mappings.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

/// Processes other than this one that map a file in the folder.
pub(crate) fn mappers(folder: &Path) -> Vec<u32> {
    let wanted = format!("{}/", folder.display());
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    processes
        .filter_map(|process| process.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != std::process::id())
        .filter(|pid| {
            // One that is gone by now, or somebody else's, maps nothing of ours.
            fs::read_to_string(format!("/proc/{pid}/maps")).is_ok_and(|maps| maps.contains(&wanted))
        })
        .collect()
}

/// The variable in the environment that marks the processes of one storm, whoever started them and whoever inherited them.
pub(crate) const MARK: &str = "PROCESSION_STORM";
/// How long those that are to end with another may take.
const ENDING: Duration = Duration::from_secs(10);

/// The processes of this storm, with their names; not zombies, and not the calling process.
pub(crate) fn marked() -> io::Result<BTreeMap<u32, String>> {
    let value = std::env::var(MARK).map_err(io::Error::other)?;
    let wanted = format!("{MARK}={value}");
    let mut found = BTreeMap::new();
    for process in fs::read_dir("/proc")? {
        let process = process?;
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if pid == std::process::id() {
            continue;
        }
        // One that is gone by now, or a zombie, or somebody else's, shows none.
        let environment = fs::read(process.path().join("environ")).unwrap_or_default();
        if environment.split(|byte| *byte == 0).any(|variable| variable == wanted.as_bytes()) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            found.insert(pid, name.trim_end().to_owned());
        }
    }
    Ok(found)
}

/// What a turn has left of its processes: all but the fork server of this process have to be gone.
pub(crate) fn processes_left(before: &BTreeMap<u32, String>) -> Option<String> {
    let start = Instant::now();
    loop {
        let mut left = match marked() {
            Ok(left) => left,
            Err(error) => return Some(format!("looking at the processes: {error}")),
        };
        left.retain(|pid, _| !before.contains_key(pid));
        let others = left.values().filter(|name| *name != "procession-fork").count();
        if others == 0 && left.len() <= 1 {
            return None;
        }
        if start.elapsed() > ENDING {
            return Some(format!("processes that live on after the turn: {left:?}"));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Files in `/dev/shm` whose name contains `tag`.
pub(crate) fn named(tag: &str) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for file in fs::read_dir("/dev/shm")? {
        let name = file?.file_name().to_string_lossy().into_owned();
        if name.contains(tag) {
            found.push(name);
        }
    }
    Ok(found)
}

/// What this process has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Holdings {
    pub(crate) descriptors: usize,
    pub(crate) mappings: usize,
    /// Children, zombies too.
    pub(crate) children: usize,
}

impl Holdings {
    pub(crate) fn now() -> io::Result<Self> {
        let mut children = 0;
        for task in fs::read_dir("/proc/self/task")? {
            let listed = fs::read_to_string(task?.path().join("children")).unwrap_or_default();
            children += listed.split_ascii_whitespace().count();
        }
        Ok(Holdings {
            descriptors: fs::read_dir("/proc/self/fd")?.count(),
            mappings: fs::read_to_string("/proc/self/maps")?.lines().count(),
            children,
        })
    }

    /// What there is more of than a turn may leave: the fork server's connection comes and goes, and the memory
    /// allocator keeps some.
    pub(crate) fn grown_since(&self, before: &Holdings) -> Option<String> {
        let few = self.descriptors <= before.descriptors + 4
            && self.mappings <= before.mappings + 24
            && self.children <= before.children;
        (!few).then(|| format!("this process had {before:?} and has {self:?}: something is not given back"))
    }
}
