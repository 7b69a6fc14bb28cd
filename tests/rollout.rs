//! Changes of keys, labels and seals of a busy cluster, with members that come, go, and cannot be reached when it
//! matters.

use std::{
    cell::{Cell, RefCell},
    collections::BTreeMap,
    rc::Rc,
    time::Duration,
};

use actix::{Actor, Context, Handler};
use actix_memberlist::{
    Broadcast, Cluster, ClusterBuilder, Config, Evidence, Key, MemberEvent, MemberState, Replay, Rollout,
    Sealing, Sent, Until, UserBytes,
};
use bytes::Bytes;
use futures_util::future::join_all;
use memberlist_tests::{World, addr, paused};
use tokio::time::{sleep, timeout};

/// Members that are there from the first to the last moment, and can always be reached.
const STEADY: usize = 10;

/// The one that cannot be reached for a while.
const AWAY: usize = 10;

/// One that is started anew, again and again, without a farewell.
const RESTARTED: usize = 11;

/// Members at the beginning.
const NODES: usize = 12;

/// Numbers of those that come and leave begin here.
const GUESTS: usize = 20;

/// Whoever gives the orders.
const LEADER: usize = 4;

const PATIENCE: Duration = Duration::from_secs(60);

/// Packets that members which are there all the time may drop because a newcomer did not know the present key or
/// label yet when it sent them, or they when they sent theirs: about one for each newcomer.
const PER_NEWCOMER: u64 = 2;

fn key(n: u8) -> Key {
    Key::from_bytes(&[n; 32]).expect("long enough")
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Key,
    Label,
    Seals,
}

/// When the member is cut off: before it all, or once the step of that number holds somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum When {
    Before,
    During(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Absence {
    Brief,
    UntilDead,
}

/// Listens to users' bytes.
struct Ear(Rc<Cell<u64>>);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, _: UserBytes, _: &mut Context<Self>) {
        self.0.set(self.0.get() + 1);
    }
}

/// Notes who is accused by whom, as one of the steady sees it.
struct Judge {
    at: usize,
    verdicts: Rc<RefCell<Vec<String>>>,
    /// Whether somebody is away, whose own word counts for nothing and of whom anything may be said.
    away: Rc<Cell<bool>>,
}

impl Actor for Judge {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Judge {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let (member, why) = match &event {
            MemberEvent::Suspected { member, why, .. } | MemberEvent::Dead { member, why, .. } => {
                (member, why)
            }
            _ => return,
        };
        let away = format!("n{AWAY:03}");
        // What it saw when it was alone comes with its state as well.
        let its_word = &*why.by == away.as_str() || why.evidence == Evidence::PushPull;
        let excused = self.away.get() && (member.name() == away || its_word);
        // It vanishes without a word, and comes back at once.
        let gone = member.name() == format!("n{RESTARTED:03}");
        if !excused && !gone {
            self.verdicts.borrow_mut().push(format!("n{:03}: {event:?}", self.at));
        }
    }
}

struct Stage {
    world: World,
    change: Change,
    heard: Rc<Cell<u64>>,
    verdicts: Rc<RefCell<Vec<String>>>,
    away: Rc<Cell<bool>>,
    /// Whether newcomers still come, with what was valid at the beginning.
    open: Cell<bool>,
    newcomers: Cell<u64>,
    restarted: RefCell<Option<Cluster>>,
    starts: Cell<u64>,
}

impl Stage {
    async fn set(seed: u64, change: Change) -> Self {
        let sealed = change != Change::Seals;
        let config =
            Config { gossip_verify_incoming: sealed, gossip_verify_outgoing: sealed, ..Config::lan() };
        let mut stage = Self {
            world: World::new(seed, config),
            change,
            heard: Rc::default(),
            verdicts: Rc::default(),
            away: Rc::default(),
            open: Cell::new(true),
            newcomers: Cell::new(0),
            restarted: RefCell::default(),
            starts: Cell::new(0),
        };
        for i in 0..NODES {
            let node = stage.start(i).await;
            if i == RESTARTED {
                *stage.restarted.borrow_mut() = Some(node);
            } else {
                stage.world.nodes.push(node);
            }
        }
        let restarted = stage.restarted.borrow().clone().expect("it runs");
        let joins = stage.world.nodes[1..].iter().chain([&restarted]).map(|node| node.join(&["10.0.0.1"]));
        for joined in join_all(joins).await {
            joined.expect("it joins");
        }
        for (at, node) in stage.world.nodes.iter().enumerate() {
            assert_eq!(node.ready(Until::Members(NODES), PATIENCE).await, Ok(true));
            let judge = Judge { at, verdicts: stage.verdicts.clone(), away: stage.away.clone() };
            if at < STEADY {
                node.subscribe(judge.start().recipient(), Replay::None).expect("it runs").detach();
            }
        }
        stage
    }

