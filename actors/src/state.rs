//! **NodeState** owns the membership table. It hears what is said about members, judges it by the rules of
//! the ground floor, and says what has changed: news to BroadcastQueue, events to Delegates, a new [`View`]
//! to everybody.
//!
//! [`View`]: memberlist_protocol::view::View

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    rc::Rc,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use actix::{Actor, Context, StreamHandler};
use bytes::Bytes;
use memberlist_protocol::{
    accusation::Outcome,
    gate::Gate,
    gossip::Piggyback,
    heal::Heal,
    member::{MAX_META, MemberState, meta_len},
    members::{Change, Decision, Effects, Ignored, Members, NotForced},
    push_pull::{self, OwnState},
    wire::{
        codec,
        message::{Dead, Message, Remembered},
    },
};
use rand::{RngExt, rngs::Xoshiro256PlusPlus};
use smallvec::smallvec;

use crate::{
    errors::UpdateError,
    inbox::{Alarm, Turn, Turns},
    logs::{self, Line, say},
    messages::{Exchange, STATE, ToDelegates, ToDetector, ToQueue, ToState, ToTransport},
    metrics::{Lost, up},
    ring::{Shared, now},
    supervisor::Child,
};

mod healing;
mod merging;
mod newcomers;
mod telling;

use merging::Merging;
use telling::{Source, Suspected, kind, subject};

/// What survives a restart.
pub(crate) struct Kept {
    members: Members,
    own_state: OwnState,
    gate: Gate,
    merging: VecDeque<Merging>,
    /// Events that have happened and are not told yet.
    outbox: Vec<(u64, Change)>,
    /// Members that are suspected, by name.
    suspected: BTreeMap<Arc<str>, Suspected>,
    /// The version of the table that the view shows.
    published: u64,
    next_push_pull: Option<Instant>,
    /// Exchanges that are still to follow a join.
    follow_ups: u32,
    /// Members that have come back since the last exchange.
    returned: u32,
    /// Not before then is there another exchange out of turn because members have come back.
    next_settling: Instant,
    heal: Heal,
    /// An attempt to reach somebody who is missing is under way as long as somebody else holds it too.
    attempt: Rc<()>,
}

impl Kept {
    pub(crate) fn new(members: Members, rng: &mut Xoshiro256PlusPlus, now: Instant) -> Self {
        let interval = members.config().push_pull_interval;
        Self {
            heal: Heal::new(members.config(), now, rng),
            attempt: Rc::default(),
            published: members.version(),
            gate: Gate::new(members.config().admit_queue_depth),
            members,
            own_state: OwnState::default(),
            merging: VecDeque::new(),
            outbox: Vec::new(),
            suspected: BTreeMap::new(),
            next_push_pull: (!interval.is_zero()).then(|| now + interval.mul_f64(rng.random::<f64>())),
            follow_ups: 0,
            returned: 0,
            next_settling: now,
        }
    }

    /// The farewell that a node which gives up may still send.
    pub(crate) fn farewell(&self) -> Message {
        Message::Dead(Dead::farewell(self.members.local()))
    }
}

pub(crate) struct NodeState {
    ring: Shared,
    kept: Rc<RefCell<Kept>>,
    alarm: Alarm,
    /// Where from the node knows what it judges just now.
    source: Cell<Source>,
}

impl NodeState {
    pub(crate) fn new(ring: Shared, kept: Rc<RefCell<Kept>>) -> Self {
        Self { ring, kept, alarm: Alarm::default(), source: Cell::new(Source::Time) }
    }

