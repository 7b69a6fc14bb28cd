//! The membership table and its rules: what a message about a member changes, and what follows.
//!
//! Each rule *decides* first, without touching the table, and the decision is *applied* after, in a few
//! steps that cannot fail. A panic in between leaves the table as it was.
//!
//! ```text
//!             alive, higher incarnation (refutes)
//!          ┌────────────────────────────────────┐
//!          ▼      suspect                       │  time is up, or dead
//!        Alive ───────────────────────────► Suspect ─────────────────► Dead ──┐
//!          │ │                                  │                      ▲ │    │ retention
//!          │ └──────────────── dead ────────────┼──────────────────────┘ │    ▼
//!          │                                    │              left  ┌───┘ forgotten
//!          │              left                  │                    ▼    (tombstone)
//!          └────────────────────────────────────┴────────────────► Left ──────▲
//!
//! left: a farewell, or an operator's word.  Alive again: a higher incarnation, or another run.
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rand::Rng;
use smallvec::SmallVec;

use crate::{
    accusation::{Accusation, Evidence},
    config::Config,
    limiter::Limiter,
    member::{Member, MemberState, NodeId, canonical},
    suspicion::Suspicion,
    tombstones::Tombstones,
    view::{Roster, View},
};

mod change;
mod claims;
mod doubts;
mod flaps;
mod rules;

pub use change::{Change, Decision, Effects, Ignored, NotForced};
use change::{Limited, Step, Verdict};
use claims::Claims;
use doubts::Doubts;
use flaps::Flaps;

/// A running suspicion and the evidence it began with.
#[derive(Clone, Debug)]
struct Case {
    suspicion: Suspicion,
    accusation: Accusation,
    /// Whether it began anew, because this node itself had been out of reach.
    renewed: bool,
}

impl Case {
    /// The accusation as it stands now.
    fn accusation(&self) -> Accusation {
        let confirmed_by = self.suspicion.confirmed_by().to_vec();
        Accusation { confirmed_by, ..self.accusation.clone() }
    }
}

/// How often one rival, or one node that speaks from an older state, is answered or reported.
const LIMIT: Duration = Duration::from_secs(1);

/// How often tombstones are looked through.
const SWEEP: Duration = Duration::from_secs(60);

/// The table of one node.
#[derive(Debug)]
pub struct Members {
    config: Arc<Config>,
    local: Arc<Member>,
    roster: Roster,
    cases: BTreeMap<Arc<str>, Case>,
    deadlines: BTreeSet<(Instant, Arc<str>)>,
    forgets: BTreeSet<(Instant, Arc<str>)>,
    tombstones: Tombstones,
    doubts: Doubts,
    flaps: Flaps,
    conflicts: Limiter<Arc<str>>,
    tellings: Limiter<Arc<str>>,
    claims: Claims,
    leaving: bool,
    rev: u64,
    version: u64,
    next_sweep: Instant,
}

impl Members {
    /// The table of a node that knows itself alone. `key` spreads names over the table.
    pub fn new(config: Arc<Config>, mut local: Member, key: u64) -> Self {
        local.addr = canonical(local.addr);
        let since = local.since;
        let local = Arc::new(local);
        let mut roster = Roster::new(key);
        roster.put(local.clone());
        Self {
            tombstones: Tombstones::new(config.max_tombstones, config.tombstone_retention),
            flaps: Flaps::new(&config),
            config,
            local,
            roster,
            cases: BTreeMap::new(),
            deadlines: BTreeSet::new(),
            forgets: BTreeSet::new(),
            doubts: Doubts::default(),
            conflicts: Limiter::new(LIMIT),
            tellings: Limiter::new(LIMIT),
            claims: Claims::default(),
            leaving: false,
            rev: 1,
            version: 1,
            next_sweep: since + SWEEP,
        }
    }

    /// This node itself.
    pub fn local(&self) -> &Arc<Member> {
        &self.local
    }

    /// Whether this node has left.
    pub fn is_leaving(&self) -> bool {
        self.leaving
    }

    /// The settings.
    pub fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The members.
    pub fn roster(&self) -> &Roster {
        &self.roster
    }

    /// The table as a value.
    pub fn view(&self) -> View {
        View::new(self.rev, self.local.clone(), self.roster.clone())
            .with_watched(self.flaps.watched().clone())
    }

