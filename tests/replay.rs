//! Whatever was said in a live, sealed cluster is recorded, and said again: to the same nodes, to others, to those
//! that were started anew, from elsewhere, backwards, back to whoever said it, with bits flipped, and by
//! neighbours with the same key or the same label. Nothing comes of it.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, rc::Rc, time::Duration};

use actix::{Actor, Context, Handler};
use actix_memberlist::{
    Broadcast, Cluster, ClusterBuilder, Config, JoinError, Key, MemberEvent, MemberState, Replay, Sealing,
    UserBytes,
    network::{
        Endpoint, Network,
        memory::{Tap, TappedDatagram, TappedStream},
    },
};
use bytes::Bytes;
use memberlist_tests::{World, addr, paused};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{sleep, timeout},
};

/// Members that are there at the end. Beside them one has died.
const NODES: usize = 5;

/// The one that dies.
const VICTIM: usize = 5;

/// What [`Cluster::send_to_address`] has sent to whoever is there.
const TO_ANYBODY: &[u8] = b"to whoever is there";

/// Datagrams that are played at once, fewer than a node's queue holds.
const AT_ONCE: usize = 200;

/// Reasons to drop what is played.
const REASONS: [&str; 16] = [
    "seal",
    "sealed",
    "unsealed",
    "label",
    "replayed",
    "reflected",
    "unaddressed",
    "flags",
    "truncated",
    "foreign",
    "foreign_memberlist",
    "wire_version",
    "too_long",
    "kind",
    "stream_broken",
    "stream_timeout",
];

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn key(n: u8) -> Key {
    Key::from_bytes(&[n; 32]).expect("long enough")
}

fn outsider(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 9, 9, n], 7946))
}

type Heard = Rc<RefCell<Vec<UserBytes>>>;

/// Keeps users' bytes and members' events.
struct Ear {
    bytes: Heard,
    events: Rc<RefCell<Vec<MemberEvent>>>,
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, m: UserBytes, _: &mut Context<Self>) {
        self.bytes.borrow_mut().push(m);
    }
}

impl Handler<MemberEvent> for Ear {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        self.events.borrow_mut().push(event);
    }
}

/// A node, and what reaches its users.
struct Seat {
    node: Cluster,
    bytes: Heard,
    events: Rc<RefCell<Vec<MemberEvent>>>,
}

impl Seat {
    async fn at(builder: ClusterBuilder) -> Self {
        let node = builder.start().await.expect("it starts");
        let (bytes, events) = (Heard::default(), Rc::<RefCell<Vec<MemberEvent>>>::default());
        let ear = Ear { bytes: bytes.clone(), events: events.clone() }.start();
        node.serve_bytes(ear.clone().recipient()).expect("it runs").detach();
        node.subscribe(ear.recipient(), Replay::None).expect("it runs").detach();
        Self { node, bytes, events }
    }

    /// All that nobody outside may change.
    fn stands(&self) -> String {
        let (view, metrics) = (self.node.view(), self.node.metrics());
        let members: Vec<_> = view
            .all()
            .map(|m| (m.id.clone(), m.state, m.incarnation, m.addr, m.meta.clone(), m.tags.clone()))
            .collect();
        let bytes: Vec<_> = self.bytes.borrow().iter().map(|m| m.bytes.len()).collect();
        let keys: Vec<_> = self.node.keyring().expect("it has one").list().iter().map(Key::id).collect();
        format!(
            "{} {members:?} events {:?} bytes {bytes:?} health {} {keys:?} {:?} {:?} orders {} {} refuted {}",
            view.rev(),
            self.events.borrow().len(),
            self.node.health(),
            self.node.labels(),
            self.node.sealing(),
            metrics.orders,
            metrics.handed_over,
            metrics.refutations,
        )
    }
}

struct Stage {
    world: World,
    seats: Vec<Seat>,
    tap: Tap,
    attackers: Vec<std::sync::Arc<dyn Endpoint>>,
}

/// A builder of the cluster that is attacked, or of a neighbour's.
fn builder(world: &World, i: usize, label: &str, n: u8) -> ClusterBuilder {
    world.builder(i).label(label).key(key(n))
}

