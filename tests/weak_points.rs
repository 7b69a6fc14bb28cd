//! Weak points of HashiCorp's memberlist that show only where whole nodes meet, each with the number that it
//! has in the list of them. Those that are a rule of the ground floor are tested beside their code.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    task::{Context as Cx, Poll},
    time::Duration,
};

use actix::{Actor, Arbiter, Context, Handler, System};
use actix_memberlist::{
    Broadcast, Cluster, Config, JoinError, MemberEvent, MemberState, NodeEvent, Refusal, Replay, Until,
    UserBytes,
    network::{
        Binding, Connection, Dialing, Endpoint, Network,
        memory::{MemoryNetwork, Stats},
    },
};
use bytes::Bytes;
use futures_util::{FutureExt, StreamExt};
use memberlist_tests::{World, addr, drain, events, paused};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Two latencies and a little: what is sent and answered without waiting for a timer is done by then.
const AT_ONCE: Duration = ms(10);

/// A node whose loops are all switched off.
fn silent() -> Config {
    let zero = Duration::ZERO;
    Config { probe_interval: zero, gossip_interval: zero, push_pull_interval: zero, ..Config::lan() }
}

fn seed(i: usize) -> String {
    addr(i).to_string()
}

/// Whom a node holds, by name: state, run, address.
fn table(node: &Cluster) -> BTreeMap<String, (MemberState, u64, SocketAddr)> {
    node.view().all().map(|m| (m.name().to_owned(), (m.state, m.id.run(), m.addr))).collect()
}

#[test]
fn weak_point_16_a_leave_is_done_when_the_farewell_is_out() {
    paused(async {
        let world = World::cluster(16, Config::lan(), 12).await;
        for _ in 0..2 {
            let start = Instant::now();
            let report = world.nodes[11].leave(secs(10)).await.expect("it runs");
            assert!(report.announced);
            // The whole budget of transmissions takes some rounds of gossip, of 200 ms each.
            assert!(start.elapsed() < AT_ONCE, "{:?}", start.elapsed());
        }
        let told = world.wait_until(AT_ONCE, |w| w.all_hold(0..11, 11, MemberState::Left)).await;
        assert!(told.is_some(), "{}", world.disagreements(12));
    });
}

#[test]
fn weak_point_16_a_leave_with_nobody_there_is_done_at_once() {
    paused(async {
        let world = World::cluster(16, Config::lan(), 2).await;
        world.kill(1).await;
        assert!(world.wait_until(secs(60), |w| w.state(0, 1) == Some(MemberState::Dead)).await.is_some());
        let alone = world.builder(5).start().await.expect("a node starts");
        for node in [&alone, &world.nodes[0]] {
            let start = Instant::now();
            assert!(node.leave(secs(10)).await.expect("it runs").announced);
            assert!(start.elapsed() < AT_ONCE);
            assert_eq!(node.view().local().state, MemberState::Left);
        }
    });
}

#[test]
fn weak_point_16_a_farewell_that_the_network_does_not_take_is_not_reported_as_sent() {
    paused(async {
        let world = World::cluster(16, Config::lan(), 3).await;
        world.network.pause(addr(0));
        let before = world.network.stats().datagrams;
        for _ in 0..2 {
            let report = world.nodes[0].leave(secs(1)).await.expect("it runs");
            assert_eq!(world.network.stats().datagrams, before, "nothing has left");
            assert!(!report.announced, "{report:?}");
        }
    });
}

#[test]
fn weak_point_15_a_join_counts_each_node_once_however_many_seeds_lead_to_it() {
    paused(async {
        let mut world = World::cluster(15, Config::lan(), 2).await;
        world.start(1).await;
        let first =
            ["10.0.0.1:7946", "10.0.0.1", "n000/10.0.0.1:7946", "[::ffff:10.0.0.1]:7946", "10.0.0.1:7946"];
        let joined = world.nodes[2].join(&first).await.expect("a node joins");
        let id = |i: usize| world.nodes[i].view().local().id.clone();
        assert_eq!((joined.reached, joined.failed.len()), (vec![id(0)], 0));

        let seeds: Vec<&str> = first.into_iter().chain(["10.0.0.3", "10.0.0.2", "10.0.0.99"]).collect();
        let joined = world.nodes[2].join(&seeds).await.expect("a node joins");
        assert_eq!(joined.reached, [id(0), id(1)]);
        assert_eq!(joined.failed[0], ("10.0.0.3".to_owned(), JoinError::Oneself));
        assert!(matches!(&joined.failed[1..], [(_, JoinError::Unreachable(..))]), "{:?}", joined.failed);
    });
}

