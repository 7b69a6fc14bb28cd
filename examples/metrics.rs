//! A small cluster in one process, with its metrics for Prometheus.
//!
//! ```text
//! cargo run --example metrics -- --port 9600 --nodes 3
//! curl -s localhost:9600/metrics | grep node_instances
//! ```
//!
//! The counters lie in the nodes. They are handed to the exporter when somebody asks, and at no other time.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::ExitCode,
    time::Duration,
};

use actix_memberlist::{Cluster, Metrics, Until};
use actix_web::{App, HttpResponse, HttpServer, Responder, get, web};
use lexopt::prelude::*;
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::{MissedTickBehavior, interval};

mod common;

type Error = Box<dyn std::error::Error>;

const USAGE: &str = "metrics [--port PORT (HTTP on loopback, default 9600; 0 = any)] \
                     [--nodes N (default 3)] [--profile lan|wan|local]";

/// How long the nodes may take to find each other.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the exporter is told to tidy up, which it does not do by itself.
const UPKEEP: Duration = Duration::from_secs(5);

struct Options {
    port: u16,
    nodes: usize,
    config: actix_memberlist::Config,
}

fn options() -> Result<Options, lexopt::Error> {
    let mut options = Options { port: 9600, nodes: 3, config: common::profile("lan")? };
    let mut args = lexopt::Parser::from_env();
    while let Some(arg) = args.next()? {
        match arg {
            Long("port") => options.port = args.value()?.parse()?,
            Long("nodes") => options.nodes = args.value()?.parse()?,
            Long("profile") => {
                let profile: String = args.value()?.parse()?;
                options.config = common::profile(&profile)?;
            }
            Long("help") | Short('h') => {
                println!("{USAGE}");
                std::process::exit(0);
            }
            other => return Err(other.unexpected()),
        }
    }
    if !(1..=1000).contains(&options.nodes) {
        return Err("--nodes must be from 1 to 1000".into());
    }
    Ok(options)
}

/// What each request needs.
struct Scrape {
    nodes: Vec<Cluster>,
    exporter: PrometheusHandle,
}

/// All nodes are of one process, so a label tells them apart.
#[get("/metrics")]
async fn metrics(scrape: web::Data<Scrape>) -> impl Responder {
    for node in &scrape.nodes {
        node.metrics().record(&[("node", node.view().local().name())]);
    }
    HttpResponse::Ok().content_type("text/plain; version=0.0.4").body(scrape.exporter.render())
}

#[actix_web::main]
async fn main() -> ExitCode {
    common::logs("info");
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
    let exporter = PrometheusBuilder::new().install_recorder()?;
    Metrics::describe();
    let nodes = cluster(&options).await?;

    let scrape = web::Data::new(Scrape { nodes: nodes.clone(), exporter: exporter.clone() });
    let server = HttpServer::new(move || App::new().app_data(scrape.clone()).service(metrics))
        .bind((Ipv4Addr::LOCALHOST, options.port))
        .map_err(|error| format!("cannot serve HTTP on 127.0.0.1:{}: {error}", options.port))?
        .workers(1)
        .disable_signals();
    for addr in server.addrs() {
        println!("{} nodes; their metrics are at http://{addr}/metrics", nodes.len());
    }
    let server = server.run();
    let handle = server.handle();
    let mut server = std::pin::pin!(server);
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut upkeep = interval(UPKEEP);
    upkeep.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            stop = &mut interrupt => {
                stop?;
                break;
            }
            _ = upkeep.tick() => exporter.run_upkeep(),
        }
    }
    println!("stopping");
    let (_, ended) = tokio::join!(handle.stop(true), server);
    for node in &nodes {
        node.shutdown().await;
    }
    println!("stopped");
    Ok(ended?)
}

/// Starts the nodes, each on a thread of its own, and lets them find each other.
async fn cluster(options: &Options) -> Result<Vec<Cluster>, Error> {
    let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    let mut nodes: Vec<Cluster> = Vec::new();
    for i in 0..options.nodes {
        let builder = Cluster::builder(format!("node-{i}")).config(options.config.clone()).bind(any);
        let node = builder.start().await?;
        if let Some(seed) = nodes.first() {
            node.join(&[&seed.view().local().addr.to_string()]).await?;
        }
        nodes.push(node);
    }
    for node in &nodes {
        if !node.ready(Until::Members(nodes.len()), PATIENCE).await? {
            return Err("the nodes do not find each other".into());
        }
    }
    Ok(nodes)
}
