//! What the handle of a node promises its user: starts that leave nothing behind, answers and never silence,
//! views that stay, events without a gap, an end that is one, and nodes that come back.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener, UdpSocket},
    sync::{Arc, Weak},
    task::{Context, Poll, Wake, Waker},
    thread::{self, Thread},
    time::Duration,
};

use actix::{Actor, Handler, System};
use actix_memberlist::{
    AskError, Broadcast, Cause, Cluster, ClusterBuilder, Config, Evidence, Join, JoinError, Key, Leave,
    Member, MemberEvent, MemberState, Members, NodeEvent, NotSent, Replay, SendError, SetMeta, StartError,
    Stopped, Until, UpdateError, UserBytes,
    network::{Network, memory::Link},
};
use futures_util::{FutureExt, Stream, StreamExt};
use memberlist_tests::{World, addr, drain, events, paused};
use tokio::{
    sync::oneshot,
    time::{sleep, timeout},
};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

fn seed(i: usize) -> String {
    addr(i).to_string()
}

fn local(name: &str) -> ClusterBuilder {
    Cluster::builder(name).config(Config::local()).bind(([127, 0, 0, 1], 0).into())
}

/// What a user sees of a member. The incarnation is not told by events when it alone has grown.
fn seen(member: &Member) -> String {
    let Member { id, addr, state, meta, tags, .. } = member;
    format!("{id} {addr} {state} {meta:?} {tags:?}")
}

fn all_seen<'a>(members: impl Iterator<Item = &'a Arc<Member>>) -> BTreeMap<String, String> {
    members.map(|m| (m.name().to_owned(), seen(m))).collect()
}

/// The members as a listener makes them out of events, who also sees that no event is missing.
#[derive(Default)]
struct Ledger {
    members: BTreeMap<String, String>,
    rev: Option<u64>,
    kinds: BTreeMap<&'static str, usize>,
}

impl Ledger {
    fn put(&mut self, kind: &'static str, member: &Member) {
        *self.kinds.entry(kind).or_default() += 1;
        self.members.insert(member.name().to_owned(), seen(member));
    }

    fn take(&mut self, event: &MemberEvent) {
        let snapshot = matches!(event, MemberEvent::Snapshot(_));
        assert!(
            snapshot || self.rev.is_some_and(|rev| event.rev() == rev + 1),
            "{:?}, then {event:?}",
            self.rev
        );
        self.rev = Some(event.rev());
        match event {
            MemberEvent::Snapshot(view) => {
                *self.kinds.entry("snapshot").or_default() += 1;
                self.members = all_seen(view.all());
            }
            MemberEvent::Joined { member, .. } => self.put("joined", member),
            MemberEvent::Updated { member, before, .. } => {
                assert_ne!(seen(before), seen(member));
                self.put("updated", member);
            }
            MemberEvent::Suspected { member, .. } => self.put("suspected", member),
            MemberEvent::Refuted { member, .. } => self.put("refuted", member),
            MemberEvent::Left { member, .. } => self.put("left", member),
            MemberEvent::Dead { member, .. } => self.put("dead", member),
            MemberEvent::Reaped { id, .. } => {
                *self.kinds.entry("reaped").or_default() += 1;
                assert!(self.members.remove(id.name()).is_some(), "{id} was not there");
            }
            other => assert!(matches!(other, MemberEvent::Conflict { .. }), "{other:?}"),
        }
    }
}

