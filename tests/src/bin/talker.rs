//! `talker NAME ADVERTISED`: a node that does what it reads, one line of JSON each, and prints what becomes of it.
//!
//! ```text
//! {"do":"join","seed":"127.0.0.1:4000"}
//! {"do":"tell","to":"b","lane":1,"first":0,"count":100,"size":2000}
//! {"do":"ask","to":"b","lane":1,"first":100,"count":10,"size":2000}
//! ```
//!
//! Messages have the numbers from `first` on. Each is `taken`, for the run that it is meant for, and has `ended` in one
//! way; or has ended only, if it was not taken. What is `heard` is said while the handler runs, so that a kill takes no
//! word of it away. The node ends with its input.

use std::{
    io::{BufRead, Write},
    net::SocketAddr,
    time::Duration,
};

use actix::{Actor, Context, Handler, Message};
use actix_memberlist::{
    AskError, Cluster, Config, FromPeer, Lane, MemberEvent, NotSent, Peer, PeerMessage, Replay, SendError,
    network::{Binding, Host, Network, SystemNetwork},
};
use bytes::Bytes;
use memberlist_tests::proxy::SUSPICION;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// How long a question waits for its answer.
const ANSWER: Duration = Duration::from_secs(20);

fn say(line: &Value) {
    // A parent that is gone has no use for it.
    let _ = writeln!(std::io::stdout().lock(), "{line}");
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Tell<const LANE: usize> {
    number: u64,
    body: Bytes,
}

#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
struct Ask<const LANE: usize> {
    number: u64,
    body: Bytes,
}

impl<const LANE: usize> PeerMessage for Tell<LANE> {
    const KIND: &'static str = ["tell-urgent/1", "tell-ordered/1", "tell-bulk/1"][LANE];
    const LANE: Lane = Lane::ALL[LANE];
}

impl<const LANE: usize> PeerMessage for Ask<LANE> {
    const KIND: &'static str = ["ask-urgent/1", "ask-ordered/1", "ask-bulk/1"][LANE];
    const LANE: Lane = Lane::ALL[LANE];
}

/// Says what it hears.
struct Ear {
    at: String,
}

impl Ear {
    fn heard(&self, from: &str, kind: &str, number: u64) {
        say(&json!({"event": "heard", "number": number, "at": self.at, "from": from, "kind": kind}));
    }
}

impl Actor for Ear {
    type Context = Context<Self>;
}

impl<const LANE: usize> Handler<FromPeer<Tell<LANE>>> for Ear {
    type Result = ();
    fn handle(&mut self, m: FromPeer<Tell<LANE>>, _: &mut Context<Self>) {
        self.heard(&m.from.to_string(), Tell::<LANE>::KIND, m.msg.number);
    }
}

impl<const LANE: usize> Handler<FromPeer<Ask<LANE>>> for Ear {
    type Result = actix::MessageResult<FromPeer<Ask<LANE>>>;
    fn handle(&mut self, m: FromPeer<Ask<LANE>>, _: &mut Context<Self>) -> Self::Result {
        self.heard(&m.from.to_string(), Ask::<LANE>::KIND, m.msg.number);
        actix::MessageResult(m.msg.number)
    }
}

/// Says who comes and goes.
struct Eye;

impl Actor for Eye {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Eye {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let (what, member) = match &event {
            MemberEvent::Joined { member, .. } => ("joined", Some(member)),
            MemberEvent::Refuted { member, .. } => ("joined", Some(member)),
            MemberEvent::Dead { member, .. } => ("dead", Some(member)),
            _ => return,
        };
        if let Some(member) = member {
            say(&json!({"event": what, "member": member.name(), "id": member.id.to_string()}));
        }
    }
}

/// Sockets that say where they are bound, which is not where others are told to reach them.
struct Known;

impl Network for Known {
    fn bind(&self, addr: SocketAddr) -> Binding {
        let binding = SystemNetwork.bind(addr);
        Box::pin(async move {
            let endpoint = binding.await?;
            say(&json!({"event": "bound", "addr": endpoint.local_addr().to_string()}));
            Ok(endpoint)
        })
    }

    fn host(&self) -> Host {
        SystemNetwork.host()
    }
}

fn refused(number: u64, error: &SendError) {
    say(&json!({"event": "ended", "number": number, "how": "refused", "cause": format!("{error:?}")}));
}

fn ended(number: u64, outcome: Result<(), NotSent>) {
    let (how, cause) = match outcome {
        Ok(()) => ("ok", None),
        Err(NotSent::Never(cause)) => ("never", Some(format!("{cause:?}"))),
        Err(NotSent::Unknown(cause)) => ("unknown", Some(format!("{cause:?}"))),
        Err(_) => ("other", None),
    };
    say(&json!({"event": "ended", "number": number, "how": how, "cause": cause}));
}

// It ends with the process, and a panic in it is one of the test's.
#[allow(clippy::disallowed_methods)]
fn spawn(task: impl Future<Output = ()> + 'static) {
    actix_rt::spawn(task);
}

fn taken(number: u64, peer: &Peer, kind: &str) {
    say(&json!({"event": "taken", "number": number, "to": peer.id().to_string(), "kind": kind}));
}

fn tell<const LANE: usize>(peer: &Peer, number: u64, size: usize) {
    // The word that it is taken comes before any of what becomes of it.
    taken(number, peer, Tell::<LANE>::KIND);
    match peer.send(&Tell::<LANE> { number, body: vec![1; size].into() }) {
        Ok(sent) => spawn(async move { ended(number, sent.await) }),
        Err(error) => refused(number, &error),
    }
}

fn ask<const LANE: usize>(peer: &Peer, number: u64, size: usize) {
    taken(number, peer, Ask::<LANE>::KIND);
    let peer = peer.clone();
    spawn(async move {
        match peer.ask(&Ask::<LANE> { number, body: vec![2; size].into() }, ANSWER).await {
            Ok(same) if same == number => ended(number, Ok(())),
            Err(AskError::Send(error)) => refused(number, &error),
            Err(AskError::NotSent(error)) => ended(number, Err(error)),
            Err(AskError::Timeout | AskError::HandlerGone) => {
                say(&json!({"event": "ended", "number": number, "how": "unanswered"}));
            }
            other => say(&json!({"event": "wrong", "number": number, "what": format!("{other:?}")})),
        }
    });
}

async fn obey(node: &Cluster, order: &Value) {
    let word = |key: &str| order[key].as_str().unwrap_or_default();
    let count = |key: &str| order[key].as_u64().unwrap_or_default();
    if word("do") == "join" {
        let joined = node.join(&[word("seed")]).await;
        return say(&json!({"event": "join", "ok": joined.is_ok()}));
    }
    let member = node.view().get(word("to")).cloned();
    let Some(peer) = member.and_then(|member| node.peer(&member.id)) else {
        for number in count("first")..count("first") + count("count") {
            refused(number, &SendError::Gone);
        }
        return;
    };
    let size = usize::try_from(count("size")).unwrap_or_default();
    for number in count("first")..count("first") + count("count") {
        match (word("do"), count("lane")) {
            ("tell", 0) => tell::<0>(&peer, number, size),
            ("tell", 1) => tell::<1>(&peer, number, size),
            ("tell", _) => tell::<2>(&peer, number, size),
            (_, 0) => ask::<0>(&peer, number, size),
            (_, 1) => ask::<1>(&peer, number, size),
            _ => ask::<2>(&peer, number, size),
        }
    }
}

fn serve(node: &Cluster) -> Result<(), Box<dyn std::error::Error>> {
    let ear = Ear { at: node.view().local().id.to_string() }.start();
    node.serve_from::<Tell<0>>(ear.clone().recipient())?.detach();
    node.serve_from::<Tell<1>>(ear.clone().recipient())?.detach();
    node.serve_from::<Tell<2>>(ear.clone().recipient())?.detach();
    node.serve_from::<Ask<0>>(ear.clone().recipient())?.detach();
    node.serve_from::<Ask<1>>(ear.clone().recipient())?.detach();
    node.serve_from::<Ask<2>>(ear.recipient())?.detach();
    node.subscribe(Eye.start().recipient(), Replay::Snapshot)?.detach();
    Ok(())
}

#[actix_rt::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [name, advertised] = &args[..] else { return Err("talker NAME ADVERTISED".into()) };
    let (sender, mut orders) = mpsc::channel(100);
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if sender.blocking_send(line).is_err() {
                return;
            }
        }
    });
    let config = Config { suspicion_mult: SUSPICION, ..Config::local() };
    let builder = Cluster::builder(name.as_str()).config(config).network(Known);
    let node = builder.bind("127.0.0.1:0".parse()?).advertise(advertised.parse()?).start().await?;
    serve(&node)?;
    say(&json!({"event": "started", "id": node.view().local().id.to_string()}));
    while let Some(line) = orders.recv().await {
        obey(&node, &serde_json::from_str(&line)?).await;
    }
    node.shutdown().await;
    Ok(())
}