#[test]
fn weak_point_15_neither_nobody_nor_oneself_can_be_joined() {
    paused(async {
        let world = World::new(15, Config::lan());
        // The others know it by an address that is not the one it is bound to.
        let away = addr(400);
        let node = world.builder(0).advertise(away).start().await.expect("a node starts");
        assert_eq!(node.view().local().addr, away);
        assert_eq!(node.join(&[]).await.err(), Some(JoinError::NoSeeds));
        for own in [away.to_string(), seed(0), "[::ffff:10.0.0.1]:7946".into(), format!("n000/{away}")] {
            assert_eq!(node.join(&[&own]).await.err(), Some(JoinError::Oneself), "{own}");
        }
        let both = node.join(&[&seed(0), &away.to_string()]).await.expect_err("it is alone");
        assert!(matches!(both, JoinError::NoneReached(failed) if failed.len() == 2));
        assert_eq!(node.view().all().count(), 1);
    });
}

#[test]
fn weak_point_17_a_name_that_is_taken_is_refused_on_both_sides() {
    paused(async {
        let world = World::cluster(17, Config::lan(), 3).await;
        let before: Vec<_> = world.nodes.iter().map(table).collect();
        let mut watch = events(&world.nodes[0], Replay::None);
        // Another n001.
        let rival = world.builder(1).bind(addr(7)).seed(1).start().await.expect("a node starts");
        for at in [0, 1, 2] {
            let error = rival.join(&[&seed(at)]).await.expect_err("the name is taken");
            assert_eq!(error, JoinError::Refused(Refusal::NameTaken), "by n{at:03}");
        }
        let error = rival.join(&[&seed(0), &seed(1), &seed(2)]).await.expect_err("the name is taken");
        let JoinError::NoneReached(failed) = error else { panic!("{error}") };
        assert_eq!(failed.len(), 3);
        assert!(failed.iter().all(|(_, error)| *error == JoinError::Refused(Refusal::NameTaken)));
        sleep(secs(120)).await;
        assert_eq!(world.nodes.iter().map(table).collect::<Vec<_>>(), before);
        assert_eq!(rival.view().all().count(), 1, "{:?}", rival.view());
        let told = drain(&mut watch).await;
        assert!(told.iter().all(|event| matches!(event, MemberEvent::Conflict { .. })), "{told:?}");
    });
}

#[test]
fn weak_point_17_a_node_whose_name_is_taken_cannot_be_joined_either() {
    paused(async {
        for joiner in [0, 1] {
            let world = World::cluster(17, Config::lan(), 3).await;
            let before: Vec<_> = world.nodes.iter().map(table).collect();
            let rival = world.builder(1).bind(addr(7)).seed(1).start().await.expect("a node starts");
            let joined = world.nodes[joiner].join(&[&seed(7)]).await;
            sleep(secs(120)).await;
            assert_eq!(world.nodes.iter().map(table).collect::<Vec<_>>(), before);
            assert_eq!(rival.view().all().count(), 1, "one-sided: {:?}", rival.view());
            assert_eq!(joined.err(), Some(JoinError::Refused(Refusal::NameTaken)), "by n{joiner:03}");
        }
    });
}

/// Shuts all nodes down, and sees that nothing at all comes from them any more.
async fn assert_quiet_after_shutdown(world: &World) {
    for node in &world.nodes {
        node.shutdown().await;
    }
    // What was on its way has arrived.
    sleep(secs(1)).await;
    let said = || {
        let Stats { datagrams, bytes, dials, chunks, .. } = world.network.stats();
        (datagrams, bytes, dials, chunks)
    };
    let before = said();
    // Those who were out of reach can be talked to again.
    world.network.heal();
    sleep(secs(120)).await;
    assert_eq!(said(), before);
}

