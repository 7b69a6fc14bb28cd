//! Hostile bytes do no harm: whatever a stranger sends, nothing panics, memory stays bounded, the table stays
//! as it is, and the node goes on answering.
//!
//! Chance begins at a fixed seed, so that a failure repeats; `HOSTILE_SEED` sets another one.

#![allow(clippy::unwrap_used, reason = "a test's own helpers")]

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Arbiter, System};
use actix_memberlist::{
    Broadcast, Cluster, Config, Evidence, InboxMetrics, Member, MemberEvent, MemberState, NodeId, Replay,
    Until, Versions,
};
use allocation_counter::measure;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use memberlist_protocol::{
    gossip::Piggyback,
    member::{MAX_META, MAX_NAME, PackedTags, Tags},
    members::Members,
    probe::Detector,
    wire::{
        WireError,
        bundle::Bundle,
        codec,
        frame::{Barrier, Envelope, MAX_PARTS, StreamKind},
        message::{
            Ack, Alive, Dead, Direct, IndirectPing, Message, Nack, Ping, Remembered, Suspect, UserBroadcast,
            Wait,
        },
        state::{Refusal, State, StateHeader},
    },
};
use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// Largest payload of a UDP datagram over IPv4.
const MAX_DATAGRAM: usize = 65_507;

/// What one datagram may make a node allocate in all, the messages in it included.
const DATAGRAM_BUDGET: u64 = 256 << 10;

/// What one stream may make a node hold beyond the bytes that it has sent.
const STREAM_BUDGET: u64 = 1 << 20;

/// Two labels without a byte in common at the same place.
const LABEL: &str = "our town";
const OTHER_LABEL: &str = "elsewhere";

/// Chance, and what it led to. When the test fails, it says how to repeat it.
struct Dice {
    seed: u64,
    rng: Xoshiro256PlusPlus,
    case: Vec<u8>,
}

impl Dice {
    fn new() -> Self {
        let seed = std::env::var("HOSTILE_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(20_260);
        Self { seed, rng: Xoshiro256PlusPlus::seed_from_u64(seed), case: Vec::new() }
    }

    /// Notes what is tried next.
    fn note(&mut self, case: &[u8]) {
        self.case.clear();
        self.case.extend_from_slice(case);
    }

    fn below(&mut self, n: usize) -> usize {
        self.rng.random_range(0..n)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.rng.fill_bytes(&mut bytes);
        bytes
    }

    /// Changes one to `most` bytes: a bit flipped, a random byte, or one that lengths like to be.
    fn spoilt(&mut self, bytes: &[u8], most: usize) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(most) {
            let at = self.below(bytes.len());
            bytes[at] = match self.below(3) {
                0 => bytes[at] ^ (1 << self.below(8)),
                1 => self.rng.random(),
                _ => [0, 1, 127, 128, 250, 251, 252, 253, 254, 255][self.below(10)],
            };
        }
        bytes
    }
}

impl Drop for Dice {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let shown = &self.case[..self.case.len().min(200)];
            eprintln!("HOSTILE_SEED={}; the last of {} bytes: {shown:02x?}", self.seed, self.case.len());
        }
    }
}

/// Numbers in place of a byte: every width that a number on the wire can have, as large as it can be.
const EXTREMES: [&[u8]; 9] = [
    &[0],
    &[127],
    &[250],
    &[255],
    &[251, 255, 255],
    &[252, 255, 255, 255, 127],
    &[252, 255, 255, 255, 255],
    &[253, 255, 255, 255, 255, 255, 255, 255, 255],
    &[254, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255],
];

/// `bytes` with each of [`EXTREMES`] in place of each byte.
fn extremes(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    (0..bytes.len())
        .flat_map(move |at| EXTREMES.map(|number| [&bytes[..at], number, &bytes[at + 1..]].concat()))
}

/// Who is spoken of in a message.
#[derive(Clone)]
struct Cast {
    about: NodeId,
    from: NodeId,
    addr: SocketAddr,
}

impl Cast {
    fn of(about: &str, from: &str) -> Self {
        let addr = "127.0.0.1:9".parse().unwrap();
        Self { about: NodeId::new(about, 0x1122_3344_5566_7788), from: NodeId::new(from, 7), addr }
    }

    fn alive(&self) -> Alive {
        Alive {
            id: self.about.clone(),
            incarnation: 3,
            addr: self.addr,
            tags: PackedTags::pack(&Tags::from([("rack".into(), "7".into())])),
            meta: Bytes::from_static(b"meta"),
            versions: Versions::CURRENT,
        }
    }

    fn suspect(&self, incarnation: u32) -> Message {
        let (id, from) = (self.about.clone(), self.from.shared_name().clone());
        Message::Suspect(Suspect { id, incarnation, from, evidence: Evidence::Refused })
    }

    fn dead(&self, incarnation: u32) -> Message {
        let from = self.from.shared_name();
        Message::Dead(Dead {
            id: self.about.clone(),
            incarnation,
            from: from.clone(),
            by: from.clone(),
            confirmed_by: vec![from.clone(), self.about.shared_name().clone()],
            evidence: Evidence::NoAnswer { direct: true, helpers: 3, nacks: 2, healthy: true },
        })
    }

    fn ping(&self, seq: u32) -> Message {
        Message::Ping(Ping { seq, target: self.about.clone(), from: self.from.clone() })
    }

    fn indirect_ping(&self, seq: u32) -> Message {
        let (target, from) = (self.about.clone(), self.from.clone());
        Message::IndirectPing(IndirectPing { seq, target, addr: self.addr, from })
    }

    fn user(&self, id: u64, bytes: impl Into<Bytes>) -> Message {
        Message::User(UserBroadcast { origin: self.from.clone(), id, kind: "".into(), bytes: bytes.into() })
    }

    /// One message of each kind.
    fn each_kind(&self) -> Vec<Message> {
        let messages = vec![
            self.ping(300),
            self.indirect_ping(70_000),
            Message::Ack(Ack { seq: u32::MAX, payload: Bytes::from_static(b"payload") }),
            Message::Nack(Nack { seq: 7 }),
            self.suspect(3),
            Message::Alive(self.alive()),
            self.dead(3),
            self.user(9, "news"),
            Message::Direct(Direct {
                from: self.from.clone(),
                to: Some(self.about.clone()),
                parts: Bundle::of("kind", b"hello"),
            }),
            Message::Wait(Wait { from: self.from.clone(), to: self.about.clone(), millis: 200 }),
        ];
        let kinds: BTreeSet<_> = messages.iter().map(Message::kind).collect();
        assert_eq!(kinds.len(), Message::KINDS, "a kind of message is not tried");
        messages
    }

