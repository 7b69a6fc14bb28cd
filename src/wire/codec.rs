//! Messages to bytes and back. This is the only file that calls bincode, which is unmaintained: leaving it
//! is a change of this file.
//!
//! What is decoded borrows from the bytes until it has been checked, so that a length can never make this
//! node reserve memory for what is not there.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use bincode::{
    BorrowDecode, Encode,
    config::{self, Configuration, Limit, LittleEndian, Varint},
    error::{DecodeError, EncodeError},
};
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::{
    WireError,
    bundle::Bundle,
    depth::Bounded,
    frame::MAX_LABEL,
    link::{append_refused, refused},
    message::{
        Ack, Address, Alive, Dead, Direct, IndirectPing, MAX_KIND, Message, Nack, Ping, Receipt, Remembered,
        Suspect, UserBroadcast, Wait,
    },
    order::{MAX_ORDER, Order, Ordered, Standing},
    state::{Refusal, StateHeader},
};
use crate::{
    accusation::Evidence,
    keyring::{Key, KeyId, Sealing},
    link::{Carrier, Heard, Hello, Limits, Sent, Welcome},
    member::{MAX_META, MemberState, NodeId, PackedTags, Versions, check_name},
};

/// Memory that one message may claim: well above any honest one, far below harm.
const CLAIM: usize = 256 * 1024;

type Config = Configuration<LittleEndian, Varint, Limit<CLAIM>>;

const CONFIG: Config = config::standard().with_limit::<CLAIM>();

/// The message does not fit into the room given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message does not fit")]
pub struct DoesNotFit;

#[derive(Clone, Copy, Encode, BorrowDecode)]
struct WireId<'a> {
    name: &'a str,
    run: [u8; 8],
}

impl<'a> From<&'a NodeId> for WireId<'a> {
    fn from(id: &'a NodeId) -> Self {
        Self { name: id.name(), run: id.run().to_le_bytes() }
    }
}

impl<'a> WireId<'a> {
    /// Stands for nobody: a name is never empty.
    const NOBODY: Self = Self { name: "", run: [0; 8] };

    fn or_nobody(id: Option<&'a NodeId>) -> Self {
        id.map_or(Self::NOBODY, Self::from)
    }

    fn unless_nobody(self) -> Result<Option<NodeId>, WireError> {
        if self.name.is_empty() { Ok(None) } else { self.checked().map(Some) }
    }
}

impl WireId<'_> {
    fn checked(self) -> Result<NodeId, WireError> {
        Ok(NodeId::new(name(self.name)?, u64::from_le_bytes(self.run)))
    }
}

fn name(text: &str) -> Result<Arc<str>, WireError> {
    check_name(text).map_err(|_| WireError::Name)?;
    Ok(text.into())
}

fn kind(text: &str) -> Result<Cow<'static, str>, WireError> {
    match text.len() {
        0 => Ok("".into()),
        1..=MAX_KIND => Ok(text.to_owned().into()),
        _ => Err(WireError::Name),
    }
}

#[derive(Clone, Copy, Encode, BorrowDecode)]
struct WireEvidence {
    kind: u8,
    details: [u8; 3],
}

impl From<Evidence> for WireEvidence {
    fn from(evidence: Evidence) -> Self {
        let kind = match evidence {
            Evidence::NoAnswer { .. } => 0,
            Evidence::Refused => 1,
            Evidence::PushPull => 2,
            Evidence::Hearsay => 3,
            Evidence::ForceLeave => 4,
            Evidence::Announced => 5,
            Evidence::Replaced => 6,
        };
        let details = match evidence {
            Evidence::NoAnswer { direct, helpers, nacks, healthy } => {
                [u8::from(direct) | u8::from(healthy) << 1, helpers, nacks]
            }
            _ => [0; 3],
        };
        Self { kind, details }
    }
}