#[test]
fn weak_point_20_a_node_with_push_pull_alone_runs_and_stops() {
    paused(async {
        let config = Config { push_pull_interval: secs(2), ..silent() };
        let world = World::cluster(20, config, 4).await;
        world.nodes[3].set_meta("new".into()).await.expect("it runs");
        let knows = |w: &World, i: usize| w.nodes[i].view().get("n003").is_some_and(|m| m.meta == "new");
        assert!(world.wait_until(secs(60), |w| (0..3).all(|i| knows(w, i))).await.is_some());
        let dials = world.network.stats().dials;
        sleep(secs(60)).await;
        assert!(world.network.stats().dials > dials + 4 * 20, "it no longer exchanges states");
        assert_quiet_after_shutdown(&world).await;
    });
}

/// A node that is shut down is a suspect for a while, although its host says that nothing listens there.
fn patient() -> Config {
    Config { count_refusals: false, ..Config::lan() }
}

#[test]
fn weak_point_28_nothing_of_a_node_runs_after_its_shutdown() {
    paused(async {
        let world = World::cluster(28, patient(), 5).await;
        // Probes, gossip, a suspicion, an exchange of states and a join are all under way.
        world.kill(3).await;
        let suspected = |w: &World| w.state(0, 3) == Some(MemberState::Suspect);
        assert!(world.wait_until(secs(30), suspected).await.is_some());
        world.network.cut(addr(0), addr(1));
        let _ = timeout(ms(100), world.nodes[0].join(&[&seed(1)])).await;
        // Somebody who will be within reach again when the node has ended, and listens.
        let _listening = world.network.bind(addr(50)).await.expect("a free address");
        world.network.cut(addr(0), addr(50));
        let joiner = world.nodes[0].clone();
        Arbiter::current().spawn(async move { drop(joiner.join(&[&seed(50)]).await) });
        sleep(ms(10)).await;
        world.nodes[4].set_meta("news".into()).await.expect("it runs");
        world.nodes[4].broadcast_bytes(Broadcast::new("more news")).expect("it runs");
        assert_quiet_after_shutdown(&world).await;
    });
}

#[test]
fn weak_point_28_a_suspicion_that_runs_at_the_shutdown_never_fires() {
    struct Listener(mpsc::UnboundedSender<String>);
    impl Actor for Listener {
        type Context = Context<Self>;
    }
    impl Handler<MemberEvent> for Listener {
        type Result = ();
        fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
            self.0.send(format!("{event:?}")).expect("the test listens");
        }
    }
    impl Handler<NodeEvent> for Listener {
        type Result = ();
        fn handle(&mut self, event: NodeEvent, _: &mut Context<Self>) {
            self.0.send(format!("{event:?}")).expect("the test listens");
        }
    }
    paused(async {
        let world = World::cluster(28, patient(), 4).await;
        let (sender, mut heard) = mpsc::unbounded_channel();
        let listener = Listener(sender).start();
        world.nodes[0].subscribe(listener.clone().recipient(), Replay::None).expect("it runs").detach();
        world.nodes[0].subscribe_node(listener.clone().recipient()).expect("it runs").detach();
        let mut stream = events(&world.nodes[0], Replay::None);
        world.kill(2).await;
        let suspected = |w: &World| w.state(0, 2) == Some(MemberState::Suspect);
        assert!(world.wait_until(secs(30), suspected).await.is_some());
        world.kill(0).await;
        let last = world.nodes[0].view();
        // A peer that lives goes on, and finds the dead.
        let dead = |w: &World| w.state(1, 2) == Some(MemberState::Dead);
        assert!(world.wait_until(secs(120), dead).await.is_some());
        sleep(secs(120)).await;

        let mut told = Vec::new();
        while let Some(event) = timeout(AT_ONCE, stream.next()).await.expect("the stream ends") {
            told.push(event);
        }
        assert!(matches!(&told[..], [MemberEvent::Suspected { .. }]), "{told:?}");
        let mut heard_in_all = Vec::new();
        while let Ok(event) = heard.try_recv() {
            heard_in_all.push(event.split([' ', '{']).next().unwrap_or_default().to_owned());
        }
        assert_eq!(heard_in_all, ["Suspected", "Stopped"]);
        assert_eq!(world.nodes[0].view().rev(), last.rev());
        assert_eq!(world.state(0, 2), Some(MemberState::Suspect));
    });
}

