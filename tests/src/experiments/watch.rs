//! A cluster in which some members have a fault for a while: what the others make of it, and how soon all agree when it
//! is over.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use super::{
    Options,
    fleet::Fleet,
    heard::Said,
    load::Rates,
    policy::Policy,
    table::{Row, quantile},
};

/// Between the beginning of a cluster and that of a fault.
pub(super) const QUIET: Duration = Duration::from_secs(15);

/// So long after a fault all have to agree.
const PATIENCE: Duration = Duration::from_secs(300);

/// So long after that it is still heard what is said.
const ECHO: Duration = Duration::from_secs(10);

/// What was seen in one run.
#[derive(Default)]
pub(super) struct Seen {
    /// Events "dead" about members without a fault, at such members.
    pub(super) wrongly: usize,
    /// Events "suspected" of the same sort.
    pub(super) doubted: usize,
    /// When each faulty member was first held for dead by one without a fault.
    pub(super) found: Vec<Duration>,
    /// When each was first held for dead or left by all without a fault at once.
    pub(super) removed: Vec<Duration>,
    /// How often a faulty one came back, at members without a fault, while the fault was there.
    pub(super) returns: usize,
    /// Faulty ones that at least one healthy member counts when the fault ends.
    pub(super) still_in: usize,
    /// Sizes of the membership that members without a fault have seen.
    pub(super) sizes: BTreeSet<usize>,
    /// After the fault.
    pub(super) agreed: Option<Duration>,
    /// What each has sent while the fault was there.
    pub(super) rates: Rates,
}

/// Lets something go wrong for a while. `weather` sets what is wrong at a time since the beginning, and says when it
/// will change next.
pub(super) async fn watch(
    fleet: &mut Fleet,
    faulty: &BTreeSet<usize>,
    lasts: Duration,
    mut weather: impl AsyncFnMut(&mut Fleet, Duration) -> Duration,
) -> Seen {
    sleep(QUIET).await;
    drop(fleet.heard());
    let begin = Instant::now();
    let mut seen = Seen::default();
    seen.rates.tick(fleet);
    let mut next = Duration::ZERO;
    while begin.elapsed() < lasts {
        if begin.elapsed() >= next {
            next = weather(fleet, begin.elapsed()).await;
        }
        sleep(Duration::from_secs(1)).await;
        seen.look(fleet, faulty);
        seen.rates.tick(fleet);
    }
    seen.still_in = {
        let healthy: Vec<_> = fleet.running().filter(|(i, _)| !faulty.contains(i)).collect();
        faulty.iter().filter(|of| healthy.iter().any(|(_, node)| fleet.counts(node, **of))).count()
    };
    let end = Instant::now();
    fleet.network.heal();
    for &i in faulty {
        fleet.around(i, None, None);
        fleet.network.fail_sends(fleet.addr(i), None);
        fleet.network.resume(fleet.addr(i));
    }
    while seen.agreed.is_none() && end.elapsed() < PATIENCE {
        let second = Instant::now();
        while !fleet.agrees() && second.elapsed() < Duration::from_secs(1) {
            sleep(Duration::from_millis(100)).await;
        }
        seen.agreed = fleet.agrees().then(|| end.elapsed());
        seen.look(fleet, faulty);
    }
    sleep(ECHO).await;
    seen.count(fleet, faulty, begin, end);
    seen
}

impl Seen {
    fn look(&mut self, fleet: &Fleet, faulty: &BTreeSet<usize>) {
        let healthy = fleet.running().filter(|(i, _)| !faulty.contains(i));
        self.sizes.extend(healthy.map(|(_, node)| node.view().alive_count()));
    }

