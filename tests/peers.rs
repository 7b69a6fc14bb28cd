//! Messages between peers over their links: told, asked, to many, through a `Recipient`, and while a node leaves.

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use actix::{Actor, Context, Handler, Message, MessageResult, ResponseFuture};
use actix_memberlist::{
    AskError, Cause, Cluster, Config, FromPeer, Lane, LinkEvent, NotSent, Peer, PeerMessage, Select,
    SendError, Upload,
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt, future::join_all};
use memberlist_tests::{World, addr, paused};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

const SOON: Duration = Duration::from_secs(10);

#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct Note(u64, Bytes);

impl PeerMessage for Note {
    const KIND: &'static str = "note/1";
}

#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct Alarm(u64);

impl PeerMessage for Alarm {
    const KIND: &'static str = "alarm/1";
    const LANE: Lane = Lane::Urgent;
}

/// Asks for so many bytes, after so many milliseconds.
#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "Option<Bytes>")]
struct Fetch {
    len: usize,
}

impl PeerMessage for Fetch {
    const KIND: &'static str = "fetch/1";
}

type Heard = Rc<RefCell<Vec<String>>>;

#[derive(Default)]
struct Desk {
    heard: Heard,
}

impl Actor for Desk {
    type Context = Context<Self>;
}

impl Handler<Note> for Desk {
    type Result = ();
    fn handle(&mut self, m: Note, _: &mut Context<Self>) {
        self.heard.borrow_mut().push(format!("note {}", m.0));
    }
}

impl Handler<Alarm> for Desk {
    type Result = ();
    fn handle(&mut self, m: Alarm, _: &mut Context<Self>) {
        self.heard.borrow_mut().push(format!("alarm {}", m.0));
    }
}

impl Handler<FromPeer<Fetch>> for Desk {
    type Result = MessageResult<FromPeer<Fetch>>;
    fn handle(&mut self, m: FromPeer<Fetch>, _: &mut Context<Self>) -> Self::Result {
        self.heard.borrow_mut().push(format!("fetch of {}", m.from.name()));
        assert!(m.msg.len != 13, "injected");
        MessageResult((m.msg.len > 0).then(|| Bytes::from(vec![7; m.msg.len])))
    }
}

impl Handler<LinkEvent> for Desk {
    type Result = ();
    fn handle(&mut self, event: LinkEvent, _: &mut Context<Self>) {
        let text = match event {
            LinkEvent::Up { peer, .. } => format!("up {}", peer.name()),
            LinkEvent::Down { peer, cause } => format!("down {} {cause:?}", peer.name()),
            LinkEvent::Dropped { peer, lane, count, bytes, cause } => {
                format!("dropped {} {lane:?} {count} {bytes} {cause:?}", peer.name())
            }
            other => format!("{other:?}"),
        };
        self.heard.borrow_mut().push(text);
    }
}

/// An actor that handles everything.
fn serve(node: &Cluster) -> Heard {
    let desk = Desk::default();
    let heard = desk.heard.clone();
    let desk = desk.start();
    node.serve::<Note>(desk.clone().recipient()).expect("it runs").detach();
    node.serve::<Alarm>(desk.clone().recipient()).expect("it runs").detach();
    node.serve_from::<Fetch>(desk.recipient()).expect("it runs").detach();
    heard
}

fn peer(world: &World, from: usize, to: usize) -> Peer {
    let id = world.nodes[to].view().local().id.clone();
    world.nodes[from].peer(&id).expect("it is there")
}

#[test]
fn notes_arrive_in_order_and_a_question_has_its_answer_whatever_their_lengths() {
    paused(async {
        let world = World::cluster(1, Config::lan(), 3).await;
        let heard = serve(&world.nodes[1]);
        let to = peer(&world, 0, 1);
        let sent: Vec<_> =
            (0..1000).map(|n| to.send(&Note(n, Bytes::new())).expect("there is room")).collect();
        assert!(join_all(sent).await.iter().all(Result::is_ok));
        sleep(Duration::from_millis(10)).await;
        let notes: Vec<_> = (0..1000).map(|n| format!("note {n}")).collect();
        assert_eq!(heard.borrow_mut().split_off(0), notes);
        for len in [0, 1, 60_000, 300_000, 5_000_000] {
            let answer = to.ask(&Fetch { len }, SOON).await.expect("it answers");
            assert_eq!(answer.map_or(0, |bytes| bytes.len()), len);
        }
        // The question itself may be large as well, and goes by the bulk lane then.
        let large = Note(7, Bytes::from(vec![1; 2_000_000]));
        assert_eq!(to.send(&large).expect("there is room").await, Ok(()));
        let status = to.status();
        assert_eq!((status.queued, status.queued_bytes, status.dropped), (0, 0, 0));
        assert!(status.sent >= 1006 && status.rtt.is_some() && status.active_since.is_some(), "{status:?}");
        assert_eq!(world.nodes[0].metrics().streams_dialled, 2, "the main and the bulk connection");
    });
}

