//! Lifeguard's measurements (arXiv 1707.00788, section V): some members block before each send and after each receive,
//! once (threshold) or again and again (interval).

use std::{collections::BTreeSet, time::Duration};

use actix_memberlist::{Config, network::memory::MemoryNetwork};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
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

/// What was seen in one run.
#[derive(Default)]
struct Seen {
    /// Members without a fault that somebody held for dead: each by each is one.
    wrongly: usize,
    /// The same, by members without a fault alone.
    wrongly_by_healthy: usize,
    /// The slow ones that were held for dead, and how soon.
    found: Vec<Duration>,
    slow_dead: usize,
    packets: f64,
    bytes: f64,
    agreed: Option<Duration>,
}

struct Trouble {
    slow: usize,
    stopped: Duration,
    running: Duration,
    lasts: Duration,
}

fn run(n: usize, config: Config, trouble: &Trouble, seed: u64) -> Seen {
    let Trouble { slow, stopped, running, lasts } = *trouble;
    paused(async move {
        let fleet = Fleet::of(n, seed, config).await;
        let mut all: Vec<_> = (0..n).collect();
        all.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
        let slow: BTreeSet<_> = all[..slow.min(n / 2)].iter().copied().collect();
        sleep(QUIET).await;
        drop(fleet.heard());
        let (before, begin) = (fleet.load(), Instant::now());
        let each = |set: fn(&MemoryNetwork, std::net::SocketAddr)| {
            slow.iter().for_each(|i| set(&fleet.network, fleet.addr(*i)));
        };
        while begin.elapsed() < lasts {
            each(MemoryNetwork::pause);
            sleep(stopped).await;
            each(MemoryNetwork::resume);
            sleep(running).await;
        }
        let (packets, bytes) = fleet.load().since(before, n, begin.elapsed());
        // What was said before the end goes round.
        sleep(Duration::from_secs(10)).await;
        let mut seen = Seen { packets, bytes, ..Seen::default() };
        let mut found = BTreeSet::new();
        for heard in fleet.heard().iter().filter(|heard| heard.said == Said::Dead) {
            if slow.contains(&heard.of) {
                seen.slow_dead += 1;
                if !slow.contains(&heard.by) && found.insert(heard.of) {
                    seen.found.push(heard.at - begin);
                }
            } else {
                seen.wrongly += 1;
                seen.wrongly_by_healthy += usize::from(!slow.contains(&heard.by));
            }
        }
        seen.agreed = fleet.settle(Duration::from_secs(120)).await;
        fleet.end().await;
        seen
    })
}

fn row(n: usize, policy: Policy, trouble: &Trouble, options: &Options) -> Row {
    let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
    let seen = options.each(seeds, |seed| run(n, options.config(policy), trouble, seed));
    let mut found: Vec<_> = seen.iter().flat_map(|seen| seen.found.iter().copied()).collect();
    let mut agreed: Vec<_> = seen.iter().filter_map(|seen| seen.agreed).collect();
    let mean = |pick: fn(&Seen) -> f64| seen.iter().map(pick).sum::<f64>() / seen.len() as f64;
    vec![
        ("policy", policy.name().into()),
        ("nodes", n.into()),
        ("slow", trouble.slow.into()),
        ("stopped_s", trouble.stopped.into()),
        ("running_s", trouble.running.into()),
        ("runs", seen.len().into()),
        ("false_dead", seen.iter().map(|seen| seen.wrongly).sum::<usize>().into()),
        ("false_dead_at_healthy", seen.iter().map(|seen| seen.wrongly_by_healthy).sum::<usize>().into()),
        ("slow_found", found.len().into()),
        ("found_s", quantile(&mut found, 0.5).into()),
        ("found_p99_s", quantile(&mut found, 0.99).into()),
        ("slow_dead", seen.iter().map(|seen| seen.slow_dead).sum::<usize>().into()),
        ("agreed_s", quantile(&mut agreed, 0.5).into()),
        ("agreed_p99_s", quantile(&mut agreed, 0.99).into()),
        ("packets_node_s", mean(|seen| seen.packets).into()),
        ("bytes_node_s", mean(|seen| seen.bytes).into()),
    ]
}

/// One stop, of several lengths.
pub(super) fn threshold(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(128);
    let mut rows = Vec::new();
    for slow in [1, 4, 8, 16, 32] {
        for stopped in [2_048, 8_192, 16_384, 32_768].map(Duration::from_millis) {
            let trouble = Trouble { slow, stopped, running: Duration::ZERO, lasts: stopped };
            rows.extend(options.policies().map(|policy| row(n, policy, &trouble, options)));
        }
    }
    rows
}

/// Stops of several lengths, with several times between them, for two minutes.
pub(super) fn interval(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(128);
    let mut rows = Vec::new();
    for slow in [1, 4, 8, 16, 32] {
        for stopped in [2_048, 8_192, 16_384, 32_768].map(Duration::from_millis) {
            for running in [4, 64, 1_024, 4_096].map(Duration::from_millis) {
                let trouble = Trouble { slow, stopped, running, lasts: Duration::from_secs(120) };
                rows.extend(options.policies().map(|policy| row(n, policy, &trouble, options)));
            }
        }
    }
    // What the grid comes to.
    for policy in options.policies() {
        let of = |column: &str| -> u64 {
            let own = rows
                .iter()
                .filter(|row| matches!(&row[0].1, super::table::Figure::Text(name) if name == policy.name()));
            own.flat_map(|row| row.iter().filter(|(name, _)| *name == column))
                .map(|(_, figure)| match figure {
                    super::table::Figure::Count(n) => *n,
                    _ => 0,
                })
                .sum()
        };
        eprintln!(
            "{}: {} false alarms, {} of them at healthy members",
            policy.name(),
            of("false_dead"),
            of("false_dead_at_healthy")
        );
    }
    rows
}
