//! What stands between a node and the network: which labels and seals it puts on what it sends, and which it
//! takes in.

use super::{
    WireError, compress,
    frame::{ADDRESSED, CHECKSUM, COMPRESSED, CRC, Envelope, Head, SEALED, checked},
    seal::{Opening, SEAL_HEAD, Seals, TAG},
};
use crate::{
    config::{Config, ConfigError},
    keyring::{Key, KeyId, Sealing},
};

/// Labels that a node may change to at run time are this long, or as long as the longest that it begins with.
pub const SPARE_LABEL: usize = 32;

/// Labels that are accepted besides a node's own.
pub const MAX_LABELS: usize = 16;

/// A node's label and the others that it accepts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Labels {
    /// What it says itself; the empty one is none.
    pub own: String,
    /// What it hears besides that.
    pub accepted: Vec<String>,
}

impl Labels {
    /// The label `own` alone.
    pub fn new(own: impl Into<String>) -> Self {
        Self { own: own.into(), accepted: Vec::new() }
    }

    /// Whether each is short enough, and whether there are not too many.
    ///
    /// # Errors
    /// [`ConfigError`] names the field.
    pub fn check(&self) -> Result<(), ConfigError> {
        Envelope::new(&self.own)?;
        for label in &self.accepted {
            Envelope::new(label).map_err(|error| ConfigError { field: "accept_labels", ..error })?;
        }
        if self.accepted.len() > MAX_LABELS {
            let value = format!("{} labels", self.accepted.len());
            return Err(ConfigError::new("accept_labels", value, format!("at most {MAX_LABELS}")));
        }
        Ok(())
    }

    /// Whether a node with these hears whoever says that label.
    pub fn hears(&self, label: &[u8]) -> bool {
        self.own.as_bytes() == label || self.accepted.iter().any(|accepted| accepted.as_bytes() == label)
    }

    /// The longest of them.
    pub fn longest(&self) -> usize {
        self.accepted.iter().map(String::len).max().unwrap_or(0).max(self.own.len())
    }
}

/// What a packet was found to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwrapped<'a> {
    /// A count and messages: see [`Parts`](super::frame::Parts).
    pub body: &'a [u8],
    /// Its seal, if it has one.
    pub sealed: Option<super::seal::Sealed>,
}

/// What begins a stream that a node dials.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// Its kind goes right behind these bytes.
    Plain(Vec<u8>),
    /// The other side says what it adds to the keys, then comes the kind, in the first record.
    Sealed(Vec<u8>, Opening),
}

/// Wraps what a node sends, and unwraps what it receives.
#[derive(Debug)]
pub struct Guard {
    envelope: Envelope,
    labels: Labels,
    sealing: Sealing,
    seals: Seals,
    checksum: bool,
    compress: bool,
    overhead: usize,
    packing: Vec<u8>,
}

impl Guard {
    /// A guard with the settings of a node. Whether it has a `ring` of keys is for good; what is in it is not.
    ///
    /// # Errors
    /// [`Labels::check`].
    pub fn new(
        config: &Config,
        labels: Labels,
        ring: Option<&[Key]>,
        sealing: Sealing,
    ) -> Result<Self, ConfigError> {
        labels.check()?;
        let label = labels.longest().max(SPARE_LABEL) + 2;
        let checksum = if config.packet_checksum { CRC } else { 0 };
        let around = if ring.is_some() { SEAL_HEAD + TAG } else { checksum };
        Ok(Self {
            envelope: Envelope::new(&labels.own)?,
            labels,
            sealing,
            seals: Seals::new(ring.unwrap_or_default()),
            checksum: config.packet_checksum,
            compress: config.compress_packets,
            overhead: 2 + label + around,
            packing: Vec::new(),
        })
    }

    /// Takes other labels and keys.
    ///
    /// # Errors
    /// [`Labels::check`]; all is as before then.
    pub fn change(&mut self, labels: Labels, keys: &[Key], sealing: Sealing) -> Result<(), ConfigError> {
        labels.check()?;
        self.envelope = Envelope::new(&labels.own)?;
        (self.labels, self.sealing) = (labels, sealing);
        self.seals.set_keys(keys);
        Ok(())
    }

    /// Bytes around the body of a packet, at most.
    pub fn overhead(&self) -> usize {
        self.overhead
    }

    /// Bytes around the answer to a packet, at least: by as much a packet is longer than what it asks.
    pub fn least_overhead(&self) -> usize {
        let seal = if self.seals_out() {
            SEAL_HEAD + TAG
        } else if self.checksum {
            CRC
        } else {
            0
        };
        self.envelope.len() + seal
    }

