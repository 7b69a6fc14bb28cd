//! How soon a member that is gone is missed: SWIM's measurements (DSN 2002, section 5), and ScaleCube's of how soon all
//! know.

use std::{collections::BTreeMap, time::Duration};

use actix_memberlist::{Config, network::memory::Link};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
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

/// A member that is gone has to be missed by all within this time.
const PATIENCE: Duration = Duration::from_secs(180);

/// How a member goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With its host: nothing comes back.
    Silent,
    /// Alone: its host says that nobody is there.
    Killed,
}

/// What was seen of one crash.
#[derive(Clone, Debug, Default)]
struct Seen {
    suspected: Option<Duration>,
    dead: Option<Duration>,
    all: Option<Duration>,
    wrongly: usize,
    packets: f64,
    bytes: f64,
}

/// From so many nodes on, several go one after the other in one cluster, since to start it takes longer than all that.
const MANY: usize = 256;

/// So many.
const VICTIMS: u64 = 10;

/// Lets so many of `n` nodes go, each a while after the one before.
fn crash(n: usize, config: Config, end: End, loss: f64, seed: u64, victims: u64) -> Vec<Seen> {
    paused(async move {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut fleet = Fleet::of(n, seed, config).await;
        fleet.network.set_default(Link::lossy(loss));
        let mut seen = Vec::new();
        for victim in fleet.some(victims as usize, seed) {
            let (before, running) = (fleet.load(), fleet.running().count());
            sleep(QUIET).await;
            let (packets, bytes) = fleet.load().since(before, running, QUIET);
            sleep(Duration::from_millis(rng.random_range(0..1000))).await;
            seen.push(Seen { packets, bytes, ..gone(&mut fleet, victim, end).await });
        }
        fleet.end().await;
        seen
    })
}

/// One goes: what is said until all know.
async fn gone(fleet: &mut Fleet, victim: usize, end: End) -> Seen {
    let mut heard = fleet.heard();
    let begin = Instant::now();
    match end {
        End::Silent => fleet.crash(victim).await,
        End::Killed => fleet.kill(victim).await,
    }
    while fleet.running().any(|(_, node)| fleet.counts(node, victim)) && begin.elapsed() < PATIENCE {
        sleep(Duration::from_millis(100)).await;
    }
    heard.extend(fleet.heard());
    let of = |said| {
        heard.iter().filter(move |heard| heard.of == victim && heard.said == said && heard.at >= begin)
    };
    let first = |said| of(said).map(|heard| heard.at - begin).min();
    let mut known = BTreeMap::new();
    for heard in of(Said::Dead) {
        known.entry(heard.by).or_insert(heard.at - begin);
    }
    let all =
        fleet.running().map(|(i, _)| known.get(&i).copied()).max_by_key(|at| at.unwrap_or(Duration::MAX));
    let wrongly = heard.iter().filter(|heard| heard.said == Said::Dead && heard.runs).count();
    Seen {
        suspected: first(Said::Suspected),
        dead: first(Said::Dead),
        all: all.flatten(),
        wrongly,
        ..Seen::default()
    }
}

