//! What the node logs, and how often. Whatever a peer or a stranger can make it say is of some [`Line`]: it
//! is said at once, and then for a minute only counted. Their text is escaped and cut.

use std::{
    collections::BTreeSet,
    fmt::{self, Display, Write},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use memberlist_protocol::{
    member::{Member, NodeId},
    throttle::Throttle,
    wire::WireError,
};
use tokio::{sync::Notify, time::sleep_until};
use tracing::Level;

use crate::{
    messages::{DELEGATES, DETECTOR, NODE, QUEUE, STATE, TRANSPORT},
    ring::{Doors, now},
};

/// Each kind is said once in this time.
const INTERVAL: Duration = Duration::from_secs(60);

/// Changes of members that are said in one interval: all, in any cluster that is not under attack.
const CHANGES: u32 = 10_000;

/// Characters of a name that are shown.
const NAME: usize = 64;

/// Characters of any other text of somebody else's that are shown.
const TEXT: usize = 200;

/// A kind of line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A packet that was dropped.
    Packet(WireError),
    /// A stream that was dropped for what was said on it.
    Stream(WireError),
    /// An actor or, by any other name, a task that panicked.
    Panicked(&'static str),
    /// What became of a member.
    Change,
    /// Another node claims the name of a member.
    Conflict,
    /// A peer's state that was not taken in.
    Refused,
    /// An exchange of states with a member that failed.
    NoExchange,
    /// A stream that took too long.
    StreamTimeout,
    /// A stream that broke.
    StreamBroken,
    /// A stream with somebody who speaks no TLS.
    NoTls,
    /// A stream with somebody whose certificate is not accepted.
    TlsCertificate,
    /// A stream that the other side has ended with a TLS alert.
    TlsAlert,
    /// A stream that ended without TLS's farewell.
    TlsCut,
    /// A stream of which the TLS handshake, or what came after it, is broken.
    TlsBroken,
    /// A stream that the node had no time for.
    StreamUnserved,
    /// A link without a connection.
    LinkLost,
    /// A stream that was not opened or accepted for want of room.
    TooManyStreams,
    /// A stream that was closed because too many from its address are open and wait.
    TooManyOfSource,
    /// A packet that the network did not take just then.
    WouldBlock,
    /// A packet that could not be sent at all.
    NotSent,
    /// Datagrams that could not be read.
    NotRead,
    /// A stream that could not be accepted.
    NotAccepted,
    /// An inbox that was full.
    InboxFull,
    /// Broadcasts that had to make room for newer ones.
    Pruned,
    /// What no packet has room for.
    NoRoom,
    /// A subscriber that lagged behind.
    Lagged,
    /// A handler of users' messages that lagged behind.
    HandlerBusy,
    /// A user's message that its handler cannot read.
    Undecodable,
    /// A question that the application did not answer.
    Unanswered,
    /// A shared state that has no room.
    Unshared,
    /// A newcomer that the application does not let in.
    Vetoed,
    /// A source of seeds that failed.
    SourceFailed,
    /// A source of seeds that gave no answer in time.
    SourceLate,
    /// A source of seeds that panicked.
    SourcePanicked,
    /// A source of seeds that blocks its thread.
    SourceSilent,
    /// A source with too many seeds.
    TooManySeeds,
    /// A source without seeds.
    NoSeeds,
    /// A source of whose seeds none was joined.
    NoneJoined,
    /// A seed of a source that was not joined, beside others that were.
    SeedNotJoined,
    /// Somebody who was missing, and is there.
    Found,
    /// A rejoin file that could not be written.
    NotKept,
    /// A rejoin file whose disk does not answer.
    KeptLate,
    /// A member whose datagrams are lost.
    UdpLost,
    /// A handler of the node's own that hung.
    Stalled,
    /// An order about keys, labels or seals.
    Order,
    /// All actors were restarted.
    AllRestarted,
}

/// The plain ones: how serious each is, and what it is called when it is counted.
const PLAIN: [(Line, Level, &str); 43] = [
    (Line::Change, Level::INFO, "changes of members"),
    (Line::Conflict, Level::WARN, "claims of the name of a member"),
    (Line::Refused, Level::WARN, "states of peers that were refused"),
    (Line::NoExchange, Level::DEBUG, "exchanges of states that failed"),
    (Line::StreamTimeout, Level::DEBUG, "streams that took too long"),
    (Line::StreamBroken, Level::DEBUG, "streams that broke"),
    (Line::NoTls, Level::WARN, "streams without TLS"),
    (Line::TlsCertificate, Level::WARN, "streams with certificates that are not accepted"),
    (Line::TlsAlert, Level::WARN, "streams that the other side ended with a TLS alert"),
    (Line::TlsCut, Level::DEBUG, "streams that ended without TLS's farewell"),
    (Line::TlsBroken, Level::WARN, "streams whose TLS is broken"),
    (Line::LinkLost, Level::DEBUG, "connections of links that have ended"),
    (Line::StreamUnserved, Level::DEBUG, "streams that the node had no time for"),
    (Line::TooManyStreams, Level::WARN, "streams for which there was no room"),
    (Line::TooManyOfSource, Level::WARN, "streams beyond those that one address may have"),
    (Line::WouldBlock, Level::DEBUG, "packets that the network did not take"),
    (Line::NotSent, Level::WARN, "packets that could not be sent"),
    (Line::NotRead, Level::WARN, "errors on reading datagrams"),
    (Line::NotAccepted, Level::WARN, "errors on accepting streams"),
    (Line::InboxFull, Level::WARN, "messages that found their inbox full"),
    (Line::Pruned, Level::WARN, "broadcasts that had to make room"),
    (Line::NoRoom, Level::WARN, "messages that no packet has room for"),
    (Line::Lagged, Level::WARN, "events that a subscriber missed"),
    (Line::HandlerBusy, Level::WARN, "messages that a handler missed"),
    (Line::Undecodable, Level::WARN, "messages that their handler cannot read"),
    (Line::Unanswered, Level::WARN, "questions that the application did not answer"),
    (Line::Unshared, Level::WARN, "shared states without room"),
    (Line::Vetoed, Level::INFO, "newcomers that the application did not let in"),
    (Line::SourceFailed, Level::WARN, "sources of seeds that failed"),
    (Line::SourceLate, Level::WARN, "sources of seeds that did not answer in time"),
    (Line::SourcePanicked, Level::WARN, "sources of seeds that panicked"),
    (Line::SourceSilent, Level::WARN, "sources of seeds that block their thread"),
    (Line::TooManySeeds, Level::WARN, "sources with too many seeds"),
    (Line::NoSeeds, Level::WARN, "sources without seeds"),
    (Line::NoneJoined, Level::WARN, "sources of whose seeds none was joined"),
    (Line::SeedNotJoined, Level::DEBUG, "seeds that were not joined"),
    (Line::Found, Level::INFO, "missing ones that were found"),
    (Line::NotKept, Level::WARN, "writes of the rejoin file that failed"),
    (Line::KeptLate, Level::WARN, "writes of the rejoin file that took too long"),
    (Line::UdpLost, Level::WARN, "members that answered over a stream only"),
    (Line::Stalled, Level::WARN, "handlers that hung"),
    (Line::Order, Level::INFO, "orders about keys, labels or seals"),
    (Line::AllRestarted, Level::ERROR, "restarts of all actors"),
];

/// Those whose panics are counted apart; the last place is for everybody else.
const PANICKING: [&str; 7] = [STATE, QUEUE, DETECTOR, TRANSPORT, DELEGATES, NODE, "a task"];

const STREAM: usize = WireError::ALL.len();
const PANICKED: usize = STREAM + WireError::ALL.len();
const OTHERS: usize = PANICKED + PANICKING.len();
const LINES: usize = OTHERS + PLAIN.len();

impl Line {
    fn index(self) -> usize {
        let place = |error| WireError::ALL.iter().position(|each| *each == error).unwrap_or(0);
        match self {
            Self::Packet(error) => place(error),
            Self::Stream(error) => STREAM + place(error),
            Self::Panicked(who) => {
                PANICKED + PANICKING.iter().position(|each| *each == who).unwrap_or(PANICKING.len() - 1)
            }
            plain => OTHERS + PLAIN.iter().position(|(each, ..)| *each == plain).unwrap_or(0),
        }
    }

    /// How often it is said in one interval.
    fn most(self) -> u32 {
        if self == Self::Change { CHANGES } else { 1 }
    }
}

/// What tells how serious a line is, and what it is about, from its number.
fn summary(index: usize) -> (Level, String) {
    match index {
        0..STREAM => (Level::WARN, format!("packets dropped: {}", WireError::ALL[index])),
        STREAM..PANICKED => (Level::WARN, format!("streams dropped: {}", WireError::ALL[index - STREAM])),
        PANICKED..OTHERS => (Level::ERROR, format!("panics of {}", PANICKING[index - PANICKED])),
        _ => {
            let (_, level, text) = PLAIN[(index - OTHERS).min(PLAIN.len() - 1)];
            (level, text.to_owned())
        }
    }
}

/// What has been said of late.
pub(crate) struct Logs {
    node: Arc<str>,
    throttle: Mutex<Throttle<LINES>>,
    /// There is something to tell at the end of an interval.
    wake: Notify,
    left_out: AtomicU64,
}

impl Logs {
    pub(crate) fn new(node: Arc<str>) -> Self {
        Self {
            node,
            throttle: Mutex::new(Throttle::new(INTERVAL)),
            wake: Notify::new(),
            left_out: AtomicU64::new(0),
        }
    }

    /// The name of this node.
    pub(crate) fn node(&self) -> Shown<'_> {
        Shown(&self.node, NAME)
    }

    /// Lines that were only counted.
    pub(crate) fn left_out(&self) -> u64 {
        self.left_out.load(Relaxed)
    }

    /// Whether a line may be said now. If not, it is counted.
    pub(crate) fn may_say(&self, line: Line) -> bool {
        let (index, now) = (line.index(), now());
        let mut throttle = self.lock();
        match throttle.say(index, line.most(), now) {
            Some(left_out) => {
                drop(throttle);
                if left_out > 0 {
                    self.tell(index, left_out);
                }
                true
            }
            None => {
                self.left_out.fetch_add(1, Relaxed);
                if throttle.unsaid(index) == 1 {
                    self.wake.notify_one();
                }
                false
            }
        }
    }

    fn tell(&self, index: usize, left_out: u64) {
        let (level, what) = summary(index);
        let (node, seconds) = (self.node(), INTERVAL.as_secs());
        // The level of a line is fixed where it stands.
        match level {
            Level::ERROR => {
                tracing::error!(%node, left_out, "and {left_out} more like it in the last {seconds} s: {what}")
            }
            Level::WARN => {
                tracing::warn!(%node, left_out, "and {left_out} more like it in the last {seconds} s: {what}")
            }
            Level::INFO => {
                tracing::info!(%node, left_out, "and {left_out} more like it in the last {seconds} s: {what}")
            }
            _ => {
                tracing::debug!(%node, left_out, "and {left_out} more like it in the last {seconds} s: {what}")
            }
        }
    }

    /// Tells what was left out and not told of, when the node ends.
    pub(crate) fn last_words(&self) {
        loop {
            let left = self.lock().last_words();
            let Some((index, left_out)) = left else { return };
            self.tell(index, left_out);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Throttle<LINES>> {
        self.throttle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells at the end of each interval what was left out in it. It sleeps for as long as nothing is.
pub(crate) async fn tell(doors: Arc<Doors>) {
    let logs = &doors.logs;
    loop {
        loop {
            let left = logs.lock().left_out(now());
            let Some((index, left_out)) = left else { break };
            logs.tell(index, left_out);
        }
        let due = logs.lock().due();
        match due {
            Some(at) => tokio::select! {
                biased;
                () = logs.wake.notified() => {}
                () = sleep_until(at.into()) => {}
            },
            None => logs.wake.notified().await,
        }
    }
}

/// Logs a line of a kind, unless that kind has been logged often enough of late.
macro_rules! say {
    ($doors:expr, $line:expr, $level:ident, $($what:tt)+) => {
        if $doors.logs.may_say($line) {
            tracing::$level!(node = %$doors.logs.node(), $($what)+);
        }
    };
}
pub(crate) use say;

/// Somebody else's text: escaped, and cut to so many characters.
#[derive(Clone, Copy)]
pub(crate) struct Shown<'a>(&'a str, usize);

impl Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, c) in self.0.chars().enumerate() {
            if i == self.1 {
                return f.write_char('…');
            }
            write!(f, "{}", c.escape_debug())?;
        }
        Ok(())
    }
}

