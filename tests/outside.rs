//! What others see of a node from outside: its answers to packets and streams, and to a network that takes
//! some of them.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix::{Actor, Context, Handler};
use actix_memberlist::{
    Broadcast, Cause, Config, Evidence, MemberState, NotSent, UserBytes,
    network::{Endpoint, Network, memory::Link},
};
use bytes::Bytes;
use memberlist_protocol::{
    member::{Member, NodeId, Versions},
    wire::{
        codec,
        frame::{Envelope, Packer, StreamKind},
        message::{Alive, Dead, Message, Ping, Remembered, Suspect},
        state::{State, StateHeader},
    },
};
use memberlist_tests::{World, addr, paused};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::mpsc,
    time::{sleep, timeout},
};

const SOON: Duration = Duration::from_secs(10);

/// Somebody who speaks the wire, and is no node.
struct Stranger {
    endpoint: Arc<dyn Endpoint>,
    id: NodeId,
    envelope: Envelope,
}

impl Stranger {
    async fn at(world: &World, addr: SocketAddr) -> Self {
        let endpoint = world.network.bind(addr).await.expect("a free address");
        Self { endpoint, id: NodeId::new("stranger", 1), envelope: Envelope::new("").expect("no label") }
    }

    fn send(&self, to: SocketAddr, messages: &[Message]) {
        let mut buf = vec![0; 1400];
        let mut packer = Packer::new(&self.envelope, &mut buf);
        assert!(messages.iter().all(|message| packer.push(message)));
        self.endpoint.try_send(&packer.finish().expect("messages"), to).expect("the network takes it");
    }

    /// The messages that have arrived.
    fn heard(&self) -> Vec<Message> {
        let (mut heard, mut buf) = (Vec::new(), vec![0; 65_536]);
        while let Ok((len, _)) = self.endpoint.try_recv(&mut buf) {
            let parts = self.envelope.parts(&buf[..len]).expect("a packet");
            heard.extend(parts.map(|part| codec::decode(part.expect("a part")).expect("a message")));
        }
        heard
    }

    /// A member that it has made up.
    fn claim(name: &str, at: SocketAddr) -> Alive {
        Alive::of(&Member::new(NodeId::new(name, 1), at, 1, std::time::Instant::now()))
    }

    /// Joins with a state of these members, itself first. What comes back, if anything does.
    async fn join(&self, to: SocketAddr, members: &[Alive]) -> Option<State> {
        let header = StateHeader {
            from: self.id.clone(),
            versions: Versions::CURRENT,
            join: true,
            tentative: true,
            members: 0,
            user_len: 0,
        };
        let members =
            members.iter().map(|alive| Remembered { alive: alive.clone(), state: MemberState::Alive });
        let body = State::encode(header, members, &[]);
        let mut stream = self.endpoint.dial(to).await.expect("it listens");
        let len = u32::try_from(body.len()).expect("short").to_le_bytes();
        let question = [&self.envelope.open_stream(StreamKind::PushPull)[..], &len, &body].concat();
        stream.write_all(&question).await.expect("it reads");
        let mut answer = vec![0; stream.read_u32_le().await.ok()? as usize];
        stream.read_exact(&mut answer).await.expect("it answers");
        let state = State::decode(answer.into(), "me").expect("a state").expect("no refusal");
        // A joiner has the last word.
        stream.write_all(&[0; 4]).await.expect("it listens");
        Some(state)
    }
}

#[test]
fn three_pings_in_one_packet_get_three_acks() {
    paused(async {
        let mut world = World::new(1, Config::lan());
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let target = world.nodes[0].view().local().id.clone();
        let ping = |seq| Message::Ping(Ping { seq, target: target.clone(), from: stranger.id.clone() });
        stranger.send(addr(0), &[ping(7), ping(8), ping(9)]);
        sleep(Duration::from_secs(1)).await;
        let seq = |m| if let Message::Ack(ack) = m { ack.seq } else { 0 };
        let mut acks: Vec<_> = stranger.heard().into_iter().map(seq).collect();
        acks.sort_unstable();
        assert_eq!(acks, [7, 8, 9]);
    });
}

