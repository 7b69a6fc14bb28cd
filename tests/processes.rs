//! Two nodes in two processes that tell and ask each other while the network between them stalls, breaks in the middle of
//! messages, closes by halves and is late, and while one of them is stopped and killed. What was taken, what became of it
//! and what was heard has to fit together. Both print what happens to them (`src/bin/talker.rs`), and what happens between
//! them is done by a proxy in this process (`src/proxy.rs`).

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a test that fails")]

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::SocketAddr,
    process::{Child, ChildStdin, Command, Stdio},
    sync::mpsc::{self, Receiver, Sender},
    thread,
    time::{Duration, Instant},
};

use memberlist_tests::proxy::{Proxy, Strike};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};

/// Time for anything that does happen, on a slow machine. Nothing takes a part of it that is worth mentioning, but for
/// what the rules of links and of membership take: 20 s at most.
const SOON: Duration = Duration::from_secs(120);

/// One process. It is killed when this is dropped, if it still runs.
struct Talker {
    child: Child,
    input: ChildStdin,
}

impl Talker {
    fn start(node: usize, proxy: &Proxy, lines: &Sender<(usize, Value)>) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_talker"));
        command.args([name(node), &proxy.door(node).to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let lines = lines.clone();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                // Of one that is killed the last line may be torn.
                let Ok(line) = serde_json::from_str(&line) else { break };
                if lines.send((node, line)).is_err() {
                    return;
                }
            }
            let _ = lines.send((node, json!({"event": "ended output"})));
        });
        Self { child, input }
    }

    fn order(&mut self, order: &Value) {
        writeln!(self.input, "{order}").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }
}

impl Drop for Talker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn name(node: usize) -> &'static str {
    ["ann", "bob"][node]
}

/// One message.
#[derive(Debug, Default)]
struct Entry {
    kind: String,
    /// Which node was told to say it.
    by: usize,
    /// The run that it is meant for; none if it was refused.
    to: Option<String>,
    /// What its sender was told, each time.
    outcomes: Vec<String>,
    heard: usize,
}

/// What both have said, and what of it must not be.
#[derive(Default)]
struct Book {
    entries: BTreeMap<u64, Entry>,
    /// The last one that each run has heard of another, by its kind.
    last: BTreeMap<(String, String, String), u64>,
    faults: Vec<String>,
    /// Runs whose process was killed: what they had taken may be lost.
    killed: Vec<String>,
    ended: usize,
}

impl Book {
    fn note(&mut self, line: &Value) {
        let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
        let number = line["number"].as_u64().unwrap_or(u64::MAX);
        match line["event"].as_str().unwrap() {
            "taken" => {
                let entry = self.entries.entry(number).or_default();
                (entry.kind, entry.to) = (word("kind"), Some(word("to")));
            }
            "ended" => {
                let entry = self.entries.entry(number).or_default();
                let outcome = format!("{} {}", word("how"), word("cause"));
                if !entry.outcomes.is_empty() {
                    self.faults.push(format!("two outcomes: {number}: {entry:?}, {outcome}"));
                }
                entry.outcomes.push(outcome);
                self.ended += 1;
            }
            "heard" => {
                let (at, from, kind) = (word("at"), word("from"), word("kind"));
                let entry = self.entries.entry(number).or_default();
                entry.heard += 1;
                if entry.heard > 1 {
                    self.faults.push(format!("a duplicate: {number} at {at}: {entry:?}"));
                }
                if entry.to.as_ref().is_some_and(|to| *to != at) {
                    self.faults.push(format!("at another run: {number} at {at}: {entry:?}"));
                }
                let last = self.last.insert((at.clone(), from, kind), number);
                if last.is_some_and(|last| last > number) {
                    self.faults.push(format!("out of order: {number} at {at} after {last:?}"));
                }
            }
            "wrong" => self.faults.push(format!("{line}")),
            _ => {}
        }
    }

