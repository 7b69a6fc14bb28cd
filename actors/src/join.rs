//! Joining: from seeds as a user writes them to full states exchanged, all at once.

use std::{
    collections::BTreeSet,
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::Duration,
};

use memberlist_protocol::{
    member::{NodeId, canonical, check_name},
    view::View,
};
use rand::seq::SliceRandom;
use tokio::{
    sync::{Notify, Semaphore, oneshot},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    errors::JoinError,
    inbox::Refused,
    messages::{Exchange, ToState, ToTransport},
    metrics::Lost,
    resolve::is_service,
    ring::Doors,
    supervisor::CatchPanic,
};

/// Addresses that are tried at once.
const AT_ONCE: usize = 64;

/// How long an attempt counts among those.
const SLOW: Duration = Duration::from_millis(250);

/// Slow attempts that are waited for. Those beyond are given up: they would take the streams that the node
/// needs for others.
const WAITED_FOR: usize = 256;

/// Part of a join's time that names may take, so that it can still say which one did.
const RESOLVING: f64 = 0.75;

/// Addresses of one name that are tried: a name of the whole cluster need not be dialled as a whole.
const MAX_ADDRS: usize = 64;

/// Most of a bad seed that an error repeats, in characters.
const QUOTED: usize = 300;

/// Whom a join has reached, and whom not.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Joined {
    /// Nodes whose state was taken in, each once. This node itself never counts.
    pub reached: Vec<NodeId>,
    /// Seeds that could not be joined, and why.
    pub failed: Vec<(String, JoinError)>,
}

/// What to wait for, with `Cluster::ready`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// At least so many members count, this node included.
    Members(usize),
    /// Nothing has changed for so long.
    Settled {
        /// How long.
        quiet: Duration,
    },
}

/// A seed as it was written: an address, or a name to be resolved.
#[derive(Debug, PartialEq, Eq)]
enum Seed {
    Addr(SocketAddr),
    Host(String, u16),
}

/// Reads `host`, `host:port`, `address`, `[address]:port`, each with a `name/` in front or not. A name of a
/// node is checked, but whoever answers counts.
fn parse(seed: &str, port: u16) -> Result<Seed, JoinError> {
    let bad = |reason| JoinError::BadSeed { seed: seed.chars().take(QUOTED).collect(), reason };
    let host = match seed.split_once('/') {
        Some((name, rest)) => {
            check_name(name).map_err(|_| bad("the name before the slash is no node's"))?;
            rest
        }
        None => seed,
    };
    if let Ok(addr) = host.parse::<SocketAddr>() {
        return if addr.port() == 0 {
            Err(bad("port 0 is nobody's"))
        } else {
            Ok(Seed::Addr(canonical(addr)))
        };
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Ok(Seed::Addr(canonical(SocketAddr::new(ip, port))));
    }
    let (host, port) = match host.split_once(':') {
        Some((service, _)) if is_service(service) => {
            return Err(bad("the records of a service have ports of their own"));
        }
        Some((host, digits)) => {
            let port: u16 = digits.parse().map_err(|_| bad("the port is no number from 1 to 65535"))?;
            if port == 0 {
                return Err(bad("port 0 is nobody's"));
            }
            (host, port)
        }
        None => (host, port),
    };
    let in_name = |c: char| c.is_alphanumeric() || "-._".contains(c);
    match host {
        "" => Err(bad("there is no host in it")),
        _ if host.len() > 253 => Err(bad("a host name has at most 253 bytes")),
        _ if !host.chars().all(in_name) => Err(bad("there is a character in it that no host name has")),
        _ => Ok(Seed::Host(host.to_owned(), port)),
    }
}

/// What becomes of an address that a present member has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Members {
    /// It is tried like any other.
    Try,
    /// There is nothing to do there.
    Skip,
}

