//! The main job in one process: a cluster forms, spreads news, finds a crash, and sees a node leave.
//!
//! ```text
//! cargo run --release --example cluster -- --nodes 5 --profile local
//! ```
//!
//! With `--key` (`openssl rand -hex 32` gives one) all is sealed; with it or `--label` a stranger without them
//! tries to join, and must not get in.
//!
//! All nodes are actors in one actix system and talk over loopback. What they see is told as a story: when
//! something was first seen, and when all had seen it, in milliseconds since the step began. With `--json`
//! each event of each node is one JSON object a line, and the last line is a summary. The exit code is 0
//! only when everything was seen in time.

#![allow(clippy::disallowed_methods, reason = "a panic in a task of this program is seen when it is awaited")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Display,
    io::Write,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_memberlist::{
    Cluster, Config, JoinError, MemberEvent, MemberState, Outcome, Replay, Subscription, View,
};
use lexopt::prelude::*;
use memberlist_protocol::suspicion::Bounds;
use serde_json::{Value, json};
use tokio::sync::mpsc;

mod common;

use common::access::Access;

type Error = Box<dyn std::error::Error>;

/// Up to so many nodes each have a thread of their own, and lines of their own in the story.
const FEW: usize = 16;

/// How long a node may take over its farewell.
const FAREWELL: Duration = Duration::from_secs(5);

const USAGE: &str = "cluster [--nodes N (default 5)] [--profile local|lan|wan (default local)] \
                     [--key HEX] [--label NAME] [--rejoin-file PATH] [--json]";

struct Options {
    nodes: usize,
    profile: String,
    config: Config,
    access: Access,
    json: bool,
}

fn options() -> Result<Options, lexopt::Error> {
    let mut options = Options {
        nodes: 5,
        profile: "local".into(),
        config: Config::local(),
        access: Access::default(),
        json: false,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("nodes") => options.nodes = args.value()?.parse()?,
            Long("profile") => {
                options.profile = args.value()?.parse()?;
                options.config = common::profile(&options.profile)?;
            }
            Long("key") => options.access.set_key(args.value()?)?,
            Long("label") => options.access.label = args.value()?.parse()?,
            Long("rejoin-file") => options.access.rejoin_file = Some(args.value()?.parse()?),
            Long("json") => options.json = true,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if options.nodes < 3 {
        return Err(format!("--nodes is {}: it takes 3 to see one crash and one leave", options.nodes).into());
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
            return ExitCode::from(2);
        }
    };
    match play(&options).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// The four steps.
async fn play(options: &Options) -> Result<bool, Error> {
    let (config, last) = (&options.config, options.nodes - 1);
    // What gossip misses comes with an exchange of the full state.
    let news = config.join_timeout + 2 * config.push_pull_pace(options.nodes);
    let mut stage = Stage::set(options).await?;

    stage.begin("join", format!("{} join through n0", range(1, last)), news);
    let everybody = stage.names.clone();
    stage.join();
    let joined = stage.until("joined", &everybody).await;

    if options.access.key.is_some() || !options.access.label.is_empty() {
        stage.begin("stranger", "somebody without key and label tries to join".into(), config.join_timeout);
        stage.refuse_a_stranger(options).await?;
    }

    stage.begin("update", "n1 changes its metadata".into(), news);
    stage.nodes[1].set_meta("second edition".into()).await?;
    stage.until("updated", &[name(1)]).await;

    let victim = last;
    stage.begin("crash", format!("n{victim} is killed, without a word to the others"), crash_limit(options));
    stage.running.remove(&victim);
    stage.nodes[victim].shutdown().await;
    let crash = stage.until("dead", &[name(victim)]).await;
    stage.tell_why(victim);

    let leaver = last - 1;
    stage.begin("leave", format!("n{leaver} leaves, and stops"), news);
    stage.running.remove(&leaver);
    stage.nodes[leaver].leave(FAREWELL).await?;
    stage.nodes[leaver].shutdown().await;
    let left = stage.until("left", &[name(leaver)]).await;

    Ok(stage.close(joined, crash, left).await)
}

/// A crash is to be known everywhere within this time: each survivor probes each member at least once in
/// `2N - 1` intervals, the probe takes one, and then come the longest suspicion and some rounds of gossip.
fn crash_limit(Options { nodes, config, .. }: &Options) -> Duration {
    let rounds = u32::try_from(2 * nodes).unwrap_or(u32::MAX);
    config.probe_interval * rounds + Bounds::new(config, *nodes).max + 4 * config.gossip_interval
}

fn name(node: usize) -> String {
    format!("n{node}")
}

/// One line on standard output; the program ends when nobody reads it any more.
fn print(line: impl Display) {
    if writeln!(std::io::stdout(), "{line}").is_err() {
        std::process::exit(1);
    }
}

fn range(first: usize, last: usize) -> String {
    if last - first == 1 { format!("n{first} and n{last}") } else { format!("n{first} to n{last}") }
}

/// A subscriber of one node: notes when its node sees something.
struct Eye {
    node: usize,
    seen: mpsc::UnboundedSender<Seen>,
}

struct Seen {
    node: usize,
    at: Instant,
    event: MemberEvent,
}

impl Actor for Eye {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Eye {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let _ = self.seen.send(Seen { node: self.node, at: Instant::now(), event });
    }
}

/// One thing that happened, as several nodes see it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Fact {
    kind: &'static str,
    member: String,
    /// Who accuses, of a suspicion: a second accuser is another fact.
    by: String,
}

