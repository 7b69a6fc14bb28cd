//! What was taken to be sent, what has become of it, and who has heard it: and whether that fits together.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    time::Duration,
};

use actix_memberlist::{Cause, NodeId};
use tokio::time::Instant;

/// What a sender has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It lies in the handler's queue; of a question: the answer has come.
    Done,
    /// Surely not handled.
    Never(Cause),
    /// Nobody knows.
    Unknown(Cause),
    /// No answer in time, or none because the handler is gone.
    Unanswered,
}

/// One message that was taken.
pub struct Entry {
    pub from: NodeId,
    pub to: NodeId,
    /// Its kind; messages of one kind that go by the same lane keep their order.
    pub kind: &'static str,
    pub bulk: bool,
    pub size: usize,
    pub taken: Instant,
    pub outcome: Option<Outcome>,
    pub heard: usize,
}

/// Everything, in the order of the sends.
#[derive(Default)]
pub struct Book {
    pub entries: Vec<Entry>,
    /// The last one that a handler has heard, by from whom, who, what and how.
    last: BTreeMap<(NodeId, usize, &'static str, bool), usize>,
    /// Handlers that there have been.
    pub ears: usize,
    /// Runs that have ended, or whose handler has.
    pub bereft: BTreeSet<NodeId>,
    /// Empty bytes have no number.
    pub empties_sent: usize,
    pub empties_done: usize,
    pub empties_heard: usize,
    /// What must not be.
    pub faults: Vec<String>,
}

pub type Pages = Rc<RefCell<Book>>;

impl Book {
    pub fn heard(&mut self, number: usize, at: &NodeId, ear: usize) {
        let Some(entry) = self.entries.get_mut(number) else {
            return self.faults.push(format!("{at} has heard {number}, which nobody has sent"));
        };
        entry.heard += 1;
        if entry.heard > 1 {
            self.faults.push(format!("no duplicate: {at} has heard {number} again: {entry:?}"));
        }
        if entry.to != *at {
            self.faults.push(format!("{at} has heard {number}: {entry:?}"));
        }
        if let Some(Outcome::Never(_)) = entry.outcome {
            self.faults.push(format!("never: {at} has heard {number} all the same: {entry:?}"));
        }
        let key = (entry.from.clone(), ear, entry.kind, entry.bulk);
        let before = self.last.insert(key, number);
        if before.is_some_and(|before| before > number) {
            self.faults.push(format!("order: {at} has heard {number} after {before:?}: {entry:?}"));
        }
    }

    pub fn ended(&mut self, number: usize, outcome: Outcome) {
        let entry = &mut self.entries[number];
        if let Outcome::Never(_) = outcome
            && entry.heard > 0
        {
            self.faults.push(format!("never: {number} was heard before {outcome:?} was said: {entry:?}"));
        }
        entry.outcome = Some(outcome);
    }

    /// How many have no outcome.
    pub fn open(&self) -> usize {
        self.entries.iter().filter(|entry| entry.outcome.is_none()).count()
    }

    /// What does not fit, once nothing is under way any more.
    pub fn audit(&mut self) -> Vec<String> {
        let mut faults = std::mem::take(&mut self.faults);
        for (number, entry) in self.entries.iter().enumerate() {
            match entry.outcome {
                None => faults.push(format!("conservation: {number} has no outcome: {entry:?}")),
                Some(Outcome::Done) if entry.heard != 1 && !self.bereft.contains(&entry.to) => {
                    faults.push(format!("done: {number} was heard {} times: {entry:?}", entry.heard));
                }
                Some(_) => {}
            }
        }
        let (sent, done, heard) = (self.empties_sent, self.empties_done, self.empties_heard);
        if heard > sent || (heard < done && self.bereft.is_empty()) {
            faults.push(format!("empty bytes: {sent} sent, {done} taken, {heard} heard"));
        }
        faults
    }

    /// How often each outcome was said.
    pub fn outcomes(&self) -> BTreeMap<String, usize> {
        let mut counts = BTreeMap::new();
        for entry in &self.entries {
            let word = entry.outcome.map_or_else(|| "none".into(), |outcome| format!("{outcome:?}"));
            *counts.entry(word).or_default() += 1;
        }
        counts
    }
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { from, to, kind, bulk, size, taken, outcome, heard } = self;
        let ago: Duration = taken.elapsed();
        write!(
            f,
            "{from} to {to}, {kind:?}, bulk {bulk}, {size} bytes, {ago:?} ago, heard {heard} times, {outcome:?}"
        )
    }
}
