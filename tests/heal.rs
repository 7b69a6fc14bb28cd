//! Partitions, and what becomes of them: whoever was apart, for minutes or for a day, is one cluster soon after the
//! network is back, without anybody's help.
//!
//! Built for speed the clusters are large and the seeds many; `HEAL_SEEDS` says how many, for each campaign. The
//! longest ones run when they are asked for: `cargo test --release -p memberlist-tests --test heal -- --ignored`.

use std::{
    net::SocketAddr,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant as Clock},
};

use actix_memberlist::{Config, MemberState, Until};
use memberlist_tests::{World, addr, paused};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus, seq::SliceRandom};
use tokio::time::sleep;

/// What all hold of each other is the same within this time after the network is back.
const SOON: Duration = Duration::from_secs(30);

const MINUTE: Duration = Duration::from_secs(60);

/// Longer than a member that left is remembered, and than the last incarnation of one that was forgotten.
const DAY: Duration = Duration::from_secs(25 * 3600);

/// Worlds that run at once.
const THREADS: usize = 2;

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
    seed: u64,
    /// From the network's return until all views agreed.
    healed: Option<Duration>,
    /// Suspicions that began until then, and in the half minute after.
    suspected: [u64; 2],
    /// Datagrams until then, and exchanges of states that somebody began.
    datagrams: u64,
    exchanges: u64,
}

/// The sum of something over all nodes.
fn sum(world: &World, of: impl Fn(&actix_memberlist::Metrics) -> u64) -> u64 {
    world.nodes.iter().map(|node| of(&node.metrics())).sum()
}

fn suspicions(world: &World) -> u64 {
    sum(world, |metrics| metrics.suspect_messages)
}

/// Whether each of `alive` holds each of them, and nobody else, for alive, at the incarnation that it has itself.
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

fn all(world: &World) -> Vec<usize> {
    (0..world.nodes.len()).collect()
}

async fn cluster(seed: u64, config: Config, nodes: usize) -> World {
    let mut world = World::new(seed, config).unrecorded();
    world.start(nodes).await;
    for node in &world.nodes[1..] {
        node.join(&["10.0.0.1:7946"]).await.expect("a node joins");
    }
    world.wait_until(MINUTE, |world| agree(world, &all(world))).await.expect("all know each other");
    world
}

/// Some of the nodes, by chance, and the others.
fn sides(seed: u64, split: Split) -> [Vec<usize>; 2] {
    let mut one: Vec<_> = (0..split.nodes).collect();
    one.shuffle(&mut Xoshiro256PlusPlus::seed_from_u64(seed));
    let other = one.split_off(split.apart);
    [one, other]
}

fn addrs(side: &[usize]) -> Vec<SocketAddr> {
    side.iter().map(|i| addr(*i)).collect()
}

fn run(seed: u64, split: Split) -> Outcome {
    paused(async move {
        let world = cluster(seed, Config::lan(), split.nodes).await;
        let [one, other] = sides(seed, split);
        world.network.partition(&addrs(&one), &addrs(&other));
        sleep(split.time).await;
        // One that is alone finds out slowly: it doubts itself first.
        for side in [&one, &other].into_iter().filter(|side| side.len() > 1) {
            assert!(agree(&world, side), "seed {seed}: a side is not whole after {:?}", split.time);
        }
        let exchanges = |world: &World| sum(world, |metrics| metrics.states_dialled);
        let before = (suspicions(&world), world.network.stats().datagrams, exchanges(&world));
        world.network.heal();
        let all = all(&world);
        let healed = world.wait_until(SOON, |world| agree(world, &all)).await;
        let then = (suspicions(&world), world.network.stats().datagrams, exchanges(&world));
        sleep(SOON).await;
        Outcome {
            seed,
            healed: healed.filter(|_| agree(&world, &all)),
            suspected: [then.0 - before.0, suspicions(&world) - then.0],
            datagrams: then.1 - before.1,
            exchanges: then.2 - before.2,
        }
    })
}

