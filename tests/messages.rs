//! Users' bytes between nodes: in datagrams, over streams, and broadcasts that are too large for gossip.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{Actor, AsyncContext, Context, Handler, WrapFuture};
use actix_memberlist::{
    Broadcast, Cause, Cluster, Config, MemberState, NotSent, Peer, SendError, Sender, Subscription, UserBytes,
};
use bytes::Bytes;
use memberlist_tests::{World, addr, paused};
use tokio::time::{sleep, timeout};

/// For a death to be noticed.
const LONG: Duration = Duration::from_secs(90);

const SOON: Duration = Duration::from_secs(10);

type Heard = Rc<RefCell<Vec<UserBytes>>>;

/// Keeps what it hears; each message takes it `pause`.
struct Ear {
    heard: Heard,
    pause: Duration,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, m: UserBytes, ctx: &mut Context<Self>) {
        self.heard.borrow_mut().push(m);
        if !self.pause.is_zero() {
            ctx.wait(sleep(self.pause).into_actor(self));
        }
    }
}

fn listen(node: &Cluster, pause: Duration) -> (Heard, Subscription) {
    let heard = Heard::default();
    let ear = Ear { heard: heard.clone(), pause }.start();
    (heard, node.serve_bytes(ear.recipient()).expect("it runs"))
}

fn peer(world: &World, from: usize, to: usize) -> Peer {
    let id = world.nodes[to].view().local().id.clone();
    world.nodes[from].peer(&id).expect("it is there")
}

async fn until(heard: &Heard, n: usize) {
    let enough = async {
        while heard.borrow().len() < n {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(SOON, enough).await.unwrap_or_else(|_| panic!("{} of {n}", heard.borrow().len()));
}

fn text(n: usize) -> Bytes {
    Bytes::from(format!("message {n}"))
}

#[test]
fn a_datagram_of_a_user_arrives_and_its_sender_is_known() {
    paused(async {
        let mut world = World::cluster(1, Config::lan(), 3).await;
        world.start(1).await;
        let (heard, _serving) = listen(&world.nodes[2], Duration::ZERO);
        let to = peer(&world, 0, 2);
        to.cast_bytes(text(0)).expect("it is taken");
        world.nodes[1].send_to_address(addr(2), text(1)).expect("it is taken");
        until(&heard, 2).await;
        // Nobody has heard of this one.
        world.nodes[3].send_to_address(addr(2), text(2)).expect("it is taken");
        until(&heard, 3).await;
        let heard = heard.borrow();
        let id = |i: usize| Sender::Member(world.nodes[i].view().local().id.clone());
        let mut known: Vec<_> = heard[..2].iter().map(|m| (m.from.clone(), m.bytes.clone())).collect();
        known.sort_by_key(|(_, bytes)| bytes.clone());
        assert_eq!(known, [(id(0), text(0)), (id(1), text(1))]);
        assert_eq!((&heard[2].from, &heard[2].bytes), (&Sender::Address(addr(3)), &text(2)));
        assert!(heard.iter().all(|m| !m.reliable));
    });
}

#[test]
fn weak_point_18_a_datagram_that_is_too_large_says_what_would_fit_and_that_fits() {
    paused(async {
        let world = World::cluster(2, Config::lan(), 2).await;
        let (heard, _serving) = listen(&world.nodes[1], Duration::ZERO);
        let to = peer(&world, 0, 1);
        let Err(SendError::TooLarge { len: 5000, max }) = to.cast_bytes(vec![7; 5000].into()) else {
            panic!()
        };
        assert!(
            matches!(to.cast_bytes(vec![7; max + 1].into()), Err(SendError::TooLarge { max: m, .. }) if m == max)
        );
        to.cast_bytes(vec![7; max].into()).expect("it fits");
        until(&heard, 1).await;
        assert_eq!(heard.borrow()[0].bytes.len(), max);
    });
}

#[test]
fn small_datagrams_of_one_turn_share_packets() {
    paused(async {
        let world = World::cluster(3, Config { gossip_interval: Duration::ZERO, ..Config::lan() }, 2).await;
        let (heard, _serving) = listen(&world.nodes[1], Duration::ZERO);
        let before = world.nodes[0].metrics().packets_sent;
        let to = peer(&world, 0, 1);
        for n in 0..100 {
            to.cast_bytes(text(n)).expect("it is taken");
        }
        until(&heard, 100).await;
        let packets = world.nodes[0].metrics().packets_sent - before;
        assert!(packets <= 10, "{packets} packets");
    });
}

#[test]
fn messages_over_streams_arrive_in_order_and_each_has_its_answer() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 2).await;
        let (heard, _serving) = listen(&world.nodes[1], Duration::ZERO);
        let to = peer(&world, 0, 1);
        let mut fates = Vec::new();
        for n in 0..500 {
            fates.push(to.send_bytes(text(n)).expect("there is room"));
        }
        let large = Bytes::from(vec![9; 3 << 20]);
        fates.push(to.send_bytes(large.clone()).expect("there is room"));
        for fate in fates {
            assert_eq!(timeout(SOON, fate).await.expect("in time"), Ok(()));
        }
        until(&heard, 501).await;
        let heard = heard.borrow();
        for (n, m) in heard[..500].iter().enumerate() {
            assert_eq!((&m.bytes, m.reliable), (&text(n), true));
        }
        assert_eq!(heard[500].bytes, large);
        assert_eq!(heard[500].from, Sender::Member(world.nodes[0].view().local().id.clone()));
        assert!(world.nodes[0].metrics().streams_dialled < 100, "one connection carries many");
    });
}

