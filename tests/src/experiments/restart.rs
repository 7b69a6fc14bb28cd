//! I1: all nodes are started anew within a minute, and none of them knows in which incarnation it was.

use std::{collections::BTreeSet, time::Duration};

use actix_memberlist::Config;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep, sleep_until};

use super::{
    Options,
    fleet::Fleet,
    heard::Said,
    load::Rates,
    policy::Policy,
    table::{Row, quantile},
    watch::QUIET,
};
use crate::paused;

/// All are started anew within this time.
const WITHIN: Duration = Duration::from_secs(60);

/// A process is away for so long.
const AWAY: Duration = Duration::from_secs(2);

/// After the last start all have to agree within this time.
const PATIENCE: Duration = Duration::from_secs(600);

#[derive(Default)]
struct Seen {
    /// Runs that were held for dead while they were there: each by each is one.
    wrongly: usize,
    doubted: usize,
    sizes: BTreeSet<usize>,
    /// After the last start.
    agreed: Option<Duration>,
    rates: Rates,
}

async fn run(n: usize, seed: u64, config: Config) -> Seen {
    let mut fleet = Fleet::of(n, seed, config).await;
    sleep(QUIET).await;
    drop(fleet.heard());
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut plan = Vec::new();
    for i in 0..n {
        let end = Duration::from_millis(rng.random_range(0..WITHIN.as_millis() as u64));
        plan.extend([(end, i, false), (end + AWAY, i, true)]);
    }
    plan.sort_unstable();
    let (begin, mut plan) = (Instant::now(), plan.into_iter().peekable());
    let mut seen = Seen::default();
    seen.rates.tick(&fleet);
    let mut last = begin;
    for second in 1.. {
        let until = begin + Duration::from_secs(second);
        while let Some((at, i, starts)) = plan.next_if(|(at, ..)| begin + *at < until) {
            sleep_until(begin + at).await;
            if starts {
                fleet.start(i).await
            } else {
                fleet.kill(i).await
            }
            last = Instant::now();
        }
        while Instant::now() < until && seen.agreed.is_none() {
            sleep(Duration::from_millis(100)).await;
            seen.agreed = (plan.peek().is_none() && fleet.agrees()).then(|| last.elapsed());
        }
        seen.sizes.extend(fleet.running().map(|(_, node)| node.view().alive_count()));
        seen.rates.tick(&fleet);
        if seen.agreed.is_some() || plan.peek().is_none() && last.elapsed() > PATIENCE {
            break;
        }
    }
    for heard in fleet.heard().iter().filter(|heard| heard.runs) {
        seen.wrongly += usize::from(heard.said == Said::Dead);
        seen.doubted += usize::from(heard.said == Said::Suspected);
    }
    fleet.end().await;
    seen
}

pub(super) fn mass(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(4500);
    let row = |policy: Policy| {
        let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
        let seen =
            options.each(seeds, |seed| paused(async move { run(n, seed, options.config(policy)).await }));
        let mut agreed: Vec<_> = seen.iter().filter_map(|seen| seen.agreed).collect();
        let mut rates = Rates::default();
        seen.iter().for_each(|seen| rates.merge(&seen.rates));
        let ([packets, sent, _], [most, _]) = (rates.mean(), rates.quantile(1.0));
        vec![
            ("policy", policy.name().into()),
            ("nodes", n.into()),
            ("runs", seen.len().into()),
            ("false_dead", seen.iter().map(|seen| seen.wrongly).sum::<usize>().into()),
            ("false_suspected", seen.iter().map(|seen| seen.doubted).sum::<usize>().into()),
            ("sizes_seen", seen.iter().map(|seen| seen.sizes.len()).max().unwrap_or_default().into()),
            ("agreed_s", quantile(&mut agreed, 0.5).into()),
            ("agreed_p99_s", quantile(&mut agreed, 0.99).into()),
            ("never_agreed", seen.iter().filter(|seen| seen.agreed.is_none()).count().into()),
            ("packets_node_s", packets.into()),
            ("bytes_node_s", sent.into()),
            ("bytes_max", most.into()),
        ]
    };
    options.policies().map(row).collect()
}