    /// What each node is started with, also later.
    fn builder(&self, i: usize) -> ClusterBuilder {
        self.starts.set(self.starts.get() + 1);
        let builder = self.world.builder(i).key(key(1)).label("old");
        // Of all that is changed, this alone nobody is told who comes later.
        let required = self.world.nodes.iter().any(|node| node.sealing() == Sealing::Required);
        let builder = if required { builder.config(Config::lan()) } else { builder };
        builder.seed(self.starts.get() * 1000 + i as u64)
    }

    async fn start(&self, i: usize) -> Cluster {
        let node = self.builder(i).start().await.expect("it starts");
        node.serve_bytes(Ear(self.heard.clone()).start().recipient()).expect("it runs").detach();
        node
    }

    /// Everybody talks to everybody, all the time. It ends only with the cluster.
    async fn traffic(&self, sent: &RefCell<Vec<(usize, usize, Sent)>>) {
        for round in 0.. {
            let (from, to) = (round % STEADY, (round * 7 + 3) % (STEADY + 1));
            let node = &self.world.nodes[from];
            let _ = node.broadcast_bytes(Broadcast::new(format!("round {round}")));
            let id = self.world.nodes[to].view().local().id.clone();
            if let Some(peer) = node.peer(&id) {
                let _ = peer.cast_bytes(Bytes::from_static(b"cast"));
                if let Ok(outcome) = peer.send_bytes(vec![7; 3000].into()) {
                    sent.borrow_mut().push((from, to, outcome));
                }
            }
            sleep(Duration::from_millis(130)).await;
        }
    }

    /// Some come and leave, and one is started anew, all with what was valid at the beginning.
    async fn churn(&self) {
        for round in 0_usize.. {
            if !self.open.get() {
                sleep(Duration::from_secs(1)).await;
                continue;
            }
            self.newcomers.set(self.newcomers.get() + 2);
            let seed = addr(round % STEADY).to_string();
            let guest = self.start(GUESTS + round % 5).await;
            let joined = guest.join(&[&seed]).await;
            let last = self.restarted.borrow_mut().take();
            if let Some(last) = last {
                last.shutdown().await;
            }
            let again = self.start(RESTARTED).await;
            let _ = again.join(&[&seed]).await;
            *self.restarted.borrow_mut() = Some(again);
            sleep(Duration::from_millis(1500)).await;
            if joined.is_ok() {
                let _ = guest.leave(Duration::from_secs(5)).await;
            }
            sleep(Duration::from_millis(500)).await;
            guest.shutdown().await;
            sleep(Duration::from_secs(1)).await;
        }
    }

    async fn roll(&self, within: Duration) -> Result<Rollout, Rollout> {
        let leader = &self.world.nodes[LEADER];
        match self.change {
            Change::Key => leader.keyring().expect("it has one").rotate_cluster(leader, key(2), within).await,
            Change::Label => leader.relabel_cluster("new", within).await,
            Change::Seals => leader.seal_cluster(within).await,
        }
    }

    /// How many steps hold at a node.
    fn steps_at(&self, i: usize) -> usize {
        let node = &self.world.nodes[i];
        match self.change {
            Change::Key => {
                let keys = node.keyring().expect("it has one").list();
                let steps = [keys.contains(&key(2)), keys[0] == key(2), keys == [key(2)]];
                steps.into_iter().filter(|step| *step).count()
            }
            Change::Label => {
                let (own, hears) = node.labels();
                let says = own == "new";
                let steps = [says || hears.contains(&"new".to_owned()), says, says && hears.is_empty()];
                steps.into_iter().filter(|step| *step).count()
            }
            Change::Seals => match node.sealing() {
                Sealing::Off => 0,
                Sealing::Outgoing => 1,
                Sealing::Required => 2,
            },
        }
    }

