//! A chat between terminals: messages of the program's own types, to all and to one.
//!
//! ```text
//! cargo run --example chat -- --name ann --bind 127.0.0.1:7001
//! cargo run --example chat -- --name bob --bind 127.0.0.1:7002 --join 127.0.0.1:7001
//! ```
//!
//! A line is for all. `/who` says who is there, `/tell NAME text` tells one alone, `/quit` or the end of the input
//! leaves. With `--key`, the same for all (`openssl rand -hex 32` gives one), nobody else can read or join.
//!
//! What is for all goes by gossip: each gets it at most once, nearly always soon, and not for sure. What is for one
//! goes over a connection, and its sender hears what has become of it.

use std::{io::BufRead, process::ExitCode, time::Duration};

use actix::prelude::*;
use actix_memberlist::{Cluster, FromPeer, MemberEvent, MemberState, PeerMessage, Replay, Sent, Spread};
use serde::{Deserialize, Serialize};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::timeout,
};

mod common;

use common::options::Options;

type Error = Box<dyn std::error::Error>;

/// How long the last words may take, and the farewell after them.
const FAREWELL: Duration = Duration::from_secs(5);

/// Lines of the input that wait; beyond it the input waits.
const LINES: usize = 16;

/// A line for all.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Say {
    text: String,
}

impl PeerMessage for Say {
    const KIND: &'static str = "chat.say/1";
}

/// A line for one.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Tell {
    text: String,
}

impl PeerMessage for Tell {
    const KIND: &'static str = "chat.tell/1";
}

/// Prints what this node hears.
struct Screen {
    own: String,
}

impl Actor for Screen {
    type Context = Context<Self>;
}

impl Handler<FromPeer<Say>> for Screen {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Say>, _: &mut Context<Self>) {
        println!("{}: {}", m.from.name(), printable(&m.msg.text));
    }
}

impl Handler<FromPeer<Tell>> for Screen {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Tell>, _: &mut Context<Self>) {
        println!("{} tells you: {}", m.from.name(), printable(&m.msg.text));
    }
}

impl Handler<MemberEvent> for Screen {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let (kind, member, detail) = common::words(&event);
        match event {
            _ if member == self.own => {}
            MemberEvent::Joined { .. } => println!("* {member} has come"),
            MemberEvent::Left { .. } => println!("* {member} has left"),
            MemberEvent::Dead { .. } => println!("* {member} is dead: {detail}"),
            MemberEvent::Conflict { .. } => println!("* {member}: {kind}, {detail}"),
            // The rest is the affair of those who watch the cluster itself.
            _ => {}
        }
    }
}

/// Something is on its way to one.
#[derive(Message)]
#[rtype(result = "()")]
struct Telling {
    to: String,
    fate: Sent,
}

impl Handler<Telling> for Screen {
    type Result = ();
    fn handle(&mut self, m: Telling, ctx: &mut Context<Self>) {
        // Until it is known, everything else goes on.
        let told = m.fate.into_actor(self).map(move |fate, _, _| match fate {
            Ok(()) => println!("* {} has it", m.to),
            Err(error) => println!("* to {}: {error}", m.to),
        });
        ctx.spawn(told);
    }
}

/// Text of somebody else, without what a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[actix::main]
async fn main() -> ExitCode {
    common::logs("error");
    match chat(Options::read("chat", |_, _| Ok(false))).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn chat(options: Options) -> Result<(), Error> {
    let node = options.builder().start().await?;
    println!("{} listens on {}", options.name, node.view().local().addr);
    let screen = Screen { own: options.name.clone() }.start();
    let _subscriptions = (
        node.subscribe(screen.clone().recipient(), Replay::None)?,
        node.serve_from::<Say>(screen.clone().recipient())?,
        node.serve_from::<Tell>(screen.clone().recipient())?,
    );
    options.join(&node).await?;

    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut lines = read_lines()?;
    let mut spread = None;
    loop {
        let line = tokio::select! {
            line = lines.recv() => line,
            _ = terminate.recv() => None,
            _ = interrupt.recv() => None,
        };
        let Some(line) = line else { break };
        match line.split_whitespace().next() {
            None => {}
            Some("/quit") => break,
            Some("/who") => who(&node),
            Some("/tell") => tell(&node, &screen, &line),
            Some(word) if word.starts_with('/') => println!("* /who, /tell NAME text, /quit"),
            Some(_) => spread = say(&node, line).or(spread),
        }
    }
    // Gossip says a thing several times, since packets get lost; a node that is gone says nothing any more.
    if let Some(spread) = spread {
        let _ = timeout(FAREWELL, spread).await;
    }
    node.leave(FAREWELL).await?;
    node.shutdown().await;
    Ok(())
}

fn say(node: &Cluster, text: String) -> Option<Spread> {
    let said = node.broadcast(&Say { text });
    said.inspect_err(|error| println!("* not said: {error}")).ok()
}

fn tell(node: &Cluster, screen: &Addr<Screen>, line: &str) {
    let mut words = line.trim_start().splitn(3, char::is_whitespace).skip(1);
    let (Some(name), Some(text)) = (words.next(), words.next()) else {
        println!("* /tell NAME text");
        return;
    };
    let view = node.view();
    let Some(peer) = view.get(name).and_then(|member| node.peer(&member.id)) else {
        println!("* {name:?} is not here");
        return;
    };
    match peer.send(&Tell { text: text.trim().into() }) {
        Ok(fate) => screen.do_send(Telling { to: name.into(), fate }),
        Err(error) => println!("* to {name}: {error}"),
    }
}

fn who(node: &Cluster) {
    let view = node.view();
    let mut members: Vec<_> = view.alive().collect();
    members.sort_by_key(|member| member.name());
    for member in members {
        let (name, addr) = (member.name(), member.addr);
        // A link is there once something was told.
        let rtt = node.peer(&member.id).and_then(|peer| peer.status().rtt);
        match (rtt, member.state) {
            _ if member.id == view.local().id => println!("* {name} {addr}: you"),
            (_, MemberState::Suspect) => println!("* {name} {addr}: does not answer"),
            (Some(rtt), _) => println!("* {name} {addr}: {rtt:.1?} away"),
            (None, _) => println!("* {name} {addr}"),
        }
    }
}

/// Lines of standard input. Reading blocks, so a thread of its own does it; it ends with the process.
fn read_lines() -> std::io::Result<mpsc::Receiver<String>> {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        for line in std::io::stdin().lock().split(b'\n').map_while(Result::ok) {
            if sender.blocking_send(String::from_utf8_lossy(&line).trim_end().into()).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}
