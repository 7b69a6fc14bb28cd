//! Messages from one node to another: how fast they leave, how many arrive, what the call and each message cost.
//!
//! Both nodes are in this process and speak over loopback. A workload is what the caller does ([`call`]); where
//! everybody runs ([`Placement`]), the clocks and the output are the same for all.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_memberlist::{Cause, Cluster, NotSent, Peer, PeerMessage, SendError, Until};
use bytes::Bytes;
use cpu_time::ProcessTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

use super::{Error, Options, PATIENCE, round};

/// The workloads of this kind.
pub(crate) const WORKLOADS: [&str; 3] = ["best_effort", "reliable", "ask"];

/// Messages that are under way at once, when they are pipelined: as many as wait for a handler at most, which says
/// "busy" to more.
const WINDOW: usize = 1024;

/// Of so many calls one is timed: the clock takes as long as a call.
const TIMED: u64 = 16;

/// Nothing more comes when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(500);

/// Who runs on which thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Each node has an arbiter of its own, the caller another thread. The handler is on its node's.
    Apart,
    /// The caller is a task on the arbiter of the node that sends.
    CallerOnNode,
    /// Both nodes, caller and handler share one arbiter.
    OneArbiter,
}

impl Placement {
    pub(crate) const ALL: [(&str, Self); 3] =
        [("apart", Self::Apart), ("caller-on-node", Self::CallerOnNode), ("one-arbiter", Self::OneArbiter)];

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, placement)| *placement)
    }

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, placement)| *placement == self).map_or("", |(name, _)| name)
    }
}

/// What is sent.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Load {
    bytes: Bytes,
}

impl PeerMessage for Load {
    const KIND: &'static str = "measure.load/1";
}

/// What is asked: the answer is as long.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Bytes")]
struct Echo {
    bytes: Bytes,
}

impl PeerMessage for Echo {
    const KIND: &'static str = "measure.echo/1";
}

/// What is done, and whether one waits for the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Datagrams.
    Casts,
    /// Messages, each of which is acknowledged before the next one is sent. The time is that until then.
    Serial,
    /// Messages, of which many are under way. The time is that of the call.
    Pipelined,
    /// Questions, one at a time. The time is that until the answer.
    Asks,
}

impl Mode {
    /// Those of a workload, in the order in which they are measured.
    pub(crate) fn of(workload: &str) -> &'static [Self] {
        match workload {
            "reliable" => &[Self::Serial, Self::Pipelined],
            "ask" => &[Self::Asks],
            _ => &[Self::Casts],
        }
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Casts => None,
            Self::Serial | Self::Asks => Some("serial"),
            Self::Pipelined => Some("pipelined"),
        }
    }

    /// What takes a thread change or two for each message is done so often at most.
    fn count(self, count: u64) -> u64 {
        match self {
            Self::Casts | Self::Pipelined => count,
            Self::Serial | Self::Asks => count.min(20_000),
        }
    }
}

