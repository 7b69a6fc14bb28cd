//! What goes wrong in a run, when, for how long, and with whom: drawn from a seed, and small enough to be read.

use std::{fmt, time::Duration};

use actix_memberlist::network::memory::Bursts;
use rand::{RngExt, rngs::Xoshiro256PlusPlus};

/// What goes wrong. Whom it befalls is the [`Event`]'s.
#[derive(Clone, Debug, PartialEq)]
pub enum Fault {
    /// Datagrams are lost, both ways, with this probability.
    Loss(f64),
    /// Datagrams to them are lost, or from them.
    Lossy {
        /// Those to them.
        to: f64,
        /// Those from them.
        from: f64,
    },
    /// Datagrams are lost many at a time.
    Bursts(Bursts),
    /// Datagrams come twice.
    Duplicate(f64),
    /// Datagrams overtake each other, by up to so long.
    Reorder(f64, Duration),
    /// Everything takes up to so much longer.
    Latency(Duration),
    /// Datagrams above so many bytes are lost.
    Largest(usize),
    /// Bits of datagrams are turned over.
    Corrupt(f64),
    /// Datagrams lose their ends.
    Truncate(f64),
    /// Datagrams are said again later.
    Replay(f64),
    /// Bytes of no meaning come in from nowhere, so many datagrams a second.
    Noise(u32),
    /// Well-formed packets come in from nowhere that must do no harm, so many a second: of another cluster, under another
    /// key, answers to what nobody asked, accusations of runs that never were.
    Forged(u32),
    /// Streams break in the middle, and exchanges of states between the question and the answer.
    Resets(f64),
    /// Nothing passes between them and the others.
    Partition,
    /// Nothing that is said to them arrives.
    Deaf,
    /// Nothing that they say arrives.
    Dumb,
    /// Nothing that is said to them arrives, for so long; then all is well for as long, and so on.
    FlipFlop(Duration),
    /// The first of them reaches only the rest of them, and is reached only by those.
    HalfConnected,
    /// Each of them reaches only the first one of all.
    Star,
    /// Streams to them come about, and nothing that is written arrives; datagrams to them are lost.
    AcceptOnly,
    /// Dials to them are refused, and datagrams to them are lost.
    Refuse,
    /// Stopped.
    Pause,
    /// Stopped for so long, then running for so long, and so on.
    Slow(Duration, Duration),
    /// Nothing can be sent from there: the interface is down.
    NoNetwork,
    /// Crashed, until the end of it; then started anew, with the rejoin file or without.
    Crash {
        /// Whether that is kept.
        file: bool,
    },
    /// Crashed, and a node of another cluster is at its address meanwhile.
    Usurped,
    /// Left, and comes back.
    Leave,
    /// For so long nothing passes between them and the others, and the first of them leaves meanwhile. Then the rest of
    /// them tell some of the others all that they know. In the end the first one comes back.
    LeaveApart(Duration),
    /// The clock on the wall is wrong by so many seconds; when it is set right, the node is started again.
    Clock(i64),
    /// Panics in its actors, one a second.
    Panics,
    /// Says something else of itself, each second.
    Updates,
    /// Broadcasts and messages of users, so many a second.
    Traffic(u32),
}

