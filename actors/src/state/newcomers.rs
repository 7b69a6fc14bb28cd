//! News about members, and the application's word on newcomers.

use std::time::Instant;

use memberlist_protocol::{
    gate::Knock,
    member::{MemberState, NodeId},
    members::Ignored,
    wire::message::Remembered,
};

use crate::{
    logs::{self, Line, say},
    messages::{Asker, ToDelegates},
    questions::Admit,
};

use super::NodeState;

impl NodeState {
    /// For tests that count which news finds a member in which state.
    pub(super) fn meets(&self, kind: &'static str, id: &NodeId) {
        self.ring.hooks.meets(kind, || {
            let kept = self.kept.borrow();
            match kept.members.roster().get(id.name()) {
                None => "unknown",
                Some(record) if record.id != *id => "another run",
                Some(record) if record.id == kept.members.local().id => "self",
                Some(record) => match record.state {
                    MemberState::Alive => "alive",
                    MemberState::Suspect => "suspect",
                    MemberState::Dead => "dead",
                    MemberState::Left => "left",
                },
            }
        });
    }

    /// News about a member. A newcomer waits until the application has let it in; `admitted` is let in already.
    pub(super) fn news(&self, news: Remembered, quiet: bool, admitted: Option<&NodeId>, now: Instant) {
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

    pub(super) fn knock(&self, news: Remembered, quiet: bool, question: Admit, now: Instant) {
        let ring = &self.ring;
        let name = news.alive.id.shared_name().clone();
        // Delegates waits for the application; in case that fails, nobody waits for Delegates for ever.
        let until = now + 2 * ring.config.question_limit();
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

    pub(super) fn admitted(&self, name: &str, number: u64, verdict: Result<(), String>, now: Instant) {
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
}