    /// One message of each kind, as long as it may be.
    fn each_kind_at_its_longest() -> Vec<Message> {
        let long = |c: &str| c.repeat(MAX_NAME);
        let cast = Self { addr: "[2001:db8::1]:65535".parse().unwrap(), ..Self::of(&long("a"), &long("b")) };
        let mut messages = cast.each_kind();
        for message in &mut messages {
            match message {
                Message::Ack(ack) => ack.payload = vec![1; MAX_META].into(),
                Message::Alive(alive) => {
                    alive.meta = vec![1; MAX_META - alive.tags.as_bytes().len()].into();
                }
                Message::User(user) => user.bytes = vec![1; 2000].into(),
                Message::Direct(direct) => direct.parts = Bundle::of("kind", &[1; 2000]),
                _ => {}
            }
        }
        messages
    }
}

fn written(message: &Message) -> Bytes {
    codec::encoded(message, usize::MAX).unwrap()
}

/// A packet of parts that need not be messages.
fn packet_of(label: &str, parts: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let kind = Envelope::new(label).unwrap().open_stream(StreamKind::Ping);
    let mut packet = kind[..kind.len() - 1].to_vec();
    packet.push(u8::try_from(parts.len()).unwrap());
    for part in parts {
        packet.extend_from_slice(&u16::try_from(part.as_ref().len()).unwrap().to_le_bytes());
        packet.extend_from_slice(part.as_ref());
    }
    packet
}

fn packet(label: &str, messages: &[Message]) -> Vec<u8> {
    packet_of(label, &messages.iter().map(written).collect::<Vec<_>>())
}

/// Packets within packets, by every way in: as the bytes of a user, as an ack's payload, as metadata, and as a
/// part itself.
fn nested(cast: &Cast, label: &str, inner: &[u8]) -> Vec<Vec<u8>> {
    let mut alive = cast.alive();
    alive.tags = PackedTags::default();
    alive.meta = Bytes::copy_from_slice(&inner[..inner.len().min(MAX_META)]);
    let ack = Ack { seq: 1, payload: alive.meta.clone() };
    vec![
        packet(label, &[cast.user(1 << 40, inner.to_vec())]),
        packet(label, &[Message::Ack(ack)]),
        packet(label, &[Message::Alive(alive)]),
        packet_of(label, &[inner, inner]),
    ]
}

/// As many messages as a datagram holds, one after the other from `messages`.
fn full_datagram(messages: &[Message]) -> Vec<u8> {
    let mut parts = Vec::new();
    let mut len = 3;
    for part in messages.iter().map(written).cycle().take(MAX_PARTS) {
        len += 2 + part.len();
        if len > MAX_DATAGRAM {
            break;
        }
        parts.push(part);
    }
    packet_of("", &parts)
}

// The ground floor.

/// Reads a datagram as a node does, and keeps each message in it.
fn read(envelope: &Envelope, datagram: &[u8]) -> (Vec<Message>, Option<WireError>) {
    let mut messages = Vec::new();
    let mut all = || {
        for part in envelope.parts(datagram)? {
            messages.push(codec::decode(part?)?);
        }
        Ok(())
    };
    let error = all().err();
    (messages, error)
}

/// Reads datagrams under the budget of memory, and keeps account of what came of it.
struct Reader {
    dice: Dice,
    envelope: Envelope,
    datagrams: usize,
    decoded: BTreeMap<usize, usize>,
    reasons: BTreeMap<WireError, usize>,
    most: u64,
}

impl Reader {
    fn new(dice: Dice) -> Self {
        let envelope = Envelope::new("").unwrap();
        let (decoded, reasons) = Default::default();
        Self { dice, envelope, datagrams: 0, decoded, reasons, most: 0 }
    }

    fn read(&mut self, datagram: &[u8]) -> Vec<Message> {
        self.dice.note(datagram);
        let mut result = None;
        let memory = measure(|| result = Some(read(&self.envelope, datagram)));
        let (messages, error) = result.unwrap();
        assert!(memory.bytes_total <= DATAGRAM_BUDGET, "{memory:?} for {} bytes", datagram.len());
        self.most = self.most.max(memory.bytes_total);
        self.datagrams += 1;
        for message in &messages {
            *self.decoded.entry(message.kind()).or_default() += 1;
        }
        if let Some(error) = error {
            *self.reasons.entry(error).or_default() += 1;
        }
        messages
    }
}

