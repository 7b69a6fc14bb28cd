//! Whom to look for of those who are missing, and when: the way in which the halves of a partition find each
//! other again, however long it lasted.
//!
//! ```text
//!          every interval ± 50 %: somebody who is missing            answers, and is still missing
//! waiting ─────────────────────────────────────────► asked by a ping ─────────────────────────────► states exchanged
//!                                                    (or dialled)     after a random moment
//! ```
//!
//! A ping comes first, since it costs a black hole nothing; every fourth attempt goes over a stream, for
//! networks in which no datagram gets through. While a seed is missing, one more in four goes to it.
//!
//! Halves find each other in many places at once. So each node waits for a random moment before it exchanges
//! states: mostly somebody else has been faster, and gossip has told the rest. That keeps the number of exchanges
//! the same for ten nodes and for a thousand.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use rand::{Rng, RngExt, seq::SliceRandom};

use crate::{
    config::Config,
    member::{Member, MemberState, canonical},
    view::View,
};

/// Seeds that are remembered. The oldest makes room.
pub const MAX_SEEDS: usize = 64;

/// Nodes that look for one who is missing, within one interval. In a large cluster with few dead each node looks
/// less often, or a single dead host would get a packet of everybody for days.
const SEARCHERS: usize = 20;

/// Of so many attempts one goes over a stream, and one more to a seed, if any is missing.
const EVERY: u32 = 4;

/// So many of those who died last are tried before the others, in an order of chance.
const LATEST: usize = 16;

/// Pause before an exchange, for each member: others find a way at the same time.
const PAUSE_PER_MEMBER: Duration = Duration::from_millis(10);

/// Addresses through which this node has joined, or was told to.
#[derive(Clone, Debug, Default)]
pub struct Seeds(VecDeque<SocketAddr>);

impl Seeds {
    /// Remembers an address. It is the last to be forgotten now.
    pub fn note(&mut self, addr: SocketAddr) {
        let addr = canonical(addr);
        if self.0.back() == Some(&addr) {
            return;
        }
        self.0.retain(|known| *known != addr);
        if self.0.len() == MAX_SEEDS {
            self.0.pop_front();
        }
        self.0.push_back(addr);
    }

    /// All of them, the latest last.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().copied()
    }

    /// Those where nobody is present, and from where nobody has left: whoever leaves comes back by itself. `there` are
    /// those who were found at the others, and who mostly still are: so the table need not be searched.
    fn missing(&self, view: &View, there: &mut Vec<Arc<str>>) -> Vec<SocketAddr> {
        let mut missing: Vec<_> = self.iter().filter(|addr| view.local().addr != *addr).collect();
        there.retain(|name| view.get(name).is_some_and(|member| found(&mut missing, member)));
        let mut all = view.all();
        while !missing.is_empty()
            && let Some(member) = all.next()
        {
            if found(&mut missing, member) {
                there.push(member.id.shared_name().clone());
            }
        }
        missing
    }
}

/// Takes the addresses out at which that member is, or has left; whether there is any.
fn found(missing: &mut Vec<SocketAddr>, member: &Member) -> bool {
    let before = missing.len();
    if member.state != MemberState::Dead {
        missing.retain(|addr| *addr != member.addr);
    }
    missing.len() < before
}

/// Somebody who is looked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Missing {
    /// A dead member of that name.
    Member(Arc<str>),
    /// Whoever is at the address of a seed.
    Seed,
}

/// How somebody is looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// By a ping, and an exchange of states once it is answered.
    Ping,
    /// By an exchange of states at once.
    Dial,
}

/// One attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Who is looked for.
    pub whom: Missing,
    /// Where.
    pub addr: SocketAddr,
    /// How.
    pub way: Way,
    /// Before the exchange of states, if the one is still missing then.
    pub pause: Duration,
}

impl Attempt {
    /// Whether it has become needless.
    pub fn is_over(&self, view: &View) -> bool {
        let back = match &self.whom {
            Missing::Member(name) => {
                view.is_on_probation(name)
                    || view.get(name).is_none_or(|member| member.state != MemberState::Dead)
            }
            Missing::Seed => view.alive().any(|member| member.addr == self.addr),
        };
        back || view.local().state.is_gone()
    }
}

/// The search of one node.
#[derive(Debug)]
pub struct Heal {
    interval: Duration,
    next: Option<Instant>,
    attempts: u32,
    /// Who died last. It may hold some who are back, and so may the next one.
    latest: Vec<Arc<str>>,
    /// All who were dead when it was filled, the next one last.
    rest: Vec<Arc<str>>,
    /// Who was found at seeds.
    at_seeds: Vec<Arc<str>>,
}

