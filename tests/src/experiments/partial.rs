//! Members that are half there: the set-ups of Rapid (USENIX ATC 2018, section 7) with one-way loss, and those that users
//! have met.

use std::{collections::BTreeSet, time::Duration};

use actix_memberlist::{Config, MemberState, network::memory::Link};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep};

use super::{
    Options,
    fleet::{Fleet, Said},
    policy::Policy,
    table::{Row, quantile},
};
use crate::paused;

/// What was seen in one run.
#[derive(Default)]
struct Seen {
    /// Events "dead" about members without a fault, at such members.
    wrongly: usize,
    /// Events "suspected" of the same sort.
    doubted: usize,
    /// When each faulty member was first held for dead by one without a fault.
    found: Vec<Duration>,
    /// How often a faulty one came back, at members without a fault.
    returns: usize,
    /// Faulty ones that at least one healthy member holds for alive in the end.
    still_in: usize,
    /// Sizes of the membership that members without a fault have seen.
    sizes: usize,
    /// After the fault.
    agreed: Option<Duration>,
    packets: f64,
    bytes: f64,
}

/// Sets what is wrong at that time since the beginning; says when it will change next.
type Weather<'a> = &'a mut dyn FnMut(&Fleet, Duration) -> Duration;

async fn watch(fleet: &Fleet, faulty: &BTreeSet<usize>, lasts: Duration, weather: Weather<'_>) -> Seen {
    let n = fleet.nodes.len();
    sleep(Duration::from_secs(15)).await;
    drop(fleet.heard());
    let (before, begin) = (fleet.load(), Instant::now());
    let mut sizes = BTreeSet::new();
    let mut next = Duration::ZERO;
    while begin.elapsed() < lasts {
        if begin.elapsed() >= next {
            next = weather(fleet, begin.elapsed());
        }
        sleep(Duration::from_secs(1)).await;
        let healthy = fleet.running().filter(|(i, _)| !faulty.contains(i));
        sizes.extend(healthy.map(|(_, node)| node.view().alive_count()));
    }
    let (packets, bytes) = fleet.load().since(before, n, begin.elapsed());
    let mut seen = Seen { packets, bytes, sizes: sizes.len(), ..Seen::default() };
    let mut found = BTreeSet::new();
    for heard in fleet.heard().iter().filter(|heard| !faulty.contains(&heard.by)) {
        match (heard.said, faulty.contains(&heard.of)) {
            (Said::Dead, false) => seen.wrongly += 1,
            (Said::Suspected, false) => seen.doubted += 1,
            (Said::Dead, true) if found.insert(heard.of) => seen.found.push(heard.at - begin),
            (Said::Joined, true) => seen.returns += 1,
            _ => {}
        }
    }
    let holds = |of: usize| {
        fleet.running().filter(|(i, _)| !faulty.contains(i)).any(|(_, node)| {
            let view = node.view();
            let mut all = view.all();
            all.any(|member| member.addr == Fleet::addr(of) && member.state == MemberState::Alive)
        })
    };
    seen.still_in = faulty.iter().filter(|of| holds(**of)).count();
    fleet.network.heal();
    for i in faulty {
        fleet.around(*i, &Link::default(), &Link::default());
        fleet.network.fail_sends(Fleet::addr(*i), None);
    }
    seen.agreed = fleet.settle(Duration::from_secs(300)).await;
    seen
}

fn row(
    what: &str,
    n: usize,
    faulty: usize,
    policy: Policy,
    options: &Options,
    run: impl Fn(&BTreeSet<usize>, u64) -> Seen + Sync,
) -> Row {
    let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
    let seen = options.each(seeds, |seed| {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let mut who = BTreeSet::new();
        while who.len() < faulty {
            // Not those whom all ask at first.
            who.insert(rng.random_range(3..n));
        }
        run(&who, seed)
    });
    let mut found: Vec<_> = seen.iter().flat_map(|seen| seen.found.iter().copied()).collect();
    let mut agreed: Vec<_> = seen.iter().filter_map(|seen| seen.agreed).collect();
    let sum = |pick: fn(&Seen) -> usize| seen.iter().map(pick).sum::<usize>();
    let mean = |pick: fn(&Seen) -> f64| seen.iter().map(pick).sum::<f64>() / seen.len() as f64;
    vec![
        ("what", what.into()),
        ("policy", policy.name().into()),
        ("nodes", n.into()),
        ("faulty", faulty.into()),
        ("runs", seen.len().into()),
        ("false_dead", sum(|seen| seen.wrongly).into()),
        ("false_suspected", sum(|seen| seen.doubted).into()),
        ("found", found.len().into()),
        ("found_s", quantile(&mut found, 0.5).into()),
        ("found_p99_s", quantile(&mut found, 0.99).into()),
        ("returns", sum(|seen| seen.returns).into()),
        ("in_at_the_end", sum(|seen| seen.still_in).into()),
        ("sizes_seen", sum(|seen| seen.sizes).into()),
        ("agreed_s", quantile(&mut agreed, 0.5).into()),
        ("agreed_p99_s", quantile(&mut agreed, 0.99).into()),
        ("never_agreed", seen.iter().filter(|seen| seen.agreed.is_none()).count().into()),
        ("packets_node_s", mean(|seen| seen.packets).into()),
        ("bytes_node_s", mean(|seen| seen.bytes).into()),
    ]
}

