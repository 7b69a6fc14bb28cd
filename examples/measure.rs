//! The yardstick: what a cluster costs, and how fast it is, through the public API alone.
//!
//! ```text
//! cargo run --release --example measure -- --workload all --nodes 300 --profile lan
//! ```
//!
//! All nodes are in this process, on loopback; all join node 0 at once. It prints one JSON object a line.
//!
//! ```text
//! cargo run --release --example measure -- --workload best_effort --size 64 --count 2000000 --placement apart
//! ```
//!
//! Messages between two nodes. `errors` are calls that failed, but for those that found no room: these are repeated.
//! p50 and p99 are of the call itself. `ok` means that there were none and that at least 99 % have arrived.
//!
//! Processor time and memory are the process's.

#![allow(clippy::disallowed_methods, reason = "the tasks of a program, which no supervisor looks after")]

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_memberlist::{Broadcast, Cluster, Config, MemberEvent, MemberState, Replay, Until, UserBytes};
use cpu_time::ProcessTime;
use lexopt::prelude::*;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

mod common;
#[path = "measure/messages.rs"]
mod messages;

use common::access::Access;
use messages::{Mode, Placement};

type Error = Box<dyn std::error::Error>;

/// Everything is to have happened within this time.
const PATIENCE: Duration = Duration::from_secs(120);

const USAGE: &str = "measure [--workload converge|steady|broadcast|leave|crash|all|best_effort|reliable|ask (default all)] \
                     [--nodes N (default 100)] [--profile lan|wan|local (default lan)] \
                     [--seconds S (default 10)] [--arbiters K (default: cores; 0 = one for each node)] \
                     [--key HEX] [--label NAME] [--size BYTES (default 64)] [--count N (default 1000000)] \
                     [--placement apart|caller-on-node|one-arbiter (default apart)]";

struct Options {
    workload: String,
    nodes: usize,
    profile: String,
    config: Config,
    seconds: u64,
    arbiters: usize,
    access: Access,
    size: usize,
    count: u64,
    placement: Placement,
}

