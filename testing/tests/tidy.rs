//! The rules of the house that a program can check, checked over every file of the workspace.
//!
//! Each rule is a function from all files to complaints, and a test that there are none; at the end, each
//! rule is shown something it must complain about. A complaint begins with `file:line:`. This file knows
//! where things belong in the workspace; it does not know what they do.
#![allow(clippy::unwrap_used)]

#[path = "tidy/source.rs"]
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use source::{Source, Word};

/// The only files that may speak to the kernel without a net.
const UNSAFE_FILES: [&str; 4] =
    ["ring/src/sys.rs", "ring/src/envelope.rs", "ring/src/buffer.rs", "ring/src/driver/uring.rs"];

/// The only file that may name the crate `io_uring`.
const IO_URING_FILE: &str = "ring/src/driver/uring.rs";

/// The only files that may read the wall clock: the date of a measurement, and the age of a file as it is
/// shown.
const WALL_CLOCK_FILES: [&str; 2] = ["perf/src/surroundings.rs", "sendright/src/commands/names.rs"];

/// The modules of `ring` below the line: nothing there knows who waits, or what a socket is.
const BELOW_THE_LINE: [&str; 7] = ["driver", "request", "envelope", "buffer", "message", "fd", "sys"];

/// Modules that only say what bytes mean.
const WIRE_MODULES: [&str; 6] = [
    "/src/wire",
    "introduction/src/syrup",
    "introduction/src/locator",
    "introduction/src/record",
    "introduction/src/inlet",
    "introduction/src/statement",
];

/// The widest line of Rust, in characters, as rustfmt has it for code.
const COLUMNS_MAX: usize = 110;

// The rules.

#[test]
fn unsafe_lives_in_four_files() {
    assert_tidy(unsafe_elsewhere(&sources()));
}

fn unsafe_elsewhere(sources: &[Source]) -> Vec<String> {
    words_outside(sources, &UNSAFE_FILES, |words| match words[0].text {
        "unsafe" => Some("`unsafe`: only sys, envelope, buffer and driver/uring may contain it"),
        "libc" => Some("`libc`: only sys, envelope, buffer and driver/uring may call it"),
        _ => None,
    })
}

#[test]
fn no_code_is_where_nobody_looks() {
    assert_tidy(code_out_of_sight(&sources()));
}

/// What the rules about words do not see although it is compiled: files that are not called `.rs`, files that
/// are made while building, and examples in documentation.
fn code_out_of_sight(sources: &[Source]) -> Vec<String> {
    let mut complaints = words_outside(sources, &[], |words| match texts(words).as_slice() {
        ["include", "!", ..] => Some("`include!`: code that no rule looks at"),
        _ => None,
    });
    for source in sources {
        let (words, lines) = (source.words(), source.text.lines().collect::<Vec<_>>());
        for index in 0..words.len() {
            let line = words[index].line;
            let is_path = texts(&words[index..]) == ["#", "[", "path", "="];
            let path = lines[line - 1].split('"').nth(1).filter(|_| is_path);
            if path.is_some_and(|path| !path.ends_with(".rs")) {
                complaints.push(format!("{}:{line}: a module that is no `.rs` file", source.path));
            }
        }
        for (line, text) in source.examples() {
            let mut words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            if words.any(|word| matches!(word, "unsafe" | "libc")) {
                complaints.push(format!("{}:{line}: an example does what no code here may", source.path));
            }
        }
    }
    complaints
}

#[test]
fn one_file_names_io_uring() {
    assert_tidy(io_uring_elsewhere(&sources()));
}

fn io_uring_elsewhere(sources: &[Source]) -> Vec<String> {
    words_outside(sources, &[IO_URING_FILE], |words| match texts(words).as_slice() {
        ["io_uring", "::", ..] | ["use" | "crate", "io_uring", ..] => {
            Some("names the crate `io_uring`: only driver/uring may")
        }
        _ => None,
    })
}

#[test]
fn all_but_ring_forbid_unsafe() {
    assert_tidy(unsafe_not_forbidden(&sources()));
}

fn unsafe_not_forbidden(sources: &[Source]) -> Vec<String> {
    let roots = sources.iter().filter(|source| {
        let is_root = source.path.ends_with("/src/lib.rs") || source.path.ends_with("/src/main.rs");
        is_root && !source.path.starts_with("ring/")
    });
    let unforbidden = roots.filter(|source| !source.code.contains("#![forbid(unsafe_code)]"));
    unforbidden.map(|source| format!("{}:1: has no #![forbid(unsafe_code)]", source.path)).collect()
}

