//! A run is a function of its seed, in this process and in any other.

use std::process::Command;

/// Tells the story in a process of its own, and gives the hash of what happened there.
fn hash(seed: u64, nodes: usize, plant: bool) -> String {
    let mut story = Command::new(env!("CARGO_BIN_EXE_story"));
    story.args([seed.to_string(), nodes.to_string()]);
    if plant {
        story.arg("plant");
    }
    let output = story.output().expect("the story runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "seed {seed}: {said}");
    String::from_utf8(output.stdout).expect("a hash").trim().to_owned()
}

#[test]
fn the_same_seed_gives_the_same_trace_in_two_processes_and_another_seed_another() {
    let first = hash(7, 100, false);
    assert_eq!(first, hash(7, 100, false));
    assert_ne!(first, hash(8, 100, false));
}

#[test]
fn a_hash_map_in_the_way_is_noticed() {
    assert_ne!(hash(7, 20, true), hash(7, 20, true));
}

/// Built for speed the story is told from more seeds, and each within five seconds.
#[test]
fn the_story_ends_well_from_each_seed_and_soon() {
    let seeds = if cfg!(debug_assertions) { 1..=3 } else { 1..=30 };
    for seed in seeds {
        let start = std::time::Instant::now();
        hash(seed, 100, false);
        let took = start.elapsed();
        assert!(cfg!(debug_assertions) || took.as_secs() < 5, "seed {seed} took {took:?}");
    }
}
