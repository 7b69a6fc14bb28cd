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
    time::{Duration, Instant},
};

use actix::{Actor, Context, StreamHandler};
use bytes::Bytes;
use memberlist_protocol::{
    accusation::Outcome,
    gate::{Gate, Knock},
    gossip::Piggyback,
    member::{MAX_META, MemberState, NodeId, meta_len},
    members::{Change, Decision, Effects, Ignored, Members, NotForced},
    push_pull::{self, OwnState},
    wire::{
        codec,
        message::{Dead, Message, Remembered},
        state::{OwnBytes, Refusal, State},
    },
};
use rand::{RngExt, rngs::Xoshiro256PlusPlus};
use smallvec::smallvec;

use crate::{
    errors::UpdateError,
    inbox::{Alarm, Turn, Turns},
    logs::{self, Line, say},
    messages::{Asker, Exchange, Reply, STATE, ToDelegates, ToDetector, ToQueue, ToState, ToTransport},
    metrics::{Counters, Lost, up},
    questions::Admit,
    ring::{Shared, now},
    supervisor::Child,
};

/// Members of a full state that are looked at in one turn.
const MERGED_PER_TURN: usize = 256;

/// Exchanges of states that follow a join at most. After one that finds nobody new there is one more.
const MAX_FOLLOW_UPS: u32 = 5;

/// Shortest round that an exchange out of turn is measured in.
const MIN_ROUND: Duration = Duration::from_millis(100);

/// Rounds of gossip from a join to the exchange that finds those who joined at the same time.
const SOON: f64 = 2.0;

/// Rounds of gossip after which news has gone round, and an exchange finds what it has missed.
const SETTLED: f64 = 10.0;

/// Members that have come back, after which an exchange is made out of turn: a partition has healed, and
/// each piece of news misses a few members in ten thousand.
const RETURNED: u32 = 3;

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
}

struct Merging {
    peer: Box<State>,
    /// The peer itself, if the application has let it in.
    admitted: Option<NodeId>,
    /// Nothing for a peer that dialled.
    why: Option<Exchange>,
    /// Members when it began.
    before: usize,
    reply: Option<Reply<Result<NodeId, Refusal>>>,
}