impl From<WireEvidence> for Evidence {
    /// Evidence that a later version may add is hearsay to this one.
    fn from(WireEvidence { kind, details: [flags, helpers, nacks] }: WireEvidence) -> Self {
        match kind {
            0 => Self::NoAnswer { direct: flags & 1 != 0, helpers, nacks, healthy: flags & 2 != 0 },
            1 => Self::Refused,
            2 => Self::PushPull,
            4 => Self::ForceLeave,
            5 => Self::Announced,
            6 => Self::Replaced,
            _ => Self::Hearsay,
        }
    }
}

#[derive(Encode, BorrowDecode)]
struct WireAlive<'a> {
    id: WireId<'a>,
    incarnation: u32,
    addr: SocketAddr,
    tags: &'a [u8],
    meta: &'a [u8],
    versions: [u8; 6],
}

impl<'a> From<&'a Alive> for WireAlive<'a> {
    fn from(m: &'a Alive) -> Self {
        Self {
            id: (&m.id).into(),
            incarnation: m.incarnation,
            addr: m.addr,
            tags: m.tags.as_bytes(),
            meta: &m.meta,
            versions: m.versions.to_bytes(),
        }
    }
}

impl WireAlive<'_> {
    fn checked(self) -> Result<Alive, WireError> {
        if self.tags.len() + self.meta.len() > MAX_META {
            return Err(WireError::Meta);
        }
        Ok(Alive {
            id: self.id.checked()?,
            incarnation: self.incarnation,
            addr: self.addr,
            tags: PackedTags::from_wire(self.tags).ok_or(WireError::Meta)?,
            meta: Bytes::copy_from_slice(self.meta),
            versions: Versions::from_bytes(self.versions),
        })
    }
}

/// The messages as they stand on the wire. The order of the variants is the format.
#[derive(Encode, BorrowDecode)]
enum WireMessage<'a> {
    Ping {
        seq: u32,
        target: WireId<'a>,
        from: WireId<'a>,
    },
    IndirectPing {
        seq: u32,
        target: WireId<'a>,
        addr: SocketAddr,
        from: WireId<'a>,
    },
    Ack {
        seq: u32,
        payload: &'a [u8],
    },
    Nack {
        seq: u32,
    },
    Suspect {
        id: WireId<'a>,
        incarnation: u32,
        from: &'a str,
        evidence: WireEvidence,
    },
    Alive(WireAlive<'a>),
    Dead {
        id: WireId<'a>,
        incarnation: u32,
        from: &'a str,
        by: &'a str,
        /// One empty name stands for none.
        confirmed_by: [&'a str; Dead::MAX_CONFIRMATIONS],
        evidence: WireEvidence,
    },
    User {
        origin: WireId<'a>,
        id: u64,
        kind: &'a str,
        bytes: &'a [u8],
    },
    Direct {
        from: WireId<'a>,
        /// An empty name stands for whoever is there.
        to: WireId<'a>,
        parts: &'a [u8],
    },
    Wait {
        from: WireId<'a>,
        to: WireId<'a>,
        millis: u8,
    },
}

impl<'a> From<&'a Message> for WireMessage<'a> {
    fn from(message: &'a Message) -> Self {
        match message {
            Message::Ping(m) => Self::Ping { seq: m.seq, target: (&m.target).into(), from: (&m.from).into() },
            Message::IndirectPing(m) => Self::IndirectPing {
                seq: m.seq,
                target: (&m.target).into(),
                addr: m.addr,
                from: (&m.from).into(),
            },
            Message::Ack(m) => Self::Ack { seq: m.seq, payload: &m.payload },
            Message::Nack(m) => Self::Nack { seq: m.seq },
            Message::Suspect(m) => Self::Suspect {
                id: (&m.id).into(),
                incarnation: m.incarnation,
                from: &m.from,
                evidence: m.evidence.into(),
            },
            Message::Alive(m) => Self::Alive(m.into()),
            Message::Dead(m) => Self::Dead {
                id: (&m.id).into(),
                incarnation: m.incarnation,
                from: &m.from,
                by: &m.by,
                confirmed_by: std::array::from_fn(|i| m.confirmed_by.get(i).map_or("", |name| name)),
                evidence: m.evidence.into(),
            },
            Message::User(m) => {
                Self::User { origin: (&m.origin).into(), id: m.id, kind: &m.kind, bytes: &m.bytes }
            }
            Message::Direct(m) => Self::Direct {
                from: (&m.from).into(),
                to: WireId::or_nobody(m.to.as_ref()),
                parts: m.parts.as_bytes(),
            },
            Message::Wait(m) => Self::Wait { from: (&m.from).into(), to: (&m.to).into(), millis: m.millis },
        }
    }
}

