//! Sixty seconds in the life of a cluster: it joins, one crashes, one leaves, a partition comes and goes.

use std::time::Duration;

use actix_memberlist::{Config, MemberState, network::memory::Link};
use tokio::time::{Instant, sleep, sleep_until};

use crate::{World, addr};

/// What has happened, in virtual time.
#[derive(Debug)]
pub struct Outcome {
    /// From the first join to the moment at which each sees all.
    pub joined: Duration,
    /// From the crash to the last survivor that holds the node for dead.
    pub crash: Duration,
    /// From the farewell to the last node that holds the node for left.
    pub leave: Duration,
    /// From the end of the partition to the moment at which all agree that all who are left are alive.
    pub healed: Duration,
}

/// Tells the story with `n` nodes. `plant` lets the network deliver in the order of a `HashMap`.
pub async fn tell(seed: u64, n: usize, plant: bool) -> (World, Outcome) {
    let start = Instant::now();
    let mut world = World::new(seed, Config::lan());
    world.network.plant_hash_order(plant);
    // A network as it is: some loss, some duplicates, some disorder.
    world.network.set_default(Link {
        latency: Duration::from_micros(200)..Duration::from_millis(3),
        loss: 0.01,
        duplicate: 0.01,
        reorder: 0.02,
        ..Link::default()
    });
    world.start(n).await;

    let before = Instant::now();
    let joins: Vec<_> = world.nodes[1..].iter().map(|node| node.join(&["10.0.0.1:7946"])).collect();
    for joined in futures_util::future::join_all(joins).await {
        joined.expect("each node joins");
    }
    let whole = |world: &World| world.nodes.iter().all(|node| node.view().alive_count() == n);
    world.wait_until(Duration::from_secs(15), whole).await.expect("each node sees all");
    let joined = before.elapsed();

    sleep_until(start + Duration::from_secs(5)).await;
    let (crashed, left) = (n - 1, n - 2);
    world.kill(crashed).await;
    let others = 0..n - 1;
    let dead = |world: &World| world.all_hold(others.clone(), crashed, MemberState::Dead);
    let crash = world.wait_until(Duration::from_secs(25), dead).await.expect("the crash is seen");

    let before = Instant::now();
    world.nodes[left].leave(Duration::from_secs(5)).await.expect("the node leaves");
    let gone = |world: &World| world.all_hold(0..n - 2, left, MemberState::Left);
    world.wait_until(Duration::from_secs(5), gone).await.expect("the farewell is heard");
    let leave = before.elapsed();
    world.nodes[left].shutdown().await;

    // Long enough for suspicion on both sides.
    let half: Vec<_> = (0..n / 2).map(addr).collect();
    let other: Vec<_> = (n / 2..n).map(addr).collect();
    world.network.partition(&half, &other);
    sleep(Duration::from_secs(6)).await;
    let suspects: usize = world.nodes.iter().map(|node| node.view().count(MemberState::Suspect)).sum();
    assert!(suspects > 0, "a partition is noticed");
    world.network.heal();
    let agree = |world: &World| {
        world.nodes[..n - 2].iter().all(|node| node.view().count(MemberState::Alive) == n - 2)
    };
    let before = Instant::now();
    if world.wait_until(Duration::from_secs(25), agree).await.is_none() {
        panic!("the halves do not agree: {}", world.disagreements(n - 2));
    }
    let healed = before.elapsed();
    sleep_until(start + Duration::from_secs(60)).await;
    (world, Outcome { joined, crash, leave, healed })
}
