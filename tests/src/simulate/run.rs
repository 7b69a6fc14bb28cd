//! One run: a cluster in virtual time, a schedule of what goes wrong, and the rules.

use std::{cell::Cell, collections::BTreeMap, net::SocketAddr, pin::Pin, rc::Rc, time::Duration};

use actix_memberlist::{
    Broadcast, Cluster, Config, Key, MemberEvent, MemberState, Replay, View,
    network::memory::{MemoryNetwork, Stats},
    store::MemoryStore,
    testing::{Pair, Strikes},
    trace::Trace,
};
use actix_rt::Arbiter;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use memberlist_protocol::suspicion::Bounds;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep};

use super::{
    checks::{Broken, LATE, Rule, Sayings, Told, broken},
    forge::{Forger, seems},
    schedule::{Event, Fault, draw},
    weather::{Weather, calm},
};
use crate::{addr, paused};

/// Time between two looks at everything.
const STEP: Duration = Duration::from_millis(100);

/// All that goes wrong does so within this time.
pub const HORIZON: Duration = Duration::from_secs(60);

/// Within this time after the last fault all have to agree: two rounds of healing, and the longest suspicion that
/// may have begun before.
pub const AGREEMENT: Duration = Duration::from_secs(120);

/// A node that no fault befalls may be held for dead for so long, by what was said of it while one did.
pub const FALSE_ALARM: Duration = Duration::from_secs(60);

/// From when all agree, what was said before may still be on its way for so long, and local health recovers.
pub const SETTLED: Duration = Duration::from_secs(20);

/// After so much more time nothing is left to be gossiped of users, but for what there was no room for before.
const DRAINED: Duration = Duration::from_secs(60);

/// In a calm cluster nine of ten know within this time what somebody says who was accused: it hears of it within a round
/// of gossip or two, and so do the others of its answer.
const REFUTED: Duration = Duration::from_secs(5);

/// All know it within this time. Gossip misses one of some thousand, who hears of it when it asks the accused next, or
/// when it exchanges states.
const HEARD: Duration = Duration::from_secs(60);

/// Bytes of a node, and of what the rules know of it, on average of a cluster.
const MEMORY: u64 = 32 << 20;

/// What a process keeps for the next run: buffers of the thread, and lines of the log.
const LEFT: i64 = 1 << 20;

/// A suspicion may last so much longer than its time: for a panic of those who look after it.
const SLACK: Duration = Duration::from_secs(10);

/// One that dies in a calm cluster is held for dead by all within this time, one that leaves for left, and one that
/// comes back for alive.
pub const DETECTION: Duration = Duration::from_secs(60);

/// Nodes that everybody knows how to find.
const SEEDS: usize = 3;

/// What is tried.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Where chance begins.
    pub seed: u64,
    /// How many nodes.
    pub nodes: usize,
    /// What goes wrong.
    pub events: Vec<Event>,
    /// Whether each event that a node tells is printed.
    pub aloud: bool,
}

impl Plan {
    /// The plan of a seed, with `nodes` nodes.
    pub fn of(seed: u64, nodes: usize) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { seed, nodes, events: draw(&mut rng, nodes, HORIZON), aloud: false }
    }
}

/// How a run went.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The rule that did not hold, when, in the run's time.
    pub broken: Option<(Duration, Broken)>,
    /// How long it took after the last fault until all agreed.
    pub agreed: Option<Duration>,
    /// Events that members' subscribers heard, by kind.
    pub heard: BTreeMap<&'static str, u64>,
    /// How often news of each kind has met a member in each state: (state, kind).
    pub met: BTreeMap<Pair, u64>,
    /// How often each fault began.
    pub faults: BTreeMap<&'static str, u64>,
    /// What the network did to what was sent.
    pub network: Stats,
    /// Exchanges of states that broke off.
    pub torn: u64,
    /// The most bytes that a node took on average at one time, and those that were left in the end, of all nodes.
    pub memory: (u64, i64),
}

impl Report {
    /// Notes what memory the run took, of which `peak` bytes at one time, and of which `left` were not given back.
    pub fn weigh(&mut self, nodes: usize, peak: u64, left: i64) {
        self.memory = (peak / nodes.max(1) as u64, left);
        let (each, left) = self.memory;
        if self.broken.is_none() && (each > MEMORY || left > LEFT) {
            let how = format!("{each} bytes a node, at most {MEMORY}; {left} left, at most {LEFT}");
            self.broken = Some((Duration::ZERO, Broken { rule: Rule::Memory, how }));
        }
    }
}

type Events = Pin<Box<dyn Stream<Item = MemberEvent>>>;

