//! Hosts that lose each other: one agent each, in a network namespace of its own, with the settings for a LAN.
//! The networks are built, cut and mended by the script `netns` of this directory.
//!
//! It happens when it is asked for, by `NETNS=1`, as root; what stands in the way is printed, and is a failure
//! with `NETNS=require`.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a test that fails")]

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write as _},
    ops::RangeInclusive,
    process::{Child, ChildStdin, Command, Stdio},
    sync::{
        OnceLock,
        mpsc::{self, Receiver, Sender},
    },
    thread,
    time::{Duration, Instant},
};

use actix_memberlist::{Config, DEFAULT_PORT};
use memberlist_protocol::suspicion::Bounds;
use memberlist_tests::agents;
use serde_json::Value;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/netns");

/// What the script says when a machine cannot.
const CANNOT: i32 = 77;

/// Time for all to start and meet; the network is whole, the machine may be slow.
const MEET: Duration = Duration::from_secs(60);

/// What is promised: from the network's return until all agree.
const HEAL: Duration = Duration::from_secs(30);

/// How long they must go on to agree.
const WATCH: Duration = Duration::from_secs(10);

/// A cut lasts this long after all hold each other for dead: until nobody speaks to the dead out of habit.
fn silence() -> Duration {
    Config::lan().gossip_to_the_dead_time + Duration::from_secs(5)
}

/// From a crash until all know of it, at most: the limit of `timing.rs`.
fn crash(hosts: usize) -> Duration {
    let config = Config::lan();
    let probes = config.probe_interval * (2 * u32::try_from(hosts).unwrap());
    probes + Bounds::new(&config, hosts).max + 4 * config.gossip_interval
}

/// Whether networks may be built here. If not, the reason is printed, once.
fn allowed() -> bool {
    static ALLOWED: OnceLock<bool> = OnceLock::new();
    *ALLOWED.get_or_init(|| {
        let asked = std::env::var("NETNS").unwrap_or_default();
        let left_out = |why: &str| {
            assert!(asked != "require", "namespaces: {why}");
            // Not `eprintln!`, which nobody sees of a test that passes.
            let _ = writeln!(std::io::stderr(), "namespaces: left out; {why}");
            false
        };
        if asked.is_empty() || asked == "0" {
            return left_out("with NETNS=1, as root, networks are built on this machine, cut and mended");
        }
        let check = Command::new(SCRIPT).arg("check").output().unwrap();
        match check.status.code() {
            Some(0) => {
                // What a run before this one may have left behind, if it was killed.
                assert!(Command::new(SCRIPT).arg("sweep").status().unwrap().success());
                true
            }
            Some(CANNOT) => left_out(String::from_utf8_lossy(&check.stdout).trim()),
            _ => panic!("the script fails: {check:?}"),
        }
    })
}

/// A set of hosts. They go when this is dropped, and also when this process dies: the script waits for that.
struct Network {
    id: String,
    holder: Child,
}

impl Network {
    fn build(name: &str, hosts: usize) -> Self {
        let id = format!("{}-{name}", std::process::id());
        let mut holder = Command::new(SCRIPT)
            .args(["hold", &hosts.to_string()])
            .env("NETNS_ID", &id)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut ready).unwrap();
        let network = Self { id, holder };
        assert_eq!(ready, "ready\n", "the script has built no network");
        network
    }

    fn script(&self) -> Command {
        let mut command = Command::new(SCRIPT);
        command.env("NETNS_ID", &self.id);
        command
    }

    /// A command of the script, in words.
    fn run(&self, words: &str) {
        let status = self.script().args(words.split(' ')).status().unwrap();
        assert!(status.success(), "netns {words}");
    }

    fn addr(&self, host: usize) -> String {
        let output = self.script().args(["addr", &host.to_string()]).output().unwrap();
        format!("{}:{DEFAULT_PORT}", String::from_utf8(output.stdout).unwrap().trim())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// One process on one host. It is killed when this is dropped.
struct Agent {
    child: Child,
    /// A line of it is broadcast.
    input: ChildStdin,
}

impl Agent {
    fn start(network: &Network, host: usize, lines: &Sender<Line>) -> Self {
        let mut child = network
            .script()
            .args(["exec", &host.to_string()])
            .arg(agents::program())
            .args(arguments(network, host))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let json = |line: String| serde_json::from_str(&line).map_or(What::Logged(line), What::Said);
        read(host, child.stdout.take().unwrap(), lines.clone(), json);
        read(host, child.stderr.take().unwrap(), lines.clone(), What::Logged);
        let input = child.stdin.take().unwrap();
        Self { child, input }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What an agent is told; all of it stands here.
fn arguments(network: &Network, host: usize) -> Vec<String> {
    let (name, bind) = (name(host), network.addr(host));
    let mut words = vec!["--name", &name, "--bind", &bind, "--profile", "lan", "--json", "--plaintext"];
    let seed = network.addr(1);
    if host != 1 {
        words.extend(["--join", &seed]);
    }
    words.into_iter().map(str::to_owned).collect()
}

fn name(host: usize) -> String {
    format!("host-{host}")
}

fn read(
    host: usize,
    from: impl Read + Send + 'static,
    lines: Sender<Line>,
    what: impl Fn(String) -> What + Send + 'static,
) {
    thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if lines.send(Line { host, at: Instant::now(), what: what(line) }).is_err() {
                return;
            }
        }
    });
}

