//! What a node keeps over a restart: its incarnation, so that it comes back above whatever is held of its last
//! run, and the members that it knew last, so that it finds them again without being told a seed.
//!
//! The record is a short text that people can read. It ends in a checksum: what was torn or damaged is found
//! out, and is no worse than no record.
//!
//! ```text
//! actix-memberlist rejoin 1
//! label shop
//! name n1
//! state running
//! incarnation 7
//! run 00c0ffee00c0ffee
//! written 1763747153
//! peer 10.0.0.2:7946 n2
//! peer 10.0.0.3:7946 n3
//! crc32 89abcdef
//! ```

use std::{collections::BTreeSet, fmt::Write, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use rand::Rng;

use crate::{
    member::{MAX_INCARNATION_STEP, MemberState, NodeId},
    view::View,
    wire::guard::Labels,
};

mod text;

/// Most bytes of a record: 64 peers of the longest names, four times over.
pub const MAX_RECORD: usize = 256 << 10;

/// Peers in a record. Of ten that are gone for good each second one is another loss; 64 leave enough.
pub const MAX_PEERS: usize = 64;

/// A node that sees fewer others than this fills its peers up with those of its last record: it may be the one
/// that is cut off.
const FEW: usize = 8;

/// Peers that such a node keeps, as long as it sees anybody at all.
const FILLED: usize = 16;

/// A record that has not changed is written anew after this time, so that its age tells how long the node has
/// been away.
const REFRESH: Duration = Duration::from_secs(3600);

/// A member that a node knew.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Peer {
    /// Where it was.
    pub addr: SocketAddr,
    /// Its name then. Another one may have the address by now.
    pub name: Arc<str>,
}

/// What a node keeps over a restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejoin {
    /// The label of its cluster.
    pub label: String,
    /// Who it was.
    pub id: NodeId,
    /// Its last incarnation.
    pub incarnation: u32,
    /// Whether it had left. Such a record has no peers: who left comes back when it is told to.
    pub left: bool,
    /// When this was written, in seconds since 1970 by the clock on the wall.
    pub written: u64,
    /// Members that it knew, at most [`MAX_PEERS`].
    pub peers: Vec<Peer>,
}

/// Why a record is not used, or not all of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RejoinError {
    /// Some of it is missing, or is not what was written.
    #[error("it is torn or damaged: {0}")]
    Torn(&'static str),
    /// It is something else.
    #[error("it is no rejoin file")]
    Other,
    /// A later version of this library wrote it.
    #[error("it has version {0}; known: {VERSION}")]
    Version(String),
    /// It is another node's.
    #[error("it is the one of node {found:?}, and this is {expected:?}")]
    Name {
        /// Whose it is.
        found: String,
        /// Who this is.
        expected: String,
    },
    /// It is of another cluster.
    #[error("it is of the cluster with the label {found:?}, and this one has {expected:?}")]
    Label {
        /// The label in it.
        found: String,
        /// The label here.
        expected: String,
    },
}

impl RejoinError {
    /// Whether the record may be overwritten: not one that is somebody else's.
    pub fn may_be_replaced(&self) -> bool {
        matches!(self, Self::Torn(_) | Self::Version(_))
    }
}

/// The version of the text.
const VERSION: &str = "1";

impl Rejoin {
    /// What is to be kept of a node that has this view, `wall` seconds after 1970. `last` is its record before:
    /// of those peers some stay as long as the node sees few others.
    pub fn of(view: &View, label: &str, last: Option<&Self>, wall: u64, rng: &mut impl Rng) -> Self {
        let local = view.local();
        let left = local.state.is_gone();
        let mut peers = Vec::new();
        if !left {
            let others = |m: &crate::member::Member| m.state.is_present() && m.id != local.id;
            let present = view.roster().sample(MAX_PEERS, rng, others);
            let room = match present.len() {
                0 => MAX_PEERS,
                n if n < FEW => FILLED,
                n => n,
            };
            peers.extend(present.iter().map(|m| Peer { addr: m.addr, name: m.id.shared_name().clone() }));
            let mut taken: BTreeSet<_> = peers.iter().map(|peer| peer.addr).collect();
            taken.insert(local.addr);
            let missed = last.into_iter().flat_map(|last| &last.peers).filter(|peer| {
                view.get(&peer.name).is_none_or(|m| m.state == MemberState::Dead && m.id != local.id)
            });
            for peer in missed {
                if peers.len() < room && taken.insert(peer.addr) {
                    peers.push(peer.clone());
                }
            }
        }
        let (id, incarnation) = (local.id.clone(), local.incarnation);
        Self { label: label.to_owned(), id, incarnation, left, written: wall, peers }
    }

