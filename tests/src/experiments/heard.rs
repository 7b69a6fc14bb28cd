//! What the nodes of an experiment say of each other.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
};

use actix_memberlist::{Cluster, MemberEvent, NodeId, Replay};
use futures_util::StreamExt;
use tokio::time::Instant;

/// What a node may say of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    /// It is there.
    Joined,
    /// It says something else of itself.
    Updated,
    /// It did not answer somebody.
    Suspected,
    /// It has answered that.
    Refuted,
    /// It is dead.
    Dead,
    /// It has left.
    Left,
}

/// Something that a node has said.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// Who.
    pub by: usize,
    /// Of whom.
    pub of: usize,
    /// What.
    pub said: Said,
    /// Whether the run that it is said of was there at that time.
    pub runs: bool,
}

/// Listens to all nodes of a fleet.
#[derive(Clone, Default)]
pub(super) struct Ear(Rc<Inner>);

#[derive(Default)]
struct Inner {
    prefix: Cell<char>,
    heard: RefCell<Vec<Heard>>,
    /// Whether it is heard who joins: each node says that of each other one while a fleet comes together.
    joins: Cell<bool>,
    /// What runs, by number.
    running: RefCell<Vec<Option<NodeId>>>,
    strangers: Cell<usize>,
}

impl Ear {
    /// One for nodes whose names begin with `prefix`.
    pub(super) fn new(prefix: char) -> Self {
        Self(Rc::new(Inner { prefix: Cell::new(prefix), ..Inner::default() }))
    }

    /// From now on it is heard who joins.
    pub(super) fn hear_joins(&self) {
        self.0.joins.set(true);
    }

    /// Node `i` runs from now on.
    pub(super) fn begin(&self, i: usize, node: &Cluster) {
        {
            let mut running = self.0.running.borrow_mut();
            if running.len() <= i {
                running.resize(i + 1, None);
            }
            running[i] = Some(node.view().local().id.clone());
        }
        let (mut events, ear) = (Box::pin(node.events(Replay::None)), self.clone());
        spawn(async move {
            while let Some(event) = events.next().await {
                ear.hear(i, &event);
            }
        });
    }

    /// It does not run any more.
    pub(super) fn end(&self, i: usize) {
        self.0.running.borrow_mut()[i] = None;
    }

    fn hear(&self, by: usize, event: &MemberEvent) {
        let (member, said) = match event {
            MemberEvent::Joined { member, .. } => (member, Said::Joined),
            MemberEvent::Updated { member, .. } => (member, Said::Updated),
            MemberEvent::Suspected { member, .. } => (member, Said::Suspected),
            MemberEvent::Refuted { member, .. } => (member, Said::Refuted),
            MemberEvent::Dead { member, .. } => (member, Said::Dead),
            MemberEvent::Left { member, .. } => (member, Said::Left),
            _ => return,
        };
        let Some(of) = self.number(member.name()) else {
            self.0.strangers.set(self.0.strangers.get() + usize::from(said == Said::Joined));
            return;
        };
        if said == Said::Joined && !self.0.joins.get() {
            return;
        }
        let runs = self.0.running.borrow().get(of).is_some_and(|id| id.as_ref() == Some(&member.id));
        self.0.heard.borrow_mut().push(Heard { at: Instant::now(), by, of, said, runs });
    }

    /// The number of a node, if it is one of these.
    pub(super) fn number(&self, name: &str) -> Option<usize> {
        name.strip_prefix(self.0.prefix.get())?.parse().ok()
    }

    /// All that was said since the last time.
    pub(super) fn take(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.0.heard.borrow_mut())
    }

    /// How often somebody was taken in who is none of these.
    pub(super) fn strangers(&self) -> usize {
        self.0.strangers.get()
    }
}

#[allow(clippy::disallowed_methods, reason = "a listener of an experiment is no part of a node")]
pub(super) fn spawn(task: impl Future<Output = ()> + 'static) {
    actix_rt::spawn(task);
}