/// How many seeds, if nothing else is said.
fn seeds(usual: u64) -> u64 {
    std::env::var("HEAL_SEEDS").map_or(usual, |text| text.parse().expect("HEAL_SEEDS is a number"))
}

/// The same from many seeds. Of a hundred one may take longer.
fn campaign(split: Split, seeds: u64) {
    let (clock, next, outcomes) = (Clock::now(), AtomicU64::new(1), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed > seeds {
                        return;
                    }
                    let outcome = run(seed, split);
                    outcomes.lock().expect("no world has failed").push(outcome);
                }
            });
        }
    });
    let outcomes = outcomes.into_inner().expect("no world has failed");
    let mut times: Vec<_> = outcomes.iter().filter_map(|outcome| outcome.healed).collect();
    times.sort();
    let most = |of: fn(&Outcome) -> u64| outcomes.iter().map(of).max();
    eprintln!(
        "{split:?}, {seeds} seeds: healed {}, median {:?}, longest {:?} (seed {:?}); at most {:?} suspicions while healing, {:?} \
         after, {:?} datagrams, {:?} exchanges; {:?}",
        times.len(),
        times.get(times.len() / 2),
        times.last(),
        outcomes.iter().max_by_key(|outcome| outcome.healed).map(|outcome| outcome.seed),
        most(|outcome| outcome.suspected[0]),
        most(|outcome| outcome.suspected[1]),
        most(|outcome| outcome.datagrams),
        most(|outcome| outcome.exchanges),
        clock.elapsed(),
    );
    // In halves nobody has a reason to suspect anybody. One that was alone may still be suspecting the others.
    let halves = split.apart > 1;
    let is_good = |outcome: &Outcome| {
        let [during, after] = outcome.suspected;
        outcome.healed.is_some() && after == 0 && (during == 0 || !halves)
    };
    let bad: Vec<_> = outcomes.iter().filter(|outcome| !is_good(outcome)).collect();
    assert_eq!(outcomes.len() as u64, seeds);
    assert!(bad.len() as u64 <= seeds / 100, "{bad:#?}");
}

/// Nodes and seeds of a campaign of ten minutes.
fn ten_minutes() -> (usize, u64) {
    if cfg!(debug_assertions) { (16, seeds(3)) } else { (100, seeds(100)) }
}

#[test]
fn after_ten_minutes_apart_two_halves_are_one_cluster_within_half_a_minute() {
    let (nodes, seeds) = ten_minutes();
    campaign(Split { nodes, apart: nodes / 2, time: 10 * MINUTE }, seeds);
}

#[test]
fn after_ten_minutes_apart_one_that_was_alone_is_back_within_half_a_minute() {
    let (nodes, seeds) = ten_minutes();
    campaign(Split { nodes, apart: 1, time: 10 * MINUTE }, seeds);
}

#[test]
#[cfg_attr(debug_assertions, ignore = "takes minutes when it is not built for speed")]
fn after_25_hours_apart_ten_nodes_are_one_cluster_within_half_a_minute() {
    campaign(Split { nodes: 10, apart: 5, time: DAY }, seeds(2));
    campaign(Split { nodes: 10, apart: 1, time: DAY }, seeds(2));
}

#[test]
#[ignore = "takes three minutes: .ci/run asks for it"]
fn after_25_hours_apart_two_halves_of_a_hundred_nodes_are_one_cluster_within_half_a_minute() {
    campaign(Split { nodes: 100, apart: 50, time: DAY }, seeds(1));
}

#[test]
#[ignore = "takes three minutes: .ci/run asks for it"]
fn after_25_hours_apart_one_of_a_hundred_nodes_is_back_within_half_a_minute() {
    campaign(Split { nodes: 100, apart: 1, time: DAY }, seeds(1));
}

/// What the others test is not there by chance.
#[test]
fn with_an_interval_of_zero_the_halves_do_not_meet_again() {
    paused(async {
        let world = cluster(1, Config { heal_interval: Duration::ZERO, ..Config::lan() }, 8).await;
        world.network.partition(&addrs(&[0, 1, 2, 3]), &addrs(&[4, 5, 6, 7]));
        sleep(10 * MINUTE).await;
        world.network.heal();
        assert_eq!(world.wait_until(10 * MINUTE, |world| agree(world, &all(world))).await, None);
        assert!(agree(&world, &[0, 1, 2, 3]) && agree(&world, &[4, 5, 6, 7]));
        assert_eq!(sum(&world, |metrics| metrics.heal_attempts), 0);
    });
}