#[test]
fn no_datagram_makes_a_decoder_panic_or_allocate_more_than_256_kib() {
    let mut reader = Reader::new(Dice::new());
    let cast = Cast::of("somebody", "anybody");
    let messages = cast.each_kind();

    for _ in 0..20_000 {
        let len = if reader.dice.below(100) == 0 { MAX_DATAGRAM } else { reader.dice.below(200) };
        let mut bytes = reader.dice.bytes(len);
        // The first bytes right, one more each time, so that chance gets to the inside as well.
        let right = packet(
            "",
            &[Message::Nack(Nack { seq: 7 }), messages[reader.dice.below(Message::KINDS)].clone()],
        );
        let known = reader.dice.below(12).min(len);
        bytes[..known].copy_from_slice(&right[..known]);
        reader.read(&bytes);
    }
    let longest = Cast::each_kind_at_its_longest();
    for message in messages.iter().chain(&longest) {
        let honest = packet("", std::slice::from_ref(message));
        assert_eq!(reader.read(&honest), std::slice::from_ref(message));
        for cut in 0..honest.len() {
            assert!(reader.read(&honest[..cut]).is_empty(), "cut at {cut} of {}", honest.len());
        }
        for _ in 0..1500 {
            let spoilt = reader.dice.spoilt(&honest, 6);
            reader.read(&spoilt);
        }
        for bytes in nested(&cast, "", &honest) {
            reader.read(&bytes);
            let spoilt = reader.dice.spoilt(&bytes, 6);
            reader.read(&spoilt);
        }
    }
    for message in &messages {
        // Wrong numbers inside of a message whose length is right, and in the packet around it.
        for bytes in extremes(&written(message)) {
            reader.read(&packet_of("", &[bytes]));
        }
        for bytes in extremes(&packet("", std::slice::from_ref(message))) {
            reader.read(&bytes);
        }
    }
    let mut deep = packet("", &messages);
    while deep.len() < 60_000 {
        deep = packet("", &[cast.user(1, deep), messages[3].clone()]);
        reader.read(&deep);
        // A packet that holds itself many times over.
        let parts = vec![&deep[..]; (MAX_DATAGRAM / (deep.len() + 2)).min(MAX_PARTS)];
        reader.read(&packet_of("", &parts));
    }
    let fullest = messages.iter().map(|message| full_datagram(std::slice::from_ref(message)));
    let longest = longest.iter().map(|message| full_datagram(std::slice::from_ref(message)));
    let many_names = full_datagram(&[
        cast.dead(3),
        Message::User(UserBroadcast {
            origin: cast.from.clone(),
            id: u64::MAX,
            kind: "".into(),
            bytes: vec![0; MAX_DATAGRAM / MAX_PARTS].into(),
        }),
    ]);
    for datagram in fullest.chain(longest).chain([many_names]) {
        assert!(reader.read(&datagram).len() > 20);
        for _ in 0..30 {
            let spoilt = reader.dice.spoilt(&datagram, 3);
            reader.read(&spoilt);
        }
    }

    assert!(reader.datagrams > 60_000, "{}", reader.datagrams);
    assert_eq!(reader.decoded.len(), Message::KINDS, "each kind was read: {:?}", reader.decoded);
    // The others come of streams, and of seals.
    let elsewhere = [
        WireError::TooLong,
        WireError::Unsealed,
        WireError::Seal,
        WireError::Replayed,
        WireError::Reflected,
        WireError::Unaddressed,
    ];
    for error in WireError::ALL.into_iter().filter(|error| !elsewhere.contains(error)) {
        assert!(reader.reasons.contains_key(&error), "never dropped for {error:?}: {:?}", reader.reasons);
    }
    // Should this fall to nothing, the allocations are no longer counted.
    assert!(reader.most > 32 << 10, "{}", reader.most);
}

/// A state as a peer sends it.
fn state(header: &StateHeader, members: usize, user: &[u8]) -> Bytes {
    let remembered = |i| {
        let alive = Cast::of(&format!("member-{i}"), "nobody").alive();
        let states = [MemberState::Alive, MemberState::Suspect, MemberState::Dead, MemberState::Left];
        Remembered { alive, state: states[i % 4] }
    };
    let members: Vec<_> = (0..members).map(remembered).collect();
    State::encode(header.clone(), members.into_iter(), user)
}

fn header_of(from: NodeId) -> StateHeader {
    StateHeader { from, versions: Versions::CURRENT, join: true, tentative: false, members: 0, user_len: 0 }
}

/// Reads a state to its last member, under the budget of memory. The bytes themselves are there already.
fn take_in(dice: &mut Dice, bytes: Vec<u8>) -> Option<usize> {
    dice.note(&bytes);
    let bytes = Bytes::from(bytes);
    let mut members = None;
    let memory = measure(|| {
        if let Ok(Ok(mut state)) = State::decode(bytes, "me") {
            let _ = state.sender();
            let mut taken = 0;
            while state.next_member().is_some() {
                taken += 1;
            }
            assert!(state.is_empty());
            members = Some(taken);
        }
    });
    assert!(memory.bytes_max <= STREAM_BUDGET, "{memory:?} for {} bytes", dice.case.len());
    members
}

#[test]
fn no_stream_makes_a_decoder_panic_or_hold_more_than_1_mib_beyond_its_bytes() {
    let mut dice = Dice::new();
    let cast = Cast::of("somebody", "anybody");
    let header = header_of(NodeId::new("member-0", 0x1122_3344_5566_7788));
    let mut chunks = vec![
        state(&header, 0, b""),
        state(&header, 1, b"user"),
        state(&header, 5, b""),
        state(&header, 5, &packet("", &cast.each_kind())),
    ];
    let refusals = [Refusal::Label, Refusal::NameTaken, Refusal::Vetoed("no guests".into())];
    chunks.extend(refusals.map(State::refuse));
    chunks.extend([written(&cast.ping(1)), written(&Message::Ack(Ack { seq: 1, payload: Bytes::new() }))]);
    for chunk in &chunks {
        for cut in 0..chunk.len() {
            assert_eq!(take_in(&mut dice, chunk[..cut].to_vec()), None, "a state that is cut at {cut}");
            let _ = codec::decode(&chunk[..cut]);
        }
        for bytes in extremes(chunk) {
            let _ = codec::decode(&bytes);
            take_in(&mut dice, bytes);
        }
        for _ in 0..3000 {
            let spoilt = dice.spoilt(chunk, 6);
            let _ = codec::decode(&spoilt);
            take_in(&mut dice, spoilt);
        }
        // A state in a state: as its user's bytes, and in place of its members.
        take_in(&mut dice, state(&header, 2, chunk).to_vec());
        take_in(&mut dice, [&state(&header, 0, b"")[..], chunk].concat());
    }
    for _ in 0..10_000 {
        let len = dice.below(300);
        let bytes = dice.bytes(len);
        take_in(&mut dice, bytes);
    }
    // Claims that no byte backs, and states as large as they come, whole and spoilt.
    for (members, user_len) in [(u32::MAX, 0), (0, u32::MAX), (u32::MAX, u32::MAX), (1 << 20, 1 << 20)] {
        let mut lie = Vec::new();
        codec::encode_reply(&Ok(StateHeader { members, user_len, ..header.clone() }), &mut lie);
        assert_eq!(take_in(&mut dice, lie), None);
    }
    let large = state(&header, 50_000, &vec![7; 1 << 20]);
    assert!(large.len() > 3 << 20);
    assert_eq!(take_in(&mut dice, large.to_vec()), Some(50_000));
    for _ in 0..20 {
        let spoilt = dice.spoilt(&large, 3);
        take_in(&mut dice, spoilt);
    }
    let noise = "\u{1b}".repeat(2 << 20);
    take_in(&mut dice, State::refuse(Refusal::Vetoed(noise)).to_vec());

    // The first bytes of a stream.
    let right = [Envelope::new("").unwrap(), Envelope::new(LABEL).unwrap()];
    for _ in 0..20_000 {
        let envelope = &right[dice.below(2)];
        let spoilt = dice.spoilt(&envelope.open_stream(StreamKind::PushPull), 3);
        let cut = dice.below(spoilt.len() + 1);
        if let Ok([kind]) = envelope.strip(&spoilt[..cut]) {
            let _ = StreamKind::of(*kind);
        }
    }
}

