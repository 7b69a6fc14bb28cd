//! What a node knows of its last run when it starts, and how it keeps that for its next one.

use std::{cell::RefCell, rc::Rc, sync::Arc, time::Duration};

use memberlist_protocol::{
    config::Config,
    rejoin::{Rejoin, RejoinError},
    view::View,
    wire::guard::Labels,
};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use tokio::time::{sleep, timeout};

use crate::{
    discover,
    logs::{self, Line, say},
    metrics::up,
    ring::{Doors, Ring},
    store::{Running, Trouble},
};

/// How long a start waits for the record of the last run. It is needed before the first word to anybody.
const READING: Duration = Duration::from_secs(1);

/// How long the end of a node waits for its last record to be written.
const LAST_WRITE: Duration = Duration::from_millis(500);

/// A write that takes longer is told of.
const SLOW: Duration = Duration::from_secs(10);

/// Longest pause after a write that failed; the first is the ordinary one, each further one twice as long.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// What a node that starts knows of its last run.
pub(crate) struct Remembered {
    /// What it starts with.
    pub(crate) incarnation: u32,
    /// What it must not be again.
    pub(crate) run: Option<u64>,
    seeds: Vec<String>,
    /// Whether something was wrong with it.
    failed: bool,
    store: Running,
    last: Option<Rejoin>,
    /// Whether the place may be written to: it may be somebody else's.
    ours: bool,
}

/// What is wrong with what was read.
enum Wrong {
    Place(Trouble),
    Record(RejoinError),
}

/// Reads what the last run has left. Whatever is wrong with it is told, and the node starts.
pub(crate) async fn read(store: Running, name: &str, labels: &Labels, config: &Config) -> Remembered {
    let wall = store.wall();
    let found = match store.load(READING).await {
        Ok(None) => Ok(None),
        Ok(Some(bytes)) => match Rejoin::decode(&bytes) {
            Ok(record) => record.check(name, labels).map(|()| Some(record)).map_err(Wrong::Record),
            Err(error) => Err(Wrong::Record(error)),
        },
        Err(trouble) => Err(Wrong::Place(trouble)),
    };
    let (node, file) = (logs::name(name), logs::text(store.place()).to_string());
    let mut remembered = Remembered {
        incarnation: 1,
        run: None,
        seeds: Vec::new(),
        failed: found.is_err(),
        last: None,
        ours: !matches!(&found, Err(Wrong::Record(error)) if !error.may_be_replaced()),
        store,
    };
    match found {
        Ok(None) => tracing::debug!(%node, %file, "there is no rejoin file yet"),
        Ok(Some(record)) => {
            let (age, limit) = (record.age(wall), config.dead_retention);
            let stale = age > limit;
            if stale {
                tracing::warn!(
                    %node, %file, ?age, ?limit,
                    "the rejoin file is too old: its members are not tried, they may be another cluster's by now"
                );
            } else {
                remembered.seeds = record.peers.iter().map(|peer| peer.addr.to_string()).collect();
            }
            let (incarnation, peers) = (record.next_incarnation(), remembered.seeds.len());
            tracing::info!(%node, %file, incarnation, peers, "the node starts where its last run has ended");
            remembered.incarnation = incarnation;
            remembered.run = Some(record.id.run());
            remembered.failed = stale;
            // What is not tried is not kept for the next start either.
            let peers = if stale { Vec::new() } else { record.peers.clone() };
            remembered.last = Some(Rejoin { peers, ..record });
        }
        Err(Wrong::Place(trouble)) => {
            let trouble = logs::text(trouble);
            tracing::warn!(%node, %file, %trouble, "the rejoin file cannot be read: the node starts as a new one");
        }
        Err(Wrong::Record(error)) if remembered.ours => {
            let error = logs::text(error);
            tracing::warn!(
                %node, %file, %error,
                "the rejoin file is of no use: the node starts as a new one, and writes it anew"
            );
        }
        Err(Wrong::Record(error)) => {
            let error = logs::text(error);
            tracing::warn!(
                %node, %file, %error,
                "the rejoin file is not this node's: the node starts as a new one, and leaves the file as it is; \
                 remove it, or name another one"
            );
        }
    }
    remembered
}

