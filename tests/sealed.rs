//! Keys, labels and seals of whole clusters: who meets, who does not and can read why, and how a running cluster
//! is taken from one to another.

use std::{cell::RefCell, rc::Rc, time::Duration};

use actix::{Actor, Context, Handler};
use actix_memberlist::{
    Cluster, ClusterBuilder, Config, JoinError, Key, Keyring, MemberState, Refusal, Sealing, UserBytes,
};
use bytes::Bytes;
use memberlist_tests::{World, addr, log::Log, paused};

fn key(n: u8) -> Key {
    Key::from_bytes(&[n; 32]).expect("long enough")
}

/// Of a world in which everybody has the key 1.
fn with_key(world: &World, i: usize, n: u8) -> ClusterBuilder {
    world.builder(i).key(key(n))
}

async fn sealed(seed: u64, n: usize) -> World {
    let mut world = World::new(seed, Config::lan());
    for i in 0..n {
        let node = with_key(&world, i, 1).start().await.expect("it starts");
        world.nodes.push(node);
    }
    for i in 1..n {
        world.nodes[i].join(&[&addr(0).to_string()]).await.expect("it joins");
    }
    assert!(agree(&world, n).await, "{}", world.disagreements(n));
    world
}

async fn agree(world: &World, n: usize) -> bool {
    world
        .wait_until(Duration::from_secs(60), |w| (0..n).all(|i| w.all_hold(0..n, i, MemberState::Alive)))
        .await
        .is_some()
}

fn refused(joined: Result<actix_memberlist::Joined, JoinError>) -> Option<Refusal> {
    match joined {
        Err(JoinError::Refused(refusal)) => Some(refusal),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_sealed_cluster_forms_and_nothing_of_it_can_be_read() {
    paused(async {
        let world = sealed(1, 5).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        for node in &world.nodes {
            let metrics = node.metrics();
            assert!(metrics.packets_received > 10 && metrics.packets_unsealed == 0);
            for reason in ["seal", "sealed", "unsealed", "replayed", "reflected", "unaddressed"] {
                assert_eq!(metrics.dropped[reason], 0, "{reason}");
            }
        }
    });
}

#[test]
fn who_has_another_key_or_label_or_none_is_refused_and_both_sides_can_read_why() {
    Log::of(|log| async move {
        let world = sealed(2, 3).await;
        let before = world.nodes[0].view().rev();
        let plain = |i: usize| world.builder(i).plaintext();
        let cases: [(ClusterBuilder, Refusal, &str); 4] = [
            (with_key(&world, 3, 2), Refusal::Key, "sealed"),
            (plain(4), Refusal::Key, "unsealed"),
            (with_key(&world, 5, 1).label("other"), Refusal::Label, "label"),
            (plain(6).label("other"), Refusal::Label, "label"),
        ];
        for (builder, why, reason) in cases {
            let stranger = builder.start().await.expect("it starts");
            let counted = |node: &Cluster| node.metrics().dropped[reason];
            let (here, there) = (counted(&world.nodes[0]), stranger.metrics().dropped["stream_refused"]);
            assert_eq!(
                refused(stranger.join(&[&addr(0).to_string()]).await),
                Some(why.clone()),
                "it came to us"
            );
            assert_eq!(counted(&world.nodes[0]), here + 1, "{reason}");
            assert_eq!(stranger.metrics().dropped["stream_refused"], there + 1);
            // The other way round, and in datagrams.
            let at = stranger.view().local().addr;
            let answer = refused(world.nodes[1].join(&[&at.to_string()]).await);
            let expected = if matches!(why, Refusal::Label) { Refusal::Label } else { Refusal::Key };
            assert_eq!(answer, Some(expected), "we came to it");
            assert!(world.nodes[1].ping("stranger", at).await.is_err());
            assert!(stranger.ping("n000", addr(0)).await.is_err());
            assert_eq!(stranger.view().all().count(), 1);
            stranger.shutdown().await;
        }
        assert_eq!(world.nodes[0].view().rev(), before, "nothing has changed");
        for hint in ["given the same keys", "gossip_verify_outgoing", "given the same label"] {
            assert!(!log.with(hint).is_empty(), "{hint}: {:?}", log.lines());
        }
        assert!(log.with("0101010101").is_empty() && log.with("0202020202").is_empty());
    });
}

#[test]
fn bytes_for_an_address_reach_the_run_that_is_there_whatever_step_of_sealing_it_has_taken() {
    paused(async {
        let mut world = sealed(11, 2).await;
        // This one is no member of anything.
        let node = with_key(&world, 2, 1).start().await.expect("it starts");
        world.nodes.push(node);
        let sender = &world.nodes[0];
        for (i, node) in world.nodes.iter().enumerate().skip(1) {
            let ear = Ear::default();
            let heard = ear.0.clone();
            node.serve_bytes(ear.start().recipient()).expect("it runs").detach();
            let mut sent = Vec::new();
            for sealing in [Sealing::Required, Sealing::Outgoing, Sealing::Off] {
                node.set_sealing(sealing);
                sender.set_sealing(sealing.max(Sealing::Outgoing));
                sent.push(Bytes::from(format!("{i} {sealing:?}")));
                sender.send_to_address(addr(i), sent[sent.len() - 1].clone()).expect("it is taken");
                let arrived = |_: &World| heard.borrow().len() == sent.len();
                world.wait_until(Duration::from_secs(5), arrived).await.expect("it arrives");
            }
            assert_eq!(*heard.borrow(), sent);
        }
        // Where nobody is it is lost, and counted.
        sender.send_to_address(addr(9), Bytes::from_static(b"x")).expect("it is taken");
        let counted = |w: &World| w.nodes[0].metrics().dropped["nobody_there"] == 1;
        world.wait_until(Duration::from_secs(5), counted).await.expect("it is counted");
    });
}

#[test]
fn what_goes_over_streams_is_compressed_where_it_pays() {
    paused(async {
        let mut sizes = Vec::new();
        for compress_streams in [false, true] {
            let mut world = World::new(3, Config { compress_streams, ..Config::lan() });
            world.start(2).await;
            for node in &world.nodes {
                node.set_meta(vec![7; 500].into()).await.expect("it fits");
            }
            world.nodes[1].join(&[&addr(0).to_string()]).await.expect("it joins");
            assert!(agree(&world, 2).await);
            sizes.push(world.nodes[1].metrics().stream_bytes_sent);
        }
        assert!(sizes[1] + 300 < sizes[0], "{sizes:?}");
    });
}

/// Keeps what is sent to it.
#[derive(Default)]
struct Ear(Rc<RefCell<Vec<Bytes>>>);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, m: UserBytes, _: &mut Context<Self>) {
        self.0.borrow_mut().push(m.bytes);
    }
}

