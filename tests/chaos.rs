//! A thousand panics, in every actor at every message that it hears, and nobody outside notices.
//!
//! One node of a busy cluster is struck, again and again, at least 400 ms apart. What is promised then: no
//! peer ever suspects it, no message is lost but the one whose handler panicked, nobody who waits for an
//! answer waits in vain. A pair of an actor and a message that is never heard fails the test.

use std::{
    cell::{Cell, RefCell},
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use actix::{Actor, Context, Handler, Message as ActixMessage, MessageResult};
use actix_memberlist::{
    Admit, Broadcast, Cluster, ClusterBuilder, Config, Evidence, Export, Key, MemberEvent, Merge, NodeEvent,
    PeerMessage, Pinged, Replay, RestartPolicy, Sealing, SharedState, Until, UserBytes,
    network::{Endpoint, Network},
    testing::{Pair, Strikes},
};
use bytes::Bytes;
use futures_util::future::join_all;
use memberlist_protocol::wire::{
    frame::Packer,
    guard::{Guard, Labels},
    message::{Message, Suspect},
};
use memberlist_tests::{World, addr, paused};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, sleep, timeout};

/// The node that is struck.
const STRUCK: usize = 3;

/// Nodes that stay.
const NODES: usize = 7;

/// A node that comes and crashes, over and over.
const VICTIM: usize = 7;

/// A node that comes and leaves, over and over.
const GUEST: usize = 8;

/// Panics are so far apart at least.
const APART: Duration = Duration::from_millis(400);

/// Whoever waits for longer waits in vain.
const PATIENCE: Duration = Duration::from_secs(40);

/// What only a node that leaves hears; struck at the end.
const LEAVING: [Pair; 2] = [("BroadcastQueue", "farewell"), ("Transport", "farewell")];

/// Listens to everything, and does nothing.
struct Listener {
    events: Rc<Cell<usize>>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Listener {
    type Result = ();
    fn handle(&mut self, _: MemberEvent, _: &mut Context<Self>) {
        self.events.set(self.events.get() + 1);
    }
}

impl Handler<NodeEvent> for Listener {
    type Result = ();
    fn handle(&mut self, _: NodeEvent, _: &mut Context<Self>) {}
}

impl Handler<Pinged> for Listener {
    type Result = ();
    fn handle(&mut self, _: Pinged, _: &mut Context<Self>) {
        self.events.set(self.events.get() + 1);
    }
}

impl Handler<UserBytes> for Listener {
    type Result = ();
    fn handle(&mut self, _: UserBytes, _: &mut Context<Self>) {
        self.events.set(self.events.get() + 1);
    }
}

/// A message of the users' own.
#[derive(ActixMessage, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Round(usize);

impl PeerMessage for Round {
    const KIND: &'static str = "round/1";
}

impl Handler<Round> for Listener {
    type Result = ();
    fn handle(&mut self, _: Round, _: &mut Context<Self>) {
        self.events.set(self.events.get() + 1);
    }
}

impl Handler<Admit> for Listener {
    type Result = Result<(), String>;
    fn handle(&mut self, _: Admit, _: &mut Context<Self>) -> Self::Result {
        Ok(())
    }
}

impl Handler<Export> for Listener {
    type Result = MessageResult<Export>;
    fn handle(&mut self, _: Export, _: &mut Context<Self>) -> Self::Result {
        MessageResult(Bytes::from_static(b"state"))
    }
}

impl Handler<Merge> for Listener {
    type Result = ();
    fn handle(&mut self, _: Merge, _: &mut Context<Self>) {
        self.events.set(self.events.get() + 1);
    }
}

impl SharedState for Listener {
    const KEY: &'static str = "listener/1";
}

/// Notes what a peer says of the struck node.
struct Judge {
    peer: usize,
    verdicts: Rc<RefCell<Vec<String>>>,
}

impl Actor for Judge {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Judge {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let of = match &event {
            MemberEvent::Suspected { member, .. }
            | MemberEvent::Dead { member, .. }
            | MemberEvent::Left { member, .. } => member,
            _ => return,
        };
        if of.name() == format!("n{STRUCK:03}") {
            self.verdicts.borrow_mut().push(format!("n{:03}: {event:?}", self.peer));
        }
    }
}

fn config(restarts: RestartPolicy) -> Config {
    Config { push_pull_interval: Duration::from_secs(4), restarts, ..Config::lan() }
}

fn key() -> Key {
    Key::from_bytes(&[1; 32]).expect("long enough")
}

/// All that is said is sealed. Whoever is started anew is another run, as in life.
fn sealed(builder: ClusterBuilder, seed: u64) -> ClusterBuilder {
    builder.key(key()).seed(seed)
}

/// Answers in time, whatever the answer is.
async fn answered<T>(what: &str, answer: impl Future<Output = T>) -> Result<T, String> {
    timeout(PATIENCE, answer).await.map_err(|_| format!("{what}: nobody answers"))
}

/// A cluster in which everything that can happen does.
struct Stage {
    world: World,
    strikes: Strikes,
    outsider: Arc<dyn Endpoint>,
    /// The outsider has the key, and is no member.
    seal: RefCell<Guard>,
    verdicts: Rc<RefCell<Vec<String>>>,
}

impl Stage {
    async fn set(seed: u64, restarts: RestartPolicy) -> Self {
        let strikes = Strikes::default();
        let mut world = World::new(seed, config(restarts));
        for i in 0..NODES {
            let builder = sealed(world.builder(i), i as u64 + 1000 * seed);
            let builder = if i == STRUCK {
                let gate = Listener { events: Rc::default() }.start();
                builder.strikes(strikes.clone()).admit(gate.recipient())
            } else {
                builder
            };
            world.nodes.push(builder.start().await.expect("a node starts"));
        }
        for node in &world.nodes[1..] {
            node.join(&["10.0.0.1:7946"]).await.expect("a node joins");
        }
        let verdicts: Rc<RefCell<Vec<String>>> = Rc::default();
        for (peer, node) in world.nodes.iter().enumerate().filter(|(i, _)| *i != STRUCK) {
            assert_eq!(node.ready(Until::Members(NODES), PATIENCE).await, Ok(true));
            let judge = Judge { peer, verdicts: verdicts.clone() }.start();
            node.subscribe(judge.recipient(), Replay::None).expect("it runs").detach();
            let listener = Listener { events: Rc::default() }.start();
            node.share(listener).expect("it runs").detach();
        }
        let listener = Listener { events: Rc::default() }.start();
        world.nodes[STRUCK].subscribe_pings(listener.recipient()).expect("it runs").detach();
        let outsider =
            world.network.bind(SocketAddr::from(([10, 9, 9, 9], 1))).await.expect("a free address");
        let ring = [key()];
        let guard = Guard::new(&Config::lan(), Labels::new(""), Some(&ring), Sealing::Required);
        let seal = RefCell::new(guard.expect("no label"));
        Self { world, strikes, outsider, seal, verdicts }
    }

