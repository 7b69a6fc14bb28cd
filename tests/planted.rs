//! The bugs that `planted/run` plants can still be planted.

use std::{fs, path::Path};

/// What a patch expects of one place of a file, and what it puts there.
struct Hunk {
    file: String,
    before: String,
    after: String,
}

fn hunks(patch: &str) -> Vec<Hunk> {
    let (mut all, mut file) = (Vec::<Hunk>::new(), String::new());
    for line in patch.lines().skip(1) {
        if let Some(name) = line.strip_prefix("--- a/") {
            file = name.to_owned();
        } else if line.starts_with("@@") {
            all.push(Hunk { file: file.clone(), before: String::new(), after: String::new() });
        } else if let Some(hunk) = all.last_mut().filter(|_| !line.starts_with("+++ ")) {
            let (sign, text) = line.split_at_checked(1).unwrap_or((" ", ""));
            for (side, other) in [(&mut hunk.before, "+"), (&mut hunk.after, "-")] {
                if sign != other {
                    side.push_str(text);
                    side.push('\n');
                }
            }
        }
    }
    all
}

#[test]
fn each_planted_bug_still_finds_its_place() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut bugs = 0;
    for entry in fs::read_dir(here.join("planted")).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.extension().is_none_or(|extension| extension != "patch") {
            continue;
        }
        bugs += 1;
        let patch = fs::read_to_string(&path).expect("a patch");
        let name = path.display();
        assert!(!patch.starts_with("---"), "{name}: the first line says what it is");
        let hunks = hunks(&patch);
        assert!(!hunks.is_empty(), "{name} changes nothing");
        for Hunk { file, before, after } in hunks {
            let source = fs::read_to_string(here.join("..").join(&file)).expect("a source");
            assert!(before != after && source.contains(&before), "{name}: not in {file}:\n{before}");
        }
    }
    assert!(bugs >= 12, "{bugs}");
}
