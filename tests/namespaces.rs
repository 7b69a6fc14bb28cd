//! Hosts that lose each other: one agent each, in a network namespace of its own, with the settings for a LAN.
//! The networks are built, cut and mended by the script `netns` of this directory.
//!
//! It happens when it is asked for, by `NETNS=1`, as root; what stands in the way is printed, and is a failure
//! with `NETNS=require`.

#![cfg(unix)]
#![allow(clippy::unwrap_used, reason = "a panic here is a test that fails")]

use std::time::{Duration, Instant};

use actix_memberlist::Config;
use memberlist_protocol::suspicion::Bounds;
use memberlist_tests::{
    hosts::{Cluster, Held, name},
    netns::allowed,
};

/// What is promised: from the network's return until all agree.
const HEAL: Duration = Duration::from_secs(30);

/// How long they must go on to agree.
const WATCH: Duration = Duration::from_secs(10);

/// A cut lasts this long after all hold each other for dead: until nobody speaks to the dead out of habit.
fn silence() -> Duration {
    Config::lan().gossip_to_the_dead_time + Duration::from_secs(5)
}

/// From a crash until all know of it, at most: the limit of `timing.rs`.
fn crash(hosts: usize) -> Duration {
    let config = Config::lan();
    let probes = config.probe_interval * (2 * u32::try_from(hosts).unwrap());
    probes + Bounds::new(&config, hosts).max + 4 * config.gossip_interval
}

/// The network is whole again: soon all agree, and go on to.
fn heal(cluster: &mut Cluster) {
    cluster.wait("all agree", HEAL, Cluster::agree);
    let from = cluster.watch(WATCH);
    assert_eq!(cluster.said(from, "dead"), [], "{}", cluster.told());
}

#[test]
fn halves_that_held_each_other_for_dead_agree_within_30_s_of_the_networks_return() {
    if !allowed() {
        return;
    }
    let mut cluster = Cluster::meet("halves", 16);
    let halves = [1..=8, 9..=16];
    cluster.netns("cut 1-8 9-16");
    // Half of all are gone at once: fewer are left to confirm it, and whoever finds nobody doubts itself first.
    cluster.wait("each half holds the other for dead", 2 * crash(16), |cluster| {
        let [one, two] = &halves;
        one.clone().all(|host| cluster.hold(two.clone(), host, Held::Dead))
            && two.clone().all(|host| cluster.hold(one.clone(), host, Held::Dead))
    });
    cluster.watch(silence());
    for half in &halves {
        for host in half.clone() {
            assert!(cluster.hold(half.clone(), host, Held::Alive), "host {host}:\n{}", cluster.told());
        }
    }
    cluster.netns("mend");
    heal(&mut cluster);
}

/// What is lost on its way.
#[derive(PartialEq)]
enum Lost {
    ToTheOthers,
    FromTheOthers,
    All,
}

/// One host of six loses the others in the way of these commands, and finds them again.
fn lose(network: &str, lost: &Lost, cut: &str, mend: &str) {
    if !allowed() {
        return;
    }
    let mut cluster = Cluster::meet(network, 6);
    let others = cluster.others(3);
    cluster.netns(cut);
    let (from, limit) = (cluster.now(), Instant::now() + crash(6));
    cluster.say(&[1, 3]);
    let left = limit.saturating_duration_since(Instant::now());
    cluster
        .wait("the others hold host 3 for dead", left, |cluster| cluster.hold(others.clone(), 3, Held::Dead));
    cluster.watch(silence());
    // The cut was this one.
    assert_eq!(cluster.heard(from, [3], 1), *lost == Lost::ToTheOthers, "{}", cluster.told());
    assert_eq!(cluster.heard(from, others, 3), *lost == Lost::FromTheOthers, "{}", cluster.told());
    // Even if they hear what it says of them.
    let wrong = |(who, whom, _): &(usize, &str, &str)| *who != 3 && *whom != name(3);
    assert!(!cluster.said(from, "dead").iter().any(wrong), "of each other:\n{}", cluster.told());
    cluster.netns(mend);
    heal(&mut cluster);
    // What it has come to believe may be heard for a moment. The others saw each other all the time.
    let own = |said: &(usize, &str, &str)| wrong(said) && !said.2.starts_with("by host-3,");
    assert!(!cluster.said(from, "dead").iter().any(own), "by each other:\n{}", cluster.told());
}

#[test]
fn a_host_that_hears_and_is_not_heard_is_dead_to_the_others_and_soon_back() {
    lose("mute", &Lost::ToTheOthers, "cut 3 1-6 --one-way", "mend");
}

#[test]
fn a_host_that_is_heard_and_does_not_hear_is_dead_to_the_others_and_takes_nobody_with_it() {
    lose("deaf", &Lost::FromTheOthers, "cut 1-6 3 --one-way", "mend");
}

#[test]
fn a_host_whose_cable_is_pulled_is_dead_to_the_others_and_soon_back() {
    lose("cable", &Lost::All, "unplug 3", "plug 3");
}

#[test]
fn without_udp_round_a_host_and_between_two_nobody_is_suspected() {
    if !allowed() {
        return;
    }
    let mut cluster = Cluster::meet("udp", 6);
    cluster.netns("cut 3 1-6 --udp");
    cluster.netns("cut 1 2 --udp");
    let from = cluster.watch(Duration::from_secs(30));
    for kind in ["suspected", "dead"] {
        assert_eq!(cluster.said(from, kind), [], "{kind}:\n{}", cluster.told());
    }
    // The cut was one.
    assert!(cluster.lost_udp(&[3], &[1, 2, 4, 5, 6]), "{}", cluster.told());
    assert!(cluster.lost_udp(&[1, 2, 4, 5, 6], &[3]), "{}", cluster.told());
}
