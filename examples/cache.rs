//! A web service with a cache on each node: a write makes the others forget, a miss asks the others.
//!
//! ```text
//! cargo run --example cache -- --name a --bind 127.0.0.1:7001 --http 127.0.0.1:8001
//! cargo run --example cache -- --name b --bind 127.0.0.1:7002 --http 127.0.0.1:8002 --join 127.0.0.1:7001
//! curl -X PUT -d blue localhost:8001/item/sky
//! curl -i localhost:8002/item/sky        # x-cache: peer a; and the next time: x-cache: hit
//! curl localhost:8001/peers
//! ```
//!
//! **What it does not promise.** A write is told to the others by gossip. Each hears it at most once, nearly always
//! within a second, and not for sure: a node that is cut off when it is said never hears it. Until it hears of it, a
//! node goes on serving the old value, and gives it to those who ask. Two writes of one key on two nodes at the same
//! time may leave either value, another one on each node, or none. So each value has an age from its write on, which
//! goes along with each copy; it is served for `--keep SECONDS` at most, whoever has missed what. After that, and when
//! the node that has it stops, it is gone. This is a cache: in front of a database, a miss would read that, and what is
//! told of a write would carry the row's version, so that the newer value wins.
//!
//! A miss asks everybody, which is right for a few nodes. With many, ask those whose turn the key is: `View::rank`
//! numbers the members.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::{Duration, Instant},
};

use actix::prelude::*;
use actix_memberlist::{Cluster, PeerMessage, Select};
use actix_web::{App, HttpResponse, HttpServer, Responder, get, put, web};
use bytes::Bytes;
use futures_util::StreamExt;
use lexopt::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

mod common;

use common::options::Options;

type Error = Box<dyn std::error::Error>;

/// Values that a node keeps, and bytes of each, and of its key.
const ITEMS: usize = 1000;
const ITEM: usize = 64 << 10;
const KEY: usize = 200;

/// How long a miss waits for the others.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// Told to all: what you have of this is old.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Invalidate {
    key: String,
}

impl PeerMessage for Invalidate {
    const KIND: &'static str = "cache.invalidate/1";
}

/// Asked of all: have you got this?
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "Option<Item>")]
struct Lookup {
    key: String,
}

impl PeerMessage for Lookup {
    const KIND: &'static str = "cache.lookup/1";
}

/// A value, and how much longer it may be served: clocks differ, spans do not.
#[derive(Clone, Serialize, Deserialize)]
struct Item {
    value: Bytes,
    left: Duration,
}

/// The values of this node: one actor, for its own requests and for the questions of others.
struct Cache {
    /// How long a value is served after it was written.
    keep: Duration,
    items: BTreeMap<String, (Bytes, Instant)>,
    /// How often something was written or made old. What was asked for before that may be old as well.
    changes: u64,
}

impl Actor for Cache {
    type Context = Context<Self>;
}

impl Cache {
    fn find(&self, key: &str) -> Option<Item> {
        let (value, until) = self.items.get(key)?;
        let left = until.saturating_duration_since(Instant::now());
        (!left.is_zero()).then(|| Item { value: value.clone(), left })
    }

    fn put(&mut self, key: String, item: Item) {
        let now = Instant::now();
        self.items.retain(|_, (_, until)| *until > now);
        if self.items.len() >= ITEMS && !self.items.contains_key(&key) {
            let oldest = self.items.iter().min_by_key(|(_, (_, until))| *until).map(|(key, _)| key.clone());
            oldest.map(|key| self.items.remove(&key));
        }
        // Another node may say what it likes.
        self.items.insert(key, (item.value, now + item.left.min(self.keep)));
    }
}

impl Handler<Invalidate> for Cache {
    type Result = ();
    fn handle(&mut self, m: Invalidate, _: &mut Context<Self>) {
        self.changes += 1;
        self.items.remove(&m.key);
    }
}

impl Handler<Lookup> for Cache {
    type Result = MessageResult<Lookup>;
    fn handle(&mut self, m: Lookup, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.find(&m.key))
    }
}

/// From a request: what is here, and the number of changes so far.
#[derive(Message)]
#[rtype(result = "(Option<Item>, u64)")]
struct Read(String);

impl Handler<Read> for Cache {
    type Result = MessageResult<Read>;
    fn handle(&mut self, m: Read, _: &mut Context<Self>) -> Self::Result {
        MessageResult((self.find(&m.0), self.changes))
    }
}

/// From a request: a new value.
#[derive(Message)]
#[rtype(result = "()")]
struct Write(String, Bytes);

impl Handler<Write> for Cache {
    type Result = ();
    fn handle(&mut self, Write(key, value): Write, _: &mut Context<Self>) {
        self.changes += 1;
        let left = self.keep;
        self.put(key, Item { value, left });
    }
}

/// From a request: a copy of another node's value, which was asked for after so many changes.
#[derive(Message)]
#[rtype(result = "()")]
struct Fill(String, Item, u64);

