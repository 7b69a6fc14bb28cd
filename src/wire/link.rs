//! What goes over a connection of a [link](crate::link), behind its hello and its welcome: frames, each with its
//! length in front. They are written by hand, since each message of a user has one.
//!
//! ```text
//! there:  length 1 lane number(8) kind payload        a message; kind: length, text
//!         length 2 lane number(8) kind within(4) payload   a question, to be answered in so many ms
//!         length 3 lane number(8) payload             a broadcast: an address, and its bytes
//!         length 4 number(8)                          answers below this have arrived
//!         length 5 token(8)                           are you there?
//! back:   length 16 lane number(8) { number(8) receipt }   everything below is taken but these
//!         length 17 number(8) lane question(8) how payload  an answer
//!         length 18 token(8)                          I am
//! both:   length 6 why                                I end this connection: a refusal
//! ```

use super::{
    WireError, codec,
    message::{MAX_KIND, Receipt},
};
use crate::link::Lane;

/// Bytes of a frame's length.
pub const LENGTH: usize = 4;

/// Most bytes of a frame around a user's payload, its length included.
pub const MAX_AROUND: usize = LENGTH + 1 + 1 + 8 + 1 + MAX_KIND + 4;

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// A message of a user.
    Message {
        /// Its lane.
        lane: Lane,
        /// Its number in the lane.
        number: u64,
        /// What it is.
        what: What<'a>,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// Answers below this number have arrived.
    Answered(u64),
    /// "Are you there?"
    Ping(u64),
    /// "I am."
    Pong(u64),
    /// Everything of the lane below `next` has arrived, and was taken but for what [`refused`] reads.
    Ack {
        /// Its lane.
        lane: Lane,
        /// The number that comes next.
        next: u64,
        /// Those that were not taken.
        refused: &'a [u8],
    },
    /// The answer to a question.
    Answer {
        /// Its number among the answers.
        number: u64,
        /// The lane of the question.
        lane: Lane,
        /// The number of the question.
        question: u64,
        /// Whether it is one.
        how: How,
        /// Its bytes.
        payload: &'a [u8],
    },
    /// The connection ends: the code of a [`Refusal`](super::state::Refusal).
    Bye(u8),
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What<'a> {
    /// A message of this kind; the empty one are bytes without a type.
    Tell(&'a str),
    /// A question of this kind, worth an answer for so many milliseconds.
    Ask(&'a str, u32),
    /// A broadcast; its payload begins with an encoded [`Address`](super::message::Address).
    Broadcast,
}

/// What an answer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The handler's result.
    Reply,
    /// There is none: the handler has stopped, or panicked.
    HandlerGone,
    /// There is none that could be sent: why, as text.
    Unfit,
}

impl How {
    /// What a byte stands for.
    pub fn of(byte: u8) -> Option<Self> {
        [Self::Reply, Self::HandlerGone, Self::Unfit].get(usize::from(byte)).copied()
    }
}

/// Appends a frame, but for its payload, for which `payload` bytes are to follow.
pub fn begin(frame: &Frame<'_>, payload: usize, out: &mut Vec<u8>) {
    let at = out.len();
    out.extend_from_slice(&[0; LENGTH]);
    match *frame {
        Frame::Message { lane, number, what, .. } => {
            let kind = match what {
                What::Tell(_) => 1,
                What::Ask(..) => 2,
                What::Broadcast => 3,
            };
            out.extend_from_slice(&[kind, lane.byte()]);
            out.extend_from_slice(&number.to_le_bytes());
            if let What::Tell(kind) | What::Ask(kind, _) = what {
                debug_assert!(kind.len() <= MAX_KIND);
                out.push(kind.len() as u8);
                out.extend_from_slice(kind.as_bytes());
            }
            if let What::Ask(_, within) = what {
                out.extend_from_slice(&within.to_le_bytes());
            }
        }
        Frame::Answered(number) => numbered(4, number, out),
        Frame::Ping(token) => numbered(5, token, out),
        Frame::Bye(why) => out.extend_from_slice(&[6, why]),
        Frame::Ack { lane, next, refused } => {
            out.extend_from_slice(&[16, lane.byte()]);
            out.extend_from_slice(&next.to_le_bytes());
            out.extend_from_slice(refused);
        }
        Frame::Answer { number, lane, question, how, .. } => {
            numbered(17, number, out);
            out.push(lane.byte());
            out.extend_from_slice(&question.to_le_bytes());
            out.push(how as u8);
        }
        Frame::Pong(token) => numbered(18, token, out),
    }
    let len = (out.len() - at - LENGTH + payload) as u32;
    out[at..at + LENGTH].copy_from_slice(&len.to_le_bytes());
}

fn numbered(kind: u8, number: u64, out: &mut Vec<u8>) {
    out.push(kind);
    out.extend_from_slice(&number.to_le_bytes());
}

/// Appends those that were not taken, for an ack.
pub fn append_refused(refused: &[(u64, Receipt)], out: &mut Vec<u8>) {
    for (number, receipt) in refused {
        out.extend_from_slice(&number.to_le_bytes());
        out.push(codec::encode_receipt(*receipt));
    }
}

/// Those that an ack says were not taken.
///
/// # Errors
/// [`WireError`] for what is none.
pub fn refused(bytes: &[u8]) -> Result<Vec<(u64, Receipt)>, WireError> {
    let (each, rest) = bytes.as_chunks::<9>();
    if !rest.is_empty() {
        return Err(WireError::Malformed);
    }
    each.iter()
        .map(|[number @ .., receipt]| Ok((u64::from_le_bytes(*number), codec::decode_receipt(*receipt)?)))
        .collect()
}

/// Reads a frame, which is all of `bytes`, its length left away.
///
/// # Errors
/// [`WireError`] for what is none.
pub fn read(bytes: &[u8]) -> Result<Frame<'_>, WireError> {
    let (&kind, mut rest) = bytes.split_first().ok_or(WireError::Empty)?;
    let rest = &mut rest;
    let frame = match kind {
        1..=3 => {
            let (lane, number) = (lane(rest)?, number(rest)?);
            let what = match kind {
                1 => What::Tell(name(rest)?),
                2 => {
                    let name = name(rest)?;
                    let within = take(rest, 4)?.first_chunk().ok_or(WireError::Truncated)?;
                    What::Ask(name, u32::from_le_bytes(*within))
                }
                _ => What::Broadcast,
            };
            Frame::Message { lane, number, what, payload: std::mem::take(rest) }
        }
        4 => Frame::Answered(number(rest)?),
        5 => Frame::Ping(number(rest)?),
        6 => Frame::Bye(byte(rest)?),
        16 => Frame::Ack { lane: lane(rest)?, next: number(rest)?, refused: std::mem::take(rest) },
        17 => {
            let (number, lane, question) = (number(rest)?, lane(rest)?, self::number(rest)?);
            let how = How::of(byte(rest)?).ok_or(WireError::Kind)?;
            Frame::Answer { number, lane, question, how, payload: std::mem::take(rest) }
        }
        18 => Frame::Pong(number(rest)?),
        _ => return Err(WireError::Kind),
    };
    if rest.is_empty() { Ok(frame) } else { Err(WireError::Trailing) }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], WireError> {
    let (taken, left) = rest.split_at_checked(len).ok_or(WireError::Truncated)?;
    *rest = left;
    Ok(taken)
}