#[test]
fn what_does_not_get_through_is_told_and_why() {
    paused(async {
        let config = Config { max_message_size: 2000, peer_queue_depth: 3, ..Config::lan() };
        let world = World::cluster(5, config, 3).await;
        let to = peer(&world, 0, 1);
        let sent = |bytes: Bytes| async {
            timeout(SOON, to.send_bytes(bytes).expect("taken")).await.expect("in time")
        };
        assert_eq!(sent(text(0)).await, Err(NotSent::Never(Cause::NoHandler)));
        assert!(matches!(
            to.send_bytes(vec![0; 2001].into()),
            Err(SendError::TooLarge { len: 2001, max: 2000 })
        ));
        // Nothing has left yet in this turn.
        let fates: Vec<_> = (0..4).map(|n| to.send_bytes(text(n))).collect();
        assert!(matches!(fates[3], Err(SendError::Full)));
        drop(fates);

        // It has crashed, and nobody has noticed so far: what is sent waits, and ends when they do.
        let refusing = peer(&world, 0, 2);
        world.kill(2).await;
        let waiting = refusing.send_bytes(text(1)).expect("it is held for alive");
        let dead = world.wait_until(Duration::from_secs(60), |w| w.state(0, 2) == Some(MemberState::Dead));
        dead.await.expect("the others notice");
        assert_eq!(timeout(SOON, waiting).await.expect("in time"), Err(NotSent::Never(Cause::PeerDead)));
        assert!(matches!(refusing.send_bytes(text(2)), Err(SendError::Gone)));
        assert!(matches!(refusing.cast_bytes(text(2)), Err(SendError::Gone)));
        assert!(refusing.member().is_none());
        assert!(world.nodes[0].metrics().dropped["undelivered"] >= 2);

        let waiting = to.send_bytes(text(3)).expect("taken");
        world.nodes[0].shutdown().await;
        let outcome = timeout(SOON, waiting).await.expect("in time");
        assert!(matches!(outcome, Err(NotSent::Unknown(Cause::Stopped) | NotSent::Never(_))), "{outcome:?}");
        assert!(matches!(to.send_bytes(text(4)), Err(SendError::Stopped)));
    });
}

#[test]
fn a_message_for_a_run_that_is_gone_reaches_nobody_else() {
    paused(async {
        let mut world = World::cluster(6, Config::lan(), 2).await;
        let old = peer(&world, 0, 1);
        world.kill(1).await;
        // Another run takes the address; the first node has not heard of it.
        let again = world.builder(1).seed(77).start().await.expect("it starts");
        let (heard, _serving) = listen(&again, Duration::ZERO);
        old.cast_bytes(text(1)).expect("taken");
        let fate = old.send_bytes(text(0)).expect("it is held for alive");
        world.nodes[1] = again;
        let counted = |w: &World| {
            ["not_for_us", "refused_other"].iter().all(|why| w.nodes[1].metrics().dropped[why] > 0)
        };
        world.wait_until(SOON, counted).await.expect("both are counted");
        // Whichever the first node hears of first: that the old run is dead, or that there is another one.
        let outcome = timeout(LONG, fate).await.expect("in time");
        assert!(matches!(outcome, Err(NotSent::Never(Cause::PeerDead | Cause::Replaced))), "{outcome:?}");
        assert!(heard.borrow().is_empty());
    });
}

#[test]
fn a_handler_that_is_slow_makes_senders_wait_or_fail_and_nobody_suspect() {
    paused(async {
        let world = World::cluster(7, Config::lan(), 3).await;
        let (heard, _serving) = listen(&world.nodes[1], Duration::from_secs(10));
        let to = peer(&world, 0, 1);
        let (mut taken, mut busy, mut full) = (0, 0, 0);
        for _ in 0..30 {
            let mut fates = Vec::new();
            for n in 0..200 {
                match to.send_bytes(text(n)) {
                    Ok(fate) => fates.push(fate),
                    Err(SendError::Full) => full += 1,
                    Err(error) => panic!("{error}"),
                }
                let _ = to.cast_bytes(text(n));
            }
            for fate in fates {
                match timeout(SOON, fate).await.expect("in time") {
                    Ok(()) => taken += 1,
                    Err(NotSent::Never(Cause::Busy)) => busy += 1,
                    other => panic!("{other:?}"),
                }
            }
            sleep(Duration::from_secs(2)).await;
        }
        assert!(taken > 0 && busy > 1000, "{taken} taken, {busy} busy, {full} full");
        assert!(heard.borrow().len() < 20, "the handler sleeps");
        for node in &world.nodes {
            assert_eq!((node.view().alive_count(), node.health()), (3, 0));
            let metrics = node.metrics();
            assert_eq!(metrics.messages_received["suspect"], 0);
            assert!(metrics.inboxes.iter().all(|(_, inbox)| inbox.refused == 0), "{:?}", metrics.inboxes);
        }
    });
}

