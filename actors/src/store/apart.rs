//! A store on a thread of its own: it may block, hang or panic.

use std::{
    io,
    sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use tokio::{sync::oneshot, time::timeout};

use super::{Place, Store};
use crate::supervisor::catch;

/// Why a store did not do what it should.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Trouble {
    #[error("{0}")]
    Failed(#[from] io::Error),
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("it panicked: {0}")]
    Panicked(String),
    #[error("its thread has ended, or is busy")]
    Gone,
}

enum Job {
    Load(oneshot::Sender<Result<Option<Vec<u8>>, Trouble>>),
    Save(Bytes, oneshot::Sender<Result<(), Trouble>>),
}

/// A store that can be asked.
pub(crate) struct Running {
    place: String,
    door: Door,
}

enum Door {
    /// One more job may wait than the one that is under way. When this is dropped, the thread ends after those.
    Apart(SyncSender<Job>),
    #[cfg(feature = "testing")]
    Memory(super::MemoryStore),
}

impl Running {
    /// Starts the thread, if it needs one.
    pub(crate) fn start(place: Place) -> io::Result<Self> {
        match place {
            Place::Apart(place, store) => {
                let (jobs, job) = sync_channel(1);
                std::thread::Builder::new().name("rejoin file".into()).spawn(move || run(store, &job))?;
                Ok(Self { place, door: Door::Apart(jobs) })
            }
            #[cfg(feature = "testing")]
            Place::Memory(store) => Ok(Self { place: "memory".to_owned(), door: Door::Memory(store) }),
        }
    }

    /// What people call it.
    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    /// The clock on the wall, in seconds since 1970.
    pub(crate) fn wall(&self) -> u64 {
        match &self.door {
            Door::Apart(_) => {
                SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs())
            }
            #[cfg(feature = "testing")]
            Door::Memory(store) => store.wall(),
        }
    }

    pub(crate) async fn load(&self, within: Duration) -> Result<Option<Vec<u8>>, Trouble> {
        let load = async {
            match &self.door {
                Door::Apart(jobs) => ask(jobs, Job::Load).await,
                #[cfg(feature = "testing")]
                Door::Memory(store) => Ok(store.load().await?),
            }
        };
        timeout(within, load).await.unwrap_or(Err(Trouble::Late(within)))
    }

    /// Saves; what is under way when this is dropped goes on.
    pub(crate) async fn save(&self, record: Bytes) -> Result<(), Trouble> {
        match &self.door {
            Door::Apart(jobs) => ask(jobs, |reply| Job::Save(record, reply)).await,
            #[cfg(feature = "testing")]
            Door::Memory(store) => Ok(store.save(&record).await?),
        }
    }
}

async fn ask<T>(
    jobs: &SyncSender<Job>,
    job: impl FnOnce(oneshot::Sender<Result<T, Trouble>>) -> Job,
) -> Result<T, Trouble> {
    let (reply, answer) = oneshot::channel();
    jobs.try_send(job(reply)).map_err(|error| match error {
        TrySendError::Full(_) | TrySendError::Disconnected(_) => Trouble::Gone,
    })?;
    answer.await.unwrap_or(Err(Trouble::Gone))
}

/// The thread.
fn run(mut store: Box<dyn Store>, jobs: &Receiver<Job>) {
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Load(reply) => {
                let loaded = catch(|| store.load()).map_err(Trouble::Panicked);
                let _ = reply.send(loaded.and_then(|loaded| Ok(loaded?)));
            }
            Job::Save(record, reply) => {
                let saved = catch(|| store.save(&record)).map_err(Trouble::Panicked);
                let _ = reply.send(saved.and_then(|saved| Ok(saved?)));
            }
        }
    }
    let _ = catch(|| drop(store));
}
