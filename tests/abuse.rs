//! What strangers may make a node do: how much it sends for what it gets, and how many of its streams, how much
//! of its memory and of its time one of them can hold.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix::Arbiter;
use actix_memberlist::{
    Cause, Cluster, Config, NotSent, Until,
    network::{Endpoint, Network},
};
use bytes::Bytes;
use memberlist_protocol::{
    accusation::Evidence,
    link::{Carrier, Hello, Sent},
    member::{Member, MemberState, NodeId, Versions},
    wire::{
        bundle::Bundle,
        frame::{Envelope, MAX_PARTS, Packer, StreamKind},
        message::{
            Ack, Address, Alive, Dead, Direct, IndirectPing, Message, Nack, Ping, Remembered, Suspect,
            UserBroadcast, Wait,
        },
        state::{State, StateHeader},
    },
};
use memberlist_tests::{World, addr, log::Log, paused};
use rand::{Rng, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A node that sends nothing of its own accord.
fn silent() -> Config {
    let zero = Duration::ZERO;
    let pace =
        Config { probe_interval: zero, gossip_interval: zero, push_pull_interval: zero, ..Config::lan() };
    Config { udp_buffer_size: 1400, ..pace }
}

fn at(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

async fn start(world: &World, name: &str, bind: &str, label: &str, config: Config) -> Cluster {
    Cluster::builder(name)
        .config(config)
        .bind(at(bind))
        .label(label)
        .plaintext()
        .network(world.network.clone())
        .arbiter(Arbiter::current())
        .seed(name.bytes().map(u64::from).sum())
        .without_watchdog()
        .start()
        .await
        .expect("a node starts")
}

/// A packet of these messages, or of as many of them as there is room for.
fn packet(envelope: &Envelope, messages: &[Message]) -> Bytes {
    let mut buf = vec![0; 65_000];
    let mut packer = Packer::new(envelope, &mut buf);
    for message in messages.iter().take(MAX_PARTS) {
        packer.push(message);
    }
    packer.finish().expect("messages")
}

/// One message of each kind, from somebody, that changes nothing: who believes true accusations and newcomers
/// has to tell others of them.
fn each_kind(from: &NodeId, here: &Member, peer: &Member) -> Vec<(&'static str, Message)> {
    let nobody = NodeId::new("nobody", 3);
    let (name, evidence) = (from.shared_name().clone(), Evidence::Hearsay);
    let ping = |seq, target: &NodeId| Message::Ping(Ping { seq, target: target.clone(), from: from.clone() });
    let indirect = |seq, target: &Member| {
        let (target, addr) = (target.id.clone(), target.addr);
        Message::IndirectPing(IndirectPing { seq, target, addr, from: from.clone() })
    };
    let any = NodeId::new(here.id.shared_name().clone(), NodeId::ANY_RUN);
    let alive =
        |of: &Member, incarnation| Message::Alive(Alive { incarnation, meta: Bytes::new(), ..Alive::of(of) });
    let other_run = Alive { id: NodeId::new(peer.id.shared_name().clone(), 1), ..Alive::of(peer) };
    let suspect = |id: &NodeId, incarnation| {
        Message::Suspect(Suspect { id: id.clone(), incarnation, from: name.clone(), evidence })
    };
    let dead = |id: &NodeId, incarnation| {
        let (from, by) = (name.clone(), name.clone());
        Message::Dead(Dead { id: id.clone(), incarnation, from, by, confirmed_by: Vec::new(), evidence })
    };
    vec![
        ("ping", ping(u32::MAX, &here.id)),
        ("ping with a short number", ping(1, &here.id)),
        ("ping of any run", ping(u32::MAX, &any)),
        ("ping of somebody else", ping(7, &nobody)),
        ("indirect ping", indirect(u32::MAX, peer)),
        ("indirect ping with a short number", indirect(1, peer)),
        ("indirect ping of the node itself", indirect(1, here)),
        ("ack", Message::Ack(Ack { seq: 7, payload: Bytes::new() })),
        ("nack", Message::Nack(Nack { seq: 7 })),
        ("old alive", alive(peer, 0)),
        ("old alive of the node itself", alive(here, 0)),
        ("alive of another run", Message::Alive(Alive { meta: Bytes::new(), ..other_run })),
        ("suspect of nobody", suspect(&nobody, 1)),
        ("old suspect", suspect(&peer.id, 0)),
        ("old suspect of the node itself", suspect(&here.id, 0)),
        ("dead of nobody", dead(&nobody, 1)),
        ("dead of another run", dead(&NodeId::new(here.id.shared_name().clone(), 9), 1)),
        ("old dead", dead(&peer.id, 0)),
        (
            "user",
            Message::User(UserBroadcast {
                origin: nobody.clone(),
                id: 7,
                kind: "".into(),
                bytes: Bytes::new(),
            }),
        ),
        ("wait", Message::Wait(Wait { from: nobody.clone(), to: here.id.clone(), millis: 255 })),
        ("direct", Message::Direct(Direct { from: nobody, to: None, parts: Bundle::of("", b"") })),
    ]
}

/// Labels, from none to the longest.
fn labels() -> [String; 4] {
    [0, 1, 20, 255].map(|len| "l".repeat(len))
}

#[test]
fn weak_point_34_whatever_a_stranger_sends_a_node_sends_no_more_bytes_for_it_to_anybody() {
    for label in labels() {
        paused(async {
            let world = World::new(34, silent());
            let here = start(&world, "here", "10.0.0.1:7946", &label, silent()).await;
            // Long names and much metadata make answers long.
            let peer = start(&world, &"p".repeat(200), "10.0.0.2:7946", &label, silent()).await;
            peer.join(&["10.0.0.1:7946"]).await.expect("it joins");
            for node in [&here, &peer] {
                assert_eq!(node.ready(Until::Members(2), secs(5)).await, Ok(true));
                node.set_meta(vec![7; 400].into()).await.expect("it fits");
                node.set_ping_payload(vec![7; Ack::MAX_PAYLOAD].into()).expect("it fits");
            }
            peer.join(&["10.0.0.1:7946"]).await.expect("and hears of the metadata");
            sleep(secs(30)).await;
            let (own, other) =
                (here.view().local().clone(), here.view().get(peer.view().local().name()).cloned());
            let other = other.expect("a member");
            assert_eq!(other.meta.len(), 400);

            let envelope = Envelope::new(&label).expect("short enough");
            let stranger = world.network.bind(at("10.9.9.9:1")).await.expect("free");
            let heard = || {
                let mut buf = vec![0; 65_536];
                std::iter::from_fn(|| stranger.try_recv(&mut buf).ok().map(|(len, _)| len)).sum::<usize>()
            };
            // One who is as short as can be, and one who goes by a member's name and run.
            let mut answered = std::collections::BTreeSet::new();
            for from in [NodeId::new("x", 1), other.id.clone()] {
                let kinds = each_kind(&from, &own, &other);
                let mut datagrams: Vec<(String, Vec<Message>)> = Vec::new();
                for (kind, message) in &kinds {
                    for count in [1, 2, 3, 50, MAX_PARTS] {
                        datagrams.push((format!("{count} x {kind}"), vec![message.clone(); count]));
                    }
                }
                let mix: Vec<_> = kinds.iter().map(|(_, message)| message.clone()).collect();
                datagrams.push(("all of them".into(), mix.clone()));
                datagrams.push((
                    "all of them again and again".into(),
                    mix.into_iter().cycle().take(MAX_PARTS).collect(),
                ));
                for (what, messages) in &datagrams {
                    let datagram = packet(&envelope, messages);
                    // What a member is told of itself once in a while counts against all that led to it.
                    let (times, before) = (20, here.metrics());
                    for _ in 0..times {
                        stranger.try_send(&datagram, own.addr).expect("it is taken");
                        sleep(ms(20)).await;
                        let answers = heard();
                        assert!(answers <= datagram.len(), "{what}: {answers} bytes for {}", datagram.len());
                        if answers > 0 {
                            answered.insert(what.clone());
                        }
                    }
                    let after = here.metrics();
                    let sent = after.bytes_sent - before.bytes_sent;
                    let asked = times * datagram.len() as u64;
                    assert!(
                        sent <= asked,
                        "{what}, label of {}: {sent} bytes out for {asked} in",
                        label.len()
                    );
                    assert_eq!(after.packets_received - before.packets_received, times, "{what}");
                }
            }
            for kind in ["ping", "ping with a short number", "ping of any run", "indirect ping"] {
                assert!(answered.contains(&format!("1 x {kind}")), "{kind} is not answered: {answered:?}");
            }
            let metrics = here.metrics();
            // Only a label makes questions in one packet shorter than their answers.
            assert_eq!(metrics.dropped["too_much_asked"] > 0, label.len() >= 20);
            assert!(metrics.dropped["unknown_asker"] > 0);
            assert_eq!(peer.metrics().messages_received["ping"], 0, "nobody is pinged for a stranger");
        });
    }
}

#[test]
fn weak_point_34_a_member_has_one_full_answer_for_each_datagram_and_the_others_are_paid_for() {
    for label in labels() {
        paused(async {
            let world = World::new(34, silent());
            let here = start(&world, "here", "10.0.0.1:7946", &label, silent()).await;
            let peer = start(&world, "peer", "10.0.0.2:7946", &label, silent()).await;
            peer.join(&["10.0.0.1:7946"]).await.expect("it joins");
            here.set_ping_payload(vec![7; Ack::MAX_PAYLOAD].into()).expect("it fits");
            let envelope = Envelope::new(&label).expect("short enough");
            let member = world.network.bind(at("10.0.0.3:7946")).await.expect("free");
            let id = NodeId::new("m", 1);
            let joins = Message::Alive(Alive::of(&Member::new(
                id.clone(),
                at("10.0.0.3:7946"),
                1,
                std::time::Instant::now(),
            )));
            member.try_send(&packet(&envelope, &[joins]), at("10.0.0.1:7946")).expect("it is taken");
            sleep(secs(1)).await;
            assert_eq!(here.view().alive_count(), 3);
            let (own, other) = (here.view().local().clone(), peer.view().local().clone());
            let ping = Message::Ping(Ping { seq: 9, target: own.id.clone(), from: id.clone() });
            let (target, addr) = (other.id.clone(), other.addr);
            let relay = Message::IndirectPing(IndirectPing { seq: 9, target, addr, from: id });
            let packet_size = silent().udp_buffer_size;
            // One indirect ping leads to three packets.
            for (what, message, extra) in
                [("ping", ping, packet_size), ("indirect ping", relay, 3 * packet_size)]
            {
                let datagram = packet(&envelope, &vec![message; MAX_PARTS]);
                let before = here.metrics().bytes_sent;
                member.try_send(&datagram, own.addr).expect("it is taken");
                sleep(secs(5)).await;
                let sent = (here.metrics().bytes_sent - before) as usize;
                assert!(sent <= datagram.len() + extra, "{what}: {sent} bytes for {}", datagram.len());
                assert!(sent > 0, "{what}");
            }
            let dropped = here.metrics().dropped;
            assert!(dropped["too_many_relays_of_source"] + dropped["too_much_asked"] > 0);
        });
    }
}

#[test]
fn weak_point_34_strangers_are_answered_so_often_in_a_second_and_members_always() {
    paused(async {
        let config = Config { max_stranger_answers: 50, ..silent() };
        let world = World::new(34, config.clone());
        let here = start(&world, "here", "10.0.0.1:7946", "", config).await;
        let envelope = Envelope::new("").expect("no label");
        let mut asking = Vec::new();
        for (i, name) in ["a member", "a stranger", "another one"].into_iter().enumerate() {
            let addr = SocketAddr::from(([10, 0, 0, 2 + i as u8], 7946));
            let endpoint = world.network.bind(addr).await.expect("free");
            asking.push((NodeId::new(name, 1), endpoint));
        }
        let (id, member) = &asking[0];
        let joins = Member::new(id.clone(), at("10.0.0.2:7946"), 1, std::time::Instant::now());
        let joins = packet(&envelope, &[Message::Alive(Alive::of(&joins))]);
        member.try_send(&joins, at("10.0.0.1:7946")).expect("it is taken");
        sleep(secs(1)).await;
        let target = here.view().local().id.clone();
        // For two seconds, a ping of each every 10 ms.
        let mut answers = [0; 3];
        for seq in 0..200 {
            for (answers, (from, endpoint)) in answers.iter_mut().zip(&asking) {
                let ping = Message::Ping(Ping { seq, target: target.clone(), from: from.clone() });
                endpoint.try_send(&packet(&envelope, &[ping]), at("10.0.0.1:7946")).expect("it is taken");
                let mut buf = [0; 2048];
                *answers += std::iter::from_fn(|| endpoint.try_recv(&mut buf).ok()).count();
            }
            sleep(ms(10)).await;
        }
        // Up to a second's worth was saved up. The last answer is still on its way.
        assert!((199..=200).contains(&answers[0]), "{answers:?}");
        let strangers = answers[1] + answers[2];
        assert!((140..=151).contains(&strangers), "{answers:?}");
        assert!(here.metrics().dropped["too_many_strangers"] >= 400 - 151);
    });
}

/// Somebody who opens streams.
async fn source(world: &World, addr: &str) -> Arc<dyn Endpoint> {
    world.network.bind(at(addr)).await.expect("free")
}

#[test]
fn weak_point_43_one_source_that_holds_streams_keeps_no_other_from_being_served() {
    Log::of(|log| async move {
        let mut world = World::cluster(43, Config::lan(), 2).await;
        world.start(1).await;
        sleep(secs(10)).await;
        let hostile = source(&world, "10.9.9.9:1").await;
        // Silent ones without end: as soon as one is closed there is another.
        for _ in 0..300 {
            let hostile = hostile.clone();
            Arbiter::current().spawn(async move {
                while let Ok(mut stream) = hostile.dial(addr(0)).await {
                    let _ = stream.read(&mut [0; 8]).await;
                    sleep(ms(5)).await;
                }
            });
        }
        sleep(secs(2)).await;
        let metrics = world.nodes[0].metrics();
        let max = Config::lan().max_streams_per_source as u64;
        assert!((max - 2..=max + 1).contains(&metrics.streams_open), "{} are open", metrics.streams_open);
        assert!(metrics.dropped["too_many_streams_of_source"] > 1000, "{:?}", metrics.dropped);
        let asked = Instant::now();
        world.nodes[2].join(&["10.0.0.1:7946"]).await.expect("it joins");
        assert!(asked.elapsed() <= ms(20), "the joiner had to wait for {:?}", asked.elapsed());
        // Who is a member, exchanges and is probed as ever.
        sleep(secs(60)).await;
        for node in &world.nodes {
            assert_eq!((node.view().alive_count(), node.metrics().suspect_messages), (3, 0));
        }
        let lines = log.with("one address");
        assert!((1..=4).contains(&lines.len()), "{lines:?}");
    });
}

#[test]
fn sixty_nodes_behind_one_address_all_join_at_once() {
    paused(async {
        let mut world = World::new(30, Config::lan());
        world.start(1).await;
        let mut joiners = Vec::new();
        for port in 1..=60 {
            let node =
                start(&world, &format!("j{port}"), &format!("10.7.7.7:{port}"), "", Config::lan()).await;
            joiners.push(node);
        }
        let joins: Vec<_> = joiners.iter().map(|node| node.join(&["10.0.0.1:7946"])).collect();
        let start = Instant::now();
        for joined in futures_util::future::join_all(joins).await {
            joined.expect("it joins at the first attempt");
        }
        assert!(start.elapsed() < secs(2), "{:?}", start.elapsed());
        assert_eq!(world.nodes[0].ready(Until::Members(61), secs(5)).await, Ok(true));
        assert_eq!(world.nodes[0].metrics().dropped["too_many_streams_of_source"], 0);
    });
}

#[test]
fn weak_point_30_one_source_does_not_hold_all_the_memory_for_what_is_being_read() {
    let config = Config { max_state_size: 1 << 20, max_message_size: 1 << 20, ..Config::lan() };
    paused(async {
        let mut world = World::cluster(30, config, 2).await;
        world.start(1).await;
        sleep(secs(10)).await;
        let hostile = source(&world, "10.9.9.9:1").await;
        let claim =
            [&head(StreamKind::PushPull)[..], &(1_u32 << 20).to_le_bytes(), &[0; (1 << 20) - 1]].concat();
        for _ in 0..10 {
            let (hostile, claim) = (hostile.clone(), claim.clone());
            Arbiter::current().spawn(async move {
                let mut stream = hostile.dial(addr(0)).await.expect("it listens");
                let _ = stream.write_all(&claim).await;
                let _ = stream.read(&mut [0; 8]).await;
            });
        }
        sleep(secs(1)).await;
        let asked = Instant::now();
        world.nodes[2].join(&["10.0.0.1:7946"]).await.expect("it joins");
        assert!(asked.elapsed() <= ms(20), "the joiner had to wait for {:?}", asked.elapsed());
        // What is long needs of that memory.
        let (asked, to) = (Instant::now(), world.nodes[0].view().local().id.clone());
        let sent = world.nodes[1].peer(&to).expect("it is there").send_bytes(vec![7; 500_000].into());
        let answer = sent.expect("it is taken").await;
        assert_eq!(answer, Err(NotSent::Never(Cause::NoHandler)), "it was heard");
        assert!(asked.elapsed() <= ms(100), "the sender had to wait for {:?}", asked.elapsed());
    });
}

fn head(kind: StreamKind) -> Vec<u8> {
    Envelope::new("").expect("no label").open_stream(kind).to_vec()
}

fn frame(body: &[u8]) -> Vec<u8> {
    [&u32::try_from(body.len()).expect("short").to_le_bytes()[..], body].concat()
}

/// The state of a joiner with this many members, that has a last word.
fn joiner(members: usize) -> Bytes {
    state_of(members, true)
}

/// The state of a joiner with this many members, that has a last word or not.
fn state_of(members: usize, tentative: bool) -> Bytes {
    let header = StateHeader {
        from: NodeId::new("stranger", 1),
        versions: Versions::CURRENT,
        join: true,
        tentative,
        members: 0,
        user_len: 0,
    };
    let now = std::time::Instant::now();
    let member = |i: usize| {
        let name = if i == 0 { "stranger".to_owned() } else { format!("made-up-{i}") };
        let at = SocketAddr::from(([10, 5, (i / 250) as u8, (i % 250) as u8], 9));
        let mut member = Member::new(NodeId::new(name, 1), at, 1, now);
        // Bytes that no compression makes fewer.
        let mut meta = [0; 100];
        Xoshiro256PlusPlus::seed_from_u64(i as u64).fill_bytes(&mut meta);
        member.meta = Bytes::copy_from_slice(&meta);
        member
    };
    let members =
        (0..members).map(|i| Remembered { alive: Alive::of(&member(i)), state: MemberState::Alive });
    State::encode(header, members, &[])
}

/// Says `first` at once, takes what is answered if it `reads`, and then says one byte of `rest` after the other,
/// each just within the limit of a phase. How long the node put up with it after the first answer or words.
async fn drip(world: &World, first: &[u8], reads: bool, rest: &[u8]) -> Duration {
    let limit = Config::lan().tcp_timeout;
    let stranger = source(world, "10.9.9.9:0").await;
    let mut stream = stranger.dial(addr(0)).await.expect("it listens");
    stream.write_all(first).await.expect("it reads");
    if reads {
        let mut answer = vec![0; stream.read_u32_le().await.expect("it answers") as usize];
        stream.read_exact(&mut answer).await.expect("it answers");
    }
    let start = Instant::now();
    for byte in rest {
        let end = timeout(limit - ms(1), stream.read(&mut [0; 1])).await;
        if end.is_ok() {
            return start.elapsed();
        }
        let _ = stream.write_all(&[*byte]).await;
    }
    panic!("it has heard all {} bytes, in {:?}", rest.len(), start.elapsed());
}

#[test]
fn weak_point_43_bytes_that_drip_in_hold_no_phase_of_a_stream_beyond_its_limit() {
    paused(async {
        let mut world = World::new(43, Config::lan());
        world.start(1).await;
        let limit = Config::lan().tcp_timeout;
        let state = joiner(1);
        let exchange = [head(StreamKind::PushPull), frame(&state)].concat();
        let opening = head(StreamKind::PushPull).len();
        let user = [head(StreamKind::Link), frame(&[0; 300])].concat();
        let ping = [head(StreamKind::Ping), frame(&[0; 300])].concat();
        let cases: [(&str, &[u8], bool, &[u8]); 13] = [
            ("the first byte", &[], false, &exchange),
            ("what it is for", &exchange[..1], false, &exchange[1..]),
            ("the length of a state", &exchange[..opening], false, &exchange[opening..]),
            ("the rest of that length", &exchange[..opening + 1], false, &exchange[opening + 1..]),
            ("a state", &exchange[..opening + 4], false, &exchange[opening + 4..]),
            ("half a state", &exchange[..opening + 24], false, &exchange[opening + 24..]),
            ("the last word", &exchange, true, &[5, 0, 0, 0, 9]),
            ("the rest of the last word", &[&exchange[..], &[200, 0, 0, 0]].concat(), true, &[9; 200]),
            ("the length of a user's bytes", &user[..opening], false, &user[opening..]),
            ("a user's bytes", &user[..opening + 4], false, &user[opening + 4..]),
            ("the length of a ping", &ping[..opening], false, &ping[opening..]),
            ("a ping", &ping[..opening + 4], false, &ping[opening + 4..]),
            // A later wire is dealt with in a hurry.
            ("what a later wire says", &[0xB2], false, &[0xB2; 100]),
        ];
        for (i, (phase, first, reads, rest)) in cases.into_iter().enumerate() {
            let took = drip(&world, first, reads, rest).await;
            assert!(took <= limit + ms(20), "{phase} was waited for {took:?}");
            sleep(ms(100)).await;
            let metrics = world.nodes[0].metrics();
            assert_eq!(metrics.streams_open, 0, "{phase}");
            assert!(
                metrics.dropped["stream_timeout"] >= (i as u64).min(11),
                "{phase}: {:?}",
                metrics.dropped
            );
        }
    });
}

#[test]
fn weak_point_29_a_peer_that_does_not_read_its_answer_is_given_up_in_time() {
    paused(async {
        let mut world = World::new(29, silent());
        world.start(1).await;
        let stranger = source(&world, "10.9.9.9:0").await;
        // Enough members that their state fills all buffers on the way.
        let said = [head(StreamKind::PushPull), frame(&joiner(5000))].concat();
        let mut held = Vec::new();
        let mut sent = stranger.dial(addr(0)).await.expect("it listens");
        sent.write_all(&said).await.expect("it reads");
        let mut answer = vec![0; sent.read_u32_le().await.expect("it answers") as usize];
        sent.read_exact(&mut answer).await.expect("it answers");
        sent.write_all(&[0; 4]).await.expect("it listens");
        sleep(secs(1)).await;
        assert!(world.nodes[0].view().all().count() > 4000);
        for _ in 0..3 {
            let mut stream = stranger.dial(addr(0)).await.expect("it listens");
            // Nothing more is to be heard of it: the node waits until its answer is taken, and for nothing else.
            stream
                .write_all(&[head(StreamKind::PushPull), frame(&state_of(1, false))].concat())
                .await
                .expect("it reads");
            held.push(stream);
        }
        sleep(secs(1)).await;
        assert_eq!(world.nodes[0].metrics().streams_open, 3);
        sleep(Config::lan().tcp_timeout).await;
        let metrics = world.nodes[0].metrics();
        assert_eq!((metrics.streams_open, metrics.dropped["stream_timeout"]), (0, 3));
        drop(held);
    });
}

#[test]
fn what_a_stranger_is_answered_on_a_stream_is_no_more_than_it_has_sent_but_for_the_state() {
    paused(async {
        let mut world = World::new(42, Config::lan());
        world.start(1).await;
        let own = world.nodes[0].view().local().id.clone();
        let nobody = NodeId::new("x", 1);
        let ping = |target: &NodeId| {
            let ping = Message::Ping(Ping { seq: u32::MAX, target: target.clone(), from: nobody.clone() });
            let ping = memberlist_protocol::wire::codec::encoded(&ping, 2048).expect("short");
            [head(StreamKind::Ping), frame(&ping)].concat()
        };
        let link = |to: &NodeId| {
            let (from, to) = (nobody.clone(), to.clone());
            let lanes = vec![Sent { first: 0, next: 0 }; 2];
            let (carrier, welcomed) = (Carrier::Main, 0);
            let hello = Hello {
                from,
                to,
                link: 1,
                carrier,
                connection: 1,
                welcomed,
                lanes,
                answers: 0,
                longest_answer: 0,
            };
            [head(StreamKind::Link), frame(&memberlist_protocol::wire::codec::encode_hello(&hello))].concat()
        };
        let upload = |to: &NodeId| {
            let address = Address::Direct { from: nobody.clone(), to: to.clone() };
            let address = memberlist_protocol::wire::codec::encode_address(&address);
            [head(StreamKind::Upload), frame(&[&address[..], &[1, b'k']].concat())].concat()
        };
        let later = |len| vec![0xB5; len];
        let exchange = [head(StreamKind::PushPull), frame(&joiner(1))].concat();
        let cases = [
            ("ping", ping(&own), true),
            ("ping of nobody", ping(&nobody), false),
            ("a link", link(&own), true),
            ("a link to somebody else", link(&nobody), true),
            ("an upload", upload(&own), true),
            ("an upload to somebody else", upload(&nobody), true),
            ("a later wire, one byte", later(1), false),
            ("a later wire, five bytes", later(5), false),
            ("a later wire, six bytes", later(6), true),
            ("another wire", vec![7; 3], false),
            ("half a state", exchange[..exchange.len() - 1].to_vec(), false),
            ("garbage for a state", [head(StreamKind::PushPull), frame(&[9; 60])].concat(), false),
        ];
        let stranger = source(&world, "10.9.9.9:0").await;
        for (what, said, is_answered) in cases {
            let mut stream = stranger.dial(addr(0)).await.expect("it listens");
            stream.write_all(&said).await.expect("it reads");
            stream.shutdown().await.expect("an end");
            let mut answer = Vec::new();
            let _ = timeout(secs(60), stream.read_to_end(&mut answer)).await.expect("it ends");
            assert!(answer.len() <= said.len(), "{what}: {} bytes for {}", answer.len(), said.len());
            assert_eq!(!answer.is_empty(), is_answered, "{what}");
        }
    });
}
