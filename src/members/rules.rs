//! The decision tables: what each kind of news changes, in each state of the member that it is about.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use rand::Rng;
use smallvec::{SmallVec, smallvec};

use super::{
    Case, Members,
    change::{Change, Decision, Ignored, Limited, NotForced, Step, Verdict},
    flaps,
};
use crate::{
    accusation::{Accusation, Evidence},
    member::{MAX_INCARNATION_STEP, Member, MemberState, NodeId, Tags, canonical, check_addr},
    suspicion::{Bounds, Confirmation, Suspicion},
    wire::message::{Alive, Dead, Message, Remembered, Suspect},
};

impl Members {
    /// News about `m.id`, from itself.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn alive(&self, m: &Alive, now: Instant, rng: &mut impl Rng) -> Verdict {
        if !m.versions.is_sound() {
            return Err(Ignored::Versions);
        }
        check_addr(canonical(m.addr), self.local.addr).map_err(|_| Ignored::Address)?;
        let mut m = std::borrow::Cow::Borrowed(m);
        if m.addr != canonical(m.addr) {
            m.to_mut().addr = canonical(m.addr);
        }
        if m.addr != self.local.addr && !self.config.allows(m.addr.ip()) {
            return Err(Ignored::NotAllowed);
        }
        if m.id.name() == self.local.name() {
            return self.alive_self(&m, now, rng);
        }
        if !m.versions.can_talk_to(self.local.versions) {
            return Err(Ignored::Incompatible);
        }
        // Nobody starts at 0: such a record would stay in the table without ever being alive.
        if m.incarnation == 0 {
            return Err(Ignored::Stale);
        }
        if self.tombstones.covers(&m.id, m.incarnation) && self.roster.get(m.id.name()).is_none() {
            return Err(Ignored::Tombstone);
        }
        let Some(record) = self.roster.get(m.id.name()) else {
            return self.newcomer(m.into_owned(), now);
        };
        let same_run = record.id.run() == m.id.run();
        if record.addr != m.addr {
            let free = match record.state {
                MemberState::Alive | MemberState::Suspect => false,
                MemberState::Left => true,
                MemberState::Dead => {
                    let reclaim = self.config.dead_node_reclaim_time;
                    !same_run || (!reclaim.is_zero() && now.saturating_duration_since(record.since) > reclaim)
                }
            };
            if !free {
                return self.claim(record, m.into_owned(), now);
            }
        }
        if !same_run && self.tombstones.covers(&m.id, m.incarnation) {
            return self.buried(record, &m, now);
        }
        let higher = m.incarnation > record.incarnation;
        if higher && m.incarnation - record.incarnation > self.config.max_incarnation_step {
            return Err(Ignored::IncarnationStep);
        }
        if !higher && (same_run || record.state.is_present()) {
            return self.outdated(record, &m, now);
        }
        if record.state == MemberState::Dead && same_run && self.may_have_to_wait(&m.id, now) {
            return self.probation(m.into_owned());
        }
        Ok(self.accept(record, m.into_owned(), now))
    }

    /// Whether a dead member that speaks again is on probation, or ought to be. Where too few could accuse it nobody is.
    fn may_have_to_wait(&self, id: &NodeId, now: Instant) -> bool {
        let present = self.roster.present();
        Bounds::new(&self.config, present).needed > 0 && self.flaps.must_wait(id, present, now)
    }

    /// A member speaks that has to wait: its word is passed on, and waits here.
    fn probation(&self, m: Alive) -> Verdict {
        if self.flaps.word(&m.id).is_some_and(|word| word.incarnation >= m.incarnation) {
            return Err(Ignored::Stale);
        }
        let broadcast = Some((m.id.shared_name().clone(), Message::Alive(m.clone())));
        let flap = Some(flaps::Step::Speaks(Box::new(m)));
        Ok(Decision { flap, broadcast, ..Decision::default() })
    }

    /// A member on probation is accused: with good reason its time begins anew. Nothing, if it is not on probation, or has
    /// refuted that.
    fn accuse_anew(&self, m: &Suspect, now: Instant) -> Option<Verdict> {
        let word = self.flaps.word(&m.id).filter(|word| m.incarnation >= word.incarnation)?;
        if !m.evidence.is_full() {
            return Some(Err(Ignored::Stale));
        }
        let name = word.id.shared_name();
        let news = self.flaps.is_news(&m.id, now);
        Some(Ok(Decision {
            broadcast: news.then(|| (name.clone(), Message::Suspect(m.clone()))),
            flap: Some(flaps::Step::Accused(name.clone())),
            ..Decision::default()
        }))
    }

    pub(super) fn newcomer(&self, m: Alive, now: Instant) -> Verdict {
        // So far up nobody could refute what is said of it.
        if m.incarnation > MAX_INCARNATION_STEP {
            return Err(Ignored::IncarnationStep);
        }
        let evict = if self.roster.len() < self.config.max_members {
            None
        } else {
            let gone = self.roster.iter().filter(|m| m.state.is_gone() && m.id != self.local.id);
            let longest = gone.min_by(|a, b| (a.since, a.name()).cmp(&(b.since, b.name())));
            Some(longest.ok_or(Ignored::TableFull)?.id.shared_name().clone())
        };
        let broadcast = Some((m.id.shared_name().clone(), Message::Alive(m.clone())));
        let member = Arc::new(m.into_member(now));
        let mut changes = SmallVec::new();
        if let Some(old) = evict.as_ref().and_then(|name| self.roster.get(name)) {
            changes.push(Change::Reaped(old.id.clone()));
        }
        changes.push(Change::Joined(member.clone()));
        Ok(Decision { put: Some(member), evict, broadcast, changes, ..Decision::default() })
    }

    pub(super) fn accept(&self, record: &Arc<Member>, m: Alive, now: Instant) -> Decision {
        let mut decision = Decision {
            broadcast: Some((m.id.shared_name().clone(), Message::Alive(m.clone()))),
            suspicion: Step::End,
            ..Decision::default()
        };
        let same_content = m.matches(record);
        let mut member = m.into_member(now);
        if record.state == MemberState::Alive && record.id == member.id {
            member.since = record.since;
        }
        let member = Arc::new(member);
        if record.id != member.id {
            decision.bury = Some((record.id.clone(), record.incarnation));
        }
        match record.state {
            MemberState::Dead | MemberState::Left => decision.changes.push(Change::Joined(member.clone())),
            _ if record.id != member.id => {
                let why = Accusation {
                    by: member.id.shared_name().clone(),
                    confirmed_by: Vec::new(),
                    evidence: Evidence::Replaced,
                    at: now,
                };
                let gone = Arc::new(record.turned(MemberState::Dead, record.incarnation, now));
                decision.changes.push(Change::Dead { member: gone, why });
                decision.changes.push(Change::Joined(member.clone()));
            }
            state => {
                if state == MemberState::Suspect {
                    decision.changes.push(Change::Refuted(member.clone()));
                }
                if !same_content {
                    decision.changes.push(Change::Updated { member: member.clone(), before: record.clone() });
                }
            }
        }
        decision.put = Some(member);
        decision
    }

    /// The sender of `m` speaks from an older state. If that is the member itself, at the address that is
    /// known, it is told what is held of it, so that it can refute.
    pub(super) fn outdated(&self, record: &Arc<Member>, m: &Alive, now: Instant) -> Verdict {
        let unheard = record.id != m.id || record.state != MemberState::Alive;
        let name = record.id.shared_name().clone();
        if !unheard || record.addr != m.addr || !self.tellings.allows(&name, now) {
            return Err(Ignored::Stale);
        }
        let message = match record.state {
            MemberState::Alive => Message::Alive(Alive::of(record)),
            // What is said of the run before it does not concern it. That its name is taken does: it outbids that.
            MemberState::Suspect if record.id != m.id => Message::Alive(Alive::of(record)),
            MemberState::Suspect => Message::Suspect(self.own_suspicion(record, Evidence::Hearsay)),
            MemberState::Dead | MemberState::Left => {
                Message::Dead(self.hearsay_of_death(&record.id, record.incarnation))
            }
        };
        let limited = Some(Limited::Telling(name));
        Ok(Decision { tell: Some((record.addr, m.id.run(), message)), limited, ..Decision::default() })
    }

    /// News of a run that was taken for replaced. If nobody else of its name is there now, it may run all the same: it is
    /// told that it is held for dead, and comes back with a higher incarnation.
    fn buried(&self, record: &Arc<Member>, m: &Alive, now: Instant) -> Verdict {
        let name = record.id.shared_name();
        if record.state.is_present() || !self.tellings.allows(name, now) {
            return Err(Ignored::Tombstone);
        }
        let word = self.hearsay_of_death(&m.id, m.incarnation);
        let limited = Some(Limited::Telling(name.clone()));
        Ok(Decision { tell: Some((m.addr, m.id.run(), Message::Dead(word))), limited, ..Decision::default() })
    }

    /// Somebody claims the name of a member that is there. If that is another run, its word waits: the member may be
    /// dead without being known to be.
    fn claim(&self, kept: &Arc<Member>, m: Alive, now: Instant) -> Verdict {
        let mut decision = self.conflict(kept, m.addr, now)?;
        if m.id != kept.id {
            let within = Bounds::new(&self.config, self.roster.present()).max;
            decision.claim = Some((Box::new(m), within));
        }
        Ok(decision)
    }

    pub(super) fn conflict(&self, kept: &Arc<Member>, other: SocketAddr, now: Instant) -> Verdict {
        let name = kept.id.shared_name();
        if !self.conflicts.allows(name, now) {
            return Err(Ignored::NameTaken);
        }
        let changes = SmallVec::from_iter([Change::Conflict { kept: kept.clone(), other }]);
        Ok(Decision { changes, limited: Some(Limited::Conflict(name.clone())), ..Decision::default() })
    }

    pub(super) fn alive_self(&self, m: &Alive, now: Instant, rng: &mut impl Rng) -> Verdict {
        let local = &self.local;
        if self.leaving {
            return Err(Ignored::Leaving);
        }
        if m.id.run() != local.id.run() && m.addr != local.addr {
            return self.conflict(local, m.addr, now);
        }
        // An echo of what this node says itself, or of what it said before.
        if m.incarnation < local.incarnation
            || (m.incarnation == local.incarnation && m.id == local.id && m.matches(local))
        {
            return Err(Ignored::Stale);
        }
        self.refute(m.incarnation, rng)
    }

    /// An accusation that a message or this node's own failure detector brings.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn suspect(&self, m: &Suspect, now: Instant, rng: &mut impl Rng) -> Verdict {
        if self.has_refuted(&m.id, m.incarnation) {
            return self.insist(&m.from, now);
        }
        let record = self.accused(&m.id, m.incarnation)?;
        if record.id == self.local.id {
            return self.answer(&m.from, m.incarnation, now, rng);
        }
        // Who is dead or flaps hears little, and what it says of others is mostly its own fault.
        if self.is_gone(&m.from) {
            return Err(Ignored::Accuser);
        }
        let name = record.id.shared_name();
        let broadcast = || self.is_heard(m.evidence).then(|| (name.clone(), Message::Suspect(m.clone())));
        match record.state {
            MemberState::Alive => {
                let accusation = Accusation {
                    by: m.from.clone(),
                    confirmed_by: Vec::new(),
                    evidence: m.evidence,
                    at: now,
                };
                let present = self.roster.present();
                let bounds = Bounds::new(&self.config, present);
                if m.evidence.is_full()
                    && bounds.needed > 0
                    && self.flaps.is_unsteady(&record.id, present, now)
                {
                    let verdict = self.own_verdict(record, accusation, m.incarnation);
                    return Ok(Decision { unsteady: true, ..self.dead(&verdict, now, rng)? });
                }
                let suspicion = Suspicion::new(bounds, m.from.clone(), m.evidence, now);
                let member = Arc::new(record.turned(MemberState::Suspect, m.incarnation, now));
                // Nobody else hears of it; so the accused has to hear it from here, to refute.
                let alone = !self.is_heard(m.evidence) && m.from == *self.local.id.shared_name();
                let tell = alone.then(|| (record.addr, record.id.run(), Message::Suspect(m.clone())));
                let change = Change::Suspected { member: member.clone(), why: accusation.clone() };
                Ok(Decision {
                    put: Some(member),
                    suspicion: Step::Start(Box::new(Case { suspicion, accusation, renewed: false })),
                    changes: SmallVec::from_iter([change]),
                    broadcast: broadcast(),
                    tell,
                    ..Decision::default()
                })
            }
            MemberState::Suspect => {
                let news = self.cases.get(name).map(|case| case.suspicion.weigh(&m.from, m.evidence));
                if news == Some(Confirmation::New) {
                    let suspicion = Step::Confirm(name.clone(), smallvec![(m.from.clone(), m.evidence)]);
                    return Ok(Decision {
                        suspicion,
                        broadcast: broadcast(),
                        ..self.raised(record, m.incarnation)
                    });
                }
                self.raise(record, m.incarnation)
            }
            MemberState::Dead => {
                self.accuse_anew(m, now).unwrap_or_else(|| self.raise(record, m.incarnation))
            }
            MemberState::Left => self.raise(record, m.incarnation),
        }
    }

    /// Whether others are to hear of an accusation. Where nacks come too late, that there are none says nothing.
    fn is_heard(&self, evidence: Evidence) -> bool {
        evidence.is_heard() || !(self.config.weigh_accusers && self.config.early_nacks)
    }

    /// Whether what a member says of others counts nothing.
    fn is_gone(&self, name: &str) -> bool {
        self.config.weigh_accusers && self.roster.get(name).is_some_and(|member| member.state.is_gone())
    }

    /// This node's own judgement of a member.
    pub(super) fn own_verdict(&self, record: &Member, accusation: Accusation, incarnation: u32) -> Dead {
        let Accusation { by, mut confirmed_by, evidence, .. } = accusation;
        confirmed_by.truncate(Dead::MAX_CONFIRMATIONS);
        let (id, from) = (record.id.clone(), self.local.id.shared_name().clone());
        Dead { id, incarnation, from, by, confirmed_by, evidence }
    }

    /// A verdict, a farewell, or an operator's word that a member has left. Of "dead" and "left" at the same
    /// incarnation the latter wins, in whichever order they come: all nodes end up with the same.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn dead(&self, m: &Dead, now: Instant, rng: &mut impl Rng) -> Verdict {
        if m.id.name() == self.local.name() && m.id.run() != self.local.id.run() && !self.leaving {
            return self.remind(now);
        }
        if self.has_refuted(&m.id, m.incarnation) {
            return self.insist(&m.from, now);
        }
        let record = self.accused(&m.id, m.incarnation)?;
        if record.id == self.local.id {
            let answer = self.answer(&m.from, m.incarnation, now, rng)?;
            return Ok(Decision { returned: true, ..answer });
        }
        let state = if m.is_left() { MemberState::Left } else { MemberState::Dead };
        if record.state == MemberState::Left || record.state == state {
            return self.raise(record, m.incarnation);
        }
        if self.config.own_verdicts && state == MemberState::Dead && m.from != *self.local.id.shared_name() {
            return self.hear_verdict(record, m, now, rng);
        }
        let name = record.id.shared_name();
        let member = Arc::new(record.turned(state, m.incarnation, now));
        let said = || Accusation {
            by: m.by.clone(),
            confirmed_by: m.confirmed_by.clone(),
            evidence: m.evidence,
            at: now,
        };
        // Whoever hears nobody judges for itself alone.
        let heard = self.is_heard(m.evidence) || !m.confirmed_by.is_empty();
        let change = if state == MemberState::Left {
            Change::Left { member: member.clone(), why: said() }
        } else {
            let why = self.cases.get(name).map(Case::accusation).unwrap_or_else(said);
            Change::Dead { member: member.clone(), why }
        };
        Ok(Decision {
            put: Some(member),
            suspicion: Step::End,
            bury: Some((record.id.clone(), m.incarnation)),
            changes: SmallVec::from_iter([change]),
            broadcast: heard.then(|| (name.clone(), Message::Dead(m.clone()))),
            ..Decision::default()
        })
    }

    /// Another node's verdict about a member that is there counts as the accusations on which it stands: whoever
    /// could not be heard for a while sends its accusations and its verdict at once, and the accused has had no time.
    fn hear_verdict(&self, record: &Arc<Member>, m: &Dead, now: Instant, rng: &mut impl Rng) -> Verdict {
        let first = Suspect {
            id: m.id.clone(),
            incarnation: m.incarnation,
            from: m.by.clone(),
            evidence: if m.evidence.is_full() { m.evidence } else { Evidence::Hearsay },
        };
        // A verdict says so only if all on whom it stands were refused: see `expire`.
        let of_others = if m.evidence == Evidence::Refused { m.evidence } else { Evidence::Hearsay };
        let broadcast = Some((record.id.shared_name().clone(), Message::Dead(m.clone())));
        if record.state == MemberState::Alive {
            let mut decision = self.suspect(&first, now, rng)?;
            if let Step::Start(case) = &mut decision.suspicion {
                for by in &m.confirmed_by {
                    case.suspicion.confirm(by.clone(), of_others, now);
                }
                // All that it stands on is passed on.
                decision.broadcast = broadcast;
            }
            return Ok(decision);
        }
        let name = record.id.shared_name();
        let Some(case) = self.cases.get(name) else { return self.raise(record, m.incarnation) };
        let all = std::iter::once(&m.by).chain(&m.confirmed_by);
        let counts =
            |by: &&Arc<str>| !self.is_gone(by) && case.suspicion.weigh(by, of_others) == Confirmation::New;
        let new = all.filter(counts);
        let new: SmallVec<_> = new.map(|by| (by.clone(), of_others)).collect();
        if new.is_empty() {
            return self.raise(record, m.incarnation);
        }
        Ok(Decision {
            suspicion: Step::Confirm(name.clone(), new),
            broadcast,
            ..self.raised(record, m.incarnation)
        })
    }

    /// The record that an accusation is about, if it can be about it at all.
    pub(super) fn accused(&self, id: &NodeId, incarnation: u32) -> Result<&Arc<Member>, Ignored> {
        let record = self.roster.get(id.name()).ok_or(Ignored::Unknown)?;
        if record.id != *id {
            return Err(Ignored::OtherRun);
        }
        if record.id == self.local.id && self.leaving {
            return Err(Ignored::Leaving);
        }
        if incarnation < record.incarnation {
            return Err(Ignored::Stale);
        }
        if incarnation - record.incarnation > self.config.max_incarnation_step {
            return Err(Ignored::IncarnationStep);
        }
        Ok(record)
    }

    /// Notes a higher incarnation of a member whose state stays. Without it, older news of an incarnation in
    /// between would revive what was accused at a higher one.
    pub(super) fn raise(&self, record: &Arc<Member>, incarnation: u32) -> Verdict {
        if incarnation == record.incarnation {
            Err(Ignored::Stale)
        } else {
            Ok(self.raised(record, incarnation))
        }
    }

    pub(super) fn raised(&self, record: &Arc<Member>, incarnation: u32) -> Decision {
        if incarnation <= record.incarnation {
            return Decision::default();
        }
        let put = Some(Arc::new(record.turned(record.state, incarnation, record.since)));
        let bury = record.state.is_gone().then(|| (record.id.clone(), incarnation));
        Decision { put, bury, ..Decision::default() }
    }

    /// This node answers an accusation with a higher incarnation. At the end of the numbers it becomes
    /// another run, which starts from 1.
    pub(super) fn refute(&self, accused: u32, rng: &mut impl Rng) -> Verdict {
        let above = accused.max(self.local.incarnation);
        if above - self.local.incarnation > self.config.max_incarnation_step {
            return Err(Ignored::IncarnationStep);
        }
        let local = Arc::new(self.above(above, rng));
        Ok(Decision { refuted: true, ..self.announce(local) })
    }

    /// This node refutes, and tells its accuser at once: after a partition gossip goes to this half alone, since the
    /// other one is still held for dead.
    fn answer(&self, accuser: &Arc<str>, accused: u32, now: Instant, rng: &mut impl Rng) -> Verdict {
        let mut decision = self.refute(accused, rng)?;
        if let (Some((_, word)), Ok(Decision { tell: Some((to, run, _)), limited, .. })) =
            (&decision.broadcast, self.insist(accuser, now))
        {
            (decision.tell, decision.limited) = (Some((to, run, word.clone())), limited);
        }
        Ok(decision)
    }

    /// Whether an accusation is against this node, and older than its last word.
    fn has_refuted(&self, id: &NodeId, incarnation: u32) -> bool {
        *id == self.local.id && incarnation < self.local.incarnation && !self.leaving
    }

    /// An accuser has missed this node's last word, and is told again. Else it would wait out the suspicion,
    /// and hold a node for dead that answers it.
    fn insist(&self, accuser: &Arc<str>, now: Instant) -> Verdict {
        let accuser = self.roster.get(accuser).filter(|m| m.id != self.local.id).ok_or(Ignored::Stale)?;
        let name = accuser.id.shared_name().clone();
        if !self.tellings.allows(&name, now) {
            return Err(Ignored::Stale);
        }
        let tell = Some((accuser.addr, accuser.id.run(), Message::Alive(Alive::of(&self.local))));
        Ok(Decision { tell, limited: Some(Limited::Telling(name)), ..Decision::default() })
    }

    /// A former run of this node's name is reported dead: whoever reports it may not know this one yet.
    pub(super) fn remind(&self, now: Instant) -> Verdict {
        let name = self.local.id.shared_name();
        if !self.tellings.allows(name, now) {
            return Err(Ignored::OtherRun);
        }
        Ok(Decision { limited: Some(Limited::Telling(name.clone())), ..self.announce(self.local.clone()) })
    }

    pub(super) fn above(&self, incarnation: u32, rng: &mut impl Rng) -> Member {
        let mut local = Member::clone(&self.local);
        match incarnation.checked_add(1) {
            Some(next) => local.incarnation = next,
            None => {
                local.id = NodeId::drawn(local.id.shared_name().clone(), rng);
                local.incarnation = 1;
            }
        }
        local
    }

    /// This node says once more that it runs.
    pub fn announced(&self) -> Decision {
        if self.leaving { Decision::default() } else { self.announce(self.local.clone()) }
    }

    pub(super) fn announce(&self, local: Arc<Member>) -> Decision {
        let message = Message::Alive(Alive::of(&local));
        Decision {
            broadcast: Some((local.id.shared_name().clone(), message)),
            put: Some(local),
            ..Decision::default()
        }
    }

    /// This node's own failure detector had no answer.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn accuse(
        &self,
        id: &NodeId,
        incarnation: u32,
        evidence: Evidence,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Verdict {
        let from = self.local.id.shared_name().clone();
        // Whoever is on probation is accused of what it has said last.
        let incarnation = self.flaps.word(id).map_or(incarnation, |word| word.incarnation.max(incarnation));
        self.suspect(&Suspect { id: id.clone(), incarnation, from, evidence }, now, rng)
    }

    /// One member as another node's full state tells it. Its suspects and dead ones are in doubt here, and
    /// suspects only if they do not refute soon: each node decides for itself.
    ///
    /// # Errors
    /// Why it changes nothing.
    pub fn merge(&self, remote: &Remembered, now: Instant, rng: &mut impl Rng) -> Verdict {
        let Alive { id, incarnation, .. } = &remote.alive;
        match remote.state {
            MemberState::Alive => self.alive(&remote.alive, now, rng),
            // A run before this one is held for a suspect: as long as it is, this one has to outbid it.
            MemberState::Suspect if id.name() == self.local.name() && *id != self.local.id => {
                self.alive(&remote.alive, now, rng)
            }
            MemberState::Suspect | MemberState::Dead if self.is_doubtful(id, *incarnation) => {
                self.doubt(id, *incarnation)
            }
            MemberState::Suspect | MemberState::Dead => {
                self.accuse(id, *incarnation, Evidence::PushPull, now, rng)
            }
            MemberState::Left => {
                // Its own word or an operator's: a full state does not say which.
                let left = Dead {
                    id: id.clone(),
                    incarnation: *incarnation,
                    from: id.shared_name().clone(),
                    by: self.local.id.shared_name().clone(),
                    confirmed_by: Vec::new(),
                    evidence: Evidence::PushPull,
                };
                self.dead(&left, now, rng)
            }
        }
    }

    /// This node says something else about itself.
    ///
    /// # Errors
    /// [`Ignored::Leaving`] once it has left.
    pub fn update(&self, tags: Option<Tags>, meta: Option<Bytes>, rng: &mut impl Rng) -> Verdict {
        if self.leaving {
            return Err(Ignored::Leaving);
        }
        let mut local = self.above(self.local.incarnation, rng);
        local.tags = tags.unwrap_or(local.tags);
        local.meta = meta.unwrap_or(local.meta);
        let local = Arc::new(local);
        let change = Change::Updated { member: local.clone(), before: self.local.clone() };
        Ok(Decision { changes: SmallVec::from_iter([change]), ..self.announce(local) })
    }

    /// This node leaves.
    ///
    /// # Errors
    /// [`Ignored::Leaving`] once it has left.
    pub fn leave(&self, now: Instant) -> Verdict {
        if self.leaving {
            return Err(Ignored::Leaving);
        }
        let local = Arc::new(self.local.turned(MemberState::Left, self.local.incarnation, now));
        Ok(Decision {
            broadcast: Some((local.id.shared_name().clone(), Message::Dead(Dead::farewell(&local)))),
            changes: SmallVec::from_iter([Change::Left {
                why: announced(&local, now),
                member: local.clone(),
            }]),
            put: Some(local),
            leaving: Some(true),
            ..Decision::default()
        })
    }

    /// This node comes back after it has left: as another run, so that what is still said of the old one does
    /// not concern it, and with a higher incarnation, so that it takes the old one's place also where the
    /// farewell was missed. Tags and metadata stay.
    ///
    /// # Errors
    /// [`Ignored::Stale`] if it has not left.
    pub fn rejoin(&self, now: Instant, rng: &mut impl Rng) -> Verdict {
        if !self.leaving {
            return Err(Ignored::Stale);
        }
        let mut local = self.above(self.local.incarnation, rng);
        local.id = NodeId::drawn(local.id.shared_name().clone(), rng);
        (local.state, local.since) = (MemberState::Alive, now);
        let local = Arc::new(local);
        Ok(Decision {
            changes: SmallVec::from_iter([Change::Joined(local.clone())]),
            leaving: Some(false),
            ..self.announce(local)
        })
    }

    /// An operator says that a dead member will not come back: it counts as left, here and wherever the word
    /// spreads. Saying it of one that has left tells it once more and changes nothing.
    ///
    /// Where the member is held for alive after all, as on the other side of a partition, it goes at once, as
    /// by any other verdict; when it hears of that it refutes, and is back everywhere.
    ///
    /// # Errors
    /// Why it is not said. Nothing changes then.
    pub fn force_leave(&self, name: &str, now: Instant) -> Result<Decision, NotForced> {
        if self.leaving {
            return Err(NotForced::Leaving);
        }
        let record = self.roster.get(name).ok_or(NotForced::Unknown)?;
        if record.state.is_present() || record.name() == self.local.name() {
            return Err(NotForced::StillAlive);
        }
        let word = Dead {
            id: record.id.clone(),
            incarnation: record.incarnation,
            from: self.local.id.shared_name().clone(),
            by: self.local.id.shared_name().clone(),
            confirmed_by: Vec::new(),
            evidence: Evidence::ForceLeave,
        };
        let mut decision = Decision::default();
        if record.state == MemberState::Dead {
            let member = Arc::new(record.turned(MemberState::Left, record.incarnation, now));
            let why = Accusation {
                by: word.by.clone(),
                confirmed_by: Vec::new(),
                evidence: Evidence::ForceLeave,
                at: now,
            };
            decision.changes.push(Change::Left { member: member.clone(), why });
            decision.put = Some(member);
        }
        decision.broadcast = Some((record.id.shared_name().clone(), Message::Dead(word)));
        Ok(decision)
    }

    /// What this node says of a suspect.
    fn own_suspicion(&self, member: &Member, evidence: Evidence) -> Suspect {
        Suspect {
            id: member.id.clone(),
            incarnation: member.incarnation,
            from: self.local.id.shared_name().clone(),
            evidence,
        }
    }

    /// What a member that speaks from an older state is told: that it is held for gone.
    pub(super) fn hearsay_of_death(&self, id: &NodeId, incarnation: u32) -> Dead {
        let from = self.local.id.shared_name().clone();
        Dead {
            id: id.clone(),
            incarnation,
            by: from.clone(),
            from,
            confirmed_by: Vec::new(),
            evidence: Evidence::Hearsay,
        }
    }
}

/// What a member says of itself when it leaves.
fn announced(member: &Member, now: Instant) -> Accusation {
    let by = member.id.shared_name().clone();
    Accusation { by, confirmed_by: Vec::new(), evidence: Evidence::Announced, at: now }
}
