//! What an operator does with a running cluster: pings somebody, declares a dead member to have left, takes a
//! node out and brings it back.

#![allow(clippy::expect_used, reason = "a test's own helpers")]

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use actix::{Actor, Context, Handler};
use actix_memberlist::{
    AskError, Broadcast, Cluster, Config, Evidence, ForceLeave, JoinError, MemberEvent, MemberState,
    MemberState::{Alive, Dead, Left},
    NodeId, Outcome, Ping, Pinged, Replay, SendError, Sender, SetPingPayload, SetTags, StartError,
    UpdateError, UserBytes,
};
use memberlist_tests::{World, addr, drain, events, paused};
use tokio::{
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

const fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

const fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Passes on what it hears.
struct Ear<T>(mpsc::UnboundedSender<T>);

impl<T: Unpin + 'static> Actor for Ear<T> {
    type Context = Context<Self>;
}

impl Handler<Pinged> for Ear<Pinged> {
    type Result = ();
    fn handle(&mut self, pinged: Pinged, _: &mut Context<Self>) {
        let _ = self.0.send(pinged);
    }
}

impl Handler<UserBytes> for Ear<UserBytes> {
    type Result = ();
    fn handle(&mut self, bytes: UserBytes, _: &mut Context<Self>) {
        let _ = self.0.send(bytes);
    }
}

fn user_bytes(node: &Cluster) -> mpsc::UnboundedReceiver<UserBytes> {
    let (sender, receiver) = mpsc::unbounded_channel();
    node.serve_bytes(Ear(sender).start().recipient()).expect("it runs").detach();
    receiver
}

/// Whom a node holds, and for what, by name.
fn table(node: &Cluster) -> BTreeMap<String, (NodeId, MemberState, u32)> {
    node.view().all().map(|m| (m.name().to_owned(), (m.id.clone(), m.state, m.incarnation))).collect()
}

fn id(node: &Cluster) -> NodeId {
    node.view().local().id.clone()
}

fn seed(i: usize) -> String {
    addr(i).to_string()
}

/// Whether each of `whom` holds node `of` for alive, in its present run.
fn all_know(w: &World, whom: impl IntoIterator<Item = usize>, of: usize) -> bool {
    let (id, name) = (id(&w.nodes[of]), format!("n{of:03}"));
    whom.into_iter().all(|i| w.nodes[i].view().get(&name).is_some_and(|m| m.id == id && m.state == Alive))
}

#[test]
fn a_ping_measures_members_and_strangers_and_nothing_comes_of_it() {
    paused(async {
        let zero = Duration::ZERO;
        let silent =
            Config { probe_interval: zero, gossip_interval: zero, push_pull_interval: zero, ..Config::lan() };
        let mut world = World::new(1, silent.clone());
        world.start(3).await;
        world.nodes[1].join(&[&seed(0)]).await.expect("it joins");
        sleep(secs(1)).await;
        let before: Vec<_> = world.nodes.iter().map(table).collect();
        let node = &world.nodes[0];

        for i in [0, 1, 2] {
            let start = Instant::now();
            let rtt = node.ping(&format!("n{i:03}"), addr(i)).await.expect("it answers");
            assert!(rtt <= start.elapsed() && rtt < ms(50), "{rtt:?}");
            assert!(i == 0 || rtt > Duration::ZERO);
        }
        let asked = Ping { name: "n002".into(), addr: addr(2) };
        assert!(node.addr().send(asked).await.expect("it runs").is_ok());
        let mapped: SocketAddr = "[::ffff:10.0.0.2]:7946".parse().expect("an address");
        assert!(node.ping("n001", mapped).await.is_ok());

        // A wrong name is not answered, and the right one at another place neither.
        for (name, at) in [("n001", 2), ("n009", 1), ("n001", 99)] {
            let start = Instant::now();
            let answer = timeout(secs(60), node.ping(name, addr(at))).await.expect("no ping hangs");
            let silence = answer.expect_err("nobody answers");
            assert_eq!(silence, AskError::Timeout, "{name} at {at}");
            let waited = start.elapsed();
            assert!(silent.probe_timeout <= waited && waited < silent.probe_timeout + ms(10), "{waited:?}");
        }
        for (name, at) in [("", "10.0.0.2:1"), (&*"x".repeat(256), "10.0.0.2:1"), ("x", "10.0.0.2:0")] {
            let error = node.ping(name, at.parse().expect("an address")).await;
            assert!(matches!(error, Err(AskError::Target(_))), "{error:?}");
        }
        assert_eq!(world.nodes.iter().map(table).collect::<Vec<_>>(), before);
        assert_eq!((node.health(), node.why("n001").is_none()), (0, true));
    });
}

