//! Partitions, and what becomes of them: whoever was apart, for minutes or for a day, is one cluster soon after the
//! network is back, without anybody's help.

use std::time::{Duration, Instant as Clock};

use actix_memberlist::{Config, MemberState};
use memberlist_tests::{World, addr, paused};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use tokio::time::sleep;

/// What all hold of each other is the same within this time after the network is back.
const SOON: Duration = Duration::from_secs(30);

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

/// A partition: so many nodes, of which some are apart from the others for a time.
#[derive(Clone, Copy, Debug)]
struct Split {
    nodes: usize,
    apart: usize,
    time: Duration,
}

/// How it ended.
#[derive(Debug)]
struct Outcome {
    /// From the network's return until all views agreed.
    healed: Option<Duration>,
    /// Suspicions that began from the network's return until half a minute after.
    suspicions: u64,
    /// Datagrams in that time, and exchanges of states.
    datagrams: u64,
    exchanges: u64,
    took: Duration,
}

fn suspicions(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.metrics().suspect_messages).sum()
}

fn exchanges(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.metrics().states_dialled).sum()
}

/// Whether each of `alive` holds each of them for alive, at the incarnation that it has itself.
fn agree(world: &World, alive: &[usize]) -> bool {
    let own: Vec<_> = alive.iter().map(|i| world.nodes[*i].view().local().clone()).collect();
    alive.iter().all(|i| {
        let view = world.nodes[*i].view();
        view.alive_count() == alive.len()
            && own.iter().all(|own| {
                view.get(own.name()).is_some_and(|held| {
                    held.state == MemberState::Alive
                        && held.id == own.id
                        && held.incarnation == own.incarnation
                })
            })
    })
}

async fn cluster(seed: u64, config: Config, nodes: usize) -> World {
    let mut world = World::new(seed, config).unrecorded();
    world.start(nodes).await;
    for node in &world.nodes[1..] {
        node.join(&["10.0.0.1:7946"]).await.expect("a node joins");
    }
    let all: Vec<_> = (0..nodes).collect();
    world.wait_until(MINUTE, |world| agree(world, &all)).await.expect("all know each other");
    world
}

/// Some of the nodes, by chance, and the others.
fn sides(seed: u64, split: Split) -> [Vec<usize>; 2] {
    let mut all: Vec<_> = (0..split.nodes).collect();
    all.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    let others = all.split_off(split.apart);
    [all, others]
}

fn addrs(side: &[usize]) -> Vec<std::net::SocketAddr> {
    side.iter().map(|i| addr(*i)).collect()
}

fn run(seed: u64, split: Split, config: Config) -> Outcome {
    let clock = Clock::now();
    paused(async move {
        let world = cluster(seed, config, split.nodes).await;
        let joined = clock.elapsed();
        let [one, other] = sides(seed, split);
        world.network.partition(&addrs(&one), &addrs(&other));
        sleep(split.time).await;
        for side in [&one, &other].into_iter().filter(|side| side.len() > 1) {
            assert!(agree(&world, side), "seed {seed}: a side is whole after {:?}", split.time);
        }
        let apart = clock.elapsed();
        let (suspected, sent, exchanged) =
            (suspicions(&world), world.network.stats().datagrams, exchanges(&world));
        world.network.heal();
        let all: Vec<_> = (0..split.nodes).collect();
        let healed = world.wait_until(SOON, |world| agree(world, &all)).await;
        let datagrams = world.network.stats().datagrams - sent;
        let exchanges = exchanges(&world) - exchanged;
        sleep(SOON).await;
        let outcome = Outcome {
            healed: healed.filter(|_| agree(&world, &all)),
            suspicions: suspicions(&world) - suspected,
            datagrams,
            exchanges,
            took: clock.elapsed(),
        };
        eprintln!("seed {seed}: {outcome:?}; {joined:?} to join, {:?} apart", apart - joined);
        outcome
    })
}

#[test]
fn measure() {
    let split = Split { nodes: 100, apart: 50, time: 10 * MINUTE };
    run(1, split, Config::lan());
    run(1, Split { apart: 1, ..split }, Config::lan());
}