/// One join, as each of its attempts sees it.
struct Joining {
    doors: Arc<Doors>,
    /// What is resolved at once, and what is dialled at once.
    resolving: Semaphore,
    dialling: Semaphore,
    /// What is still waited for when its turn is over.
    waiting: Semaphore,
    /// Addresses where there is nothing to do.
    known: BTreeSet<SocketAddr>,
    members: Members,
}

impl Joining {
    fn new(doors: Arc<Doors>, members: Members) -> Self {
        let known = match members {
            Members::Try => BTreeSet::new(),
            Members::Skip => doors.view.borrow().alive().map(|member| member.addr).collect(),
        };
        let [resolving, dialling] = [AT_ONCE; 2].map(Semaphore::new);
        Self { doors, resolving, dialling, waiting: Semaphore::new(WAITED_FOR), known, members }
    }

    async fn seed(&self, seed: Seed) -> Result<Vec<NodeId>, JoinError> {
        let mut addrs = self.resolve(seed).await?;
        if !self.known.is_empty() {
            addrs.retain(|addr| !self.known.contains(addr));
            if addrs.is_empty() {
                return Ok(Vec::new());
            }
        }
        enough(addrs.into_iter().map(|addr| self.attempt(addr))).await
    }

    async fn resolve(&self, seed: Seed) -> Result<Vec<SocketAddr>, JoinError> {
        let (host, port) = match seed {
            Seed::Addr(addr) => return Ok(vec![addr]),
            Seed::Host(host, port) => (host, port),
        };
        let limit = self.doors.config.join_timeout.mul_f64(RESOLVING);
        let found = self
            .in_turn(&self.resolving, async {
                // Its code is not ours.
                let answer = async { self.doors.resolver.resolve(&host, port).await };
                timeout(limit, CatchPanic(Box::pin(answer))).await
            })
            .await?;
        let failed = |why: &dyn std::fmt::Display| {
            JoinError::Resolve(format!("{host}: {why}").chars().take(QUOTED + host.len()).collect())
        };
        let found = found
            .map_err(|_| failed(&format_args!("no answer within {limit:?}")))?
            .map_err(|panic| failed(&format_args!("the resolver panicked: {panic}")))?
            .map_err(|error| failed(&error))?;
        let mut addrs: Vec<_> = found.into_iter().map(canonical).filter(|addr| addr.port() != 0).collect();
        addrs.sort_unstable();
        addrs.dedup();
        if addrs.len() > MAX_ADDRS {
            // By chance, or the same ones would be left out each time.
            let mut chance = self.doors.chance.lock().unwrap_or_else(PoisonError::into_inner);
            let (chosen, rest) = addrs.partial_shuffle(&mut *chance, MAX_ADDRS);
            self.doors.counters.drop_many(Lost::TooManyAddrs, rest.len());
            addrs = chosen.to_vec();
        }
        if addrs.is_empty() { Err(failed(&"it has no address")) } else { Ok(addrs) }
    }

    async fn attempt(&self, addr: SocketAddr) -> Result<NodeId, JoinError> {
        if addr == self.doors.view.borrow().local().addr {
            return Err(JoinError::Oneself);
        }
        if !self.doors.config.allows(addr.ip()) {
            return Err(JoinError::NotAllowed(addr));
        }
        // A source means what it gives; what a user tries may be wrong.
        if self.members == Members::Skip {
            self.doors.seeds().note(addr);
        }
        let reached = self
            .in_turn(&self.dialling, async {
                let (reply, answer) = oneshot::channel();
                let join = ToTransport::Join { addr, why: Exchange::Join, reply };
                self.doors.transport.command(join).map_err(|refused| match refused {
                    Refused::Busy => JoinError::Busy,
                    Refused::Closed => JoinError::Stopped,
                })?;
                answer.await.unwrap_or(Err(JoinError::Lost))
            })
            .await?;
        if reached.is_ok() {
            self.doors.seeds().note(addr);
        }
        reached
    }

