//! Hostile bytes against a node with keys: from those who do not have them, and from those who do.
//!
//! Chance begins at a fixed seed, so that a failure repeats; `HOSTILE_SEED` sets another one.

#![allow(clippy::unwrap_used, reason = "a test's own helpers")]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use actix_memberlist::{
    Cluster, Config, Evidence, Key, MemberState, NodeId, Sealing,
    network::{Connection, Endpoint, Network},
};
use allocation_counter::measure;
use memberlist_protocol::wire::{
    WireError, codec,
    compress::{BLOCK, MAX_RATIO},
    frame::{Barrier, Packer, Parts, StreamKind},
    guard::{Guard, Labels, Opened},
    message::{Ack, Dead, Message, Ping, Suspect, UserBroadcast},
    order::{Order, Ordered},
    seal::{End, Half, MAX_RECORD, StreamSeals, TAG},
};
use memberlist_tests::{World, addr, paused};
use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

/// What one datagram may make a node allocate in all, the messages in it included.
const DATAGRAM_BUDGET: u64 = 256 << 10;

/// Runs of the reader, of its peer, and of an outsider.
const READER: u64 = 2;
const PEER: u64 = 1;
const OUTSIDER: u64 = 77;

fn key(n: u8) -> Key {
    Key::from_bytes(&[n; 32]).unwrap()
}

fn guard_of(label: &str, n: u8, config: &Config) -> Guard {
    Guard::new(config, Labels::new(label), Some(&[key(n)]), Sealing::Required).unwrap()
}

fn guard(label: &str, n: u8) -> Guard {
    guard_of(label, n, &Config::lan())
}