#[test]
fn a_partition_in_one_direction_ends_as_well() {
    for seed in 1..=3 {
        paused(async move {
            let world = cluster(seed, Config::lan(), 10).await;
            for i in 0..5 {
                for j in 5..10 {
                    world.network.cut(addr(i), addr(j));
                }
            }
            sleep(10 * MINUTE).await;
            assert!(!agree(&world, &all(&world)), "seed {seed}: it was no partition");
            world.network.heal();
            let healed = world.wait_until(SOON, |world| agree(world, &all(world))).await;
            assert!(healed.is_some(), "seed {seed}: {}", world.disagreements(10));
            let before = suspicions(&world);
            sleep(SOON).await;
            assert!(agree(&world, &all(&world)) && suspicions(&world) == before, "seed {seed}");
        });
    }
}

#[test]
fn who_dies_leaves_or_is_restarted_during_a_partition_is_known_as_such_to_all_after_it() {
    for seed in 1..=3 {
        paused(async move {
            let mut world = cluster(seed, Config::lan(), 12).await;
            let (one, other): (Vec<_>, Vec<_>) = (0..12).partition(|i| i % 2 == 0);
            world.network.partition(&addrs(&one), &addrs(&other));
            sleep(3 * MINUTE).await;
            // Of each side one dies, one leaves, and one is restarted.
            for i in [2, 3] {
                world.kill(i).await;
            }
            for i in [4, 5] {
                world.nodes[i].leave(Duration::from_secs(5)).await.expect("it runs");
                world.kill(i).await;
            }
            for i in [6, 7] {
                let run = world.nodes[i].view().local().id.clone();
                world.kill(i).await;
                world.nodes[i] = world.builder(i).seed(seed + 1000).start().await.expect("a node starts");
                assert_ne!(world.nodes[i].view().local().id, run);
                let seed_of_its_side = addr(i - 6).to_string();
                world.nodes[i].join(&[&seed_of_its_side]).await.expect("it joins its side");
            }
            sleep(7 * MINUTE).await;
            world.network.heal();
            let alive = [0, 1, 6, 7, 8, 9, 10, 11];
            // Those that were restarted have never heard of those that were gone by then.
            let stayed = [0, 1, 8, 9, 10, 11];
            let right = |world: &World| {
                agree(world, &alive)
                    && [2, 3].iter().all(|i| world.all_hold(stayed, *i, MemberState::Dead))
                    && [4, 5].iter().all(|i| world.all_hold(stayed, *i, MemberState::Left))
            };
            let healed = world.wait_until(SOON, right).await;
            assert!(healed.is_some(), "seed {seed}: {}", world.disagreements(12));
            sleep(MINUTE).await;
            assert!(right(&world), "seed {seed}: {}", world.disagreements(12));
        });
    }
}

#[test]
fn one_that_was_restarted_and_joins_nobody_is_found() {
    paused(async {
        let mut world = cluster(1, Config::lan(), 5).await;
        world.kill(2).await;
        let gone = world.wait_until(MINUTE, |world| world.all_hold([0, 1, 3, 4], 2, MemberState::Dead)).await;
        assert!(gone.is_some());
        world.nodes[2] = world.builder(2).seed(1000).start().await.expect("a node starts");
        let found = world.wait_until(SOON, |world| agree(world, &all(world))).await;
        assert!(found.is_some(), "{}", world.disagreements(5));
    });
}