    /// What does not fit when nothing is under way any more.
    fn audit(&mut self) -> Vec<String> {
        let mut faults = std::mem::take(&mut self.faults);
        for (number, entry) in &self.entries {
            let Some(outcome) = entry.outcomes.first() else {
                faults.push(format!("no outcome: {number}: {entry:?}"));
                continue;
            };
            let killed = entry.to.as_ref().is_some_and(|to| self.killed.contains(to));
            if outcome.starts_with("ok") && entry.heard != 1 && !killed {
                faults.push(format!("ok and not heard: {number}: {entry:?}"));
            }
            if (outcome.starts_with("never") || outcome.starts_with("refused")) && entry.heard > 0 {
                faults.push(format!("never, and heard: {number}: {entry:?}"));
            }
        }
        faults
    }

    fn counts(&self) -> BTreeMap<&str, usize> {
        let mut counts = BTreeMap::new();
        for outcome in self.entries.values().flat_map(|entry| &entry.outcomes) {
            *counts.entry(outcome.as_str()).or_default() += 1;
        }
        counts
    }
}

/// Two processes and what is between them.
struct Pair {
    proxy: Proxy,
    nodes: [Option<Talker>; 2],
    ids: [String; 2],
    sender: Sender<(usize, Value)>,
    lines: Receiver<(usize, Value)>,
    /// All that was said.
    read: Vec<(usize, Value)>,
    book: Book,
    /// Messages that were ordered.
    numbers: u64,
    start: Instant,
}

impl Pair {
    fn meet() -> Self {
        let (sender, lines) = mpsc::channel();
        let (proxy, nodes, ids) = (Proxy::open(), [None, None], Default::default());
        let (read, book, start) = (Vec::new(), Book::default(), Instant::now());
        let mut pair = Self { proxy, nodes, ids, sender, lines, read, book, numbers: 0, start };
        pair.begin(0);
        pair.begin(1);
        pair.join();
        pair
    }

    /// Starts a process, and leads to it whoever comes to its door.
    fn begin(&mut self, node: usize) {
        let from = self.read.len();
        self.nodes[node] = Some(Talker::start(node, &self.proxy, &self.sender));
        let bound = self.wait(from, "it is bound", |at, line| at == node && line["event"] == "bound");
        self.proxy.lead(node, bound["addr"].as_str().unwrap().parse::<SocketAddr>().unwrap());
        let started = self.wait(from, "it has started", |at, line| at == node && line["event"] == "started");
        self.ids[node] = started["id"].as_str().unwrap().to_owned();
    }

    /// The second joins the first, until it has.
    fn join(&mut self) {
        let seed = self.proxy.door(0).to_string();
        loop {
            let at = self.read.len();
            self.order(1, &json!({"do": "join", "seed": seed}));
            if self.wait(at, "it has tried", |_, line| line["event"] == "join")["ok"] == true {
                break;
            }
        }
        self.know();
    }

