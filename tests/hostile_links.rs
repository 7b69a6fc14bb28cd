//! Somebody who is let in as a member, dials links and uploads or is dialled, and lies over them, sealed and not. For
//! each lie: what the node holds for it is bounded, it is counted under a name, it never reaches a handler, the
//! connection ends where it has to, no actor panics, and an honest peer beside it goes on being served.

#![allow(clippy::unwrap_used, reason = "a test's own helpers")]

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::SocketAddr,
    ops::Range,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant as StdInstant},
};

use actix::{Actor, Context, Handler, Message, MessageResult, ResponseFuture};
use actix_memberlist::{
    AskError, Cause, Cluster, Config, Evidence, FromPeer, Key, LinkEvent, MemberState, NodeId, NotSent, Peer,
    PeerMessage, Refusal, Sealing, SendError, Upload,
    network::{Connection, Endpoint, Network, memory::Link},
};
use allocation_counter::measure;
use bytes::Bytes;
use futures_util::StreamExt;
use memberlist_protocol::{
    link::{Answer, Carrier, Heard, Hello, Lane, Limits, Sent, Welcome},
    member::{Member, Versions},
    wire::{
        codec,
        frame::{Envelope, Packer, StreamKind},
        guard::{Guard, Labels, Opened},
        link::{self as frames, Frame, How, What},
        message::{Address, Alive, Dead, Message as WireMessage, Receipt, Remembered},
        seal::{End, Half, Opening, SEAL_HEAD},
        state::{State, StateHeader},
    },
};
use memberlist_tests::{World, addr, log::Log, paused};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

/// The liar's run.
const RUN: u64 = 77;

const SOON: Duration = Duration::from_secs(10);

const MIB: u64 = 1 << 20;

#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct Note(u64);

impl PeerMessage for Note {
    const KIND: &'static str = "note/1";
}

/// A value that may hold itself, and lists of what takes no bytes.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
enum Tree {
    Leaf(Vec<()>),
    Branch(Vec<Tree>),
    Next(Option<Box<Tree>>),
    Text(String, Vec<u64>),
}

#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "()")]
struct Plant(Tree);

impl PeerMessage for Plant {
    const KIND: &'static str = "plant/1";
}

/// Asks for so many bytes.
#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "Option<Bytes>")]
struct Fetch(usize);

impl PeerMessage for Fetch {
    const KIND: &'static str = "fetch/1";
}

/// A body that is read to its end, or not at all.
#[derive(Message, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[rtype(result = "u64")]
struct Store {
    read: bool,
}

impl PeerMessage for Store {
    const KIND: &'static str = "store/1";
}

/// What handlers have heard, and from whom.
type Book = Rc<RefCell<Vec<(String, String)>>>;

#[derive(Default)]
struct Desk {
    book: Book,
    refused: Rc<RefCell<Vec<(String, Refusal)>>>,
}

impl Actor for Desk {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Desk {
    fn write(&self, from: &NodeId, what: String) {
        self.book.borrow_mut().push((from.name().to_owned(), what));
    }
}

impl Handler<FromPeer<Note>> for Desk {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Note>, _: &mut Context<Self>) {
        self.write(&m.from, format!("note {}", m.msg.0));
    }
}

impl Handler<FromPeer<Plant>> for Desk {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Plant>, _: &mut Context<Self>) {
        self.write(&m.from, "plant".into());
    }
}

impl Handler<FromPeer<Fetch>> for Desk {
    type Result = MessageResult<FromPeer<Fetch>>;
    fn handle(&mut self, m: FromPeer<Fetch>, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Some(Bytes::from(vec![7; m.msg.0])))
    }
}

impl Handler<Upload<Store>> for Desk {
    type Result = ResponseFuture<u64>;
    fn handle(&mut self, mut m: Upload<Store>, _: &mut Context<Self>) -> Self::Result {
        let (book, from) = (self.book.clone(), m.from.name().to_owned());
        Box::pin(async move {
            if !m.head.read {
                // It looks at the body only much later.
                sleep(Duration::from_secs(300)).await;
            }
            let mut read = 0;
            while let Some(piece) = m.body.next().await {
                match piece {
                    Ok(piece) => read += piece.len() as u64,
                    Err(_) => {
                        book.borrow_mut().push((from, "cut".into()));
                        return 0;
                    }
                }
            }
            read
        })
    }
}

impl Handler<LinkEvent> for Desk {
    type Result = ();
    fn handle(&mut self, event: LinkEvent, _: &mut Context<Self>) {
        match event {
            LinkEvent::Refused { peer, why, .. } => {
                self.refused.borrow_mut().push((peer.name().to_owned(), why));
            }
            LinkEvent::Removed { by } => self.write(&by, "removed".into()),
            _ => {}
        }
    }
}

/// A stream of the liar's, under seal or not.
struct Line {
    stream: Box<dyn Connection>,
    seals: Option<memberlist_protocol::wire::seal::StreamSeals>,
    opened: Vec<u8>,
}

impl Line {
    /// Bytes as they go over the stream.
    fn sealed(&mut self, mut bytes: &[u8]) -> Vec<u8> {
        let Some(seals) = &mut self.seals else { return bytes.to_vec() };
        let mut out = Vec::new();
        while !bytes.is_empty() {
            let len = seals.seal(bytes, &mut out).unwrap();
            bytes = &bytes[len..];
        }
        out
    }

    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let out = self.sealed(bytes);
        self.stream.write_all(&out).await
    }

    async fn read(&mut self, len: usize) -> io::Result<Vec<u8>> {
        while self.opened.len() < len {
            match &mut self.seals {
                None => {
                    let mut some = [0; 4096];
                    match self.stream.read(&mut some).await? {
                        0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                        read => self.opened.extend_from_slice(&some[..read]),
                    }
                }
                Some(seals) => {
                    let len = self.stream.read_u16_le().await?;
                    let mut record = vec![0; usize::from(len)];
                    self.stream.read_exact(&mut record).await?;
                    seals.open(&mut record).map_err(|_| io::ErrorKind::InvalidData)?;
                    self.opened.extend_from_slice(&record);
                }
            }
        }
        Ok(self.opened.drain(..len).collect())
    }

    async fn frame(&mut self) -> io::Result<Vec<u8>> {
        let len = self.read(4).await?;
        let len = u32::from_le_bytes(*len.first_chunk().unwrap());
        self.read(len as usize).await
    }

    /// What it says until it is closed, as it comes, and how long that takes.
    async fn end(&mut self) -> Duration {
        let (start, mut some) = (Instant::now(), vec![0; 4096]);
        let closed = async { while matches!(self.stream.read(&mut some).await, Ok(1..)) {} };
        assert!(timeout(Duration::from_secs(180), closed).await.is_ok(), "the node keeps the connection");
        start.elapsed()
    }
}

fn framed(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32).to_le_bytes()[..], body].concat()
}

/// A frame and its payload.
fn said(frame: &Frame<'_>, payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frames::begin(frame, payload.len(), &mut out);
    out.extend_from_slice(payload);
    out
}

fn tell(lane: Lane, number: u64, kind: &str, payload: &[u8]) -> Vec<u8> {
    said(&Frame::Message { lane, number, what: What::Tell(kind), payload: &[] }, payload)
}

fn welcome_of(lanes: Vec<Heard>) -> Welcome {
    Welcome { lanes, limits: Limits::of(&config()) }
}

fn payload(value: &impl Serialize) -> Vec<u8> {
    let mut out = Vec::new();
    codec::encode_payload(value, &mut out).unwrap();
    out
}