#[test]
fn whatever_can_be_decoded_the_rules_take_it_without_a_panic_and_within_their_bounds() {
    let mut reader = Reader::new(Dice::new());
    let mut now = Instant::now();
    let config = Arc::new(Config { max_members: 64, max_relays: 64, max_tombstones: 64, ..Config::local() });
    let names = ["self", "ann", "bob"];
    let cast = |name: &str| Cast::of(name, "ann");
    let own = Member::new(cast("self").about, cast("self").addr, 1, now);
    let mut rules = Xoshiro256PlusPlus::seed_from_u64(1);
    let mut table = Members::new(config.clone(), own, 5);
    let mut detector = Detector::new(config.clone(), now, &mut rules);
    let here = cast("self").addr;
    let (mut taken, mut refused) = (0, 0);
    for round in 0..60_000 {
        let message = &cast(names[round % 3]).each_kind()[round / 3 % Message::KINDS];
        let spoilt = reader.dice.spoilt(&written(message), 3);
        for message in reader.read(&packet_of("", &[spoilt])) {
            let verdict = match &message {
                Message::Alive(m) => table.alive(m, now, &mut rules),
                Message::Suspect(m) => table.suspect(m, now, &mut rules),
                Message::Dead(m) => table.dead(m, now, &mut rules),
                other => {
                    let view = table.view();
                    match other {
                        Message::Ping(m) => {
                            drop(detector.ping(m, here, Piggyback::Yes, &Bytes::new(), &view))
                        }
                        Message::IndirectPing(m) => {
                            drop(detector.indirect_ping(m, here, &view, now, &mut rules));
                        }
                        Message::Ack(m) => drop(detector.ack(m, NodeId::ANY_RUN, now)),
                        Message::Nack(m) => drop(detector.nack(m)),
                        _ => {}
                    }
                    continue;
                }
            };
            match verdict {
                Ok(decision) => {
                    table.apply(decision, now);
                    taken += 1;
                }
                Err(_) => refused += 1,
            }
        }
        if round % 16 == 0 {
            now += Duration::from_millis(100);
            while let Some(decision) = table.on_time(now, &mut rules) {
                table.apply(decision, now);
            }
            detector.on_time(&table.view(), now, &mut rules);
        }
        let local = table.local();
        assert_eq!((local.name(), local.state), ("self", MemberState::Alive), "after {round}");
        assert!(table.roster().len() <= 64, "{} members after {round}", table.roster().len());
    }
    assert!(taken > 1000 && refused > 1000, "{taken} taken, {refused} refused");
}

// Live nodes over real sockets.

async fn start(name: &str) -> Cluster {
    let loopback = "127.0.0.1:0".parse().unwrap();
    let node = Cluster::builder(name).config(Config::local()).label(LABEL).bind(loopback);
    node.start().await.unwrap()
}

/// Two nodes that know each other and have nothing left to say.
async fn pair() -> (Cluster, Cluster) {
    let (north, south) = (start("north-tower").await, start("south-tower").await);
    south.join(&[&addr(&north).to_string()]).await.unwrap();
    for node in [&north, &south] {
        assert!(node.ready(Until::Members(2), Duration::from_secs(5)).await.unwrap());
    }
    let quiet = || north.metrics().broadcasts_queued + south.metrics().broadcasts_queued == 0;
    assert!(within(Duration::from_secs(5), quiet).await, "news that never ends");
    (north, south)
}

fn addr(node: &Cluster) -> SocketAddr {
    node.view().local().addr
}

fn id(node: &Cluster) -> NodeId {
    node.view().local().id.clone()
}

async fn within(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

/// Everything that a node holds of its members.
fn table(node: &Cluster) -> BTreeMap<String, String> {
    let row = |m: &Member| format!("{:?}", (m.id.run(), m.incarnation, m.state, m.addr, &m.tags, &m.meta));
    node.view().all().map(|m| (m.name().to_owned(), row(m))).collect()
}

/// What a node has told its subscribers so far.
fn told(events: &mut (impl Stream<Item = MemberEvent> + Unpin)) -> Vec<MemberEvent> {
    std::iter::from_fn(|| events.next().now_or_never().flatten()).collect()
}

fn assert_unharmed(node: &Cluster) {
    let metrics = node.metrics();
    assert!(metrics.restarts.values().all(|n| *n == 0), "{:?}", metrics.restarts);
    assert_eq!((metrics.dropped["panicked"], metrics.stalls), (0, 0));
}

/// Somebody with a socket, who is no member.
struct Stranger {
    socket: UdpSocket,
    node: SocketAddr,
    id: NodeId,
    pings: u32,
}

impl Stranger {
    fn of(node: &Cluster) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        Self { socket, node: addr(node), id: id(node), pings: 1 << 30 }
    }

    fn send(&self, datagram: &[u8]) {
        // Full buffers on the way are no concern of the stranger's.
        let _ = self.socket.send_to(datagram, self.node);
    }

    /// What comes back before nothing more does for a while.
    fn answers(&self) -> Vec<Vec<u8>> {
        let mut buf = vec![0; MAX_DATAGRAM];
        std::iter::from_fn(|| self.socket.recv(&mut buf).ok().map(|len| buf[..len].to_vec())).collect()
    }

    /// Pings until the answer is there: then the node has read whatever was sent before.
    fn catch_up(&mut self) -> Duration {
        let (envelope, start) = (Envelope::new(LABEL).unwrap(), Instant::now());
        for _ in 0..50 {
            self.pings += 1;
            let seq = self.pings;
            let (target, from) = (self.id.clone(), NodeId::new("a stranger", 1));
            self.send(&packet(LABEL, &[Message::Ping(Ping { seq, target, from })]));
            let mut buf = [0; 2048];
            while let Ok(len) = self.socket.recv(&mut buf) {
                let (messages, _) = read(&envelope, &buf[..len]);
                if messages.contains(&Message::Ack(Ack { seq, payload: Bytes::new() })) {
                    return start.elapsed();
                }
            }
        }
        panic!("the node answers no ping any more");
    }

    /// Sends many datagrams, none faster than the node reads.
    fn send_all(&mut self, dice: &mut Dice, datagrams: impl IntoIterator<Item = Vec<u8>>) -> usize {
        let mut sent = 0;
        for datagram in datagrams {
            dice.note(&datagram);
            self.send(&datagram);
            sent += 1;
            if sent % 32 == 0 || datagram.len() > 1400 {
                self.catch_up();
            }
        }
        self.catch_up();
        sent
    }

    /// Opens a stream, sends this, closes its own half, and reads what comes until the node closes its half.
    fn stream(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = TcpStream::connect(self.node).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        // The node may close before all is written: that is its right.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("a stream is left open"),
            _ => answer,
        }
    }
}