impl Heal {
    /// The first attempt comes after an interval, give or take a half.
    pub fn new(config: &Config, now: Instant, rng: &mut impl Rng) -> Self {
        let interval = config.heal_interval;
        let attempts = rng.random_range(0..EVERY);
        let mut heal = Self {
            interval,
            next: None,
            attempts,
            latest: Vec::new(),
            rest: Vec::new(),
            at_seeds: Vec::new(),
        };
        heal.schedule(now, rng);
        heal
    }

    /// When [`Heal::on_time`] has something to do; never with an interval of zero.
    pub fn due(&self) -> Option<Instant> {
        self.next
    }

    /// A member has died. It is among the next to be tried, since a fault that is short is found early.
    pub fn died(&mut self, name: Arc<str>, rng: &mut impl Rng) {
        if self.interval.is_zero() {
            return;
        }
        if self.latest.len() == LATEST {
            self.latest.swap_remove(rng.random_range(0..LATEST));
        }
        self.latest.push(name);
    }

    /// The last attempt is still under way: whoever is next keeps its turn for the next time.
    pub fn wait(&mut self, now: Instant, rng: &mut impl Rng) {
        self.schedule(now, rng);
    }

    /// The attempt that is due, if there is one and anybody is missing. `seeds` gives those that are known.
    pub fn on_time(
        &mut self,
        view: &View,
        seeds: impl FnOnce() -> Seeds,
        now: Instant,
        rng: &mut impl Rng,
    ) -> Option<Attempt> {
        if self.next.is_none_or(|next| now < next) {
            return None;
        }
        self.schedule(now, rng);
        if view.local().state.is_gone() {
            return None;
        }
        // Who is on probation has been found.
        let dead = view.count(MemberState::Dead) - view.on_probation().len();
        let seeds = seeds().missing(view, &mut self.at_seeds);
        let missing = dead + seeds.len();
        let present = view.alive_count().max(1);
        if missing == 0 || rng.random_range(0..present) >= SEARCHERS.saturating_mul(missing) {
            return None;
        }
        self.attempts = self.attempts.wrapping_add(1);
        let (other, seed) = (self.attempts.is_multiple_of(EVERY), self.attempts % EVERY == EVERY / 2);
        let pause = PAUSE_PER_MEMBER
            .saturating_mul(u32::try_from(present).unwrap_or(u32::MAX))
            .min(self.interval)
            .mul_f64(rng.random::<f64>());
        if !seeds.is_empty() && (dead == 0 || seed) {
            let addr = seeds[rng.random_range(0..seeds.len())];
            return Some(Attempt { whom: Missing::Seed, addr, way: Way::Dial, pause });
        }
        let (name, addr) = self.next_dead(view, rng)?;
        let way = if other { Way::Dial } else { Way::Ping };
        Some(Attempt { whom: Missing::Member(name), addr, way, pause })
    }

    /// Every other time one of those who died last. Else each dead member in turn, in an order of chance: however
    /// many there are, and even if somebody dies all the time, none is left out.
    fn next_dead(&mut self, view: &View, rng: &mut impl Rng) -> Option<(Arc<str>, SocketAddr)> {
        let is_missing =
            |member: &&Arc<Member>| member.state == MemberState::Dead && !view.is_on_probation(member.name());
        let dead = |name: &Arc<str>| view.get(name).filter(is_missing);
        while self.attempts.is_multiple_of(2) && !self.latest.is_empty() {
            let name = self.latest.swap_remove(rng.random_range(0..self.latest.len()));
            if let Some(member) = dead(&name) {
                return Some((name, member.addr));
            }
        }
        for _ in 0..2 {
            while let Some(name) = self.rest.pop() {
                if let Some(member) = dead(&name) {
                    return Some((name, member.addr));
                }
            }
            let all = view.all().filter(is_missing);
            self.rest = all.map(|member| member.id.shared_name().clone()).collect();
            self.rest.shuffle(rng);
        }
        None
    }

    fn schedule(&mut self, now: Instant, rng: &mut impl Rng) {
        let pause = self.interval.mul_f64(rng.random_range(0.5..1.5));
        self.next = (!self.interval.is_zero()).then(|| now + pause);
    }
}

#[cfg(test)]
mod tests;
