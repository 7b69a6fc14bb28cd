//! Joining by name, and sources of seeds: DNS on loopback, or a resolver of the test's own in virtual time.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{
    collections::BTreeMap,
    future::{pending, ready},
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc,
    },
    time::Duration,
};

use actix_memberlist::{
    Cluster, ClusterBuilder, Config, Discover, DnsResolver, JoinError, MemberState, Resolver, Resolving,
    Until,
    discover::{FromCommand, FromDns, FromFile, Seeds},
};
use hickory_proto::rr::RecordType;
use memberlist_tests::{World, addr, dns::DnsServer, paused};
use tokio::time::{Instant, sleep, timeout};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Longer than anything here takes on a slow machine.
const PATIENCE: Duration = secs(60);

const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

/// Runs a test in real time.
fn real<T>(test: impl Future<Output = T>) -> T {
    actix::System::new().block_on(async { timeout(PATIENCE * 2, test).await.expect("it hangs") })
}

fn local(name: &str) -> ClusterBuilder {
    Cluster::builder(name).config(Config::local()).bind((V4, 0).into())
}

fn using(dns: &DnsServer, name: &str) -> ClusterBuilder {
    local(name).resolver(DnsResolver::with_servers(&[dns.addr()]))
}

async fn started(builder: ClusterBuilder) -> Cluster {
    builder.start().await.expect("a node starts")
}

fn port(node: &Cluster) -> u16 {
    node.view().local().addr.port()
}

/// Waits in real time.
async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !done() {
        assert!(start.elapsed() < PATIENCE, "{what}: in vain");
        sleep(ms(10)).await;
    }
}

/// A port where nobody listens.
fn dead_port() -> u16 {
    let listener = TcpListener::bind((V4, 0)).expect("loopback");
    listener.local_addr().expect("it is bound").port()
}

// ---- DNS

#[test]
fn a_name_that_resolves_only_later_is_joined_once_it_does() {
    real(async {
        let dns = DnsServer::start();
        let a = started(local("a")).await;
        let b = started(using(&dns, "b").seeds(FromDns::new(format!("late.example.:{}", port(&a))))).await;
        let asked = || dns.asked().iter().filter(|asked| asked.name == "late.example.").count();
        // Twice for each family: it was told that there is no such name, and has come back.
        wait_until("it asks again", || asked() >= 4).await;
        assert_eq!(b.view().alive_count(), 1);
        dns.host("late.example.", &[V4]);
        assert_eq!(b.ready(Until::Members(2), PATIENCE).await, Ok(true));
        assert_eq!(b.metrics().discoveries_failed, 0);
    });
}

#[test]
fn a_name_that_moves_is_followed_whatever_its_answer_said_about_keeping_it() {
    real(async {
        let dns = DnsServer::start();
        let resolver = DnsResolver::with_servers(&[dns.addr()]);
        for ip in [[127, 0, 0, 1], [127, 0, 0, 2], [127, 0, 0, 1]].map(IpAddr::from) {
            dns.host("moves.example.", &[ip]);
            let found = resolver.resolve("moves.example.", 7).await.expect("it is known");
            assert_eq!(found, [SocketAddr::new(ip, 7)]);
        }
    });
}

#[test]
fn an_answer_that_udp_cuts_off_is_asked_for_over_tcp() {
    real(async {
        let dns = DnsServer::start();
        let a = started(local("a")).await;
        // Nobody listens at the others.
        let addrs: Vec<IpAddr> = (0..60).map(|i| [127, 0, 1, i].into()).chain([V4]).collect();
        dns.host("many.example.", &addrs);
        let found = DnsResolver::with_servers(&[dns.addr()]).resolve("many.example.", 1).await;
        assert_eq!(found.expect("it is known").len(), 61);
        let tcp: Vec<bool> =
            dns.asked().into_iter().filter(|a| a.kind == RecordType::A).map(|a| a.tcp).collect();
        assert_eq!(tcp, [false, true]);
        let b = started(using(&dns, "b")).await;
        let joined = b.join(&[&format!("many.example.:{}", port(&a))]).await.expect("one of them answers");
        assert_eq!(joined.reached, [a.view().local().id.clone()]);
    });
}