#[test]
fn what_is_compressed_arrives_whatever_its_length() {
    paused(async {
        for with_seals in [false, true] {
            let mut world = World::new(13, Config { max_ordered_size: 1024, ..Config::lan() });
            for i in 0..2 {
                let builder = world.builder(i);
                let builder = if with_seals { builder.key(key(1)) } else { builder };
                world.nodes.push(builder.start().await.expect("it starts"));
            }
            world.nodes[1].join(&[&addr(0).to_string()]).await.expect("it joins");
            world.nodes[0].serve_bytes(Ear::default().start().recipient()).expect("the first").detach();
            let peer = world.nodes[1].peers().into_iter().next().expect("it has joined");
            for len in [17_000, 40_000, 64 << 10, 70_000, 1 << 20, 20 << 20] {
                let text: Vec<u8> = (0..len).map(|i| b"a member, "[i % 10] ^ (i / 500) as u8 & 3).collect();
                let before = world.nodes[1].metrics().stream_bytes_sent;
                let sent = peer.send_bytes(text.into()).expect("there is room").await;
                assert!(sent.is_ok(), "{len}: {sent:?}");
                assert!(world.nodes[1].metrics().stream_bytes_sent - before < len as u64 / 2);
            }
            assert_eq!(world.nodes[0].metrics().dropped["stream_timeout"], 0);
        }
    });
}