/// A cluster of four, of which the first has other settings; it takes part for a minute.
async fn with_one_that_differs(config: Config) -> World {
    let mut world =
        World::new(20, Config { disable_tcp_pings: true, push_pull_interval: secs(5), ..Config::lan() });
    world.nodes.push(world.builder(0).config(config).start().await.expect("a node starts"));
    world.start(3).await;
    world.nodes[0].join(&[&seed(1)]).await.expect("a node joins");
    for node in &world.nodes[2..] {
        node.join(&[&seed(1)]).await.expect("a node joins");
    }
    for i in 0..30 {
        world.nodes[0].set_meta(format!("{i}").into()).await.expect("it runs");
        sleep(secs(2)).await;
    }
    for i in 0..4 {
        assert!(world.all_hold(0..4, i, MemberState::Alive), "{}", world.disagreements(4));
        let told =
            world.wait_until(secs(30), |w| w.nodes[i].view().get("n000").is_some_and(|m| m.meta == "29"));
        assert!(told.await.is_some(), "n{i:03} has missed news");
        assert_eq!(world.nodes[i].metrics().refutations, 0);
    }
    world
}

/// Packets of gossip: those that no single message made it send.
fn gossip_packets(node: &Cluster) -> u64 {
    let metrics = node.metrics();
    metrics.packets_sent - metrics.messages_sent.values().sum::<u64>()
}

#[test]
fn an_interval_of_zero_switches_probing_off() {
    paused(async {
        let world = with_one_that_differs(Config { probe_interval: Duration::ZERO, ..Config::lan() }).await;
        let [off, on] = [0, 1].map(|i| world.nodes[i].metrics().messages_sent);
        assert_eq!(off["ping"], 0);
        assert!(off["ack"] > 30, "it answers");
        assert!(on["ping"] > 30);
    });
}

#[test]
fn an_interval_of_zero_switches_gossip_off() {
    let interval = Config { gossip_interval: Duration::ZERO, ..Config::lan() };
    let nodes = Config { gossip_nodes: 0, ..Config::lan() };
    for config in [interval, nodes] {
        paused(async {
            let world = with_one_that_differs(config).await;
            assert_eq!(gossip_packets(&world.nodes[0]), 0);
            assert!(world.nodes[0].metrics().messages_sent["ping"] > 30, "it probes");
            assert!(gossip_packets(&world.nodes[1]) > 30);
        });
    }
}

#[test]
fn an_interval_of_zero_switches_push_pull_off() {
    paused(async {
        let world =
            with_one_that_differs(Config { push_pull_interval: Duration::ZERO, ..Config::lan() }).await;
        let [off, on] = [0, 1].map(|i| world.nodes[i].metrics());
        assert_eq!(off.streams_dialled, 1, "its own join");
        assert!(off.streams_accepted > 3, "it answers");
        assert!(on.streams_dialled > 10);
    });
}

#[test]
fn nodes_whose_loops_are_all_off_say_nothing() {
    paused(async {
        let mut world = World::new(20, silent());
        world.start(2).await;
        world.nodes[1].join(&[&seed(0)]).await.expect("a node joins");
        sleep(secs(1)).await;
        let before = world.network.stats();
        sleep(secs(3600)).await;
        assert_eq!(world.network.stats(), before);
        assert!(
            world.all_hold([0, 1], 0, MemberState::Alive) && world.all_hold([0, 1], 1, MemberState::Alive)
        );
    });
}

/// Blocks its thread at the first message, and says when it has done so.
struct Blocker {
    time: Duration,
    done: mpsc::UnboundedSender<&'static str>,
    blocked: bool,
}

