//! Where tests reach into a node. Without the `testing` feature there is nothing here.

#[cfg(not(feature = "testing"))]
#[derive(Clone, Default)]
pub(crate) struct Hooks(());

#[cfg(not(feature = "testing"))]
impl Hooks {
    pub(crate) fn strike(&self, _: &'static str, _: &'static str) {}
    pub(crate) fn record(&self, _: &'static str, _: &dyn std::fmt::Display, _: &[u8]) {}
    pub(crate) fn meets(&self, _: &'static str, _: impl FnOnce() -> &'static str) {}
    pub(crate) async fn met(&self, _: std::net::SocketAddr, _: std::net::SocketAddr) {}
}

#[cfg(feature = "testing")]
pub(crate) use testing::Hooks;

/// Injected panics and traces.
#[cfg(feature = "testing")]
pub(crate) mod testing {
    use std::{
        collections::BTreeMap,
        fmt::Display,
        net::SocketAddr,
        sync::{Arc, Mutex, MutexGuard, PoisonError},
    };

    use crate::{network::faulty::Faults, trace::Trace};

    /// An actor of the ring, and a kind of message that it hears.
    pub type Pair = (&'static str, &'static str);

    /// Panics to be injected into a node's actors. Clones are one.
    #[derive(Clone, Debug, Default)]
    pub struct Strikes(Arc<Mutex<Plan>>);

    #[derive(Debug, Default)]
    struct Plan {
        armed: Vec<Pair>,
        hits: BTreeMap<Pair, u64>,
        heard: Tally,
        met: Tally,
    }

    /// How often each pair came up. Each message of each actor counts, so a pair is found by where its words are, and not
    /// by what they say: the same words may have more than one entry until somebody reads them.
    #[derive(Debug, Default)]
    struct Tally(Vec<(Pair, u64)>);

    impl Tally {
        fn count(&mut self, pair: Pair) {
            let same = |known: &Pair| std::ptr::eq(known.0, pair.0) && std::ptr::eq(known.1, pair.1);
            match self.0.iter().position(|(known, _)| same(known)) {
                Some(at) => {
                    self.0[at].1 += 1;
                    // What comes often comes to the front.
                    self.0.swap(at, at.saturating_sub(1));
                }
                None => self.0.push((pair, 1)),
            }
        }

        fn read(&self) -> BTreeMap<Pair, u64> {
            let mut all = BTreeMap::new();
            for (pair, n) in &self.0 {
                *all.entry(*pair).or_default() += n;
            }
            all
        }
    }

    impl Strikes {
        /// Every pair of an actor and a message that it hears.
        pub fn pairs() -> Vec<Pair> {
            crate::messages::pairs()
        }

        /// The next message of that kind that this actor hears makes it panic.
        pub fn arm(&self, pair: Pair) {
            self.lock().armed.push(pair);
        }

        /// Takes back what has not struck yet, and says what that was.
        pub fn disarm(&self) -> Vec<Pair> {
            std::mem::take(&mut self.lock().armed)
        }

        /// How often each pair was struck.
        pub fn hits(&self) -> BTreeMap<Pair, u64> {
            self.lock().hits.clone()
        }

        /// How often each pair was heard.
        pub fn heard(&self) -> BTreeMap<Pair, u64> {
            self.lock().heard.read()
        }

        /// How often news of each kind has met a member in each state: (state, kind).
        pub fn met(&self) -> BTreeMap<Pair, u64> {
            self.lock().met.read()
        }

        fn lock(&self) -> MutexGuard<'_, Plan> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }

        fn take(&self, pair: Pair) -> bool {
            let mut plan = self.lock();
            plan.heard.count(pair);
            let Some(at) = plan.armed.iter().position(|armed| *armed == pair) else { return false };
            plan.armed.swap_remove(at);
            *plan.hits.entry(pair).or_default() += 1;
            true
        }
    }

    /// What a test has hung into a node.
    #[derive(Clone, Default)]
    pub(crate) struct Hooks {
        pub(crate) strikes: Option<Strikes>,
        pub(crate) trace: Option<Trace>,
        pub(crate) faults: Option<Faults>,
    }

    impl Hooks {
        pub(crate) fn strike(&self, actor: &'static str, kind: &'static str) {
            if self.strikes.as_ref().is_some_and(|strikes| strikes.take((actor, kind))) {
                panic!("struck: {actor} at {kind}");
            }
        }

        /// News of a kind is about a member in that state.
        pub(crate) fn meets(&self, kind: &'static str, state: impl FnOnce() -> &'static str) {
            if let Some(strikes) = &self.strikes {
                strikes.lock().met.count((state(), kind));
            }
        }

        /// A stream from `seen` is of the peer at `addr`: it goes on when that gets through.
        pub(crate) async fn met(&self, seen: SocketAddr, addr: SocketAddr) {
            if let Some(faults) = &self.faults {
                faults.met(seen, addr).await;
            }
        }

        pub(crate) fn record(&self, kind: &'static str, who: &dyn Display, bytes: &[u8]) {
            if let Some(trace) = &self.trace {
                trace.record(kind, who, bytes);
            }
        }
    }
}