#[test]
fn an_urgent_message_overtakes_ordered_ones() {
    paused(async {
        let world = World::cluster(2, Config::lan(), 2).await;
        let heard = serve(&world.nodes[1]);
        let to = peer(&world, 0, 1);
        let note = |n| Note(n, Bytes::from(vec![0; 50_000]));
        let sent: Vec<_> = (0..170).map(|n| to.send(&note(n)).expect("there is room")).collect();
        to.send(&Alarm(1)).expect("there is room").await.expect("it arrives");
        let before = heard.borrow().len();
        assert!(before < 60, "{before} notes were before it");
        assert!(join_all(sent).await.iter().all(Result::is_ok));
    });
}

#[test]
fn a_question_without_an_answer_says_why() {
    paused(async {
        let world = World::cluster(3, Config::lan(), 2).await;
        let to = peer(&world, 0, 1);
        let never = |cause| Err(AskError::NotSent(NotSent::Never(cause)));
        assert_eq!(to.ask(&Fetch { len: 1 }, SOON).await, never(Cause::NoHandler));
        let _heard = serve(&world.nodes[1]);
        assert_eq!(to.ask(&Fetch { len: 13 }, SOON).await, Err(AskError::HandlerGone));
        let start = Instant::now();
        world.network.partition(&[addr(0)], &[addr(1)]);
        assert_eq!(to.ask(&Fetch { len: 1 }, Duration::from_secs(1)).await, Err(AskError::Timeout));
        assert_eq!(start.elapsed().as_secs(), 1);
    });
}

#[test]
fn a_cut_loses_nothing_and_repeats_nothing() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 2).await;
        let heard = serve(&world.nodes[1]);
        let to = peer(&world, 0, 1);
        let mut sent = Vec::new();
        for n in 0..2000 {
            sent.push(to.send_wait(&Note(n, Bytes::from(vec![0; 100]))).await.expect("it runs"));
            if n % 250 == 99 {
                world.network.partition(&[addr(0)], &[addr(1)]);
                sleep(Duration::from_millis(700)).await;
                world.network.heal();
                sleep(Duration::from_secs(3)).await;
            }
            if n % 10 == 0 {
                sleep(Duration::from_millis(1)).await;
            }
        }
        assert!(timeout(SOON, join_all(sent)).await.expect("in time").iter().all(Result::is_ok));
        let notes: Vec<_> = (0..2000).map(|n| format!("note {n}")).collect();
        sleep(Duration::from_millis(10)).await;
        assert_eq!(*heard.borrow(), notes);
    });
}

#[test]
fn many_are_told_and_asked_at_once_and_who_is_dead_delays_nobody() {
    paused(async {
        let world = World::cluster(5, Config::lan(), 5).await;
        let heard: Vec<_> = world.nodes.iter().map(serve).collect();
        world.kill(4).await;
        let asked = Instant::now();
        let answers: Vec<_> =
            world.nodes[0].ask_all(Select::Others, &Fetch { len: 3 }, Duration::from_secs(2)).collect().await;
        assert_eq!(asked.elapsed().as_secs(), 2, "the dead one is waited for");
        let ok = answers.iter().filter(|(_, answer)| answer.is_ok()).count();
        assert_eq!((answers.len(), ok), (4, 3));
        assert_eq!(answers[3].1, Err(AskError::Timeout));
        let only = Select::Only(vec![world.nodes[2].view().local().id.clone()]);
        let fanout = world.nodes[0].send_all(only, &Alarm(9));
        assert_eq!((fanout.queued, fanout.refused.len()), (1, 0));
        sleep(SOON).await;
        assert_eq!(*heard[2].borrow(), ["fetch of n000", "alarm 9"]);
        assert_eq!(world.nodes[0].send_all(Select::Tagged("zone".into(), "a".into()), &Alarm(1)).queued, 0);
    });
}

