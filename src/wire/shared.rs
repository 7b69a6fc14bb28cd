//! The states that applications share, behind the members of a full state: each under its key.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use super::WireError;

/// Keys of one node at most.
pub const MAX_KEYS: usize = 64;

/// Longest key, in bytes.
pub const MAX_KEY: usize = 255;

/// Bytes around each state, its key aside.
const OVERHEAD: usize = 5;

/// Writes states one after the other, as long as they fit into `max` bytes together. Says which had no room.
pub fn encode<'a>(states: &[(&'a str, Bytes)], max: usize) -> (Bytes, Vec<&'a str>) {
    let (mut out, mut left) = (BytesMut::new(), Vec::new());
    for (count, (key, state)) in states.iter().enumerate() {
        let len = (u8::try_from(key.len()), u32::try_from(state.len()));
        let fits = count < MAX_KEYS && out.len() + OVERHEAD + key.len() + state.len() <= max;
        let (true, (Ok(key_len), Ok(state_len))) = (fits, len) else {
            left.push(*key);
            continue;
        };
        out.put_u8(key_len);
        out.put_slice(key.as_bytes());
        out.put_u32_le(state_len);
        out.put_slice(state);
    }
    (out.freeze(), left)
}

/// Reads states; they share the memory of `bytes`.
///
/// # Errors
/// [`WireError::Truncated`], [`WireError::Name`] for a key that is no text, [`WireError::Claim`] for more than
/// [`MAX_KEYS`].
pub fn decode(mut bytes: Bytes) -> Result<Vec<(String, Bytes)>, WireError> {
    let mut states = Vec::new();
    while bytes.has_remaining() {
        if states.len() == MAX_KEYS {
            return Err(WireError::Claim);
        }
        let key_len = usize::from(bytes.get_u8());
        if bytes.remaining() < key_len + 4 {
            return Err(WireError::Truncated);
        }
        let key = String::from_utf8(bytes.split_to(key_len).to_vec()).map_err(|_| WireError::Name)?;
        let len = bytes.get_u32_le() as usize;
        if bytes.remaining() < len {
            return Err(WireError::Truncated);
        }
        states.push((key, bytes.split_to(len)));
    }
    Ok(states)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_survive_the_wire_each_under_its_key() {
        let states = [("a", Bytes::from_static(b"one")), ("b", Bytes::new()), ("", Bytes::from_static(b"x"))];
        let (bytes, left) = encode(&states, 1000);
        assert!(left.is_empty());
        let read = decode(bytes.clone()).unwrap();
        assert_eq!(read, states.map(|(key, state)| (key.to_owned(), state)));
        for cut in 1..bytes.len() {
            let cut = decode(bytes.slice(..cut));
            assert!(cut.is_err() || cut.unwrap().len() < 3);
        }
        assert_eq!(decode(Bytes::new()), Ok(Vec::new()));
    }

    #[test]
    fn a_state_that_has_no_room_is_left_out_and_named() {
        let states = [("big", Bytes::from(vec![0; 100])), ("small", Bytes::from_static(b"one"))];
        let (bytes, left) = encode(&states, 50);
        assert_eq!((decode(bytes).unwrap().len(), left), (1, vec!["big"]));
    }

    #[test]
    fn a_claimed_length_reserves_nothing_and_keys_are_bounded() {
        assert_eq!(decode(Bytes::from_static(b"\x01k\xff\xff\xff\xff")), Err(WireError::Truncated));
        assert_eq!(decode(Bytes::from(vec![0; 5 * (MAX_KEYS + 1)])), Err(WireError::Claim));
        assert_eq!(decode(Bytes::from_static(b"\x01\xff\0\0\0\0")), Err(WireError::Name));
    }
}
