//! What must be as it was: processes, shared memory, descriptors, mappings.

use std::fs;
use std::io;
use std::path::Path;

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
