//! What users send to one node in one packet: one part after the other, each with the name of its type.
//!
//! ```text
//! part:  length of kind   length of bytes (2)   kind   bytes
//! ```
//!
//! Untyped bytes have an empty kind. A kind that is the same as that of the part before is not repeated: its length
//! is [`SAME`] then.

use bytes::Bytes;

use super::{WireError, message::MAX_KIND};

/// In place of a kind's length: the kind of the part before.
pub const SAME: u8 = 255;

/// Bytes in front of a part's kind.
const HEAD: usize = 3;

/// Up to this size whoever keeps one part may keep the memory of all.
const SHARED: usize = 4096;

/// How many bytes a part takes whose kind has to be written.
pub const fn part_len(kind: usize, bytes: usize) -> usize {
    HEAD + kind + bytes
}

/// Parts in the making.
#[derive(Debug, Default)]
pub struct Bundler {
    bytes: Vec<u8>,
    parts: usize,
    /// Where the last kind was written.
    kind: (usize, usize),
}

impl Bundler {
    /// Begins anew with the memory of one that is through.
    pub fn reuse(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        Self { bytes, ..Self::default() }
    }

    /// Adds a part, if all is at most `room` bytes with it. Says whether it was.
    pub fn push(&mut self, kind: &str, bytes: &[u8], room: usize) -> bool {
        let (at, len) = self.kind;
        let same = self.parts > 0 && self.bytes.get(at..at + len) == Some(kind.as_bytes());
        let written = if same { 0 } else { kind.len() };
        let end = self.bytes.len() + part_len(written, bytes.len());
        let (Ok(kind_len), Ok(bytes_len)) = (u8::try_from(kind.len()), u16::try_from(bytes.len())) else {
            return false;
        };
        if end > room || kind.len() > MAX_KIND {
            return false;
        }
        let [low, high] = bytes_len.to_le_bytes();
        self.bytes.extend_from_slice(&[if same { SAME } else { kind_len }, low, high]);
        if !same {
            self.kind = (self.bytes.len(), kind.len());
            self.bytes.extend_from_slice(kind.as_bytes());
        }
        self.bytes.extend_from_slice(bytes);
        self.parts += 1;
        true
    }

    /// Parts so far.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// All of them, as they go on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The memory, to be used again.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }
}

/// Parts that were received, all of them whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bundle(Bytes);

impl Bundle {
    /// One part.
    pub fn of(kind: &str, bytes: &[u8]) -> Self {
        let mut bundler = Bundler::default();
        bundler.push(kind, bytes, usize::MAX);
        Self(bundler.bytes.into())
    }

    /// Parts that were written one after the other. It is copied once, and only if each part is whole.
    ///
    /// # Errors
    /// [`WireError::Empty`] without any part, [`WireError::Truncated`], [`WireError::Name`] for a kind that is no
    /// text or too long, or that repeats one which is not there.
    pub fn read(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.is_empty() {
            return Err(WireError::Empty);
        }
        let (mut rest, mut first) = (bytes, true);
        while let Some((part, after)) = split(rest)? {
            if part.same && first {
                return Err(WireError::Name);
            }
            std::str::from_utf8(part.kind).map_err(|_| WireError::Name)?;
            (rest, first) = (after, false);
        }
        Ok(Self(Bytes::copy_from_slice(bytes)))
    }

    /// As they stand on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// How many parts there are.
    pub fn count(&self) -> usize {
        let mut rest = &self.0[..];
        let next = || split(rest).ok().flatten().map(|(_, after)| rest = after);
        std::iter::from_fn(next).count()
    }

    /// The kinds in order, each once in a row.
    pub fn kinds(&self) -> impl Iterator<Item = &str> {
        let mut rest = &self.0[..];
        let next = move || {
            let (part, after) = split(rest).ok().flatten()?;
            rest = after;
            Some((!part.same).then_some(part.kind))
        };
        std::iter::from_fn(next).flatten().filter_map(|kind| std::str::from_utf8(kind).ok())
    }

    /// The parts in order: kind and bytes.
    pub fn parts(&self) -> Parts<'_> {
        Parts { all: &self.0, at: 0, kind: "" }
    }
}

/// The parts of a [`Bundle`].
#[derive(Debug)]
pub struct Parts<'a> {
    all: &'a Bytes,
    at: usize,
    kind: &'a str,
}

impl<'a> Iterator for Parts<'a> {
    type Item = (&'a str, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        // It has been looked through before.
        let (part, after) = split(self.all.get(self.at..)?).ok().flatten()?;
        self.at = self.all.len() - after.len();
        if !part.same {
            self.kind = std::str::from_utf8(part.kind).ok()?;
        }
        let shared = self.all.len() <= SHARED || part.bytes.len() >= self.all.len() / 16;
        let bytes = if shared { self.all.slice_ref(part.bytes) } else { Bytes::copy_from_slice(part.bytes) };
        Some((self.kind, bytes))
    }
}