    fn struck(&self) -> &Cluster {
        &self.world.nodes[STRUCK]
    }

    /// A stranger tells the struck node that it is suspected. It refutes.
    fn accuse(&self) {
        let local = self.struck().view().local().clone();
        let suspect = Suspect {
            id: local.id.clone(),
            // It may say something else about itself before this arrives.
            incarnation: local.incarnation + 5,
            from: "nobody".into(),
            evidence: Evidence::Hearsay,
        };
        let (mut buf, mut out) = ([0; 1400], Vec::new());
        let mut packer = Packer::body(&mut buf);
        assert!(packer.push(&Message::Suspect(suspect)));
        let body = packer.finish().expect("a message");
        let wrapped = self.seal.borrow_mut().wrap(77, Some(local.id.run()), &body, &mut out);
        wrapped.expect("there is a key");
        self.outsider.try_send(&out, local.addr).expect("there is room");
    }

    /// One round of everything that users do at the struck node.
    async fn use_struck(&self, round: usize) -> Result<(), String> {
        let node = self.struck();
        let meta = Bytes::from(format!("round {round}"));
        let _ = answered("set_meta", node.set_meta(meta)).await?;
        let _ = answered("join", node.join(&["10.0.0.2:7946"])).await?;
        let _ = answered("ready", node.ready(Until::Members(3), Duration::from_secs(1))).await?;
        let _ = answered("ping", node.ping("n000", addr(0))).await?;
        let _ = answered("ping", node.ping("nobody", addr(0))).await?;
        let victim = format!("n{VICTIM:03}");
        let _ = answered("force_leave", node.force_leave(&victim)).await?;
        let _ = node.set_ping_payload(format!("round {round}").into());
        let listener = Listener { events: Rc::default() }.start();
        let subscriptions = (
            node.subscribe(listener.clone().recipient(), Replay::Snapshot),
            node.subscribe_pings(listener.clone().recipient()),
            node.subscribe_node(listener.clone().recipient()),
            node.serve_bytes(listener.clone().recipient()),
            node.serve::<Round>(listener.clone().recipient()),
        );
        // It takes the place of the one before.
        if let Ok(sharing) = node.share(listener) {
            sharing.detach();
        }
        let id = node.view().local().id.clone();
        if let Some(peer) = self.world.nodes[round % STRUCK].peer(&id) {
            peer.cast_bytes(Bytes::from_static(b"cast")).map_err(|e| e.to_string())?;
            let sent = peer.send_bytes(Bytes::from_static(b"sent")).map_err(|e| e.to_string())?;
            let _ = answered("send", sent).await?;
        }
        sleep(Duration::from_millis(5)).await;
        drop(subscriptions);
        let spread =
            node.broadcast_bytes(Broadcast::new("from the struck one")).map_err(|e| e.to_string())?;
        let _ = answered("broadcast", spread).await?;
        self.world.nodes[round % STRUCK]
            .broadcast_bytes(Broadcast::new("from another"))
            .map_err(|e| e.to_string())?;
        let spread = self.world.nodes[round % STRUCK].broadcast(&Round(round));
        spread.map_err(|e| e.to_string())?;
        Ok(())
    }

