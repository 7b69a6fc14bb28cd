//! A web service that is a member of a cluster, and stops in the right order.
//!
//! ```text
//! cargo run --example actix_web -- --port 8080
//! cargo run --example actix_web -- --port 8081 --bind 127.0.0.1:0 --join 127.0.0.1:7946
//! curl localhost:8080/members localhost:8080/healthz localhost:8080/events
//! ```
//!
//! On SIGTERM or SIGINT it says farewell to the cluster first, so that nobody sends it work any more; then it
//! answers the requests that it has; then the node stops. A server that handles signals by itself would stop
//! the actix system, and with it the node, before the farewell is out.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use actix::prelude::*;
use actix_memberlist::{Cluster, DEFAULT_PORT, MemberEvent, MemberState, Replay};
use actix_web::{App, HttpResponse, HttpServer, Responder, get, web};
use lexopt::prelude::*;
use serde_json::{Value, json};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

mod common;

type Error = Box<dyn std::error::Error>;

/// Local health from which on this process is too slow to be trusted with requests.
const UNHEALTHY: u8 = 4;

/// How long a request waits for an actor.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

const USAGE: &str = "actix_web [--port PORT (HTTP on loopback, default 8080)] \
                     [--bind ADDR (default 127.0.0.1:7946)] [--join SEED[,SEED..]].. \
                     [--name NAME (default web-PORT)]";

struct Options {
    port: u16,
    bind: SocketAddr,
    seeds: Vec<String>,
    name: Option<String>,
}

fn options() -> Result<Options, lexopt::Error> {
    let bind = (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into();
    let mut options = Options { port: 8080, bind, seeds: Vec::new(), name: None };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("port") => options.port = args.value()?.parse()?,
            Long("bind") => options.bind = args.value()?.parse()?,
            Long("join") => {
                let seeds: String = args.value()?.parse()?;
                options.seeds.extend(seeds.split(',').map(|seed| seed.trim().to_owned()));
            }
            Long("name") => options.name = Some(args.value()?.parse()?),
            Long("help") | Short('h') => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    Ok(options)
}

/// An actor of our own: counts what happens to the members.
#[derive(Default)]
struct Counter {
    counts: BTreeMap<&'static str, u64>,
}

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Counter {
    type Result = ();
    fn handle(&mut self, event: MemberEvent, _: &mut Context<Self>) {
        let (kind, member, detail) = common::words(&event);
        println!("{}", format!("{member} {kind} {detail}").trim());
        *self.counts.entry(kind).or_default() += 1;
    }
}

/// Asks for the counts.
#[derive(Message)]
#[rtype(result = "BTreeMap<&'static str, u64>")]
struct Counts;

impl Handler<Counts> for Counter {
    type Result = MessageResult<Counts>;
    fn handle(&mut self, _: Counts, _: &mut Context<Self>) -> Self::Result {
        MessageResult(self.counts.clone())
    }
}

/// The view is a value: reading it asks nobody.
#[get("/members")]
async fn members(node: web::Data<Cluster>) -> impl Responder {
    let view = node.view();
    let mut members: Vec<_> = view.all().collect();
    members.sort_by(|a, b| a.name().cmp(b.name()));
    let members: Vec<Value> = members
        .iter()
        .map(|m| json!({ "name": m.name(), "addr": m.addr.to_string(), "state": m.state.to_string() }))
        .collect();
    HttpResponse::Ok().json(members)
}

#[get("/healthz")]
async fn healthz(node: web::Data<Cluster>) -> impl Responder {
    let (state, health) = (node.view().local().state, node.health());
    let body = json!({ "state": state.to_string(), "health": health });
    if state == MemberState::Alive && health < UNHEALTHY {
        HttpResponse::Ok().json(body)
    } else {
        HttpResponse::ServiceUnavailable().json(body)
    }
}

#[get("/events")]
async fn events(counter: web::Data<Addr<Counter>>) -> impl Responder {
    match counter.send(Counts).timeout(PATIENCE).await {
        Ok(counts) => HttpResponse::Ok().json(counts),
        Err(error) => HttpResponse::ServiceUnavailable().json(json!({ "error": error.to_string() })),
    }
}

#[actix_web::main]
async fn main() -> ExitCode {
    common::logs("warn");
    let options = match options() {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match serve(options).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(options: Options) -> Result<(), Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let name = options.name.unwrap_or_else(|| format!("web-{}", options.port));
    let node = Cluster::builder(name).bind(options.bind).start().await?;
    let counter = Counter::default().start();
    let _subscription = node.subscribe(counter.clone().recipient(), Replay::None)?;

    let (cluster, counting) = (web::Data::new(node.clone()), web::Data::new(counter));
    let app = move || {
        let app = App::new().app_data(cluster.clone()).app_data(counting.clone());
        app.service(members).service(healthz).service(events)
    };
    let server = HttpServer::new(app)
        .bind((Ipv4Addr::LOCALHOST, options.port))
        .map_err(|error| format!("cannot serve HTTP on 127.0.0.1:{}: {error}", options.port))?
        .workers(2)
        .disable_signals();
    for addr in server.addrs() {
        println!(
            "{} is a member at {}, and serves http://{addr}",
            node.view().local().name(),
            node.view().local().addr
        );
    }
    let server = server.run();
    let handle = server.handle();

    let mut server = std::pin::pin!(server);
    let mut joined = options.seeds.is_empty();
    let mut joining = std::pin::pin!(join(&node, &options.seeds));
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            () = &mut joining, if !joined => joined = true,
            ended = &mut server => {
                node.shutdown().await;
                return Ok(ended?);
            }
        }
    }
    println!("leaving");
    // The server goes on answering meanwhile.
    let stop = async {
        node.leave(FAREWELL).await?;
        handle.stop(true).await;
        node.shutdown().await;
        Ok::<(), Error>(())
    };
    let (stopped, ended) = tokio::join!(stop, server);
    stopped?;
    println!("stopped");
    Ok(ended?)
}

/// Joins through the seeds, for as long as it takes.
async fn join(node: &Cluster, seeds: &[String]) {
    let seeds: Vec<&str> = seeds.iter().map(String::as_str).collect();
    while let Err(error) = node.join(&seeds).await {
        eprintln!("cannot join: {error}");
        sleep(Duration::from_secs(1)).await;
    }
}
