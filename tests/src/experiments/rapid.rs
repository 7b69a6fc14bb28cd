//! The other two set-ups of Rapid (USENIX ATC 2018, section 7): a cluster that comes up at once, and ten members that
//! crash at once.

use std::{collections::BTreeSet, time::Duration};

use actix_memberlist::Config;
use tokio::time::{Instant, sleep};

use super::{
    Options,
    fleet::Fleet,
    load::Rates,
    policy::Policy,
    table::{Row, quantile},
    watch::{row, watch},
};
use crate::paused;

/// So long the first node is alone.
const ALONE: Duration = Duration::from_secs(10);

/// The rest has to agree within this time.
const PATIENCE: Duration = Duration::from_secs(600);

/// How a cluster came up.
#[derive(Default)]
struct Start {
    /// When each node first knew as many members as there are.
    full: Vec<Duration>,
    agreed: Option<Duration>,
    /// Sizes of the membership that nodes have seen, looked at once a second.
    sizes: BTreeSet<usize>,
    rates: Rates,
}

async fn start(n: usize, seed: u64, config: Config) -> Start {
    let mut fleet = Fleet::new(seed, config);
    fleet.seeds = vec![0];
    fleet.start(0).await;
    sleep(ALONE).await;
    let begin = Instant::now();
    for i in 1..n {
        fleet.start(i).await;
    }
    let (mut seen, mut waiting, mut second) = (Start::default(), (0..n).collect::<Vec<_>>(), 0);
    seen.rates.tick(&fleet);
    while seen.agreed.is_none() && begin.elapsed() < PATIENCE {
        sleep(Duration::from_millis(100)).await;
        let now = begin.elapsed();
        let size = |i: usize| fleet.nodes[i].as_ref().map_or(0, |node| node.view().alive_count());
        waiting.retain(|i| {
            let full = size(*i) == n;
            seen.full.extend(full.then_some(now));
            !full
        });
        let agreed = fleet.agrees();
        seen.agreed = agreed.then_some(now);
        // The last second may be a part of one.
        if agreed || now.as_secs() > second {
            second = now.as_secs();
            seen.sizes.extend((0..n).map(size));
            seen.rates.tick(&fleet);
        }
    }
    fleet.end().await;
    seen
}

/// One node, and ten seconds later all others at once, which know the first alone.
pub(super) fn bootstrap(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(1000);
    let run = |policy: Policy| {
        let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
        let seen =
            options.each(seeds, |seed| paused(async move { start(n, seed, options.config(policy)).await }));
        let mut full: Vec<_> = seen.iter().flat_map(|seen| seen.full.iter().copied()).collect();
        let mut agreed: Vec<_> = seen.iter().filter_map(|seen| seen.agreed).collect();
        let mut rates = Rates::default();
        seen.iter().for_each(|seen| rates.merge(&seen.rates));
        let ([packets, sent, received], [most_sent, most_received]) = (rates.mean(), rates.quantile(1.0));
        vec![
            ("policy", policy.name().into()),
            ("nodes", n.into()),
            ("runs", seen.len().into()),
            ("node_full_s", quantile(&mut full, 0.5).into()),
            ("node_full_p99_s", quantile(&mut full, 0.99).into()),
            ("agreed_s", quantile(&mut agreed, 0.5).into()),
            ("agreed_p99_s", quantile(&mut agreed, 0.99).into()),
            ("never_agreed", seen.iter().filter(|seen| seen.agreed.is_none()).count().into()),
            ("sizes_seen", seen.iter().map(|seen| seen.sizes.len()).max().unwrap_or_default().into()),
            ("packets_node_s", packets.into()),
            ("bytes_node_s", sent.into()),
            ("bytes_max", most_sent.into()),
            ("received_node_s", received.into()),
            ("received_max", most_received.into()),
        ]
    };
    options.policies().map(run).collect()
}

/// One in a hundred crashes at the same time, each with its host.
pub(super) fn crash(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(1000);
    let run = |policy| {
        row("crash at once", n, (n / 100).clamp(1, 10), policy, options, async |fleet: &mut Fleet, who| {
            watch(fleet, who, Duration::from_secs(60), async |fleet, _| {
                for &i in who {
                    fleet.crash(i).await;
                }
                Duration::MAX
            })
            .await
        })
    };
    options.policies().map(run).collect()
}
