//! Bytes: what is said ([`message`]), how it is written ([`codec`]), and what is around it ([`frame`]).

pub mod bundle;
pub mod codec;
pub mod compress;
mod depth;
pub mod frame;
pub mod guard;
pub mod link;
pub mod message;
pub mod order;
pub mod seal;
pub mod shared;
pub mod state;

#[cfg(test)]
mod golden;

/// Why bytes of a peer are dropped. Users never see it: it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first byte is not this wire's.
    #[error("the first byte is not that of this wire")]
    Foreign,
    /// The first byte is one that HashiCorp's memberlist sends.
    #[error("the first byte is one of HashiCorp memberlist's")]
    ForeignMemberlist,
    /// The first byte is that of TLS, which has come to a node without it.
    #[error("the first byte is that of TLS")]
    Tls,
    /// The first byte is that of another version of this wire.
    #[error("another version of this wire")]
    WireVersion,
    /// The label is missing, broken, or another cluster's.
    #[error("the label is not this cluster's")]
    Label,
    /// A flag that this version does not know.
    #[error("unknown flags")]
    Flags,
    /// Sealed with a key that this node does not have.
    #[error("sealed with a key that this node does not have")]
    Sealed,
    /// Not sealed, and this node takes nothing in that is not.
    #[error("not sealed")]
    Unsealed,
    /// A seal that does not open: forged, for another node, or damaged.
    #[error("the seal does not open")]
    Seal,
    /// A sealed packet that was received before, or is too old to tell.
    #[error("received before, or too old to tell")]
    Replayed,
    /// A packet of this node's own.
    #[error("sent by this node itself")]
    Reflected,
    /// A message that nobody sends under a seal that is for everybody.
    #[error("a message of members under a seal for strangers")]
    Unaddressed,
    /// A checksum that is wrong: the packet was damaged.
    #[error("the checksum is wrong")]
    Checksum,
    /// Compressed bytes that are none, or stand for more than is accepted.
    #[error("bad compression, or more of it than is accepted")]
    Compressed,
    /// The bytes end too early.
    #[error("the bytes end too early")]
    Truncated,
    /// Bytes are left behind the end.
    #[error("bytes are left behind the end")]
    Trailing,
    /// A packet without a message.
    #[error("there is no message in it")]
    Empty,
    /// A kind of message or stream that this version does not know.
    #[error("unknown kind")]
    Kind,
    /// Bytes that are no message of their kind.
    #[error("malformed")]
    Malformed,
    /// Lengths that claim more memory than any honest message takes.
    #[error("claims more memory than any honest message takes")]
    Claim,
    /// A name that is empty, too long or unprintable.
    #[error("bad name")]
    Name,
    /// Metadata, tags, or what comes with an answer, that are broken or too large.
    #[error("bad metadata or tags")]
    Meta,
    /// A stream announces more than is accepted.
    #[error("longer than is accepted")]
    TooLong,
}

impl WireError {
    /// Each of them.
    pub const ALL: [Self; 23] = [
        Self::Foreign,
        Self::ForeignMemberlist,
        Self::Tls,
        Self::WireVersion,
        Self::Label,
        Self::Flags,
        Self::Sealed,
        Self::Unsealed,
        Self::Seal,
        Self::Replayed,
        Self::Reflected,
        Self::Unaddressed,
        Self::Checksum,
        Self::Compressed,
        Self::Truncated,
        Self::Trailing,
        Self::Empty,
        Self::Kind,
        Self::Malformed,
        Self::Claim,
        Self::Name,
        Self::Meta,
        Self::TooLong,
    ];

    /// The name under which it is counted.
    pub fn name(self) -> &'static str {
        match self {
            Self::Foreign => "foreign",
            Self::ForeignMemberlist => "foreign_memberlist",
            Self::Tls => "tls",
            Self::WireVersion => "wire_version",
            Self::Label => "label",
            Self::Flags => "flags",
            Self::Sealed => "sealed",
            Self::Unsealed => "unsealed",
            Self::Seal => "seal",
            Self::Replayed => "replayed",
            Self::Reflected => "reflected",
            Self::Unaddressed => "unaddressed",
            Self::Checksum => "checksum",
            Self::Compressed => "compressed",
            Self::Truncated => "truncated",
            Self::Trailing => "trailing",
            Self::Empty => "empty",
            Self::Kind => "kind",
            Self::Malformed => "malformed",
            Self::Claim => "claim",
            Self::Name => "name",
            Self::Meta => "meta",
            Self::TooLong => "too_long",
        }
    }
}
