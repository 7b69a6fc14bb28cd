//! Who is a member: identity, address, state, and the limits that names and metadata have.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr, SocketAddrV6},
    num::NonZeroU64,
    sync::Arc,
    time::Instant,
};

use bytes::Bytes;
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// Longest name of a member, in bytes.
pub const MAX_NAME: usize = 255;

/// Room for metadata and tags together, in bytes as they stand on the wire.
pub const MAX_META: usize = 512;

/// Highest incarnation that a newcomer may have, and, unless
/// [`Config::max_incarnation_step`](crate::config::Config::max_incarnation_step) says otherwise, highest step
/// that one may take at once. A message that asks for more is refused: a chain of such steps would bring a name
/// to the end of the numbers, where it can no longer refute.
pub const MAX_INCARNATION_STEP: u32 = 1 << 30;

/// A node's identity: its name, and a random number that each start draws anew.
///
/// Two starts of one name are two nodes. The run is compared for equality only.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    name: Arc<str>,
    run: u64,
}

impl NodeId {
    /// The node `name` in its run `run`.
    pub fn new(name: impl Into<Arc<str>>, run: u64) -> Self {
        Self { name: name.into(), run }
    }

    /// In a question "are you there?", this run stands for whichever is there: whoever asks may not know it. No
    /// node draws it for itself.
    pub const ANY_RUN: u64 = 0;

    /// The node `name` in a run of its own, drawn at random.
    pub fn drawn(name: impl Into<Arc<str>>, rng: &mut impl Rng) -> Self {
        let run: NonZeroU64 = rng.random();
        Self::new(name, run.get())
    }

    /// In a question, whoever is there. It has no name, and is no node.
    pub fn anybody() -> Self {
        Self::new("", Self::ANY_RUN)
    }

    /// Whether this is [`NodeId::anybody`].
    pub fn is_anybody(&self) -> bool {
        self.name.is_empty()
    }

    /// Whether a question to `target` is for this node: its name, and its run or [`NodeId::ANY_RUN`]; or
    /// [`NodeId::anybody`].
    pub fn answers_to(&self, target: &Self) -> bool {
        let is_meant = self.name == target.name && (target.run == Self::ANY_RUN || self.run == target.run);
        is_meant || target.is_anybody()
    }

    /// The name, unique in the cluster: 1 to [`MAX_NAME`] bytes without control characters.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name, shared.
    pub fn shared_name(&self) -> &Arc<str> {
        &self.name
    }

    /// The run: another number at each start, and at each return after a leave.
    pub fn run(&self) -> u64 {
        self.run
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}#{:04x}", self.name, self.run & 0xffff)
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What a node holds a member for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemberState {
    /// Believed to run.
    Alive,
    /// Did not answer somebody, and has still time to say that it runs. It counts as a member.
    Suspect,
    /// Did not answer, and did not refute in time.
    Dead,
    /// Went on its own accord.
    Left,
}

impl MemberState {
    /// Whether the member still counts: alive or suspect.
    pub fn is_present(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }

    /// Whether the member is gone: dead or left.
    pub fn is_gone(self) -> bool {
        !self.is_present()
    }
}

impl fmt::Display for MemberState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Alive => "alive",
            Self::Suspect => "suspect",
            Self::Dead => "dead",
            Self::Left => "left",
        })
    }
}

/// The versions that a node can speak, and the one that it speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VersionRange {
    /// Lowest version understood.
    pub min: u8,
    /// Highest version understood.
    pub max: u8,
    /// The version spoken.
    pub current: u8,
}

impl VersionRange {
    /// Whether it holds the version spoken.
    pub fn is_sound(self) -> bool {
        self.min <= self.current && self.current <= self.max
    }
}

/// A node's versions: of the membership protocol, and of what the application speaks on top of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Versions {
    /// The membership protocol. None is below 1.
    pub protocol: VersionRange,
    /// The application's own protocol; all zero when it names none.
    pub delegate: VersionRange,
}

impl Versions {
    /// What this library speaks: protocol version 1.
    pub const CURRENT: Self = Self {
        protocol: VersionRange { min: 1, max: 1, current: 1 },
        delegate: VersionRange { min: 0, max: 0, current: 0 },
    };

    /// Whether the ranges can be anybody's at all.
    pub fn is_sound(self) -> bool {
        self.protocol.min > 0 && self.protocol.is_sound() && self.delegate.is_sound()
    }

    /// Whether each of the two understands what the other one speaks.
    pub fn can_talk_to(self, other: Self) -> bool {
        let fits = |a: VersionRange, b: VersionRange| a.min <= b.current && b.current <= a.max;
        fits(self.protocol, other.protocol)
            && fits(other.protocol, self.protocol)
            && fits(self.delegate, other.delegate)
            && fits(other.delegate, self.delegate)
    }

    pub(crate) fn to_bytes(self) -> [u8; 6] {
        let Self { protocol: p, delegate: d } = self;
        [p.min, p.max, p.current, d.min, d.max, d.current]
    }

