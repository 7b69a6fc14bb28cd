//! Each experiment of the simulator, with few nodes: that it runs, and that its figures can tell one thing from another.

use memberlist_tests::experiments::{ALL, Figure, Options, Policy, Row, run};

fn options(nodes: usize) -> Options {
    Options { nodes: Some(nodes), policy: None, repeats: 1, seed: 1, threads: 2, set: Vec::new() }
}

/// What stands in a column, for each line in turn.
fn column<'a>(rows: &'a [Row], name: &str) -> Vec<&'a Figure> {
    let of = |row: &'a Row| row.iter().find(|(column, _)| *column == name).map(|(_, figure)| figure);
    rows.iter().map(|row| of(row).unwrap_or_else(|| panic!("{name} is not in {row:?}"))).collect()
}

fn count(figure: &Figure) -> u64 {
    match figure {
        Figure::Count(n) => *n,
        other => panic!("{other:?} is no count"),
    }
}

#[test]
fn each_experiment_prints_a_line_for_each_way_of_running_a_cluster() {
    for (name, ..) in ALL {
        let rows = run(name, &options(8)).expect("it is there");
        let policies = column(&rows, "policy");
        for policy in Policy::ALL {
            let own =
                policies.iter().filter(|text| matches!(text, Figure::Text(text) if text == policy.name()));
            assert_eq!(own.count() * 2, rows.len(), "{name}, {}", policy.name());
        }
        let names = |row: &Row| row.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        assert!(rows.iter().all(|row| names(row) == names(&rows[0])), "{name}");
    }
    assert!(run("I0", &options(8)).is_none());
}

#[test]
fn the_same_seed_gives_the_same_table() {
    for name in ["rapid-loss80", "I6"] {
        let table = || format!("{:?}", run(name, &options(10)));
        assert_eq!(table(), table(), "{name}");
    }
}

#[test]
fn who_is_gone_is_missed_and_nobody_else() {
    for name in ["swim", "rapid-crash"] {
        let rows = run(name, &options(12)).expect("it is there");
        assert!(column(&rows, "false_dead").iter().all(|n| count(n) == 0), "{name}: {rows:?}");
        assert!(
            column(&rows, "all_know_s").iter().all(|figure| matches!(figure, Figure::Number(_))),
            "{rows:?}"
        );
    }
}

#[test]
fn an_address_that_is_used_again_merges_clusters_that_have_no_labels_and_none_that_have() {
    let rows = run("I5", &Options { policy: Some(Policy::Ours), ..options(8) }).expect("it is there");
    assert_eq!(rows.len(), 2);
    for (what, strangers) in column(&rows, "what").into_iter().zip(column(&rows, "strangers_taken_in")) {
        let labels = matches!(what, Figure::Text(what) if what == "labels");
        assert_eq!(count(strangers) == 0, labels, "{rows:?}");
    }
}

#[test]
fn a_cluster_that_is_started_anew_without_its_records_agrees() {
    let rows = run("I1", &options(12)).expect("it is there");
    assert!(column(&rows, "never_agreed").iter().all(|n| count(n) == 0), "{rows:?}");
}