struct Sightings {
    nodes: BTreeSet<usize>,
    first: Instant,
    last: Instant,
}

/// When the first and the last of those who should had seen something, since the step began.
#[derive(Clone, Copy, Default)]
struct Times {
    first: Option<Duration>,
    all: Option<Duration>,
}

struct Step {
    name: &'static str,
    what: String,
    start: Instant,
    limit: Duration,
    times: Times,
}

/// The nodes, and the story so far.
struct Stage {
    nodes: Vec<Cluster>,
    names: Vec<String>,
    running: BTreeSet<usize>,
    seen: mpsc::UnboundedReceiver<Seen>,
    facts: BTreeMap<Fact, Sightings>,
    steps: Vec<Step>,
    json: bool,
    _subscriptions: Vec<Subscription>,
}

impl Stage {
    /// Starts the nodes, each with somebody who watches.
    async fn set(options: &Options) -> Result<Self, Error> {
        let n = options.nodes;
        // Two sockets each, a thread's own files, and a stream now and then at both ends.
        let files = 12 * n as u64 + 100;
        if rlimit::increase_nofile_limit(files).is_ok_and(|limit| limit < files) {
            eprintln!("fewer than {files} files may be open: raise the limit (ulimit -Hn)");
        }
        let cores = std::thread::available_parallelism().map_or(1, Into::into);
        let shared: Vec<Arbiter> = (0..if n > FEW { cores } else { 0 }).map(|_| Arbiter::new()).collect();
        let (sender, seen) = mpsc::unbounded_channel();
        let (mut nodes, mut subscriptions) = (Vec::new(), Vec::new());
        for i in 0..n {
            let mut builder =
                Cluster::builder(name(i)).config(options.config.clone()).bind(([127, 0, 0, 1], 0).into());
            builder = options.access.remember(options.access.grant(builder), &format!(".{}", name(i)));
            if n > FEW {
                builder = builder.arbiter(shared[i % cores].handle());
            }
            let node = builder.start().await?;
            let eye = Eye { node: i, seen: sender.clone() }.start();
            subscriptions.push(node.subscribe(eye.recipient(), Replay::None)?);
            nodes.push(node);
        }
        let threads = if n > FEW { cores } else { n };
        let stage = Self {
            nodes,
            names: (0..n).map(name).collect(),
            running: (0..n).collect(),
            seen,
            facts: BTreeMap::new(),
            steps: Vec::new(),
            json: options.json,
            _subscriptions: subscriptions,
        };
        stage.text(format_args!("{n} nodes on loopback, on {threads} threads, profile {}", options.profile));
        stage.object(json!({ "event": "started", "nodes": n, "profile": options.profile }));
        Ok(stage)
    }

