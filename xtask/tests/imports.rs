//! The modules of each crate import each other in one direction.
//!
//! Every folder is taken as a whole: its modules, each with all that lies below it, and the file of
//! the folder itself (`mod.rs`) must have an order in which each imports only from those before it.
//! A name that a module re-exports counts as imported from where it is defined, by those that use it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};

/// Imports that may go upwards.
struct Exception {
    package: &'static str,
    from: &'static str,
    to: &'static [&'static str],
    reason: &'static str,
}

const fn exception(
    package: &'static str,
    from: &'static str,
    to: &'static [&'static str],
    reason: &'static str,
) -> Exception {
    Exception { package, from, to, reason }
}

const EXCEPTIONS: &[Exception] = &[
    exception(
        "procession-core",
        "ring",
        &["ring::shortage", "ring::watch"],
        "fields of `Ring`: the modules that define them also have the methods of `Ring` that use them",
    ),
    exception("procession-core", "shm::arena", &["shm::arena::pool"], ARENA),
    exception(
        "procession-core",
        "shm::keeper",
        &["shm::handed_out", "shm::mailbox"],
        "the keeper takes over what both of these keep for receivers, and both start it",
    ),
    exception(
        "procession",
        "manager::client",
        &["manager::reference", "manager::table", "manager::value"],
        "a connection to a manager keeps the references that were made over it, and they keep it",
    ),
    exception(
        "procession",
        "manager::table",
        &["manager::reference"],
        "the table of connections keeps the references that a forked child has copies of",
    ),
    exception(
        "procession",
        "manager::server",
        &["manager::server::connection"],
        "a server starts the thread of each connection, which works on the server's state",
    ),
    exception(
        "procession",
        "manager::server::objects",
        &["manager::server::sequence", "manager::server::table"],
        "an object may be a list or a dict, whose elements may refer to objects",
    ),
    exception("procession", "pool", &["pool::builder"], POOL),
    exception("procession", "pool::shared", &["pool::cancel", "pool::collect"], POOL),
    exception(
        "procession-python",
        "pool",
        &["pool::collect", "pool::effects", "pool::iterator", "pool::job"],
        POOL,
    ),
    exception("procession-python", "pool::job", &["pool::collect"], POOL),
    exception("procession-python", "pool::state", &["pool::unread"], POOL),
    exception(
        "procession-python",
        "queue",
        &["queue::batch", "queue::get", "queue::managed", "queue::put", "queue::unacked"],
        "PyO3 has all methods of a class in one block; what they do is in modules by subject",
    ),
];

const ARENA: &str = "the allocator of an arena makes the slots that the arena defines";
const POOL: &str = "what carries the effects of a dispatcher out works on the pool's own state";

/// A module's path below its crate, `queue::put`; the crate's root is empty.
type Name = Vec<String>;

/// What a module's file says.
#[derive(Default)]
struct Module {
    /// Names that it brings into scope, and for what they stand.
    names: BTreeMap<String, Name>,
    /// Modules all of whose names it brings into scope.
    globs: Vec<Name>,
    /// What it defines itself.
    items: BTreeSet<String>,
    /// Every path in its code, from the crate's root.
    paths: BTreeSet<Name>,
}

struct Crate {
    modules: BTreeMap<Name, Module>,
}

/// Reads one module's file.
struct Reader<'a> {
    /// The module, with those that are written inside of its file.
    at: Name,
    /// Whether a `use` hands names on, so that it imports nothing for the module's own code.
    reexports: bool,
    found: &'a mut Module,
    /// The modules that have files of their own, and the folder of these.
    files: Vec<(Name, PathBuf)>,
    folder: PathBuf,
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute
                    .parse_args::<syn::Path>()
                    .is_ok_and(|condition| condition.is_ident("test") || condition.is_ident("doctest"))
    })
}

