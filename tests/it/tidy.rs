//! Holds the code to the rules that ARCHITECTURE.md states, and to what every file here promises.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use regex::Regex;

const SOURCE_LINES_MAX: usize = 500;
const ARCHITECTURE_LINES_MAX: usize = 150;

#[test]
fn modules_import_from_lower_floors_only() {
    let floors = Floors::parse(&architecture());
    assert_none(&floor_faults(&floors, &sources("src")));
}

#[test]
fn the_floor_table_names_every_module_and_no_other() {
    let floors = Floors::parse(&architecture());
    let modules: BTreeSet<String> =
        sources("src").iter().filter_map(|source| module_of(&source.path)).collect();
    assert_none(&table_faults(&floors, &modules));
}

#[test]
fn source_files_have_a_header_and_a_bounded_length() {
    let sources = sources("src");
    assert!(sources.len() > 10, "only {} source files were found", sources.len());
    assert_none(&sources.iter().flat_map(size_faults).collect::<Vec<_>>());
}

#[test]
fn nothing_unfinished_is_left_in_the_code() {
    let all = [sources("src"), sources("tests")].concat();
    let faults = all.iter().filter(|source| !source.path.ends_with("it/tidy.rs"));
    assert_none(&faults.flat_map(unfinished_faults).collect::<Vec<_>>());
}

#[test]
fn the_architecture_names_what_is_there() {
    let text = architecture();
    let count = text.lines().count();
    assert!(count <= ARCHITECTURE_LINES_MAX, "ARCHITECTURE.md has {count} lines");
    let files: BTreeSet<PathBuf> = sources("src").into_iter().map(|source| source.path).collect();
    assert_none(&naming_faults(&text, &files));
}

/// A source file: its path from the root of the repository, and its text.
#[derive(Clone)]
struct Source {
    path: PathBuf,
    text: String,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn architecture() -> String {
    fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md")
}

fn sources(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next).expect("a folder of the repository") {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a source file");
                let path = path.strip_prefix(root()).expect("below the root").to_owned();
                found.push(Source { path, text });
            }
        }
    }
    found.sort_by(|one, other| one.path.cmp(&other.path));
    found
}

#[track_caller]
fn assert_none(faults: &[String]) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// The table of floors: for each module its floor and its place in the line.
struct Floors(BTreeMap<String, (u32, usize)>);

impl Floors {
    /// Reads lines `<digit>  name, name | name` from the first fenced block that has them.
    fn parse(text: &str) -> Floors {
        let line_form = Regex::new(r"^\s*(\d)\s+([a-z].*)$").expect("a pattern");
        let mut floors = BTreeMap::new();
        for block in text.split("```").skip(1).step_by(2) {
            for line in block.lines() {
                let Some(found) = line_form.captures(line) else { continue };
                let floor: u32 = found[1].parse().expect("a digit");
                for (place, name) in names_in(&found[2]).enumerate() {
                    floors.insert(name, (floor, place));
                }
            }
            if !floors.is_empty() {
                return Floors(floors);
            }
        }
        panic!("ARCHITECTURE.md has no table of floors");
    }

    /// Whether `from` may import `to`. Within the top floor a module may import those named after it.
    fn allows(&self, from: &str, to: &str) -> bool {
        let (Some(from), Some(to)) = (self.0.get(from), self.0.get(to)) else { return false };
        let top = self.0.values().map(|(floor, _)| *floor).max();
        to.0 < from.0 || (Some(from.0) == top && from.0 == to.0 && to.1 > from.1)
    }
}

/// The names in a line of the table; what stands in parentheses is explanation, and so is
/// everything behind two spaces.
fn names_in(line: &str) -> impl Iterator<Item = String> + use<> {
    let line = Regex::new(r"\([^)]*\)").expect("a pattern").replace_all(line, "").into_owned();
    let names = Regex::new(r"\s{2,}[^|\s].*$").expect("a pattern").replace(&line, "").into_owned();
    let separators = Regex::new(r"[,|]|->|→").expect("a pattern");
    let names: Vec<String> = separators.split(&names).map(|name| name.trim().to_owned()).collect();
    names.into_iter().filter(|name| !name.is_empty())
}

