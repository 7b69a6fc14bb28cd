//! Who suspects members, and on what evidence: bounded, because names come from others.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use memberlist_protocol::accusation::{Accusation, Evidence};

use super::{Many, up};

/// Accusers that are counted by name; what others say is counted together.
const NAMES: usize = 32;

/// The name for all others.
pub(super) const OTHER: &str = "other";

/// Kinds of evidence; the last is for those that a later version may add.
const KINDS: [&str; 8] =
    ["no_answer", "refused", "push_pull", "hearsay", "force_leave", "announced", "replaced", "other"];

fn kind(evidence: Evidence) -> usize {
    match evidence {
        Evidence::NoAnswer { .. } => 0,
        Evidence::Refused => 1,
        Evidence::PushPull => 2,
        Evidence::Hearsay => 3,
        Evidence::ForceLeave => 4,
        Evidence::Announced => 5,
        Evidence::Replaced => 6,
        _ => 7,
    }
}

/// Suspicions as this node came to hold them.
#[derive(Debug, Default)]
pub(crate) struct Accusers {
    own: Many<{ KINDS.len() }>,
    heard: Many<{ KINDS.len() }>,
    names: Mutex<BTreeMap<Arc<str>, u64>>,
    other: AtomicU64,
}

impl Accusers {
    /// Counts a suspicion: `own` if this node accuses. Only a `member` is counted by its name.
    pub(crate) fn count(&self, why: &Accusation, own: bool, member: bool) {
        let by_kind = if own { &self.own } else { &self.heard };
        up(&by_kind[kind(why.evidence)]);
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(n) = names.get_mut(&why.by) {
            *n += 1;
        } else if member && &*why.by != OTHER && names.len() < NAMES {
            names.insert(why.by.clone(), 1);
        } else {
            up(&self.other);
        }
    }

    pub(super) fn own(&self) -> BTreeMap<&'static str, u64> {
        KINDS.into_iter().zip(super::values(&self.own)).collect()
    }

    pub(super) fn heard(&self) -> BTreeMap<&'static str, u64> {
        KINDS.into_iter().zip(super::values(&self.heard)).collect()
    }

    pub(super) fn names(&self) -> BTreeMap<Arc<str>, u64> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn others(&self) -> u64 {
        self.other.load(Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accusers_are_counted_by_name_up_to_a_bound_and_strangers_never() {
        let accusers = Accusers::default();
        let why = |by: &str| Accusation {
            by: by.into(),
            confirmed_by: Vec::new(),
            evidence: Evidence::Hearsay,
            at: std::time::Instant::now(),
        };
        for i in 0..100 {
            accusers.count(&why(&format!("stranger {i}")), false, false);
        }
        for i in 0..100 {
            accusers.count(&why(&format!("member {i:03}")), false, true);
        }
        accusers.count(&why("member 000"), true, true);
        let names = accusers.names();
        assert_eq!((names.len(), names["member 000"], accusers.others()), (NAMES, 2, 168));
        assert_eq!((accusers.heard()["hearsay"], accusers.own()["hearsay"]), (200, 1));
    }
}
