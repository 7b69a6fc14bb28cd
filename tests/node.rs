//! One node and a few others: what it binds, what it tells its users, what becomes of it.

use std::{
    io,
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as Cx, Poll},
    time::Duration,
};

use actix::{Actor, Context, Handler};
use actix_memberlist::{
    Broadcast, Cluster, Config, Evidence, JoinError, MemberEvent, NodeEvent, Refusal, Replay, RestartPolicy,
    Until, UserBytes,
    network::{Binding, Connection, Dialing, Endpoint, Network, SystemNetwork},
    testing::Strikes,
};
use bytes::Bytes;
use futures_util::StreamExt;
use memberlist_protocol::wire::{
    frame::{Envelope, Packer},
    message::{Message, Suspect},
};
use memberlist_tests::{World, addr, events, paused};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const SOON: Duration = Duration::from_secs(10);

/// Passes on what it hears.
struct Ear<T>(mpsc::UnboundedSender<T>);

impl<T: Unpin + 'static> Actor for Ear<T> {
    type Context = Context<Self>;
}

impl Handler<NodeEvent> for Ear<NodeEvent> {
    type Result = ();
    fn handle(&mut self, event: NodeEvent, _: &mut Context<Self>) {
        let _ = self.0.send(event);
    }
}

impl Handler<UserBytes> for Ear<UserBytes> {
    type Result = ();
    fn handle(&mut self, bytes: UserBytes, _: &mut Context<Self>) {
        let _ = self.0.send(bytes);
    }
}

fn node_events(node: &Cluster) -> mpsc::UnboundedReceiver<NodeEvent> {
    let (sender, receiver) = mpsc::unbounded_channel();
    node.subscribe_node(Ear(sender).start().recipient()).expect("it runs").detach();
    receiver
}

fn user_bytes(node: &Cluster) -> mpsc::UnboundedReceiver<UserBytes> {
    let (sender, receiver) = mpsc::unbounded_channel();
    node.serve_bytes(Ear(sender).start().recipient()).expect("it runs").detach();
    receiver
}

async fn next<T>(events: &mut mpsc::UnboundedReceiver<T>) -> T {
    timeout(SOON, events.recv()).await.expect("in time").expect("there is one")
}

#[test]
fn port_0_is_one_port_for_datagrams_and_streams_over_ipv4_and_ipv6() {
    actix::System::new().block_on(async {
        for ip in [[127, 0, 0, 1].into(), std::net::IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let start = async |name: &str| {
                let bind = SocketAddr::new(ip, 0);
                Cluster::builder(name).config(Config::local()).bind(bind).start().await.expect("it starts")
            };
            let (a, b) = (start("a").await, start("b").await);
            let at = a.view().local().addr;
            assert_eq!(at.ip(), ip);
            assert!(std::net::UdpSocket::bind(at).is_err() && std::net::TcpListener::bind(at).is_err());
            b.join(&[&at.to_string()]).await.expect("it joins");
            assert_eq!(a.ready(Until::Members(2), SOON).await, Ok(true));
            b.shutdown().await;
            a.shutdown().await;
            assert!(std::net::UdpSocket::bind(at).is_ok(), "the port is free again");
        }
    });
}

#[test]
fn those_of_one_label_meet_and_no_others_do() {
    paused(async {
        let world = World::new(1, Config::lan());
        let a = world.builder(0).label("one").start().await.expect("it starts");
        let b = world.builder(1).label("another").start().await.expect("it starts");
        assert_eq!(b.join(&["10.0.0.1:7946"]).await.unwrap_err(), JoinError::Refused(Refusal::Label));
        assert!(a.metrics().dropped["label"] > 0);
        let none = world.builder(2).start().await.expect("it starts");
        assert!(none.join(&["10.0.0.1:7946"]).await.is_err() && a.join(&["10.0.0.3:7946"]).await.is_err());
        let c = world.builder(3).label("one").start().await.expect("it starts");
        c.join(&["10.0.0.1:7946"]).await.expect("it is the same label");
        for node in [&a, &c] {
            assert_eq!(node.ready(Until::Members(2), SOON).await, Ok(true));
        }
        sleep(SOON).await;
        assert_eq!([&a, &b, &none, &c].map(|node| node.view().all().count()), [2, 1, 1, 2]);
    });
}

