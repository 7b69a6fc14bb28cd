//! Links under whatever can happen to them: a campaign over seeds. Each seed is a handful of nodes that send each
//! other messages of all sizes and lanes and ask questions, while the connections between them are cut, stalled and
//! broken, nodes are killed, leave and come back, actors panic, and handlers are slow or stop. Then everything heals,
//! and what was sent, told and heard has to fit together (see `links/book.rs`).
//!
//! `LINK_SEED=17 cargo test -p memberlist-tests --test links -- --nocapture` runs one seed and tells what happened in it;
//! `LINK_SEEDS=10000` runs so many.

use std::{
    cell::Cell,
    collections::BTreeMap,
    fmt::Write as _,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::Addr;
use actix_memberlist::{
    AskError, Config, MemberState, NodeId, NotSent, Peer, PeerMessage, SendError, testing::Strikes,
};
use futures_util::FutureExt;
use memberlist_tests::{World, addr, paused};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep, timeout};

#[path = "links/book.rs"]
mod book;
#[path = "links/words.rs"]
mod words;

use book::{Entry, Outcome, Pages};
use words::{Ask, Ear, Stop, Tell, numbered};

/// Seeds of a run without `LINK_SEEDS`.
const SEEDS: u64 = if cfg!(debug_assertions) { 60 } else { 2000 };

/// What is larger goes by the bulk lane.
const ORDERED: usize = 64 << 10;

/// The longest that anything may wait for its outcome once all has healed, beyond the window of the links: until a
/// broken connection is noticed (four silences of 5 s), the longest pause before a dial (5 s) and its time limit (10 s).
const BEYOND: Duration = Duration::from_secs(40);

const BLOWS: [(&str, &str); 10] = [
    ("PeerLink", "wanted"),
    ("PeerLink", "up"),
    ("PeerLink", "ended"),
    ("PeerLink", "alive"),
    ("PeerLink", "gone"),
    ("Transport", "link"),
    ("Transport", "stream"),
    ("Delegates", "events"),
    ("NodeState", "alive"),
    ("NodeState", "dead"),
];

struct Campaign {
    seed: u64,
    rng: Xoshiro256PlusPlus,
    config: Config,
    world: World,
    strikes: Vec<Strikes>,
    pauses: Vec<Rc<Cell<Duration>>>,
    ears: Vec<Addr<Ear>>,
    runs: u64,
    pages: Pages,
    story: Option<Instant>,
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

#[allow(clippy::disallowed_methods)]
fn spawn(task: impl Future<Output = ()> + 'static) {
    actix_rt::spawn(task);
}

impl Campaign {
    async fn begin(seed: u64, tell: bool) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let config = Config {
            link_window: Duration::from_secs([5, 12, 30][rng.random_range(0..3)]),
            peer_queue_depth: [8, 200, 4096][rng.random_range(0..3)],
            peer_queue_bytes: [100_000, 1 << 20, 32 << 20][rng.random_range(0..3)],
            max_ordered_size: ORDERED,
            // Else a peer is held for dead before the shortest window ends, in most cases.
            early_verdicts: false,
            count_refusals: false,
            ..Config::lan()
        };
        let nodes = rng.random_range(2..=5);
        let world = World::new(seed, config.clone()).unrecorded();
        let mut this = Self {
            seed,
            rng,
            config,
            world,
            strikes: Vec::new(),
            pauses: Vec::new(),
            ears: Vec::new(),
            runs: 0,
            pages: Pages::default(),
            story: tell.then(Instant::now),
        };
        for i in 0..nodes {
            this.start(i).await;
        }
        for node in &this.world.nodes[1..] {
            node.join(&["10.0.0.1:7946"]).await.expect("a node joins");
        }
        let all = |w: &World| (0..nodes).all(|i| (0..nodes).all(|of| w.state(i, of).is_some()));
        this.world.wait_until(Duration::from_secs(30), all).await.expect("all know each other");
        this
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if let Some(start) = self.story {
            println!("{:>9.3} {}", start.elapsed().as_secs_f64(), what());
        }
    }

