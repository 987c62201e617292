//! What a process has of the system, and surroundings of a test's own.

use std::ffi::CString;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What a process has, and has to give back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Resources {
    /// Open descriptors.
    pub descriptors: usize,
    /// Mappings of this library's memfds and of files in `/dev/shm`.
    pub shared: usize,
    /// All mappings.
    pub mappings: usize,
    /// Threads.
    pub threads: usize,
    /// Resident memory in KiB.
    pub resident: u64,
}

impl Resources {
    /// The calling process's.
    pub fn now() -> Resources {
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let field = |name: &str| -> u64 {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            line.trim().trim_end_matches(" kB").parse().unwrap()
        };
        Resources {
            descriptors: descriptors(),
            shared: maps.lines().filter(|line| is_shared(line)).count(),
            mappings: maps.lines().count(),
            threads: field("Threads:") as usize,
            resident: field("VmRSS:"),
        }
    }

    /// Whether this is `before` again, but for `descriptors` more (and as many mappings), what the allocator keeps in a few
    /// mappings, and `resident` KiB.
    pub fn is_back(self, before: Resources, descriptors: usize, resident: u64) -> bool {
        self.descriptors <= before.descriptors + descriptors
            && self.shared <= before.shared + descriptors
            && self.mappings <= before.mappings + descriptors + 16
            && self.threads <= before.threads
            && self.resident <= before.resident + resident
    }
}

/// The calling process's open descriptors.
pub fn descriptors() -> usize {
    // One is the open directory itself.
    fs::read_dir("/proc/self/fd").unwrap().count() - 1
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

/// A `/dev/shm` of the calling process's own, of so many bytes or as large as usual, where the system allows that;
/// whether it does.
pub fn own_dev_shm(bytes: Option<u64>) -> bool {
    let size = bytes.map(|bytes| format!(",size={bytes}")).unwrap_or_default();
    let options = CString::new(format!("mode=1777{size}")).unwrap();
    let (root, shm, tmpfs) = (c"/".as_ptr(), c"/dev/shm".as_ptr(), c"tmpfs".as_ptr());
    let null = std::ptr::null();
    // SAFETY: C strings and null; only the view that this process and its children have of the file system changes.
    unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(tmpfs, root, null, libc::MS_REC | libc::MS_PRIVATE, std::ptr::null()) == 0
            && libc::mount(tmpfs, shm, tmpfs, 0, options.as_ptr().cast()) == 0
    }
}

/// A group of processes with a limit of memory, removed when dropped.
pub struct Group(PathBuf);

impl Group {
    /// A new one, where the system allows that; otherwise what it says.
    pub fn new(bytes: u64) -> Result<Group, String> {
        let (one, two) = ("/sys/fs/cgroup/memory", "/sys/fs/cgroup");
        let (root, file) = match Path::new(one).exists() {
            true => (one, "memory.limit_in_bytes"),
            false => (two, "memory.max"),
        };
        let path = Path::new(root).join(format!("procession-scarcity-{}", std::process::id()));
        fs::create_dir(&path).map_err(|error| format!("making a cgroup: {error}"))?;
        let group = Group(path);
        fs::write(group.0.join(file), bytes.to_string()).map_err(|error| format!("limiting it: {error}"))?;
        Ok(group)
    }

    /// The file that a process writes its number to, or 0 for itself, to become a member.
    pub fn members(&self) -> PathBuf {
        self.0.join("cgroup.procs")
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let until = Instant::now() + Duration::from_secs(10);
        while fs::remove_dir(&self.0).is_err() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