/// A place where a node may run.
struct Host {
    cluster: Option<Cluster>,
    /// Of another cluster, at the same address.
    usurper: Option<Cluster>,
    events: Option<Events>,
    told: Told,
    strikes: Strikes,
    store: MemoryStore,
    /// Faults that befall it, and when the last one ended.
    troubles: usize,
    since: Instant,
    starts: u64,
    left: bool,
    /// What it says of itself, and since when.
    word: (u32, Instant),
    /// The runs so far, and the incarnation of the last one, if the next one can know it.
    runs: Vec<u64>,
    last: Option<u32>,
}

struct Sim {
    plan: Plan,
    rng: Xoshiro256PlusPlus,
    network: MemoryNetwork,
    trace: Option<Trace>,
    config: Config,
    key: Option<Key>,
    hosts: Vec<Host>,
    sayings: Sayings,
    weather: Weather,
    forger: Forger,
    /// Whether nodes go on looking for their seeds; else they are told once to join them.
    seeded: bool,
    torn: Rc<Cell<u64>>,
    /// Two hosts that did not agree when they were last asked: they are asked first.
    apart: Cell<(usize, usize)>,
    /// Since when a node has been held for dead by another one without a reason.
    wrongly: BTreeMap<(usize, usize), Instant>,
    report: Report,
    begun: Instant,
}