fn note(number: u64, n: u64) -> Vec<u8> {
    tell(Lane::Ordered, number, Note::KIND, &payload(&Note(n)))
}

/// Two honest nodes, and a liar that both hold for a member.
struct Town {
    world: World,
    endpoint: Arc<dyn Endpoint>,
    guard: Guard,
    id: NodeId,
    book: Book,
    refused: Rc<RefCell<Vec<(String, Refusal)>>>,
    notes: u64,
    connection: u64,
    incarnation: u32,
}

/// Nothing but what a test says: no probes, no exchanges.
fn config() -> Config {
    Config {
        probe_interval: Duration::ZERO,
        push_pull_interval: Duration::ZERO,
        peer_queue_bytes: 1 << 20,
        ..Config::lan()
    }
}

impl Town {
    async fn new(sealed: bool) -> Self {
        Self::with(sealed, config()).await
    }

    async fn with(sealed: bool, config: Config) -> Self {
        let key = Key::from_bytes(&[3; 32]).unwrap();
        let mut world = World::new(5, config.clone()).unrecorded();
        for i in 0..2 {
            let builder = world.builder(i);
            let builder = if sealed { builder.key(key.clone()) } else { builder };
            world.nodes.push(builder.start().await.unwrap());
        }
        world.nodes[1].join(&["10.0.0.1"]).await.unwrap();
        let at = SocketAddr::from(([10, 9, 9, 9], 7946));
        let endpoint = world.network.bind(at).await.unwrap();
        let ring = sealed.then(|| std::slice::from_ref(&key));
        let guard = Guard::new(&config, Labels::new(""), ring, Sealing::Required).unwrap();
        let id = NodeId::new("liar", RUN);
        let desk = Desk::default();
        let (book, refused) = (desk.book.clone(), desk.refused.clone());
        let desk = desk.start();
        let node = &world.nodes[0];
        node.serve_from::<Note>(desk.clone().recipient()).unwrap().detach();
        node.serve_from::<Plant>(desk.clone().recipient()).unwrap().detach();
        node.serve_from::<Fetch>(desk.clone().recipient()).unwrap().detach();
        node.serve_upload::<Store>(desk.clone().recipient()).unwrap().detach();
        node.subscribe_links(desk.recipient()).unwrap().detach();
        let mut town =
            Self { world, endpoint, guard, id, book, refused, notes: 0, connection: 0, incarnation: 1 };
        town.join().await;
        let three = |w: &World| w.nodes.iter().all(|node| node.view().alive_count() == 3);
        town.world.wait_until(Duration::from_secs(20), three).await.unwrap();
        town
    }

    async fn join(&mut self) {
        let mut line = self.open(StreamKind::PushPull).await;
        let header = StateHeader {
            from: self.id.clone(),
            versions: Versions::CURRENT,
            join: true,
            tentative: false,
            members: 0,
            user_len: 0,
        };
        let member =
            Member::new(self.id.clone(), self.endpoint.local_addr(), self.incarnation, StdInstant::now());
        let me = Remembered { alive: Alive::of(&member), state: MemberState::Alive };
        line.write(&framed(&State::encode(header, [me].into_iter(), &[]))).await.unwrap();
        line.frame().await.unwrap();
    }

    fn node(&self) -> &Cluster {
        &self.world.nodes[0]
    }

    fn there(&self) -> NodeId {
        self.node().view().local().id.clone()
    }

    /// Opens a stream as an honest node does.
    async fn open(&mut self, kind: StreamKind) -> Line {
        let stream = self.endpoint.dial(addr(0)).await.unwrap();
        let mut line = Line { stream, seals: None, opened: Vec::new() };
        match self.guard.open_stream(RUN) {
            Opened::Plain(head) => line.write(&[&head[..], &[kind.byte()]].concat()).await.unwrap(),
            Opened::Sealed(head, opening) => {
                line.write(&head).await.unwrap();
                let half = line.frame().await.unwrap();
                let half = Half::read(*half.first_chunk().unwrap());
                line.seals = self.guard.seals().stream(b"", opening, half, End::Dialled);
                line.write(&[kind.byte()]).await.unwrap();
            }
        }
        line
    }

    /// A stream that the node has dialled, and what it is for. Those are left out that were given up before their turn.
    async fn accept(&mut self) -> (Line, StreamKind) {
        loop {
            let accepted = poll_fn(|cx| self.endpoint.poll_accept(cx));
            let (stream, _) = timeout(Duration::from_secs(120), accepted).await.expect("it dials").unwrap();
            if let Ok(accepted) = self.agree(stream).await {
                return accepted;
            }
        }
    }

    async fn agree(&mut self, stream: Box<dyn Connection>) -> io::Result<(Line, StreamKind)> {
        let mut line = Line { stream, seals: None, opened: Vec::new() };
        // The wire, and the flags.
        line.read(2).await?;
        if self.guard.seals_out() {
            let opening = line.read(SEAL_HEAD).await?;
            let opening = Opening::read(*opening.first_chunk().unwrap());
            let half = self.guard.seals().half(RUN);
            line.write(&framed(&half.to_bytes())).await?;
            line.seals = self.guard.seals().stream(b"", opening, half, End::Accepted);
            assert!(line.opened.is_empty(), "nothing comes before the answer");
        }
        let kind = line.read(1).await?[0];
        Ok((line, StreamKind::of(kind).unwrap()))
    }

    /// The same of a link, welcomed: everything has arrived of which that was said before.
    async fn welcome(&mut self) -> (Line, Hello) {
        let (mut line, hello) = self.greeted().await;
        let heard = |sent: &Sent| Heard { next: Some(sent.first), refused: Vec::new() };
        let welcome = welcome_of(hello.lanes.iter().map(heard).collect());
        line.write(&framed(&codec::encode_welcome(&Ok(welcome)))).await.unwrap();
        (line, hello)
    }

    async fn greeted(&mut self) -> (Line, Hello) {
        loop {
            let (mut line, kind) = self.accept().await;
            assert_eq!(kind, StreamKind::Link);
            if let Ok(hello) = line.frame().await {
                return (line, codec::decode_hello(&hello).unwrap());
            }
        }
    }

    /// A hello that is in order.
    fn hello(&mut self, carrier: Carrier) -> Hello {
        self.connection += 1;
        Hello {
            from: self.id.clone(),
            to: self.there(),
            carrier,
            // A link of its own: nothing of the one before is known.
            link: self.connection,
            connection: self.connection,
            lanes: carrier.lanes().iter().map(|_| Sent { first: 0, next: 0 }).collect(),
            answers: 0,
            welcomed: 0,
            longest_answer: 1 << 20,
        }
    }

    async fn greet(&mut self, hello: &Hello) -> (Line, Answer) {
        let mut line = self.open(StreamKind::Link).await;
        line.write(&framed(&codec::encode_hello(hello))).await.unwrap();
        let answer = codec::decode_welcome(&line.frame().await.unwrap()).unwrap();
        (line, answer)
    }

    /// A connection that is let in.
    async fn link(&mut self, carrier: Carrier) -> Line {
        let hello = self.hello(carrier);
        let (line, answer) = self.greet(&hello).await;
        assert!(answer.is_ok(), "{answer:?}");
        line
    }

    fn dropped(&self, reason: &str) -> u64 {
        self.node().metrics().dropped[reason]
    }

    /// A peer of the node's: the liar.
    fn peer(&self) -> Peer {
        self.node().peer(&self.id).expect("it is a member")
    }