impl Reader<'_> {
    /// A path from the crate's root; `None` for one that leads to another crate or to a local name.
    fn absolute(&self, segments: &[String]) -> Option<Name> {
        let first = segments.first()?;
        let supers = segments.iter().take_while(|segment| *segment == "super").count();
        match first.as_str() {
            "crate" => Some(segments[1..].to_vec()),
            "self" => Some([&self.at, &segments[1..]].concat()),
            "super" => {
                let at = self.at.get(..self.at.len().checked_sub(supers)?)?;
                Some([at, &segments[supers..]].concat())
            }
            // A name of this module, as far as it has one.
            _ => Some([&self.at, segments].concat()),
        }
    }

    fn path(&mut self, segments: &[String]) {
        self.found.paths.extend(self.absolute(segments));
    }

    fn use_tree(&mut self, tree: &syn::UseTree, before: &[String]) {
        let with = |ident: &syn::Ident| [before, &[ident.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.use_tree(&path.tree, &with(&path.ident)),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|tree| self.use_tree(tree, before));
            }
            syn::UseTree::Name(name) if name.ident == "self" => {
                let name = before.last().cloned().unwrap_or_default();
                self.bind(name, before);
            }
            syn::UseTree::Name(name) => self.bind(name.ident.to_string(), &with(&name.ident)),
            syn::UseTree::Rename(rename) => self.bind(rename.rename.to_string(), &with(&rename.ident)),
            syn::UseTree::Glob(_) => {
                let target = self.absolute(before);
                self.found.globs.extend(target);
            }
        }
    }

    fn bind(&mut self, name: String, path: &[String]) {
        let Some(target) = self.absolute(path) else { return };
        // Inside of a function or a module in this file it is taken for the file's own name.
        if name != "_" {
            self.found.names.insert(name, target.clone());
        }
        if !self.reexports {
            self.found.paths.insert(target);
        }
    }

    /// The paths in what a macro is given.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    if colons != 2 {
                        self.path(&std::mem::take(&mut path));
                    }
                    path.push(ident.to_string());
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.path(&std::mem::take(&mut path));
                    self.tokens(group.stream());
                }
                _ => self.path(&std::mem::take(&mut path)),
            }
        }
        self.path(&path);
    }
}