    /// Prints a line for people.
    fn text(&self, line: impl Display) {
        if !self.json {
            print(line);
        }
    }

    /// Prints a line for programs.
    fn object(&self, object: Value) {
        if self.json {
            print(object);
        }
    }

    /// Prints a line of the story.
    fn say(&self, at: Duration, text: &str) {
        self.text(format_args!("{:>9.1} ms  {text}", ms(at)));
    }

    /// Prints a row of a table, unless it has so many that those in the middle are left out.
    fn row(&self, place: usize, rows: usize, text: impl Display) {
        match rows.checked_sub(FEW) {
            Some(more) if more > 0 && (FEW / 2..FEW / 2 + more).contains(&place) => {
                if place == FEW / 2 {
                    self.text(format_args!("   ({more} more)"));
                }
            }
            _ => self.text(text),
        }
    }

    fn begin(&mut self, name: &'static str, what: String, limit: Duration) {
        self.text(format_args!("\n{}. {what}", self.steps.len() + 1));
        self.object(json!({ "event": "step", "step": name, "what": what, "limit_ms": ms(limit) }));
        self.facts.clear();
        self.steps.push(Step { name, what, start: Instant::now(), limit, times: Times::default() });
    }

    fn step(&self) -> &Step {
        &self.steps[self.steps.len() - 1]
    }

    /// All nodes join through the first, at once.
    fn join(&self) {
        let seed = self.nodes[0].view().local().addr.to_string();
        for node in &self.nodes[1..] {
            let (node, seed) = (node.clone(), seed.clone());
            actix::spawn(async move {
                if let Err(error) = node.join(&[&seed]).await {
                    eprintln!("{} did not join: {error}", node.view().local().name());
                }
            });
        }
    }

    /// Somebody tries to join who has not been given what the nodes have. It is to be refused, and nothing is to
    /// change.
    async fn refuse_a_stranger(&mut self, options: &Options) -> Result<(), Error> {
        let before = self.nodes[0].view().rev();
        let stranger = Cluster::builder("stranger").config(options.config.clone());
        let stranger = stranger.bind(([127, 0, 0, 1], 0).into()).start().await?;
        let seed = self.nodes[0].view().local().addr.to_string();
        let joined = stranger.join(&[&seed]).await;
        let at = self.step().start.elapsed();
        stranger.shutdown().await;
        let unknown = self.nodes.iter().all(|node| node.view().get("stranger").is_none());
        match joined {
            Err(JoinError::Refused(why)) if unknown && self.nodes[0].view().rev() == before => {
                self.say(at, &format!("n0 refuses the stranger: {why}"));
                self.object(json!({ "event": "refused", "why": why.to_string() }));
                let times = Times { first: Some(at), all: Some(at) };
                if let Some(step) = self.steps.last_mut() {
                    step.times = times;
                }
            }
            other => self.say(at, &format!("the stranger was not refused: {other:?}")),
        }
        Ok(())
    }

    /// Tells what is seen until each running node has seen each of `members` become `kind`, or time is up.
    async fn until(&mut self, kind: &'static str, members: &[String]) -> Times {
        let (start, limit) = (self.step().start, self.step().limit);
        while !members.iter().all(|member| self.sightings(kind, member) == self.watchers(member)) {
            let left = (start + limit).saturating_duration_since(Instant::now());
            match actix::clock::timeout(left, self.seen.recv()).await {
                Ok(Some(seen)) => self.note(seen),
                _ => break,
            }
        }
        let wanted = |fact: &Fact| fact.kind == kind && members.contains(&fact.member);
        let seen = || self.facts.iter().filter(|(fact, _)| wanted(fact)).map(|(_, seen)| seen);
        let missing: usize =
            members.iter().map(|member| self.watchers(member) - self.sightings(kind, member)).sum();
        let times = Times {
            first: seen().map(|seen| seen.first - start).min(),
            all: seen().map(|seen| seen.last - start).max().filter(|_| missing == 0),
        };
        match times.all {
            Some(all) if self.is_crowd(kind) => self.say(all, "seen by all"),
            Some(_) => {}
            None => self.say(limit, &format!("time is up, and {missing} sightings are missing")),
        }
        let step = self.steps.len() - 1;
        self.steps[step].times = times;
        times
    }