    /// The struck node talks to everybody over links, which break, and whose peers have something new to say.
    async fn talk(&self, round: usize) -> Result<(), String> {
        let node = self.struck();
        for peer in node.peers() {
            // Whoever is about to go may not answer for a while.
            drop(peer.send_bytes(Bytes::from_static(b"to all")));
        }
        let id = self.world.nodes[0].view().local().id.clone();
        let Some(peer) = node.peer(&id) else { return Ok(()) };
        let sent = peer.send_bytes(Bytes::from_static(b"one")).map_err(|e| e.to_string())?;
        let _ = answered("send", sent).await?;
        let _ = answered("upload", peer.upload(&Round(round), futures_util::stream::empty())).await?;
        self.world.network.reset_streams(addr(STRUCK), addr(0));
        let news = Bytes::from(format!("talk {round} {:?}", Instant::now()));
        let _ = answered("set_meta", self.world.nodes[0].set_meta(news)).await?;
        sleep(Duration::from_millis(200)).await;
        Ok(())
    }

    /// Lets the victim come and crash, and the guest come and leave.
    async fn churn(&self) {
        for round in 1.. {
            // Its joins end with a word of its own.
            let gate = Listener { events: Rc::default() }.start();
            let victim = sealed(self.world.builder(VICTIM), 1_000_000 + round).admit(gate.recipient());
            let victim = victim.start().await.expect("the victim starts");
            let guest = sealed(self.world.builder(GUEST), 2_000_000 + round);
            let guest = guest.start().await.expect("the guest starts");
            // A join may fail when it is the struck node that fails it.
            let _ = victim.join(&["10.0.0.1:7946", "10.0.0.4:7946"]).await;
            // The struck node hears of it from itself, or from others.
            let seeds = ["10.0.0.5:7946", "10.0.0.4:7946"];
            let _ = guest.join(&seeds[..1 + round as usize % 2]).await;
            sleep(Duration::from_secs(3)).await;
            // Its host goes with it, every other time: else nobody would have to say that it has no answer.
            let all: Vec<_> = (0..NODES).map(addr).collect();
            if round % 2 == 0 {
                self.world.network.partition(&[addr(VICTIM)], &all);
            }
            victim.shutdown().await;
            let _ = guest.leave(Duration::from_secs(1)).await;
            guest.shutdown().await;
            sleep(Duration::from_secs(12)).await;
            self.world.network.heal();
        }
    }

    fn verdict(&self) -> Result<(), String> {
        match self.verdicts.borrow().first() {
            Some(verdict) => Err(format!("the struck node was suspected: {verdict}")),
            None => Ok(()),
        }
    }

