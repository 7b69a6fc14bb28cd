//! A world for tests: real nodes over a network in memory, on a paused clock, from one seed.

use std::{future::Future, net::SocketAddr, time::Duration};

use actix::{Arbiter, System};
use actix_memberlist::{
    Cluster, ClusterBuilder, Config, MemberEvent, MemberState, Replay, Until, network::memory::MemoryNetwork,
    trace::Trace,
};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep, timeout};

pub mod agents;
pub mod certs;
pub mod dns;
pub mod experiments;
pub mod hosts;
pub mod log;
pub mod netns;
pub mod proxy;
pub mod simulate;
pub mod story;

/// The program in the README compiles and runs.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
pub struct Readme;

/// So does the one in the page about messages.
#[cfg(doctest)]
#[doc = include_str!("../../docs/messages.md")]
pub struct Messages;

/// Runs a test on a paused clock: time passes when everybody waits.
pub fn paused<T>(test: impl Future<Output = T>) -> T {
    log::ready();
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_time().start_paused(true).build().expect("a runtime")
    };
    System::with_tokio_rt(runtime).block_on(test)
}

/// Where node `i` of a world is.
pub fn addr(i: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, (i / 250) as u8, (i % 250) as u8 + 1], 7946))
}

/// Real nodes over a network in memory.
pub struct World {
    /// The network, whose faults a test sets.
    pub network: MemoryNetwork,
    /// What happened, if it is recorded.
    pub trace: Trace,
    /// The nodes that were started, by number.
    pub nodes: Vec<Cluster>,
    config: Config,
    seed: u64,
}

impl World {
    /// A world without nodes. Everything that happens in it is a function of `seed`.
    pub fn new(seed: u64, config: Config) -> Self {
        let trace = Trace::keeping(200);
        let network = MemoryNetwork::new(seed).with_trace(trace.clone());
        Self { network, trace, nodes: Vec::new(), config, seed }
    }

    /// The same without a record of what happens, which takes more time than the nodes themselves. Call it before
    /// the first node is started.
    #[must_use]
    pub fn unrecorded(self) -> Self {
        Self { network: MemoryNetwork::new(self.seed), ..self }
    }

    /// A builder of the next node, to be changed before it is started.
    pub fn builder(&self, i: usize) -> ClusterBuilder {
        self.renamed(i, &format!("n{i:03}"))
    }

    /// The same under another name.
    pub fn renamed(&self, i: usize, name: &str) -> ClusterBuilder {
        Cluster::builder(name)
            .config(self.config.clone())
            .bind(addr(i))
            .plaintext()
            .network(self.network.clone())
            .arbiter(Arbiter::current())
            .seed(self.seed.wrapping_mul(1000).wrapping_add(i as u64))
            .trace(self.trace.clone())
    }

    /// Starts `n` more nodes, which know nobody.
    pub async fn start(&mut self, n: usize) {
        for _ in 0..n {
            let i = self.nodes.len();
            let node = self.builder(i).start().await.expect("a node starts");
            self.nodes.push(node);
        }
    }

    /// Starts `n` nodes that have joined each other through the first.
    pub async fn cluster(seed: u64, config: Config, n: usize) -> Self {
        let mut world = Self::new(seed, config);
        world.start(n).await;
        let joins: Vec<_> = world.nodes[1..].iter().map(|node| node.join(&["10.0.0.1:7946"])).collect();
        for joined in futures_util::future::join_all(joins).await {
            joined.expect("a node joins");
        }
        for node in &world.nodes {
            assert_eq!(node.ready(Until::Members(n), Duration::from_secs(30)).await, Ok(true));
        }
        world
    }

    /// Lets node `i` vanish without a word.
    pub async fn kill(&self, i: usize) {
        self.nodes[i].shutdown().await;
    }

    /// Waits until `done`, for at most `within`; says how long it took.
    pub async fn wait_until(
        &self,
        within: Duration,
        mut done: impl FnMut(&Self) -> bool,
    ) -> Option<Duration> {
        let start = Instant::now();
        while !done(self) {
            if start.elapsed() >= within {
                return None;
            }
            sleep(Duration::from_millis(5)).await;
        }
        Some(start.elapsed())
    }

    /// What node `i` holds node `of` for.
    pub fn state(&self, i: usize, of: usize) -> Option<MemberState> {
        self.nodes[i].view().get(&format!("n{of:03}")).map(|m| m.state)
    }

    /// Who of the first `n` is not held for alive by whom, for a failed test's message.
    pub fn disagreements(&self, n: usize) -> String {
        let mut text = String::new();
        let mut dropped = std::collections::BTreeMap::new();
        for (name, count) in self.nodes[..n].iter().flat_map(|node| node.metrics().dropped) {
            *dropped.entry(name).or_insert(0) += count;
        }
        dropped.retain(|_, count| *count > 0);
        text += &format!("dropped: {dropped:?}");
        for (i, node) in self.nodes[..n].iter().enumerate() {
            let view = node.view();
            for (of, other) in self.nodes[..n].iter().enumerate() {
                let own = other.view().local().incarnation;
                match view.get(&format!("n{of:03}")) {
                    Some(m) if m.state == MemberState::Alive => {}
                    Some(m) => {
                        text += &format!("\nn{i:03}: {} {} at {}, own {own}", m.id, m.state, m.incarnation)
                    }
                    None => text += &format!("\nn{i:03}: n{of:03} unknown, own {own}"),
                }
            }
        }
        text
    }

    /// Whether each of `whom` holds `of` for `state`.
    pub fn all_hold(&self, whom: impl IntoIterator<Item = usize>, of: usize, state: MemberState) -> bool {
        whom.into_iter().all(|i| self.state(i, of) == Some(state))
    }
}

/// The events of a node up to now, after those of its subscription.
pub async fn drain(events: &mut (impl futures_util::Stream<Item = MemberEvent> + Unpin)) -> Vec<MemberEvent> {
    let mut seen = Vec::new();
    while let Ok(Some(event)) = timeout(Duration::from_millis(1), events.next()).await {
        seen.push(event);
    }
    seen
}

/// A node's events as a stream that can be polled in place.
pub fn events(
    node: &Cluster,
    replay: Replay,
) -> impl futures_util::Stream<Item = MemberEvent> + Unpin + use<> {
    Box::pin(node.events(replay))
}
