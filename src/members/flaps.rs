//! Members that come and go: those who die again soon after they came back, and those who are accused again and again
//! although they refute it each time. One-way loss, a path of which four packets in five are lost, or a process that
//! stops every few seconds look like that, and each return sets the whole cluster in motion.
//!
//! ```text
//!             dies again within ten probations, or has refuted    speaks again
//!  steady ─────────────────────────────────────────────► dead ─────────────────► dead, on probation ◄──┐
//!    ▲            too many well-founded accusations                                 │         │         │
//!    └──────────────────────────────────────────────────────────────────────────────┘         └─────────┘
//!                       a whole probation without a well-founded accusation                  accused anew
//! ```
//!
//! On probation a member is probed like those that are there, and what it says of itself is passed on, but it stays dead
//! until its time is over. If many flap at once it is the network that does, and nobody is on probation.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use smallvec::SmallVec;

use crate::{
    config::Config,
    member::{Member, MemberState, NodeId},
    wire::message::Alive,
};

/// Members of which it is known that they flap, at most. The one that was steady for the longest time makes room.
const MAX: usize = 256;

/// A death is a relapse if the last one is no more probations ago.
const MEMORY: u32 = 10;

/// Probe intervals in which refutations are counted.
const WINDOW: u32 = 60;

/// Accusations against a member on probation are passed on once in this part of its time.
const QUIET: u32 = 6;

/// So many times what the others refute on average is nobody's own fault.
const COMMON: usize = 4;

/// Of so many members one may flap before it is the network that does; in any cluster one may.
const CROWD: usize = 10;

#[derive(Clone, Debug)]
struct Flap {
    run: u64,
    died: Option<Instant>,
    relapsed: bool,
    refuted: SmallVec<[Instant; 4]>,
    probation: Option<Probation>,
}

/// A member that speaks, and is dead all the same.
#[derive(Clone, Debug)]
struct Probation {
    alive: Box<Alive>,
    /// When it began, or was accused last.
    since: Instant,
}

/// What becomes of somebody on probation.
#[derive(Debug)]
pub(super) enum Step {
    /// It speaks, for the first time or anew.
    Speaks(Box<Alive>),
    /// It is accused: its time begins anew.
    Accused(Arc<str>),
}

/// Those members.
#[derive(Debug, Default)]
pub(super) struct Flaps {
    probation: Duration,
    window: Duration,
    limit: usize,
    known: BTreeMap<Arc<str>, Flap>,
    watched: Arc<BTreeSet<Arc<str>>>,
}