impl Remembered {
    /// Looks for the members of the last run, and keeps what the next one is to know.
    pub(crate) fn keep(self, ring: &Ring, chance: Option<Xoshiro256PlusPlus>) -> Option<Rc<Notes>> {
        let mut chance = chance?;
        if self.failed {
            up(&ring.counters.rejoin_failures);
        }
        let rng = Xoshiro256PlusPlus::from_rng(&mut chance);
        if !self.seeds.is_empty() {
            let source = discover::Running::remembered(self.seeds, ring.config.join_timeout);
            ring.spawn("seeds", discover::search(ring.doors.clone(), source, rng));
        }
        let (last, rng) = (RefCell::new(self.last), RefCell::new(chance));
        let notes = Rc::new(Notes { store: self.store, last, rng });
        if !self.ours {
            return None;
        }
        if !ring.config.rejoin_interval.is_zero() {
            ring.spawn("rejoin file", write(ring.doors.clone(), notes.clone()));
        }
        Some(notes)
    }
}

/// What a node keeps for its next run.
pub(crate) struct Notes {
    store: Running,
    /// What stands there, as far as this node knows.
    last: RefCell<Option<Rejoin>>,
    rng: RefCell<Xoshiro256PlusPlus>,
}

impl Notes {
    /// The record that should stand there, if it is another one.
    fn due(&self, doors: &Doors, view: &View) -> Option<Rejoin> {
        let (wall, last) = (self.store.wall(), self.last.borrow());
        let (retention, label) = (doors.config.dead_retention, doors.admission.read().labels.own);
        let stands = |last: &Rejoin| last.label == label && !last.is_outdated(view, wall, retention);
        if last.as_ref().is_some_and(stands) {
            return None;
        }
        Some(Rejoin::of(view, &label, last.as_ref(), wall, &mut *self.rng.borrow_mut()))
    }

    /// Writes what is to be kept, if it is not there yet; says whether it is there then.
    async fn save(&self, doors: &Doors, view: &View) -> bool {
        let Some(record) = self.due(doors, view) else { return true };
        let file = || logs::text(self.store.place());
        let save = self.store.save(record.encode());
        tokio::pin!(save);
        let saved = tokio::select! {
            biased;
            saved = &mut save => saved,
            () = sleep(SLOW) => {
                say!(doors, Line::KeptLate, warn, file = %file(), "the rejoin file is not written: its disk does not answer");
                save.await
            }
        };
        match saved {
            Ok(()) => {
                up(&doors.counters.rejoin_saves);
                self.last.replace(Some(record));
                true
            }
            Err(trouble) => {
                up(&doors.counters.rejoin_failures);
                let trouble = logs::text(trouble);
                say!(doors, Line::NotKept, warn, file = %file(), %trouble, "the rejoin file cannot be written: the next start will not know of this one");
                false
            }
        }
    }

    /// Writes how the node ends, if that is quick.
    pub(crate) async fn last_words(&self, ring: &Ring) {
        let view = ring.view.borrow().clone();
        let _ = timeout(LAST_WRITE, self.save(ring, &view)).await;
    }
}

/// Writes the record now, and then whenever it is outdated, one write at a time, for as long as the node runs.
async fn write(doors: Arc<Doors>, notes: Rc<Notes>) {
    let mut view = doors.view.follow();
    let (interval, retention) = (doors.config.rejoin_interval, doors.config.dead_retention);
    let mut pause = interval;
    loop {
        let now = view.see().clone();
        if notes.save(&doors, &now).await {
            pause = interval;
            sleep(pause).await;
            // Nothing else tells when its hour is over.
            let _ = timeout(Rejoin::refresh(retention), view.changed()).await;
        } else {
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE.max(interval));
        }
    }
}
