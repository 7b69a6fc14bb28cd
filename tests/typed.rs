//! Messages of a program's own types: who gets them, and what becomes of those that nobody can take.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message, WrapFuture};
use actix_memberlist::{
    Cluster, Config, FromPeer, NodeId, PeerMessage, SendError, Stopped, Subscription, UserBytes,
    testing::Strikes,
};
use bytes::Bytes;
use futures_util::future::join_all;
use memberlist_tests::{World, paused};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct Set {
    key: String,
    value: Bytes,
}

impl PeerMessage for Set {
    const KIND: &'static str = "table.set/1";
}

/// What a program of another version takes that name for.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct OtherSet {
    key: u64,
}

impl PeerMessage for OtherSet {
    const KIND: &'static str = Set::KIND;
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Clear;

impl PeerMessage for Clear {
    const KIND: &'static str = "table.clear/1";
}

/// Cannot be written.
#[derive(Message, Deserialize)]
#[rtype(result = "()")]
struct Unspeakable;

impl Serialize for Unspeakable {
    fn serialize<S: serde::Serializer>(&self, _: S) -> Result<S::Ok, S::Error> {
        Err(serde::ser::Error::custom("no words"))
    }
}

impl PeerMessage for Unspeakable {
    const KIND: &'static str = "unspeakable/1";
}

#[derive(Default)]
struct Heard {
    sets: Vec<(Option<NodeId>, String)>,
    clears: usize,
    bytes: usize,
}

/// Keeps what it hears; each `Set` takes it `pause`. One of the key "stop" stops it, and one of "panic" makes it
/// panic.
#[derive(Default)]
struct Ear {
    heard: Rc<RefCell<Heard>>,
    pause: Duration,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Ear {
    fn set(&mut self, from: Option<NodeId>, set: Set, ctx: &mut Context<Self>) {
        match &*set.key {
            "stop" => ctx.stop(),
            "panic" => panic!("asked to"),
            _ if !self.pause.is_zero() => ctx.wait(sleep(self.pause).into_actor(self)),
            _ => {}
        }
        self.heard.borrow_mut().sets.push((from, set.key));
    }
}

impl Handler<Set> for Ear {
    type Result = ();
    fn handle(&mut self, set: Set, ctx: &mut Context<Self>) {
        self.set(None, set, ctx);
    }
}

impl Handler<FromPeer<Set>> for Ear {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Set>, ctx: &mut Context<Self>) {
        self.set(Some(m.from), m.msg, ctx);
    }
}

impl Handler<Clear> for Ear {
    type Result = ();
    fn handle(&mut self, _: Clear, _: &mut Context<Self>) {
        self.heard.borrow_mut().clears += 1;
    }
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, _: UserBytes, _: &mut Context<Self>) {
        self.heard.borrow_mut().bytes += 1;
    }
}

fn ear(pause: Duration) -> (Rc<RefCell<Heard>>, Addr<Ear>) {
    let ear = Ear { pause, ..Ear::default() };
    (ear.heard.clone(), ear.start())
}

/// Serves `Set` without its senders.
fn serve(node: &Cluster) -> (Rc<RefCell<Heard>>, Subscription) {
    let (heard, ear) = ear(Duration::ZERO);
    (heard, node.serve::<Set>(ear.recipient()).expect("it runs"))
}

fn set(key: &str, len: usize) -> Set {
    Set { key: key.into(), value: vec![7; len].into() }
}

fn id(world: &World, i: usize) -> NodeId {
    world.nodes[i].view().local().id.clone()
}

fn keys(heard: &Rc<RefCell<Heard>>) -> Vec<String> {
    heard.borrow().sets.iter().map(|(_, key)| key.clone()).collect()
}

fn dropped(node: &Cluster, reason: &str) -> u64 {
    node.metrics().dropped[reason]
}