impl Blocker {
    fn on_its_own_thread(time: Duration, done: &mpsc::UnboundedSender<&'static str>) -> actix::Addr<Self> {
        let done = done.clone();
        Self::start_in_arbiter(&Arbiter::new().handle(), move |_| Self { time, done, blocked: false })
    }

    fn block(&mut self, by: &'static str) {
        if !std::mem::replace(&mut self.blocked, true) {
            std::thread::sleep(self.time);
            self.done.send(by).expect("the test waits");
        }
    }
}

impl Actor for Blocker {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Blocker {
    type Result = ();
    fn handle(&mut self, _: MemberEvent, _: &mut Context<Self>) {
        self.block("event");
    }
}

impl Handler<UserBytes> for Blocker {
    type Result = ();
    fn handle(&mut self, _: UserBytes, _: &mut Context<Self>) {
        self.block("bytes");
    }
}

/// Passes users' bytes on.
struct Listener(mpsc::UnboundedSender<Bytes>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Listener {
    type Result = ();
    fn handle(&mut self, message: UserBytes, _: &mut Context<Self>) {
        self.0.send(message.bytes).expect("the test listens");
    }
}

#[test]
fn weak_point_22_a_handler_that_blocks_its_thread_for_ten_seconds_delays_nobody_else() {
    const BLOCKED: Duration = secs(10);
    System::new().block_on(async {
        // In real time, over real sockets, each node on a thread of its own.
        let start = |name: &str| {
            let builder = Cluster::builder(name).config(Config::local()).bind(([127, 0, 0, 1], 0).into());
            builder.start().map(|node| node.expect("a node starts"))
        };
        let (here, there) = (start("here").await, start("there").await);
        let mut accused = [events(&here, Replay::None), events(&there, Replay::None)];
        let mut witness = events(&here, Replay::None);
        there.join(&[&here.view().local().addr.to_string()]).await.expect("a node joins");
        assert_eq!(here.ready(Until::Members(2), secs(5)).await, Ok(true));

        let (done, mut blocked) = mpsc::unbounded_channel();
        let (bytes, mut heard) = mpsc::unbounded_channel();
        let (of_events, of_bytes) =
            (Blocker::on_its_own_thread(BLOCKED, &done), Blocker::on_its_own_thread(BLOCKED, &done));
        here.subscribe(of_events.recipient(), Replay::None).expect("it runs").detach();
        here.serve_bytes(of_bytes.recipient()).expect("it runs").detach();
        here.serve_bytes(Listener(bytes).start().recipient()).expect("it runs").detach();

        let (begin, mut rounds, mut returned) = (std::time::Instant::now(), 0, Vec::new());
        while returned.len() < 2 {
            rounds += 1;
            let text = Bytes::from(format!("round {rounds}"));
            there.set_meta(text.clone()).await.expect("it runs");
            there.broadcast_bytes(Broadcast::new(text.clone())).expect("it runs");
            let seen = async {
                while !matches!(witness.next().await, Some(MemberEvent::Updated { member, .. }) if member.meta == text)
                {}
                while heard.recv().await.as_ref() != Some(&text) {}
            };
            timeout(secs(1), seen).await.expect("the others hear at once what is new");
            assert_eq!((here.health(), there.health()), (0, 0), "after {:?}", begin.elapsed());
            returned.extend(blocked.try_recv().ok());
        }
        assert!(begin.elapsed() >= BLOCKED && rounds > 20, "{rounds} rounds in {:?}", begin.elapsed());
        assert!(here.metrics().messages_sent["ack"] >= 8, "it was probed all the time");
        for events in &mut accused {
            while let Some(event) = events.next().now_or_never() {
                assert!(!matches!(event, Some(MemberEvent::Suspected { .. })), "{event:?}");
            }
        }
        here.shutdown().await;
        there.shutdown().await;
    });
}

/// A network whose endpoint reports errors instead of datagrams, or instead of streams.
#[derive(Clone, Default)]
struct Faults {
    of_datagrams: Arc<AtomicBool>,
    of_streams: Arc<AtomicBool>,
    /// Calls that ended in an error.
    calls: Arc<AtomicU64>,
}

impl Faults {
    /// Whoever tries so often tries for ever: the fault ends, lest the test does not.
    const ENOUGH: u64 = 100_000;

    fn strikes(&self, fault: &AtomicBool) -> bool {
        fault.load(Relaxed) && self.calls.load(Relaxed) < Self::ENOUGH
    }

    fn error(&self) -> io::Error {
        self.calls.fetch_add(1, Relaxed);
        io::Error::other("a broken socket")
    }
}

struct FaultyNetwork(MemoryNetwork, Faults);

struct FaultyEndpoint(Arc<dyn Endpoint>, Faults);

impl Network for FaultyNetwork {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let (inner, faults) = (self.0.bind(addr), self.1.clone());
        Box::pin(async move { Ok(Arc::new(FaultyEndpoint(inner.await?, faults)) as Arc<dyn Endpoint>) })
    }
}

impl Endpoint for FaultyEndpoint {
    fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }

