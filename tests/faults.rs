//! Faults that a test sets between nodes, on whatever network these are: each does what it says, and the cluster bears it.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{Actor, Context, Handler, Message};
use actix_memberlist::{
    Cause, Cluster, Config, MemberState, NotSent, PeerMessage, Until, Upload,
    network::{
        Network, SystemNetwork,
        faulty::{Everyone, Faulty, NoSuchPeer},
        memory::MemoryNetwork,
    },
};
use memberlist_tests::{World, addr, paused};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

#[path = "faults/bare.rs"]
mod bare;

/// Time for anything that does happen, on a slow machine and in real time.
const SOON: Duration = Duration::from_secs(60);

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Note(u64);

impl PeerMessage for Note {
    const KIND: &'static str = "note/1";
}

/// Writes down what it hears.
#[derive(Default)]
struct Ear(Rc<RefCell<Vec<u64>>>);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<Note> for Ear {
    type Result = ();
    fn handle(&mut self, note: Note, _: &mut Context<Self>) {
        self.0.borrow_mut().push(note.0);
    }
}

/// A message with a body behind it.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Parcel(u64);

impl PeerMessage for Parcel {
    const KIND: &'static str = "parcel/1";
}

impl Handler<Upload<Parcel>> for Ear {
    type Result = ();
    fn handle(&mut self, parcel: Upload<Parcel>, _: &mut Context<Self>) {
        self.0.borrow_mut().push(parcel.head.0);
    }
}