#[test]
fn a_service_gives_hosts_with_ports_of_their_own() {
    real(async {
        let dns = DnsServer::start();
        let (a, b) = (started(local("a")).await, started(local("b")).await);
        let (pa, pb) = (port(&a), port(&b));
        dns.service("_gossip._tcp.example.", &[("a.example.", pa), ("b.example.", pb), ("no.example.", 9)]);
        dns.host("a.example.", &[V4]);
        dns.host("b.example.", &[V4]);
        let c = started(using(&dns, "c")).await;
        let joined = c.join(&["_gossip._tcp.example"]).await.expect("a and b answer");
        let [a, b] = [a, b].map(|node| node.view().local().id.clone());
        assert_eq!(joined.reached, [a, b]);
        let none = c.join(&["_nothing._tcp.example"]).await.expect_err("there is no such service");
        assert!(none.to_string().contains("_nothing._tcp.example: no such name"), "{none}");
    });
}

#[test]
fn of_a_name_with_both_families_the_one_that_answers_is_enough() {
    real(async {
        let dns = DnsServer::start();
        let a = started(local("a")).await;
        dns.host("both.example.", &[V4, V6]);
        let b = started(using(&dns, "b")).await;
        let joined = b.join(&[&format!("both.example:{}", port(&a))]).await.expect("IPv4 answers");
        assert_eq!(joined.reached.len(), 1);
        let both = DnsResolver::with_servers(&[dns.addr()]).resolve("both.example", 1).await;
        assert_eq!(both.expect("it is known").len(), 2);

        // And the other way round, where there is IPv6.
        if TcpListener::bind((V6, 0)).is_ok() {
            let six = |name| using(&dns, name).bind((V6, 0).into());
            let (c, d) = (started(six("c")).await, started(six("d")).await);
            d.join(&[&format!("both.example:{}", port(&c))]).await.expect("IPv6 answers");
        }
    });
}

#[test]
fn a_family_whose_question_is_never_answered_does_not_hold_up_the_other() {
    real(async {
        let dns = DnsServer::start();
        let a = started(local("a")).await;
        dns.host("half.example.", &[V4]);
        dns.mute("half.example.", RecordType::AAAA);
        // What waits for the second family would be told so after the 1.5 s that names have here.
        let b = started(using(&dns, "b")).await;
        let joined = b.join(&[&format!("half.example.:{}", port(&a))]).await;
        assert_eq!(joined.map(|joined| joined.reached.len()), Ok(1));
    });
}

#[test]
fn a_dns_server_that_never_answers_ends_as_an_error_that_names_the_seed_and_holds_up_no_other() {
    real(async {
        let dns = DnsServer::start();
        for kind in [RecordType::A, RecordType::AAAA] {
            dns.mute("hangs.example.", kind);
        }
        let (a, b) = (started(local("a")).await, started(using(&dns, "b")).await);
        let start = Instant::now();
        let error = b.join(&["hangs.example:1"]).await.expect_err("nobody answers");
        let took = start.elapsed();
        assert!(matches!(&error, JoinError::Resolve(text) if text.contains("hangs.example")), "{error}");
        // The limit is 2 s; the rest is for a busy machine.
        assert!(took < secs(10), "{took:?}");
        let own = format!("127.0.0.1:{}", port(&a));
        let joined = b.join(&["hangs.example:1", &own]).await.expect("a answers");
        assert!(matches!(&joined.failed[..], [(seed, JoinError::Resolve(_))] if seed == "hangs.example:1"));

        // With no server at all it is told at once.
        drop(dns);
        let none = started(local("c").resolver(DnsResolver::with_servers(&[]))).await;
        let error = none.join(&["x.example:1", "y.example:1"]).await.expect_err("nobody can be asked");
        let text = error.to_string();
        assert!(text.contains("x.example:1: cannot") && text.contains("y.example:1: cannot"), "{text}");
    });
}

#[test]
fn the_systems_resolver_knows_localhost() {
    real(async {
        let (a, b) = (started(local("a")).await, started(local("b")).await);
        b.join(&[&format!("a/localhost:{}", port(&a))]).await.expect("localhost is this host");
    });
}