impl Stage {
    /// A cluster that has said all that there is to say.
    async fn set(seed: u64) -> Self {
        let config = Config {
            push_pull_interval: secs(3),
            compress_streams: seed.is_multiple_of(2),
            compress_packets: seed.is_multiple_of(2),
            ..Config::lan()
        };
        let world = World::new(seed, config);
        let tap = Tap::default();
        world.network.tap(tap.clone());
        let mut attackers = Vec::new();
        for n in 1..=2 {
            attackers.push(world.network.bind(outsider(n)).await.expect("a free address"));
        }
        let mut stage = Self { world, seats: Vec::new(), tap, attackers };
        for i in 0..=VICTIM {
            let builder = builder(&stage.world, i, "ours", 1).meta(Bytes::from(format!("meta of {i}")));
            stage.seats.push(Seat::at(builder).await);
            if i > 0 {
                stage.seats[i].node.join(&["10.0.0.1"]).await.expect("it joins");
            }
        }
        let whole = |w: &World| {
            let _ = w;
            stage.seats.iter().all(|seat| seat.node.view().alive_count() == NODES + 1)
        };
        stage.world.wait_until(secs(30), whole).await.expect("it forms");
        stage.live().await;
        stage
    }

    fn whole(&self) -> bool {
        self.seats[..NODES].iter().all(|seat| seat.node.view().alive_count() == NODES)
    }

    async fn until_whole(&self) {
        self.world.wait_until(secs(60), |_| self.whole()).await.expect("all are there again");
    }

    async fn live(&self) {
        let (seats, network) = (&self.seats, &self.world.network);
        // Suspicions, and refutations.
        let others: Vec<_> = (0..=VICTIM).filter(|i| *i != 2).map(addr).collect();
        network.partition(&[addr(2)], &others);
        let suspected =
            |_: &World| seats[0].node.view().get("n002").is_some_and(|m| m.state == MemberState::Suspect);
        self.world.wait_until(secs(20), suspected).await.expect("it is suspected");
        network.heal();
        let six = |_: &World| seats.iter().all(|seat| seat.node.view().alive_count() == NODES + 1);
        self.world.wait_until(secs(60), six).await.expect("it is refuted");
        // Users, in each way that there is.
        let id = |i: usize| seats[i].node.view().local().id.clone();
        for (i, Seat { node, .. }) in seats[..NODES].iter().enumerate() {
            let to = (i + 1) % NODES;
            let peer = node.peer(&id(to)).expect("it is there");
            peer.cast_bytes(Bytes::from(format!("cast by {i}"))).expect("it is taken");
            peer.send_bytes(Bytes::from(format!("sent by {i}")))
                .expect("it is taken")
                .await
                .expect("it arrives");
            node.send_to_address(addr(to), Bytes::from_static(TO_ANYBODY)).expect("it is taken");
            node.broadcast_bytes(Broadcast::new(format!("broadcast by {i}"))).expect("it is taken");
            node.broadcast_bytes(Broadcast::new(vec![7; 50_000])).expect("it is taken");
            node.set_meta(Bytes::from(format!("other meta of {i}"))).await.expect("it fits");
            node.ping(&format!("n{to:03}"), addr(to)).await.expect("it answers");
        }
        // A death.
        seats[VICTIM].node.shutdown().await;
        let dead = |_: &World| {
            seats[..NODES]
                .iter()
                .all(|seat| seat.node.view().get("n005").is_some_and(|m| m.state == MemberState::Dead))
        };
        self.world.wait_until(secs(60), dead).await.expect("it is dead");
        let forced = seats[0].node.force_leave("n005").await;
        forced.expect("it is dead");
        sleep(secs(10)).await;
        // Orders of each kind, there and back.
        let leader = &seats[1].node;
        let ring = leader.keyring().expect("it has one");
        for n in [2, 1] {
            ring.rotate_cluster(leader, key(n), secs(30)).await.expect("all follow");
        }
        for label in ["others", "ours"] {
            leader.relabel_cluster(label, secs(30)).await.expect("all follow");
        }
        leader.seal_cluster(secs(30)).await.expect("all follow");
        sleep(secs(20)).await;
        self.until_whole().await;
    }

    fn stand(&self) -> Vec<String> {
        self.seats[..NODES].iter().map(Seat::stands).collect()
    }

