//! A store in memory, for tests: it fails, tears and takes its time as it is told.

use std::{
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

/// What the clock on the wall says when a store is made, in seconds since 1970.
const MADE: u64 = 1_700_000_000;

/// A place for a record, in memory and in tokio's (possibly paused) time, with a clock of its own. Clones are the same
/// place, so that it outlives a node. A node's calls to it run on the node's own thread: a run repeats.
#[derive(Clone, Debug)]
pub struct MemoryStore(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    record: Option<Vec<u8>>,
    saves: u64,
    fails: Option<io::ErrorKind>,
    takes: Duration,
    keeps: usize,
    made: Instant,
    /// Seconds.
    ahead: i64,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(Inner {
            record: None,
            saves: 0,
            fails: None,
            takes: Duration::ZERO,
            keeps: usize::MAX,
            made: Instant::now(),
            ahead: 0,
        })))
    }

    /// What is in it.
    #[must_use]
    pub fn record(&self) -> Option<Vec<u8>> {
        self.lock().record.clone()
    }

    /// Puts something in, or takes all out.
    pub fn put(&self, record: Option<Vec<u8>>) {
        self.lock().record = record;
    }

    /// How often something was saved, in vain or not.
    #[must_use]
    pub fn saves(&self) -> u64 {
        self.lock().saves
    }

    /// From now on everything fails like that, or nothing.
    pub fn fail(&self, how: Option<io::ErrorKind>) {
        self.lock().fails = how;
    }

    /// From now on everything takes so long.
    pub fn slow(&self, by: Duration) {
        self.lock().takes = by;
    }

    /// From now on only so many bytes are kept of what is saved.
    pub fn tear(&self, at: usize) {
        self.lock().keeps = at;
    }

    /// Turns the clock on the wall forward.
    pub fn age(&self, by: Duration) {
        self.turn(i64::try_from(by.as_secs()).unwrap_or(i64::MAX));
    }

    /// Turns the clock on the wall by so many seconds, forward or back.
    pub fn turn(&self, by: i64) {
        let mut inner = self.lock();
        inner.ahead = inner.ahead.saturating_add(by);
    }

    pub(crate) fn wall(&self) -> u64 {
        let inner = self.lock();
        (MADE + inner.made.elapsed().as_secs()).saturating_add_signed(inner.ahead)
    }

    pub(crate) async fn load(&self) -> io::Result<Option<Vec<u8>>> {
        self.pass().await?;
        Ok(self.record())
    }

    pub(crate) async fn save(&self, record: &[u8]) -> io::Result<()> {
        self.lock().saves += 1;
        self.pass().await?;
        let mut inner = self.lock();
        inner.record = Some(record[..record.len().min(inner.keeps)].to_vec());
        Ok(())
    }

    /// Takes its time, and fails if it should.
    async fn pass(&self) -> io::Result<()> {
        let (takes, fails) = {
            let inner = self.lock();
            (inner.takes, inner.fails)
        };
        if !takes.is_zero() {
            sleep(takes).await;
        }
        fails.map_or(Ok(()), |kind| Err(kind.into()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