struct Part<'a> {
    same: bool,
    kind: &'a [u8],
    bytes: &'a [u8],
}

fn split(bytes: &[u8]) -> Result<Option<(Part<'_>, &[u8])>, WireError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let (&[kind_len, low, high], rest) = bytes.split_first_chunk::<HEAD>().ok_or(WireError::Truncated)?;
    let same = kind_len == SAME;
    let kind_len = if same { 0 } else { usize::from(kind_len) };
    if kind_len > MAX_KIND {
        return Err(WireError::Name);
    }
    let (kind, rest) = rest.split_at_checked(kind_len).ok_or(WireError::Truncated)?;
    let len = usize::from(u16::from_le_bytes([low, high]));
    let (bytes, rest) = rest.split_at_checked(len).ok_or(WireError::Truncated)?;
    Ok(Some((Part { same, kind, bytes }, rest)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(bundler: &Bundler) -> Vec<(String, Bytes)> {
        let bundle = Bundle::read(bundler.as_bytes()).unwrap();
        bundle.parts().map(|(kind, bytes)| (kind.to_owned(), bytes)).collect()
    }

    #[test]
    fn parts_come_out_as_they_went_in_and_a_kind_is_written_once_in_a_row() {
        let mut bundler = Bundler::default();
        let parts = [("a/1", "one"), ("a/1", ""), ("", "raw"), ("", "more"), ("a/1", "two")];
        for (kind, bytes) in parts {
            assert!(bundler.push(kind, bytes.as_bytes(), 1000));
        }
        let expected = parts.map(|(kind, bytes)| (kind.to_owned(), Bytes::from(bytes)));
        assert_eq!((of(&bundler), bundler.parts()), (expected.to_vec(), 5));
        assert_eq!(bundler.as_bytes().len(), 5 * HEAD + 2 * 3 + 3 + 3 + 4 + 3);
        let bundle = Bundle::read(bundler.as_bytes()).unwrap();
        assert_eq!((bundle.kinds().collect::<Vec<_>>(), bundle.count()), (vec!["a/1", "", "a/1"], 5));
    }

    #[test]
    fn golden_bytes_of_parts() {
        let mut bundler = Bundler::default();
        for (kind, bytes) in [("", "hi"), ("", "ho"), ("k", "1"), ("k", "2")] {
            assert!(bundler.push(kind, bytes.as_bytes(), 1000));
        }
        let golden = b"\x00\x02\x00hi\xff\x02\x00ho\x01\x01\x00k1\xff\x01\x002";
        assert_eq!(bundler.as_bytes(), golden);
    }

    #[test]
    fn what_has_no_room_is_left_out_and_nothing_of_it_is_written() {
        let mut bundler = Bundler::reuse(vec![1; 10]);
        assert!(bundler.push("", b"12345", 8) && !bundler.push("", b"", 10));
        assert!(!bundler.push("", &[0; 70_000], usize::MAX) && !bundler.push(&"k".repeat(65), b"", 1000));
        assert!(bundler.push("", b"", 11));
        assert_eq!(of(&bundler).len(), 2);
    }

    #[test]
    fn parts_that_are_cut_or_broken_are_none() {
        let whole = b"\x02\x03\x00ab123\xff\x01\x00x";
        assert!(Bundle::read(whole).is_ok());
        for cut in (0..whole.len()).filter(|cut| *cut != 8) {
            assert!(Bundle::read(&whole[..cut]).is_err(), "{cut}");
        }
        assert_eq!(Bundle::read(b"\xff\x00\x00"), Err(WireError::Name), "the first repeats nothing");
        assert_eq!(Bundle::read(b"\x01\x00\x00\xff"), Err(WireError::Name));
        let long = [&[65, 0, 0][..], &[b'k'; 65]].concat();
        assert_eq!(Bundle::read(&long), Err(WireError::Name));
    }

    #[test]
    fn a_part_shares_the_memory_of_its_packet_unless_it_would_hold_much_for_little() {
        let mut bundler = Bundler::default();
        assert!(bundler.push("", &[1; 100], usize::MAX) && bundler.push("", &[2; 60_000], usize::MAX));
        let bundle = Bundle::read(bundler.as_bytes()).unwrap();
        let inside = |bytes: &Bytes| bundle.as_bytes().as_ptr_range().contains(&bytes.as_ptr());
        let shared: Vec<bool> = bundle.parts().map(|(_, bytes)| inside(&bytes)).collect();
        assert_eq!(shared, [false, true]);
        let small = Bundle::of("k", &[1; 10]);
        assert!(small.parts().all(|(_, bytes)| small.as_bytes().as_ptr_range().contains(&bytes.as_ptr())));
    }
}