#[test]
fn a_file_introduces_itself() {
    assert_tidy(files_without_introduction(&sources()));
}

fn files_without_introduction(sources: &[Source]) -> Vec<String> {
    let silent = sources.iter().filter(|source| !source.introduction().contains('.'));
    silent
        .map(|source| {
            format!("{}:1: does not begin with a `//!` paragraph that says what it is", source.path)
        })
        .collect()
}

#[test]
fn a_library_says_what_it_does_not() {
    assert_tidy(libraries_that_promise_everything(&sources()));
}

fn libraries_that_promise_everything(sources: &[Source]) -> Vec<String> {
    let libraries = sources.iter().filter(|source| source.path.ends_with("/src/lib.rs"));
    let boundless = libraries.filter(|source| !source.introduction().contains("It does not "));
    boundless
        .map(|source| format!("{}:1: its introduction has no sentence \"It does not ...\"", source.path))
        .collect()
}

#[test]
fn wire_modules_do_no_io() {
    assert_tidy(io_in_wire_modules(&sources()));
}

fn io_in_wire_modules(sources: &[Source]) -> Vec<String> {
    const DESCRIPTORS: [&str; 4] = ["OwnedFd", "BorrowedFd", "RawFd", "Socket"];
    const MODULES: [&str; 4] = ["std::io", "std::net", "std::fs", "ring::Socket"];
    let mut complaints = Vec::new();
    let is_wire = |source: &&Source| WIRE_MODULES.iter().any(|module| source.path.contains(module));
    for source in sources.iter().filter(is_wire) {
        let mut complain = |line: usize, what: &str| {
            complaints.push(format!("{}:{line}: `{what}`: a wire module does no I/O", source.path));
        };
        for (path, line) in source.uses() {
            if let Some(module) = MODULES.iter().find(|module| is_at_or_below(&path, module)) {
                complain(line, module);
            }
        }
        let words = source.words();
        for (index, word) in words.iter().enumerate() {
            let path: String = texts(&words[index..]).into_iter().take(3).collect();
            if let Some(module) = MODULES.iter().find(|module| path == **module) {
                complain(word.line, module);
            } else if DESCRIPTORS.contains(&word.text) {
                complain(word.line, word.text);
            }
        }
    }
    complaints
}

#[test]
fn nothing_below_the_line_knows_who_waits() {
    assert_tidy(waiting_below_the_line(&sources()));
}

fn waiting_below_the_line(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| is_below_the_line(&source.path)) {
        let above = source.words().into_iter().filter(|w| matches!(w.text, "Waker" | "Future" | "Socket"));
        complaints.extend(above.map(|word| {
            format!("{}:{}: `{}` does not exist below the line", source.path, word.line, word.text)
        }));
    }
    complaints
}

fn is_below_the_line(path: &str) -> bool {
    let Some(module) = path.strip_prefix("ring/src/") else { return false };
    let module = module.split('/').next().unwrap_or_default();
    BELOW_THE_LINE.contains(&module.strip_suffix(".rs").unwrap_or(module))
}

#[test]
fn nobody_waits_by_the_wall_clock() {
    assert_tidy(wall_clocks(&sources()));
}

/// The clock on the wall is set forward and back by whoever may; time limits are those of `Instant`, which
/// goes on as before (and stands still while the machine is suspended). Nor may a time limit be handed to the
/// kernel as anything but a span, or a moment of the monotonic clock.
fn wall_clocks(sources: &[Source]) -> Vec<String> {
    words_outside(sources, &WALL_CLOCK_FILES, |words| match words[0].text {
        "SystemTime" | "UNIX_EPOCH" | "CLOCK_REALTIME" | "REALTIME" | "Realtime" | "RealtimeAlarm"
        | "jiff" | "humantime" => {
            Some("the wall clock: it may jump, and only what is shown to people may read it")
        }
        _ => None,
    })
}

#[test]
fn nothing_lives_in_a_thread_local() {
    assert_tidy(thread_locals(&sources()));
}

fn thread_locals(sources: &[Source]) -> Vec<String> {
    let libraries = sources.iter().filter(|source| source.path.contains("/src/"));
    let found = libraries.flat_map(|source| {
        let words = source.words().into_iter().filter(|word| word.text == "thread_local");
        words.map(|word| format!("{}:{}: thread-local: two reactors share a thread", source.path, word.line))
    });
    found.collect()
}

#[test]
fn each_safety_comment_names_a_test_that_exists() {
    assert_tidy(safety_without_test(&sources()));
}

