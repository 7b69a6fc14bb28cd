//! Keys: the one that a node seals with, and others that it still opens with.

use std::{fmt, sync::Arc};

use hkdf::Hkdf;
use sha2::Sha256;
use zeroize::Zeroizing;

/// Keys of one ring.
pub const MAX_KEYS: usize = 16;

/// Salt of all that is derived from a cluster's key (RFC 5869, section 2.2).
const SALT: &[u8] = b"actix-memberlist wire 1";

/// A cluster's key, of 16, 24 or 32 bytes: AES-128, AES-192 or AES-256.
///
/// It is wiped from memory when dropped. `Debug` and logs show its [`KeyId`] alone. Draw it, as with
/// `openssl rand -hex 32`: whoever listens can try out passwords against what it has recorded.
///
/// Whoever has the key is a member of the cluster, and is believed under any name: what is sealed cannot be read,
/// changed or said again by others, but it does not tell one member from another. Whoever gets hold of the key can
/// also read what was recorded before; change it now and then, so that this is not much.
///
/// No two packets or streams are sealed alike, because each start of a node draws a number of 64 bits, its run,
/// and counts from there: 2^32 starts under one key share one with a probability of a half. A program that is
/// stopped and goes on twice from one copy of its memory, as a virtual machine from a snapshot, breaks that.
///
/// ```
/// # use memberlist_protocol::keyring::{Key, KeyError};
/// let key = Key::from_hex("000102030405060708090a0b0c0d0e0f")?;
/// assert_eq!(format!("{key:?}"), format!("Key({})", key.id()));
/// assert_eq!(Key::from_bytes(&[1; 20]), Err(KeyError::Length(20)));
/// # Ok::<(), KeyError>(())
/// ```
#[derive(Clone)]
pub struct Key {
    /// One copy for all clones: what is moved around would stay behind.
    bytes: Arc<Zeroizing<[u8; 32]>>,
    len: usize,
    id: KeyId,
}

/// What a key may be called by: four bytes that are derived from it, and tell nothing else of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub(crate) [u8; 4]);

impl KeyId {
    /// The id that was written so.
    pub fn from_bytes(bytes: [u8; 4]) -> Self {
        Self(bytes)
    }

    /// The four bytes.
    pub fn to_bytes(self) -> [u8; 4] {
        self.0
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key({})", self.id)
    }
}

/// In time that does not depend on where two keys differ.
impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let differ = self.bytes.iter().zip(other.bytes.iter()).fold(0, |differ, (a, b)| differ | (a ^ b));
        (differ == 0) & (self.len == other.len)
    }
}

impl Eq for Key {}

impl Key {
    /// The key of those bytes.
    ///
    /// # Errors
    /// [`KeyError::Length`] unless there are 16, 24 or 32 of them.
    pub fn from_bytes(key: &[u8]) -> Result<Self, KeyError> {
        if !matches!(key.len(), 16 | 24 | 32) {
            return Err(KeyError::Length(key.len()));
        }
        let mut bytes = Arc::new(Zeroizing::new([0; 32]));
        if let Some(bytes) = Arc::get_mut(&mut bytes) {
            bytes[..key.len()].copy_from_slice(key);
        }
        let mut id = [0; 4];
        Self::extract(key).expand(b"id", &mut id).map_err(|_| KeyError::Length(key.len()))?;
        Ok(Self { bytes, len: key.len(), id: KeyId(id) })
    }

    /// The key that 32, 48 or 64 hexadecimal digits stand for, such as those of `openssl rand -hex 32`.
    ///
    /// # Errors
    /// [`KeyError::Hex`] or [`KeyError::Length`]. Neither repeats any of it.
    pub fn from_hex(digits: &str) -> Result<Self, KeyError> {
        let digits = digits.trim();
        let mut bytes = Zeroizing::new([0; 32]);
        let len = digits.len() / 2;
        let key = bytes.get_mut(..len).ok_or(KeyError::Length(len))?;
        hex::decode_to_slice(digits, key).map_err(|_| KeyError::Hex)?;
        Self::from_bytes(key)
    }

    /// What it may be called by.
    pub fn id(&self) -> KeyId {
        self.id
    }

    /// The key itself. Whoever has it can do whatever a member can.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    fn extract(bytes: &[u8]) -> Hkdf<Sha256> {
        Hkdf::new(Some(SALT), bytes)
    }

    /// What other keys are derived from.
    pub(crate) fn root(&self) -> Hkdf<Sha256> {
        Self::extract(self.as_bytes())
    }
}

/// Why a key, or what is to be done with one, is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// It is not in the ring.
    #[error("the key is not in the ring")]
    Unknown,
    /// It is the one that is sealed with: another one has to be used first.
    #[error("the key is the one in use: use another one first")]
    IsPrimary,
    /// Another length than 16, 24 or 32 bytes.
    #[error("a key of {0} bytes; allowed: 16, 24 or 32")]
    Length(usize),
    /// No hexadecimal digits, or an odd number of them.
    #[error("a key is written in hexadecimal digits, two for each byte")]
    Hex,
    /// The ring is full, with [`MAX_KEYS`] keys.
    #[error("the ring holds {MAX_KEYS} keys already")]
    Full,
    /// Another key of the ring has the same id, by a chance of one in four thousand millions.
    #[error("another key of the ring has the same id: draw a new one")]
    SameId,
}

