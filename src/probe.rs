//! The failure detector: who is probed when, and what an answer or its absence means (SWIM, section 3;
//! Lifeguard, section IV).
//!
//! ```text
//!                    ack                                    ack, or the stream answers
//!            ┌────────────────► fine                    ┌───────────────────────────► fine
//!            │                                          │
//!   ping ────┤ probe_timeout    ┌─ indirect pings ──────┤
//!            └────────────────► ┤                       │ probe_interval × (score + 1)
//!                               └─ ping over a stream ──┴───────────────────────────► accuse
//! ```
//!
//! A helper's answer carries a number that only this helper was given, so that it counts once.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use rand::{Rng, RngExt, seq::SliceRandom};
use smallvec::{SmallVec, smallvec};

use crate::{
    accusation::Evidence,
    awareness::Awareness,
    config::Config,
    gossip::Piggyback,
    member::{Member, MemberState, NodeId},
    view::View,
    wire::message::{Ack, Dead, IndirectPing, Message, Nack, Ping, Suspect},
};

/// What the failure detector wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Send messages in one packet.
    Send {
        /// Where to.
        to: SocketAddr,
        /// The run that is meant, [`NodeId::ANY_RUN`] if it is not known: a seal is for that run alone.
        run: u64,
        /// What.
        messages: SmallVec<[Message; 1]>,
        /// Whether news may travel along.
        piggyback: Piggyback,
        /// The number of the ping among them, if its failure to leave is to be reported.
        report: Option<u32>,
    },
    /// Ping over a stream, and report whether there was an answer in time.
    StreamPing {
        /// Number of the ping.
        seq: u32,
        /// Whom.
        target: NodeId,
        /// Where.
        addr: SocketAddr,
        /// Until when.
        deadline: Instant,
    },
    /// A member did not answer.
    Accuse {
        /// Who.
        id: NodeId,
        /// The incarnation that was probed.
        incarnation: u32,
        /// What was seen.
        evidence: Evidence,
    },
    /// A member answered a direct ping of the detector's own within the probe timeout.
    Measured {
        /// Who.
        id: NodeId,
        /// Time from the ping to its answer.
        rtt: Duration,
        /// What came with the answer.
        payload: Bytes,
    },
    /// A question of the application has an answer.
    Answered {
        /// The number of its ping.
        seq: u32,
        /// Time from the ping to its answer.
        rtt: Duration,
        /// The run under whose seal it came; [`NodeId::ANY_RUN`] if it is not sealed.
        by: u64,
    },
    /// A question of the application has none.
    Unanswered {
        /// The number of its ping.
        seq: u32,
        /// Why not.
        why: NoAnswer,
    },
    /// A member answered over a stream though no datagram came through: its UDP is cut.
    UdpLost {
        /// Who.
        id: NodeId,
    },
}

/// Several of them, in their order.
pub type Actions = SmallVec<[Action; 4]>;

/// What came of a ping over a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialled {
    /// The right answer, in time.
    Answered,
    /// The host said that nothing listens there.
    Refused,
    /// Nothing, or nothing that is an answer.
    Silent,
}

/// Why a question of the application has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// None came within the probe timeout.
    InTime,
    /// The network did not take the ping.
    NotSent,
}

/// Questions of the application that wait for an answer at once. Each waits for a probe timeout at most.
pub const MAX_QUESTIONS: usize = 1024;

/// [`MAX_QUESTIONS`] wait already. Nothing was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_QUESTIONS} pings wait for an answer already")]
pub struct TooManyQuestions;

/// Why a message to the failure detector led to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Unheard {
    /// A ping for somebody else, or for another run.
    NotForMe,
    /// An answer to nothing that was asked, or to something long decided.
    UnknownSequence,
    /// An indirect ping of somebody who is no member at that address.
    UnknownTarget,
    /// More indirect pings than are carried out at once.
    TooManyRelays,
    /// More indirect pings than are carried out at once for one member.
    TooManyRelaysOfSource,
    /// An indirect ping of somebody who is no member at the address that it came from. A nack is the answer.
    UnknownAsker,
    /// More questions than a datagram of that size has answers to.
    TooMuchAsked,
    /// More questions of strangers than are answered in a second.
    TooManyStrangers,
}