    /// Does something when it is its turn. What takes long is waited for, but keeps nobody else from its turn.
    async fn in_turn<T>(&self, turns: &Semaphore, work: impl Future<Output = T>) -> Result<T, JoinError> {
        let turn = turns.acquire().await.map_err(|_| JoinError::Stopped)?;
        let mut work = pin!(work);
        // Where answers take longer, so does what is slow.
        let slow = SLOW.max(self.doors.config.probe_timeout / 2);
        if let Ok(done) = timeout(slow, &mut work).await {
            return Ok(done);
        }
        let _waiting = self.waiting.try_acquire().map_err(|_| JoinError::Timeout)?;
        drop(turn);
        Ok(work.await)
    }
}

/// Joins all seeds at once, and waits for the last one or the end of the time.
pub(crate) async fn join(
    doors: Arc<Doors>,
    seeds: Vec<String>,
    members: Members,
) -> Result<Joined, JoinError> {
    if seeds.is_empty() {
        return Err(JoinError::NoSeeds);
    }
    let deadline = Instant::now() + doors.config.join_timeout;
    let port = doors.view.borrow().local().addr.port();
    let parsed: Vec<_> = seeds.iter().map(|seed| parse(seed, port)).collect();
    // Only somebody's word brings a node back that has left.
    if members == Members::Try && parsed.iter().any(Result::is_ok) {
        rejoin(&doors).await?;
    }
    let joining = Joining::new(doors, members);
    let attempts = parsed.into_iter().map(|parsed| {
        let joining = &joining;
        async move {
            let attempt = async { joining.seed(parsed?).await };
            timeout_at(deadline, attempt).await.unwrap_or(Err(JoinError::Timeout))
        }
    });
    let outcomes = all(attempts).await;
    let mut joined = Joined { reached: Vec::new(), failed: Vec::new() };
    for (seed, outcome) in seeds.into_iter().zip(outcomes) {
        match outcome {
            Ok(reached) => joined.reached.extend(reached),
            // A list of all nodes has this one in it.
            Err(JoinError::Oneself) if members == Members::Skip => {}
            Err(error) => joined.failed.push((seed, error)),
        }
    }
    joined.reached.sort();
    joined.reached.dedup();
    match (joined.reached.is_empty(), &joined.failed[..]) {
        (false, _) | (true, []) => Ok(joined),
        // This one does not say of itself where.
        (true, [(_, JoinError::Timeout)]) => Err(JoinError::NoneReached(joined.failed)),
        (true, [(_, error)]) => Err(error.clone()),
        (true, _) => Err(JoinError::NoneReached(joined.failed)),
    }
}

/// If this node has left, it comes back. NodeState is asked in any case: a leave may be on its way there.
async fn rejoin(doors: &Doors) -> Result<(), JoinError> {
    let (reply, answer) = oneshot::channel();
    doors.state.command(ToState::Rejoin { reply }).map_err(|refused| match refused {
        Refused::Busy => JoinError::Busy,
        Refused::Closed => JoinError::Stopped,
    })?;
    answer.await.map_err(|_| JoinError::Lost)
}

/// Who was reached at any address of a seed; if nobody was, why not at the first. Once one is reached, the
/// others are not waited for much longer.
async fn enough(
    attempts: impl IntoIterator<Item = impl Future<Output = Result<NodeId, JoinError>>>,
) -> Result<Vec<NodeId>, JoinError> {
    let reached = Mutex::new(Vec::new());
    let one = Notify::new();
    let attempts = attempts.into_iter().map(|attempt| async {
        let id = attempt.await?;
        reached.lock().unwrap_or_else(PoisonError::into_inner).push(id);
        one.notify_one();
        Ok(())
    });
    let outcomes = tokio::select! {
        biased;
        outcomes = all(attempts) => outcomes,
        () = async { one.notified().await; sleep(SLOW).await } => Vec::new(),
    };
    let reached = reached.into_inner().unwrap_or_else(PoisonError::into_inner);
    if !reached.is_empty() {
        return Ok(reached);
    }
    // A node that says no says more than an address at which there is none.
    let mut errors: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    errors.sort_by_key(|error| match error {
        JoinError::Refused(_) => 0,
        JoinError::NoAnswer(_) | JoinError::Garbled(..) | JoinError::Tls(..) => 1,
        _ => 2,
    });
    Err(errors.into_iter().next().unwrap_or(JoinError::NoSeeds))
}

