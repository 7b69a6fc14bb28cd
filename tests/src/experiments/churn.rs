//! I6 and I10: members come and go all the time; what that costs, whom it harms, and what becomes of what a program
//! broadcasts meanwhile.

use std::{cell::RefCell, collections::BTreeMap, rc::Rc, time::Duration};

use actix::prelude::*;
use actix_memberlist::{Broadcast, Cluster, Config, UserBytes};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep};

use super::{
    Options,
    fleet::Fleet,
    heard::Said,
    load::Rates,
    policy::Policy,
    table::{Row, quantile},
    watch::QUIET,
};
use crate::paused;

/// So long members come and go.
const LASTS: Duration = Duration::from_secs(120);

/// So long before the end the last broadcast is sent.
const TIME_TO_SPREAD: Duration = Duration::from_secs(30);

/// Bytes of a broadcast.
const SIZE: usize = 200;

/// One in so many that go crashes; the others leave.
const CRASHES: usize = 4;

/// After the end all have to agree within this time.
const PATIENCE: Duration = Duration::from_secs(300);

/// Who has heard which broadcast, and when.
type Arrivals = Rc<RefCell<Vec<(u64, usize, Instant)>>>;

struct Ear(usize, Arrivals);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();

    fn handle(&mut self, heard: UserBytes, _: &mut Context<Self>) {
        let number =
            heard.bytes[..8].try_into().map(u64::from_be_bytes).expect("a broadcast begins with its number");
        self.1.borrow_mut().push((number, self.0, Instant::now()));
    }
}

#[derive(Default)]
struct Seen {
    /// Runs that were held for dead while they were there.
    wrongly: usize,
    doubted: usize,
    /// How many broadcasts waited, at each node each second: the most.
    queued: u64,
    /// Members that came, and that went.
    changes: usize,
    agreed: Option<Duration>,
    rates: Rates,
    /// How long each broadcast took to each node that was there from its beginning to the end.
    late: Vec<Duration>,
    /// How often that did not happen.
    missed: usize,
}

struct Churn {
    fleet: Fleet,
    rng: Xoshiro256PlusPlus,
    arrivals: Arrivals,
    ears: bool,
}

impl Churn {
    fn listen(&self, i: usize) {
        let node = self.fleet.nodes[i].as_ref().expect("it runs");
        if self.ears {
            let ear = Ear(i, self.arrivals.clone()).start();
            node.serve_bytes(ear.recipient()).expect("it runs").detach();
        }
    }

    /// One that runs and is no seed.
    fn one(&mut self) -> usize {
        loop {
            let i = self.rng.random_range(3..self.fleet.nodes.len());
            if self.fleet.nodes[i].is_some() {
                return i;
            }
        }
    }

    /// One goes and another one comes.
    async fn turn(&mut self, change: usize) {
        let i = self.one();
        if change.is_multiple_of(CRASHES) {
            self.fleet.crash(i).await;
        } else {
            self.fleet.leave(i, Duration::from_secs(5));
        }
        let next = self.fleet.nodes.len();
        self.fleet.start(next).await;
        self.listen(next);
    }
}