/// The top-level module that a source file belongs to; `None` for lib.rs, which only lists them.
fn module_of(path: &Path) -> Option<String> {
    let below_src = path.strip_prefix("src").expect("a file of src");
    let first = below_src.components().next()?.as_os_str().to_string_lossy().into_owned();
    let module = first.strip_suffix(".rs").unwrap_or(&first);
    (module != "lib").then(|| module.to_owned())
}

fn table_faults(floors: &Floors, modules: &BTreeSet<String>) -> Vec<String> {
    let missing = modules.iter().filter(|module| !floors.0.contains_key(*module));
    let missing = missing.map(|module| format!("{module} is on no floor"));
    let extra = floors.0.keys().filter(|module| !modules.contains(*module));
    missing.chain(extra.map(|module| format!("{module} is on a floor and not in src"))).collect()
}

fn floor_faults(floors: &Floors, sources: &[Source]) -> Vec<String> {
    let mut faults = Vec::new();
    for source in sources.iter().filter(|source| !is_test_file(&source.path)) {
        let Some(from) = module_of(&source.path) else { continue };
        for to in imported_modules(source) {
            if to != from && !floors.allows(&from, &to) {
                faults.push(format!("{}: {from} may not import {to}", source.path.display()));
            }
        }
    }
    faults
}

fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    let in_folder = path.components().any(|part| part.as_os_str() == "tests");
    in_folder || name == "tests" || name.ends_with("_tests")
}

/// The top-level modules that a file names in a path from the root of the crate.
fn imported_modules(source: &Source) -> BTreeSet<String> {
    let code = code_outside_tests(&source.text);
    let below_src = source.path.strip_prefix("src").expect("a file of src");
    // How many `super::` lead from this file to the root of the crate.
    let is_folder_root = below_src.file_name().is_some_and(|name| name == "mod.rs");
    let depth = below_src.components().count() - usize::from(is_folder_root);
    let roots = format!(r"\b(?:crate|profile_proxy|(?:super::){{{}}}super)::", depth - 1);
    let one = Regex::new(&format!("{roots}([a-z_0-9]+)")).expect("a pattern");
    let group = Regex::new(&format!(r"{roots}\{{")).expect("a pattern");
    let mut found: BTreeSet<String> = one.captures_iter(&code).map(|c| c[1].to_owned()).collect();
    for start in group.find_iter(&code) {
        found.extend(first_names_in_group(&code[start.end()..]));
    }
    // A name behind more `super::` than needed is a path inside the module; `self` is the root.
    found.remove("super");
    found.remove("self");
    found
}

/// The first name of each path in `a::X, b::{Y, Z}, c}...`.
fn first_names_in_group(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let (mut depth, mut name, mut first) = (0, String::new(), true);
    for letter in text.chars() {
        match letter {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                names.push(std::mem::take(&mut name));
                first = true;
            }
            ':' => first = false,
            _ if depth == 0 && first && !letter.is_whitespace() => name.push(letter),
            _ => {}
        }
    }
    names.push(name);
    names.retain(|name| name.starts_with(|first: char| first.is_ascii_lowercase()));
    names
}

/// The text without comments and without items that are compiled for tests only.
fn code_outside_tests(text: &str) -> String {
    let mut code = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim_start().starts_with("//") {
            continue;
        }
        if line.trim() == "#[cfg(test)]" {
            skip_item(&mut lines);
            continue;
        }
        code.push_str(line);
        code.push('\n');
    }
    code
}