fn dice() -> Xoshiro256PlusPlus {
    let seed = std::env::var("HOSTILE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_261);
    println!("HOSTILE_SEED={seed}");
    Xoshiro256PlusPlus::seed_from_u64(seed)
}

fn messages(about: &NodeId, bytes: usize) -> Vec<Message> {
    let (from, id) = (NodeId::new("peer", PEER), about.clone());
    vec![
        Message::Ping(Ping { seq: 7, target: id.clone(), from: from.clone() }),
        Message::Ack(Ack { seq: 7, payload: vec![7; 100].into() }),
        Message::Suspect(Suspect {
            id: id.clone(),
            incarnation: 3,
            from: from.shared_name().clone(),
            evidence: Evidence::Hearsay,
        }),
        Message::Dead(Dead {
            id,
            incarnation: 3,
            from: from.shared_name().clone(),
            by: from.shared_name().clone(),
            confirmed_by: Vec::new(),
            evidence: Evidence::Hearsay,
        }),
        Message::User(UserBroadcast {
            origin: from,
            id: 9,
            kind: "".into(),
            bytes: b"news; ".repeat(bytes / 6).into(),
        }),
    ]
}

fn body(messages: &[Message]) -> Vec<u8> {
    let mut buf = vec![0; 2000];
    let mut packer = Packer::body(&mut buf);
    for message in messages {
        assert!(packer.push(message));
    }
    packer.finish().unwrap().to_vec()
}

/// Takes a datagram apart as a node does.
fn take(guard: &mut Guard, datagram: &mut [u8]) -> Result<(), WireError> {
    for part in Parts::of(guard.unwrap(READER, datagram, |_| {})?.body)? {
        codec::decode(part?)?;
    }
    Ok(())
}

/// A node's reading of datagrams, measured.
struct Reader {
    guard: Guard,
    read: usize,
    taken: usize,
    reasons: BTreeMap<WireError, usize>,
}

impl Reader {
    fn read(&mut self, datagram: &[u8]) -> bool {
        let mut datagram = datagram.to_vec();
        let mut outcome = Ok(());
        let memory = measure(|| outcome = take(&mut self.guard, &mut datagram));
        assert!(memory.bytes_total <= DATAGRAM_BUDGET, "{memory:?} for {} bytes", datagram.len());
        self.read += 1;
        match outcome {
            Ok(()) => self.taken += 1,
            Err(error) => *self.reasons.entry(error).or_default() += 1,
        }
        outcome.is_ok()
    }
}

#[test]
fn weak_point_39_no_sealed_datagram_makes_a_reader_panic_or_allocate_more_than_256_kib() {
    let mut rng = dice();
    let mut reader = Reader { guard: guard("town", 1), read: 0, taken: 0, reasons: BTreeMap::new() };
    let compressing = Config { compress_packets: true, ..Config::lan() };
    let mut peer = guard_of("town", 1, &compressing);
    let mut out = Vec::new();
    let mut sealed = |guard: &mut Guard, own, to, body: &[u8]| {
        guard.wrap(own, to, body, &mut out).unwrap();
        out.clone()
    };
    let about = NodeId::new("reader", READER);
    let honest: Vec<Vec<u8>> = messages(&about, 1200)
        .iter()
        .map(|message| sealed(&mut peer, PEER, Some(READER), &body(std::slice::from_ref(message))))
        .collect();
    for packet in &honest {
        for len in 0..packet.len() {
            assert!(!reader.read(&packet[..len]), "{len} bytes of {}", packet.len());
        }
        for _ in 0..4000 {
            let mut spoilt = packet.clone();
            for _ in 0..rng.random_range(1..5) {
                let at = rng.random_range(0..spoilt.len());
                spoilt[at] ^= rng.random_range(1..=255_u8);
            }
            // Two changes of one byte may take each other back.
            if spoilt != *packet {
                assert!(!reader.read(&spoilt));
            }
        }
        assert!(reader.read(packet), "an honest one opens after all that");
        assert!(!reader.read(packet), "and only once");
    }
    // Random bytes behind a right beginning, one byte more of it each time.
    for _ in 0..20_000 {
        let mut bytes = vec![0; rng.random_range(0..300)];
        rng.fill_bytes(&mut bytes);
        let known = rng.random_range(0..48).min(bytes.len());
        let right = &honest[rng.random_range(0..honest.len())];
        bytes[..known].copy_from_slice(&right[..known]);
        assert!(!reader.read(&bytes));
    }
    // Each seal that is not for it.
    let good = body(&messages(&about, 60));
    for (packet, reason) in [
        (sealed(&mut guard("town", 9), PEER, Some(READER), &good), WireError::Sealed),
        (sealed(&mut guard("other", 1), PEER, Some(READER), &good), WireError::Label),
        (sealed(&mut peer, PEER, Some(3), &good), WireError::Seal),
        (sealed(&mut guard("town", 1), READER, Some(PEER), &good), WireError::Reflected),
        (honest[0].clone(), WireError::Replayed),
    ] {
        let before = reader.reasons.get(&reason).copied().unwrap_or_default();
        assert!(!reader.read(&packet));
        assert_eq!(reader.reasons[&reason], before + 1, "{reason:?}");
    }
    let mut plain = Guard::new(&Config::lan(), Labels::new("town"), None, Sealing::Required).unwrap();
    assert!(!reader.read(&sealed(&mut plain, PEER, None, &good)));
    assert!(reader.reasons[&WireError::Unsealed] > 0);
    // Somebody with the key, who seals what is none: bodies at random, and what begins as if compressed.
    for n in 0..20_000_u32 {
        let mut bytes = vec![0; rng.random_range(0..200)];
        rng.fill_bytes(&mut bytes);
        let mut packet = sealed(&mut peer, PEER, Some(READER), &bytes);
        if n % 2 == 0 {
            // The flag is sealed in, so it has to be there before.
            packet = forged_compressed(&mut peer, &bytes);
        }
        reader.read(&packet);
    }
    assert!(reader.read > 60_000, "{}", reader.read);
    for reason in [
        WireError::Foreign,
        WireError::Label,
        WireError::Flags,
        WireError::Sealed,
        WireError::Unsealed,
        WireError::Seal,
        WireError::Replayed,
        WireError::Reflected,
        WireError::Truncated,
        WireError::Compressed,
        WireError::Empty,
    ] {
        assert!(reader.reasons.contains_key(&reason), "never dropped for {reason:?}: {:?}", reader.reasons);
    }
    assert!(reader.guard.seals().senders() < 10, "those who did not open have left nothing behind");
}

/// A packet under an honest seal that says that its body is compressed, whatever that is.
fn forged_compressed(peer: &mut Guard, body: &[u8]) -> Vec<u8> {
    let mut packet = b"\xB1\xF4\x04town\x0D".to_vec();
    let head = packet.len();
    packet.extend_from_slice(body);
    peer.seals().seal(PEER, Some(READER), head, &mut packet).unwrap();
    packet
}

#[test]
fn runs_that_were_never_heard_before_take_a_bounded_memory() {
    let mut reader = guard("town", 1);
    let good = body(&messages(&NodeId::new("reader", READER), 60));
    let mut out = Vec::new();
    for run in 100..8000 {
        guard("town", 1).wrap(run, Some(READER), &good, &mut out).unwrap();
        reader.unwrap(READER, &mut out, |_| {}).unwrap();
        assert!(reader.seals().senders() <= 1024);
    }
}

// A live node.

type Stream = Box<dyn Connection>;

/// Somebody who reaches a live, sealed node.
struct Intruder {
    world: World,
    endpoint: std::sync::Arc<dyn Endpoint>,
    guard: Guard,
}

impl Intruder {
    async fn of(n: u8) -> Self {
        let mut world = World::new(3, Config { tcp_timeout: Duration::from_secs(5), ..Config::lan() });
        for i in 0..2 {
            let node = world.builder(i).key(key(1)).label("town").start().await.unwrap();
            world.nodes.push(node);
        }
        world.nodes[1].join(&["10.0.0.1"]).await.unwrap();
        let both = |w: &World| w.nodes.iter().all(|node| node.view().alive_count() == 2);
        world.wait_until(Duration::from_secs(20), both).await.unwrap();
        let endpoint = world.network.bind(SocketAddr::from(([10, 9, 9, 9], 1))).await.unwrap();
        Self { world, endpoint, guard: guard("town", n) }
    }

    fn node(&self) -> &Cluster {
        &self.world.nodes[0]
    }

    async fn dial(&self) -> Stream {
        self.endpoint.dial(addr(0)).await.unwrap()
    }

    /// Opens a stream as an honest node does.
    async fn open(&mut self) -> (Stream, StreamSeals) {
        let mut stream = self.dial().await;
        let Opened::Sealed(head, opening) = self.guard.open_stream(OUTSIDER) else { unreachable!() };
        stream.write_all(&head).await.unwrap();
        let mut answer = [0; 4 + Half::LEN];
        stream.read_exact(&mut answer).await.unwrap();
        let half = Half::read(*answer.last_chunk().unwrap());
        let seals = self.guard.seals().stream(b"town", opening, half, End::Dialled).unwrap();
        (stream, seals)
    }

    /// What is answered until the node ends the stream, and how long that took.
    async fn end(&self, mut stream: Stream) -> (Vec<u8>, Duration) {
        let (start, mut answer) = (Instant::now(), Vec::new());
        let ended = timeout(Duration::from_secs(60), stream.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "the node keeps the stream");
        (answer, start.elapsed())
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.node().metrics().dropped[reason]
    }

    /// The node is as it was, and no stream is left.
    async fn unharmed(&self, rev: u64) {
        sleep(Duration::from_secs(10)).await;
        let view = self.node().view();
        assert_eq!((view.rev(), view.count(MemberState::Alive)), (rev, 2));
        let metrics = self.node().metrics();
        assert_eq!((metrics.restarts.values().sum::<u64>(), metrics.dropped["panicked"]), (0, 0));
        self.world.nodes[1].ping("n000", addr(0)).await.unwrap();
        self.world.nodes[1].join(&["10.0.0.1"]).await.unwrap();
    }
}

fn record(seals: &mut StreamSeals, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    seals.seal(body, &mut out).unwrap();
    out
}

#[test]
fn every_part_of_an_opening_and_every_wrong_one_ends_its_stream_and_nothing_else() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let rev = intruder.node().view().rev();
        let Opened::Sealed(head, _) = intruder.guard.open_stream(OUTSIDER) else { unreachable!() };
        for len in 0..=head.len() {
            let mut stream = intruder.dial().await;
            stream.write_all(&head[..len]).await.unwrap();
            let _ = stream.shutdown().await;
            let (answer, _) = intruder.end(stream).await;
            // Only somebody who has said as much gets a word.
            assert!(answer.len() <= len, "{} bytes for {len}", answer.len());
        }
        for bit in 0..head.len() * 8 {
            let mut spoilt = head.clone();
            spoilt[bit / 8] ^= 1 << (bit % 8);
            let mut stream = intruder.dial().await;
            stream.write_all(&spoilt).await.unwrap();
            // Long enough for a record of 64 bytes, wherever it begins.
            stream.write_all(&[64, 0].repeat(400)).await.unwrap();
            let _ = stream.shutdown().await;
            intruder.end(stream).await;
        }
        for reason in ["label", "flags", "sealed", "seal", "unsealed", "truncated", "foreign"] {
            assert!(intruder.dropped(reason) > 0, "{reason}");
        }
        intruder.unharmed(rev).await;
    });
}