impl Flaps {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            probation: config.flap_probation,
            window: config.suspicion_base() * WINDOW,
            limit: config.flap_limit as usize,
            ..Self::default()
        }
    }

    /// The names of those who are on probation.
    pub(super) fn watched(&self) -> &Arc<BTreeSet<Arc<str>>> {
        &self.watched
    }

    fn of(&self, id: &NodeId) -> Option<&Flap> {
        self.known.get(id.name()).filter(|flap| flap.run == id.run())
    }

    fn entry(&mut self, id: &NodeId, now: Instant) -> &mut Flap {
        if self.known.len() >= MAX && !self.known.contains_key(id.name()) {
            let last = |flap: &Flap| flap.died.max(flap.refuted.last().copied());
            let free = self.known.iter().filter(|(_, flap)| flap.probation.is_none());
            let oldest = free.min_by_key(|(_, flap)| last(flap)).map(|(name, _)| name.clone());
            oldest.map(|name| self.known.remove(&name));
        }
        let new =
            || Flap { run: id.run(), died: None, relapsed: false, refuted: SmallVec::new(), probation: None };
        let flap = self.known.entry(id.shared_name().clone()).or_insert_with(new);
        if flap.run != id.run() {
            *flap = new();
        }
        if flap.died.is_some_and(|at| now.saturating_duration_since(at) > self.probation * MEMORY) {
            (flap.died, flap.relapsed) = (None, false);
        }
        flap
    }

    /// A member is dead, because of too many accusations if `unsteady`.
    pub(super) fn died(&mut self, id: &NodeId, unsteady: bool, now: Instant) {
        if self.probation.is_zero() {
            return;
        }
        let flap = self.entry(id, now);
        flap.relapsed |= unsteady || flap.died.is_some();
        flap.died = Some(now);
        flap.refuted.clear();
    }

    /// A member has refuted what a witness had said.
    pub(super) fn refuted(&mut self, id: &NodeId, now: Instant) {
        let (window, limit) = (self.window, self.limit);
        if limit == 0 {
            return;
        }
        let flap = self.entry(id, now);
        flap.refuted.retain(|at| now.saturating_duration_since(*at) < window);
        // As many as decide anything in a network that is lossy, too.
        if flap.refuted.len() == 4 * limit {
            flap.refuted.remove(0);
        }
        flap.refuted.push(now);
    }

    /// Whether a member has refuted so many accusations lately, and so many more than the `present` do on average, that
    /// it does not get time to refute the next one.
    pub(super) fn is_unsteady(&self, id: &NodeId, present: usize, now: Instant) -> bool {
        let lately = |flap: &Flap| {
            flap.refuted.iter().filter(|at| now.saturating_duration_since(**at) < self.window).count()
        };
        let Some(own) = self.of(id).map(lately).filter(|own| self.limit > 0 && *own >= self.limit) else {
            return false;
        };
        let others = self.known.values().map(lately).sum::<usize>() - own;
        own * present.max(1) > COMMON * others
    }

    /// Whether a dead member that speaks has to wait, in a cluster of `present`.
    pub(super) fn must_wait(&self, id: &NodeId, present: usize, now: Instant) -> bool {
        let fresh = |flap: &Flap| {
            let died = flap.died.filter(|_| flap.relapsed);
            died.is_some_and(|at| now.saturating_duration_since(at) <= self.probation * MEMORY)
        };
        let Some(flap) = self.of(id) else { return false };
        flap.probation.is_some()
            || (fresh(flap)
                && self.known.values().filter(|flap| fresh(flap)).count() <= (present / CROWD).max(1))
    }

    /// The last word of a member that is on probation.
    pub(super) fn word(&self, id: &NodeId) -> Option<&Alive> {
        Some(&self.of(id)?.probation.as_ref()?.alive)
    }

    /// Whether others are to hear of an accusation against a member on probation.
    pub(super) fn is_news(&self, id: &NodeId, now: Instant) -> bool {
        let since = self.of(id).and_then(|flap| Some(flap.probation.as_ref()?.since));
        since.is_some_and(|since| now.saturating_duration_since(since) >= self.probation / QUIET)
    }

    /// Takes a step. Says whom to watch from now on.
    pub(super) fn step(&mut self, step: Step, now: Instant) -> Option<Arc<str>> {
        match step {
            Step::Speaks(alive) => {
                let (id, name) = (alive.id.clone(), alive.id.shared_name().clone());
                let flap = self.entry(&id, now);
                // Whoever speaks again has been accused, or has died, as far as others know.
                let since = flap.probation.as_ref().map_or(now, |probation| probation.since);
                flap.probation = Some(Probation { alive, since });
                Arc::make_mut(&mut self.watched).insert(name.clone()).then_some(name)
            }
            Step::Accused(name) => {
                let flap = self.known.get_mut(&name);
                if let Some(probation) = flap.and_then(|flap| flap.probation.as_mut()) {
                    probation.since = now;
                }
                None
            }
        }
    }

    /// What stands in the table now ends a probation, unless it is the death that it began with.
    pub(super) fn settle(&mut self, member: &Member) {
        if self.watched.contains(member.name()) {
            let waits = self.word(&member.id).is_some_and(|alive| {
                member.state == MemberState::Dead && alive.incarnation > member.incarnation
            });
            if !waits {
                self.forget(member.name());
            }
        }
    }

    /// Ends a probation.
    pub(super) fn forget(&mut self, name: &str) -> Option<Alive> {
        Arc::make_mut(&mut self.watched).remove(name);
        Some(*self.known.get_mut(name)?.probation.take()?.alive)
    }

    /// When the next probation is over.
    pub(super) fn due(&self) -> Option<Instant> {
        let ends = self.watched.iter().filter_map(|name| self.known.get(name)?.probation.as_ref());
        ends.map(|probation| probation.since + self.probation).min()
    }

    /// The last word of one whose probation is over.
    pub(super) fn next(&mut self, now: Instant) -> Option<Alive> {
        let over = |name: &&Arc<str>| {
            let probation = self.known.get(*name).and_then(|flap| flap.probation.as_ref());
            probation.is_none_or(|probation| probation.since + self.probation <= now)
        };
        let name = self.watched.iter().find(over)?.clone();
        self.forget(&name)
    }
}