/// A stream's bytes: the envelope, the kind, a length and what it is the length of.
fn stream_of(label: &str, kind: StreamKind, len: usize, body: &[u8]) -> Vec<u8> {
    let head = Envelope::new(label).unwrap().open_stream(kind);
    [&head[..], &u32::try_from(len).unwrap().to_le_bytes(), body].concat()
}

/// One datagram for each reason to drop one.
fn one_for_each_reason() -> Vec<Vec<u8>> {
    let nack = packet(LABEL, &[Message::Nack(Nack { seq: 7 })]);
    let flags_at = 3 + LABEL.len();
    let with = |at: usize, byte: u8| {
        let mut bytes = nack.clone();
        bytes[at] = byte;
        bytes
    };
    let part = |bytes: &[u8]| packet_of(LABEL, &[bytes]);
    let mut too_much = Cast::of("somebody", "anybody").alive();
    too_much.meta = vec![0; MAX_META].into();
    vec![
        b"GET / HTTP/1.1".to_vec(),
        with(0, 7),
        with(0, 0xB2),
        packet("", &[Message::Nack(Nack { seq: 7 })]),
        with(flags_at, 8),
        with(flags_at, 1),
        with(flags_at, 2),
        with(flags_at, 4),
        nack[..nack.len() - 1].to_vec(),
        [&nack[..], b"x"].concat(),
        with(flags_at + 1, 0),
        part(&[99]),
        part(&[4, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0, 0, 0]),
        part(&[2, 7, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1]),
        part(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0, 0, 0]),
        part(&written(&Message::Alive(too_much))),
        Vec::new(),
    ]
}

/// Messages that any stranger can write and that must change nothing, with the members' real names and runs.
fn useless(about: &Member, other: &Member) -> Vec<Message> {
    let real = Cast { about: about.id.clone(), from: other.id.clone(), addr: about.addr };
    let own = Alive::of(about);
    let elsewhere = |addr: &str| Alive { addr: addr.parse().unwrap(), ..Cast::of("nobody", "x").alive() };
    vec![
        // Old, or of an incarnation that nobody can have.
        real.suspect(about.incarnation - 1),
        real.dead(about.incarnation - 1),
        real.suspect(u32::MAX),
        real.dead(u32::MAX),
        Message::Alive(own.clone()),
        Message::Alive(Alive { incarnation: about.incarnation - 1, meta: "old".into(), ..own.clone() }),
        Message::Alive(Alive { incarnation: u32::MAX, versions: no_versions(), ..own.clone() }),
        // Of nobody.
        Cast::of("nobody", "north-tower").suspect(1),
        Cast::of("nobody", "nobody").dead(1),
        Message::Alive(Alive { incarnation: 0, ..Cast::of("nobody", "x").alive() }),
        Message::Alive(elsewhere("224.0.0.1:9")),
        Message::Alive(elsewhere("0.0.0.0:9")),
        Message::Alive(elsewhere("127.0.0.1:0")),
        Message::Alive(elsewhere("255.255.255.255:9")),
        // A member's name, at another place: the member keeps it.
        Message::Alive(Alive { addr: RIVAL.parse().unwrap(), id: NodeId::new(about.name(), 3), ..own }),
        // Questions and answers of others.
        Cast::of("nobody", "south-tower").ping(1),
        Cast::of("nobody", "south-tower").indirect_ping(1),
        Message::Ack(Ack { seq: 12, payload: vec![1; MAX_META].into() }),
        Message::Nack(Nack { seq: 12 }),
    ]
}

const RIVAL: &str = "127.0.0.1:9";

fn no_versions() -> Versions {
    let nobody = actix_memberlist::VersionRange { min: 0, max: 0, current: 0 };
    Versions { protocol: nobody, delegate: nobody }
}

/// Messages of each kind about `about` that remain without effect, even when one or two bytes are changed:
///
/// - The run differs from the real ones in each of its eight bytes, so accusations and pings are about another
///   run. (A dead message about the node itself makes it say once more that it runs, which is no change.)
/// - An alive message has all six bytes of its versions zero, as has its metadata before them: it takes three
///   changes to make sound versions of that.
fn inert(about: &NodeId, runs: [u64; 2]) -> Vec<Message> {
    let bytes = runs.map(u64::to_le_bytes);
    let other = |i: usize| (0..=255).find(|b| bytes.iter().all(|run| run[i] != *b)).unwrap();
    let run = u64::from_le_bytes(std::array::from_fn(other));
    let cast = Cast { about: NodeId::new(about.name(), run), ..Cast::of("", "north-tower") };
    let mut messages = cast.each_kind();
    for message in &mut messages {
        if let Message::Alive(alive) = message {
            alive.tags = PackedTags::default();
            alive.meta = vec![0; 12].into();
            alive.versions = no_versions();
        }
    }
    messages
}

