//! A flood over real sockets: as many hostile packets as one thread can send, and the members notice nothing.
//! The release build sends a million at full speed, the debug build fewer, with pauses:
//!
//! ```text
//! cargo test --release -p memberlist-tests --test flood -- --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test's own helpers")]

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix_memberlist::{Cluster, ClusterBuilder, Config, Evidence, Key, MemberState, NodeId, Sealing, Until};
use bytes::Bytes;
use memberlist_protocol::{
    member::{MAX_NAME, Member},
    wire::{
        frame::{Envelope, Packer},
        guard::{Guard, Labels},
        message::{Ack, Dead, IndirectPing, Message, Nack, Ping, Suspect},
    },
};
use memberlist_tests::log::Log;
use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tracing::{Event, Level, Metadata, Subscriber, level_filters::LevelFilter, span};

const LABEL: &str = "flooded";

/// Packets in all.
const PACKETS: usize = if cfg!(debug_assertions) { 30_000 } else { 1_000_000 };

/// Packets after which the debug build takes a breath: it is slow, and so may the machine be.
const BURST: usize = if cfg!(debug_assertions) { 100 } else { usize::MAX };

/// Memory that the process may grow by.
const MAX_GROWTH: usize = 16 << 20;

/// Lines of the log, from `debug` up, from all nodes.
const MAX_LINES: usize = 100;

/// Packets of each kind that are made up beforehand.
const EACH: usize = 200;

/// A node, with all that it has against strangers.
fn node(name: &str, key: Option<&Key>) -> ClusterBuilder {
    let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
    let builder = Cluster::builder(name).config(Config::lan()).label(LABEL).bind(loopback);
    match key {
        Some(key) => builder.key(key.clone()),
        None => builder,
    }
}

/// Packets of somebody who has recorded some, and knows what a seal looks like, but not the key.
fn sealed(key: &Key, target: &Member) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(21);
    let config = Config::lan();
    let mut guard =
        Guard::new(&config, Labels::new(LABEL), Some(std::slice::from_ref(key)), Sealing::Required).unwrap();
    let nack = packet(LABEL, &[Message::Nack(Nack { seq: 7 })]).split_off(LABEL.len() + 4);
    let mut of = |kind: &'static str, make: &mut dyn FnMut(&mut Xoshiro256PlusPlus) -> Vec<u8>| {
        (kind, (0..EACH).map(|_| make(&mut rng)).collect::<Vec<_>>())
    };
    let mut honest = |to: u64| {
        let mut out = Vec::new();
        guard.wrap(77, Some(to), &nack, &mut out).unwrap();
        out
    };
    let (recorded, other) = (honest(target.id.run()), honest(5));
    let head = LABEL.len() + 4;
    vec![
        of("recorded", &mut |_| recorded.clone()),
        of("meant for another node", &mut |_| other.clone()),
        of("of a run made up, under the right key's id", &mut |rng| {
            let mut forged = recorded.clone();
            rng.fill_bytes(&mut forged[head + 4..]);
            forged
        }),
        of("damaged", &mut |rng| {
            let (mut damaged, at) = (recorded.clone(), rng.random_range(head + 20..recorded.len()));
            damaged[head + 12] ^= 0x80;
            damaged[at] ^= 1;
            damaged
        }),
    ]
}

/// Keeps all lines but those of `trace`, of all threads.
struct Loud(Log);

impl Subscriber for Loud {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG && self.0.enabled(metadata)
    }
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::DEBUG)
    }
    fn event(&self, event: &Event<'_>) {
        self.0.event(event);
    }
    fn new_span(&self, span: &span::Attributes<'_>) -> span::Id {
        self.0.new_span(span)
    }
    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}

/// What the process holds of memory, in bytes; nothing where the system does not say.
fn resident() -> Option<usize> {
    let pages: usize = std::fs::read_to_string("/proc/self/statm").ok()?.split(' ').nth(1)?.parse().ok()?;
    Some(pages * 4096)
}

fn packet(label: &str, messages: &[Message]) -> Vec<u8> {
    let mut buf = vec![0; 65_000];
    let envelope = Envelope::new(label).unwrap();
    let mut packer = Packer::new(&envelope, &mut buf);
    for message in messages {
        packer.push(message);
    }
    packer.finish().unwrap().to_vec()
}