fn options() -> Result<Options, lexopt::Error> {
    let cores = std::thread::available_parallelism().map_or(1, Into::into);
    let mut options = Options {
        workload: "all".into(),
        nodes: 100,
        profile: "lan".into(),
        config: Config::lan(),
        seconds: 10,
        arbiters: cores,
        access: Access::default(),
        size: 64,
        count: 1_000_000,
        placement: Placement::Apart,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("workload") => options.workload = args.value()?.parse()?,
            Long("nodes") => options.nodes = args.value()?.parse()?,
            Long("profile") => {
                options.profile = args.value()?.parse()?;
                options.config = common::profile(&options.profile)?;
            }
            Long("seconds") => options.seconds = args.value()?.parse()?,
            Long("arbiters") => options.arbiters = args.value()?.parse()?,
            Long("size") => options.size = args.value()?.parse()?,
            Long("count") => options.count = args.value()?.parse()?,
            Long("placement") => {
                let name: String = args.value()?.parse()?;
                let names = Placement::ALL.map(|(name, _)| name);
                let unknown = || format!("no placement {name:?}: there are {names:?}");
                options.placement = Placement::of(&name).ok_or_else(unknown)?;
            }
            Long("key") => options.access.set_key(args.value()?)?,
            Long("label") => options.access.label = args.value()?.parse()?,
            Long("help") => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    let known = ["converge", "steady", "broadcast", "leave", "crash", "all"];
    let known = [&known[..], &messages::WORKLOADS].concat();
    if !known.contains(&&*options.workload) {
        return Err(format!("no workload {:?}: there are {known:?}", options.workload).into());
    }
    if options.nodes < 2 {
        return Err("--nodes must be at least 2".into());
    }
    Ok(options)
}

#[actix::main]
async fn main() -> ExitCode {
    common::logs("error");
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    match run(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: &Options) -> Result<bool, Error> {
    raise_open_files(options.nodes);
    if messages::WORKLOADS.contains(&&*options.workload) {
        let mut all_ok = true;
        for mode in Mode::of(&options.workload) {
            let (ok, figures) = messages::run(options, *mode).await?;
            let mut line = messages::head(options, *mode).as_object().cloned().unwrap_or_default();
            line.insert("ok".into(), ok.into());
            line.extend(figures.as_object().cloned().unwrap_or_default());
            println!("{}", Value::Object(line));
            all_ok &= ok;
        }
        if options.workload != "best_effort" {
            println!("{}", messages::bare_tcp(options).await?);
        }
        return Ok(all_ok);
    }
    let wanted = |workload: &str| options.workload == workload || options.workload == "all";
    let arbiters: Vec<Arbiter> = (0..options.arbiters).map(|_| Arbiter::new()).collect();
    let mut nodes = Vec::new();
    for i in 0..options.nodes {
        let mut builder =
            Cluster::builder(format!("node-{i}")).config(options.config.clone()).bind("127.0.0.1:0".parse()?);
        builder = options.access.grant(builder);
        if !arbiters.is_empty() {
            builder = builder.arbiter(arbiters[i % arbiters.len()].handle());
        }
        nodes.push(builder.start().await?);
    }

    let mut all_ok = true;
    let mut print = |workload: &str, ok: bool, figures: Value| {
        all_ok &= ok;
        if !wanted(workload) {
            return;
        }
        let mut line = Map::new();
        line.insert("workload".into(), workload.into());
        line.insert("nodes".into(), options.nodes.into());
        line.insert("profile".into(), options.profile.clone().into());
        line.insert("arbiters".into(), options.arbiters.into());
        line.insert("ok".into(), ok.into());
        line.extend(figures.as_object().cloned().unwrap_or_default());
        println!("{}", Value::Object(line));
    };

    let (ok, figures) = converge(&nodes).await;
    print("converge", ok, figures);
    if wanted("steady") {
        let (ok, figures) = steady(&nodes, options.seconds).await;
        print("steady", ok, figures);
    }
    if wanted("broadcast") {
        let (ok, figures) = broadcast(&nodes).await?;
        print("broadcast", ok, figures);
    }
    if wanted("leave") && nodes.len() > 2 {
        let (ok, figures) = leave(&mut nodes).await?;
        print("leave", ok, figures);
    }
    if wanted("crash") {
        let (ok, figures) = crash(&mut nodes).await?;
        print("crash", ok, figures);
    }
    for node in &nodes {
        node.shutdown().await;
    }
    Ok(all_ok)
}

/// From the first join call until every node sees all.
async fn converge(nodes: &[Cluster]) -> (bool, Value) {
    let seed = nodes[0].view().local().addr.to_string();
    let (start, cpu) = (Instant::now(), ProcessTime::now());
    let joins: Vec<_> = nodes[1..]
        .iter()
        .map(|node| {
            let (node, seed) = (node.clone(), seed.clone());
            actix::spawn(async move {
                node.join(&[&seed]).await.inspect_err(|error| eprintln!("{error}")).is_ok()
            })
        })
        .collect();
    let all = nodes.len();
    let ready: Vec<_> = nodes
        .iter()
        .map(|node| {
            let node = node.clone();
            actix::spawn(async move { node.ready(Until::Members(all), PATIENCE).await == Ok(true) })
        })
        .collect();
    let mut ok = true;
    for task in joins.into_iter().chain(ready) {
        ok &= task.await.unwrap_or(false);
    }
    if std::env::var("DBG").is_ok() {
        let mut d = std::collections::BTreeMap::new();
        let mut r = std::collections::BTreeMap::new();
        let mut p = 0;
        for n in nodes {
            let m = n.metrics();
            p += m.packets_received;
            for (k, v) in m.dropped {
                *d.entry(k).or_insert(0) += v;
            }
            for (k, v) in m.messages_received {
                *r.entry(k).or_insert(0) += v;
            }
        }
        d.retain(|_, v| *v > 0);
        eprintln!("{p} {d:?} {r:?}");
    }
    let figures = json!({
        "converged_ms": millis(start.elapsed()),
        "cpu_s": round(cpu.elapsed().as_secs_f64()),
        "rss_mb": round(rss_kb() as f64 / 1024.0),
    });
    (ok, figures)
}

/// The cost of a cluster in which nothing happens.
async fn steady(nodes: &[Cluster], seconds: u64) -> (bool, Value) {
    // First the news of joining is to have gone round.
    let deadline = Instant::now() + PATIENCE;
    while nodes.iter().any(|node| node.metrics().broadcasts_queued > 0) && Instant::now() < deadline {
        actix::clock::sleep(Duration::from_millis(100)).await;
    }
    actix::clock::sleep(Duration::from_secs(2)).await;
    let count = || {
        let metrics = nodes.iter().map(Cluster::metrics);
        metrics.fold((0, 0), |(packets, bytes), m| (packets + m.packets_sent, bytes + m.bytes_sent))
    };
    let (before, rss, start, cpu) = (count(), rss_kb(), Instant::now(), ProcessTime::now());
    actix::clock::sleep(Duration::from_secs(seconds)).await;
    let (cpu, time, after) = (cpu.elapsed(), start.elapsed().as_secs_f64(), count());
    let node_seconds = nodes.len() as f64 * time;
    let suspected: usize = nodes.iter().map(|node| node.view().count(MemberState::Suspect)).sum();
    let whole = nodes.iter().all(|node| node.view().alive_count() == nodes.len());
    let figures = json!({
        "cpu_ms_per_node_s": round(cpu.as_secs_f64() * 1000.0 / node_seconds),
        "rss_kb_per_node": rss / nodes.len() as u64,
        "packets_per_node_s": round((after.0 - before.0) as f64 / node_seconds),
        "bytes_per_node_s": round((after.1 - before.1) as f64 / node_seconds),
    });
    (whole && suspected == 0, figures)
}

/// Notes when a node's user gets a broadcast.
struct Listener {
    heard: mpsc::UnboundedSender<Instant>,
}

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<UserBytes> for Listener {
    type Result = ();
    fn handle(&mut self, _: UserBytes, _: &mut Context<Self>) {
        let _ = self.heard.send(Instant::now());
    }
}

/// Broadcasts one after the other, each from another node, and when each node's user has it.
async fn broadcast(nodes: &[Cluster]) -> Result<(bool, Value), Error> {
    const ROUNDS: usize = 5;
    let (heard, mut times) = mpsc::unbounded_channel();
    let mut served = Vec::new();
    for node in nodes {
        let listener = Listener { heard: heard.clone() }.start();
        served.push(node.serve_bytes(listener.recipient())?);
    }
    actix::clock::sleep(Duration::from_millis(200)).await;
    let sent = |nodes: &[Cluster]| nodes.iter().map(|node| node.metrics().packets_sent).sum::<u64>();
    let (mut latencies, mut least, before) = (Vec::new(), usize::MAX, sent(nodes));
    for round in 0..ROUNDS {
        let start = Instant::now();
        nodes[round * nodes.len() / ROUNDS].broadcast_bytes(Broadcast::new(vec![0; 100]))?;
        let mut reached = 0;
        while reached < nodes.len() - 1 {
            match actix::clock::timeout(Duration::from_secs(10), times.recv()).await {
                Ok(Some(at)) => latencies.push(at - start),
                _ => break,
            }
            reached += 1;
        }
        least = least.min(reached);
    }
    let packets = (sent(nodes) - before) / ROUNDS as u64;
    latencies.sort();
    let at = |share: f64| latencies.get(((latencies.len() as f64 * share) as usize).min(latencies.len() - 1));
    let at = |share: f64| at(share).copied().map(millis);
    let figures = json!({
        "reached": least, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": at(1.0), "packets": packets,
    });
    Ok((least == nodes.len() - 1, figures))
}

/// Notes when a node holds a member for gone.
struct Watcher {
    whom: String,
    state: MemberState,
    seen: mpsc::UnboundedSender<Instant>,
}

impl Actor for Watcher {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Watcher {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let gone = match &event {
            MemberEvent::Left { member, .. } | MemberEvent::Dead { member, .. } => member,
            _ => return,
        };
        if gone.name() == self.whom && gone.state == self.state {
            let _ = self.seen.send(Instant::now());
        }
    }
}

/// Takes the last node out with `end`, and says when the first and the last of the others knew.
async fn gone<F: Future<Output = ()>>(
    nodes: &mut Vec<Cluster>,
    state: MemberState,
    end: impl FnOnce(Cluster) -> F,
) -> Result<(bool, Option<Duration>, Option<Duration>), Error> {
    let node = nodes.pop().ok_or("no node is left")?;
    let whom = node.view().local().name().to_owned();
    let (seen, mut sightings) = mpsc::unbounded_channel();
    let mut watching = Vec::new();
    for other in &*nodes {
        let watcher = Watcher { whom: whom.clone(), state, seen: seen.clone() }.start();
        watching.push(other.subscribe(watcher.recipient(), Replay::None)?);
    }
    actix::clock::sleep(Duration::from_millis(200)).await;
    let start = Instant::now();
    end(node).await;
    let mut times = Vec::new();
    while times.len() < nodes.len() {
        let left = PATIENCE.saturating_sub(start.elapsed());
        let Ok(Some(at)) = actix::clock::timeout(left, sightings.recv()).await else { break };
        times.push(at.saturating_duration_since(start));
    }
    Ok((times.len() == nodes.len(), times.iter().min().copied(), times.iter().max().copied()))
}

async fn leave(nodes: &mut Vec<Cluster>) -> Result<(bool, Value), Error> {
    let (ok, _, all) = gone(nodes, MemberState::Left, |node| async move {
        let _ = node.leave(Duration::from_secs(5)).await;
        node.shutdown().await;
    })
    .await?;
    Ok((ok, json!({ "all_ms": all.map(millis) })))
}

async fn crash(nodes: &mut Vec<Cluster>) -> Result<(bool, Value), Error> {
    let (ok, first, all) =
        gone(nodes, MemberState::Dead, |node| async move { node.shutdown().await }).await?;
    Ok((ok, json!({ "first_ms": first.map(millis), "all_ms": all.map(millis) })))
}

fn millis(time: Duration) -> f64 {
    round(time.as_secs_f64() * 1000.0)
}

fn round(figure: f64) -> f64 {
    (figure * 1000.0).round() / 1000.0
}

/// Memory of this process in use, in KiB; 0 where the system does not tell.
fn rss_kb() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse().unwrap_or(0)
}

/// Each node has two sockets, and a stream now and then at both ends.
fn raise_open_files(nodes: usize) {
    let wanted = 8 * nodes as u64 + 200;
    match rlimit::increase_nofile_limit(wanted) {
        Ok(limit) if limit < wanted => {
            eprintln!(
                "only {limit} files may be open, {wanted} are wanted: raise the hard limit (ulimit -Hn)"
            );
        }
        Ok(_) => {}
        Err(error) => eprintln!("cannot raise the limit on open files to {wanted}: {error}"),
    }
}