// ---- a resolver of one's own, in virtual time

/// Names as a test sets them, and what is being resolved.
#[derive(Clone, Default)]
struct Names {
    hosts: Arc<Mutex<BTreeMap<String, Vec<SocketAddr>>>>,
    running: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

struct Running(Arc<AtomicUsize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.fetch_sub(1, SeqCst);
    }
}

impl Names {
    fn set(&self, name: &str, addrs: impl IntoIterator<Item = SocketAddr>) {
        self.hosts.lock().expect("no panic").insert(name.to_owned(), addrs.into_iter().collect());
    }
}

impl Resolver for Names {
    fn resolve(&self, name: &str, _: u16) -> Resolving {
        self.calls.fetch_add(1, SeqCst);
        match name {
            "panics" => panic!("a resolver of the test's own"),
            "hangs" => {
                self.running.fetch_add(1, SeqCst);
                let running = Running(self.running.clone());
                Box::pin(async move {
                    let _running = running;
                    pending().await
                })
            }
            _ => {
                let found = self.hosts.lock().expect("no panic").get(name).cloned();
                Box::pin(ready(found.ok_or_else(|| io::ErrorKind::NotFound.into())))
            }
        }
    }
}

/// A node whose loops are all switched off, but that of its sources.
fn silent() -> Config {
    let zero = Duration::ZERO;
    Config { probe_interval: zero, gossip_interval: zero, push_pull_interval: zero, ..Config::lan() }
}

#[test]
fn a_name_with_dead_addresses_is_joined_as_soon_as_one_answers() {
    paused(async {
        let (mut world, names) = (World::new(1, silent()), Names::default());
        world.start(1).await;
        let node = started(world.builder(1).resolver(names.clone())).await;
        for i in 500..520 {
            world.network.cut(addr(1), addr(i));
        }
        // Twenty that never answer, twenty that refuse, and one.
        names.set("some", (500..540).map(addr).chain([addr(0)]));
        let start = Instant::now();
        let joined = node.join(&["some"]).await.expect("one answers");
        assert_eq!(joined.reached, [world.nodes[0].view().local().id.clone()]);
        assert!(start.elapsed() < secs(1), "{:?}", start.elapsed());
    });
}

#[test]
fn of_a_name_with_very_many_addresses_some_are_tried_and_the_rest_is_counted() {
    paused(async {
        let (world, names) = (World::new(2, silent()), Names::default());
        let node = started(world.builder(0).resolver(names.clone())).await;
        names.set("all", (1..=300).map(addr));
        assert!(node.join(&["all"]).await.is_err());
        assert_eq!((world.network.stats().dials, node.metrics().dropped["too_many_addresses"]), (64, 236));
        // Not the same ones each time: all that a few joins try together.
        let one = started(world.builder(300)).await;
        let mut joins = 0;
        while node.join(&["all"]).await.is_err() {
            joins += 1;
            assert!(joins < 60, "the last of them is never tried");
        }
        one.shutdown().await;
    });
}

#[test]
fn a_join_that_is_dropped_leaves_no_name_behind_that_is_being_resolved() {
    paused(async {
        let (world, names) = (World::new(3, silent()), Names::default());
        let node = started(world.builder(0).resolver(names.clone())).await;
        let seeds = vec!["hangs"; 300];
        assert!(timeout(secs(2), node.join(&seeds)).await.is_err());
        sleep(ms(1)).await;
        assert_eq!(names.running.load(SeqCst), 0);
        let calls = names.calls.load(SeqCst);
        assert!(calls > 64, "{calls}");
        sleep(secs(30)).await;
        assert_eq!(names.calls.load(SeqCst), calls);
        // And one that is not dropped ends in its time.
        let start = Instant::now();
        let error = node.join(&seeds).await.expect_err("nobody answers").to_string();
        assert!(start.elapsed() <= Config::lan().join_timeout + ms(10), "{:?}", start.elapsed());
        assert!(error.contains("hangs: cannot resolve hangs: no answer within 7.5s"), "{error}");
        assert_eq!(names.running.load(SeqCst), 0);
    });
}