pub(super) fn row(n: usize, policy: Policy, end: End, loss: f64, options: &Options) -> Row {
    let victims = if n < MANY { 1 } else { VICTIMS.min(options.repeats) };
    let seeds = (0..options.repeats.div_ceil(victims)).map(|repeat| options.seed + repeat);
    let seen = options.each(seeds, |seed| crash(n, options.config(policy), end, loss, seed, victims));
    let seen: Vec<_> = seen.into_iter().flatten().collect();
    let of = |pick: fn(&Seen) -> Option<Duration>, share| {
        quantile(&mut seen.iter().filter_map(pick).collect::<Vec<_>>(), share)
    };
    let mean = |pick: fn(&Seen) -> f64| seen.iter().map(pick).sum::<f64>() / seen.len() as f64;
    vec![
        ("policy", policy.name().into()),
        ("end", if end == End::Silent { "host" } else { "process" }.into()),
        ("nodes", n.into()),
        ("loss_%", (loss * 100.0).into()),
        ("runs", seen.len().into()),
        ("suspected_s", of(|s| s.suspected, 0.5).into()),
        ("suspected_p99_s", of(|s| s.suspected, 0.99).into()),
        ("dead_s", of(|s| s.dead, 0.5).into()),
        ("dead_p99_s", of(|s| s.dead, 0.99).into()),
        ("all_know_s", of(|s| s.all, 0.5).into()),
        ("all_know_p99_s", of(|s| s.all, 0.99).into()),
        ("missed", seen.iter().filter(|s| s.all.is_none()).count().into()),
        ("false_dead", seen.iter().map(|s| s.wrongly).sum::<usize>().into()),
        ("packets_node_s", mean(|s| s.packets).into()),
        ("bytes_node_s", mean(|s| s.bytes).into()),
    ]
}

/// One of N crashes with its host, or alone, at several rates of loss.
pub(super) fn swim(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for n in options.nodes.map_or(vec![8, 16, 28, 56, 128, 256, 1000], |n| vec![n]) {
        for (end, loss) in [(End::Silent, 0.0), (End::Silent, 0.1), (End::Silent, 0.3), (End::Killed, 0.0)] {
            rows.extend(options.policies().map(|policy| row(n, policy, end, loss, options)));
        }
    }
    rows
}

/// How soon all know of a change that one of N makes, at 1 % loss and a latency of 2 ms.
pub(super) fn scalecube(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for n in options.nodes.map_or(vec![5, 10, 20, 30, 50, 100, 150, 200], |n| vec![n]) {
        rows.extend(options.policies().map(|policy| spread(n, policy, options)));
    }
    rows
}

fn spread(n: usize, policy: Policy, options: &Options) -> Row {
    let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
    let seen = options.each(seeds, |seed| {
        paused(async move {
            let fleet = Fleet::of(n, seed, options.config(policy)).await;
            let latency = Duration::from_millis(1)..Duration::from_millis(3);
            fleet.network.set_default(Link { latency, ..Link::lossy(0.01) });
            sleep(Duration::from_secs(15)).await;
            drop(fleet.heard());
            let (before, begin) = (fleet.load(), Instant::now());
            let meta = bytes::Bytes::from_static(b"changed");
            let node = fleet.nodes[n / 2].clone().expect("it runs");
            node.set_meta(meta).await.expect("it may");
            let mut times = Vec::new();
            while times.len() < n - 1 && begin.elapsed() < Duration::from_secs(60) {
                sleep(Duration::from_millis(100)).await;
                let heard = fleet.heard();
                let told = heard
                    .iter()
                    .filter(|heard| heard.of == n / 2 && heard.by != n / 2 && heard.said == Said::Updated);
                times.extend(told.map(|heard| heard.at - begin));
            }
            times.sort_unstable();
            let (_, bytes) = fleet.load().since(before, n, begin.elapsed());
            let most = (n - 1) * 99 / 100;
            let times = [n / 2, most.min(n - 2), n - 2].map(|at| times.get(at).copied());
            fleet.end().await;
            (times, bytes)
        })
    });
    let of = |which: usize, share| {
        quantile(&mut seen.iter().filter_map(|(times, _)| times[which]).collect::<Vec<_>>(), share)
    };
    vec![
        ("policy", policy.name().into()),
        ("nodes", n.into()),
        ("runs", seen.len().into()),
        ("half_know_s", of(0, 0.5).into()),
        ("99_%_know_s", of(1, 0.5).into()),
        ("all_know_s", of(2, 0.5).into()),
        ("all_know_p99_s", of(2, 0.99).into()),
        ("bytes_node_s", (seen.iter().map(|(_, bytes)| bytes).sum::<f64>() / seen.len() as f64).into()),
    ]
}
