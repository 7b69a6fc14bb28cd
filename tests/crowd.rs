//! Many who want the same: streams, memory, the application's time. None keeps the others out for long.

use std::{cell::RefCell, collections::VecDeque, rc::Rc, time::Duration};

use actix::{Actor, Arbiter, Context, Handler, ResponseFuture};
use actix_memberlist::{
    Broadcast, Cause, Cluster, Config, Export, Merge, NodeId, NotSent, Peer, SharedState, Until, UserBytes,
    network::Network,
};
use bytes::Bytes;
use memberlist_protocol::wire::{
    codec,
    frame::{Envelope, StreamKind},
    message::Address,
};
use memberlist_tests::{World, addr, paused};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

const SOON: Duration = Duration::from_secs(10);

type Heard = Rc<RefCell<Vec<Bytes>>>;

struct Ear(Heard);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, m: UserBytes, _: &mut Context<Self>) {
        self.0.borrow_mut().push(m.bytes);
    }
}

fn listen(node: &Cluster) -> Heard {
    let heard = Heard::default();
    node.serve_bytes(Ear(heard.clone()).start().recipient()).expect("it runs").detach();
    heard
}

fn peer(world: &World, from: usize, to: usize) -> Peer {
    let id = world.nodes[to].view().local().id.clone();
    world.nodes[from].peer(&id).expect("it is there")
}

/// Few streams: one for users on their way out, two for those who dial.
fn few() -> Config {
    Config { max_streams: 4, ..Config::lan() }
}

#[test]
fn nodes_that_all_send_large_broadcasts_at_once_do_not_wait_for_each_other() {
    paused(async {
        let world = World::cluster(1, few(), 6).await;
        sleep(SOON).await;
        let ears: Vec<_> = world.nodes.iter().map(listen).collect();
        sleep(Duration::from_millis(10)).await;
        let start = Instant::now();
        let spreads: Vec<_> = world
            .nodes
            .iter()
            .map(|node| node.broadcast_bytes(Broadcast::new(vec![1; 10_000])).expect("taken"))
            .collect();
        for spread in spreads {
            assert_eq!(timeout(SOON, spread).await.expect("in time"), Ok(()));
        }
        assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
        for (node, heard) in world.nodes.iter().zip(&ears) {
            assert_eq!((heard.borrow().len(), node.metrics().dropped["undelivered"]), (5, 0));
        }
    });
}

#[test]
fn peers_that_are_sent_to_without_end_keep_neither_another_peer_nor_a_joiner_out() {
    paused(async {
        let mut world = World::cluster(2, few(), 5).await;
        world.start(1).await;
        let _ears: Vec<_> = world.nodes.iter().map(listen).collect();
        sleep(SOON).await;
        for i in 1..4 {
            let busy = peer(&world, 0, i);
            Arbiter::current().spawn(async move {
                let mut waiting = VecDeque::new();
                loop {
                    while waiting.len() < 4 {
                        match busy.send_bytes(Bytes::from_static(b"x")) {
                            Ok(sent) => waiting.push_back(sent),
                            Err(_) => return,
                        }
                    }
                    if let Some(sent) = waiting.pop_front() {
                        let _ = sent.await;
                    }
                }
            });
        }
        sleep(Duration::from_millis(100)).await;
        let another = peer(&world, 0, 4).send_bytes(Bytes::from_static(b"another")).expect("taken");
        assert_eq!(timeout(SOON, another).await.expect("it has its turn"), Ok(()));
        world.nodes[5].join(&["10.0.0.1:7946"]).await.expect("it joins");
        let back = peer(&world, 4, 0).send_bytes(Bytes::from_static(b"back")).expect("taken");
        assert_eq!(timeout(SOON, back).await.expect("in time"), Ok(()));
        for node in &world.nodes {
            node.shutdown().await;
        }
    });
}