    /// Starts node `i`, in place of the one that was there.
    async fn start(&mut self, i: usize) {
        self.runs += 1;
        let strikes = Strikes::default();
        let seed = self.seed.wrapping_mul(1000).wrapping_add(self.runs);
        let node = self.world.builder(i).seed(seed).strikes(strikes.clone()).start().await;
        let node = node.expect("a node starts");
        let pause = Rc::<Cell<Duration>>::default();
        let ear = Ear::listen(&node, &self.pages, &pause);
        if i == self.world.nodes.len() {
            self.world.nodes.push(node);
            self.strikes.push(strikes);
            self.pauses.push(pause);
            self.ears.push(ear);
        } else {
            self.world.nodes[i] = node;
            (self.strikes[i], self.pauses[i], self.ears[i]) = (strikes, pause, ear);
        }
    }

    fn id(&self, i: usize) -> NodeId {
        self.world.nodes[i].view().local().id.clone()
    }

    fn two(&mut self) -> (usize, usize) {
        let n = self.world.nodes.len();
        let one = self.rng.random_range(0..n);
        (one, (one + self.rng.random_range(1..n)) % n)
    }

    /// A while that is mostly shorter than the window of the links, and sometimes longer.
    fn span(&mut self) -> Duration {
        let window = self.config.link_window.as_millis() as u64;
        match self.rng.random_range(0..6) {
            0 => ms(self.rng.random_range(window..window * 3)),
            _ => ms(self.rng.random_range(1..window)),
        }
    }

    fn size(&mut self) -> usize {
        match self.rng.random_range(0..10) {
            0..5 => self.rng.random_range(0..200),
            5..8 => self.rng.random_range(0..60_000),
            _ => self.rng.random_range(70_000..300_000),
        }
    }

    fn say_some(&mut self) {
        let (from, to) = self.two();
        let count = self.rng.random_range(1..20);
        self.tell(|| format!("{from} says {count} to {to}"));
        for _ in 0..count {
            self.say(from, to);
        }
    }

    fn say(&mut self, from: usize, to: usize) {
        // Whoever it is that this node takes for it.
        let record = self.world.nodes[from].view().get(&format!("n{to:03}")).cloned();
        let Some(peer) = record.and_then(|record| self.world.nodes[from].peer(&record.id)) else { return };
        let (size, answer) = (self.size(), self.size());
        let within = ms(self.rng.random_range(1..30_000));
        match self.rng.random_range(0..8) {
            0 => self.told::<0>(from, &peer, size),
            1..3 => self.told::<1>(from, &peer, size),
            3 => self.told::<2>(from, &peer, size),
            4 => self.ask::<0>(from, &peer, size, answer, within),
            5 => self.ask::<1>(from, &peer, size, answer, within),
            6 => self.ask::<2>(from, &peer, size, answer, within),
            _ if size % 8 == 0 => {
                if let Ok(sent) = peer.send_bytes(bytes::Bytes::new()) {
                    let pages = self.pages.clone();
                    pages.borrow_mut().empties_sent += 1;
                    spawn(async move {
                        let done = sent.await.is_ok();
                        pages.borrow_mut().empties_done += usize::from(done);
                    });
                }
            }
            _ => {
                let number = self.enter(from, &peer, "", false, size);
                let sent = peer.send_bytes(numbered(number, size));
                self.follow(number, sent);
            }
        }
    }

    fn enter(&self, from: usize, peer: &Peer, kind: &'static str, bulk: bool, size: usize) -> usize {
        let (from, to, bulk) = (self.id(from), peer.id().clone(), bulk || size > ORDERED);
        let mut book = self.pages.borrow_mut();
        let taken = Instant::now();
        book.entries.push(Entry { from, to, kind, bulk, size, taken, outcome: None, heard: 0 });
        book.entries.len() - 1
    }

