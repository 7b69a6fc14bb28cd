//! Links: what one node has to say to one other one, in order, acknowledged, over whatever connections there are
//! from one moment to the next.
//!
//! A link goes one way. The node that has something to say dials; what it says goes there, and what comes back are
//! acks and answers. The two ends are values:
//!
//! ```text
//!   Outgoing                                                  Incoming
//!   urgent  ▐▐▐▐ ─┐   main connection: message n, n+1, ..      urgent   next n
//!   ordered ▐▐▐▐ ─┼──────────────────────────────────────────► ordered  next n  ──► handlers
//!                 │   ◄── ack: below n, all taken but ..       answers ▐▐
//!   bulk    ▐▐   ─┴── bulk connection ───────────────────────► bulk     next n
//! ```
//!
//! Messages of a lane are numbered when they are first sent, and stay in [`Outgoing`] until they are settled: taken by a
//! handler's queue, or refused. When a connection breaks, the next one begins with a [`Hello`], in which the sender
//! says from which numbers on it still has what it sent, and a [`Welcome`], in which the receiver says what it has; the
//! rest goes again. So nothing is lost or handled twice as long as both ends keep what they know. When one end has
//! forgotten (its [`Incoming`] was dropped after a long outage), nobody can say what became of what was sent and not
//! settled: it is in doubt, and the sender tells its user so.

mod incoming;
mod outgoing;
mod redial;
#[cfg(test)]
mod tests;

pub use incoming::{Ack, Incoming, Overtaken, Received};
pub use outgoing::{Full, Nonsense, Outgoing, Settled};
pub use redial::Redial;

use crate::{
    config::Config,
    member::NodeId,
    wire::{message::Receipt, state::Refusal},
};

/// How messages go to a peer. Those of one lane arrive in the order in which they were sent; lanes overtake each
/// other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Before all others: for a few small ones that must not wait.
    Urgent,
    /// One after the other: for most. What is larger than an ordered message may be goes by `Bulk`.
    Ordered,
    /// On a connection of its own, behind which nothing small waits.
    Bulk,
}

impl Lane {
    /// All of them, the most urgent one first.
    pub const ALL: [Self; 3] = [Self::Urgent, Self::Ordered, Self::Bulk];

    /// The connection that it goes over.
    pub fn carrier(self) -> Carrier {
        match self {
            Self::Urgent | Self::Ordered => Carrier::Main,
            Self::Bulk => Carrier::Bulk,
        }
    }

    /// The byte that stands for it.
    pub fn byte(self) -> u8 {
        self as u8
    }

    /// The lane that a byte stands for.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.get(usize::from(byte)).copied()
    }
}

/// A connection of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Carrier {
    /// For urgent and ordered messages, and all answers.
    Main,
    /// For large messages.
    Bulk,
}

impl Carrier {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Main, Self::Bulk];

    /// The lanes that go over it, the most urgent one first.
    pub fn lanes(self) -> &'static [Lane] {
        match self {
            Self::Main => &[Lane::Urgent, Lane::Ordered],
            Self::Bulk => &[Lane::Bulk],
        }
    }
}

/// Where the sender stands in a lane: it still has what is from `first` on, and has sent what is below `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sent {
    /// The lowest number that is not settled.
    pub first: u64,
    /// The lowest number that was never sent.
    pub next: u64,
}

/// The first word on a connection of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who dials.
    pub from: NodeId,
    /// Who is meant.
    pub to: NodeId,
    /// Which connection of the link it is.
    pub carrier: Carrier,
    /// The number of the link: a sender that has given up a link to this peer may begin another one.
    pub link: u64,
    /// Its number, from 1 on: a later one takes the place of an earlier one.
    pub connection: u64,
    /// The number of the last one of this carrier that was welcomed; 0 before there was one. Whoever does not
    /// remember that one has forgotten what came over it.
    pub welcomed: u64,
    /// The lanes of the carrier, in their order.
    pub lanes: Vec<Sent>,
    /// The lowest number of an answer that has not arrived.
    pub answers: u64,
    /// Most bytes of an answer that the sender takes.
    pub longest_answer: u32,
}

impl Hello {
    /// Which connection it begins.
    pub fn place(&self) -> Place {
        Place { link: self.link, carrier: self.carrier, connection: self.connection }
    }
}

/// Which connection of which link: each link counts its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The number of the link.
    pub link: u64,
    /// Which of its connections.
    pub carrier: Carrier,
    /// The number of that.
    pub connection: u64,
}

/// Where the receiver stands in a lane.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// Everything below has arrived; `None` if it is not known what has.
    pub next: Option<u64>,
    /// Of what has arrived, what was not taken, and why.
    pub refused: Vec<(u64, Receipt)>,
}

/// The answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// The lanes of the carrier, in their order.
    pub lanes: Vec<Heard>,
    /// What the receiver takes.
    pub limits: Limits,
}

/// How long a message may be that a node takes over a link, in bytes of its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// One on the main connection.
    pub ordered: u32,
    /// One on the bulk connection.
    pub message: u32,
}

impl Limits {
    /// Those of a node with these settings.
    pub fn of(config: &Config) -> Self {
        let bytes = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        Self { ordered: bytes(config.max_ordered_size), message: bytes(config.max_message_size) }
    }

    /// The longest message that may go over a carrier.
    pub fn over(&self, carrier: Carrier) -> usize {
        match carrier {
            Carrier::Main => self.ordered as usize,
            Carrier::Bulk => self.message as usize,
        }
    }
}

/// What a [`Hello`] is answered with.
pub type Answer = Result<Welcome, Refusal>;
