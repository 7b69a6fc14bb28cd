//! Who is let in: networks that are allowed, versions that understand each other, wires of other versions; and
//! what a node is known by that is bound to all addresses of its host.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    pin::Pin,
    sync::Arc,
    task::{Context as Cx, Poll},
    time::{Duration, Instant},
};

use actix::Arbiter;
use actix_memberlist::{
    Cluster, Config, JoinError, MemberState, Refusal, StartError, Until, VersionRange,
    network::{
        Binding, Connection, Dialing, Endpoint, Host, Interface, Network, SystemNetwork,
        memory::MemoryNetwork,
    },
};
use memberlist_protocol::wire::frame::{Envelope, OTHER_WIRE, StreamKind};
use memberlist_tests::{World, paused};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn allowing(nets: &[&str]) -> Config {
    let nets = nets.iter().map(|net| net.parse().expect("a network")).collect();
    Config { cidrs_allowed: Some(nets), ..Config::lan() }
}

/// A node with settings of its own, somewhere in a world.
async fn node(world: &World, name: &str, at: &str, config: Config) -> Cluster {
    Cluster::builder(name)
        .config(config)
        .bind(at.parse().expect("an address"))
        .plaintext()
        .network(world.network.clone())
        .arbiter(Arbiter::current())
        .seed(name.bytes().map(u64::from).sum())
        .without_watchdog()
        .start()
        .await
        .expect("a node starts")
}

fn only_failure(error: JoinError) -> JoinError {
    match error {
        JoinError::NoneReached(mut failed) if failed.len() == 1 => failed.remove(0).1,
        other => other,
    }
}

async fn join(node: &Cluster, seed: &str) -> Result<(), JoinError> {
    node.join(&[seed]).await.map(drop).map_err(only_failure)
}

fn names(node: &Cluster) -> Vec<String> {
    let mut names: Vec<_> = node.view().all().map(|m| m.name().to_owned()).collect();
    names.sort();
    names
}

fn dropped(node: &Cluster, reason: &str) -> u64 {
    node.metrics().dropped[reason]
}

#[test]
fn members_of_different_networks_that_one_list_covers_meet() {
    paused(async {
        let world = World::new(14, Config::lan());
        let a = node(&world, "a", "10.1.0.1:7946", allowing(&["10.0.0.0/8"])).await;
        let b = node(&world, "b", "10.2.0.1:7946", allowing(&["10.0.0.0/8"])).await;
        join(&b, "10.1.0.1").await.expect("b is allowed");
        for node in [&a, &b] {
            assert_eq!(node.ready(Until::Members(2), secs(5)).await, Ok(true));
        }
    });
}

#[test]
fn weak_point_14_whoever_is_outside_the_list_is_neither_heard_nor_taken_in() {
    paused(async {
        let world = World::new(14, Config::lan());
        let list = ["10.1.0.0/24", "10.2.0.0/24"];
        let a = node(&world, "a", "10.1.0.1:7946", allowing(&list)).await;
        let b = node(&world, "b", "10.2.0.1:7946", allowing(&list)).await;
        join(&b, "10.1.0.1").await.expect("b is allowed");

        // A rogue allows everybody, and is let in by nobody.
        let rogue = node(&world, "rogue", "10.3.0.1:7946", Config::lan()).await;
        let refused = join(&rogue, "10.1.0.1").await;
        assert!(matches!(refused, Err(JoinError::NoAnswer(_))), "{refused:?}");
        assert_eq!(names(&rogue), ["rogue"], "it is told nothing either");
        assert_eq!(dropped(&a, "not_allowed_stream"), 1);
        assert_eq!(a.metrics().streams_accepted, 1, "that of b; nothing of the other was read");

        // Those inside do not dial outside.
        let outside = "10.3.0.1:7946".parse().expect("an address");
        assert_eq!(join(&a, "10.3.0.1").await, Err(JoinError::NotAllowed(outside)));

        // A good one in between that is not so strict brings the rogue to nobody's table but its own.
        let open = node(&world, "open", "10.2.0.2:7946", Config::lan()).await;
        join(&open, "10.1.0.1").await.expect("it is allowed");
        join(&rogue, "10.2.0.2").await.expect("it takes everybody");
        tokio::time::sleep(secs(60)).await;
        assert_eq!(names(&open), ["a", "b", "open", "rogue"]);
        for node in [&a, &b] {
            assert_eq!(names(node), ["a", "b", "open"]);
            assert!(dropped(node, "not_allowed_member") > 0 && dropped(node, "not_allowed_packet") > 0);
        }
    });
}

