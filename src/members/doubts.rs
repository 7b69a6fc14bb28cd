//! Members that another node's full state holds for dead or suspects, and this node holds for alive.
//!
//! When two halves of a cluster meet again, each holds all of the other for dead. Suspecting them for that would
//! be a false alarm for each. So a doubt gives them time to be heard of:
//!
//! ```text
//! in doubt ──── one interval ───► told of it ──── one interval ───► suspected
//!     │                               │
//!     └── a higher incarnation, or news of its own ──► no doubt any more
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Instant,
};

use rand::Rng;

use super::{Decision, Members, Verdict, change::Ignored};
use crate::{
    accusation::Evidence,
    member::{MAX_INCARNATION_STEP, MemberState, NodeId},
    wire::message::Message,
};

/// What is said of a member.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    id: NodeId,
    incarnation: u32,
    /// Whether the member was told.
    told: bool,
}

/// One for each member at most.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    open: BTreeMap<Arc<str>, (Instant, Doubt)>,
    due: BTreeSet<(Instant, Arc<str>)>,
}

impl Doubts {
    pub(super) fn due(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn begin(&mut self, name: Arc<str>, doubt: Doubt, due: Instant) {
        if let Some((old, _)) = self.open.insert(name.clone(), (due, doubt)) {
            self.due.remove(&(old, name.clone()));
        }
        self.due.insert((due, name));
    }

    /// Takes out one that is due.
    pub(super) fn next(&mut self, now: Instant) -> Option<(Arc<str>, Doubt)> {
        let (at, name) = self.due.first().filter(|(at, _)| *at <= now).cloned()?;
        self.due.remove(&(at, name.clone()));
        self.open.remove(&name).map(|(_, doubt)| (name, doubt))
    }

    fn holds(&self, id: &NodeId, incarnation: u32) -> bool {
        let open = self.open.get(id.name());
        open.is_some_and(|(_, doubt)| doubt.id == *id && doubt.incarnation >= incarnation)
    }
}

impl Members {
    /// Whether it is in doubt that a member is alive of which another node says that it is dead.
    pub(super) fn is_doubtful(&self, id: &NodeId, incarnation: u32) -> bool {
        self.roster.get(id.name()).is_some_and(|record| {
            record.id == *id
                && record.id != self.local.id
                && record.state == MemberState::Alive
                && (record.incarnation..=record.incarnation.saturating_add(MAX_INCARNATION_STEP))
                    .contains(&incarnation)
        })
    }

    pub(super) fn doubt(&self, id: &NodeId, incarnation: u32) -> Verdict {
        if self.doubts.holds(id, incarnation) {
            return Err(Ignored::Stale);
        }
        let doubt = Doubt { id: id.clone(), incarnation, told: false };
        Ok(Decision { doubt: Some((id.shared_name().clone(), doubt)), ..Decision::default() })
    }

    /// What becomes of a doubt that is due; nothing, if the member has been heard of.
    pub(super) fn resolve(
        &self,
        name: &Arc<str>,
        doubt: Doubt,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Decision> {
        if !self.is_doubtful(&doubt.id, doubt.incarnation) {
            return None;
        }
        if doubt.told {
            return self.accuse(&doubt.id, doubt.incarnation, Evidence::PushPull, now, rng).ok();
        }
        let word = self.hearsay_of_death(&doubt.id, doubt.incarnation);
        let to = self.roster.get(name)?.addr;
        let tell = Some((to, doubt.id.run(), Message::Dead(word)));
        Some(Decision {
            tell,
            doubt: Some((name.clone(), Doubt { told: true, ..doubt })),
            ..Decision::default()
        })
    }
}
