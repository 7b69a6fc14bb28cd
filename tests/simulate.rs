//! A short hunt: clusters under faults that are drawn from seeds, and rules that must hold at every step.
//!
//! `SIMULATE_SEEDS=2000` for a longer one; `cargo run --release -p memberlist-tests --bin simulate` for those that take
//! hours, and for what a failure needs.

use std::{collections::BTreeSet, process::Command};

use memberlist_tests::simulate::{Campaign, Fault, Plan, Report, hush, run};

/// A run, and what memory it takes.
fn weighed(plan: &Plan) -> Report {
    let mut report = Report::default();
    let info = allocation_counter::measure(|| report = run(plan));
    report.weigh(plan.nodes, info.bytes_max, info.bytes_current);
    report
}

#[test]
fn whatever_goes_wrong_no_rule_is_broken_and_all_agree_again_without_help() {
    hush();
    let seeds = std::env::var("SIMULATE_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60);
    let nodes = |seed| [5, 8, 12, 16][(seed % 4) as usize];
    let all = Campaign::go(0..seeds, nodes, weighed, 2, 10, |seed, report| {
        if let Some((at, broken)) = &report.broken {
            println!("seed {seed}, {} nodes, at {:.1} s: {broken}", nodes(seed), at.as_secs_f64());
        }
    });
    assert_eq!((all.failed.len(), all.runs), (0, seeds));
    // What is not there cannot be found.
    assert_eq!(all.missing(), Vec::<&str>::new());
    assert!(all.kinds[all.kinds.len() / 2] >= 3, "{:?}", all.kinds);
    for kind in ["alive", "suspect", "dead", "left", "told-alive", "told-suspect", "told-dead", "told-left"] {
        let met = |state| all.met.get(&(state, kind)).copied().unwrap_or_default();
        assert!(met("alive") + met("suspect") + met("dead") + met("left") > 10, "{kind}: {:?}", all.met);
    }
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

/// Seeds that are run each time, with as many nodes, and what each is for. Add those that have found something.
const KEPT: [(u64, usize, &str); 5] = [
    (23, 16, "verdicts that come while nodes wake from pauses, and nacks that come twice"),
    (193, 8, "panics of one node, which then leaves a calm cluster"),
    (216, 5, "panics of one node, which then leaves, and comes back as another run"),
    (1750, 12, "a run that was taken for replaced and runs all the same"),
    (200_043, 62, "broadcasts of many nodes, which go on for long after the faults"),
];

#[test]
fn the_seeds_that_were_kept_break_no_rule() {
    for (seed, nodes, why) in KEPT {
        let report = run(&Plan::of(seed, nodes));
        assert_eq!(report.broken, None, "seed {seed} with {nodes} nodes, kept since {why}");
    }
}

/// The hash of a run in a process of its own.
fn hash(seed: u64, nodes: usize) -> String {
    let mut simulate = Command::new(env!("CARGO_BIN_EXE_simulate"));
    simulate.args(["run", &seed.to_string(), "--nodes", &nodes.to_string(), "--hash"]);
    let output = simulate.output().expect("the simulator runs");
    assert!(output.status.success(), "seed {seed}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("a hash").trim().to_owned()
}

#[test]
fn a_seed_is_the_same_run_to_the_byte_in_two_processes_and_another_seed_another() {
    // Together they hold all faults; each other one of them ended differently as long as tasks woke in an order of chance.
    let seeds = 4240..4260;
    let mut faults: BTreeSet<_> = Fault::NAMES.into_iter().collect();
    let mut hashes = BTreeSet::new();
    for seed in seeds.clone() {
        for event in Plan::of(seed, 8).events {
            faults.remove(event.fault.name());
        }
        let first = hash(seed, 8);
        assert_eq!(first, hash(seed, 8), "seed {seed}");
        assert_eq!(first.len(), 16);
        hashes.insert(first);
    }
    assert!(faults.is_empty(), "nothing is said of {faults:?}");
    assert_eq!(hashes.len(), seeds.count());
}
