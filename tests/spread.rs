//! How users' broadcasts spread in a large cluster, in virtual time: in calm, and while its members change.
//!
//! One run tells both stories to the same nodes. In the second, nodes join, leave and crash all the time, so
//! that there is more news of the membership than packets have room for: thirty changes in a second among a
//! thousand nodes, each to be told sixteen times by everybody, are twice as much as fits.

use std::{
    cell::RefCell,
    collections::BTreeMap,
    rc::Rc,
    time::{Duration, Instant as Clock},
};

use actix::{Actor, Context, Handler};
use actix_memberlist::{Broadcast, Cluster, Config, Until, UserBytes, network::memory::Link};
use bytes::Bytes;
use futures_util::future::{join, join_all};
use memberlist_tests::{World, paused};
use tokio::time::{Instant, sleep, sleep_until};

/// Between two rounds of gossip.
const ROUND: Duration = Duration::from_millis(200);

/// Broadcasts of each part of a run.
const BROADCASTS: usize = 6;

/// Bytes of a packet. Small ones are filled by fewer changes.
const PACKET: usize = 1024;

/// Bytes of a broadcast. Together they fit into the quarter of each packet that is users'.
const LEN: usize = 60;

/// Between two broadcasts: several are on their way at once.
const APART: Duration = Duration::from_millis(500);

/// Longest part of a run in which broadcasts are on their way.
const LENGTH: Duration = Duration::from_secs(9);

/// Before the first broadcast that meets changes, so that these fill the queues.
const LEAD: Duration = Duration::from_secs(3);

/// How large a run is, and how rough.
#[derive(Clone, Copy)]
struct Size {
    nodes: usize,
    /// Members that come or go in a second: half of them join, a quarter leaves, a quarter crashes.
    changes: usize,
}

/// Who heard what, and when.
type Heard = Rc<RefCell<BTreeMap<Bytes, BTreeMap<usize, Vec<Instant>>>>>;

/// Hears for one node.
struct Ear(usize, Heard);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, message: UserBytes, _: &mut Context<Self>) {
        let mut heard = self.1.borrow_mut();
        heard.entry(message.bytes).or_default().entry(self.0).or_default().push(Instant::now());
    }
}

/// A cluster under observation.
struct Run {
    world: World,
    size: Size,
    heard: Heard,
}

impl Run {
    async fn begin(seed: u64, size: Size) -> Self {
        // Bounded, or a thousand joins would be told for a minute.
        let config =
            Config { gossip_interval: ROUND, max_broadcasts: 128, udp_buffer_size: PACKET, ..Config::lan() };
        let mut world = World::new(seed, config);
        world.network.set_default(Link {
            latency: Duration::from_micros(200)..Duration::from_millis(3),
            loss: 0.01,
            ..Link::default()
        });
        world.start(size.nodes).await;
        // The first time all become known to one, the second time to each other.
        for _ in 0..2 {
            for group in world.nodes[1..].chunks(100) {
                for joined in join_all(group.iter().map(|node| node.join(&["10.0.0.1:7946"]))).await {
                    joined.expect("a node joins");
                }
            }
        }
        let heard = Heard::default();
        for (i, node) in world.nodes.iter().enumerate() {
            let ready = node.ready(Until::Members(size.nodes), Duration::from_secs(60)).await;
            assert_eq!(ready, Ok(true), "seed {seed}");
            node.serve_bytes(Ear(i, heard.clone()).start().recipient()).expect("it runs").detach();
        }
        let run = Self { world, size, heard };
        run.calm_down().await;
        run
    }