    /// Waits until each holds the other for alive, as far as they have said.
    fn know(&mut self) {
        let deadline = Instant::now() + SOON;
        while !(self.holds(0) && self.holds(1)) {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take(line),
                Err(_) => panic!("they do not know each other; {}", self.story()),
            }
        }
    }

    /// Whether a node holds the other, in its present run, for alive.
    fn holds(&self, node: usize) -> bool {
        let other = self.ids[1 - node].as_str();
        let of_other =
            |line: &Value| line["id"] == other && (line["event"] == "joined" || line["event"] == "dead");
        let last = self.read.iter().rev().find(|(at, line)| *at == node && of_other(line));
        last.is_some_and(|(_, line)| line["event"] == "joined")
    }

    /// A process is killed. What it had to say has no outcome: nobody is there to be told.
    fn kill(&mut self, node: usize) {
        let from = self.read.len();
        self.talker(node).signal(Signal::SIGKILL);
        self.wait(from, "it has ended", |at, line| at == node && line["event"] == "ended output");
        self.nodes[node] = None;
        self.book.killed.push(self.ids[node].clone());
        for entry in
            self.book.entries.values_mut().filter(|entry| entry.by == node && entry.outcomes.is_empty())
        {
            entry.outcomes.push("its sender was killed".into());
            self.book.ended += 1;
        }
    }

    fn talker(&mut self, node: usize) -> &mut Talker {
        self.nodes[node].as_mut().unwrap()
    }

    fn order(&mut self, node: usize, order: &Value) {
        self.talker(node).order(order);
    }

    /// One tells the other so much: some of each lane, and questions among it.
    fn talk(&mut self, from: usize, rounds: u64) {
        for _ in 0..rounds {
            let words =
                [("tell", 1, 20, 2500), ("tell", 0, 10, 700), ("ask", 1, 3, 100), ("tell", 2, 2, 100_000)];
            for (what, lane, count, size) in words {
                self.say(from, what, lane, count, size);
            }
        }
    }

    /// One says so many things of one kind. Says which number comes first.
    fn say(&mut self, from: usize, what: &str, lane: u64, count: u64, size: u64) -> u64 {
        let (first, to) = (self.numbers, name(1 - from));
        self.numbers += count;
        for number in first..self.numbers {
            self.book.entries.entry(number).or_default().by = from;
        }
        let order = json!({"do": what, "to": to, "lane": lane, "first": first, "count": count, "size": size});
        self.order(from, &order);
        first
    }

    /// Both talk.
    fn both_talk(&mut self, rounds: u64) {
        self.talk(0, rounds);
        self.talk(1, rounds);
    }

    fn take(&mut self, line: (usize, Value)) {
        self.book.note(&line.1);
        self.read.push(line);
    }

    /// Waits for a line, from there on.
    fn wait(&mut self, from: usize, what: &str, wanted: impl Fn(usize, &Value) -> bool) -> Value {
        let deadline = Instant::now() + SOON;
        let mut next = from;
        loop {
            while let Some((node, line)) = self.read.get(next) {
                if wanted(*node, line) {
                    return line.clone();
                }
                next += 1;
            }
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take(line),
                Err(_) => panic!("it does not come to that {what}; {}", self.story()),
            }
        }
    }

    /// Waits until each message has its outcome.
    fn settle(&mut self, what: &str) {
        let deadline = Instant::now() + SOON;
        while self.book.ended < self.numbers as usize {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => self.take(line),
                Err(_) => panic!("{what}: not all is settled; {}", self.story()),
            }
        }
        println!("{:>8.3} {what}: {:?}", self.start.elapsed().as_secs_f64(), self.book.counts());
    }

    /// Each has been heard whose handler's queue has it: the queues are empty behind a last question each way.
    fn fits(&mut self) {
        for from in 0..2 {
            for lane in 0..3 {
                self.last_word(from, "tell", lane);
                self.last_word(from, "ask", lane);
            }
        }
        self.settle("all is said");
        let (faults, counts) = (self.book.audit(), self.book.counts());
        assert!(
            faults.is_empty(),
            "{} faults, {counts:?}:\n{}",
            faults.len(),
            faults[..faults.len().min(10)].join("\n")
        );
    }

    /// Says something until it is taken, and waits until it is heard: so is all of its kind that was taken before.
    fn last_word(&mut self, from: usize, what: &str, lane: u64) {
        let (at, deadline) = (self.read.len(), Instant::now() + SOON);
        loop {
            assert!(Instant::now() < deadline, "no last word is taken; {}", self.story());
            let number = self.say(from, what, lane, 1, 1);
            let of = |line: &Value, event: &str| line["event"] == event && line["number"] == number;
            if self.wait(at, "a last word ends", |_, line| of(line, "ended"))["how"] == "ok" {
                self.wait(at, "a last word is heard", |_, line| of(line, "heard"));
                return;
            }
        }
    }

    fn story(&self) -> String {
        let open: Vec<_> =
            self.book.entries.iter().filter(|(_, entry)| entry.outcomes.is_empty()).take(5).collect();
        let last: Vec<_> =
            self.read.iter().rev().take(10).map(|(node, line)| format!("{node}: {line}")).collect();
        format!("{:?}; open: {open:?}; last:\n{}", self.book.counts(), last.join("\n"))
    }

    /// All that was said ends well.
    fn all_is_ok(&self) {
        let bad: Vec<_> = self
            .book
            .entries
            .iter()
            .filter(|(_, entry)| !entry.outcomes.iter().all(|how| how == "ok "))
            .collect();
        assert!(bad.is_empty(), "{} of {}, such as {:?}", bad.len(), self.book.entries.len(), bad.first());
    }
}