    /// Strikes once, and waits until that has happened.
    async fn strike(&self, pair: Pair, round: usize) -> Result<(), String> {
        let start = Instant::now();
        let before = self.hits(pair);
        self.strikes.arm(pair);
        // Some are heard only when something is done about it.
        while self.hits(pair) == before {
            if start.elapsed() > Duration::from_secs(120) {
                return Err(format!("{pair:?} is never heard, in round {round}"));
            }
            match pair {
                ("FailureDetector", "doubt") | ("NodeState", "suspect") => self.accuse(),
                ("FailureDetector", "send_failed") => {
                    // Its network takes nothing for a moment, shorter than anybody's patience, and more is to be
                    // sent than is held until it does.
                    self.world.network.pause(addr(STRUCK));
                    let pings = (0..80).map(|_| self.struck().ping("n000", addr(0)));
                    let _ = timeout(Duration::from_millis(20), join_all(pings)).await;
                    self.world.network.resume(addr(STRUCK));
                }
                ("Transport", "order") => {
                    // Whoever waits for it is told, and asks again.
                    let within = Duration::from_secs(3);
                    let report = answered("orders", self.struck().seal_cluster(within)).await?;
                    let report = report.unwrap_or_else(|report| report);
                    // Only those may be missing who have died or are not there yet.
                    let stay = report.failed.keys().filter(|id| id.name() < "n007");
                    if let Some(missing) = stay.into_iter().next() {
                        return Err(format!("{missing} was not given an order: {report}"));
                    }
                }
                ("Delegates", "deliver") => {
                    // Too large for gossip.
                    let large = Broadcast::new(vec![7; 2000]);
                    drop(self.world.nodes[0].broadcast_bytes(large).map_err(|e| e.to_string())?);
                }
                ("PeerLink", _) | ("Transport", "link" | "upload") => self.talk(round).await?,
                ("NodeState", "leave") => {
                    let report = answered("leave", self.struck().leave(Duration::from_secs(5))).await?;
                    assert!(report.is_ok_and(|report| !report.announced), "its leave was lost");
                }
                _ => {}
            }
            if round.is_multiple_of(4) || start.elapsed() > Duration::from_secs(1) {
                self.use_struck(round).await?;
            }
            sleep(Duration::from_millis(20)).await;
        }
        sleep(APART).await;
        self.verdict()
    }

    fn hits(&self, pair: Pair) -> u64 {
        self.strikes.hits().get(&pair).copied().unwrap_or(0)
    }

    /// What came was handled, or struck, or waits; nothing else has become of it.
    fn account(&self) -> Result<(), String> {
        let metrics = self.struck().metrics();
        for (actor, inbox) in &metrics.inboxes {
            if inbox.dropped + inbox.refused > 0 {
                return Err(format!("{actor} lost messages: {inbox:?}"));
            }
            if inbox.offered != inbox.taken + inbox.coalesced + inbox.waiting {
                return Err(format!("{actor} does not account for its messages: {inbox:?}"));
            }
        }
        let (restarts, hits): (u64, u64) =
            (metrics.restarts.values().sum(), self.strikes.hits().values().sum());
        if restarts != hits || metrics.dropped["panicked"] != hits {
            return Err(format!("{hits} panics, {restarts} restarts, {}", metrics.dropped["panicked"]));
        }
        Ok(())
    }
}

async fn chaos(seed: u64, panics: usize, restarts: RestartPolicy) -> Result<(), String> {
    let stage = Stage::set(seed, restarts).await;
    let pairs: Vec<Pair> = Strikes::pairs().into_iter().filter(|pair| !LEAVING.contains(pair)).collect();
    let strikes = async {
        for round in 0..panics - LEAVING.len() {
            stage.strike(pairs[round % pairs.len()], round).await?;
        }
        stage.account()
    };
    tokio::select! {
        biased;
        () = stage.churn() => unreachable!("churn never ends"),
        done = strikes => done?,
    }
    // Now it leaves, with two more panics on the way, and is heard all the same.
    for (pair, announced) in LEAVING.map(|pair| (Some(pair), false)).into_iter().chain([(None, true)]) {
        if let Some(pair) = pair {
            stage.strikes.arm(pair);
        }
        let report = answered("leave", stage.struck().leave(Duration::from_secs(5))).await?;
        assert_eq!(report.map(|report| report.announced), Ok(announced), "{pair:?}");
        sleep(APART).await;
    }
    stage.account()?;
    let never: Vec<_> = Strikes::pairs().into_iter().filter(|pair| stage.hits(*pair) == 0).collect();
    if never.is_empty() { Ok(()) } else { Err(format!("never struck: {never:?}")) }
}

#[test]
fn a_thousand_panics_in_every_actor_at_every_message_harm_nobody() {
    let outcome = paused(chaos(11, 1000, RestartPolicy::default()));
    assert_eq!(outcome, Ok(()));
}

#[test]
fn without_restarts_the_first_panics_are_noticed_by_everybody() {
    let outcome = paused(chaos(11, 20, RestartPolicy::never()));
    assert!(outcome.is_err(), "the test above would pass without restarts");
}
