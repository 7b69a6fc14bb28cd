//! The whole conversation inside a node, on one page: what each actor of the ring hears, and from whom.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use memberlist_protocol::{
    accusation::Evidence,
    gossip::Piggyback,
    link::Carrier,
    member::{Member, NodeId, Tags},
    members::Change,
    probe::Dialled,
    view::View,
    wire::{
        message::{
            Ack, Address, Alive, Dead, IndirectPing, Message, Nack, Ping, Receipt, Suspect, UserBroadcast,
        },
        order::{Order, Standing},
        state::{OwnBytes, Refusal, State},
    },
};
use smallvec::SmallVec;
use tokio::{sync::oneshot, time::Instant};

use crate::{
    casts::Cast,
    errors::{AskError, JoinError, NotSent, UpdateError},
    events::{MemberEvent, Pinged},
    inbox::Item,
    link::Link,
    pump::{Pump, Subscribing},
    questions::{Admit, Sharing},
    routes::Serving,
    uploads::Outgoing,
};

/// Where an answer goes. When it is dropped, whoever waits gets an error.
pub(crate) type Reply<T> = oneshot::Sender<T>;

/// Gives each kind of item its name.
macro_rules! kinds {
    ($type:ty { $($variant:ident $fields:tt => $name:literal),* $(,)? }) => {
        const KINDS: &'static [&'static str] = &[$($name),*];

        fn kind(&self) -> &'static str {
            match self { $(kinds!(@ $variant $fields) => $name),* }
        }
    };
    (@ $variant:ident ()) => { Self::$variant };
    (@ $variant:ident (_)) => { Self::$variant(_) };
    (@ $variant:ident {}) => { Self::$variant { .. } };
}

/// Why this node exchanges states with a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exchange {
    /// To find what gossip has missed, every now and then.
    Periodic,
    /// To join.
    Join,
    /// Shortly after joining: others may have joined at the same time.
    FollowUp,
    /// With one who was missing, and answers.
    Heal,
}

/// Who has a question to the application.
pub(crate) enum Asker {
    /// NodeState, about a newcomer of that name.
    State { name: Arc<str>, number: u64 },
    /// A stream.
    Stream(Reply<Result<(), String>>),
}

/// What NodeState hears.
pub(crate) enum ToState {
    /// From Transport: news about a member.
    Alive(Alive),
    /// From Transport: an accusation.
    Suspect(Suspect),
    /// From Transport: a verdict, or a farewell.
    Dead(Dead),
    /// From FailureDetector: a member did not answer the probe that began then.
    Accuse { id: NodeId, incarnation: u32, evidence: Evidence, probed: std::time::Instant },
    /// From a stream: give the own full state.
    Give { join: bool, reply: Reply<OwnBytes> },
    /// From a stream that this node dialled: take the peer's state in, and say whose it was once that is done.
    /// `admitted`: the application has let the peer itself in.
    Merge { peer: Box<State>, admitted: bool, why: Exchange, reply: Reply<Result<NodeId, Refusal>> },
    /// From a stream that a peer dialled: give the own state, and take the peer's in, unless it has a last word.
    Exchange { peer: Box<State>, admitted: bool, reply: Reply<Result<OwnBytes, Refusal>> },
    /// From a stream that a joiner dialled: it has taken this node's state in; take its own.
    Welcome { peer: Box<State>, admitted: bool },
    /// From Delegates: what the application says of a newcomer.
    Admitted { name: Arc<str>, number: u64, verdict: Result<(), String> },
    /// From the handle: this node says something else about itself.
    Update { tags: Option<Tags>, meta: Option<Bytes>, reply: Reply<Result<(), UpdateError>> },
    /// From the handle: a dead member has left.
    ForceLeave { name: String, reply: Reply<Result<(), UpdateError>> },
    /// From a join: if this node has left, it comes back as another run.
    Rejoin { reply: Reply<()> },
    /// From the handle: leave.
    Leave { reply: Reply<Bytes> },
}

impl Item for ToState {
    kinds!(ToState {
        Alive(_) => "alive",
        Suspect(_) => "suspect",
        Dead(_) => "dead",
        Accuse {} => "accuse",
        Give {} => "give",
        Merge {} => "merge",
        Exchange {} => "exchange",
        Welcome {} => "welcome",
        Admitted {} => "admitted",
        Update {} => "update",
        ForceLeave {} => "force_leave",
        Rejoin {} => "rejoin",
        Leave {} => "leave",
    });

    fn weight(&self) -> usize {
        match self {
            Self::Alive(m) => m.id.name().len() + m.meta.len() + m.tags.as_bytes().len(),
            Self::Suspect(m) => m.id.name().len() + m.from.len(),
            Self::Dead(m) => m.id.name().len() + m.from.len() + m.by.len(),
            _ => 0,
        }
    }
}

