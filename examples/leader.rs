//! The oldest member leads, without a vote: each node works it out from its own view.
//!
//! ```text
//! cargo run --example leader -- --name a --bind 127.0.0.1:7001
//! cargo run --example leader -- --name b --bind 127.0.0.1:7002 --join 127.0.0.1:7001
//! cargo run --example leader -- --name c --bind 127.0.0.1:7003 --join 127.0.0.1:7001
//! ```
//!
//! Then kill the first one.
//!
//! **Who is the oldest.** All nodes must say the same of the same members. `View::rank` does that, but it goes by name:
//! a newcomer called `aaron` would take over. `Member::since` is when *this* node saw a member's state change, and differs
//! from node to node. So each node says in a tag when it was started, by its own clock, and whoever has the smallest number
//! leads; of two with the same the first by name. A clock that is wrong makes somebody lead too early or too late, but
//! it is the same one for all.
//!
//! **What this does not promise.** There can be two leaders at once: while news travels, since a crash is known to one
//! node some seconds before it is known to another; during a partition, on each side one; and when a process was
//! stopped for a while and goes on, it leads until it has noticed that it was given up. Nothing in a view can rule that
//! out. It is good enough where two at once cost some work done twice: to sweep, to warm up, to report. Where two at
//! once do harm, take a lock service with fencing (etcd, ZooKeeper, a row in the database), or check at what is written.
//!
//! **A recipe that makes it rare.** `--quorum N`: who sees fewer than N members, itself among them, has no leader, and
//! steps down at once. With N more than half of all the nodes that there will ever be, a minority that is cut off is
//! without a leader as soon as it has noticed. `--stable-after SECONDS`: a new leader begins when its claim has stood
//! for so long, which leaves the old one the time to notice. It takes a small minority longer than the rest, for it has
//! nobody to confirm what it suspects: of 160 clusters of 3 to 9 nodes, with the settings `local` and `lan`, that were
//! cut in two in virtual time, the smaller part was up to 29 s behind the larger. So take 60, and more where machines are
//! slow. It stays a matter of time, and time is what a stopped process does not see.
//!
//! An old leader that was cut off, and not restarted, leads again when it is back; a restarted one is the youngest.

use std::{
    process::ExitCode,
    time::{Duration, SystemTime},
};

use actix::prelude::*;
use actix_memberlist::{Cluster, Member, MemberEvent, NodeId, Replay, View};
use lexopt::prelude::*;
use tokio::signal::unix::{SignalKind, signal};

mod common;

use common::options::Options;

type Error = Box<dyn std::error::Error>;

/// The tag that says when a node was started, in milliseconds of Unix time.
const STARTED: &str = "started";

/// How long the farewell may take.
const FAREWELL: Duration = Duration::from_secs(5);

/// How careful to be.
#[derive(Clone, Copy)]
struct Care {
    quorum: usize,
    stable_after: Duration,
}

/// When a member was started. Who does not say so is the youngest.
fn started(member: &Member) -> u64 {
    member.tags.get(STARTED).and_then(|millis| millis.parse().ok()).unwrap_or(u64::MAX)
}

/// Who is to lead by this view: the oldest, if enough are there. A suspect counts until it is dead.
fn claim(view: &View, quorum: usize) -> Option<NodeId> {
    let oldest = view.alive().min_by_key(|member| (started(member), member.name()))?;
    (view.alive_count() >= quorum).then(|| oldest.id.clone())
}

/// Follows the members, and says who leads.
struct Watch {
    node: Cluster,
    care: Care,
    /// Who is to lead, since the last change of it.
    claim: Option<NodeId>,
    /// Who leads: the same, some time later.
    leader: Option<NodeId>,
    waiting: Option<SpawnHandle>,
}

impl Actor for Watch {
    type Context = Context<Self>;
}

impl Handler<MemberEvent> for Watch {
    type Result = ();
    fn handle(&mut self, _: MemberEvent, ctx: &mut Context<Self>) {
        // The view is never older than the event. What matters is who is there now, not how it came to that.
        let view = self.node.view();
        let claim = claim(&view, self.care.quorum);
        if claim != self.claim {
            self.change(&view, claim, ctx);
        }
    }
}

impl Watch {
    /// Whoever led does so no more, at once; whoever is to lead does so later.
    fn change(&mut self, view: &View, claim: Option<NodeId>, ctx: &mut Context<Self>) {
        if let Some(waiting) = self.waiting.take() {
            ctx.cancel_future(waiting);
        }
        if let Some(leader) = self.leader.take() {
            println!("{} leads no more", self.called(&leader));
        }
        match &claim {
            Some(id) => {
                let Care { stable_after, .. } = self.care;
                println!("{} will lead, if that stays so for {stable_after:?}", self.called(id));
                self.waiting = Some(ctx.run_later(stable_after, |watch, _| watch.take_up()));
            }
            None => {
                println!("no leader: {} of {} members that are needed", view.alive_count(), self.care.quorum)
            }
        }
        self.claim = claim;
    }

    fn take_up(&mut self) {
        self.waiting = None;
        self.leader = self.claim.clone();
        if let Some(leader) = &self.leader {
            // Here, if it is this node, it would begin its work.
            println!("{} leads", self.called(leader));
        }
    }

    fn called(&self, id: &NodeId) -> String {
        let own = *id == self.node.view().local().id;
        format!("{}{}", id.name(), if own { " (this node)" } else { "" })
    }
}

#[actix::main]
async fn main() -> ExitCode {
    common::logs("warn");
    let mut care = Care { quorum: 1, stable_after: Duration::from_secs(3) };
    let usage = "leader [--quorum N (default 1)] [--stable-after SECONDS (default 3)]";
    let options = Options::read(usage, |option, args| {
        match option {
            "quorum" => care.quorum = args.value()?.parse()?,
            "stable-after" => care.stable_after = Duration::from_secs(args.value()?.parse()?),
            _ => return Ok(false),
        }
        Ok(true)
    });
    match lead(options, care).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

async fn lead(options: Options, care: Care) -> Result<(), Error> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let node = options.searching().tag(STARTED, now.as_millis().to_string()).start().await?;
    println!("{} listens on {}", options.name, node.view().local().addr);
    println!("no leader yet: {} members are needed", care.quorum);
    let watch = Watch { node: node.clone(), care, claim: None, leader: None, waiting: None };
    let _subscription = node.subscribe(watch.start().recipient(), Replay::Snapshot)?;

    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    // A leader would end its work here, before anybody takes over.
    node.leave(FAREWELL).await?;
    node.shutdown().await;
    Ok(())
}
