//! What the documents lead to is there.

use std::{
    fs,
    path::{Path, PathBuf},
};

const README: &str = include_str!("../README.md");
const DELEGATES: &str = include_str!("../docs/delegates.md");

/// The documents that link to other files.
const DOCUMENTS: [&str; 10] = [
    "README.md",
    "CHANGELOG.md",
    "docs/config.md",
    "docs/delegates.md",
    "docs/fuzzing.md",
    "docs/messages.md",
    "docs/metrics.md",
    "docs/security.md",
    "docs/simulation.md",
    "tests/README.md",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust sources below a directory, one after the other.
fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&read(&path));
        }
    }
}

/// The text without its blocks of code.
fn prose(text: &str) -> String {
    text.split("```").step_by(2).collect()
}

/// Where a document's links lead, but for those to the web.
fn links(text: &str) -> Vec<String> {
    let targets = prose(text);
    let targets = targets.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
    targets.map(|(target, _)| target.to_owned()).filter(|target| !target.starts_with("http")).collect()
}

/// The anchor of a heading, as the web sites of repositories make it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase().replace(' ', "-");
    kept.chars().filter(|c| c.is_alphanumeric() || "-_".contains(*c)).collect()
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let mut count = 0;
    for document in DOCUMENTS {
        let path = root().join(document);
        for link in links(&read(&path)) {
            let (file, part) = link.split_once('#').unwrap_or((&link, ""));
            let target = if file.is_empty() { path.clone() } else { path.with_file_name("").join(file) };
            assert!(target.exists(), "{document}: {link}");
            if !part.is_empty() {
                let text = prose(&read(&target));
                let headings = text.lines().filter(|line| line.starts_with('#'));
                let mut anchors = headings.map(|line| anchor(line.trim_start_matches('#')));
                assert!(anchors.any(|anchor| anchor == part), "{document}: {link}");
            }
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn the_readme_names_each_example() {
    for entry in fs::read_dir(root().join("examples")).expect("examples") {
        let name = entry.expect("an entry").file_name().into_string().expect("a name");
        if let Some(name) = name.strip_suffix(".rs") {
            let row = format!("| [`{name}`](examples/{name}.rs) |");
            assert!(README.contains(&row), "{name}");
        }
    }
}

/// The rows of a document's tables, by their cells, without heads and rules.
fn rows(text: &str) -> Vec<Vec<String>> {
    let text = text.replace("\\|", "/");
    let text: Vec<_> = text.lines().collect();
    let head = |i: usize| text.get(i + 1).is_some_and(|next| next.starts_with("|---"));
    let row = |i: usize| text[i].starts_with("| ") && !head(i);
    let cells = |i: usize| text[i].trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    (0..text.len()).filter(|i| row(*i)).map(cells).collect()
}

#[test]
fn each_feature_of_memberlist_has_a_place_here_or_says_that_it_has_none() {
    let features: Vec<_> = rows(README).into_iter().filter(|row| row.len() == 4).collect();
    assert!(features.len() > 50, "{}", features.len());
    for row in &features {
        assert!(row.iter().all(|cell| !cell.is_empty()), "{row:?}");
    }
}

/// Whether a path such as `Cluster::join`, `join` or `Cluster` is declared in the sources.
fn is_declared(path: &str, sources: &str) -> bool {
    let words: Vec<_> = path.split("::").collect();
    words.iter().all(|word| {
        let word = word.trim_end_matches("()");
        let ways = ["struct ", "enum ", "trait ", "type ", "fn ", "mod ", "pub "];
        let ends = ["(", "<", " {", ";", ":", " ", ",", "\n"];
        let declared = |way: &&str| ends.iter().any(|end| sources.contains(&format!("{way}{word}{end}")));
        let variant = |end: &&str| sources.contains(&format!("\n    {word}{end}"));
        ways.iter().any(declared) || ["(", " {", ","].iter().any(variant)
    })
}

#[test]
fn what_the_tables_of_features_and_delegates_name_is_declared() {
    let mut text = String::new();
    for dir in ["src", "actors/src"] {
        sources(&root().join(dir), &mut text);
    }
    let features = rows(README).into_iter().filter(|row| row.len() == 4).map(|row| row[3].clone());
    let delegates = rows(DELEGATES).into_iter().map(|row| row[1].clone());
    let mut count = 0;
    for cell in features.chain(delegates) {
        for path in cell.split('`').skip(1).step_by(2) {
            assert!(is_declared(path.split('.').next().unwrap_or_default(), &text), "{path}: {cell}");
            count += 1;
        }
    }
    assert!(count > 40, "{count}");
    assert!(!is_declared("Cluster::no_such_thing", &text));
}