fn safety_without_test(sources: &[Source]) -> Vec<String> {
    let tests = test_functions(sources);
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| UNSAFE_FILES.contains(&source.path.as_str())) {
        for (line, comment) in safety_comments(source) {
            let named = tests_named(&comment);
            if named.is_empty() {
                complaints.push(format!(
                    "{}:{line}: SAFETY without the words \"Kept honest by `file.rs::test`\"",
                    source.path
                ));
            }
            for missing in named.iter().filter(|test| !tests.contains(*test)) {
                let (file, test) = missing;
                complaints.push(format!(
                    "{}:{line}: kept honest by `{file}.rs::{test}`, which does not exist",
                    source.path
                ));
            }
        }
    }
    complaints
}

/// Every function in a file of tests, or below the `#[cfg(test)]` of any other, by the names of file and
/// function.
fn test_functions(sources: &[Source]) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for source in sources {
        let words = source.words();
        let is_test = |from: &[Word<'_>]| matches!(texts(from).as_slice(), ["cfg", "(", "test", ")"]);
        let tests = match source.path.contains("/tests/") || source.path.ends_with("/tests.rs") {
            true => Some(0),
            false => (0..words.len()).find(|index| is_test(&words[*index..])),
        };
        for pair in words[tests.unwrap_or(words.len())..].windows(2).filter(|pair| pair[0].text == "fn") {
            found.insert((source.stem().to_owned(), pair[1].text.to_owned()));
        }
    }
    found
}

/// Each comment with SAFETY, from that word to the end of the comment or the next such word, on one line.
fn safety_comments(source: &Source) -> Vec<(usize, String)> {
    let mut found: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (index, (comment, code)) in source.comments.lines().zip(source.code.lines()).enumerate() {
        let comment = comment.trim();
        let words = comment.trim_start_matches('/').trim();
        if let Some((_, fact)) = words.split_once("SAFETY:") {
            found.push((index + 1, fact.trim().to_owned()));
            is_open = true;
        } else if is_open && comment.starts_with("//") && code.trim().is_empty() {
            if let Some((_, text)) = found.last_mut() {
                text.push(' ');
                text.push_str(words);
            }
        } else {
            is_open = false;
        }
    }
    found
}

/// The file and function of "Kept honest by `file.rs::test`", and of what follows by "and" or a comma.
fn tests_named(comment: &str) -> Vec<(String, String)> {
    let Some((_, mut rest)) = comment.split_once("Kept honest by ") else { return Vec::new() };
    let mut named = Vec::new();
    while let Some((name, after)) = rest.strip_prefix('`').and_then(|rest| rest.split_once('`')) {
        if let Some((file, test)) = name.split_once("::") {
            named.push((file.strip_suffix(".rs").unwrap_or(file).to_owned(), test.to_owned()));
        }
        rest = after.strip_prefix(" and ").or_else(|| after.strip_prefix(", ")).unwrap_or_default();
    }
    named
}

#[test]
fn nothing_is_left_for_later() {
    assert_tidy(left_for_later(&sources()));
}

fn left_for_later(sources: &[Source]) -> Vec<String> {
    let mut complaints = words_outside(sources, &[], |words| match texts(words).as_slice() {
        ["todo" | "unimplemented" | "dbg", "!", ..] => Some("a macro that must not be committed"),
        ["#", "[", "ignore", ..] => Some("an ignored test: it runs, or it is not there"),
        _ => None,
    });
    let mark = concat!("FIX", "ME");
    for source in sources {
        for (index, (code, comment)) in source.code.lines().zip(source.comments.lines()).enumerate() {
            if code.contains(mark) || comment.contains(mark) {
                complaints.push(format!("{}:{}: {mark}", source.path, index + 1));
            }
        }
    }
    complaints
}

#[test]
fn lines_fit_the_page() {
    assert_tidy(wide_lines(&sources()));
}

fn wide_lines(sources: &[Source]) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources {
        for (index, line) in source.text.lines().enumerate() {
            let columns = line.chars().count();
            let is_address = line.contains("https://") || line.contains("http://");
            if columns > COLUMNS_MAX && !is_address {
                complaints.push(format!("{}:{}: {columns} columns", source.path, index + 1));
            }
        }
    }
    complaints
}

#[test]
fn names_are_nouns_and_verbs_a_colleague_can_say() {
    assert_tidy(unspeakable_names(&sources()));
}