#[test]
fn a_cluster_is_taken_to_another_key() {
    paused(async {
        let world = sealed(4, 5).await;
        let ring = world.nodes[2].keyring().expect("it has one");
        let report =
            ring.rotate_cluster(&world.nodes[2], key(9), Duration::from_secs(20)).await.expect("all follow");
        assert_eq!((report.step, report.members, report.acknowledged), ("remove", 5, 5));
        for node in &world.nodes {
            assert_eq!(node.keyring().expect("it has one").list(), [key(9)]);
        }
        assert!(agree(&world, 5).await);
    });
}

#[test]
fn a_cluster_is_taken_to_another_label() {
    paused(async {
        let world = sealed(5, 5).await;
        let report =
            world.nodes[1].relabel_cluster("new", Duration::from_secs(20)).await.expect("all follow");
        assert_eq!((report.step, report.members, report.acknowledged), ("hear only", 5, 5));
        for node in &world.nodes {
            assert_eq!(node.labels(), ("new".to_owned(), vec![]));
        }
        assert!(agree(&world, 5).await);
    });
}

#[test]
fn a_running_cluster_is_taken_from_plain_to_sealed() {
    paused(async {
        let config = Config { gossip_verify_incoming: false, gossip_verify_outgoing: false, ..Config::lan() };
        let mut world = World::new(6, config);
        for i in 0..5 {
            let node = with_key(&world, i, 1).start().await.expect("it starts");
            world.nodes.push(node);
        }
        for i in 1..5 {
            world.nodes[i].join(&[&addr(0).to_string()]).await.expect("it joins");
        }
        assert!(agree(&world, 5).await);
        assert_eq!(world.nodes[3].sealing(), Sealing::Off);
        let report = world.nodes[3].seal_cluster(Duration::from_secs(20)).await.expect("all follow");
        assert_eq!((report.step, report.members, report.acknowledged), ("require seals", 5, 5));
        assert!(world.nodes.iter().all(|node| node.sealing() == Sealing::Required));
        let unsealed =
            |world: &World| world.nodes.iter().map(|node| node.metrics().packets_unsealed).sum::<u64>();
        let before = unsealed(&world);
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert!(agree(&world, 5).await);
        assert_eq!(unsealed(&world), before);
    });
}

#[test]
fn a_newcomer_with_the_old_key_is_told_of_the_new_one_while_both_open() {
    paused(async {
        let mut world = sealed(7, 3).await;
        let ring = world.nodes[0].keyring().expect("it has one");
        ring.rotate_cluster(&world.nodes[0], key(2), Duration::from_secs(20)).await.expect("all follow");
        for node in &world.nodes {
            // As if not all had forgotten it so far.
            node.keyring().expect("it has one").install(key(1)).expect("there is room");
        }
        let newcomer = with_key(&world, 3, 1).start().await.expect("it starts");
        newcomer.join(&[&addr(1).to_string()]).await.expect("it joins");
        world.nodes.push(newcomer);
        assert!(agree(&world, 4).await, "{}", world.disagreements(4));
        let primary = |node: &Cluster| node.keyring().expect("it has one").list()[0].clone();
        let told = |w: &World| primary(&w.nodes[3]) == key(2) && w.nodes[1].metrics().handed_over == 1;
        assert!(world.wait_until(Duration::from_secs(10), told).await.is_some());
    });
}

#[test]
fn a_key_that_was_installed_by_hand_never_travels_under_another_one() {
    paused(async {
        let world = sealed(10, 3).await;
        for node in &world.nodes {
            node.keyring().expect("it has one").install(key(2)).expect("there is room");
        }
        let ring = world.nodes[0].keyring().expect("it has one");
        // Whoever has the old key joins while both open.
        for used in [false, true] {
            if used {
                for node in &world.nodes[..3] {
                    node.keyring().expect("it has one").use_key(&key(2)).expect("it is there");
                }
            }
            let i = 3 + usize::from(used);
            let newcomer = with_key(&world, i, 1).start().await.expect("it starts");
            newcomer.join(&[&addr(1).to_string()]).await.expect("it joins");
            tokio::time::sleep(Duration::from_secs(5)).await;
            assert_eq!(newcomer.keyring().expect("it has one").list(), [key(1)]);
            newcomer.leave(Duration::from_secs(5)).await.expect("it runs");
            newcomer.shutdown().await;
        }
        assert!(world.nodes.iter().all(|node| node.metrics().handed_over == 0));
        let report = ring.rotate_cluster(&world.nodes[0], key(2), Duration::from_secs(20)).await;
        assert_eq!(report.expect("all follow").acknowledged, 3);
        assert!(world.nodes.iter().all(|node| node.keyring().expect("it has one").list() == [key(2)]));
        // To use it and to forget the other, but not to install it.
        assert!(world.nodes[1..].iter().all(|node| node.metrics().orders == 2));
    });
}