    fn hear(&self, item: ToState, now: Instant) {
        self.source.set(match &item {
            ToState::Alive(_) => Source::Alive,
            ToState::Accuse { probed, .. } => Source::Probe(*probed),
            ToState::Update { .. } | ToState::Leave { .. } => Source::User,
            _ => Source::Gossip,
        });
        match &item {
            ToState::Alive(m) => self.meets("alive", &m.id),
            ToState::Suspect(m) => self.meets("suspect", &m.id),
            ToState::Dead(m) => self.meets(if m.is_left() { "left" } else { "dead" }, &m.id),
            ToState::Accuse { id, .. } => self.meets("accuse", id),
            _ => {}
        }
        match item {
            ToState::Alive(alive) => {
                self.news(Remembered { alive, state: MemberState::Alive }, false, None, now);
            }
            ToState::Suspect(m) => self.judge(now, |members, rng| members.suspect(&m, now, rng)),
            ToState::Dead(m) => self.judge(now, |members, rng| members.dead(&m, now, rng)),
            ToState::Accuse { id, incarnation, evidence, .. } => {
                self.judge(now, |members, rng| members.accuse(&id, incarnation, evidence, now, rng));
            }
            ToState::Give { join, reply } => {
                let _ = reply.send(self.own_state(join));
            }
            ToState::Merge { peer, admitted, why, reply } => self.merge(peer, admitted, why, reply),
            ToState::Exchange { peer, admitted, reply } => {
                let answer = self.admit(&peer).map(|()| self.own_state(peer.header.join));
                if answer.is_ok() && !peer.header.tentative {
                    self.kept.borrow_mut().take_in(peer, admitted, None, None);
                }
                let _ = reply.send(answer);
            }
            ToState::Welcome { peer, admitted } => match self.admit(&peer) {
                Ok(()) => self.kept.borrow_mut().take_in(peer, admitted, None, None),
                Err(_) => self.ring.counters.drop(Lost::JoinRefused),
            },
            ToState::Admitted { name, number, verdict } => self.admitted(&name, number, verdict, now),
            ToState::Update { tags, meta, reply } => {
                // Together with another update that has come meanwhile it may be too much.
                let local = self.kept.borrow().members.local().clone();
                let len =
                    meta_len(meta.as_ref().unwrap_or(&local.meta), tags.as_ref().unwrap_or(&local.tags));
                if len > MAX_META {
                    let _ = reply.send(Err(UpdateError::TooLarge { len, max: MAX_META }));
                    return;
                }
                let verdict = self.decide(|members, rng| members.update(tags, meta, rng));
                let answer =
                    verdict.map(|decision| self.carry_out(decision, now)).map_err(|_| UpdateError::Left);
                // The answer follows the view.
                self.publish();
                let _ = reply.send(answer);
            }
            ToState::ForceLeave { name, reply } => {
                let word = self.kept.borrow().members.force_leave(&name, now);
                let answer = word.map(|decision| self.carry_out(decision, now)).map_err(|why| match why {
                    NotForced::Unknown => UpdateError::Unknown,
                    NotForced::StillAlive => UpdateError::StillAlive,
                    NotForced::Leaving => UpdateError::Left,
                });
                self.publish();
                let _ = reply.send(answer);
            }
            ToState::Rejoin { reply } => {
                if let Ok(decision) = self.decide(|members, rng| members.rejoin(now, rng)) {
                    self.carry_out(decision, now);
                }
                // What the node does next, it does as the new run.
                self.publish();
                let _ = reply.send(());
            }
            ToState::Leave { reply } => {
                if let Ok(decision) = self.decide(|members, _| members.leave(now)) {
                    self.carry_out(decision, now);
                }
                self.publish();
                let farewell = self.kept.borrow().farewell();
                let _ = reply.send(codec::encoded(&farewell, usize::MAX).unwrap_or_default());
            }
        }
    }

    fn decide(
        &self,
        rule: impl FnOnce(&Members, &mut Xoshiro256PlusPlus) -> Result<Decision, Ignored>,
    ) -> Result<Decision, Ignored> {
        rule(&self.kept.borrow().members, &mut self.ring.rng.borrow_mut())
    }

    fn judge(
        &self,
        now: Instant,
        rule: impl FnOnce(&Members, &mut Xoshiro256PlusPlus) -> Result<Decision, Ignored>,
    ) {
        match self.decide(rule) {
            Ok(decision) => self.carry_out(decision, now),
            Err(ignored) => self.ring.counters.drop(ignored),
        }
    }

    /// From here on nothing fails: the table changes, and everybody concerned learns of it.
    fn carry_out(&self, decision: Decision, now: Instant) {
        let mut kept = self.kept.borrow_mut();
        let Effects { changes, broadcast, tell, refuted, confirmed, degraded, watched, claim } =
            kept.members.apply(decision, now);
        let members = kept.members.roster().present();
        let (mut returned, mut joined) = (0, false);
        for (_, change) in &changes {
            kept.time(change, self.source.get(), &self.ring.counters, now);
            self.note(change, members, now);
            if let Change::Dead { member, .. } = change {
                let name = member.id.shared_name().clone();
                kept.heal.died(name, &mut *self.ring.rng.borrow_mut());
            }
            joined |= matches!(change, Change::Joined(_));
            returned += u32::from(matches!(change, Change::Refuted(_)));
            returned += u32::from(matches!(change, Change::Joined(member) if member.incarnation > 1));
        }
        let local = kept.members.local().id.shared_name().clone();
        // One that has refuted what this node had not even heard: such news misses a few, as any does.
        let raised = matches!(&broadcast, Some((about, Message::Alive(_))) if *about != local);
        returned += u32::from(changes.is_empty() && raised);
        kept.outbox.extend(changes);
        drop(kept);
        for _ in 0..returned {
            self.returned(now);
        }

        let ring = &self.ring;
        // Like memberlist: also what refutes, and this node itself when it answers an alive message.
        let about_other = matches!(&broadcast, Some((about, Message::Alive(_))) if *about != local);
        if about_other || joined || (refuted && self.source.get() == Source::Alive) {
            up(&ring.counters.msg_alive);
        }
        if let Some((name, message)) = broadcast {
            let about = subject(&name, &message);
            match self.written(message) {
                // News about this node itself must not be lost.
                Some(bytes) if name == local => ring.command(&ring.queue, ToQueue::News { about, bytes }),
                Some(bytes) => ring.news(&ring.queue, ToQueue::News { about, bytes }),
                None => {
                    ring.counters.drop(Lost::NoRoom);
                    say!(
                        ring,
                        Line::NoRoom,
                        warn,
                        "no packet has room for a piece of news: see udp_buffer_size"
                    );
                }
            }
        }
        if let Some((to, run, message)) = tell {
            let (messages, piggyback) = (smallvec![message], Piggyback::No);
            ring.news(&ring.queue, ToQueue::Send { to, run, messages, piggyback, report: None });
        }
        if refuted {
            up(&ring.counters.refutations);
            ring.command(ring.detector_inbox(), ToDetector::Doubt);
        }
        if let Some((id, accusation)) = confirmed {
            ring.history().note(&id, &accusation, Outcome::Open);
        }
        if let Some(name) = watched {
            up(&ring.counters.probations);
            let member = logs::name(&name);
            say!(ring, Line::Change, info, %member, "speaks again, and is on probation: it flaps");
            ring.news(ring.detector_inbox(), ToDetector::Newcomer { name, members });
        }
        if degraded {
            up(&ring.counters.degraded_timeouts);
        }
        if let Some(alive) = claim {
            self.news(Remembered { alive, state: MemberState::Alive }, false, None, now);
        }
    }