    /// Waits until nobody has anything to tell.
    async fn calm_down(&self) {
        let start = Instant::now();
        while self.world.nodes.iter().any(|node| node.metrics().broadcasts_queued > 0) {
            assert!(start.elapsed() < Duration::from_secs(60), "there is news without end");
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Nodes that stay until the end.
    fn stay(&self) -> usize {
        self.size.nodes - self.changes() / 2
    }

    fn changes(&self) -> usize {
        self.size.changes * LENGTH.as_secs() as usize
    }

    /// Some broadcasts, and in how many rounds each reached the last of those who stay.
    async fn broadcasts(&self, part: &str, start: Instant) -> Vec<f64> {
        let mut sent = Vec::new();
        for k in 0..BROADCASTS {
            sleep_until(start + APART * k as u32).await;
            let mut bytes = format!("{part} {k}").into_bytes();
            bytes.resize(LEN, b'.');
            let bytes = Bytes::from(bytes);
            let origin = k * 37 % self.stay();
            self.world.nodes[origin].broadcast_bytes(Broadcast::new(bytes.clone())).expect("there is room");
            sent.push((origin, bytes, Instant::now()));
        }
        let everybody = |(origin, bytes, _): &(usize, Bytes, Instant)| {
            let heard = self.heard.borrow();
            let by = heard.get(bytes);
            (0..self.stay()).all(|i| i == *origin || by.is_some_and(|by| by.contains_key(&i)))
        };
        let all = |_: &World| sent.iter().all(everybody);
        let left = LENGTH.saturating_sub(Instant::now() - start + LEAD);
        let reached = self.world.wait_until(left, all).await;
        let heard = self.heard.borrow();
        let reach = |(_, bytes, _): &(usize, Bytes, Instant)| {
            heard.get(bytes).map_or(0, |by| by.keys().filter(|i| **i < self.stay()).count())
        };
        assert!(
            reached.is_some(),
            "{part}: {:?} of {}",
            sent.iter().map(reach).collect::<Vec<_>>(),
            self.stay()
        );
        let rounds = |(_, bytes, at): &(usize, Bytes, Instant)| {
            let last =
                heard[bytes].iter().filter(|(i, _)| **i < self.stay()).map(|(_, times)| times[0]).max();
            (last.expect("somebody heard it") - *at).as_secs_f64() / ROUND.as_secs_f64()
        };
        sent.iter().map(rounds).collect()
    }

    /// Members come and go. Gives the newcomers.
    async fn changes_of_members(&self, start: Instant) -> Vec<Cluster> {
        let change = |k: usize| async move {
            sleep_until(start + Duration::from_secs(1) * k as u32 / self.size.changes as u32).await;
            match k % 4 {
                0 | 2 => {
                    let node = self.world.builder(self.size.nodes + k).start().await.expect("a node starts");
                    let seed = self.world.nodes[k % self.stay()].view().local().addr.to_string();
                    node.join(&[&seed]).await.expect("a node joins");
                    return Some(node);
                }
                1 => drop(self.world.nodes[self.stay() + k / 2].leave(Duration::from_secs(5)).await),
                _ => {}
            }
            self.world.kill(self.stay() + k / 2).await;
            None
        };
        join_all((0..self.changes()).map(change)).await.into_iter().flatten().collect()
    }
}

fn median(rounds: &[f64]) -> f64 {
    let mut sorted = rounds.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn worst(rounds: &[f64]) -> f64 {
    rounds.iter().copied().fold(0.0, f64::max)
}

fn received(world: &World) -> u64 {
    world.nodes.iter().map(|node| node.metrics().messages_received["user"]).sum()
}

fn tell(seed: u64, size: Size) {
    paused(async move {
        let clock = Clock::now();
        let run = Run::begin(seed, size).await;
        let begun = clock.elapsed();
        let calm = run.broadcasts("calm", Instant::now()).await;
        run.calm_down().await;

        // Nobody passes anything on twice: else each broadcast would be received twice as often.
        let limit = u64::from(Config::lan().retransmit_limit(size.nodes));
        let most = (size.nodes * BROADCASTS) as u64 * limit;
        let copies = received(&run.world);
        assert!(copies <= most, "seed {seed}: {copies} copies were received, and {most} may be sent");
        assert!(copies > most * 3 / 4, "seed {seed}: {copies} copies of {most} show nothing");

        let start = Instant::now();
        let told = run.broadcasts("changes", start + LEAD);
        let (newcomers, rough) = join(run.changes_of_members(start), told).await;
        sleep(Duration::from_secs(3)).await;
        for (bytes, by) in run.heard.borrow().iter() {
            for (i, times) in by {
                let what = String::from_utf8_lossy(&bytes[..12]);
                assert_eq!(times.len(), 1, "seed {seed}: node {i} handled {what:?} at {times:?}");
            }
        }
        eprintln!(
            "seed {seed}: {} nodes, {} came; rounds: {calm:.1?} in calm, {rough:.1?} among changes; {begun:?} to \
             join, {:?} in all",
            size.nodes,
            newcomers.len(),
            clock.elapsed(),
        );
        assert!(median(&rough) <= 2.0 * median(&calm), "seed {seed}: {rough:.1?} rounds, in calm {calm:.1?}");
        assert!(worst(&rough) <= 2.0 * worst(&calm), "seed {seed}: {rough:.1?} rounds, in calm {calm:.1?}");
    });
}

/// Built for speed the cluster is so large that news fills the packets; else the run shows only that nothing is
/// lost or told twice. The seeds run side by side.
fn size() -> Size {
    if cfg!(debug_assertions) { Size { nodes: 200, changes: 20 } } else { Size { nodes: 1000, changes: 30 } }
}

#[test]
fn a_broadcast_reaches_all_who_stay_once_and_within_twice_the_rounds_of_calm_however_many_come_and_go() {
    tell(1, size());
}

#[test]
fn it_does_so_from_another_seed() {
    tell(2, size());
}

/// Rounds until all of `nodes` have heard, if each that has heard tells `told` others in each round: until most have,
/// those who have grow by that factor; then of those who have not a part is left that shrinks by as much.
fn expected(nodes: usize, told: f64) -> f64 {
    let n = nodes as f64;
    n.ln() / (1.0 + told).ln() + n.ln() / told
}

#[test]
fn whatever_part_of_the_packets_is_lost_as_many_hear_a_broadcast_and_as_soon_as_the_formula_says() {
    let sizes = if cfg!(debug_assertions) { [3, 20, 100] } else { [3, 40, 500] };
    for (nodes, loss) in sizes.into_iter().flat_map(|nodes| [0.0, 0.1, 0.3].map(|loss| (nodes, loss))) {
        paused(async move {
            let run = Run::begin(3, Size { nodes, changes: 0 }).await;
            let latency = Duration::from_micros(200)..Duration::from_millis(3);
            run.world.network.set_default(Link { latency, loss, ..Link::default() });
            let sent: Vec<_> =
                (0..BROADCASTS).map(|k| (k * 37 % nodes, Bytes::from(vec![k as u8; LEN]))).collect();
            let start = Instant::now();
            for (origin, bytes) in &sent {
                run.world.nodes[*origin]
                    .broadcast_bytes(Broadcast::new(bytes.clone()))
                    .expect("there is room");
            }
            sleep(LENGTH).await;
            let heard = run.heard.borrow();
            let (mut missed, mut rounds) = (0, Vec::new());
            for (_, bytes) in &sent {
                let times: Vec<_> = heard[bytes].values().collect();
                assert!(times.iter().all(|times| times.len() == 1), "{nodes} nodes, loss {loss}: once");
                missed += nodes - 1 - times.len();
                let last = times.iter().map(|times| times[0]).max().expect("somebody hears it");
                rounds.push((last - start).as_secs_f64() / ROUND.as_secs_f64());
            }
            let (config, arrives) = (Config::lan(), 1.0 - loss);
            let formula = expected(nodes, config.gossip_nodes as f64 * arrives);
            // Each node tells it so many times, to whom chance says.
            let told = f64::from(config.retransmit_limit(nodes)) * arrives;
            let missing = (BROADCASTS * (nodes - 1)) as f64 * (-told).exp();
            eprintln!(
                "{nodes} nodes, loss {loss}: {rounds:.1?} rounds, {formula:.1} by the formula; {missed} missed one, \
                 {missing:.1} by the formula"
            );
            assert!(median(&rounds) <= formula + 1.0 && worst(&rounds) <= 2.0 * formula + 2.0);
            assert!(missed as f64 <= 2.0 * missing + 2.0, "{missed} have missed one");
        });
    }
}
