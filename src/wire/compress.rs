//! Compression (LZ4 blocks) of packets and of what goes over streams, with a bound on what a few bytes may
//! stand for.
//!
//! ```text
//! packet:  length (2)  block
//! stream:  (packed length (4)  length (4)  block)*      the highest bit of the first: the block is as it was
//! ```
//!
//! Nothing is compressed twice: there is one flag in a packet, and what is in it is messages.

use lz4_flex::block;

use super::WireError;

/// The factor by which a block may grow.
pub const MAX_RATIO: usize = 128;

/// Bytes of a stream that are compressed together.
pub const BLOCK: usize = 64 * 1024;

/// Fewer bytes are not worth it.
pub const WORTHWHILE: usize = 256;

/// Bytes in front of each block of a stream.
pub const BLOCK_HEAD: usize = 8;

const STORED: u32 = 1 << 31;

/// Largest packed block.
const MAX_PACKED: usize = BLOCK + BLOCK / 128 + 64;

/// Adds `body` to `out` compressed, if that makes it shorter by a sixteenth; else leaves `out` as it is, and
/// says so.
pub fn pack(body: &[u8], out: &mut Vec<u8>) -> bool {
    let Ok(len) = u16::try_from(body.len()) else { return false };
    let start = out.len();
    out.extend_from_slice(&len.to_le_bytes());
    let packed = body.len() >= WORTHWHILE && squeeze(body, out).is_some();
    if !packed {
        out.truncate(start);
    }
    packed
}

/// Appends the block, if it is worthwhile, and says its length.
fn squeeze(body: &[u8], out: &mut Vec<u8>) -> Option<usize> {
    let start = out.len();
    let most = body.len() - body.len() / 16;
    out.resize(start + block::get_maximum_output_size(body.len()), 0);
    let len = block::compress_into(body, &mut out[start..])
        .ok()
        .filter(|len| *len < most && len * MAX_RATIO >= body.len());
    out.truncate(start + len.unwrap_or(0));
    len
}

/// Adds what a packed body of a packet stands for to `out`.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::Compressed`].
pub fn unpack(packed: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    let (len, packed) = packed.split_first_chunk::<2>().ok_or(WireError::Truncated)?;
    expand(packed, usize::from(u16::from_le_bytes(*len)), out)
}

fn expand(packed: &[u8], len: usize, out: &mut Vec<u8>) -> Result<(), WireError> {
    if len > packed.len().saturating_mul(MAX_RATIO) {
        return Err(WireError::Compressed);
    }
    let start = out.len();
    out.resize(start + len, 0);
    match block::decompress_into(packed, &mut out[start..]) {
        Ok(expanded) if expanded == len => Ok(()),
        _ => Err(WireError::Compressed),
    }
}

/// Adds a block of a stream, of at most [`BLOCK`] bytes, to `out`, with its head. Says whether it is shorter so.
pub fn pack_block(body: &[u8], out: &mut Vec<u8>) -> bool {
    let body = &body[..body.len().min(BLOCK)];
    let start = out.len();
    out.extend_from_slice(&[0; BLOCK_HEAD]);
    let packed = squeeze(body, out);
    let first = match packed {
        Some(len) => len as u32,
        None => {
            out.extend_from_slice(body);
            body.len() as u32 | STORED
        }
    };
    out[start..start + 4].copy_from_slice(&first.to_le_bytes());
    out[start + 4..start + BLOCK_HEAD].copy_from_slice(&(body.len() as u32).to_le_bytes());
    packed.is_some()
}

/// What stands in front of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockHead {
    /// Bytes that follow.
    pub packed: usize,
    /// Bytes that they stand for.
    pub len: usize,
    stored: bool,
}

impl BlockHead {
    /// Reads it, when `left` bytes are still expected.
    ///
    /// # Errors
    /// [`WireError::Compressed`] if the block claims to be empty, too large, or too small for what it stands for.
    pub fn read(head: [u8; BLOCK_HEAD], left: usize) -> Result<Self, WireError> {
        let [a, b, c, d, e, f, g, h] = head;
        let first = u32::from_le_bytes([a, b, c, d]);
        let (packed, stored) = ((first & !STORED) as usize, first & STORED != 0);
        let len = u32::from_le_bytes([e, f, g, h]) as usize;
        let fits = (1..=BLOCK.min(left)).contains(&len) && packed <= MAX_PACKED;
        let sound = if stored { packed == len } else { packed < len && len <= packed * MAX_RATIO };
        if fits && sound { Ok(Self { packed, len, stored }) } else { Err(WireError::Compressed) }
    }

