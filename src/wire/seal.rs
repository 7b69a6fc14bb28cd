//! The seal around packets and streams: AES-GCM under keys that are derived from the cluster's key, for each
//! run of a node and for each stream.
//!
//! ```text
//! packet:  … flags  key id (4)  run (8)  counter (8)   sealed body   tag (16)
//! ```
//!
//! A packet's key is derived (HKDF, RFC 5869) from the cluster's key and the sender's run, and its nonce is the
//! sender's counter: no two packets of a cluster share both, however many there are. All that is in front of
//! the body is authenticated with it, and so is the run that the packet is for: what one node was sent opens at
//! no other, nor at the same one after a restart. For the rest of replays there is a [`Window`].
//! Whoever holds a packet back on its way can let it arrive late, until its sender has sealed [`WINDOW`] more.
//!
//! A stream's key is derived from the label that it says and from the runs and counters of both ends, so that no
//! recorded stream opens again, and none opens under another label.
//! It is cut into records, numbered by their nonces, each direction by itself.

use std::collections::BTreeMap;

use aes_gcm::{
    AesGcm, KeyInit, Nonce, Tag,
    aead::AeadInOut,
    aes::{Aes128, Aes192, Aes256, cipher::typenum::U12},
};
use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

use super::WireError;
use crate::keyring::{Key, KeyId};

/// Bytes in front of a sealed body.
pub const SEAL_HEAD: usize = 20;

/// Bytes behind a sealed body.
pub const TAG: usize = 16;

/// Packets of one run that may overtake each other.
pub const WINDOW: u64 = 1024;

/// Most bytes of a stream that are sealed together.
pub const MAX_RECORD: usize = 16 * 1024;

/// Runs that are no members' and of which a window is kept, beside as many as there are members.
const SPARE_RUNS: usize = 1024;

/// A key of AES, ready to seal and open.
enum Cipher {
    Aes128(Box<AesGcm<Aes128, U12>>),
    Aes192(Box<AesGcm<Aes192, U12>>),
    Aes256(Box<AesGcm<Aes256, U12>>),
}

impl Cipher {
    fn new(key: &[u8]) -> Option<Self> {
        Some(match key.len() {
            16 => Self::Aes128(Box::new(AesGcm::new_from_slice(key).ok()?)),
            24 => Self::Aes192(Box::new(AesGcm::new_from_slice(key).ok()?)),
            _ => Self::Aes256(Box::new(AesGcm::new_from_slice(key).ok()?)),
        })
    }

    fn seal(&self, nonce: [u8; 12], around: &[u8], body: &mut [u8]) -> Option<[u8; TAG]> {
        let (nonce, body) = (Nonce::from(nonce), body.into());
        let tag = match self {
            Self::Aes128(cipher) => cipher.encrypt_inout_detached(&nonce, around, body),
            Self::Aes192(cipher) => cipher.encrypt_inout_detached(&nonce, around, body),
            Self::Aes256(cipher) => cipher.encrypt_inout_detached(&nonce, around, body),
        };
        tag.ok().map(Into::into)
    }

    /// Says whether it opened; if not, the body is as before.
    fn open(&self, nonce: [u8; 12], around: &[u8], body: &mut [u8], tag: [u8; TAG]) -> bool {
        let (nonce, body, tag) = (Nonce::from(nonce), body.into(), Tag::from(tag));
        match self {
            Self::Aes128(cipher) => cipher.decrypt_inout_detached(&nonce, around, body, &tag),
            Self::Aes192(cipher) => cipher.decrypt_inout_detached(&nonce, around, body, &tag),
            Self::Aes256(cipher) => cipher.decrypt_inout_detached(&nonce, around, body, &tag),
        }
        .is_ok()
    }
}

/// A key of the ring, and what is derived from it.
struct Root {
    id: KeyId,
    len: usize,
    root: Hkdf<Sha256>,
}

impl Root {
    fn of(key: &Key) -> Self {
        Self { id: key.id(), len: key.as_bytes().len(), root: key.root() }
    }

    fn derive(&self, info: &[&[u8]]) -> Option<Zeroizing<[u8; 32]>> {
        let mut derived = Zeroizing::new([0; 32]);
        self.root.expand_multi_info(info, &mut derived[..self.len]).ok()?;
        Some(derived)
    }

    fn packets_of(&self, run: u64) -> Option<Zeroizing<[u8; 32]>> {
        self.derive(&[b"packets", &run.to_le_bytes()])
    }
}

