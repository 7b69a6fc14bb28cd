//! What can go wrong, by whose turn it is to do something about it.

use std::{io, net::SocketAddr};

use memberlist_protocol::broadcast::TooLarge;
pub use memberlist_protocol::{config::ConfigError, member::MemberError, wire::state::Refusal};

/// A node did not start. Nothing of it is left running or bound.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A setting that cannot be.
    #[error("bad setting: {0}")]
    Config(#[from] ConfigError),
    /// The address could not be taken.
    #[error("cannot bind {0}: {1}")]
    Bind(SocketAddr, #[source] io::Error),
    /// There is no actix system on this thread, and no arbiter was given.
    #[error(
        "no actix system runs on this thread: start one with #[actix::main], or give the node an arbiter"
    )]
    NoSystem,
    /// The thread of the node could not be started, or has stopped.
    #[error("the node's thread could not be started: {0}")]
    Thread(#[source] io::Error),
}

/// Joining one seed, or all of them, did not work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinError {
    /// No seed was named.
    #[error("no seeds were given")]
    NoSeeds,
    /// A seed is not `host:port`, `host` or `name/host:port`.
    #[error("bad seed {seed:?}: {reason}")]
    BadSeed {
        /// What was given, cut to 300 characters.
        seed: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name could not be resolved.
    #[error("cannot resolve {0}")]
    Resolve(String),
    /// The address is outside [`Config::cidrs_allowed`](crate::Config::cidrs_allowed). Nobody was dialled.
    #[error("{0} is outside the networks that cidrs_allowed names")]
    NotAllowed(SocketAddr),
    /// Nobody could be reached there.
    #[error("{0} cannot be reached: {1}")]
    Unreachable(SocketAddr, String),
    /// It closed the connection without an answer, as nodes do that have another label or key.
    #[error("{0} closed the connection without an answer: check label, key and version on both sides")]
    NoAnswer(SocketAddr),
    /// Its answer was not understood.
    #[error("the answer of {0} was not understood: {1}")]
    Garbled(SocketAddr, String),
    /// There is no stream under TLS to it: one of the two nodes has no TLS, or does not accept the other one's
    /// certificate.
    #[error("no TLS with {0}: {1}")]
    Tls(SocketAddr, String),
    /// It said no.
    #[error("refused: {0}")]
    Refused(Refusal),
    /// The seed is this node itself.
    #[error("that is this node itself")]
    Oneself,
    /// It took too long.
    #[error("no answer in time")]
    Timeout,
    /// No seed could be joined; for each, why.
    #[error("no seed could be joined: {}", list(.0))]
    NoneReached(Vec<(String, JoinError)>),
    /// The node has too much to do just now. Try again.
    #[error("the node is busy")]
    Busy,
    /// The node lost the question when one of its actors was restarted. Try again.
    #[error("lost in a restart of an actor")]
    Lost,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// The first seeds and their errors, each cut where a log line would get too long.
fn list(failed: &[(String, JoinError)]) -> String {
    /// Seeds that a line names.
    const MAX: usize = 10;
    /// Characters of a seed.
    const SEED: usize = 80;
    /// Characters of its error.
    const ERROR: usize = 200;
    let mut text: Vec<String> = failed
        .iter()
        .take(MAX)
        .map(|(seed, error)| format!("{}: {}", cut(seed, SEED), cut(&error.to_string(), ERROR)))
        .collect();
    if failed.len() > MAX {
        text.push(format!("and {} more", failed.len() - MAX));
    }
    text.join("; ")
}

/// The first characters, without those that could forge another line: seeds may come from a file or a command.
fn cut(text: &str, max: usize) -> String {
    let mut short: String = text.chars().take(max).flat_map(char::escape_debug).collect();
    if text.chars().nth(max).is_some() {
        short.push('…');
    }
    short
}

/// The node has stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has stopped")]
pub struct Stopped;

/// This node could not say something else about itself, or about a dead member.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpdateError {
    /// Metadata and tags do not fit into what they share, or a ping's payload does not fit. Nothing has
    /// changed.
    #[error("what is to be said takes {len} bytes; at most {max} are allowed")]
    TooLarge {
        /// Bytes on the wire.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// The node has left. It can say something again once it has joined again.
    #[error("the node has left")]
    Left,
    /// There is no member of that name. Nothing has changed.
    #[error("there is no member of that name")]
    Unknown,
    /// The member is alive, or may still refute, or is this node itself. Nothing has changed.
    #[error("the member is not dead")]
    StillAlive,
    /// The node has too much to do just now. Nothing has changed; try again.
    #[error("the node is busy")]
    Busy,
    /// The node lost the question when one of its actors was restarted. Nothing has changed; try again.
    #[error("lost in a restart of an actor")]
    Lost,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

/// A message was not taken.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// There is no room for it just now. Try again.
    #[error("the queue is full")]
    Full,
    /// It is too large, for ever.
    #[error("the message has {len} bytes; at most {max} fit")]
    TooLarge {
        /// Bytes of the message.
        len: usize,
        /// Bytes that fit.
        max: usize,
    },
    /// The address is outside the networks of [`Config::cidrs_allowed`](crate::Config::cidrs_allowed).
    #[error("{0} is outside the networks that are allowed")]
    NotAllowed(SocketAddr),
    /// The peer is not there any more.
    #[error("the peer is gone")]
    Gone,
    /// This node leaves the cluster: what was sent before is still brought to its peers.
    #[error("the node leaves the cluster")]
    Leaving,
    /// It could not be turned into bytes: what its `Serialize` says.
    #[error("the message cannot be encoded: {0}")]
    Encode(String),
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

impl From<TooLarge> for SendError {
    fn from(TooLarge { len, max }: TooLarge) -> Self {
        Self::TooLarge { len, max }
    }
}

/// A question has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// It was not taken.
    #[error("not asked: {0}")]
    Send(SendError),
    /// It was taken, and has not got through.
    #[error(transparent)]
    NotSent(NotSent),
    /// There was no answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The peer's handler stopped, or panicked, before it answered.
    #[error("the handler is gone")]
    HandlerGone,
    /// The body of an upload has failed: its own error.
    #[error("the body cannot be read: {0}")]
    Body(String),
    /// The answer is no `Result` of the message here: what is wrong with it.
    #[error("the answer cannot be read: {0}")]
    Reply(String),
    /// The name or the address is no node's. Nothing was asked.
    #[error("no node can be asked there: {0}")]
    Target(MemberError),
}

/// A message that was taken has not got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotSent {
    /// Surely not.
    #[error("not sent: {0}")]
    Never(Cause),
    /// Perhaps it has.
    #[error("perhaps not sent: {0}")]
    Unknown(Cause),
}