fn unspeakable_names(sources: &[Source]) -> Vec<String> {
    const ENDINGS: [&str; 4] = ["Manager", "Helper", "Inner", "Raw2"];
    let mut complaints = Vec::new();
    for source in sources {
        for pair in source.words().windows(2) {
            let name = pair[1].text;
            // The process that a test starts, which is what everybody calls it.
            let is_ours = source.path == "testing/src/helper.rs" && name == "Helper";
            let is_unspeakable = match pair[0].text {
                "struct" | "enum" | "union" | "trait" | "type" => ENDINGS.iter().any(|e| name.ends_with(e)),
                "fn" => name.starts_with("get_") || name.starts_with("do_"),
                _ => false,
            };
            if is_unspeakable && !is_ours {
                complaints.push(format!("{}:{}: `{name}` says nothing", source.path, pair[1].line));
            }
        }
    }
    complaints
}

#[test]
fn each_package_has_the_licence_and_the_lints_of_the_workspace() {
    let manifests: Vec<(String, String)> = members()
        .into_iter()
        .map(|member| format!("{member}/Cargo.toml"))
        .filter_map(|path| Some((path.clone(), fs::read_to_string(root().join(&path)).ok()?)))
        .collect();
    assert!(!manifests.is_empty(), "no member of the workspace was found");
    assert_tidy(manifests_apart(&manifests));
}

fn manifests_apart(manifests: &[(String, String)]) -> Vec<String> {
    let mut complaints = Vec::new();
    for (path, manifest) in manifests {
        let lines: Vec<String> = manifest.lines().map(|line| line.replace(' ', "")).collect();
        for key in ["license", "rust-version", "edition"] {
            let forms = [format!("{key}.workspace=true"), format!("{key}={{workspace=true}}")];
            if !lines.iter().any(|line| forms.contains(line)) {
                complaints.push(format!("{path}:1: {key} is not the workspace's"));
            }
        }
        if !lines.windows(2).any(|pair| pair == ["[lints]", "workspace=true"]) {
            complaints.push(format!("{path}:1: lints are not the workspace's"));
        }
    }
    complaints
}

#[test]
fn each_guarantee_names_a_test_that_exists() {
    let text = fs::read_to_string(root().join(PROMISES)).unwrap();
    assert_tidy(guarantees_without_test(&sources(), &text));
}

/// Where it is said what peers cannot do to each other.
const PROMISES: &str = "SECURITY.md";

/// Of a table in whose heading stands "kept honest by", each row names a test in its last place; and each
/// test named anywhere (`package/file.rs::test`) exists.
fn guarantees_without_test(sources: &[Source], text: &str) -> Vec<String> {
    let tests = test_functions_by_package(sources);
    let (mut complaints, mut is_promising) = (Vec::new(), false);
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let cells: Vec<&str> = line.trim().trim_matches('|').split('|').collect();
        is_promising = line.starts_with('|') && (is_promising || line.contains("kept honest by"));
        let is_row = is_promising && !line.contains("kept honest by") && !line.starts_with("|-");
        let of_row = cells.last().copied().unwrap_or_default();
        if is_row && tests_quoted(of_row).next().is_none() {
            complaints.push(format!("{PROMISES}:{number}: a guarantee without a test"));
        }
        for name in tests_quoted(line).filter(|name| !tests.contains(*name)) {
            complaints.push(format!("{PROMISES}:{number}: `{name}` does not exist"));
        }
    }
    complaints
}

fn tests_quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|quoted| quoted.contains(".rs::"))
}

/// Every test function as `package/file.rs::function`.
fn test_functions_by_package(sources: &[Source]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for source in sources {
        let package = source.path.split('/').next().unwrap_or_default();
        let of_file = test_functions(std::slice::from_ref(source));
        found.extend(of_file.into_iter().map(|(file, test)| format!("{package}/{file}.rs::{test}")));
    }
    found
}

#[test]
fn each_error_is_in_the_guide() {
    let guide = fs::read_to_string(root().join(GUIDE)).unwrap();
    assert_tidy(errors_without_guidance(&sources(), &guide));
}

/// Where each variant of each public error has its line, under a heading with the error's full name.
const GUIDE: &str = "seqpacket/src/failures.md";

