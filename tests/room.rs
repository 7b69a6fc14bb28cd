//! What has no room: more than a node keeps for all peers together, and more than a peer takes at once.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{Actor, Addr, Context, Handler, Message, MessageResult};
use actix_memberlist::{
    AskError, Cause, Cluster, Config, NotSent, Peer, PeerMessage, SendError, Subscription,
};
use bytes::Bytes;
use memberlist_tests::{World, paused};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(20);

/// Bytes; the answer is as many bytes as it asks for.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Bytes")]
struct Load {
    bytes: Bytes,
    back: usize,
}

impl PeerMessage for Load {
    const KIND: &'static str = "load/1";
}

/// Keeps the lengths of what it hears.
#[derive(Default)]
struct Scales(Rc<RefCell<Vec<usize>>>);

impl Actor for Scales {
    type Context = Context<Self>;
}

impl Handler<Load> for Scales {
    type Result = MessageResult<Load>;
    fn handle(&mut self, load: Load, _: &mut Context<Self>) -> Self::Result {
        self.0.borrow_mut().push(load.bytes.len());
        MessageResult(vec![1; load.back].into())
    }
}

fn serve(node: &Cluster) -> (Rc<RefCell<Vec<usize>>>, Subscription) {
    let scales = Scales::default();
    let (heard, addr): (_, Addr<_>) = (scales.0.clone(), scales.start());
    (heard, node.serve::<Load>(addr.recipient()).expect("it runs"))
}

fn load(len: usize) -> Load {
    Load { bytes: vec![7; len].into(), back: 0 }
}

fn peer(world: &World, from: usize, to: usize) -> Peer {
    world.nodes[from].peer(&world.nodes[to].view().local().id.clone()).expect("it is there")
}

/// Two nodes, of which the second takes less than the first.
async fn unequal(small: Config) -> World {
    let mut world = World::new(1, Config::lan());
    world.start(1).await;
    let second = world.builder(1).config(small).start().await.expect("it starts");
    world.nodes.push(second);
    let first = world.nodes[0].view().local().addr.to_string();
    world.nodes[1].join(&[&first]).await.expect("it is there");
    world.wait_until(SOON, |world| world.nodes.iter().all(|node| node.view().alive().count() == 2)).await;
    world
}

#[test]
fn what_waits_for_all_peers_together_is_bounded() {
    paused(async {
        let config = Config { total_queue_bytes: 100_000, ..Config::lan() };
        let world = World::cluster(3, config, 4).await;
        let _scales: Vec<_> = world.nodes.iter().map(serve).collect();
        let peers: Vec<_> = (1..4).map(|to| peer(&world, 0, to)).collect();
        // Nothing is sent before this turn ends.
        let sent: Vec<_> =
            peers.iter().map(|peer| peer.send(&load(30_000)).expect("there is room")).collect();
        assert!(matches!(peers[0].send(&load(30_000)), Err(SendError::Full)));
        let waiting = world.nodes[0].metrics().links_queued_bytes;
        assert!((90_000..=100_000).contains(&waiting), "{waiting}");
        let last = peers[0].send(&load(5_000)).expect("there is room");
        // Room for one is made by whatever leaves for any.
        let large = load(60_000);
        let more = peers[1].send_wait(&large);
        let (more, _) = timeout(SOON, async { tokio::join!(more, last) }).await.expect("in time");
        let more = more.expect("there is room");
        for sent in sent.into_iter().chain([more]) {
            assert_eq!(timeout(SOON, sent).await.expect("in time"), Ok(()));
        }
        let metrics = world.nodes[0].metrics();
        assert_eq!((metrics.links, metrics.links_queued_bytes), (3, 0));
        // One that is larger than all the room goes alone.
        let sent = peers[2].send(&load(300_000)).expect("nothing else waits");
        assert!(matches!(peers[0].send(&load(0)), Err(SendError::Full)));
        assert_eq!(timeout(SOON, sent).await.expect("in time"), Ok(()));
    });
}

#[test]
fn broadcasts_take_no_room_from_messages() {
    paused(async {
        let config = Config { total_queue_bytes: 100_000, ..Config::lan() };
        let world = World::cluster(4, config, 4).await;
        let _scales: Vec<_> = world.nodes.iter().map(serve).collect();
        let spread = world.nodes[0].broadcast_bytes(actix_memberlist::Broadcast::new(vec![1; 90_000]));
        let sent = peer(&world, 0, 1).send(&load(90_000)).expect("there is room");
        assert_eq!(timeout(SOON, sent).await.expect("in time"), Ok(()));
        let spread = timeout(SOON, spread.expect("taken")).await.expect("in time");
        assert_eq!(spread, Err(NotSent::Never(Cause::NoHandler)), "it has been everywhere");
        assert_eq!(world.nodes[0].metrics().links_queued_bytes, 0);
    });
}

