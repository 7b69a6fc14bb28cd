//! I5: a node of one cluster gets the address of another cluster's node that has crashed.

use std::time::Duration;

use tokio::time::sleep;

use super::{Options, fleet::Fleet, policy::Policy, table::Row, watch::QUIET};
use crate::paused;

/// Between the crash and the moment when another one has the address.
const FREE: Duration = Duration::from_secs(2);

/// So long it is watched whom they take in.
const LASTS: Duration = Duration::from_secs(120);

#[derive(Default)]
struct Seen {
    /// How often somebody of the other cluster was taken in, on both sides.
    strangers: usize,
    /// Whether each cluster knows its own nodes, and nobody else, in the end.
    apart: bool,
}

async fn run(n: usize, seed: u64, policy: Policy, labels: [&str; 2], options: &Options) -> Seen {
    let mut one = Fleet::new(seed, options.config(policy));
    let mut other = Fleet::beside(&one, options.config(policy));
    (one.label, other.label) = (labels[0].to_owned(), labels[1].to_owned());
    one.gather(n).await;
    other.gather(n / 2).await;
    sleep(QUIET).await;
    let victim = n - 1;
    one.kill(victim).await;
    sleep(FREE).await;
    other.start_at(n / 2, one.addr(victim)).await;
    sleep(LASTS).await;
    let strangers = one.strangers() + other.strangers();
    let seen = Seen { strangers, apart: strangers == 0 && one.agrees() && other.agrees() };
    one.end().await;
    other.end().await;
    seen
}

pub(super) fn address(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(32);
    let mut rows = Vec::new();
    for (what, labels) in [("no labels", ["", ""]), ("labels", ["one", "other"])] {
        rows.extend(options.policies().map(|policy| {
            let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
            let seen = options
                .each(seeds, |seed| paused(async move { run(n, seed, policy, labels, options).await }));
            vec![
                ("what", what.into()),
                ("policy", policy.name().into()),
                ("nodes", n.into()),
                ("others", (n / 2 + 1).into()),
                ("runs", seen.len().into()),
                ("strangers_taken_in", seen.iter().map(|seen| seen.strangers).sum::<usize>().into()),
                ("stayed_apart", seen.iter().filter(|seen| seen.apart).count().into()),
            ]
        }));
    }
    rows
}