/// A name.
pub(crate) fn name(name: &str) -> Shown<'_> {
    Shown(name, NAME)
}

/// A node, as it is written everywhere else, but escaped and cut.
pub(crate) fn node(id: &NodeId) -> impl Display + '_ {
    struct Who<'a>(&'a NodeId);
    impl Display for Who<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "{}#{:04x}", name(self.0.name()), self.0.run() & 0xffff)
        }
    }
    Who(id)
}

/// Names, the first few of them.
pub(crate) fn names(names: &[Arc<str>]) -> impl Display + '_ {
    /// Names that a line shows.
    const SHOWN: usize = 5;
    struct Names<'a>(&'a [Arc<str>]);
    impl Display for Names<'_> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_char('[')?;
            for (i, each) in self.0.iter().take(SHOWN).enumerate() {
                write!(f, "{}{}", if i == 0 { "" } else { ", " }, name(each))?;
            }
            match self.0.len().saturating_sub(SHOWN) {
                0 => f.write_char(']'),
                more => write!(f, ", and {more} more]"),
            }
        }
    }
    Names(names)
}

/// What a member says about itself otherwise than before: which parts, and how large they are.
pub(crate) fn difference(before: &Member, after: &Member) -> impl Display {
    let mut parts = Vec::new();
    if before.addr != after.addr {
        parts.push(format!("addr {} -> {}", before.addr, after.addr));
    }
    if before.meta != after.meta {
        parts.push(format!("meta {} -> {} bytes", before.meta.len(), after.meta.len()));
    }
    if before.tags != after.tags {
        let keys: BTreeSet<_> = before.tags.keys().chain(after.tags.keys()).collect();
        let keys = keys.into_iter().filter(|key| before.tags.get(*key) != after.tags.get(*key));
        let keys: Vec<Arc<str>> = keys.map(|key| key.as_str().into()).collect();
        parts.push(format!("tags {}", names(&keys)));
    }
    if before.versions != after.versions {
        parts.push("versions".to_owned());
    }
    parts.join(", ")
}

