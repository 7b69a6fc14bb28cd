//! Outcomes in the corners: what is said when a peer is heard no more, a leave is dropped, a path is slow, a time is long.

use std::{cell::RefCell, io, rc::Rc, time::Duration};

use actix::{Actor, Context, Handler, Message, ResponseFuture};
use actix_memberlist::{AskError, Cause, Config, MemberState, NotSent, Peer, PeerMessage, SendError, Upload};
use bytes::Bytes;
use futures_util::StreamExt;
use memberlist_tests::{World, paused};
use serde::{Deserialize, Serialize};
use tokio::time::{sleep, timeout};

#[derive(Message, Serialize, Deserialize, Clone, Debug)]
#[rtype(result = "()")]
struct Note(u64, Bytes);
impl PeerMessage for Note {
    const KIND: &'static str = "note/1";
}

#[derive(Message, Serialize, Deserialize, Clone, Debug)]
#[rtype(result = "u64")]
struct Store(u64);
impl PeerMessage for Store {
    const KIND: &'static str = "store/1";
}

#[derive(Default, Clone)]
struct Desk(Rc<RefCell<Vec<String>>>);
impl Actor for Desk {
    type Context = Context<Self>;
}
impl Handler<Note> for Desk {
    type Result = ();
    fn handle(&mut self, m: Note, _: &mut Context<Self>) {
        self.0.borrow_mut().push(format!("note {} of {}", m.0, m.1.len()));
    }
}
impl Handler<Store> for Desk {
    type Result = u64;
    fn handle(&mut self, m: Store, _: &mut Context<Self>) -> u64 {
        self.0.borrow_mut().push(format!("store {}", m.0));
        m.0
    }
}
impl Handler<Upload<Store>> for Desk {
    type Result = ResponseFuture<u64>;
    fn handle(&mut self, mut m: Upload<Store>, _: &mut Context<Self>) -> Self::Result {
        let heard = self.0.clone();
        heard.borrow_mut().push(format!("upload {} begins", m.head.0));
        Box::pin(async move {
            let mut n = 0;
            while let Some(Ok(piece)) = m.body.next().await {
                n += piece.len() as u64;
            }
            heard.borrow_mut().push(format!("upload read {n}"));
            n
        })
    }
}

fn peer(world: &World, from: usize, to: usize) -> Peer {
    let id = world.nodes[to].view().local().id.clone();
    world.nodes[from].peer(&id).expect("it is there")
}
fn serve(world: &World, i: usize) -> Desk {
    let desk = Desk::default();
    let addr = desk.clone().start();
    world.nodes[i].serve::<Note>(addr.clone().recipient()).unwrap().detach();
    world.nodes[i].serve_upload::<Store>(addr.recipient()).unwrap().detach();
    desk
}

const SOON: Duration = Duration::from_secs(100);

#[test]
fn an_upload_of_which_nothing_is_heard_back_may_have_been_handled() {
    paused(async {
        let world = World::cluster(1, Config::lan(), 2).await;
        let desk = serve(&world, 1);
        let to = peer(&world, 0, 1);
        world.nodes[0].faults().from(&to).unwrap().stall();
        let body = futures_util::stream::iter([Ok::<_, io::Error>(Bytes::from_static(b"abc"))]);
        let outcome = to.upload(&Store(7), body).await;
        assert_eq!(*desk.0.borrow(), ["upload 7 begins"]);
        let lost = AskError::NotSent(NotSent::Unknown(Cause::LinkLost));
        assert_eq!(outcome.map_err(|error| format!("{error:?}")), Err(format!("{lost:?}")));
    });
}

#[test]
fn a_leave_counts_what_got_through_whichever_peer_did_not_answer() {
    for dead in [1, 2] {
        paused(async {
            let world = World::cluster(2, Config::lan(), 3).await;
            let alive = 3 - dead;
            let _desk = serve(&world, alive);
            let (to, gone) = (peer(&world, 0, alive), peer(&world, 0, dead));
            world.kill(dead).await;
            let _lost: Vec<_> = (0..7).map(|n| gone.send(&Note(n, Bytes::new())).unwrap()).collect();
            let _sent: Vec<_> = (0..100).map(|n| to.send(&Note(n, Bytes::new())).unwrap()).collect();
            let report = world.nodes[0].leave(Duration::from_secs(4)).await.unwrap();
            assert_eq!((report.drained, report.discarded), (100, 7), "n00{dead} is dead");
        });
    }
}