impl Handler<Fill> for Cache {
    type Result = ();
    fn handle(&mut self, Fill(key, item, changes): Fill, _: &mut Context<Self>) {
        // If it was made old on its way here, nobody would say so again.
        if changes == self.changes {
            self.put(key, item);
        }
    }
}

/// Here, or else from the first one that has it.
#[get("/item/{key}")]
async fn read(
    key: web::Path<String>,
    cache: web::Data<Addr<Cache>>,
    node: web::Data<Cluster>,
) -> impl Responder {
    let key = key.into_inner();
    let Ok((found, changes)) = cache.send(Read(key.clone())).await else { return unavailable("no cache") };
    if let Some(item) = found {
        return HttpResponse::Ok().insert_header(("x-cache", "hit")).body(item.value);
    }
    let mut answers = node.ask_all(Select::Others, &Lookup { key: key.clone() }, PATIENCE);
    while let Some((from, answer)) = answers.next().await {
        // Who is cut off, stops or has no such cache has nothing for us.
        let Ok(Some(item)) = answer else { continue };
        // While the cache has too much to do it keeps no copies.
        let _ = cache.try_send(Fill(key, item.clone(), changes));
        let who = format!("peer {}", from.name().escape_default());
        return HttpResponse::Ok().insert_header(("x-cache", who)).body(item.value);
    }
    HttpResponse::NotFound().insert_header(("x-cache", "miss")).finish()
}

/// Here, and the others are told that theirs is old.
#[put("/item/{key}")]
async fn write(
    key: web::Path<String>,
    value: Bytes,
    cache: web::Data<Addr<Cache>>,
    node: web::Data<Cluster>,
) -> impl Responder {
    let key = key.into_inner();
    if key.len() > KEY {
        return HttpResponse::UriTooLong().body(format!("a key has at most {KEY} bytes"));
    }
    if cache.send(Write(key.clone(), value)).await.is_err() {
        return unavailable("no cache");
    }
    match node.broadcast(&Invalidate { key }) {
        Ok(_) => HttpResponse::NoContent().finish(),
        Err(error) => unavailable(&format!("written here, but the others were not told: {error}")),
    }
}

/// The others, and what the links to them have done.
#[get("/peers")]
async fn peers(node: web::Data<Cluster>) -> impl Responder {
    let mut peers = node.peers();
    peers.sort_by(|a, b| a.id().name().cmp(b.id().name()));
    let row = |peer: &actix_memberlist::Peer| {
        let (member, link) = (peer.member()?, peer.status());
        Some(json!({
            "name": member.name(), "addr": member.addr.to_string(), "state": member.state.to_string(),
            "rtt_us": link.rtt.map(|rtt| rtt.as_micros() as u64), "sent": link.sent, "queued": link.queued,
        }))
    };
    HttpResponse::Ok().json(peers.iter().filter_map(row).collect::<Vec<_>>())
}

fn unavailable(why: &str) -> HttpResponse {
    HttpResponse::ServiceUnavailable().body(why.to_owned())
}

#[actix_web::main]
async fn main() -> ExitCode {
    common::logs("warn");
    let mut http = SocketAddr::from((Ipv4Addr::LOCALHOST, 8080));
    let mut keep = 60;
    let usage = "cache [--http ADDR (default 127.0.0.1:8080)] [--keep SECONDS (default 60)]";
    let options = Options::read(usage, |option, args| {
        match option {
            "http" => http = args.value()?.parse()?,
            "keep" => keep = args.value()?.parse()?,
            _ => return Ok(false),
        }
        Ok(true)
    });
    match serve(options, http, keep).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options, http: SocketAddr, keep: u32) -> Result<(), Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let node = options.searching().start().await?;
    println!("{} listens on {}", options.name, node.view().local().addr);
    let cache = Cache { keep: Duration::from_secs(keep.into()), items: BTreeMap::new(), changes: 0 }.start();
    let _subscriptions = (
        node.serve::<Invalidate>(cache.clone().recipient())?,
        node.serve::<Lookup>(cache.clone().recipient())?,
    );

    // Each worker, a thread of its own, has the same node.
    let (cluster, items) = (web::Data::new(node.clone()), web::Data::new(cache));
    let app = move || {
        let app = App::new().app_data(cluster.clone()).app_data(items.clone());
        app.app_data(web::PayloadConfig::new(ITEM)).service(read).service(write).service(peers)
    };
    let server = HttpServer::new(app)
        .bind(http)
        .map_err(|error| format!("cannot serve HTTP on {http}: {error}"))?
        .workers(2)
        .disable_signals();
    for addr in server.addrs() {
        println!("{} serves http://{addr}", options.name);
    }
    let server = server.run();
    let handle = server.handle();

    let mut server = std::pin::pin!(server);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut server => {
            node.shutdown().await;
            return Ok(ended?);
        }
    }
    println!("{} leaves", options.name);
    // The server goes on answering meanwhile; see examples/actix_web.rs.
    let stop = async {
        node.leave(FAREWELL).await?;
        handle.stop(true).await;
        node.shutdown().await;
        Ok::<(), Error>(())
    };
    let (stopped, ended) = tokio::join!(stop, server);
    stopped?;
    Ok(ended?)
}
