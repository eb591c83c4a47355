//! Who may import whom: the table of ARCHITECTURE.md, held against the sources.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// A module and what it may import, as paths below `crate`. `""` alone is everything.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("fs", &[]),
    ("ir", &[]),
    ("onnx", &["fs", "ir"]),
    ("pattern", &["ir"]),
    ("canon", &["ir", "pattern"]),
    ("vit", &["ir", "pattern"]),
    ("config", &["data", "vit::site"]),
    ("data", &["fs"]),
    ("simd", &[]),
    ("parallel", &[]),
    ("calib", &["simd"]),
    ("quant", &["calib", "config::schema", "ir::Tensor", "parallel", "simd", "vit::norm", "vit::site"]),
    ("lower", &["ir", "quant::plan", "quant::tables", "vit::site"]),
    ("runtime::kernels", &[]),
    ("runtime::tract", &["ir", "onnx", "runtime::kernels", "calib", "simd"]),
    ("report", &["ir", "quant", "vit"]),
    ("tune", &["calib", "ir", "parallel", "quant", "runtime::tract", "simd", "vit"]),
    ("pipeline", &[""]),
    ("cli", &[""]),
];

/// Imports that the table's words do not cover, each with its reason.
const ALSO: &[(&str, &str, &str)] = &[("quant", "ir::DType", "the type that holds a tensor's codes")];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(folder: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            sources(&path, out);
        } else if path.extension().is_some_and(|e| e == "rs") {
            out.push(path);
        }
    }
}

/// Every source with its module path (`ir::text::parse`) and its code without comments, strings and tests.
fn modules() -> Vec<(String, PathBuf, String)> {
    let src = root().join("src");
    let mut files = Vec::new();
    sources(&src, &mut files);
    assert!(files.len() > 100);
    files
        .into_iter()
        .map(|path| {
            let relative = path.strip_prefix(&src).unwrap().with_extension("");
            let parts: Vec<&str> = relative.iter().map(|p| p.to_str().unwrap()).filter(|p| *p != "mod").collect();
            let code = without_comments_and_strings(&std::fs::read_to_string(&path).unwrap());
            let code = code.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
            (parts.join("::"), path, code)
        })
        // Tests may use what they like.
        .filter(|(module, ..)| !module.split("::").any(|m| m == "tests" || m == "testing" || m.ends_with("_tests")))
        .collect()
}

fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                for c in chars.by_ref() {
                    if c == '\n' {
                        out.push('\n');
                        break;
                    }
                }
            }
            'r' if matches!(chars.peek(), Some('"' | '#')) && !out.ends_with(|c: char| c.is_alphanumeric() || c == '_') => {
                let mut hashes = 0;
                while chars.next_if_eq(&'#').is_some() {
                    hashes += 1;
                }
                if chars.next_if_eq(&'"').is_none() {
                    continue;
                }
                let end = format!("\"{}", "#".repeat(hashes));
                let mut inside = String::new();
                while !inside.ends_with(&end) {
                    let Some(c) = chars.next() else { break };
                    inside.push(c);
                }
            }
            '"' => {
                while let Some(c) = chars.next() {
                    if c == '\\' {
                        chars.next();
                    } else if c == '"' {
                        break;
                    }
                }
                out.push_str("\"\"");
            }
            '\'' => {
                // A character, or a lifetime.
                let mut ahead = chars.clone();
                match (ahead.next(), ahead.next()) {
                    (Some('\\'), _) => {
                        chars.next();
                        chars.next();
                        for c in chars.by_ref() {
                            if c == '\'' {
                                break;
                            }
                        }
                    }
                    (Some(_), Some('\'')) => {
                        chars.next();
                        chars.next();
                    }
                    _ => out.push('\''),
                }
            }
            c => out.push(c),
        }
    }
    out
}

/// The paths below `crate` that a text names, brace lists spelled out.
fn crate_paths(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (at, _) in code.match_indices("crate::") {
        let before = code[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || matches!(c, '_' | '$' | ':')) {
            continue;
        }
        expand(&code[at + "crate::".len()..], String::new(), &mut found);
    }
    found
}

