//! What is around the messages: the first bytes of each packet and stream, and packets of several messages.
//!
//! ```text
//! packet:  B1 [F4 length label] flags  [seal, or checksum]  count (length message)*  [tag]
//! stream:  B1 [F4 length label] flags  [seal]  kind  (length bytes)*
//! ```
//!
//! Flags say what else there is: 1 a [seal](super::seal), 2 a checksum, 4 [compression](super::compress), 8 that
//! the seal is for one receiver alone. A count is one byte, a length two in packets and four in streams, the
//! lowest first. A stream's length with its highest bit set is followed by compressed blocks.
//!
//! Later versions of the wire begin with `B2` to `BF`. A packet of one is dropped; a stream of one is answered
//! with [`OTHER_WIRE`], which each version understands. A stream with a label or a seal that does not fit is
//! answered with [`REFUSED`] and a reason.

use std::ops::RangeInclusive;

use bytes::Bytes;
use smallvec::SmallVec;

use super::{WireError, codec, message::Message};
use crate::{config::ConfigError, member::NodeId};

/// The first byte of everything on this wire, which is version 1.
pub const WIRE: u8 = 0xB1;

/// The first bytes that later versions will have.
const LATER: RangeInclusive<u8> = 0xB2..=0xBF;

/// The answer to a stream of another version of the wire, in this version and in all to come: a length that
/// no answer has, then the lowest and the highest first byte that the answering node understands.
pub const OTHER_WIRE: [u8; 6] = [0xFF, 0xFF, 0xFF, 0xFF, WIRE, WIRE];

/// What an answer to a stream begins with that is refused before anything in it is read; one byte follows,
/// which is that of a [`Barrier`].
pub const REFUSED: [u8; 4] = [0xFE, 0xFF, 0xFF, 0xFF];

/// The first byte of whoever begins with TLS.
const TLS: u8 = 0x16;

/// Whether the four bytes that an answer begins with may be those of a TLS alert: of a node that has TLS, and takes
/// in nothing else. As a length they are one that an answer may have, but an alert ends three bytes later.
pub fn may_be_alert(answer: [u8; 4]) -> bool {
    matches!(answer, [0x15, 3, _, 0])
}

/// Why a stream is refused before anything in it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Barrier {
    /// Its label is not one that is accepted.
    Label,
    /// It is not sealed, or sealed with another key, or the seal does not open.
    Key,
}

impl Barrier {
    /// What a stream is told that fails with an error, if it is told anything.
    pub fn of(error: WireError) -> Option<Self> {
        match error {
            WireError::Label => Some(Self::Label),
            WireError::Sealed | WireError::Unsealed | WireError::Seal => Some(Self::Key),
            _ => None,
        }
    }

    /// The answer as bytes.
    pub fn answer(self) -> [u8; 5] {
        let [a, b, c, d] = REFUSED;
        [a, b, c, d, if self == Self::Label { 1 } else { 2 }]
    }

    /// What the byte behind [`REFUSED`] stands for.
    ///
    /// # Errors
    /// [`WireError::Kind`].
    pub fn read(byte: u8) -> Result<Self, WireError> {
        match byte {
            1 => Ok(Self::Label),
            2 => Ok(Self::Key),
            _ => Err(WireError::Kind),
        }
    }
}

/// Whether the four bytes that an answer begins with are those of [`OTHER_WIRE`], and not a length.
pub fn is_other_wire(answer: [u8; 4]) -> bool {
    OTHER_WIRE.starts_with(&answer)
}

/// Whether a first byte is this wire's.
///
/// # Errors
/// [`WireError::WireVersion`], [`WireError::ForeignMemberlist`], [`WireError::Tls`] or [`WireError::Foreign`].
pub fn check_wire(first: u8) -> Result<(), WireError> {
    match first {
        WIRE => Ok(()),
        _ if LATER.contains(&first) => Err(WireError::WireVersion),
        0..=LAST_OF_MEMBERLIST | LABEL => Err(WireError::ForeignMemberlist),
        TLS => Err(WireError::Tls),
        _ => Err(WireError::Foreign),
    }
}

/// The byte in front of a label.
pub const LABEL: u8 = 244;

/// Longest label, in bytes.
pub const MAX_LABEL: usize = 255;

/// The highest number that HashiCorp's memberlist begins a message with, but for its label (which is 244 too).
const LAST_OF_MEMBERLIST: u8 = 13;

/// Bytes of a checksum.
pub(super) const CRC: usize = 4;

/// Flag: a seal.
pub const SEALED: u8 = 1;
/// Flag: a checksum of the body, CRC-32.
pub const CHECKSUM: u8 = 2;
/// Flag: the body is compressed, and sealed after that.
pub const COMPRESSED: u8 = 4;
/// Flag, of a seal: it is for one receiver alone.
pub const ADDRESSED: u8 = 8;

/// Bytes around each message of a packet.
pub const PART_OVERHEAD: usize = 2;