    /// What handlers have heard of the liar.
    fn believed(&self) -> Vec<String> {
        self.book.borrow().iter().filter(|(from, _)| from == "liar").map(|(_, what)| what.clone()).collect()
    }

    /// An honest peer tells and asks, and has its outcomes.
    async fn serves(&mut self) {
        let peer = self.world.nodes[1].peer(&self.there()).expect("it is there");
        for _ in 0..3 {
            self.notes += 1;
            let told = peer.send(&Note(self.notes)).expect("there is room");
            assert_eq!(timeout(Duration::from_secs(1), told).await.expect("at once"), Ok(()));
        }
        let asked = peer.ask(&Fetch(100), Duration::from_secs(1)).await;
        assert_eq!(asked.unwrap().unwrap().len(), 100);
    }

    /// The node is as it was: the honest peer is served, each of its notes has come once, nothing panicked, and no
    /// more streams are open than before.
    async fn unharmed(&mut self) {
        self.serves().await;
        sleep(Duration::from_millis(100)).await;
        let honest: Vec<_> =
            self.book.borrow().iter().filter(|(from, _)| from == "n001").map(|(_, n)| n.clone()).collect();
        assert_eq!(honest, (1..=self.notes).map(|n| format!("note {n}")).collect::<Vec<_>>());
        self.world.nodes[1].ping("n000", addr(0)).await.unwrap();
        let metrics = self.node().metrics();
        assert_eq!((metrics.restarts.values().sum::<u64>(), metrics.dropped["panicked"]), (0, 0));
        assert_eq!(self.node().view().alive_count(), 3);
    }

    /// No stream is left but the honest peer's link.
    async fn quiet(&mut self) {
        self.unharmed().await;
        let metrics = self.node().metrics();
        assert_eq!((metrics.links_open, metrics.streams_open), (1, 0), "the honest peer's link");
    }
}

/// Runs a test in a town without seals and in one with.
fn in_both<F: Future<Output = ()>>(test: impl Fn(Town) -> F) {
    for sealed in [false, true] {
        paused(async { test(Town::new(sealed).await).await });
    }
}

/// What cannot be said over the main connection by whoever has dialled, and what it is counted as.
fn nonsense(id: &NodeId, there: &NodeId) -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let message = note(0, 1);
    let spoilt = |at: usize, byte: u8| {
        let mut spoilt = message.clone();
        spoilt[at] = byte;
        spoilt
    };
    let hello = Hello {
        from: id.clone(),
        to: there.clone(),
        carrier: Carrier::Main,
        link: 9,
        connection: 9,
        lanes: vec![Sent { first: 0, next: 0 }; 2],
        answers: 0,
        welcomed: 0,
        longest_answer: 1 << 20,
    };
    let ack = Frame::Ack { lane: Lane::Ordered, next: 1, refused: &[] };
    let answer = Frame::Answer { number: 0, lane: Lane::Ordered, question: 0, how: How::Reply, payload: &[] };
    let above = 65_536 + frames::MAX_AROUND as u32 + 1;
    vec![
        ("a length of 2^32 - 1", [&u32::MAX.to_le_bytes()[..], &[1; 100]].concat(), "too_long"),
        ("a length just above the limit", [&above.to_le_bytes()[..], &[1; 100]].concat(), "too_long"),
        ("a frame of nothing", framed(&[]), "empty"),
        ("an unknown frame", framed(&[99, 1, 2, 3]), "kind"),
        ("a second hello", framed(&codec::encode_hello(&hello)), "trailing"),
        ("an ack, the wrong way round", said(&ack, b""), "kind"),
        ("an answer, the wrong way round", said(&answer, b"x"), "kind"),
        ("a pong, the wrong way round", said(&Frame::Pong(1), b""), "kind"),
        ("answers that were never given", said(&Frame::Answered(5), b""), "stream_refused"),
        ("answers without number", said(&Frame::Answered(u64::MAX), b""), "stream_refused"),
        ("a number that jumps", note(1, 1), "replayed"),
        ("a number that jumps far", note(1 << 40, 1), "replayed"),
        ("the last number there is", note(u64::MAX, 1), "replayed"),
        ("a bulk message on the main connection", tell(Lane::Bulk, 0, "note/1", b"\x01"), "replayed"),
        ("an unknown lane", spoilt(5, 9), "kind"),
        ("a KIND that is too long", spoilt(14, 255), "kind"),
        ("a KIND that is no text", spoilt(15, 0xff), "name"),
        ("a number that is cut", framed(&message[4..10]), "truncated"),
        ("a question without its time", framed(&[&[2, 1][..], &[0; 9], &[1, 2]].concat()), "truncated"),
    ]
}

#[test]
fn frames_that_cannot_be_end_their_connection_and_nothing_else() {
    in_both(|mut town| async move {
        town.serves().await;
        for (lie, bytes, reason) in nonsense(&town.id, &town.there()) {
            let before = town.dropped(reason);
            let mut line = town.link(Carrier::Main).await;
            // Behind it comes what would be taken, were it not for the lie.
            line.write(&[bytes, note(0, 1)].concat()).await.unwrap();
            let took = line.end().await;
            assert!(took <= Duration::from_secs(2), "{lie}: {took:?}");
            assert_eq!(town.dropped(reason), before + 1, "{lie} is counted as {reason}");
            assert_eq!(town.believed(), [""; 0], "{lie}");
            town.quiet().await;
        }
        // A frame that ends with its connection.
        let before = town.dropped("truncated");
        let mut line = town.link(Carrier::Main).await;
        line.write(&note(0, 1)[..9]).await.unwrap();
        line.stream.shutdown().await.unwrap();
        line.end().await;
        assert_eq!((town.dropped("truncated"), town.believed().len()), (before + 1, 0));
        town.quiet().await;
    });
}

#[test]
fn what_cannot_be_taken_is_refused_alone_and_what_came_before_is_not_taken_twice() {
    in_both(|mut town| async move {
        let mut line = town.link(Carrier::Main).await;
        let broadcast = said(
            &Frame::Message { lane: Lane::Ordered, number: 3, what: What::Broadcast, payload: &[] },
            b"x",
        );
        let lies = [
            (note(0, 1), None),
            (tell(Lane::Ordered, 1, "nobody/1", b"x"), Some("no_handler")),
            (tell(Lane::Ordered, 2, Note::KIND, b"\xff\xff"), Some("undecodable")),
            (broadcast, Some("undecodable")),
            // The first one once more, and all that came before.
            (note(0, 1), Some("replayed")),
            (note(0, 2), Some("replayed")),
            (tell(Lane::Ordered, 2, Note::KIND, &payload(&Note(3))), Some("replayed")),
            (note(4, 4), None),
        ];
        for (bytes, reason) in lies {
            let before = reason.map(|reason| town.dropped(reason));
            line.write(&bytes).await.unwrap();
            sleep(Duration::from_millis(50)).await;
            assert_eq!(reason.map(|reason| town.dropped(reason)), before.map(|n| n + 1), "{reason:?}");
        }
        assert_eq!(town.believed(), ["note 1", "note 4"]);
        // What was not taken is said, once.
        let mut refused = Vec::new();
        while refused.len() < 3 {
            if let Frame::Ack { refused: some, .. } = frames::read(&line.frame().await.unwrap()).unwrap() {
                refused.extend(frames::refused(some).unwrap());
            }
        }
        let undecodable = Receipt::Undecodable;
        assert_eq!(refused, [(1, Receipt::NoHandler), (2, undecodable), (3, undecodable)]);
        drop(line);
        town.quiet().await;
    });
}