/// Why a message has not got through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// There was no room.
    #[error("no room")]
    Busy,
    /// Nobody handles such messages there.
    #[error("nobody handles it there")]
    NoHandler,
    /// The handler's type there is another one: the bytes are none of it.
    #[error("it cannot be read there")]
    Undecodable,
    /// The peer could not be reached, or the connection broke.
    #[error("the connection to the peer is lost")]
    LinkLost,
    /// The peer has left.
    #[error("the peer has left")]
    PeerLeft,
    /// The peer is dead.
    #[error("the peer is dead")]
    PeerDead,
    /// Another run of the peer is in its place.
    #[error("another run of the peer is in its place")]
    Replaced,
    /// The peer takes no message of that size: its limits are lower than this node's.
    #[error("the peer takes none of that size")]
    TooLarge,
    /// It was to be there by a time that is over.
    #[error("its time is over")]
    Expired,
    /// The network did not take it.
    #[error("the network did not take it")]
    Network,
    /// A newer broadcast has replaced it.
    #[error("replaced by a newer one")]
    Invalidated,
    /// It was lost when an actor was restarted.
    #[error("lost in a restart of an actor")]
    Lost,
    /// The node has stopped.
    #[error("the node has stopped")]
    Stopped,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_reads_that_nobody_was_reached_sees_each_seed_with_its_reason_and_no_more_than_fits() {
        let resolve = JoinError::Resolve("db: no such name".into());
        let some = vec![("db:1".to_owned(), resolve), ("10.0.0.1".to_owned(), JoinError::Timeout)];
        assert_eq!(
            JoinError::NoneReached(some).to_string(),
            "no seed could be joined: db:1: cannot resolve db: no such name; 10.0.0.1: no answer in time"
        );
        let long = || ("x ".repeat(10_000), JoinError::Resolve("y".repeat(10_000)));
        let text = JoinError::NoneReached((0..1000).map(|_| long()).collect()).to_string();
        assert!(text.len() < 3200 && text.ends_with("; and 990 more"), "{} bytes: {text}", text.len());
    }
}
