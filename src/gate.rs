//! Newcomers whom the application is asked about. Each waits here, and nobody else waits for it.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{member::NodeId, wire::message::Remembered};

/// How long a refusal holds for one incarnation of a node. Gossip tells of it many times; one question is
/// enough.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// What is to be done about a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Knock {
    /// Ask, under this number.
    Ask(u64),
    /// It has been asked already.
    Asked,
    /// The answer was no.
    Refused,
    /// Too many wait.
    Crowded,
}

/// A newcomer that waits.
#[derive(Clone, Debug, PartialEq)]
pub struct Waiting {
    /// What was said of it.
    pub news: Remembered,
    /// Whether that is to be passed on.
    pub quiet: bool,
    number: u64,
    until: Instant,
}

/// The newcomers that wait, and those that were refused a short while ago; each at most `max`.
#[derive(Debug)]
pub struct Gate {
    waiting: BTreeMap<Arc<str>, Waiting>,
    untils: BTreeSet<(Instant, Arc<str>)>,
    refused: BTreeMap<NodeId, (u32, Instant)>,
    lapses: BTreeSet<(Instant, NodeId)>,
    max: usize,
    next: u64,
}

impl Gate {
    /// Nobody waits.
    pub fn new(max: usize) -> Self {
        Self {
            waiting: BTreeMap::new(),
            untils: BTreeSet::new(),
            refused: BTreeMap::new(),
            lapses: BTreeSet::new(),
            max,
            next: 1,
        }
    }

    /// Somebody wants in. Without an answer until `until` it is a refusal.
    pub fn knock(&mut self, news: Remembered, quiet: bool, until: Instant, now: Instant) -> Knock {
        let id = &news.alive.id;
        let refused = self.refused.get(id);
        if refused.is_some_and(|(incarnation, lapse)| news.alive.incarnation <= *incarnation && *lapse > now)
        {
            return Knock::Refused;
        }
        // Let in is what was asked about. What it says since then, it will say again.
        if self.waiting.contains_key(id.name()) {
            return Knock::Asked;
        }
        if self.waiting.len() >= self.max {
            return Knock::Crowded;
        }
        let number = self.next;
        self.next += 1;
        self.untils.insert((until, id.shared_name().clone()));
        self.waiting.insert(id.shared_name().clone(), Waiting { news, quiet, number, until });
        Knock::Ask(number)
    }

    /// The answer to the question of that number has come: who waited for it. Nobody does if it comes late.
    pub fn answer(&mut self, name: &str, number: u64, admitted: bool, now: Instant) -> Option<Waiting> {
        let waiting = self.waiting.get(name).filter(|waiting| waiting.number == number)?;
        if !admitted {
            let alive = &waiting.news.alive;
            self.refuse(alive.id.clone(), alive.incarnation, now);
        }
        let (name, waiting) = self.waiting.remove_entry(name)?;
        self.untils.remove(&(waiting.until, name));
        Some(waiting)
    }

    fn refuse(&mut self, id: NodeId, incarnation: u32, now: Instant) {
        if self.refused.len() >= self.max
            && !self.refused.contains_key(&id)
            && let Some((_, oldest)) = self.lapses.pop_first()
        {
            self.refused.remove(&oldest);
        }
        let lapse = now + REFUSED_FOR;
        if let Some((_, before)) = self.refused.insert(id.clone(), (incarnation, lapse)) {
            self.lapses.remove(&(before, id.clone()));
        }
        self.lapses.insert((lapse, id));
    }

