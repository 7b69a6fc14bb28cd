//! Many nodes in virtual time.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use actix_memberlist::{
    Cluster, ClusterBuilder, Config, MemberState,
    network::memory::{Link, MemoryNetwork},
};
use actix_rt::Arbiter;
use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{Instant, sleep};

use super::{
    heard::{Ear, Heard, spawn},
    load::Load,
};
use crate::addr;

/// Nodes over a network in memory.
pub struct Fleet {
    /// The network, whose faults an experiment sets.
    pub network: MemoryNetwork,
    /// The nodes that run, by number.
    pub nodes: Vec<Option<Cluster>>,
    /// Whom a node asks when it starts, by number.
    pub seeds: Vec<usize>,
    /// The label of the cluster.
    pub label: String,
    /// The first letter of each name.
    prefix: char,
    /// The number of the address of node 0.
    offset: usize,
    ear: Ear,
    config: Config,
    seed: u64,
    starts: u64,
}

impl Fleet {
    /// A fleet without nodes, on a network with one to two milliseconds one way. All that happens is a function of
    /// `seed`.
    pub fn new(seed: u64, config: Config) -> Self {
        let network = MemoryNetwork::new(seed);
        network.set_default(Link::default());
        Self {
            network,
            nodes: Vec::new(),
            seeds: vec![0, 1, 2],
            label: String::new(),
            prefix: 'n',
            offset: 0,
            ear: Ear::new('n'),
            config,
            seed,
            starts: 0,
        }
    }

    /// Another one on the same network, which knows nothing of the first.
    pub fn beside(other: &Self, config: Config) -> Self {
        let fleet = Self::new(other.seed.wrapping_add(1 << 32), config);
        Self { network: other.network.clone(), prefix: 'm', offset: 30_000, ear: Ear::new('m'), ..fleet }
    }

    /// A fleet of `n` nodes that all know each other.
    pub async fn of(n: usize, seed: u64, config: Config) -> Self {
        let mut fleet = Self::new(seed, config);
        fleet.gather(n).await;
        fleet
    }

    /// Starts `n` nodes and waits until they all know each other.
    pub async fn gather(&mut self, n: usize) {
        for i in 0..n {
            self.start(i).await;
        }
        let settled = self.settle(Duration::from_secs(600)).await;
        assert!(settled.is_some(), "{n} nodes have not found each other");
        self.ear.hear_joins();
    }

    /// Starts node `i`, which knows the seeds.
    pub async fn start(&mut self, i: usize) {
        self.start_at(i, self.addr(i)).await;
    }

    /// The same at an address that is not its own.
    pub async fn start_at(&mut self, i: usize, at: SocketAddr) {
        let seeds: Vec<_> = self.seeds.iter().map(|seed| self.addr(*seed).to_string()).collect();
        let node = self.builder(i).bind(at).seeds(seeds).start().await.expect("a node starts");
        self.add(i, node);
    }

    /// Node `i` as it is started, but for where it looks for others.
    pub fn builder(&mut self, i: usize) -> ClusterBuilder {
        self.starts += 1;
        Cluster::builder(self.name(i))
            .config(self.config.clone())
            .bind(self.addr(i))
            .label(self.label.clone())
            .plaintext()
            .network(self.network.clone())
            .arbiter(Arbiter::current())
            .without_watchdog()
            .seed(self.seed.wrapping_mul(1_000_000).wrapping_add(self.starts))
    }

    /// Node `i` has been started.
    pub fn add(&mut self, i: usize, node: Cluster) {
        self.ear.begin(i, &node);
        if self.nodes.len() <= i {
            self.nodes.resize(i + 1, None);
        }
        self.nodes[i] = Some(node);
    }

    /// Waits until all that run hold all that run for alive and nobody else; says how long that took.
    pub async fn settle(&self, within: Duration) -> Option<Duration> {
        let begin = Instant::now();
        while !self.agrees() {
            if begin.elapsed() > within {
                return None;
            }
            sleep(Duration::from_millis(100)).await;
        }
        Some(begin.elapsed())
    }