#[test]
fn a_seed_that_was_out_of_reach_is_joined_once_it_is_there() {
    paused(async {
        // A source of seeds is asked only by nodes that are alone: what follows is not its merit.
        let config = Config { discover_interval: Duration::ZERO, ..Config::lan() };
        let mut world = World::new(1, config).unrecorded();
        world.network.partition(&addrs(&[0, 1]), &addrs(&[2, 3]));
        let node = world.builder(0).seeds(vec![addr(2).to_string()]).start().await.expect("a node starts");
        world.nodes.push(node);
        world.start(3).await;
        sleep(Duration::from_secs(5)).await;
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("a node joins");
        world.nodes[3].join(&["10.0.0.3:7946"]).await.expect("a node joins");
        sleep(10 * MINUTE).await;
        assert!(agree(&world, &[0, 1]) && agree(&world, &[2, 3]));
        world.network.heal();
        assert!(world.wait_until(SOON, |world| agree(world, &all(world))).await.is_some());
    });
}

#[test]
fn a_whole_cluster_looks_for_nobody_and_never_for_one_that_left() {
    paused(async {
        let world = cluster(1, Config::lan(), 6).await;
        sleep(10 * MINUTE).await;
        world.nodes[5].leave(Duration::from_secs(5)).await.expect("it runs");
        sleep(10 * MINUTE).await;
        assert_eq!(sum(&world, |metrics| metrics.heal_attempts), 0);
        world.kill(4).await;
        sleep(10 * MINUTE).await;
        // Four nodes, each with 120 intervals less the time in which the death was found.
        let tried = sum(&world, |metrics| metrics.heal_attempts);
        assert!((400..=490).contains(&tried), "{tried} attempts");
        assert_eq!(sum(&world, |metrics| metrics.heals), 0);
        assert_eq!(world.nodes[5].metrics().heal_attempts, 0, "it has left");
    });
}

#[test]
fn the_dead_are_forgotten_by_all_after_their_time_and_exchanges_do_not_bring_them_back() {
    paused(async {
        let kept = 5 * MINUTE;
        let config = Config { dead_retention: kept, left_retention: kept, ..Config::lan() };
        let world = cluster(1, config, 6).await;
        world.kill(4).await;
        world.nodes[5].leave(Duration::from_secs(5)).await.expect("it runs");
        world.kill(5).await;
        sleep(kept - MINUTE).await;
        assert!(world.all_hold(0..4, 4, MemberState::Dead) && world.all_hold(0..4, 5, MemberState::Left));
        sleep(2 * MINUTE).await;
        for _ in 0..60 {
            assert!((0..4).all(|i| world.state(i, 4).is_none() && world.state(i, 5).is_none()));
            sleep(Duration::from_secs(5)).await;
        }
        // Whoever is forgotten is welcome as anybody else.
        let back = world.builder(4).seed(1000).start().await.expect("a node starts");
        back.join(&["10.0.0.1:7946"]).await.expect("it joins");
        assert_eq!(back.ready(Until::Members(5), SOON).await, Ok(true));
        assert!(world.wait_until(SOON, |world| world.all_hold(0..4, 4, MemberState::Alive)).await.is_some());
    });
}

#[test]
fn newcomers_who_never_heard_of_the_other_half_find_it_through_their_seeds() {
    paused(async {
        // As above: the source of seeds is not asked again.
        let config = Config { discover_interval: Duration::ZERO, ..Config::lan() };
        let mut world = cluster(1, config, 6).await;
        world.network.partition(&addrs(&[0, 1, 2, 6, 7]), &addrs(&[3, 4, 5]));
        sleep(3 * MINUTE).await;
        let seeds = [0, 3].map(|seed| addr(seed).to_string());
        for i in [6, 7] {
            let node = world.builder(i).seeds(seeds.clone()).start().await.expect("a node starts");
            world.nodes.push(node);
        }
        sleep(MINUTE).await;
        for i in [0, 1, 2] {
            world.kill(i).await;
        }
        sleep(5 * MINUTE).await;
        assert!(agree(&world, &[6, 7]) && agree(&world, &[3, 4, 5]));
        assert!([3, 4, 5].iter().all(|old| world.state(6, *old).is_none()), "it has heard of them");
        world.network.heal();
        let alive = [3, 4, 5, 6, 7];
        let found = world.wait_until(SOON, |world| agree(world, &alive)).await;
        assert!(found.is_some(), "{}", world.disagreements(8));
    });
}