impl Unheard {
    /// Each of them.
    pub const ALL: [Self; 8] = [
        Self::NotForMe,
        Self::UnknownSequence,
        Self::UnknownTarget,
        Self::TooManyRelays,
        Self::TooManyRelaysOfSource,
        Self::UnknownAsker,
        Self::TooMuchAsked,
        Self::TooManyStrangers,
    ];

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::NotForMe => "not_for_me",
            Self::UnknownSequence => "unknown_sequence",
            Self::UnknownTarget => "unknown_target",
            Self::TooManyRelays => "too_many_relays",
            Self::TooManyRelaysOfSource => "too_many_relays_of_source",
            Self::UnknownAsker => "unknown_asker",
            Self::TooMuchAsked => "too_much_asked",
            Self::TooManyStrangers => "too_many_strangers",
        }
    }
}

/// What an answer with some number is the answer to.
#[derive(Clone, Copy, Debug)]
enum Expected {
    Direct,
    Helper(usize),
    Relay,
    Question(Question),
}

/// A ping that the application has asked for.
#[derive(Clone, Copy, Debug)]
struct Question {
    sent: Instant,
    until: Instant,
}

#[derive(Debug)]
struct Round {
    target: Arc<Member>,
    seq: u32,
    sent: Instant,
    phase: Phase,
    deadline: Instant,
    helpers: SmallVec<[Helper; 4]>,
    direct: bool,
    refused: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Waits for the answer to the direct ping until then.
    Direct(Instant),
    /// Waits for any answer until the deadline.
    Indirect,
}

#[derive(Clone, Copy, Debug)]
struct Helper {
    seq: u32,
    nacked: bool,
}

/// An indirect ping that is carried out for somebody.
#[derive(Debug)]
struct Relay {
    asker: SocketAddr,
    asker_run: u64,
    asker_seq: u32,
    target: Arc<Member>,
    step: Step,
    expires: Instant,
}

impl Relay {
    /// To whoever asked for it.
    fn answer(&self, messages: SmallVec<[Message; 1]>) -> Action {
        let (to, run) = (self.asker, self.asker_run);
        Action::Send { to, run, messages, piggyback: Piggyback::Yes, report: None }
    }
}

/// What is next for a relay without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// To dial, and see whether it is refused; then to say until that moment that there is no answer.
    Dial(Instant),
    /// To say so.
    Nack,
    /// To wait for its end.
    End,
}

/// The failure detector of one node.
#[derive(Debug)]
pub struct Detector {
    config: Arc<Config>,
    health: Awareness,
    order: Vec<Arc<str>>,
    cursor: usize,
    next_probe: Option<Instant>,
    round: Option<Round>,
    expected: BTreeMap<u32, Expected>,
    relays: BTreeMap<u32, Relay>,
    /// How many of them there are for each asker.
    relays_of: BTreeMap<SocketAddr, usize>,
    relay_due: BTreeSet<(Instant, u32)>,
    question_due: BTreeSet<(Instant, u32)>,
    degraded: u64,
}

impl Detector {
    /// A detector that starts its first round at a random moment of the first interval.
    pub fn new(config: Arc<Config>, now: Instant, rng: &mut impl Rng) -> Self {
        let interval = config.probe_interval;
        let next_probe = (!interval.is_zero()).then(|| now + interval.mul_f64(rng.random::<f64>()));
        Self {
            health: Awareness::new(config.awareness_max_multiplier),
            config,
            order: Vec::new(),
            cursor: 0,
            next_probe,
            round: None,
            expected: BTreeMap::new(),
            relays: BTreeMap::new(),
            relays_of: BTreeMap::new(),
            relay_due: BTreeSet::new(),
            question_due: BTreeSet::new(),
            degraded: 0,
        }
    }

    /// Local health: 0 is good.
    pub fn score(&self) -> u32 {
        self.health.score()
    }

    /// When the probe round that runs was started, if one does.
    pub fn probing_since(&self) -> Option<Instant> {
        self.round.as_ref().map(|round| round.sent)
    }