impl WireMessage<'_> {
    fn checked(self) -> Result<Message, WireError> {
        Ok(match self {
            Self::Ping { seq, target, from } => {
                let target = target.unless_nobody()?.unwrap_or_else(NodeId::anybody);
                Message::Ping(Ping { seq, target, from: from.checked()? })
            }
            Self::IndirectPing { seq, target, addr, from } => Message::IndirectPing(IndirectPing {
                seq,
                target: target.checked()?,
                addr,
                from: from.checked()?,
            }),
            Self::Ack { seq, payload } => {
                if payload.len() > Ack::MAX_PAYLOAD {
                    return Err(WireError::Meta);
                }
                Message::Ack(Ack { seq, payload: Bytes::copy_from_slice(payload) })
            }
            Self::Nack { seq } => Message::Nack(Nack { seq }),
            Self::Suspect { id, incarnation, from, evidence } => Message::Suspect(Suspect {
                id: id.checked()?,
                incarnation,
                from: name(from)?,
                evidence: evidence.into(),
            }),
            Self::Alive(m) => Message::Alive(m.checked()?),
            Self::Dead { id, incarnation, from, by, confirmed_by, evidence } => {
                let named = confirmed_by.into_iter().filter(|text| !text.is_empty());
                Message::Dead(Dead {
                    id: id.checked()?,
                    incarnation,
                    from: name(from)?,
                    by: name(by)?,
                    confirmed_by: named.map(name).collect::<Result<_, _>>()?,
                    evidence: evidence.into(),
                })
            }
            Self::User { origin, id, kind: text, bytes } => Message::User(UserBroadcast {
                origin: origin.checked()?,
                id,
                kind: kind(text)?,
                bytes: Bytes::copy_from_slice(bytes),
            }),
            Self::Direct { from, to, parts } => Message::Direct(Direct {
                from: from.checked()?,
                to: to.unless_nobody()?,
                parts: Bundle::read(parts)?,
            }),
            Self::Wait { from, to, millis } => {
                Message::Wait(Wait { from: from.checked()?, to: to.checked()?, millis })
            }
        })
    }
}

/// Writes a message to the front of `room`, and says how long it is.
///
/// # Errors
/// [`DoesNotFit`] when `room` is too small.
pub fn encode(message: &Message, room: &mut [u8]) -> Result<usize, DoesNotFit> {
    bincode::encode_into_slice(WireMessage::from(message), room, CONFIG).map_err(does_not_fit)
}

/// Writes what users have for one node to the front of `room`, and says how long it is: a [`Direct`] of parts that
/// are written already.
///
/// # Errors
/// [`DoesNotFit`] when `room` is too small.
pub fn encode_direct(
    from: &NodeId,
    to: Option<&NodeId>,
    parts: &[u8],
    room: &mut [u8],
) -> Result<usize, DoesNotFit> {
    let wire = WireMessage::Direct { from: from.into(), to: WireId::or_nobody(to), parts };
    bincode::encode_into_slice(wire, room, CONFIG).map_err(does_not_fit)
}

/// Bytes around the parts of a [`Direct`], at most: from names of these lengths, 0 for nobody.
pub const fn around_direct(from: usize, to: usize) -> usize {
    /// The kind of the message, two runs, and lengths of the names and of what no datagram exceeds.
    const REST: usize = 1 + 2 * 8 + 3 * 3;
    REST + from + to
}

