//! What becomes of members, for the log, the metrics and the history of accusations.

use std::{sync::Arc, time::Instant};

use memberlist_protocol::{
    accusation::Outcome,
    member::{MemberState, NodeId},
    members::Change,
    wire::message::Message,
};

use crate::{
    logs::{self, Line, say},
    messages::ToDetector,
    metrics::{Counters, up},
};

use super::{Kept, NodeState};

/// Where from the node knows what it judges, for its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// A message about a member, that it runs.
    Alive,
    /// Any other message about a member.
    Gossip,
    /// The own failure detector, and when the probe began that failed.
    Probe(Instant),
    /// Another node's full state.
    State,
    /// The user of this node.
    User,
    /// Time alone.
    Time,
}

impl Source {
    fn name(self) -> &'static str {
        match self {
            Self::Alive | Self::Gossip => "gossip",
            Self::Probe(_) => "own probe",
            Self::State => "state of a peer",
            Self::User => "user",
            Self::Time => "time",
        }
    }
}

/// A suspicion that runs, for the metrics.
#[derive(Clone, Copy, Debug)]
pub(super) struct Suspected {
    at: Instant,
    /// When the own probe began that failed.
    probed: Option<Instant>,
}

/// Suspicions that are timed at once; those beyond are not.
pub(super) const TIMED: usize = 4096;

impl Kept {
    /// Counts what a change is to the metrics, and how long it took.
    pub(super) fn time(&mut self, change: &Change, source: Source, counters: &Counters, now: Instant) {
        let (member, outcome) = match change {
            Change::Suspected { member, .. } => {
                up(&counters.msg_suspect);
                let probed = if let Source::Probe(since) = source { Some(since) } else { None };
                if self.suspected.len() < TIMED {
                    self.suspected.insert(member.id.shared_name().clone(), Suspected { at: now, probed });
                }
                return;
            }
            Change::Refuted(member) => {
                up(&counters.refuted_by_others);
                (member, &counters.suspicion_refuted)
            }
            Change::Left { member, .. } => {
                up(&counters.msg_dead);
                (member, &counters.suspicion_left)
            }
            Change::Dead { member, .. } => {
                up(&counters.msg_dead);
                (member, &counters.suspicion_dead)
            }
            _ => return,
        };
        let Some(Suspected { at, probed }) = self.suspected.remove(member.name()) else { return };
        outcome.observe(now.saturating_duration_since(at));
        if let (Some(probed), MemberState::Dead) = (probed, member.state) {
            counters.detection.observe(now.saturating_duration_since(probed));
        }
    }
}

impl NodeState {
    pub(super) fn note(&self, change: &Change, members: usize, now: Instant) {
        let (ring, source) = (&self.ring, self.source.get().name());
        macro_rules! tell {
            ($id:expr, $($what:tt)+) => {
                say!(ring, Line::Change, info, member = %logs::node($id), source, $($what)+)
            };
        }
        match change {
            Change::Joined(member) => {
                tell!(&member.id, addr = %member.addr, incarnation = member.incarnation, "joined");
                let name = member.id.shared_name().clone();
                ring.news(ring.detector_inbox(), ToDetector::Newcomer { name, members });
            }
            Change::Updated { member, before } => {
                tell!(&member.id, changed = %logs::difference(before, member), "updated");
            }
            Change::Suspected { member, why } => {
                tell!(&member.id, by = %logs::name(&why.by), evidence = ?why.evidence, "suspected");
                ring.history().note(&member.id, why, Outcome::Open);
                let view = ring.view.borrow();
                ring.counters.accusers.count(
                    why,
                    view.local().name() == &*why.by,
                    view.get(&why.by).is_some(),
                );
            }
            Change::Refuted(member) => {
                tell!(&member.id, incarnation = member.incarnation, "refuted the suspicion");
                ring.history().refuted(&member.id, now);
            }
            Change::Left { member, why } => {
                tell!(&member.id, by = %logs::name(&why.by), evidence = ?why.evidence, "left");
                ring.history().note(&member.id, why, Outcome::Left(now));
            }
            Change::Dead { member, why } => {
                let (by, confirmed_by) = (logs::name(&why.by), logs::names(&why.confirmed_by));
                tell!(&member.id, %by, %confirmed_by, evidence = ?why.evidence, "dead");
                ring.history().note(&member.id, why, Outcome::Dead(now));
            }
            Change::Reaped(id) => tell!(id, "forgotten"),
            Change::Conflict { kept, other } => {
                let member = logs::node(&kept.id);
                say!(
                    ring, Line::Conflict, warn, %member, addr = %kept.addr, %other,
                    "another node claims the name of a member: give it another name"
                );
            }
        }
    }
}

/// A change in one line, for traces.
pub(super) fn kind(change: &Change) -> String {
    match change {
        Change::Joined(m) => format!("joined {} {}", m.id, m.incarnation),
        Change::Updated { member: m, .. } => format!("updated {} {}", m.id, m.incarnation),
        Change::Suspected { member: m, why } => {
            format!("suspected {} {} by {} {:?}", m.id, m.incarnation, why.by, why.evidence)
        }
        Change::Refuted(m) => format!("refuted {} {}", m.id, m.incarnation),
        Change::Left { member: m, why } => {
            format!("left {} {} by {} {:?}", m.id, m.incarnation, why.by, why.evidence)
        }
        Change::Dead { member: m, why } => {
            let (by, confirmed_by) = (&why.by, &why.confirmed_by);
            format!("dead {} {} by {by} {confirmed_by:?} {:?}", m.id, m.incarnation, why.evidence)
        }
        Change::Reaped(id) => format!("reaped {id}"),
        Change::Conflict { kept, other } => format!("conflict {} {other}", kept.id),
    }
}

/// What news is about, and so what older news it replaces: a run. Of one name that was started anew the death of the
/// old run goes on beside the word of the new one, for those who would else hold the name for taken.
pub(super) fn subject(name: &Arc<str>, message: &Message) -> NodeId {
    match message {
        Message::Alive(m) => m.id.clone(),
        Message::Suspect(m) => m.id.clone(),
        Message::Dead(m) => m.id.clone(),
        _ => NodeId::new(name.clone(), NodeId::ANY_RUN),
    }
}