#[test]
fn pings_that_wait_are_bounded_and_each_has_an_answer_also_when_the_node_stops() {
    paused(async {
        let mut world = World::new(2, Config::lan());
        world.start(1).await;
        let node = &world.nodes[0];
        let ask = |n: usize| futures_util::future::join_all((0..n).map(|_| node.ping("nobody", addr(9))));
        let answers = timeout(secs(5), ask(1500)).await.expect("no ping hangs");
        let full = answers.iter().filter(|a| **a == Err(AskError::Send(SendError::Full))).count();
        let late = answers.iter().filter(|a| **a == Err(AskError::Timeout)).count();
        assert_eq!((late, full), (1024, 476));
        let stop = async {
            sleep(ms(100)).await;
            node.shutdown().await;
        };
        let (answers, ()) =
            timeout(ms(300), async { tokio::join!(ask(10), stop) }).await.expect("no ping hangs");
        assert!(answers.iter().all(|a| matches!(a, Err(AskError::NotSent(_)))), "{answers:?}");
        assert_eq!(node.ping("nobody", addr(9)).await, Err(AskError::Send(SendError::Stopped)));
        assert_eq!(node.set_ping_payload("x".into()), Err(UpdateError::Stopped));
        assert_eq!(node.force_leave("n000").await, Err(UpdateError::Stopped));
        let (sender, _pinged) = mpsc::unbounded_channel();
        assert!(node.subscribe_pings(Ear(sender).start().recipient()).is_err());
    });
}

#[test]
fn a_payload_comes_with_each_answer_for_those_who_listen() {
    paused(async {
        let mut world = World::new(3, Config::lan());
        world.start(2).await;
        let third = world.builder(2).ping_payload("from the start").start().await.expect("it starts");
        world.nodes.push(third);
        for i in [1, 2] {
            world.nodes[i].join(&[&seed(0)]).await.expect("it joins");
        }
        let too_long = vec![0; 513];
        let refused = Err(UpdateError::TooLarge { len: 513, max: 512 });
        assert_eq!(world.nodes[1].set_ping_payload(too_long.clone().into()), refused);
        let start = world.builder(5).ping_payload(too_long).start().await;
        assert!(matches!(start, Err(StartError::Config(error)) if error.field == "ping_payload"));
        let load = vec![7; 512];
        let set = SetPingPayload { payload: load.clone().into() };
        assert_eq!(world.nodes[1].addr().send(set).await.expect("it runs"), Ok(()));

        let (sender, mut heard) = mpsc::unbounded_channel();
        let listening = world.nodes[0].subscribe_pings(Ear(sender).start().recipient()).expect("it runs");
        let mut payloads = BTreeMap::new();
        while payloads.len() < 2 {
            let pinged = timeout(secs(10), heard.recv()).await.expect("in time").expect("there is one");
            assert!(Duration::ZERO < pinged.rtt && pinged.rtt < ms(50), "{pinged:?}");
            payloads.insert(pinged.member.name().to_owned(), pinged.payload);
        }
        assert_eq!(payloads["n001"], load);
        assert_eq!(payloads["n002"], "from the start");

        // Nobody hears more than answers to probes; nothing comes after the end.
        assert!(world.nodes[0].ping("n001", addr(1)).await.is_ok());
        drop(listening);
        let ended = async { while heard.recv().await.is_some() {} };
        timeout(secs(5), ended).await.expect("the subscription ends");
        assert_eq!(world.nodes[0].metrics().dropped["ping_unheard"], 0);
    });
}

