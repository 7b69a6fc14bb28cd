//! Whatever goes over a network in memory, kept as it was, so that a test can play it again.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;

/// Bytes that a tap keeps; what comes later is counted alone.
const MAX_KEPT: usize = 256 << 20;

/// Keeps what goes over a network. Clones are one.
#[derive(Clone, Debug, Default)]
pub struct Tap(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    datagrams: Vec<TappedDatagram>,
    streams: BTreeMap<u64, TappedStream>,
    bytes: usize,
    missed: u64,
}

/// A datagram that was sent, whether or not it has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TappedDatagram {
    /// Where it was sent from.
    pub from: SocketAddr,
    /// Where it was sent to.
    pub to: SocketAddr,
    /// What it said.
    pub bytes: Bytes,
}

/// A stream, from its first byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TappedStream {
    /// The address bound by whoever has dialled.
    pub from: SocketAddr,
    /// The address dialled.
    pub to: SocketAddr,
    /// What was written to it, in that order, and whether the end that has dialled said it.
    pub said: Vec<(bool, Bytes)>,
}

impl TappedStream {
    /// All that one end has said: the one that has dialled, or the other.
    #[must_use]
    pub fn of(&self, dialled: bool) -> Vec<u8> {
        self.said.iter().filter(|(by, _)| *by == dialled).flat_map(|(_, bytes)| bytes.to_vec()).collect()
    }
}

impl Tap {
    fn lock(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Each datagram so far, in the order in which they were sent.
    #[must_use]
    pub fn datagrams(&self) -> Vec<TappedDatagram> {
        self.lock().datagrams.clone()
    }

    /// Each stream so far, in the order in which they were dialled.
    #[must_use]
    pub fn streams(&self) -> Vec<TappedStream> {
        self.lock().streams.values().cloned().collect()
    }

    /// Datagrams and pieces of streams for which there was no room.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.lock().missed
    }

    pub(super) fn datagram(&self, from: SocketAddr, to: SocketAddr, bytes: &[u8]) {
        let mut kept = self.lock();
        if kept.takes(bytes) {
            let bytes = Bytes::copy_from_slice(bytes);
            kept.datagrams.push(TappedDatagram { from, to, bytes });
        }
    }

    pub(super) fn dialled(&self, stream: u64, from: SocketAddr, to: SocketAddr) {
        self.lock().streams.insert(stream, TappedStream { from, to, said: Vec::new() });
    }

    pub(super) fn said(&self, stream: u64, side: usize, bytes: &[u8]) {
        let mut kept = self.lock();
        if kept.takes(bytes)
            && let Some(stream) = kept.streams.get_mut(&stream)
        {
            stream.said.push((side == 0, Bytes::copy_from_slice(bytes)));
        }
    }
}

impl Kept {
    fn takes(&mut self, bytes: &[u8]) -> bool {
        let takes = self.bytes + bytes.len() <= MAX_KEPT;
        if takes {
            self.bytes += bytes.len();
        } else {
            self.missed += 1;
        }
        takes
    }
}