#[actix::test]
async fn hostile_bytes_leave_a_live_node_as_it_was_and_each_reason_to_drop_them_is_counted() {
    let mut dice = Dice::new();
    let (north, south) = pair().await;
    let nodes = [&north, &south];
    let before = nodes.map(table);
    let mut events = nodes.map(|node| Box::pin(node.events(Replay::None)));
    let (about, other) = (south.view().local().clone(), north.view().local().clone());
    let mut stranger = Stranger::of(&north);
    let mut datagrams = 0;

    // Without the label, nothing that is said may have an effect, however well it is made. No change of a few
    // bytes makes one label of the other.
    let real = Cast { about: id(&south), from: id(&north), addr: addr(&south) };
    let newcomer = Cast { addr: "127.0.0.1:9".parse().unwrap(), ..Cast::of("mallory", "mallory") };
    let foreign: Vec<_> = [&real, &newcomer].iter().flat_map(|cast| cast.each_kind()).collect();
    let mut wrong_label = Vec::new();
    for (message, label) in foreign.iter().flat_map(|message| [(message, OTHER_LABEL), (message, "")]) {
        let honest = packet(label, std::slice::from_ref(message));
        wrong_label.extend((0..30).map(|_| dice.spoilt(&honest, 4)));
        wrong_label.push(honest);
    }
    datagrams += stranger.send_all(&mut dice, wrong_label);

    // With the label: noise, messages of each kind that stay without effect when spoilt, cut or with numbers
    // replaced, true accusations nested where nobody may look for them, and what is known or nobody's.
    let runs = [about.id.run(), other.id.run()];
    for member in [&about, &other] {
        for message in inert(&member.id, runs) {
            let honest = packet(LABEL, std::slice::from_ref(&message));
            let spoilt: Vec<_> = (0..100).map(|_| dice.spoilt(&honest, 2)).collect();
            let cut = (0..honest.len()).map(|cut| honest[..cut].to_vec());
            let message = written(&message);
            let numbers = extremes(&message).map(|bytes| packet_of(LABEL, &[bytes]));
            datagrams += stranger.send_all(&mut dice, spoilt.into_iter().chain(cut).chain(numbers));
        }
    }
    let accusation = packet(LABEL, &[real.suspect(about.incarnation), real.dead(about.incarnation)]);
    // The alive message around one of them is that of a rival.
    let hidden =
        Cast { about: NodeId::new("north-tower", 1), from: id(&north), addr: RIVAL.parse().unwrap() };
    datagrams += stranger.send_all(&mut dice, nested(&hidden, LABEL, &accusation));
    datagrams += stranger.send_all(&mut dice, nested(&hidden, LABEL, &accusation[..40]));
    let mut noise = Vec::new();
    for n in 0..2000 {
        let len = if n % 100 == 0 { MAX_DATAGRAM } else { dice.below(300) };
        let mut bytes = dice.bytes(len);
        let honest = packet_of(LABEL, &[[0; 1]]);
        let known = dice.below(honest.len()).min(len);
        bytes[..known].copy_from_slice(&honest[..known]);
        noise.push(bytes);
    }
    datagrams += stranger.send_all(&mut dice, noise);
    for (about, other) in [(&about, &other), (&other, &about)] {
        let useless = useless(about, other);
        let together = packet(LABEL, &useless);
        let each = useless.iter().map(|message| packet(LABEL, std::slice::from_ref(message)));
        datagrams += stranger.send_all(&mut dice, each.chain([together]));
    }
    datagrams += stranger.send_all(&mut dice, one_for_each_reason());
    assert!(datagrams > 5000, "{datagrams}");

    let streams = hostile_streams(&mut dice, &stranger, &north, &south);
    assert!(streams > 300, "{streams}");

    // Each reason was met, and nothing else has come of it.
    let metrics = north.metrics();
    // A node without a key opens no seals: see hostile_seals.rs and replay.rs.
    let of_seals = [WireError::Seal, WireError::Replayed, WireError::Reflected, WireError::Unaddressed];
    let met = |e: &WireError| metrics.dropped[e.name()] > 0;
    let never: Vec<_> = WireError::ALL.iter().filter(|e| !of_seals.contains(e) && !met(e)).collect();
    assert!(never.is_empty(), "never met: {never:?} of {:?}", metrics.dropped);
    for reason in ["stale", "unknown_member", "other_run", "incarnation_step", "address", "versions"] {
        assert!(metrics.dropped[reason] > 0, "never met: {reason}");
    }
    for reason in ["not_for_me", "unknown_sequence", "unknown_target", "stream_timeout"] {
        assert!(metrics.dropped[reason] > 0, "never met: {reason}");
    }
    // Time for what might have been set off.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(nodes.map(table), before);
    for (node, events) in nodes.iter().zip(&mut events) {
        assert_unharmed(node);
        assert_eq!((node.metrics().refutations, node.health()), (0, 0));
        let only_rivals = |e: &MemberEvent| {
            matches!(e, MemberEvent::Conflict { kept, other, .. }
                if before[0].contains_key(kept.name()) && *other == RIVAL.parse().unwrap())
        };
        let told = told(events);
        assert!(told.iter().all(only_rivals), "{told:?}");
    }

    // And the cluster is open for business.
    let third = start("third-tower").await;
    third.join(&[&stranger.node.to_string()]).await.unwrap();
    for node in [&north, &south, &third] {
        assert!(node.ready(Until::Members(3), Duration::from_secs(5)).await.unwrap());
        node.shutdown().await;
    }
}