#[test]
fn hellos_that_cannot_be_are_refused_and_say_why() {
    in_both(|mut town| async move {
        // What is there already.
        let mut first_line = town.link(Carrier::Main).await;
        first_line.write(&note(0, 1)).await.unwrap();
        let first = town.connection;
        let good = town.hello(Carrier::Main);
        let with = |change: &dyn Fn(&mut Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            hello
        };
        let there = town.there();
        let last = Sent { first: u64::MAX, next: u64::MAX };
        let ones = Sent { first: 2, next: 1 };
        let lies = [
            ("for another node", with(&|h| h.to = NodeId::new("n001", h.to.run())), Refusal::NotMe),
            ("for another run", with(&|h| h.to = NodeId::new("n000", 1)), Refusal::NotMe),
            ("of nobody", with(&|h| h.from = NodeId::new("nobody", RUN)), Refusal::Stranger),
            ("of another run", with(&|h| h.from = NodeId::new("liar", RUN + 1)), Refusal::Stranger),
            ("of the node itself", with(&|h| h.from = there.clone()), Refusal::Stranger),
            ("of an earlier link", with(&|h| h.link = first - 1), Refusal::Overtaken),
            (
                "of the same connection",
                with(&|h| (h.link, h.connection) = (first, first)),
                Refusal::Overtaken,
            ),
            ("with a lane too few", with(&|h| h.lanes.truncate(1)), Refusal::Overtaken),
            ("with a lane too many", with(&|h| h.lanes.push(h.lanes[0])), Refusal::Overtaken),
            ("that has more than it sent", with(&|h| h.lanes[0] = ones), Refusal::Overtaken),
            ("at the end of all numbers", with(&|h| h.lanes[1] = last), Refusal::Overtaken),
            ("with all answers", with(&|h| h.answers = u64::MAX), Refusal::Overtaken),
        ];
        for (lie, hello, why) in lies {
            // Whoever speaks is not silent.
            first_line.write(&said(&Frame::Ping(1), b"")).await.unwrap();
            let before = (town.dropped("refused_other"), town.refused.borrow().len());
            let (mut line, answer) = town.greet(&hello).await;
            assert_eq!(answer, Err(why.clone()), "a hello {lie}");
            line.end().await;
            sleep(Duration::from_millis(50)).await;
            assert_eq!(town.dropped("refused_other"), before.0 + 1, "a hello {lie}");
            let told = town.refused.borrow()[before.1..].to_vec();
            assert_eq!(told, [(hello.from.name().to_owned(), why)], "a hello {lie}");
            town.unharmed().await;
        }
        // And those that are none.
        let long = framed(&[1; 1025]);
        let lanes: Vec<u8> = [&codec::encode_hello(&good)[..], b"x"].concat();
        let many = {
            let mut bytes = codec::encode_hello(&with(&|h| h.longest_answer = 0));
            // In front of two lanes and the two numbers about answers: how many lanes there are.
            let at = bytes.len() - 1 - 1 - 4 - 1;
            bytes.splice(at..at + 1, [253, 255, 255, 255, 255, 255, 255, 255, 255]);
            bytes
        };
        for (lie, bytes, reason) in [
            ("one that is too long", long, "too_long"),
            ("one with something behind", framed(&lanes), "trailing"),
            ("one with lanes without end", framed(&many), "claim"),
            ("an empty one", framed(&[]), "truncated"),
        ] {
            let before = town.dropped(reason);
            let mut line = town.open(StreamKind::Link).await;
            line.write(&bytes).await.unwrap();
            line.end().await;
            assert_eq!(town.dropped(reason), before + 1, "{lie}: {:?}", town.node().metrics().dropped);
        }
        // The connection that was there has not been disturbed by any of it.
        first_line.write(&note(1, 2)).await.unwrap();
        sleep(Duration::from_millis(50)).await;
        assert_eq!(town.believed(), ["note 1", "note 2"]);
    });
}

#[test]
fn numbers_near_their_end_are_none_that_a_link_begins_with() {
    in_both(|mut town| async move {
        for carrier in Carrier::ALL {
            for number in [u64::MAX, u64::MAX - 1, 1 << 63] {
                let mut hello = town.hello(carrier);
                hello.lanes.fill(Sent { first: number, next: number });
                let (mut line, answer) = town.greet(&hello).await;
                assert_eq!(answer, Err(Refusal::Overtaken), "{number}");
                let lane = carrier.lanes()[carrier.lanes().len() - 1];
                let _ = line.write(&tell(lane, number, Note::KIND, &payload(&Note(1)))).await;
                line.end().await;
            }
        }
        assert!(town.believed().is_empty());
        town.quiet().await;
    });
}

#[test]
fn a_million_messages_of_unknown_kinds_leave_no_trace_but_a_number() {
    const MESSAGES: u64 = 1_000_000;
    for sealed in [false, true] {
        let memory = measure(|| {
            Log::of(|log| async move {
                let mut town = Town::new(sealed).await;
                let mut line = town.link(Carrier::Main).await;
                let mut some = [0; 30_000];
                for first in (0..MESSAGES).step_by(1000) {
                    line.write(&unknown(first..first + 1000)).await.unwrap();
                    let moment = Duration::from_micros(10);
                    while matches!(timeout(moment, line.stream.read(&mut some)).await, Ok(Ok(1..))) {}
                    if first % 250_000 == 0 {
                        town.serves().await;
                    }
                }
                let all = |_: &World| town.dropped("no_handler") == MESSAGES;
                town.world.wait_until(SOON, all).await.expect("each is counted");
                assert!(town.believed().is_empty());
                assert!(log.lines().len() <= 20, "{} lines: {:?}", log.lines().len(), log.lines());
                drop(line);
                town.quiet().await;
            })
        });
        assert!(memory.bytes_max <= 4 * MIB, "sealed {sealed}: {memory:?}");
    }
}

/// Messages of kinds that nobody serves, one after the other.
fn unknown(numbers: Range<u64>) -> Vec<u8> {
    numbers.flat_map(|number| tell(Lane::Ordered, number, &format!("nobody/{number}"), b"")).collect()
}

#[test]
fn whoever_does_not_read_what_it_is_told_is_not_listened_to_without_end() {
    let memory = measure(|| {
        in_both(|mut town| async move {
            let mut line = town.link(Carrier::Main).await;
            let before = town.dropped("stream_timeout");
            let start = Instant::now();
            let mut number = 0;
            while line.write(&unknown(number..number + 100)).await.is_ok() {
                number += 100;
                assert!(start.elapsed() < Duration::from_secs(60), "{number} messages");
            }
            let refused = town.dropped("no_handler");
            // What was refused, and nobody wants to know: in front of the connection, in it, and noted.
            assert!((10_000..60_000).contains(&refused), "{refused} of {number} messages");
            assert_eq!(town.dropped("stream_timeout"), before + 1);
            town.quiet().await;
        });
    });
    assert!(memory.bytes_max <= 4 * MIB, "{memory:?}");
}