    /// Whether there are too many of this kind to tell of each.
    fn is_crowd(&self, kind: &str) -> bool {
        kind == "joined" && self.nodes.len() > FEW
    }

    /// How many are to see what becomes of a member.
    fn watchers(&self, member: &str) -> usize {
        let runs = self.running.iter().any(|node| self.names[*node] == member);
        self.running.len() - usize::from(runs)
    }

    /// How many have seen that a member became `kind`.
    fn sightings(&self, kind: &'static str, member: &str) -> usize {
        let fact = Fact { kind, member: member.to_owned(), by: String::new() };
        self.facts.get(&fact).map_or(0, |seen| seen.nodes.len())
    }

    /// Takes in what a node has seen.
    fn note(&mut self, seen: Seen) {
        if !self.running.contains(&seen.node) {
            return;
        }
        let (kind, member, detail) = common::words(&seen.event);
        let since = ms(seen.at.saturating_duration_since(self.step().start));
        self.object(json!({
            "event": kind, "ms": since, "node": name(seen.node), "member": member, "detail": detail,
        }));
        let mut by = String::new();
        let (news, detail) = match &seen.event {
            MemberEvent::Joined { .. } => (format!("{member} joined"), String::new()),
            MemberEvent::Updated { .. } => (format!("{member} has {detail}"), String::new()),
            MemberEvent::Suspected { why, .. } => {
                by = why.by.to_string();
                (format!("{by} suspects {member}"), format!(" ({})", common::evidence(why.evidence)))
            }
            MemberEvent::Refuted { .. } => (format!("{member} says that it runs"), String::new()),
            MemberEvent::Left { .. } => (format!("{member} left"), String::new()),
            MemberEvent::Dead { why, .. } => {
                let confirmed = list(&why.confirmed_by);
                (format!("{member} is dead"), format!(" (accused by {}, confirmed by {confirmed})", why.by))
            }
            MemberEvent::Snapshot(view) => return self.catch_up(seen.node, seen.at, view),
            _ => (format!("{member} {kind} {detail}"), String::new()),
        };
        self.sighted(Fact { kind, member, by }, &news, &detail, seen.node, seen.at);
    }

    /// Events came faster than they were looked at, and a view stands for those that were left out.
    fn catch_up(&mut self, node: usize, when: Instant, view: &View) {
        for member in view.all() {
            let kind = match member.state {
                MemberState::Alive | MemberState::Suspect => "joined",
                MemberState::Dead => "dead",
                MemberState::Left => "left",
            };
            let updated = (!member.meta.is_empty()).then_some("updated");
            for kind in [Some(kind), updated].into_iter().flatten() {
                let fact = Fact { kind, member: member.name().into(), by: String::new() };
                self.sighted(fact, &format!("{} {kind}", member.name()), "", node, when);
            }
        }
    }

    /// Counts a sighting, and tells of the first and of the one that makes it known to all.
    fn sighted(&mut self, fact: Fact, news: &str, detail: &str, node: usize, when: Instant) {
        if self.names[node] == fact.member {
            return;
        }
        let (expected, start) = (self.watchers(&fact.member), self.step().start);
        let crowd = self.is_crowd(fact.kind);
        let new = Sightings { nodes: BTreeSet::new(), first: when, last: when };
        let seen = self.facts.entry(fact).or_insert(new);
        seen.last = when;
        let (again, count) = (!seen.nodes.insert(node), seen.nodes.len());
        if again || crowd {
            return;
        }
        let since = when.saturating_duration_since(start);
        if count == 1 {
            self.say(since, &format!("{news}{detail}, first seen by {}", name(node)));
        }
        if count == expected && expected > 1 {
            self.say(since, &format!("{news}, seen by all {expected}"));
        }
    }

