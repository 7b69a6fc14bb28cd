//! Many runs, on all cores; and what is left of a schedule when everything is taken away that the failure does not need.

use std::{
    collections::BTreeMap,
    ops::Range,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix_memberlist::testing::Pair;

use super::{Fault, Plan, Report, Rule, run};

/// What a member may be to who hears news of it.
pub const STATES: [&str; 7] = ["unknown", "alive", "suspect", "dead", "left", "another run", "self"];

/// The kinds of news about members: messages, what full states tell, and what the own failure detector says.
pub const KINDS: [&str; 9] =
    ["alive", "suspect", "dead", "left", "told-alive", "told-suspect", "told-dead", "told-left", "accuse"];

/// Each pair of a state and a kind has to come up once in so many runs, on average.
pub const RARE: u64 = 10;

/// Each fault has to happen in one of so many runs.
pub const SELDOM: u64 = 5;

/// So many runs say whether all is covered; fewer may miss something by chance.
pub const ENOUGH: u64 = 1000;

/// What a campaign has seen.
#[derive(Debug, Default)]
pub struct Campaign {
    /// Runs.
    pub runs: u64,
    /// Seeds whose runs broke a rule.
    pub failed: Vec<(u64, Report)>,
    /// Runs in which each fault happened.
    pub faults: BTreeMap<&'static str, u64>,
    /// How often news of each kind has met a member in each state: (state, kind).
    pub met: BTreeMap<Pair, u64>,
    /// How many kinds of faults each run had.
    pub kinds: Vec<usize>,
    /// Events that subscribers heard.
    pub heard: BTreeMap<&'static str, u64>,
    /// How long it took until all agreed.
    pub agreed: Vec<Duration>,
    /// Runs in which the network has done each of these to something, and in which an exchange of states broke off.
    pub effects: BTreeMap<&'static str, u64>,
    /// The most bytes that a node took on average of a run, and the most that a run left.
    pub memory: (u64, i64),
}

impl Campaign {
    /// Runs all `seeds` with `nodes` nodes each by `run`, on `threads` threads, until `most` have failed. `tell` hears of
    /// each that is over.
    pub fn go(
        seeds: Range<u64>,
        nodes: impl Fn(u64) -> usize + Sync,
        run: impl Fn(&Plan) -> Report + Sync,
        threads: usize,
        most: usize,
        tell: impl Fn(u64, &Report) + Sync,
    ) -> Self {
        let (next, all) = (AtomicU64::new(seeds.start), Mutex::new(Self::default()));
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    loop {
                        let seed = next.fetch_add(1, Relaxed);
                        let enough = all.lock().unwrap_or_else(PoisonError::into_inner).failed.len() >= most;
                        if seed >= seeds.end || enough {
                            return;
                        }
                        let report = run(&Plan::of(seed, nodes(seed)));
                        tell(seed, &report);
                        all.lock().unwrap_or_else(PoisonError::into_inner).add(seed, report);
                    }
                });
            }
        });
        let mut all = all.into_inner().unwrap_or_else(PoisonError::into_inner);
        all.failed.sort_by_key(|(seed, _)| *seed);
        all.agreed.sort_unstable();
        all.kinds.sort_unstable();
        all
    }

    fn add(&mut self, seed: u64, report: Report) {
        self.runs += 1;
        for fault in report.faults.keys() {
            *self.faults.entry(fault).or_default() += 1;
        }
        self.kinds.push(report.faults.len());
        for (pair, n) in &report.met {
            *self.met.entry(*pair).or_default() += n;
        }
        for (kind, n) in &report.heard {
            *self.heard.entry(kind).or_default() += n;
        }
        self.agreed.extend(report.agreed);
        let network = &report.network;
        let effects = [
            ("lost", network.lost),
            ("duplicated", network.duplicated),
            ("cut", network.cut),
            ("too large", network.too_large),
            ("spoilt", network.spoilt),
            ("replayed", network.replayed),
            ("unsent", network.unsent),
            ("broken streams", network.broken),
            ("refused dials", network.refused),
            ("torn exchanges", report.torn),
        ];
        for (effect, n) in effects {
            *self.effects.entry(effect).or_default() += u64::from(n > 0);
        }
        self.memory = (self.memory.0.max(report.memory.0), self.memory.1.max(report.memory.1));
        if report.broken.is_some() {
            self.failed.push((seed, report));
        }
    }

    /// The pairs of a state and a kind of news that come up less than once in [`RARE`] seeds. What full states and
    /// messages tell counts; what a node's own failure detector says meets few states by its nature.
    pub fn rare(&self) -> Vec<(Pair, u64)> {
        let pairs = STATES.into_iter().flat_map(|state| KINDS.map(|kind| (state, kind)));
        let all =
            pairs.filter(|(state, kind)| *kind != "accuse" && *state != "another run" && *state != "self");
        all.map(|pair| (pair, self.met.get(&pair).copied().unwrap_or_default()))
            .filter(|(_, n)| n * RARE < self.runs)
            .collect()
    }

    /// What many runs have not covered as they have to: each fault, and each pair of a state and a kind of news.
    pub fn uncovered(&self) -> Vec<String> {
        if self.runs < ENOUGH {
            return Vec::new();
        }
        let of = |name: &&str| self.faults.get(*name).copied().unwrap_or_default();
        let seldom = Fault::NAMES.into_iter().filter(|name| of(name) * SELDOM < self.runs);
        let seldom =
            seldom.map(|name| format!("{name} in {} of {} runs, not in a fifth", of(&name), self.runs));
        let rare = self.rare().into_iter();
        seldom
            .chain(rare.map(|((state, kind), n)| {
                format!("{kind} of {state} {n} times in {} runs, not in a tenth", self.runs)
            }))
            .collect()
    }

    /// The faults that have never happened.
    pub fn missing(&self) -> Vec<&'static str> {
        Fault::NAMES.into_iter().filter(|name| !self.faults.contains_key(name)).collect()
    }
}