fn errors_without_guidance(sources: &[Source], guide: &str) -> Vec<String> {
    const LIBRARIES: [&str; 3] = ["ring", "imc", "seqpacket"];
    let mut complaints = Vec::new();
    for source in sources {
        let Some((library, file)) = source.path.split_once("/src/") else { continue };
        if !LIBRARIES.contains(&library) {
            continue;
        }
        for (line, name, variants) in public_errors(source) {
            // Of a public module the name is part of the error's, of any other it is not.
            let module = file.trim_end_matches(".rs").replace('/', "::");
            let full = if is_public_module(sources, library, &module) {
                format!("{library}::{module}::{name}")
            } else {
                format!("{library}::{name}")
            };
            let lines = guide.lines().skip_while(|line| *line != format!("## `{full}`"));
            let table: Vec<&str> = lines.skip(1).take_while(|line| !line.starts_with("## ")).collect();
            for variant in variants {
                let starts = [format!("| `{variant}` |"), format!("| `{variant}(")];
                if !table.iter().any(|line| starts.iter().any(|start| line.starts_with(start))) {
                    complaints.push(format!("{}:{line}: `{full}::{variant}` is not in {GUIDE}", source.path));
                }
            }
        }
    }
    complaints
}

fn is_public_module(sources: &[Source], library: &str, module: &str) -> bool {
    let root = format!("{library}/src/lib.rs");
    sources.iter().find(|source| source.path == root).is_some_and(|source| {
        let words = source.words();
        (0..words.len()).any(|index| texts(&words[index..]).starts_with(&["pub", "mod", module]))
    })
}

/// The line, name and variants of each `pub enum` whose name ends with `Error`.
fn public_errors(source: &Source) -> Vec<(usize, String, Vec<String>)> {
    let words = source.words();
    let mut found = Vec::new();
    for index in 0..words.len() {
        let &["pub", "enum", name, "{"] = texts(&words[index..]).as_slice() else { continue };
        if !name.ends_with("Error") {
            continue;
        }
        let (mut depth, mut variants, mut is_start) = (0, Vec::new(), true);
        for word in &words[index + 4..] {
            match word.text {
                "}" if depth == 0 => break,
                "(" | "{" | "[" => depth += 1,
                ")" | "}" | "]" => depth -= 1,
                "," if depth == 0 => is_start = true,
                text if depth == 0 && is_start && text.starts_with(char::is_uppercase) => {
                    variants.push(text.to_owned());
                    is_start = false;
                }
                _ => {}
            }
        }
        found.push((words[index].line, name.to_owned(), variants));
    }
    found
}

#[test]
fn no_machine_is_written_down() {
    let root = root();
    let texts = tracked_files().into_iter().filter_map(|path| {
        let text = fs::read_to_string(root.join(&path)).ok()?;
        Some((path, text))
    });
    assert_tidy(machines(&texts.collect::<Vec<_>>()));
}

fn machines(texts: &[(String, String)]) -> Vec<String> {
    // In two parts, or this file would complain about itself.
    const MACHINES: [&str; 4] = [
        concat!("/wo", "rk/"),
        concat!("/ro", "ot/"),
        concat!("index.cra", "tes.io"),
        concat!("static.cra", "tes.io"),
    ];
    let mut complaints = Vec::new();
    for (path, text) in texts {
        for (index, line) in text.lines().enumerate() {
            for machine in MACHINES.iter().filter(|machine| has_absolute(line, machine)) {
                complaints.push(format!("{path}:{}: {machine} belongs to one machine", index + 1));
            }
        }
    }
    complaints
}

/// Whether the line has `what` where it does not continue a longer path.
fn has_absolute(line: &str, what: &str) -> bool {
    line.match_indices(what).any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '.'))
}

// What the rules have in common.

#[track_caller]
fn assert_tidy(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{} to tidy:\n{}", complaints.len(), complaints.join("\n"));
}

/// Complains where `rule` does, which sees the words of a file from each word on.
fn words_outside(
    sources: &[Source],
    allowed: &[&str],
    rule: impl Fn(&[Word<'_>]) -> Option<&'static str>,
) -> Vec<String> {
    let mut complaints = Vec::new();
    for source in sources.iter().filter(|source| !allowed.contains(&source.path.as_str())) {
        let words = source.words();
        for index in 0..words.len() {
            if let Some(complaint) = rule(&words[index..]) {
                complaints.push(format!("{}:{}: {complaint}", source.path, words[index].line));
            }
        }
    }
    complaints
}

/// The next few words, which is as far as any rule looks.
fn texts<'a>(words: &[Word<'a>]) -> Vec<&'a str> {
    words.iter().take(4).map(|word| word.text).collect()
}

