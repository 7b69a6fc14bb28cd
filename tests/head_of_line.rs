//! Nobody waits for what is another one's business: peers that are dead or stuck, large bodies, slow handlers.
//!
//! What the rules say is tested in virtual time, where a figure is the same each time. What threads and sockets add is
//! measured over loopback, rounds with and without the trouble in turns, and compared by the medians of the rounds;
//! limits of time are for the release build:
//!
//! ```text
//! cargo test --release -p memberlist-tests --test head_of_line -- --nocapture
//! ```

#![allow(clippy::unwrap_used, reason = "a test's own helpers")]

use std::{
    cell::RefCell,
    collections::BTreeMap,
    io,
    net::TcpListener,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use actix::{Actor, Addr, Arbiter, Context, Handler, Message, ResponseFuture};
use actix_memberlist::{
    Cause, Cluster, Config, MemberEvent, NodeId, NotSent, Peer, PeerMessage, Replay, SendError, Until, Upload,
};
use allocation_counter::measure;
use bytes::Bytes;
use futures_util::{StreamExt, future::join_all};
use memberlist_protocol::{
    member::{Member, Versions},
    wire::{
        frame::{Envelope, StreamKind},
        message::{Alive, Remembered},
        state::{State, StateHeader},
    },
};
use memberlist_tests::{World, addr, drain, events, paused};
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, sleep, timeout},
};

/// Something small, whose acknowledgement is timed, or something that is in the way.
#[derive(Message, Serialize, Deserialize, Clone)]
#[rtype(result = "()")]
struct Small(Bytes);

impl PeerMessage for Small {
    const KIND: &'static str = "small/1";
}

/// A message over which its handler takes ten seconds.
#[derive(Message, Serialize, Deserialize, Clone)]
#[rtype(result = "()")]
struct Slow(Bytes);

impl PeerMessage for Slow {
    const KIND: &'static str = "slow/1";
}

#[derive(Message, Serialize, Deserialize, Clone)]
#[rtype(result = "u64")]
struct Store;

impl PeerMessage for Store {
    const KIND: &'static str = "store/1";
}

#[derive(Default)]
struct Desk {
    small: Rc<RefCell<u64>>,
}

impl Actor for Desk {
    type Context = Context<Self>;
    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(1024);
    }
}

impl Handler<Small> for Desk {
    type Result = ();
    fn handle(&mut self, _: Small, _: &mut Context<Self>) {
        *self.small.borrow_mut() += 1;
    }
}

impl Handler<Slow> for Desk {
    type Result = ResponseFuture<()>;
    fn handle(&mut self, _: Slow, _: &mut Context<Self>) -> Self::Result {
        Box::pin(sleep(Duration::from_secs(10)))
    }
}

impl Handler<Upload<Store>> for Desk {
    type Result = ResponseFuture<u64>;
    fn handle(&mut self, mut m: Upload<Store>, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            let mut read = 0;
            while let Some(Ok(piece)) = m.body.next().await {
                read += piece.len() as u64;
            }
            read
        })
    }
}

fn serve(node: &Cluster) -> Addr<Desk> {
    let desk = Desk::default().start();
    node.serve::<Small>(desk.clone().recipient()).unwrap().detach();
    node.serve_upload::<Store>(desk.clone().recipient()).unwrap().detach();
    desk
}

fn peer(from: &Cluster, to: &Cluster) -> Peer {
    from.peer(&to.view().local().id).expect("it is there")
}