/// Reads one path or brace list; what follows it.
fn expand<'c>(code: &'c str, prefix: String, found: &mut BTreeSet<String>) -> &'c str {
    let code = code.trim_start();
    if let Some(mut rest) = code.strip_prefix('{') {
        loop {
            rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
            if let Some(after) = rest.strip_prefix('}') {
                return after;
            }
            let after = expand(rest, prefix.clone(), found);
            assert!(after.len() < rest.len(), "cannot read {rest:.60}");
            rest = after;
        }
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let (name, rest) = code.split_at(end);
    let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}::{name}") };
    match rest.strip_prefix("::") {
        Some(rest) if rest.starts_with(|c: char| c.is_alphabetic() || matches!(c, '_' | '{')) => expand(rest, path, found),
        _ => {
            let path = if name == "self" { prefix } else { path };
            found.insert(path);
            // `as other`
            rest.strip_prefix(" as ").map_or(rest, |r| r.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

fn within(path: &str, module: &str) -> bool {
    path == module || path.strip_prefix(module).is_some_and(|r| r.starts_with("::"))
}

/// What a module exports that lives in another module of its own: `quant::QuantPlan` is `quant::plan`'s.
fn home(path: &str) -> &str {
    match path {
        "quant::QuantPlan" | "quant::PlanError" => "quant::plan",
        "vit::Site" | "vit::SiteRef" | "vit::Section" | "vit::Accumulated" => "vit::site",
        "vit::Norm" => "vit::norm",
        path => path,
    }
}

#[test]
fn modules_import_what_the_table_lets_them() {
    let mut broken = Vec::new();
    for (module, path, code) in modules() {
        let Some((owner, allowed)) = MAY_IMPORT.iter().filter(|(m, _)| within(&module, m)).max_by_key(|(m, _)| m.len()) else {
            assert!(matches!(module.as_str(), "lib" | "main" | "runtime"), "{} is in no row of the table", path.display());
            continue;
        };
        for import in crate_paths(&code) {
            let target = home(&import);
            let allowed = allowed.iter().any(|a| a.is_empty() || within(target, a));
            let also = ALSO.iter().any(|(m, what, _)| m == owner && within(&import, what));
            if !(allowed || also || within(&import, owner)) {
                broken.push(format!("{}: {owner} imports crate::{import}", path.strip_prefix(root()).unwrap().display()));
            }
            // Nothing imports the command line.
            if within(&import, "cli") && *owner != "cli" {
                broken.push(format!("{} imports {import}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_exception_is_needed() {
    let all = modules();
    for (owner, what, reason) in ALSO {
        let used = all.iter().any(|(m, _, code)| within(m, owner) && crate_paths(code).iter().any(|i| within(i, what)));
        assert!(used && !reason.is_empty(), "{owner} no longer imports {what}: remove the exception");
    }
}

/// The rows of the page's table: a module in backquotes, one idea, what it may import.
#[test]
fn the_table_is_that_of_the_page() {
    let page = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let quoted = |cell: &str| -> BTreeSet<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut rows = BTreeMap::new();
    for line in page.lines().skip_while(|l| !l.starts_with("| module |")).skip(2).take_while(|l| l.starts_with('|')) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let module = quoted(cells[1]).pop_first().unwrap();
        let imports = if cells[3].starts_with("all") { BTreeSet::from([String::new()]) } else { quoted(cells[3]) };
        rows.insert(module, imports);
    }
    // Words of the page for traits that a module defines for others.
    rows.get_mut("calib").unwrap().remove("Forward");
    let wanted: BTreeMap<String, BTreeSet<String>> =
        MAY_IMPORT.iter().map(|(m, i)| ((*m).to_owned(), i.iter().map(|s| (*s).to_owned()).collect())).collect();
    assert_eq!(rows, wanted);
}

#[test]
fn one_place_names_each_of_these_crates() {
    let words =
        |code: &str| -> BTreeSet<String> { code.split(|c: char| !c.is_alphanumeric() && c != '_').map(str::to_owned).collect() };
    for (module, path, code) in modules() {
        let words = words(&code);
        let names = |what: &[&str]| what.iter().any(|w| words.contains(*w));
        if names(&["tract_core", "tract_onnx", "tract_hir", "tract_data", "tract_linalg"]) {
            assert!(within(&module, "runtime::tract"), "{} names tract", path.display());
        }
        if names(&["serde_saphyr", "saphyr"]) {
            assert!(module == "config::load", "{} names the YAML crate", path.display());
        }
        if names(&["prost"]) {
            assert!(within(&module, "onnx") || within(&module, "pipeline::load"), "{} names prost", path.display());
        }
    }
}

#[test]
fn kernels_have_no_floats() {
    let float = |code: &str| {
        let words = code.split(|c: char| !c.is_alphanumeric() && c != '_' && c != '.');
        let number = |w: &&str| w.starts_with(|c: char| c.is_ascii_digit()) && w.contains('.') && !w.contains("..");
        words
            .filter(|w| matches!(*w, "f32" | "f64" | "f16" | "libm") || w.ends_with("f32") || w.ends_with("f64") || number(w))
            .count()
    };
    let mut seen = 0;
    for (module, path, code) in modules() {
        if within(&module, "runtime::kernels") {
            assert_eq!(float(&code), 0, "{} has floating point", path.display());
            seen += 1;
        }
    }
    assert!(seen >= 5);
    // The test itself can see floats.
    assert_eq!(float("let x = 1.5; let y: f32 = z as f64; let t = a.0; for i in 0..4 { v[1] }"), 3);
}

#[test]
fn no_file_is_too_long() {
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    for path in files {
        let lines = std::fs::read_to_string(&path).unwrap().lines().count();
        assert!(lines <= 500, "{} has {lines} lines: one idea a file", path.display());
    }
}

#[test]
fn paths_are_read_from_every_spelling() {
    let code = without_comments_and_strings(
        "use crate::{ir::{Op, text::self}, onnx as o};\nuse crate::quant::plan::{Codes as C, Scheme};\n// crate::cli::x\nlet s = \"crate::no\"; crate::fs::write(r#\"crate::raw\"#); pub(crate) fn f(c: char) { c == '\"' }",
    );
    let paths: Vec<String> = crate_paths(&code).into_iter().collect();
    assert_eq!(paths, ["fs::write", "ir::Op", "ir::text", "onnx", "quant::plan::Codes", "quant::plan::Scheme"]);
}