/// `rate` is the share of the members that go in a minute, and as many come; `told` are broadcasts a second.
async fn run(n: usize, seed: u64, config: Config, rate: f64, told: u64) -> Seen {
    let fleet = Fleet::of(n, seed, config).await;
    let rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let mut churn = Churn { fleet, rng, arrivals: Rc::default(), ears: told > 0 };
    (0..n).for_each(|i| churn.listen(i));
    sleep(QUIET).await;
    drop(churn.fleet.heard());
    let (begin, mut seen) = (Instant::now(), Seen::default());
    let mut sent: BTreeMap<u64, (Instant, usize)> = BTreeMap::new();
    seen.rates.tick(&churn.fleet);
    // A tenth of a second at a time, and of all that is due in it the whole.
    for tenth in 1..=LASTS.as_millis() as u64 / 100 {
        let now = tenth as f64 / 10.0;
        while ((seen.changes + 1) as f64) < rate * n as f64 * now / 60.0 {
            seen.changes += 1;
            churn.turn(seen.changes).await;
        }
        if begin.elapsed() + TIME_TO_SPREAD < LASTS {
            while ((sent.len() + 1) as f64) < told as f64 * now {
                let (number, by) = (sent.len() as u64, churn.one());
                let mut bytes = vec![0; SIZE];
                bytes[..8].copy_from_slice(&number.to_be_bytes());
                let node = churn.fleet.nodes[by].as_ref().expect("it runs");
                drop(node.broadcast_bytes(Broadcast::new(bytes)).expect("there is room"));
                // Whoever is there now, and still is in the end, is to hear it.
                sent.insert(number, (Instant::now(), churn.fleet.nodes.len()));
                churn.arrivals.borrow_mut().push((number, by, Instant::now()));
            }
        }
        tokio::time::sleep_until(begin + Duration::from_millis(100 * tenth)).await;
        if tenth.is_multiple_of(10) {
            seen.rates.tick(&churn.fleet);
            let queued = |node: &Cluster| node.metrics().broadcasts_queued;
            let most = churn.fleet.running().map(|(_, node)| queued(node)).max();
            seen.queued = seen.queued.max(most.unwrap_or_default());
        }
    }
    let mut heard_by: BTreeMap<(u64, usize), Instant> = BTreeMap::new();
    for (number, by, at) in churn.arrivals.take() {
        heard_by.entry((number, by)).or_insert(at);
    }
    for (number, (at, known)) in sent {
        for (i, _) in churn.fleet.running().filter(|(i, _)| *i < known) {
            match heard_by.get(&(number, i)) {
                Some(heard) => seen.late.push(heard.duration_since(at)),
                None => seen.missed += 1,
            }
        }
    }
    let end = Instant::now();
    seen.agreed = churn.fleet.settle(PATIENCE).await.map(|_| end.elapsed());
    for heard in churn.fleet.heard().iter().filter(|heard| heard.runs) {
        seen.wrongly += usize::from(heard.said == Said::Dead);
        seen.doubted += usize::from(heard.said == Said::Suspected);
    }
    churn.fleet.end().await;
    seen
}

fn row(n: usize, policy: Policy, options: &Options, rate: f64, told: u64) -> Row {
    let seeds = (0..options.repeats).map(|repeat| options.seed + repeat);
    let seen = options
        .each(seeds, |seed| paused(async move { run(n, seed, options.config(policy), rate, told).await }));
    let mut agreed: Vec<_> = seen.iter().filter_map(|seen| seen.agreed).collect();
    let mut late: Vec<_> = seen.iter().flat_map(|seen| seen.late.iter().copied()).collect();
    let missed = seen.iter().map(|seen| seen.missed).sum::<usize>();
    let mut rates = Rates::default();
    seen.iter().for_each(|seen| rates.merge(&seen.rates));
    let ([packets, sent, _], [sent_99, _], [most, _]) =
        (rates.mean(), rates.quantile(0.99), rates.quantile(1.0));
    let mut row: Row = vec![
        ("policy", policy.name().into()),
        ("nodes", n.into()),
        ("churn_%_min", (rate * 100.0).into()),
        ("runs", seen.len().into()),
        ("changes", seen.iter().map(|seen| seen.changes).sum::<usize>().into()),
        ("false_dead", seen.iter().map(|seen| seen.wrongly).sum::<usize>().into()),
        ("false_suspected", seen.iter().map(|seen| seen.doubted).sum::<usize>().into()),
        ("queued_most", seen.iter().map(|seen| seen.queued).max().unwrap_or_default().into()),
        ("agreed_s", quantile(&mut agreed, 0.5).into()),
        ("never_agreed", seen.iter().filter(|seen| seen.agreed.is_none()).count().into()),
        ("packets_node_s", packets.into()),
        ("bytes_node_s", sent.into()),
        ("bytes_p99", sent_99.into()),
        ("bytes_max", most.into()),
    ];
    if told > 0 {
        let all = (late.len() + missed).max(1) as f64;
        row.extend([
            ("told_s", told.into()),
            ("delivered_%", (100.0 * late.len() as f64 / all).into()),
            ("missed", missed.into()),
            ("late_s", quantile(&mut late, 0.5).into()),
            ("late_p99_s", quantile(&mut late, 0.99).into()),
            ("late_most_s", quantile(&mut late, 1.0).into()),
        ]);
    }
    row
}

/// Members come and go.
pub(super) fn come_and_go(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(2000);
    let mut rows = Vec::new();
    for rate in [0.01, 0.05] {
        rows.extend(options.policies().map(|policy| row(n, policy, options, rate, 0)));
    }
    rows
}

/// The same, and programs broadcast.
pub(super) fn broadcasts(options: &Options) -> Vec<Row> {
    let n = options.nodes.unwrap_or(1000);
    let mut rows = Vec::new();
    for rate in [0.0, 0.05, 0.5] {
        rows.extend(options.policies().map(|policy| row(n, policy, options, rate, 5)));
    }
    rows
}
