//! What goes by each lane of links.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use memberlist_protocol::wire::message::Receipt;

use super::up;

/// The names of the lanes, in their order.
pub(super) const NAMES: [&str; 3] = ["urgent", "ordered", "bulk"];

/// The counters of one lane.
#[derive(Debug, Default)]
pub(crate) struct Lane {
    queued: AtomicU64,
    queued_bytes: AtomicU64,
    pub(crate) delivered: AtomicU64,
    pub(crate) undelivered: AtomicU64,
    received: AtomicU64,
    received_bytes: AtomicU64,
    refused: AtomicU64,
}

impl Lane {
    pub(crate) fn queued(&self, bytes: usize) {
        up(&self.queued);
        self.queued_bytes.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize, receipt: Receipt) {
        up(&self.received);
        self.received_bytes.fetch_add(bytes as u64, Relaxed);
        if receipt != Receipt::Taken {
            up(&self.refused);
        }
    }

    pub(super) fn both_ways(&self) -> u64 {
        self.delivered.load(Relaxed) + self.received.load(Relaxed)
    }

    pub(super) fn read(&self) -> LaneMetrics {
        LaneMetrics {
            queued: self.queued.load(Relaxed),
            queued_bytes: self.queued_bytes.load(Relaxed),
            delivered: self.delivered.load(Relaxed),
            undelivered: self.undelivered.load(Relaxed),
            received: self.received.load(Relaxed),
            received_bytes: self.received_bytes.load(Relaxed),
            refused: self.refused.load(Relaxed),
        }
    }
}

/// What has gone by one lane of all links. Everything queued was delivered or undelivered, or waits; what a peer turns
/// out to take by the bulk lane alone is counted as queued where it was, and as delivered there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LaneMetrics {
    /// Messages that were taken to be sent.
    pub queued: u64,
    /// Their bytes.
    pub queued_bytes: u64,
    /// Those that a handler's queue at the peer has taken.
    pub delivered: u64,
    /// Those that have not got through, or of which that is not known.
    pub undelivered: u64,
    /// Messages that have come from peers, each counted once.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Those of them that no handler's queue has taken.
    pub refused: u64,
}