    fn dropped(&self) -> BTreeMap<&'static str, u64> {
        let mut sum = BTreeMap::new();
        for seat in &self.seats[..NODES] {
            let dropped = seat.node.metrics().dropped;
            for reason in REASONS {
                *sum.entry(reason).or_default() += dropped[reason];
            }
        }
        sum
    }

    /// Plays datagrams, each of which is dropped for a reason.
    async fn play(&self, what: &str, datagrams: impl IntoIterator<Item = (SocketAddr, SocketAddr, Vec<u8>)>) {
        self.play_late(what, datagrams, 0).await;
    }

    /// The same, with so many of them that have not arrived before: they are late, and nothing comes of it.
    async fn play_late(
        &self,
        what: &str,
        datagrams: impl IntoIterator<Item = (SocketAddr, SocketAddr, Vec<u8>)>,
        late: u64,
    ) {
        let (before, stood) = (self.dropped(), self.stand());
        let received =
            || -> u64 { self.seats[..NODES].iter().map(|seat| seat.node.metrics().packets_received).sum() };
        let start = received();
        let mut played = 0;
        for (from, to, bytes) in datagrams {
            self.world.network.forge(&bytes, from, to).expect("it is taken");
            played += 1;
            if played % AT_ONCE == 0 {
                sleep(Duration::from_millis(50)).await;
            }
        }
        // Long enough for an accusation to be refuted, and for gossip.
        sleep(secs(5)).await;
        assert!(played > 0, "{what}: nothing was played");
        assert!(received() - start >= played as u64, "{what}: not all arrived");
        let after = self.dropped();
        let counted: BTreeMap<_, _> =
            after.iter().map(|(reason, n)| (*reason, n - before[reason])).filter(|(_, n)| *n > 0).collect();
        println!("{what}: {played} datagrams, dropped {counted:?}");
        let opened = played as u64 - counted.values().sum::<u64>();
        assert!(opened <= late, "{what}: {opened} of {played} were let in, {counted:?}");
        for (now, then) in self.stand().iter().zip(&stood) {
            assert_eq!(now, then, "{what}");
        }
    }

    /// Dials `to`, says these bytes at once, and listens until the other side ends it.
    async fn say(&self, to: SocketAddr, bytes: &[u8]) {
        let dialled = self.attackers[0].dial(to).await;
        let mut stream = dialled.expect("somebody is there");
        let _ = stream.write_all(bytes).await;
        let _ = stream.shutdown().await;
        let _ = timeout(secs(30), stream.read_to_end(&mut Vec::new())).await;
    }

    async fn say_all(&self, what: &str, streams: impl IntoIterator<Item = (SocketAddr, Vec<u8>)>) {
        let (before, stood) = (self.dropped(), self.stand());
        let mut played = 0;
        for (to, bytes) in streams {
            self.say(to, &bytes).await;
            played += 1;
        }
        sleep(secs(5)).await;
        let after = self.dropped();
        let counted: BTreeMap<_, _> =
            after.iter().map(|(reason, n)| (*reason, n - before[reason])).filter(|(_, n)| *n > 0).collect();
        println!("{what}: {played} streams, dropped {counted:?}");
        assert!(played > 0 && counted.values().sum::<u64>() >= played, "{what}: {played}, {counted:?}");
        for (now, then) in self.stand().iter().zip(&stood) {
            assert_eq!(now, then, "{what}");
        }
    }
}

/// Datagrams of the nodes that are still there.
fn datagrams(tap: &Tap) -> Vec<TappedDatagram> {
    let there: Vec<_> = (0..=VICTIM).map(addr).collect();
    let recorded: Vec<_> =
        tap.datagrams().into_iter().filter(|d| there.contains(&d.from) && there.contains(&d.to)).collect();
    assert!(recorded.len() > 500 && tap.missed() == 0, "{}", recorded.len());
    recorded
}

fn streams(tap: &Tap) -> Vec<TappedStream> {
    let there: Vec<_> = (0..NODES).map(addr).collect();
    let recorded: Vec<_> = tap.streams().into_iter().filter(|s| there.contains(&s.to)).collect();
    assert!(recorded.len() > 100, "{}", recorded.len());
    recorded
}

/// The place of the next node, and of none that has died.
fn beside(to: SocketAddr) -> SocketAddr {
    let at = (0..=VICTIM).position(|i| addr(i) == to).unwrap_or_default();
    addr((at + 1) % NODES)
}

fn there(to: SocketAddr) -> bool {
    (0..NODES).any(|i| addr(i) == to)
}