#[test]
fn answers_that_come_over_helpers_or_streams_are_not_told_as_round_trips() {
    paused(async {
        let world = World::cluster(4, Config::lan(), 4).await;
        // Straight datagrams between the two take longer than a probe waits.
        let slow =
            actix_memberlist::network::memory::Link { latency: ms(400)..ms(401), ..Default::default() };
        for (a, b) in [(0, 1), (1, 0)] {
            world.network.set_link(addr(a), addr(b), slow.clone());
        }
        sleep(secs(2)).await;
        let (sender, mut heard) = mpsc::unbounded_channel();
        let _listening = world.nodes[0].subscribe_pings(Ear(sender).start().recipient()).expect("it runs");
        sleep(secs(60)).await;
        let mut names: Vec<String> = Vec::new();
        while let Ok(pinged) = heard.try_recv() {
            names.push(pinged.member.name().to_owned());
        }
        assert!(names.len() > 20, "{names:?}");
        assert!(!names.contains(&"n001".into()), "{names:?}");
        assert_eq!(world.state(0, 1), Some(Alive), "it is not accused: it answers others");
    });
}

#[test]
fn a_dead_member_that_is_declared_to_have_left_counts_as_left_everywhere_and_may_come_back() {
    paused(async {
        let world = World::cluster(5, Config::lan(), 6).await;
        let (operator, name) = (&world.nodes[0], "n005");
        assert_eq!(operator.force_leave(name).await, Err(UpdateError::StillAlive));
        assert_eq!(operator.force_leave("n000").await, Err(UpdateError::StillAlive), "oneself");
        assert_eq!(operator.force_leave("nobody").await, Err(UpdateError::Unknown));
        world.kill(5).await;
        let dead = |w: &World| w.all_hold(0..5, 5, Dead);
        assert!(world.wait_until(secs(60), dead).await.is_some(), "{}", world.disagreements(5));
        let mut watches: Vec<_> = (0..5).map(|i| events(&world.nodes[i], Replay::None)).collect();

        let word = ForceLeave { name: name.into() };
        assert_eq!(operator.addr().send(word).await.expect("it runs"), Ok(()));
        assert_eq!(world.state(0, 5), Some(Left), "the answer follows the view");
        let left = |w: &World| w.all_hold(0..5, 5, Left);
        assert!(world.wait_until(secs(5), left).await.is_some(), "{}", world.disagreements(5));
        assert_eq!(operator.force_leave(name).await, Ok(()), "once more is fine");
        // Nobody who exchanges states with anybody brings the death back.
        sleep(secs(120)).await;
        assert!(left(&world), "{}", world.disagreements(5));
        for (i, watch) in watches.iter_mut().enumerate() {
            let told = drain(watch).await;
            let [MemberEvent::Left { member, why, .. }] = &told[..] else { panic!("n{i:03}: {told:?}") };
            assert_eq!((member.name(), &*why.by, why.evidence), (name, "n000", Evidence::ForceLeave));
            let why = world.nodes[i].why(name).expect("it was accused");
            let [.., (first, first_end), (last, last_end)] = &why.accusations[..] else { panic!("{why:?}") };
            assert!(matches!(first_end, Outcome::Dead(_)), "{why:?}");
            assert!(!matches!(first.evidence, Evidence::ForceLeave), "{why:?}");
            assert_eq!((&*last.by, last.evidence), ("n000", Evidence::ForceLeave));
            assert!(matches!(last_end, Outcome::Left(_)), "{why:?}");
        }

        let again = world.builder(5).bind(addr(9)).seed(5).start().await.expect("it starts");
        again.join(&[&seed(2)]).await.expect("nothing keeps it out");
        let back = |w: &World| w.all_hold(0..5, 5, Alive);
        assert!(world.wait_until(secs(5), back).await.is_some(), "{}", world.disagreements(5));
    });
}