/// The time that all but one in a hundred take at most.
fn p99(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[(times.len() * 99).div_ceil(100) - 1]
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

/// How long the acknowledgement of one takes.
async fn acknowledged(peer: &Peer) -> Duration {
    let start = Instant::now();
    let sent = peer.send(&Small(Bytes::from_static(&[1; 64]))).expect("there is room");
    assert_eq!(timeout(Duration::from_secs(60), sent).await.expect("in time"), Ok(()));
    start.elapsed()
}

/// Sends until there is no room, or `most` were taken: whatever becomes of it. Says how many were taken.
fn stuff(peer: &Peer, len: usize, most: usize) -> usize {
    let large = Small(Bytes::from(vec![2; len]));
    (0..most).take_while(|_| peer.send(&large).is_ok()).count()
}

/// No probes: who does not answer stays a member.
fn unwatched() -> Config {
    Config { probe_interval: Duration::ZERO, push_pull_interval: Duration::from_secs(5), ..Config::lan() }
}

#[test]
fn a_dead_and_a_stalled_peer_among_fifty_cost_the_other_forty_eight_nothing() {
    let mut all: BTreeMap<bool, Vec<Duration>> = BTreeMap::new();
    paused(async {
        let world = World::cluster(1, unwatched(), 51).await;
        world.nodes.iter().for_each(|node| drop(serve(node)));
        let peers: Vec<_> = world.nodes[1..].iter().map(|node| peer(&world.nodes[0], node)).collect();
        let (others, bad) = peers.split_at(48);
        for round in 0..10 {
            let trouble = round % 2 == 1;
            if trouble {
                // One that no packet reaches, and one that is stopped: it accepts, and never reads.
                world.network.partition(&[addr(0)], &[addr(49)]);
                world.network.pause(addr(50));
            }
            let mut times = Vec::new();
            for _ in 0..20 {
                for peer in bad {
                    let taken = stuff(peer, 50_000, 50);
                    assert!(taken == 50 || trouble, "a healthy one takes what it is sent");
                }
                times.extend(join_all(others.iter().map(acknowledged)).await);
                sleep(Duration::from_millis(100)).await;
            }
            if trouble {
                assert!(bad.iter().all(|peer| peer.status().queued_bytes > 30 << 20), "both are full");
                world.network.heal();
                world.network.resume(addr(50));
                // Until all that waits for them has got through.
                let settled = |_: &World| bad.iter().all(|peer| peer.status().queued == 0);
                world.wait_until(Duration::from_secs(120), settled).await.expect("they are back");
            }
            all.entry(trouble).or_default().push(p99(&mut times));
        }
    });
    let [calm, trouble] = [false, true].map(|trouble| median(all.get_mut(&trouble).unwrap()));
    println!("p99: {calm:?}, with a dead and a stalled peer {trouble:?}");
    // What differs is which latencies between 1 and 2 ms the network gives; nobody who waits takes less than seconds.
    assert!(trouble.as_secs_f64() <= calm.as_secs_f64() * 1.1, "{calm:?}, {trouble:?}");
}

#[test]
fn more_dead_peers_than_may_be_dialled_at_once_do_not_keep_the_others_from_being_reached() {
    paused(async {
        let config = Config { tcp_timeout: Duration::from_secs(10), ..unwatched() };
        let world = World::cluster(2, config, 60).await;
        world.nodes.iter().for_each(|node| drop(serve(node)));
        // Forty of them do not answer a dial, and are dialled first.
        let dead: Vec<_> = (20..60).map(addr).collect();
        world.network.partition(&[addr(0)], &dead);
        for node in &world.nodes[20..] {
            assert_eq!(stuff(&peer(&world.nodes[0], node), 100, 1), 1);
        }
        sleep(Duration::from_millis(100)).await;
        let times = join_all(
            world.nodes[1..20].iter().map(async |node| acknowledged(&peer(&world.nodes[0], node)).await),
        );
        let longest = times.await.into_iter().max().unwrap();
        println!("the slowest first message took {longest:?}");
        // One that does not answer keeps its turn for half a second, and 32 are dialled at once.
        assert!(longest <= Duration::from_millis(600), "{longest:?}");
    });
}

#[test]
fn a_handler_that_takes_ten_seconds_holds_up_its_own_kind_alone_and_nobody_is_suspected() {
    let minutes = 10;
    let memory = measure(|| {
        paused(async {
            let world = World::cluster(3, Config::lan(), 4).await;
            let desk = Desk::default();
            let small = desk.small.clone();
            let desk = desk.start();
            world.nodes[0].serve::<Small>(desk.clone().recipient()).unwrap().detach();
            world.nodes[0].serve::<Slow>(desk.recipient()).unwrap().detach();
            let mut told: Vec<_> = world.nodes.iter().map(|node| events(node, Replay::None)).collect();
            let peers: Vec<_> = world.nodes[1..].iter().map(|node| peer(node, &world.nodes[0])).collect();
            let (mut busy, mut full, mut sent) = (0, 0, 0);
            let mut waiting = Vec::new();
            for _ in 0..minutes * 60 {
                for peer in &peers {
                    for _ in 0..20 {
                        match peer.send(&Slow(Bytes::from_static(&[3; 10_000]))) {
                            Ok(outcome) => waiting.push(outcome),
                            Err(SendError::Full) => full += 1,
                            Err(error) => panic!("{error}"),
                        }
                    }
                    assert!(acknowledged(peer).await < Duration::from_millis(20), "another kind flows");
                    sent += 1;
                }
                sleep(Duration::from_millis(900)).await;
                for outcome in waiting.drain(..) {
                    match outcome.await {
                        Ok(()) => {}
                        Err(NotSent::Never(Cause::Busy)) => busy += 1,
                        Err(other) => panic!("{other}"),
                    }
                }
            }
            assert_eq!(*small.borrow(), sent);
            assert!(busy > sent, "{busy} were refused, {full} not even sent");
            for events in &mut told {
                let told = drain(events).await;
                assert!(
                    !told
                        .iter()
                        .any(|e| matches!(e, MemberEvent::Suspected { .. } | MemberEvent::Dead { .. })),
                    "{told:?}"
                );
            }
        });
    });
    // The queue of the handler, what is in its mailbox, and four nodes.
    assert!(memory.bytes_max <= 40 << 20, "{memory:?}");
}

// Over loopback.

/// A member of a node's whose address is whatever it is.
async fn introduce(node: &Cluster, name: &str, at: std::net::SocketAddr) -> Peer {
    let id = NodeId::new(name, 7);
    let header = StateHeader {
        from: id.clone(),
        versions: Versions::CURRENT,
        join: true,
        tentative: false,
        members: 0,
        user_len: 0,
    };
    let alive = Alive::of(&Member::new(id.clone(), at, 1, std::time::Instant::now()));
    let me = Remembered { alive, state: actix_memberlist::MemberState::Alive };
    let body = State::encode(header, [me].into_iter(), &[]);
    let head = Envelope::new("").unwrap().open_stream(StreamKind::PushPull);
    let mut stream = tokio::net::TcpStream::connect(node.view().local().addr).await.unwrap();
    stream.write_all(&[&head[..], &(body.len() as u32).to_le_bytes(), &body].concat()).await.unwrap();
    stream.read_u32_le().await.unwrap();
    let start = Instant::now();
    loop {
        if let Some(peer) = node.peer(&id) {
            return peer;
        }
        assert!(start.elapsed() < Duration::from_secs(20), "{name} is not taken in");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Nodes on loopback, the first on a thread of its own, the others on another one.
async fn loopback(n: usize) -> Vec<Cluster> {
    let shared = Arbiter::new();
    let mut nodes: Vec<Cluster> = Vec::new();
    for i in 0..n {
        let builder = Cluster::builder(format!("n{i}")).config(unwatched()).bind(([127, 0, 0, 1], 0).into());
        let builder = if i == 0 { builder } else { builder.arbiter(shared.handle()) };
        let node = builder.start().await.unwrap();
        if i > 0 {
            node.join(&[&nodes[0].view().local().addr.to_string()]).await.unwrap();
        }
        nodes.push(node);
    }
    for node in &nodes {
        assert_eq!(node.ready(Until::Members(n), Duration::from_secs(60)).await, Ok(true));
    }
    nodes
}

/// The medians over rounds of what `round` measures under each of these, in turns.
async fn in_turns<const N: usize>(
    rounds: usize,
    under: [Trouble; N],
    round: impl AsyncFn(Trouble) -> Vec<Duration>,
) -> [Vec<Duration>; N] {
    let mut all = [const { Vec::new() }; N];
    // The first of each warms up.
    for n in 0..=rounds {
        for (trouble, all) in under.iter().zip(&mut all) {
            let mut times = round(*trouble).await;
            if n > 0 {
                all.push(p99(&mut times));
            }
        }
    }
    for (trouble, all) in under.iter().zip(&all) {
        println!("{trouble:?}: {all:?}");
    }
    all
}

/// What may be in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    None,
    /// Peers that do not take what they are sent.
    Peers,
    Upload,
}

#[actix::test]
async fn over_sockets_a_dead_and_a_stalled_peer_cost_forty_eight_others_nothing_either() {
    let nodes = loopback(51).await;
    nodes.iter().for_each(|node| drop(serve(node)));
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let bad = [
        introduce(&nodes[0], "dead", closed).await,
        introduce(&nodes[0], "stalled", silent.local_addr().unwrap()).await,
    ];
    let good = [peer(&nodes[0], &nodes[49]), peer(&nodes[0], &nodes[50])];
    let others: Vec<_> = nodes[1..49].iter().map(|node| peer(&nodes[0], node)).collect();
    let rounds = if cfg!(debug_assertions) { 2 } else { 15 };
    let times = in_turns(rounds, [Trouble::None, Trouble::Peers], async |trouble| {
        let mut times = Vec::new();
        for _ in 0..if cfg!(debug_assertions) { 3 } else { 30 } {
            for peer in if trouble == Trouble::Peers { &bad } else { &good } {
                stuff(peer, 10_000, 20);
            }
            times.extend(join_all(others.iter().map(acknowledged)).await);
        }
        times
    })
    .await;
    let [calm, trouble] = times.map(|mut times| median(&mut times));
    println!("{calm:?}, with a dead and a stalled peer {trouble:?}");
    for node in nodes {
        node.shutdown().await;
    }
    // Medians of fifteen rounds each, in turns: what else the machine does hits both. Whoever waits for one of the two
    // waits for seconds.
    assert!(cfg!(debug_assertions) || trouble <= calm * 2, "{calm:?}, {trouble:?}");
}

#[actix::test]
async fn half_a_gib_that_is_uploaded_less_than_doubles_the_time_of_small_messages() {
    const PIECE: u64 = 64 << 10;
    let rounds: u64 = if cfg!(debug_assertions) { 1 } else { 31 };
    let all: u64 = if cfg!(debug_assertions) { 32 << 20 } else { 512 << 20 };
    // As much goes in each round, the first one included; in between the body waits.
    let part = all.div_ceil(rounds + 1).next_multiple_of(PIECE);
    let mut nodes = Vec::new();
    for name in ["a", "b"] {
        let builder = Cluster::builder(name).config(unwatched()).bind(([127, 0, 0, 1], 0).into());
        nodes.push(builder.start().await.unwrap());
    }
    nodes[1].join(&[&nodes[0].view().local().addr.to_string()]).await.unwrap();
    for node in &nodes {
        assert_eq!(node.ready(Until::Members(2), Duration::from_secs(20)).await, Ok(true));
    }
    serve(&nodes[1]);
    let to = peer(&nodes[0], &nodes[1]);
    let (allowed, sent) = (tokio::sync::watch::Sender::new(0_u64), Arc::new(AtomicU64::new(0)));
    let over = Arc::new(AtomicBool::new(false));
    let body = {
        let (sent, piece) = (sent.clone(), Bytes::from(vec![5; PIECE as usize]));
        futures_util::stream::unfold(allowed.subscribe(), move |mut allowed| {
            let (sent, piece) = (sent.clone(), piece.clone());
            async move {
                let now = sent.load(Relaxed);
                if now >= all {
                    return None;
                }
                allowed.wait_for(|allowed| *allowed > now).await.ok()?;
                sent.store(now + PIECE, Relaxed);
                Some((io::Result::Ok(piece), allowed))
            }
        })
    };
    let uploading = async {
        let read = timeout(Duration::from_secs(600), to.upload(&Store, Box::pin(body))).await;
        over.store(true, Relaxed);
        read.expect("in time").unwrap()
    };
    let measuring = async {
        let medians = in_turns(rounds as usize, [Trouble::None, Trouble::Upload], async |trouble| {
            let mut times = Vec::new();
            let (until, begun) = (*allowed.borrow() + part, Instant::now());
            if trouble == Trouble::Upload {
                allowed.send_replace(until);
            }
            let going = |asked: usize| match trouble {
                Trouble::Upload => sent.load(Relaxed) < until.min(all) && !over.load(Relaxed),
                // As long as a part of the upload takes: what else the machine does hits as much of both.
                _ => asked < 300 || !cfg!(debug_assertions) && begun.elapsed() < Duration::from_millis(250),
            };
            while going(times.len()) {
                times.push(acknowledged(&to).await);
            }
            times
        })
        .await;
        allowed.send_replace(u64::MAX);
        medians
    };
    let (read, [mut calm, mut trouble]) = tokio::join!(uploading, measuring);
    // Each round beside the one before it, which had the same machine.
    let ratios = calm.iter().zip(&trouble).map(|(calm, trouble)| trouble.as_secs_f64() / calm.as_secs_f64());
    let mut ratios: Vec<_> = ratios.collect();
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios[ratios.len() / 2];
    println!("{:?}, beside an upload {:?}, {ratio:.2} times", median(&mut calm), median(&mut trouble));
    assert!(read >= all, "{read} bytes have arrived");
    for node in nodes {
        node.shutdown().await;
    }
    assert!(cfg!(debug_assertions) || ratio < 2.0, "{ratio}: {calm:?}, {trouble:?}");
}