impl Sim {
    async fn begin(plan: Plan, trace: Option<Trace>) -> Result<Self, Broken> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(plan.seed ^ 0x5157);
        let network = match &trace {
            Some(trace) => MemoryNetwork::new(plan.seed).with_trace(trace.clone()),
            None => MemoryNetwork::new(plan.seed),
        };
        let config = drawn(&mut rng);
        let key = rng.random::<bool>().then(|| Key::from_bytes(&[7; 32]).expect("it has a length"));
        let seeded = rng.random();
        let now = Instant::now();
        let hosts = (0..plan.nodes)
            .map(|_| Host {
                cluster: None,
                usurper: None,
                events: None,
                told: Told::default(),
                strikes: Strikes::default(),
                store: MemoryStore::new(),
                troubles: 0,
                since: now,
                starts: 0,
                left: false,
                word: (0, now),
                runs: Vec::new(),
                last: None,
            })
            .collect();
        let (sayings, torn, wrongly, report) = Default::default();
        network.set_default(calm());
        let mut this = Self {
            weather: Weather::new(plan.nodes),
            forger: Forger::new(&config, key.as_ref()),
            apart: Cell::default(),
            plan,
            rng,
            network,
            trace,
            config,
            key,
            hosts,
            sayings,
            seeded,
            torn,
            wrongly,
            report,
            begun: now,
        };
        for i in 0..this.hosts.len() {
            this.start(i).await?;
        }
        let deadline = Instant::now() + Duration::from_secs(60);
        while !this.agree() {
            if Instant::now() > deadline {
                return broken(Rule::Agreement, "they do not even find each other");
            }
            sleep(STEP).await;
        }
        this.begun = Instant::now();
        Ok(this)
    }

    fn seeds() -> Vec<String> {
        (0..SEEDS).map(|i| addr(i).to_string()).collect()
    }

    fn builder(&self, i: usize, name: &str, seed: u64) -> actix_memberlist::ClusterBuilder {
        let builder = Cluster::builder(name)
            .config(self.config.clone())
            .bind(addr(i))
            .network(self.network.clone())
            .arbiter(Arbiter::current())
            .without_watchdog()
            .seed(seed);
        match &self.key {
            Some(key) => builder.key(key.clone()),
            None => builder.plaintext(),
        }
    }

    /// Starts node `i`, as an init system would: it knows its seeds, or is told once to join them, and nothing else.
    async fn start(&mut self, i: usize) -> Result<(), Broken> {
        let host = &mut self.hosts[i];
        host.starts += 1;
        host.strikes = Strikes::default();
        let seed = self.plan.seed.wrapping_mul(1_000_000) + (i as u64) * 1000 + host.starts;
        let host = &self.hosts[i];
        let mut node = self
            .builder(i, &format!("n{i:03}"), seed)
            .label("shop")
            .seeds(if self.seeded { Self::seeds() } else { Vec::new() })
            .memory_store(&host.store)
            .strikes(host.strikes.clone());
        if let Some(trace) = &self.trace {
            node = node.trace(trace.clone());
        }
        let node = node.start().await.expect("a node starts");
        let (host, local) = (&mut self.hosts[i], node.view().local().clone());
        if host.runs.contains(&local.id.run()) {
            return broken(Rule::Runs, format_args!("{} is started again, and the same", local.id));
        }
        host.runs.push(local.id.run());
        if let Some(last) = host.last.take().filter(|last| local.incarnation <= *last) {
            let how = format_args!("{} was {last} and starts as {}", local.id, local.incarnation).to_string();
            return broken(Rule::Runs, how);
        }
        host.events = Some(Box::pin(node.events(Replay::Snapshot)));
        host.told = std::mem::take(&mut host.told).of_another_run();
        if !self.seeded {
            spawn(join_once(node.clone()));
        }
        host.cluster = Some(node);
        host.left = false;
        Ok(())
    }

    async fn stop(&mut self, i: usize) -> Result<(), Broken> {
        let aloud = self.aloud();
        let Self { hosts, sayings, report, .. } = self;
        let host = &mut hosts[i];
        // What it has said is said.
        let heard = host.listen(sayings, aloud);
        host.events = None;
        if let Some(node) = host.cluster.take() {
            host.last = Some(node.view().local().incarnation);
            for (pair, n) in host.strikes.met() {
                *report.met.entry(pair).or_default() += n;
            }
            node.shutdown().await;
        }
        heard
    }

    async fn begins(&mut self, event: &Event) -> Result<(), Broken> {
        *self.report.faults.entry(event.fault.name()).or_default() += 1;
        for &i in &event.who {
            if !event.fault.is_harmless() {
                self.hosts[i].troubles += 1;
            }
            match event.fault {
                Fault::Crash { .. } => self.stop(i).await?,
                Fault::Usurped => {
                    self.stop(i).await?;
                    if self.hosts[i].usurper.is_none() {
                        let seed = self.plan.seed ^ 0x075e;
                        let other = self.builder(i, &format!("other{i:03}"), seed).label("bank");
                        // Its seeds are long somebody else's.
                        self.hosts[i].usurper = other.seeds(Self::seeds()).start().await.ok();
                    }
                }
                Fault::Clock(by) => self.hosts[i].store.turn(by),
                Fault::LeaveApart(_) if i != event.who[0] => {}
                Fault::Leave | Fault::LeaveApart(_) => {
                    if let Some(node) = self.hosts[i].cluster.clone() {
                        self.hosts[i].left = true;
                        let leave = async move { drop(node.leave(Duration::from_secs(2)).await) };
                        spawn(leave);
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }

    async fn ends(&mut self, event: &Event) -> Result<(), Broken> {
        for &i in &event.who {
            if !event.fault.is_harmless() {
                self.hosts[i].troubles -= 1;
                self.hosts[i].since = Instant::now();
            }
            if event.fault == Fault::Panics {
                // What has not struck by then is not to strike later.
                self.hosts[i].strikes.disarm();
            }
            if let Fault::LeaveApart(_) = event.fault
                && i != event.who[0]
            {
                continue;
            }
            if let Fault::Clock(by) = event.fault {
                let up = self.hosts[i].cluster.is_some() && !self.hosts[i].left;
                if up {
                    self.stop(i).await?;
                }
                self.hosts[i].store.turn(-by);
                if up {
                    self.start(i).await?;
                }
            }
            if let Fault::Crash { .. } | Fault::Usurped | Fault::Leave | Fault::LeaveApart(_) = event.fault {
                if let Some(usurper) = self.hosts[i].usurper.take() {
                    usurper.shutdown().await;
                }
                let down = self.plan.events.iter().any(|other| {
                    let now = self.begun.elapsed();
                    other != event
                        && other.who.contains(&i)
                        && other.at <= now
                        && now < other.end()
                        && matches!(other.fault, Fault::Crash { .. } | Fault::Usurped)
                });
                if !down && (self.hosts[i].cluster.is_none() || self.hosts[i].left) {
                    self.stop(i).await?;
                    if let Fault::Crash { file: false } = event.fault {
                        self.hosts[i].store = MemoryStore::new();
                        self.hosts[i].last = None;
                    }
                    self.start(i).await?;
                }
            }
        }
        Ok(())
    }

    /// What goes on while faults last.
    fn goes_on(&mut self, event: &Event, step: u64) {
        let each_second = step.is_multiple_of(10);
        if let Fault::Resets(_) = event.fault
            && each_second
        {
            self.tear(event);
        }
        for &i in &event.who {
            if let Fault::Forged(n) = event.fault {
                self.forge(i, n.div_ceil(10));
            }
            let host = &self.hosts[i];
            match event.fault {
                Fault::Panics if each_second => {
                    let pairs = Strikes::pairs();
                    host.strikes.arm(pairs[self.rng.random_range(0..pairs.len())]);
                }
                Fault::Updates if each_second => {
                    if let Some(node) = host.cluster.clone().filter(|_| !host.left) {
                        let meta = Bytes::from(format!("{step} of {i}"));
                        spawn(async move { drop(node.set_meta(meta).await) });
                    }
                }
                Fault::Traffic(n) if each_second => {
                    let Some(node) = host.cluster.clone().filter(|_| !host.left) else { continue };
                    for _ in 0..n {
                        let bytes = vec![step as u8; self.rng.random_range(1..2000)];
                        match self.rng.random_range(0..3) {
                            0 => drop(node.broadcast_bytes(Broadcast::new(bytes))),
                            1 => node
                                .peers()
                                .iter()
                                .for_each(|peer| drop(peer.cast_bytes(bytes.clone().into()))),
                            _ => node
                                .peers()
                                .iter()
                                .for_each(|peer| drop(peer.send_bytes(bytes.clone().into()))),
                        }
                    }
                }
                Fault::Noise(n) => {
                    for _ in 0..n.div_ceil(10) {
                        let len = self.rng.random_range(0..300);
                        let mut bytes = vec![0; len];
                        self.rng.fill(&mut bytes[..]);
                        let from = SocketAddr::from(([10, 9, 9, self.rng.random()], 7946));
                        let _ = self.network.forge(&bytes, from, addr(i));
                    }
                }
                _ => {}
            }
        }
    }

    /// Packets come to host `i` that nobody of the cluster has sent.
    fn forge(&mut self, i: usize, n: u32) {
        let mut one = || {
            let host = &self.hosts[self.rng.random_range(0..self.hosts.len())];
            host.cluster.as_ref().map(|node| node.view().local().clone())
        };
        let (Some(about), Some(by)) = (one(), one()) else { return };
        for _ in 0..n {
            let packet = self.forger.packet(&mut self.rng, &about, &by);
            let _ = self.network.forge(&packet, seems(&by), addr(i));
        }
    }

    /// One of them exchanges states with somebody, and their streams break within a few milliseconds.
    fn tear(&mut self, event: &Event) {
        let one = event.who[self.rng.random_range(0..event.who.len())];
        let other = self.rng.random_range(0..self.hosts.len());
        let Some(node) = self.hosts[one].cluster.clone().filter(|_| one != other && !self.hosts[one].left)
        else {
            return;
        };
        let (network, torn) = (self.network.clone(), self.torn.clone());
        let after = Duration::from_micros(self.rng.random_range(0..12_000));
        spawn(async move {
            sleep(after).await;
            network.reset_streams(addr(one), addr(other));
        });
        spawn(async move {
            let to = addr(other).to_string();
            torn.set(torn.get() + u64::from(node.join(&[&to]).await.is_err()));
        });
    }

    /// Those who were apart tell some of the others what they know.
    fn meet(&mut self, event: &Event) {
        for &i in &event.who[1..] {
            let Some(node) = self.hosts[i].cluster.clone().filter(|_| !self.hosts[i].left) else { continue };
            let others: Vec<_> = (0..self.hosts.len()).filter(|other| !event.who.contains(other)).collect();
            let to: Vec<_> =
                (0..3).map(|_| addr(others[self.rng.random_range(0..others.len())]).to_string()).collect();
            spawn(async move {
                let to: Vec<_> = to.iter().map(|to| &**to).collect();
                drop(node.join(&to).await);
            });
        }
    }

    /// From when time is counted in what is printed, if anything is.
    fn aloud(&self) -> Option<Instant> {
        self.plan.aloud.then_some(self.begun)
    }

    /// Looks at everything.
    fn check(&mut self, step: u64) -> Result<(), Broken> {
        let aloud = self.aloud();
        let Self { hosts, sayings, .. } = self;
        for (i, host) in hosts.iter_mut().enumerate() {
            host.listen(sayings, aloud)?;
            if let Some(node) = &host.cluster {
                // What has changed without an event is found in time.
                host.told.compare(&node.view(), (step + i as u64).is_multiple_of(30))?;
            }
        }
        sayings.settle(LATE)?;
        self.bounds(step)?;
        if step.is_multiple_of(5) {
            self.suspicions()?;
            self.false_alarms()?;
        }
        Ok(())
    }

    /// Looks at the metrics of each node once in two seconds.
    fn bounds(&self, step: u64) -> Result<(), Broken> {
        let config = &self.config;
        for (i, host) in self.hosts.iter().enumerate() {
            let Some(node) = host.cluster.as_ref().filter(|_| (step + i as u64).is_multiple_of(20)) else {
                continue;
            };
            let metrics = node.metrics();
            let inboxes = metrics.inboxes.iter().map(|(actor, inbox)| (*actor, inbox.waiting));
            let most = (config.control_queue_depth + config.handoff_queue_depth) as u64;
            let users = metrics.broadcasts_queued - metrics.news_queued;
            let bounds = [
                ("bytes for others", metrics.links_queued_bytes, config.total_queue_bytes as u64),
                ("pieces of news", metrics.news_queued, config.max_broadcasts as u64),
                ("broadcasts", users, config.max_user_broadcasts as u64),
                // Nobody else was ever there.
                ("members", metrics.members.values().sum(), self.hosts.len() as u64),
                ("links", metrics.links, config.max_links as u64),
                ("streams", metrics.streams_open, 2 * config.max_streams as u64),
                ("score of health", metrics.health_score, u64::from(config.awareness_max_multiplier)),
                ("accusers", metrics.accusers.len() as u64, 32),
            ];
            let all = inboxes.map(|(actor, waiting)| (actor, waiting, most)).chain(bounds);
            for (what, n, most) in all {
                if n > most {
                    return broken(Rule::Bounds, format_args!("{what}: {n} at n{i:03}, at most {most}"));
                }
            }
            let restarts: u64 = metrics.restarts.values().sum();
            let struck: u64 = host.strikes.hits().values().sum();
            if restarts > struck {
                return broken(
                    Rule::Panics,
                    format_args!("{restarts} restarts of n{i:03}, {struck} strikes"),
                );
            }
        }
        Ok(())
    }

    /// Each suspicion ends: in a refutation, or in a death.
    fn suspicions(&mut self) -> Result<(), Broken> {
        let (now, most) = (Instant::now(), Bounds::new(&self.config, self.hosts.len()).max + SLACK);
        for host in &mut self.hosts {
            let Some(node) = &host.cluster else { continue };
            let incarnation = node.view().local().incarnation;
            if host.word.0 != incarnation {
                // Who is accused itself begins its suspicions anew.
                host.word = (incarnation, now);
            }
            if let Some((id, since)) = host.told.longest_suspicion()
                && now.saturating_duration_since(since.max(host.word.1)) > most
            {
                let by = node.view().local().id.clone();
                return broken(Rule::Suspicions, format_args!("{by} suspects {id} for more than {most:?}"));
            }
        }
        Ok(())
    }

    /// Who is untouched, and has been for long enough that what was said before is over.
    fn false_alarms(&mut self) -> Result<(), Broken> {
        let now = Instant::now();
        let clear: Vec<_> =
            self.hosts.iter().map(|h| h.troubles == 0 && h.cluster.is_some() && !h.left).collect();
        for (i, host) in self.hosts.iter().enumerate() {
            let Some(node) = host.cluster.as_ref().filter(|_| clear[i]) else { continue };
            let view = node.view();
            if view.all().all(|member| member.state != MemberState::Dead) {
                self.wrongly.retain(|(by, _), _| *by != i);
                continue;
            }
            for (of, other) in self.hosts.iter().enumerate() {
                let id = || other.cluster.as_ref().map(|node| node.view().local().id.clone());
                let dead = clear[of]
                    && view.get(&format!("n{of:03}")).is_some_and(|member| {
                        matches!(member.state, MemberState::Dead) && Some(&member.id) == id().as_ref()
                    });
                if !dead {
                    self.wrongly.remove(&(i, of));
                    continue;
                }
                let since = *self.wrongly.entry((i, of)).or_insert(now);
                let since = since.max(host.since).max(other.since);
                if now.saturating_duration_since(since) > FALSE_ALARM {
                    return broken(Rule::FalseAlarms, format_args!("n{i:03} holds n{of:03} for dead"));
                }
            }
        }
        Ok(())
    }

    /// Whether all hold all for alive, and say the same of each.
    fn agree(&self) -> bool {
        let views: Vec<_> = self.hosts.iter().filter_map(|h| h.cluster.as_ref()).map(Cluster::view).collect();
        let agree = |view: &View, other: &View| {
            let local = other.local();
            view.get(local.name()).is_some_and(|member| {
                (&member.id, member.state, member.incarnation, &member.meta)
                    == (&local.id, MemberState::Alive, local.incarnation, &local.meta)
            })
        };
        let (one, other) = self.apart.get();
        if let (Some(one), Some(other)) = (views.get(one), views.get(other))
            && !agree(one, other)
        {
            return false;
        }
        for (i, view) in views.iter().enumerate() {
            if let Some(of) = views.iter().position(|other| !agree(view, other)) {
                self.apart.set((i, of));
                return false;
            }
        }
        views.iter().all(|view| view.alive_count() == views.len())
    }

    /// Who does not agree, and on what.
    fn disagreements(&self) -> String {
        let mut all = Vec::new();
        for host in &self.hosts {
            let Some(node) = &host.cluster else { continue };
            let view = node.view();
            for other in self.hosts.iter().filter_map(|h| h.cluster.as_ref()) {
                let local = other.view().local().clone();
                let seen =
                    view.get(local.name()).map(|m| (m.id.run() == local.id.run(), m.state, m.incarnation));
                if seen != Some((true, MemberState::Alive, local.incarnation)) && all.len() < 8 {
                    let of = local.incarnation;
                    all.push(format!("{} holds {} ({of}) for {seen:?}", view.local().name(), local.name()));
                }
            }
        }
        all.join("; ")
    }

    async fn tell(&mut self) -> Result<(), Broken> {
        let events = self.plan.events.clone();
        let end = events.iter().map(Event::end).max().unwrap_or_default();
        let [mut begun, mut over, mut met] = [(); 3].map(|()| vec![false; events.len()]);
        let mut step = 0;
        loop {
            let now = self.begun.elapsed();
            self.weather.set(&self.network, &events, now);
            for (n, event) in events.iter().enumerate() {
                if !begun[n] && event.at <= now {
                    begun[n] = true;
                    self.begins(event).await?;
                }
            }
            for (n, event) in events.iter().enumerate() {
                if begun[n] && !over[n] && event.end() <= now {
                    over[n] = true;
                    self.ends(event).await?;
                } else if begun[n] && !over[n] {
                    self.goes_on(event, step);
                }
                if let Fault::LeaveApart(cut) = event.fault
                    && event.at + cut <= now
                    && !std::mem::replace(&mut met[n], true)
                {
                    self.meet(event);
                }
            }
            self.check(step)?;
            if now > end && over.iter().all(|over| *over) {
                break;
            }
            step += 1;
            sleep(STEP).await;
        }
        let calm = Instant::now();
        while !self.agree() {
            if calm.elapsed() > AGREEMENT {
                return broken(Rule::Agreement, self.disagreements());
            }
            step += 1;
            sleep(STEP).await;
            self.check(step)?;
        }
        self.report.agreed = Some(calm.elapsed());
        self.calm(step).await
    }

    /// Lets time pass, and looks at everything, until `done` or the time is up; says which.
    async fn watch(
        &mut self,
        step: &mut u64,
        limit: Duration,
        mut done: impl FnMut(&mut Self) -> Result<bool, Broken>,
    ) -> Result<bool, Broken> {
        let begun = Instant::now();
        while begun.elapsed() < limit {
            *step += 1;
            sleep(STEP).await;
            self.check(*step)?;
            if done(self)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Nothing is left to be gossiped: no news by now, and what users have broadcast when there was time for it.
    async fn drained(&mut self, step: &mut u64) -> Result<(), Broken> {
        let waiting = |this: &Self| {
            let nodes = this.hosts.iter().filter_map(|host| host.cluster.as_ref());
            let all = nodes.map(|node| {
                let metrics = node.metrics();
                (metrics.broadcasts_queued, metrics.news_queued, node.view().local().id.clone())
            });
            all.max().expect("there are nodes")
        };
        let (all, news, node) = waiting(self);
        if news > 0 {
            return broken(Rule::Bounds, format_args!("{node} has {news} pieces of news in a calm cluster"));
        }
        if all == 0 {
            return Ok(());
        }
        // Each packet takes one at least, and each goes as often as gossip does here. Others that this node has not heard
        // of yet may be as many.
        let limit = self.config.retransmit_limit(self.hosts.len());
        let rounds = 2 * all * u64::from(limit) / (self.config.gossip_nodes as u64).max(1);
        let most = DRAINED + self.config.gossip_interval * u32::try_from(rounds).unwrap_or(u32::MAX);
        let done = |this: &mut Self| Ok(waiting(this).0 == 0);
        let begun = Instant::now();
        while begun.elapsed() < most {
            if self.watch(step, Duration::from_secs(1), |_| Ok(false)).await? || done(self)? {
                return Ok(());
            }
        }
        let (left, _, node) = waiting(self);
        broken(
            Rule::Bounds,
            format_args!("{node} had {all} broadcasts, and has {left} of them {most:?} later"),
        )
    }

    /// In a calm cluster packets that must do no harm do none; and when somebody is accused without a reason, nobody holds
    /// it for dead, and all hear its answer.
    async fn refuted(&mut self, step: &mut u64) -> Result<(), Broken> {
        let before: Vec<_> = self.hosts.iter().map(|host| host.told.quiet("")).collect();
        for i in 0..self.hosts.len() {
            self.forge(i, 5);
        }
        self.watch(step, Duration::from_secs(2), |_| Ok(false)).await?;
        if let Some(i) = (0..before.len()).find(|i| self.hosts[*i].told.quiet("") != before[*i]) {
            return broken(Rule::Calm, format_args!("forged packets change something at n{i:03}"));
        }
        // Under a key only members can accuse.
        if self.key.is_some() {
            return Ok(());
        }
        let [one, by] = [(); 2].map(|()| self.rng.random_range(0..self.hosts.len()));
        let to = (one + 1 + self.rng.random_range(0..self.hosts.len() - 1)) % self.hosts.len();
        let of = |this: &Self, i: usize| {
            this.hosts[i].cluster.as_ref().map(|node| node.view().local().clone()).expect("all run")
        };
        let (about, by) = (of(self, one), of(self, by));
        let packet = self.forger.accusation(&about, &by);
        let _ = self.network.forge(&packet, seems(&by), addr(to));
        // How many hold it for alive, with a word that is newer than what was said of it.
        let heard = |this: &Self| {
            let name = about.name();
            let nodes = this.hosts.iter().filter_map(|host| host.cluster.as_ref());
            let heard = nodes.filter_map(|node| node.view().get(name).cloned()).filter(|member| {
                member.state == MemberState::Alive && member.incarnation > about.incarnation
            });
            heard.count()
        };
        for (within, of_ten) in [(REFUTED, 9), (HEARD, 10)] {
            let wanted = self.hosts.len() * of_ten / 10;
            let enough = self
                .watch(step, within, |this| {
                    if this.hosts.iter().any(|host| host.told.holds(about.name()) == Some(MemberState::Dead))
                    {
                        return broken(
                            Rule::Refutations,
                            format_args!("{} is accused, and held for dead", about.id),
                        );
                    }
                    Ok(heard(this) >= wanted)
                })
                .await?;
            if !enough {
                let how = format!("{} is accused; {} of {wanted} have its answer", about.id, heard(self));
                return broken(Rule::Refutations, how);
            }
        }
        if !self.agree() {
            return broken(Rule::Calm, self.disagreements());
        }
        Ok(())
    }

    /// All agree, and nothing goes wrong any more: then nothing happens, but for one node that dies, or leaves, and
    /// comes back.
    async fn calm(&mut self, mut step: u64) -> Result<(), Broken> {
        self.watch(&mut step, SETTLED, |_| Ok(false)).await?;
        for (i, host) in self.hosts.iter().enumerate() {
            let Some(node) = &host.cluster else { continue };
            let metrics = node.metrics();
            if metrics.health_score > 0 {
                return broken(Rule::Health, format_args!("n{i:03} has a score of {}", metrics.health_score));
            }
        }
        self.drained(&mut step).await?;
        self.refuted(&mut step).await?;
        let one = self.rng.random_range(0..self.hosts.len());
        let name = format!("n{one:03}");
        let node = self.hosts[one].cluster.clone().filter(|_| self.rng.random::<bool>());
        let before: Vec<_> = self.hosts.iter().map(|host| host.told.quiet(&name)).collect();
        let state = if node.is_some() { MemberState::Left } else { MemberState::Dead };
        match &node {
            Some(node) => {
                self.hosts[one].left = true;
                drop(node.leave(Duration::from_secs(2)).await);
            }
            None => self.stop(one).await?,
        }
        // Nothing happens to any other one.
        let mut seen = vec![None; self.hosts.len()];
        let mut quiet = |this: &Self| {
            let mut changed = this.hosts.iter().zip(&before).enumerate().filter(|(i, (host, before))| {
                let fresh = std::mem::replace(&mut seen[*i], host.told.rev()) != host.told.rev();
                fresh && *i != one && host.cluster.is_some() && host.told.quiet(&name) != **before
            });
            match changed.next() {
                Some((i, _)) => {
                    broken(Rule::Calm, format_args!("something happens at n{i:03} besides {name}"))
                }
                None => Ok(()),
            }
        };
        let all_hold = |this: &Self, state| {
            let mut others = this.hosts.iter().enumerate().filter(|(i, _)| *i != one);
            others.all(|(_, host)| {
                let view = host.cluster.as_ref().map(Cluster::view);
                view.is_none_or(|view| view.get(&name).is_some_and(|member| member.state == state))
            })
        };
        let known = self
            .watch(&mut step, DETECTION, |this| {
                quiet(this)?;
                if state == MemberState::Left && this.hosts.iter().any(|host| host.told.accuses(&name)) {
                    return broken(Rule::Leaves, format_args!("{name} has left, and is accused"));
                }
                Ok(all_hold(this, state))
            })
            .await?;
        if !known {
            return broken(Rule::Detection, format_args!("{name} is not held for {state} by all"));
        }
        self.watch(&mut step, Duration::from_secs(5), |this| quiet(this).map(|()| false)).await?;
        if !all_hold(self, state) {
            return broken(
                Rule::Leaves,
                format_args!("{name} was held for {state}, and came back by itself"),
            );
        }
        match node {
            Some(node) => {
                let local = node.view().local().clone();
                let seeds = Self::seeds();
                let seeds: Vec<_> = seeds.iter().map(|seed| &**seed).collect();
                let _ = node.join(&seeds).await;
                let now = node.view().local().clone();
                if now.id == local.id || now.incarnation <= local.incarnation {
                    return broken(Rule::Runs, format_args!("{} comes back as {}", local.id, now.id));
                }
                self.hosts[one].runs.push(now.id.run());
                self.hosts[one].left = false;
            }
            None => self.start(one).await?,
        }
        if self.watch(&mut step, DETECTION, |this| Ok(this.agree())).await? {
            return Ok(());
        }
        broken(Rule::Agreement, format_args!("{name} came back; {}", self.disagreements()))
    }
}

impl Host {
    /// Hears what its node has told its subscriber.
    fn listen(&mut self, sayings: &mut Sayings, aloud: Option<Instant>) -> Result<(), Broken> {
        let Some(events) = &mut self.events else { return Ok(()) };
        while let Some(Some(event)) = events.next().now_or_never() {
            if let Some(begun) = aloud {
                println!("{:>9.3} {}", begun.elapsed().as_secs_f64(), self.told.line(&event));
            }
            self.told.hear(&event, sayings)?;
        }
        Ok(())
    }
}

/// The settings of a run. Each of those that change how verdicts come about is off in a quarter of the runs.
fn drawn(rng: &mut Xoshiro256PlusPlus) -> Config {
    let mut on = || rng.random_range(0..4) > 0;
    Config {
        link_window: Duration::from_secs(10),
        own_verdicts: on(),
        early_verdicts: on(),
        count_refusals: on(),
        gossip_at_once: on(),
        ..Config::lan()
    }
}

/// As a script does at the start of a machine: it tries until somebody is reached, for a while.
async fn join_once(node: Cluster) {
    let seeds = Sim::seeds();
    let seeds: Vec<_> = seeds.iter().map(|seed| &**seed).collect();
    for _ in 0..10 {
        if node.join(&seeds).await.is_ok() {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
}

#[allow(clippy::disallowed_methods)]
fn spawn(task: impl Future<Output = ()> + 'static) {
    actix_rt::spawn(task);
}

/// Runs a plan to its end, or until a rule is broken.
pub fn run(plan: &Plan) -> Report {
    run_with(plan, None)
}

/// Runs a plan, and gives the hash of all that could be seen: each datagram, each piece of a stream, each event.
pub fn hash(plan: &Plan) -> (Report, u64) {
    let trace = Trace::new();
    let report = run_with(plan, Some(trace.clone()));
    (report, trace.hash())
}

/// Runs a plan, and gives all that its hash is made of, a line each.
pub fn trace(plan: &Plan) -> Vec<String> {
    let trace = Trace::keeping(usize::MAX);
    run_with(plan, Some(trace.clone()));
    trace.lines()
}

fn run_with(plan: &Plan, trace: Option<Trace>) -> Report {
    let plan = plan.clone();
    paused(async move {
        let mut sim = match Sim::begin(plan, trace).await {
            Ok(sim) => sim,
            Err(how) => return Report { broken: Some((Duration::ZERO, how)), ..Report::default() },
        };
        if let Err(how) = sim.tell().await {
            sim.report.broken = Some((sim.begun.elapsed(), how));
        }
        for host in &sim.hosts {
            for (kind, n) in &host.told.heard {
                *sim.report.heard.entry(kind).or_default() += n;
            }
        }
        (sim.report.network, sim.report.torn) = (sim.network.stats(), sim.torn.get());
        for i in 0..sim.hosts.len() {
            let _ = sim.stop(i).await;
            if let Some(usurper) = sim.hosts[i].usurper.take() {
                usurper.shutdown().await;
            }
        }
        sim.report
    })
}
