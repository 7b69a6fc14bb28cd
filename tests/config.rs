//! What the documentation says of the settings is so.

use std::{fs, path::Path};

/// All Rust sources below a directory, one after the other.
fn sources(dir: &Path, text: &mut String) {
    for entry in fs::read_dir(dir).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            text.push_str(&fs::read_to_string(&path).expect("a source"));
        }
    }
}

#[test]
fn each_test_that_the_table_of_settings_names_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace");
    let mut text = String::new();
    for dir in ["src", "actors/src", "tests"] {
        sources(&root.join(dir), &mut text);
    }
    let table = fs::read_to_string(root.join("docs/config.md")).expect("the table");
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| `")).collect();
    assert!(rows.len() > 40, "{}", rows.len());
    for row in rows {
        let test = row.trim_end_matches(['|', ' ']).rsplit("| ").next().unwrap_or_default().trim_matches('`');
        assert!(text.contains(&format!("fn {test}()")), "no such test: {row}");
    }
}
