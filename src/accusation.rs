//! Who said that a member is gone, on what evidence, and how it ended: an operator's first question.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use crate::member::NodeId;

/// What an accuser has seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Evidence {
    /// It did not answer a probe.
    NoAnswer {
        /// Whether a direct ping could be sent to it at all.
        direct: bool,
        /// Members that were asked to ping it.
        helpers: u8,
        /// How many of these reported that they had no answer either.
        nacks: u8,
        /// Whether the accuser was in good health: its own probes had gone well lately.
        healthy: bool,
    },
    /// Its host refused a connection: nothing listens there.
    Refused,
    /// Another node's full state said so.
    PushPull,
    /// Gossip that does not say more.
    Hearsay,
    /// It was dead, and an operator declared it to have left.
    ForceLeave,
    /// It said so itself.
    Announced,
    /// A new run of the same name has taken its place.
    Replaced,
}

impl Evidence {
    /// Whether anybody else is to hear of it: not if none of several helpers said anything at all. Then it is likely that
    /// the accuser hears nobody, and whom it can reach it would only disturb.
    pub fn is_heard(self) -> bool {
        !matches!(self, Self::NoAnswer { helpers: 2.., nacks: 0, .. })
    }

    /// Whether it speaks for a fault of the accused, and not of its accuser or of the network around that: the accuser
    /// was in good health, and all its helpers answered that they had no answer either; or the host itself said that
    /// nothing listens there.
    pub fn is_full(self) -> bool {
        match self {
            Self::NoAnswer { direct, helpers, nacks, healthy } => {
                direct && healthy && helpers > 0 && nacks == helpers
            }
            Self::Refused => true,
            _ => false,
        }
    }
}

/// One accusation against a member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Accusation {
    /// Who said it first.
    pub by: Arc<str>,
    /// Who said it too, before it was decided.
    pub confirmed_by: Vec<Arc<str>>,
    /// On what evidence the first one said it.
    pub evidence: Evidence,
    /// When this node heard of it.
    pub at: Instant,
}

/// How an accusation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is not decided yet.
    Open,
    /// The member answered that it runs.
    Refuted(Instant),
    /// The member is held for dead.
    Dead(Instant),
    /// The member has left.
    Left(Instant),
}

/// The last accusations against one member, the newest last.
#[derive(Clone, Debug)]
pub struct Why {
    /// The member in the run that was accused last.
    pub member: NodeId,
    /// What was said, and how it ended.
    pub accusations: Vec<(Accusation, Outcome)>,
}

/// Accusations that are kept for one member.
const PER_MEMBER: usize = 8;

/// Members whose accusations are kept.
const MEMBERS: usize = 1024;

/// The last accusations against the members that were accused last.
#[derive(Clone, Debug, Default)]
pub struct History {
    members: VecDeque<Why>,
}

impl History {
    /// What was said of `name`, if anything was.
    pub fn of(&self, name: &str) -> Option<&Why> {
        self.members.iter().find(|why| why.member.name() == name)
    }

    /// Notes a new accusation, or what has become of the open one.
    pub fn note(&mut self, member: &NodeId, accusation: &Accusation, outcome: Outcome) {
        let why = self.entry(member);
        if let Some((last, state @ Outcome::Open)) = why.accusations.last_mut() {
            let same = last.by == accusation.by && last.evidence == accusation.evidence;
            *state = outcome;
            if same {
                last.confirmed_by.clone_from(&accusation.confirmed_by);
                return;
            }
        }
        // Another word than the open one has ended it: that one is to be seen, too.
        if why.accusations.len() == PER_MEMBER {
            why.accusations.remove(0);
        }
        why.accusations.push((accusation.clone(), outcome));
    }

    /// Notes that the open accusation against `member` was refuted.
    pub fn refuted(&mut self, member: &NodeId, now: Instant) {
        let why = self.members.iter_mut().find(|why| why.member.name() == member.name());
        if let Some((_, state @ Outcome::Open)) = why.and_then(|why| why.accusations.last_mut()) {
            *state = Outcome::Refuted(now);
        }
    }

    fn entry(&mut self, member: &NodeId) -> &mut Why {
        let at = match self.members.iter().position(|why| why.member.name() == member.name()) {
            Some(at) => at,
            None => {
                if self.members.len() == MEMBERS {
                    self.members.pop_front();
                }
                self.members.push_back(Why { member: member.clone(), accusations: Vec::new() });
                self.members.len() - 1
            }
        };
        let why = &mut self.members[at];
        why.member = member.clone();
        why
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accused(by: &str, confirmed_by: &[&str]) -> Accusation {
        Accusation {
            by: by.into(),
            confirmed_by: confirmed_by.iter().map(|name| (*name).into()).collect(),
            evidence: Evidence::Hearsay,
            at: Instant::now(),
        }
    }

    #[test]
    fn an_accusation_is_followed_to_its_end() {
        let (mut history, now, x) = (History::default(), Instant::now(), NodeId::new("x", 1));
        history.note(&x, &accused("a", &[]), Outcome::Open);
        history.note(&x, &accused("a", &["b"]), Outcome::Open);
        history.note(&x, &accused("a", &["b"]), Outcome::Dead(now));
        history.note(&x, &accused("c", &[]), Outcome::Open);
        history.refuted(&x, now);
        let why = history.of("x").unwrap();
        assert_eq!(why.accusations.len(), 2);
        assert_eq!(why.accusations[0].0.confirmed_by, ["b".into()]);
        assert_eq!(why.accusations[0].1, Outcome::Dead(now));
        assert_eq!(why.accusations[1].1, Outcome::Refuted(now));
    }

    #[test]
    fn another_word_that_ends_an_open_accusation_is_told_besides_it() {
        let (mut history, now, x) = (History::default(), Instant::now(), NodeId::new("x", 1));
        history.note(&x, &accused("a", &["b"]), Outcome::Open);
        let word = Accusation { evidence: Evidence::ForceLeave, ..accused("op", &[]) };
        history.note(&x, &word, Outcome::Left(now));
        let why = history.of("x").unwrap();
        assert_eq!(why.accusations[0].0.confirmed_by, ["b".into()]);
        assert_eq!(why.accusations[0].1, Outcome::Left(now));
        assert_eq!(why.accusations[1], (word, Outcome::Left(now)));
    }

    #[test]
    fn it_is_bounded_in_members_and_in_accusations() {
        let mut history = History::default();
        for i in 0..2 * MEMBERS as u64 {
            let id = NodeId::new(format!("n{i}"), 0);
            for _ in 0..20 {
                history.note(&id, &accused("a", &[]), Outcome::Dead(Instant::now()));
            }
        }
        assert_eq!(history.members.len(), MEMBERS);
        assert!(history.of("n0").is_none());
        assert_eq!(history.of("n2047").unwrap().accusations.len(), PER_MEMBER);
    }
}
