//! Two clusters on one network never become one: not by seeds that lead to the wrong place, not when one takes
//! over the other's addresses, and not with somebody between them who passes on what they say.

use std::{net::SocketAddr, time::Duration};

use actix_memberlist::{
    Cluster, ClusterBuilder, Config, JoinError, Key, MemberState, Refusal, SendError, network::Network,
};
use bytes::Bytes;
use memberlist_tests::{World, addr, paused};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

/// Members of each cluster.
const NODES: usize = 5;

/// Those of the first cluster that vanish, and whose addresses nodes of the second take.
const TAKEN: [usize; 2] = [3, 4];

/// What keeps two clusters apart.
#[derive(Clone, Copy, Debug)]
struct Mark {
    label: &'static str,
    key: Option<u8>,
}

const MARKS: [[Mark; 2]; 4] = [
    [Mark { label: "ours", key: None }, Mark { label: "them", key: None }],
    [Mark { label: "", key: Some(1) }, Mark { label: "", key: Some(2) }],
    [Mark { label: "ours", key: Some(1) }, Mark { label: "them", key: Some(1) }],
    [Mark { label: "ours", key: Some(1) }, Mark { label: "them", key: Some(2) }],
];

fn marked(builder: ClusterBuilder, mark: Mark) -> ClusterBuilder {
    let builder = builder.label(mark.label);
    match mark.key {
        Some(n) => builder.key(Key::from_bytes(&[n; 32]).expect("long enough")),
        None => builder,
    }
}

/// A node whose seeds are all addresses of both clusters, for ever.
async fn node(world: &World, i: usize, name: &str, at: SocketAddr, mark: Mark) -> Cluster {
    let seeds: Vec<_> = (0..20).map(|i| addr(i).to_string()).collect();
    let builder = world.renamed(i, name).bind(at).seeds(seeds);
    marked(builder, mark).start().await.expect("it starts")
}

fn names(node: &Cluster) -> Vec<String> {
    let mut names: Vec<_> = node.view().all().map(|member| member.name().to_owned()).collect();
    names.sort();
    names
}