#[test]
fn whatever_the_network_does_to_streams_each_message_is_heard_once_and_in_order() {
    let mut pair = Pair::meet();
    pair.both_talk(2);
    pair.settle("calm");

    let strikes = [
        ("reset", Strike::Reset),
        ("cut in the middle of a message", Strike::Truncate(12_345)),
        ("cut at once", Strike::Truncate(1)),
        ("no more words", Strike::CloseWords),
        ("no more answers", Strike::CloseAnswers),
    ];
    for (what, strike) in strikes {
        // It strikes in the middle of what is said, and again when that is said on a new connection.
        for _ in 0..2 {
            let before = pair.proxy.carried();
            pair.both_talk(3);
            pair.proxy.wait_carried(before + 100_000, SOON);
            pair.proxy.strike(strike);
        }
        pair.settle(what);
    }

    // What is heard and not acknowledged is said again on the next connection, and not heard again.
    pair.proxy.weather(|weather| weather.late = Duration::from_millis(300));
    for _ in 0..3 {
        let (from, first) = (pair.read.len(), pair.numbers);
        pair.both_talk(1);
        pair.wait(from, "some of it is heard", |_, line| {
            line["event"] == "heard" && line["number"].as_u64() > Some(first + 5)
        });
        pair.proxy.strike(Strike::Reset);
    }
    pair.proxy.weather(|weather| weather.late = Duration::ZERO);
    pair.settle("late acknowledgements");

    pair.proxy.weather(|weather| weather.stalled = true);
    pair.both_talk(2);
    pair.proxy.wait_held(SOON);
    pair.proxy.strike(Strike::Reset);
    pair.both_talk(2);
    pair.proxy.wait_held(SOON);
    pair.proxy.weather(|weather| weather.stalled = false);
    pair.settle("stalled");
    pair.fits();
    pair.all_is_ok();
}

#[test]
fn a_process_that_is_stopped_goes_on_and_one_that_is_killed_takes_nothing_into_its_next_run() {
    let mut pair = Pair::meet();
    pair.both_talk(1);
    pair.settle("calm");

    // Stopped for a moment: what was sent meanwhile waits in the system's buffers.
    for _ in 0..3 {
        pair.both_talk(1);
        pair.talker(1).signal(Signal::SIGSTOP);
        let before = pair.proxy.carried();
        pair.talk(0, 2);
        pair.proxy.wait_carried(before + 50_000, SOON);
        pair.talker(1).signal(Signal::SIGCONT);
        pair.settle("a moment's stop");
    }

    // Stopped until it is held for dead: its link ends, and nobody knows what it had in hand.
    let from = pair.read.len();
    pair.both_talk(1);
    pair.talker(1).signal(Signal::SIGSTOP);
    let before = pair.proxy.carried();
    pair.talk(0, 2);
    pair.proxy.wait_carried(before + 50_000, SOON);
    pair.wait(from, "it is dead", |at, line| at == 0 && line["event"] == "dead" && line["member"] == name(1));
    let from = pair.read.len();
    pair.talker(1).signal(Signal::SIGCONT);
    pair.wait(from, "it is back", |at, line| at == 0 && line["event"] == "joined");
    pair.settle("a long stop");
    pair.know();
    pair.fits();

    // Killed with much on its way, and started again in the same place.
    let (before, old) = (pair.proxy.carried(), pair.ids[1].clone());
    pair.both_talk(20);
    pair.proxy.wait_carried(before + 100_000, SOON);
    pair.kill(1);
    // More is said to it, as long as nobody has noticed.
    pair.talk(0, 2);
    pair.begin(1);
    pair.join();
    assert_ne!(pair.ids[1], old);
    pair.both_talk(2);
    pair.settle("killed");
    pair.fits();
}