#[test]
fn a_member_can_stand_where_a_recipient_is_asked_for() {
    paused(async {
        let world = World::cluster(6, Config::lan(), 2).await;
        let heard = serve(&world.nodes[1]);
        let remote = peer(&world, 0, 1).recipient::<Alarm>().expect("it runs");
        for n in 0..20 {
            remote.send(Alarm(n)).await.expect("it passes it on");
        }
        sleep(SOON).await;
        assert_eq!(heard.borrow().len(), 20);
        world.nodes[1].shutdown().await;
        let dead = |w: &World| w.nodes[0].peers().is_empty();
        world.wait_until(Duration::from_secs(60), dead).await.expect("it is dead");
        let before = world.nodes[0].metrics().dropped["undelivered"];
        remote.send(Alarm(1)).await.expect("it hears");
        assert_eq!(world.nodes[0].metrics().dropped["undelivered"], before + 1);
    });
}

#[test]
fn whoever_listens_to_the_links_hears_what_becomes_of_them() {
    paused(async {
        let world = World::cluster(7, Config::lan(), 2).await;
        let _heard = serve(&world.nodes[1]);
        let listener = Desk::default();
        let events = listener.heard.clone();
        world.nodes[0].subscribe_links(listener.start().recipient()).expect("it runs").detach();
        let to = peer(&world, 0, 1);
        to.send(&Alarm(1)).expect("there is room").await.expect("it arrives");
        world.kill(1).await;
        let waiting = to.send(&Note(1, Bytes::from_static(b"abc"))).expect("there is room");
        let outcome = timeout(Duration::from_secs(60), waiting).await.expect("in time");
        assert!(matches!(outcome, Err(NotSent::Never(_) | NotSent::Unknown(_))), "{outcome:?}");
        sleep(SOON).await;
        let events = events.borrow();
        assert_eq!(events[0], "up n001", "{events:?}");
        assert!(events.iter().any(|e| e.starts_with("down n001")), "{events:?}");
        let dropped = format!("dropped n001 Ordered 1 {} PeerDead", 5);
        assert!(events.contains(&dropped), "{events:?}");
    });
}

#[test]
fn who_leaves_brings_home_what_it_has_taken_and_counts_what_it_has_not() {
    paused(async {
        let world = World::cluster(8, Config::lan(), 3).await;
        let heard = serve(&world.nodes[1]);
        let (to, dead) = (peer(&world, 0, 1), peer(&world, 0, 2));
        world.kill(2).await;
        let sent: Vec<_> = (0..100).map(|n| to.send(&Alarm(n)).expect("there is room")).collect();
        let lost: Vec<_> = (0..7).map(|n| dead.send(&Alarm(n)).expect("there is room")).collect();
        let report = world.nodes[0].leave(Duration::from_secs(4)).await.expect("it runs");
        assert_eq!((report.announced, report.drained, report.discarded), (true, 100, 7));
        assert_eq!(to.send(&Alarm(0)).err(), Some(SendError::Leaving));
        assert!(join_all(sent).await.iter().all(Result::is_ok));
        let lost = timeout(SOON, join_all(lost)).await.expect("in time");
        assert!(lost.iter().all(|fate| *fate == Err(NotSent::Never(Cause::Stopped))), "{lost:?}");
        sleep(Duration::from_millis(10)).await;
        assert_eq!(heard.borrow().len(), 100);
        // Back again, it can send again.
        world.nodes[0].join(&[&addr(1).to_string()]).await.expect("it joins");
        let to = peer(&world, 0, 1);
        assert_eq!(to.send(&Alarm(1)).expect("there is room").await, Ok(()));
    });
}

#[test]
fn more_peers_than_there_may_be_links_have_them_in_turn() {
    paused(async {
        let world = World::cluster(10, Config { max_links: 4, ..Config::lan() }, 9).await;
        let heard: Vec<_> = world.nodes.iter().map(serve).collect();
        for round in 1..=2 {
            let fanout = world.nodes[0].send_all(Select::Others, &Alarm(round));
            assert_eq!((fanout.queued, fanout.refused.len()), (8, 0));
            let all = |_: &World| heard[1..].iter().all(|heard| heard.borrow().len() == round as usize);
            world.wait_until(Duration::from_secs(29), all).await.expect("within the window");
        }
        let up = world.nodes[0].peers().iter().filter(|peer| peer.status().active_since.is_some()).count();
        assert!(up <= 4, "{up}");
        // And as many from others.
        for node in &world.nodes[1..] {
            let to = node.peer(&world.nodes[0].view().local().id).expect("it is there");
            drop(to.send(&Alarm(1)).expect("there is room"));
        }
        let all = |_: &World| heard[0].borrow().len() == 8;
        world.wait_until(Duration::from_secs(29), all).await.expect("within the window");
    });
}

/// So many bytes are to come.
#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "(u64, bool)")]
struct Store {
    /// Stop reading after so many.
    at_most: u64,
}

impl PeerMessage for Store {
    const KIND: &'static str = "store/1";
}