/// Streams of every wrong kind. Says how many.
fn hostile_streams(dice: &mut Dice, stranger: &Stranger, north: &Cluster, south: &Cluster) -> usize {
    use StreamKind::{Ping, PushPull};
    let mallory = NodeId::new("mallory", 666);
    let runs = [id(north).run(), id(south).run()];
    // A state as good as any, but its one member is nobody's: see `inert`.
    let mut alive = Cast::of("mallory", "x").alive();
    alive.tags = PackedTags::default();
    alive.meta = vec![0; 12].into();
    alive.versions = no_versions();
    let inert_state = |id: &NodeId| {
        let member =
            Remembered { alive: Alive { id: id.clone(), ..alive.clone() }, state: MemberState::Alive };
        State::encode(header_of(id.clone()), [member].into_iter(), &[])
    };
    let good = inert_state(&mallory);
    let whole = |kind, body: &[u8]| stream_of(LABEL, kind, body.len(), body);
    // Accusations against everybody, by somebody who is not the first member of his own state.
    let accused: Vec<_> =
        north.view().all().map(|m| Remembered { alive: Alive::of(m), state: MemberState::Dead }).collect();
    let slander = |header: StateHeader| State::encode(header, accused.clone().into_iter(), &[]);
    let too_new = Versions { protocol: no_versions().protocol, ..Versions::CURRENT };
    let max = Config::local().max_state_size;
    let ping_of = |name: &str| written(&Cast::of(name, "mallory").ping(7));

    // Refused without a word.
    let mut silent = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        vec![7; 40],
        vec![0x16, 3, 1, 0, 200],
        stream_of(OTHER_LABEL, PushPull, good.len(), &good),
        stream_of("", PushPull, good.len(), &good),
        stream_of("", Ping, 40, &[0; 40]),
        stream_of(LABEL, PushPull, max + 1, &good),
        stream_of(LABEL, PushPull, u32::MAX as usize, &good),
        stream_of(LABEL, Ping, 2049, &[0; 2049]),
        stream_of(LABEL, PushPull, max, &good),
        stream_of(LABEL, PushPull, good.len() + 1, &good),
        stream_of(LABEL, PushPull, good.len() - 1, &good),
        stream_of(LABEL, PushPull, 0, &[]),
        stream_of(LABEL, Ping, 0, &[]),
        whole(PushPull, b"garbage, and more of it"),
        whole(PushPull, &ping_of("north-tower")),
        whole(PushPull, &State::refuse(Refusal::NameTaken)),
        whole(PushPull, &slander(header_of(mallory.clone()))),
        whole(PushPull, &State::encode(header_of(mallory.clone()), [].into_iter(), &[])),
        whole(Ping, &good),
        whole(Ping, &written(&Message::Nack(Nack { seq: 7 }))),
        whole(Ping, &ping_of("somebody else")),
        // The right name, another run.
        whole(Ping, &ping_of("north-tower")),
    ];
    let honest = whole(PushPull, &good);
    silent.extend((0..honest.len()).map(|cut| honest[..cut].to_vec()));
    for kind in [0, 3, 4, 0x16, 255] {
        let mut bytes = honest.clone();
        bytes[4 + LABEL.len()] = kind;
        silent.push(bytes);
    }
    for flags in [1, 2, 4, 7, 8, 128, 255] {
        let mut bytes = honest.clone();
        bytes[3 + LABEL.len()] = flags;
        silent.push(bytes);
    }
    for bytes in &silent {
        dice.note(bytes);
        let answer = stranger.stream(bytes);
        // Nothing, or that the label or the key is another one.
        let barrier = [Barrier::Label, Barrier::Key].iter().any(|barrier| answer == barrier.answer());
        assert!(answer.is_empty() || barrier && answer.len() <= bytes.len(), "{bytes:02x?}: {answer:02x?}");
    }

    // Answered, or not, and without effect in any case.
    let mut others = vec![
        // Nobody that this node could talk to.
        whole(PushPull, &slander(StateHeader { versions: too_new, ..header_of(id(north)) })),
        honest.clone(),
        [&honest[..], &honest[..]].concat(),
        stream_of(LABEL, PushPull, good.len(), &[&good[..], &[0; 100_000]].concat()),
    ];
    let about = inert(&id(south), runs).remove(0);
    others.push(whole(Ping, &written(&about)));
    for _ in 0..150 {
        others.push(dice.spoilt(&honest, 2));
        others.push(dice.spoilt(&whole(Ping, &written(&about)), 4));
    }
    for _ in 0..100 {
        let len = dice.below(200);
        let noise = dice.bytes(len);
        others.push(whole(PushPull, &noise));
        others.push(noise);
    }
    for bytes in &others {
        dice.note(bytes);
        stranger.stream(bytes);
    }
    // And one who says nothing at all: he is shown the door.
    let mut silence = TcpStream::connect(stranger.node).unwrap();
    silence.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    assert_eq!(silence.read(&mut [0; 16]).unwrap(), 0);
    silent.len() + others.len() + 1
}

/// What a stream that is still open makes a node hold, node and stranger on one thread, whose memory is
/// counted. The counting allocator moves what grows, so for a moment there are two copies of what has arrived.
#[test]
fn a_length_that_a_stream_only_claims_reserves_nothing() {
    let system = System::new();
    let node = system.block_on(async {
        let node = Cluster::builder("alone").config(Config::local()).bind("127.0.0.1:0".parse().unwrap());
        node.arbiter(Arbiter::current()).without_watchdog().start().await.unwrap()
    });
    let max = Config::local().max_state_size;
    let mut all = stream_of("", StreamKind::PushPull, max, &[]);
    let head = all.len();
    all.resize(head + (1 << 20), 0);
    for sent in [0, 1, 1000, 70_000, 1 << 20] {
        let accepted = node.metrics().streams_accepted;
        let memory = measure(|| {
            system.block_on(async {
                use tokio::io::AsyncWriteExt;
                let mut stream = tokio::net::TcpStream::connect(addr(&node)).await.unwrap();
                stream.write_all(&all[..head + sent]).await.unwrap();
                assert!(within(Duration::from_secs(1), || node.metrics().streams_accepted > accepted).await);
                tokio::time::sleep(Duration::from_millis(100)).await;
            });
        });
        let limit = 2 * sent as u64 + STREAM_BUDGET;
        assert!(memory.bytes_max <= limit, "{memory:?} for {sent} bytes of {max}");
        assert!(memory.bytes_max >= sent as u64, "{memory:?}: the node has not read {sent} bytes");
    }
    system.block_on(node.shutdown());
}