    fn count(&mut self, fleet: &Fleet, faulty: &BTreeSet<usize>, begin: Instant, end: Instant) {
        let healthy = fleet.running().filter(|(i, _)| !faulty.contains(i)).count();
        let (mut found, mut removed) = (BTreeSet::new(), BTreeSet::new());
        let mut without: BTreeMap<usize, BTreeSet<usize>> = BTreeMap::new();
        for heard in fleet.heard().iter().filter(|heard| !faulty.contains(&heard.by)) {
            let during = heard.at <= end;
            match (heard.said, faulty.contains(&heard.of)) {
                (Said::Dead, false) => self.wrongly += 1,
                (Said::Suspected, false) => self.doubted += 1,
                (Said::Dead | Said::Left, true) if during => {
                    if found.insert(heard.of) {
                        self.found.push(heard.at - begin);
                    }
                    let without = without.entry(heard.of).or_default();
                    without.insert(heard.by);
                    if without.len() == healthy && removed.insert(heard.of) {
                        self.removed.push(heard.at - begin);
                    }
                }
                (Said::Joined, true) if during => {
                    self.returns += 1;
                    without.entry(heard.of).or_default().remove(&heard.by);
                }
                _ => {}
            }
        }
    }
}

/// Runs something of `n` nodes, so many of them faulty, as often as is asked for: which are faulty follows from the seed.
pub(super) fn row(
    what: &str,
    n: usize,
    faulty: usize,
    policy: Policy,
    options: &Options,
    run: impl AsyncFn(&mut Fleet, &BTreeSet<usize>) -> Seen + Sync,
) -> Row {
    let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
    let seen = options.each(seeds, |seed| {
        crate::paused(async {
            let mut fleet = Fleet::of(n, seed, options.config(policy)).await;
            let who = fleet.some(faulty, seed);
            let seen = run(&mut fleet, &who).await;
            fleet.end().await;
            seen
        })
    });
    let mut row = vec![
        ("what", what.into()),
        ("policy", policy.name().into()),
        ("nodes", n.into()),
        ("faulty", faulty.into()),
    ];
    row.extend(columns(&seen));
    row
}

/// What several runs have seen.
pub(super) fn columns(seen: &[Seen]) -> Row {
    let all = |pick: fn(&Seen) -> &[Duration]| -> Vec<_> {
        seen.iter().flat_map(|seen| pick(seen).iter().copied()).collect()
    };
    let (mut found, mut removed) = (all(|seen| &seen.found), all(|seen| &seen.removed));
    let mut agreed: Vec<_> = seen.iter().filter_map(|seen| seen.agreed).collect();
    let sum = |pick: fn(&Seen) -> usize| seen.iter().map(pick).sum::<usize>();
    let mut rates = Rates::default();
    seen.iter().for_each(|seen| rates.merge(&seen.rates));
    let ([packets, sent, received], [sent_99, received_99]) = (rates.mean(), rates.quantile(0.99));
    let [sent_most, received_most] = rates.quantile(1.0);
    vec![
        ("runs", seen.len().into()),
        ("false_dead", sum(|seen| seen.wrongly).into()),
        ("false_suspected", sum(|seen| seen.doubted).into()),
        ("found", found.len().into()),
        ("found_s", quantile(&mut found, 0.5).into()),
        ("found_p99_s", quantile(&mut found, 0.99).into()),
        ("all_know_s", quantile(&mut removed, 0.5).into()),
        ("all_know_p99_s", quantile(&mut removed, 0.99).into()),
        ("returns", sum(|seen| seen.returns).into()),
        ("in_at_the_end", sum(|seen| seen.still_in).into()),
        ("sizes_seen", seen.iter().map(|seen| seen.sizes.len()).max().unwrap_or_default().into()),
        ("agreed_s", quantile(&mut agreed, 0.5).into()),
        ("agreed_p99_s", quantile(&mut agreed, 0.99).into()),
        ("never_agreed", seen.iter().filter(|seen| seen.agreed.is_none()).count().into()),
        ("packets_node_s", packets.into()),
        ("bytes_node_s", sent.into()),
        ("bytes_p99", sent_99.into()),
        ("bytes_max", sent_most.into()),
        ("received_node_s", received.into()),
        ("received_p99", received_99.into()),
        ("received_max", received_most.into()),
    ]
}
