//! How fast an upload goes while there are small messages to be sent or heard.

use std::time::Duration;

use tokio::{task::yield_now, time::sleep};

use crate::ring::Doors;

/// Bytes of an upload between two looks at what else there is to do.
const BURST: usize = 128 * 1024;

/// How long an upload stands back then. The clock of timers has no shorter time.
const REST: Duration = Duration::from_millis(1);

/// The pace of one end of an upload: all that the node's thread can do as long as nothing small comes or goes over
/// links, and at most [`BURST`] bytes a millisecond as long as something does.
#[derive(Default)]
pub(super) struct Pace {
    bytes: usize,
    small: u64,
}

impl Pace {
    /// So many bytes more have gone.
    pub(super) async fn step(&mut self, doors: &Doors, bytes: usize) {
        self.bytes += bytes;
        if self.bytes >= BURST {
            self.bytes = 0;
            let small = doors.counters.small();
            if std::mem::replace(&mut self.small, small) != small {
                return sleep(REST).await;
            }
        }
        // A body without end takes its turns beside all else that the node has to do.
        yield_now().await;
    }
}