    fn poll_readable(&self, cx: &mut Cx<'_>) -> Poll<io::Result<()>> {
        let readable = self.0.poll_readable(cx);
        if self.1.strikes(&self.1.of_datagrams) { Poll::Ready(Ok(())) } else { readable }
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        if self.1.strikes(&self.1.of_datagrams) { Err(self.1.error()) } else { self.0.try_recv(buf) }
    }

    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.try_send(datagram, to)
    }

    fn poll_accept(&self, cx: &mut Cx<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        if self.1.strikes(&self.1.of_streams) {
            Poll::Ready(Err(self.1.error()))
        } else {
            self.0.poll_accept(cx)
        }
    }

    fn dial(&self, to: SocketAddr) -> Dialing {
        self.0.dial(to)
    }
}

/// A cluster of three whose first node has a faulty network.
async fn with_faults(config: Config) -> (World, Faults) {
    let (mut world, faults) = (World::new(31, config), Faults::default());
    let network = FaultyNetwork(world.network.clone(), faults.clone());
    world.nodes.push(world.builder(0).network(network).start().await.expect("a node starts"));
    world.start(2).await;
    for node in &world.nodes[1..] {
        node.join(&[&seed(0)]).await.expect("a node joins");
    }
    for node in &world.nodes {
        assert_eq!(node.ready(Until::Members(3), secs(30)).await, Ok(true));
    }
    (world, faults)
}

#[test]
fn weak_point_31_a_socket_that_reports_errors_is_not_asked_without_a_pause() {
    paused(async {
        let (world, faults) = with_faults(Config::lan()).await;
        faults.of_datagrams.store(true, Relaxed);
        sleep(secs(10)).await;
        let calls = faults.calls.load(Relaxed);
        assert!((5..2000).contains(&calls), "{calls} calls in ten seconds");
        faults.of_datagrams.store(false, Relaxed);
        let healed =
            |w: &World| (0..3).all(|of| w.all_hold(0..3, of, MemberState::Alive)) && w.nodes[0].health() == 0;
        assert!(world.wait_until(secs(120), healed).await.is_some(), "{}", world.disagreements(3));
    });
}

#[test]
fn weak_point_31_a_node_that_cannot_accept_streams_still_answers_datagrams() {
    paused(async {
        let (world, faults) = with_faults(Config::lan()).await;
        let mut watch = events(&world.nodes[1], Replay::None);
        faults.of_streams.store(true, Relaxed);
        sleep(secs(60)).await;
        let calls = faults.calls.load(Relaxed);
        assert!((5..12_000).contains(&calls), "{calls} calls in a minute");
        let told = drain(&mut watch).await;
        assert!(told.is_empty(), "{told:?}");
        faults.of_streams.store(false, Relaxed);
        assert!(world.nodes[1].join(&[&seed(0)]).await.is_ok());
    });
}

/// A node alone, and 200 seeds: ten live ones at the end, before them some that refuse, and before those
/// `cut` that never answer.
async fn with_seeds(cut: usize) -> (World, Vec<String>) {
    let mut world = World::new(32, silent());
    world.start(11).await;
    for i in 200..200 + cut {
        world.network.cut(addr(0), addr(i));
    }
    let seeds = (200..390).chain(1..11).map(seed).collect();
    (world, seeds)
}