/// What follows the answer to a ping that the application asked for.
pub(crate) enum Then {
    /// The round trip is told.
    Tell(Reply<Result<Duration, AskError>>),
    /// This is sent to the run that has answered.
    Cast(Cast),
}

/// What FailureDetector hears.
pub(crate) enum ToDetector {
    /// From Transport: somebody asks whether this node is there. With `Piggyback::No` the ack is all it gets.
    Ping { ping: Ping, from: SocketAddr, piggyback: Piggyback },
    /// From Transport: somebody wants another one pinged.
    IndirectPing { request: IndirectPing, from: SocketAddr },
    /// From Transport: an answer.
    Ack { ack: Ack, by: u64 },
    /// From Transport: a helper has none.
    Nack(Nack),
    /// From a stream: the ping over it has ended.
    StreamPinged { seq: u32, heard: Dialled },
    /// From the handle: is `target` there?
    Ask { target: NodeId, addr: SocketAddr, then: Then },
    /// From Transport: a ping could not be sent.
    SendFailed { seq: u32 },
    /// From NodeState: a member is new.
    Newcomer { name: Arc<str>, members: usize },
    /// From NodeState: this node had to refute, so its health is doubtful.
    Doubt,
}

impl Item for ToDetector {
    kinds!(ToDetector {
        Ping {} => "ping",
        IndirectPing {} => "indirect_ping",
        Ack {} => "ack",
        Nack(_) => "nack",
        StreamPinged {} => "stream_pinged",
        Ask {} => "ask",
        SendFailed {} => "send_failed",
        Newcomer {} => "newcomer",
        Doubt () => "doubt",
    });

    fn weight(&self) -> usize {
        match self {
            Self::Ping { ping, .. } => ping.target.name().len() + ping.from.name().len(),
            Self::IndirectPing { request, .. } => request.target.name().len() + request.from.name().len(),
            Self::Ack { ack, .. } => ack.payload.len(),
            Self::Ask { then: Then::Cast(cast), .. } => cast.bytes.len(),
            _ => 0,
        }
    }
}

/// What BroadcastQueue hears.
pub(crate) enum ToQueue {
    /// From NodeState: news about a run of a member, to be gossiped; older news about that run goes.
    News { about: NodeId, bytes: Bytes },
    /// From FailureDetector and NodeState: messages to one node, with news behind them.
    /// The run is the one that is meant, if it is known.
    Send {
        to: SocketAddr,
        run: u64,
        messages: SmallVec<[Message; 1]>,
        piggyback: Piggyback,
        report: Option<u32>,
    },
    /// From the handle: a user's broadcast.
    Broadcast {
        name: Option<Arc<str>>,
        replaces: Vec<String>,
        message: UserBroadcast,
        spread: Reply<Result<(), NotSent>>,
    },
    /// From Delegates: somebody else's broadcast, to be passed on.
    Forward(UserBroadcast),
    /// From the handle: send this farewell at once, as often as the budget allows. The answer is how many
    /// members it went to.
    Farewell { bytes: Bytes, reply: Reply<usize> },
}

impl Item for ToQueue {
    kinds!(ToQueue {
        News {} => "news",
        Send {} => "send",
        Broadcast {} => "broadcast",
        Forward(_) => "forward",
        Farewell {} => "farewell",
    });

    fn weight(&self) -> usize {
        match self {
            Self::News { bytes, .. } => bytes.len(),
            Self::Forward(m) => m.kind.len() + m.bytes.len(),
            _ => 0,
        }
    }
}

/// What the PeerLink of one peer hears.
pub(crate) enum ToLink {
    /// From the handle: something waits for a connection.
    Wanted(Carrier),
    /// From a connection: it is up.
    Up(Carrier),
    /// From a connection: it has ended, after it was up since then.
    Ended { carrier: Carrier, up: Option<std::time::Instant> },
    /// From NodeState: the peer is alive, or has moved.
    Alive,
    /// From NodeState: it is not there any more.
    Gone,
}

impl Item for ToLink {
    kinds!(ToLink {
        Wanted(_) => "wanted",
        Up(_) => "up",
        Ended {} => "ended",
        Alive () => "alive",
        Gone () => "gone",
    });
}