/// The keys of a node. The first is the primary one: it seals. All of them open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keys {
    ring: Vec<Key>,
}

impl Keys {
    /// A ring of one key.
    pub fn new(primary: Key) -> Self {
        Self { ring: vec![primary] }
    }

    /// The one that seals.
    pub fn primary(&self) -> &Key {
        &self.ring[0]
    }

    /// Each of them, the primary one first.
    pub fn list(&self) -> &[Key] {
        &self.ring
    }

    /// The key of that id.
    pub fn find(&self, id: KeyId) -> Option<&Key> {
        self.ring.iter().find(|key| key.id == id)
    }

    /// Adds a key to open with. To install one again changes nothing.
    ///
    /// # Errors
    /// [`KeyError::Full`], [`KeyError::SameId`].
    pub fn install(&mut self, key: Key) -> Result<(), KeyError> {
        match self.find(key.id) {
            Some(known) if *known == key => Ok(()),
            Some(_) => Err(KeyError::SameId),
            None if self.ring.len() >= MAX_KEYS => Err(KeyError::Full),
            None => {
                self.ring.push(key);
                Ok(())
            }
        }
    }

    /// Seals with the key of that id from now on.
    ///
    /// # Errors
    /// [`KeyError::Unknown`].
    pub fn use_key(&mut self, id: KeyId) -> Result<(), KeyError> {
        let place = self.ring.iter().position(|key| key.id == id).ok_or(KeyError::Unknown)?;
        self.ring[..=place].rotate_right(1);
        Ok(())
    }

    /// Forgets a key. To remove one that is not there changes nothing.
    ///
    /// # Errors
    /// [`KeyError::IsPrimary`].
    pub fn remove(&mut self, id: KeyId) -> Result<(), KeyError> {
        if self.primary().id == id {
            return Err(KeyError::IsPrimary);
        }
        self.ring.retain(|key| key.id != id);
        Ok(())
    }
}

/// What a node that has keys does with them. The three steps, one after the other on all nodes, take a running
/// cluster from packets that anybody can read to sealed ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sealing {
    /// Nothing is sealed on its way out; both is taken in.
    Off,
    /// All is sealed on its way out; both is taken in.
    Outgoing,
    /// All is sealed on its way out, and nothing else is taken in.
    #[default]
    Required,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> Key {
        Key::from_bytes(&[n; 32]).unwrap()
    }

    #[test]
    fn keys_of_each_length_of_aes_are_taken_and_no_others() {
        for len in 0..70 {
            let bytes = vec![7; len];
            let taken = matches!(len, 16 | 24 | 32);
            assert_eq!(Key::from_bytes(&bytes).is_ok(), taken, "{len}");
            assert_eq!(Key::from_hex(&hex::encode(&bytes)).is_ok(), taken, "{len}");
            assert_eq!(Key::from_hex(&hex::encode(&bytes)).ok(), Key::from_bytes(&bytes).ok());
        }
        assert_eq!(Key::from_hex("zz"), Err(KeyError::Hex));
        assert_eq!(Key::from_hex(&"7".repeat(33)), Err(KeyError::Hex));
    }

    #[test]
    fn weak_point_41_a_key_is_never_shown() {
        let key = key(0xAB);
        let shown = format!("{key:?} {:?} {:?}", Keys::new(key.clone()), KeyError::Length(3));
        // Neither in one piece nor byte by byte.
        let digits: String = shown.to_lowercase().chars().filter(char::is_ascii_alphanumeric).collect();
        assert!(!digits.contains("abab") && !digits.contains("171171"), "{shown}");
        assert!(shown.contains(&key.id().to_string()));
    }

    #[test]
    fn keys_of_one_beginning_and_different_lengths_are_different() {
        let [short, long] = [16, 32].map(|len| Key::from_bytes(&vec![0; len]).unwrap());
        assert_ne!(short, long);
        assert_ne!(short.id(), long.id());
    }

    #[test]
    fn a_ring_installs_uses_and_removes() {
        let mut ring = Keys::new(key(1));
        ring.install(key(2)).unwrap();
        ring.install(key(3)).unwrap();
        ring.install(key(2)).unwrap();
        assert_eq!(ring.list(), [key(1), key(2), key(3)]);
        assert_eq!(ring.remove(key(1).id()), Err(KeyError::IsPrimary));
        assert_eq!(ring.use_key(key(9).id()), Err(KeyError::Unknown));
        ring.use_key(key(3).id()).unwrap();
        assert_eq!(ring.list(), [key(3), key(1), key(2)]);
        ring.remove(key(1).id()).unwrap();
        ring.remove(key(9).id()).unwrap();
        assert_eq!(ring.list(), [key(3), key(2)]);
    }

    #[test]
    fn a_ring_is_bounded() {
        let mut ring = Keys::new(key(0));
        for n in 1..MAX_KEYS {
            ring.install(key(n as u8)).unwrap();
        }
        assert_eq!(ring.install(key(99)), Err(KeyError::Full));
        assert_eq!(ring.install(key(3)), Ok(()), "it is there already");
    }
}