    pub(crate) fn from_bytes(b: [u8; 6]) -> Self {
        Self {
            protocol: VersionRange { min: b[0], max: b[1], current: b[2] },
            delegate: VersionRange { min: b[3], max: b[4], current: b[5] },
        }
    }
}

impl Default for Versions {
    fn default() -> Self {
        Self::CURRENT
    }
}

/// Tags of a member: short texts by name.
pub type Tags = BTreeMap<String, String>;

/// One member as a node knows it. A record never changes: news makes a new one.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Member {
    /// Name and run.
    pub id: NodeId,
    /// Where it takes datagrams and streams.
    pub addr: SocketAddr,
    /// What this node holds it for.
    pub state: MemberState,
    /// How often it has spoken about itself anew. Higher news wins.
    pub incarnation: u32,
    /// Its tags.
    pub tags: Tags,
    /// Its metadata, at most [`MAX_META`] bytes together with the tags.
    pub meta: Bytes,
    /// What it speaks.
    pub versions: Versions,
    /// When this node saw the state change last.
    pub since: Instant,
}

impl Member {
    /// A member that was just heard of.
    pub fn new(id: NodeId, addr: SocketAddr, incarnation: u32, now: Instant) -> Self {
        Self {
            id,
            addr,
            state: MemberState::Alive,
            incarnation,
            tags: Tags::new(),
            meta: Bytes::new(),
            versions: Versions::CURRENT,
            since: now,
        }
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.id.name()
    }

    /// The same member in another state.
    pub(crate) fn turned(&self, state: MemberState, incarnation: u32, now: Instant) -> Self {
        Self { state, incarnation, since: now, ..self.clone() }
    }
}

/// What is wrong with a member's name, address or metadata.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemberError {
    /// No name at all.
    #[error("the name is empty; it must have 1 to {MAX_NAME} bytes")]
    NameEmpty,
    /// A name that does not fit.
    #[error("the name has {len} bytes; at most {MAX_NAME} are allowed")]
    NameTooLong {
        /// Bytes of the name.
        len: usize,
    },
    /// A name with a control character, which would garble logs and terminals.
    #[error("the name {0:?} has a control character")]
    NameUnprintable(String),
    /// Metadata and tags that do not fit.
    #[error("metadata and tags take {len} bytes; at most {MAX_META} are allowed")]
    MetaTooLarge {
        /// Bytes on the wire.
        len: usize,
    },
    /// An address to which nobody could send.
    #[error("{0} is no address of one host: it must be a unicast address with a port")]
    Address(SocketAddr),
}

/// Checks a name.
///
/// # Errors
/// [`MemberError::NameEmpty`], [`MemberError::NameTooLong`] or [`MemberError::NameUnprintable`].
pub fn check_name(name: &str) -> Result<(), MemberError> {
    match name.len() {
        0 => Err(MemberError::NameEmpty),
        len if len > MAX_NAME => Err(MemberError::NameTooLong { len }),
        _ if name.chars().any(char::is_control) => Err(MemberError::NameUnprintable(name.into())),
        _ => Ok(()),
    }
}

/// Checks that metadata and tags fit into what they share.
///
/// # Errors
/// [`MemberError::MetaTooLarge`] with the length measured.
pub fn check_meta(meta: &[u8], tags: &Tags) -> Result<(), MemberError> {
    let len = meta_len(meta, tags);
    if len > MAX_META { Err(MemberError::MetaTooLarge { len }) } else { Ok(()) }
}

/// Bytes that metadata and tags take on the wire: each tag has four bytes of lengths.
pub fn meta_len(meta: &[u8], tags: &Tags) -> usize {
    meta.len() + tags.iter().map(|(k, v)| 4 + k.len() + v.len()).sum::<usize>()
}

/// Tags as they stand on the wire, in the order of their keys: small, compared by their bytes, and unpacked
/// only for a member that enters the table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PackedTags(Bytes);