    /// The name of each step that can be seen, in their order, and of the first.
    fn steps(&self) -> (&'static [&'static str], &'static str) {
        match self.change {
            Change::Key => (&["install", "use", "remove"], "install"),
            Change::Label => (&["hear", "say", "hear only"], "hear"),
            Change::Seals => (&["seal", "require seals"], "use"),
        }
    }

    fn cut(&self) {
        self.away.set(true);
        let others: Vec<_> = (0..40).filter(|i| *i != AWAY).map(addr).collect();
        self.world.network.partition(&[addr(AWAY)], &others);
    }

    fn whole(&self) -> bool {
        (0..=AWAY).all(|i| self.world.all_hold(0..=AWAY, i, MemberState::Alive))
    }

    fn verdict(&self) {
        let verdicts = self.verdicts.borrow();
        assert!(verdicts.is_empty(), "{}", verdicts[..verdicts.len().min(5)].join("\n"));
    }

    /// What members that were there all the time have dropped for its label or seal.
    fn lost(&self) -> BTreeMap<&'static str, u64> {
        let mut lost = BTreeMap::new();
        for node in &self.world.nodes[..STEADY] {
            let dropped = node.metrics().dropped;
            for reason in ["seal", "sealed", "unsealed", "label", "replayed", "reflected", "unaddressed"] {
                *lost.entry(reason).or_default() += dropped[reason];
            }
        }
        lost.retain(|_, lost| *lost > 0);
        lost
    }

    async fn change_with_one_away(&self, when: When, absence: Absence) {
        let within = match absence {
            Absence::Brief => Duration::from_secs(2),
            Absence::UntilDead => Duration::from_secs(45),
        };
        let (steps, first) = self.steps();
        sleep(Duration::from_secs(5)).await;
        let expected = match when {
            When::Before => {
                self.cut();
                if absence == Absence::UntilDead {
                    let dead = |w: &World| w.all_hold(0..STEADY, AWAY, MemberState::Dead);
                    self.world.wait_until(PATIENCE, dead).await.expect("it is dead to all");
                }
                first
            }
            When::During(step) => steps[step],
        };
        let interrupted = async {
            if let When::During(step) = when {
                // It has reached somebody, and cannot have been checked anywhere.
                let others = || (0..STEADY).filter(|i| *i != LEADER);
                while !others().any(|i| self.steps_at(i) > step) {
                    sleep(Duration::from_millis(1)).await;
                }
                self.cut();
            }
        };
        let (report, ()) = tokio::join!(self.roll(within), interrupted);
        let report = report.expect_err("one cannot be reached");
        let missing: Vec<_> = report.failed.keys().map(|id| id.name()).filter(|n| *n != "n004").collect();
        let away = format!("n{AWAY:03}");
        assert_eq!((report.step, &missing[..]), (expected, &[away.as_str()][..]), "{report}");
        self.verdict();

        if absence == Absence::UntilDead {
            let dead = |w: &World| w.all_hold(0..STEADY, AWAY, MemberState::Dead);
            self.world.wait_until(PATIENCE, dead).await.expect("it is dead to all");
            let report = self.roll(Duration::from_secs(1)).await.expect_err("it is dead, and counts");
            let why = report.failed.iter().find(|(id, _)| id.name() == away).map(|(_, why)| why.clone());
            assert!(why.as_ref().is_some_and(|why| why.starts_with("dead, and")), "{why:?}");
        }
        self.world.network.heal();
        if absence == Absence::UntilDead {
            self.world.nodes[AWAY].join(&["10.0.0.1", "10.0.0.2"]).await.expect("it is still understood");
        }
        let whole = self.world.wait_until(PATIENCE, |_| self.whole()).await;
        assert!(whole.is_some(), "{}", self.world.disagreements(AWAY + 1));
        // What it said while it was alone has gone round by then.
        sleep(Duration::from_secs(10)).await;
        self.away.set(false);
        assert!(self.whole(), "{}", self.world.disagreements(AWAY + 1));

        let report = self.roll(PATIENCE).await.unwrap_or_else(|report| panic!("{report}"));
        assert_eq!((report.step, report.failed.len()), (steps[steps.len() - 1], 0), "{report}");
        assert_eq!(report.acknowledged, report.members);
        for i in 0..=AWAY {
            assert_eq!(self.steps_at(i), steps.len(), "n{i:03}");
        }
        self.open.set(false);
        // Nor has anybody kept what was taken away who came in at the last moment.
        let last = self.restarted.borrow().clone();
        if let Some(last) =
            last.filter(|last| self.world.nodes[LEADER].peer(&last.view().local().id).is_some())
        {
            let (own, hears) = last.labels();
            let keys = last.keyring().expect("it has one").list();
            match self.change {
                Change::Key => assert_eq!(keys, [key(2)]),
                Change::Label => assert_eq!((own.as_str(), hears.len()), ("new", 0)),
                Change::Seals => assert_eq!(last.sealing(), Sealing::Required),
            }
        }
        // Long enough for suspicions to end, if there were any.
        sleep(Duration::from_secs(40)).await;
        assert!(self.whole(), "{}", self.world.disagreements(AWAY + 1));
        self.verdict();
    }
}

