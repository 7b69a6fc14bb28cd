//! What nodes send and receive.

use std::{iter::Sum, time::Duration};

use actix_memberlist::Cluster;

use super::fleet::Fleet;

/// Packets and bytes, streams included.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Datagrams sent.
    pub packets: u64,
    /// Bytes of datagrams and streams sent.
    pub bytes: u64,
    /// The same received.
    pub received: u64,
}

impl Load {
    /// What a node has sent and received so far.
    pub fn of(node: &Cluster) -> Self {
        let metrics = node.metrics();
        Self {
            packets: metrics.packets_sent,
            bytes: metrics.bytes_sent + metrics.stream_bytes_sent,
            received: metrics.bytes_received + metrics.stream_bytes_received,
        }
    }

    /// What was sent since then, by each of `nodes` in a second: packets and bytes.
    pub fn since(self, before: Self, nodes: usize, time: Duration) -> (f64, f64) {
        let share = nodes as f64 * time.as_secs_f64();
        // Who has ended meanwhile has taken its counters along.
        let more = |now: u64, before: u64| now.saturating_sub(before) as f64 / share;
        (more(self.packets, before.packets), more(self.bytes, before.bytes))
    }
}

impl Sum for Load {
    fn sum<I: Iterator<Item = Self>>(all: I) -> Self {
        all.fold(Self::default(), |sum, one| Self {
            packets: sum.packets + one.packets,
            bytes: sum.bytes + one.bytes,
            received: sum.received + one.received,
        })
    }
}

/// What each node has sent and received in each second.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    before: Vec<Option<Load>>,
    packets: u64,
    sent: Vec<u64>,
    received: Vec<u64>,
}

impl Rates {
    /// A second begins, or ends: to be called once in each.
    pub fn tick(&mut self, fleet: &Fleet) {
        self.before.resize(fleet.nodes.len(), None);
        for (before, node) in self.before.iter_mut().zip(&fleet.nodes) {
            let now = node.as_ref().map(Load::of);
            // A node that was started anew counts from nothing.
            if let (Some(before), Some(now)) = (*before, now)
                && now.packets >= before.packets
            {
                self.packets += now.packets - before.packets;
                self.sent.push(now.bytes.saturating_sub(before.bytes));
                self.received.push(now.received.saturating_sub(before.received));
            }
            *before = now;
        }
    }

    /// What another run has seen as well.
    pub fn merge(&mut self, other: &Self) {
        self.packets += other.packets;
        self.sent.extend(&other.sent);
        self.received.extend(&other.received);
    }

    /// Packets, bytes sent and bytes received, of a node in a second: the mean.
    pub fn mean(&self) -> [f64; 3] {
        let share = self.sent.len().max(1) as f64;
        let sum = |values: &[u64]| values.iter().sum::<u64>() as f64 / share;
        [self.packets as f64 / share, sum(&self.sent), sum(&self.received)]
    }

    /// The second in which a node sent so much that it did not send more in a share of all, and the same of bytes
    /// received.
    pub fn quantile(&self, share: f64) -> [u64; 2] {
        [&self.sent, &self.received].map(|values| {
            let mut values = values.clone();
            values.sort_unstable();
            let at = (values.len() as f64 * share).ceil() as usize;
            values.get(at.max(1) - 1).copied().unwrap_or_default()
        })
    }
}