impl Fault {
    /// Its name, for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Loss(_) => "loss",
            Self::Lossy { .. } => "lossy",
            Self::Bursts(_) => "bursts",
            Self::Duplicate(_) => "duplicate",
            Self::Reorder(..) => "reorder",
            Self::Latency(_) => "latency",
            Self::Largest(_) => "largest",
            Self::Corrupt(_) => "corrupt",
            Self::Truncate(_) => "truncate",
            Self::Replay(_) => "replay",
            Self::Noise(_) => "noise",
            Self::Forged(_) => "forged",
            Self::Resets(_) => "resets",
            Self::Partition => "partition",
            Self::Deaf => "deaf",
            Self::Dumb => "dumb",
            Self::FlipFlop(_) => "flip-flop",
            Self::HalfConnected => "half-connected",
            Self::Star => "star",
            Self::AcceptOnly => "accept-only",
            Self::Refuse => "refuse",
            Self::Pause => "pause",
            Self::Slow(..) => "slow",
            Self::NoNetwork => "no-network",
            Self::Crash { file: true } => "crash",
            Self::Crash { file: false } => "crash-forgetful",
            Self::Usurped => "usurped",
            Self::Leave => "leave",
            Self::LeaveApart(_) => "leave-apart",
            Self::Clock(_) => "clock",
            Self::Panics => "panics",
            Self::Updates => "updates",
            Self::Traffic(_) => "traffic",
        }
    }

    /// All names.
    pub const NAMES: [&'static str; 33] = [
        "loss",
        "lossy",
        "bursts",
        "duplicate",
        "reorder",
        "latency",
        "largest",
        "corrupt",
        "truncate",
        "replay",
        "noise",
        "forged",
        "resets",
        "partition",
        "deaf",
        "dumb",
        "flip-flop",
        "half-connected",
        "star",
        "accept-only",
        "refuse",
        "pause",
        "slow",
        "no-network",
        "crash",
        "crash-forgetful",
        "usurped",
        "leave",
        "leave-apart",
        "clock",
        "panics",
        "updates",
        "traffic",
    ];

    /// Whether nobody may be held for dead because of it.
    pub fn is_harmless(&self) -> bool {
        matches!(
            self,
            Self::Duplicate(_)
                | Self::Noise(_)
                | Self::Forged(_)
                | Self::Panics
                | Self::Updates
                | Self::Traffic(_)
        )
    }

    /// The fault of that name, with strengths that are drawn.
    fn draw(name: &str, rng: &mut Xoshiro256PlusPlus) -> Self {
        let ms = |rng: &mut Xoshiro256PlusPlus, range: std::ops::Range<u64>| {
            Duration::from_millis(rng.random_range(range))
        };
        match name {
            "loss" => Self::Loss(rng.random_range(0.05..0.4)),
            "lossy" => {
                let inward = rng.random::<bool>();
                Self::Lossy { to: if inward { 0.8 } else { 0.0 }, from: if inward { 0.0 } else { 0.8 } }
            }
            "bursts" => Self::Bursts(Bursts {
                begin: rng.random_range(0.005..0.05),
                end: rng.random_range(0.05..0.3),
                loss: rng.random_range(0.5..1.0),
            }),
            "duplicate" => Self::Duplicate(rng.random_range(0.05..0.5)),
            "reorder" => Self::Reorder(rng.random_range(0.05..0.5), ms(rng, 5..400)),
            "latency" => Self::Latency(ms(rng, 10..300)),
            "largest" => Self::Largest(rng.random_range(150..1000)),
            "corrupt" => Self::Corrupt(rng.random_range(0.01..0.3)),
            "truncate" => Self::Truncate(rng.random_range(0.01..0.3)),
            "replay" => Self::Replay(rng.random_range(0.05..0.5)),
            "noise" => Self::Noise(rng.random_range(5..100)),
            "forged" => Self::Forged(rng.random_range(5..50)),
            "resets" => Self::Resets(rng.random_range(0.01..0.3)),
            "partition" => Self::Partition,
            "deaf" => Self::Deaf,
            "dumb" => Self::Dumb,
            "flip-flop" => {
                Self::FlipFlop([ms(rng, 500..5_000), Duration::from_secs(20)][rng.random_range(0..2)])
            }
            "half-connected" => Self::HalfConnected,
            "star" => Self::Star,
            "accept-only" => Self::AcceptOnly,
            "refuse" => Self::Refuse,
            "pause" => Self::Pause,
            "slow" => Self::Slow(ms(rng, 100..8_000), ms(rng, 10..4_000)),
            "no-network" => Self::NoNetwork,
            "crash" => Self::Crash { file: true },
            "crash-forgetful" => Self::Crash { file: false },
            "usurped" => Self::Usurped,
            "leave" => Self::Leave,
            "leave-apart" => Self::LeaveApart(ms(rng, 2_000..9_000)),
            // Minutes; and days, after which a record of the last run is too old, or comes from the future.
            "clock" => Self::Clock([-400_000, -300, 300, 400_000][rng.random_range(0..4)]),
            "panics" => Self::Panics,
            "updates" => Self::Updates,
            _ => Self::Traffic(rng.random_range(1..20)),
        }
    }
}

/// Something that goes wrong for a while.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// When it begins, from the moment at which all know each other.
    pub at: Duration,
    /// For how long.
    pub lasts: Duration,
    /// What.
    pub fault: Fault,
    /// With whom, by number.
    pub who: Vec<usize>,
}

impl Event {
    /// When it is over.
    pub fn end(&self) -> Duration {
        self.at + self.lasts
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, end) = (self.at.as_secs_f64(), self.end().as_secs_f64());
        write!(f, "{at:>7.3} to {end:>7.3} s  {:?} of {:?}", self.fault, self.who)
    }
}

