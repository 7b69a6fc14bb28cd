//! Experiments: published ones run again, and ones that nobody has published, with the real code in virtual time. Each
//! prints a table, with a line for each way of running a cluster that is compared.

mod churn;
mod crash;
mod fleet;
mod heard;
mod leave;
mod load;
mod partial;
mod pause;
mod plot;
mod policy;
mod rapid;
mod restart;
mod reuse;
mod scale;
mod seeds;
mod slow;
mod table;
mod watch;

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

use actix_memberlist::Config;
pub use fleet::Fleet;
pub use heard::{Heard, Said};
pub use load::{Load, Rates};
pub use plot::plot;
pub use policy::Policy;
pub use table::{Figure, Row, json, markdown, quantile};

/// How an experiment is run.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many nodes, if not as many as the experiment has by itself.
    pub nodes: Option<usize>,
    /// One policy alone.
    pub policy: Option<Policy>,
    /// Runs of each line.
    pub repeats: u64,
    /// The seed of the first run; the next ones follow.
    pub seed: u64,
    /// Runs at once.
    pub threads: usize,
    /// Settings that differ from those of [`Policy::Ours`], as they stand in a file.
    pub set: Vec<(String, serde_json::Value)>,
}

impl Options {
    /// The settings of a policy, and what is to differ from them.
    ///
    /// # Panics
    /// If there is no such setting.
    pub fn config(&self, policy: Policy) -> Config {
        let mut data = serde_json::to_value(policy.config()).expect("settings are data");
        for (name, value) in self.set.iter().filter(|_| policy == Policy::Ours) {
            data[name] = value.clone();
        }
        serde_json::from_value(data).expect("settings that there are")
    }

    fn policies(&self) -> impl Iterator<Item = Policy> + use<> {
        let only = self.policy;
        Policy::ALL.into_iter().filter(move |policy| only.is_none_or(|only| only == *policy))
    }

    /// What a run of each seed has seen, in the order of seeds, on as many threads as there are.
    fn each<T: Send>(&self, seeds: impl Iterator<Item = u64>, run: impl Fn(u64) -> T + Sync) -> Vec<T> {
        let seeds: Vec<_> = seeds.collect();
        let (next, seen) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..self.threads {
                scope.spawn(|| {
                    while let Some((at, seed)) =
                        Some(next.fetch_add(1, Relaxed)).and_then(|at| Some((at, *seeds.get(at)?)))
                    {
                        let one = run(seed);
                        seen.lock().unwrap_or_else(PoisonError::into_inner).push((at, one));
                    }
                });
            }
        });
        let mut seen = seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        seen.sort_by_key(|(at, _)| *at);
        seen.into_iter().map(|(_, one)| one).collect()
    }
}

type Run = fn(&Options) -> Vec<Row>;

/// All experiments: their names, what they are, and how they are run.
pub const ALL: &[(&str, &str, Run)] = &[
    ("swim", "one of N nodes is gone: who says so when", crash::swim),
    ("scalecube", "one of N nodes says something else of itself: who knows when", crash::scalecube),
    ("lifeguard-threshold", "some of 128 members stop once", slow::threshold),
    ("lifeguard-interval", "some of 128 members stop again and again, for two minutes", slow::interval),
    (
        "rapid-flipflop",
        "one in a hundred hears nothing for 20 s, then all for 20 s, and so on",
        partial::flipflop,
    ),
    ("rapid-loss80", "one in a hundred loses four in five packets, on their way in or out", partial::loss80),
    ("rapid-bootstrap", "1,000 nodes start at once, ten seconds after the first", rapid::bootstrap),
    ("rapid-crash", "ten of 1,000 crash at once", rapid::crash),
    ("I1", "all of 4,500 nodes are started anew within a minute, without their records", restart::mass),
    ("I2", "one member reaches one other alone", partial::semi_detached),
    ("I3", "halves, or one and the rest, are apart for ten minutes", partial::partition),
    (
        "I4",
        "streams to a member come about and carry nothing; its datagrams are lost one way",
        partial::blackhole,
    ),
    ("I5", "a node of one cluster gets the address of another one's node", reuse::address),
    ("I6", "members come and go all the time", churn::come_and_go),
    ("I7", "a node joins 1,000 addresses, at half of which nobody is, or at all but one", seeds::dead),
    ("I8", "a member's network is gone: each send fails", partial::no_network),
    ("I9", "members of a cluster of 3,600 leave, each within five seconds", leave::at_scale),
    ("I10", "programs broadcast while members come and go", churn::broadcasts),
    ("I11", "one or ten in a hundred stand still for a minute", pause::stopped),
    ("scale", "what a calm cluster costs, by its size: processor time and memory", scale::cost),
];

/// Runs an experiment, if there is one of that name.
pub fn run(name: &str, options: &Options) -> Option<Vec<Row>> {
    ALL.iter().find(|(known, ..)| *known == name).map(|(.., run)| run(options))
}
