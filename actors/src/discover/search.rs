//! Asking the sources: when, and what comes of it.

use std::{io, sync::Arc, time::Duration};

use memberlist_protocol::view::View;
use rand::{RngExt, rngs::Xoshiro256PlusPlus};
use tokio::time::{sleep, timeout};

use super::{
    Discover, MAX_SEEDS,
    apart::{Answer, Apart, Trouble},
};
use crate::{
    errors::{JoinError, Refusal},
    join::{self, Members},
    logs::{self, Line, say},
    metrics::{Lost, up},
    ring::Doors,
};

/// Pause of a node that is alone, after its first look. Each further one is twice as long.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Longest pause of a node that is alone.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// Longest pause of a node that is refused for its name: it waits for the others to find its former run dead, which
/// takes some seconds.
const LONGEST_REFUSED: Duration = Duration::from_secs(5);

/// Pauses are longer or shorter by up to this part, so that nodes started together do not stay together.
const JITTER: f64 = 0.25;

/// A source as the builder was given it.
pub(crate) struct Source {
    kind: &'static str,
    from: From,
}

enum From {
    Fixed(Vec<String>),
    Asked(Box<dyn Discover>),
}

impl Source {
    pub(crate) fn new<D: Discover>(source: D) -> Self {
        let from = match source.fixed() {
            Some(seeds) => From::Fixed(seeds),
            None => From::Asked(Box::new(source)),
        };
        Self { kind: std::any::type_name::<D>(), from }
    }

    /// Starts its thread, if it needs one. Each question may take `limit`.
    pub(crate) fn start(self, limit: Duration) -> io::Result<Running> {
        let from = match self.from {
            From::Fixed(seeds) => Asked::Fixed(seeds),
            From::Asked(source) => Asked::Apart(Apart::start(source, limit)?),
        };
        Ok(Running { kind: self.kind, limit, interval: None, from })
    }
}

/// A source that can be asked.
pub(crate) struct Running {
    kind: &'static str,
    limit: Duration,
    /// Time between two looks in company, if it is not the one of the settings.
    interval: Option<Duration>,
    from: Asked,
}

impl Running {
    /// The members that a node knew before it was started anew. They are of interest as long as it is alone.
    pub(crate) fn remembered(seeds: Vec<String>, limit: Duration) -> Self {
        Self { kind: "the rejoin file", limit, interval: Some(Duration::ZERO), from: Asked::Fixed(seeds) }
    }
}

enum Asked {
    Fixed(Vec<String>),
    Apart(Apart),
}

/// What a node sees around it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Company {
    /// It has left, and must not come back by itself.
    Gone,
    Alone,
    /// It sees others, but the cluster that it looks for does not let it in yet.
    Refused,
    Some,
}

impl Company {
    fn of(view: &View) -> Self {
        match view.alive_count() {
            _ if view.local().state.is_gone() => Self::Gone,
            0 | 1 => Self::Alone,
            _ => Self::Some,
        }
    }
}

/// When to look again.
struct Pace {
    interval: Duration,
    alone: Duration,
    rng: Xoshiro256PlusPlus,
}

impl Pace {
    fn new(interval: Duration, rng: Xoshiro256PlusPlus) -> Self {
        Self { interval, alone: FIRST_PAUSE, rng }
    }

    /// The pause before the next look; none if there is nothing to look for.
    fn pause(&mut self, company: Company) -> Option<Duration> {
        let longest = if company == Company::Refused { LONGEST_REFUSED } else { LONGEST_PAUSE };
        let longest = if self.interval.is_zero() { longest } else { self.interval.min(longest) };
        let pause = match company {
            Company::Gone => return None,
            Company::Some if self.interval.is_zero() => return None,
            Company::Some => {
                self.alone = FIRST_PAUSE;
                self.interval
            }
            Company::Alone | Company::Refused => {
                let pause = self.alone.min(longest);
                self.alone = (pause * 2).min(longest);
                pause
            }
        };
        Some(pause.mul_f64(self.rng.random_range(1.0 - JITTER..1.0 + JITTER)))
    }
}

/// What became of a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// There was nobody new, or there were only such as have been joined, or are not there.
    All,
    /// Somebody still holds another run for the one of this node's name. That run may be dead without being known to
    /// be; those who are in the same position are company, but not the cluster that the node looks for.
    Refused,
}

/// Asks one source for as long as the node runs.
pub(crate) async fn search(doors: Arc<Doors>, source: Running, rng: Xoshiro256PlusPlus) {
    let mut view = doors.view.follow();
    let mut pace = Pace::new(source.interval.unwrap_or(doors.config.discover_interval), rng);
    let (mut due, mut found) = (true, Found::All);
    loop {
        if due {
            found = look(&doors, &source).await;
        }
        let company = Company::of(&view.see());
        let pause = pace.pause(match (company, found) {
            (Company::Some | Company::Alone, Found::Refused) => Company::Refused,
            _ => company,
        });
        let changed = view.until(|view| Company::of(view) != company);
        due = match pause {
            None => {
                let _ = changed.await;
                false
            }
            Some(pause) => timeout(pause, changed).await.is_err(),
        };
    }
}