#[actix::test]
async fn a_flood_of_useless_messages_neither_fills_a_node_nor_keeps_it_from_answering() {
    const FLOOD: usize = 20_000;
    let (north, south) = pair().await;
    let nodes = [&north, &south];
    let before = nodes.map(table);
    let mut events = nodes.map(|node| Box::pin(node.events(Replay::None)));
    let mut stranger = Stranger::of(&north);

    let (about, other) = (south.view().local().clone(), north.view().local().clone());
    let mut messages = [useless(&about, &other), useless(&other, &about)].concat();
    // Rivals would be told to the subscribers; pings of the node itself are answered.
    messages.retain(|m| !matches!(m, Message::Alive(alive) if alive.addr == RIVAL.parse().unwrap()));
    messages.push(Cast { about: id(&north), ..Cast::of("", "south-tower") }.ping(1));
    let mut datagrams: Vec<_> =
        messages.iter().map(|message| packet(LABEL, std::slice::from_ref(message))).collect();
    // Some are packed as full as they can be: they fill an inbox faster than its actor empties it.
    datagrams.extend([packet(LABEL, &vec![messages[7].clone(); 200]), packet(LABEL, &messages)]);

    let socket = stranger.socket.try_clone().unwrap();
    let to = stranger.node;
    let flood = std::thread::spawn(move || {
        let start = Instant::now();
        for n in 0..FLOOD {
            let _ = socket.send_to(&datagrams[n % datagrams.len()], to);
        }
        start.elapsed()
    });
    let bound = (Config::local().handoff_queue_depth + Config::local().control_queue_depth + 1) as u64;
    let mut most = 0;
    let most_waiting = || north.metrics().inboxes.values().map(|inbox| inbox.waiting).max().unwrap();
    while !flood.is_finished() {
        most = most.max(most_waiting());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let took = flood.join().unwrap();
    assert!(most <= bound, "{most} messages wait in one inbox");
    stranger.answers();
    let answered = stranger.catch_up();
    assert!(answered < Duration::from_secs(1), "{answered:?} for an answer after a flood of {took:?}");

    // Three probe intervals: had an answer been missed, the peer would have said so by then.
    tokio::time::sleep(3 * Config::local().probe_interval).await;
    for (node, events) in nodes.iter().zip(&mut events) {
        assert_unharmed(node);
        let told = told(events);
        assert!(told.is_empty(), "{told:?}");
    }
    assert_eq!(nodes.map(table), before);
    let metrics = north.metrics();
    assert!(metrics.packets_received > 1000, "the flood did not arrive: {}", metrics.packets_received);
    assert!(metrics.dropped["inbox_news"] > 0, "no inbox was ever full");
    assert_eq!(metrics.dropped["inbox_control"], 0, "control found no room");
    let idle = |inbox: &InboxMetrics| inbox.waiting <= 2;
    assert!(metrics.inboxes.values().all(idle), "{:?}", metrics.inboxes);
    assert_eq!(metrics.broadcasts_queued, 0);
    for node in nodes {
        node.shutdown().await;
    }
}

#[actix::test]
async fn no_answer_to_a_strangers_datagram_is_larger_than_the_question() {
    let (north, south) = pair().await;
    let stranger = Stranger::of(&north);
    let here = stranger.socket.local_addr().unwrap();
    let (own, peer) = (north.view().local().clone(), south.view().local().clone());
    let name = |name: &str, run| NodeId::new(name, run);
    for node in [&north, &south] {
        node.set_ping_payload(vec![7; Ack::MAX_PAYLOAD].into()).unwrap();
    }

    // A stranger who is as short as he can be, and one who goes by a member's name and run.
    let mut questions = Vec::new();
    for from in [name("x", 1), peer.id.clone()] {
        for about in [&own, &peer] {
            let cast = Cast { about: about.id.clone(), from: from.clone(), addr: about.addr };
            let mut messages = cast.each_kind();
            messages.extend([1, u32::MAX].map(|seq| cast.ping(seq)));
            messages.extend([1, u32::MAX].map(|seq| cast.indirect_ping(seq)));
            // Whoever does not know the run gets no more than one who does.
            let anybody = Cast { about: name(about.name(), NodeId::ANY_RUN), ..cast.clone() };
            messages.extend([1, u32::MAX].map(|seq| anybody.ping(seq)));
            // News that is true is no question; what asks for an answer is old news, a name that is taken,
            // and another run of the node itself.
            let alive = Alive::of(about);
            messages.retain(|m| !matches!(m, Message::Alive(_) | Message::Suspect(_) | Message::Dead(_)));
            messages.push(Message::Alive(Alive { incarnation: 0, ..alive.clone() }));
            messages.push(Message::Alive(Alive {
                addr: here,
                id: name(about.name(), 2),
                meta: Bytes::new(),
                ..alive
            }));
            messages.push(cast.suspect(0));
            messages.push(Cast { about: name(about.name(), 2), ..cast.clone() }.suspect(1));
            messages.push(Cast { about: name(about.name(), 2), ..cast }.dead(1));
            let kinds: BTreeSet<_> = messages.iter().map(Message::kind).collect();
            assert_eq!(kinds.len(), Message::KINDS);
            questions.extend(messages);
        }
    }
    let cast = Cast { about: own.id.clone(), ..Cast::of("", "x") };
    let mut datagrams: Vec<_> = questions.iter().map(|m| packet(LABEL, std::slice::from_ref(m))).collect();
    datagrams.push(packet(LABEL, &vec![cast.ping(1); MAX_PARTS]));

    // There is always something that could travel along.
    let news = || {
        for _ in 0..50 {
            let _ = north.broadcast_bytes(Broadcast::new(vec![7; 700]));
        }
    };
    let mut answered = BTreeSet::new();
    let mut ask = |datagram: &[u8]| {
        news();
        stranger.send(datagram);
        let answers = stranger.answers();
        assert!(north.metrics().broadcasts_queued > 0, "there was nothing to travel along");
        let len: usize = answers.iter().map(Vec::len).sum();
        let (asked, _) = read(&Envelope::new(LABEL).unwrap(), datagram);
        assert!(len <= datagram.len(), "{len} bytes for {}: {asked:?}", datagram.len());
        for answer in &answers {
            let (messages, error) = read(&Envelope::new(LABEL).unwrap(), answer);
            assert!(
                error.is_none() && messages.iter().all(|m| matches!(m, Message::Ack(_) | Message::Nack(_)))
            );
        }
        if len > 0 {
            answered.insert(asked[0].kind());
        }
        answers
    };
    for datagram in &datagrams {
        ask(datagram);
    }
    // A member that is gone: its helper has no answer.
    south.shutdown().await;
    let cast = Cast { about: peer.id.clone(), from: name("x", 1), addr: peer.addr };
    stranger.socket.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let nack = ask(&packet(LABEL, &[cast.indirect_ping(1)]));
    let told: Vec<_> = nack.iter().map(|nack| read(&Envelope::new(LABEL).unwrap(), nack).0).collect();
    assert_eq!(told, [[Message::Nack(Nack { seq: 1 })]]);
    assert_eq!(answered, BTreeSet::from([0, 1]), "pings and indirect pings are answered, nothing else is");
    assert_unharmed(&north);
    north.shutdown().await;
}
