//! Eight nodes in eight processes: one is killed, one is stopped and goes on, one is told to leave, one has
//! something to say; and each of the others must see it. Their standard output is what is looked at.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a test that fails")]

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use memberlist_tests::agents;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

const AGENTS: usize = 8;

/// Time for a piece of news to go round, and for a process to start or to end. What gossip misses comes with
/// an exchange of the full state, every 15 s.
const NEWS: Duration = Duration::from_secs(60);

/// Time in which a broadcast has gone round as far as it goes: ten rounds of gossip.
const ROUNDS: Duration = Duration::from_secs(1);

/// Time for a crash to be known everywhere with the settings for one host: 2 x 8 probe intervals of 1 s, a
/// suspicion of at most 18 s, 4 rounds of gossip; and the same again for a machine that is slow.
const CRASH: Duration = Duration::from_secs(70);

/// One process. It is killed when this is dropped, if it still runs.
struct Agent {
    child: Child,
    input: ChildStdin,
}

impl Agent {
    fn start(program: &Path, number: usize, seed: Option<&str>, lines: Sender<(usize, Value)>) -> Self {
        let mut command = Command::new(program);
        command.args(["--name", &name(number), "--profile", "local", "--json", "--bind", "127.0.0.1:0"]);
        if let Some(seed) = seed {
            command.args(["--join", seed]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let line = serde_json::from_str(&line).unwrap_or_else(|_| panic!("no JSON: {line}"));
                if lines.send((number, line)).is_err() {
                    return;
                }
            }
        });
        Self { child, input }
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(number: usize) -> String {
    format!("agent-{number}")
}

/// What the agents have printed so far, in the order in which it came.
struct Log {
    lines: Receiver<(usize, Value)>,
    read: Vec<(usize, Value)>,
}

impl Log {
    /// Waits for a line of each agent of `who` for which `wanted` holds, beginning at line `from` of the log.
    fn wait(
        &mut self,
        what: &str,
        from: usize,
        who: impl IntoIterator<Item = usize>,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) {
        let start = Instant::now();
        let missing = self.missing(from, who, within, wanted);
        let since: Vec<_> =
            self.read[from..].iter().map(|(agent, line)| format!("{agent}: {line}")).collect();
        assert!(missing.is_empty(), "{missing:?} did not see that {what}; since then:\n{}", since.join("\n"));
        println!("{what}: seen after {:?}", start.elapsed());
    }

    /// Those who have not printed such a line when the time is over.
    fn missing(
        &mut self,
        from: usize,
        who: impl IntoIterator<Item = usize>,
        within: Duration,
        wanted: impl Fn(&Value) -> bool,
    ) -> BTreeSet<usize> {
        let (mut missing, deadline): (BTreeSet<_>, _) = (who.into_iter().collect(), Instant::now() + within);
        for next in from.. {
            while self.read.len() <= next && !missing.is_empty() {
                match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                    Ok(line) => self.read.push(line),
                    Err(_) => return missing,
                }
            }
            match self.read.get(next) {
                Some((agent, line)) if wanted(line) => drop(missing.remove(agent)),
                Some(_) => {}
                None => break,
            }
        }
        missing
    }

    fn drain(&mut self) {
        self.read.extend(self.lines.try_iter());
    }

    /// Where the lines that come from now on begin.
    fn now(&mut self) -> usize {
        self.drain();
        self.read.len()
    }

    /// What the agents said of members, of this kind: who, and of whom.
    fn all(&self, kind: &str) -> impl Iterator<Item = (usize, &str)> {
        let of_kind = self.read.iter().filter(move |(_, line)| line["event"] == kind);
        of_kind.map(|(agent, line)| (*agent, line["member"].as_str().unwrap_or_default()))
    }
}

/// An event of one of these kinds, about this agent.
fn about(number: usize, kinds: &'static [&'static str]) -> impl Fn(&Value) -> bool {
    let name = name(number);
    move |line| kinds.iter().any(|kind| line["event"] == *kind) && line["member"] == *name
}

fn others(who: impl IntoIterator<Item = usize>, than: usize) -> Vec<usize> {
    who.into_iter().filter(|agent| *agent != than).collect()
}

#[test]
fn eight_processes_see_a_crash_a_pause_a_farewell_and_a_broadcast() {
    let program = agents::program();
    let (sender, lines) = mpsc::channel();
    let mut log = Log { lines, read: Vec::new() };
    let everybody = 0..AGENTS;

    let mut agents = vec![Agent::start(program, 0, None, sender.clone())];
    log.wait("agent-0 has started", 0, [0], NEWS, |line| line["event"] == "started");
    let seed = log.read[0].1["addr"].as_str().unwrap().to_owned();
    for number in 1..AGENTS {
        agents.push(Agent::start(program, number, Some(&seed), sender.clone()));
    }
    for number in everybody.clone() {
        let all = others(everybody.clone(), number);
        log.wait(&format!("agent-{number} joined"), 0, all, NEWS, about(number, &["joined"]));
    }

    // One broadcast reaches most, not all: the line is said again until everybody has heard it.
    let (speaker, from) = (2, log.now());
    let heard = |line: &Value| {
        line["event"] == "broadcast" && line["from"] == "agent-2" && line["text"] == "good morning"
    };
    let (mut deaf, deadline) = (others(everybody.clone(), speaker), Instant::now() + NEWS);
    while !deaf.is_empty() {
        assert!(Instant::now() < deadline, "{deaf:?} did not hear agent-2");
        writeln!(agents[speaker].input, "good morning").unwrap();
        deaf = log.missing(from, deaf, ROUNDS, heard).into_iter().collect();
    }

    // Stopped until everybody suspects it, and once more until everybody holds it for dead.
    let (sleeper, watching) = (5, others(everybody.clone(), 5));
    let rounds: [(&[&str], &[&str]); 2] =
        [(&["suspected", "dead"], &["refuted", "joined"]), (&["dead"], &["joined"])];
    for (gone, back) in rounds {
        let from = log.now();
        agents[sleeper].signal(Signal::SIGSTOP);
        log.wait("agent-5 is stopped", from, watching.clone(), CRASH, about(sleeper, gone));
        let from = log.now();
        agents[sleeper].signal(Signal::SIGCONT);
        log.wait("agent-5 goes on", from, watching.clone(), NEWS, about(sleeper, back));
    }

    // The one that was stopped takes part in this again. It lasts longer than the suspicions which that one
    // might have had of others on waking.
    let (victim, from) = (7, log.now());
    agents[victim].signal(Signal::SIGKILL);
    let survivors = others(everybody, victim);
    log.wait("agent-7 was killed", from, survivors.clone(), CRASH, about(victim, &["dead"]));

    let (leaver, from) = (3, log.now());
    agents[leaver].signal(Signal::SIGTERM);
    let rest = others(survivors, leaver);
    log.wait("agent-3 left", from, rest.clone(), NEWS, about(leaver, &["left"]));

    for number in &rest {
        agents[*number].signal(Signal::SIGTERM);
    }
    for number in rest.into_iter().chain([leaver]) {
        let status = agents[number].child.wait().unwrap();
        assert_eq!(status.code(), Some(0), "agent-{number}");
    }
    // The readers end with the processes, and the channel with them.
    drop(sender);
    log.read.extend(log.lines.iter());
    let wrong: Vec<_> = log
        .all("dead")
        .filter(|(agent, of)| *of != name(victim) && (*of != name(sleeper) || *agent == sleeper))
        .collect();
    assert_eq!(wrong, [], "held for dead although they ran");
}