#[test]
fn events_after_a_snapshot_follow_each_other_and_lead_to_the_view() {
    paused(async {
        let config = Config {
            subscriber_queue_depth: 100_000,
            dead_retention: secs(20),
            left_retention: secs(20),
            ..Config::lan()
        };
        let mut world = World::cluster(1, config, 6).await;
        let mut streams = [Replay::Snapshot, Replay::Snapshot].map(|replay| events(&world.nodes[0], replay));
        sleep(secs(1)).await;
        world.network.set_default(Link { loss: 0.35, ..Link::default() });
        let mut ledger = Ledger::default();
        for round in 0..12 {
            world.nodes[1].set_meta(format!("{round}").into()).await.expect("it runs");
            world.start(1).await;
            let newest = world.nodes.last().expect("it was started");
            let _ = newest.join(&[&seed(0), &seed(1)]).await;
            sleep(secs(10)).await;
            if round % 2 == 0 {
                newest.leave(secs(1)).await.map(drop).expect("it runs")
            }
            newest.shutdown().await;
            sleep(secs(10)).await;
            // One that is held up is suspected, and refutes.
            world.network.pause(addr(3));
            sleep(secs(4)).await;
            world.network.resume(addr(3));
            sleep(secs(10)).await;
            drain(&mut streams[0]).await.iter().for_each(|event| ledger.take(event));
        }
        world.network.set_default(Link::default());
        sleep(secs(60)).await;
        drain(&mut streams[0]).await.iter().for_each(|event| ledger.take(event));
        let view = world.nodes[0].view();
        assert_eq!(ledger.rev, Some(view.rev()));
        assert_eq!(ledger.members, all_seen(view.all()));
        let kinds: Vec<_> = ledger.kinds.keys().copied().collect();
        let all = ["dead", "joined", "left", "reaped", "refuted", "snapshot", "suspected", "updated"];
        assert_eq!(kinds, all, "the run has too little in it: {:?}", ledger.kinds);
        assert_eq!(ledger.kinds["snapshot"], 1);

        // Who reads all of it at the end reads the same.
        let mut late = Ledger::default();
        drain(&mut streams[1]).await.iter().for_each(|event| late.take(event));
        assert_eq!((late.rev, late.members, late.kinds), (ledger.rev, ledger.members, ledger.kinds));
    });
}

#[test]
fn a_replay_of_events_gives_each_member_that_counts_and_none_gives_nothing() {
    paused(async {
        let world = World::cluster(2, Config::lan(), 5).await;
        world.kill(4).await;
        let dead = |w: &World| w.state(0, 4) == Some(MemberState::Dead);
        assert!(world.wait_until(secs(60), dead).await.is_some());
        let rev = world.nodes[0].view().rev();
        let mut replayed = events(&world.nodes[0], Replay::Events);
        let mut nothing = events(&world.nodes[0], Replay::None);
        sleep(ms(10)).await;
        world.nodes[3].leave(secs(1)).await.expect("it runs");
        sleep(secs(1)).await;

        let replayed = drain(&mut replayed).await;
        let (first, [MemberEvent::Left { rev: next, .. }]) = replayed.split_at(4) else {
            panic!("{replayed:?}")
        };
        assert!(
            first.iter().all(|e| matches!(e, MemberEvent::Joined { rev: r, .. } if *r == rev)),
            "{first:?}"
        );
        let mut names: Vec<_> = first
            .iter()
            .filter_map(
                |e| if let MemberEvent::Joined { member, .. } = e { Some(member.name()) } else { None },
            )
            .collect();
        names.sort_unstable();
        assert_eq!(names, ["n000", "n001", "n002", "n003"]);
        assert_eq!(*next, rev + 1);
        let told = drain(&mut nothing).await;
        assert!(matches!(&told[..], [MemberEvent::Left { rev: r, .. }] if *r == rev + 1), "{told:?}");
    });
}

#[test]
fn weak_point_27_a_subscriber_that_never_reads_costs_little_and_gets_a_snapshot_later() {
    const DEPTH: usize = 16;
    const UPDATES: usize = 2100;
    paused(async {
        let config = Config { subscriber_queue_depth: DEPTH, gossip_interval: ms(20), ..Config::lan() };
        let world = World::cluster(27, config, 2).await;
        let (reader, writer) = (&world.nodes[0], &world.nodes[1]);
        let mut stream = events(reader, Replay::Snapshot);
        let mut records: Vec<Weak<Member>> = Vec::new();
        let update = async |text: String| {
            writer.set_meta(text.clone().into()).await.expect("it runs");
            let known = |w: &World| w.nodes[0].view().get("n001").is_some_and(|m| m.meta == text);
            assert!(world.wait_until(secs(5), known).await.is_some(), "{text}");
            reader.view().get("n001").map(Arc::downgrade)
        };
        for i in 0..UPDATES {
            records.extend(update(format!("{i}")).await);
        }
        let held = records.iter().filter(|record| record.strong_count() > 0).count();
        assert!(held <= DEPTH + 4, "{held} of {} old records are held", records.len());
        assert!(reader.metrics().dropped["subscriber_lagged"] > 0);

        let first = stream.next().await;
        assert!(matches!(&first, Some(MemberEvent::Snapshot(view)) if view.rev() > 2000), "{first:?}");
        let mut ledger = Ledger::default();
        first.iter().for_each(|event| ledger.take(event));
        let waiting = drain(&mut stream).await;
        assert!(waiting.len() <= DEPTH, "{} events waited", waiting.len());
        waiting.iter().for_each(|event| ledger.take(event));
        for i in 0..5 {
            update(format!("more {i}")).await;
        }
        drain(&mut stream).await.iter().for_each(|event| ledger.take(event));
        assert_eq!(ledger.kinds["snapshot"], 1);
        assert!(ledger.kinds["updated"] >= 5);
        assert_eq!(ledger.rev, Some(reader.view().rev()));
        assert_eq!(ledger.members, all_seen(reader.view().all()));
    });
}