#[test]
fn records_of_every_length_that_do_not_open_end_their_stream_with_one_refusal() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let rev = intruder.node().view().rev();
        let lengths = (0..=64).chain([1000, MAX_RECORD, MAX_RECORD + TAG, MAX_RECORD + TAG + 1, 65_533]);
        for len in lengths {
            let (mut stream, _) = intruder.open().await;
            let len = u16::try_from(len).unwrap();
            stream.write_all(&len.to_le_bytes()).await.unwrap();
            // The network may be told first that the stream has ended.
            let _ = stream.write_all(&vec![0x55; len.into()]).await;
            let _ = stream.shutdown().await;
            let (answer, took) = intruder.end(stream).await;
            assert!(answer.is_empty() || answer == Barrier::Key.answer(), "{len}: {answer:?}");
            assert!(took < Duration::from_secs(6), "{len}: {took:?}");
        }
        for reason in ["seal", "truncated", "too_long"] {
            assert!(intruder.dropped(reason) > 0, "{reason}");
        }
        intruder.unharmed(rev).await;
    });
}

#[test]
fn weak_point_39_empty_records_under_an_honest_seal_keep_no_stream() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let rev = intruder.node().view().rev();
        let before = intruder.dropped("empty");
        let (mut stream, mut seals) = intruder.open().await;
        for _ in 0..1000 {
            if stream.write_all(&record(&mut seals, b"")).await.is_err() {
                break;
            }
        }
        let (_, took) = intruder.end(stream).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        assert_eq!(intruder.dropped("empty"), before + 1);
        intruder.unharmed(rev).await;
    });
}