fn of(seeds: &[String]) -> Vec<&str> {
    seeds.iter().map(String::as_str).collect()
}

#[test]
fn weak_point_32_a_join_tries_its_seeds_side_by_side_and_says_what_became_of_each() {
    paused(async {
        let (world, seeds) = with_seeds(20).await;
        let start = Instant::now();
        let joined = world.nodes[0].join(&of(&seeds)).await.expect("ten live");
        assert!(start.elapsed() <= Config::lan().join_timeout + AT_ONCE, "{:?}", start.elapsed());
        assert_eq!(joined.reached.len(), 10);
        assert_eq!(
            joined.failed.iter().map(|(seed, _)| seed).collect::<Vec<_>>(),
            seeds[..190].iter().collect::<Vec<_>>()
        );
        let (cut, refused) = joined.failed.split_at(20);
        assert!(cut.iter().all(|(_, error)| *error == JoinError::Timeout), "{cut:?}");
        assert!(refused.iter().all(|(_, error)| matches!(error, JoinError::Unreachable(..))), "{refused:?}");
    });
}

#[test]
fn weak_point_32_seeds_that_never_answer_do_not_keep_a_join_from_those_that_do() {
    paused(async {
        let (world, seeds) = with_seeds(190).await;
        let joined = world.nodes[0].join(&of(&seeds)).await;
        assert_eq!(joined.map(|joined| joined.reached.len()).ok(), Some(10));
    });
}

#[test]
fn weak_point_32_a_join_that_is_dropped_dials_nobody_any_more() {
    paused(async {
        let (world, mut seeds) = with_seeds(190).await;
        seeds.reverse();
        for i in 1..11 {
            world.network.cut(addr(0), addr(i));
        }
        assert!(timeout(secs(1), world.nodes[0].join(&of(&seeds))).await.is_err());
        // Word of it goes through the node once.
        sleep(AT_ONCE).await;
        let before = world.network.stats();
        assert!(before.dials > 0);
        // Those that now would be answered are not taken up either.
        world.network.heal();
        sleep(secs(60)).await;
        let after = world.network.stats();
        assert_eq!((after.dials, after.chunks), (before.dials, before.chunks));
        assert_eq!(world.nodes[0].view().alive_count(), 1);
    });
}

/// Streams that a node has given up.
fn ended(node: &Cluster) -> u64 {
    node.metrics().dropped.iter().filter(|(reason, _)| reason.starts_with("stream_")).map(|(_, n)| n).sum()
}

#[test]
fn weak_point_43_streams_that_say_nothing_do_not_keep_others_out() {
    const STREAMS: usize = 600;
    // All come from one address here: that each has its limit is another matter.
    let config =
        Config { max_streams: 64, max_streams_per_source: STREAMS, tcp_timeout: secs(2), ..Config::lan() };
    paused(async {
        let mut world = World::new(43, config.clone());
        world.start(2).await;
        let stranger = world.network.bind(addr(500)).await.expect("a free address");
        let dials: Vec<_> = (0..STREAMS).map(|_| stranger.dial(addr(0))).collect();
        let held = futures_util::future::join_all(dials).await;
        assert!(held.iter().all(Result::is_ok));
        let (node, start) = (world.nodes[0].clone(), Instant::now());
        let to = seed(0);
        let to = [to.as_str()];
        let join = async {
            // As a joiner does that wants in.
            while world.nodes[1].join(&to).await.is_err() {}
            start.elapsed()
        };
        let sample = async {
            let mut most = 0;
            while start.elapsed() < secs(60) {
                sleep(ms(50)).await;
                most = most.max(node.metrics().streams_accepted.saturating_sub(ended(&node)));
            }
            most
        };
        let (took, most) = tokio::join!(join, sample);
        // Half of them; one more may be the joiner's own. The others are for what the node itself begins.
        assert!((32..=33).contains(&most), "{most} streams open at once");
        assert_eq!(ended(&node), STREAMS as u64);
        assert!(took <= config.tcp_timeout + ms(100), "the joiner had to wait for {took:?}");
        drop(held);
    });
}