#[test]
fn weak_point_23_a_view_and_its_members_never_change_under_their_reader() {
    paused(async {
        let mut world = World::cluster(23, Config::lan(), 5).await;
        let view = world.nodes[0].view();
        let members: Vec<Arc<Member>> = view.all().cloned().collect();
        let picture =
            || (view.rev(), view.alive_count(), format!("{:?}", view.local()), format!("{members:?}"));
        let before = picture();

        world.start(1).await;
        world.nodes[5].join(&[&seed(0)]).await.expect("it joins");
        world.nodes[0].set_meta("own".into()).await.expect("it runs");
        world.nodes[1].set_meta("of another".into()).await.expect("it runs");
        world.nodes[2].leave(secs(1)).await.expect("it runs");
        world.kill(3).await;
        sleep(secs(60)).await;
        let now = world.nodes[0].view();
        let state = |of: usize| now.get(&format!("n{of:03}")).map(|m| m.state);
        assert_eq!((state(2), state(3)), (Some(MemberState::Left), Some(MemberState::Dead)));
        assert_eq!(now.local().meta, "own");
        assert!(now.rev() > view.rev());
        assert_eq!(picture(), before);
        assert!(view.get("n005").is_none());
        assert!(members.iter().all(|m| view.get(m.name()).is_some_and(|held| Arc::ptr_eq(held, m))));
    });
}

/// An address that is free for datagrams and streams just now.
fn free_port() -> SocketAddr {
    loop {
        let tcp = TcpListener::bind(("127.0.0.1", 0)).expect("there is a free port");
        let addr = tcp.local_addr().expect("it is bound");
        if UdpSocket::bind(addr).is_ok() {
            return addr;
        }
    }
}

#[test]
fn weak_point_29_an_address_that_is_half_taken_is_not_taken_at_all() {
    System::new().block_on(async {
        let busy = |started: Result<Cluster, StartError>, at: SocketAddr| match started {
            Err(StartError::Bind(addr, error)) => {
                assert_eq!((addr, error.kind()), (at, std::io::ErrorKind::AddrInUse));
            }
            other => panic!("{other:?}"),
        };
        let at = free_port();
        let datagrams = UdpSocket::bind(at).expect("it is free");
        busy(local("n").bind(at).start().await, at);
        let streams = TcpListener::bind(at).expect("the node has given it back");
        drop(datagrams);
        busy(local("n").bind(at).start().await, at);
        drop(UdpSocket::bind(at).expect("the node has given it back"));
        drop(streams);
        let node = local("n").bind(at).start().await.expect("all of it is free");
        busy(local("other").bind(at).start().await, at);
        node.shutdown().await;
        let again = local("n").bind(at).start().await.expect("a shutdown gives it back at once");
        again.shutdown().await;
    });
}