    fn told<const LANE: usize>(&self, from: usize, peer: &Peer, size: usize) {
        let number = self.enter(from, peer, Tell::<LANE>::KIND, LANE == 2, size);
        let sent = peer.send(&Tell::<LANE> { number, body: vec![1; size].into() });
        self.follow(number, sent);
    }

    fn follow(&self, number: usize, sent: Result<actix_memberlist::Sent, SendError>) {
        let pages = self.pages.clone();
        match sent {
            Ok(sent) => spawn(async move {
                let outcome = sent.await.map_or_else(not_sent, |()| Outcome::Done);
                pages.borrow_mut().ended(number, outcome);
            }),
            Err(error) => refused(&pages, number, &error),
        }
    }

    fn ask<const LANE: usize>(&self, from: usize, peer: &Peer, size: usize, answer: usize, within: Duration) {
        let number = self.enter(from, peer, Ask::<LANE>::KIND, LANE == 2, size);
        let (pages, peer) = (self.pages.clone(), peer.clone());
        let ask = async move {
            let ask = Ask::<LANE> { number, answer, body: vec![2; size].into() };
            match timeout(within + ms(1), peer.ask(&ask, within)).await {
                Err(_) => pages.borrow_mut().faults.push(format!("{number} waits beyond its {within:?}")),
                Ok(Ok((same, body))) if (same, body.len()) == (number, answer) => {
                    let mut book = pages.borrow_mut();
                    if book.entries[number].heard != 1 {
                        book.faults.push(format!("{number} was answered and not heard"));
                    }
                    book.ended(number, Outcome::Done);
                }
                Ok(Ok((other, _))) => {
                    pages.borrow_mut().faults.push(format!("{number} got the answer to {other}"));
                }
                Ok(Err(AskError::Send(error))) => refused(&pages, number, &error),
                Ok(Err(AskError::NotSent(error))) => pages.borrow_mut().ended(number, not_sent(error)),
                Ok(Err(AskError::Timeout | AskError::HandlerGone)) => {
                    pages.borrow_mut().ended(number, Outcome::Unanswered);
                }
                // It was heard, and there was no room for its answer.
                Ok(Err(AskError::Reply(why))) if why.contains("wait to be read") => {
                    pages.borrow_mut().ended(number, Outcome::Unanswered);
                }
                Ok(Err(error)) => pages.borrow_mut().faults.push(format!("{number}: {error}")),
            }
        };
        // It is taken with the first poll: in this place among the others.
        let mut ask = Box::pin(ask);
        if ask.as_mut().now_or_never().is_none() {
            spawn(ask);
        }
    }

    /// One thing that goes wrong.
    async fn trouble(&mut self) {
        let (one, other) = self.two();
        let (a, b, span) = (addr(one), addr(other), self.span());
        let network = self.world.network.clone();
        match self.rng.random_range(0..12) {
            0..3 => {
                let both = self.rng.random::<bool>();
                self.tell(|| format!("{one} to {other} is cut for {span:?}, both ways: {both}"));
                network.cut(a, b);
                if both {
                    network.cut(b, a);
                }
                spawn(async move {
                    sleep(span).await;
                    network.mend(a, b);
                    network.mend(b, a);
                });
            }
            3..6 => {
                self.tell(|| format!("streams between {one} and {other} break"));
                network.reset_streams(a, b);
            }
            6 => {
                let span = span.min(ms(1500));
                self.tell(|| format!("{one} stands still for {span:?}"));
                network.pause(a);
                spawn(async move {
                    sleep(span).await;
                    network.resume(a);
                });
            }
            7 => {
                let pause = ms(self.rng.random_range(10..2000));
                let (kept, span) = (self.pauses[one].clone(), span.min(ms(5000)));
                self.tell(|| format!("the handler of {one} takes {pause:?} for {span:?}"));
                kept.set(pause);
                spawn(async move {
                    sleep(span).await;
                    kept.set(Duration::ZERO);
                });
            }
            8..10 => {
                let blow = BLOWS[self.rng.random_range(0..BLOWS.len())];
                self.tell(|| format!("{blow:?} of {one} will panic"));
                self.strikes[one].arm(blow);
            }
            10 if self.rng.random_range(0..3) == 0 => {
                self.tell(|| format!("the handler of {one} stops"));
                self.pages.borrow_mut().bereft.insert(self.id(one));
                self.ears[one].do_send(Stop);
                self.ears[one] = Ear::listen(&self.world.nodes[one], &self.pages, &self.pauses[one]);
            }
            _ if one > 0 && self.rng.random::<bool>() => {
                let leaves = self.rng.random::<bool>();
                self.tell(|| format!("{one} ends, with a word: {leaves}; it is back after {span:?}"));
                self.pages.borrow_mut().bereft.insert(self.id(one));
                if leaves {
                    let _ = self.world.nodes[one].leave(Duration::from_secs(2)).await;
                }
                self.world.nodes[one].shutdown().await;
                self.bound();
                sleep(span.min(ms(20_000))).await;
                self.start(one).await;
                let node = self.world.nodes[one].clone();
                spawn(async move {
                    let _ = node.join(&["10.0.0.1:7946"]).await;
                });
            }
            _ => {}
        }
    }