#[test]
fn a_broadcast_that_is_too_large_for_gossip_goes_to_each_member_over_a_stream_once() {
    paused(async {
        let world = World::cluster(8, Config::lan(), 40).await;
        let ears: Vec<_> = world.nodes[1..].iter().map(|node| listen(node, Duration::ZERO)).collect();
        let large = Bytes::from(vec![5; 100_000]);
        let spread = world.nodes[0].broadcast_bytes(Broadcast::new(large.clone())).expect("it is taken");
        assert_eq!(timeout(SOON, spread).await.expect("in time"), Ok(()));
        for (heard, _) in &ears {
            until(heard, 1).await;
        }
        sleep(SOON).await;
        for (heard, _) in &ears {
            let heard = heard.borrow();
            assert_eq!((heard.len(), &heard[0].bytes, heard[0].reliable), (1, &large, true));
            assert_eq!(heard[0].from, Sender::Member(world.nodes[0].view().local().id.clone()));
        }
        assert_eq!(world.nodes[0].metrics().dropped["undelivered"], 0);
    });
}

#[test]
fn a_large_broadcast_counts_whom_it_does_not_reach_and_gives_way_to_a_newer_one() {
    paused(async {
        let world = World::cluster(9, Config::lan(), 5).await;
        let ears: Vec<_> = world.nodes.iter().map(|node| listen(node, Duration::ZERO)).collect();
        world.kill(4).await;
        let named = |byte: u8| Broadcast { name: Some("table".into()), ..Broadcast::new(vec![byte; 10_000]) };
        let old = world.nodes[0].broadcast_bytes(named(1)).expect("taken");
        let new = world.nodes[0].broadcast_bytes(named(2)).expect("taken");
        assert_eq!(timeout(SOON, old).await.expect("in time"), Err(NotSent::Never(Cause::Invalidated)));
        // Of the dead one it is known what became of it once it is known to be dead.
        assert_eq!(timeout(LONG, new).await.expect("in time"), Ok(()));
        for (heard, _) in &ears[1..4] {
            until(heard, 1).await;
            assert_eq!(heard.borrow()[0].bytes[0], 2);
        }
        assert!(world.nodes[0].metrics().dropped["undelivered"] >= 1, "the dead one");
        // A small one of the name replaces a large one as well, and the other way round.
        let large = world.nodes[0].broadcast_bytes(named(3)).expect("taken");
        let small = Broadcast { name: Some("table".into()), ..Broadcast::new("small") };
        let small = world.nodes[0].broadcast_bytes(small).expect("taken");
        assert_eq!(timeout(SOON, large).await.expect("in time"), Err(NotSent::Never(Cause::Invalidated)));
        let last = world.nodes[0].broadcast_bytes(named(4)).expect("taken");
        assert_eq!(timeout(SOON, small).await.expect("in time"), Err(NotSent::Never(Cause::Invalidated)));
        assert_eq!(timeout(SOON, last).await.expect("in time"), Ok(()));
    });
}

#[test]
fn a_large_broadcast_reaches_the_living_at_once_though_a_third_has_just_died() {
    paused(async {
        let world = World::cluster(11, Config::lan(), 30).await;
        let ears: Vec<_> = world.nodes.iter().map(|node| listen(node, Duration::ZERO)).collect();
        for i in (1..30).step_by(3) {
            world.kill(i).await;
        }
        let dead = |i: usize| i % 3 == 1;
        let spread = world.nodes[0].broadcast_bytes(Broadcast::new(vec![5; 100_000])).expect("it is taken");
        sleep(Duration::from_secs(1)).await;
        for (i, (heard, _)) in ears.iter().enumerate().skip(1).filter(|(i, _)| !dead(*i)) {
            assert_eq!(heard.borrow().len(), 1, "n{i:03} does not wait for those who are dead");
        }
        assert_eq!(timeout(LONG, spread).await.expect("once all are known to be dead"), Ok(()));
        assert_eq!(world.nodes[0].metrics().dropped["undelivered"], 10);
    });
}

#[test]
fn large_broadcasts_at_once_are_bounded() {
    paused(async {
        let config = Config { peer_queue_bytes: 100_000, ..Config::lan() };
        let world = World::cluster(10, config, 3).await;
        let _ears: Vec<_> = world.nodes.iter().map(|node| listen(node, Duration::ZERO)).collect();
        let spreads: Vec<_> = (0..5)
            .map(|n| world.nodes[0].broadcast_bytes(Broadcast::new(vec![n; 40_000])).expect("taken"))
            .collect();
        let mut outcomes = Vec::new();
        for spread in spreads {
            outcomes.push(timeout(SOON, spread).await.expect("in time"));
        }
        let busy = outcomes.iter().filter(|o| **o == Err(NotSent::Never(Cause::Busy))).count();
        assert_eq!((busy, outcomes.iter().filter(|o| o.is_ok()).count()), (3, 2), "{outcomes:?}");
    });
}
