//! What nodes say to each other.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;

use crate::{
    accusation::Evidence,
    member::{Member, MemberState, NodeId, PackedTags, Versions},
    wire::bundle::Bundle,
};

/// One message of a packet.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// "Are you there?"
    Ping(Ping),
    /// "Ping somebody for me."
    IndirectPing(IndirectPing),
    /// "I am", or "it is".
    Ack(Ack),
    /// "I asked, and have no answer so far."
    Nack(Nack),
    /// "That one did not answer."
    Suspect(Suspect),
    /// "That one runs."
    Alive(Alive),
    /// "That one is dead", or "I leave".
    Dead(Dead),
    /// A user's broadcast.
    User(UserBroadcast),
    /// Users' messages for one node.
    Direct(Direct),
    /// "Send me no users' messages for a moment."
    Wait(Wait),
}

impl Message {
    /// Kinds of messages.
    pub const KINDS: usize = 10;

    /// The names of the kinds, by [`Message::kind`].
    pub const NAMES: [&'static str; Self::KINDS] =
        ["ping", "indirect_ping", "ack", "nack", "suspect", "alive", "dead", "user", "direct", "wait"];

    /// The kind, as it stands on the wire.
    pub fn kind(&self) -> usize {
        match self {
            Self::Ping(_) => 0,
            Self::IndirectPing(_) => 1,
            Self::Ack(_) => 2,
            Self::Nack(_) => 3,
            Self::Suspect(_) => 4,
            Self::Alive(_) => 5,
            Self::Dead(_) => 6,
            Self::User(_) => 7,
            Self::Direct(_) => 8,
            Self::Wait(_) => 9,
        }
    }
}

/// "Are you there?" Answered by an [`Ack`] to where the packet came from, if the target is the node asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Ping {
    /// What the answer has to repeat. It cannot be guessed.
    pub seq: u32,
    /// Who is meant. Another name does not answer, nor does another run, unless it is [`NodeId::ANY_RUN`].
    /// Everybody answers to [`NodeId::anybody`].
    pub target: NodeId,
    /// Who asks.
    pub from: NodeId,
}

/// "Ping somebody for me." Answered by the [`Ack`] of the target passed on, or by a [`Nack`].
#[derive(Clone, Debug, PartialEq)]
pub struct IndirectPing {
    /// What the answer has to repeat; another one for each helper.
    pub seq: u32,
    /// Who is to be pinged.
    pub target: NodeId,
    /// Where the asker knows it.
    pub addr: SocketAddr,
    /// Who asks.
    pub from: NodeId,
}

/// The answer to a ping.
#[derive(Clone, Debug, PartialEq)]
pub struct Ack {
    /// The number of the ping.
    pub seq: u32,
    /// What the answering node sends along, at most [`Ack::MAX_PAYLOAD`] bytes. Only a direct ping of a
    /// member gets any.
    pub payload: Bytes,
}

impl Ack {
    /// Bytes that may travel along: with the longest label they fit into the smallest packet.
    pub const MAX_PAYLOAD: usize = 512;
}

/// A helper's word that the target has not answered it so far. An [`Ack`] may still follow.
#[derive(Clone, Debug, PartialEq)]
pub struct Nack {
    /// The number of the indirect ping.
    pub seq: u32,
}

/// An accusation.
#[derive(Clone, Debug, PartialEq)]
pub struct Suspect {
    /// Who did not answer.
    pub id: NodeId,
    /// The incarnation that is accused.
    pub incarnation: u32,
    /// Who accuses.
    pub from: Arc<str>,
    /// What the accuser has seen.
    pub evidence: Evidence,
}

/// A node's word about itself, passed on by others.
#[derive(Clone, Debug, PartialEq)]
pub struct Alive {
    /// Who runs.
    pub id: NodeId,
    /// Its incarnation.
    pub incarnation: u32,
    /// Where it is reached.
    pub addr: SocketAddr,
    /// Its tags.
    pub tags: PackedTags,
    /// Its metadata.
    pub meta: Bytes,
    /// What it speaks.
    pub versions: Versions,
}

impl Alive {
    /// A member's record as news.
    pub fn of(member: &Member) -> Self {
        Self {
            id: member.id.clone(),
            incarnation: member.incarnation,
            addr: member.addr,
            tags: PackedTags::pack(&member.tags),
            meta: member.meta.clone(),
            versions: member.versions,
        }
    }