    /// Whether what this node sends is sealed.
    pub fn seals_out(&self) -> bool {
        self.seals.has_key() && self.sealing >= Sealing::Outgoing
    }

    /// Whether nothing is taken in that is not sealed.
    pub fn requires_seals(&self) -> bool {
        self.seals.has_key() && self.sealing == Sealing::Required
    }

    /// Whether this node could seal, and yet takes in what is not sealed.
    pub fn is_open(&self) -> bool {
        self.seals.has_key() && self.sealing != Sealing::Required
    }

    /// The seals.
    pub fn seals(&mut self) -> &mut Seals {
        &mut self.seals
    }

    /// Writes the packet around `body` into `out`. `own` is this node's run, `to` that of the receiver, if it is
    /// known.
    ///
    /// # Errors
    /// [`WireError::Seal`] if it cannot be sealed.
    pub fn wrap(
        &mut self,
        own: u64,
        to: Option<u64>,
        body: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), WireError> {
        out.clear();
        self.packing.clear();
        let packed = self.compress && compress::pack(body, &mut self.packing);
        let (body, compressed) = if packed { (&self.packing[..], COMPRESSED) } else { (body, 0) };
        if self.seals_out() {
            let addressed = if to.is_some() { ADDRESSED } else { 0 };
            self.envelope.begin(SEALED | addressed | compressed, out);
            let head = out.len();
            out.extend_from_slice(body);
            return self.seals.seal(own, to, head, out).ok_or(WireError::Seal);
        }
        if self.checksum {
            self.envelope.begin(CHECKSUM | compressed, out);
            out.extend_from_slice(&crc32fast::hash(body).to_le_bytes());
        } else {
            self.envelope.begin(compressed, out);
        }
        out.extend_from_slice(body);
        Ok(())
    }

    /// Looks at what was received, in place; `runs` gives the runs of the members.
    ///
    /// # Errors
    /// Why it is not taken in.
    pub fn unwrap<'a>(
        &'a mut self,
        own: u64,
        packet: &'a mut [u8],
        runs: impl FnOnce(&mut dyn FnMut(u64)),
    ) -> Result<Unwrapped<'a>, WireError> {
        let Head { label, flags, len } = Head::of(packet)?;
        if !self.labels.hears(label) {
            return Err(WireError::Label);
        }
        let (sealed, body) = if flags & SEALED != 0 {
            let sealed = self.seals.open(own, flags & ADDRESSED != 0, len, packet, runs)?;
            (Some(sealed), &packet[len + SEAL_HEAD..packet.len() - TAG])
        } else if self.requires_seals() {
            return Err(WireError::Unsealed);
        } else if flags & CHECKSUM != 0 {
            (None, checked(&packet[len..])?)
        } else {
            (None, &packet[len..])
        };
        if flags & COMPRESSED == 0 {
            return Ok(Unwrapped { body, sealed });
        }
        self.packing.clear();
        compress::unpack(body, &mut self.packing)?;
        Ok(Unwrapped { body: &self.packing, sealed })
    }

    /// Begins a stream to dial. A stream that is not sealed carries its kind right behind.
    pub fn open_stream(&mut self, own: u64) -> Opened {
        if self.seals_out()
            && let Some(key) = self.seals.primary()
        {
            return self.open_sealed(own, key, None);
        }
        let mut head = Vec::new();
        self.envelope.begin(0, &mut head);
        Opened::Plain(head)
    }

    /// Begins a stream that is sealed in any case, under the key of that id, and with a label that may be another
    /// one than this node's.
    pub fn open_sealed(&mut self, own: u64, key: KeyId, label: Option<&Envelope>) -> Opened {
        let mut head = Vec::new();
        label.unwrap_or(&self.envelope).begin(SEALED, &mut head);
        let opening = Opening { key, half: self.seals.half(own) };
        head.extend_from_slice(&opening.to_bytes());
        Opened::Sealed(head, opening)
    }

    /// Whether a stream with that head is served, and whether it is sealed.
    ///
    /// # Errors
    /// [`WireError::Label`], [`WireError::Unsealed`], [`WireError::Flags`], [`WireError::Sealed`].
    pub fn admit_stream(&self, head: Head<'_>) -> Result<bool, WireError> {
        if !self.labels.hears(head.label) {
            return Err(WireError::Label);
        }
        match head.flags {
            0 if self.requires_seals() => Err(WireError::Unsealed),
            0 => Ok(false),
            SEALED if self.seals.has_key() => Ok(true),
            SEALED => Err(WireError::Sealed),
            _ => Err(WireError::Flags),
        }
    }
}

#[cfg(test)]
mod tests;