/// What Transport hears.
pub(crate) enum ToTransport {
    /// From BroadcastQueue: send a packet. When that fails, FailureDetector learns of the ping in it.
    Packet { to: SocketAddr, run: u64, bytes: Bytes, report: Option<u32> },
    /// From FailureDetector: ping over a stream.
    StreamPing { seq: u32, target: NodeId, addr: SocketAddr, deadline: Instant },
    /// From NodeState: exchange states with a member.
    PushPull { addr: SocketAddr, why: Exchange },
    /// From the handle: bring an upload to a peer.
    Upload(Outgoing),
    /// From the handle: a peer that nothing was sent to before is to have a link.
    Link { link: Arc<Link> },
    /// From BroadcastQueue: send a farewell to these members now, and say to how many it went.
    Farewell { packets: Vec<(SocketAddr, u64, Bytes)>, reply: Reply<usize> },
    /// From a change of the whole cluster: give an order to a member.
    Order { member: Arc<Member>, order: Order, reply: Reply<Result<Standing, String>> },
    /// From a join, or a search for who is missing: exchange states with whoever is there.
    Join { addr: SocketAddr, why: Exchange, reply: Reply<Result<NodeId, JoinError>> },
}

impl Item for ToTransport {
    kinds!(ToTransport {
        Packet {} => "packet",
        StreamPing {} => "stream_ping",
        Link {} => "link",
        Upload(_) => "upload",
        PushPull {} => "push_pull",
        Farewell {} => "farewell",
        Order {} => "order",
        Join {} => "join",
    });

    fn weight(&self) -> usize {
        match self {
            Self::Packet { bytes, .. } => bytes.len(),
            _ => 0,
        }
    }
}

/// What Delegates hears.
pub(crate) enum ToDelegates {
    /// From NodeState: what has happened in one turn, and the view after it.
    Events { changes: Vec<(u64, Change)>, view: View },
    /// From Transport: a user's broadcast.
    User(UserBroadcast),
    /// From a stream: a user's bytes, or a broadcast that is too large for gossip.
    Deliver { address: Address, bytes: Bytes, from: SocketAddr, reply: Reply<Receipt> },
    /// From NodeState and streams: ask the application whether somebody may in.
    Admit { question: Admit, asker: Asker },
    /// From a stream: ask the application what it shares.
    Export { joining: bool, reply: Reply<Bytes> },
    /// From a stream: what another node's application shares.
    MergeShared { from: NodeId, joining: bool, shared: Bytes },
    /// From the handle: somebody shares a state.
    Share(Sharing),
    /// From the handle: somebody wants events.
    Subscribe(Subscribing<MemberEvent>),
    /// From the handle: somebody wants users' messages.
    Serve(Serving),
    /// From the handle: somebody wants to know of answered probes.
    Listen(Subscribing<Pinged>),
    /// From FailureDetector, if somebody wants to know: a member has answered.
    Pinged(Pinged),
    /// From the handle: somebody wants what the supervisor tells, and needs a pump for it.
    Run(Pump),
    /// From the handle: something to be done on the node's thread, which ends with the node.
    Work(Pump),
    /// From a subscription that was dropped.
    Unsubscribe { number: u64 },
}

impl Item for ToDelegates {
    kinds!(ToDelegates {
        Events {} => "events",
        User(_) => "user",
        Deliver {} => "deliver",
        Admit {} => "admit",
        Export {} => "export",
        MergeShared {} => "merge_shared",
        Share(_) => "share",
        Subscribe(_) => "subscribe",
        Serve(_) => "serve",
        Listen(_) => "listen",
        Pinged(_) => "pinged",
        Run(_) => "run",
        Work(_) => "work",
        Unsubscribe {} => "unsubscribe",
    });

    fn weight(&self) -> usize {
        match self {
            Self::User(m) => m.kind.len() + m.bytes.len(),
            _ => 0,
        }
    }
}

/// Every actor of the ring with every kind of message that it hears, and what Transport hears from its sockets
/// and from users, and the tick of each.
#[cfg(feature = "testing")]
pub(crate) fn pairs() -> Vec<(&'static str, &'static str)> {
    let of = |actor: &'static str, kinds: &'static [&'static str]| {
        kinds.iter().copied().chain(["tick"]).map(move |kind| (actor, kind))
    };
    of(STATE, ToState::KINDS)
        .chain(of(QUEUE, ToQueue::KINDS))
        .chain(of(DETECTOR, ToDetector::KINDS))
        .chain(
            ToTransport::KINDS.iter().chain(&["datagram", "stream", "outbox"]).map(|kind| (TRANSPORT, *kind)),
        )
        .chain(ToDelegates::KINDS.iter().map(|kind| (DELEGATES, *kind)))
        .chain(ToLink::KINDS.iter().map(|kind| (LINK, *kind)))
        .collect()
}

pub(crate) const STATE: &str = "NodeState";
pub(crate) const QUEUE: &str = "BroadcastQueue";
pub(crate) const DETECTOR: &str = "FailureDetector";
pub(crate) const TRANSPORT: &str = "Transport";
pub(crate) const DELEGATES: &str = "Delegates";
pub(crate) const LINK: &str = "PeerLink";
pub(crate) const NODE: &str = "Node";

/// How long the last words of a stopping node may take.
pub(crate) const LAST_WORDS: Duration = Duration::from_secs(1);