struct Line {
    host: usize,
    at: Instant,
    what: What,
}

enum What {
    /// An event.
    Said(Value),
    /// A line of the log.
    Logged(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Held {
    Alive,
    Suspect,
    Dead,
}

/// All hosts with their agents, and what these have said.
struct Cluster {
    // The agents go before their hosts.
    agents: Vec<Agent>,
    network: Network,
    size: usize,
    lines: Receiver<Line>,
    start: Instant,
    story: Vec<Line>,
    /// Who holds whom for what.
    held: BTreeMap<(usize, String), Held>,
}

impl Cluster {
    /// So many agents that have met.
    fn meet(network: &str, size: usize) -> Self {
        let network = Network::build(network, size);
        let (sender, lines) = mpsc::channel();
        let agents = (1..=size).map(|host| Agent::start(&network, host, &sender)).collect();
        let (start, story, held) = (Instant::now(), Vec::new(), BTreeMap::new());
        let mut cluster = Self { agents, network, size, lines, start, story, held };
        cluster.wait("all have met", MEET, Cluster::agree);
        cluster
    }

    fn all(&self) -> RangeInclusive<usize> {
        1..=self.size
    }

    /// All but one.
    fn others(&self, host: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        self.all().filter(move |other| *other != host)
    }

    fn hold(&self, who: impl IntoIterator<Item = usize>, whom: usize, held: Held) -> bool {
        let name = name(whom);
        who.into_iter()
            .filter(|who| *who != whom)
            .all(|who| self.held.get(&(who, name.clone())) == Some(&held))
    }

    /// Whether all hold all for alive.
    fn agree(&self) -> bool {
        self.all().all(|host| self.hold(self.all(), host, Held::Alive))
    }

    /// Runs a command of the script.
    fn netns(&self, words: &str) {
        self.network.run(words);
        println!("{:7.2} s  netns {words}", self.start.elapsed().as_secs_f64());
    }

    /// Each of these hosts has something to say to all, five times within as many seconds.
    fn say(&mut self, hosts: &[usize]) {
        for _ in 0..5 {
            for host in hosts {
                writeln!(self.agents[host - 1].input, "this is host {host}").unwrap();
            }
            self.watch(Duration::from_secs(1));
        }
    }

    /// Whether one of these has heard that one, beginning at a line of the story.
    fn heard(&self, from: usize, who: impl IntoIterator<Item = usize>, whom: usize) -> bool {
        let (who, whom): (Vec<_>, _) = (who.into_iter().collect(), name(whom));
        self.story[from..].iter().any(|line| match &line.what {
            What::Said(said) => {
                said["event"] == "broadcast" && said["from"] == *whom && who.contains(&line.host)
            }
            What::Logged(_) => false,
        })
    }

    /// Waits until something holds.
    fn wait(&mut self, what: &str, within: Duration, holds: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        let deadline = start + within;
        while !holds(self) {
            assert!(self.hear(deadline), "within {within:?} it is not so that {what}:\n{}", self.told());
        }
        println!(
            "{:7.2} s  {what}: after {:.2?} of at most {within:.2?}",
            self.start.elapsed().as_secs_f64(),
            start.elapsed()
        );
    }

    /// Lets time pass. Returns where in the story it begins.
    fn watch(&mut self, time: Duration) -> usize {
        let (from, deadline) = (self.story.len(), Instant::now() + time);
        while self.hear(deadline) {}
        from
    }

    /// The network is whole again: soon all agree, and go on to.
    fn heal(&mut self) {
        self.wait("all agree", HEAL, Self::agree);
        let from = self.watch(WATCH);
        assert_eq!(self.said(from, "dead"), [], "{}", self.told());
    }

    /// Takes the next line in. None before the deadline: false.
    fn hear(&mut self, deadline: Instant) -> bool {
        let Ok(line) = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) else {
            return false;
        };
        if let What::Said(said) = &line.what {
            let held = match said["event"].as_str().unwrap_or_default() {
                "joined" | "refuted" => Some(Held::Alive),
                "suspected" => Some(Held::Suspect),
                "dead" => Some(Held::Dead),
                // Events were lost, and what is held here is worth nothing.
                "snapshot" => panic!("host {} could not keep up", line.host),
                _ => None,
            };
            if let Some(held) = held {
                self.held.insert((line.host, said["member"].as_str().unwrap().to_owned()), held);
            }
        }
        self.story.push(line);
        true
    }

    /// Who has said an event of this kind, of whom, and why, beginning at a line of the story.
    fn said(&self, from: usize, kind: &str) -> Vec<(usize, &str, &str)> {
        let of_kind = self.story[from..].iter().filter_map(|line| match &line.what {
            What::Said(said) if said["event"] == kind => {
                Some((line.host, said["member"].as_str()?, said["detail"].as_str()?))
            }
            _ => None,
        });
        of_kind.collect()
    }

    /// Whether one of these has logged that a member, one of those, answers over streams only.
    fn lost_udp(&self, who: &[usize], whom: &[usize]) -> bool {
        let names: Vec<_> = whom.iter().map(|host| name(*host)).collect();
        self.story.iter().any(|line| match &line.what {
            What::Logged(text) => {
                who.contains(&line.host)
                    && text.contains("check that UDP gets through")
                    && names.iter().any(|name| text.contains(name))
            }
            What::Said(_) => false,
        })
    }

    /// The story, for whoever has to find out.
    fn told(&self) -> String {
        let mut text = String::new();
        for line in &self.story {
            let at = line.at.saturating_duration_since(self.start).as_secs_f64();
            let _ = match &line.what {
                // The list that each prints now and then.
                What::Said(said) if said["event"] == "members" => Ok(()),
                What::Said(said) => writeln!(text, "{at:7.2} s  {}: {said}", line.host),
                What::Logged(said) => writeln!(text, "{at:7.2} s  {}: {said}", line.host),
            };
        }
        text
    }
}

#[test]
fn halves_that_held_each_other_for_dead_agree_within_30_s_of_the_networks_return() {
    if !allowed() {
        return;
    }
    let mut cluster = Cluster::meet("halves", 16);
    let halves = [1..=8, 9..=16];
    cluster.netns("cut 1-8 9-16");
    // Half of all are gone at once: fewer are left to confirm it, and whoever finds nobody doubts itself first.
    cluster.wait("each half holds the other for dead", 2 * crash(16), |cluster| {
        let [one, two] = &halves;
        one.clone().all(|host| cluster.hold(two.clone(), host, Held::Dead))
            && two.clone().all(|host| cluster.hold(one.clone(), host, Held::Dead))
    });
    cluster.watch(silence());
    for half in &halves {
        for host in half.clone() {
            assert!(cluster.hold(half.clone(), host, Held::Alive), "host {host}:\n{}", cluster.told());
        }
    }
    cluster.netns("mend");
    cluster.heal();
}

/// What is lost on its way.
#[derive(PartialEq)]
enum Lost {
    ToTheOthers,
    FromTheOthers,
    All,
}

/// One host of six loses the others in the way of these commands, and finds them again.
fn lose(network: &str, lost: &Lost, cut: &str, mend: &str) {
    if !allowed() {
        return;
    }
    let mut cluster = Cluster::meet(network, 6);
    let others = cluster.others(3);
    cluster.netns(cut);
    let (from, limit) = (cluster.story.len(), Instant::now() + crash(6));
    cluster.say(&[1, 3]);
    let left = limit.saturating_duration_since(Instant::now());
    cluster
        .wait("the others hold host 3 for dead", left, |cluster| cluster.hold(others.clone(), 3, Held::Dead));
    cluster.watch(silence());
    // The cut was this one.
    assert_eq!(cluster.heard(from, [3], 1), *lost == Lost::ToTheOthers, "{}", cluster.told());
    assert_eq!(cluster.heard(from, others, 3), *lost == Lost::FromTheOthers, "{}", cluster.told());
    // Even if they hear what it says of them.
    let wrong = |(who, whom, _): &(usize, &str, &str)| *who != 3 && *whom != name(3);
    assert!(!cluster.said(from, "dead").iter().any(wrong), "of each other:\n{}", cluster.told());
    cluster.netns(mend);
    cluster.heal();
    // What it has come to believe may be heard for a moment. The others saw each other all the time.
    let own = |said: &(usize, &str, &str)| wrong(said) && !said.2.starts_with("by host-3,");
    assert!(!cluster.said(from, "dead").iter().any(own), "by each other:\n{}", cluster.told());
}

#[test]
fn a_host_that_hears_and_is_not_heard_is_dead_to_the_others_and_soon_back() {
    lose("mute", &Lost::ToTheOthers, "cut 3 1-6 --one-way", "mend");
}

#[test]
fn a_host_that_is_heard_and_does_not_hear_is_dead_to_the_others_and_takes_nobody_with_it() {
    lose("deaf", &Lost::FromTheOthers, "cut 1-6 3 --one-way", "mend");
}

#[test]
fn a_host_whose_cable_is_pulled_is_dead_to_the_others_and_soon_back() {
    lose("cable", &Lost::All, "unplug 3", "plug 3");
}

#[test]
fn without_udp_round_a_host_and_between_two_nobody_is_suspected() {
    if !allowed() {
        return;
    }
    let mut cluster = Cluster::meet("udp", 6);
    cluster.netns("cut 3 1-6 --udp");
    cluster.netns("cut 1 2 --udp");
    let from = cluster.watch(Duration::from_secs(30));
    for kind in ["suspected", "dead"] {
        assert_eq!(cluster.said(from, kind), [], "{kind}:\n{}", cluster.told());
    }
    // The cut was one.
    assert!(cluster.lost_udp(&[3], &[1, 2, 4, 5, 6]), "{}", cluster.told());
    assert!(cluster.lost_udp(&[1, 2, 4, 5, 6], &[3]), "{}", cluster.told());
}