/// A text that may hold somebody else's words.
pub(crate) fn text(text: impl Display) -> impl Display {
    struct Text(String);
    impl Display for Text {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            Shown(&self.0, TEXT).fmt(f)
        }
    }
    Text(text.to_string())
}

/// What to look at when packets or streams are dropped for this reason.
pub(crate) fn hint(error: WireError) -> &'static str {
    match error {
        WireError::Label => "check that each node of the cluster is given the same label",
        WireError::ForeignMemberlist => {
            "a node of HashiCorp's memberlist, or one with a key, seems to talk to this port"
        }
        WireError::Tls => "check that each node of the cluster is given TLS, or none is: this one is not",
        WireError::Foreign => "something else than a node of this cluster talks to this port",
        WireError::Sealed => "check that each node of the cluster is given the same keys",
        WireError::Unsealed => {
            "check that the sender is given the cluster's key, and seals (gossip_verify_outgoing); this node takes \
             in nothing else (gossip_verify_incoming)"
        }
        WireError::Seal => "forged, damaged, or meant for another node or for an earlier run of this one",
        WireError::Replayed | WireError::Reflected | WireError::Unaddressed => {
            "somebody sends again what was recorded, or the network delivers it twice or very late"
        }
        WireError::Flags | WireError::Checksum | WireError::Compressed | WireError::Kind => {
            "check that the nodes run versions that understand each other"
        }
        WireError::WireVersion => "a node of another version of the wire talks to this one, in vain",
        _ => "a damaged or a forged packet, or a faulty node",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_counted_apart() {
        let wire = WireError::ALL.into_iter().flat_map(|error| [Line::Packet(error), Line::Stream(error)]);
        let lines = wire.chain(PANICKING.map(Line::Panicked)).chain(PLAIN.map(|(line, ..)| line));
        let mut indices: Vec<_> = lines.map(Line::index).collect();
        indices.sort_unstable();
        assert_eq!(indices, (0..LINES).collect::<Vec<_>>());
        assert_eq!(Line::Panicked("stream ping").index(), Line::Panicked("a task").index());
        assert_eq!(summary(Line::UdpLost.index()).1, "members that answered over a stream only");
    }

    #[test]
    fn weak_point_42_what_others_write_is_escaped_and_cut() {
        let shown = name("a\u{202e}b\n\u{1b}[31m").to_string();
        assert_eq!(shown, "a\\u{202e}b\\n\\u{1b}[31m");
        assert_eq!(name(&"x".repeat(1000)).to_string().chars().count(), NAME + 1);
        assert_eq!(text("\0".repeat(1000)).to_string(), "\\0".repeat(TEXT) + "…");
        assert_eq!(node(&NodeId::new("größe", 0x1_2345)).to_string(), "größe#2345");
    }
}