#[test]
fn weak_point_36_blocks_that_lie_end_their_stream_also_under_an_honest_seal() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let rev = intruder.node().view().rev();
        let len = (60_000_u32 | 1 << 31).to_le_bytes();
        let head = |packed: u32, of: u32| [packed.to_le_bytes(), of.to_le_bytes()].concat();
        let lies = [
            head(0, 0),
            head(5, 5),
            head(10, 10 * MAX_RATIO as u32 + 1),
            head(BLOCK as u32, BLOCK as u32 + 1),
            head(u32::MAX, u32::MAX),
            head(1 << 31, 0),
            // Allowed as such, but what follows is no block.
            [head(100, 1000), vec![0xEE; 100]].concat(),
        ];
        for (n, lie) in lies.iter().enumerate() {
            for kind in [StreamKind::PushPull.byte(), StreamKind::Upload.byte()] {
                let before = intruder.dropped("compressed");
                let (mut stream, mut seals) = intruder.open().await;
                let said = [&[kind][..], &len, lie].concat();
                stream.write_all(&record(&mut seals, &said)).await.unwrap();
                let _ = stream.shutdown().await;
                intruder.end(stream).await;
                assert_eq!(intruder.dropped("compressed"), before + 1, "{n} with kind {kind}");
            }
        }
        intruder.unharmed(rev).await;
    });
}

#[test]
fn orders_and_states_that_are_none_are_dropped_also_under_an_honest_seal() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let (rev, mut rng) = (intruder.node().view().rev(), dice());
        let orders = intruder.node().metrics().orders;
        for kind in 0..=255_u8 {
            for _ in 0..4 {
                let mut bytes = vec![0; rng.random_range(0..300)];
                rng.fill_bytes(&mut bytes);
                let len = u32::try_from(bytes.len()).unwrap().to_le_bytes();
                let (mut stream, mut seals) = intruder.open().await;
                let said = [&[kind][..], &len, &bytes].concat();
                stream.write_all(&record(&mut seals, &said)).await.unwrap();
                let _ = stream.shutdown().await;
                intruder.end(stream).await;
            }
            if kind == 5 {
                assert!(intruder.dropped("kind") > 0);
            }
        }
        assert_eq!(intruder.node().metrics().orders, orders);
        assert_eq!(intruder.node().keyring().unwrap().list(), [key(1)]);
        intruder.unharmed(rev).await;
    });
}