fn lost() -> Link {
    Link { cut: true, ..Link::default() }
}

/// A run in which the links of the faulty ones are set by `links`: inward and outward, at a time.
fn linked(
    n: usize,
    config: Config,
    faulty: &BTreeSet<usize>,
    seed: u64,
    lasts: Duration,
    links: fn(Duration) -> (Link, Link, Duration),
) -> Seen {
    let faulty = faulty.clone();
    paused(async move {
        let fleet = Fleet::of(n, seed, config).await;
        let seen = watch(&fleet, &faulty, lasts, &mut |fleet, now| {
            let (inward, outward, next) = links(now);
            faulty.iter().for_each(|i| fleet.around(*i, &inward, &outward));
            next
        })
        .await;
        fleet.end().await;
        seen
    })
}

pub(super) fn flipflop(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(200);
    let links = |now: Duration| {
        let turn = now.as_secs() / 20;
        let inward = if turn.is_multiple_of(2) { lost() } else { Link::default() };
        (inward, Link::default(), Duration::from_secs((turn + 1) * 20))
    };
    let run = |policy| {
        row("20 s on, 20 s off", n, (n / 100).max(1), policy, options, |who, seed| {
            linked(n, options.config(policy), who, seed, Duration::from_secs(300), links)
        })
    };
    options.policies().map(run).collect()
}

pub(super) fn loss80(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(200);
    type Links = fn(Duration) -> (Link, Link, Duration);
    let inward: Links = |_| (Link { loss: 0.8, ..Link::default() }, Link::default(), Duration::MAX);
    let outward: Links = |_| (Link::default(), Link { loss: 0.8, ..Link::default() }, Duration::MAX);
    let mut rows = Vec::new();
    for (what, links) in [("in", inward), ("out", outward)] {
        rows.extend(options.policies().map(|policy| {
            row(what, n, (n / 100).max(1), policy, options, |who, seed| {
                linked(n, options.config(policy), who, seed, Duration::from_secs(300), links)
            })
        }));
    }
    rows
}

pub(super) fn semi_detached(options: &Options) -> Vec<Row> {
    let mut rows = Vec::new();
    for n in options.nodes.map_or(vec![11, 13, 100], |n| vec![n]) {
        rows.extend(options.policies().map(|policy| {
            row("reaches one", n, 1, policy, options, |who, seed| {
                let who = who.clone();
                paused(async move {
                    let fleet = Fleet::of(n, seed, options.config(policy)).await;
                    let seen = watch(&fleet, &who, Duration::from_secs(300), &mut |fleet, _| {
                        for &i in &who {
                            fleet.around(i, &lost(), &lost());
                            fleet.network.set_link(Fleet::addr(i), Fleet::addr(0), Link::default());
                            fleet.network.set_link(Fleet::addr(0), Fleet::addr(i), Link::default());
                        }
                        Duration::MAX
                    })
                    .await;
                    fleet.end().await;
                    seen
                })
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
            row(what, n, 0, policy, options, |_, seed| {
                paused(async move {
                    let fleet = Fleet::of(n, seed, options.config(policy)).await;
                    let all: Vec<_> = (0..n).map(Fleet::addr).collect();
                    let seen = watch(&fleet, &BTreeSet::new(), Duration::from_secs(600), &mut |fleet, _| {
                        fleet.network.partition(&all[n - apart..], &all[..n - apart]);
                        Duration::MAX
                    })
                    .await;
                    fleet.end().await;
                    seen
                })
            })
        }));
    }
    rows
}

pub(super) fn blackhole(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(64);
    let links = |_| (Link { mute: true, loss: 1.0, ..Link::default() }, Link::default(), Duration::MAX);
    let run = |policy| {
        row("accepts and hears nothing", n, 1, policy, options, |who, seed| {
            linked(n, options.config(policy), who, seed, Duration::from_secs(120), links)
        })
    };
    options.policies().map(run).collect()
}

pub(super) fn no_network(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(64);
    let run = |policy: Policy| {
        row("sends fail", n, 1, policy, options, |who, seed| {
            let who = who.clone();
            paused(async move {
                let fleet = Fleet::of(n, seed, options.config(policy)).await;
                let seen = watch(&fleet, &who, Duration::from_secs(120), &mut |fleet, _| {
                    for &i in &who {
                        let error = Some(std::io::ErrorKind::NetworkUnreachable);
                        fleet.network.fail_sends(Fleet::addr(i), error);
                        fleet.around(i, &lost(), &lost());
                    }
                    Duration::MAX
                })
                .await;
                fleet.end().await;
                seen
            })
        })
    };
    options.policies().map(run).collect()
}