    /// When [`Gate::on_time`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        let waiting = self.untils.first().map(|(at, _)| *at);
        [waiting, self.lapses.first().map(|(at, _)| *at)].into_iter().flatten().min()
    }

    /// Sends those away for whom no answer has come, and forgets old refusals. Says how many those were.
    pub fn on_time(&mut self, now: Instant) -> usize {
        while self.lapses.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, id)) = self.lapses.pop_first()
        {
            self.refused.remove(&id);
        }
        let mut unanswered = 0;
        while self.untils.first().is_some_and(|(at, _)| *at <= now)
            && let Some((_, name)) = self.untils.pop_first()
        {
            self.waiting.remove(&name);
            unanswered += 1;
        }
        unanswered
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{
        member::{MemberState, PackedTags, Versions},
        wire::message::Alive,
    };

    fn news(name: &str, run: u64, incarnation: u32) -> Remembered {
        let alive = Alive {
            id: NodeId::new(name, run),
            incarnation,
            addr: "10.0.0.1:7946".parse().unwrap(),
            tags: PackedTags::default(),
            meta: Bytes::new(),
            versions: Versions::CURRENT,
        };
        Remembered { alive, state: MemberState::Alive }
    }

    #[test]
    fn one_question_is_asked_however_often_a_newcomer_is_heard_of() {
        let (mut gate, now) = (Gate::new(2), Instant::now());
        let until = now + Duration::from_secs(2);
        assert_eq!(gate.knock(news("a", 1, 1), false, until, now), Knock::Ask(1));
        assert_eq!(gate.knock(news("a", 1, 3), false, until, now), Knock::Asked);
        assert_eq!(
            gate.knock(news("a", 2, 9), false, until, now),
            Knock::Asked,
            "another run waits its turn"
        );
        assert_eq!(gate.knock(news("b", 1, 1), false, until, now), Knock::Ask(2));
        assert_eq!(gate.knock(news("c", 1, 1), false, until, now), Knock::Crowded);
        let admitted = gate.answer("a", 1, true, now).unwrap();
        assert_eq!(
            (admitted.news.alive.incarnation, admitted.news.alive.id.run()),
            (1, 1),
            "as it was asked about"
        );
        assert_eq!(gate.answer("a", 1, true, now), None, "once");
    }

    #[test]
    fn a_refusal_holds_for_a_minute_and_for_that_incarnation() {
        let (mut gate, now) = (Gate::new(8), Instant::now());
        let until = now + Duration::from_secs(2);
        gate.knock(news("a", 1, 5), false, until, now);
        gate.answer("a", 1, false, now);
        assert_eq!(gate.knock(news("a", 1, 5), false, until, now), Knock::Refused);
        assert_eq!(gate.knock(news("a", 1, 6), false, until, now), Knock::Ask(2));
        gate.answer("a", 2, false, now);
        let later = now + REFUSED_FOR;
        assert_eq!(gate.due(), Some(later));
        assert_eq!(gate.on_time(later), 0);
        assert_eq!(
            gate.knock(news("a", 1, 6), false, later + until.duration_since(now), later),
            Knock::Ask(3)
        );
        assert_eq!(gate.due(), Some(later + Duration::from_secs(2)));
    }

    #[test]
    fn a_question_without_an_answer_ends_and_leaves_nothing_behind() {
        let (mut gate, now) = (Gate::new(8), Instant::now());
        let until = now + Duration::from_secs(2);
        gate.knock(news("a", 1, 5), false, until, now);
        assert_eq!((gate.on_time(now), gate.due()), (0, Some(until)));
        assert_eq!((gate.on_time(until), gate.due()), (1, None));
        assert_eq!(gate.answer("a", 1, true, until), None, "too late");
        assert_eq!(gate.knock(news("a", 1, 5), false, until, until), Knock::Ask(2));
    }

    #[test]
    fn refusals_are_bounded() {
        let (mut gate, now) = (Gate::new(3), Instant::now());
        for i in 0..20 {
            let name = format!("n{i}");
            let Knock::Ask(number) = gate.knock(news(&name, 1, 1), false, now, now) else { panic!() };
            gate.answer(&name, number, false, now + Duration::from_millis(i));
        }
        assert_eq!((gate.refused.len(), gate.lapses.len()), (3, 3));
        assert_eq!(gate.knock(news("n19", 1, 1), false, now, now), Knock::Refused);
    }
}