    /// Notes where more waits than may.
    fn bound(&self) {
        for node in &self.world.nodes {
            for peer in node.peers() {
                let status = peer.status();
                let bytes = self.config.peer_queue_bytes.max(400_000);
                if status.queued > self.config.peer_queue_depth || status.queued_bytes > bytes {
                    self.pages.borrow_mut().faults.push(format!("bounds: {peer:?}: {status:?}"));
                }
            }
        }
    }

    /// Everything is well again, and what is under way has its time.
    async fn settle(&mut self) -> Result<(), String> {
        self.tell(|| "all heals".into());
        self.world.network.heal();
        let n = self.world.nodes.len();
        for i in 0..n {
            self.world.network.resume(addr(i));
            self.pauses[i].set(Duration::ZERO);
            self.strikes[i].disarm();
        }
        let healed = Instant::now();
        let well = |w: &World| (0..n).all(|i| w.all_hold(0..n, i, MemberState::Alive));
        while !well(&self.world) {
            if healed.elapsed() > Duration::from_secs(200) {
                return Err(format!("membership does not heal: {}", self.world.disagreements(n)));
            }
            for node in &self.world.nodes[1..] {
                let _ = timeout(Duration::from_secs(5), node.join(&["10.0.0.1:7946"])).await;
            }
            sleep(ms(500)).await;
        }
        self.tell(|| "all know each other".into());
        let bound = self.config.link_window + BEYOND;
        while self.pages.borrow().open() > 0 && healed.elapsed() < bound {
            sleep(ms(100)).await;
        }
        if self.pages.borrow().open() > 0 {
            return Ok(());
        }
        // What lies in the handlers' queues is heard.
        sleep(Duration::from_secs(10)).await;
        // And everybody can ask everybody something.
        for from in 0..n {
            for to in (0..n).filter(|to| *to != from) {
                let Some(peer) = self.world.nodes[from].peer(&self.id(to)) else {
                    return Err(format!("{from} does not know {to}"));
                };
                self.ask::<1>(from, &peer, 10, 10, Duration::from_secs(20));
                self.ask::<2>(from, &peer, 10, 10, Duration::from_secs(20));
            }
        }
        let asked = self.pages.borrow().entries.len() - 2 * n * (n - 1);
        sleep(Duration::from_secs(21)).await;
        let book = self.pages.borrow();
        let deaf = book.entries.iter().skip(asked).find(|entry| entry.outcome != Some(Outcome::Done));
        if let Some(entry) = deaf {
            return Err(format!("alive: when all is well again, this is not answered: {entry:?}"));
        }
        for node in &self.world.nodes {
            for peer in node.peers() {
                let status = peer.status();
                if status.queued > 0 || status.queued_bytes > 0 {
                    return Err(format!("memory: {peer:?} has said all: {status:?}"));
                }
            }
        }
        Ok(())
    }