#[test]
fn weak_point_29_a_start_that_fails_names_the_setting_and_leaves_nothing_bound() {
    paused(async {
        let world = World::new(29, Config::lan());
        let slow = Config { probe_timeout: secs(2), ..Config::lan() };
        let node = || world.builder(0);
        let public =
            || Cluster::builder("n").network(world.network.clone()).arbiter(actix::Arbiter::current());
        let any: SocketAddr = "0.0.0.0:7946".parse().expect("an address");
        let nobody: SocketAddr = "255.255.255.255:7946".parse().expect("an address");
        let group: SocketAddr = "224.0.0.1:7946".parse().expect("an address");
        let half = Config { gossip_verify_incoming: false, ..Config::lan() };
        let key = || Key::from_bytes(&[7; 32]).expect("long enough");
        let named = |name: &str| {
            Cluster::builder(name)
                .network(world.network.clone())
                .arbiter(actix::Arbiter::current())
                .bind(addr(0))
        };
        let cases: Vec<(ClusterBuilder, &str, &str, &str)> = vec![
            (node().config(slow), "probe_timeout", "2s", "at most probe_interval, 1s"),
            (node().meta(vec![0; 513].into()), "meta", "513", "512 bytes"),
            (node().meta(vec![0; 500].into()).tag("key", "values"), "meta", "513", "512 bytes"),
            (named("").plaintext(), "name", "0 bytes", "1 to 255 bytes"),
            (named(&"x".repeat(300)).plaintext(), "name", "300 bytes", "1 to 255 bytes"),
            (named("a\nb").plaintext(), "name", "3 bytes", "control"),
            (node().label("x".repeat(256)), "label", "256", "255"),
            (node().bind(any), "advertise", "0.0.0.0:7946", ".advertise(..)"),
            (node().advertise(any), "advertise", "0.0.0.0:7946", "one host"),
            (node().advertise(group), "advertise", "224.0.0.1:7946", "one host"),
            (node().advertise(nobody), "advertise", "255.255.255.255:7946", "one host"),
            (named("n"), "key", "10.0.0.1:7946", ".plaintext()"),
            (public().bind(any).advertise(addr(0)), "key", "10.0.0.1:7946", ".key(..)"),
            (named("n").key(key()).config(half), "gossip_verify_incoming", "10.0.0.1:7946", ".plaintext()"),
        ];
        for (builder, field, value, limit) in cases {
            match builder.start().await {
                Err(StartError::Config(error)) => {
                    assert_eq!(error.field, field);
                    assert!(error.value.contains(value), "{error}");
                    assert!(error.limit.contains(limit), "{error}");
                }
                other => panic!("{field}: {other:?}"),
            }
            for at in [addr(0), any] {
                drop(world.network.bind(at).await.expect("nothing is left bound"));
            }
        }

        // Nor is anything left of a start that nobody waits for.
        assert!(node().start().now_or_never().is_none());
        sleep(ms(10)).await;
        let started = node().start().await.expect("it is free");
        let taken = node().start().await.expect_err("it is taken");
        assert!(matches!(&taken, StartError::Bind(at, _) if *at == addr(0)), "{taken}");
        started.shutdown().await;
        drop(world.network.bind(addr(0)).await.expect("it is free again"));
    });
}

#[test]
fn weak_point_29_without_a_system_and_without_an_arbiter_a_start_is_an_error() {
    let started = thread::spawn(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(local("n").start())
    });
    let started = started.join().expect("no panic");
    assert!(matches!(started, Err(StartError::NoSystem)), "{started:?}");
}

#[test]
fn a_bad_seed_is_named_and_the_good_ones_count() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 2).await;
        let error = world.nodes[1].join(&["no host!"]).await.expect_err("it is no seed");
        assert!(matches!(&error, JoinError::BadSeed { seed, .. } if seed == "no host!"), "{error}");
        let long = "x ".repeat(10_000);
        let joined = world.nodes[1].join(&[&long, "10.0.0.1:0", &seed(0)]).await.expect("one is good");
        assert_eq!(joined.reached, [world.nodes[0].view().local().id.clone()]);
        let [(_, JoinError::BadSeed { seed, .. }), (_, JoinError::BadSeed { reason, .. })] =
            &joined.failed[..]
        else {
            panic!("{:?}", joined.failed)
        };
        assert!(seed.len() <= 300 && reason.contains("port 0"));
    });
}

/// Hears everything there is to hear, and does nothing.
struct Deaf;

impl Actor for Deaf {
    type Context = actix::Context<Self>;
}

impl Handler<MemberEvent> for Deaf {
    type Result = ();
    fn handle(&mut self, _: MemberEvent, _: &mut Self::Context) {}
}

impl Handler<NodeEvent> for Deaf {
    type Result = ();
    fn handle(&mut self, _: NodeEvent, _: &mut Self::Context) {}
}

impl Handler<UserBytes> for Deaf {
    type Result = ();
    fn handle(&mut self, _: UserBytes, _: &mut Self::Context) {}
}

