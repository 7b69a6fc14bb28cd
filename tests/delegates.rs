//! What the node asks its users' actors: whether a newcomer may in, and what they share. A question that is
//! answered late, never, with an error, by a panic or by a dead actor harms nothing but itself.

use std::{cell::RefCell, collections::BTreeSet, rc::Rc, time::Duration};

use actix::{Actor, ActorContext, Addr, Context, Handler, ResponseFuture};
use actix_memberlist::{
    Admit, Cluster, Config, Export, JoinError, MemberState, Merge, Refusal, SharedState, Until,
};
use bytes::Bytes;
use memberlist_tests::{World, log::Log, paused};
use tokio::time::{Instant, sleep};

const SOON: Duration = Duration::from_secs(10);

/// How an actor answers.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Manner {
    Well,
    Late,
    Never,
    Refusing,
    Panicking,
    Dead,
}

impl Manner {
    /// Those that are no answer.
    const BAD: [Self; 4] = [Self::Late, Self::Never, Self::Panicking, Self::Dead];

    fn answer<T: 'static>(self, good: T) -> ResponseFuture<T> {
        Box::pin(async move {
            match self {
                Self::Late => sleep(Duration::from_secs(3)).await,
                Self::Never => std::future::pending().await,
                _ => {}
            }
            good
        })
    }

    /// What an actor of this manner does when it starts.
    fn start<A: Actor<Context = Context<A>>>(self, ctx: &mut Context<A>) {
        if self == Self::Dead {
            ctx.stop();
        }
    }

    /// What it does when it is asked.
    fn strike(self) {
        assert_ne!(self, Self::Panicking, "a user's actor panics");
    }
}

/// A set of words that grows, and a note of how it was asked.
struct Words<const KEY: u8> {
    words: Rc<RefCell<BTreeSet<String>>>,
    merges: Rc<RefCell<Vec<Merge>>>,
    manner: Manner,
}

type Red = Words<1>;
type Blue = Words<2>;

impl<const KEY: u8> Actor for Words<KEY> {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        self.manner.start(ctx);
    }
}

impl<const KEY: u8> Handler<Export> for Words<KEY> {
    type Result = ResponseFuture<Bytes>;
    fn handle(&mut self, _: Export, _: &mut Context<Self>) -> Self::Result {
        self.manner.strike();
        let words: Vec<_> = self.words.borrow().iter().cloned().collect();
        self.manner.answer(Bytes::from(words.join(" ")))
    }
}

impl<const KEY: u8> Handler<Merge> for Words<KEY> {
    type Result = ();
    fn handle(&mut self, m: Merge, _: &mut Context<Self>) {
        let text = String::from_utf8(m.state.to_vec()).expect("words");
        self.words.borrow_mut().extend(text.split(' ').map(str::to_owned));
        self.merges.borrow_mut().push(m);
    }
}

impl SharedState for Red {
    const KEY: &'static str = "red/1";
}

impl SharedState for Blue {
    const KEY: &'static str = "blue/1";
}

/// What a shared actor knows, seen from outside.
struct Shared {
    words: Rc<RefCell<BTreeSet<String>>>,
    merges: Rc<RefCell<Vec<Merge>>>,
}

fn share<const KEY: u8>(node: &Cluster, word: &str, manner: Manner) -> (Shared, Addr<Words<KEY>>)
where
    Words<KEY>: SharedState,
{
    let words = Rc::new(RefCell::new(BTreeSet::from([word.to_owned()])));
    words.borrow_mut().remove("");
    let merges = Rc::default();
    let actor = Words { words: words.clone(), merges: Rc::clone(&merges), manner }.start();
    node.share(actor.clone()).expect("it runs").detach();
    (Shared { words, merges }, actor)
}

fn often() -> Config {
    Config { push_pull_interval: Duration::from_secs(2), ..Config::lan() }
}

#[test]
fn states_of_several_keys_go_round_and_a_joiner_has_them_at_once() {
    paused(async {
        let mut world = World::new(1, often());
        world.start(4).await;
        let red: Vec<_> =
            (0..4).map(|i| share::<1>(&world.nodes[i], &format!("r{i}"), Manner::Well).0).collect();
        let blue: Vec<_> =
            (1..3).map(|i| share::<2>(&world.nodes[i], &format!("b{i}"), Manner::Well).0).collect();
        for node in &world.nodes[1..3] {
            node.join(&["10.0.0.1:7946"]).await.expect("it joins");
        }
        let all = |of: &[Shared], n: usize| of.iter().all(|shared| shared.words.borrow().len() == n);
        world.wait_until(SOON * 6, |_| all(&red[..3], 3) && all(&blue, 2)).await.expect("everybody has all");
        assert!(world.nodes[0].metrics().dropped["unshared"] > 0, "nobody shares blue there");

        world.nodes[3].join(&["10.0.0.1:7946"]).await.expect("it joins");
        world.wait_until(SOON, |_| red[3].words.borrow().len() == 4).await.expect("with the join");
        let first = red[3].merges.borrow()[0].clone();
        assert_eq!((first.joining, first.from), (true, world.nodes[0].view().local().id.clone()));
        let seed_heard =
            |_: &World| red[0].merges.borrow().iter().any(|m| m.joining && m.from.name() == "n003");
        world.wait_until(SOON, seed_heard).await.expect("the seed gets the joiner's");
        assert!(red.iter().flat_map(|shared| shared.merges.borrow().clone()).any(|m| !m.joining));
    });
}