#[test]
fn who_sends_its_state_gets_the_one_from_before_and_is_known_after() {
    paused(async {
        let mut world = World::new(2, Config::lan());
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let now = std::time::Instant::now();
        let of = |name: &str, i| {
            let member = Member::new(NodeId::new(name, 1), addr(i), 1, now);
            Remembered { alive: Alive::of(&member), state: MemberState::Alive }
        };
        let header = StateHeader {
            from: stranger.id.clone(),
            versions: Versions::CURRENT,
            join: true,
            tentative: true,
            members: 0,
            user_len: 0,
        };
        let body = State::encode(header, [of("stranger", 9), of("friend", 8)].into_iter(), &[]);
        let mut stream = stranger.endpoint.dial(addr(0)).await.expect("it listens");
        let len = u32::try_from(body.len()).expect("short").to_le_bytes();
        let question = [&stranger.envelope.open_stream(StreamKind::PushPull)[..], &len, &body].concat();
        stream.write_all(&question).await.expect("it reads");
        let len = stream.read_u32_le().await.expect("it answers");
        let mut answer = vec![0; len as usize];
        stream.read_exact(&mut answer).await.expect("it answers");
        let mut state = State::decode(answer.into(), "me").expect("a state").expect("no refusal");
        assert!(world.nodes[0].view().get("stranger").is_none(), "a joiner has the last word");
        stream.write_all(&[0; 4]).await.expect("it listens");
        assert_eq!(state.header.members, 1, "its own record alone");
        let first = state.next_member().expect("one member");
        assert_eq!(first.alive.id, world.nodes[0].view().local().id);
        let both = |world: &World| {
            ["stranger", "friend"].iter().all(|name| world.nodes[0].view().get(name).is_some())
        };
        assert!(world.wait_until(SOON, both).await.is_some(), "what was sent has been taken in");
    });
}

/// Two nodes between which datagrams are lost, in both directions.
async fn without_datagrams(seed: u64, config: Config) -> World {
    let world = World::cluster(seed, config, 2).await;
    for (from, to) in [(0, 1), (1, 0)] {
        world.network.set_link(addr(from), addr(to), Link { loss: 1.0, ..Link::default() });
    }
    world
}

#[test]
fn a_member_that_no_datagram_reaches_is_saved_by_streams_until_these_fail_too() {
    paused(async {
        let world = without_datagrams(3, Config::lan()).await;
        let start = world.nodes[0].metrics().streams_dialled;
        for _ in 0..600 {
            sleep(Duration::from_millis(100)).await;
            assert!(world.all_hold([0], 1, MemberState::Alive), "streams still answer");
        }
        assert!(world.nodes[0].metrics().streams_dialled >= start + 20, "one ping each second or two");

        world.network.cut(addr(0), addr(1));
        let suspected = |world: &World| world.all_hold([0], 1, MemberState::Suspect);
        assert!(world.wait_until(SOON, suspected).await.is_some());
        assert_eq!(world.nodes[0].view().alive_count(), 2, "a suspect counts");
        let dead = |world: &World| world.all_hold([0], 1, MemberState::Dead);
        assert!(world.wait_until(Duration::from_secs(60), dead).await.is_some());
        assert_eq!(world.nodes[0].view().alive_count(), 1, "a dead member does not");
        assert_eq!(world.nodes[0].view().alive().count(), 1);
        assert_eq!(world.nodes[0].view().all().count(), 2);
    });
}

#[test]
fn a_member_that_no_datagram_reaches_is_suspected_where_streams_are_switched_off() {
    paused(async {
        let world = without_datagrams(4, Config { disable_tcp_pings: true, ..Config::lan() }).await;
        let suspected = |world: &World| world.all_hold([0], 1, MemberState::Suspect);
        assert!(world.wait_until(SOON, suspected).await.is_some());
    });
}

#[test]
fn a_node_that_starts_is_its_only_member_and_says_which_versions_it_speaks() {
    paused(async {
        let mut world = World::new(5, Config::lan());
        world.start(1).await;
        let view = world.nodes[0].view();
        let all: Vec<_> = view.all().map(|member| member.name().to_owned()).collect();
        assert_eq!((all, view.local().state), (vec!["n000".to_owned()], MemberState::Alive));
        let versions = view.local().versions;
        assert_eq!(versions, Versions::CURRENT);
        let spoken = [versions.protocol, versions.delegate].map(|v| (v.min, v.max, v.current));
        assert_eq!(spoken, [(1, 1, 1), (0, 0, 0)]);
    });
}

struct Ear(mpsc::UnboundedSender<Bytes>);