#[test]
fn payloads_that_nest_or_claim_without_end_are_none_of_their_type() {
    let deep = |level: &[u8], n: usize| level.repeat(n);
    let huge = [253, 255, 255, 255, 255, 255, 255, 255, 255];
    let lies: Vec<(&str, Vec<u8>)> = vec![
        ("branches in branches", deep(&[1, 1], 30_000)),
        ("options in options", deep(&[2, 1], 30_000)),
        ("half a million levels", deep(&[2, 1], 500_000)),
        ("a list of nothing without end", [&[0][..], &huge].concat()),
        ("branches without end", [&[1][..], &huge].concat()),
        ("a text without end", [&[3][..], &huge].concat()),
        ("numbers without end", [&[3, 0][..], &huge].concat()),
        ("numbers that are not there", [&[3, 0, 252][..], &u32::MAX.to_le_bytes()].concat()),
        ("an unknown variant", vec![9]),
        ("something behind the end", vec![0, 0, 0]),
    ];
    let memory = measure(|| {
        in_both(|mut town| {
            let lies = lies.clone();
            async move {
                for (n, (lie, bytes)) in lies.iter().enumerate() {
                    let before = town.dropped("undecodable");
                    let (carrier, lane) = if bytes.len() > 65_536 {
                        (Carrier::Bulk, Lane::Bulk)
                    } else {
                        (Carrier::Main, Lane::Ordered)
                    };
                    let mut line = town.link(carrier).await;
                    line.write(&tell(lane, 0, Plant::KIND, bytes)).await.unwrap();
                    let ack = line.frame().await.unwrap();
                    let Ok(Frame::Ack { refused, .. }) = frames::read(&ack) else {
                        panic!("{lie} is not acknowledged")
                    };
                    assert_eq!(frames::refused(refused).unwrap(), [(0, Receipt::Undecodable)], "{lie}");
                    assert_eq!(town.dropped("undecodable"), before + 1, "{lie}");
                    // The next one is read.
                    let good = payload(&Plant(Tree::Branch(vec![Tree::Next(None), Tree::Leaf(vec![(); 9])])));
                    line.write(&tell(lane, 1, Plant::KIND, &good)).await.unwrap();
                    sleep(Duration::from_millis(50)).await;
                    assert_eq!(town.believed().len(), n + 1, "{lie}");
                    drop(line);
                    town.quiet().await;
                }
            }
        });
    });
    assert!(memory.bytes_max <= 16 * MIB, "{memory:?}");
}