#[test]
fn after_a_shutdown_every_call_is_an_error_value_and_the_view_is_the_last() {
    paused(async {
        let mut world = World::cluster(5, Config::lan(), 3).await;
        let node = world.nodes.remove(0);
        let (last, addr, deaf) = (node.view(), node.addr(), Deaf.start());
        let waiting = node.broadcast_bytes(Broadcast::new("never sent")).expect("it runs");
        let joining = node.join(&["10.0.9.9:7946"]);
        // Two at once, and one after them.
        tokio::join!(node.shutdown(), node.shutdown());
        node.shutdown().await;

        let calls = async {
            assert_eq!(waiting.await, Err(NotSent::Unknown(Cause::Stopped)));
            assert_eq!(joining.await.err(), Some(JoinError::Stopped));
            assert_eq!(node.join(&[&seed(1)]).await.err(), Some(JoinError::Stopped));
            assert_eq!(node.set_meta("new".into()).await, Err(UpdateError::Stopped));
            assert_eq!(node.set_tags(BTreeMap::new()).await, Err(UpdateError::Stopped));
            assert_eq!(node.set_ping_payload("x".into()), Err(UpdateError::Stopped));
            assert_eq!(node.force_leave("n001").await, Err(UpdateError::Stopped));
            let asked = node.ping("n001", self::addr(1)).await;
            assert_eq!(asked, Err(AskError::Send(SendError::Stopped)));
            assert_eq!(node.leave(secs(1)).await, Err(Stopped));
            assert_eq!(node.ready(Until::Members(1), secs(1)).await, Err(Stopped));
            assert!(node.subscribe(deaf.clone().recipient(), Replay::Snapshot).is_err());
            assert!(node.subscribe_node(deaf.clone().recipient()).is_err());
            assert!(node.serve_bytes(deaf.recipient()).is_err());
            assert!(events(&node, Replay::Snapshot).next().await.is_none());
            let refused = node.broadcast_bytes(Broadcast::new("x")).expect_err("it has stopped");
            assert_eq!(refused, SendError::Stopped);
            assert!(addr.send(Members).await.is_err());
            assert!(addr.send(Leave { within: secs(1) }).await.is_err());
            assert!(addr.send(Join { seeds: vec![seed(1)] }).await.is_err());
            assert!(addr.send(SetMeta { meta: "new".into() }).await.is_err());
        };
        timeout(secs(1), calls).await.expect("no call hangs");
        assert_eq!(node.view().rev(), last.rev());
        assert_eq!(all_seen(node.view().all()), all_seen(last.all()));
        assert_eq!((node.health(), node.why("n001").is_none()), (0, true));
        assert!(node.metrics().packets_sent > 0);
    });
}

#[test]
fn calls_that_wait_at_the_shutdown_are_answered() {
    paused(async {
        let world = World::cluster(6, Config::lan(), 2).await;
        world.network.cut(addr(0), addr(9));
        let node = &world.nodes[0];
        let to = seed(9);
        let to = [to.as_str()];
        let calls = async {
            tokio::join!(
                node.join(&to),
                node.ready(Until::Members(9), secs(600)),
                node.ready(Until::Settled { quiet: secs(600) }, secs(900)),
                async {
                    sleep(secs(1)).await;
                    node.shutdown().await;
                }
            )
        };
        let (joined, members, settled, ()) = timeout(secs(2), calls).await.expect("no call hangs");
        assert_eq!(joined.err(), Some(JoinError::Stopped));
        assert_eq!((members, settled), (Err(Stopped), Err(Stopped)));
    });
}

#[test]
fn the_last_handle_takes_the_node_with_it_and_the_others_find_it_dead() {
    paused(async {
        let mut world = World::cluster(7, Config::lan(), 4).await;
        let mut own = events(&world.nodes[3], Replay::None);
        let (first, second) = (world.nodes[3].clone(), world.nodes.remove(3));
        drop(first);
        sleep(secs(30)).await;
        assert!(world.all_hold(0..3, 3, MemberState::Alive), "a handle is left");
        assert!(world.network.bind(addr(3)).await.is_err());
        drop(second);
        assert_eq!(timeout(ms(10), own.next()).await.ok().map(|event| event.is_none()), Some(true));
        drop(world.network.bind(addr(3)).await.expect("the address is free"));
        let dead = |w: &World| w.all_hold(0..3, 3, MemberState::Dead);
        assert!(world.wait_until(secs(60), dead).await.is_some(), "{}", world.disagreements(3));
    });
}