#[test]
fn an_empty_state_is_not_sent() {
    paused(async {
        let mut world = World::new(2, often());
        world.start(2).await;
        let (full, _) = share::<1>(&world.nodes[0], "word", Manner::Well);
        let (empty, _) = share::<1>(&world.nodes[1], "", Manner::Well);
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
        world.wait_until(SOON, |_| empty.words.borrow().len() == 1).await.expect("one way");
        assert_eq!(full.merges.borrow().len(), 0, "there was nothing to tell");
    });
}

#[test]
fn a_state_that_is_too_large_is_left_out_and_the_others_go() {
    paused(async {
        let mut world = World::new(3, Config { max_shared_state: 100, ..often() });
        world.start(2).await;
        let _large = share::<1>(&world.nodes[0], &"x".repeat(200), Manner::Well);
        let _small = share::<2>(&world.nodes[0], "small", Manner::Well);
        let (red, _) = share::<1>(&world.nodes[1], "", Manner::Well);
        let (blue, _) = share::<2>(&world.nodes[1], "", Manner::Well);
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
        world.wait_until(SOON, |_| blue.words.borrow().len() == 1).await.expect("the small one goes");
        assert!(red.words.borrow().is_empty());
        assert!(world.nodes[0].metrics().dropped["unshared"] >= 1);
    });
}

#[test]
fn weak_point_22_an_export_that_is_not_answered_delays_its_exchange_alone_and_counts_as_empty() {
    for manner in Manner::BAD {
        Log::of(|log| async move {
            let mut world = World::new(4, often());
            world.start(3).await;
            let _bad = share::<1>(&world.nodes[0], "bad", manner);
            let _good = share::<2>(&world.nodes[0], "good", Manner::Well);
            let (red, _) = share::<1>(&world.nodes[1], "", Manner::Well);
            let (blue, _) = share::<2>(&world.nodes[1], "", Manner::Well);
            let start = Instant::now();
            world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
            assert!(start.elapsed() < Duration::from_millis(1500), "{manner:?}: {:?}", start.elapsed());
            world.wait_until(SOON, |_| !blue.words.borrow().is_empty()).await.expect("the other key goes");
            assert!(red.words.borrow().is_empty(), "{manner:?}");
            let dropped = world.nodes[0].metrics().dropped;
            let counted = match manner {
                Manner::Late | Manner::Never => dropped["question_late"],
                _ => dropped["question_failed"],
            };
            assert!(counted > 0, "{manner:?}: {dropped:?}");
            assert_eq!(log.with("Export of \"red/1\"").len(), 1, "{manner:?}: {:?}", log.lines());
            // The node goes on: another one joins through it, and nobody is suspected.
            world.nodes[2].join(&["10.0.0.1:7946"]).await.expect("it joins");
            sleep(SOON).await;
            for node in &world.nodes {
                assert_eq!((node.view().alive_count(), node.metrics().messages_received["suspect"]), (3, 0));
            }
        });
    }
}

/// A gatekeeper, and what it was asked.
struct Gate {
    asked: Rc<RefCell<Vec<String>>>,
    members: Manner,
    merges: Manner,
}

impl Actor for Gate {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        self.members.start(ctx);
    }
}

impl Handler<Admit> for Gate {
    type Result = ResponseFuture<Result<(), String>>;
    fn handle(&mut self, m: Admit, _: &mut Context<Self>) -> Self::Result {
        let manner = match &m {
            Admit::Member(member) => {
                self.asked.borrow_mut().push(member.name().to_owned());
                self.members
            }
            Admit::Merge { from, members } => {
                self.asked.borrow_mut().push(format!("merge {from} of {}", members[0].name()));
                self.merges
            }
            _ => unreachable!("there are two questions"),
        };
        manner.strike();
        manner.answer(if manner == Manner::Refusing { Err("no guests\u{7}".to_owned()) } else { Ok(()) })
    }
}

/// A world whose node `at` has a gatekeeper.
async fn guarded(
    seed: u64,
    n: usize,
    at: usize,
    members: Manner,
    merges: Manner,
) -> (World, Rc<RefCell<Vec<String>>>) {
    guarded_with(often(), seed, n, at, members, merges).await
}