fn is_at_or_below(path: &str, module: &str) -> bool {
    path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust file of the workspace.
fn sources() -> Vec<Source> {
    let root = root();
    let paths = files_below(&root).into_iter().filter(|path| path.ends_with(".rs"));
    let sources: Vec<Source> =
        paths.map(|path| Source::new(&path, &fs::read_to_string(root.join(&path)).unwrap())).collect();
    assert!(sources.iter().any(|source| source.path == "testing/tests/tidy.rs"), "looked in the wrong place");
    sources
}

/// Every file from the root of the workspace, except what cargo and git made.
fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let entry = entry.unwrap();
            // Cargo marks what it makes; a folder of ours may be called `target` all the same.
            let is_made = entry.file_name() == ".git" || entry.path().join("CACHEDIR.TAG").exists();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && !is_made {
                folders.push(entry.path());
            } else if kind.is_file() || kind.is_symlink() && entry.path().is_file() {
                found.push(entry.path().strip_prefix(root).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// What git knows; without git (an unpacked archive), everything.
fn tracked_files() -> Vec<String> {
    let listed = Command::new("git").args(["ls-files", "-z"]).current_dir(root()).output();
    match listed {
        Ok(output) if output.status.success() && !output.stdout.is_empty() => {
            let names = String::from_utf8_lossy(&output.stdout).into_owned();
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => files_below(&root()),
    }
}

/// The members that the workspace's manifest lists.
fn members() -> Vec<String> {
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, list) = manifest.split_once("members = [").unwrap();
    let (list, _) = list.split_once(']').unwrap();
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

// Each rule is shown what it must complain about, and what it must leave alone.

type Rule = fn(&[Source]) -> Vec<String>;

#[track_caller]
fn complains(rule: Rule, path: &str, text: &str) {
    let complaints = rule(&[Source::new(path, text)]);
    assert!(!complaints.is_empty(), "no complaint about {path}: {text}");
    assert!(complaints[0].starts_with(&format!("{path}:")), "{}", complaints[0]);
}

#[track_caller]
fn is_content(rule: Rule, path: &str, text: &str) {
    assert_tidy(rule(&[Source::new(path, text)]));
}

#[test]
fn each_rule_complains_about_what_it_forbids() {
    complains(unsafe_elsewhere, "imc/src/lib.rs", "fn f() { unsafe { g() } }");
    complains(unsafe_elsewhere, "ring/src/socket.rs", "let x = libc::close(3);");
    complains(unsafe_elsewhere, "ring/src/socket.rs", "use libc as c;");
    complains(
        unsafe_elsewhere,
        "ring/src/driver/epoll.rs",
        "unsafe extern \"C\" { safe fn getpid() -> i32; }",
    );
    complains(unsafe_elsewhere, "ring/src/driver/epoll/uring.rs", "unsafe impl Send for Epoll {}");
    complains(unsafe_elsewhere, "ring/build.rs", "fn main() { unsafe { f() } }");
    complains(unsafe_elsewhere, "ring/tests/sys.rs", "unsafe fn f() {}");
    complains(unsafe_elsewhere, "examples/echo.rs", "#[unsafe(no_mangle)]\npub fn f() {}");
    complains(
        unsafe_elsewhere,
        "benches/suites/call.rs",
        "macro_rules! f { ($e:expr) => { unsafe { $e } } }",
    );
    complains(unsafe_elsewhere, "benches/peers/src/main.rs", "let a = 'a'; unsafe { f() }");
    complains(unsafe_elsewhere, "fuzz/fuzz_targets/frames.rs", "let s = r#\"\"\"#; unsafe { f() } // \"");
    complains(code_out_of_sight, "ring/src/sys.rs", "include!(\"generated.inc\");");
    complains(code_out_of_sight, "ring/src/lib.rs", "#[path = \"hidden.txt\"]\nmod hidden;");
    complains(code_out_of_sight, "ring/src/lib.rs", "/// ```\n/// unsafe { f() }\n/// ```\npub fn f() {}");
    complains(
        code_out_of_sight,
        "imc/src/lib.rs",
        "//! Text.\n//! ```no_run\n//! # libc::close(3);\n//! ```",
    );
    complains(io_uring_elsewhere, "ring/src/driver.rs", "use io_uring::IoUring;");
    complains(io_uring_elsewhere, "ring/src/driver.rs", "extern crate io_uring as ring;");
    complains(unsafe_not_forbidden, "imc/src/lib.rs", "// #![forbid(unsafe_code)]");
    complains(files_without_introduction, "ring/tests/a.rs", "\n//! Late.");
    complains(files_without_introduction, "ring/tests/a.rs", "// An ordinary comment.");
    complains(libraries_that_promise_everything, "imc/src/lib.rs", "//! It does everything.");
    complains(io_in_wire_modules, "seqpacket/src/wire.rs", "use std::{mem, io::{self, Read}};");
    complains(io_in_wire_modules, "seqpacket/src/wire_plain.rs", "fn f() { std::fs::read(\"x\"); }");
    complains(io_in_wire_modules, "seqpacket/src/wire/header.rs", "fd: OwnedFd");
    complains(io_in_wire_modules, "introduction/src/record.rs", "fn f(fd: BorrowedFd<'_>) {}");
    complains(waiting_below_the_line, "ring/src/driver/epoll.rs", "waker: Waker");
    complains(waiting_below_the_line, "ring/src/fd.rs", "impl From<Socket> for Fd {}");
    complains(wall_clocks, "ring/src/clock.rs", "use std::time::{Instant, SystemTime};");
    complains(wall_clocks, "ring/src/sys.rs", "libc::timerfd_create(libc::CLOCK_REALTIME, 0)");
    complains(thread_locals, "ring/src/reactor.rs", "thread_local! { static A: u8 = 0 }");
    complains(left_for_later, "imc/src/lib.rs", "fn f() { todo!() }");
    complains(left_for_later, "imc/tests/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}");
    complains(left_for_later, "imc/src/lib.rs", concat!("// FIX", "ME: later"));
    complains(wide_lines, "imc/src/lib.rs", &"x".repeat(111));
    complains(unspeakable_names, "imc/src/lib.rs", "struct SessionManager;");
    complains(unspeakable_names, "imc/src/lib.rs", "fn get_fd() {}");
    complains(safety_without_test, "ring/src/sys.rs", "// SAFETY: it is fine.\nunsafe { f() }");
    complains(safety_without_test, "ring/src/sys.rs", "// SAFETY: fine. Kept honest by `sys.rs::gone`.");
    complains(safety_without_test, "ring/src/sys.rs", "// SAFETY: x. Kept honest by `sys.rs::f`.\nfn f() {}");
}

#[test]
fn each_rule_leaves_alone_what_it_allows() {
    is_content(unsafe_elsewhere, "imc/src/lib.rs", "#![forbid(unsafe_code)] // unsafe libc::close \"");
    is_content(unsafe_elsewhere, "ring/src/socket.rs", "let s = r#\"unsafe \" libc::\"#;");
    is_content(unsafe_elsewhere, "ring/src/sys.rs", "unsafe { libc::close(3) }");
    is_content(code_out_of_sight, "ring/src/lib.rs", "const S: &str = include_str!(\"a.md\"); // include!");
    is_content(code_out_of_sight, "ring/tests/loom.rs", "#[path = \"../src/task.rs\"]\nmod task;");
    is_content(code_out_of_sight, "ring/src/lib.rs", "/// unsafe\n/// ```\n/// safe();\n/// ```\n/// libc");
    is_content(
        io_uring_elsewhere,
        "ring/src/lib.rs",
        "fn refuse_io_uring() {} let io_uring = \"io_uring::\";",
    );
    is_content(unsafe_not_forbidden, "imc/src/lib.rs", "#![forbid(unsafe_code)]");
    is_content(unsafe_not_forbidden, "ring/src/lib.rs", "");
    is_content(
        libraries_that_promise_everything,
        "imc/src/lib.rs",
        "//! Does this. It does\n//! not do that.",
    );
    is_content(io_in_wire_modules, "seqpacket/src/wire.rs", "use std::{mem, iter}; // std::io OwnedFd");
    is_content(io_in_wire_modules, "seqpacket/src/session.rs", "use std::io;");
    is_content(waiting_below_the_line, "ring/src/sys.rs", "SocketOption::Kind // Socket");
    is_content(waiting_below_the_line, "ring/src/socket.rs", "struct Socket; waker: Waker");
    is_content(wall_clocks, "ring/src/clock.rs", "use std::time::Instant; // SystemTime");
    is_content(thread_locals, "ring/tests/a.rs", "thread_local! {}");
    is_content(wide_lines, "imc/src/lib.rs", &"é".repeat(110));
    is_content(wide_lines, "imc/src/lib.rs", &format!("// https://example.org/{}", "x".repeat(111)));
    is_content(unspeakable_names, "testing/src/helper.rs", "pub struct Helper; fn getsockopt() {}");
    is_content(
        safety_without_test,
        "ring/src/sys.rs",
        "// SAFETY: a fact, of `sys::x`. Kept\n\
         // honest by `sys.rs::one` and `sys::other`.\n\
         #[cfg(test)] mod tests { fn one() {} fn other() {} }",
    );
}

#[test]
fn manifests_of_their_own_are_noticed() {
    let of = |text: &str| manifests_apart(&[("imc/Cargo.toml".to_owned(), text.to_owned())]);
    let same = "license.workspace = true\nrust-version = { workspace = true }\nedition.workspace = true\n";
    assert_eq!(of(&format!("{same}[lints]\nworkspace = true")).len(), 0);
    assert_eq!(of(same).len(), 1);
    assert_eq!(of("license = \"MIT\"\n[lints]\nworkspace = true").len(), 3);
}

#[test]
fn machines_are_noticed_and_relative_paths_are_not() {
    let of = |text: &str| machines(&[("README.md".to_owned(), text.to_owned())]).len();
    assert_eq!(of(concat!("see /wo", "rk/main")), 1);
    assert_eq!(of(concat!("(/ro", "ot/.cargo)")), 1);
    assert_eq!(of(concat!("sparse+https://index.cra", "tes.io/")), 1);
    assert_eq!(of(concat!("home/wo", "rk/main and /proc/self/ro", "ot/etc")), 0);
    assert_eq!(of(concat!("registry+https://github.com/rust-lang/cra", "tes.io-index")), 0);
}

#[test]
fn code_comments_and_literals_are_told_apart() {
    let text = "let a: &'static str = \"b\\\"/*\"; /* c /* d */ e */ f('\"', '\\'', b'g'); // h\nr#\"i\"\"#;";
    let source = Source::new("a.rs", text);
    let code: Vec<&str> = source.words().into_iter().map(|word| word.text).collect();
    let expected = "let a : & ' static str = ; f ( , , b ) ; ;";
    assert_eq!(code.join(" "), expected);
    assert_eq!(source.comments.split_whitespace().collect::<String>(), "/*c/*d*/e*///h");
}

#[test]
fn groups_of_uses_are_taken_apart() {
    let source = Source::new("a.rs", "use a::{b, c::{self, d}, e as f};\nuse g;");
    let paths: Vec<String> = source.uses().into_iter().map(|(path, _)| path).filter(|p| p != "a::").collect();
    assert_eq!(paths, ["a::b", "a::c::self", "a::c::d", "a::easf", "g"]);
}

#[test]
fn errors_without_a_line_in_the_guide_are_noticed() {
    let error = "pub enum SendError {\n#[error(\"a, b\")]\nGone(Vec<Part, u8>),\nIo { a: u8, B: u8 },\n}";
    let of = |path: &str, guide: &str| {
        let sources = [Source::new(path, error), Source::new("ring/src/lib.rs", "pub mod blocking; mod op;")];
        errors_without_guidance(&sources, guide).len()
    };
    let lines = "| `Gone` | x |\n| `Io(Call)` | x |";
    assert_eq!(of("ring/src/op.rs", ""), 2);
    assert_eq!(of("ring/src/op.rs", &format!("## `ring::SendError`\n{lines}")), 0);
    assert_eq!(of("ring/src/op.rs", &format!("## `ring::SendError`\n## `ring::Other`\n{lines}")), 2);
    assert_eq!(of("ring/src/blocking.rs", &format!("## `ring::SendError`\n{lines}")), 2);
    assert_eq!(of("ring/src/blocking.rs", &format!("## `ring::blocking::SendError`\n{lines}")), 0);
    assert_eq!(of("sendright/src/demo.rs", ""), 0);
}

#[test]
fn guarantees_without_a_test_are_noticed() {
    let sources = [Source::new("imc/tests/a.rs", "on_each_driver! { fn one(reactor: &Reactor) {} }")];
    let of = |row: &str| {
        guarantees_without_test(
            &sources,
            &format!("| we guarantee | kept honest by |\n|---|---|\n{row}\n\nx"),
        )
        .len()
    };
    assert_eq!(of("| a | `imc/a.rs::one` |"), 0);
    assert_eq!(of("| a | nobody |"), 1);
    assert_eq!(of("| a, says `imc/a.rs::one` | nobody |"), 1);
    assert_eq!(of("| a | `imc/a.rs::two` |"), 1);
    assert_eq!(of("| a | `ring/a.rs::one` |"), 1);
    assert_eq!(guarantees_without_test(&sources, "elsewhere: `imc/a.rs::two`").len(), 1);
    assert_eq!(guarantees_without_test(&sources, "| a | b |\n|---|---|\n| no | promise |").len(), 0);
}
