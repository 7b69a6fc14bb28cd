//! **FailureDetector** probes members, answers their probes, and accuses those that do not answer. It hears
//! pings, acks and nacks from Transport and its own tick; it says pings and acks to BroadcastQueue and
//! accusations to NodeState.

use std::{
    sync::atomic::Ordering::Relaxed,
    time::{Duration, Instant},
};

use actix::{Actor, Context, StreamHandler};
use memberlist_protocol::probe::{Action, NoAnswer, TooManyQuestions, Unheard};

use crate::{
    casts::Target,
    errors::{AskError, Cause, NotSent, SendError},
    events::Pinged,
    inbox::{Alarm, Turn, Turns},
    logs::{self, Line, say},
    messages::{DETECTOR, Then, ToDelegates, ToDetector, ToQueue, ToState, ToTransport},
    metrics::{Lost, up},
    ring::{Shared, now},
    supervisor::Child,
};

pub(crate) struct FailureDetector {
    ring: Shared,
    alarm: Alarm,
    /// Stalls that health has been told of.
    stalls: u64,
    /// When the probe round began that ran at the end of the last turn.
    probing: Option<Instant>,
}

impl FailureDetector {
    pub(crate) fn new(ring: Shared) -> Self {
        let stalls = ring.counters.stalls.load(Relaxed);
        let probing = ring.detector.borrow().probing_since();
        Self { ring, alarm: Alarm::default(), stalls, probing }
    }

    fn hear(&self, item: ToDetector) {
        let (ring, now) = (&self.ring, now());
        let detector = &ring.detector;
        match item {
            ToDetector::Ping { ping, from, piggyback } => {
                let payload = ring.ping_payload().clone();
                let answer = detector.borrow().ping(&ping, from, piggyback, &payload, &ring.view.borrow());
                self.act(answer.map(Some));
            }
            ToDetector::IndirectPing { request, from } => {
                let mut rng = ring.rng.borrow_mut();
                let relayed =
                    detector.borrow_mut().indirect_ping(&request, from, &ring.view.borrow(), now, &mut *rng);
                drop(rng);
                self.act(relayed.map(Some));
            }
            ToDetector::Ack { ack, by } => {
                let heard = detector.borrow_mut().ack(&ack, by, now);
                self.act(heard);
            }
            ToDetector::Nack(nack) => {
                let heard = detector.borrow_mut().nack(&nack);
                self.act(heard.map(|()| None));
            }
            ToDetector::StreamPinged { seq, heard } => {
                let actions = detector.borrow_mut().stream_ping(seq, heard, &ring.view.borrow(), now);
                match actions {
                    Ok(actions) => actions.into_iter().for_each(|action| self.carry_out(action)),
                    Err(unheard) => ring.counters.drop(unheard),
                }
            }
            ToDetector::Ask { target, addr, then } => {
                let mut rng = ring.rng.borrow_mut();
                let asked = detector.borrow_mut().ask(target, addr, &ring.view.borrow(), now, &mut *rng);
                drop(rng);
                match asked {
                    Ok((seq, ping)) => {
                        ring.questions().insert(seq, then);
                        self.carry_out(ping);
                    }
                    Err(TooManyQuestions) => self.answer(then, Err(AskError::Send(SendError::Full))),
                }
            }
            ToDetector::SendFailed { seq } => {
                let failed = detector.borrow_mut().send_failed(seq, now);
                self.act(Ok(failed));
            }
            ToDetector::Newcomer { name, members } => {
                detector.borrow_mut().newcomer(name, members, &mut *ring.rng.borrow_mut());
            }
            ToDetector::Doubt => detector.borrow_mut().doubt(1),
        }
    }

    fn act(&self, heard: Result<Option<Action>, Unheard>) {
        match heard {
            Ok(Some(action)) => self.carry_out(action),
            Ok(None) => {}
            Err(unheard) => self.ring.counters.drop(unheard),
        }
    }