async fn guarded_with(
    config: Config,
    seed: u64,
    n: usize,
    at: usize,
    members: Manner,
    merges: Manner,
) -> (World, Rc<RefCell<Vec<String>>>) {
    let mut world = World::new(seed, config);
    let asked: Rc<RefCell<Vec<String>>> = Rc::default();
    for i in 0..n {
        let gate = Gate { asked: asked.clone(), members, merges }.start();
        let builder = world.builder(i);
        let builder = if i == at { builder.admit(gate.recipient()) } else { builder };
        world.nodes.push(builder.start().await.expect("it starts"));
    }
    (world, asked)
}

fn vetoed() -> JoinError {
    JoinError::Refused(Refusal::Vetoed("no guests".into()))
}

#[test]
fn a_newcomer_is_asked_about_once_and_again_when_it_returns_or_moves() {
    paused(async {
        let (mut world, asked) = guarded(5, 4, 0, Manner::Well, Manner::Well).await;
        for node in &world.nodes[1..] {
            node.join(&["10.0.0.1:7946"]).await.expect("it joins");
        }
        for node in &world.nodes {
            assert_eq!(node.ready(Until::Members(4), SOON).await, Ok(true));
        }
        sleep(SOON).await;
        let members =
            || asked.borrow().iter().filter(|a| !a.starts_with("merge")).cloned().collect::<Vec<_>>();
        assert_eq!(members(), ["n001", "n002", "n003"]);
        assert_eq!(asked.borrow().iter().filter(|a| a.starts_with("merge")).count(), 3);

        world.kill(3).await;
        world.wait_until(SOON * 6, |w| w.state(0, 3) == Some(MemberState::Dead)).await.expect("it is dead");
        world.nodes[3] = world.builder(3).seed(99).start().await.expect("it starts again");
        world.nodes[3].join(&["10.0.0.2:7946"]).await.expect("it joins");
        world.wait_until(SOON, |w| w.state(0, 3) == Some(MemberState::Alive)).await.expect("it is back");
        assert_eq!(members(), ["n001", "n002", "n003", "n003"]);
    });
}

#[test]
fn weak_point_45_a_node_that_lets_nobody_in_holds_nobody_and_is_held_by_nobody() {
    paused(async {
        let (world, asked) = guarded(7, 4, 3, Manner::Refusing, Manner::Well).await;
        for node in &world.nodes[1..3] {
            node.join(&["10.0.0.1:7946"]).await.expect("it joins");
        }
        for node in &world.nodes[..3] {
            assert_eq!(node.ready(Until::Members(3), SOON).await, Ok(true));
        }
        // The gatekeeper lets nobody in, not even the seed.
        assert_eq!(world.nodes[3].join(&["10.0.0.1:7946"]).await.map(|_| ()), Err(vetoed()));
        sleep(SOON).await;
        assert_eq!(world.nodes[3].view().all().count(), 1);
        assert!(world.nodes[0].view().get("n003").is_none(), "the seed has not taken it in either");
        assert!(asked.borrow().contains(&"n000".to_owned()));
        // Somebody joins through the gatekeeper: refused, on both sides, with the reason.
        assert_eq!(world.nodes[1].join(&["10.0.0.4:7946"]).await.map(|_| ()), Err(vetoed()));
        assert!(world.nodes[1].view().get("n003").is_none());
        assert_eq!(world.nodes[3].view().all().count(), 1);
    });
}

#[test]
fn weak_point_17_a_veto_on_a_join_cancels_it_on_both_sides_whoever_says_no() {
    for (at, joiner, seed) in [(0, 1, "10.0.0.1:7946"), (1, 1, "10.0.0.1:7946")] {
        paused(async {
            let (world, asked) = guarded(8, 2, at, Manner::Well, Manner::Refusing).await;
            assert_eq!(world.nodes[joiner].join(&[seed]).await.map(|_| ()), Err(vetoed()), "gate at {at}");
            sleep(SOON).await;
            for node in &world.nodes {
                assert_eq!(node.view().all().count(), 1, "gate at {at}: nobody is a member");
            }
            let other = if at == 0 { "merge 10.0.0.2" } else { "merge 10.0.0.1" };
            assert!(asked.borrow()[0].starts_with(other), "{:?}", asked.borrow());
        });
    }
}