impl Kept {
    pub(crate) fn new(members: Members, rng: &mut Xoshiro256PlusPlus, now: Instant) -> Self {
        let interval = members.config().push_pull_interval;
        Self {
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

    fn take_in(
        &mut self,
        peer: Box<State>,
        admitted: bool,
        why: Option<Exchange>,
        reply: Option<Reply<Result<NodeId, Refusal>>>,
    ) {
        let before = self.members.roster().len();
        let admitted = admitted.then(|| peer.header.from.clone());
        self.merging.push_back(Merging { peer, admitted, why, before, reply });
    }

    /// Counts what a change is to the metrics, and how long it took.
    fn time(&mut self, change: &Change, source: Source, counters: &Counters, now: Instant) {
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

/// Where from the node knows what it judges, for its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
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
struct Suspected {
    at: Instant,
    /// When the own probe began that failed.
    probed: Option<Instant>,
}

/// Suspicions that are timed at once; those beyond are not.
const TIMED: usize = 4096;

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

    /// News about a member. A newcomer waits until the application has let it in; `admitted` is let in already.
    fn news(&self, news: Remembered, quiet: bool, admitted: Option<&NodeId>, now: Instant) {
        match self.decide(|members, rng| members.merge(&news, now, rng)) {
            Ok(decision) => match decision.introduces() {
                Some(member) if self.ring.gated && admitted != Some(&member.id) => {
                    let question = Admit::Member(member.clone());
                    self.knock(news, quiet, question, now);
                }
                _ if quiet => self.carry_out(decision.without_joins(), now),
                _ => self.carry_out(decision, now),
            },
            Err(ignored) => self.ring.counters.drop(ignored),
        }
    }

    fn knock(&self, news: Remembered, quiet: bool, question: Admit, now: Instant) {
        let ring = &self.ring;
        let name = news.alive.id.shared_name().clone();
        // Delegates waits for the application; in case that fails, nobody waits for Delegates for ever.
        let until = now + 2 * ring.config.question_timeout;
        let knock = self.kept.borrow_mut().gate.knock(news, quiet, until, now);
        match knock {
            Knock::Ask(number) => {
                let asker = Asker::State { name, number };
                ring.command(&ring.delegates, ToDelegates::Admit { question, asker });
            }
            Knock::Asked => ring.counters.drop(Ignored::Asked),
            Knock::Refused => ring.counters.drop(Ignored::Vetoed),
            Knock::Crowded => ring.counters.drop(Ignored::GateCrowded),
        }
    }

    fn admitted(&self, name: &str, number: u64, verdict: Result<(), String>, now: Instant) {
        let waited = self.kept.borrow_mut().gate.answer(name, number, verdict.is_ok(), now);
        let Some(waited) = waited else { return };
        let id = waited.news.alive.id.clone();
        match verdict {
            Ok(()) => self.news(waited.news, waited.quiet, Some(&id), now),
            Err(reason) => {
                self.ring.counters.drop(Ignored::Vetoed);
                say!(self.ring, Line::Vetoed, info, member = %logs::node(&id), reason, "not let in");
            }
        }
    }

    /// From here on nothing fails: the table changes, and everybody concerned learns of it.
    fn carry_out(&self, decision: Decision, now: Instant) {
        let mut kept = self.kept.borrow_mut();
        let Effects { changes, broadcast, tell, refuted, confirmed, degraded } =
            kept.members.apply(decision, now);
        let members = kept.members.roster().present();
        let (mut returned, mut joined) = (0, false);
        for (_, change) in &changes {
            kept.time(change, self.source.get(), &self.ring.counters, now);
            self.note(change, members, now);
            joined |= matches!(change, Change::Joined(_));
            returned += u32::from(matches!(change, Change::Refuted(_)));
            returned += u32::from(matches!(change, Change::Joined(member) if member.incarnation > 1));
        }
        kept.outbox.extend(changes);
        let local = kept.members.local().id.shared_name().clone();
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
        if let Some((about, message)) = broadcast {
            match self.written(message) {
                // News about this node itself must not be lost.
                Some(bytes) if about == local => ring.command(&ring.queue, ToQueue::News { about, bytes }),
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
        if let Some((to, message)) = tell {
            let messages = smallvec![message];
            ring.news(&ring.queue, ToQueue::Send { to, messages, piggyback: Piggyback::No, report: None });
        }
        if refuted {
            up(&ring.counters.refutations);
            ring.command(ring.detector_inbox(), ToDetector::Doubt);
        }
        if let Some((id, accusation)) = confirmed {
            ring.history().note(&id, &accusation, Outcome::Open);
        }
        if degraded {
            up(&ring.counters.degraded_timeouts);
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

    fn note(&self, change: &Change, members: usize, now: Instant) {
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

    fn own_state(&self, join: bool) -> OwnBytes {
        let Kept { members, own_state, .. } = &mut *self.kept.borrow_mut();
        let own = own_state.get(members, join);
        let head = State::head(&own.header, 0).len();
        self.ring.counters.size_local.store((head + own.members.len()) as u64, Relaxed);
        own
    }

    /// A peer that this node dialled has answered with its state.
    fn merge(&self, peer: Box<State>, admitted: bool, why: Exchange, reply: Reply<Result<NodeId, Refusal>>) {
        let fit = {
            let kept = self.kept.borrow();
            let sender = peer.sender().map_err(|_| Refusal::Wire);
            push_pull::admit(&kept.members, &peer.header)
                .and_then(|()| push_pull::admit_address(&kept.members, &sender?.alive))
                .and_then(|()| push_pull::admit_state(kept.members.local(), &peer))
        };
        match fit.and_then(|()| self.enough_room(&peer)) {
            Ok(()) => self.kept.borrow_mut().take_in(peer, admitted, Some(why), Some(reply)),
            Err(refusal) => drop(reply.send(Err(refusal))),
        }
    }

    /// Whether a peer that dialled is dealt with.
    fn admit(&self, peer: &State) -> Result<(), Refusal> {
        let sender = peer.sender().map_err(|_| Refusal::Wire)?;
        {
            let kept = self.kept.borrow();
            push_pull::admit(&kept.members, &peer.header)?;
            push_pull::admit_address(&kept.members, &sender.alive)?;
            push_pull::admit_name(&kept.members, &sender.alive)?;
            push_pull::admit_state(kept.members.local(), peer)?;
        }
        self.enough_room(peer)
    }

    /// States that wait to be taken in may take four times the memory of the largest one.
    fn enough_room(&self, peer: &State) -> Result<(), Refusal> {
        let kept = self.kept.borrow();
        let waiting: usize = kept.merging.iter().map(|merging| merging.peer.len()).sum();
        if waiting + peer.len() <= 4 * self.ring.config.max_state_size {
            return Ok(());
        }
        self.ring.counters.drop(Ignored::Merging);
        Err(Refusal::Vetoed("too many states wait to be taken in".into()))
    }

    /// Takes in some of what waits; whoever waits for it is answered once the view shows it.
    fn merge_some(&self, now: Instant) {
        self.source.set(Source::State);
        let mut left = MERGED_PER_TURN;
        while left > 0 {
            let Some(mut merging) = self.kept.borrow_mut().merging.pop_front() else { return };
            // A joiner need not tell anybody whom its seed knows: the seed has. Without this, n nodes that
            // join at once would gossip n * n records.
            let quiet = matches!(merging.why, Some(Exchange::Join | Exchange::FollowUp)) && self.follows_up();
            while left > 0 {
                let Some(remembered) = merging.peer.next_member() else { break };
                left -= 1;
                self.news(remembered, quiet, merging.admitted.as_ref(), now);
            }
            if merging.peer.is_empty() {
                self.merged(merging, now);
            } else {
                self.kept.borrow_mut().merging.push_front(merging);
            }
        }
    }

    fn merged(&self, merging: Merging, now: Instant) {
        let grown = self.kept.borrow().members.roster().len() > merging.before;
        match merging.why {
            Some(Exchange::Join) => {
                // The seed tells the others of this node; in case that fails, so does the node itself.
                let announced = self.kept.borrow().members.announced();
                self.carry_out(announced, now);
                self.follow_up(MAX_FOLLOW_UPS, SOON, now);
            }
            Some(Exchange::FollowUp) => {
                let left = self.kept.borrow().follow_ups.saturating_sub(1);
                // After one that found nobody new, one more when all has settled.
                let (left, rounds) = if grown { (left, SOON) } else { (left.min(1), SETTLED) };
                self.follow_up(left, rounds, now);
            }
            Some(Exchange::Periodic) | None => {}
        }
        if let Some(reply) = merging.reply {
            self.publish();
            let _ = reply.send(Ok(merging.peer.header.from.clone()));
        }
    }

    /// Whether this node exchanges states without being told to.
    fn follows_up(&self) -> bool {
        !self.ring.config.push_pull_interval.is_zero()
    }

    /// Lets `times` more exchanges follow, the first after about `rounds` of gossip.
    fn follow_up(&self, times: u32, rounds: f64, now: Instant) {
        self.kept.borrow_mut().follow_ups = times;
        if times > 0 {
            self.exchange_within(rounds, now);
        }
    }

    /// Makes the next exchange after `rounds` of gossip, up to half of that later, if it is not due before.
    fn exchange_within(&self, rounds: f64, now: Instant) {
        if !self.follows_up() {
            return;
        }
        let round = self.ring.config.gossip_interval.max(MIN_ROUND);
        let at = now + round.mul_f64(rounds * (1.0 + self.ring.rng.borrow_mut().random::<f64>() / 2.0));
        let mut kept = self.kept.borrow_mut();
        kept.next_push_pull = Some(kept.next_push_pull.map_or(at, |next| next.min(at)));
    }

    /// A member has come back. When several have, a partition has healed.
    fn returned(&self, now: Instant) {
        let mut kept = self.kept.borrow_mut();
        kept.returned += 1;
        if kept.returned < RETURNED || now < kept.next_settling {
            return;
        }
        kept.returned = 0;
        kept.next_settling = now + self.ring.config.push_pull_interval;
        drop(kept);
        self.exchange_within(SETTLED, now);
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
        self.ring.view.send_replace(view.clone());
        if !changes.is_empty() {
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
        let due = [Some(kept.members.due()), kept.next_push_pull, kept.gate.due(), merging]
            .into_iter()
            .flatten()
            .min();
        self.alarm.set(due);
    }
}

/// A change in one line, for traces.
fn kind(change: &Change) -> String {
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
        self.set_alarm(now);
    }
}