    /// A number that grows with each change of a record, also with those that are no event.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// When [`Members::on_time`] has something to do.
    pub fn due(&self) -> Instant {
        let first = |set: &BTreeSet<(Instant, Arc<str>)>| set.first().map(|(at, _)| *at);
        [first(&self.deadlines), first(&self.forgets), self.doubts.due(), self.flaps.due()]
            .into_iter()
            .flatten()
            .fold(self.next_sweep, Instant::min)
    }

    /// The next thing that time alone decides, if any is due: a suspect whose time is up, one whose probation is over, or
    /// a member that has been gone for long enough. Call it until it gives nothing.
    ///
    /// When this node itself did not run for more than a probe interval, suspects could not reach it: they get
    /// that time back.
    pub fn on_time(&mut self, now: Instant, rng: &mut impl Rng) -> Option<Decision> {
        if let Some(late) = self.deadlines.first().and_then(|(at, _)| now.checked_duration_since(*at))
            && late > self.config.suspicion_base()
        {
            self.postpone(late, now);
        }
        while let Some((at, name)) = self.deadlines.first().filter(|(at, _)| *at <= now) {
            match self.expire(name, now, rng) {
                Ok(decision) => return Some(decision),
                // A deadline without a suspect is of no use.
                Err(_) => {
                    let key = (*at, name.clone());
                    self.deadlines.remove(&key);
                }
            }
        }
        while let Some((name, doubt)) = self.doubts.next(now) {
            if let Some(decision) = self.resolve(&name, doubt, now, rng) {
                return Some(decision);
            }
        }
        while let Some(alive) = self.flaps.next(now) {
            self.version += 1;
            let record = self.roster.get(alive.id.name());
            let waits = |record: &&Arc<Member>| {
                record.id == alive.id
                    && record.state == MemberState::Dead
                    && record.incarnation < alive.incarnation
            };
            if let Some(record) = record.filter(waits) {
                return Some(self.accept(record, alive, now));
            }
        }
        while let Some((at, name)) = self.forgets.first().filter(|(at, _)| *at <= now) {
            let key = (*at, name.clone());
            self.forgets.remove(&key);
            if let Some(old) = self.roster.get(&key.1).filter(|m| m.state.is_gone()) {
                return Some(Decision {
                    changes: SmallVec::from_iter([Change::Reaped(old.id.clone())]),
                    evict: Some(key.1),
                    ..Decision::default()
                });
            }
        }
        if self.next_sweep <= now {
            self.tombstones.expire(now);
            self.next_sweep = now + SWEEP;
        }
        None
    }

    fn expire(&self, name: &Arc<str>, now: Instant, rng: &mut impl Rng) -> Verdict {
        let record = self.roster.get(name).ok_or(Ignored::Unknown)?;
        let case = self.cases.get(name).ok_or(Ignored::Unknown)?;
        let accusation = case.accusation();
        let evidence = match accusation.evidence {
            _ if case.suspicion.is_refused() => Evidence::Refused,
            // By one or two of many: not what the verdict stands on.
            Evidence::Refused => Evidence::Hearsay,
            other => other,
        };
        let verdict = self.own_verdict(record, Accusation { evidence, ..accusation }, record.incarnation);
        self.dead(&verdict, now, rng)
    }

    fn postpone(&mut self, stood: Duration, now: Instant) {
        // One interval more, for the answers that lie unread.
        let grace = self.config.suspicion_base();
        self.deadlines.clear();
        for (name, case) in &mut self.cases {
            case.suspicion.postpone(stood, grace, now);
            self.deadlines.insert((case.suspicion.deadline(), name.clone()));
        }
    }

    /// This node was held for dead, and is not: for a while it was out of reach. What it suspects others of in that
    /// time may be its own fault, so each suspicion begins anew, once.
    fn renew(&mut self, now: Instant) {
        self.deadlines.clear();
        for (name, case) in &mut self.cases {
            if !std::mem::replace(&mut case.renewed, true) {
                case.suspicion.renew(now);
            }
            self.deadlines.insert((case.suspicion.deadline(), name.clone()));
        }
    }

    /// When a member that is gone is forgotten.
    fn forget_at(&self, member: &Member) -> Option<(Instant, Arc<str>)> {
        let kept_for = match member.state {
            MemberState::Dead => self.config.dead_retention,
            MemberState::Left => self.config.left_retention,
            _ => return None,
        };
        Some((member.since + kept_for, member.id.shared_name().clone()))
    }