#[test]
fn weak_point_14_an_allowed_stream_brings_no_member_whose_address_is_not() {
    paused(async {
        let world = World::new(14, Config::lan());
        let a = node(&world, "a", "10.1.0.1:7946", allowing(&["10.1.0.0/24"])).await;
        let liar = Cluster::builder("liar")
            .bind("10.1.0.9:7946".parse().expect("an address"))
            .advertise("10.9.9.9:7946".parse().expect("an address"))
            .plaintext()
            .network(world.network.clone())
            .arbiter(Arbiter::current())
            .seed(9)
            .without_watchdog()
            .start()
            .await
            .expect("a node starts");
        assert_eq!(join(&liar, "10.1.0.1").await, Err(JoinError::Refused(Refusal::Address)));
        assert_eq!(join(&a, "10.1.0.9").await, Err(JoinError::Refused(Refusal::Address)));
        assert_eq!(names(&a), ["a"]);
        assert_eq!(dropped(&a, "refused_address"), 2);
    });
}

#[test]
fn weak_point_14_with_an_empty_list_a_node_is_alone_and_with_one_that_denies_itself_it_does_not_start() {
    paused(async {
        let world = World::new(14, Config::lan());
        let alone = node(&world, "alone", "10.1.0.1:7946", allowing(&[])).await;
        let other = node(&world, "other", "10.1.0.2:7946", Config::lan()).await;
        assert!(join(&other, "10.1.0.1").await.is_err());
        assert!(matches!(join(&alone, "10.1.0.2").await, Err(JoinError::NotAllowed(_))));
        assert_eq!((names(&alone), alone.view().local().state), (vec!["alone".into()], MemberState::Alive));

        let denied = world.builder(3).config(allowing(&["192.168.0.0/16"])).start().await;
        let Err(StartError::Config(error)) = denied else { panic!("it starts") };
        assert_eq!(error.field, "cidrs_allowed");
        assert!(error.limit.contains("10.0.0.4"), "{error}");
    });
}

/// Over real sockets, where IPv4 comes in its mapped form to a socket of IPv6.
#[actix::test]
async fn weak_point_14_a_mapped_source_is_the_ipv4_address_that_it_is() {
    let start = |nets: &[&str]| {
        Cluster::builder("a")
            .config(allowing(nets))
            .bind("[::]:0".parse().expect("an address"))
            .advertise("127.0.0.1:0".parse().expect("an address"))
            .plaintext()
            .start()
    };
    let open = start(&["127.0.0.0/8"]).await.expect("it starts");
    let at = SocketAddr::from(([127, 0, 0, 1], open.view().local().addr.port()));
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(b"GET /", at)).expect("it is sent");
    assert!(within(secs(20), || dropped(&open, "foreign") == 1).await);
    assert_eq!(dropped(&open, "not_allowed_packet"), 0);
    TcpStream::connect(at).and_then(|mut stream| stream.write_all(b"GET /")).expect("it is taken");
    assert!(within(secs(20), || dropped(&open, "foreign") == 2).await);
    assert_eq!(dropped(&open, "not_allowed_stream"), 0);
    open.shutdown().await;

    let shut = start(&["127.0.0.1/32"]).await.expect("it starts");
    let at = SocketAddr::from(([127, 0, 0, 1], shut.view().local().addr.port()));
    // Another address of loopback; not every system has more than one.
    if let Ok(socket) = UdpSocket::bind("127.0.0.2:0") {
        socket.send_to(b"GET /", at).expect("it is sent");
        assert!(within(secs(20), || dropped(&shut, "not_allowed_packet") == 1).await);
        assert_eq!(dropped(&shut, "foreign"), 0);
    }
    shut.shutdown().await;
}

async fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        if start.elapsed() > limit {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

fn speaking(min: u8, max: u8, current: u8) -> Config {
    Config { delegate_version: VersionRange { min, max, current }, ..Config::lan() }
}

#[test]
fn weak_point_05_a_version_that_nobody_understands_is_refused_on_both_sides() {
    paused(async {
        let world = World::new(5, Config::lan());
        let old = node(&world, "old", "10.0.0.1:7946", speaking(1, 1, 1)).await;
        let new = node(&world, "new", "10.0.0.2:7946", speaking(1, 2, 2)).await;
        for (dialler, at) in [(&new, "10.0.0.1"), (&old, "10.0.0.2")] {
            assert_eq!(join(dialler, at).await, Err(JoinError::Refused(Refusal::Version)));
        }
        // Each has refused once as the one that was dialled.
        assert_eq!([&old, &new].map(|node| dropped(node, "refused_version")), [1, 1]);
        assert_eq!([&old, &new].map(names), [["old"], ["new"]]);
    });
}

#[test]
fn weak_point_05_a_member_in_between_spreads_nobody_to_those_who_cannot_talk_to_it() {
    paused(async {
        let world = World::new(5, Config::lan());
        let old = node(&world, "old", "10.0.0.1:7946", speaking(1, 1, 1)).await;
        let both = node(&world, "both", "10.0.0.2:7946", speaking(1, 2, 1)).await;
        let new = node(&world, "new", "10.0.0.3:7946", speaking(1, 2, 2)).await;
        join(&both, "10.0.0.1").await.expect("they understand each other");
        join(&new, "10.0.0.2").await.expect("they understand each other");
        tokio::time::sleep(secs(120)).await;
        assert_eq!(
            [&old, &both, &new].map(names),
            [vec!["both", "old"], vec!["both", "new", "old"], vec!["both", "new"]]
        );
        assert!(dropped(&old, "incompatible") > 0 && dropped(&new, "incompatible") > 0);
        for node in [&old, &both, &new] {
            assert_eq!(
                dropped(node, "refused_version"),
                0,
                "an exchange counts, whoever else is told of in it"
            );
            assert!(node.view().all().all(|m| m.state == MemberState::Alive), "{:?}", node.view());
        }
        assert_eq!(both.view().get("new").map(|m| m.versions.delegate.current), Some(2));
    });
}

/// What a stream that is opened with `bytes` is answered, up to its end.
fn answer(to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(to).expect("it accepts");
    stream.set_read_timeout(Some(secs(30))).expect("a limit");
    stream.write_all(bytes).expect("it takes them");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).expect("an end");
    answer
}

async fn local() -> Cluster {
    let bind = SocketAddr::from(([127, 0, 0, 1], 0));
    Cluster::builder("a").config(Config::local()).bind(bind).start().await.expect("it starts")
}

#[actix::test]
async fn a_stream_of_a_later_wire_is_told_so_and_a_packet_of_one_is_counted() {
    let node = local().await;
    let at = node.view().local().addr;
    for (i, first) in [0xB2, 0xBF].into_iter().enumerate() {
        // As short as the answer, and longer than what is read of it.
        for bytes in [vec![first; OTHER_WIRE.len()], vec![first; 100_000]] {
            assert_eq!(answer(at, &bytes), OTHER_WIRE);
        }
        assert!(within(secs(20), || dropped(&node, "wire_version") == 2 * (i as u64 + 1)).await);
    }
    UdpSocket::bind("127.0.0.1:0").and_then(|socket| socket.send_to(&[0xB2, 0, 1], at)).expect("it is sent");
    assert!(within(secs(20), || dropped(&node, "wire_version") == 5).await);
    node.shutdown().await;
}

/// A node of a later wire, as one that this node dials sees it.
fn later_wire(listener: TcpListener, read_first: usize) -> std::thread::JoinHandle<()> {
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a stream");
        stream.read_exact(&mut vec![0; read_first]).expect("a stream's beginning");
        stream.write_all(&[0xFF, 0xFF, 0xFF, 0xFF, 0xB2, 0xB4]).expect("it is heard");
        // By then the node may have heard enough, and have gone.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    })
}

#[actix::test]
async fn whoever_dials_a_node_of_a_later_wire_is_told_so() {
    let node = local().await;
    let opening = Envelope::new("").expect("no label").open_stream(StreamKind::PushPull).len();
    for read_first in [1, opening + 4] {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let at = listener.local_addr().expect("its address").to_string();
        let later = later_wire(listener, read_first);
        assert_eq!(join(&node, &at).await, Err(JoinError::Refused(Refusal::Wire)));
        later.join().expect("it ends well");
    }
    assert_eq!(dropped(&node, "wire_version"), 2);
    node.shutdown().await;
}

