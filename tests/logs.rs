//! What a node says in its log, and how often.

use std::time::Duration;

use actix_memberlist::network::Network;
use actix_memberlist::{Broadcast, Cluster, Config, JoinError, MemberEvent, MemberState, Replay, Until};
use memberlist_protocol::{
    accusation::Evidence,
    wire::{
        frame::{Envelope, Packer},
        message::{Message, Suspect},
    },
};
use memberlist_tests::{World, addr, drain, events, log::Log};
use tokio::{io::AsyncWriteExt, time::sleep};
use tracing::Level;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Sends the same datagram to node 0 so many times, and waits until all have been read.
async fn flood(world: &World, datagram: &[u8], times: u64) {
    let stranger = world.network.bind(addr(400)).await.expect("a free address");
    let before = world.nodes[0].metrics().packets_received;
    for i in 0..times {
        stranger.try_send(datagram, addr(0)).expect("there is room");
        if i % 16 == 15 {
            sleep(Duration::from_millis(1)).await;
        }
    }
    let read = |w: &World| w.nodes[0].metrics().packets_received >= before + times;
    assert!(world.wait_until(secs(20), read).await.is_some());
}

#[test]
fn weak_point_42_ten_thousand_bad_packets_are_one_line_now_and_one_after_a_minute() {
    Log::of(|log| async move {
        let mut world = World::new(42, Config::lan());
        world.start(1).await;
        flood(&world, b"GET / HTTP/1.1\r\n\r\n", 10_000).await;
        assert_eq!(world.nodes[0].metrics().dropped["foreign"], 10_000);
        let loud = |log: &Log| log.lines().into_iter().filter(|l| l.level < Level::TRACE).collect::<Vec<_>>();
        let said = loud(&log);
        assert_eq!(said.len(), 1, "{said:?}");
        assert_eq!(said[0].level, Level::WARN);
        assert!(said[0].text.starts_with("packet dropped: the first byte"), "{said:?}");
        assert!(said[0].fields.contains("node=n000 from=10.0.1.151:7946"), "{said:?}");
        log.clear();
        sleep(secs(61)).await;
        let said = loud(&log);
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].text.starts_with("and 9999 more like it in the last 60 s"), "{said:?}");
        assert_eq!(world.nodes[0].metrics().log_lines_left_out, 9_999);
        log.clear();
        sleep(secs(300)).await;
        assert!(log.lines().is_empty(), "{:?}", log.lines());
    });
}

#[test]
fn weak_point_42_kinds_are_counted_apart_and_the_end_of_the_node_tells_the_rest() {
    Log::of(|log| async move {
        let mut world = World::new(43, Config::lan());
        world.nodes.push(world.builder(0).label("ours").start().await.expect("it starts"));
        flood(&world, b"GET / HTTP/1.1\r\n\r\n", 50).await;
        let mut theirs = [0; 100];
        let envelope = Envelope::new("theirs").expect("short enough");
        let mut packer = Packer::new(&envelope, &mut theirs);
        assert!(packer.push(&Message::Nack(memberlist_protocol::wire::message::Nack { seq: 1 })));
        let packet = packer.finish().expect("a message");
        flood(&world, &packet, 50).await;
        assert_eq!(log.with("packet dropped").len(), 2);
        let label = log.with("check that each node of the cluster is given the same label");
        assert_eq!(label.len(), 1, "{:?}", log.lines());
        // Streams have lines of their own.
        let stranger = world.network.bind(addr(401)).await.expect("a free address");
        for _ in 0..20 {
            let mut stream = stranger.dial(addr(0)).await.expect("it accepts");
            let _ = stream.write_all(&[0xff; 64]).await;
            sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(log.with("stream dropped: the").len(), 1, "{:?}", log.lines());
        world.nodes[0].shutdown().await;
        assert_eq!(log.with("and 49 more like it").len(), 2, "{:?}", log.lines());
        assert_eq!(log.with("and 19 more like it").len(), 1, "{:?}", log.lines());
    });
}

#[test]
fn weak_point_42_joins_that_are_refused_and_names_that_are_taken_are_said_once() {
    Log::of(|log| async move {
        let mut world = World::new(44, Config::lan());
        world.start(1).await;
        let rival = Cluster::builder("n000").bind(addr(9)).plaintext().network(world.network.clone());
        let rival = rival.arbiter(actix::Arbiter::current()).seed(1).without_watchdog().start().await;
        let rival = rival.expect("it starts");
        for _ in 0..10 {
            assert!(matches!(rival.join(&["10.0.0.1:7946"]).await, Err(JoinError::Refused(_))));
        }
        let said: Vec<_> =
            log.with("refused a peer").into_iter().filter(|l| l.level == Level::WARN).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].fields.contains("another member of that name is alive"), "{said:?}");
        rival.shutdown().await;
    });
}

