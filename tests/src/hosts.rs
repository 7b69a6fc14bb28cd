//! An agent on each host of a network that can be cut, and what they say of each other.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead, BufReader, Read, Write as _},
    ops::RangeInclusive,
    process::{Child, ChildStdin, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{agents, netns::Network};

/// Time for all to start and meet; the network is whole, the machine may be slow.
const MEET: Duration = Duration::from_secs(60);

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

pub fn name(host: usize) -> String {
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
pub enum Held {
    /// Alive.
    Alive,
    /// Suspected.
    Suspect,
    /// Dead.
    Dead,
}

/// All hosts with their agents, and what these have said.
pub struct Cluster {
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
    pub fn meet(network: &str, size: usize) -> Self {
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
    pub fn others(&self, host: usize) -> impl Iterator<Item = usize> + Clone + use<> {
        self.all().filter(move |other| *other != host)
    }

    pub fn hold(&self, who: impl IntoIterator<Item = usize>, whom: usize, held: Held) -> bool {
        let name = name(whom);
        who.into_iter()
            .filter(|who| *who != whom)
            .all(|who| self.held.get(&(who, name.clone())) == Some(&held))
    }

    /// Whether all hold all for alive.
    pub fn agree(&self) -> bool {
        self.all().all(|host| self.hold(self.all(), host, Held::Alive))
    }

    /// Runs a command of the script.
    pub fn netns(&self, words: &str) {
        self.network.run(words);
        println!("{:7.2} s  netns {words}", self.start.elapsed().as_secs_f64());
    }

    /// Each of these hosts has something to say to all, five times within as many seconds.
    pub fn say(&mut self, hosts: &[usize]) {
        for _ in 0..5 {
            for host in hosts {
                writeln!(self.agents[host - 1].input, "this is host {host}").unwrap();
            }
            self.watch(Duration::from_secs(1));
        }
    }

    /// Whether one of these has heard that one, beginning at a line of the story.
    pub fn heard(&self, from: usize, who: impl IntoIterator<Item = usize>, whom: usize) -> bool {
        let (who, whom): (Vec<_>, _) = (who.into_iter().collect(), name(whom));
        self.story[from..].iter().any(|line| match &line.what {
            What::Said(said) => {
                said["event"] == "broadcast" && said["from"] == *whom && who.contains(&line.host)
            }
            What::Logged(_) => false,
        })
    }

    /// Waits until something holds.
    pub fn wait(&mut self, what: &str, within: Duration, holds: impl Fn(&Self) -> bool) {
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

    /// Where the story goes on from here.
    pub fn now(&self) -> usize {
        self.story.len()
    }

    /// Lets time pass. Returns where in the story it begins.
    pub fn watch(&mut self, time: Duration) -> usize {
        let (from, deadline) = (self.story.len(), Instant::now() + time);
        while self.hear(deadline) {}
        from
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
    pub fn said(&self, from: usize, kind: &str) -> Vec<(usize, &str, &str)> {
        let of_kind = self.story[from..].iter().filter_map(|line| match &line.what {
            What::Said(said) if said["event"] == kind => {
                Some((line.host, said["member"].as_str()?, said["detail"].as_str()?))
            }
            _ => None,
        });
        of_kind.collect()
    }

    /// Whether one of these has logged that a member, one of those, answers over streams only.
    pub fn lost_udp(&self, who: &[usize], whom: &[usize]) -> bool {
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
    pub fn told(&self) -> String {
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