    /// Those that run.
    pub fn running(&self) -> impl Iterator<Item = (usize, &Cluster)> {
        self.nodes.iter().enumerate().filter_map(|(i, node)| node.as_ref().map(|node| (i, node)))
    }

    /// Whether all that run hold each other for alive, and nobody else.
    pub fn agrees(&self) -> bool {
        let count = self.running().count();
        // Most of the time it is their numbers that differ, and those cost little.
        let (alive, present) = (|node: &Cluster| node.view().count(MemberState::Alive), Cluster::view);
        self.running().all(|(_, node)| alive(node) == count && present(node).alive_count() == count)
            && self.running().all(|(_, node)| {
                let view = node.view();
                view.alive().all(|member| self.runs(member.name()))
            })
    }

    fn runs(&self, name: &str) -> bool {
        self.ear.number(name).is_some_and(|i| self.nodes.get(i).is_some_and(Option::is_some))
    }

    /// Whether node `by` counts node `of` among the members.
    pub fn counts(&self, by: &Cluster, of: usize) -> bool {
        by.view().get(&self.name(of)).is_some_and(|member| member.state.is_present())
    }

    /// How many different sets of members there are, as far as their sizes tell.
    pub fn sizes(&self) -> BTreeMap<usize, usize> {
        let mut sizes = BTreeMap::new();
        for (_, node) in self.running() {
            *sizes.entry(node.view().alive_count()).or_default() += 1;
        }
        sizes
    }

    /// So many of those that run, but for the seeds, at random.
    pub fn some(&self, count: usize, seed: u64) -> BTreeSet<usize> {
        let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        let all: Vec<_> = self.running().map(|(i, _)| i).filter(|i| !self.seeds.contains(i)).collect();
        let mut some = BTreeSet::new();
        while some.len() < count.min(all.len()) {
            some.insert(all[rng.random_range(0..all.len())]);
        }
        some
    }

    /// Ends node `i` without a word. Its host answers that nobody is there.
    pub async fn kill(&mut self, i: usize) {
        if let Some(node) = self.nodes[i].take() {
            self.ear.end(i);
            node.shutdown().await;
        }
    }

    /// Ends node `i` and its host: nothing comes back from there.
    pub async fn crash(&mut self, i: usize) {
        self.network.unplug(self.addr(i));
        self.kill(i).await;
    }

    /// Node `i` says that it leaves, and ends once that is out, for which it has `within`. Nobody waits for it.
    pub fn leave(&mut self, i: usize, within: Duration) {
        if let Some(node) = self.nodes[i].take() {
            self.ear.end(i);
            spawn(async move {
                let _ = node.leave(within).await;
                node.shutdown().await;
            });
        }
    }

    /// All that was said since the last time.
    pub fn heard(&self) -> Vec<Heard> {
        self.ear.take()
    }

    /// How often somebody of another fleet was taken in.
    pub fn strangers(&self) -> usize {
        self.ear.strangers()
    }

    /// What was sent so far by those that run.
    pub fn load(&self) -> Load {
        self.running().map(|(_, node)| Load::of(node)).sum()
    }

    /// Ends all.
    pub async fn end(mut self) {
        for i in 0..self.nodes.len() {
            self.kill(i).await;
        }
    }

    /// Sets the links to `i` and from it; `None` is a good one.
    pub fn around(&self, i: usize, inward: Option<Link>, outward: Option<Link>) {
        self.network.set_inward(self.addr(i), inward);
        self.network.set_outward(self.addr(i), outward);
    }

    /// Where node `i` is.
    pub fn addr(&self, i: usize) -> SocketAddr {
        addr(self.offset + i)
    }

    /// What it is called.
    pub fn name(&self, i: usize) -> String {
        format!("{}{i:05}", self.prefix)
    }
}
