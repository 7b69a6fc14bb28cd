//! How fast a cluster forms, and how fast it notices who is gone: the figures that the README promises.

use std::time::Duration;

use actix_memberlist::{Cluster, Config, MemberState, Until};
use memberlist_protocol::suspicion::Bounds;
use memberlist_tests::{World, paused};
use tokio::time::Instant;

/// Nodes on loopback that have joined the first, and how long that took from the first join call until each
/// sees all.
async fn cluster(config: &Config, n: usize) -> (Vec<Cluster>, Duration) {
    let mut nodes = Vec::new();
    for i in 0..n {
        let node = Cluster::builder(format!("n{i}")).config(config.clone()).bind(([127, 0, 0, 1], 0).into());
        nodes.push(node.start().await.expect("a node starts"));
    }
    let seed = nodes[0].view().local().addr.to_string();
    let start = Instant::now();
    let seeds = [&*seed];
    let joins = nodes[1..].iter().map(|node| node.join(&seeds));
    for joined in futures_util::future::join_all(joins).await {
        joined.expect("a node joins");
    }
    for node in &nodes {
        assert_eq!(node.ready(Until::Members(n), Duration::from_secs(20)).await, Ok(true));
    }
    (nodes, start.elapsed())
}

/// How long it takes until all others hold the last node for left.
async fn leave(nodes: &[Cluster]) -> Duration {
    let Some((last, others)) = nodes.split_last() else { return Duration::ZERO };
    let (name, start) = (last.view().local().name().to_owned(), Instant::now());
    let report = last.leave(Duration::from_secs(5)).await.expect("it runs");
    assert!(report.announced);
    let seen = |node: &Cluster| node.view().get(&name).is_some_and(|m| m.state == MemberState::Left);
    while !others.iter().all(seen) {
        assert!(start.elapsed() < Duration::from_secs(20), "the farewell is never heard");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    start.elapsed()
}

#[test]
fn over_real_sockets_a_cluster_forms_and_hears_a_farewell_within_a_second() {
    actix::System::new().block_on(async {
        for (config, n) in [(Config::local(), 5), (Config::lan(), 32)] {
            let (nodes, joined) = cluster(&config, n).await;
            let left = leave(&nodes).await;
            println!("{n} nodes: joined in {joined:?}, a farewell heard in {left:?}");
            assert!(joined < Duration::from_secs(1), "{n} nodes joined in {joined:?}");
            assert!(left < Duration::from_secs(1), "{n} nodes heard a farewell in {left:?}");
            for node in nodes {
                node.shutdown().await;
            }
        }
    });
}

/// From a crash to the moment at which the last survivor holds the node for dead.
async fn crash(seed: u64, config: &Config, n: usize) -> Duration {
    let world = World::cluster(seed, config.clone(), n).await;
    world.kill(n - 1).await;
    let dead = |world: &World| world.all_hold(0..n - 1, n - 1, MemberState::Dead);
    let took = world.wait_until(Duration::from_secs(300), dead).await.expect("a crash is noticed");
    for node in &world.nodes {
        let wrong = node.view().all().filter(|m| m.state == MemberState::Dead).count();
        assert!(wrong <= 1, "seed {seed}: somebody alive is held for dead");
    }
    took
}

#[test]
fn a_crash_is_known_to_all_within_the_bounds_of_the_paper_and_soon_in_the_median() {
    for (config, n) in [(Config::local(), 5), (Config::lan(), 5), (Config::lan(), 32)] {
        let mut times: Vec<_> = (0..20).map(|seed| paused(crash(seed, &config, n))).collect();
        times.sort();
        let bounds = Bounds::new(&config, n);
        let rounds = 4 * config.gossip_interval;
        let worst = config.probe_interval * (2 * n as u32) + bounds.max + rounds;
        let median = config.probe_interval * 2 + bounds.min + rounds;
        println!(
            "{n} nodes: median {:?} of at most {median:?}, worst {:?} of {worst:?}",
            times[10], times[19]
        );
        assert!(times[19] <= worst, "{n} nodes: {:?} is more than {worst:?}", times[19]);
        assert!(times[10] <= median, "{n} nodes: {:?} is more than {median:?}", times[10]);
    }
}