#[test]
fn an_order_is_followed_by_whom_it_names_and_by_nobody_else() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let own = intruder.node().view().local().id.clone();
        let other = intruder.world.nodes[1].view().local().id.clone();
        let former = NodeId::new(own.shared_name().clone(), own.run() ^ 1);
        for (to, keys) in [(other, vec![key(1)]), (former, vec![key(1)]), (own, vec![key(1), key(5)])] {
            let from = NodeId::new("peer", PEER);
            let order = codec::encode_order(&Ordered { from, to, order: Order::Install(key(5)) });
            let len = u32::try_from(order.len()).unwrap().to_le_bytes();
            let (mut stream, mut seals) = intruder.open().await;
            let said = [&[StreamKind::Order.byte()][..], &len, &order].concat();
            stream.write_all(&record(&mut seals, &said)).await.unwrap();
            let _ = stream.shutdown().await;
            let (answer, _) = intruder.end(stream).await;
            assert!(!answer.is_empty(), "it says how things stand");
            assert_eq!(intruder.node().keyring().unwrap().list(), keys);
        }
    });
}

#[test]
fn weak_point_33_whoever_has_no_key_is_told_so_and_what_it_sends_is_dropped_and_counted() {
    paused(async {
        let mut intruder = Intruder::of(9).await;
        let rev = intruder.node().view().rev();
        let local = intruder.node().view().local().id.clone();
        let mut plain = Guard::new(&Config::lan(), Labels::new("town"), None, Sealing::Off).unwrap();
        let (mut out, all) = (Vec::new(), body(&messages(&local, 60)));
        for _ in 0..100 {
            intruder.guard.wrap(OUTSIDER, Some(local.run()), &all, &mut out).unwrap();
            intruder.endpoint.try_send(&out, addr(0)).unwrap();
            plain.wrap(OUTSIDER, None, &all, &mut out).unwrap();
            intruder.endpoint.try_send(&out, addr(0)).unwrap();
        }
        sleep(Duration::from_secs(1)).await;
        assert_eq!((intruder.dropped("sealed"), intruder.dropped("unsealed")), (100, 100));
        let Opened::Sealed(head, _) = intruder.guard.open_stream(OUTSIDER) else { unreachable!() };
        let mut stream = intruder.dial().await;
        stream.write_all(&head).await.unwrap();
        let _ = stream.shutdown().await;
        assert_eq!(intruder.end(stream).await.0, Barrier::Key.answer());
        intruder.unharmed(rev).await;
    });
}

#[test]
fn weak_point_33_whoever_has_the_key_is_believed_under_any_name() {
    paused(async {
        let mut intruder = Intruder::of(1).await;
        let (local, mut out) = (intruder.node().view().local().id.clone(), Vec::new());
        let other = intruder.world.nodes[1].view().local().clone();
        let accusation = Message::Suspect(Suspect {
            id: other.id.clone(),
            incarnation: other.incarnation,
            from: "nobody".into(),
            evidence: Evidence::Hearsay,
        });
        // It is sealed as if by a member, for everybody: that is not how members accuse.
        intruder.guard.wrap(OUTSIDER, None, &body(std::slice::from_ref(&accusation)), &mut out).unwrap();
        intruder.endpoint.try_send(&out, addr(0)).unwrap();
        sleep(Duration::from_millis(50)).await;
        assert_eq!((intruder.dropped("unaddressed"), intruder.node().metrics().refuted_by_others), (1, 0));
        assert_eq!(intruder.world.state(0, 1), Some(MemberState::Alive));
        intruder.guard.wrap(OUTSIDER, Some(local.run()), &body(&[accusation]), &mut out).unwrap();
        intruder.endpoint.try_send(&out, addr(0)).unwrap();
        let suspected = |w: &World| w.state(0, 1) == Some(MemberState::Suspect);
        intruder.world.wait_until(Duration::from_secs(1), suspected).await.expect("as documented");
        // The one that is accused answers for itself.
        let alive = |w: &World| w.state(0, 1) == Some(MemberState::Alive);
        intruder.world.wait_until(Duration::from_secs(20), alive).await.expect("it refutes");
    });
}