/// All that goes wrong in a run, of `nodes` nodes, within `horizon`.
pub fn draw(rng: &mut Xoshiro256PlusPlus, nodes: usize, horizon: Duration) -> Vec<Event> {
    // A few kinds each time, and those often: what only goes wrong together would else hardly ever. Nine of 33 on average,
    // so that each is in more than a quarter of the runs.
    let mut names = Fault::NAMES.to_vec();
    let kinds: Vec<_> = (0..rng.random_range(6..=12))
        .map(|_| {
            let name = names.swap_remove(rng.random_range(0..names.len()));
            Fault::draw(name, rng)
        })
        .collect();
    let mut events: Vec<Event> = Vec::new();
    // Each of them at least once.
    for n in 0..kinds.len() + rng.random_range(0..8) {
        let mut at = horizon.mul_f64(rng.random_range(0.0..0.9));
        let mut lasts = (horizon - at).mul_f64(rng.random_range(0.05..1.0));
        let fault = kinds[if n < kinds.len() { n } else { rng.random_range(0..kinds.len()) }].clone();
        if let Fault::LeaveApart(cut) = fault {
            // Time enough for both its parts.
            lasts = lasts.max(cut + cut);
            at = at.min(horizon - lasts);
        }
        let many = match fault {
            // The whole network, at times.
            Fault::Loss(_)
            | Fault::Bursts(_)
            | Fault::Duplicate(_)
            | Fault::Reorder(..)
            | Fault::Latency(_)
            | Fault::Largest(_)
            | Fault::Corrupt(_)
            | Fault::Truncate(_)
            | Fault::Replay(_)
            | Fault::Resets(_)
                if rng.random::<bool>() =>
            {
                nodes
            }
            Fault::Partition => rng.random_range(1..=nodes / 2),
            Fault::HalfConnected => rng.random_range(2..=3),
            Fault::LeaveApart(_) => rng.random_range(2..=(nodes / 3).max(2)),
            Fault::Crash { .. } | Fault::Usurped | Fault::Leave => rng.random_range(1..=(nodes / 4).max(1)),
            _ => rng.random_range(1..=(nodes / 6).max(1)),
        };
        let mut all: Vec<_> = (0..nodes).collect();
        let mut who: Vec<_> =
            (0..many.min(nodes)).map(|_| all.swap_remove(rng.random_range(0..all.len()))).collect();
        if !matches!(fault, Fault::HalfConnected | Fault::LeaveApart(_)) {
            who.sort_unstable();
        }
        events.push(Event { at, lasts, fault, who });
    }
    events.sort_by_key(|event| event.at);
    // Who leaves is mostly in trouble already: then its farewell meets those who suspect it.
    for at in 1..events.len() {
        let (before, after) = events.split_at_mut(at);
        let troubled = |event: &&Event| {
            let stops = matches!(
                event.fault,
                Fault::Crash { .. } | Fault::Usurped | Fault::Leave | Fault::LeaveApart(_)
            );
            !stops && !event.fault.is_harmless() && event.who.len() <= (nodes / 4).max(1)
        };
        if let (Fault::Leave, Some(event)) = (&after[0].fault, before.iter().rev().find(troubled)) {
            after[0].who.clone_from(&event.who);
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_schedule_is_a_function_of_its_seed_and_each_fault_comes_up() {
        let of = |seed| draw(&mut Xoshiro256PlusPlus::seed_from_u64(seed), 12, Duration::from_secs(60));
        assert_eq!(of(7), of(7));
        let all: Vec<_> = (0..1000).map(of).collect();
        for name in Fault::NAMES {
            let drawn = Fault::draw(name, &mut Xoshiro256PlusPlus::seed_from_u64(1));
            assert_eq!(drawn.name(), name);
            let with = all.iter().filter(|events| events.iter().any(|e| e.fault.name() == name)).count();
            assert!(with >= 200, "{name}: {with} of 1000");
        }
        let mut kinds: Vec<_> = all
            .iter()
            .map(|events| {
                events.iter().map(|e| e.fault.name()).collect::<std::collections::BTreeSet<_>>().len()
            })
            .collect();
        kinds.sort_unstable();
        assert!(kinds[500] >= 3, "at least three in the median");
        assert!(all.iter().flatten().all(|event| event.end() <= Duration::from_secs(60)));
    }
}