/// Messages in one packet at most.
pub const MAX_PARTS: usize = 255;

/// What a stream is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// An exchange of full states.
    PushPull,
    /// A ping of a node that did not answer on a datagram.
    Ping,
    /// A connection of a [link](crate::link).
    Link,
    /// An order about keys, labels and seals.
    Order,
    /// A message with a body behind it.
    Upload,
}

impl StreamKind {
    /// The byte that stands for it.
    pub fn byte(self) -> u8 {
        match self {
            Self::PushPull => 1,
            Self::Ping => 2,
            Self::Link => 3,
            Self::Order => 4,
            Self::Upload => 5,
        }
    }

    /// The kind that a byte stands for.
    ///
    /// # Errors
    /// [`WireError::Kind`].
    pub fn of(byte: u8) -> Result<Self, WireError> {
        [Self::PushPull, Self::Ping, Self::Link, Self::Order, Self::Upload]
            .into_iter()
            .find(|kind| kind.byte() == byte)
            .ok_or(WireError::Kind)
    }
}

/// The first bytes of each packet and stream of one cluster.
#[derive(Clone, Debug)]
pub struct Envelope {
    head: SmallVec<[u8; 16]>,
}

impl Envelope {
    /// The envelope of the cluster `label`; the empty label is none.
    ///
    /// # Errors
    /// [`ConfigError`] when the label is longer than [`MAX_LABEL`] bytes.
    pub fn new(label: &str) -> Result<Self, ConfigError> {
        let mut head = SmallVec::from_slice(&[WIRE]);
        if !label.is_empty() {
            let len = u8::try_from(label.len()).map_err(|_| {
                ConfigError::new(
                    "label",
                    format!("{} bytes long", label.len()),
                    format!("at most {MAX_LABEL} bytes"),
                )
            })?;
            head.extend_from_slice(&[LABEL, len]);
            head.extend_from_slice(label.as_bytes());
        }
        head.push(0);
        Ok(Self { head })
    }

    /// Bytes in front of a stream's kind.
    pub fn len(&self) -> usize {
        self.head.len()
    }

    /// An envelope always has its first byte.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The room for messages in a packet of `size` bytes.
    pub fn room(&self, size: usize) -> usize {
        size.saturating_sub(self.head.len() + 1)
    }

    /// What opens a stream of that kind.
    pub fn open_stream(&self, kind: StreamKind) -> SmallVec<[u8; 16]> {
        let mut head = self.head.clone();
        head.push(kind.byte());
        head
    }

    /// What is inside a packet with this label that is neither sealed nor compressed.
    ///
    /// # Errors
    /// What is wrong with the envelope.
    pub fn strip<'a>(&self, bytes: &'a [u8]) -> Result<&'a [u8], WireError> {
        let Head { label, flags, len } = Head::of(bytes)?;
        if label != self.label() {
            return Err(WireError::Label);
        }
        match flags {
            0 => Ok(&bytes[len..]),
            CHECKSUM => checked(&bytes[len..]),
            _ if flags & SEALED != 0 => Err(WireError::Sealed),
            _ => Err(WireError::Compressed),
        }
    }

    /// The label.
    pub fn label(&self) -> &[u8] {
        self.head.get(3..self.head.len() - 1).unwrap_or_default()
    }

    /// Adds the first bytes of a packet with these flags to `out`.
    pub(super) fn begin(&self, flags: u8, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.head[..self.head.len() - 1]);
        out.push(flags);
    }

    /// The messages of a packet, as bytes.
    ///
    /// # Errors
    /// What is wrong with the envelope.
    pub fn parts<'a>(&self, packet: &'a [u8]) -> Result<Parts<'a>, WireError> {
        Parts::of(self.strip(packet)?)
    }
}

/// What is behind a checksum.
pub(super) fn checked(bytes: &[u8]) -> Result<&[u8], WireError> {
    let (sum, body) = bytes.split_first_chunk::<CRC>().ok_or(WireError::Truncated)?;
    if crc32fast::hash(body).to_le_bytes() == *sum { Ok(body) } else { Err(WireError::Checksum) }
}

/// The first bytes of a packet or stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Its label.
    pub label: &'a [u8],
    /// Its flags, all of them known ones.
    pub flags: u8,
    /// How many bytes that are.
    pub len: usize,
}

impl<'a> Head<'a> {
    /// Reads what a packet or stream begins with.
    ///
    /// # Errors
    /// Those of [`check_wire`], [`WireError::Truncated`], [`WireError::Flags`].
    pub fn of(bytes: &'a [u8]) -> Result<Self, WireError> {
        let &first = bytes.first().ok_or(WireError::Truncated)?;
        check_wire(first)?;
        let (label, len) = match bytes.get(1) {
            Some(&LABEL) => {
                let &len = bytes.get(2).ok_or(WireError::Truncated)?;
                if len == 0 {
                    return Err(WireError::Label);
                }
                let end = 3 + usize::from(len);
                (bytes.get(3..end).ok_or(WireError::Truncated)?, end + 1)
            }
            _ => (&bytes[..0], 2),
        };
        let &flags = bytes.get(len - 1).ok_or(WireError::Truncated)?;
        let alone = flags & (SEALED | ADDRESSED) == ADDRESSED;
        let twice = flags & SEALED != 0 && flags & CHECKSUM != 0;
        if flags & !(SEALED | CHECKSUM | COMPRESSED | ADDRESSED) != 0 || alone || twice {
            return Err(WireError::Flags);
        }
        Ok(Self { label, flags, len })
    }
}