impl Visit<'_> for Reader<'_> {
    fn visit_item(&mut self, item: &syn::Item) {
        let (attributes, ident) = match item {
            syn::Item::Const(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Enum(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Fn(item) => (&item.attrs, Some(&item.sig.ident)),
            syn::Item::Static(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Struct(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Trait(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Type(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Union(item) => (&item.attrs, Some(&item.ident)),
            syn::Item::Macro(item) => (&item.attrs, item.ident.as_ref()),
            syn::Item::Impl(item) => (&item.attrs, None),
            syn::Item::Mod(item) => (&item.attrs, None),
            syn::Item::Use(item) => (&item.attrs, None),
            _ => return visit::visit_item(self, item),
        };
        if is_for_tests(attributes) {
            return;
        }
        self.found.items.extend(ident.map(ToString::to_string));
        visit::visit_item(self, item);
    }

    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        let name = module.ident.to_string();
        self.at.push(name.clone());
        match &module.content {
            Some((_, items)) => {
                items.iter().for_each(|item| self.visit_item(item));
            }
            None => {
                let flat = self.folder.join(format!("{name}.rs"));
                let file = if flat.exists() { flat } else { self.folder.join(&name).join("mod.rs") };
                self.files.push((self.at.clone(), file));
            }
        }
        self.at.pop();
    }

    fn visit_item_use(&mut self, item: &syn::ItemUse) {
        if item.leading_colon.is_none() {
            self.reexports = !matches!(item.vis, syn::Visibility::Inherited);
            self.use_tree(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &syn::Path) {
        if path.leading_colon.is_none() {
            let segments: Vec<String> =
                path.segments.iter().map(|segment| segment.ident.to_string()).collect();
            self.path(&segments);
        }
        visit::visit_path(self, path);
    }

    fn visit_macro(&mut self, call: &syn::Macro) {
        visit::visit_macro(self, call);
        self.tokens(call.tokens.clone());
    }
}

impl Crate {
    /// Reads the crate whose sources are in this folder.
    fn read(source: &Path) -> Crate {
        let mut modules = BTreeMap::new();
        let mut files = vec![(Vec::new(), source.join("lib.rs"))];
        while let Some((at, file)) = files.pop() {
            let text =
                fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
            let folder = match file.file_name().and_then(|name| name.to_str()) {
                Some("lib.rs" | "mod.rs") => file.with_file_name(""),
                _ => file.with_extension(""),
            };
            let mut found = Module::default();
            let mut reader =
                Reader { at: at.clone(), reexports: false, found: &mut found, files: Vec::new(), folder };
            reader.visit_file(&syn::parse_file(&text).expect("Rust"));
            files.append(&mut reader.files);
            modules.insert(at, found);
        }
        Crate { modules }
    }

    /// The module in which the item at this path is defined; `None` for a module, and for what
    /// isn't this crate's.
    fn definition(&self, path: &[String], depth: usize) -> Option<&Name> {
        if depth > 20 {
            return None;
        }
        let known = (0..=path.len()).rev().find_map(|len| self.modules.get_key_value(&path[..len]));
        let (module, about) = known?;
        let rest = &path[module.len()..];
        let first = rest.first()?;
        if about.items.contains(first) {
            return Some(module);
        }
        if let Some(target) = about.names.get(first)
            && target[..] != path[..=module.len()]
        {
            return self.definition(&[target, &rest[1..]].concat(), depth + 1);
        }
        about.globs.iter().find_map(|glob| self.definition(&[glob, rest].concat(), depth + 1))
    }

    /// Who imports what from whom.
    fn imports(&self) -> BTreeMap<(Name, Name), BTreeSet<String>> {
        let mut imports: BTreeMap<_, BTreeSet<String>> = BTreeMap::new();
        for (module, about) in &self.modules {
            for path in &about.paths {
                if let Some(from) = self.definition(path, 0)
                    && from != module
                {
                    let name = path.last().cloned().unwrap_or_default();
                    imports.entry((module.clone(), from.clone())).or_default().insert(name);
                }
            }
        }
        imports
    }
}

/// The groups of modules of which each imports, by way of others, from each other one.
fn circles(arrows: &BTreeSet<(Name, Name)>) -> Vec<BTreeSet<Name>> {
    let mut imports: BTreeMap<&Name, Vec<&Name>> = BTreeMap::new();
    for (from, to) in arrows {
        imports.entry(from).or_default().push(to);
    }
    let mut reached: BTreeMap<&Name, BTreeSet<&Name>> = BTreeMap::new();
    for from in imports.keys() {
        let mut seen = BTreeSet::new();
        let mut next = vec![*from];
        while let Some(at) = next.pop() {
            next.extend(imports.get(at).into_iter().flatten().filter(|to| seen.insert(**to)));
        }
        reached.insert(from, seen);
    }
    let reaches = |from: &Name, to: &Name| reached.get(from).is_some_and(|seen| seen.contains(to));
    let mut circles: Vec<BTreeSet<Name>> = Vec::new();
    for from in imports.keys().copied() {
        let circle: BTreeSet<Name> =
            reached[from].iter().filter(|to| reaches(to, from)).map(|to| (*to).clone()).collect();
        if circle.len() > 1 && !circles.contains(&circle) {
            circles.push(circle);
        }
    }
    circles
}

/// The arrows between the parts of a folder: its modules, with all that is below, and its own file.
fn between_parts<'a>(
    folder: &Name,
    imports: impl Iterator<Item = &'a (Name, Name)>,
) -> BTreeSet<(Name, Name)> {
    let part =
        |name: &Name| name.starts_with(folder).then(|| name[..name.len().min(folder.len() + 1)].to_vec());
    imports.filter_map(|(from, to)| Some((part(from)?, part(to)?))).filter(|(from, to)| from != to).collect()
}

fn shown(name: &Name) -> String {
    if name.is_empty() { "lib".to_owned() } else { name.join("::") }
}

fn crates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates")
}

#[test]
fn circles_are_found_through_reexports_paths_and_macros() {
    let source = std::env::temp_dir().join(format!("procession-imports-{}", std::process::id()));
    let files = [
        ("lib.rs", "mod above;\nmod below;\npub use below::{one::One, two};"),
        ("above.rs", "use crate::One;\npub struct Above(One);\n#[cfg(test)]\nmod tests { use crate::None; }"),
        ("below/mod.rs", "pub mod one;\npub mod two;"),
        ("below/one.rs", "pub struct One;\nfn f() { println!(\"{}\", super::two::TWO) }"),
        ("below/two.rs", "pub const TWO: u32 = 2;\nfn f(_: &crate::above::Above) { super::one::One; }"),
    ];
    for (file, text) in files {
        fs::create_dir_all(source.join("below")).expect("a folder");
        fs::write(source.join(file), text).expect("a file");
    }
    let imports = Crate::read(&source).imports();
    fs::remove_dir_all(&source).expect("removing the folder");
    let arrows: Vec<String> =
        imports.keys().map(|(from, to)| format!("{} -> {}", shown(from), shown(to))).collect();
    assert_eq!(
        arrows,
        [
            "above -> below::one",
            "below::one -> below::two",
            "below::two -> above",
            "below::two -> below::one",
        ]
    );
    let circle_of = |folder: &[&str]| {
        let folder: Name = folder.iter().map(ToString::to_string).collect();
        let circles = circles(&between_parts(&folder, imports.keys()));
        circles.iter().map(|circle| circle.iter().map(shown).collect()).collect::<Vec<Vec<_>>>()
    };
    assert_eq!(circle_of(&[]), [["above", "below"]]);
    assert_eq!(circle_of(&["below"]), [["below::one", "below::two"]]);
}

#[test]
fn modules_import_in_one_direction() {
    let mut said = String::new();
    let mut used = vec![BTreeSet::new(); EXCEPTIONS.len()];
    for package in fs::read_dir(crates()).expect("the folder of the crates") {
        let package = package.expect("its entry").file_name().into_string().expect("a plain name");
        let read = Crate::read(&crates().join(&package).join("src"));
        let imports = read.imports();
        let is_exception = |from: &Name, to: &Name| {
            let (from, to) = (shown(from), shown(to));
            EXCEPTIONS.iter().position(|known| {
                known.package == package && known.from == from && known.to.contains(&to.as_str())
            })
        };
        let folders: BTreeSet<Name> =
            read.modules.keys().filter_map(|name| Some(name.split_last()?.1.to_vec())).collect();
        for folder in &folders {
            for circle in circles(&between_parts(folder, imports.keys())) {
                for (from, to) in imports.keys() {
                    let ends = between_parts(folder, std::iter::once(&(from.clone(), to.clone())));
                    if ends.iter().any(|(from, to)| circle.contains(from) && circle.contains(to))
                        && let Some(exception) = is_exception(from, to)
                    {
                        used[exception].insert(shown(to));
                    }
                }
            }
            let without = imports.keys().filter(|(from, to)| is_exception(from, to).is_none());
            for circle in circles(&between_parts(folder, without)) {
                let parts: Vec<String> = circle.iter().map(shown).collect();
                let _ = writeln!(said, "{package}: a circle of {}", parts.join(", "));
                for ((from, to), names) in &imports {
                    let ends = between_parts(folder, std::iter::once(&(from.clone(), to.clone())));
                    if ends.iter().any(|(from, to)| circle.contains(from) && circle.contains(to)) {
                        let names: Vec<&str> = names.iter().map(String::as_str).collect();
                        let _ = writeln!(said, "    {} -> {}: {}", shown(from), shown(to), names.join(", "));
                    }
                }
            }
        }
    }
    for (Exception { package, from, to, reason }, used) in EXCEPTIONS.iter().zip(used) {
        for to in to.iter().filter(|to| !used.contains(**to)) {
            let _ = writeln!(said, "{package}: {from} -> {to} is no exception any more ({reason})");
        }
    }
    assert!(said.is_empty(), "modules import in circles:\n{said}");
}