fn listen(node: &Cluster) -> Rc<RefCell<Vec<u64>>> {
    let heard = Rc::<RefCell<Vec<u64>>>::default();
    node.serve::<Note>(Ear(heard.clone()).start().recipient()).unwrap().detach();
    heard
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Quick to notice who is gone, and to try again.
fn quick() -> Config {
    Config {
        probe_interval: ms(200),
        probe_timeout: ms(100),
        suspicion_mult: 1,
        suspicion_max_timeout_mult: 1,
        heal_interval: ms(500),
        tcp_timeout: ms(500),
        ..Config::local()
    }
}

async fn real(name: &str) -> Cluster {
    let addr = "127.0.0.1:0".parse().unwrap();
    Cluster::builder(name).config(quick()).bind(addr).start().await.unwrap()
}

/// Waits until a node holds another one for this.
async fn holds(node: &Cluster, name: &str, state: MemberState) {
    let seen = async {
        while node.view().get(name).map(|member| member.state) != Some(state) {
            sleep(ms(20)).await;
        }
    };
    let seen = timeout(SOON, seen).await;
    assert!(seen.is_ok(), "{name} is {:?}, not {state}", node.view().get(name).map(|m| m.state));
}

#[test]
fn two_nodes_on_sockets_that_one_handle_cuts_lose_each_other_and_meet_again_when_it_mends() {
    actix::System::new().block_on(async {
        let (a, b) = (real("a").await, real("b").await);
        b.join(&[&a.view().local().addr.to_string()]).await.unwrap();
        assert!(a.ready(Until::Members(2), SOON).await.unwrap());
        let id = b.view().local().id.clone();

        a.faults().cut(&id).unwrap();
        holds(&a, "b", MemberState::Dead).await;
        holds(&b, "a", MemberState::Dead).await;
        assert!(a.faults().stats().cut > 0);
        // Neither gets through, whoever dials.
        assert!(b.join(&[&a.view().local().addr.to_string()]).await.is_err());
        assert!(a.join(&[&b.view().local().addr.to_string()]).await.is_err());
        assert_eq!(a.view().get("b").unwrap().state, MemberState::Dead, "a word came through");

        a.faults().mend(&id).unwrap();
        holds(&a, "b", MemberState::Alive).await;
        holds(&b, "a", MemberState::Alive).await;
        a.shutdown().await;
        b.shutdown().await;
    });
}

#[test]
fn a_stranger_that_is_cut_off_by_its_address_joins_when_it_is_mended_and_nothing_of_it_is_known_before() {
    actix::System::new().block_on(async {
        let (a, b) = (real("a").await, real("b").await);
        let (at, of) = (a.view().local().addr.to_string(), b.view().local().addr);
        a.faults().from(&of).unwrap().cut();
        assert!(b.join(&[&at]).await.is_err());
        assert!(a.view().get("b").is_none(), "its state was taken in");
        a.faults().mend(&of).unwrap();
        b.join(&[&at]).await.unwrap();
        holds(&a, "b", MemberState::Alive).await;
        a.shutdown().await;
        b.shutdown().await;
    });
}

#[test]
fn who_is_heard_and_not_answered_is_known_and_knows_nobody() {
    actix::System::new().block_on(async {
        let (a, b) = (real("a").await, real("b").await);
        let (at, of) = (a.view().local().addr.to_string(), b.view().local().addr);
        a.faults().to(&of).unwrap().cut();
        assert!(b.join(&[&at]).await.is_err(), "an answer came through");
        // What b says of itself is taken in, as by a member that does not answer.
        assert!(a.view().get("b").is_some());
        assert!(b.view().get("a").is_none());
        a.faults().mend(&of).unwrap();
        holds(&b, "a", MemberState::Alive).await;
        a.shutdown().await;
        b.shutdown().await;
    });
}

#[test]
fn two_of_three_that_are_cut_off_from_each_other_stay_members_and_what_they_send_waits() {
    paused(async {
        let world = World::cluster(1, Config::lan(), 3).await;
        let (a, b) = (&world.nodes[0], &world.nodes[1]);
        let (at_a, at_b) = (listen(a), listen(b));
        let to = |from: &Cluster, to: &Cluster| from.peer(&to.view().local().id).unwrap();
        // Links in both directions are up, and the cut finds them whichever side has dialled.
        to(a, b).send(&Note(0)).unwrap().await.unwrap();
        to(b, a).send(&Note(0)).unwrap().await.unwrap();
        a.faults().cut(b).unwrap();
        let sent = [to(a, b).send(&Note(1)).unwrap(), to(b, a).send(&Note(1)).unwrap()];
        let mut sent = futures_util::future::join_all(sent);
        assert!(timeout(Duration::from_secs(8), &mut sent).await.is_err(), "a word came through");
        assert!(world.all_hold(0..3, 0, MemberState::Alive) && world.all_hold(0..3, 1, MemberState::Alive));
        assert_eq!((at_a.borrow().len(), at_b.borrow().len()), (1, 1));
        a.faults().mend(b).unwrap();
        assert_eq!(timeout(SOON, sent).await.unwrap(), [Ok(()), Ok(())]);
        sleep(ms(10)).await;
        assert_eq!((&*at_a.borrow(), &*at_b.borrow()), (&vec![0, 1], &vec![0, 1]));
    });
}

#[test]
fn messages_to_a_paused_peer_wait_for_it_in_order_and_it_stays_a_member() {
    paused(async {
        let world = World::cluster(2, Config::lan(), 2).await;
        let (a, b) = (&world.nodes[0], &world.nodes[1]);
        let (at_a, at_b) = (listen(a), listen(b));
        let (to_b, to_a) = (a.peer(&b.view().local().id).unwrap(), b.peer(&a.view().local().id).unwrap());
        to_b.send(&Note(0)).unwrap().await.unwrap();
        to_a.send(&Note(0)).unwrap().await.unwrap();
        a.faults().pause(&to_b).unwrap();
        let mut sent: Vec<_> = (1..100).map(|n| to_b.send(&Note(n)).unwrap()).collect();
        sent.push(to_a.send(&Note(1)).unwrap());
        sleep(Duration::from_secs(20)).await;
        assert!(world.all_hold(0..2, 0, MemberState::Alive) && world.all_hold(0..2, 1, MemberState::Alive));
        assert_eq!((at_a.borrow().len(), at_b.borrow().len(), to_b.status().queued), (1, 1, 99));
        a.faults().resume(&to_b).unwrap();
        let sent = timeout(SOON, futures_util::future::join_all(sent)).await.unwrap();
        assert!(sent.iter().all(Result::is_ok), "{sent:?}");
        sleep(ms(10)).await;
        assert_eq!((at_a.borrow().len(), &*at_b.borrow()), (2, &(0..100).collect::<Vec<_>>()));
    });
}

#[test]
fn whatever_a_peer_dials_for_is_its_own_once_it_has_said_who_it_is() {
    paused(async {
        let world = World::cluster(7, Config::lan(), 2).await;
        let (a, b) = (&world.nodes[0], &world.nodes[1]);
        let heard = Rc::<RefCell<Vec<u64>>>::default();
        let ear = Ear(heard.clone()).start();
        a.serve::<Note>(ear.clone().recipient()).unwrap().detach();
        a.serve_upload::<Parcel>(ear.recipient()).unwrap().detach();
        let to_a = b.peer(&a.view().local().id).unwrap();
        // Its dials come through, and nothing of what it says.
        a.faults().from(b).unwrap().stall();
        let note = to_a.send(&Note(1)).unwrap();
        let parcel = to_a.upload(&Parcel(2), futures_util::stream::iter([Ok(vec![0; 100].into())]));
        let both = async { tokio::join!(note, parcel) };
        let mut both = std::pin::pin!(both);
        assert!(timeout(Duration::from_secs(5), &mut both).await.is_err());
        assert!(heard.borrow().is_empty());
        a.faults().mend(b).unwrap();
        assert_eq!(timeout(SOON, both).await.unwrap(), (Ok(()), Ok(())));
        sleep(ms(10)).await;
        heard.borrow_mut().sort_unstable();
        assert_eq!(*heard.borrow(), [1, 2]);
    });
}

#[test]
fn a_pause_beyond_the_window_of_links_is_an_outage_and_each_message_has_its_outcome() {
    paused(async {
        let world = World::cluster(3, Config::lan(), 2).await;
        let (a, b) = (&world.nodes[0], &world.nodes[1]);
        let heard = listen(b);
        let to_b = a.peer(&b.view().local().id).unwrap();
        to_b.send(&Note(0)).unwrap().await.unwrap();
        a.faults().pause(b).unwrap();
        // What is sent at once is on its way in the connection; when that is given up, later ones wait for another.
        let under_way = to_b.send(&Note(1)).unwrap();
        sleep(Duration::from_secs(25)).await;
        let waiting = to_b.send(&Note(2)).unwrap();
        let outcomes = timeout(SOON, async { (under_way.await, waiting.await) }).await.unwrap();
        assert_eq!(outcomes, (Err(NotSent::Unknown(Cause::LinkLost)), Err(NotSent::Never(Cause::LinkLost))));
        a.faults().resume(b).unwrap();
        timeout(SOON, to_b.send(&Note(3)).unwrap()).await.unwrap().unwrap();
        sleep(ms(10)).await;
        let heard = heard.borrow();
        assert!(*heard == [0, 3] || *heard == [0, 1, 3], "{heard:?}");
        assert_eq!(world.state(0, 1), Some(MemberState::Alive));
    });
}

#[test]
fn a_fault_belongs_to_an_address_and_is_mended_by_the_name_of_a_run_that_is_gone() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 3).await;
        let (a, b) = (&world.nodes[0], &world.nodes[1]);
        assert_eq!(a.faults().cut("nobody"), Err(NoSuchPeer("\"nobody\"".into())));
        let old = b.view().local().id.clone();
        a.faults().cut(&old).unwrap();
        b.shutdown().await;
        let b = world.builder(1).seed(99).start().await.unwrap();
        let heard = listen(&b);
        b.join(&["10.0.0.3:7946"]).await.unwrap();
        let new = b.view().local().id.clone();
        let met = |w: &World| w.nodes[0].peer(&new).is_some();
        world.wait_until(SOON, met).await.expect("the third node tells of it");
        let mut sent = a.peer(&new).unwrap().send(&Note(1)).unwrap();
        assert!(timeout(Duration::from_secs(5), &mut sent).await.is_err());
        a.faults().mend(&old).unwrap();
        timeout(SOON, sent).await.unwrap().unwrap();
        sleep(ms(10)).await;
        assert_eq!(*heard.borrow(), [1]);
        b.shutdown().await;
    });
}