/// The messages of a packet, one after the other. An error is the last item.
#[derive(Debug)]
pub struct Parts<'a> {
    left: u8,
    rest: &'a [u8],
}

impl<'a> Parts<'a> {
    /// The messages of a packet's body.
    ///
    /// # Errors
    /// [`WireError::Truncated`], [`WireError::Empty`].
    pub fn of(body: &'a [u8]) -> Result<Self, WireError> {
        let (&left, rest) = body.split_first().ok_or(WireError::Truncated)?;
        if left == 0 { Err(WireError::Empty) } else { Ok(Self { left, rest }) }
    }
}

impl<'a> Iterator for Parts<'a> {
    type Item = Result<&'a [u8], WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return if std::mem::take(&mut self.rest).is_empty() {
                None
            } else {
                Some(Err(WireError::Trailing))
            };
        }
        let part = self
            .rest
            .split_first_chunk::<2>()
            .and_then(|(len, rest)| rest.split_at_checked(usize::from(u16::from_le_bytes(*len))));
        match part {
            Some((part, rest)) => {
                (self.left, self.rest) = (self.left - 1, rest);
                Some(Ok(part))
            }
            None => {
                (self.left, self.rest) = (0, &[]);
                Some(Err(WireError::Truncated))
            }
        }
    }
}

/// A packet in the making.
#[derive(Debug)]
pub struct Packer<'a> {
    buf: &'a mut [u8],
    count_at: usize,
    len: usize,
}

impl<'a> Packer<'a> {
    /// Begins a packet of at most `buf.len()` bytes, at least the envelope's own.
    pub fn new(envelope: &Envelope, buf: &'a mut [u8]) -> Self {
        let count_at = envelope.head.len();
        buf[..count_at].copy_from_slice(&envelope.head);
        buf[count_at] = 0;
        Self { buf, count_at, len: count_at + 1 }
    }

    /// Begins the body of a packet, of at most `buf.len()` bytes, at least one.
    pub fn body(buf: &'a mut [u8]) -> Self {
        buf[0] = 0;
        Self { buf, count_at: 0, len: 1 }
    }

    /// Bytes of messages, each with [`PART_OVERHEAD`], that still fit.
    pub fn room(&self) -> usize {
        if usize::from(self.buf[self.count_at]) == MAX_PARTS { 0 } else { self.buf.len() - self.len }
    }

    /// Adds a message; says whether it fitted.
    pub fn push(&mut self, message: &Message) -> bool {
        let at = self.len + PART_OVERHEAD;
        if self.room() < PART_OVERHEAD {
            return false;
        }
        match codec::encode(message, &mut self.buf[at..]) {
            Ok(len) => self.close_part(len),
            Err(_) => false,
        }
    }

    /// Adds a message that is written already; says whether it fitted.
    pub fn push_encoded(&mut self, message: &[u8]) -> bool {
        let at = self.len + PART_OVERHEAD;
        if self.room() < PART_OVERHEAD + message.len() {
            return false;
        }
        self.buf[at..at + message.len()].copy_from_slice(message);
        self.close_part(message.len())
    }

    /// Adds a [`Direct`](super::message::Direct) of parts that are written already; says whether it fitted.
    pub fn push_direct(&mut self, from: &NodeId, to: Option<&NodeId>, parts: &[u8]) -> bool {
        let at = self.len + PART_OVERHEAD;
        if self.room() < PART_OVERHEAD {
            return false;
        }
        match codec::encode_direct(from, to, parts, &mut self.buf[at..]) {
            Ok(len) => self.close_part(len),
            Err(_) => false,
        }
    }

    fn close_part(&mut self, len: usize) -> bool {
        let Ok(short) = u16::try_from(len) else { return false };
        self.buf[self.len..self.len + PART_OVERHEAD].copy_from_slice(&short.to_le_bytes());
        self.buf[self.count_at] += 1;
        self.len += PART_OVERHEAD + len;
        true
    }

    /// Bytes so far.
    #[allow(clippy::len_without_is_empty, reason = "there is a count of messages even in an empty packet")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Messages so far.
    pub fn count(&self) -> usize {
        usize::from(self.buf[self.count_at])
    }

    /// The packet, unless it is empty.
    pub fn finish(self) -> Option<Bytes> {
        (self.count() > 0).then(|| Bytes::copy_from_slice(&self.buf[..self.len]))
    }
}

#[cfg(test)]
mod tests;