#[test]
fn a_message_for_which_no_link_has_room_has_its_outcome_all_the_same() {
    paused(async {
        let world = World::cluster(3, Config { max_links: 4, ..Config::lan() }, 7).await;
        let _desks: Vec<_> = (1..7).map(|i| serve(&world, i)).collect();
        let busy: Vec<_> = (1..5).map(|i| peer(&world, 0, i)).collect();
        let last = peer(&world, 0, 5);
        let talk = async {
            loop {
                for peer in &busy {
                    drop(peer.send(&Note(0, Bytes::new())));
                }
                sleep(Duration::from_secs(1)).await;
            }
        };
        let ask = async {
            sleep(Duration::from_secs(3)).await;
            for n in 0..3 {
                let outcome = timeout(SOON, last.send(&Note(n, Bytes::new())).unwrap()).await;
                assert_eq!(outcome.expect("in time"), Err(NotSent::Never(Cause::LinkLost)), "{n}");
            }
        };
        tokio::select! {
            () = talk => {}
            () = ask => {}
        }
    });
}

#[test]
fn a_large_message_may_take_its_time_on_a_slow_path() {
    paused(async {
        let config = Config { push_pull_interval: Duration::ZERO, ..Config::lan() };
        let world = World::cluster(4, config, 2).await;
        let desk = serve(&world, 1);
        let to = peer(&world, 0, 1);
        let speed = std::num::NonZeroU64::new(1 << 20).unwrap();
        world.nodes[0].faults().to(&to).unwrap().throttle(speed);
        // Not to be compressed, and longer than `tcp_timeout` times that speed.
        let mut x = 1_u32;
        let body: Vec<u8> = (0..15 << 20)
            .map(|_| {
                x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (x >> 24) as u8
            })
            .collect();
        let sent = to.send(&Note(1, body.into())).unwrap();
        assert_eq!(timeout(SOON, sent).await.expect("in time"), Ok(()));
        sleep(Duration::from_millis(10)).await;
        assert_eq!(*desk.0.borrow(), [format!("note 1 of {}", 15 << 20)]);
    });
}

#[test]
fn whoever_waits_for_ever_may() {
    paused(async {
        let world = World::cluster(5, Config::lan(), 2).await;
        let desk = serve(&world, 1);
        world.nodes[1].serve::<Store>(desk.start().recipient()).unwrap().detach();
        let to = peer(&world, 0, 1);
        for within in [Duration::from_secs(1 << 40), Duration::MAX] {
            assert_eq!(to.ask(&Store(3), within).await.expect("an answer"), 3);
        }
        let report = timeout(SOON, world.nodes[0].leave(Duration::MAX)).await.expect("in time");
        assert!(report.expect("it runs").announced);
    });
}

#[test]
fn a_broadcast_that_no_link_would_take_is_refused_at_once_and_the_largest_one_arrives() {
    paused(async {
        let config = Config { max_message_size: 1 << 20, ..Config::lan() };
        let world = World::cluster(7, config, 2).await;
        let desk = serve(&world, 1);
        let of = |len| world.nodes[0].broadcast(&Note(1, vec![1; len].into()));
        let Err(SendError::TooLarge { len, max }) = of((1 << 20) - 10) else { panic!("it does not fit") };
        assert!(len < 1 << 20 && max < len, "{len}, {max}");
        let around = len - ((1 << 20) - 10);
        let spread = of(max - around).expect("it fits");
        assert_eq!(timeout(SOON, spread).await.expect("in time"), Ok(()));
        sleep(Duration::from_millis(10)).await;
        assert_eq!(*desk.0.borrow(), [format!("note 1 of {}", max - around)]);
    });
}

#[test]
fn a_leave_that_is_dropped_before_it_is_said_is_none() {
    paused(async {
        let world = World::cluster(8, Config::lan(), 3).await;
        let _desk = serve(&world, 2);
        let (stuck, good) = (peer(&world, 0, 1), peer(&world, 0, 2));
        world.nodes[0].faults().pause(&stuck).unwrap();
        let _waits = stuck.send(&Note(1, Bytes::new())).unwrap();
        let left = timeout(Duration::from_secs(2), world.nodes[0].leave(Duration::from_secs(60))).await;
        assert!(left.is_err(), "it still waits for what was sent");
        world.nodes[0].faults().resume(&stuck).unwrap();
        sleep(Duration::from_secs(1)).await;
        assert_eq!(world.state(2, 0), Some(MemberState::Alive));
        let sent = good.send(&Note(2, Bytes::new())).expect("it is a member, and may speak");
        assert_eq!(timeout(SOON, sent).await.expect("in time"), Ok(()));
    });
}
