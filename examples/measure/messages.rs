//! Messages from one node to another: how fast they leave, how many arrive, what the call and each message cost.
//!
//! Both nodes are in this process and speak over loopback. A workload is what the caller does ([`call`]); where
//! everybody runs ([`Placement`]), the clocks and the output are the same for all.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_memberlist::{Cluster, Peer, PeerMessage, SendError, Until};
use bytes::Bytes;
use cpu_time::ProcessTime;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Error, Options, PATIENCE, round};

/// The workloads of this kind.
pub(crate) const WORKLOADS: [&str; 1] = ["best_effort"];

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
pub(crate) async fn run(options: &Options) -> Result<(bool, Value), Error> {
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
    let _serving = to.serve::<Load>(counter.recipient())?;
    actix::clock::sleep(Duration::from_millis(200)).await;

    let peer = from.peer(&to.view().local().id).ok_or("the other node is not there")?;
    let (size, count, workload) = (options.size, options.count, options.workload.clone());
    let (told, called) = tokio::sync::oneshot::channel();
    let calling = async move {
        let _ = told.send(call(&workload, &peer, size, count).await);
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
pub(crate) fn head(options: &Options) -> Value {
    json!({
        "workload": options.workload,
        "size": options.size,
        "count": options.count,
        "placement": options.placement.name(),
    })
}

/// Makes the calls of a workload, one after the other. When there is no room, it lets others have a turn for a
/// millisecond, and tries again.
async fn call(workload: &str, peer: &Peer, size: usize, count: u64) -> Called {
    let msg = Load { bytes: vec![7; size].into() };
    let (mut errors, mut times) = (0, Vec::with_capacity((count / TIMED) as usize + 1));
    let (from, cpu) = (Instant::now(), ProcessTime::now());
    for n in 0..count {
        loop {
            let start = (n % TIMED == 0).then(Instant::now);
            let sent = match workload {
                "best_effort" => peer.cast(&msg),
                other => unreachable!("no workload {other:?}"),
            };
            if let Some(start) = start {
                times.push(u32::try_from(start.elapsed().as_nanos()).unwrap_or(u32::MAX));
            }
            match sent {
                Ok(()) => break,
                Err(SendError::Full) => actix::clock::sleep(Duration::from_millis(1)).await,
                Err(error) => {
                    eprintln!("{error}");
                    errors += 1;
                    break;
                }
            }
        }
    }
    Called { from, to: Instant::now(), cpu, errors, times }
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
