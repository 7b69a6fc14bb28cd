//! A short hunt: clusters under faults that are drawn from seeds, and rules that must hold at every step.
//!
//! `SIMULATE_SEEDS=2000` for a longer one; `cargo run --release -p memberlist-tests --bin simulate` for those that take
//! hours, and for what a failure needs.

use memberlist_tests::simulate::{Campaign, Plan, run};

#[test]
fn whatever_goes_wrong_no_rule_is_broken_and_all_agree_again_without_help() {
    let seeds = std::env::var("SIMULATE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let nodes = |seed| [5, 8, 12, 16][(seed % 4) as usize];
    let all = Campaign::go(0..seeds, nodes, 2, 10, |seed, report| {
        if let Some((at, broken)) = &report.broken {
            println!("seed {seed}, {} nodes, at {:.1} s: {broken}", nodes(seed), at.as_secs_f64());
        }
    });
    assert_eq!((all.failed.len(), all.runs), (0, seeds));
    // What is not there cannot be found.
    assert_eq!(all.missing(), Vec::<&str>::new());
    let kinds = ["joined", "updated", "suspected", "refuted", "left", "dead"];
    assert!(kinds.iter().all(|kind| all.heard.get(kind).is_some_and(|n| *n > 100)), "{:?}", all.heard);
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    let plan = Plan::of(3, 8);
    let (one, other) = (run(&plan), run(&plan));
    assert_eq!(format!("{one:?}"), format!("{other:?}"));
    assert!(one.broken.is_none() && one.agreed.is_some(), "{one:?}");
}