    /// What each survivor knows of a death, by its own clock: an operator's first question.
    fn tell_why(&self, victim: usize) {
        let start = self.step().start;
        let mut known = Vec::new();
        for node in &self.running {
            let why = self.nodes[*node].why(&name(victim));
            let Some((accusation, Outcome::Dead(when))) = why.and_then(|mut why| why.accusations.pop())
            else {
                continue;
            };
            known.push((when.saturating_duration_since(start), *node, accusation));
        }
        known.sort_by_key(|(when, node, _)| (*when, *node));
        self.text(format_args!(
            "\n   {:<6} {:>11} {:>11}   {:<9} {:<14} on the evidence",
            "node", "heard", "held dead", "accuser", "confirmed by"
        ));
        for (place, (when, node, why)) in known.iter().enumerate() {
            let (heard, when) = (ms(why.at.saturating_duration_since(start)), ms(*when));
            let (node, by, evidence) = (name(*node), &*why.by, common::evidence(why.evidence));
            let confirmed: Vec<&str> = why.confirmed_by.iter().map(|by| &**by).collect();
            self.object(json!({
                "event": "why", "node": node, "member": name(victim), "heard_ms": heard, "dead_ms": when,
                "by": by, "confirmed_by": confirmed, "evidence": evidence,
            }));
            let confirmed = list(&why.confirmed_by);
            self.row(
                place,
                known.len(),
                format_args!(
                    "   {node:<6} {heard:>8.1} ms {when:>8.1} ms   {by:<9} {confirmed:<14} {evidence}"
                ),
            );
        }
    }

    /// The closing tables; then all nodes stop.
    async fn close(self, joined: Times, crash: Times, left: Times) -> bool {
        self.table_of_steps();
        self.table_of_nodes();
        for node in &self.nodes {
            node.shutdown().await;
        }
        let ok = self.steps.iter().all(|step| step.times.all.is_some());
        self.text(if ok { "\nAll was seen in time." } else { "\nNot all was seen in time." });
        self.object(json!({
            "event": "summary", "nodes": self.nodes.len(), "joined_ms": joined.all.map(ms),
            "crash_first_ms": crash.first.map(ms), "crash_all_ms": crash.all.map(ms),
            "leave_all_ms": left.all.map(ms), "ok": ok,
        }));
        ok
    }

    fn table_of_steps(&self) {
        let shown = |at: Option<Duration>| at.map_or("never".into(), |at| format!("{:.1} ms", ms(at)));
        self.text(format_args!(
            "\n{:<48} {:>12} {:>12} {:>12}",
            "step", "first seen", "seen by all", "limit"
        ));
        for Step { name, what, limit, times, .. } in &self.steps {
            let (first, all, within) = (shown(times.first), shown(times.all), shown(Some(*limit)));
            self.text(format_args!("{what:<48} {first:>12} {all:>12} {within:>12}"));
            self.object(json!({
                "event": "done", "step": name, "first_ms": times.first.map(ms), "all_ms": times.all.map(ms),
                "limit_ms": ms(*limit),
            }));
        }
    }

    fn table_of_nodes(&self) {
        self.text(format_args!(
            "\n{:<6} {:<21} {:<9} {:>6} {:>8} {:>8} {:>8}",
            "node", "address", "n0 says", "health", "sent", "received", "restarts"
        ));
        let view = self.nodes[0].view();
        for (place, (node, name)) in self.nodes.iter().zip(&self.names).enumerate() {
            let (addr, health, metrics) =
                (node.view().local().addr.to_string(), node.health(), node.metrics());
            let state = view.get(name).map_or("unknown".into(), |member| member.state.to_string());
            let (sent, received) = (metrics.packets_sent, metrics.packets_received);
            let restarts: u64 = metrics.restarts.values().sum();
            self.row(
                place,
                self.nodes.len(),
                format_args!(
                    "{name:<6} {addr:<21} {state:<9} {health:>6} {sent:>8} {received:>8} {restarts:>8}"
                ),
            );
            self.object(json!({
                "event": "node", "node": name, "addr": addr, "state": state, "health": health,
                "packets_sent": sent, "packets_received": received, "restarts": restarts,
            }));
        }
    }
}

/// Names, with commas between.
fn list(names: &[Arc<str>]) -> String {
    if names.is_empty() { "nobody".into() } else { names.join(", ") }
}

/// Milliseconds, to a tenth.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}