    async fn run(mut self) -> Result<BTreeMap<String, usize>, String> {
        for _ in 0..self.rng.random_range(10..50) {
            match self.rng.random_range(0..5) {
                0..2 => self.trouble().await,
                _ => self.say_some(),
            }
            let pause = if self.rng.random::<bool>() { 100 } else { 3000 };
            sleep(ms(self.rng.random_range(0..pause))).await;
            self.bound();
        }
        let settled = self.settle().await;
        let mut faults = self.pages.borrow_mut().audit();
        faults.extend(settled.err());
        let outcomes = self.pages.borrow().outcomes();
        self.tell(|| format!("{outcomes:?}"));
        for node in &self.world.nodes {
            node.shutdown().await;
        }
        if faults.is_empty() {
            return Ok(outcomes);
        }
        let count = faults.len();
        faults.truncate(5);
        let mut text = format!("{count} faults, {outcomes:?}");
        for fault in faults {
            let _ = write!(text, "\n  {fault}");
        }
        Err(text)
    }
}

fn not_sent(error: NotSent) -> Outcome {
    match error {
        NotSent::Never(cause) => Outcome::Never(cause),
        NotSent::Unknown(cause) => Outcome::Unknown(cause),
        other => panic!("{other:?}"),
    }
}

/// It was not taken: nobody may hear it.
fn refused(pages: &Pages, number: usize, error: &SendError) {
    let cause = match error {
        SendError::Full => actix_memberlist::Cause::Busy,
        SendError::Gone | SendError::Leaving => actix_memberlist::Cause::PeerDead,
        SendError::Stopped => actix_memberlist::Cause::Stopped,
        other => return pages.borrow_mut().faults.push(format!("{number} was not taken: {other}")),
    };
    pages.borrow_mut().ended(number, Outcome::Never(cause));
}

fn run(seed: u64, tell: bool) -> Result<BTreeMap<String, usize>, String> {
    let seed_of = AssertUnwindSafe(|| paused(async { Campaign::begin(seed, tell).await.run().await }));
    catch_unwind(seed_of).unwrap_or_else(|panic| {
        Err(panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".into()))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[test]
fn whatever_happens_to_connections_nodes_and_actors_each_message_has_one_true_outcome() {
    if let Some(seed) = number("LINK_SEED") {
        let outcome = run(seed, true);
        return assert!(outcome.is_ok(), "{}", outcome.err().unwrap_or_default());
    }
    let seeds = number("LINK_SEEDS").unwrap_or(SEEDS);
    let (next, failed) = (AtomicU64::new(0), Mutex::new(BTreeMap::new()));
    let totals = Mutex::new(BTreeMap::<String, usize>::new());
    let threads = std::thread::available_parallelism().map_or(2, usize::from).min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Relaxed);
                    if seed >= seeds || failed.lock().unwrap().len() >= 20 {
                        return;
                    }
                    match run(seed, false) {
                        Ok(outcomes) => {
                            let mut totals = totals.lock().unwrap();
                            for (outcome, count) in outcomes {
                                *totals.entry(outcome).or_default() += count;
                            }
                        }
                        Err(why) => drop(failed.lock().unwrap().insert(seed, why)),
                    }
                }
            });
        }
    });
    let (failed, totals) = (failed.into_inner().unwrap(), totals.into_inner().unwrap());
    println!("{seeds} seeds: {totals:?}");
    let text = failed.iter().fold(String::new(), |text, (seed, why)| {
        text + &format!(
            "seed {seed}: {why}\n  replay: LINK_SEED={seed} cargo test -p memberlist-tests --test links -- --nocapture\n"
        )
    });
    assert!(failed.is_empty(), "{} of {seeds} seeds fail:\n{text}", failed.len());
    // A campaign in which nothing went wrong would prove little.
    for outcome in ["Done", "Never(Busy)", "Never(LinkLost)", "Unknown(LinkLost)", "Unanswered"] {
        assert!(totals.contains_key(outcome), "{outcome} never came: {totals:?}");
    }
}
