//! The examples that people start in several terminals, as real processes: what they print is what is looked at.

#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic here is a test that fails")]

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    path::Path,
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use memberlist_tests::agents;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// Time for anything to happen that does happen: a process starts, news goes round, a crash is noticed.
const SOON: Duration = Duration::from_secs(60);

/// Time after which something that gossip may have missed is said again.
const AGAIN: Duration = Duration::from_secs(2);

/// One process. It is killed when this is dropped, if it still runs.
struct Program {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
    read: Vec<String>,
    /// Where it listens.
    addr: String,
}

impl Program {
    /// Starts a node, and waits for the line that says where it is.
    fn start(program: &Path, name: &str, seed: Option<&str>, more: &[&str]) -> Self {
        let mut command = Command::new(program);
        command.args(["--name", name, "--bind", "127.0.0.1:0"]).args(more);
        if let Some(seed) = seed {
            command.args(["--join", seed]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let mut started =
            Self { name: name.into(), child, input, lines, read: Vec::new(), addr: String::new() };
        let line = started.wait("listens on");
        started.addr = line.split_whitespace().nth(3).unwrap().into();
        started
    }

    /// Waits for a line in which this stands, after those that were waited for before.
    fn wait(&mut self, wanted: &str) -> String {
        self.wait_for(wanted, SOON).unwrap_or_else(|why| {
            panic!("{} did not say {wanted:?}, {why}, but:\n{}", self.name, self.read.join("\n"))
        })
    }

    /// The same, but it may also have said so before.
    fn has_said(&mut self, wanted: &str) {
        if !self.read.iter().any(|line| line.contains(wanted)) {
            self.wait(wanted);
        }
    }

    fn wait_for(&mut self, wanted: &str, within: Duration) -> Result<String, RecvTimeoutError> {
        let deadline = Instant::now() + within;
        loop {
            let line = self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now()))?;
            self.read.push(line.clone());
            if line.contains(wanted) {
                return Ok(line);
            }
        }
    }