/// A message in bytes of its own.
///
/// # Errors
/// [`DoesNotFit`] when it is longer than `max`.
pub fn encoded(message: &Message, max: usize) -> Result<Bytes, DoesNotFit> {
    let bytes = bincode::encode_to_vec(WireMessage::from(message), CONFIG).map_err(does_not_fit)?;
    if bytes.len() > max { Err(DoesNotFit) } else { Ok(bytes.into()) }
}

/// Reads a message that takes all of `bytes`.
///
/// # Errors
/// Why these bytes are no message.
pub fn decode(bytes: &[u8]) -> Result<Message, WireError> {
    exactly::<WireMessage<'_>>(bytes)?.checked()
}

#[derive(Encode, BorrowDecode)]
struct WireRemembered<'a> {
    state: u8,
    alive: WireAlive<'a>,
}

/// Appends a member of a full state.
pub fn encode_remembered(remembered: &Remembered, out: &mut Vec<u8>) {
    let state = remembered.state as u8;
    append(WireRemembered { state, alive: (&remembered.alive).into() }, out);
}

/// Reads the first member of what is left of a full state, and how many bytes it took.
///
/// # Errors
/// Why these bytes are no member.
pub fn decode_remembered(bytes: &[u8]) -> Result<(Remembered, usize), WireError> {
    let (wire, used): (WireRemembered<'_>, _) = first(bytes)?;
    let state = match wire.state {
        0 => MemberState::Alive,
        1 => MemberState::Suspect,
        2 => MemberState::Dead,
        3 => MemberState::Left,
        _ => return Err(WireError::Kind),
    };
    Ok((Remembered { alive: wire.alive.checked()?, state }, used))
}

#[derive(Encode, BorrowDecode)]
enum WireAddress<'a> {
    Direct { from: WireId<'a>, to: WireId<'a> },
    Broadcast { origin: WireId<'a>, id: u64, kind: &'a str },
}

/// What goes in front of a user's bytes on a stream.
pub fn encode_address(address: &Address) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    let wire = match address {
        Address::Direct { from, to } => WireAddress::Direct { from: from.into(), to: to.into() },
        Address::Broadcast { origin, id, kind } => {
            WireAddress::Broadcast { origin: origin.into(), id: *id, kind }
        }
    };
    append(wire, &mut out);
    out
}

/// Reads what stands in front of a user's bytes on a stream, and how many bytes it took.
///
/// # Errors
/// Why these bytes are no address.
pub fn decode_address(bytes: &[u8]) -> Result<(Address, usize), WireError> {
    let (wire, used) = first(bytes)?;
    let address = match wire {
        WireAddress::Direct { from, to } => Address::Direct { from: from.checked()?, to: to.checked()? },
        WireAddress::Broadcast { origin, id, kind: text } => {
            Address::Broadcast { origin: origin.checked()?, id, kind: kind(text)? }
        }
    };
    Ok((address, used))
}

/// Appends a user's value to `out`.
///
/// # Errors
/// What its `Serialize` says; `out` is as before then.
pub fn encode_payload(value: &impl Serialize, out: &mut Vec<u8>) -> Result<(), String> {
    let before = out.len();
    let encoded = bincode::serde::encode_into_std_write(value, out, config::standard());
    encoded.map(drop).map_err(|error| {
        out.truncate(before);
        match error {
            EncodeError::OtherString(text) => text,
            EncodeError::Other(text) => text.to_owned(),
            error => error.to_string(),
        }
    })
}