/// Hostile packets of each kind. None says anything about a member that could be true: without keys such a word is
/// believed.
fn hostile(target: &Member, peer: &Member) -> Vec<(&'static str, Vec<Vec<u8>>)> {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(20);
    let nobody =
        |rng: &mut Xoshiro256PlusPlus| NodeId::new(format!("nobody-{}", rng.random::<u32>()), rng.random());
    let noise = |rng: &mut Xoshiro256PlusPlus, len: usize| {
        let mut bytes = vec![0; len];
        rng.fill_bytes(&mut bytes);
        bytes
    };
    let flags_at = 3 + LABEL.len();
    let evidence = Evidence::Hearsay;
    let mut of = |kind: &'static str, make: &mut dyn FnMut(&mut Xoshiro256PlusPlus) -> Vec<u8>| {
        (kind, (0..EACH).map(|_| make(&mut rng)).collect::<Vec<_>>())
    };
    let ping = |seq, target: &NodeId, from: NodeId| Message::Ping(Ping { seq, target: target.clone(), from });
    vec![
        of("random bytes", &mut |rng| {
            let len = rng.random_range(0..300);
            noise(rng, len)
        }),
        of("garbage in the right envelope", &mut |rng| {
            let (mut bytes, len) =
                (packet(LABEL, &[Message::Nack(Nack { seq: 7 })]), rng.random_range(1..200));
            bytes.truncate(flags_at + 1);
            bytes.extend(noise(rng, len));
            bytes
        }),
        of("another label", &mut |rng| packet("another", &[ping(rng.random(), &target.id, nobody(rng))])),
        of("sealed garbage", &mut |rng| {
            let mut bytes = packet(LABEL, &[Message::Nack(Nack { seq: 7 })]);
            bytes.truncate(flags_at);
            bytes.push(1);
            bytes.extend(noise(rng, 120));
            bytes
        }),
        of("unknown flags", &mut |rng| {
            let mut bytes = packet(LABEL, &[ping(rng.random(), &target.id, nobody(rng))]);
            bytes[flags_at] = 0x80;
            bytes
        }),
        of("cut short", &mut |rng| {
            let mut bytes = packet(LABEL, &[ping(rng.random(), &target.id, nobody(rng))]);
            bytes.truncate(rng.random_range(0..bytes.len()));
            bytes
        }),
        of("pings of others", &mut |rng| packet(LABEL, &[ping(rng.random(), &nobody(rng), nobody(rng))])),
        of("pings", &mut |rng| packet(LABEL, &[ping(rng.random(), &target.id, nobody(rng))])),
        of("many pings", &mut |rng| packet(LABEL, &vec![ping(rng.random(), &target.id, nobody(rng)); 20])),
        of("answers", &mut |rng| {
            let ack = Ack { seq: rng.random(), payload: Bytes::from_static(&[1; 100]) };
            packet(LABEL, &[Message::Ack(ack), Message::Nack(Nack { seq: rng.random() })])
        }),
        of("accusations of nobody", &mut |rng| {
            let (id, from) = (nobody(rng), peer.id.shared_name().clone());
            let suspect = Suspect { id: id.clone(), incarnation: 3, from: from.clone(), evidence };
            let by = from.clone();
            let dead = Dead { id, incarnation: 3, from, by, confirmed_by: Vec::new(), evidence };
            packet(LABEL, &[Message::Suspect(suspect), Message::Dead(dead)])
        }),
        of("old accusations", &mut |rng| {
            let (id, from) = (peer.id.clone(), nobody(rng).shared_name().clone());
            packet(LABEL, &[Message::Suspect(Suspect { id, incarnation: 0, from, evidence })])
        }),
        of("indirect pings", &mut |rng| {
            let (target, addr, from) = (peer.id.clone(), peer.addr, nobody(rng));
            packet(LABEL, &[Message::IndirectPing(IndirectPing { seq: rng.random(), target, addr, from })])
        }),
        of("as large as can be", &mut |rng| noise(rng, 65_507)),
        of("bad names", &mut |rng| {
            let bad = NodeId::new("\u{1b}".repeat(rng.random_range(1..=MAX_NAME)), 1);
            packet(LABEL, &[ping(1, &target.id, bad)])
        }),
    ]
}

