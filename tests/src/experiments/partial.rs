//! Members that are half there: the set-ups of Rapid (USENIX ATC 2018, section 7) with one-way loss, and those that users
//! have met.

use std::{collections::BTreeSet, time::Duration};

use actix_memberlist::network::memory::Link;

use super::{
    Options,
    fleet::Fleet,
    policy::Policy,
    table::Row,
    watch::{row, watch},
};

const MINUTES_5: Duration = Duration::from_secs(300);
const MINUTES_2: Duration = Duration::from_secs(120);

fn lost() -> Link {
    Link { cut: true, ..Link::default() }
}

/// The links to a faulty member and from it at some time, and until when they stay so.
type Links = fn(Duration) -> (Option<Link>, Option<Link>, Duration);

/// A run in which the links of the faulty ones are set by `links`.
fn linked(
    what: &str,
    n: usize,
    faulty: usize,
    lasts: Duration,
    policy: Policy,
    options: &Options,
    links: Links,
) -> Row {
    row(what, n, faulty, policy, options, async |fleet, who| {
        watch(fleet, who, lasts, async |fleet, now| {
            let (inward, outward, next) = links(now);
            who.iter().for_each(|i| fleet.around(*i, inward.clone(), outward.clone()));
            next
        })
        .await
    })
}

pub(super) fn flipflop(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(200);
    let links = |now: Duration| {
        let turn = now.as_secs() / 20;
        let inward = turn.is_multiple_of(2).then(lost);
        (inward, None, Duration::from_secs((turn + 1) * 20))
    };
    let run = |policy| linked("20 s on, 20 s off", n, (n / 100).max(1), MINUTES_5, policy, options, links);
    options.policies().map(run).collect()
}

pub(super) fn loss80(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(200);
    let inward: Links = |_| (Some(Link::lossy(0.8)), None, Duration::MAX);
    let outward: Links = |_| (None, Some(Link::lossy(0.8)), Duration::MAX);
    let mut rows = Vec::new();
    for (what, links) in [("in", inward), ("out", outward)] {
        let run = |policy| linked(what, n, (n / 100).max(1), MINUTES_5, policy, options, links);
        rows.extend(options.policies().map(run));
    }
    rows
}

pub(super) fn semi_detached(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for n in options.nodes.map_or(vec![11, 13, 100], |n| vec![n]) {
        rows.extend(options.policies().map(|policy| {
            row("reaches one", n, 1, policy, options, async |fleet, who| {
                watch(fleet, who, MINUTES_5, async |fleet, _| {
                    for &i in who {
                        let (here, there) = (fleet.addr(i), fleet.addr(0));
                        fleet.around(i, Some(lost()), Some(lost()));
                        fleet.network.set_link(here, there, Link::default());
                        fleet.network.set_link(there, here, Link::default());
                    }
                    Duration::MAX
                })
                .await
            })
        }));
    }
    rows
}

pub(super) fn partition(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(32);
    let mut rows = Vec::new();
    for (what, apart) in [("half", n / 2), ("one", 1)] {
        rows.extend(options.policies().map(|policy| {
            // They are not one's own fault: nobody is faulty, and "false" is what one side says of the other.
            row(what, n, 0, policy, options, async |fleet: &mut Fleet, _| {
                let all: Vec<_> = (0..n).map(|i| fleet.addr(i)).collect();
                watch(fleet, &BTreeSet::new(), Duration::from_secs(600), async |fleet, _| {
                    fleet.network.partition(&all[n - apart..], &all[..n - apart]);
                    Duration::MAX
                })
                .await
            })
        }));
    }
    rows
}

pub(super) fn blackhole(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(64);
    let links = |_| (Some(Link { mute: true, loss: 1.0, ..Link::default() }), None, Duration::MAX);
    let run = |policy| linked("accepts and hears nothing", n, 1, MINUTES_2, policy, options, links);
    options.policies().map(run).collect()
}

pub(super) fn no_network(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(64);
    let run = |policy: Policy| {
        row("sends fail", n, 1, policy, options, async |fleet, who| {
            watch(fleet, who, MINUTES_2, async |fleet, _| {
                for &i in who {
                    let error = Some(std::io::ErrorKind::NetworkUnreachable);
                    fleet.network.fail_sends(fleet.addr(i), error);
                    fleet.around(i, Some(lost()), Some(lost()));
                }
                Duration::MAX
            })
            .await
        })
    };
    options.policies().map(run).collect()
}