#[test]
fn a_resolver_that_panics_fails_its_seed_alone() {
    paused(async {
        let (mut world, names) = (World::new(4, silent()), Names::default());
        world.start(1).await;
        let node = started(world.builder(1).resolver(names).seeds(["panics", "10.0.0.1"])).await;
        assert_eq!(node.ready(Until::Members(2), secs(5)).await, Ok(true));
        let joined = node.join(&["panics", "10.0.0.1"]).await.expect("one answers");
        let [(seed, JoinError::Resolve(why))] = &joined.failed[..] else { panic!("{:?}", joined.failed) };
        assert!(seed == "panics" && why.contains("a resolver of the test's own"), "{why}");
        let nobody = node.join(&["unknown"]).await.expect_err("there is none");
        assert!(nobody.to_string().contains("unknown"), "{nobody}");
    });
}

#[test]
fn a_thousand_seeds_of_which_half_are_dead_are_joined_within_two_seconds() {
    paused(async {
        let (mut world, live) = (World::new(5, silent()), 50);
        world.start(live + 1).await;
        let black = 200..450;
        for i in black.clone() {
            world.network.cut(addr(0), addr(i));
        }
        // 250 that never answer come first, then 250 that refuse, then 500 for fifty nodes that live.
        let dead = black.chain(450..700);
        let alive = (0..500).map(|i| 1 + i % live);
        let seeds: Vec<String> = dead.chain(alive).map(|i| addr(i).to_string()).collect();
        let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
        let (node, start) = (&world.nodes[0], Instant::now());
        let (joined, took) = tokio::join!(node.join(&seeds), async {
            assert_eq!(node.ready(Until::Members(live + 1), secs(60)).await, Ok(true));
            start.elapsed()
        });
        assert!(took <= secs(2), "{took:?}");
        let joined = joined.expect("half of them answer");
        assert!(start.elapsed() <= Config::lan().join_timeout + ms(10), "{:?}", start.elapsed());
        assert_eq!((joined.reached.len(), joined.failed.len()), (live, 500));
    });
}

#[test]
fn seeds_that_never_answer_do_not_use_up_the_streams_of_the_node_however_many_they_are() {
    paused(async {
        let mut world = World::new(6, silent());
        world.start(2).await;
        for i in 200..1100 {
            world.network.cut(addr(0), addr(i));
        }
        let seeds: Vec<String> = (200..1100).chain([1]).map(|i| addr(i).to_string()).collect();
        let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
        let joined = world.nodes[0].join(&seeds).await.expect("the last one answers");
        assert_eq!((joined.reached.len(), joined.failed.len()), (1, 900));
        assert!(joined.failed.iter().all(|(_, error)| *error == JoinError::Timeout));
        assert_eq!(world.nodes[0].metrics().dropped["too_many_streams"], 0);
    });
}

#[test]
fn a_thousand_seeds_on_loopback_of_which_half_refuse_are_joined() {
    real(async {
        let (a, b) = (started(local("a")).await, started(local("b")).await);
        let (dead, alive) = (dead_port(), port(&a));
        let seeds: Vec<String> =
            (0..1000).map(|i| format!("127.0.0.1:{}", if i % 2 == 0 { dead } else { alive })).collect();
        let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
        let joined = b.join(&seeds).await.expect("a answers");
        assert_eq!(joined.reached.len(), 1);
        let first = joined.failed.iter().find(|(_, error)| !matches!(error, JoinError::Unreachable(..)));
        assert_eq!((joined.failed.len(), first), (500, None));
    });
}

// ---- sources of seeds, in virtual time

fn list(seeds: impl IntoIterator<Item = usize>) -> Vec<String> {
    seeds.into_iter().map(|i| addr(i).to_string()).collect()
}

async fn with_sources(world: &mut World, n: usize) {
    for i in 0..n {
        let builder = world.builder(i).seeds(list(0..n));
        world.nodes.push(started(builder).await);
    }
}