    fn type_in(&mut self, line: &str) {
        writeln!(self.input.as_mut().unwrap(), "{line}").unwrap();
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    /// Waits until it has ended by itself.
    fn end(&mut self) -> ExitStatus {
        let deadline = Instant::now() + SOON;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("{} does not end; it has said:\n{}", self.name, self.read.join("\n"));
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Types a line again and again until it was heard: a broadcast may be missed.
fn say_until_heard(from: &mut Program, line: &str, to: &mut Program, wanted: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        from.type_in(line);
        match to.wait_for(wanted, AGAIN) {
            Ok(_) => return,
            Err(why) => assert!(Instant::now() < deadline, "{} did not hear {line:?}: {why}", to.name),
        }
    }
}

#[test]
fn two_terminals_chat_and_see_each_other_come_go_and_die() {
    let program = agents::example("chat");
    let key = ["--key", "000102030405060708090a0b0c0d0e0f"];
    let mut ann = Program::start(&program, "ann", None, &key);
    let seed = ann.addr.clone();
    let mut bob = Program::start(&program, "bob", Some(&seed), &key);
    ann.wait("* bob has come");
    bob.wait("* ann has come");

    say_until_heard(&mut ann, "good morning", &mut bob, "ann: good morning");
    say_until_heard(&mut bob, "\x1b[31mgood morning", &mut ann, "bob: \u{fffd}[31mgood morning");
    bob.type_in("/tell ann between us");
    bob.wait("* ann has it");
    ann.wait("bob tells you: between us");
    ann.type_in("/tell carol are you there?");
    ann.wait("* \"carol\" is not here");
    ann.type_in("/who");
    ann.wait(&format!("* ann {seed}: you"));
    ann.wait(&format!("* bob {}", bob.addr));

    // Who says something and goes is heard.
    bob.type_in("good night");
    bob.type_in("/quit");
    assert!(bob.end().success());
    ann.wait("* bob has left");
    ann.has_said("bob: good night");

    let mut carol = Program::start(&program, "carol", Some(&seed), &key);
    ann.wait("* carol has come");
    // Who has another key is nobody.
    let stranger = Command::new(&program)
        .args(["--name", "eve", "--bind", "127.0.0.1:0", "--join", &seed])
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(!stranger.status.success(), "{stranger:?}");
    carol.child.kill().unwrap();
    carol.child.wait().unwrap();
    ann.type_in("/tell carol hello?");
    ann.wait("* carol is dead");
    ann.has_said("* to carol: ");
    // The end of the input is a way to leave.
    ann.input = None;
    assert!(ann.end().success());
    assert!(!ann.read.iter().any(|line| line.contains("eve")), "{:?}", ann.read);
}

/// What a web server answers: the status and the lines of the head, and the body.
fn http(addr: &str, method: &str, path: &str, body: &str) -> (String, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let len = body.len();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n{body}"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head and a body");
    (head.to_lowercase(), body.to_owned())
}

/// Gets an item until it is this value, from there: a peer may be too slow for a miss to wait for it.
fn item(addr: &str, key: &str, value: &str, from: &str) {
    let deadline = Instant::now() + SOON;
    loop {
        let (head, body) = http(addr, "GET", &format!("/item/{key}"), "");
        if head.starts_with("http/1.1 200") && head.contains(&format!("x-cache: {from}")) && body == value {
            return;
        }
        assert!(Instant::now() < deadline, "{addr} {key} is no {value:?} from {from:?}: {head}\n{body}");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_cache_asks_the_others_for_what_it_misses_and_forgets_what_they_write() {
    let program = agents::example("cache");
    let start = |name: &str, seed: Option<&str>| {
        let mut node = Program::start(&program, name, seed, &["--http", "127.0.0.1:0", "--keep", "3600"]);
        let line = node.wait("serves http://");
        let http = line.rsplit('/').next().unwrap().to_owned();
        (node, http)
    };
    let (a, a_http) = start("a", None);
    let (mut b, b_http) = start("b", Some(&a.addr));
    let (_c, c_http) = start("c", Some(&a.addr));
    let peers = |http_addr: &str| {
        let (head, body) = http(http_addr, "GET", "/peers", "");
        assert!(head.starts_with("http/1.1 200"), "{head}");
        let peers: serde_json::Value = serde_json::from_str(&body).unwrap();
        let names = peers.as_array().unwrap().iter();
        names.map(|peer| peer["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let wait_for_peers = |http_addr: &str, wanted: &[&str]| {
        let deadline = Instant::now() + SOON;
        while peers(http_addr) != wanted {
            assert!(Instant::now() < deadline, "{:?}", peers(http_addr));
            thread::sleep(Duration::from_millis(50));
        }
    };
    wait_for_peers(&a_http, &["b", "c"]);
    wait_for_peers(&b_http, &["a", "c"]);
    wait_for_peers(&c_http, &["a", "b"]);

    let (head, _) = http(&a_http, "GET", "/item/sky", "");
    assert!(head.starts_with("http/1.1 404") && head.contains("x-cache: miss"), "{head}");
    let write = |http_addr: &str, value: &str| {
        let (head, _) = http(http_addr, "PUT", "/item/sky", value);
        assert!(head.starts_with("http/1.1 204"), "{head}");
    };
    write(&a_http, "blue");
    item(&a_http, "sky", "blue", "hit");
    item(&b_http, "sky", "blue", "peer a");
    item(&b_http, "sky", "blue", "hit");
    item(&c_http, "sky", "blue", "peer ");
    item(&c_http, "sky", "blue", "hit");

    // One broadcast may be missed: it is written until both have heard of it.
    let deadline = Instant::now() + SOON;
    let old = |http_addr: &str| http(http_addr, "GET", "/item/sky", "").1 == "blue";
    write(&b_http, "grey");
    while old(&a_http) || old(&c_http) {
        assert!(Instant::now() < deadline, "a write on b makes nobody forget");
        thread::sleep(AGAIN);
        write(&b_http, "grey");
    }
    item(&b_http, "sky", "grey", "hit");
    item(&a_http, "sky", "grey", "");
    item(&c_http, "sky", "grey", "");

    let (head, _) = http(&a_http, "PUT", &format!("/item/{}", "k".repeat(201)), "x");
    assert!(head.starts_with("http/1.1 414"), "{head}");
    let (head, _) = http(&a_http, "PUT", "/item/large", &"x".repeat((64 << 10) + 1));
    assert!(head.starts_with("http/1.1 413"), "{head}");

    b.signal(Signal::SIGTERM);
    b.wait("b leaves");
    assert!(b.end().success());
    wait_for_peers(&a_http, &["c"]);
}

#[test]
fn the_oldest_leads_until_it_is_killed_or_leaves_and_nobody_leads_without_a_quorum() {
    let program = agents::example("leader");
    let care = ["--quorum", "2", "--stable-after", "1"];
    // By name the order is the other way round.
    let mut zoe = Program::start(&program, "zoe", None, &care);
    zoe.wait("no leader yet");
    let mut max = Program::start(&program, "max", Some(&zoe.addr), &care);
    let mut abe = Program::start(&program, "abe", Some(&zoe.addr), &care);
    zoe.wait("zoe (this node) leads");
    max.wait("zoe leads");
    abe.wait("zoe leads");

    zoe.child.kill().unwrap();
    for (node, leader) in [(&mut max, "max (this node)"), (&mut abe, "max")] {
        node.wait("zoe leads no more");
        node.wait(&format!("{leader} will lead, if that stays so for 1s"));
        node.wait(&format!("{leader} leads"));
    }

    // A newcomer changes nothing: the others say nothing of it.
    let mut aaron = Program::start(&program, "aaron", Some(&max.addr), &care);
    aaron.wait("max leads");

    max.signal(Signal::SIGTERM);
    abe.wait("max leads no more");
    abe.wait("abe (this node) leads");
    aaron.wait("max leads no more");
    aaron.wait("abe leads");
    assert!(max.end().success());

    assert!(!abe.read.iter().any(|line| line.contains("aaron")), "{:?}", abe.read);
    abe.child.kill().unwrap();
    aaron.wait("abe leads no more");
    aaron.wait("no leader: 1 of 2 members that are needed");
    assert!(!aaron.read.iter().any(|line| line.contains("aaron (this node)")), "{:?}", aaron.read);
}
