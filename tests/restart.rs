//! Nodes that are started anew: one of a hundred or all at once, with their rejoin file or without, where they were or
//! elsewhere.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{collections::BTreeMap, time::Duration};

use actix_memberlist::{Cluster, ClusterBuilder, Config, MemberState, NodeId, store::MemoryStore};
use futures_util::future::join_all;
use memberlist_tests::{World, addr, paused};
use tokio::time::{Instant, sleep};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Members of the large clusters.
const MANY: usize = 100;

/// Where chance begins; a failed test prints it.
fn seed() -> u64 {
    std::env::var("RESTART_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(2)
}

/// What a node that starts is told of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    /// Its rejoin file.
    File,
    /// Two or three seeds.
    Seeds,
}

/// Nodes that are started more than once.
struct Fleet {
    world: World,
    stores: Vec<MemoryStore>,
    /// Where each of them is.
    places: Vec<usize>,
    told: Told,
    starts: u64,
}

impl Fleet {
    async fn new(n: usize, told: Told) -> Self {
        let seed = seed();
        println!("RESTART_SEED={seed}");
        let world = World::new(seed, Config::lan());
        let stores = (0..n).map(|_| MemoryStore::new()).collect();
        let mut fleet =
            Self { world, stores, places: (0..n).collect(), told: Told::Seeds, starts: seed * 1_000_000 };
        for i in 0..n {
            let node = fleet.builder(i).memory_store(&fleet.stores[i]).start().await.expect("a node starts");
            fleet.world.nodes.push(node);
        }
        assert!(fleet.agreement(secs(60)).await.is_some(), "{}", fleet.disagreement());
        fleet.told = told;
        // The files are written, and follow-ups of the joins are over.
        sleep(secs(30)).await;
        fleet
    }

    /// A builder of node `i` at its place, with a seed of chance that it never had.
    fn builder(&mut self, i: usize) -> ClusterBuilder {
        self.starts += 1;
        let builder = self.world.builder(i).bind(addr(self.places[i])).seed(self.starts);
        match self.told {
            Told::File => builder.memory_store(&self.stores[i]),
            // Seeds are such as are told to everybody, whoever is there.
            Told::Seeds => builder.seeds([0, 1, 2].map(|seed| addr(self.places[seed]).to_string())),
        }
    }

    /// Lets nodes crash, each with its file as it is then, and starts them anew after a while.
    async fn restart(&mut self, who: &[usize], places: impl Fn(usize) -> usize, gap: Duration) {
        let files: Vec<_> = who.iter().map(|i| self.stores[*i].record()).collect();
        assert!(files.iter().all(Option::is_some));
        join_all(who.iter().map(|i| self.world.kill(*i))).await;
        sleep(gap).await;
        for (i, file) in who.iter().zip(files) {
            self.stores[*i].put(file);
            self.places[*i] = places(*i);
        }
        for i in who {
            self.world.nodes[*i] = self.builder(*i).start().await.expect("a node starts");
        }
    }

    /// Who there is.
    fn all(&self) -> BTreeMap<NodeId, usize> {
        let local = |node: &Cluster| node.view().local().id.clone();
        self.world.nodes.iter().map(local).zip(self.places.iter().copied()).collect()
    }

    /// Those in whose view there is anybody else than just these, or one of them is not alive or not at its place.
    fn strays(&self) -> Vec<String> {
        let all = self.all();
        let mut strays = Vec::new();
        for node in &self.world.nodes {
            let view = node.view();
            if view.all().count() != all.len() {
                strays.push(format!("{}: {} members", view.local().id, view.all().count()));
            }
            for member in view.all() {
                let place = all.get(&member.id).map(|place| addr(*place));
                if place != Some(member.addr) || member.state != MemberState::Alive {
                    let own = &view.local().id;
                    strays.push(format!(
                        "{own}: {} {} at {}, is at {place:?}",
                        member.id, member.state, member.addr
                    ));
                }
            }
        }
        strays
    }

    fn disagreement(&self) -> String {
        let strays = self.strays();
        format!("{} strays: {:#?}", strays.len(), &strays[..strays.len().min(20)])
    }

    /// Waits until all views are the same and show each node as it is; says how long that took.
    async fn agreement(&self, within: Duration) -> Option<Duration> {
        let start = Instant::now();
        while !self.strays().is_empty() {
            if start.elapsed() >= within {
                return None;
            }
            sleep(ms(100)).await;
        }
        Some(start.elapsed())
    }

    /// Suspicions and deaths that anybody has seen.
    fn accusations(&self) -> u64 {
        let seen = |node: &Cluster| node.metrics().suspect_messages + node.metrics().dead_messages;
        self.world.nodes.iter().map(seen).sum()
    }

    /// All agree within 30 s, and for two minutes after that nobody accuses anybody or sees a ghost.
    async fn settles(&self) {
        let took = self.agreement(secs(30)).await;
        println!("agreement after {took:?}");
        assert!(took.is_some(), "{}", self.disagreement());
        let accusations = self.accusations();
        for _ in 0..24 {
            sleep(secs(5)).await;
            assert_eq!(self.strays(), Vec::<String>::new());
        }
        assert_eq!(self.accusations(), accusations);
    }
}

fn restarted(told: Told, who: &[usize], places: impl Fn(usize) -> usize, gap: Duration) {
    paused(async {
        let mut fleet = Fleet::new(MANY, told).await;
        fleet.restart(who, places, gap).await;
        fleet.settles().await;
    });
}

fn everybody() -> Vec<usize> {
    (0..MANY).collect()
}

/// A place where nobody was.
const NEW: usize = 500;

#[test]
fn one_of_a_hundred_comes_back_where_it_was_with_its_file() {
    restarted(Told::File, &[42], |i| i, ms(100));
}

#[test]
fn one_of_a_hundred_comes_back_where_it_was_with_seeds() {
    restarted(Told::Seeds, &[42], |i| i, ms(100));
}

#[test]
fn one_of_a_hundred_comes_back_elsewhere_with_its_file() {
    restarted(Told::File, &[42], |_| NEW, ms(100));
}

#[test]
fn one_of_a_hundred_comes_back_elsewhere_with_seeds() {
    restarted(Told::Seeds, &[42], |_| NEW, ms(100));
}

#[test]
fn one_of_a_hundred_comes_back_elsewhere_after_its_death() {
    restarted(Told::File, &[42], |_| NEW, secs(60));
}

#[test]
fn all_of_a_hundred_come_back_where_they_were_with_their_files() {
    restarted(Told::File, &everybody(), |i| i, ms(100));
}

#[test]
fn all_of_a_hundred_come_back_where_they_were_with_seeds() {
    restarted(Told::Seeds, &everybody(), |i| i, ms(100));
}

#[test]
fn all_of_a_hundred_come_back_each_at_the_place_of_another_with_their_files() {
    restarted(Told::File, &everybody(), |i| (i * 37 + 11) % MANY, ms(100));
}

#[test]
fn all_of_a_hundred_come_back_elsewhere_with_seeds() {
    restarted(Told::Seeds, &everybody(), |i| NEW + i, ms(100));
}

#[test]
fn twenty_of_a_hundred_come_back_each_at_the_place_of_another() {
    let who: Vec<_> = (0..MANY).step_by(5).collect();
    restarted(Told::File, &who, |i| (i + 35) % MANY, ms(100));
}
