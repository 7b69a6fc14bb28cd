//! Any bytes as what comes over streams: heads, frames of links, full states, addresses, orders, compressed blocks,
//! sealed records, and users' values. Whatever is decoded means the same when it is written again.

#![no_main]

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{LazyLock, Mutex},
};

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use memberlist_protocol::{
    config::Config,
    keyring::{Key, Sealing},
    link::Lane,
    wire::{
        WireError, codec, compress,
        frame::{self, Barrier, Envelope, Head, StreamKind},
        guard::{Guard, Labels},
        link::{self, Frame, What},
        message::Remembered,
        order::{MAX_ORDER, MAX_STANDING},
        seal::{End, Half, MAX_RECORD, Opening, Seals, TAG},
        shared,
        state::{Refusal, State},
    },
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

#[path = "shared/memory.rs"]
mod memory;

/// Whatever was read with nothing left is read again from what it is written as, which is no longer, but for a refusal
/// of a later version: its number is kept as a short text.
fn again<T: Debug + PartialEq>(
    bytes: &[u8],
    read: impl Fn(&[u8]) -> Result<T, WireError>,
    write: impl Fn(&T) -> Vec<u8>,
) -> Option<T> {
    let value = read(bytes).ok()?;
    let written = write(&value);
    assert!(written.len() <= bytes.len().max(16), "{} bytes are written as {}", bytes.len(), written.len());
    assert_eq!(read(&written).as_ref(), Ok(&value));
    Some(value)
}

/// What a stream begins with.
fn head(bytes: &[u8]) {
    static NODES: LazyLock<Mutex<[Guard; 2]>> = LazyLock::new(|| {
        let labels = || Labels { own: "shop".into(), accepted: vec!["old".into()] };
        let guard = |ring: Option<&[Key]>| Guard::new(&Config::lan(), labels(), ring, Sealing::Required);
        Mutex::new([guard(None), guard(Some(&[key()]))].map(|guard| guard.expect("sound settings")))
    });
    let read = Head::of(bytes);
    match bytes.first() {
        Some(first) if read.is_ok() => assert_eq!(frame::check_wire(*first), Ok(())),
        _ => {}
    }
    if let Err(error) = read
        && let Some(barrier) = Barrier::of(error)
    {
        assert_eq!(Barrier::read(barrier.answer()[4]), Ok(barrier));
    }
    let Ok(head) = read else { return };
    assert!(head.len <= bytes.len() && head.label.len() <= frame::MAX_LABEL);
    let nodes = NODES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for node in nodes.iter() {
        if let Ok(sealed) = node.admit_stream(head) {
            assert!(matches!(head.label, b"shop" | b"old"));
            assert_eq!(sealed, node.requires_seals(), "each stream is sealed, or none can be");
        }
    }
    if let Some(kind) = bytes.get(head.len).and_then(|kind| StreamKind::of(*kind).ok())
        && let Ok(label) = std::str::from_utf8(head.label)
        && head.flags == 0
    {
        let opened = Envelope::new(label).expect("not longer than it was").open_stream(kind);
        assert_eq!(&opened[..], &bytes[..=head.len]);
    }
}

/// Frames of a link, as they stand behind each other.
fn frames(mut bytes: &[u8]) {
    while let Some((len, rest)) = bytes.split_first_chunk::<{ link::LENGTH }>() {
        // A length is believed as far as there are bytes, so that a wrong one hides nothing.
        let len = (u32::from_le_bytes(*len) as usize).min(rest.len());
        let (body, rest) = rest.split_at(len);
        if let Ok(frame) = link::read(body) {
            one(frame, body);
        }
        bytes = rest;
    }
}

fn one(frame: Frame<'_>, body: &[u8]) {
    let payload = match frame {
        Frame::Message { payload, .. } | Frame::Answer { payload, .. } => payload,
        Frame::Ack { refused, .. } => {
            again(refused, link::refused, |list| {
                let mut out = Vec::new();
                link::append_refused(list, &mut out);
                out
            });
            &[]
        }
        _ => &[],
    };
    if let Frame::Message { what: What::Broadcast, payload, .. } = frame {
        address(payload);
    }
    let mut out = Vec::new();
    link::begin(&frame, payload.len(), &mut out);
    if !matches!(frame, Frame::Ack { .. }) {
        assert!(out.len() <= link::MAX_AROUND);
    }
    out.extend_from_slice(payload);
    let (len, written) = out.split_first_chunk::<{ link::LENGTH }>().expect("a length");
    assert_eq!((u32::from_le_bytes(*len) as usize, written), (written.len(), body));
}

fn address(bytes: &[u8]) {
    let Ok((address, used)) = codec::decode_address(bytes) else { return };
    let written = codec::encode_address(&address);
    assert!(used <= bytes.len() && written.len() <= used);
    assert_eq!(codec::decode_address(&written), Ok((address, written.len())));
}

/// A full state, read at once and in steps.
fn state(step: u8, bytes: &[u8]) {
    const OWN: &str = "me";
    let all = Bytes::copy_from_slice(bytes);
    let read = State::decode(all.clone(), OWN);
    let mut in_steps = State::begin(all);
    let stepped = loop {
        match in_steps {
            Ok(Ok(unchecked)) => match unchecked.check(usize::from(step) + 1, OWN) {
                Ok(Ok(state)) => break Ok(Ok(state)),
                Ok(Err(unchecked)) => in_steps = Ok(Ok(unchecked)),
                Err(error) => break Err(error),
            },
            Ok(Err(refusal)) => break Ok(Err(refusal)),
            Err(error) => break Err(error),
        }
    };
    assert_eq!(read, stepped);
    let mut state = match read {
        Ok(Ok(state)) => state,
        Ok(Err(refusal)) => return refused(refusal),
        Err(_) => return,
    };
    if let Ok(sender) = state.sender() {
        assert_eq!(sender.alive.id, state.header.from);
    }
    let (whole, mut members) = (state.clone(), Vec::new());
    while let Some(member) = state.next_member() {
        members.push(member);
    }
    assert!(state.is_empty() && members.len() == state.header.members as usize);
    let mut namesakes = members.iter().filter(|member: &&Remembered| member.alive.id.name() == OWN);
    assert!(whole.namesakes().iter().all(|member| namesakes.next() == Some(member)));
    let written = State::encode(state.header.clone(), members.iter().cloned(), &state.user);
    assert!(written.len() <= bytes.len());
    let mut reread = State::decode(written, OWN).expect("a state").expect("no refusal");
    assert_eq!((&reread.header, &reread.user), (&whole.header, &whole.user));
    assert!(std::iter::from_fn(|| reread.next_member()).eq(members));
    users(&state.user);
}

fn refused(refusal: Refusal) {
    let written = State::refuse(refusal.clone());
    let read = State::decode(written, "me").expect("a refusal").expect_err("no state");
    assert_eq!(read, refusal);
    assert_eq!(read.to_string().chars().filter(|c| c.is_control()).count(), 0);
}

/// What applications share.
fn users(bytes: &Bytes) {
    let Ok(states) = shared::decode(bytes.clone()) else { return };
    assert!(states.len() <= shared::MAX_KEYS);
    let borrowed: Vec<(&str, Bytes)> = states.iter().map(|(key, state)| (&**key, state.clone())).collect();
    let (written, left) = shared::encode(&borrowed, bytes.len());
    assert_eq!((&written, left.len()), (bytes, 0));
}

fn blocks(mut bytes: &[u8]) {
    let (all, mut out, mut left) = (bytes, Vec::new(), 1 << 20);
    while let Some((head, rest)) = bytes.split_first_chunk()
        && let Ok(head) = compress::BlockHead::read(*head, left)
        && let Some((block, rest)) = rest.split_at_checked(head.packed)
    {
        let before = out.len();
        if head.unpack(block, &mut out).is_err() {
            break;
        }
        assert_eq!(out.len() - before, head.len);
        (bytes, left) = (rest, left - head.len);
    }
    let mut packed = Vec::new();
    compress::pack_block(all, &mut packed);
    if let Some((head, rest)) = packed.split_first_chunk().filter(|_| !all.is_empty()) {
        let head = compress::BlockHead::read(*head, all.len()).expect("a block of its own");
        let mut whole = Vec::new();
        head.unpack(rest, &mut whole).expect("a block of its own");
        assert_eq!(whole, &all[..all.len().min(compress::BLOCK)]);
    }
}

fn key() -> Key {
    Key::from_bytes(&[7; 16]).expect("a length of AES")
}

/// Records of a sealed stream: they open in their order, once, and not when a byte of them has changed.
fn records(at: u16, by: u8, mut body: &[u8]) {
    let seals = Seals::new(&[key()]);
    let opening = Opening { key: key().id(), half: Half { run: 1, number: 2 } };
    assert_eq!(Opening::read(opening.to_bytes()), opening);
    let end = |end| seals.stream(b"shop", opening, Half { run: 3, number: 4 }, end).expect("there is a key");
    let (mut there, mut here) = (end(End::Dialled), end(End::Accepted));
    while !body.is_empty() {
        let mut record = Vec::new();
        let sealed =
            there.seal(&body[..body.len().min(1 + usize::from(by) * 97)], &mut record).expect("sealed");
        assert!((1..=MAX_RECORD).contains(&sealed) && record.len() == 2 + sealed + TAG);
        let mut record = record.split_off(2);
        if by != 0 && usize::from(at) < record.len() {
            let mut changed = record.clone();
            changed[usize::from(at)] ^= by;
            assert_eq!(here.open(&mut changed), Err(WireError::Seal));
        }
        assert!(there.open(&mut record.clone()).is_err(), "its own record comes back");
        here.open(&mut record).expect("an honest record");
        assert_eq!(record, &body[..sealed]);
        assert!(here.open(&mut record).is_err());
        body = &body[sealed..];
    }
}

#[derive(Serialize, Deserialize, Debug)]
enum Tree {
    Leaf,
    Branch(Vec<Tree>),
    Named { name: String, next: Option<Box<Tree>> },
    Pair(Box<Tree>, Box<Tree>),
}

#[derive(Serialize, Deserialize, Debug)]
struct Mixed {
    lists: Vec<Vec<(u64, Option<i32>)>>,
    map: BTreeMap<String, (u128, char, bool)>,
    bytes: [u8; 3],
    nothing: Vec<()>,
    number: Result<i8, f64>,
}

/// Users' values of some shapes.
fn payload(shape: u8, bytes: &[u8]) {
    fn of<T: DeserializeOwned + Serialize>(bytes: &[u8]) {
        let Ok(value) = codec::decode_payload::<T>(bytes) else { return };
        let mut written = Vec::new();
        codec::encode_payload(&value, &mut written).expect("plain values");
        assert!(written.len() <= bytes.len());
        let value: T = codec::decode_payload(&written).expect("as it was written");
        let mut again = Vec::new();
        codec::encode_payload(&value, &mut again).expect("plain values");
        assert_eq!(again, written);
    }
    match shape % 6 {
        0 => of::<Tree>(bytes),
        1 => of::<Mixed>(bytes),
        2 => of::<Vec<String>>(bytes),
        3 => of::<Vec<u64>>(bytes),
        4 => of::<BTreeMap<Vec<u8>, Option<Box<Tree>>>>(bytes),
        _ => of::<(Vec<()>, String)>(bytes),
    }
}

fn stream(data: &[u8]) {
    match data {
        [0, bytes @ ..] => head(bytes),
        [1, bytes @ ..] => frames(bytes),
        [2, step, bytes @ ..] => state(*step, bytes),
        [3, bytes @ ..] => {
            let hello = again(bytes, codec::decode_hello, codec::encode_hello);
            assert!(hello.is_none_or(|hello| hello.place().connection == hello.connection));
        }
        [4, bytes @ ..] => _ = again(bytes, codec::decode_welcome, codec::encode_welcome),
        [5, bytes @ ..] => {
            let bytes = &bytes[..bytes.len().min(MAX_ORDER)];
            again(bytes, codec::decode_order, |order| codec::encode_order(order).to_vec());
        }
        [6, bytes @ ..] => {
            let bytes = &bytes[..bytes.len().min(MAX_STANDING)];
            again(bytes, codec::decode_standing, codec::encode_standing);
        }
        [7, bytes @ ..] => address(bytes),
        [8, bytes @ ..] => users(&Bytes::copy_from_slice(bytes)),
        [9, bytes @ ..] => blocks(bytes),
        [10, low, high, by, bytes @ ..] => records(u16::from_le_bytes([*low, *high]), *by, bytes),
        [11, shape, bytes @ ..] => payload(*shape, bytes),
        [12, bytes @ ..] => {
            _ = again(bytes, |b| one_byte(b, codec::decode_receipt), |r| vec![codec::encode_receipt(*r)])
        }
        [13, bytes @ ..] => {
            again(
                bytes,
                |b| one_byte(b, |byte| Lane::of(byte).ok_or(WireError::Kind)),
                |lane| vec![lane.byte()],
            );
        }
        _ => {}
    }
}

fn one_byte<T>(bytes: &[u8], read: impl Fn(u8) -> Result<T, WireError>) -> Result<T, WireError> {
    if let [byte] = bytes { read(*byte) } else { Err(WireError::Trailing) }
}

/// Most that these bytes may make their reader ask for at once.
fn most(data: &[u8]) -> usize {
    /// What the codec lets one message claim.
    const SPARE: usize = 256 * 1024;
    let len = data.len();
    match data {
        // Blocks that follow each other grow.
        [9, ..] => SPARE + 2 * compress::MAX_RATIO * len,
        // The steps of `decode_payload`, and twice that while a list grows.
        [11, ..] => 2 * [64 << 10, 1 << 20].into_iter().find(|step| len * 16 <= *step).unwrap_or(16 << 20),
        _ => SPARE + 16 * len,
    }
}

fuzz_target!(|data: &[u8]| memory::within(most(data), || stream(data)));