/// The name of a kind.
fn name<'a>(rest: &mut &'a [u8]) -> Result<&'a str, WireError> {
    let len = usize::from(byte(rest)?);
    if len > MAX_KIND {
        return Err(WireError::Kind);
    }
    std::str::from_utf8(take(rest, len)?).map_err(|_| WireError::Name)
}

fn byte(rest: &mut &[u8]) -> Result<u8, WireError> {
    take(rest, 1).map(|bytes| bytes[0])
}

fn number(rest: &mut &[u8]) -> Result<u64, WireError> {
    take(rest, 8)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).ok_or(WireError::Truncated)
}

fn lane(rest: &mut &[u8]) -> Result<Lane, WireError> {
    Lane::of(byte(rest)?).ok_or(WireError::Kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames() -> Vec<Frame<'static>> {
        let of = |what| Frame::Message { lane: Lane::Ordered, number: 300, what, payload: b"payload" };
        vec![
            of(What::Tell("cache.lookup/1")),
            of(What::Tell("")),
            of(What::Ask("k", 5000)),
            of(What::Broadcast),
            Frame::Answered(7),
            Frame::Ping(1),
            Frame::Pong(u64::MAX),
            Frame::Bye(5),
            Frame::Ack { lane: Lane::Bulk, next: 9, refused: &[3, 0, 0, 0, 0, 0, 0, 0, 2] },
            Frame::Answer { number: 1, lane: Lane::Urgent, question: 2, how: How::Unfit, payload: b"x" },
        ]
    }

    fn encoded(frame: &Frame<'_>) -> Vec<u8> {
        let payload = match frame {
            Frame::Message { payload, .. } | Frame::Answer { payload, .. } => payload,
            _ => &b""[..],
        };
        let mut out = vec![9];
        begin(frame, payload.len(), &mut out);
        out.extend_from_slice(payload);
        out.split_off(1)
    }

    #[test]
    fn frames_come_out_as_they_went_in_and_their_length_is_right() {
        for frame in frames() {
            let bytes = encoded(&frame);
            let (len, body) = bytes.split_first_chunk().unwrap();
            assert_eq!(u32::from_le_bytes(*len) as usize, body.len());
            assert_eq!(read(body), Ok(frame));
            assert!(bytes.len() <= MAX_AROUND + 7);
        }
        let mut out = Vec::new();
        let some = [(3, Receipt::Busy), (9, Receipt::Undecodable)];
        append_refused(&some, &mut out);
        assert_eq!(refused(&out), Ok(some.to_vec()));
        assert_eq!(refused(&out[1..]), Err(WireError::Malformed));
    }

    #[test]
    fn no_frame_that_is_cut_or_changed_makes_it_panic() {
        for frame in frames() {
            let bytes = encoded(&frame).split_off(LENGTH);
            for len in 0..bytes.len() {
                let cut = read(&bytes[..len]);
                let cannot_know =
                    matches!(frame, Frame::Message { .. } | Frame::Answer { .. } | Frame::Ack { .. });
                assert!(cut.is_err() || cannot_know, "{cut:?}");
            }
            for at in 0..bytes.len() {
                for value in 0..=255 {
                    let mut bytes = bytes.clone();
                    bytes[at] = value;
                    let _ = read(&bytes);
                }
            }
        }
        assert_eq!(read(&[]), Err(WireError::Empty));
    }

    #[test]
    fn the_first_version_of_the_frames_stays_readable() {
        let all: Vec<u8> = frames().iter().flat_map(encoded).collect();
        let hex: String = all.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "2000000001012c010000000000000e63616368652e6c6f6f6b75702f317061796c6f6164\
        1200000001012c01000000000000007061796c6f6164\
        1700000002012c01000000000000016b881300007061796c6f6164\
        1100000003012c010000000000007061796c6f6164\
        09000000040700000000000000\
        09000000050100000000000000\
        0900000012ffffffffffffffff\
        020000000605\
        1300000010020900000000000000030000000000000002\
        140000001101000000000000000002000000000000000278";
}