/// Waits on a thread that has no runtime at all.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    struct Unpark(Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => thread::park_timeout(secs(10)),
        }
    }
}

/// The next event that `wanted` is true of.
async fn until(mut events: impl Stream<Item = MemberEvent> + Unpin, wanted: impl Fn(&MemberEvent) -> bool) {
    while !wanted(&events.next().await.expect("the node runs")) {}
}

#[test]
fn a_handle_works_on_a_thread_without_a_runtime() {
    System::new().block_on(async {
        let a = local("a").start().await.expect("a node starts");
        let b = local("b").start().await.expect("a node starts");
        let (done, ended) = oneshot::channel();
        let (here, there) = (a.clone(), b.clone());
        thread::spawn(move || {
            assert!(tokio::runtime::Handle::try_current().is_err() && System::try_current().is_none());
            let mut told = events(&there, Replay::Snapshot);
            let joined = block_on(here.join(&[&there.view().local().addr.to_string()])).expect("it joins");
            assert_eq!(joined.reached, [there.view().local().id.clone()]);
            assert_eq!(block_on(there.ready(Until::Members(2), secs(5))), Ok(true));
            block_on(here.set_meta("from a thread".into())).expect("it runs");
            let updated = |e: &MemberEvent| matches!(e, MemberEvent::Updated { member, .. } if member.meta == "from a thread");
            block_on(until(&mut told, updated));
            here.broadcast_bytes(Broadcast::new("from a thread")).map(block_on).expect("it runs").expect("it spreads");
            assert!(block_on(here.leave(secs(5))).is_ok_and(|report| report.announced));
            block_on(until(&mut told, |e| matches!(e, MemberEvent::Left { .. })));
            block_on(here.shutdown());
            assert_eq!(block_on(here.set_meta("late".into())), Err(UpdateError::Stopped));
            done.send(()).expect("the test waits");
        });
        timeout(secs(20), ended).await.expect("no call hangs").expect("the thread has not panicked");
        b.shutdown().await;
        drop(a);
    });
}

/// Restarts the last node of a cluster at `at`, after `wait` for its death if it is to wait.
async fn restart(dies_first: bool, at: SocketAddr) {
    let world = World::cluster(44, Config::lan(), 5).await;
    let mut watch = events(&world.nodes[0], Replay::None);
    let old = world.nodes[4].view().local().id.clone();
    world.kill(4).await;
    if dies_first {
        let dead = |w: &World| w.all_hold(0..4, 4, MemberState::Dead);
        assert!(world.wait_until(secs(60), dead).await.is_some(), "{}", world.disagreements(4));
    }
    let again = world.builder(4).bind(at).seed(4).start().await.expect("the address is free");
    let new = again.view().local().id.clone();
    assert_ne!(old, new);
    again.join(&[&seed(1)]).await.expect("it joins");
    let known = |w: &World| {
        w.nodes[..4].iter().all(|node| {
            node.view()
                .get("n004")
                .is_some_and(|m| m.id == new && m.addr == at && m.state == MemberState::Alive)
        })
    };
    assert!(world.wait_until(secs(5), known).await.is_some(), "{}", world.disagreements(4));
    // Old news of the old run does no harm.
    for _ in 0..60 {
        sleep(secs(1)).await;
        assert!(known(&world), "{}", world.disagreements(4));
    }
    assert_eq!(again.view().alive_count(), 5);

    let told: Vec<_> = drain(&mut watch).await;
    let joined = told.iter().filter(|e| matches!(e, MemberEvent::Joined { member, .. } if member.id == new));
    assert_eq!(joined.count(), 1, "{told:?}");
    let ended: Vec<_> = told
        .iter()
        .filter_map(|event| match event {
            MemberEvent::Dead { member, why, .. } => Some((member.id.clone(), why.evidence)),
            _ => None,
        })
        .collect();
    let [(id, evidence)] = &ended[..] else { panic!("{told:?}") };
    assert_eq!(*id, old);
    assert_eq!(*evidence == Evidence::Replaced, !dies_first, "{evidence:?}");
}

#[test]
fn a_node_that_comes_back_at_once_takes_the_place_of_its_old_run() {
    paused(restart(false, addr(4)));
}

#[test]
fn a_node_that_was_declared_dead_comes_back_at_another_address() {
    paused(restart(true, addr(9)));
}
