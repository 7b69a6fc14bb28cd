//! One node in a process of its own: a cluster to play with, on one host or several.
//!
//! ```text
//! cargo run --example agent -- --name a
//! cargo run --example agent -- --name b --bind 127.0.0.1:0 --join localhost:7946
//! ```
//!
//! With `--key` all is sealed: `openssl rand -hex 32` gives one, the same for all nodes. Off loopback a node starts
//! only with a key, or with `--plaintext`. `--label` keeps clusters apart that might meet by accident. With
//! `--rejoin-file` a node that is started again knows what it was, and its last peers unless it had left: after SIGTERM
//! it wants `--join` again.
//!
//! `--join` takes what `Cluster::join` does, names among them, and is done once somebody was reached.
//! `--seeds-file` and `--seeds-dns` are asked for as long as the node runs.
//!
//! It prints its address, then each event as it comes and the list of members every 30 s. A line on standard
//! input is broadcast to all; the end of the input means nothing. SIGTERM or SIGINT makes it leave and stop;
//! a second one stops it at once. With `--json` it prints one JSON object a line.

use std::{
    io::{BufRead, Write},
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use actix::prelude::*;
use actix_memberlist::{
    Broadcast, Cluster, Config, DEFAULT_PORT, MemberEvent, NodeEvent, Replay, Sender, UserBytes,
    discover::{FromDns, FromFile},
};
use lexopt::prelude::*;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::mpsc,
    time::{interval_at, sleep},
};

mod common;

use common::access::Access;

type Error = Box<dyn std::error::Error>;

/// Time from one list of members to the next.
const LIST_EVERY: Duration = Duration::from_secs(30);

/// Pause before a join that failed is tried again.
const JOIN_PAUSE: Duration = Duration::from_secs(1);

/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Lines of the input that wait to be broadcast; beyond it the input waits.
const LINES: usize = 16;

/// What a shell says of a program that an interrupt has ended.
const INTERRUPTED: u8 = 130;

const USAGE: &str = "agent --name NAME [--bind ADDR (default 127.0.0.1:7946)] [--join SEED[,SEED..]].. \
                     [--seeds-file PATH].. [--seeds-dns NAME].. \
                     [--advertise ADDR] [--profile lan|wan|local (default lan) | --config FILE.toml] \
                     [--key HEX] [--label NAME] [--accept-label NAME].. [--rejoin-file PATH] [--plaintext] [--json]";

struct Options {
    name: String,
    bind: SocketAddr,
    advertise: Option<SocketAddr>,
    seeds: Vec<String>,
    files: Vec<String>,
    names: Vec<String>,
    config: Config,
    access: Access,
    plaintext: bool,
    json: bool,
}

fn options() -> Result<Options, lexopt::Error> {
    let mut options = Options {
        name: String::new(),
        bind: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(),
        advertise: None,
        seeds: Vec::new(),
        files: Vec::new(),
        names: Vec::new(),
        config: Config::lan(),
        access: Access::default(),
        plaintext: false,
        json: false,
    };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("name") => options.name = args.value()?.parse()?,
            Long("bind") => options.bind = args.value()?.parse()?,
            Long("advertise") => options.advertise = Some(args.value()?.parse()?),
            Long("config") => {
                let path = args.value()?;
                let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
                options.config = toml::from_str(&text).map_err(|e| format!("{}: {e}", path.display()))?;
            }
            Long("join") => {
                let seeds: String = args.value()?.parse()?;
                options.seeds.extend(seeds.split(',').map(|seed| seed.trim().to_owned()));
            }
            Long("seeds-file") => options.files.push(args.value()?.parse()?),
            Long("seeds-dns") => options.names.push(args.value()?.parse()?),
            Long("profile") => options.config = common::profile(&args.value()?.parse::<String>()?)?,
            Long("key") => options.access.set_key(args.value()?)?,
            Long("label") => options.access.label = args.value()?.parse()?,
            Long("accept-label") => options.access.accepted.push(args.value()?.parse()?),
            Long("rejoin-file") => options.access.rejoin_file = Some(args.value()?.parse()?),
            Long("plaintext") => options.plaintext = true,
            Long("json") => options.json = true,
            Long("help") | Short('h') => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if options.name.is_empty() {
        return Err("--name is missing: each node of a cluster has one of its own".into());
    }
    Ok(options)
}

#[actix::main]
async fn main() -> ExitCode {
    common::logs("warn");
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match run(options).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<ExitCode, Error> {
    // From here on the signals no longer end the process.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let out = Out { json: options.json };
    let mut builder = Cluster::builder(options.name).config(options.config).bind(options.bind);
    builder = options.access.remember(options.access.grant(builder), "");
    if let Some(advertise) = options.advertise {
        builder = builder.advertise(advertise);
    }
    if options.plaintext {
        builder = builder.plaintext();
    }
    for path in options.files {
        builder = builder.seeds(FromFile::new(path));
    }
    for name in options.names {
        builder = builder.seeds(FromDns::new(name));
    }
    let node = builder.start().await?;
    let own = node.view().local().clone();
    let addr = own.addr.to_string();
    out.say(
        &format!("{} listens on {addr}", own.name()),
        || json!({ "event": "started", "name": own.name(), "addr": addr }),
    );

    let (gave_up, mut end) = mpsc::channel(1);
    let printer = Printer { out, gave_up }.start();
    let _subscriptions = (
        node.subscribe(printer.clone().recipient(), Replay::None)?,
        node.subscribe_node(printer.clone().recipient())?,
        node.serve_bytes(printer.recipient())?,
    );

    let mut joined = options.seeds.is_empty();
    let mut joining = std::pin::pin!(join(&node, &options.seeds, out));
    let mut lists = interval_at(tokio::time::Instant::now() + LIST_EVERY, LIST_EVERY);
    let mut lines = read_lines()?;
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = end.recv() => return Ok(ExitCode::FAILURE),
            () = &mut joining, if !joined => joined = true,
            _ = lists.tick() => list(&node, out),
            Some(line) = lines.recv() => broadcast(&node, line, out),
        }
    }

    let farewell = async {
        let report = node.leave(FAREWELL).await;
        if !report.is_ok_and(|report| report.announced) {
            out.say("the farewell reached nobody", || json!({ "event": "not_announced" }));
        }
        node.shutdown().await;
        ExitCode::SUCCESS
    };
    tokio::select! {
        code = farewell => Ok(code),
        _ = terminate.recv() => std::process::exit(INTERRUPTED.into()),
        _ = interrupt.recv() => std::process::exit(INTERRUPTED.into()),
    }
}

