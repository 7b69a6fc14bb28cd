use std::{
    net::Ipv4Addr,
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

use super::*;
use crate::{
    config::Config,
    member::Member,
    members::Members,
    wire::message::{Alive, Dead},
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn addr(i: usize) -> SocketAddr {
    (Ipv4Addr::new(10, 0, (i / 200) as u8, (i % 200) as u8 + 1), 7946).into()
}

fn rng() -> Xoshiro256PlusPlus {
    Xoshiro256PlusPlus::seed_from_u64(1)
}

struct Node {
    table: Members,
    now: Instant,
    rng: Xoshiro256PlusPlus,
}

impl Node {
    /// One that knows `n` others.
    fn knowing(n: usize) -> Self {
        let now = Instant::now();
        let local = Member::new(NodeId::new("self", 7), addr(0), 3, now);
        let table = Members::new(std::sync::Arc::new(Config::lan()), local, 0);
        let mut node = Self { table, now, rng: rng() };
        (1..=n).for_each(|i| node.meet(i));
        node
    }

    fn meet(&mut self, i: usize) {
        let member = Member::new(NodeId::new(format!("n{i}"), 1), addr(i), 1, self.now);
        let decision = self.table.alive(&Alive::of(&member), self.now, &mut self.rng).unwrap();
        self.table.apply(decision, self.now);
    }

    fn lose(&mut self, i: usize, left: bool) {
        let record = self.table.roster().get(&format!("n{i}")).unwrap();
        let farewell = Dead::farewell(record);
        // Its own word, or this node's verdict.
        let from = if left { farewell.from.clone() } else { "self".into() };
        let decision = self.table.dead(&Dead { from, ..farewell }, self.now, &mut self.rng).unwrap();
        self.table.apply(decision, self.now);
    }

    fn record(&mut self, last: Option<&Rejoin>, wall: u64) -> Rejoin {
        Rejoin::of(&self.table.view(), "shop", last, wall, &mut self.rng)
    }
}

fn names(record: &Rejoin) -> BTreeSet<&str> {
    record.peers.iter().map(|peer| &*peer.name).collect()
}

fn sample() -> Rejoin {
    let peers = vec![
        Peer { addr: "10.0.0.2:7946".parse().unwrap(), name: "n 2".into() },
        Peer { addr: "[fd00::3]:1".parse().unwrap(), name: "größe".into() },
    ];
    let id = NodeId::new("n1", 0xc0ffee);
    Rejoin { label: "shop\n\\1".into(), id, incarnation: 7, left: false, written: 1_763_747_153, peers }
}

#[test]
fn a_record_is_a_text_and_reads_as_it_was_written() {
    let text = sample().encode();
    let expected = "actix-memberlist rejoin 1\nlabel shop\\n\\\\1\nname n1\nstate running\nincarnation 7\n\
                    run 0000000000c0ffee\nwritten 1763747153\npeer 10.0.0.2:7946 n 2\npeer [fd00::3]:1 größe\n";
    assert_eq!(std::str::from_utf8(&text).unwrap().strip_suffix("crc32 3cbe3f0f\n"), Some(expected));
    assert_eq!(Rejoin::decode(&text), Ok(sample()));
    for label in ["", "shop\r"] {
        let left = Rejoin { left: true, peers: Vec::new(), label: label.into(), ..sample() };
        assert_eq!(Rejoin::decode(&left.encode()), Ok(left));
    }
}

#[test]
fn a_record_torn_at_any_byte_is_known_as_torn() {
    let text = sample().encode();
    for n in 0..text.len() {
        let read = Rejoin::decode(&text[..n]);
        assert!(matches!(read, Err(RejoinError::Torn(_))), "{n}: {read:?}");
        let mut zeros = text.to_vec();
        zeros[n..].fill(0);
        let read = Rejoin::decode(&zeros);
        assert!(matches!(read, Err(RejoinError::Torn(_))), "zeros from {n}: {read:?}");
    }
    assert!(Rejoin::decode(&[&text[..], &text[..]].concat()).is_err());
}

#[test]
fn no_flipped_bit_is_taken_for_the_truth() {
    let text = sample().encode();
    for bit in 0..text.len() * 8 {
        let mut flipped = text.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(Rejoin::decode(&flipped).is_err(), "bit {bit}");
    }
}

#[test]
fn what_is_no_record_is_told_from_one_that_is_torn_and_from_one_of_a_later_version() {
    assert_eq!(Rejoin::decode(b"root:x:0:0:root:/root:/bin/sh\n"), Err(RejoinError::Other));
    assert_eq!(Rejoin::decode(&vec![b'a'; MAX_RECORD + 1]), Err(RejoinError::Other));
    assert_eq!(
        Rejoin::decode(b"actix-memberlist rejoin 12\nanything"),
        Err(RejoinError::Version("12".into()))
    );
    assert!(matches!(Rejoin::decode(b"actix-memberlist rejoin 12"), Err(RejoinError::Torn(_))));
    for (error, replaced) in [
        (RejoinError::Other, false),
        (RejoinError::Torn("x"), true),
        (RejoinError::Version("2".into()), true),
        (sample().check("n2", &Labels::new("shop\n\\1")).unwrap_err(), false),
        (sample().check("n1", &Labels::new("shop")).unwrap_err(), false),
    ] {
        assert_eq!(error.may_be_replaced(), replaced, "{error}");
    }
    assert_eq!(sample().check("n1", &Labels::new("shop\n\\1")), Ok(()));
}

#[test]
fn a_record_that_somebody_forged_is_held_to_the_same_limits() {
    let forged = |from: &str, to: &str| {
        let text = String::from_utf8(sample().encode().to_vec()).unwrap();
        let (body, _) = text.split_once("crc32").unwrap();
        let body = body.replacen(from, to, 1);
        Rejoin::decode(format!("{body}crc32 {:08x}\n", crc32fast::hash(body.as_bytes())).as_bytes())
    };
    assert_eq!(forged("7\n", "7\n"), Ok(sample()));
    let line = "peer 10.0.0.2:7946 n2\n";
    for (from, to) in [
        ("incarnation 7", "incarnation -7"),
        ("incarnation 7", "incarnation 4294967296"),
        ("incarnation 7", "incarnation 07"),
        ("state running", "state asleep"),
        ("name n1", "name "),
        ("name n1\n", ""),
        ("10.0.0.2:7946", "0.0.0.0:7946"),
        ("10.0.0.2:7946", "10.0.0.2:0"),
        ("10.0.0.2:7946", "10.0.0.2:66666"),
        ("label shop", "label sh\\op"),
        ("peer [", "pier ["),
        ("peer [", &format!("{}peer [", line.repeat(MAX_PEERS))),
        ("label shop", &format!("label {}", "x".repeat(256))),
    ] {
        assert!(matches!(forged(from, to), Err(RejoinError::Torn(_))), "{from} as {to}");
    }
}

#[test]
fn no_bytes_make_the_reader_panic() {
    let (mut rng, text) = (rng(), sample().encode());
    for _ in 0..20_000 {
        let mut bytes = text.to_vec();
        for _ in 0..rng.random_range(1..4) {
            let at = rng.random_range(0..bytes.len());
            match rng.random_range(0..3) {
                0 => bytes[at] = rng.random(),
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, rng.random()),
            }
        }
        if bytes != text {
            assert!(Rejoin::decode(&bytes).is_err());
        }
    }
}

#[test]
fn the_next_run_starts_above_the_last_one_and_from_1_at_the_end_of_the_numbers() {
    let next = |incarnation| Rejoin { incarnation, ..sample() }.next_incarnation();
    assert_eq!([1, 7, MAX_INCARNATION_STEP - 1].map(next), [2, 8, MAX_INCARNATION_STEP]);
    assert_eq!([MAX_INCARNATION_STEP, u32::MAX].map(next), [1, 1]);
}

#[test]
fn the_peers_are_those_present_each_with_the_same_chance_and_not_too_many() {
    let mut node = Node::knowing(200);
    (1..=20).for_each(|i| node.lose(i, i % 2 == 0));
    let mut seen = std::collections::BTreeMap::<String, usize>::new();
    for _ in 0..500 {
        let record = node.record(None, 0);
        assert_eq!((record.peers.len(), names(&record).len()), (MAX_PEERS, MAX_PEERS));
        record.peers.iter().for_each(|peer| *seen.entry(peer.name.to_string()).or_default() += 1);
    }
    assert_eq!(seen.len(), 180);
    // 178 times each, with a deviation of 11.
    assert!(seen.values().all(|n| (118..238).contains(n)), "{seen:?}");
    assert!((21..=200).all(|i| seen.contains_key(&format!("n{i}"))));
}

#[test]
fn a_node_that_is_alone_keeps_the_peers_that_it_had() {
    let last = Node::knowing(200).record(None, 0);
    let mut node = Node::knowing(0);
    assert_eq!(names(&node.record(Some(&last), 1)), names(&last));
    // In little company it keeps some of them, in more none.
    node.meet(1);
    let record = node.record(Some(&last), 1);
    assert!(names(&record).contains("n1"));
    assert_eq!(record.peers.len(), FILLED);
    (2..=FEW).for_each(|i| node.meet(i));
    assert_eq!(node.record(Some(&last), 1).peers.len(), FEW);
}

#[test]
fn those_who_died_stay_in_small_company_and_those_who_left_do_not() {
    let mut node = Node::knowing(4);
    let last = node.record(None, 0);
    node.lose(1, false);
    node.lose(2, true);
    assert_eq!(names(&node.record(Some(&last), 1)), BTreeSet::from(["n1", "n3", "n4"]));
}

#[test]
fn a_node_that_has_left_keeps_its_incarnation_and_no_peers() {
    let mut node = Node::knowing(4);
    let last = node.record(None, 0);
    let decision = node.table.leave(node.now).unwrap();
    node.table.apply(decision, node.now);
    assert!(last.is_outdated(&node.table.view(), 0, 3 * DAY));
    let record = node.record(Some(&last), 1);
    assert_eq!((record.left, record.incarnation, record.peers.len()), (true, 3, 0));
    assert!(!record.is_outdated(&node.table.view(), 1, 3 * DAY));
}

#[test]
fn a_record_is_outdated_by_another_incarnation_by_an_eighth_of_new_peers_and_by_an_hour() {
    let mut node = Node::knowing(40);
    let record = node.record(None, 10_000);
    let outdated = |node: &Node, wall| record.is_outdated(&node.table.view(), wall, 3 * DAY);
    assert!(!outdated(&node, 10_000) && !outdated(&node, 13_599));
    assert!(outdated(&node, 13_600), "an hour");
    assert!(outdated(&node, 6_000), "the clock was set back");
    assert!(record.is_outdated(&node.table.view(), 10_015, Duration::from_secs(60)), "soon stale");
    (41..=45).for_each(|i| node.meet(i));
    assert!(!outdated(&node, 10_000));
    node.meet(46);
    assert!(outdated(&node, 10_000));
    (1..=39).for_each(|i| node.lose(i, false));
    let mut node = Node::knowing(40);
    let decision = node.table.update(None, Some(Bytes::from_static(b"m")), &mut rng()).unwrap();
    node.table.apply(decision, node.now);
    assert!(outdated(&node, 10_000), "another incarnation");
}

#[test]
fn the_loss_of_all_others_does_not_outdate_a_record_that_names_them() {
    let mut node = Node::knowing(40);
    let record = node.record(None, 0);
    (1..=40).for_each(|i| node.lose(i, false));
    assert!(!record.is_outdated(&node.table.view(), 0, 3 * DAY));
}

#[test]
fn the_age_of_a_record_from_the_future_is_none() {
    assert_eq!(sample().age(1_763_747_153 + 60), Duration::from_secs(60));
    assert_eq!(sample().age(0), Duration::ZERO);
}