impl PackedTags {
    /// Packs tags that [`check_meta`] lets pass.
    pub fn pack(tags: &Tags) -> Self {
        let mut bytes = Vec::new();
        for text in tags.iter().flat_map(|(k, v)| [k, v]) {
            bytes.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
        Self(bytes.into())
    }

    /// Takes packed tags from a peer, if they are whole, and each key comes once and in order.
    pub fn from_wire(bytes: &[u8]) -> Option<Self> {
        let (mut rest, mut last) = (bytes, None);
        while !rest.is_empty() {
            let (key, after) = text(rest)?;
            let (_, after) = text(after)?;
            if last.is_some_and(|last| last >= key) {
                return None;
            }
            (rest, last) = (after, Some(key));
        }
        Some(Self(Bytes::copy_from_slice(bytes)))
    }

    /// The tags by name.
    pub fn unpack(&self) -> Tags {
        let (mut tags, mut rest) = (Tags::new(), &self.0[..]);
        while let Some((key, after)) = text(rest) {
            let Some((value, after)) = text(after) else { break };
            tags.insert(key.to_owned(), value.to_owned());
            rest = after;
        }
        tags
    }

    /// As they stand on the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

fn text(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>()?;
    let (text, rest) = rest.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
    Some((std::str::from_utf8(text).ok()?, rest))
}

/// Checks that an address can be one host's. Loopback counts only where the node itself is on loopback:
/// elsewhere it would lead each node to itself.
///
/// # Errors
/// [`MemberError::Address`].
pub fn check_addr(addr: SocketAddr, local: SocketAddr) -> Result<(), MemberError> {
    let one_host = match addr.ip() {
        IpAddr::V4(ip) => !ip.is_broadcast(),
        IpAddr::V6(_) => true,
    };
    let ip = addr.ip();
    let reachable = !ip.is_loopback() || local.ip().is_loopback();
    if one_host && reachable && !ip.is_unspecified() && !ip.is_multicast() && addr.port() != 0 {
        Ok(())
    } else {
        Err(MemberError::Address(addr))
    }
}

/// The one form of an address that is compared: IPv4 in four bytes, no flow, no scope.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    match addr.ip().to_canonical() {
        IpAddr::V4(ip) => SocketAddr::new(ip.into(), addr.port()),
        IpAddr::V6(ip) => SocketAddrV6::new(ip, addr.port(), 0, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_refused_when_it_is_empty_too_long_or_unprintable() {
        assert_eq!(check_name(""), Err(MemberError::NameEmpty));
        assert_eq!(check_name(&"x".repeat(300)), Err(MemberError::NameTooLong { len: 300 }));
        assert!(matches!(check_name("a\nb"), Err(MemberError::NameUnprintable(_))));
        assert_eq!(check_name(&"x".repeat(MAX_NAME)), Ok(()));
        assert_eq!(check_name("größe-1.example"), Ok(()));
    }

    #[test]
    fn metadata_and_tags_share_512_bytes() {
        let tags = Tags::from([("k".repeat(10), "v".repeat(20))]);
        assert_eq!(meta_len(&[0; 478], &tags), 512);
        assert_eq!(check_meta(&[0; 478], &tags), Ok(()));
        assert_eq!(check_meta(&[0; 479], &tags), Err(MemberError::MetaTooLarge { len: 513 }));
        assert_eq!(PackedTags::pack(&tags).as_bytes().len(), meta_len(&[], &tags));
    }

    #[test]
    fn packed_tags_are_taken_back_only_when_they_are_whole_and_in_order() {
        let tags = Tags::from([("a".into(), "1".into()), ("b".into(), String::new())]);
        let packed = PackedTags::pack(&tags);
        assert_eq!(PackedTags::from_wire(packed.as_bytes()), Some(packed.clone()));
        assert_eq!(packed.unpack(), tags);
        let bytes = packed.as_bytes();
        for cut in [1, 3, 4, bytes.len() - 1] {
            assert_eq!(PackedTags::from_wire(&bytes[..cut]), None, "{cut}");
        }
        let doubled = [bytes, bytes].concat();
        assert_eq!(PackedTags::from_wire(&doubled), None);
        assert_eq!(PackedTags::from_wire(&[1, 0, 0xff, 0, 0]), None, "no UTF-8");
    }

    #[test]
    fn weak_point_07_two_forms_of_one_ipv4_address_are_one_address() {
        let four: SocketAddr = "10.1.2.3:7946".parse().unwrap();
        let sixteen: SocketAddr = "[::ffff:10.1.2.3]:7946".parse().unwrap();
        assert_ne!(four, sixteen);
        assert_eq!(canonical(four), canonical(sixteen));
    }

    #[test]
    fn weak_point_44_addresses_of_nobody_and_of_many_are_refused() {
        let local = "10.0.0.1:7946".parse().unwrap();
        for bad in [
            "0.0.0.0:1",
            "255.255.255.255:1",
            "224.0.0.1:1",
            "[::]:1",
            "[ff02::1]:1",
            "10.0.0.2:0",
            "127.0.0.1:9",
        ] {
            let bad = bad.parse().unwrap();
            assert_eq!(check_addr(bad, local), Err(MemberError::Address(bad)));
        }
        let loopback: SocketAddr = "127.0.0.1:7946".parse().unwrap();
        assert_eq!(check_addr(loopback, loopback), Ok(()));
        assert_eq!(check_addr("10.0.0.2:1".parse().unwrap(), local), Ok(()));
    }

    #[test]
    fn versions_must_be_a_range_that_holds_the_spoken_one() {
        assert!(Versions::CURRENT.is_sound());
        for bytes in [[0, 0, 0, 0, 0, 0], [2, 1, 1, 0, 0, 0], [1, 2, 3, 0, 0, 0], [1, 1, 1, 2, 1, 1]] {
            assert!(!Versions::from_bytes(bytes).is_sound(), "{bytes:?}");
        }
        let newer = Versions::from_bytes([2, 3, 3, 0, 0, 0]);
        assert!(!Versions::CURRENT.can_talk_to(newer));
    }
}