#[test]
fn a_member_that_one_side_of_a_partition_declares_to_have_left_is_back_when_the_sides_meet() {
    paused(async {
        let world = World::cluster(6, Config::lan(), 6).await;
        let runs: Vec<_> = world.nodes.iter().map(id).collect();
        let side = |from: usize| -> Vec<_> { (from..from + 3).map(addr).collect() };
        world.network.partition(&side(0), &side(3));
        let apart = |w: &World| (3..6).all(|i| w.all_hold(0..3, i, Dead) && w.all_hold(3..6, i - 3, Dead));
        assert!(world.wait_until(secs(120), apart).await.is_some(), "{}", world.disagreements(6));
        assert_eq!(world.nodes[0].force_leave("n005").await, Ok(()));
        let left = |w: &World| w.all_hold(0..3, 5, Left);
        assert!(world.wait_until(secs(5), left).await.is_some(), "{}", world.disagreements(6));
        assert!(world.all_hold(3..6, 5, Alive), "they have not heard");

        world.network.heal();
        world.nodes[0].join(&[&seed(3)]).await.expect("it is reached");
        let one = |w: &World| (0..6).all(|i| w.all_hold(0..6, i, Alive));
        assert!(world.wait_until(secs(60), one).await.is_some(), "{}", world.disagreements(6));
        sleep(secs(60)).await;
        assert!(one(&world), "{}", world.disagreements(6));
        assert_eq!(world.nodes.iter().map(id).collect::<Vec<_>>(), runs, "nobody had to start again");
    });
}

#[test]
fn weak_point_11_a_node_that_left_answers_with_values_and_joins_again_as_another_run() {
    paused(async {
        let world = World::cluster(7, Config::lan(), 5).await;
        let node = &world.nodes[4];
        let tags = BTreeMap::from([("rack".to_owned(), "7".to_owned())]);
        node.set_meta("meta".into()).await.expect("it runs");
        let set = SetTags { tags: tags.clone() };
        node.addr().send(set).await.expect("it runs").expect("they fit");
        sleep(secs(5)).await;
        let mut watch = events(&world.nodes[0], Replay::None);
        let mut own = events(node, Replay::None);
        let old = node.view().local().clone();

        for _ in 0..2 {
            assert!(node.leave(secs(5)).await.expect("it runs").announced);
        }
        assert!(world.wait_until(secs(5), |w| w.all_hold(0..5, 4, Left)).await.is_some());
        sleep(secs(60)).await;
        assert_eq!(node.view().local().state, Left);
        assert_eq!(node.set_meta("late".into()).await, Err(UpdateError::Left));
        assert_eq!(node.set_tags(BTreeMap::new()).await, Err(UpdateError::Left));
        assert_eq!(node.force_leave("n001").await, Err(UpdateError::Left));
        assert!(node.ping("n001", addr(1)).await.is_ok(), "it still talks");
        // What leads nowhere does not bring it back.
        assert_eq!(node.join(&[]).await.err(), Some(JoinError::NoSeeds));
        assert!(matches!(node.join(&["a b"]).await, Err(JoinError::BadSeed { .. })));
        assert_eq!(id(node), old.id);

        node.join(&[&seed(1)]).await.expect("it joins");
        let new = node.view().local().clone();
        assert_ne!(new.id, old.id);
        assert_eq!((new.state, &new.tags, &new.meta[..], new.addr), (Alive, &tags, &b"meta"[..], old.addr));
        assert!(new.incarnation > old.incarnation);
        let back = |w: &World| all_know(w, 0..5, 4);
        assert!(world.wait_until(secs(5), back).await.is_some(), "{}", world.disagreements(5));
        node.set_meta("again".into()).await.expect("it is back");
        // Nothing of the old run disturbs it.
        for _ in 0..60 {
            sleep(secs(1)).await;
            assert!(back(&world), "{}", world.disagreements(5));
        }
        for (told, updates) in [(drain(&mut watch).await, 1), (drain(&mut own).await, 1)] {
            let [MemberEvent::Left { member: left, why, .. }, MemberEvent::Joined { member, .. }, rest @ ..] =
                &told[..]
            else {
                panic!("{told:?}")
            };
            assert_eq!((&left.id, &*why.by, why.evidence), (&old.id, "n004", Evidence::Announced));
            assert_eq!((&member.id, &member.tags), (&new.id, &tags));
            assert_eq!(rest.len(), updates, "{told:?}");
        }
        let why = world.nodes[0].why("n004").expect("it left");
        assert!(
            matches!(why.accusations.last(), Some((said, Outcome::Left(_))) if said.evidence == Evidence::Announced)
        );
        assert_eq!(node.metrics().refutations, 0);
    });
}

