//! The executable in memory: which addresses belong to its code, and its start-up functions.

use std::io;
use std::sync::OnceLock;

use libc::{c_char, c_int};

#[cfg(target_pointer_width = "64")]
use libc::Elf64_Phdr as ProgramHeader;

/// What a start-up function in `.init_array` is called with (glibc).
pub(crate) type Initializer = extern "C" fn(c_int, *const *const c_char, *const *const c_char);

/// The program's own executable (not its shared libraries) as it lies in memory.
#[derive(Debug)]
pub(crate) struct Image {
    /// What was added to every address of the file.
    bias: usize,
    code: Vec<std::ops::Range<usize>>,
    fingerprint: u64,
    initializers: Option<(usize, usize)>,
    started_by_loader: bool,
}

impl Image {
    /// The image of this program. Read once.
    ///
    /// # Errors
    /// The kernel told the program nothing about its own layout.
    pub(crate) fn current() -> io::Result<&'static Image> {
        static IMAGE: OnceLock<Option<Image>> = OnceLock::new();
        IMAGE.get_or_init(Image::read).as_ref().ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "no program headers that are understood (AT_PHDR)")
        })
    }

    fn read() -> Option<Image> {
        // SAFETY: getauxval only looks a number up.
        let (start, count, size) = unsafe {
            (
                libc::getauxval(libc::AT_PHDR) as usize,
                libc::getauxval(libc::AT_PHNUM) as usize,
                libc::getauxval(libc::AT_PHENT) as usize,
            )
        };
        if start == 0 || count == 0 || size != size_of::<ProgramHeader>() {
            return None;
        }
        // SAFETY: the kernel (or the loader) mapped `count` headers of this size there, for the life of the program.
        let headers = unsafe { std::slice::from_raw_parts(start as *const ProgramHeader, count) };
        let bias = bias(start, headers)?;
        let has_loader = headers.iter().any(|header| header.p_type == libc::PT_INTERP);
        // SAFETY: as above. The kernel says where it has loaded the loader, unless that was the
        // program it executed.
        let started_by_loader = has_loader && unsafe { libc::getauxval(libc::AT_BASE) } == 0;
        let mut fingerprint = Fingerprint::new();
        let mut code = Vec::new();
        let mut initializers = None;
        for header in headers {
            for word in [header.p_offset, header.p_vaddr, header.p_filesz, header.p_memsz] {
                fingerprint.add(&word.to_le_bytes());
            }
            fingerprint.add(&header.p_type.to_le_bytes());
            let at = bias.wrapping_add(header.p_vaddr as usize);
            if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_X != 0 {
                code.push(at..at.wrapping_add(header.p_memsz as usize));
            }
            if header.p_type == libc::PT_DYNAMIC {
                // SAFETY: the segment is mapped and holds an array of pairs that ends at the tag 0.
                initializers = unsafe { initializer_table(at as *const [usize; 2], bias) };
            }
        }
        Some(Image { bias, code, fingerprint: fingerprint.0, initializers, started_by_loader })
    }

    /// A number that changes with nearly every build of the program.
    pub(crate) fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    /// Whether the program is an argument of its loader: the kernel executed
    /// `/lib64/ld-linux-x86-64.so.2 PROGRAM`, say.
    pub(crate) fn started_by_loader(&self) -> bool {
        self.started_by_loader
    }

    /// An address of the executable's code.
    pub(crate) fn start_of_code(&self) -> usize {
        self.code.first().map_or(0, |range| range.start)
    }

    /// Where in the executable this code address lies, the same in every process that runs the program; `None`
    /// when it is not code of the executable itself.
    pub(crate) fn offset_of(&self, address: *const ()) -> Option<u64> {
        let address = address.addr();
        self.code.iter().any(|range| range.contains(&address)).then(|| address.wrapping_sub(self.bias) as u64)
    }

    /// The code address of [`Image::offset_of`]; `None` when there is no code.
    pub(crate) fn address_of(&self, offset: u64) -> Option<*const ()> {
        let address = self.bias.wrapping_add(usize::try_from(offset).ok()?);
        self.code
            .iter()
            .any(|range| range.contains(&address))
            .then(|| std::ptr::with_exposed_provenance(address))
    }

    /// Calls the start-up functions that the loader would call after `this`, which is one of them. Does nothing
    /// when `this` is not in the executable's table.
    ///
    /// # Safety
    /// To be called from `this`, with its own arguments, by a program that never returns from it: each function
    /// runs once then, in its order, as it expects.
    pub(crate) unsafe fn run_initializers_after(
        &self,
        this: Initializer,
        argc: c_int,
        argv: *const *const c_char,
        envp: *const *const c_char,
    ) {
        let Some((table, count)) = self.initializers else { return };
        // SAFETY: the loader's own table of `count` relocated addresses, mapped for the life of the program.
        let table = unsafe { std::slice::from_raw_parts(table as *const usize, count) };
        let Some(own) = table.iter().position(|entry| *entry == this as usize) else { return };
        for entry in &table[own + 1..] {
            // 0 and -1 mark the ends in some tool chains.
            if *entry != 0 && *entry != usize::MAX {
                // SAFETY: an entry of `.init_array` is such a function.
                let run: Initializer = unsafe { std::mem::transmute(*entry) };
                run(argc, argv, envp);
            }
        }
    }
}