#[test]
fn whoever_dials_and_is_slow_or_silent_is_given_up_and_counted() {
    in_both(|mut town| async move {
        // A hello that does not come, or comes in drops.
        let before = town.dropped("stream_timeout");
        let mut silent = town.open(StreamKind::Link).await;
        let took = silent.end().await;
        assert!(took <= Duration::from_secs(11), "{took:?}");
        let hello = town.hello(Carrier::Main);
        let mut slow = town.open(StreamKind::Link).await;
        let start = Instant::now();
        for byte in framed(&codec::encode_hello(&hello)) {
            if slow.write(&[byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(1)).await;
        }
        assert!(start.elapsed() <= Duration::from_secs(25), "{:?}", start.elapsed());
        assert_eq!(town.dropped("stream_timeout"), before + 2);
        town.quiet().await;

        // Hello, and then nothing.
        let mut line = town.link(Carrier::Main).await;
        let took = line.end().await;
        assert!((14..=21).contains(&took.as_secs()), "{took:?}");
        assert_eq!(town.dropped("stream_timeout"), before + 3);
        let mut line = town.link(Carrier::Bulk).await;
        let took = line.end().await;
        assert!(took <= Duration::from_secs(11), "{took:?}");
        assert_eq!(town.dropped("stream_timeout"), before + 4);
        // A large message that never comes whole.
        let mut line = town.link(Carrier::Bulk).await;
        line.write(&[&(10_u32 << 20).to_le_bytes()[..], &[1]].concat()).await.unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(120) && line.write(&[1]).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
        // It has the time that it takes at 256 KiB a second, and no more.
        assert!((40..=42).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert_eq!(town.dropped("stream_timeout"), before + 5);
        town.quiet().await;
        assert!(town.believed().is_empty());
    });
}

#[test]
fn a_connection_that_is_overtaken_is_closed_at_once_however_fast_the_next_ones_come() {
    in_both(|mut town| async move {
        for carrier in Carrier::ALL {
            let mut lines = Vec::new();
            for _ in 0..200 {
                lines.push(town.link(carrier).await);
            }
            sleep(Duration::from_millis(100)).await;
            town.unharmed().await;
            assert_eq!(town.node().metrics().links_open, 2, "the last one, and the honest peer's");
            for line in &mut lines[..199] {
                assert_eq!(line.end().await, Duration::ZERO);
            }
            drop(lines);
            town.quiet().await;
        }
    });
}

#[test]
fn questions_whose_answers_are_never_read_hold_so_much_and_no_more() {
    let memory = measure(|| {
        in_both(|mut town| async move {
            let mut line = town.link(Carrier::Main).await;
            let before = town.dropped("answer_lost");
            let ask = |number| {
                let what = What::Ask(Fetch::KIND, 10_000);
                let frame = Frame::Message { lane: Lane::Ordered, number, what, payload: &[] };
                said(&frame, &payload(&Fetch(100_000)))
            };
            for number in 0..500 {
                line.write(&ask(number)).await.unwrap();
                sleep(Duration::from_millis(1)).await;
            }
            town.serves().await;
            sleep(Duration::from_millis(100)).await;
            // A MiB of them waits here, and some are on their way.
            let lost = town.dropped("answer_lost") - before;
            assert!((480..500).contains(&lost), "{lost} answers of 500 have no room");
            town.unharmed().await;
            // Whoever reads at last is told of each, although there is no more than that to be told.
            let (mut whole, mut unfit) = (0, 0);
            while whole + unfit < 500 {
                match frames::read(&line.frame().await.unwrap()).unwrap() {
                    Frame::Answer { how: How::Reply, .. } => whole += 1,
                    Frame::Answer { how: How::Unfit, .. } => unfit += 1,
                    _ => {}
                }
            }
            assert_eq!(unfit, lost);
        });
    });
    assert!(memory.bytes_max <= 8 * MIB, "{memory:?}");
}

#[test]
fn a_seal_that_does_not_fit_its_place_ends_the_connection() {
    paused(async {
        let mut town = Town::new(true).await;
        for lie in ["spoilt", "repeated", "swapped", "of another connection", "plain"] {
            let (mut other, mut line) = (town.link(Carrier::Bulk).await, town.link(Carrier::Main).await);
            let before = town.dropped("seal");
            let (first, second) = (line.sealed(&note(0, 1)), line.sealed(&note(1, 2)));
            let bytes = match lie {
                "spoilt" => {
                    let mut spoilt = first;
                    spoilt[20] ^= 1;
                    spoilt
                }
                "repeated" => [&first[..], &first].concat(),
                "swapped" => [second, first].concat(),
                "of another connection" => other.sealed(&note(0, 1)),
                _ => [&[60, 0][..], &note(0, 1), &[0; 60]].concat(),
            };
            line.stream.write_all(&bytes).await.unwrap();
            line.end().await;
            assert_eq!(town.dropped("seal"), before + 1, "{lie}");
            let honest = usize::from(lie == "repeated");
            assert_eq!(town.believed().len(), honest, "{lie}");
            town.book.borrow_mut().retain(|(from, _)| from != "liar");
            drop((line, other));
            town.quiet().await;
        }
    });
}

fn upload(town: &Town, kind: &str, head: &impl Serialize) -> Vec<u8> {
    let address = codec::encode_address(&Address::Direct { from: town.id.clone(), to: town.there() });
    framed(&[&address[..], &[kind.len() as u8], kind.as_bytes(), &payload(head)].concat())
}

/// Begins an upload, and says what it was told.
async fn begin(town: &mut Town, read: bool) -> (Line, Receipt) {
    let mut line = town.open(StreamKind::Upload).await;
    let first = upload(town, Store::KIND, &Store { read });
    line.write(&first).await.unwrap();
    let receipt = line.frame().await.unwrap();
    (line, codec::decode_receipt(receipt[0]).unwrap())
}

#[test]
fn uploads_that_lie_hold_little_and_end() {
    let memory = measure(|| {
        in_both(|mut town| async move {
            // Heads that are none.
            let address = codec::encode_address(&Address::Direct { from: town.id.clone(), to: town.there() });
            let broadcast = codec::encode_address(&Address::Broadcast {
                origin: town.id.clone(),
                id: 1,
                kind: "".into(),
            });
            for (lie, bytes, reason) in [
                ("a length of 2^32 - 1", vec![0xff; 100], "too_long"),
                ("no KIND", framed(&address), "truncated"),
                ("a KIND that is cut", framed(&[&address[..], &[200, 1]].concat()), "truncated"),
                ("a KIND that is no text", framed(&[&address[..], &[2, 0xff, 0xff]].concat()), "name"),
                ("a broadcast", framed(&[&broadcast[..], &[1, 65]].concat()), "kind"),
                ("nothing", framed(&[]), "truncated"),
            ] {
                let before = town.dropped(reason);
                let mut line = town.open(StreamKind::Upload).await;
                line.write(&bytes).await.unwrap();
                line.end().await;
                assert_eq!(town.dropped(reason), before + 1, "{lie}");
            }
            // Nobody serves it; it is no head of its type: what comes behind is not read.
            for (kind, reason, receipt) in [
                ("nobody/1", "no_handler", Receipt::NoHandler),
                (Store::KIND, "undecodable", Receipt::Undecodable),
            ] {
                let before = town.dropped(reason);
                let mut line = town.open(StreamKind::Upload).await;
                let first = upload(&town, kind, &Fetch(1_000_000));
                line.write(&first).await.unwrap();
                assert_eq!(line.frame().await.unwrap(), [codec::encode_receipt(receipt)]);
                line.end().await;
                assert!(line.write(&framed(&[7; 60_000]).repeat(4)).await.is_err(), "nobody reads that");
                assert_eq!(town.dropped(reason), before + 1);
            }
            town.quiet().await;
            // Pieces that are none.
            for (lie, bytes, reason) in [
                ("a piece of 2^32 - 1", vec![0xff; 100], "too_long"),
                ("a piece just too long", 65_537_u32.to_le_bytes().to_vec(), "too_long"),
            ] {
                let before = town.dropped(reason);
                let (mut line, receipt) = begin(&mut town, true).await;
                assert_eq!(receipt, Receipt::Taken);
                line.write(&framed(b"some")).await.unwrap();
                line.write(&bytes).await.unwrap();
                line.end().await;
                assert_eq!(town.dropped(reason), before + 1, "{lie}");
            }
            // One that stops, and says nothing any more.
            let before = town.dropped("stream_timeout");
            let (mut line, _) = begin(&mut town, true).await;
            line.write(&framed(b"some")).await.unwrap();
            let took = line.end().await;
            assert!(took <= Duration::from_secs(61), "{took:?}");
            assert_eq!(town.dropped("stream_timeout"), before + 1);
            sleep(Duration::from_millis(10)).await;
            assert_eq!(town.believed(), ["cut"; 3], "each handler knows that its body was cut off");
            // One without an end, to a handler that does not read: the window is all that it can fill.
            let (mut line, _) = begin(&mut town, false).await;
            let mut written = 0;
            let piece = framed(&[7; 65_000]);
            while timeout(Duration::from_secs(1), line.write(&piece)).await.is_ok() {
                written += piece.len();
            }
            assert!(written < 600_000, "{written} bytes are on their way");
            town.serves().await;
            drop(line);
            sleep(Duration::from_secs(400)).await;
            town.quiet().await;
        });
    });
    assert!(memory.bytes_max <= 6 * MIB, "{memory:?}");
}

#[test]
fn one_peer_does_not_take_all_of_a_handlers_uploads() {
    in_both(|mut town| async move {
        let mut lines = Vec::new();
        loop {
            // One address has so many streams at once, and the others wait.
            let Ok((line, receipt)) = timeout(Duration::from_secs(5), begin(&mut town, true)).await else {
                break;
            };
            assert_eq!(receipt, Receipt::Taken);
            lines.push(line);
        }
        assert_eq!(lines.len(), config().max_streams_per_source, "half of what one handler is given");
        let peer = town.world.nodes[1].peer(&town.there()).unwrap();
        let body = futures_util::stream::iter([Ok(Bytes::from_static(b"honest"))]);
        assert_eq!(peer.upload(&Store { read: true }, body).await, Ok(6));
    });
}

/// What whoever was dialled cannot say, and what that is counted as. One note was sent, and one question, under
/// the numbers 0 and 1 of the ordered lane.
fn denials() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let ack = |next, refused| said(&Frame::Ack { lane: Lane::Ordered, next, refused }, b"");
    let answer = |number, lane, question, payload: &[u8]| {
        said(&Frame::Answer { number, lane, question, how: How::Reply, payload: &[] }, payload)
    };
    let how = {
        let mut bytes = answer(0, Lane::Ordered, 1, b"");
        *bytes.last_mut().unwrap() = 9;
        bytes
    };
    vec![
        ("an ack of what was never sent", ack(3, &[]), "stream_refused"),
        ("an ack of everything", ack(u64::MAX, &[]), "stream_refused"),
        (
            "an ack of another lane",
            said(&Frame::Ack { lane: Lane::Urgent, next: 1, refused: &[] }, b""),
            "stream_refused",
        ),
        (
            "an ack of the bulk lane",
            said(&Frame::Ack { lane: Lane::Bulk, next: 0, refused: &[] }, b""),
            "kind",
        ),
        ("half a receipt", ack(1, &[0, 0, 0]), "malformed"),
        ("an unknown receipt", ack(1, &[0, 0, 0, 0, 0, 0, 0, 0, 99]), "kind"),
        ("an answer with a far number", answer(7, Lane::Ordered, 1, b"\0"), "stream_refused"),
        ("an answer with the last number", answer(u64::MAX, Lane::Ordered, 1, b"\0"), "stream_refused"),
        ("an answer to what was never asked", answer(0, Lane::Ordered, 2, b"\0"), "stream_refused"),
        ("an answer of another lane", answer(0, Lane::Urgent, 1, b"\0"), "stream_refused"),
        ("an answer of an unknown sort", how, "kind"),
        ("a message, the wrong way round", note(0, 1), "kind"),
        ("a ping, the wrong way round", said(&Frame::Ping(1), b""), "kind"),
        ("answers that have arrived", said(&Frame::Answered(0), b""), "kind"),
        ("a length of 2^32 - 1", [&u32::MAX.to_le_bytes()[..], &[1; 100]].concat(), "too_long"),
        ("a long ack", framed(&[&[16, 1][..], &[0; 8], &[0; 300_000]].concat()), "too_long"),
        ("a long answer to what was never asked", answer(0, Lane::Bulk, 5, &[7; 2 << 20]), "stream_refused"),
        ("an unknown frame", framed(&[99]), "kind"),
        ("nothing", framed(&[]), "empty"),
    ]
}

#[test]
fn whoever_is_dialled_and_lies_settles_nothing_and_loses_its_connection() {
    let memory = measure(|| {
        in_both(|mut town| async move {
            town.serves().await;
            for (lie, bytes, reason) in denials() {
                let peer = town.peer();
                let before = town.dropped(reason);
                let told = peer.send(&Note(1)).expect("there is room");
                let asked = peer.ask(&Fetch(1), Duration::from_secs(200));
                let lying = async {
                    let (mut line, hello) = town.welcome().await;
                    assert_eq!(hello.lanes[1].first, hello.lanes[1].next);
                    // A ping, the note, the question.
                    let at = hello.lanes[1].next;
                    assert_eq!(at, 0);
                    for _ in 0..3 {
                        line.frame().await.unwrap();
                    }
                    let _ = line.write(&bytes).await;
                    let took = line.end().await;
                    assert!(took <= Duration::from_secs(1), "{lie}: {took:?}");
                    assert_eq!(town.dropped(reason), before + 1, "{lie} is counted as {reason}");
                    assert_eq!(peer.status().queued, 2, "{lie} settles nothing");
                    // It is dialled again, and says that it has forgotten: all is in doubt.
                    let (mut line, _) = town.greeted().await;
                    let lanes = vec![
                        Heard { next: Some(0), refused: Vec::new() },
                        Heard { next: None, refused: Vec::new() },
                    ];
                    line.write(&framed(&codec::encode_welcome(&Ok(welcome_of(lanes))))).await.unwrap();
                    sleep(Duration::from_millis(100)).await;
                };
                let (told, asked, ()) = tokio::join!(told, asked, lying);
                let doubt = NotSent::Unknown(Cause::LinkLost);
                assert_eq!((told, asked), (Err(doubt), Err(AskError::NotSent(doubt))), "{lie}");
                // A run of its own for the next lie: its link begins anew.
                town.move_on().await;
                town.unharmed().await;
            }
        });
    });
    assert!(memory.bytes_max <= 12 * MIB, "{memory:?}");
}

impl Town {
    /// The liar is another run from now on.
    async fn move_on(&mut self) {
        self.id = NodeId::new("liar", self.id.run() + 1);
        self.incarnation += 1;
        self.join().await;
        let known = |w: &World| w.nodes[0].view().get("liar").is_some_and(|m| m.id == self.id);
        self.world.wait_until(SOON, known).await.expect("it is known");
    }
}

#[test]
fn a_dialled_peer_that_repeats_itself_settles_each_message_once() {
    in_both(|mut town| async move {
        let peer = town.peer();
        let (note, asked) = (peer.send(&Note(1)).unwrap(), peer.ask(&Fetch(1), SOON));
        let lying = async {
            let (mut line, _) = town.welcome().await;
            let ack = |next, refused| said(&Frame::Ack { lane: Lane::Ordered, next, refused }, b"");
            let busy = [0, 0, 0, 0, 0, 0, 0, 0, codec::encode_receipt(Receipt::Busy)];
            let answer = |number, question, bytes: &[u8]| {
                let (lane, how) = (Lane::Ordered, How::Reply);
                said(&Frame::Answer { number, lane, question, how, payload: &[] }, bytes)
            };
            sleep(Duration::from_millis(10)).await;
            // The note is taken; then it is said to have been refused, several times. Pongs that nobody wants.
            for bytes in [ack(1, &[]), ack(1, &busy), ack(1, &[]), said(&Frame::Pong(7), b"")] {
                line.write(&bytes).await.unwrap();
            }
            // The question is taken, and answered twice under one number and once more under the next.
            let before = town.dropped("answer_unheard");
            line.write(&ack(2, &[])).await.unwrap();
            line.write(&answer(0, 1, &payload(&Some(Bytes::from_static(b"one"))))).await.unwrap();
            line.write(&answer(0, 1, &payload(&Some(Bytes::from_static(b"two"))))).await.unwrap();
            line.write(&answer(1, 1, &payload(&Some(Bytes::from_static(b"three"))))).await.unwrap();
            // And once to a message that was no question.
            line.write(&answer(2, 0, b"four")).await.unwrap();
            sleep(Duration::from_millis(100)).await;
            assert_eq!(town.dropped("answer_unheard"), before + 3);
            // What goes back is nonsense.
            let before = town.dropped("stream_refused");
            line.write(&ack(1, &[])).await.unwrap();
            line.end().await;
            assert_eq!(town.dropped("stream_refused"), before + 1);
        };
        let (note, asked, ()) = tokio::join!(note, asked, lying);
        assert_eq!((note, asked), (Ok(()), Ok(Some(Bytes::from_static(b"one")))));
        let status = peer.status();
        assert_eq!((status.queued, status.sent, status.dropped), (0, 2, 0));
        town.unharmed().await;
    });
}

#[test]
fn welcomes_that_cannot_be_are_none_and_nothing_is_settled_by_them() {
    in_both(|mut town| async move {
        let heard = |next| Heard { next, refused: Vec::new() };
        let none = Vec::new();
        let welcome = |lanes: &[Heard]| framed(&codec::encode_welcome(&Ok(welcome_of(lanes.to_vec()))));
        let lies = [
            ("no lanes", welcome(&none), "stream_refused"),
            ("a lane too few", welcome(&[heard(Some(0))]), "stream_refused"),
            ("a lane too many", welcome(&[heard(Some(0)), heard(Some(0)), heard(Some(0))]), "stream_refused"),
            ("more than was sent", welcome(&[heard(Some(0)), heard(Some(1))]), "stream_refused"),
            ("all there is", welcome(&[heard(Some(0)), heard(Some(u64::MAX))]), "stream_refused"),
            ("no welcome", framed(b"\xff\xff\xff"), "malformed"),
            ("nothing", framed(b""), "truncated"),
            (
                "something behind",
                framed(&[&codec::encode_welcome(&Err(Refusal::NotMe))[..], b"x"].concat()),
                "trailing",
            ),
            ("a length near 2^32", vec![0xf0, 0xff, 0xff, 0xff], "too_long"),
            ("a welcome of a MiB", (1_u32 << 20).to_le_bytes().to_vec(), "too_long"),
            ("a refusal", framed(&codec::encode_welcome(&Err(Refusal::Stranger))), "stream_refused"),
            ("silence", Vec::new(), "stream_timeout"),
        ];
        for (lie, bytes, reason) in lies {
            let peer = town.peer();
            let told = peer.send(&Note(1)).unwrap();
            let lying = async {
                let (mut line, _) = town.greeted().await;
                let before = town.dropped(reason);
                line.write(&bytes).await.unwrap();
                let took = line.end().await;
                assert!(took <= SOON, "{lie}: {took:?}");
                assert_eq!(town.dropped(reason), before + 1, "{lie}: {:?}", town.node().metrics().dropped);
                assert_eq!(peer.status().queued, 1, "{lie}");
                // The next connection is in order.
                let (mut line, _) = town.welcome().await;
                sleep(Duration::from_millis(10)).await;
                line.write(&said(&Frame::Ack { lane: Lane::Ordered, next: 1, refused: &[] }, b""))
                    .await
                    .unwrap();
                sleep(Duration::from_millis(10)).await;
            };
            let (told, ()) = tokio::join!(told, lying);
            assert_eq!(told, Ok(()), "{lie}");
            town.move_on().await;
        }
        town.unharmed().await;
    });
}

#[test]
fn long_answers_are_kept_while_they_are_awaited_and_no_longer() {
    const LONG: usize = 12 << 20;
    let memory = measure(|| {
        in_both(|mut town| async move {
            let peer = town.peer();
            let asked = peer.ask(&Fetch(1), Duration::from_secs(1));
            let lying = async {
                let (mut line, _) = town.welcome().await;
                sleep(Duration::from_secs(7)).await;
                // Nobody waits any more; it is an answer all the same, and the connection goes on.
                for (number, question) in [(0, 0), (1, 0), (2, 0)] {
                    let (lane, how) = (Lane::Ordered, How::Reply);
                    let head = Frame::Answer { number, lane, question, how, payload: &[] };
                    let mut bytes = Vec::new();
                    frames::begin(&head, LONG, &mut bytes);
                    line.write(&bytes).await.unwrap();
                    for _ in 0..LONG / 65_536 {
                        line.write(&[7; 65_536]).await.unwrap();
                    }
                }
                sleep(Duration::from_millis(100)).await;
                line
            };
            let (asked, line) = tokio::join!(asked, lying);
            assert_eq!(asked, Err(AskError::Timeout));
            assert_eq!(town.dropped("answer_unheard"), 3);
            assert!(peer.status().active_since.is_some(), "the connection is as it was");
            drop(line);
            town.unharmed().await;
        });
    });
    assert!(memory.bytes_max <= 5 * MIB, "{memory:?}");
}

#[test]
fn a_dialled_peer_that_takes_nothing_fills_its_own_queue_alone_and_each_message_has_an_outcome() {
    for manner in ["never reads", "reads a byte a second", "sends pongs for ever"] {
        let memory = measure(|| {
            in_both(|mut town| async move {
                let peer = town.peer();
                let large = Plant(Tree::Text("x".repeat(10_000), Vec::new()));
                let lying = async {
                    loop {
                        let (mut line, hello) = town.greeted().await;
                        let heard = |sent: &Sent| Heard { next: Some(sent.first), refused: Vec::new() };
                        let welcome = welcome_of(hello.lanes.iter().map(heard).collect());
                        let _ = line.write(&framed(&codec::encode_welcome(&Ok(welcome)))).await;
                        let start = Instant::now();
                        // It is given up and dialled again, as long as there is something to be said.
                        while manner == "sends pongs for ever" || start.elapsed() < Duration::from_secs(70) {
                            sleep(Duration::from_secs(1)).await;
                            let mut byte = [0];
                            let broken = match manner {
                                "reads a byte a second" => line.stream.read(&mut byte).await.is_err(),
                                "sends pongs for ever" => {
                                    line.write(&said(&Frame::Pong(1), b"")).await.is_err()
                                }
                                _ => false,
                            };
                            if broken {
                                break;
                            }
                        }
                    }
                };
                let sending = async {
                    let (start, mut told, mut full) = (Instant::now(), Vec::new(), 0);
                    while start.elapsed() < Duration::from_secs(90) {
                        match peer.send(&large) {
                            Ok(sent) => told.push(sent),
                            Err(error) => {
                                assert_eq!(error, SendError::Full);
                                full += 1;
                                sleep(Duration::from_millis(500)).await;
                            }
                        }
                        let status = peer.status();
                        assert!(status.queued_bytes <= 1 << 20, "{status:?}");
                    }
                    assert!(full > 100, "{full} times there was no room");
                    let within = timeout(Duration::from_secs(90), futures_util::future::join_all(told));
                    for outcome in within.await.expect("each has an outcome") {
                        assert!(
                            matches!(outcome, Err(NotSent::Unknown(_) | NotSent::Never(_))),
                            "{outcome:?}"
                        );
                    }
                };
                tokio::select! {
                    () = lying => {}
                    () = sending => {}
                }
                town.unharmed().await;
            });
        });
        assert!(memory.bytes_max <= 8 * MIB, "{manner}: {memory:?}");
    }
}

#[test]
fn whoever_is_not_who_was_meant_or_no_member_refuses_a_link_and_both_sides_hear_why() {
    paused(async {
        let town = Town::new(false).await;
        let refused_at = |node: &Cluster| {
            let desk = Desk::default();
            let (refused, book) = (desk.refused.clone(), desk.book.clone());
            let desk = desk.start();
            node.serve_from::<Note>(desk.clone().recipient()).unwrap().detach();
            node.subscribe_links(desk.recipient()).unwrap().detach();
            (refused, book)
        };
        // A member that there holds for one that has left, and does not know of it.
        let (there, book) = refused_at(&town.world.nodes[1]);
        let lost = Link { loss: 1.0, ..Link::default() };
        for (from, to) in [(0, 1), (1, 0)] {
            town.world.network.set_link(addr(from), addr(to), lost.clone());
        }
        let envelope = Envelope::new("").unwrap();
        let (id, name) = (town.there(), town.there().shared_name().clone());
        let incarnation = town.node().view().local().incarnation;
        let evidence = Evidence::Announced;
        let (from, by) = (name.clone(), name);
        let left = Dead { id, incarnation, from, by, confirmed_by: Vec::new(), evidence };
        let mut buf = vec![0; 1400];
        let mut packer = Packer::new(&envelope, &mut buf);
        assert!(packer.push(&WireMessage::Dead(left)));
        town.endpoint.try_send(&packer.finish().unwrap(), addr(1)).unwrap();
        let gone = |w: &World| w.nodes[1].view().get("n000").unwrap().state == MemberState::Left;
        town.world.wait_until(SOON, gone).await.expect("it is believed");
        let peer = town.node().peer(&town.world.nodes[1].view().local().id).unwrap();
        let told = peer.send(&Note(1)).unwrap();
        sleep(Duration::from_millis(500)).await;
        assert_eq!(town.refused.borrow()[0], ("n001".to_owned(), Refusal::Removed));
        assert!(town.book.borrow().contains(&("n001".to_owned(), "removed".to_owned())));
        assert_eq!(there.borrow()[0], ("n000".to_owned(), Refusal::Removed));
        assert!(book.borrow().is_empty(), "nothing has come");

        // Somebody else at the address, who knows nobody.
        town.world.nodes[1].shutdown().await;
        let other = town.world.renamed(1, "other").start().await.unwrap();
        let (there, book) = refused_at(&other);
        town.refused.borrow_mut().clear();
        assert!(timeout(Duration::from_secs(60), told).await.expect("an outcome").is_err());
        assert_eq!(town.refused.borrow()[0], ("n001".to_owned(), Refusal::NotMe));
        assert_eq!(there.borrow()[0], ("n000".to_owned(), Refusal::NotMe));

        // The node is told of it, and not the other way round.
        there.borrow_mut().clear();
        town.refused.borrow_mut().clear();
        let id = other.view().local().id.clone();
        let alive = Alive::of(&Member::new(id.clone(), addr(1), 1, StdInstant::now()));
        let mut buf = vec![0; 1400];
        let mut packer = Packer::new(&envelope, &mut buf);
        assert!(packer.push(&WireMessage::Alive(alive)));
        town.endpoint.try_send(&packer.finish().unwrap(), addr(0)).unwrap();
        let known = |w: &World| w.nodes[0].peer(&id).is_some();
        town.world.wait_until(SOON, known).await.expect("it is believed");
        let told = town.node().peer(&id).unwrap().send(&Note(1)).unwrap();
        assert!(timeout(Duration::from_secs(60), told).await.expect("an outcome").is_err());
        assert_eq!(town.refused.borrow()[0], ("other".to_owned(), Refusal::Stranger));
        assert_eq!(there.borrow()[0], ("n000".to_owned(), Refusal::Stranger));
        assert!(book.borrow().is_empty(), "nothing has come");
    });
}
