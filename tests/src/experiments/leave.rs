//! I9: members of a large cluster leave, each within five seconds: who knows when.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use actix_memberlist::Config;
use tokio::time::{Instant, sleep};

use super::{
    Options,
    fleet::Fleet,
    heard::Said,
    policy::Policy,
    table::{Row, quantile},
    watch::QUIET,
};
use crate::paused;

/// So long a leave may take.
const WITHIN: Duration = Duration::from_secs(5);

/// So long it is listened.
const LASTS: Duration = Duration::from_secs(60);

#[derive(Default)]
struct Seen {
    /// Leaves whose farewell was sent, and how long each call took.
    announced: Vec<Duration>,
    late: usize,
    /// When half of those who stay, 99 in 100 and all knew of each leave, after its beginning.
    known: [Vec<Duration>; 3],
    /// Leaves that were held for deaths by somebody.
    as_dead: usize,
    /// The others that were held for dead.
    wrongly: usize,
}

async fn run(n: usize, leaving: usize, seed: u64, config: Config) -> Seen {
    let mut fleet = Fleet::of(n, seed, config).await;
    sleep(QUIET).await;
    drop(fleet.heard());
    let who = fleet.some(leaving, seed);
    let (begin, mut seen) = (Instant::now(), Seen::default());
    let nodes: Vec<_> = who.iter().filter_map(|i| fleet.nodes[*i].clone()).collect();
    let leaves = nodes.iter().map(|node| async {
        let report = node.leave(WITHIN).await;
        let time = begin.elapsed();
        node.shutdown().await;
        report.is_ok_and(|report| report.announced).then_some(time)
    });
    for announced in futures_util::future::join_all(leaves).await {
        match announced {
            Some(time) => seen.announced.push(time),
            None => seen.late += 1,
        }
    }
    for i in &who {
        fleet.kill(*i).await;
    }
    sleep(LASTS).await;
    let staying = n - who.len();
    let mut known: BTreeMap<usize, BTreeMap<usize, Instant>> = BTreeMap::new();
    let mut as_dead = BTreeSet::new();
    for heard in fleet.heard().iter().filter(|heard| !who.contains(&heard.by)) {
        match (heard.said, who.contains(&heard.of)) {
            (Said::Left, true) => {
                known.entry(heard.of).or_default().entry(heard.by).or_insert(heard.at);
            }
            (Said::Dead, true) => {
                as_dead.insert(heard.of);
            }
            (Said::Dead, false) => seen.wrongly += 1,
            _ => {}
        }
    }
    seen.as_dead = as_dead.len();
    for by in known.values() {
        let mut times: Vec<_> = by.values().map(|at| *at - begin).collect();
        times.sort_unstable();
        for (share, to) in [(0.5, 0), (0.99, 1), (1.0, 2)] {
            let needed = (staying as f64 * share).ceil() as usize;
            seen.known[to].extend(times.get(needed.max(1) - 1));
        }
    }
    fleet.end().await;
    seen
}

pub(super) fn at_scale(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(3600);
    let mut rows = Vec::new();
    for leaving in [1, (n / 100).max(2)] {
        rows.extend(options.policies().map(|policy: Policy| {
            let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
            let seen = options.each(seeds, |seed| {
                paused(async move { run(n, leaving, seed, options.config(policy)).await })
            });
            let all = |pick: fn(&Seen) -> &[Duration]| -> Vec<_> {
                seen.iter().flat_map(|seen| pick(seen).iter().copied()).collect()
            };
            let mut sent = all(|seen| &seen.announced);
            let mut known =
                [all(|seen| &seen.known[0]), all(|seen| &seen.known[1]), all(|seen| &seen.known[2])];
            let sum = |pick: fn(&Seen) -> usize| seen.iter().map(pick).sum::<usize>();
            vec![
                ("policy", policy.name().into()),
                ("nodes", n.into()),
                ("leaving", leaving.into()),
                ("runs", seen.len().into()),
                ("announced", sent.len().into()),
                ("announced_s", quantile(&mut sent, 0.5).into()),
                ("announced_p99_s", quantile(&mut sent, 0.99).into()),
                ("too_late", sum(|seen| seen.late).into()),
                ("half_know_s", quantile(&mut known[0], 0.5).into()),
                ("99_%_know_s", quantile(&mut known[1], 0.5).into()),
                ("all_know_s", quantile(&mut known[2], 0.5).into()),
                ("all_know_p99_s", quantile(&mut known[2], 0.99).into()),
                ("all_know", known[2].len().into()),
                ("held_for_dead", sum(|seen| seen.as_dead).into()),
                ("false_dead", sum(|seen| seen.wrongly).into()),
            ]
        }));
    }
    rows
}
