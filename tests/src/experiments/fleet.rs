//! Many nodes in virtual time, and what each of them says of the others, when.

use std::{cell::RefCell, collections::BTreeMap, net::SocketAddr, rc::Rc, time::Duration};

use actix_memberlist::{
    Cluster, Config, MemberEvent, MemberState, Replay,
    network::memory::{Link, MemoryNetwork},
};
use actix_rt::Arbiter;
use futures_util::StreamExt;
use tokio::time::{Instant, sleep};

use crate::addr;

/// What a node may say of another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Said {
    /// It is there.
    Joined,
    /// It did not answer somebody.
    Suspected,
    /// It has answered that.
    Refuted,
    /// It is dead.
    Dead,
    /// It has left.
    Left,
}

/// Something that a node has said.
#[derive(Clone, Copy, Debug)]
pub struct Heard {
    /// When.
    pub at: Instant,
    /// Who.
    pub by: usize,
    /// Of whom.
    pub of: usize,
    /// What.
    pub said: Said,
}

/// Nodes over a network in memory.
pub struct Fleet {
    /// The network, whose faults an experiment sets.
    pub network: MemoryNetwork,
    /// The nodes that run, by number.
    pub nodes: Vec<Option<Cluster>>,
    heard: Rc<RefCell<Vec<Heard>>>,
    config: Config,
    seed: u64,
    starts: u64,
}

/// Packets and bytes that all have sent, streams included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Datagrams.
    pub packets: u64,
    /// Bytes of datagrams and streams.
    pub bytes: u64,
}

impl Fleet {
    /// A fleet without nodes, on a network with one to two milliseconds one way. All that happens is a function of
    /// `seed`.
    pub fn new(seed: u64, config: Config) -> Self {
        let network = MemoryNetwork::new(seed);
        network.set_default(Link::default());
        Self { network, nodes: Vec::new(), heard: Rc::default(), config, seed, starts: 0 }
    }

    /// A fleet of `n` nodes that all know each other.
    pub async fn of(n: usize, seed: u64, config: Config) -> Self {
        let mut fleet = Self::new(seed, config);
        for i in 0..n {
            fleet.start(i).await;
        }
        assert!(
            fleet.settle(Duration::from_secs(300)).await.is_some(),
            "{n} nodes have not found each other"
        );
        fleet
    }

    /// Starts node `i`, which knows the first three.
    pub async fn start(&mut self, i: usize) {
        self.starts += 1;
        let node = Cluster::builder(name(i))
            .config(self.config.clone())
            .bind(addr(i))
            .plaintext()
            .network(self.network.clone())
            .arbiter(Arbiter::current())
            .without_watchdog()
            .seed(self.seed.wrapping_mul(1_000_000).wrapping_add(self.starts))
            .seeds((0..3).map(|seed| addr(seed).to_string()).collect::<Vec<_>>())
            .start()
            .await
            .expect("a node starts");
        let (mut events, heard) = (Box::pin(node.events(Replay::None)), self.heard.clone());
        spawn(async move {
            while let Some(event) = events.next().await {
                let (member, said) = match &event {
                    MemberEvent::Joined { member, .. } => (member, Said::Joined),
                    MemberEvent::Suspected { member, .. } => (member, Said::Suspected),
                    MemberEvent::Refuted { member, .. } => (member, Said::Refuted),
                    MemberEvent::Dead { member, .. } => (member, Said::Dead),
                    MemberEvent::Left { member, .. } => (member, Said::Left),
                    _ => continue,
                };
                let of = number(member.name());
                heard.borrow_mut().push(Heard { at: Instant::now(), by: i, of, said });
            }
        });
        while self.nodes.len() <= i {
            self.nodes.push(None);
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
        self.running().all(|(_, node)| node.view().alive_count() == count)
            && self.running().all(|(_, node)| {
                let view = node.view();
                self.running()
                    .all(|(i, _)| view.get(&name(i)).is_some_and(|member| member.state == MemberState::Alive))
            })
    }

    /// How many different sets of members there are, as far as their sizes tell.
    pub fn sizes(&self) -> BTreeMap<usize, usize> {
        let mut sizes = BTreeMap::new();
        for (_, node) in self.running() {
            *sizes.entry(node.view().alive_count()).or_default() += 1;
        }
        sizes
    }

    /// Ends node `i` without a word. Its host answers that nobody is there.
    pub async fn kill(&mut self, i: usize) {
        if let Some(node) = self.nodes[i].take() {
            node.shutdown().await;
        }
    }

    /// Ends node `i` and its host: nothing comes back from there.
    pub async fn crash(&mut self, i: usize) {
        for other in 0..self.nodes.len() {
            self.network.cut(addr(i), addr(other));
            self.network.cut(addr(other), addr(i));
        }
        self.kill(i).await;
    }

    /// All that was said since the last time.
    pub fn heard(&self) -> Vec<Heard> {
        std::mem::take(&mut *self.heard.borrow_mut())
    }

    /// What was sent so far by those that run.
    pub fn load(&self) -> Load {
        let mut load = Load::default();
        for (_, node) in self.running() {
            let metrics = node.metrics();
            load.packets += metrics.packets_sent;
            load.bytes += metrics.bytes_sent + metrics.stream_bytes_sent;
        }
        load
    }

    /// Ends all.
    pub async fn end(mut self) {
        for i in 0..self.nodes.len() {
            self.kill(i).await;
        }
    }

    /// Sets the link between `i` and each other one, both ways.
    pub fn around(&self, i: usize, inward: &Link, outward: &Link) {
        for other in (0..self.nodes.len()).filter(|other| *other != i) {
            self.network.set_link(addr(other), addr(i), inward.clone());
            self.network.set_link(addr(i), addr(other), outward.clone());
        }
    }

    /// Where node `i` is.
    pub fn addr(i: usize) -> SocketAddr {
        addr(i)
    }
}

impl Load {
    /// What was sent since then, by each of `nodes` in a second: packets and bytes.
    pub fn since(self, before: Self, nodes: usize, time: Duration) -> (f64, f64) {
        let share = nodes as f64 * time.as_secs_f64();
        ((self.packets - before.packets) as f64 / share, (self.bytes - before.bytes) as f64 / share)
    }
}

fn name(i: usize) -> String {
    format!("n{i:05}")
}

fn number(name: &str) -> usize {
    name[1..].parse().expect("a node's name is its number")
}

#[allow(clippy::disallowed_methods, reason = "a listener of an experiment is no part of a node")]
fn spawn(task: impl Future<Output = ()> + 'static) {
    actix_rt::spawn(task);
}