#[test]
fn a_message_that_a_peer_does_not_take_is_refused_and_holds_nothing_up() {
    paused(async {
        let small = Config { max_ordered_size: 2_000, max_message_size: 100_000, ..Config::lan() };
        let world = unequal(small).await;
        let (heard, _serving) = serve(&world.nodes[1]);
        let peer = peer(&world, 0, 1);
        // Before the first connection it is not known what the peer takes.
        let all = [10, 20_000, 200_000, 1_000].map(|len| peer.send(&load(len)).expect("it is queued"));
        let mut outcomes = Vec::new();
        for sent in all {
            outcomes.push(timeout(SOON, sent).await.expect("in time"));
        }
        let large = Err(NotSent::Never(Cause::TooLarge));
        assert_eq!(outcomes, [Ok(()), Ok(()), large, Ok(())]);
        let too_large = peer.send(&load(200_000)).expect_err("it is known now");
        assert!(
            matches!(too_large, SendError::TooLarge { max: 100_000, len } if len > 200_000),
            "{too_large}"
        );
        let sent = peer.send(&load(3_000)).expect("it goes by the bulk lane");
        assert_eq!(timeout(SOON, sent).await.expect("in time"), Ok(()));
        let mut heard = heard.borrow().clone();
        heard.sort_unstable();
        assert_eq!(heard, [10, 1_000, 3_000, 20_000]);
        let lanes = world.nodes[1].metrics().lanes;
        assert_eq!((lanes["ordered"].received, lanes["bulk"].received), (2, 2), "{lanes:?}");
        let lanes = world.nodes[0].metrics().lanes;
        assert_eq!((lanes["ordered"].queued, lanes["bulk"].queued), (3, 2), "as they were taken: {lanes:?}");
        let (delivered, lost) = (lanes.values().map(|l| l.delivered).sum::<u64>(), lanes["bulk"].undelivered);
        assert_eq!((delivered, lost), (4, 1), "{lanes:?}");
    });
}

#[test]
fn an_answer_that_the_asker_does_not_take_is_an_error_and_holds_nothing_up() {
    paused(async {
        let small = Config { max_message_size: 100_000, ..Config::lan() };
        let world = unequal(small).await;
        let (_heard, _serving) = serve(&world.nodes[0]);
        let peer = peer(&world, 1, 0);
        let ask = async |back| peer.ask(&Load { bytes: Bytes::new(), back }, SOON).await;
        let (short, long, last) = tokio::join!(ask(10), ask(400_000), ask(20));
        assert_eq!(short.expect("it fits").len(), 10);
        assert_eq!(last.expect("it fits").len(), 20);
        let Err(AskError::Reply(why)) = long else { panic!("{long:?}") };
        assert!(why.contains("400") && why.contains("100000"), "{why}");
    });
}

#[test]
fn each_refusal_is_told_however_many_are_read_at_once() {
    // More than a receiver remembers of refusals.
    const MANY: usize = 60_000;
    actix::System::new().block_on(async {
        let config = Config { peer_queue_depth: MANY, ..Config::local() };
        let node = async |name| {
            let bind = ([127, 0, 0, 1], 0).into();
            Cluster::builder(name).config(config.clone()).bind(bind).start().await.expect("it starts")
        };
        let (one, other) = (node("one").await, node("other").await);
        let there = other.view().local().clone();
        one.join(&[&there.addr.to_string()]).await.expect("it is there");
        let peer = one.peer(&there.id).expect("it is there");
        let all: Vec<_> = (0..MANY).map(|_| peer.send_bytes(Bytes::new()).expect("there is room")).collect();
        for sent in all {
            let outcome = timeout(SOON, sent).await.expect("in time");
            assert_eq!(outcome, Err(NotSent::Never(Cause::NoHandler)));
        }
        assert_eq!(peer.status().dropped, MANY as u64);
        assert_eq!(other.metrics().lanes["ordered"].refused, MANY as u64);
        for node in [one, other] {
            node.shutdown().await;
        }
    });
}