/// The smallest schedule found that still breaks `rule`: events are taken away, then befall fewer, then last less long.
pub fn shrink(plan: &Plan, rule: Rule, most: usize) -> Plan {
    let mut best = plan.clone();
    let mut left = most;
    let mut fails = |plan: &Plan| {
        left = left.saturating_sub(1);
        left > 0 && run(plan).broken.is_some_and(|(_, broken)| broken.rule == rule)
    };
    let mut smaller = true;
    while std::mem::take(&mut smaller) {
        for at in (0..best.events.len()).rev() {
            let mut without = best.clone();
            without.events.remove(at);
            if fails(&without) {
                (best, smaller) = (without, true);
            }
        }
        for at in 0..best.events.len() {
            for one in (0..best.events[at].who.len()).rev() {
                let mut fewer = best.clone();
                fewer.events[at].who.remove(one);
                if !fewer.events[at].who.is_empty() && fails(&fewer) {
                    (best, smaller) = (fewer, true);
                }
            }
            let mut shorter = best.clone();
            shorter.events[at].lasts /= 2;
            if shorter.events[at].lasts > Duration::from_millis(200) && fails(&shorter) {
                (best, smaller) = (shorter, true);
            }
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_campaign_that_covers_too_little_says_what() {
        let faults = Fault::NAMES.into_iter().map(|name| (name, 250)).collect();
        let pairs = STATES.into_iter().flat_map(|state| KINDS.map(|kind| ((state, kind), 100)));
        let mut all = Campaign { runs: 1000, faults, met: pairs.collect(), ..Campaign::default() };
        assert_eq!(all.uncovered(), Vec::<String>::new());
        all.faults.insert("loss", 199);
        all.met.insert(("suspect", "told-left"), 99);
        all.met.insert(("self", "told-left"), 0);
        assert_eq!(all.uncovered().len(), 2, "{:?}", all.uncovered());
        all.runs = 999;
        assert_eq!(all.uncovered(), Vec::<String>::new());
    }
}