/// A connection that takes nothing any more, but still has an answer to be read.
struct HalfClosed(&'static [u8]);

impl AsyncRead for HalfClosed {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Cx<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(buf.remaining().min(self.0.len()));
        buf.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for HalfClosed {
    fn poll_write(self: Pin<&mut Self>, _: &mut Cx<'_>, _: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Cx<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// A network on which every dial ends in a connection like that.
#[derive(Clone)]
struct Hasty(MemoryNetwork, &'static [u8]);

impl Network for Hasty {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let (inner, answer) = (self.0.bind(addr), self.1);
        Box::pin(async move { Ok(Arc::new(HastyEndpoint(inner.await?, answer)) as Arc<dyn Endpoint>) })
    }
}

struct HastyEndpoint(Arc<dyn Endpoint>, &'static [u8]);

impl Endpoint for HastyEndpoint {
    fn local_addr(&self) -> SocketAddr {
        self.0.local_addr()
    }
    fn poll_readable(&self, cx: &mut Cx<'_>) -> Poll<io::Result<()>> {
        self.0.poll_readable(cx)
    }
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.0.try_recv(buf)
    }
    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.0.try_send(datagram, to)
    }
    fn poll_accept(&self, cx: &mut Cx<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        self.0.poll_accept(cx)
    }
    fn dial(&self, _: SocketAddr) -> Dialing {
        let connection = Box::new(HalfClosed(self.1)) as Box<dyn Connection>;
        Box::pin(async move { Ok(connection) })
    }
}

/// One of a later wire may answer, and close, when it has seen no more than the first byte.
#[test]
fn whoever_is_refused_while_it_still_writes_reads_why() {
    paused(async {
        let cases: [(&[u8], JoinError); 2] = [
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0xB2, 0xB2], JoinError::Refused(Refusal::Wire)),
            (&[], JoinError::NoAnswer("10.0.0.2:7946".parse().expect("an address"))),
        ];
        for (answer, expected) in cases {
            let node = Cluster::builder("a")
                .bind("10.0.0.1:7946".parse().expect("an address"))
                .plaintext()
                .network(Hasty(MemoryNetwork::new(6), answer))
                .arbiter(Arbiter::current())
                .without_watchdog()
                .start()
                .await
                .expect("a node starts");
            assert_eq!(join(&node, "10.0.0.2").await, Err(expected));
        }
    });
}

/// A network whose host is as a test says.
struct On<N>(N, Host);

impl<N: Network> Network for On<N> {
    fn bind(&self, addr: SocketAddr) -> Binding {
        self.0.bind(addr)
    }

    fn host(&self) -> Host {
        self.1.clone()
    }
}

fn host(ips: &[&str]) -> Host {
    let interface = |ip: &&str| Interface { name: "eth".into(), ip: ip.parse().expect("an IP"), up: true };
    Host { routed: Vec::new(), interfaces: ips.iter().map(interface).collect() }
}

#[test]
fn bound_to_all_a_node_is_known_by_an_address_of_its_host() {
    paused(async {
        let start = |host| {
            Cluster::builder("a")
                .bind("0.0.0.0:7946".parse().expect("an address"))
                .plaintext()
                .network(On(MemoryNetwork::new(1), host))
                .arbiter(Arbiter::current())
                .without_watchdog()
                .start()
        };
        let node = start(host(&["127.0.0.1", "169.254.0.1", "192.168.7.7"])).await.expect("it starts");
        assert_eq!(node.view().local().addr, "192.168.7.7:7946".parse().expect("an address"));

        let nowhere = start(host(&["127.0.0.1", "169.254.0.1"])).await;
        let Err(StartError::Config(error)) = nowhere else { panic!("it starts") };
        assert!(error.field == "advertise" && error.limit.contains(".advertise(..)"), "{error}");
    });
}

#[actix::test]
async fn whoever_listens_off_loopback_is_open_even_if_it_is_known_by_loopback() {
    let builder = || {
        Cluster::builder("a")
            .bind("0.0.0.0:0".parse().expect("an address"))
            .advertise("127.0.0.1:0".parse().expect("an address"))
    };
    let Err(StartError::Config(error)) = builder().start().await else { panic!("it starts") };
    assert_eq!(error.field, "key");
    let node = builder().plaintext().start().await.expect("it starts");
    assert!(node.view().local().addr.ip().is_loopback());
    node.shutdown().await;
}

#[test]
fn the_system_knows_its_own_interfaces() {
    let host = SystemNetwork.host();
    let loopback: [IpAddr; 2] = [[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
    assert!(host.interfaces.iter().any(|one| one.up && loopback.contains(&one.ip)), "{host:?}");
    for ip in &host.routed {
        assert!(host.interfaces.iter().any(|one| one.ip == *ip), "{ip} {host:?}");
    }
}