impl Actor for Ear {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Ear {
    type Result = ();
    fn handle(&mut self, message: UserBytes, _: &mut Context<Self>) {
        let _ = self.0.send(message.bytes);
    }
}

/// More than a packet can count.
#[test]
fn three_hundred_tiny_broadcasts_at_once_all_arrive_and_each_is_done() {
    paused(async {
        let world = World::cluster(6, Config { udp_buffer_size: 65_000, ..Config::lan() }, 3).await;
        let mut ears = Vec::new();
        for node in &world.nodes[1..] {
            let (sender, ear) = mpsc::unbounded_channel();
            node.serve_bytes(Ear(sender).start().recipient()).expect("it runs").detach();
            ears.push(ear);
        }
        sleep(SOON).await;
        let tiny = |i: u16| i.to_be_bytes().to_vec();
        let broadcasts: Vec<_> = (0..300)
            .map(|i| world.nodes[0].broadcast_bytes(Broadcast::new(tiny(i))).expect("there is room"))
            .collect();
        for done in futures_util::future::join_all(broadcasts).await {
            assert_eq!(done, Ok(()));
        }
        sleep(Duration::from_secs(2)).await;
        for mut ear in ears {
            let mut heard: Vec<_> = std::iter::from_fn(|| ear.try_recv().ok()).collect();
            heard.sort();
            assert_eq!(heard, (0..300).map(tiny).collect::<Vec<_>>());
        }
    });
}

#[test]
fn broadcasts_beyond_the_bounds_push_out_the_oldest_which_say_so_and_are_counted() {
    paused(async {
        // By number, and by bytes: 1,300 and what stands around them fit 50 times into 64 KiB.
        for (max_user_broadcasts, len, fit) in [(16, 10, 16), (1000, 1300, 49)] {
            let config = Config {
                max_user_broadcasts,
                max_user_broadcast_bytes: 64 << 10,
                gossip_interval: SOON,
                probe_interval: Duration::ZERO,
                gossiped_broadcast_size: 1400,
                ..Config::lan()
            };
            let world = World::cluster(7, config, 2).await;
            let node = &world.nodes[0];
            let spreads: Vec<_> = (0..fit + 5)
                .map(|_| node.broadcast_bytes(Broadcast::new(vec![0; len])).expect("the inbox has room"))
                .collect();
            for spread in spreads.into_iter().take(5) {
                assert_eq!(spread.await, Err(NotSent::Unknown(Cause::Busy)));
            }
            assert_eq!(node.metrics().dropped["pruned"], 5);
        }
    });
}

#[test]
fn three_members_that_one_node_hears_of_reach_the_other_by_gossip_alone() {
    // Nothing makes up for what gossip misses, and three in four of those that it goes to are not there.
    let quiet = Config {
        probe_interval: Duration::ZERO,
        push_pull_interval: Duration::ZERO,
        retransmit_mult: 16,
        ..Config::lan()
    };
    let dumb = Config { gossip_interval: Duration::ZERO, ..quiet.clone() };
    for (config, known) in [(quiet, 5), (dumb, 2)] {
        paused(async {
            let mut world = World::new(8, config);
            world.start(2).await;
            world.nodes[1].join(&["10.0.0.1:7946"]).await.expect("it joins");
            sleep(SOON).await;
            let stranger = Stranger::at(&world, addr(9)).await;
            let claims = [20, 21, 22].map(|i| Message::Alive(Stranger::claim(&format!("n{i:03}"), addr(i))));
            stranger.send(addr(0), &claims);
            sleep(SOON).await;
            assert_eq!([0, 1].map(|i| world.nodes[i].view().alive_count()), [5, known]);
        });
    }
}

#[test]
fn a_node_that_has_to_refute_doubts_its_health() {
    paused(async {
        let mut world = World::new(9, Config::lan());
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let local = world.nodes[0].view().local().clone();
        let (from, by) = (stranger.id.shared_name().clone(), stranger.id.shared_name().clone());
        let (id, incarnation, evidence) = (local.id.clone(), local.incarnation, Evidence::Hearsay);
        let suspect = Suspect { id: id.clone(), incarnation, from: from.clone(), evidence };
        let dead = Dead { id, incarnation: incarnation + 1, from, by, confirmed_by: Vec::new(), evidence };
        for (i, said) in [(1, Message::Suspect(suspect)), (2, Message::Dead(dead))] {
            stranger.send(addr(0), &[said]);
            sleep(Duration::from_millis(100)).await;
            let local = world.nodes[0].view().local().clone();
            assert_eq!((local.state, local.incarnation), (MemberState::Alive, incarnation + u32::from(i)));
            assert_eq!(world.nodes[0].health(), i);
        }
    });
}

/// Places where no member can be, for a node that is not on loopback itself.
const NOWHERE: [&str; 7] = [
    "0.0.0.0:1",
    "255.255.255.255:1",
    "224.0.0.1:1",
    "[ff02::1]:1",
    "[::]:1",
    "10.0.0.8:0",
    "[::ffff:127.0.0.1]:9",
];

#[test]
fn weak_point_38_an_accusation_far_above_does_not_hide_the_one_that_counts() {
    paused(async {
        let mut world = World::new(38, Config::lan());
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let own = world.nodes[0].view().local().clone();
        let accusation = |incarnation| {
            let (id, from) = (own.id.clone(), stranger.id.shared_name().clone());
            Message::Suspect(Suspect { id, incarnation, from, evidence: Evidence::Hearsay })
        };
        // Of those that wait, only the highest is kept: one that would be refused must not be it.
        stranger.send(addr(0), &[accusation(u32::MAX), accusation(own.incarnation)]);
        sleep(Duration::from_secs(1)).await;
        let metrics = world.nodes[0].metrics();
        assert_eq!((metrics.refutations, metrics.dropped["incarnation_step"]), (1, 1));
        assert_eq!(world.nodes[0].view().local().incarnation, own.incarnation + 1);
    });
}

#[test]
fn weak_point_44_members_with_impossible_addresses_are_dropped_from_packets_and_states() {
    paused(async {
        let mut world = World::new(44, Config::lan());
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let nowhere: Vec<_> = NOWHERE
            .iter()
            .enumerate()
            .map(|(i, at)| Stranger::claim(&format!("x{i}"), at.parse().expect("an address")))
            .collect();
        let mut said: Vec<_> = nowhere.iter().cloned().map(Message::Alive).collect();
        said.push(Message::Alive(Stranger::claim("good", addr(8))));
        stranger.send(addr(0), &said);
        sleep(Duration::from_secs(1)).await;
        let names = |world: &World| {
            world.nodes[0]
                .view()
                .all()
                .map(|m| m.name().to_owned())
                .collect::<std::collections::BTreeSet<_>>()
        };
        let of = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!(names(&world), of(&["n000", "good"]));
        assert_eq!(world.nodes[0].metrics().dropped["address"], 7);

        let own = Stranger::claim("stranger", addr(9));
        let told = [&[own][..], &nowhere, &[Stranger::claim("better", addr(7))]].concat();
        assert!(stranger.join(addr(0), &told).await.is_some());
        sleep(Duration::from_secs(1)).await;
        assert_eq!(names(&world), of(&["n000", "good", "stranger", "better"]));
        assert_eq!(world.nodes[0].metrics().dropped["address"], 14);
    });
}

#[test]
fn weak_point_44_packets_and_states_with_impossible_names_are_dropped() {
    paused(async {
        let mut world = World::new(44, Config::lan());
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let mut dropped = 0;
        for name in ["", "a\nb", "a\u{1b}[2J", &"x".repeat(256)] {
            let bad = Stranger::claim(name, addr(8));
            stranger.send(addr(0), &[Message::Alive(bad.clone())]);
            let told = [Stranger::claim("stranger", addr(9)), bad];
            assert!(stranger.join(addr(0), &told).await.is_none(), "{name:?} is not dealt with");
            sleep(Duration::from_secs(1)).await;
            dropped += 2;
            assert_eq!(world.nodes[0].metrics().dropped["name"], dropped, "{name:?}");
        }
        assert_eq!(world.nodes[0].view().all().count(), 1);
    });
}

#[test]
fn weak_point_45_a_state_of_more_members_than_are_allowed_fills_the_table_and_no_more() {
    paused(async {
        let config = Config { max_members: 20, ..Config::lan() };
        let mut world = World::cluster(45, config, 3).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        let flood: Vec<_> = [Stranger::claim("stranger", addr(9))]
            .into_iter()
            .chain((0..5000).map(|i| Stranger::claim(&format!("x{i}"), addr(10 + i))))
            .collect();
        assert!(stranger.join(addr(0), &flood).await.is_some());
        let counted = |w: &World| w.nodes[0].metrics().dropped["table_full"] >= 5001 - 17;
        assert!(world.wait_until(SOON, counted).await.is_some(), "what finds no room is counted");
        assert_eq!(world.nodes[0].view().all().count(), 20);
        assert!((0..3).all(|i| world.all_hold([0], i, MemberState::Alive)), "nobody had to make room");
        world.start(1).await;
        assert!(world.nodes[3].join(&["10.0.0.1:7946"]).await.is_ok(), "the node still answers");
    });
}

#[test]
fn a_frame_that_is_longer_than_allowed_ends_its_stream_unread() {
    paused(async {
        let mut world = World::new(10, Config { max_ordered_size: 2000, ..Config::lan() });
        world.start(1).await;
        let stranger = Stranger::at(&world, addr(9)).await;
        // A hello has at most 1 KiB, what an upload begins with as much and an ordered message.
        for (kind, longest) in [(StreamKind::Link, 1024), (StreamKind::Upload, 1024 + 2000)] {
            for (len, ends) in [(longest, false), (longest + 1, true), (u32::MAX, true)] {
                let mut stream = stranger.endpoint.dial(addr(0)).await.expect("it listens");
                let claim = [&stranger.envelope.open_stream(kind)[..], &len.to_le_bytes()].concat();
                stream.write_all(&claim).await.expect("it reads");
                // A reader that waits for the rest waits for ten seconds.
                let end = timeout(Duration::from_secs(1), stream.read(&mut [0; 8])).await;
                assert_eq!(end.is_ok(), ends, "{kind:?} {len}: {end:?}");
            }
        }
        assert_eq!(world.nodes[0].metrics().dropped["too_long"], 4);
    });
}