    /// Rounds that were longer than the probe interval, because this node's health was doubtful.
    pub fn degraded_rounds(&self) -> u64 {
        self.degraded
    }

    /// Something outside of the probes speaks for (negative) or against (positive) this node's health.
    pub fn doubt(&mut self, delta: i32) {
        self.health.apply(delta);
    }

    /// Whether an answer with this number is waited for.
    pub fn expects(&self, seq: u32) -> bool {
        self.expected.contains_key(&seq)
    }

    /// A new member joins the order of probes at a random place, so that its first probe comes soon.
    pub fn newcomer(&mut self, name: Arc<str>, members: usize, rng: &mut impl Rng) {
        // Members that come and go often leave traces in the order until it is drawn anew.
        if self.order.len() < 2 * members + 16 {
            self.order.push(name);
            let (last, place) = (self.order.len() - 1, rng.random_range(0..self.order.len()));
            self.order.swap(last, place);
        }
    }

    /// When [`Detector::on_time`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let round = self.round.as_ref().map(|round| match round.phase {
            Phase::Direct(until) => until.min(round.deadline),
            Phase::Indirect => round.deadline,
        });
        let probe = if round.is_some() { None } else { self.next_probe };
        let relay = self.relay_due.first().map(|(at, _)| *at);
        let question = self.question_due.first().map(|(at, _)| *at);
        [round, probe, relay, question].into_iter().flatten().min()
    }

    /// Does what time asks for: starts a round, takes a round further, ends it; sends nacks.
    pub fn on_time(&mut self, view: &View, now: Instant, rng: &mut impl Rng) -> Actions {
        let mut actions = Actions::new();
        self.relays_on_time(now, &mut actions);
        self.questions_on_time(now, &mut actions);
        if let Some(round) = &self.round {
            match round.phase {
                // When this node itself did not run for long, the answer may lie unread: the round is void.
                _ if now > round.deadline + self.config.suspicion_base() / 2 => {
                    self.end_round();
                    self.health.apply(1);
                }
                _ if now >= round.deadline => self.fail(&mut actions),
                Phase::Direct(until) if now >= until => self.ask_others(view, now, rng, &mut actions),
                _ => {}
            }
        }
        if self.round.is_none()
            && let Some(at) = self.next_probe.filter(|at| now >= *at)
        {
            // Ticks that a long round has taken up are not made good.
            let next = at + self.config.probe_interval;
            self.next_probe = Some(if next > now { next } else { now + self.config.probe_interval });
            self.start(view, now, rng, &mut actions);
        }
        actions
    }

    fn start(&mut self, view: &View, now: Instant, rng: &mut impl Rng, actions: &mut Actions) {
        if view.local().state == MemberState::Left {
            return;
        }
        let Some(target) = self.next_target(view, rng) else { return };
        let interval = self.health.scale(self.config.probe_interval);
        self.degraded += u64::from(self.health.score() > 0);
        let seq = self.sequence(Expected::Direct, rng);
        let mut messages: SmallVec<[Message; 1]> =
            smallvec![Message::Ping(Ping { seq, target: target.id.clone(), from: view.local().id.clone() })];
        if target.state == MemberState::Suspect {
            // Lifeguard's buddy system: the suspect hears of it first, and can refute at once.
            messages.push(Message::Suspect(Suspect {
                id: target.id.clone(),
                incarnation: target.incarnation,
                from: view.local().id.shared_name().clone(),
                evidence: Evidence::Hearsay,
            }));
        }
        actions.push(Action::Send {
            to: target.addr,
            run: target.id.run(),
            messages,
            piggyback: Piggyback::Yes,
            report: Some(seq),
        });
        self.round = Some(Round {
            target,
            seq,
            sent: now,
            phase: Phase::Direct(now + self.config.probe_timeout),
            deadline: now + interval,
            helpers: SmallVec::new(),
            direct: true,
            refused: false,
        });
    }

    /// The next of the order that is there. At its end the order is drawn anew from the view.
    fn next_target(&mut self, view: &View, rng: &mut impl Rng) -> Option<Arc<Member>> {
        for _ in 0..2 {
            while let Some(name) = self.order.get(self.cursor) {
                self.cursor += 1;
                let wanted = |m: &&Arc<Member>| {
                    (m.state.is_present() || view.is_on_probation(name)) && m.id != view.local().id
                };
                if let Some(member) = view.get(name).filter(wanted) {
                    return Some(member.clone());
                }
            }
            let local = view.local().name();
            let present = view.alive().filter(|m| m.name() != local).map(|m| m.id.shared_name());
            self.order = present.chain(view.on_probation()).cloned().collect();
            self.order.shuffle(rng);
            self.cursor = 0;
        }
        None
    }

    fn ask_others(&mut self, view: &View, now: Instant, rng: &mut impl Rng, actions: &mut Actions) {
        let Some(mut round) = self.round.take() else { return };
        round.phase = Phase::Indirect;
        let local = view.local();
        let checks = self.config.indirect_checks as usize;
        let helpers = view.roster().sample(checks, rng, |m| {
            m.state == MemberState::Alive && m.id != local.id && m.id != round.target.id
        });
        for (i, helper) in helpers.iter().enumerate() {
            let seq = self.sequence(Expected::Helper(i), rng);
            round.helpers.push(Helper { seq, nacked: false });
            let request = IndirectPing {
                seq,
                target: round.target.id.clone(),
                addr: round.target.addr,
                from: local.id.clone(),
            };
            actions.push(Action::Send {
                to: helper.addr,
                run: helper.id.run(),
                messages: smallvec![Message::IndirectPing(request)],
                piggyback: Piggyback::Yes,
                report: None,
            });
        }
        if self.is_dialled(&round.target.id) && now < round.deadline {
            actions.push(Action::StreamPing {
                seq: round.seq,
                target: round.target.id.clone(),
                addr: round.target.addr,
                deadline: round.deadline,
            });
        }
        self.round = Some(round);
    }

    /// Whether pings go over streams as well.
    fn is_dialled(&self, id: &NodeId) -> bool {
        !self.config.disable_tcp_pings && !self.config.disable_tcp_pings_for.contains(id.name())
    }

    fn fail(&mut self, actions: &mut Actions) {
        let Some(round) = self.end_round() else { return };
        let (id, incarnation) = (round.target.id.clone(), round.target.incarnation);
        if round.refused {
            // The fault is there, and the helpers had less time than others.
            actions.push(Action::Accuse { id, incarnation, evidence: Evidence::Refused });
            return;
        }
        let helpers = round.helpers.len();
        let nacks = round.helpers.iter().filter(|helper| helper.nacked).count();
        let healthy = self.health.score() == 0;
        // Each helper that does not even say that it has no answer makes it likelier that the fault is here.
        self.health.apply(if helpers == 0 { 1 } else { (helpers - nacks) as i32 });
        actions.push(Action::Accuse {
            id,
            incarnation,
            evidence: Evidence::NoAnswer {
                direct: round.direct,
                helpers: helpers as u8,
                nacks: nacks as u8,
                healthy,
            },
        });
    }

    fn end_round(&mut self) -> Option<Round> {
        let round = self.round.take()?;
        self.expected.remove(&round.seq);
        for helper in &round.helpers {
            self.expected.remove(&helper.seq);
        }
        Some(round)
    }

    fn succeed(&mut self) -> Option<Round> {
        self.health.apply(-1);
        self.end_round()
    }

    /// A ping came in from `from`.
    ///
    /// Only a member at its known address gets the payload and news, and only with [`Piggyback::Yes`], so that
    /// no answer to a stranger is larger than its question: see [`Allowance`](crate::allowance::Allowance).
    ///
    /// # Errors
    /// [`Unheard::NotForMe`].
    pub fn ping(
        &self,
        ping: &Ping,
        from: SocketAddr,
        piggyback: Piggyback,
        payload: &Bytes,
        view: &View,
    ) -> Result<Action, Unheard> {
        if !view.local().id.answers_to(&ping.target) {
            return Err(Unheard::NotForMe);
        }
        let run = ping.from.run();
        let asker = (piggyback == Piggyback::Yes).then(|| member_at(view, &ping.from, from)).flatten();
        let Some(asker) = asker else {
            let messages = smallvec![Message::Ack(Ack { seq: ping.seq, payload: Bytes::new() })];
            return Ok(Action::Send { to: from, run, messages, piggyback: Piggyback::No, report: None });
        };
        let mut messages: SmallVec<[Message; 1]> =
            smallvec![Message::Ack(Ack { seq: ping.seq, payload: payload.clone() })];
        // Whoever is on probation has answered that already.
        if !view.is_on_probation(asker.name()) {
            messages.extend(accusation(asker, view.local()));
        }
        Ok(Action::Send { to: from, run, messages, piggyback: Piggyback::Yes, report: None })
    }

    /// An indirect ping came in from `from`. Only members are pinged for others, at the address known here, and
    /// only for members at theirs: anybody else gets a nack at once (see [`allowance`](crate::allowance)).
    ///
    /// # Errors
    /// [`Unheard::UnknownTarget`], [`Unheard::TooManyRelays`] or [`Unheard::TooManyRelaysOfSource`].
    pub fn indirect_ping(
        &mut self,
        request: &IndirectPing,
        from: SocketAddr,
        view: &View,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Action, Unheard> {
        let target = pingable(view, request).ok_or(Unheard::UnknownTarget)?;
        if member_at(view, &request.from, from).is_none() {
            let messages = smallvec![Message::Nack(Nack { seq: request.seq })];
            let run = request.from.run();
            return Ok(Action::Send { to: from, run, messages, piggyback: Piggyback::No, report: None });
        }
        if self.relays_of.get(&from).is_some_and(|count| *count >= self.config.max_relays_per_source) {
            return Err(Unheard::TooManyRelaysOfSource);
        }
        if self.relays.len() >= self.config.max_relays {
            return Err(Unheard::TooManyRelays);
        }
        let seq = self.sequence(Expected::Relay, rng);
        let nack = now + self.config.nack_delay();
        let looks = self.config.count_refusals && self.is_dialled(&target.id);
        let relay = Relay {
            asker: from,
            asker_run: request.from.run(),
            asker_seq: request.seq,
            target: target.clone(),
            step: if looks { Step::Dial(nack) } else { Step::Nack },
            expires: now + self.config.suspicion_base().max(self.config.probe_timeout),
        };
        self.relays.insert(seq, relay);
        *self.relays_of.entry(from).or_default() += 1;
        self.relay_due.insert((if looks { now + self.config.nack_delay() / 4 } else { nack }, seq));
        let ping = Ping { seq, target: target.id.clone(), from: view.local().id.clone() };
        Ok(Action::Send {
            to: target.addr,
            run: target.id.run(),
            messages: smallvec![Message::Ping(ping)],
            piggyback: Piggyback::Yes,
            report: None,
        })
    }

    /// A relay ends: with its answer, or because its time is up.
    fn end_relay(&mut self, seq: u32) -> Option<Relay> {
        self.expected.remove(&seq);
        let relay = self.relays.remove(&seq)?;
        if let Some(count) = self.relays_of.get_mut(&relay.asker) {
            *count -= 1;
            if *count == 0 {
                self.relays_of.remove(&relay.asker);
            }
        }
        Some(relay)
    }

    /// An answer came in, sealed by the run `by`; not sealed, by [`NodeId::ANY_RUN`].
    ///
    /// # Errors
    /// [`Unheard::UnknownSequence`].
    pub fn ack(&mut self, ack: &Ack, by: u64, now: Instant) -> Result<Option<Action>, Unheard> {
        match self.expected.get(&ack.seq).copied().ok_or(Unheard::UnknownSequence)? {
            Expected::Relay => {
                let relay = self.end_relay(ack.seq).ok_or(Unheard::UnknownSequence)?;
                let answer = Ack { seq: relay.asker_seq, payload: Bytes::new() };
                Ok(Some(relay.answer(smallvec![Message::Ack(answer)])))
            }
            Expected::Helper(_) => {
                self.succeed();
                Ok(None)
            }
            Expected::Direct => {
                let round = self.succeed().ok_or(Unheard::UnknownSequence)?;
                let rtt = now.saturating_duration_since(round.sent);
                let (id, payload) = (round.target.id.clone(), ack.payload.clone());
                Ok((rtt <= self.config.probe_timeout).then_some(Action::Measured { id, rtt, payload }))
            }
            Expected::Question(question) => {
                self.end_question(ack.seq, question);
                let rtt = now.saturating_duration_since(question.sent);
                Ok(Some(Action::Answered { seq: ack.seq, rtt, by }))
            }
        }
    }

    /// A helper has no answer so far.
    ///
    /// # Errors
    /// [`Unheard::UnknownSequence`].
    pub fn nack(&mut self, nack: &Nack) -> Result<(), Unheard> {
        match (self.expected.get(&nack.seq), &mut self.round) {
            (Some(Expected::Helper(i)), Some(round)) => {
                round.helpers[*i].nacked = true;
                Ok(())
            }
            _ => Err(Unheard::UnknownSequence),
        }
    }

    /// The ping over a stream has ended. An answer ends the round at once. A refusal, if it counts, ends it soon; and a
    /// helper that is refused says so to its asker, and to all as an accusation of its own.
    ///
    /// # Errors
    /// [`Unheard::UnknownSequence`].
    pub fn stream_ping(
        &mut self,
        seq: u32,
        heard: Dialled,
        view: &View,
        now: Instant,
    ) -> Result<Actions, Unheard> {
        let refused = heard == Dialled::Refused && self.config.count_refusals;
        match self.expected.get(&seq) {
            Some(Expected::Direct) if heard == Dialled::Answered => {
                let id = self.succeed().map(|round| round.target.id.clone());
                Ok(id.map(|id| Action::UdpLost { id }).into_iter().collect())
            }
            Some(Expected::Direct) => {
                let soon = now + self.config.nack_delay() / 2;
                if let Some(round) = self.round.as_mut().filter(|_| refused) {
                    (round.refused, round.deadline) = (true, round.deadline.min(soon));
                }
                Ok(Actions::new())
            }
            Some(Expected::Relay) if refused => {
                let relay = self.end_relay(seq).ok_or(Unheard::UnknownSequence)?;
                let (id, incarnation) = (relay.target.id.clone(), relay.target.incarnation);
                let suspect = Suspect {
                    id: id.clone(),
                    incarnation,
                    from: view.local().id.shared_name().clone(),
                    evidence: Evidence::Refused,
                };
                let nack = Message::Nack(Nack { seq: relay.asker_seq });
                let told = relay.answer(smallvec![nack, Message::Suspect(suspect)]);
                Ok(smallvec![told, Action::Accuse { id, incarnation, evidence: Evidence::Refused }])
            }
            Some(Expected::Relay) => Ok(Actions::new()),
            _ => Err(Unheard::UnknownSequence),
        }
    }

    /// The application asks whether somebody of that name, or anybody, is at `to`, member or not. It says the number of the
    /// ping, which later comes back as [`Action::Answered`] or [`Action::Unanswered`], and the ping to be sent.
    /// Nothing else follows from it: nobody is accused, and health stays as it is.
    ///
    /// # Errors
    /// [`TooManyQuestions`].
    pub fn ask(
        &mut self,
        target: NodeId,
        to: SocketAddr,
        view: &View,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<(u32, Action), TooManyQuestions> {
        if self.question_due.len() >= MAX_QUESTIONS {
            return Err(TooManyQuestions);
        }
        let question = Question { sent: now, until: now + self.config.probe_timeout };
        let seq = self.sequence(Expected::Question(question), rng);
        self.question_due.insert((question.until, seq));
        let local = view.local();
        let messages = smallvec![Message::Ping(Ping { seq, target, from: local.id.clone() })];
        // Whoever is there, of whatever run: what is meant for members does not travel along.
        let (run, piggyback) = (NodeId::ANY_RUN, Piggyback::No);
        Ok((seq, Action::Send { to, run, messages, piggyback, report: Some(seq) }))
    }

    fn end_question(&mut self, seq: u32, question: Question) {
        self.expected.remove(&seq);
        self.question_due.remove(&(question.until, seq));
    }

    /// A direct ping could not be sent: there is no use in waiting for its answer.
    pub fn send_failed(&mut self, seq: u32, now: Instant) -> Option<Action> {
        if let Some(Expected::Question(question)) = self.expected.get(&seq).copied() {
            self.end_question(seq, question);
            return Some(Action::Unanswered { seq, why: NoAnswer::NotSent });
        }
        if let Some(round) = self.round.as_mut().filter(|round| round.seq == seq) {
            round.direct = false;
            if matches!(round.phase, Phase::Direct(_)) {
                round.phase = Phase::Direct(now);
            }
        }
        None
    }

    fn questions_on_time(&mut self, now: Instant, actions: &mut Actions) {
        while let Some((at, seq)) = self.question_due.first().copied().filter(|(at, _)| *at <= now) {
            self.question_due.remove(&(at, seq));
            self.expected.remove(&seq);
            actions.push(Action::Unanswered { seq, why: NoAnswer::InTime });
        }
    }

    fn relays_on_time(&mut self, now: Instant, actions: &mut Actions) {
        while let Some((at, seq)) = self.relay_due.first().copied().filter(|(at, _)| *at <= now) {
            self.relay_due.remove(&(at, seq));
            let Some(relay) = self.relays.get_mut(&seq) else { continue };
            match relay.step {
                _ if now >= relay.expires => drop(self.end_relay(seq)),
                Step::Dial(until) => {
                    relay.step = Step::Nack;
                    self.relay_due.insert((until, seq));
                    let (target, addr) = (relay.target.id.clone(), relay.target.addr);
                    actions.push(Action::StreamPing { seq, target, addr, deadline: until });
                }
                Step::Nack => {
                    relay.step = Step::End;
                    self.relay_due.insert((relay.expires, seq));
                    actions.push(relay.answer(smallvec![Message::Nack(Nack { seq: relay.asker_seq })]));
                }
                Step::End => drop(self.end_relay(seq)),
            }
        }
    }

    /// A number that nobody can guess and that no other question has.
    fn sequence(&mut self, expected: Expected, rng: &mut impl Rng) -> u32 {
        loop {
            let seq = rng.random();
            if let std::collections::btree_map::Entry::Vacant(place) = self.expected.entry(seq) {
                place.insert(expected);
                return seq;
            }
        }
    }
}

/// The member `id`, if a packet from `from` can be its own: in plaintext that is all that is known of who asks.
pub fn member_at<'a>(view: &'a View, id: &NodeId, from: SocketAddr) -> Option<&'a Arc<Member>> {
    view.get(id.name()).filter(|m| m.id == *id && m.addr == from)
}

