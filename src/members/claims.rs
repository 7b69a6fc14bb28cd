//! Claims to names whose holders still count as present. A node that was started anew elsewhere is let in by those
//! who know of the death of its former run; its news goes round together with that of the death, and reaches some
//! members before it. There it waits, or they would hold the name for dead until their next exchange of states.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::wire::message::Alive;

/// Claims that wait at once. With the longest metadata they take some 300 KiB.
const MAX: usize = 256;

/// The last claim to each name, bounded in number and in time.
#[derive(Debug, Default)]
pub(super) struct Claims(BTreeMap<Arc<str>, (Instant, Alive)>);

impl Claims {
    /// Keeps a claim for `within`, if there is room.
    pub(super) fn note(&mut self, claim: Alive, within: Duration, now: Instant) {
        let name = claim.id.shared_name().clone();
        if self.0.len() >= MAX && !self.0.contains_key(&name) {
            self.0.retain(|_, (until, _)| *until > now);
            if self.0.len() >= MAX {
                return;
            }
        }
        self.0.insert(name, (now + within, claim));
    }

    /// The claim to a name that is free now.
    pub(super) fn take(&mut self, name: &str, now: Instant) -> Option<Alive> {
        let (until, claim) = self.0.remove(name)?;
        (until > now).then_some(claim)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::member::{Member, NodeId};

    fn claim(name: &str, run: u64) -> Alive {
        Alive::of(&Member::new(NodeId::new(name, run), "10.0.0.9:1".parse().unwrap(), 1, Instant::now()))
    }

    #[test]
    fn the_last_claim_to_a_name_waits_for_its_time_and_is_taken_once() {
        let (mut claims, now, second) = (Claims::default(), Instant::now(), Duration::from_secs(1));
        claims.note(claim("a", 1), second, now);
        claims.note(claim("a", 2), second, now);
        claims.note(claim("b", 3), second, now);
        assert_eq!(claims.take("a", now).map(|c| c.id.run()), Some(2));
        assert_eq!(claims.take("a", now), None);
        assert_eq!(claims.take("b", now + second), None, "too late");
    }

    #[test]
    fn claims_are_bounded_and_old_ones_make_room() {
        let (mut claims, now, second) = (Claims::default(), Instant::now(), Duration::from_secs(1));
        (0..2 * MAX).for_each(|i| claims.note(claim(&format!("{i:04}"), 1), second, now));
        assert_eq!(claims.0.len(), MAX);
        claims.note(claim("0000", 2), second, now);
        claims.note(claim("new", 1), second, now + second);
        assert_eq!(claims.0.len(), 1);
    }
}