/// Reads a user's value, which has to be all of `bytes`. It may claim 16 times the memory that it has bytes, and
/// 64 KiB in any case, and as many elements: what its lists only say that they hold is not reserved. It may nest 128
/// values within each other.
///
/// # Errors
/// [`WireError::Malformed`].
pub fn decode_payload<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, WireError> {
    fn limited<T: DeserializeOwned, const CLAIM: usize>(bytes: &[u8]) -> Result<(T, usize), DecodeError> {
        let read = bincode::serde::borrow_decode_from_slice(bytes, config::standard().with_limit::<CLAIM>());
        read.map(|(Bounded::<T, CLAIM>(value), used)| (value, used))
    }
    const KIB: usize = 1024;
    let read = match bytes.len() * 16 {
        0..=0x1_0000 => limited::<T, { 64 * KIB }>(bytes),
        0x1_0001..=0x10_0000 => limited::<T, { 1024 * KIB }>(bytes),
        0x10_0001..=0x100_0000 => limited::<T, { 16 * 1024 * KIB }>(bytes),
        _ => limited::<T, { 1024 * 1024 * KIB }>(bytes),
    };
    let (value, used) = read.map_err(|_| WireError::Malformed)?;
    if used == bytes.len() { Ok(value) } else { Err(WireError::Malformed) }
}

/// A receipt as a byte.
pub fn encode_receipt(receipt: Receipt) -> u8 {
    match receipt {
        Receipt::Taken => 0,
        Receipt::NoHandler => 1,
        Receipt::Busy => 2,
        Receipt::NotMe => 3,
        Receipt::Undecodable => 4,
    }
}

/// Reads a receipt.
///
/// # Errors
/// [`WireError::Kind`] for one that this version does not know.
pub fn decode_receipt(byte: u8) -> Result<Receipt, WireError> {
    [Receipt::Taken, Receipt::NoHandler, Receipt::Busy, Receipt::NotMe, Receipt::Undecodable]
        .into_iter()
        .find(|receipt| encode_receipt(*receipt) == byte)
        .ok_or(WireError::Kind)
}

#[derive(Encode, BorrowDecode)]
enum WireOrder<'a> {
    Tell,
    Install(&'a [u8]),
    Use([u8; 4]),
    Keep([u8; 4]),
    Hear(&'a str),
    Say(&'a str),
    HearOnly(&'a str),
    Seal(u8),
}

#[derive(Encode, BorrowDecode)]
struct WireOrdered<'a> {
    from: WireId<'a>,
    to: WireId<'a>,
    order: WireOrder<'a>,
}

#[derive(Encode, BorrowDecode)]
struct WireStanding<'a> {
    id: WireId<'a>,
    keys: Vec<[u8; 4]>,
    sealing: u8,
    label: &'a str,
    hears: Vec<&'a str>,
    refused: &'a str,
}

const SEALINGS: [Sealing; 3] = [Sealing::Off, Sealing::Outgoing, Sealing::Required];

fn sealing(byte: u8) -> Result<Sealing, WireError> {
    SEALINGS.get(usize::from(byte)).copied().ok_or(WireError::Kind)
}

fn label(text: &str) -> Result<String, WireError> {
    if text.len() <= MAX_LABEL { Ok(text.to_owned()) } else { Err(WireError::Label) }
}

/// An order as bytes. It may hold a key: wiped when dropped.
pub fn encode_order(ordered: &Ordered) -> Zeroizing<Vec<u8>> {
    let order = match &ordered.order {
        Order::Tell => WireOrder::Tell,
        Order::Install(key) => WireOrder::Install(key.as_bytes()),
        Order::Use(id) => WireOrder::Use(id.to_bytes()),
        Order::Keep(id) => WireOrder::Keep(id.to_bytes()),
        Order::Hear(label) => WireOrder::Hear(label),
        Order::Say(label) => WireOrder::Say(label),
        Order::HearOnly(label) => WireOrder::HearOnly(label),
        Order::Seal(sealing) => WireOrder::Seal(*sealing as u8),
    };
    // Large enough from the start: what is moved leaves a copy behind.
    let mut out = Zeroizing::new(Vec::with_capacity(MAX_ORDER));
    append(WireOrdered { from: (&ordered.from).into(), to: (&ordered.to).into(), order }, &mut out);
    out
}

/// Reads an order.
///
/// # Errors
/// Why these bytes are none.
pub fn decode_order(bytes: &[u8]) -> Result<Ordered, WireError> {
    let WireOrdered { from, to, order } = exactly(bytes)?;
    let order = match order {
        WireOrder::Tell => Order::Tell,
        WireOrder::Install(key) => Order::Install(Key::from_bytes(key).map_err(|_| WireError::Malformed)?),
        WireOrder::Use(id) => Order::Use(KeyId::from_bytes(id)),
        WireOrder::Keep(id) => Order::Keep(KeyId::from_bytes(id)),
        WireOrder::Hear(text) => Order::Hear(label(text)?),
        WireOrder::Say(text) => Order::Say(label(text)?),
        WireOrder::HearOnly(text) => Order::HearOnly(label(text)?),
        WireOrder::Seal(byte) => Order::Seal(sealing(byte)?),
    };
    Ok(Ordered { from: from.checked()?, to: to.checked()?, order })
}

/// How things stand, as bytes.
pub fn encode_standing(standing: &Standing) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    let wire = WireStanding {
        id: (&standing.id).into(),
        keys: standing.keys.iter().map(|id| id.to_bytes()).collect(),
        sealing: standing.sealing as u8,
        label: &standing.label,
        hears: standing.hears.iter().map(String::as_str).collect(),
        refused: standing.refused.as_deref().unwrap_or_default(),
    };
    append(wire, &mut out);
    out
}