/// Broadcasts from the first node, and waits until it has gone everywhere.
async fn spread<M: PeerMessage<Result = ()>>(world: &World, msg: &M) {
    let spread = world.nodes[0].broadcast(msg).expect("it is taken");
    assert_eq!(timeout(SOON, spread).await.expect("in time"), Ok(()));
    sleep(Duration::from_secs(3)).await;
}

#[test]
fn a_typed_broadcast_reaches_the_handlers_of_its_type_at_all_others_once_whatever_its_size() {
    paused(async {
        let world = World::cluster(1, Config::lan(), 40).await;
        let ears: Vec<_> = world.nodes.iter().map(|_| ear(Duration::ZERO)).collect();
        for (i, (node, (_, ear))) in world.nodes.iter().zip(&ears).enumerate() {
            match i % 2 {
                0 => node.serve_from::<Set>(ear.clone().recipient()).expect("it runs").detach(),
                _ => node.serve::<Set>(ear.clone().recipient()).expect("it runs").detach(),
            }
            node.serve::<Clear>(ear.clone().recipient()).expect("it runs").detach();
            node.serve_bytes(ear.clone().recipient()).expect("it runs").detach();
        }
        let dialled = |world: &World| world.nodes[0].metrics().streams_dialled;
        let before = dialled(&world);
        spread(&world, &set("small", 600)).await;
        assert!(dialled(&world) < before + 20, "it goes by gossip");
        spread(&world, &set("large", 700)).await;
        assert!(dialled(&world) >= before + 39, "it goes over streams");
        sleep(SOON).await;
        for (i, (heard, _)) in ears.iter().enumerate() {
            let from = (i % 2 == 0).then(|| id(&world, 0));
            let all = ["small", "large"].map(|key| (from.clone(), key.to_owned()));
            let heard = heard.borrow();
            assert_eq!(heard.sets, if i == 0 { &[] } else { &all[..] }, "n{i:03}");
            assert_eq!((heard.clears, heard.bytes), (0, 0));
        }
    });
}

#[test]
fn a_message_that_nobody_serves_or_can_read_is_counted_and_the_next_one_arrives() {
    paused(async {
        let world = World::cluster(2, Config::lan(), 3).await;
        let (heard, _serving) = serve(&world.nodes[1]);
        spread(&world, &Clear).await;
        spread(&world, &OtherSet { key: 5 }).await;
        spread(&world, &set("next", 2000)).await;
        let counts = |i: usize| {
            ["no_handler", "undecodable", "handler_busy"].map(|reason| dropped(&world.nodes[i], reason))
        };
        assert_eq!((counts(1), counts(2)), ([1, 1, 0], [3, 0, 0]));
        assert_eq!(keys(&heard), ["next"]);
        assert_eq!(dropped(&world.nodes[0], "undelivered"), 1, "a stream tells that nobody serves it");
    });
}

#[test]
fn a_handler_that_sleeps_misses_what_is_too_much_and_nobody_else_does() {
    paused(async {
        let world = World::cluster(3, Config::lan(), 3).await;
        let (slow, sleeper) = ear(SOON);
        world.nodes[1].serve::<Set>(sleeper.recipient()).expect("it runs").detach();
        let (quick, _serving) = serve(&world.nodes[2]);
        let (other, clearer) = ear(Duration::ZERO);
        world.nodes[1].serve::<Clear>(clearer.recipient()).expect("it runs").detach();
        for _ in 0..10 {
            let message = set("large", 1000);
            let spreads = (0..200).map(|_| world.nodes[0].broadcast(&message).expect("there is room"));
            let spreads = join_all(spreads);
            for outcome in timeout(SOON, spreads).await.expect("in time") {
                assert_eq!(outcome, Ok(()));
            }
            spread(&world, &Clear).await;
        }
        assert_eq!((quick.borrow().sets.len(), other.borrow().clears), (2000, 10));
        let (busy, done) = (dropped(&world.nodes[1], "handler_busy"), slow.borrow().sets.len() as u64);
        assert!(done < 10, "it sleeps");
        // 1,024 wait, and 64 are in the mailbox; the last that it has done came too late to make room.
        assert!((0..=1).contains(&(busy + 1024 + 64 + done - 2000)), "{busy} refused, {done} done");
        for node in &world.nodes {
            assert_eq!((node.view().alive_count(), node.health()), (3, 0));
            assert_eq!(node.metrics().messages_received["suspect"], 0);
        }
    });
}