fn flipped(bytes: &[u8], n: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = (n * 7919) % (bytes.len() * 8);
    bytes[at / 8] ^= 1 << (at % 8);
    bytes
}

/// Whether a packet's seal is for everybody: its flags say so.
fn is_for_anybody(packet: &[u8]) -> bool {
    let flags = if packet[1] == 244 { packet[3 + usize::from(packet[2])] } else { packet[1] };
    flags & 9 == 1
}

#[test]
fn weak_point_37_packets_that_were_recorded_change_nothing_wherever_they_are_played() {
    for seed in [1, 2] {
        paused(async {
            let stage = Stage::set(seed).await;
            let recorded = datagrams(&stage.tap);
            let at = |d: &TappedDatagram| there(d.to);
            let cut = stage.world.network.stats().cut;
            stage
                .play_late(
                    "again",
                    recorded.iter().filter(|d| at(d)).map(|d| (d.from, d.to, d.bytes.to_vec())),
                    cut,
                )
                .await;
            stage
                .play(
                    "backwards, from elsewhere",
                    recorded.iter().rev().filter(|d| at(d)).map(|d| (outsider(1), d.to, d.bytes.to_vec())),
                )
                .await;
            stage
                .play(
                    "with a bit flipped",
                    recorded
                        .iter()
                        .enumerate()
                        .filter(|(_, d)| at(d))
                        .map(|(n, d)| (d.from, d.to, flipped(&d.bytes, n))),
                )
                .await;
            // What is for one opens at no other.
            let for_one = || recorded.iter().filter(|d| !is_for_anybody(&d.bytes));
            stage.play("to others", for_one().map(|d| (d.from, beside(d.to), d.bytes.to_vec()))).await;
            stage
                .play(
                    "reflected",
                    recorded.iter().filter(|d| there(d.from)).map(|d| (d.to, d.from, d.bytes.to_vec())),
                )
                .await;
            let dropped = stage.dropped();
            for reason in ["seal", "replayed", "reflected"] {
                assert!(dropped[reason] > 100, "{reason}: {dropped:?}");
            }
        });
    }
}

#[test]
fn weak_point_37_packets_that_were_recorded_are_nothing_to_a_node_that_was_started_anew() {
    paused(async {
        let mut stage = Stage::set(3).await;
        let recorded = datagrams(&stage.tap);
        stage.seats[3].node.shutdown().await;
        stage.seats[3] = Seat::at(builder(&stage.world, 3, "ours", 1).seed(99)).await;
        stage.seats[3].node.join(&["10.0.0.1"]).await.expect("it joins");
        sleep(secs(30)).await;
        stage.until_whole().await;
        let for_one = recorded.iter().filter(|d| d.to == addr(3) && !is_for_anybody(&d.bytes));
        stage.play("started anew", for_one.map(|d| (d.from, d.to, d.bytes.to_vec()))).await;
    });
}

#[test]
fn a_recorded_ping_of_whoever_is_there_is_answered_once_elsewhere_and_changes_nothing() {
    paused(async {
        let stage = Stage::set(4).await;
        let heard = |seat: &Seat| seat.bytes.borrow().iter().filter(|m| m.bytes == TO_ANYBODY).count();
        for seat in &stage.seats[..NODES] {
            assert_eq!(heard(seat), 1, "each was sent one such message by its neighbour");
        }
        let recorded = datagrams(&stage.tap);
        let for_anybody: Vec<_> =
            recorded.iter().filter(|d| is_for_anybody(&d.bytes) && there(d.to)).cloned().collect();
        assert!(for_anybody.len() >= NODES, "{}", for_anybody.len());
        let stood = stage.stand();
        // Twice: the second time each of them is known there as well.
        for _ in 0..2 {
            for d in &for_anybody {
                stage.world.network.forge(&d.bytes, outsider(1), beside(d.to)).expect("it is taken");
            }
            sleep(secs(5)).await;
        }
        assert_eq!(stage.stand(), stood);
    });
}