/// Reads how things stand at a node.
///
/// # Errors
/// Why these bytes do not say it.
pub fn decode_standing(bytes: &[u8]) -> Result<Standing, WireError> {
    let wire: WireStanding<'_> = exactly(bytes)?;
    Ok(Standing {
        id: wire.id.checked()?,
        keys: wire.keys.into_iter().map(KeyId::from_bytes).collect(),
        sealing: sealing(wire.sealing)?,
        label: label(wire.label)?,
        hears: wire.hears.into_iter().map(label).collect::<Result<_, _>>()?,
        refused: (!wire.refused.is_empty()).then(|| wire.refused.to_owned()),
    })
}

#[derive(Encode, BorrowDecode)]
struct WireHello<'a> {
    from: WireId<'a>,
    to: WireId<'a>,
    link: u64,
    carrier: u8,
    connection: u64,
    welcomed: u64,
    lanes: Vec<(u64, u64)>,
    answers: u64,
    longest_answer: u32,
}

/// The first word of a link.
pub fn encode_hello(hello: &Hello) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    let wire = WireHello {
        from: (&hello.from).into(),
        to: (&hello.to).into(),
        link: hello.link,
        carrier: hello.carrier as u8,
        connection: hello.connection,
        welcomed: hello.welcomed,
        lanes: hello.lanes.iter().map(|sent| (sent.first, sent.next)).collect(),
        answers: hello.answers,
        longest_answer: hello.longest_answer,
    };
    append(wire, &mut out);
    out
}

/// Reads the first word of a link.
///
/// # Errors
/// Why these bytes are none.
pub fn decode_hello(bytes: &[u8]) -> Result<Hello, WireError> {
    let wire: WireHello<'_> = exactly(bytes)?;
    Ok(Hello {
        from: wire.from.checked()?,
        to: wire.to.checked()?,
        carrier: *Carrier::ALL.get(usize::from(wire.carrier)).ok_or(WireError::Kind)?,
        link: wire.link,
        connection: wire.connection,
        welcomed: wire.welcomed,
        lanes: wire.lanes.into_iter().map(|(first, next)| Sent { first, next }).collect(),
        answers: wire.answers,
        longest_answer: wire.longest_answer,
    })
}

#[derive(Encode, BorrowDecode)]
enum WireWelcome<'a> {
    Welcome { lanes: Vec<(Option<u64>, Vec<u8>)>, ordered: u32, message: u32 },
    Refused { code: u8, text: &'a str },
}