#[test]
fn nodes_that_know_a_list_find_each_other_in_whatever_order_they_start() {
    let run = |seed| {
        paused(async move {
            let mut world = World::new(seed, Config::lan());
            for i in 0..5 {
                let builder = world.builder(i).seeds(list(0..5));
                world.nodes.push(started(builder).await);
                sleep(secs(7)).await;
            }
            let whole = |world: &World| world.nodes.iter().all(|node| node.view().alive_count() == 5);
            assert!(world.wait_until(secs(30), whole).await.is_some(), "{}", world.disagreements(5));
            sleep(secs(120)).await;
            world.trace.hash()
        })
    };
    assert_eq!(run(1), run(1), "chance has come in from outside");
    assert_ne!(run(1), run(2));
}

#[test]
fn members_are_not_joined_again_and_a_node_that_has_left_looks_for_nobody() {
    paused(async {
        let mut world = World::new(7, silent());
        with_sources(&mut world, 3).await;
        let whole = |world: &World| world.nodes.iter().all(|node| node.view().alive_count() == 3);
        assert!(world.wait_until(secs(60), whole).await.is_some(), "{}", world.disagreements(3));
        sleep(secs(5)).await;
        let (before, looks) = (world.network.stats().dials, world.nodes[0].metrics().discoveries);
        sleep(secs(600)).await;
        assert_eq!(world.network.stats().dials, before);
        let looked = world.nodes[0].metrics().discoveries - looks;
        assert!((16..=27).contains(&looked), "{looked} looks in 600 s, one each 30 s or so");

        world.nodes[0].leave(secs(1)).await.expect("it runs");
        sleep(secs(1)).await;
        let looks = world.nodes[0].metrics().discoveries;
        sleep(secs(600)).await;
        assert_eq!(world.nodes[0].metrics().discoveries, looks);
    });
}

#[test]
fn with_an_interval_of_zero_a_node_looks_only_while_it_is_alone() {
    paused(async {
        let config = Config { discover_interval: Duration::ZERO, probe_interval: secs(1), ..silent() };
        let mut world = World::new(8, config);
        world.nodes.push(started(world.builder(0).seeds(list([1]))).await);
        sleep(secs(60)).await;
        let looks = || world.nodes[0].metrics().discoveries;
        assert!((7..=11).contains(&looks()), "{} looks of a node alone for a minute", looks());
        let one = started(world.builder(1)).await;
        assert_eq!(world.nodes[0].ready(Until::Members(2), secs(15)).await, Ok(true));
        let before = looks();
        sleep(secs(600)).await;
        assert_eq!(looks(), before);
        // The other one dies: it is alone again.
        one.shutdown().await;
        sleep(secs(120)).await;
        assert!(looks() > before);
    });
}

#[test]
fn a_name_that_moves_is_followed_by_a_source() {
    paused(async {
        let (mut world, names) = (World::new(9, Config::lan()), Names::default());
        world.start(2).await;
        names.set("db", [addr(0)]);
        let node = started(world.builder(2).resolver(names.clone()).seeds(FromDns::new("db"))).await;
        assert_eq!(node.ready(Until::Members(2), secs(5)).await, Ok(true));
        world.kill(0).await;
        names.set("db", [addr(1)]);
        let found = |_: &World| node.view().get("n001").is_some();
        assert!(world.wait_until(secs(60), found).await.is_some());
    });
}

#[test]
fn two_halves_that_gave_each_other_up_meet_again_through_their_seeds() {
    paused(async {
        let mut world = World::new(10, Config::lan());
        with_sources(&mut world, 4).await;
        let whole = |world: &World| world.nodes.iter().all(|node| node.view().alive_count() == 4);
        assert!(world.wait_until(secs(60), whole).await.is_some(), "{}", world.disagreements(4));
        world.network.partition(&[addr(0), addr(1)], &[addr(2), addr(3)]);
        let apart = |world: &World| world.all_hold(0..2, 3, MemberState::Dead);
        assert!(world.wait_until(secs(120), apart).await.is_some());
        // Longer than the dead get gossip.
        sleep(secs(300)).await;
        world.network.heal();
        assert!(world.wait_until(secs(60), whole).await.is_some(), "{}", world.disagreements(4));
    });
}