#[test]
fn weak_point_22_a_gatekeeper_that_does_not_answer_keeps_newcomers_out_and_harms_nothing_else() {
    for manner in Manner::BAD {
        Log::of(|log| async move {
            // Before the gatekeeper is asked about anybody, the other four have found each other.
            let (world, _asked) = guarded(9, 5, 4, manner, manner).await;
            for node in &world.nodes[1..3] {
                node.join(&["10.0.0.1:7946"]).await.expect("it joins");
            }
            let start = Instant::now();
            let refused = world.nodes[4].join(&["10.0.0.1:7946"]).await;
            assert!(
                matches!(&refused, Err(JoinError::Refused(Refusal::Vetoed(why))) if why.contains("did not answer")),
                "{manner:?}: {refused:?}"
            );
            assert!(start.elapsed() < Duration::from_secs(3), "{manner:?}: {:?}", start.elapsed());
            world.nodes[3].join(&["10.0.0.1:7946"]).await.expect("others join");
            sleep(SOON).await;
            for node in &world.nodes[..4] {
                assert_eq!((node.view().alive_count(), node.metrics().messages_received["suspect"]), (4, 0));
            }
            let metrics = world.nodes[4].metrics();
            let counted = match manner {
                Manner::Late | Manner::Never => metrics.dropped["question_late"],
                _ => metrics.dropped["question_failed"],
            };
            assert!(counted > 0, "{manner:?}: {:?}", metrics.dropped);
            assert_eq!(log.with("Admit::Merge for 10.0.0.1").len(), 1, "{manner:?}: {:?}", log.lines());
            assert_eq!((metrics.restarts.values().sum::<u64>(), metrics.stalls), (0, 0));
        });
    }
}

#[test]
fn weak_point_22_while_a_question_about_one_newcomer_is_open_everything_else_goes_on() {
    paused(async {
        // The gatekeeper takes three seconds about each newcomer, and may. News comes by gossip alone.
        let (question_timeout, push_pull_interval) = (Duration::from_secs(5), Duration::ZERO);
        let tcp_timeout = Duration::from_secs(30);
        let config = Config { question_timeout, push_pull_interval, tcp_timeout, ..Config::lan() };
        let (mut world, asked) = guarded_with(config, 10, 3, 0, Manner::Late, Manner::Well).await;
        for node in &world.nodes[1..] {
            node.join(&["10.0.0.1:7946"]).await.expect("it joins");
        }
        assert_eq!(world.nodes[0].ready(Until::Members(3), SOON).await, Ok(true));
        let before = asked.borrow().len();
        for i in 10..30 {
            let node = world.builder(i).start().await.expect("it starts");
            node.join(&["10.0.0.2:7946"]).await.expect("it joins");
            world.nodes.push(node);
        }
        world.wait_until(SOON, |_| asked.borrow().len() > before).await.expect("it is asked");
        world.nodes[1].set_meta("news".into()).await.expect("it is told");
        let told = |w: &World| w.nodes[0].view().get("n001").is_some_and(|m| m.meta == "news");
        world.wait_until(Duration::from_secs(2), told).await.expect("news of members goes on");
        assert_eq!(world.nodes[0].view().alive_count(), 3, "no question has been answered so far");
        world.wait_until(SOON, |w| w.nodes[0].view().alive_count() == 23).await.expect("all are let in");
        let newly: BTreeSet<_> = asked.borrow()[before..].iter().cloned().collect();
        assert_eq!(newly.iter().filter(|a| !a.starts_with("merge")).count(), 20);
        for node in &world.nodes[..3] {
            assert_eq!(node.metrics().messages_received["suspect"], 0);
        }
    });
}

/// Lets everybody in but one.
struct Doorman(&'static str);

impl Actor for Doorman {
    type Context = Context<Self>;
}

impl Handler<Admit> for Doorman {
    type Result = Result<(), String>;
    fn handle(&mut self, m: Admit, _: &mut Context<Self>) -> Self::Result {
        match m {
            Admit::Member(member) if member.name() == self.0 => Err("not this one".into()),
            _ => Ok(()),
        }
    }
}

#[test]
fn weak_point_45_a_member_that_the_application_refuses_is_kept_out_whoever_tells_of_it() {
    paused(async {
        let mut world = World::new(11, often());
        world.start(3).await;
        let gate = Doorman("n002").start().recipient();
        world.nodes.push(world.builder(3).admit(gate).start().await.expect("it starts"));
        for i in [1, 3] {
            world.nodes[i].join(&["10.0.0.1:7946"]).await.expect("it joins");
        }
        // By gossip, and after that by the states of the others as well.
        world.nodes[2].join(&["10.0.0.1:7946"]).await.expect("it joins");
        let known =
            |w: &World| w.all_hold([0, 1], 3, MemberState::Alive) && w.nodes[1].view().alive_count() == 4;
        world.wait_until(SOON, known).await.expect("the others have everybody");
        sleep(Duration::from_secs(30)).await;
        assert_eq!((world.state(3, 2), world.nodes[3].view().alive_count()), (None, 3));
        assert!(world.nodes[3].metrics().dropped["vetoed"] > 0);
        for i in [0, 1] {
            assert_eq!(world.nodes[i].view().alive_count(), 4, "it is a member to those who let it in");
        }
    });
}
