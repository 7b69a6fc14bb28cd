//! Messages of a program's own types in datagrams: many share a packet, and however many there are, nothing of the
//! membership waits for them.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{Actor, AsyncContext, Context, Handler, Message, WrapFuture};
use actix_memberlist::{
    Cluster, Config, FromPeer, Key, NodeId, Peer, PeerMessage, SendError, Subscription, UserBytes,
    network::memory::{Link, Tap},
};
use bytes::Bytes;
use memberlist_tests::{World, addr, paused};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct Note {
    number: u32,
    text: Bytes,
}

impl PeerMessage for Note {
    const KIND: &'static str = "casts.note/1";
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Tick;

impl PeerMessage for Tick {
    const KIND: &'static str = "casts.tick/1";
}

fn note(number: u32) -> Note {
    Note { number, text: Bytes::from_static(&[7; 50]) }
}

#[derive(Default)]
struct Heard {
    notes: Vec<(NodeId, u32)>,
    bytes: Vec<Bytes>,
    ticks: usize,
}

/// Keeps what it hears; each note takes it `pause`.
#[derive(Default)]
struct Ear {
    heard: Rc<RefCell<Heard>>,
    pause: Duration,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<FromPeer<Note>> for Ear {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Note>, ctx: &mut Context<Self>) {
        self.heard.borrow_mut().notes.push((m.from, m.msg.number));
        if !self.pause.is_zero() {
            ctx.wait(sleep(self.pause).into_actor(self));
        }
    }
}

impl Handler<Tick> for Ear {
    type Result = ();
    fn handle(&mut self, _: Tick, _: &mut Context<Self>) {
        self.heard.borrow_mut().ticks += 1;
    }
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, m: UserBytes, _: &mut Context<Self>) {
        self.heard.borrow_mut().bytes.push(m.bytes);
    }
}

/// One actor for notes and one for the rest, so that they do not wait for each other.
struct Listening {
    heard: Rc<RefCell<Heard>>,
    _serving: [Subscription; 3],
}

fn listen(node: &Cluster, pause: Duration) -> Listening {
    let heard = Rc::<RefCell<Heard>>::default();
    let notes = Ear { heard: heard.clone(), pause }.start();
    let rest = Ear { heard: heard.clone(), pause }.start();
    let serving = [
        node.serve_from::<Note>(notes.recipient()).expect("it runs"),
        node.serve::<Tick>(rest.clone().recipient()).expect("it runs"),
        node.serve_bytes(rest.recipient()).expect("it runs"),
    ];
    Listening { heard, _serving: serving }
}