#[test]
fn of_a_list_that_is_too_long_the_rest_is_dropped_and_counted() {
    paused(async {
        let world = World::new(11, silent());
        let node = started(world.builder(0).seeds(vec!["10.0.0.1:7946"; 1030])).await;
        sleep(ms(100)).await;
        let metrics = node.metrics();
        assert_eq!((metrics.discoveries, metrics.dropped["too_many_seeds"]), (1, 6));
        let mut many = world.builder(1);
        for _ in 0..17 {
            many = many.seeds(["a"]);
        }
        let error = many.start().await.expect_err("too many").to_string();
        assert!(error.contains("17 sources") && error.contains("at most 16"), "{error}");
    });
}

// ---- sources on threads of their own

/// A source that does what it is told, and says what becomes of it.
struct Odd {
    asked: Arc<AtomicUsize>,
    does: Does,
    ended: mpsc::Sender<&'static str>,
}

enum Does {
    Panic,
    Hang,
    /// Until something is sent.
    Block(mpsc::Receiver<()>),
}

struct Ends(mpsc::Sender<&'static str>, &'static str);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.send(self.1);
    }
}

impl Drop for Odd {
    fn drop(&mut self) {
        let _ = self.ended.send("source");
    }
}

impl Discover for Odd {
    fn seeds(&mut self) -> Seeds<'_> {
        self.asked.fetch_add(1, SeqCst);
        let ends = Ends(self.ended.clone(), "answer");
        match &self.does {
            Does::Panic => Box::pin(async move {
                let _ends = ends;
                panic!("a source of the test's own")
            }),
            Does::Hang => Box::pin(async move {
                let _ends = ends;
                pending().await
            }),
            Does::Block(until) => {
                let _ = until.recv();
                Box::pin(ready(Ok(Vec::new())))
            }
        }
    }
}

#[test]
fn sources_that_panic_hang_or_block_disturb_neither_the_node_nor_each_other() {
    real(async {
        let a = started(local("a")).await;
        let asked: [Arc<AtomicUsize>; 3] = Default::default();
        let (ended, ends) = mpsc::channel();
        let (release, block) = mpsc::channel();
        // It is asked again after the half second that an answer may take.
        let config = Config { join_timeout: ms(500), discover_interval: ms(100), ..Config::local() };
        let mut builder = local("b").config(config);
        for (does, asked) in [Does::Panic, Does::Hang, Does::Block(block)].into_iter().zip(&asked) {
            builder = builder.seeds(Odd { asked: asked.clone(), does, ended: ended.clone() });
        }
        drop(ended);
        let b = started(builder.seeds(list_of(&a))).await;
        // The blocked thread does not keep it from joining, from being joined, and from living on.
        assert_eq!(b.ready(Until::Members(2), PATIENCE).await, Ok(true));
        let c = started(local("c")).await;
        c.join(&[&b.view().local().addr.to_string()]).await.expect("b answers");
        let times = || asked.each_ref().map(|asked| asked.load(SeqCst));
        wait_until("they are asked again", || times()[0] >= 3 && times()[1] >= 3).await;
        assert_eq!(times()[2], 1, "one question at a time");
        assert!(b.metrics().discoveries_failed >= 4);
        assert_eq!(b.metrics().restarts.values().sum::<u64>(), 0);
        let why = b.why("a").map(|why| format!("{why:?}"));
        assert_eq!((b.view().alive_count(), why), (3, None));

        // With the node end those that can; the other one does not keep it from ending.
        timeout(PATIENCE, b.shutdown()).await.expect("it does not wait for a thread that blocks");
        let mut sources = 0;
        while sources < 2 {
            if ends.recv_timeout(PATIENCE).expect("an end") == "source" {
                sources += 1;
            }
        }
        release.send(()).expect("it still waits");
        while sources < 3 {
            if ends.recv_timeout(PATIENCE).expect("the last end") == "source" {
                sources += 1;
            }
        }
        // No answer is left under way either: all their ends of the channel are gone.
        while ends.recv_timeout(PATIENCE).is_ok() {}
        assert_eq!(ends.recv_timeout(PATIENCE), Err(mpsc::RecvTimeoutError::Disconnected));
    });
}

fn list_of(node: &Cluster) -> Vec<String> {
    vec![node.view().local().addr.to_string()]
}