    /// A message as bytes. A verdict that no packet has room for goes without those who confirmed it.
    fn written(&self, message: Message) -> Option<Bytes> {
        let max = self.ring.max_broadcast.load(Relaxed);
        let short = match &message {
            Message::Dead(dead) => Some(Message::Dead(Dead { confirmed_by: Vec::new(), ..dead.clone() })),
            _ => None,
        };
        codec::encoded(&message, max).ok().or_else(|| codec::encoded(&short?, max).ok())
    }

    fn on_time(&self, now: Instant) {
        self.source.set(Source::Time);
        loop {
            let decision = self.kept.borrow_mut().members.on_time(now, &mut self.ring.rng.borrow_mut());
            match decision {
                Some(decision) => self.carry_out(decision, now),
                None => break,
            }
        }
        let mut kept = self.kept.borrow_mut();
        let unanswered = kept.gate.on_time(now);
        self.ring.counters.drop_many(Ignored::Vetoed, unanswered);
        if kept.next_push_pull.is_some_and(|at| at <= now) {
            let view = kept.members.view();
            let pace = self.ring.config.push_pull_pace(view.alive_count());
            kept.next_push_pull = Some(now + pace);
            kept.own_state.forget();
            let partner = push_pull::partner(&view, &mut *self.ring.rng.borrow_mut());
            if let Some(partner) = partner.filter(|_| !kept.members.is_leaving()) {
                let why = if kept.follow_ups > 0 { Exchange::FollowUp } else { Exchange::Periodic };
                self.ring.command(&self.ring.transport, ToTransport::PushPull { addr: partner.addr, why });
            }
        }
        drop(kept);
        self.heal(now);
    }

    /// Shows a new view, and then tells what is new in it.
    fn publish(&self) {
        let mut kept = self.kept.borrow_mut();
        if kept.members.version() == kept.published && kept.outbox.is_empty() {
            return;
        }
        kept.published = kept.members.version();
        let view = kept.members.view();
        let changes = std::mem::take(&mut kept.outbox);
        drop(kept);
        self.ring.view.replace(view.clone());
        if !changes.is_empty() {
            for (_, change) in &changes {
                self.ring.links.heed(change);
            }
            for (rev, change) in &changes {
                self.ring.hooks.record(
                    "event",
                    &format_args!("{} {rev}", view.local().id),
                    kind(change).as_bytes(),
                );
            }
            self.ring.command(&self.ring.delegates, ToDelegates::Events { changes, view });
        }
    }

    fn set_alarm(&self, now: Instant) {
        let kept = self.kept.borrow();
        let merging = (!kept.merging.is_empty()).then_some(now);
        let due = [Some(kept.members.due()), kept.next_push_pull, kept.gate.due(), kept.heal.due(), merging]
            .into_iter()
            .flatten()
            .min();
        self.alarm.set(due);
    }
}

impl Actor for NodeState {
    type Context = Context<Self>;
}

impl actix::Supervised for NodeState {}

impl Child for NodeState {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        if self.ring.counters.size_local.load(Relaxed) == 0 {
            self.own_state(false);
            self.kept.borrow_mut().own_state.forget();
        }
        self.set_alarm(now());
        Self::add_stream(Turns::new(self.ring.state.clone(), self.alarm.clone(), None), ctx);
    }
}

impl StreamHandler<Turn> for NodeState {
    fn handle(&mut self, _: Turn, _: &mut Context<Self>) {
        let now = now();
        // What an instance before this one has not told is told first.
        self.publish();
        self.ring.turn(STATE, &self.ring.state, |item| self.hear(item, now));
        self.ring.hooks.strike(STATE, "tick");
        self.merge_some(now);
        self.on_time(now);
        self.publish();
        // Those who ask in one turn share what is written; later ones would seldom find it unchanged.
        self.kept.borrow_mut().own_state.forget();
        self.set_alarm(now);
    }
}