    /// Whether another record should take the place of this one: when the node says something else of itself,
    /// when an eighth of the peers is gone or there are others for their places, or after an hour.
    pub fn is_outdated(&self, view: &View, wall: u64, dead_retention: Duration) -> bool {
        let local = view.local();
        if self.id != local.id || self.incarnation != local.incarnation || self.left != local.state.is_gone()
        {
            return true;
        }
        if wall.abs_diff(self.written) >= Self::refresh(dead_retention).as_secs() {
            return true;
        }
        let there =
            |peer: &&Peer| view.get(&peer.name).is_some_and(|m| m.state.is_present() && m.addr == peer.addr);
        let wanted = if self.left { 0 } else { view.alive_count().saturating_sub(1).min(MAX_PEERS) };
        self.peers.iter().filter(there).count() < wanted - wanted / 8
    }

    /// How long a record stands that nothing outdates but time.
    pub fn refresh(dead_retention: Duration) -> Duration {
        REFRESH.min(dead_retention / 4).max(Duration::from_secs(1))
    }

    /// How long ago it was written. Nothing, if it seems to come from the future: a clock was set back.
    pub fn age(&self, wall: u64) -> Duration {
        Duration::from_secs(wall.saturating_sub(self.written))
    }

    /// The incarnation that the next run starts with: above this one's, whatever the others hold of it. When the
    /// numbers come to their end, it starts from 1 again, as a run that nobody knows.
    pub fn next_incarnation(&self) -> u32 {
        self.incarnation.checked_add(1).filter(|next| *next <= MAX_INCARNATION_STEP).unwrap_or(1)
    }

    /// The record as a text.
    pub fn encode(&self) -> Bytes {
        let mut text = format!("{}{VERSION}\n", text::MAGIC);
        let state = if self.left { "left" } else { "running" };
        let (label, name) = (text::escaped(&self.label), self.id.name());
        let (incarnation, run, written) = (self.incarnation, self.id.run(), self.written);
        // Nothing that is written to a string fails.
        let _ = write!(
            text,
            "label {label}\nname {name}\nstate {state}\nincarnation {incarnation}\nrun {run:016x}\nwritten {written}\n"
        );
        for Peer { addr, name } in self.peers.iter().take(MAX_PEERS) {
            let _ = writeln!(text, "peer {addr} {name}");
        }
        let _ = writeln!(text, "crc32 {:08x}", crc32fast::hash(text.as_bytes()));
        text.into()
    }

    /// Reads a record. It never takes more memory than a few times that of the text, and that is bounded.
    ///
    /// # Errors
    /// [`RejoinError::Torn`], [`RejoinError::Other`], [`RejoinError::Version`].
    pub fn decode(bytes: &[u8]) -> Result<Self, RejoinError> {
        text::read(bytes)
    }

    /// Whether it is the record of this node.
    ///
    /// # Errors
    /// [`RejoinError::Name`], [`RejoinError::Label`].
    pub fn check(&self, name: &str, labels: &Labels) -> Result<(), RejoinError> {
        if !labels.hears(self.label.as_bytes()) {
            return Err(RejoinError::Label { found: self.label.clone(), expected: labels.own.clone() });
        }
        if self.id.name() != name {
            return Err(RejoinError::Name { found: self.id.name().to_owned(), expected: name.to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