/// A directory of its own, gone when this is dropped.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("memberlist-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_file_is_read_anew_each_time_and_need_not_be_there_at_first() {
    real(async {
        let dir = Dir::new("file");
        let path = dir.0.join("seeds");
        let a = started(local("a")).await;
        let b = started(local("b").seeds(FromFile::new(&path))).await;
        wait_until("it has looked twice in vain", || b.metrics().discoveries_failed >= 2).await;
        let text = format!("# the others\n\n{} # a\n", list_of(&a)[0]);
        // Moved into place, as a file is that others read.
        std::fs::write(path.with_extension("new"), text).expect("there is room");
        std::fs::rename(path.with_extension("new"), &path).expect("the same directory");
        assert_eq!(b.ready(Until::Members(2), PATIENCE).await, Ok(true));

        let missing = FromFile::new(dir.0.join("none")).seeds().await.expect_err("it is not there");
        assert!(missing.to_string().contains("none: "), "{missing}");
        let folder = FromFile::new(&dir.0).seeds().await.expect_err("no file");
        assert!(folder.to_string().contains("not a regular file"), "{folder}");
        std::fs::write(&path, vec![b'#'; (1 << 20) + 1]).expect("there is room");
        let large = FromFile::new(&path).seeds().await.expect_err("too large");
        assert!(large.to_string().contains("more than 1048576 bytes"), "{large}");
    });
}

#[cfg(unix)]
mod commands {
    use nix::{sys::signal::kill, unistd::Pid};

    use super::*;

    fn sh(script: &str) -> FromCommand {
        FromCommand::new("sh").arg("-c").arg(script)
    }

    /// The process whose number a command has written there.
    async fn pid_in(path: &PathBuf) -> Pid {
        let read = || std::fs::read_to_string(path).unwrap_or_default().trim().parse().ok();
        wait_until("the command runs", || read().is_some()).await;
        Pid::from_raw(read().expect("a number"))
    }

    fn lives(pid: Pid) -> bool {
        kill(pid, None).is_ok()
    }

    #[test]
    fn a_command_says_the_seeds() {
        real(async {
            let a = started(local("a")).await;
            let script = format!("echo '# ours'; echo {}", list_of(&a)[0]);
            let b = started(local("b").seeds(sh(&script))).await;
            assert_eq!(b.ready(Until::Members(2), PATIENCE).await, Ok(true));
        });
    }

    #[test]
    fn a_command_that_fails_or_says_too_much_is_an_error_with_its_reason() {
        real(async {
            let failed =
                sh("echo x; echo no luck >&2; exit 3").seeds().await.expect_err("it fails").to_string();
            assert!(
                failed.starts_with("sh: ") && failed.contains('3') && failed.contains("no luck"),
                "{failed}"
            );
            let long = sh("while :; do echo 10.0.0.1:7946; done").seeds().await.expect_err("it never ends");
            assert!(long.to_string().contains("more than 524288 bytes"), "{long}");
            let loud =
                sh("while :; do echo no >&2; done").within(ms(300)).seeds().await.expect_err("too long");
            assert_eq!(loud.kind(), io::ErrorKind::TimedOut);
            let none = FromCommand::new("no such program").seeds().await.expect_err("there is none");
            assert_eq!(none.kind(), io::ErrorKind::NotFound);
        });
    }

    #[test]
    fn a_command_that_hangs_is_killed_in_time_and_with_its_node() {
        real(async {
            let dir = Dir::new("command");
            let (one, other) = (dir.0.join("one"), dir.0.join("other"));
            let hang = |path: &PathBuf| sh(&format!("echo $$ > {}; exec sleep 1000", path.display()));
            let late = hang(&one).within(ms(500)).seeds().await.expect_err("it hangs");
            assert!(late.to_string().contains("longer than 500ms"), "{late}");
            assert!(!lives(pid_in(&one).await));

            let patient = Config { join_timeout: secs(600), ..Config::local() };
            let node = started(local("b").config(patient).seeds(hang(&other).within(secs(600)))).await;
            let pid = pid_in(&other).await;
            assert!(lives(pid));
            node.shutdown().await;
            wait_until("it is killed", || !lives(pid)).await;
        });
    }
}