    /// Makes a decision true.
    pub fn apply(&mut self, decision: Decision, now: Instant) -> Effects {
        let mut effects = Effects {
            broadcast: decision.broadcast,
            tell: decision.tell,
            refuted: decision.refuted,
            ..Effects::default()
        };
        if decision.returned {
            self.renew(now);
        }
        match decision.limited {
            Some(Limited::Conflict(name)) => self.conflicts.note(name, now),
            Some(Limited::Telling(name)) => self.tellings.note(name, now),
            None => {}
        }
        if let Some((claim, within)) = decision.claim {
            self.claims.note(*claim, within, now);
        }
        if let Some(name) = decision.evict
            && let Some(old) = self.roster.remove(&name)
        {
            self.end(&name);
            self.flaps.forget(&name);
            if let Some(key) = self.forget_at(&old) {
                self.forgets.remove(&key);
            }
            self.tombstones.bury(old.id.clone(), old.incarnation, now);
            self.version += 1;
        }
        if let Some((id, incarnation)) = decision.bury {
            self.tombstones.bury(id, incarnation, now);
        }
        if let Some((name, doubt)) = decision.doubt {
            self.doubts.begin(name, doubt, now + self.config.suspicion_base());
        }
        if let Some(step) = decision.flap {
            effects.watched = self.flaps.step(step, now);
            self.version += 1;
        }
        let about = decision.put.as_ref().map(|member| member.id.shared_name().clone());
        match decision.suspicion {
            Step::Keep => {}
            Step::Start(case) => {
                if let Some(name) = &about {
                    self.deadlines.insert((case.suspicion.deadline(), name.clone()));
                    self.cases.insert(name.clone(), *case);
                }
            }
            Step::Confirm(name, by) => effects.confirmed = self.confirm(&name, by, now),
            Step::End => {
                let died = decision.changes.iter().any(|c| matches!(c, Change::Dead { .. }));
                let case = about.and_then(|name| self.end(&name));
                effects.degraded = died && case.as_ref().is_some_and(|c| c.suspicion.is_degraded());
                let refuted = decision.changes.iter().find_map(|change| match change {
                    Change::Refuted(member) => Some(&member.id),
                    _ => None,
                });
                if let Some(id) = refuted.filter(|_| case.is_some_and(|c| c.suspicion.is_witnessed())) {
                    self.flaps.refuted(id, now);
                }
            }
        }
        if let Some(member) = decision.put {
            if let Some(key) = self.roster.get(member.name()).and_then(|old| self.forget_at(old)) {
                self.forgets.remove(&key);
            }
            // This node itself is never forgotten, not even after it has left.
            if member.name() == self.local.name() {
                self.local = member.clone();
            } else if let Some(key) = self.forget_at(&member) {
                effects.claim = self.claims.take(member.name(), now);
                self.forgets.insert(key);
            }
            self.flaps.settle(&member);
            self.roster.put(member);
            self.version += 1;
        }
        if let Some(Change::Dead { member, why }) = decision.changes.first()
            && why.evidence != Evidence::Replaced
        {
            self.flaps.died(&member.id, decision.unsteady, now);
        }
        self.leaving = decision.leaving.unwrap_or(self.leaving);
        for change in decision.changes {
            self.rev += 1;
            effects.changes.push((self.rev, change));
        }
        effects
    }

    fn confirm(
        &mut self,
        name: &Arc<str>,
        by: SmallVec<[(Arc<str>, Evidence); 1]>,
        now: Instant,
    ) -> Option<(NodeId, Accusation)> {
        let case = self.cases.get_mut(name)?;
        self.deadlines.remove(&(case.suspicion.deadline(), name.clone()));
        for (from, evidence) in by {
            case.suspicion.confirm(from, evidence, now);
        }
        self.deadlines.insert((case.suspicion.deadline(), name.clone()));
        Some((self.roster.get(name)?.id.clone(), case.accusation()))
    }

    fn end(&mut self, name: &Arc<str>) -> Option<Case> {
        let case = self.cases.remove(name)?;
        self.deadlines.remove(&(case.suspicion.deadline(), name.clone()));
        if self.cases.is_empty() {
            // An emptied map keeps a node of eleven places, and mostly nobody is suspected.
            (self.cases, self.deadlines) = (BTreeMap::new(), BTreeSet::new());
        }
        Some(case)
    }
}

#[cfg(test)]
mod tests;