#[test]
fn two_clusters_never_merge_also_when_one_takes_over_the_others_addresses() {
    for (seed, [ours, theirs]) in (1..).zip(MARKS) {
        paused(async move {
            let mut world = World::new(seed, Config { push_pull_interval: secs(5), ..Config::lan() });
            for i in 0..NODES {
                let node = node(&world, i, &format!("n{i:03}"), addr(i), ours).await;
                world.nodes.push(node);
            }
            let all =
                |n: usize| move |w: &World| w.nodes[..n].iter().all(|node| node.view().alive_count() == n);
            world.wait_until(secs(60), all(NODES)).await.expect("the first cluster forms");

            let mut others = Vec::new();
            for i in 0..NODES - TAKEN.len() {
                others.push(node(&world, 10 + i, &format!("m{i:03}"), addr(10 + i), theirs).await);
            }
            for i in TAKEN {
                world.nodes[i].shutdown().await;
                // One takes the name as well.
                let name = if i == TAKEN[0] { format!("n{i:03}") } else { format!("m{i:03}") };
                others.push(node(&world, 10 + i, &name, addr(i), theirs).await);
            }
            let formed = |_: &World| others.iter().all(|node| node.view().alive_count() == NODES);
            world.wait_until(secs(60), formed).await.expect("the second cluster forms");
            let dead = |w: &World| TAKEN.iter().all(|i| w.all_hold(0..3, *i, MemberState::Dead));
            world.wait_until(secs(60), dead).await.expect("those who vanished are dead to the first one");
            for _ in 0..60 {
                sleep(secs(5)).await;
                assert!(dead(&world), "{ours:?} {theirs:?}");
                for node in &world.nodes[..3] {
                    assert_eq!(node.view().alive_count(), 3);
                    assert_eq!(names(node), ["n000", "n001", "n002", "n003", "n004"]);
                }
                for node in &others {
                    assert_eq!(node.view().alive_count(), NODES);
                    assert_eq!(names(node), ["m000", "m001", "m002", "m004", "n003"]);
                }
            }
            // They have met all the time.
            let reasons: &[&str] = match (ours.label == theirs.label, ours.key == theirs.key) {
                (false, _) => &["label"],
                _ => &["sealed"],
            };
            for reason in reasons {
                let met: u64 = world.nodes[..3].iter().map(|node| node.metrics().dropped[*reason]).sum();
                assert!(met > 10, "{reason}: {met}");
            }
            assert!(world.nodes[0].peer(&others[0].view().local().id.clone()).is_none());
            let why = world.nodes[0].join(&[&addr(TAKEN[0]).to_string()]).await.expect_err("a stranger");
            let expected = if ours.label == theirs.label { Refusal::Key } else { Refusal::Label };
            assert_eq!(why, JoinError::Refused(expected));
            let sent = world.nodes[0].send_to_address(addr(TAKEN[0]), Bytes::from_static(b"x"));
            assert!(!matches!(sent, Err(SendError::Gone)), "an address is an address");
        });
    }
}

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Passes streams on from one address to another, with one label in place of the other.
async fn between(world: &World, at: SocketAddr, to: SocketAddr, labels: [&[u8]; 2]) {
    let endpoint = world.network.bind(at).await.expect("a free address");
    loop {
        let accepted = std::future::poll_fn(|cx| endpoint.poll_accept(cx)).await;
        let (mut one, _) = accepted.expect("it works");
        let Ok(mut other) = endpoint.dial(to).await else { continue };
        let mut first = [0; 64];
        let Ok(len) = one.read(&mut first).await else { continue };
        let mut first = first[..len].to_vec();
        if let Some(place) = first.windows(labels[0].len()).position(|part| part == labels[0]) {
            first[place..place + labels[0].len()].copy_from_slice(labels[1]);
        }
        if other.write_all(&first).await.is_ok() {
            let _ = timeout(secs(5), tokio::io::copy_bidirectional(&mut one, &mut other)).await;
        }
    }
}

#[test]
fn whoever_is_between_two_clusters_of_one_key_and_changes_labels_does_not_bring_them_together() {
    paused(async {
        let [_, _, [ours, theirs], _] = MARKS;
        let mut world = World::new(7, Config::lan());
        let one = marked(world.builder(0), ours).start().await.expect("it starts");
        let other = marked(world.builder(1), theirs).start().await.expect("it starts");
        world.nodes.extend([one, other]);
        let relay = SocketAddr::from(([10, 9, 9, 9], 7946));
        let change = between(&world, relay, addr(0), [b"them", b"ours"]);
        let joined = async {
            let joined = world.nodes[1].join(&["10.9.9.9:7946"]).await;
            // The answer is that of a seal that does not open, and nobody was taken in.
            assert_eq!(joined.expect_err("it does not open"), JoinError::Refused(Refusal::Key));
            assert_eq!(world.nodes[0].metrics().dropped["seal"], 1);
            assert!(world.nodes.iter().all(|node| node.view().all().count() == 1));
        };
        tokio::select! {
            biased;
            () = joined => {}
            () = change => {}
        }
    });
}

#[test]
fn whoever_only_passes_streams_on_within_one_cluster_changes_nothing_either() {
    paused(async {
        let [_, _, [ours, _], _] = MARKS;
        let mut world = World::new(8, Config::lan());
        for i in 0..2 {
            let node = marked(world.builder(i), ours).start().await.expect("it starts");
            world.nodes.push(node);
        }
        let relay = SocketAddr::from(([10, 9, 9, 9], 7946));
        tokio::select! {
            biased;
            // As through any other router.
            joined = world.nodes[1].join(&["10.9.9.9:7946"]) => drop(joined.expect("it joins")),
            () = between(&world, relay, addr(0), [b"none", b"none"]) => {}
        }
    });
}