#[test]
fn a_broadcast_reaches_each_node_once_and_a_newer_one_of_its_name_replaces_it() {
    paused(async {
        let world = World::cluster(2, Config { max_message_size: 4000, ..Config::lan() }, 20).await;
        let mut heard: Vec<_> = world.nodes.iter().map(user_bytes).collect();
        sleep(Duration::from_secs(1)).await;
        let named = |text: &'static str| Broadcast { name: Some("n".into()), ..Broadcast::new(text) };
        let old = world.nodes[0].broadcast_bytes(named("old")).expect("it fits");
        let new = world.nodes[0].broadcast_bytes(named("new")).expect("it fits");
        assert!(old.await.is_err(), "replaced before it left");
        assert_eq!(new.await, Ok(()));
        sleep(Duration::from_secs(5)).await;
        for (i, heard) in heard.iter_mut().enumerate() {
            let all: Vec<Bytes> = std::iter::from_fn(|| heard.try_recv().ok()).map(|m| m.bytes).collect();
            let expected: &[&[u8]] = if i == 0 { &[] } else { &[b"new"] };
            assert_eq!(all, expected, "node {i}");
        }
        // Its address goes in front of it, which takes some bytes.
        let error = world.nodes[0].broadcast_bytes(Broadcast::new(vec![0; 5000])).unwrap_err();
        assert!(error.to_string().contains("5000 bytes; at most 39"), "{error}");
    });
}

#[test]
fn metadata_and_tags_reach_everybody() {
    paused(async {
        let world = World::cluster(3, Config::lan(), 10).await;
        let mut seen = events(&world.nodes[9], Replay::None);
        world.nodes[0].set_meta(Bytes::from_static(b"meta")).await.expect("it fits");
        world.nodes[0].set_tags([("role".into(), "web".into())].into()).await.expect("they fit");
        let has = |world: &World| {
            world.nodes.iter().all(|node| {
                node.view().get("n000").is_some_and(|m| m.meta == "meta" && m.tags.contains_key("role"))
            })
        };
        world.wait_until(SOON, has).await.expect("everybody sees it");
        assert!(matches!(seen.next().await, Some(MemberEvent::Updated { .. })));
        let error = world.nodes[0].set_meta(vec![0; 513].into()).await.unwrap_err();
        assert_eq!(error.to_string(), "what is to be said takes 524 bytes; at most 512 are allowed");
    });
}

