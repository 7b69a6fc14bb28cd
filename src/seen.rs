//! Which broadcasts of users have been seen: each is handled and passed on once.
//!
//! Whoever sends a packet chooses the origin that it names. So origins that are members and others are
//! remembered apart, and made-up ones push out only each other.

use std::collections::BTreeMap;

use crate::member::NodeId;

/// Numbers of broadcasts that are remembered for one origin.
const WINDOW: u64 = 4096;

/// Members that are remembered as origins.
const MEMBERS: usize = 4096;

/// Other origins that are remembered: those whose broadcasts were faster than the news of them, and those who
/// are no longer known.
const STRANGERS: usize = 256;

/// What is known of an origin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A member of the cluster, in this run.
    Member,
    /// Nobody that this node knows.
    Stranger,
}

/// The broadcasts that have been seen.
#[derive(Debug)]
pub struct Seen {
    members: Origins,
    strangers: Origins,
}

impl Default for Seen {
    fn default() -> Self {
        Self { members: Origins::new(MEMBERS), strangers: Origins::new(STRANGERS) }
    }
}

impl Seen {
    /// Whether the broadcast `id` of `origin` has not been seen before. It has been seen from then on.
    pub fn is_new(&mut self, origin: &NodeId, standing: Standing, id: u64) -> bool {
        let window = match self.members.take(origin) {
            Some(window) => Some((window, Standing::Member)),
            None => self.strangers.take(origin).map(|window| (window, standing)),
        };
        let (mut window, among) = window.unwrap_or_else(|| (Window::starting(id), standing));
        let new = window.is_new(id);
        match among {
            Standing::Member => self.members.put(origin.clone(), window),
            Standing::Stranger => self.strangers.put(origin.clone(), window),
        }
        new
    }
}

/// Windows of a bounded number of origins. The one that was not heard for longest goes first.
#[derive(Debug)]
struct Origins {
    windows: BTreeMap<NodeId, (u64, Window)>,
    by_age: BTreeMap<u64, NodeId>,
    age: u64,
    max: usize,
}

impl Origins {
    fn new(max: usize) -> Self {
        Self { windows: BTreeMap::new(), by_age: BTreeMap::new(), age: 0, max }
    }

    fn take(&mut self, origin: &NodeId) -> Option<Window> {
        let (age, window) = self.windows.remove(origin)?;
        self.by_age.remove(&age);
        Some(window)
    }

    fn put(&mut self, origin: NodeId, window: Window) {
        if self.windows.len() >= self.max
            && let Some((_, oldest)) = self.by_age.pop_first()
        {
            self.windows.remove(&oldest);
        }
        self.age += 1;
        self.by_age.insert(self.age, origin.clone());
        self.windows.insert(origin, (self.age, window));
    }
}

#[derive(Debug)]
struct Window {
    /// The highest number seen.
    top: u64,
    /// Bit `n % WINDOW` stands for the number `n`, for the last [`WINDOW`] numbers.
    bits: Box<[u64; WINDOW as usize / 64]>,
}

impl Window {
    fn starting(top: u64) -> Self {
        Self { top, bits: Box::new([0; WINDOW as usize / 64]) }
    }

    fn is_new(&mut self, id: u64) -> bool {
        if id > self.top {
            if id - self.top >= WINDOW {
                self.bits.fill(0);
            } else {
                for n in self.top + 1..id {
                    *self.word(n) &= !(1 << (n % 64));
                }
                *self.word(id) &= !(1 << (id % 64));
            }
            self.top = id;
        } else if self.top - id >= WINDOW {
            return false;
        }
        let bit = 1 << (id % 64);
        let word = self.word(id);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn word(&mut self, n: u64) -> &mut u64 {
        &mut self.bits[(n % WINDOW / 64) as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Seen {
        fn of(&mut self, origin: &NodeId, id: u64) -> bool {
            self.is_new(origin, Standing::Member, id)
        }
    }

    #[test]
    fn a_broadcast_is_new_once_for_each_origin_and_run() {
        let mut seen = Seen::default();
        let (a, b) = (NodeId::new("a", 1), NodeId::new("a", 2));
        for id in [5, 3, 4, 6, 100, 7, 4000] {
            assert!(seen.of(&a, id), "{id}");
            assert!(!seen.of(&a, id), "{id}");
        }
        assert!(seen.of(&b, 5));
        assert!(seen.of(&a, 8191));
        assert!(!seen.of(&a, 4095), "too old to tell");
        assert!(seen.of(&a, 4096) && seen.of(&a, u64::MAX) && !seen.of(&a, u64::MAX));
    }

    #[test]
    fn a_passing_of_the_window_forgets_what_was_in_it_and_nothing_else() {
        let mut seen = Seen::default();
        let a = NodeId::new("a", 1);
        for id in (0..3 * WINDOW).step_by(3) {
            assert!(seen.of(&a, id));
        }
        for id in 2 * WINDOW..3 * WINDOW {
            assert_eq!(seen.of(&a, id), id % 3 != 0, "{id}");
        }
    }

    #[test]
    fn made_up_origins_push_out_each_other_and_no_member() {
        let (mut seen, member) = (Seen::default(), NodeId::new("member", 1));
        assert!(seen.of(&member, 1));
        for i in 0..10 * MEMBERS as u64 {
            assert!(seen.is_new(&NodeId::new("made up", i), Standing::Stranger, 1));
        }
        assert!(!seen.of(&member, 1), "it is still known");
        assert_eq!((seen.members.windows.len(), seen.strangers.windows.len()), (1, STRANGERS));
        assert_eq!(seen.strangers.by_age.len(), STRANGERS);
    }

    #[test]
    fn the_members_that_are_remembered_are_bounded_and_the_longest_silent_goes_first() {
        let mut seen = Seen::default();
        let origin = |i: usize| NodeId::new("a", i as u64);
        for i in 0..MEMBERS {
            assert!(seen.of(&origin(i), 1));
        }
        assert!(!seen.of(&origin(0), 1), "heard again");
        assert!(seen.of(&origin(MEMBERS), 1));
        assert_eq!((seen.members.windows.len(), seen.members.by_age.len()), (MEMBERS, MEMBERS));
        assert!(!seen.of(&origin(0), 1));
        assert!(seen.of(&origin(1), 1), "the longest silent was forgotten");
    }

    #[test]
    fn what_was_seen_of_a_stranger_is_still_seen_when_it_is_a_member_and_when_it_is_gone() {
        let (mut seen, a) = (Seen::default(), NodeId::new("a", 1));
        assert!(seen.is_new(&a, Standing::Stranger, 1));
        assert!(!seen.is_new(&a, Standing::Member, 1));
        assert_eq!(seen.strangers.windows.len(), 0);
        assert!(!seen.is_new(&a, Standing::Stranger, 1));
        assert_eq!(seen.members.windows.len(), 1);
    }
}