#[test]
fn weak_point_37_streams_that_were_recorded_change_nothing_wherever_they_are_played() {
    paused(async {
        let stage = Stage::set(5).await;
        let recorded = streams(&stage.tap);
        let dialled = |s: &TappedStream| s.of(true);
        stage.say_all("again", recorded.iter().map(|s| (s.to, dialled(s)))).await;
        stage.say_all("to others", recorded.iter().map(|s| (beside(s.to), dialled(s)))).await;
        let back = recorded.iter().filter(|s| there(s.from));
        stage.say_all("reflected", back.map(|s| (s.from, dialled(s)))).await;
        // A record's length is no part of what is sealed in clear, so a flipped one may only wait for more.
        let spoilt = recorded.iter().enumerate().map(|(n, s)| (s.to, flipped(&dialled(s), n)));
        stage.say_all("with a bit flipped", spoilt).await;
        let answers = recorded.iter().filter(|s| !s.of(false).is_empty());
        stage.say_all("what was answered", answers.map(|s| (s.to, s.of(false)))).await;
    });
}

#[test]
fn weak_point_37_a_recorded_answer_in_place_of_a_member_that_has_died_opens_for_nobody() {
    paused(async {
        let stage = Stage::set(6).await;
        let stood = stage.stand();
        let answers: Vec<_> = stage
            .tap
            .streams()
            .into_iter()
            .filter(|s| s.of(false).len() > 100)
            .map(|s| s.of(false))
            .take(50)
            .collect();
        assert!(answers.len() > 20);
        let place = stage.world.network.bind(addr(VICTIM)).await.expect("it is free");
        for answer in answers {
            let answering = async {
                let (mut stream, _) =
                    std::future::poll_fn(|cx| place.poll_accept(cx)).await.expect("it works");
                let _ = stream.write_all(&answer).await;
                let _ = timeout(secs(20), stream.read_to_end(&mut Vec::new())).await;
            };
            let at = addr(VICTIM).to_string();
            let seeds = [at.as_str()];
            let (joined, ()) = tokio::join!(stage.seats[0].node.join(&seeds), answering);
            let error = joined.expect_err("it does not open");
            assert!(!matches!(error, JoinError::Timeout), "{error:?}");
        }
        sleep(secs(5)).await;
        assert_eq!(stage.stand(), stood);
    });
}

#[test]
fn neighbours_with_the_same_key_or_the_same_label_change_nothing() {
    paused(async {
        let stage = Stage::set(7).await;
        for (first, label, n, reason) in [(10, "them", 1, "label"), (20, "ours", 9, "sealed")] {
            let mut others = Vec::new();
            for i in first..first + 3 {
                others.push(Seat::at(builder(&stage.world, i, label, n)).await);
            }
            for other in &others[1..] {
                other.node.join(&[&addr(first).to_string()]).await.expect("it joins");
                other.node.broadcast_bytes(Broadcast::new("to all")).expect("it is taken");
                // That is for whoever is there: no run keeps it from opening elsewhere.
                other.node.ping(&format!("n{first:03}"), addr(first)).await.expect("it answers");
            }
            sleep(secs(20)).await;
            let theirs: Vec<_> = (first..first + 3).map(addr).collect();
            let packets: Vec<_> =
                stage.tap.datagrams().into_iter().filter(|d| theirs.contains(&d.from)).collect();
            assert!(packets.iter().any(|d| is_for_anybody(&d.bytes)), "{label}");
            let before = stage.dropped()[reason];
            let at = |d: &TappedDatagram| addr(d.bytes.len() % NODES);
            stage.play(label, packets.iter().map(|d| (d.from, at(d), d.bytes.to_vec()))).await;
            assert!(stage.dropped()[reason] >= before + packets.len() as u64);
            if reason == "label" {
                // And with our label written over theirs, which was sealed in.
                let relabelled = |d: &TappedDatagram| {
                    let mut bytes = d.bytes.to_vec();
                    bytes[3..7].copy_from_slice(b"ours");
                    bytes
                };
                let before = stage.dropped()["seal"];
                stage.play("relabelled", packets.iter().map(|d| (d.from, at(d), relabelled(d)))).await;
                assert!(stage.dropped()["seal"] >= before + packets.len() as u64);
            }
            let said: Vec<_> = stage.tap.streams().into_iter().filter(|s| theirs.contains(&s.from)).collect();
            stage.say_all(label, said.iter().map(|s| (addr(1), s.of(true)))).await;
            for other in others {
                assert_eq!(other.node.view().alive_count(), 3);
                assert_eq!(other.node.sealing(), Sealing::Required);
                other.node.shutdown().await;
            }
        }
    });
}