#[test]
fn the_last_to_serve_a_kind_gets_it_as_long_as_its_subscription_lasts() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 2).await;
        let node = &world.nodes[1];
        let (first, serving_first) = serve(node);
        spread(&world, &set("one", 1)).await;
        let (second, ear) = ear(Duration::ZERO);
        let serving_second = node.serve_from::<Set>(ear.recipient()).expect("it runs");
        spread(&world, &set("two", 1)).await;
        let (third, serving_third) = serve(node);
        drop((serving_first, serving_second));
        spread(&world, &set("three", 1)).await;
        drop(serving_third);
        spread(&world, &set("four", 1)).await;
        assert_eq!([&first, &second, &third].map(keys), [["one"], ["two"], ["three"]]);
        assert_eq!(second.borrow().sets[0].0, Some(id(&world, 0)));
        assert_eq!(dropped(node, "no_handler"), 1);
    });
}

#[test]
fn a_handler_that_stops_or_panics_makes_room_for_another() {
    paused(async {
        let world = World::cluster(5, Config::lan(), 2).await;
        let node = &world.nodes[1];
        for (round, end) in ["stop", "panic"].into_iter().enumerate() {
            let (heard, serving) = serve(node);
            serving.detach();
            for key in ["before", end, "after"] {
                spread(&world, &set(key, 1)).await;
            }
            assert_eq!(keys(&heard)[0], "before");
            assert!(!keys(&heard).contains(&"after".to_owned()));
            assert_eq!(dropped(node, "no_handler"), round as u64 + 1);
        }
        let (heard, _serving) = serve(node);
        spread(&world, &set("again", 1)).await;
        assert_eq!(keys(&heard), ["again"]);
        assert_eq!(dropped(node, "handler_gone"), 1, "the one that panicked");
    });
}

#[test]
fn handlers_outlive_a_panic_of_the_actor_that_knows_them() {
    paused(async {
        let mut world = World::new(6, Config::lan());
        let strikes = Strikes::default();
        world.start(1).await;
        let struck = world.builder(1).strikes(strikes.clone()).start().await.expect("it starts");
        struck.join(&["10.0.0.1:7946"]).await.expect("it joins");
        world.nodes.push(struck);
        let (heard, _serving) = serve(&world.nodes[1]);
        spread(&world, &set("one", 1)).await;
        strikes.arm(("Delegates", "user"));
        spread(&world, &set("lost", 1)).await;
        assert_eq!(strikes.hits().len(), 1);
        spread(&world, &set("two", 1)).await;
        assert_eq!(keys(&heard)[0], "one");
        assert_eq!(keys(&heard).last().map(|key| &**key), Some("two"));
    });
}

#[test]
fn what_cannot_be_broadcast_is_refused_at_once() {
    paused(async {
        let config = Config { max_message_size: 2000, ..Config::lan() };
        let world = World::cluster(7, config, 2).await;
        let node = &world.nodes[0];
        let refused = |result: Result<_, SendError>| result.map(drop).expect_err("it cannot be");
        assert_eq!(refused(node.broadcast(&Unspeakable)), SendError::Encode("no words".into()));
        let too_large = refused(node.broadcast(&set("", 2000)));
        // The sender's address and the kind go in front of it.
        assert!(matches!(too_large, SendError::TooLarge { len: 2004, max: 1900..2000 }), "{too_large:?}");
        node.shutdown().await;
        assert_eq!(refused(node.broadcast(&set("", 1))), SendError::Stopped);
        let (_, ear) = ear(Duration::ZERO);
        assert!(matches!(node.serve::<Set>(ear.clone().recipient()), Err(Stopped)));
        assert!(matches!(node.serve_from::<Set>(ear.recipient()), Err(Stopped)));
    });
}
