//! Messages of the program's own types, between nodes.

use std::cell::Cell;

use actix::Message;
use bytes::Bytes;
pub use memberlist_protocol::link::Lane;
use memberlist_protocol::{
    member::NodeId,
    wire::{codec, message::MAX_KIND},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::errors::SendError;

/// A message that a peer's actor can be sent as if it were here: an actix message which serde can turn into bytes,
/// with a name.
///
/// ```
/// use actix::Message;
/// use actix_memberlist::PeerMessage;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Message, Serialize, Deserialize)]
/// #[rtype(result = "Option<String>")]
/// struct Lookup { key: String }
///
/// impl PeerMessage for Lookup {
///     const KIND: &'static str = "cache.lookup/1";
/// }
/// ```
///
/// It is written as bincode, which is short and quick and says nothing of itself: another shape of the type is
/// another type, so give it another [`KIND`](Self::KIND) (`"cache.lookup/2"`) and serve both while nodes of both
/// are there. Fields of many bytes should be [`Bytes`] with that crate's feature `serde` (or `serde_bytes`), not
/// `Vec<u8>`: 64 KiB take less than 1 µs so, and 76 µs as a `Vec<u8>`. serde's `flatten`, `untagged` and
/// `skip_serializing_if` do not work with bincode.
///
/// A value is read, and the result of a handler is written, on the node's own thread: their `Deserialize` and
/// `Serialize` must not do more than to take what they are given. A panic in them costs that message alone.
pub trait PeerMessage:
    Message<Result: Serialize + DeserializeOwned + Send> + Serialize + DeserializeOwned + Send + 'static
{
    /// The name of the type between nodes: 1 to 64 bytes, the same on all of them.
    const KIND: &'static str;

    /// How it goes: see [`Lane`].
    const LANE: Lane = Lane::Ordered;
}

/// A message together with who sent it: what a handler gets that asked for it with
/// [`Cluster::serve_from`](crate::Cluster::serve_from).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromPeer<M> {
    /// Who sent it.
    pub from: NodeId,
    /// What it sent.
    pub msg: M,
}

impl<M: PeerMessage> Message for FromPeer<M> {
    type Result = M::Result;
}

/// The program does not compile with a KIND that cannot be.
pub(crate) const fn check<M: PeerMessage>() {
    const { assert!(!M::KIND.is_empty() && M::KIND.len() <= MAX_KIND, "a KIND has 1 to 64 bytes") };
}

/// A message as bytes.
pub(crate) fn encode<M: PeerMessage>(msg: &M) -> Result<Bytes, SendError> {
    check::<M>();
    let mut bytes = Vec::new();
    codec::encode_payload(msg, &mut bytes).map_err(SendError::Encode)?;
    Ok(bytes.into())
}

/// Memory that a thread keeps for the next message.
const KEPT: usize = 16 << 10;

thread_local! {
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Shows `then` a message as bytes, which lie in memory that is used again.
pub(crate) fn encode_in<M: PeerMessage, T>(msg: &M, then: impl FnOnce(&[u8]) -> T) -> Result<T, SendError> {
    check::<M>();
    // A `Serialize` that sends something itself finds another buffer.
    let mut bytes = BUFFER.try_with(Cell::take).unwrap_or_default();
    bytes.clear();
    let result = codec::encode_payload(msg, &mut bytes).map_err(SendError::Encode).map(|()| then(&bytes));
    if bytes.capacity() <= KEPT {
        let _ = BUFFER.try_with(|buffer| buffer.set(bytes));
    }
    result
}