#[test]
fn a_change_does_not_give_a_key_that_was_installed_by_hand_to_a_member_without_it() {
    paused(async {
        let mut world = sealed(12, 3).await;
        for node in &world.nodes {
            node.keyring().expect("it has one").install(key(2)).expect("there is room");
        }
        let thief = with_key(&world, 3, 1).start().await.expect("it starts");
        thief.join(&[&addr(1).to_string()]).await.expect("it joins");
        world.nodes.push(thief);
        assert!(agree(&world, 4).await, "{}", world.disagreements(4));
        let ring = world.nodes[0].keyring().expect("it has one");
        let report = ring.rotate_cluster(&world.nodes[0], key(2), Duration::from_secs(5)).await;
        let report = report.expect_err("one does not have it");
        assert_eq!((report.step, report.members, report.acknowledged), ("install", 4, 3));
        assert!(report.to_string().contains("installed by hand"), "{report}");
        assert_eq!(world.nodes[3].keyring().expect("it has one").list(), [key(1)]);
    });
}

#[test]
fn keys_are_added_from_many_threads_at_once_and_none_is_lost() {
    let ring = Keyring::new(key(1));
    std::thread::scope(|scope| {
        for n in 2..=15 {
            let ring = &ring;
            scope.spawn(move || {
                for _ in 0..100 {
                    ring.install(key(n)).expect("there is room");
                    ring.use_key(&key(n)).expect("it is there");
                    assert!(ring.list().contains(&key(n)));
                    ring.install(key(1)).expect("it is there already");
                }
            });
        }
    });
    let mut ids: Vec<_> = ring.list().iter().map(Key::id).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), 15);
}

#[test]
fn weak_point_40_what_is_not_sealed_is_counted_until_nothing_of_it_comes_and_then_refused() {
    paused(async {
        let config = Config { gossip_verify_incoming: false, gossip_verify_outgoing: false, ..Config::lan() };
        let mut world = World::new(12, config);
        for i in 0..3 {
            let node = with_key(&world, i, 1).start().await.expect("it starts");
            world.nodes.push(node);
        }
        for i in 1..3 {
            world.nodes[i].join(&[&addr(0).to_string()]).await.expect("it joins");
        }
        assert!(agree(&world, 3).await);
        let unsealed = |world: &World, i: usize| {
            let metrics = world.nodes[i].metrics();
            metrics.packets_unsealed + metrics.streams_unsealed
        };
        // One goes ahead, and sees who has not.
        for node in &world.nodes[..2] {
            node.set_sealing(Sealing::Outgoing);
        }
        let minute = Duration::from_secs(60);
        let streams =
            |world: &World| world.nodes[..2].iter().map(|n| n.metrics().streams_unsealed).sum::<u64>();
        let before = (unsealed(&world, 0), streams(&world));
        tokio::time::sleep(minute).await;
        assert!(unsealed(&world, 0) > before.0 && streams(&world) > before.1, "the third is still to follow");
        world.nodes[2].set_sealing(Sealing::Outgoing);
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = [0, 1, 2].map(|i| unsealed(&world, i));
        tokio::time::sleep(minute).await;
        assert_eq!([0, 1, 2].map(|i| unsealed(&world, i)), before, "now it can be seen that all have");
        for node in &world.nodes {
            node.set_sealing(Sealing::Required);
        }
        let plain = world.builder(3).start().await.expect("it starts");
        assert_eq!(refused(plain.join(&[&addr(0).to_string()]).await), Some(Refusal::Key));
        assert!(plain.ping("n000", addr(0)).await.is_err());
        let metrics = world.nodes[0].metrics();
        assert_eq!((unsealed(&world, 0), metrics.dropped["unsealed"]), (before[0], 2));
        assert!(agree(&world, 3).await);
    });
}