#[test]
fn of_a_leave_and_a_join_at_once_the_one_that_was_called_last_holds() {
    paused(async {
        let world = World::cluster(8, Config::lan(), 4).await;
        let node = &world.nodes[3];
        let to = [&*seed(0)];
        let old = id(node);
        let (left, joined) = tokio::join!(node.leave(secs(5)), node.join(&to));
        assert!(left.is_ok_and(|report| report.announced) && joined.is_ok());
        assert_ne!(id(node), old);
        let back = |w: &World| all_know(w, 0..4, 3);
        assert!(world.wait_until(secs(5), back).await.is_some(), "{}", world.disagreements(4));
        sleep(secs(60)).await;
        assert!(back(&world), "{}", world.disagreements(4));

        let again = id(node);
        let (joined, left) = tokio::join!(node.join(&to), node.leave(secs(5)));
        assert!(left.is_ok_and(|report| report.announced) && joined.is_ok());
        assert_eq!(id(node), again);
        let gone = |w: &World| w.all_hold(0..4, 3, Left);
        assert!(world.wait_until(secs(5), gone).await.is_some(), "{}", world.disagreements(4));
        sleep(secs(60)).await;
        assert!(gone(&world), "{}", world.disagreements(4));
    });
}

#[test]
fn a_node_comes_back_though_no_seed_is_reached_and_those_that_it_knows_hear_of_it() {
    paused(async {
        let world = World::cluster(9, Config::lan(), 4).await;
        let node = &world.nodes[3];
        node.leave(secs(5)).await.expect("it runs");
        sleep(secs(5)).await;
        assert!(node.join(&[&seed(99)]).await.is_err());
        assert_eq!(node.view().local().state, Alive);
        let back = |w: &World| all_know(w, 0..4, 3);
        assert!(world.wait_until(secs(10), back).await.is_some(), "{}", world.disagreements(4));
    });
}

#[test]
fn broadcasts_carry_the_new_run_and_those_of_the_old_one_are_still_the_nodes_own() {
    paused(async {
        let world = World::cluster(10, Config::lan(), 6).await;
        let node = &world.nodes[5];
        let mut heard: Vec<_> = world.nodes.iter().map(user_bytes).collect();
        let old = id(node);
        for i in 0..20 {
            drop(node.broadcast_bytes(Broadcast::new(format!("old {i}"))).expect("there is room"));
        }
        node.leave(secs(5)).await.expect("it runs");
        node.join(&[&seed(0)]).await.expect("it joins");
        let new = id(node);
        drop(node.broadcast_bytes(Broadcast::new("new")).expect("there is room"));
        sleep(secs(30)).await;
        for (i, heard) in heard.iter_mut().enumerate() {
            let mut by_run = BTreeMap::new();
            while let Ok(bytes) = heard.try_recv() {
                // What the old run said last is heard when the new one has taken its place.
                let (Sender::Member(from) | Sender::Stranger(from)) = bytes.from else { panic!() };
                *by_run.entry(from).or_insert(0) += 1;
            }
            let expected =
                if i == 5 { BTreeMap::new() } else { [(old.clone(), 20), (new.clone(), 1)].into() };
            assert_eq!(by_run, expected, "n{i:03}");
        }
    });
}

#[test]
fn a_node_that_restarts_while_its_last_run_is_a_suspect_is_back_at_once() {
    paused(async {
        let mut world = World::cluster(77, Config::lan(), 3).await;
        world.kill(1).await;
        let suspected = |w: &World| w.state(0, 1) == Some(MemberState::Suspect);
        world.wait_until(Duration::from_secs(20), suspected).await.expect("it is suspected");
        world.nodes[1] = world.builder(1).seed(4242).start().await.expect("it starts again");
        world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
        let id = world.nodes[1].view().local().id.clone();
        let back = |w: &World| {
            [0, 2].iter().all(|i| {
                w.nodes[*i].view().get("n001").is_some_and(|m| m.id == id && m.state == MemberState::Alive)
            })
        };
        // The suspicion of the last run would have gone on for four seconds.
        world.wait_until(Duration::from_millis(1500), back).await.expect("everybody has the new run");
    });
}
