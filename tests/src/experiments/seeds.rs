//! I7: a node is given a long list of nodes to join, of which many are gone.

use std::{net::SocketAddr, time::Duration};

use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use tokio::time::{Instant, sleep};

use super::{
    Options,
    fleet::Fleet,
    policy::Policy,
    table::{Row, quantile},
    watch::QUIET,
};
use crate::{addr, paused};

/// Addresses at which nobody is begin with that of this number.
const NOBODY: usize = 40_000;

/// A join has to be over by then.
const PATIENCE: Duration = Duration::from_secs(1800);

/// What happens to who dials an address at which nobody is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Gone {
    /// Nothing.
    Silent,
    /// The host says that nobody is there.
    Refused,
}

#[derive(Default)]
struct Seen {
    /// When it knew all members.
    known: Option<Duration>,
    /// When the call was over.
    over: Option<Duration>,
}

async fn run(n: usize, dead: usize, gone: Gone, seed: u64, policy: Policy, options: &Options) -> Seen {
    let mut fleet = Fleet::of(n, seed, options.config(policy)).await;
    sleep(QUIET).await;
    let nobody = (0..dead).map(|i| addr(NOBODY + i));
    let mut list: Vec<SocketAddr> = (0..n).map(|i| fleet.addr(i)).chain(nobody.clone()).collect();
    list.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    if gone == Gone::Silent {
        nobody.for_each(|addr| fleet.network.unplug(addr));
    }
    let node = fleet.builder(n).start().await.expect("a node starts");
    fleet.add(n, node.clone());
    let list: Vec<_> = list.iter().map(SocketAddr::to_string).collect();
    let list: Vec<_> = list.iter().map(String::as_str).collect();
    let begin = Instant::now();
    let joins = async {
        let joined = tokio::time::timeout(PATIENCE, node.join(&list)).await;
        joined.is_ok_and(|joined| joined.is_ok()).then(|| begin.elapsed())
    };
    let knows = async {
        while node.view().alive_count() <= n {
            if begin.elapsed() > PATIENCE {
                return None;
            }
            sleep(Duration::from_millis(10)).await;
        }
        Some(begin.elapsed())
    };
    let (over, known) = futures_util::future::join(joins, knows).await;
    fleet.end().await;
    Seen { known, over }
}

pub(super) fn dead(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(1000);
    let mut rows = Vec::new();
    for (what, gone) in [("silent", Gone::Silent), ("refused", Gone::Refused)] {
        for living in [n / 2, 1] {
            rows.extend(options.policies().map(|policy| {
                let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
                let seen = options.each(seeds, |seed| {
                    paused(async move { run(living, n - living, gone, seed, policy, options).await })
                });
                let of = |pick: fn(&Seen) -> Option<Duration>, share| {
                    quantile(&mut seen.iter().filter_map(pick).collect::<Vec<_>>(), share)
                };
                vec![
                    ("dead_are", what.into()),
                    ("policy", policy.name().into()),
                    ("list", n.into()),
                    ("dead", (n - living).into()),
                    ("runs", seen.len().into()),
                    ("known_s", of(|seen| seen.known, 0.5).into()),
                    ("known_p99_s", of(|seen| seen.known, 0.99).into()),
                    ("over_s", of(|seen| seen.over, 0.5).into()),
                    ("over_p99_s", of(|seen| seen.over, 0.99).into()),
                    ("failed", seen.iter().filter(|seen| seen.over.is_none()).count().into()),
                ]
            }));
        }
    }
    rows
}