#[test]
fn a_restart_and_the_end_of_a_node_are_told() {
    paused(async {
        let world = World::new(
            4,
            Config {
                restarts: RestartPolicy { immediate: 1, delayed_before_all: 1, ..RestartPolicy::default() },
                ..Config::lan()
            },
        );
        let strikes = Strikes::default();
        let node = world.builder(0).strikes(strikes.clone()).start().await.expect("it starts");
        let mut told = node_events(&node);
        let mut stream = events(&node, Replay::None);
        let mut restarted = 0;
        loop {
            strikes.arm(("NodeState", "update"));
            let _ = node.set_meta(Bytes::new()).await;
            match next(&mut told).await {
                NodeEvent::Restarted { actor: "NodeState", nth, panic } => {
                    restarted += 1;
                    assert_eq!(nth, restarted);
                    assert!(panic.starts_with("struck: NodeState at update at "), "{panic}");
                }
                NodeEvent::GaveUp { actor: "NodeState" } => break,
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(next(&mut told).await, NodeEvent::Stopped));
        assert!(told.recv().await.is_none());
        assert!(restarted >= 3, "{restarted} restarts before it gave up");
        assert!(stream.next().await.is_none(), "the events end");
        assert!(node.set_meta(Bytes::new()).await.is_err());
    });
}

#[test]
fn an_accusation_that_cannot_be_does_not_hide_one_that_has_to_be_refuted() {
    paused(async {
        let world = World::new(5, Config::lan());
        let node = world.builder(0).start().await.expect("it starts");
        let outsider = world.network.bind(addr(9)).await.expect("a free address");
        let id = node.view().local().id.clone();
        let accuse = |incarnation| {
            let (from, evidence) = ("x".into(), Evidence::Hearsay);
            Message::Suspect(Suspect { id: id.clone(), incarnation, from, evidence })
        };
        let mut buf = [0; 1400];
        let mut packer = Packer::new(&Envelope::new("").expect("no label"), &mut buf);
        assert!(packer.push(&accuse(1)) && packer.push(&accuse(u32::MAX)) && packer.push(&accuse(0)));
        let packet = packer.finish().expect("three messages");
        outsider.try_send(&packet, addr(0)).expect("there is room");
        sleep(Duration::from_millis(50)).await;
        let metrics = node.metrics();
        assert_eq!((metrics.refutations, metrics.dropped["incarnation_step"]), (1, 1));
        assert_eq!(node.view().local().incarnation, 2);
    });
}

#[test]
fn events_that_a_panic_swallows_are_made_good_by_a_snapshot() {
    paused(async {
        let world = World::new(6, Config::lan());
        let strikes = Strikes::default();
        let node = world.builder(0).strikes(strikes.clone()).start().await.expect("it starts");
        let mut seen = events(&node, Replay::None);
        for round in 1..4 {
            if round == 2 {
                strikes.arm(("Delegates", "events"));
            }
            node.set_meta(Bytes::from(vec![round])).await.expect("it fits");
            match seen.next().await {
                Some(MemberEvent::Updated { rev, member, .. }) => {
                    assert!(round != 2 && member.meta == [round][..]);
                    assert_eq!(rev, u64::from(round) + 1);
                }
                Some(MemberEvent::Snapshot(view)) => {
                    assert!(round == 2 && view.local().meta == [2][..]);
                    assert_eq!(view.rev(), 3);
                }
                other => panic!("{other:?}"),
            }
        }
    });
}

#[test]
fn metadata_and_tags_that_come_at_once_do_not_exceed_their_room_together() {
    paused(async {
        let world = World::cluster(7, Config::lan(), 2).await;
        let node = &world.nodes[0];
        let tags = [("k".to_owned(), "v".repeat(400))].into();
        let both = futures_util::future::join(node.set_meta(vec![0; 400].into()), node.set_tags(tags)).await;
        assert!(both.0.is_ok() && both.1.is_err(), "{both:?}");
        let has = |world: &World| world.nodes[1].view().get("n000").is_some_and(|m| m.meta.len() == 400);
        world.wait_until(SOON, has).await.expect("the other sees it");
    });
}

#[test]
fn a_start_that_is_dropped_leaves_nothing_bound() {
    paused(async {
        let world = World::new(8, Config::lan());
        let mut start = Box::pin(world.builder(0).start());
        let pending = std::future::poll_fn(|cx| Poll::Ready(start.as_mut().poll(cx).is_pending()));
        assert!(pending.await);
        sleep(Duration::from_secs(1)).await;
        drop(start);
        sleep(Duration::from_secs(1)).await;
        assert!(world.builder(0).start().await.is_ok(), "the address is free");
    });
}

#[test]
fn a_broadcast_of_a_node_that_is_alone_is_done_soon() {
    paused(async {
        let world = World::cluster(9, Config::lan(), 1).await;
        let spread = world.nodes[0].broadcast_bytes(Broadcast::new("hello?")).expect("it fits");
        assert_eq!(timeout(SOON, spread).await.expect("in time"), Ok(()));
        assert_eq!(world.nodes[0].metrics().broadcasts_queued, 0);
    });
}

/// The system's network, whose next datagram takes a second and a half to leave.
#[derive(Clone)]
struct Sticky(Arc<AtomicBool>);

struct StickyEndpoint {
    inner: Arc<dyn Endpoint>,
    stick: Arc<AtomicBool>,
}

impl Network for Sticky {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let (inner, stick) = (SystemNetwork.bind(addr), self.0.clone());
        Box::pin(
            async move { Ok(Arc::new(StickyEndpoint { inner: inner.await?, stick }) as Arc<dyn Endpoint>) },
        )
    }
}