fn nonce(first: u8, counter: u64) -> [u8; 12] {
    let mut nonce = [0; 12];
    nonce[0] = first;
    nonce[4..].copy_from_slice(&counter.to_be_bytes());
    nonce
}

/// Which counters of one run have been seen, of the last [`WINDOW`].
#[derive(Clone, Debug)]
pub struct Window {
    /// One more than the highest; 0 before the first.
    next: u64,
    seen: [u64; (WINDOW / 64) as usize],
}

impl Default for Window {
    fn default() -> Self {
        Self { next: 0, seen: [0; (WINDOW / 64) as usize] }
    }
}

impl Window {
    fn place(counter: u64) -> (usize, u64) {
        (((counter % WINDOW) / 64) as usize, 1 << (counter % 64))
    }

    /// Whether a packet with that counter may be new.
    pub fn is_new(&self, counter: u64) -> bool {
        if counter >= self.next {
            return counter < u64::MAX;
        }
        let (word, bit) = Self::place(counter);
        self.next - counter <= WINDOW && self.seen[word] & bit == 0
    }

    /// Notes a counter that [is new](Self::is_new).
    pub fn note(&mut self, counter: u64) {
        if counter >= self.next {
            if counter - self.next >= WINDOW {
                self.seen = [0; (WINDOW / 64) as usize];
            } else {
                for skipped in self.next..counter {
                    let (word, bit) = Self::place(skipped);
                    self.seen[word] &= !bit;
                }
            }
            self.next = counter + 1;
        }
        let (word, bit) = Self::place(counter);
        self.seen[word] |= bit;
    }
}

/// What is known of one run that has sealed packets.
struct Sender {
    key: KeyId,
    derived: Zeroizing<[u8; 32]>,
    window: Window,
    /// When it was last heard, in packets opened.
    heard: u64,
}

/// Who has sealed a packet, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The run that it says.
    pub by: u64,
    /// Whether it is for this run alone: whoever does not know the run of somebody seals for all.
    pub addressed: bool,
    /// The key.
    pub key: KeyId,
}

/// Seals what a node sends, and opens what it is sent.
pub struct Seals {
    roots: Vec<Root>,
    /// The primary key's cipher for packets of this run.
    own: Option<(u64, Cipher)>,
    counter: u64,
    senders: BTreeMap<u64, Sender>,
    opened: u64,
}

impl std::fmt::Debug for Seals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Seals").field("senders", &self.senders.len()).finish_non_exhaustive()
    }
}

impl Seals {
    /// Of the keys of a ring, the primary one first; without keys it opens nothing.
    pub fn new(keys: &[Key]) -> Self {
        let roots = keys.iter().map(Root::of).collect();
        Self { roots, own: None, counter: 0, senders: BTreeMap::new(), opened: 0 }
    }

    /// Takes other keys. What was received is remembered, and counters go on.
    pub fn set_keys(&mut self, keys: &[Key]) {
        self.roots = keys.iter().map(Root::of).collect();
        self.own = None;
    }

    /// Whether there is a key.
    pub fn has_key(&self) -> bool {
        !self.roots.is_empty()
    }

    /// Whether there is a key of that id.
    pub fn has(&self, id: KeyId) -> bool {
        self.root(id).is_some()
    }

    /// The key that seals.
    pub fn primary(&self) -> Option<KeyId> {
        self.roots.first().map(|root| root.id)
    }

    /// A number that this object gives only once.
    pub fn count(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }

    fn root(&self, id: KeyId) -> Option<&Root> {
        self.roots.iter().find(|root| root.id == id)
    }

    /// Seals a packet in place: `packet` holds all that goes in front of the seal, up to `head`, then the body.
    /// `to` is the run that it is for, or nobody's. Nothing without a key.
    pub fn seal(&mut self, own: u64, to: Option<u64>, head: usize, packet: &mut Vec<u8>) -> Option<()> {
        let root = self.roots.first()?;
        if self.own.as_ref().is_none_or(|(run, _)| *run != own) {
            let derived = root.packets_of(own)?;
            self.own = Some((own, Cipher::new(&derived[..root.len])?));
        }
        let id = root.id;
        let counter = self.count();
        let (_, cipher) = self.own.as_ref()?;
        let mut seal = [0; SEAL_HEAD];
        seal[..4].copy_from_slice(&id.0);
        seal[4..12].copy_from_slice(&own.to_le_bytes());
        seal[12..].copy_from_slice(&counter.to_le_bytes());
        let body = packet.len() - head;
        packet.extend_from_slice(&[0; SEAL_HEAD]);
        packet.copy_within(head..head + body, head + SEAL_HEAD);
        packet[head..head + SEAL_HEAD].copy_from_slice(&seal);
        let (around, body) = packet.split_at_mut(head + SEAL_HEAD);
        let tag = with_run(around, to, |around| cipher.seal(nonce(0, counter), around, body))?;
        packet.extend_from_slice(&tag);
        Some(())
    }