/// What an event is called in the log, and whom it is about.
fn expected(event: &MemberEvent) -> Option<(&'static str, String)> {
    let (text, id) = match event {
        MemberEvent::Joined { member, .. } => ("joined", &member.id),
        MemberEvent::Updated { member, .. } => ("updated", &member.id),
        MemberEvent::Suspected { member, .. } => ("suspected", &member.id),
        MemberEvent::Refuted { member, .. } => ("refuted the suspicion", &member.id),
        MemberEvent::Left { member, .. } => ("left", &member.id),
        MemberEvent::Dead { member, .. } => ("dead", &member.id),
        MemberEvent::Reaped { id, .. } => ("forgotten", id),
        _ => return None,
    };
    Some((text, id.to_string()))
}

#[test]
fn each_change_of_a_member_is_one_line_with_its_cause() {
    Log::of(|log| async move {
        let mut world = World::new(45, Config { dead_retention: secs(90), ..Config::lan() });
        world.start(5).await;
        let mut watch = events(&world.nodes[0], Replay::None);
        for node in &world.nodes[1..] {
            node.join(&["10.0.0.1:7946"]).await.expect("it joins");
        }
        for node in &world.nodes {
            assert_eq!(node.ready(Until::Members(5), secs(30)).await, Ok(true));
        }
        world.nodes[1].set_meta("new".into()).await.expect("there is room");
        world.nodes[1].set_tags([("zone".into(), "b\u{202e}".into())].into()).await.expect("there is room");
        // One is accused by a stranger, and refutes.
        let stranger = world.network.bind(addr(402)).await.expect("a free address");
        let local = world.nodes[2].view().local().clone();
        let (id, incarnation, from) = (local.id.clone(), local.incarnation, "a\u{202e} stranger".into());
        let suspect = Suspect { id, incarnation, from, evidence: Evidence::Hearsay };
        let mut buf = [0; 1400];
        let envelope = Envelope::new("").expect("no label");
        let mut packer = Packer::new(&envelope, &mut buf);
        assert!(packer.push(&Message::Suspect(suspect)));
        stranger.try_send(&packer.finish().expect("a message"), addr(0)).expect("there is room");
        sleep(secs(10)).await;
        let _ = world.nodes[3].leave(secs(5)).await;
        world.kill(4).await;
        let gone = |w: &World| w.state(0, 4).is_none() && w.state(0, 3) == Some(MemberState::Left);
        assert!(world.wait_until(secs(200), gone).await.is_some());

        let told: Vec<_> = drain(&mut watch).await.iter().filter_map(expected).collect();
        let lines = log.with("node=n000 ").into_iter().filter(|l| l.level == Level::INFO);
        let said: Vec<_> = lines
            .map(|l| {
                let member = l.fields.split("member=").nth(1).and_then(|rest| rest.split(' ').next());
                (l.text.clone(), member.unwrap_or_default().to_owned())
            })
            .collect();
        let told: Vec<_> = told.into_iter().map(|(text, id)| (text.to_owned(), id)).collect();
        assert_eq!(said, told);
        let kinds = ["joined", "updated", "suspected", "refuted the suspicion", "left", "dead", "forgotten"];
        for kind in kinds {
            assert!(told.iter().any(|(text, _)| text == kind), "{kind} did not happen: {told:?}");
        }
        let at_0 = |words: &str| {
            let lines = log.with(words).into_iter().filter(|l| l.fields.contains("node=n000 "));
            lines.map(|l| format!("{} {}", l.fields, l.text)).collect::<Vec<_>>().join("\n")
        };
        assert!(at_0("updated").contains("meta 0 -> 3 bytes"), "{}", at_0("updated"));
        assert!(at_0("updated").contains("tags [zone]"), "{}", at_0("updated"));
        assert!(
            at_0("suspected").contains(r"by=a\u{202e} stranger evidence=Hearsay"),
            "{}",
            at_0("suspected")
        );
        assert!(at_0("dead").contains("confirmed_by=["), "{}", at_0("dead"));
        assert!(at_0("forgotten").contains("source=\"time\""), "{}", at_0("forgotten"));
        assert!(at_0("joined").contains("source=\"state of a peer\""), "{}", at_0("joined"));
    });
}

#[test]
fn nothing_is_said_for_each_packet_above_trace() {
    Log::of(|log| async move {
        let world = World::cluster(46, Config::lan(), 5).await;
        sleep(secs(20)).await;
        log.clear();
        let before = world.nodes[0].metrics().packets_received;
        for _ in 0..20 {
            world.nodes[0].broadcast_bytes(Broadcast::new("x")).expect("it is taken");
            sleep(secs(3)).await;
        }
        assert!(world.nodes[0].metrics().packets_received > before + 60);
        let loud: Vec<_> = log.lines().into_iter().filter(|l| l.level < Level::TRACE).collect();
        assert!(loud.is_empty(), "{loud:?}");
        assert!(!log.lines().is_empty(), "traces are heard");
    });
}