/// Skips one item; formatted code closes it at the indentation at which it began.
fn skip_item(lines: &mut std::str::Lines<'_>) {
    let Some(mut line) = lines.next() else { return };
    while line.trim_start().starts_with('#') {
        let Some(next) = lines.next() else { return };
        line = next;
    }
    if line.ends_with(';') || line.ends_with('}') {
        return;
    }
    let indentation: String = line.chars().take_while(|letter| letter.is_whitespace()).collect();
    let (brace, group) = (format!("{indentation}}}"), format!("{indentation}}};"));
    for line in lines {
        if line == brace || line == group {
            return;
        }
    }
}

fn size_faults(source: &Source) -> Vec<String> {
    let path = source.path.display();
    let mut faults = Vec::new();
    if !source.text.starts_with("//! ") {
        faults.push(format!("{path}: does not open with `//! ` and what the file is for"));
    }
    let count = source.text.lines().count();
    if count > SOURCE_LINES_MAX {
        faults.push(format!("{path}: {count} lines, {SOURCE_LINES_MAX} at most"));
    }
    faults
}

fn unfinished_faults(source: &Source) -> Vec<String> {
    let marks = ["todo!(", "unimplemented!(", "dbg!(", "FIXME", "XXX", "TODO", "#[ignore"];
    let mut faults = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        for mark in marks.iter().filter(|mark| line.contains(**mark)) {
            faults.push(format!("{}:{}: {mark}", source.path.display(), number + 1));
        }
    }
    faults
}

/// Files that are named and missing, and folders of src that are not named.
fn naming_faults(text: &str, files: &BTreeSet<PathBuf>) -> Vec<String> {
    let path_form = Regex::new(r"[A-Za-z0-9_./-]+").expect("a pattern");
    let mut faults = Vec::new();
    let folders: BTreeSet<&Path> = files.iter().filter_map(|file| file.parent()).collect();
    for name in path_form.find_iter(text).map(|found| found.as_str().trim_end_matches('.')) {
        let is_file = name.contains('/') && name.ends_with(".rs") && !name.starts_with("tests/");
        let is_folder = name.starts_with("src/") && name.ends_with('/') && name != "src/";
        let path = Path::new(name);
        let in_src = Path::new("src").join(name);
        let there = if is_file {
            files.contains(path) || files.contains(&in_src)
        } else {
            !is_folder || folders.iter().any(|folder| folder.starts_with(path))
        };
        if !there {
            faults.push(format!("ARCHITECTURE.md names {name}, which is not there"));
        }
    }
    let named = |folder: &&Path| *folder != Path::new("src") && !folder.ends_with("tests");
    for folder in folders.into_iter().filter(named) {
        let name = folder.strip_prefix("src").expect("a folder of src").display();
        if !text.contains(&format!("{name}/")) {
            faults.push(format!("ARCHITECTURE.md does not name the folder src/{name}/"));
        }
    }
    faults
}

/// The checks themselves, on small examples: each must find what it is there for.
mod checks {
    use super::*;

    const TABLE: &str = "Words.\n```\n  2  main -> app -> cli, config\n  1  dispatch | sinks   the \
                         flows, 2\n  0  resp, profile (Key, Field)\n```\n```\n9  other\n```\n";

    fn source(path: &str, text: &str) -> Source {
        Source { path: PathBuf::from(path), text: text.to_owned() }
    }

    fn faults(path: &str, text: &str) -> Vec<String> {
        floor_faults(&Floors::parse(TABLE), &[source(path, text)])
    }

    #[test]
    fn the_table_is_read_with_its_separators_and_explanations() {
        let floors = Floors::parse(TABLE);
        let names: Vec<&str> = floors.0.keys().map(String::as_str).collect();
        let expected = ["app", "cli", "config", "dispatch", "main", "profile", "resp", "sinks"];
        assert_eq!(names, expected);
        assert_eq!(floors.0["config"], (2, 3));
        assert_eq!(floors.0["sinks"].0, 1);
    }

