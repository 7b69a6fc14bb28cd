//! What a message about a member leads to: nothing, and why; or a change, and what follows from it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use smallvec::SmallVec;

use super::{Case, doubts::Doubt, flaps};
use crate::{
    accusation::{Accusation, Evidence},
    member::{Member, NodeId},
    wire::message::{Alive, Message},
};

/// Why a message changed nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Ignored {
    /// It was known, or newer is known.
    Stale,
    /// It is about nobody in the table.
    Unknown,
    /// It is about a run that has been replaced.
    OtherRun,
    /// It is about a member that was forgotten.
    Tombstone,
    /// Its incarnation is too far above the known one to be anybody's.
    IncarnationStep,
    /// Its address is nobody's.
    Address,
    /// Its address is outside the networks that are allowed.
    NotAllowed,
    /// Its versions are nobody's.
    Versions,
    /// It does not speak what this node understands, or the other way round.
    Incompatible,
    /// The table is full of members that are there.
    TableFull,
    /// This node is leaving, and says no more about itself.
    Leaving,
    /// Another one of the same name is there, at another address.
    NameTaken,
    /// Too many full states wait to be taken in.
    Merging,
    /// The application is being asked about the newcomer.
    Asked,
    /// The application has said no to the newcomer.
    Vetoed,
    /// The application is being asked about too many newcomers already.
    GateCrowded,
    /// It accuses, and comes from a member that is held for gone itself.
    Accuser,
}

impl Ignored {
    /// Each of them.
    pub const ALL: [Self; 17] = [
        Self::Stale,
        Self::Unknown,
        Self::OtherRun,
        Self::Tombstone,
        Self::IncarnationStep,
        Self::Address,
        Self::NotAllowed,
        Self::Versions,
        Self::Incompatible,
        Self::TableFull,
        Self::Leaving,
        Self::NameTaken,
        Self::Merging,
        Self::Asked,
        Self::Vetoed,
        Self::GateCrowded,
        Self::Accuser,
    ];

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stale => "stale",
            Self::Unknown => "unknown_member",
            Self::OtherRun => "other_run",
            Self::Tombstone => "tombstone",
            Self::IncarnationStep => "incarnation_step",
            Self::Address => "address",
            Self::NotAllowed => "not_allowed_member",
            Self::Versions => "versions",
            Self::Incompatible => "incompatible",
            Self::TableFull => "table_full",
            Self::Leaving => "leaving",
            Self::NameTaken => "name_taken",
            Self::Merging => "merging",
            Self::Asked => "asked",
            Self::Vetoed => "vetoed",
            Self::GateCrowded => "gate_crowded",
            Self::Accuser => "accuser",
        }
    }
}

/// Why a member was not declared to have left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotForced {
    /// There is nobody of that name.
    Unknown,
    /// It is alive, or still has time to refute; or it is this node itself.
    StillAlive,
    /// This node has left, and speaks for nobody.
    Leaving,
}

/// What has become of a member.
#[derive(Clone, Debug)]
pub enum Change {
    /// It is new, or back.
    Joined(Arc<Member>),
    /// It says something else about itself.
    Updated {
        /// The record now.
        member: Arc<Member>,
        /// The record before.
        before: Arc<Member>,
    },
    /// It was accused.
    Suspected {
        /// The record now.
        member: Arc<Member>,
        /// By whom, and on what evidence.
        why: Accusation,
    },
    /// It has answered an accusation.
    Refuted(Arc<Member>),
    /// It left, or was declared to have.
    Left {
        /// The record now.
        member: Arc<Member>,
        /// By whose word.
        why: Accusation,
    },
    /// It is dead.
    Dead {
        /// The record now.
        member: Arc<Member>,
        /// By whose word.
        why: Accusation,
    },
    /// It was forgotten.
    Reaped(NodeId),
    /// Another one claims its name.
    Conflict {
        /// Who keeps it.
        kept: Arc<Member>,
        /// Where the other one is.
        other: SocketAddr,
    },
}

/// What follows from a message, once it is applied.
#[derive(Clone, Debug, Default)]
pub struct Effects {
    /// Events, each with its number.
    pub changes: SmallVec<[(u64, Change); 2]>,
    /// News to pass on, which replaces older news about the same member.
    pub broadcast: Option<(Arc<str>, Message)>,
    /// What a node that speaks from an older state is to be told.
    pub tell: Option<(SocketAddr, u64, Message)>,
    /// An accusation against this node itself was refuted: its health is doubtful.
    pub refuted: bool,
    /// A further node has confirmed an accusation.
    pub confirmed: Option<(NodeId, Accusation)>,
    /// A suspicion ran out with fewer confirmations than hoped for.
    pub degraded: bool,
    /// A member is on probation from now on, and is to be probed.
    pub watched: Option<Arc<str>>,
    /// A member is gone now, and another run has claimed its name meanwhile: news, to be judged next.
    pub claim: Option<Alive>,
}

/// What a message will change. It is a value: nothing has happened yet.
#[derive(Debug, Default)]
pub struct Decision {
    pub(super) put: Option<Arc<Member>>,
    pub(super) evict: Option<Arc<str>>,
    pub(super) suspicion: Step,
    pub(super) bury: Option<(NodeId, u32)>,
    /// Whether this node leaves, or comes back.
    pub(super) leaving: Option<bool>,
    pub(super) limited: Option<Limited>,
    /// Another run's claim to the name of a member that is there, and how long it is to wait.
    pub(super) claim: Option<(Box<Alive>, Duration)>,
    pub(super) changes: SmallVec<[Change; 2]>,
    pub(super) broadcast: Option<(Arc<str>, Message)>,
    pub(super) tell: Option<(SocketAddr, u64, Message)>,
    pub(super) refuted: bool,
    /// It was death that was refuted.
    pub(super) returned: bool,
    /// Another node holds a member for dead that is alive here.
    pub(super) doubt: Option<(Arc<str>, Doubt)>,
    /// Something has happened to a member on probation, or begins one.
    pub(super) flap: Option<flaps::Step>,
    /// It has died of too many accusations, although it refuted each.
    pub(super) unsteady: bool,
}

impl Decision {
    /// Whom it lets in: a member that is new, comes back, or moves to another address.
    pub fn introduces(&self) -> Option<&Arc<Member>> {
        self.changes.iter().find_map(|change| match change {
            Change::Joined(member) => Some(member),
            Change::Updated { member, before } if member.addr != before.addr => Some(member),
            _ => None,
        })
    }

    /// Without passing on that somebody has joined.
    #[must_use]
    pub fn without_joins(mut self) -> Self {
        if matches!(self.changes[..], [Change::Joined(_)]) {
            self.broadcast = None;
        }
        self
    }
}

/// What may be said about a name only once in a while.
#[derive(Debug)]
pub(super) enum Limited {
    /// That another one claims it.
    Conflict(Arc<str>),
    /// What is held of it, to the member itself.
    Telling(Arc<str>),
}

#[derive(Debug, Default)]
pub(super) enum Step {
    #[default]
    Keep,
    Start(Box<Case>),
    Confirm(Arc<str>, SmallVec<[(Arc<str>, Evidence); 1]>),
    End,
}

pub(super) type Verdict = Result<Decision, Ignored>;