impl Endpoint for StickyEndpoint {
    fn local_addr(&self) -> SocketAddr {
        self.inner.local_addr()
    }
    fn poll_readable(&self, cx: &mut Cx<'_>) -> Poll<io::Result<()>> {
        self.inner.poll_readable(cx)
    }
    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.inner.try_recv(buf)
    }
    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        if self.stick.swap(false, Ordering::Relaxed) {
            // The point of it: a call that should not block does.
            std::thread::sleep(Duration::from_millis(1500));
        }
        self.inner.try_send(datagram, to)
    }
    fn poll_accept(&self, cx: &mut Cx<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        self.inner.poll_accept(cx)
    }
    fn dial(&self, to: SocketAddr) -> Dialing {
        self.inner.dial(to)
    }
}

#[test]
fn a_handler_of_the_nodes_own_that_hangs_is_reported_and_makes_it_doubt_its_health() {
    actix::System::new().block_on(async {
        let stick = Arc::new(AtomicBool::new(false));
        let config = Config { stall_after: Duration::from_millis(300), ..Config::local() };
        let bind: SocketAddr = ([127, 0, 0, 1], 0).into();
        let a = Cluster::builder("a").config(config.clone()).bind(bind).network(Sticky(stick.clone()));
        let a = a.start().await.expect("it starts");
        let b = Cluster::builder("b").config(config).bind(bind).start().await.expect("it starts");
        b.join(&[&a.view().local().addr.to_string()]).await.expect("it joins");
        let mut told = node_events(&a);
        stick.store(true, Ordering::Relaxed);
        // Other handlers may seem to hang as well, on a machine that is slow enough.
        let since = loop {
            if let NodeEvent::Stalled { actor: "Transport", since } = next(&mut told).await {
                break since;
            }
        };
        assert!(since >= Duration::from_millis(300));
        assert!(a.metrics().stalls >= 1);
        // The first probe after it is a patient one. Its answer makes health good again, within a moment.
        let doubted = async {
            while a.metrics().degraded_probes == 0 {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, doubted).await.expect("health falls");
        a.shutdown().await;
        b.shutdown().await;
    });
}

#[test]
fn news_leaves_before_the_next_round_and_no_more_often() {
    let run = |gossip_at_once| {
        paused(async move {
            let config = Config { gossip_at_once, probe_interval: Duration::ZERO, ..Config::lan() };
            let world = World::cluster(5, config, 4).await;
            let quiet = |world: &World| world.nodes.iter().all(|node| node.metrics().broadcasts_queued == 0);
            let secs = Duration::from_secs;
            assert!(world.wait_until(secs(60), quiet).await.is_some());
            let sent = |world: &World| world.nodes.iter().map(|n| n.metrics().packets_sent).sum::<u64>();
            let (before, start) = (sent(&world), Instant::now());
            world.nodes[0].set_meta(Bytes::from_static(b"new")).await.unwrap();
            let know = |world: &World| {
                world.nodes.iter().all(|node| node.view().get("n000").is_some_and(|m| &m.meta[..] == b"new"))
            };
            assert!(world.wait_until(secs(60), know).await.is_some());
            let known = start.elapsed();
            assert!(world.wait_until(secs(60), quiet).await.is_some());
            (known, sent(&world) - before)
        })
    };
    let ((late, usual), (soon, packets)) = (run(false), run(true));
    assert!(soon <= Duration::from_millis(60), "{soon:?}, {late:?} without");
    assert!(packets <= usual + 4, "{packets} packets, {usual} without");
}