    #[test]
    fn imports_from_lower_floors_are_allowed() {
        assert_none(&faults(
            "src/dispatch/mod.rs",
            "use crate::resp::Reply;\nuse crate::dispatch::x;",
        ));
        assert_none(&faults("src/app.rs", "use crate::{config::Config, sinks, resp::{A, B}};"));
        assert_none(&faults("src/main.rs", "use profile_proxy::app;\n"));
        assert_none(&faults("src/sinks/postgres.rs", "use super::cursor;\nuse super::Sink;"));
    }

    #[test]
    fn imports_from_neighbours_and_from_above_are_found() {
        for (path, text, fault) in [
            ("src/sinks/mod.rs", "use crate::dispatch::x;", "sinks may not import dispatch"),
            ("src/resp/mod.rs", "use crate::profile::Key;", "resp may not import profile"),
            ("src/resp/mod.rs", "fn f() { crate::sinks::run() }", "resp may not import sinks"),
            (
                "src/dispatch/a.rs",
                "use crate::{\n    resp,\n    sinks::{X, Y},\n};",
                "import sinks",
            ),
            ("src/dispatch/a.rs", "use super::super::sinks;", "may not import sinks"),
            ("src/dispatch/mod.rs", "use super::sinks;", "may not import sinks"),
            ("src/config/mod.rs", "use crate::app;", "config may not import app"),
            ("src/app.rs", "use crate::main;", "app may not import main"),
            ("src/app.rs", "use crate::newcomer;", "app may not import newcomer"),
        ] {
            let found = faults(path, text);
            assert!(found.len() == 1 && found[0].contains(fault), "{path} {text}: {found:?}");
        }
    }

    #[test]
    fn comments_and_tests_may_name_anything() {
        let text = "//! See [`crate::sinks`].\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod more {\n    \
                    use crate::sinks;\n}\n";
        assert_none(&faults("src/resp/mod.rs", text));
        assert_none(&faults("src/resp/tests.rs", "use crate::sinks;"));
        assert_none(&faults("src/resp/reply_tests.rs", "use crate::sinks;"));
        let after = format!("{text}use crate::sinks;\n");
        assert_eq!(faults("src/resp/mod.rs", &after).len(), 1, "code after the tests is code");
    }

    #[test]
    fn a_module_without_floor_and_a_floor_without_module_are_found() {
        let modules: BTreeSet<String> =
            ["app", "cli", "config", "dispatch", "main", "profile", "resp", "auth"]
                .map(str::to_owned)
                .into();
        let found = table_faults(&Floors::parse(TABLE), &modules);
        assert_eq!(found, ["auth is on no floor", "sinks is on a floor and not in src"]);
    }

    #[test]
    fn long_files_missing_headers_and_unfinished_work_are_found() {
        let long = format!("//! What it is.\n{}", "\n".repeat(SOURCE_LINES_MAX));
        assert_eq!(size_faults(&source("src/a.rs", &long)).len(), 1);
        assert_eq!(size_faults(&source("src/a.rs", "fn main() {}\n")).len(), 1);
        assert_none(&size_faults(&source("src/a.rs", "//! What it is.\n")));
        for text in
            ["todo!()", "dbg!(x)", "// FIXME: later", "// XXX", "#[ignore]", "unimplemented!()"]
        {
            assert_eq!(unfinished_faults(&source("src/a.rs", text)).len(), 1, "{text}");
        }
        assert_none(&unfinished_faults(&source("src/a.rs", "fn done() {}")));
    }

    #[test]
    fn names_of_files_that_are_gone_and_folders_without_a_name_are_found() {
        let files = ["src/lib.rs", "src/resp/mod.rs", "src/sinks/mod.rs"].map(PathBuf::from).into();
        let good = "`src/lib.rs`, resp/mod.rs and src/sinks/, see tests/it/tidy.rs.";
        assert_none(&naming_faults(good, &files));
        let found = naming_faults("src/gone.rs, resp/gone.rs, src/lost/ and resp/.", &files);
        assert_eq!(found.len(), 4, "{found:?}");
        assert!(found[3].contains("does not name the folder src/sinks/"), "{found:?}");
    }
}