impl Listening {
    async fn until(&self, what: &str, enough: impl Fn(&Heard) -> bool) {
        let wait = async {
            while !enough(&self.heard.borrow()) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let heard = || (self.heard.borrow().notes.len(), self.heard.borrow().ticks);
        timeout(SOON, wait).await.unwrap_or_else(|_| panic!("{what}: {:?} heard", heard()));
    }

    fn numbers(&self) -> Vec<u32> {
        self.heard.borrow().notes.iter().map(|(_, number)| *number).collect()
    }
}

fn id(world: &World, i: usize) -> NodeId {
    world.nodes[i].view().local().id.clone()
}

/// Nodes on a network that brings datagrams in order.
async fn cluster(seed: u64, config: Config, n: usize) -> World {
    let world = World::cluster(seed, config, n).await;
    in_order(&world);
    world
}

fn in_order(world: &World) {
    let latency = Duration::from_millis(1)..Duration::from_millis(1);
    world.network.set_default(Link { latency, ..Link::default() });
}

fn peer(world: &World, from: usize, to: usize) -> Peer {
    world.nodes[from].peer(&id(world, to)).expect("it is there")
}

/// Nodes that say little unless they are asked to.
fn quiet() -> Config {
    Config { gossip_interval: Duration::ZERO, ..Config::lan() }
}

#[test]
fn casts_of_one_turn_leave_in_few_datagrams_and_arrive_complete_and_in_order() {
    paused(async {
        let world = cluster(1, quiet(), 3).await;
        let ears = [1, 2].map(|i| listen(&world.nodes[i], Duration::ZERO));
        let peers = [peer(&world, 0, 1), peer(&world, 0, 2)];
        sleep(Duration::from_millis(10)).await;
        let before = world.nodes[0].metrics().packets_sent;
        for n in 0..1000 {
            for peer in &peers {
                peer.cast(&note(n)).expect("there is room");
                if n % 100 == 0 {
                    peer.cast(&Tick).expect("there is room");
                    peer.cast_bytes(Bytes::from(format!("{n}"))).expect("there is room");
                }
            }
        }
        for ear in &ears {
            ear.until("all", |heard| {
                heard.notes.len() == 1000 && heard.ticks == 10 && heard.bytes.len() == 10
            })
            .await;
            assert!(ear.numbers().into_iter().eq(0..1000));
            assert!(ear.heard.borrow().notes.iter().all(|(from, _)| *from == id(&world, 0)));
            let bytes: Vec<_> = (0..10).map(|n| Bytes::from(format!("{}", n * 100))).collect();
            assert_eq!(ear.heard.borrow().bytes, bytes);
        }
        // 53 bytes each, with what is around them; a packet has room for 1,300 and more.
        let packets = world.nodes[0].metrics().packets_sent - before;
        assert!((80..110).contains(&packets), "{packets} packets");
    });
}

#[test]
fn a_caller_that_is_faster_than_the_node_is_told_and_what_was_taken_arrives() {
    paused(async {
        let world = cluster(2, quiet(), 2).await;
        let ear = listen(&world.nodes[1], Duration::ZERO);
        let to = peer(&world, 0, 1);
        let (mut taken, mut full) = (0, 0);
        for _ in 0..5 {
            loop {
                match to.cast(&note(taken)) {
                    Ok(()) => taken += 1,
                    Err(SendError::Full) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            full += 1;
            assert!(matches!(to.cast_bytes(Bytes::new()), Err(SendError::Full)));
            assert!(world.nodes[0].metrics().user_messages_waiting > 0);
            sleep(Duration::from_millis(50)).await;
        }
        assert!(taken > 5 * 4000, "{taken} taken, {full} times full");
        ear.until("all", |heard| heard.notes.len() as u32 == taken).await;
        assert!(ear.numbers().into_iter().eq(0..taken));
        assert_eq!(world.nodes[0].metrics().user_messages_waiting, 0);
        assert_eq!(world.nodes[1].metrics().dropped["handler_busy"], 0);
    });
}

#[test]
fn a_cast_that_no_datagram_has_room_for_goes_over_the_link() {
    paused(async {
        let world = cluster(3, quiet(), 2).await;
        let ear = listen(&world.nodes[1], Duration::ZERO);
        let to = peer(&world, 0, 1);
        let of = |len: usize| Note { number: len as u32, text: vec![1; len].into() };
        let Err(SendError::TooLarge { max, .. }) = to.cast_bytes(vec![1; 5000].into()) else {
            panic!("no datagram has room")
        };
        // Its kind, its number and the lengths of both and of its text take some of what bytes without a type have.
        let around = Note::KIND.len() + 6;
        to.cast(&of(max - around)).expect("it fits");
        ear.until("the largest in a datagram", |heard| heard.notes.len() == 1).await;
        assert_eq!(to.status().active_since, None, "without a link");
        to.cast(&of(max - around + 1)).expect("it is taken");
        to.cast(&of(100_000)).expect("it is taken");
        ear.until("those over the link", |heard| heard.notes.len() == 3).await;
        assert!(to.status().active_since.is_some());
        assert_eq!(world.nodes[1].metrics().dropped["undecodable"], 0);
    });
}

#[test]
fn casts_for_a_run_that_is_gone_reach_nobody_else() {
    paused(async {
        let mut world = cluster(4, quiet(), 2).await;
        let old = peer(&world, 0, 1);
        world.kill(1).await;
        // Another run takes the address; the first node has not heard of it.
        world.nodes[1] = world.builder(1).seed(77).start().await.expect("it starts");
        let ear = listen(&world.nodes[1], Duration::ZERO);
        for n in 0..100 {
            old.cast(&note(n)).expect("it is held for alive");
        }
        let counted = |world: &World| world.nodes[1].metrics().dropped["not_for_us"] > 0;
        world.wait_until(SOON, counted).await.expect("it is counted");
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
        let joined = |world: &World| world.nodes[0].peer(&id(world, 1)).is_some();
        world.wait_until(SOON, joined).await.expect("it is seen");
        assert!(matches!(old.cast(&Tick), Err(SendError::Gone)));
        peer(&world, 0, 1).cast(&Tick).expect("this one is there");
        ear.until("one", |heard| heard.ticks == 1).await;
        assert!(ear.heard.borrow().notes.is_empty());
    });
}

#[test]
fn casts_are_sealed_where_everything_is() {
    paused(async {
        let mut world = World::new(5, quiet());
        for i in 0..2 {
            let node = world.builder(i).key(Key::from_bytes(&[3; 32]).expect("a key"));
            world.nodes.push(node.start().await.expect("it starts"));
        }
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
        let known = |world: &World| world.nodes[0].peer(&id(world, 1)).is_some();
        world.wait_until(SOON, known).await.expect("it is seen");
        let (tap, ear) = (Tap::default(), listen(&world.nodes[1], Duration::ZERO));
        world.network.tap(tap.clone());
        in_order(&world);
        let to = peer(&world, 0, 1);
        for n in 0..500 {
            to.cast(&note(n)).expect("there is room");
        }
        ear.until("all", |heard| heard.notes.len() == 500).await;
        assert!(ear.numbers().into_iter().eq(0..500));
        let datagrams = tap.datagrams();
        let plain = |bytes: &[u8]| bytes.windows(10).any(|window| *window == [7; 10]);
        assert!(datagrams.len() >= 20 && !datagrams.iter().any(|datagram| plain(&datagram.bytes)));
    });
}

#[test]
fn a_handler_that_is_slow_loses_some_of_its_own_and_keeps_no_other_from_getting_all() {
    paused(async {
        let world = cluster(6, quiet(), 2).await;
        let ear = listen(&world.nodes[1], SOON);
        let to = peer(&world, 0, 1);
        for n in 0..3000 {
            to.cast(&note(n)).expect("there is room");
            to.cast(&Tick).expect("there is room");
        }
        ear.until("all ticks", |heard| heard.ticks == 3000).await;
        assert!(ear.numbers().len() < 3);
        let busy = world.nodes[1].metrics().dropped["handler_busy"];
        assert!((1800..2000).contains(&busy), "{busy} of 3,000");
    });
}

#[test]
fn what_a_network_does_not_take_waits_and_leaves_when_it_does() {
    paused(async {
        let world = cluster(7, quiet(), 2).await;
        let ear = listen(&world.nodes[1], Duration::ZERO);
        let to = peer(&world, 0, 1);
        world.network.pause(addr(0));
        for n in 0..1000 {
            to.cast(&note(n)).expect("there is room");
        }
        sleep(Duration::from_millis(300)).await;
        assert!(ear.numbers().is_empty());
        assert_eq!(world.nodes[0].metrics().user_messages_waiting, 1000);
        world.network.resume(addr(0));
        ear.until("all", |heard| heard.notes.len() == 1000).await;
        assert!(ear.numbers().into_iter().eq(0..1000));
        assert_eq!(world.nodes[0].metrics().dropped["would_block"], 0);
    });
}

#[test]
fn a_node_that_is_sent_more_than_its_handlers_take_asks_for_a_moment_and_loses_nothing() {
    paused(async {
        let world = cluster(9, quiet(), 7).await;
        let ear = listen(&world.nodes[0], Duration::ZERO);
        let mut taken = 0;
        for _ in 0..5 {
            // Together they have more than waits at a node before it asks.
            for from in 1..7 {
                let to = peer(&world, from, 0);
                while to.cast(&note(taken)).is_ok() {
                    taken += 1;
                }
            }
            sleep(Duration::from_millis(5)).await;
        }
        let full = (1..7).filter(|i| world.nodes[*i].metrics().messages_received["wait"] > 0).count();
        assert!(full > 0 && world.nodes[0].metrics().messages_sent["wait"] > 0);
        ear.until("all", |heard| heard.notes.len() as u32 == taken).await;
        assert_eq!(world.nodes[0].metrics().dropped["handler_busy"], 0);
    });
}

#[test]
fn a_flood_of_casts_leaves_pings_answered() {
    paused(async {
        let world = cluster(8, Config::lan(), 3).await;
        // The handler takes nothing: all that can fill up is full.
        let _ear = listen(&world.nodes[1], Duration::from_secs(1000));
        let to = peer(&world, 0, 1);
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            let mut n = 0;
            while to.cast(&note(n)).is_ok() {
                n += 1;
            }
            let rtt = timeout(SOON, to.ping()).await.expect("in time").expect("it answers");
            longest = longest.max(rtt);
            sleep(Duration::from_millis(200)).await;
        }
        assert!(longest < Duration::from_millis(50), "{longest:?}");
        assert!(world.nodes[1].metrics().dropped["handler_busy"] > 100_000);
        for node in &world.nodes {
            assert_eq!((node.view().alive_count(), node.health()), (3, 0));
            let metrics = node.metrics();
            assert_eq!((metrics.messages_received["suspect"], metrics.messages_received["nack"]), (0, 0));
        }
    });
}
