//! What subscribers hear.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix::Message;
use bytes::Bytes;
use memberlist_protocol::{
    accusation::Accusation,
    member::{Member, NodeId},
    members::Change,
    view::View,
};

/// What has become of a member, this node itself included. Each event has a number, one more than the event
/// before it.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
#[non_exhaustive]
pub enum MemberEvent {
    /// All members as they are. It comes first if it was asked for, and in place of events when the
    /// subscriber has lagged behind. The next event has the number after the view's.
    Snapshot(View),
    /// A member is new, or back.
    Joined {
        /// Number of the event.
        rev: u64,
        /// The member.
        member: Arc<Member>,
    },
    /// A member says something else about itself: metadata, tags or versions.
    Updated {
        /// Number of the event.
        rev: u64,
        /// The member.
        member: Arc<Member>,
        /// The member as it was.
        before: Arc<Member>,
    },
    /// A member was accused. It still counts, and may refute.
    Suspected {
        /// Number of the event.
        rev: u64,
        /// The member.
        member: Arc<Member>,
        /// By whom, and on what evidence.
        why: Accusation,
    },
    /// A suspect has answered: it runs.
    Refuted {
        /// Number of the event.
        rev: u64,
        /// The member.
        member: Arc<Member>,
    },
    /// A member left.
    Left {
        /// Number of the event.
        rev: u64,
        /// The member.
        member: Arc<Member>,
        /// By whose word: its own, an operator's ([`Evidence::ForceLeave`]), or that of another node's full
        /// state, which does not say whose it was.
        ///
        /// [`Evidence::ForceLeave`]: crate::Evidence::ForceLeave
        why: Accusation,
    },
    /// A member is dead.
    Dead {
        /// Number of the event.
        rev: u64,
        /// The member.
        member: Arc<Member>,
        /// Who said so first, who confirmed, on what evidence.
        why: Accusation,
    },
    /// A member that was gone for long is forgotten.
    Reaped {
        /// Number of the event.
        rev: u64,
        /// Who it was.
        id: NodeId,
    },
    /// Another node claims the name of a member that is there, at another address. It is not let in.
    Conflict {
        /// Number of the event.
        rev: u64,
        /// Who keeps the name.
        kept: Arc<Member>,
        /// Where the other one is.
        other: SocketAddr,
    },
}

impl MemberEvent {
    /// The number of the event; of a snapshot, that of the last event in it.
    pub fn rev(&self) -> u64 {
        match self {
            Self::Snapshot(view) => view.rev(),
            Self::Joined { rev, .. }
            | Self::Updated { rev, .. }
            | Self::Suspected { rev, .. }
            | Self::Refuted { rev, .. }
            | Self::Left { rev, .. }
            | Self::Dead { rev, .. }
            | Self::Reaped { rev, .. }
            | Self::Conflict { rev, .. } => *rev,
        }
    }

    pub(crate) fn new(rev: u64, change: &Change) -> Self {
        match change.clone() {
            Change::Joined(member) => Self::Joined { rev, member },
            Change::Updated { member, before } => Self::Updated { rev, member, before },
            Change::Suspected { member, why } => Self::Suspected { rev, member, why },
            Change::Refuted(member) => Self::Refuted { rev, member },
            Change::Left { member, why } => Self::Left { rev, member, why },
            Change::Dead { member, why } => Self::Dead { rev, member, why },
            Change::Reaped(id) => Self::Reaped { rev, id },
            Change::Conflict { kept, other } => Self::Conflict { rev, kept, other },
        }
    }
}

/// What has become of the node itself.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
#[non_exhaustive]
pub enum NodeEvent {
    /// One of its actors panicked, and runs again.
    Restarted {
        /// Which.
        actor: &'static str,
        /// The panic's message and place.
        panic: String,
        /// How many panics of it there have been.
        nth: u32,
    },
    /// A handler of one of its actors has been running for too long.
    Stalled {
        /// Which actor.
        actor: &'static str,
        /// For how long.
        since: Duration,
    },
    /// Its actors panicked too often: it stops.
    GaveUp {
        /// Whose panic was the last.
        actor: &'static str,
    },
    /// It has stopped. The last event.
    Stopped,
}

/// A member has answered one of this node's probes. Only answers to the direct ping count that came within
/// [`Config::probe_timeout`](crate::Config::probe_timeout): a later one, one that another member passed on, or
/// one over a stream, says little about the way between the two.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
#[non_exhaustive]
pub struct Pinged {
    /// The member, as it is known now.
    pub member: Arc<Member>,
    /// Time from the ping to its answer.
    pub rtt: Duration,
    /// What it has set with `set_ping_payload`, at most 512 bytes.
    pub payload: Bytes,
}

impl Pinged {
    pub(crate) fn new(member: Arc<Member>, rtt: Duration, payload: Bytes) -> Self {
        Self { member, rtt, payload }
    }
}

/// Bytes that a user of another node has sent.
#[derive(Message, Clone, Debug)]
#[rtype(result = "()")]
#[non_exhaustive]
pub struct UserBytes {
    /// Who sent them first.
    pub from: Sender,
    /// The bytes.
    pub bytes: Bytes,
    /// Whether they came over a stream.
    pub reliable: bool,
}

impl UserBytes {
    pub(crate) fn new(from: Sender, bytes: Bytes, reliable: bool) -> Self {
        Self { from, bytes, reliable }
    }
}

/// Who sent something.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sender {
    /// A member, by the name that it gives; a message from one node to another has to come from the host where
    /// the member is. As long as packets are not sealed, whoever can send from there can claim to be it.
    Member(NodeId),
    /// A node that is no member here, by the name that it gives: it has broadcast something, which members have
    /// passed on.
    Stranger(NodeId),
    /// Somebody of whom only the address is known.
    Address(SocketAddr),
}

/// What a new subscriber is told of what was before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replay {
    /// All members as they are, in one [`MemberEvent::Snapshot`].
    Snapshot,
    /// The members that count as if each had joined just now: a [`MemberEvent::Joined`] each, all with the
    /// number of the last event before the subscription.
    Events,
    /// Nothing.
    None,
}
