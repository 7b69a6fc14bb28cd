//! The map of tests in `tests/README.md` is whole, and names what there is.

use std::{collections::BTreeSet, fs, path::Path};

const MAP: &str = include_str!("README.md");

/// Tests of memberlist, with those that are commented out there and one tool.
const THEIRS: usize = 149;

/// Its known weak points.
const WEAK_POINTS: usize = 45;

/// The rows of the tables: what stands in the first column, and what in the last.
fn rows() -> impl Iterator<Item = (&'static str, &'static str)> {
    let cells = |line: &'static str| {
        let inner = line.strip_prefix("| ")?.strip_suffix(" |")?;
        let (first, _) = inner.split_once(" | ")?;
        let (_, last) = inner.rsplit_once(" | ")?;
        Some((first.trim_matches('`'), last))
    };
    MAP.lines().filter_map(cells)
}

/// What stands in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

fn source(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(file);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust sources below a directory, one after the other.
fn read_below(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            read_below(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

/// Each test that the map names: its row, its file, its name.
fn named() -> Vec<(&'static str, &'static str, &'static str)> {
    let mut named = Vec::new();
    for (row, here) in rows() {
        let mut file = None;
        for word in quoted(here) {
            if word.ends_with(".rs") {
                file = Some(word);
            } else if !word.contains(['.', '(']) && word.contains('_') {
                named.push((row, file.unwrap_or_else(|| panic!("{row}: no file before {word}")), word));
            }
        }
    }
    named
}

#[test]
fn every_test_that_the_map_names_exists() {
    let named = named();
    for (row, file, name) in &named {
        let test = format!("#[test]\n    fn {name}(");
        let source = source(file).replace("\n    ", "\n").replace("\n", "\n    ");
        let marked = ["#[test]", "#[actix::test]", "#[tokio::test]"];
        let exists = marked.iter().any(|mark| {
            let test = test.replace("#[test]", mark);
            source.contains(&test) || source.contains(&test.replace("fn ", "async fn "))
        });
        assert!(exists, "{row}: there is no test {name} in {file}");
    }
    assert!(named.len() > 150, "{} names were found in the map", named.len());
}

#[test]
fn every_test_of_memberlist_and_every_weak_point_has_a_row_that_says_something() {
    let (mut theirs, mut points) = (BTreeSet::new(), BTreeSet::new());
    for (row, here) in rows() {
        if row.ends_with(".rs") {
            continue;
        }
        let fresh = match row.parse::<usize>() {
            Ok(number) => points.insert(number),
            Err(_) if row.contains('_') || row.starts_with("Test") => theirs.insert(row),
            Err(_) => continue,
        };
        assert!(fresh, "{row} is there twice");
        let says = named().iter().any(|(of, ..)| *of == row) || here.contains("none needed");
        assert!(says, "{row}: {here:?} names no test and no reason");
    }
    assert_eq!(theirs.len(), THEIRS);
    assert_eq!(points, (1..=WEAK_POINTS).collect());
}

#[test]
fn a_weak_point_is_shown_fixed_by_tests_that_carry_its_number() {
    for (row, here) in rows() {
        let Ok(number) = row.parse::<usize>() else { continue };
        let own = format!("weak_point_{number:02}_");
        let shown = named().iter().any(|(of, _, name)| *of == row && name.starts_with(&own));
        assert!(shown, "{row}: {here}");
    }
}

#[test]
fn every_test_that_carries_the_number_of_a_weak_point_is_in_the_row_of_that_number() {
    let in_the_map: BTreeSet<_> = named().into_iter().map(|(row, _, name)| (row.to_owned(), name)).collect();
    let mut sources = String::new();
    for dir in ["src", "actors/src", "tests"] {
        read_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(dir), &mut sources);
    }
    let mut seen = 0;
    for rest in sources.split("fn weak_point_").skip(1) {
        let Some((number, _)) = rest.split_once('_') else { continue };
        // The line above is no test.
        let Ok(number) = number.parse::<usize>() else { continue };
        let name = format!("weak_point_{}", rest.split('(').next().unwrap_or_default());
        assert!(in_the_map.contains(&(number.to_string(), &name)), "{name} is not in the map");
        seen += 1;
    }
    assert!(seen > 70, "{seen} were found");
}

#[test]
fn nothing_is_left_to_be_filled_in() {
    for word in ["TODO", "FIXME", "to be filled", "not there yet"] {
        assert!(!MAP.contains(word), "{word}");
    }
}

#[test]
fn each_file_of_tests_is_described() {
    let described: BTreeSet<_> = rows().map(|(row, _)| row).filter(|row| row.ends_with(".rs")).collect();
    let dir = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let files: Vec<_> = dir.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    let files: BTreeSet<_> = files.iter().map(String::as_str).filter(|file| file.ends_with(".rs")).collect();
    assert_eq!(described, files);
}