#[test]
fn weak_point_43_streams_on_which_little_is_said_give_way_to_those_who_wait() {
    paused(async {
        let mut world = World::cluster(3, few(), 2).await;
        world.start(1).await;
        let stranger = world.network.bind("10.9.9.9:1".parse().expect("an address")).await.expect("free");
        let to = world.nodes[0].view().local().id.clone();
        for _ in 0..3 {
            let mut stream = stranger.dial(addr(0)).await.expect("it listens");
            let address =
                codec::encode_address(&Address::Direct { from: NodeId::new("x", 1), to: to.clone() });
            let open = Envelope::new("").expect("no label").open_stream(StreamKind::Link);
            let frame = [&u32::try_from(address.len()).expect("short").to_le_bytes()[..], &address].concat();
            Arbiter::current().spawn(async move {
                let _ = stream.write_all(&open).await;
                // One message just before each limit of time.
                while stream.write_all(&frame).await.is_ok() && stream.read_exact(&mut [0; 5]).await.is_ok() {
                    sleep(Duration::from_secs(9)).await;
                }
            });
        }
        sleep(Duration::from_millis(100)).await;
        world.nodes[2].join(&["10.0.0.1:7946"]).await.expect("it joins");
        assert_eq!(world.nodes[2].ready(Until::Members(3), SOON).await, Ok(true));
    });
}

#[test]
fn a_peer_that_is_stuck_does_not_keep_newer_values_from_the_others() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 3).await;
        let heard = listen(&world.nodes[1]);
        let _stuck = listen(&world.nodes[2]);
        sleep(Duration::from_millis(50)).await;
        world.network.pause(addr(2));
        let mut spreads = Vec::new();
        for n in 0..50 {
            let value = Broadcast { name: Some("table".into()), ..Broadcast::new(vec![n; 1 << 20]) };
            spreads.push(world.nodes[0].broadcast_bytes(value).expect("taken"));
            sleep(Duration::from_millis(100)).await;
        }
        let last = spreads.pop().expect("fifty");
        for spread in spreads {
            let outcome = timeout(SOON * 6, spread).await.expect("in time");
            assert!(matches!(outcome, Ok(()) | Err(NotSent::Never(Cause::Invalidated))), "{outcome:?}");
        }
        assert_eq!(timeout(SOON * 6, last).await.expect("in time"), Ok(()));
        assert_eq!(heard.borrow().last().map(|bytes| bytes[0]), Some(49));
    });
}

#[test]
fn a_large_broadcast_that_nobody_handles_says_so() {
    paused(async {
        let world = World::cluster(5, Config::lan(), 3).await;
        let spread = world.nodes[0].broadcast_bytes(Broadcast::new(vec![1; 10_000])).expect("taken");
        assert_eq!(timeout(SOON, spread).await.expect("in time"), Err(NotSent::Never(Cause::NoHandler)));
    });
}

/// An actor that never says what its state is.
struct Mute;

impl Actor for Mute {
    type Context = Context<Self>;
}

impl SharedState for Mute {
    const KEY: &'static str = "mute/1";
}

impl Handler<Export> for Mute {
    type Result = ResponseFuture<Bytes>;
    fn handle(&mut self, _: Export, _: &mut Context<Self>) -> Self::Result {
        Box::pin(std::future::pending())
    }
}

impl Handler<Merge> for Mute {
    type Result = ();
    fn handle(&mut self, _: Merge, _: &mut Context<Self>) {}
}

#[test]
fn actors_that_never_answer_leave_time_for_the_exchange_whatever_the_settings() {
    let slow = Config { question_timeout: Duration::from_secs(10), ..Config::lan() };
    for config in [Config::local(), slow] {
        paused(async {
            let world = {
                let mut world = World::new(6, config);
                world.start(3).await;
                for node in &world.nodes {
                    node.share(Mute.start()).expect("it runs").detach();
                }
                world
            };
            for node in &world.nodes[1..] {
                node.join(&["10.0.0.1:7946"]).await.expect("it joins");
            }
            for node in &world.nodes {
                assert_eq!(node.ready(Until::Members(3), SOON).await, Ok(true));
            }
            sleep(Duration::from_secs(120)).await;
            for node in &world.nodes {
                assert_eq!(node.metrics().dropped["stream_timeout"], 0, "states go on being exchanged");
            }
        });
    }
}