#[test]
fn a_change_that_is_repeated_finds_that_it_has_been_made() {
    paused(async {
        let world = sealed(11, 3).await;
        let (node, within) = (&world.nodes[1], Duration::from_secs(20));
        let ring = node.keyring().expect("it has one");
        let changes = async {
            for _ in 0..2 {
                ring.rotate_cluster(node, key(2), within).await.expect("all follow");
                node.relabel_cluster("new", within).await.expect("all follow");
                node.seal_cluster(within).await.expect("all follow");
            }
        };
        // Nor does anybody seal less meanwhile.
        let watch = async {
            for _ in 0_u64.. {
                assert!(world.nodes.iter().all(|node| node.sealing() == Sealing::Required));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            () = changes => {}
            () = watch => unreachable!("it does not end"),
        }
        assert!(agree(&world, 3).await);
    });
}

#[test]
fn a_step_that_one_member_cannot_follow_ends_the_change_with_its_name() {
    paused(async {
        let world = sealed(8, 4).await;
        world.network.partition(&[addr(3)], &[addr(0), addr(1), addr(2)]);
        let ring = world.nodes[0].keyring().expect("it has one");
        let report = ring
            .rotate_cluster(&world.nodes[0], key(9), Duration::from_secs(8))
            .await
            .expect_err("one is away");
        assert_eq!((report.step, report.members, report.acknowledged), ("install", 4, 3));
        let names: Vec<_> = report.failed.keys().map(|id| id.name().to_owned()).collect();
        assert_eq!(names, [world.nodes[3].view().local().name()]);
        assert_eq!(world.nodes[3].keyring().expect("it has one").list(), [key(1)]);
    });
}

#[test]
fn a_member_that_is_started_anew_while_a_step_waits_for_another_is_taken_along() {
    paused(async {
        let mut world = sealed(14, 4).await;
        let [leader, late, other, anew] = [0, 1, 2, 3].map(addr);
        world.network.partition(&[late], &[leader, other, anew]);
        let node = world.nodes[0].clone();
        let ring = node.keyring().expect("it has one");
        let has_new = |node: &Cluster| node.keyring().expect("it has one").list().contains(&key(2));
        let change = async { ring.rotate_cluster(&node, key(2), Duration::from_secs(60)).await };
        let restart = async {
            let both = |w: &World| has_new(&w.nodes[2]) && has_new(&w.nodes[3]);
            world.wait_until(Duration::from_secs(5), both).await.expect("those in reach follow");
            // Whoever leads does not hear at once that one of them is back without what it was given.
            world.network.heal();
            world.network.partition(&[leader, late], &[other, anew]);
            world.kill(3).await;
            world.nodes[3] = with_key(&world, 3, 1).seed(1000).start().await.expect("it starts");
            world.nodes[3].join(&[&other.to_string()]).await.expect("it joins");
            let followed = |w: &World| has_new(&w.nodes[1]);
            world.wait_until(Duration::from_secs(5), followed).await.expect("it is in reach again");
            tokio::time::sleep(Duration::from_secs(1)).await;
            world.network.heal();
        };
        let (report, ()) = tokio::join!(change, restart);
        let report = report.unwrap_or_else(|report| panic!("{report}"));
        assert_eq!((report.members, report.acknowledged), (4, 4));
        assert!(agree(&world, 4).await, "{}", world.disagreements(4));
        assert!(world.nodes.iter().all(|node| node.keyring().expect("it has one").list() == [key(2)]));
    });
}

#[test]
fn one_ring_may_be_shared_and_is_changed_for_all_who_share_it() {
    paused(async {
        let mut world = World::new(9, Config::lan());
        let ring = Keyring::new(key(1));
        for i in 0..2 {
            let node = world.builder(i).keyring(ring.clone()).start().await.expect("it starts");
            world.nodes.push(node);
        }
        ring.install(key(2)).expect("there is room");
        ring.use_key(&key(2)).expect("it is there");
        world.nodes[1].join(&[&addr(0).to_string()]).await.expect("it joins");
        assert!(agree(&world, 2).await);
    });
}