/// Joins through the seeds, for as long as it takes.
async fn join(node: &Cluster, seeds: &[String], out: Out) {
    let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
    loop {
        let failed = match node.join(&seeds).await {
            Ok(joined) => {
                let reached: Vec<String> = joined.reached.iter().map(|id| id.name().to_owned()).collect();
                out.say(
                    &format!("joined through {}", reached.join(", ")),
                    || json!({ "event": "reached", "members": reached }),
                );
                return;
            }
            Err(failed) => failed.to_string(),
        };
        out.say(&format!("cannot join: {failed}"), || json!({ "event": "join_failed", "why": failed }));
        sleep(JOIN_PAUSE).await;
    }
}

fn broadcast(node: &Cluster, line: Vec<u8>, out: Out) {
    if let Err(error) = node.broadcast_bytes(Broadcast::new(line)) {
        let why = error.to_string();
        out.say(&format!("cannot broadcast: {why}"), || json!({ "event": "not_broadcast", "why": why }));
    }
}

fn list(node: &Cluster, out: Out) {
    let view = node.view();
    let mut members: Vec<_> = view.all().collect();
    members.sort_by(|a, b| a.name().cmp(b.name()));
    let mut text = format!("{} members, local health {}", view.alive_count(), node.health());
    for member in &members {
        text += &format!("\n  {:<20} {:<24} {}", member.name(), member.addr.to_string(), member.state);
    }
    out.say(&text, || {
        let members: Vec<Value> = members
            .iter()
            .map(|m| json!({ "name": m.name(), "addr": m.addr.to_string(), "state": m.state.to_string() }))
            .collect();
        json!({ "event": "members", "health": node.health(), "members": members })
    });
}

/// Lines of standard input. Reading blocks, so a thread of its own does it; it ends with the process.
fn read_lines() -> std::io::Result<mpsc::Receiver<Vec<u8>>> {
    let (sender, lines) = mpsc::channel(LINES);
    std::thread::Builder::new().name("stdin".into()).spawn(move || {
        for line in std::io::stdin().lock().split(b'\n') {
            let Ok(line) = line else { return };
            if !line.is_empty() && sender.blocking_send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}

/// Standard output, for people or for programs.
#[derive(Clone, Copy)]
struct Out {
    json: bool,
}

impl Out {
    fn say(self, text: &str, object: impl FnOnce() -> Value) {
        let line = if self.json { object().to_string() } else { text.to_owned() };
        let mut stdout = std::io::stdout().lock();
        if writeln!(stdout, "{line}").and_then(|()| stdout.flush()).is_err() {
            // Nobody reads any more.
            std::process::exit(1);
        }
    }
}

/// Prints what this node hears.
struct Printer {
    out: Out,
    gave_up: mpsc::Sender<()>,
}

impl Actor for Printer {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Printer {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let (kind, member, detail) = match common::words(&event) {
            // An event that this program does not know has at least a name.
            ("event", _, _) => (variant(&event), String::new(), format!("{event:?}")),
            (kind, member, detail) => (kind.to_owned(), member, detail),
        };
        let line = format!("{member} {kind} {detail}");
        self.out.say(
            line.trim(),
            || json!({ "event": kind, "rev": event.rev(), "member": member, "detail": detail }),
        );
    }
}

impl Handler<NodeEvent> for Printer {
    type Result = ();
    fn handle(&mut self, event: NodeEvent, _: &mut Context<Self>) {
        let (kind, detail) = (variant(&event), format!("{event:?}"));
        self.out.say(&format!("this node: {detail}"), || json!({ "event": kind, "detail": detail }));
        if let NodeEvent::GaveUp { .. } = event {
            let _ = self.gave_up.try_send(());
        }
    }
}

impl Handler<UserBytes> for Printer {
    type Result = ();
    fn handle(&mut self, message: UserBytes, _: &mut Context<Self>) {
        let from = match &message.from {
            Sender::Member(id) | Sender::Stranger(id) => id.name().to_owned(),
            Sender::Address(addr) => addr.to_string(),
        };
        let text = String::from_utf8_lossy(&message.bytes);
        self.out.say(
            &format!("{from} broadcasts {text:?}"),
            || json!({ "event": "broadcast", "from": from, "text": text }),
        );
    }
}

/// The name of an event, as it stands in its type.
fn variant(event: &impl std::fmt::Debug) -> String {
    let debug = format!("{event:?}");
    debug.chars().take_while(char::is_ascii_alphanumeric).collect::<String>().to_lowercase()
}