/// Asks once, and joins who is new.
async fn look(doors: &Arc<Doors>, source: &Running) -> Found {
    let kind = source.kind;
    up(&doors.counters.discoveries);
    let mut seeds = match asked(doors, source).await {
        Ok(seeds) => seeds,
        Err(trouble) => {
            up(&doors.counters.discoveries_failed);
            let of = match trouble {
                Trouble::Failed(_) | Trouble::Gone => Line::SourceFailed,
                Trouble::Late(_) => Line::SourceLate,
                Trouble::Panicked(_) => Line::SourcePanicked,
            };
            let trouble = logs::text(trouble);
            say!(doors, of, warn, source = kind, %trouble, "a source of seeds gave none");
            return Found::All;
        }
    };
    if seeds.len() > MAX_SEEDS {
        doors.counters.drop_many(Lost::TooManySeeds, seeds.len() - MAX_SEEDS);
        let (n, max) = (seeds.len(), MAX_SEEDS);
        say!(doors, Line::TooManySeeds, warn, source = kind, seeds = n, max, "a source has too many seeds");
        seeds.truncate(MAX_SEEDS);
    }
    let taken = |error: &JoinError| *error == JoinError::Refused(Refusal::NameTaken);
    match join::join(doors.clone(), seeds, Members::Skip).await {
        Ok(joined) => {
            let refused = joined.failed.iter().any(|(_, error)| taken(error));
            for (seed, error) in joined.failed {
                let (seed, error) = (logs::name(&seed), logs::text(error));
                say!(doors, Line::SeedNotJoined, debug, source = kind, %seed, %error, "a seed was not joined");
            }
            if refused { Found::Refused } else { Found::All }
        }
        Err(JoinError::Stopped) => Found::All,
        Err(error) => {
            let of = if error == JoinError::NoSeeds { Line::NoSeeds } else { Line::NoneJoined };
            let refused = match &error {
                JoinError::NoneReached(failed) => failed.iter().any(|(_, error)| taken(error)),
                error => taken(error),
            };
            let error = logs::text(error);
            say!(doors, of, warn, source = kind, %error, "no seed of a source could be joined");
            if refused { Found::Refused } else { Found::All }
        }
    }
}

/// A source that blocks is told of, and waited for: it is never asked a second time meanwhile.
async fn asked(doors: &Doors, source: &Running) -> Answer {
    match &source.from {
        Asked::Fixed(seeds) => Ok(seeds.clone()),
        Asked::Apart(apart) => {
            let ask = apart.ask();
            tokio::pin!(ask);
            tokio::select! {
                biased;
                answer = &mut ask => answer,
                () = sleep(source.limit * 2) => {
                    let kind = source.kind;
                    say!(doors, Line::SourceSilent, warn, source = kind, "a source of seeds blocks its thread");
                    ask.await
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    fn pauses(interval: u64, company: Company, n: usize) -> Vec<f64> {
        let rng = Xoshiro256PlusPlus::seed_from_u64(1);
        let mut pace = Pace::new(Duration::from_secs(interval), rng);
        (0..n).map_while(|_| pace.pause(company)).map(|pause| pause.as_secs_f64()).collect()
    }

    fn about(pauses: &[f64], expected: &[f64]) {
        assert_eq!(pauses.len(), expected.len(), "{pauses:?}");
        for (pause, expected) in pauses.iter().zip(expected) {
            assert!((expected * 0.75..expected * 1.25).contains(pause), "{pause} for {expected}");
        }
    }

    #[test]
    fn alone_it_looks_soon_and_then_less_often_but_always_again() {
        about(&pauses(30, Company::Alone, 7), &[1.0, 2.0, 4.0, 8.0, 10.0, 10.0, 10.0]);
        about(&pauses(3, Company::Alone, 4), &[1.0, 2.0, 3.0, 3.0]);
        about(&pauses(0, Company::Alone, 5), &[1.0, 2.0, 4.0, 8.0, 10.0]);
    }

    #[test]
    fn refused_for_its_name_it_looks_again_soon_in_any_company() {
        about(&pauses(30, Company::Refused, 5), &[1.0, 2.0, 4.0, 5.0, 5.0]);
        about(&pauses(0, Company::Refused, 5), &[1.0, 2.0, 4.0, 5.0, 5.0]);
    }

    #[test]
    fn in_company_it_looks_at_its_interval_with_jitter_or_not_at_all() {
        let found = pauses(30, Company::Some, 50);
        about(&found, &[30.0; 50]);
        let (least, most) = found.iter().fold((f64::MAX, 0.0_f64), |(l, m), p| (l.min(*p), m.max(*p)));
        assert!(most - least > 10.0, "no jitter: {least} to {most}");
        assert_eq!(pauses(0, Company::Some, 1), Vec::<f64>::new());
        assert_eq!(pauses(30, Company::Gone, 1), Vec::<f64>::new());
    }

    #[test]
    fn whoever_is_alone_again_starts_with_the_short_pause() {
        let mut pace = Pace::new(Duration::from_secs(30), Xoshiro256PlusPlus::seed_from_u64(1));
        for _ in 0..5 {
            pace.pause(Company::Alone);
        }
        pace.pause(Company::Some);
        assert!(pace.pause(Company::Alone).is_some_and(|pause| pause < Duration::from_millis(1300)));
    }
}