/// Pings without a pause between two of them until it is over. How many, how many had no answer, and the longest
/// time to one.
async fn pings(from: Cluster, to: Member, over: Arc<AtomicBool>) -> (usize, usize, Duration) {
    let (mut asked, mut missed, mut longest) = (0, 0, Duration::ZERO);
    while !over.load(Relaxed) {
        match from.ping(to.name(), to.addr).await {
            Ok(rtt) => longest = longest.max(rtt),
            Err(_) => missed += 1,
        }
        asked += 1;
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    (asked, missed, longest)
}

#[actix::test]
async fn a_million_hostile_packets_cost_no_member_a_ping_and_the_node_next_to_no_memory() {
    let log = Log::default();
    tracing::subscriber::set_global_default(Loud(log.clone())).unwrap();
    flood(None, &log).await;
    flood(Some(Key::from_bytes(&[7; 32]).unwrap()), &log).await;
}

async fn flood(key: Option<Key>, log: &Log) {
    println!("{}", if key.is_some() { "sealed" } else { "plain" });
    let mut nodes = Vec::new();
    for name in ["north-tower", "south-tower", "west-tower"] {
        nodes.push(node(name, key.as_ref()).start().await.unwrap());
    }
    let at = nodes[0].view().local().addr;
    for node in &nodes[1..] {
        node.join(&[&at.to_string()]).await.unwrap();
    }
    for node in &nodes {
        assert!(node.ready(Until::Members(3), Duration::from_secs(20)).await.unwrap());
    }
    tokio::time::sleep(Duration::from_secs(2)).await;

    let members: Vec<Member> = nodes.iter().map(|node| Member::clone(node.view().local())).collect();
    let mut kinds = hostile(&members[0], &members[1]);
    kinds.extend(key.iter().flat_map(|key| sealed(key, &members[0])));
    assert!(kinds.len() >= 10);
    let packets: Vec<Vec<u8>> =
        (0..EACH).flat_map(|i| kinds.iter().map(move |(_, packets)| packets[i].clone())).collect();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_nonblocking(true).unwrap();
    let before: Vec<_> = nodes.iter().map(Cluster::metrics).collect();
    log.clear();
    let memory = resident();

    let over = Arc::new(AtomicBool::new(false));
    let asking = [(1, 0), (2, 0), (0, 1), (1, 2)]
        .map(|(from, to): (usize, usize)| pings(nodes[from].clone(), members[to].clone(), over.clone()));
    let attacker = std::thread::spawn({
        move || {
            let (start, mut buf) = (Instant::now(), [0; 2048]);
            for n in 0..PACKETS {
                let _ = socket.send_to(&packets[n % packets.len()], at);
                // Answers are of no interest; they are taken so that none is refused.
                if n % 64 == 0 {
                    while socket.recv(&mut buf).is_ok() {}
                }
                if n % BURST == BURST - 1 {
                    std::thread::sleep(Duration::from_millis(10));
                }
            }
            start.elapsed()
        }
    });
    let watch = async {
        let mut most = memory;
        while !attacker.is_finished() {
            most = most.max(resident());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // What was missed shows within two probe intervals.
        tokio::time::sleep(Duration::from_secs(3)).await;
        over.store(true, Relaxed);
        (most, attacker.join().unwrap())
    };
    let ((most, took), asked) = tokio::join!(watch, futures_util::future::join_all(asking));
    let growth = most.unwrap_or(0).saturating_sub(memory.unwrap_or(0));
    let lines = log.lines();
    let after: Vec<_> = nodes.iter().map(Cluster::metrics).collect();

    let rate = PACKETS as f64 / took.as_secs_f64();
    let arrived = after[0].packets_received - before[0].packets_received;
    println!("{PACKETS} packets in {took:?} ({rate:.0}/s), {arrived} arrived; {} KiB more", growth >> 10);
    println!(
        "{} lines; dropped: {:?}",
        lines.len(),
        after[0].dropped.iter().filter(|(_, n)| **n > 0).collect::<Vec<_>>()
    );
    let mut pinged = Vec::new();
    for (asked, missed, longest) in asked {
        println!("{asked} pings, {missed} without an answer, the slowest took {longest:?}");
        pinged.push((asked, missed));
    }
    for (node, (before, after)) in nodes.iter().zip(before.iter().zip(&after)) {
        let name = node.view().local().name().to_owned();
        let probes = after.probe_time.count() - before.probe_time.count();
        let missed = after.messages_sent["indirect_ping"] - before.messages_sent["indirect_ping"];
        println!("{name}: {probes} probes, {missed} indirect pings");
    }

    assert!(arrived > PACKETS as u64 / 100, "the flood did not arrive: {arrived}");
    for (asked, missed) in pinged {
        assert!(asked > 20 && missed == 0, "{missed} of {asked} pings had no answer in time");
    }
    for (before, after) in before.iter().zip(&after) {
        assert_eq!(
            after.messages_sent["indirect_ping"], before.messages_sent["indirect_ping"],
            "a probe failed"
        );
        assert_eq!((after.suspect_messages, after.refutations, after.health_score), (0, 0, 0));
        assert!(after.restarts.values().all(|n| *n == 0) && after.stalls == 0);
        assert_eq!(after.dropped["inbox_control"], 0);
    }
    for node in &nodes {
        let view = node.view();
        assert!(view.all().count() == 3 && view.all().all(|m| m.state == MemberState::Alive), "{view:?}");
    }
    let plain =
        ["name", "not_for_me", "unknown_sequence", "unknown_member", "stale", "unknown_asker", "kind"];
    let reasons = match &key {
        None => [&["foreign", "label", "flags", "truncated", "too_many_strangers"][..], &plain].concat(),
        Some(_) => vec!["foreign", "label", "flags", "truncated", "unsealed", "sealed", "seal", "replayed"],
    };
    for reason in reasons {
        assert!(after[0].dropped[reason] > 0, "{reason}");
    }
    assert!(growth <= MAX_GROWTH, "{growth} bytes more");
    assert!(lines.len() < MAX_LINES, "{} lines: {lines:?}", lines.len());
    for node in nodes {
        node.shutdown().await;
    }
}