/// Who is to be pinged for somebody else: a member as it is known here, and not this node itself.
pub fn pingable<'a>(view: &'a View, request: &IndirectPing) -> Option<&'a Arc<Member>> {
    let own = &view.local().id;
    view.get(request.target.name()).filter(|m| {
        m.id == request.target && m.addr == request.addr && m.state != MemberState::Left && m.id != *own
    })
}

/// What a member is to be told that is held for suspect or gone: it hears of it first, and can refute at once
/// (Lifeguard's buddy system). Whoever is pinged by somebody dead knows best that it runs; one that is held for
/// left may have been declared so by an operator, and no gossip reaches it.
fn accusation(member: &Member, local: &Member) -> Option<Message> {
    let (id, incarnation) = (member.id.clone(), member.incarnation);
    let (from, evidence) = (local.id.shared_name().clone(), Evidence::Hearsay);
    match member.state {
        MemberState::Suspect => Some(Message::Suspect(Suspect { id, incarnation, from, evidence })),
        MemberState::Dead | MemberState::Left => {
            let (by, confirmed_by) = (from.clone(), Vec::new());
            Some(Message::Dead(Dead { id, incarnation, from, by, confirmed_by, evidence }))
        }
        MemberState::Alive => None,
    }
}

#[cfg(test)]
mod tests;
