//! Which steps there are: read off the sources, and compared with those that were come to.

use std::collections::BTreeMap;
use std::panic::Location;
use std::path::Path;

use syn::spanned::Spanned;
use syn::visit::{self, Visit};

/// What changes shared memory: these files and folders of each crate, below its `src`.
const PARTS: &[(&str, &[&str])] = &[
    (
        "procession-core",
        &["sync", "ring", "queue", "objects", "pool", "shm/header.rs", "shm/arena.rs", "shm/arena"],
    ),
    ("procession-sys", &["futex.rs", "memory.rs", "pipe.rs"]),
];

/// Methods that change a word.
const CHANGES: &[&str] =
    &["store", "swap", "compare_exchange", "fetch_add", "fetch_and", "fetch_max", "fetch_update"];

/// Receivers of such calls that are no control words: what one process keeps for itself, and the users' data.
const NO_CONTROL: &[(&str, &str)] = &[
    ("ring/segment.rs", "self"),
    ("ring/accounts.rs", "self . account"),
    ("queue/mod.rs", "self . shared . retired"),
    ("queue/mod.rs", "shared . retired"),
    ("ring/watch.rs", "own"),
    ("ring/shortage.rs", "self . shortage"),
    ("queue/mapping.rs", "self . is_private"),
    ("queue/mod.rs", "self . no_sweep_before"),
    ("sync/wait.rs", "self . budget"),
    ("sync/wait.rs", "self . delay"),
    ("sync/wait.rs", "self . pause"),
    ("memory.rs", "byte"),
    ("futex.rs", "RELIES_ON_WAKES"),
    ("shm/arena.rs", "self . sent"),
    ("objects/owned.rs", "LAST"),
    ("objects/block.rs", "w"),
];

/// Steps that no situation comes to, and why not.
const UNREACHED: &[(&str, &str, &str)] = &[
    (
        "ring/get.rs",
        "find_returned",
        "one of them corrects a sum that only rubbish in the memory makes wrong",
    ),
    ("ring/blocks.rs", "release_block", "one of them is for a kernel that refuses to take memory back"),
    (
        "objects/condition.rs",
        "take_over",
        "one of them is for a notification that comes within a few instructions",
    ),
];

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Site {
    package: &'static str,
    /// Below its `src`.
    file: String,
    line: usize,
    /// From 1.
    column: usize,
}

struct Steps {
    package: &'static str,
    file: String,
    /// Each site, with its function and its text.
    found: BTreeMap<Site, (String, String)>,
    function: String,
}

/// # Panics
/// When a step was not come to, or an exception is none.
pub(crate) fn check(visited: &[&'static Location<'static>]) {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the folder of all crates");
    let mut steps =
        Steps { package: "", file: String::new(), found: BTreeMap::new(), function: String::new() };
    for (package, parts) in PARTS {
        steps.package = package;
        for part in *parts {
            steps.read(&crates.join(package).join("src"), part);
        }
    }
    let was_visited = |site: &Site| {
        visited.iter().any(|place| {
            place.file().ends_with(&format!("{}/src/{}", site.package, site.file))
                && place.line() as usize == site.line
                && place.column() as usize == site.column
        })
    };
    let mut left_out = vec![false; UNREACHED.len()];
    let mut missing = Vec::new();
    for (site, (function, text)) in &steps.found {
        let exception =
            UNREACHED.iter().position(|(file, of, _)| *file == site.file && *of == function.as_str());
        match (was_visited(site), exception) {
            (true, _) => {}
            (false, Some(exception)) => left_out[exception] = true,
            (false, None) => missing
                .push(format!("{}/src/{}:{} in {function}: {text}", site.package, site.file, site.line)),
        }
    }
    println!("{} steps in the source, {} of them not come to, on purpose", steps.found.len(), {
        steps.found.keys().filter(|site| !was_visited(site)).count()
    });
    for (exception, used) in UNREACHED.iter().zip(left_out) {
        assert!(used, "no exception any more: {exception:?}");
    }
    assert!(missing.is_empty(), "{} steps that no situation comes to: {missing:#?}", missing.len());
}

impl Steps {
    fn read(&mut self, src: &Path, part: &str) {
        let path = src.join(part);
        if path.is_dir() {
            let mut names: Vec<String> = std::fs::read_dir(&path)
                .expect("a folder of the sources")
                .map(|entry| entry.expect("its entry").file_name().into_string().expect("a plain name"))
                .collect();
            names.sort();
            for name in names {
                self.read(src, &format!("{part}/{name}"));
            }
            return;
        }
        part.clone_into(&mut self.file);
        let text = std::fs::read_to_string(&path).expect("a file of the sources");
        self.visit_file(&syn::parse_file(&text).expect("Rust"));
    }

    fn add(&mut self, span: proc_macro2::Span, text: String) {
        let start = span.start();
        let site = Site {
            package: self.package,
            file: self.file.clone(),
            line: start.line,
            column: start.column + 1,
        };
        self.found.insert(site, (self.function.clone(), text));
    }
}

fn is_for_tests(attributes: &[syn::Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("test")
            || attribute.path().is_ident("cfg")
                && attribute.parse_args::<syn::Path>().is_ok_and(|condition| condition.is_ident("test"))
    })
}

/// A receiver as it stands in the source, without what is in parentheses.
fn written(expression: &syn::Expr) -> String {
    match expression {
        syn::Expr::Field(field) => {
            let member = match &field.member {
                syn::Member::Named(name) => name.to_string(),
                syn::Member::Unnamed(index) => index.index.to_string(),
            };
            format!("{} . {member}", written(&field.base))
        }
        syn::Expr::Path(path) => {
            path.path.segments.last().map_or(String::new(), |last| last.ident.to_string())
        }
        syn::Expr::MethodCall(call) => format!("{} . {}()", written(&call.receiver), call.method),
        syn::Expr::Index(index) => format!("{}[]", written(&index.expr)),
        syn::Expr::Call(call) => format!("{}()", written(&call.func)),
        _ => "?".to_owned(),
    }
}

impl Visit<'_> for Steps {
    fn visit_item_mod(&mut self, module: &syn::ItemMod) {
        if !is_for_tests(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &syn::ItemFn) {
        if !is_for_tests(&function.attrs) {
            self.function = function.sig.ident.to_string();
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &syn::ImplItemFn) {
        if !is_for_tests(&function.attrs) {
            self.function = function.sig.ident.to_string();
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_expr_method_call(&mut self, call: &syn::ExprMethodCall) {
        visit::visit_expr_method_call(self, call);
        let receiver = written(&call.receiver);
        let no_control = NO_CONTROL.iter().any(|(file, of)| {
            *file == self.file && (receiver == *of || receiver.starts_with(&format!("{of} . ")))
        });
        if CHANGES.iter().any(|change| call.method == change) && !no_control {
            self.add(call.method.span(), format!("{receiver}.{}", call.method));
        }
    }

    fn visit_expr_call(&mut self, call: &syn::ExprCall) {
        visit::visit_expr_call(self, call);
        if written(&call.func) == "crash_point" {
            self.add(call.func.span(), "crash_point()".to_owned());
        }
    }
}
