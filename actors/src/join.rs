//! Joining: from seeds as a user writes them to full states exchanged, all at once.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};

use memberlist_protocol::{
    member::{NodeId, canonical, check_name},
    view::View,
};
use tokio::{
    sync::{Semaphore, oneshot},
    time::{Instant, timeout, timeout_at},
};

use crate::{
    errors::JoinError,
    inbox::Refused,
    messages::{ToState, ToTransport},
    ring::Doors,
};

/// Addresses that are tried at once.
const AT_ONCE: usize = 64;

/// How long an attempt counts among those.
const SLOW: Duration = Duration::from_millis(500);

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

async fn resolve(seed: Seed) -> Result<Vec<SocketAddr>, JoinError> {
    match seed {
        Seed::Addr(addr) => Ok(vec![addr]),
        Seed::Host(host, port) => {
            let found = tokio::net::lookup_host((&*host, port)).await;
            let found = found.map_err(|error| JoinError::Resolve(format!("{host}: {error}")))?;
            let mut addrs: Vec<_> = found.map(canonical).collect();
            addrs.sort_unstable();
            addrs.dedup();
            if addrs.is_empty() { Err(JoinError::Resolve(host)) } else { Ok(addrs) }
        }
    }
}

/// Joins all seeds at once, and waits for the last one or the end of the time.
pub(crate) async fn join(doors: Arc<Doors>, seeds: Vec<String>) -> Result<Joined, JoinError> {
    if seeds.is_empty() {
        return Err(JoinError::NoSeeds);
    }
    let deadline = Instant::now() + doors.config.join_timeout;
    let port = doors.view.borrow().local().addr.port();
    let parsed: Vec<_> = seeds.iter().map(|seed| parse(seed, port)).collect();
    if parsed.iter().any(Result::is_ok) {
        rejoin(&doors).await?;
    }
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let attempts = parsed.into_iter().map(|parsed| {
        let (doors, at_once) = (doors.clone(), at_once.clone());
        async move {
            let attempt = async {
                let addrs = resolve(parsed?).await?;
                one_of(all(addrs.into_iter().map(|addr| attempt(doors.clone(), at_once.clone(), addr))).await)
            };
            timeout_at(deadline, attempt).await.unwrap_or(Err(JoinError::Timeout))
        }
    });
    let outcomes = all(attempts).await;
    let mut joined = Joined { reached: Vec::new(), failed: Vec::new() };
    for (seed, outcome) in seeds.into_iter().zip(outcomes) {
        match outcome {
            Ok(reached) => joined.reached.extend(reached),
            Err(error) => joined.failed.push((seed, error)),
        }
    }
    joined.reached.sort();
    joined.reached.dedup();
    match (joined.reached.is_empty(), joined.failed.len()) {
        (false, _) => Ok(joined),
        (true, 1) => Err(joined.failed.remove(0).1),
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

/// Who was reached at any address of a seed; if nobody was, why not at the first.
fn one_of(outcomes: Vec<Result<NodeId, JoinError>>) -> Result<Vec<NodeId>, JoinError> {
    let (mut reached, mut first) = (Vec::new(), None);
    for outcome in outcomes {
        match outcome {
            Ok(id) => reached.push(id),
            Err(error) => first = first.or(Some(error)),
        }
    }
    if reached.is_empty() { Err(first.unwrap_or(JoinError::NoSeeds)) } else { Ok(reached) }
}

async fn attempt(doors: Arc<Doors>, at_once: Arc<Semaphore>, addr: SocketAddr) -> Result<NodeId, JoinError> {
    if addr == doors.view.borrow().local().addr {
        return Err(JoinError::Oneself);
    }
    if !doors.config.allows(addr.ip()) {
        return Err(JoinError::NotAllowed(addr));
    }
    let permit = at_once.acquire().await.map_err(|_| JoinError::Stopped)?;
    let (reply, mut answer) = oneshot::channel();
    doors.transport.command(ToTransport::Join { addr, reply }).map_err(|refused| match refused {
        Refused::Busy => JoinError::Busy,
        Refused::Closed => JoinError::Stopped,
    })?;
    // Whoever does not answer soon is waited for, but keeps nobody else from being tried.
    if let Ok(answer) = timeout(SLOW, &mut answer).await {
        return answer.unwrap_or(Err(JoinError::Lost));
    }
    drop(permit);
    answer.await.unwrap_or(Err(JoinError::Lost))
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
    let mut view = doors.view.subscribe();
    let wait = async {
        match until {
            Until::Members(n) => view.wait_for(|view: &View| view.alive_count() >= n).await.is_ok(),
            Until::Settled { quiet } => loop {
                let rev = view.borrow_and_update().rev();
                let changed = view.wait_for(|view| view.rev() != rev);
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