    /// Opens a packet in place, and says who has sealed it; the body is what is between seal and tag.
    /// `own` is this node's run, `runs` gives those of the members.
    ///
    /// # Errors
    /// [`WireError::Sealed`] without that key, [`WireError::Seal`], [`WireError::Replayed`],
    /// [`WireError::Reflected`], [`WireError::Truncated`].
    pub fn open(
        &mut self,
        own: u64,
        addressed: bool,
        head: usize,
        packet: &mut [u8],
        runs: impl FnOnce(&mut dyn FnMut(u64)),
    ) -> Result<Sealed, WireError> {
        let seal = packet.get(head..).and_then(|rest| rest.first_chunk::<SEAL_HEAD>());
        let &seal = seal.ok_or(WireError::Truncated)?;
        let ([a, b, c, d, ..], rest) = (seal, &seal[4..]);
        let key = KeyId([a, b, c, d]);
        let root = self.root(key).ok_or(WireError::Sealed)?;
        let number = |at: usize| rest[at..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let (by, counter) = (number(0), number(8));
        if by == own {
            return Err(WireError::Reflected);
        }
        let known = self.senders.get(&by);
        if known.is_some_and(|sender| !sender.window.is_new(counter)) {
            return Err(WireError::Replayed);
        }
        let derived = match known {
            Some(sender) if sender.key == key => sender.derived.clone(),
            _ => root.packets_of(by).ok_or(WireError::Seal)?,
        };
        let cipher = Cipher::new(&derived[..root.len]).ok_or(WireError::Seal)?;
        let (around, rest) = packet.split_at_mut(head + SEAL_HEAD);
        let (body, tag) = rest.split_last_chunk_mut::<TAG>().ok_or(WireError::Truncated)?;
        let to = addressed.then_some(own);
        if !with_run(around, to, |around| cipher.open(nonce(0, counter), around, body, *tag)) {
            return Err(WireError::Seal);
        }
        self.opened += 1;
        let heard = self.opened;
        match self.senders.get_mut(&by) {
            Some(sender) => {
                sender.window.note(counter);
                sender.heard = heard;
                if sender.key != key {
                    (sender.key, sender.derived) = (key, derived);
                }
            }
            None => {
                self.make_room(runs);
                let mut window = Window::default();
                window.note(counter);
                self.senders.insert(by, Sender { key, derived, window, heard });
            }
        }
        Ok(Sealed { by, addressed, key })
    }

    /// Forgets the runs that are no members' and were not heard for the longest time, when there are too many.
    fn make_room(&mut self, runs: impl FnOnce(&mut dyn FnMut(u64))) {
        if self.senders.len() < SPARE_RUNS {
            return;
        }
        let mut members = std::collections::BTreeSet::new();
        runs(&mut |run| _ = members.insert(run));
        let mut strangers: Vec<_> = self.senders.iter().filter(|(run, _)| !members.contains(run)).collect();
        if strangers.len() < SPARE_RUNS {
            return;
        }
        strangers.sort_unstable_by_key(|(_, sender)| sender.heard);
        let oldest: Vec<u64> = strangers[..strangers.len() / 2].iter().map(|(run, _)| **run).collect();
        for run in oldest {
            self.senders.remove(&run);
        }
    }

    /// What this node adds to the key of a stream, other than to any before.
    pub fn half(&mut self, own: u64) -> Half {
        Half { run: own, number: self.count() }
    }

    /// Runs of which a window is kept.
    pub fn senders(&self) -> usize {
        self.senders.len()
    }

    /// The seals of a stream that was begun with `opening` under that label, and to which the other side has added
    /// `accepted`. Nothing without that key.
    pub fn stream(&self, label: &[u8], opening: Opening, accepted: Half, end: End) -> Option<StreamSeals> {
        let root = self.root(opening.key)?;
        let derived = root.derive(&[b"stream", &opening.half.to_bytes(), &accepted.to_bytes(), label])?;
        let cipher = Cipher::new(&derived[..root.len])?;
        Some(StreamSeals { cipher, end, sealed: 0, opened: 0 })
    }
}

/// What one end adds to the key of a stream: nobody else adds the same, and it does not do so again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Half {
    /// Its run.
    pub run: u64,
    /// A number that it gives once.
    pub number: u64,
}