/// What was added to every address of the file whose program headers lie at `start`; `None` where
/// that is unknown.
fn bias(start: usize, headers: &[ProgramHeader]) -> Option<usize> {
    if let Some(own) = headers.iter().find(|header| header.p_type == libc::PT_PHDR) {
        return Some(start.wrapping_sub(own.p_vaddr as usize));
    }
    // Linkers write no PT_PHDR into some static executables. The file begins with its own header,
    // which the program headers follow; the segment that begins with the file has both.
    let first = headers.iter().find(|header| header.p_type == libc::PT_LOAD && header.p_offset == 0)?;
    let file_header = start.checked_sub(size_of::<libc::Elf64_Ehdr>())?;
    if file_header % procession_sys::memory::page_size() != 0 {
        return None;
    }
    // SAFETY: in the page that `start` lies in, which is mapped and readable; any bytes are a
    // header.
    let header = unsafe { &*(file_header as *const libc::Elf64_Ehdr) };
    let is_one = header.e_ident.starts_with(b"\x7fELF") && header.e_phoff as usize == start - file_header;
    is_one.then(|| file_header.wrapping_sub(first.p_vaddr as usize))
}

/// `DT_INIT_ARRAY` of a dynamic section: address and number of entries.
///
/// # Safety
/// `entry` points to an array of pairs whose last one has the tag 0.
unsafe fn initializer_table(mut entry: *const [usize; 2], bias: usize) -> Option<(usize, usize)> {
    const DT_INIT_ARRAY: usize = 25;
    const DT_INIT_ARRAYSZ: usize = 27;
    let (mut table, mut size) = (None, None);
    loop {
        // SAFETY: not past the pair with the tag 0, by the loop's end.
        let [tag, value] = unsafe { *entry };
        match tag {
            0 => break,
            DT_INIT_ARRAY => table = Some(bias.wrapping_add(value)),
            DT_INIT_ARRAYSZ => size = Some(value / size_of::<usize>()),
            _ => {}
        }
        // SAFETY: as above.
        entry = unsafe { entry.add(1) };
    }
    Some((table?, size?))
}

/// FNV-1a: short, and the same in every process.
#[derive(Debug)]
pub(crate) struct Fingerprint(pub u64);

impl Fingerprint {
    /// Of nothing yet.
    #[allow(clippy::new_without_default, reason = "one way to make it is enough")]
    pub(crate) const fn new() -> Self {
        Fingerprint(0xcbf2_9ce4_8422_2325)
    }

    /// Adds bytes.
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_code_has_an_offset_and_a_library_has_none() {
        let image = Image::current().unwrap();
        let own = own_code_has_an_offset_and_a_library_has_none as *const ();
        let offset = image.offset_of(own).unwrap();
        assert_eq!(image.address_of(offset), Some(own));
        assert_eq!(image.offset_of(libc::qsort as *const ()), None);
        assert_eq!(image.address_of(u64::MAX), None);
        assert_ne!(image.fingerprint(), Fingerprint::new().0);
        assert!(image.initializers.is_some_and(|(_, count)| count > 0));
    }

    #[test]
    fn without_a_header_of_the_headers_the_bias_is_found() {
        let image = Image::current().unwrap();
        // SAFETY: as in `Image::read`.
        let (start, headers) = unsafe {
            let start = libc::getauxval(libc::AT_PHDR) as usize;
            let count = libc::getauxval(libc::AT_PHNUM) as usize;
            (start, std::slice::from_raw_parts(start as *const ProgramHeader, count))
        };
        let other: Vec<_> = headers.iter().copied().filter(|header| header.p_type != libc::PT_PHDR).collect();
        assert_eq!(bias(start, &other), Some(image.bias));
        assert_eq!(bias(start, headers), Some(image.bias));
        assert_eq!(bias(start, &[]), None);
        assert_eq!(bias(start + 8, &other), None);
    }
}
