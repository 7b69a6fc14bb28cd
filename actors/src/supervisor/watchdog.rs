//! One thread per process that looks whether handlers come to an end. A hung one cannot be stopped, but it
//! can be reported.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

type Report = Box<dyn Fn(&'static str, Duration) + Send + Sync>;

/// The heartbeat of the actors of one thread, of which one runs at a time.
pub(crate) struct Pulse {
    /// Odd while a handler runs.
    beats: AtomicU64,
    actor: Mutex<&'static str>,
    limit: Duration,
    report: Report,
}

impl Pulse {
    /// A pulse that the watchdog looks at: a handler that runs for longer than `limit` is reported once, from
    /// the watchdog's thread.
    pub(crate) fn watched(limit: Duration, report: Report) -> Arc<Self> {
        let pulse = Arc::new(Self { beats: AtomicU64::new(0), actor: Mutex::new(""), limit, report });
        watch(&pulse);
        pulse
    }

    pub(super) fn enter(&self, actor: &'static str) {
        *self.actor.lock().unwrap_or_else(PoisonError::into_inner) = actor;
        self.beat();
    }

    pub(super) fn leave(&self) {
        self.beat();
    }

    /// Only the thread of these actors does that.
    fn beat(&self) {
        self.beats.store(self.beats.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }
}

struct Watched {
    /// The last one to hold it lets it go.
    pulse: Arc<Pulse>,
    beats: u64,
    since: Instant,
    reported: bool,
}

/// How often the pulses are looked at.
const LOOK: Duration = Duration::from_millis(100);

static WATCHED: Mutex<Vec<Watched>> = Mutex::new(Vec::new());

fn watch(pulse: &Arc<Pulse>) {
    static START: std::sync::Once = std::sync::Once::new();
    let watched = Watched { pulse: pulse.clone(), beats: 0, since: Instant::now(), reported: false };
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner).push(watched);
    START.call_once(|| {
        let started = thread::Builder::new().name("memberlist-watchdog".into()).spawn(|| {
            loop {
                thread::sleep(LOOK);
                look(Instant::now());
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "no watchdog: handlers that hang are not reported");
        }
    });
}

fn look(now: Instant) {
    let mut stalled = Vec::new();
    WATCHED.lock().unwrap_or_else(PoisonError::into_inner).retain_mut(|watched| {
        let pulse = &watched.pulse;
        // To look writes nothing that the actors' thread would have to fetch back.
        if Arc::strong_count(pulse) == 1 {
            return false;
        }
        let beats = pulse.beats.load(Ordering::Acquire);
        if beats != watched.beats || beats % 2 == 0 {
            (watched.beats, watched.since, watched.reported) = (beats, now, false);
        } else if !watched.reported && now - watched.since >= pulse.limit {
            watched.reported = true;
            stalled.push((pulse.clone(), now - watched.since));
        }
        true
    });
    // A report may take its time, so it is made without the lock.
    for (pulse, since) in stalled {
        let actor = *pulse.actor.lock().unwrap_or_else(PoisonError::into_inner);
        (pulse.report)(actor, since);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn a_handler_that_hangs_is_reported_once_and_one_that_ends_is_not() {
        let (sender, reports) = mpsc::channel();
        let report = move |actor, since| sender.send((actor, since)).unwrap();
        let pulse = Pulse::watched(Duration::from_millis(150), Box::new(report));
        for _ in 0..3 {
            pulse.enter("quick");
            pulse.leave();
        }
        pulse.enter("slow");
        let (actor, since) = reports.recv_timeout(Duration::from_secs(10)).unwrap();
        assert_eq!(actor, "slow");
        assert!(since >= Duration::from_millis(150));
        assert!(reports.recv_timeout(Duration::from_millis(500)).is_err(), "once is enough");
        pulse.leave();
    }
}