#[test]
fn a_network_of_ones_own_with_faults_is_the_one_that_its_node_has() {
    paused(async {
        let network = MemoryNetwork::new(5);
        let world = World::new(5, Config::lan());
        let mine = Faulty::new(network.clone(), 5);
        let a = world.builder(0).network(mine.clone()).start().await.unwrap();
        let b = world.builder(1).network(network).start().await.unwrap();
        mine.faults().cut(&addr(1)).unwrap();
        assert!(b.join(&["10.0.0.1:7946"]).await.is_err());
        a.faults().mend(&Everyone).unwrap();
        b.join(&["10.0.0.1:7946"]).await.unwrap();
        assert_eq!(Faulty::new(SystemNetwork, 1).host(), SystemNetwork.host());
        a.shutdown().await;
        b.shutdown().await;
    });
}

#[test]
fn a_cluster_bears_loss_delay_and_doubling_between_all_and_the_same_seed_is_the_same_run() {
    let run = || {
        paused(async {
            let world = World::cluster(6, Config::lan(), 5).await;
            for node in &world.nodes {
                node.faults().with(&Everyone).unwrap().loss(0.05).duplicate(0.1).delay(ms(1)..ms(30));
            }
            let heard = listen(&world.nodes[4]);
            let to = world.nodes[0].peer(&world.nodes[4].view().local().id).unwrap();
            let sent: Vec<_> = (0..200).map(|n| to.send(&Note(n)).unwrap()).collect();
            let start = Instant::now();
            let sent = timeout(SOON, futures_util::future::join_all(sent)).await.unwrap();
            assert!(sent.iter().all(Result::is_ok));
            sleep(SOON - start.elapsed()).await;
            assert_eq!(*heard.borrow(), (0..200).collect::<Vec<_>>());
            let dead: u64 = world.nodes.iter().map(|node| node.metrics().dead_messages).sum();
            assert_eq!(dead, 0, "{}", world.disagreements(5));
            (world.trace.hash(), world.nodes[0].faults().stats())
        })
    };
    let (first, second) = (run(), run());
    assert!(first.1.lost > 0 && first.1.delayed > 0 && first.1.duplicated > 0, "{:?}", first.1);
    assert_eq!(first, second);
}
