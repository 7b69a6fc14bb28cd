//! How soon a member that is gone is missed: SWIM's measurements (DSN 2002, section 5), and ScaleCube's of how soon all
//! know.

use std::time::Duration;

use actix_memberlist::{Config, network::memory::Link};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Options,
    fleet::{Fleet, Said},
    policy::Policy,
    table::{Row, quantile},
};
use crate::paused;

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

/// Lets one of `n` nodes go, as often as is asked for, in one cluster after the other.
fn crash(n: usize, config: Config, end: End, loss: f64, seed: u64) -> Seen {
    paused(async move {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut fleet = Fleet::of(n, seed, config).await;
        fleet.network.set_default(Link { loss, ..Link::default() });
        let (before, quiet) = (fleet.load(), Duration::from_secs(15));
        sleep(quiet).await;
        let (packets, bytes) = fleet.load().since(before, n, quiet);
        sleep(Duration::from_millis(rng.random_range(0..1000))).await;
        let mut wrongly = fleet.heard().iter().filter(|heard| heard.said == Said::Dead).count();
        let victim = rng.random_range(0..n);
        let begin = Instant::now();
        match end {
            End::Silent => fleet.crash(victim).await,
            End::Killed => fleet.kill(victim).await,
        }
        let knows = |fleet: &Fleet| {
            fleet
                .running()
                .all(|(_, node)| node.view().alive().all(|member| member.addr != Fleet::addr(victim)))
        };
        let all = timeout(Duration::from_secs(180), async {
            loop {
                sleep(Duration::from_millis(10)).await;
                if knows(&fleet) {
                    break begin.elapsed();
                }
            }
        });
        let all = all.await.ok();
        let heard = fleet.heard();
        let first = |said| {
            let of =
                heard.iter().filter(|heard| heard.of == victim && heard.said == said && heard.at >= begin);
            of.map(|heard| heard.at - begin).min()
        };
        let (suspected, dead) = (first(Said::Suspected), first(Said::Dead));
        wrongly += heard.iter().filter(|heard| heard.said == Said::Dead && heard.of != victim).count();
        fleet.end().await;
        Seen { suspected, dead, all, wrongly, packets, bytes }
    })
}

pub(super) fn row(n: usize, policy: Policy, end: End, loss: f64, options: &Options) -> Row {
    let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
    let seen = options.each(seeds, |seed| crash(n, options.config(policy), end, loss, seed));
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
    for n in options.nodes.map_or(vec![8, 16, 28, 56, 128], |n| vec![n]) {
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
            fleet.network.set_default(Link { latency, loss: 0.01, ..Link::default() });
            sleep(Duration::from_secs(15)).await;
            let (before, begin) = (fleet.load(), Instant::now());
            let meta = bytes::Bytes::from_static(b"changed");
            let node = fleet.nodes[n / 2].clone().expect("it runs");
            node.set_meta(meta.clone()).await.expect("it may");
            let mut times = Vec::new();
            let knows = |fleet: &Fleet| {
                let others = fleet.running().filter(|(i, _)| *i != n / 2);
                others.filter(|(_, node)| node.view().all().any(|member| member.meta == meta)).count()
            };
            while times.len() < n - 1 && begin.elapsed() < Duration::from_secs(60) {
                let known = knows(&fleet);
                times.resize(known.max(times.len()), begin.elapsed());
                sleep(Duration::from_millis(10)).await;
            }
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