    /// The record that this news makes.
    pub fn into_member(self, since: Instant) -> Member {
        let mut member = Member::new(self.id, self.addr, self.incarnation, since);
        member.tags = self.tags.unpack();
        member.meta = self.meta;
        member.versions = self.versions;
        member
    }

    /// Whether it says just what the record says, incarnation aside.
    pub fn matches(&self, member: &Member) -> bool {
        self.addr == member.addr
            && self.meta == member.meta
            && self.tags == PackedTags::pack(&member.tags)
            && self.versions == member.versions
    }
}

/// A verdict; a farewell when the node speaks about itself; with [`Evidence::ForceLeave`] an operator's word
/// that the node, which was dead, has left.
#[derive(Clone, Debug, PartialEq)]
pub struct Dead {
    /// Who is gone.
    pub id: NodeId,
    /// The incarnation that is gone.
    pub incarnation: u32,
    /// Who says so; the node itself when it leaves.
    pub from: Arc<str>,
    /// Who accused it first.
    pub by: Arc<str>,
    /// Who confirmed that; at most [`Dead::MAX_CONFIRMATIONS`].
    pub confirmed_by: Vec<Arc<str>>,
    /// What the first accuser has seen.
    pub evidence: Evidence,
}

impl Dead {
    /// Names of confirming nodes that travel along, so that the message stays small.
    pub const MAX_CONFIRMATIONS: usize = 2;

    /// What a node says when it leaves.
    pub fn farewell(local: &Member) -> Self {
        Self {
            id: local.id.clone(),
            incarnation: local.incarnation,
            from: local.id.shared_name().clone(),
            by: local.id.shared_name().clone(),
            confirmed_by: Vec::new(),
            evidence: Evidence::Announced,
        }
    }

    /// Whether the node says it about itself.
    pub fn is_farewell(&self) -> bool {
        *self.from == *self.id.name()
    }

    /// Whether the node has left, by its own word or by an operator's, and is not just dead.
    pub fn is_left(&self) -> bool {
        self.is_farewell() || self.evidence == Evidence::ForceLeave
    }
}

/// Longest name of a type of a user's messages, in bytes.
pub const MAX_KIND: usize = 64;

/// A user's broadcast. Each node passes it on once.
#[derive(Clone, Debug, PartialEq)]
pub struct UserBroadcast {
    /// Who broadcast it first.
    pub origin: NodeId,
    /// Its number at the origin.
    pub id: u64,
    /// The name of its type, of at most [`MAX_KIND`] bytes; empty for bytes without a type.
    pub kind: Cow<'static, str>,
    /// The user's bytes.
    pub bytes: Bytes,
}

/// What a user has for one node.
#[derive(Clone, Debug, PartialEq)]
pub struct Direct {
    /// Who sends it, as it says itself.
    pub from: NodeId,
    /// Who is meant; nothing means whoever is there.
    pub to: Option<NodeId>,
    /// The user's messages.
    pub parts: Bundle,
}

/// "Send me no users' messages for a moment": more have come than handlers have taken so far. It concerns datagrams.
#[derive(Clone, Debug, PartialEq)]
pub struct Wait {
    /// Who asks.
    pub from: NodeId,
    /// Who is asked.
    pub to: NodeId,
    /// For how long, in milliseconds.
    pub millis: u8,
}

/// From whom the bytes of a user are that go over a stream, and for whom.
#[derive(Clone, Debug, PartialEq)]
pub enum Address {
    /// Bytes for the node at the other end.
    Direct {
        /// Who sends them, as it says itself.
        from: NodeId,
        /// Who is meant.
        to: NodeId,
    },
    /// A broadcast that is too large for gossip.
    Broadcast {
        /// Who broadcasts it.
        origin: NodeId,
        /// Its number at the origin.
        id: u64,
        /// The name of its type; empty for bytes without a type.
        kind: Cow<'static, str>,
    },
}

/// What the node at the other end of a stream has done with a user's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receipt {
    /// They wait for a handler, which will get them.
    Taken,
    /// Nobody handles users' bytes there.
    NoHandler,
    /// The handlers have too much to do.
    Busy,
    /// They are for another node, or another run of it.
    NotMe,
    /// Their handler cannot read them.
    Undecodable,
}

/// A member as one node's full state tells it.
#[derive(Clone, Debug, PartialEq)]
pub struct Remembered {
    /// The record.
    pub alive: Alive,
    /// What that node holds the member for.
    pub state: MemberState,
}