/// Runs futures side by side.
pub(crate) async fn all<T>(futures: impl IntoIterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut running: Vec<_> = futures.into_iter().map(|future| Some(Box::pin(future))).collect();
    let mut done: Vec<Option<T>> = running.iter().map(|_| None).collect();
    poll_fn(|cx| {
        for (future, done) in running.iter_mut().zip(&mut done) {
            if let Some(Poll::Ready(output)) = future.as_mut().map(|f| Pin::new(f).poll(cx)) {
                (*future, *done) = (None, Some(output));
            }
        }
        if running.iter().all(Option::is_none) { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
    done.into_iter().flatten().collect()
}

/// Waits until the view is as wanted, for as long as the time lasts; says whether it came to that.
pub(crate) async fn ready(doors: Arc<Doors>, until: Until, within: Duration) -> bool {
    let mut view = doors.view.follow();
    let wait = async {
        match until {
            Until::Members(n) => view.until(|view: &View| view.alive_count() >= n).await.is_ok(),
            Until::Settled { quiet } => loop {
                let rev = view.see().rev();
                let changed = view.until(|view| view.rev() != rev);
                match tokio::time::timeout(quiet, changed).await {
                    Err(_) => return true,
                    Ok(Err(_)) => return false,
                    Ok(Ok(_)) => {}
                }
            },
        }
    };
    tokio::time::timeout(within, wait).await.unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_read_in_each_form_that_people_write() {
        let addr = |text: &str| Ok(Seed::Addr(text.parse().unwrap()));
        let host = |text: &str, port| Ok(Seed::Host(text.into(), port));
        for (seed, expected) in [
            ("10.0.0.1:9", addr("10.0.0.1:9")),
            ("10.0.0.1", addr("10.0.0.1:7946")),
            ("name/10.0.0.1:9", addr("10.0.0.1:9")),
            ("::1", addr("[::1]:7946")),
            ("[::1]", addr("[::1]:7946")),
            ("[::1]:9", addr("[::1]:9")),
            ("[::ffff:10.0.0.1]:9", addr("10.0.0.1:9")),
            ("db", host("db", 7946)),
            ("db.example:9", host("db.example", 9)),
            ("n1/db.example", host("db.example", 7946)),
            ("my_db:9", host("my_db", 9)),
            ("db.example.", host("db.example.", 7946)),
            ("_gossip._tcp.db.example", host("_gossip._tcp.db.example", 7946)),
        ] {
            assert_eq!(parse(seed, 7946), expected, "{seed}");
        }
    }

    #[test]
    fn a_bad_seed_is_named_with_what_is_wrong() {
        for (seed, reason) in [
            ("", "no host"),
            (":80", "no host"),
            ("/10.0.0.1:9", "before the slash"),
            ("db:http", "no number"),
            ("db:65536", "no number"),
            ("db:0", "port 0"),
            ("10.0.0.1:0", "port 0"),
            ("_gossip._tcp.db.example:9", "of their own"),
            ("a b", "character"),
            ("http://x", "no number"),
        ] {
            match parse(seed, 7946) {
                Err(JoinError::BadSeed { seed: named, reason: why }) => {
                    assert_eq!(named, seed);
                    assert!(why.contains(reason) || seed == "http://x", "{seed}: {why}");
                }
                other => panic!("{seed}: {other:?}"),
            }
        }
    }
}
