//! One run: a cluster in virtual time, a schedule of what goes wrong, and the rules.

use std::{collections::BTreeMap, net::SocketAddr, pin::Pin, time::Duration};

use actix_memberlist::{
    Broadcast, Cluster, Config, Key, MemberEvent, MemberState, Replay,
    network::memory::{Link, MemoryNetwork},
    store::MemoryStore,
    testing::{Pair, Strikes},
    trace::Trace,
};
use actix_rt::Arbiter;
use bytes::Bytes;
use futures_util::{FutureExt, Stream, StreamExt};
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep};

use super::{
    checks::{Broken, Rule, Sayings, Told, broken},
    schedule::{Event, Fault, draw},
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

/// After so much more time nothing is left to be gossiped.
const DRAINED: Duration = Duration::from_secs(60);

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
}

impl Plan {
    /// The plan of a seed, with `nodes` nodes.
    pub fn of(seed: u64, nodes: usize) -> Self {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        Self { seed, nodes, events: draw(&mut rng, nodes, HORIZON) }
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
    /// Deaths of members that no fault had befallen.
    pub false_deaths: u64,
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
    /// What is in the way from one host to another, as the network was told last.
    links: BTreeMap<(usize, usize), Link>,
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
        let config = Config { link_window: Duration::from_secs(10), ..Config::lan() };
        let key = rng.random::<bool>().then(|| Key::from_bytes(&[7; 32]).expect("it has a length"));
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
                runs: Vec::new(),
                last: None,
            })
            .collect();
        let (sayings, links, wrongly, report) = Default::default();
        network.set_default(calm());
        let mut this = Self {
            plan,
            rng,
            network,
            trace,
            config,
            key,
            hosts,
            sayings,
            links,
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

    /// Starts node `i`, as an init system would: it knows its seeds, and nothing else.
    async fn start(&mut self, i: usize) -> Result<(), Broken> {
        let host = &mut self.hosts[i];
        host.starts += 1;
        host.strikes = Strikes::default();
        let seed = self.plan.seed.wrapping_mul(1_000_000) + (i as u64) * 1000 + host.starts;
        let host = &self.hosts[i];
        let mut node = self
            .builder(i, &format!("n{i:03}"), seed)
            .label("shop")
            .seeds(Self::seeds())
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
        host.cluster = Some(node);
        host.left = false;
        Ok(())
    }

    async fn stop(&mut self, i: usize) -> Result<(), Broken> {
        let Self { hosts, sayings, report, .. } = self;
        let host = &mut hosts[i];
        // What it has said is said.
        let heard = host.listen(sayings);
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

    /// What is in the way from one host to another just now.
    fn link(&self, active: &[&Event], from: usize, to: usize, now: Duration) -> Link {
        let mut link = calm();
        let either = |a: f64, b: f64| 1.0 - (1.0 - a) * (1.0 - b);
        for event in active {
            let (sends, hears) = (event.who.contains(&from), event.who.contains(&to));
            if !sends && !hears && event.fault != Fault::Star {
                continue;
            }
            match &event.fault {
                Fault::Loss(p) => link.loss = either(link.loss, *p),
                Fault::Lossy { to: inward, from: outward } => {
                    link.loss = either(link.loss, if hears { *inward } else { 0.0 });
                    link.loss = either(link.loss, if sends { *outward } else { 0.0 });
                }
                Fault::Bursts(bursts) => link.bursts = Some(*bursts),
                Fault::Duplicate(p) => link.duplicate = either(link.duplicate, *p),
                Fault::Reorder(p, by) => {
                    link.reorder = either(link.reorder, *p);
                    link.reorder_by = link.reorder_by.max(*by);
                }
                Fault::Latency(most) => link.latency.end += *most,
                Fault::Largest(most) => link.largest = link.largest.min(*most),
                Fault::Corrupt(p) => link.corrupt = either(link.corrupt, *p),
                Fault::Truncate(p) => link.truncate = either(link.truncate, *p),
                Fault::Replay(p) => link.replay = either(link.replay, *p),
                Fault::Resets(p) => link.reset = either(link.reset, *p),
                Fault::Partition => link.cut |= sends != hears,
                Fault::Deaf => link.cut |= hears,
                Fault::Dumb => link.cut |= sends,
                Fault::FlipFlop(time) => {
                    let turns = (now.saturating_sub(event.at)).as_millis() / time.as_millis().max(1);
                    link.cut |= hears && turns.is_multiple_of(2);
                }
                Fault::HalfConnected => {
                    let one = event.who[0];
                    let both = sends && hears;
                    link.cut |= (from == one || to == one) && !both;
                }
                Fault::AcceptOnly => {
                    link.mute |= hears;
                    link.loss = if hears { 1.0 } else { link.loss };
                }
                Fault::Refuse => {
                    link.refuse |= hears;
                    link.loss = if hears { 1.0 } else { link.loss };
                }
                _ => {}
            }
        }
        for event in active {
            if event.fault == Fault::Star && (event.who.contains(&from) || event.who.contains(&to)) {
                link.cut |= from != 0 && to != 0;
            }
        }
        link
    }

    /// Sets the network as it is at that time.
    fn weather(&mut self, now: Duration) {
        let events = self.plan.events.clone();
        let active: Vec<_> = events.iter().filter(|e| e.at <= now && now < e.end()).collect();
        for from in 0..self.hosts.len() {
            for to in 0..self.hosts.len() {
                if from == to {
                    continue;
                }
                let link = self.link(&active, from, to, now);
                if *self.links.entry((from, to)).or_insert_with(calm) != link {
                    self.network.set_link(addr(from), addr(to), link.clone());
                    self.links.insert((from, to), link);
                }
            }
            let stopped = active.iter().any(|event| {
                let since = now.saturating_sub(event.at);
                event.who.contains(&from)
                    && match event.fault {
                        Fault::Pause => true,
                        Fault::Slow(stopped, running) => {
                            since.as_millis() % (stopped + running).as_millis() < stopped.as_millis()
                        }
                        _ => false,
                    }
            });
            match stopped {
                true => self.network.pause(addr(from)),
                false => self.network.resume(addr(from)),
            }
            let down = active.iter().any(|e| e.fault == Fault::NoNetwork && e.who.contains(&from));
            let error = down.then_some(std::io::ErrorKind::NetworkUnreachable);
            self.network.fail_sends(addr(from), error);
        }
    }

    /// Whether the network has to be set anew, although nothing begins or ends.
    fn changes(event: &Event) -> bool {
        matches!(event.fault, Fault::FlipFlop(_) | Fault::Slow(..))
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
                Fault::Leave => {
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
            if let Fault::Crash { .. } | Fault::Usurped | Fault::Leave = event.fault {
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
        for &i in &event.who {
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

    /// Looks at everything.
    fn check(&mut self, step: u64) -> Result<(), Broken> {
        let Self { hosts, sayings, .. } = self;
        for host in hosts.iter_mut() {
            host.listen(sayings)?;
            if let Some(node) = &host.cluster {
                // What has changed without an event is found in time.
                host.told.compare(&node.view(), step.is_multiple_of(10))?;
            }
        }
        sayings.settle()?;
        if step.is_multiple_of(10) {
            self.bounds()?;
        }
        if step.is_multiple_of(5) {
            self.false_alarms()?;
        }
        Ok(())
    }

    fn bounds(&self) -> Result<(), Broken> {
        let config = &self.config;
        for (i, host) in self.hosts.iter().enumerate() {
            let Some(node) = &host.cluster else { continue };
            let metrics = node.metrics();
            let most = (config.control_queue_depth + config.handoff_queue_depth) as u64;
            for (actor, inbox) in &metrics.inboxes {
                if inbox.waiting > most {
                    return broken(
                        Rule::Bounds,
                        format_args!("{} wait for {actor} of n{i:03}", inbox.waiting),
                    );
                }
            }
            if metrics.links_queued_bytes > config.total_queue_bytes as u64 {
                return broken(
                    Rule::Bounds,
                    format_args!("{} bytes wait at n{i:03}", metrics.links_queued_bytes),
                );
            }
            let most = (config.max_broadcasts + config.max_user_broadcasts) as u64;
            if metrics.broadcasts_queued > most {
                return broken(Rule::Bounds, format_args!("{} broadcasts", metrics.broadcasts_queued));
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
        views.iter().all(|view| {
            views.iter().all(|other| {
                let local = other.local();
                view.get(local.name()).is_some_and(|member| {
                    (&member.id, member.state, member.incarnation, &member.meta)
                        == (&local.id, MemberState::Alive, local.incarnation, &local.meta)
                })
            }) && view.alive_count() == views.len()
        })
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
        let (mut begun, mut over) = (vec![false; events.len()], vec![false; events.len()]);
        let mut step = 0;
        loop {
            let now = self.begun.elapsed();
            let mut anew = false;
            for (n, event) in events.iter().enumerate() {
                if !begun[n] && event.at <= now {
                    begun[n] = true;
                    anew = true;
                    self.begins(event).await?;
                }
            }
            for (n, event) in events.iter().enumerate() {
                if begun[n] && !over[n] && event.end() <= now {
                    over[n] = true;
                    anew = true;
                    self.ends(event).await?;
                } else if begun[n] && !over[n] {
                    anew |= Self::changes(event);
                    self.goes_on(event, step);
                }
            }
            if anew {
                self.weather(now);
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
        // What users have broadcast may take longer.
        let gossips =
            |host: &Host| host.cluster.as_ref().is_some_and(|node| node.metrics().broadcasts_queued > 0);
        let gossip = |this: &Self| this.hosts.iter().position(gossips);
        if gossip(self).is_some()
            && !self.watch(&mut step, DRAINED, |this| Ok(gossip(this).is_none())).await?
        {
            return broken(
                Rule::Bounds,
                format_args!("n{:03} gossips in a calm cluster", gossip(self).unwrap_or_default()),
            );
        }
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
        let quiet = |this: &Self| {
            let mut changed = this.hosts.iter().zip(&before).enumerate().filter(|(i, (host, before))| {
                *i != one && host.cluster.is_some() && host.told.quiet(&name) != **before
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
    fn listen(&mut self, sayings: &mut Sayings) -> Result<(), Broken> {
        let Some(events) = &mut self.events else { return Ok(()) };
        while let Some(Some(event)) = events.next().now_or_never() {
            self.told.hear(&event, sayings)?;
        }
        Ok(())
    }
}

/// A link without faults.
fn calm() -> Link {
    Link { latency: Duration::from_micros(300)..Duration::from_millis(2), ..Link::default() }
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
        for i in 0..sim.hosts.len() {
            let _ = sim.stop(i).await;
            if let Some(usurper) = sim.hosts[i].usurper.take() {
                usurper.shutdown().await;
            }
        }
        sim.report
    })
}