fn scenario(seed: u64, change: Change, when: When, absence: Absence) {
    paused(async {
        let stage = Stage::set(seed, change).await;
        let sent = RefCell::default();
        tokio::select! {
            biased;
            () = stage.traffic(&sent) => unreachable!("it does not end"),
            () = stage.churn() => unreachable!("it does not end"),
            () = stage.change_with_one_away(when, absence) => {}
        }
        let sent = sent.into_inner();
        assert!(sent.len() > 200, "{} were sent", sent.len());
        for (from, to, outcome) in sent {
            let outcome = timeout(PATIENCE, outcome).await.expect("each has an outcome");
            assert!(outcome.is_ok() || to == AWAY, "n{from:03} to n{to:03}: {outcome:?}");
        }
        assert!(stage.heard.get() > 3000, "{}", stage.heard.get());
        let lost = stage.lost();
        let newcomers = stage.newcomers.get();
        println!("{change:?} {when:?} {absence:?}: {newcomers} newcomers, dropped {lost:?}");
        assert!(newcomers >= 6, "{newcomers}");
        assert!(lost.values().sum::<u64>() <= newcomers * PER_NEWCOMER, "{lost:?}, {newcomers} newcomers");
    });
}

fn all(change: Change, steps: usize, absence: Absence) {
    let moments = (0..steps).map(When::During);
    let first = std::env::var("ROLLOUT_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1_u64);
    for (seed, when) in (first..).zip([When::Before].into_iter().chain(moments)) {
        scenario(seed, change, when, absence);
    }
}

#[test]
fn keys_change_in_a_busy_cluster_though_one_is_away_for_a_moment_and_it_is_named() {
    all(Change::Key, 3, Absence::Brief);
}

#[test]
fn keys_change_in_a_busy_cluster_though_one_is_held_for_dead_and_it_is_named() {
    all(Change::Key, 3, Absence::UntilDead);
}

#[test]
fn labels_change_in_a_busy_cluster_though_one_is_away_for_a_moment_and_it_is_named() {
    all(Change::Label, 3, Absence::Brief);
}

#[test]
fn labels_change_in_a_busy_cluster_though_one_is_held_for_dead_and_it_is_named() {
    all(Change::Label, 3, Absence::UntilDead);
}

#[test]
fn seals_begin_in_a_busy_cluster_though_one_is_away_for_a_moment_and_it_is_named() {
    all(Change::Seals, 2, Absence::Brief);
}

#[test]
fn seals_begin_in_a_busy_cluster_though_one_is_held_for_dead_and_it_is_named() {
    all(Change::Seals, 2, Absence::UntilDead);
}

#[test]
fn of_two_changes_at_once_one_that_is_repeated_brings_all_together_again() {
    for seed in 1..4 {
        paused(async {
            let stage = Stage::set(seed, Change::Key).await;
            let rotate = |i: usize, n: u8, within: u64| {
                let node = &stage.world.nodes[i];
                let ring = node.keyring().expect("it has one");
                async move { ring.rotate_cluster(node, key(n), Duration::from_secs(within)).await }
            };
            let (one, other) = tokio::join!(rotate(LEADER, 8, 6), rotate(LEADER + 1, 9, 6));
            assert!(one.is_err() || other.is_err(), "{one:?} {other:?}");
            let report = rotate(LEADER, 8, 60).await.unwrap_or_else(|report| panic!("{report}"));
            assert_eq!((report.members, report.acknowledged), (NODES, NODES));
            let whole = stage.world.wait_until(PATIENCE, |_| stage.whole()).await;
            assert!(whole.is_some(), "{}", stage.world.disagreements(AWAY + 1));
            for node in &stage.world.nodes {
                assert_eq!(node.keyring().expect("it has one").list(), [key(8)]);
            }
        });
    }
}