impl Half {
    /// Bytes on the wire.
    pub const LEN: usize = 16;

    /// As it stands on the wire.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..8].copy_from_slice(&self.run.to_le_bytes());
        bytes[8..].copy_from_slice(&self.number.to_le_bytes());
        bytes
    }

    /// Reads what [`Half::to_bytes`] has written.
    pub fn read(bytes: [u8; Self::LEN]) -> Self {
        let number = |at: usize| bytes[at..].first_chunk::<8>().map_or(0, |part| u64::from_le_bytes(*part));
        Self { run: number(0), number: number(8) }
    }
}

/// What a sealed stream begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// The key that the stream's own is derived from.
    pub key: KeyId,
    /// What the end that dials adds.
    pub half: Half,
}

impl Opening {
    /// As it stands on the wire.
    pub fn to_bytes(self) -> [u8; SEAL_HEAD] {
        let mut bytes = [0; SEAL_HEAD];
        bytes[..4].copy_from_slice(&self.key.0);
        bytes[4..].copy_from_slice(&self.half.to_bytes());
        bytes
    }

    /// Reads what [`Opening::to_bytes`] has written.
    pub fn read(bytes: [u8; SEAL_HEAD]) -> Self {
        let [a, b, c, d, rest @ ..] = bytes;
        Self { key: KeyId([a, b, c, d]), half: Half::read(rest) }
    }
}

/// Adds the run that a packet is for to what is authenticated with it.
fn with_run<T>(around: &[u8], to: Option<u64>, act: impl FnOnce(&[u8]) -> T) -> T {
    let mut all = smallvec::SmallVec::<[u8; 320]>::from_slice(around);
    all.extend_from_slice(&to.unwrap_or_default().to_le_bytes());
    act(&all)
}

/// Which end of a stream a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has dialled.
    Dialled,
    /// It was dialled.
    Accepted,
}

/// Seals and opens the records of one stream.
pub struct StreamSeals {
    cipher: Cipher,
    end: End,
    sealed: u64,
    opened: u64,
}

impl std::fmt::Debug for StreamSeals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamSeals").field("end", &self.end).finish_non_exhaustive()
    }
}

impl StreamSeals {
    fn direction(end: End) -> u8 {
        match end {
            End::Dialled => 1,
            End::Accepted => 2,
        }
    }

    /// Adds a record to `out`: its length in two bytes, and at most [`MAX_RECORD`] bytes of `body`, sealed. Says
    /// how many those were.
    ///
    /// # Errors
    /// [`WireError::Seal`], which does not happen.
    pub fn seal(&mut self, body: &[u8], out: &mut Vec<u8>) -> Result<usize, WireError> {
        let body = &body[..body.len().min(MAX_RECORD)];
        let len = (body.len() + TAG) as u16;
        out.extend_from_slice(&len.to_le_bytes());
        let start = out.len();
        out.extend_from_slice(body);
        let nonce = nonce(Self::direction(self.end), self.sealed);
        let tag = self.cipher.seal(nonce, &len.to_le_bytes(), &mut out[start..]).ok_or(WireError::Seal)?;
        self.sealed += 1;
        out.extend_from_slice(&tag);
        Ok(body.len())
    }

    /// Opens a record that follows its length, in place. What is left is the body.
    ///
    /// # Errors
    /// [`WireError::Seal`], [`WireError::Truncated`].
    pub fn open(&mut self, record: &mut Vec<u8>) -> Result<(), WireError> {
        let len = u16::try_from(record.len()).map_err(|_| WireError::TooLong)?;
        let other = if self.end == End::Dialled { End::Accepted } else { End::Dialled };
        let nonce = nonce(Self::direction(other), self.opened);
        let (body, tag) = record.split_last_chunk_mut::<TAG>().ok_or(WireError::Truncated)?;
        if !self.cipher.open(nonce, &len.to_le_bytes(), body, *tag) {
            return Err(WireError::Seal);
        }
        self.opened += 1;
        record.truncate(record.len() - TAG);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