/// Counts what has come.
struct Counter(Arc<AtomicU64>);

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<Load> for Counter {
    type Result = ();
    fn handle(&mut self, _: Load, _: &mut Context<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

impl Handler<Echo> for Counter {
    type Result = MessageResult<Echo>;
    fn handle(&mut self, m: Echo, _: &mut Context<Self>) -> Self::Result {
        self.0.fetch_add(1, Relaxed);
        MessageResult(m.bytes)
    }
}

/// What the caller has seen.
struct Called {
    /// When the first call began, and the last one was over.
    from: Instant,
    to: Instant,
    cpu: ProcessTime,
    /// Calls that failed, but for those that were to be repeated.
    errors: u64,
    /// Of some calls, in nanoseconds.
    times: Vec<u32>,
}

/// Starts the nodes, runs the workload, and says what there is to print.
pub(crate) async fn run(options: &Options, mode: Mode) -> Result<(bool, Value), Error> {
    let placement = options.placement;
    let arbiters = [Arbiter::new(), Arbiter::new()];
    let (sender, receiver) = match placement {
        Placement::OneArbiter => (&arbiters[0], &arbiters[0]),
        _ => (&arbiters[0], &arbiters[1]),
    };
    let start = async |name: &str, arbiter: &Arbiter| {
        let builder = Cluster::builder(name).config(options.config.clone()).bind("127.0.0.1:0".parse()?);
        Ok::<_, Error>(options.access.grant(builder).arbiter(arbiter.handle()).start().await?)
    };
    let (from, to) = (start("from", sender).await?, start("to", receiver).await?);
    from.join(&[&to.view().local().addr.to_string()]).await?;
    for node in [&from, &to] {
        node.ready(Until::Members(2), PATIENCE).await?;
    }
    let arrived = Arc::new(AtomicU64::new(0));
    let counter = Counter(arrived.clone());
    let counter = Counter::start_in_arbiter(&receiver.handle(), |_| counter);
    let _serving = (to.serve::<Load>(counter.clone().recipient())?, to.serve::<Echo>(counter.recipient())?);
    actix::clock::sleep(Duration::from_millis(200)).await;

    let peer = from.peer(&to.view().local().id).ok_or("the other node is not there")?;
    let (size, count) = (options.size, mode.count(options.count));
    let (told, called) = tokio::sync::oneshot::channel();
    let calling = async move {
        let _ = told.send(call(mode, &peer, size, count).await);
    };
    match placement {
        Placement::Apart => {
            std::thread::spawn(|| System::new().block_on(calling));
        }
        _ => drop(sender.spawn(calling)),
    }
    let last = arrivals(&arrived, count);
    let (called, last) = tokio::join!(called, last);
    let Called { from: start, to: end, cpu, errors, mut times } = called?;
    let (delivered, last) = (arrived.load(Relaxed), last.saturating_duration_since(start));
    let cpu = cpu.elapsed();
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).map_or(0.0, |ns| f64::from(*ns));
    let per_s = |count: u64, time: Duration| (count as f64 / time.as_secs_f64().max(1e-9)).round();
    let figures = json!({
        "sent_per_s": per_s(count - errors, end - start),
        "delivered": delivered,
        "delivered_per_s": per_s(delivered, last),
        "errors": errors,
        "p50_us": round(at(0.5) / 1000.0),
        "p99_us": round(at(0.99) / 1000.0),
        "cpu_us_per_msg": round(cpu.as_secs_f64() * 1e6 / count.max(1) as f64),
    });
    for node in [from, to] {
        node.shutdown().await;
    }
    // One in a hundred may be lost of what nobody promises to bring.
    Ok((errors == 0 && delivered * 100 >= count * 99, figures))
}

/// What stands in front of the figures.
pub(crate) fn head(options: &Options, mode: Mode) -> Value {
    let mut head = json!({
        "workload": options.workload,
        "size": options.size,
        "count": mode.count(options.count),
        "placement": options.placement.name(),
    });
    if let (Some(mode), Some(head)) = (mode.name(), head.as_object_mut()) {
        head.insert("mode".into(), mode.into());
    }
    head
}

/// Makes the calls of a workload, one after the other. When there is no room, it lets others have a turn for a
/// millisecond, and tries again.
async fn call(mode: Mode, peer: &Peer, size: usize, count: u64) -> Called {
    let msg = Load { bytes: vec![7; size].into() };
    let (mut errors, mut times) = (0, Vec::with_capacity((count / TIMED) as usize + 1));
    let echo = Echo { bytes: vec![7; size].into() };
    let (mut first, mut under_way) = (true, VecDeque::with_capacity(WINDOW));
    if mode != Mode::Casts {
        // The link comes up.
        let _ = peer.ask(&Echo { bytes: Bytes::new() }, PATIENCE).await;
    }
    let (from, cpu) = (Instant::now(), ProcessTime::now());
    let (mut n, mut todo) = (0, count);
    while n < todo || !under_way.is_empty() {
        if matches!(mode, Mode::Serial | Mode::Asks) {
            let start = Instant::now();
            let done = match mode {
                Mode::Asks => peer.ask(&echo, PATIENCE).await.map(drop).map_err(|error| error.to_string()),
                _ => match peer.send(&msg) {
                    Ok(sent) => sent.await.map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                },
            };
            times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            errors += failed(&mut first, done);
            n += 1;
            continue;
        }
        if under_way.len() == WINDOW || n == todo {
            // Half of the window is left under way, so that the link has something to do meanwhile.
            for sent in under_way.drain(..under_way.len().div_ceil(2)) {
                match sent.await {
                    // The handler is behind: it is sent again.
                    Err(NotSent::Never(Cause::Busy)) => todo += 1,
                    sent => errors += failed(&mut first, sent),
                }
            }
            continue;
        }
        loop {
            let start = (n % TIMED == 0).then(Instant::now);
            let sent = match mode {
                Mode::Casts => peer.cast(&msg),
                _ => peer.send(&msg).map(|sent| under_way.push_back(sent)),
            };
            if let Some(start) = start {
                times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
            match sent {
                Ok(()) => break,
                Err(SendError::Full) => actix::clock::sleep(Duration::from_millis(1)).await,
                Err(error) => {
                    errors += failed(&mut first, Err::<(), _>(error));
                    break;
                }
            }
        }
        n += 1;
    }
    Called { from, to: Instant::now(), cpu, errors, times }
}

/// 1 if it has not got through. The first one is printed.
fn failed<T, E: std::fmt::Display>(first: &mut bool, outcome: Result<T, E>) -> u64 {
    match outcome {
        Ok(_) => 0,
        Err(error) => {
            if std::mem::take(first) {
                eprintln!("{error}");
            }
            1
        }
    }
}

/// A ping-pong of so many bytes over bare TCP, between the threads that a workload runs on: each of them hops from the
/// caller's thread to the first node's, from there over loopback to the second's and back, and home. As many hops as
/// an acknowledged message takes, without anything else.
pub(crate) async fn bare_tcp(options: &Options) -> Result<Value, Error> {
    let arbiters = [Arbiter::new(), Arbiter::new()];
    let (sender, receiver) = match options.placement {
        Placement::OneArbiter => (&arbiters[0], &arbiters[0]),
        _ => (&arbiters[0], &arbiters[1]),
    };
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let (at, size) = (listener.local_addr()?, options.size.max(1));
    listener.set_nonblocking(true)?;
    receiver.spawn(async move {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let _ = stream.set_nodelay(true);
        let mut buf = vec![0; size];
        while stream.read_exact(&mut buf).await.is_ok() && stream.write_all(&buf).await.is_ok() {}
    });
    let count = Mode::Serial.count(options.count);
    // A ball is thrown by the caller, and comes back over the other side.
    type Ball = tokio::sync::oneshot::Sender<()>;
    let (throw, mut thrown) = tokio::sync::mpsc::unbounded_channel::<Ball>();
    let play = async move {
        let Ok(mut stream) = TcpStream::connect(at).await else { return };
        let _ = stream.set_nodelay(true);
        let mut buf = vec![7; size];
        while let Some(home) = thrown.recv().await {
            if stream.write_all(&buf).await.is_err() || stream.read_exact(&mut buf).await.is_err() {
                return;
            }
            let _ = home.send(());
        }
    };
    let (told, times) = tokio::sync::oneshot::channel();
    let call = async move {
        let mut times = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let start = Instant::now();
            let (home, back) = tokio::sync::oneshot::channel();
            if throw.send(home).is_err() || back.await.is_err() {
                break;
            }
            times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
        }
        let _ = told.send(times);
    };
    sender.spawn(play);
    match options.placement {
        Placement::Apart => drop(std::thread::spawn(|| System::new().block_on(call))),
        _ => drop(sender.spawn(call)),
    }
    let mut times = times.await?;
    times.sort_unstable();
    let at = |share: f64| times.get((times.len() as f64 * share) as usize).map_or(0.0, |ns| f64::from(*ns));
    Ok(json!({
        "workload": "bare_tcp",
        "size": size,
        "count": count,
        "placement": options.placement.name(),
        "ok": times.len() as u64 == count,
        "p50_us": round(at(0.5) / 1000.0),
        "p99_us": round(at(0.99) / 1000.0),
    }))
}

/// Waits until all have arrived, or no more do, and says when the last one did.
async fn arrivals(arrived: &AtomicU64, count: u64) -> Instant {
    let (mut seen, mut last) = (0, Instant::now());
    while seen < count && (seen == 0 || last.elapsed() < SILENCE) && last.elapsed() < PATIENCE {
        actix::clock::sleep(Duration::from_millis(1)).await;
        let now = arrived.load(Relaxed);
        if now > seen {
            (seen, last) = (now, Instant::now());
        }
    }
    last
}