impl Handler<Upload<Store>> for Desk {
    type Result = ResponseFuture<(u64, bool)>;
    fn handle(&mut self, mut m: Upload<Store>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let mut read = 0;
            while read < m.head.at_most {
                match m.body.next().await {
                    Some(Ok(piece)) => read += piece.len() as u64,
                    Some(Err(_)) => return (read, false),
                    None => return (read, true),
                }
            }
            (read, true)
        })
    }
}

fn pieces(n: u64, len: usize) -> impl Stream<Item = io::Result<Bytes>> + Send {
    futures_util::stream::iter((0..n).map(move |_| Ok(Bytes::from(vec![3; len]))))
}

#[test]
fn an_upload_of_any_length_arrives_and_is_answered_once_it_is_read_or_before() {
    paused(async {
        let world = World::cluster(9, Config::lan(), 2).await;
        let to = peer(&world, 0, 1);
        let all = Store { at_most: u64::MAX };
        let unserved = to.upload(&all, pieces(1, 1)).await;
        assert_eq!(unserved, Err(AskError::NotSent(NotSent::Never(Cause::NoHandler))));
        let desk = Desk::default().start();
        world.nodes[1].serve_upload::<Store>(desk.recipient()).expect("it runs").detach();
        for (n, len) in [(0, 0), (1, 1), (3, 200_000), (500, 64 << 10)] {
            let answer = to.upload(&all, pieces(n, len)).await;
            assert_eq!(answer, Ok((n * len as u64, true)), "{n} pieces of {len} bytes");
        }
        // A reader that has had enough answers, and what is left of a body without an end is not sent.
        let endless = futures_util::stream::repeat_with(|| Ok(Bytes::from(vec![3; 1000])));
        let some = to.upload(&Store { at_most: 10_000 }, endless).await;
        assert_eq!(some, Ok((10_000, true)));
        // A body that fails is cut off, and the reader knows.
        let broken = pieces(3, 10).chain(futures_util::stream::iter([Err(io::Error::other("disk"))]));
        assert_eq!(to.upload(&all, broken).await, Err(AskError::Body("disk".into())));
        // A peer that dies meanwhile.
        let slow = futures_util::stream::unfold((), async |()| {
            sleep(Duration::from_secs(1)).await;
            Some((Ok(Bytes::from_static(b"x")), ()))
        });
        let uploading = to.upload(&all, Box::pin(slow));
        let dying = async {
            sleep(Duration::from_secs(3)).await;
            world.kill(1).await;
        };
        let (outcome, ()) = tokio::join!(timeout(Duration::from_secs(90), uploading), dying);
        let outcome = outcome.expect("in time");
        assert!(matches!(outcome, Err(AskError::NotSent(NotSent::Unknown(_)))), "{outcome:?}");
    });
}

#[test]
fn an_upload_whose_body_stands_still_is_answered_all_the_same_or_given_up_after_a_minute() {
    paused(async {
        let world = World::cluster(10, Config::lan(), 2).await;
        let to = peer(&world, 0, 1);
        world.nodes[1].serve_upload::<Store>(Desk::default().start().recipient()).expect("it runs").detach();
        let still = || pieces(1, 10).chain(futures_util::stream::pending());
        // The handler has had enough, whatever the body still is to bring.
        for at_most in [0, 10] {
            let answer = timeout(SOON, to.upload(&Store { at_most }, still())).await;
            assert_eq!(answer.expect("at once"), Ok((at_most, true)));
        }
        // It waits for more, and learns that no more comes, as does whoever sends.
        let begun = Instant::now();
        let outcome = timeout(Duration::from_secs(90), to.upload(&Store { at_most: 11 }, still())).await;
        let outcome = outcome.expect("in time");
        assert!(matches!(outcome, Err(AskError::NotSent(NotSent::Unknown(_)))), "{outcome:?}");
        assert!(begun.elapsed() >= Duration::from_secs(59), "{:?}", begun.elapsed());
        // The same where nothing comes back.
        let begun = Instant::now();
        let stalled = async {
            sleep(SOON).await;
            world.nodes[0].faults().pause(&to).expect("it is there");
        };
        let uploading = timeout(Duration::from_secs(90), to.upload(&Store { at_most: 11 }, still()));
        let (outcome, ()) = tokio::join!(uploading, stalled);
        let outcome = outcome.expect("in time");
        assert!(matches!(outcome, Err(AskError::NotSent(NotSent::Unknown(_)))), "{outcome:?}");
        assert!(begun.elapsed() >= Duration::from_secs(59), "{:?}", begun.elapsed());
    });
}