    fn carry_out(&self, action: Action) {
        let ring = &self.ring;
        match action {
            Action::Send { to, run, messages, piggyback, report } => {
                ring.command(&ring.queue, ToQueue::Send { to, run, messages, piggyback, report });
            }
            Action::StreamPing { seq, target, addr, deadline } => {
                let deadline = deadline.into();
                ring.command(&ring.transport, ToTransport::StreamPing { seq, target, addr, deadline });
            }
            Action::Accuse { id, incarnation, evidence } => {
                // The round ran when this turn began.
                let probed = self.probing.unwrap_or_else(now);
                ring.command(&ring.state, ToState::Accuse { id, incarnation, evidence, probed });
            }
            Action::Measured { id, rtt, payload } => {
                ring.counters.probe_rtt.observe(rtt);
                tracing::trace!(member = %logs::node(&id), ?rtt, "answered");
                if ring.listeners.load(Relaxed) > 0 {
                    let member = ring.view.borrow().get(id.name()).filter(|m| m.id == id).cloned();
                    if let Some(member) = member {
                        let pinged = Pinged::new(member, rtt, payload);
                        ring.command(&ring.delegates, ToDelegates::Pinged(pinged));
                    }
                }
            }
            Action::Answered { seq, rtt, by } => self.end_question(seq, Ok((rtt, by))),
            Action::Unanswered { seq, why: NoAnswer::InTime } => {
                self.end_question(seq, Err(AskError::Timeout));
            }
            Action::Unanswered { seq, why: NoAnswer::NotSent } => {
                self.end_question(seq, Err(AskError::NotSent(NotSent::Never(Cause::Network))));
            }
            Action::UdpLost { id } => {
                up(&ring.counters.udp_lost);
                let member = logs::node(&id);
                say!(ring, Line::UdpLost, warn, %member, "answers over a stream only: check that UDP gets through");
            }
        }
    }

    fn end_question(&self, seq: u32, answer: Result<(Duration, u64), AskError>) {
        let then = self.ring.questions().remove(&seq);
        if let Some(then) = then {
            self.answer(then, answer);
        }
    }

    /// Does what was to follow the answer, of which the round trip and the run are known.
    fn answer(&self, then: Then, answer: Result<(Duration, u64), AskError>) {
        match then {
            Then::Tell(reply) => drop(reply.send(answer.map(|(rtt, _)| rtt))),
            Then::Cast(cast) => {
                let sent = answer.map_err(drop).and_then(|(_, run)| {
                    let (to, max) = (Target { run, ..cast.to }, self.ring.max_broadcast.load(Relaxed));
                    self.ring.casts.push(&to, "", &cast.bytes, max).map_err(drop)
                });
                if sent.is_err() {
                    self.ring.counters.drop(Lost::NobodyThere);
                }
            }
        }
    }

    fn on_time(&mut self) {
        let ring = &self.ring;
        let stalls = ring.counters.stalls.load(Relaxed);
        if stalls > self.stalls {
            ring.detector.borrow_mut().doubt(1);
            self.stalls = stalls;
        }
        let actions = {
            let mut detector = ring.detector.borrow_mut();
            detector.on_time(&ring.view.borrow(), now(), &mut *ring.rng.borrow_mut())
        };
        for action in actions {
            self.carry_out(action);
        }
    }

    fn set_alarm(&mut self) {
        let detector = self.ring.detector.borrow();
        let probing = detector.probing_since();
        if let Some(since) = self.probing.filter(|since| probing != Some(*since)) {
            self.ring.counters.probe.observe(now().saturating_duration_since(since));
        }
        self.probing = probing;
        self.ring.counters.health.store(detector.score().into(), Relaxed);
        self.ring.counters.degraded_probes.store(detector.degraded_rounds(), Relaxed);
        self.alarm.set(detector.due());
    }
}

impl Actor for FailureDetector {
    type Context = Context<Self>;
}

impl actix::Supervised for FailureDetector {}

impl Child for FailureDetector {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        self.set_alarm();
        Self::add_stream(Turns::new(self.ring.detector_inbox().clone(), self.alarm.clone(), None), ctx);
    }
}

impl StreamHandler<Turn> for FailureDetector {
    fn handle(&mut self, _: Turn, _: &mut Context<Self>) {
        // Answers first: one that lies here must not be missed because time has passed as well.
        self.ring.turn(DETECTOR, self.ring.detector_inbox(), |item| self.hear(item));
        self.ring.hooks.strike(DETECTOR, "tick");
        self.on_time();
        self.set_alarm();
    }
}