    /// Adds what the block stands for to `out`.
    ///
    /// # Errors
    /// [`WireError::Compressed`].
    pub fn unpack(self, block: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
        if self.stored {
            out.extend_from_slice(block);
            return Ok(());
        }
        expand(block, self.len, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(len: usize) -> Vec<u8> {
        (0..len).map(|i| b"a member of the cluster, and another "[i % 37] ^ ((i / 500) as u8 & 3)).collect()
    }

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 7_u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        (0..len).map(|_| next()).collect()
    }

    #[test]
    fn what_is_packed_comes_out_as_it_was() {
        for len in [WORTHWHILE, 1000, 1400, 65_000] {
            let (mut packed, mut out) = (Vec::new(), Vec::new());
            assert!(pack(&text(len), &mut packed));
            assert!(packed.len() < len / 2);
            unpack(&packed, &mut out).unwrap();
            assert_eq!(out, text(len));
        }
    }

    #[test]
    fn what_does_not_become_shorter_is_left_as_it_is() {
        for body in [noise(1400), text(WORTHWHILE - 1), text(70_000), vec![0; 60_000]] {
            let mut packed = vec![7];
            assert!(!pack(&body, &mut packed));
            assert_eq!(packed, [7]);
        }
    }

    #[test]
    fn weak_point_36_a_packet_that_stands_for_too_much_is_given_up_before_it_is_unpacked() {
        let bomb = lz4_flex::block::compress(&[0; 65_535]);
        assert!(bomb.len() < 300);
        let mut out = Vec::new();
        let packed = [&u16::MAX.to_le_bytes()[..], &bomb].concat();
        assert_eq!(unpack(&packed, &mut out), Err(WireError::Compressed));
        assert_eq!(out.capacity(), 0, "nothing was reserved");
    }

    #[test]
    fn broken_packets_are_errors_at_each_length_and_with_each_bit() {
        let mut packed = Vec::new();
        assert!(pack(&text(1000), &mut packed));
        for len in 0..packed.len() {
            assert!(unpack(&packed[..len], &mut Vec::new()).is_err(), "{len}");
        }
        for at in 0..packed.len() * 8 {
            let mut changed = packed.clone();
            changed[at / 8] ^= 1 << (at % 8);
            let mut out = Vec::new();
            let _ = unpack(&changed, &mut out);
            assert!(out.len() <= 65_535);
        }
    }

    #[test]
    fn blocks_of_a_stream_come_out_as_they_were_packed_or_not() {
        for (body, shorter) in [(text(BLOCK), true), (noise(BLOCK), false), (noise(1), false)] {
            let (mut packed, mut out) = (Vec::new(), Vec::new());
            assert_eq!(pack_block(&body, &mut packed), shorter);
            let (head, block) = packed.split_first_chunk::<BLOCK_HEAD>().unwrap();
            let head = BlockHead::read(*head, body.len()).unwrap();
            assert_eq!((head.packed, head.len), (block.len(), body.len()));
            head.unpack(block, &mut out).unwrap();
            assert_eq!(out, body);
            assert_eq!(
                BlockHead::read(*packed.first_chunk().unwrap(), body.len() - 1),
                Err(WireError::Compressed)
            );
        }
    }

    #[test]
    fn weak_point_36_heads_of_blocks_that_claim_too_much_are_refused() {
        let head = |packed: u32, len: u32| {
            let mut head = [0; BLOCK_HEAD];
            head[..4].copy_from_slice(&packed.to_le_bytes());
            head[4..].copy_from_slice(&len.to_le_bytes());
            BlockHead::read(head, usize::MAX)
        };
        assert!(head(100, 100 * MAX_RATIO as u32).is_ok());
        let refused = Err(WireError::Compressed);
        assert_eq!(head(100, 100 * MAX_RATIO as u32 + 1), refused);
        assert_eq!(head(0, 0), refused, "an empty block could follow another for ever");
        assert_eq!(head(STORED, 0), refused);
        assert_eq!(head(STORED | 5, 6), refused);
        assert_eq!(head(5, 5), refused);
        assert_eq!(head(60_000, BLOCK as u32 + 1), refused);
        assert_eq!(head(u32::MAX >> 1, BLOCK as u32), refused);
    }
}