/// The answer to the first word of a link.
pub fn encode_welcome(answer: &Result<Welcome, Refusal>) -> Vec<u8> {
    let mut out = Vec::with_capacity(128);
    match answer {
        Ok(welcome) => {
            let lanes = welcome.lanes.iter().map(|heard| {
                let mut refused = Vec::new();
                append_refused(&heard.refused, &mut refused);
                (heard.next, refused)
            });
            let Limits { ordered, message } = welcome.limits;
            append(WireWelcome::Welcome { lanes: lanes.collect(), ordered, message }, &mut out);
        }
        Err(refusal) => {
            let (code, text) = refusal.to_wire();
            append(WireWelcome::Refused { code, text }, &mut out);
        }
    }
    out
}

/// Reads the answer to the first word of a link.
///
/// # Errors
/// Why these bytes are none.
pub fn decode_welcome(bytes: &[u8]) -> Result<Result<Welcome, Refusal>, WireError> {
    Ok(match exactly::<WireWelcome<'_>>(bytes)? {
        WireWelcome::Welcome { lanes, ordered, message } => {
            let heard = |(next, list): (Option<u64>, Vec<u8>)| Ok(Heard { next, refused: refused(&list)? });
            let lanes = lanes.into_iter().map(heard).collect::<Result<_, WireError>>()?;
            Ok(Welcome { lanes, limits: Limits { ordered, message } })
        }
        WireWelcome::Refused { code, text } => Err(Refusal::from_wire(code, text)),
    })
}

#[derive(Encode, BorrowDecode)]
struct WireStateHeader<'a> {
    from: WireId<'a>,
    versions: [u8; 6],
    /// 0: no; 1: yes; 2: yes, and the joiner has a last word.
    join: u8,
    members: u32,
    user_len: u32,
}

#[derive(Encode, BorrowDecode)]
enum WireReply<'a> {
    State(WireStateHeader<'a>),
    Refused { code: u8, text: &'a str },
}

/// Appends the head of a full state, or the refusal to give one.
pub fn encode_reply(reply: &Result<StateHeader, Refusal>, out: &mut Vec<u8>) {
    let wire = match reply {
        Ok(header) => WireReply::State(WireStateHeader {
            from: (&header.from).into(),
            versions: header.versions.to_bytes(),
            join: u8::from(header.join) + u8::from(header.join && header.tentative),
            members: header.members,
            user_len: header.user_len,
        }),
        Err(refusal) => {
            let (code, text) = refusal.to_wire();
            WireReply::Refused { code, text }
        }
    };
    append(wire, out);
}

/// Reads the head of a full state, or the refusal to give one, and how many bytes it took.
///
/// # Errors
/// Why these bytes are neither.
pub fn decode_reply(bytes: &[u8]) -> Result<(Result<StateHeader, Refusal>, usize), WireError> {
    let (wire, used): (WireReply<'_>, _) = first(bytes)?;
    let reply = match wire {
        WireReply::State(header) => Ok(StateHeader {
            from: header.from.checked()?,
            versions: Versions::from_bytes(header.versions),
            join: match header.join {
                0 => false,
                1 | 2 => true,
                _ => return Err(WireError::Malformed),
            },
            tentative: header.join == 2,
            members: header.members,
            user_len: header.user_len,
        }),
        WireReply::Refused { code, text } => Err(Refusal::from_wire(code, text)),
    };
    Ok((reply, used))
}

fn exactly<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<T, WireError> {
    let (value, used) = first(bytes)?;
    if used == bytes.len() { Ok(value) } else { Err(WireError::Trailing) }
}

fn first<'a, T: BorrowDecode<'a, ()>>(bytes: &'a [u8]) -> Result<(T, usize), WireError> {
    bincode::borrow_decode_from_slice(bytes, CONFIG).map_err(|error| match error {
        DecodeError::UnexpectedEnd { .. } => WireError::Truncated,
        DecodeError::LimitExceeded => WireError::Claim,
        DecodeError::UnexpectedVariant { .. } => WireError::Kind,
        _ => WireError::Malformed,
    })
}

/// Appending to memory cannot fail but for want of memory.
fn append(value: impl Encode, out: &mut Vec<u8>) {
    let _ = bincode::encode_into_std_write(value, out, CONFIG);
}

fn does_not_fit(_: EncodeError) -> DoesNotFit {
    DoesNotFit
}
