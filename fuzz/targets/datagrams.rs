//! Any bytes as a datagram: as they come, within a label, checksum, seal and compression that fit, and changed on
//! their way. Whatever is decoded means the same when it is written again.

#![no_main]

use std::sync::{LazyLock, Mutex};

use libfuzzer_sys::fuzz_target;
use memberlist_protocol::{
    config::Config,
    keyring::{Key, Sealing},
    wire::{
        WireError,
        bundle::{Bundle, Bundler},
        codec, compress,
        frame::{Envelope, PART_OVERHEAD, Packer, Parts},
        guard::{Guard, Labels},
        message::Message,
    },
};

#[path = "shared/memory.rs"]
mod memory;

/// Runs of the sender and of the receiver.
const SENDER: u64 = 1;
const RECEIVER: u64 = 2;

/// Most that a datagram may make its reader ask for at once: what a full one stands for when it is compressed, and
/// growing space for its parts.
const MOST: usize = 256 * 1024;

fn guard(checksum: bool, compress: bool, label: &str, keys: &[Key]) -> Guard {
    let config = Config { packet_checksum: checksum, compress_packets: compress, ..Config::lan() };
    let labels = Labels { own: label.into(), accepted: vec!["old".into()] };
    let ring = (!keys.is_empty()).then_some(keys);
    Guard::new(&config, labels, ring, Sealing::Required).expect("sound settings")
}

/// Keys of each length.
static KEYS: LazyLock<[Key; 3]> = LazyLock::new(|| {
    [16, 24, 32].map(|len| Key::from_bytes(&vec![len as u8; len]).expect("a length of AES"))
});

/// A stranger's bytes, at a node without keys and at one with them.
fn arrive(packet: &[u8]) {
    static NODES: LazyLock<Mutex<[Guard; 3]>> = LazyLock::new(|| {
        let keys = &KEYS[..];
        Mutex::new([
            guard(true, true, "", &[]),
            guard(true, true, "shop", &[]),
            guard(true, true, "shop", keys),
        ])
    });
    let mut nodes = NODES.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    for node in nodes.iter_mut() {
        let sealed_only = node.requires_seals();
        let mut packet = packet.to_vec();
        let unwrapped = node.unwrap(RECEIVER, &mut packet, |_| {});
        if let Ok(unwrapped) = unwrapped {
            assert!(!sealed_only, "a seal was forged");
            body(unwrapped.body);
        }
    }
    if let Ok(rest) = Envelope::new("shop").expect("short").strip(packet) {
        body(rest);
    }
}

/// A body within what the bits of `how` say, from one node to another one, unharmed or with one byte changed.
fn travel(how: u8, at: u16, by: u8, inside: &[u8]) {
    let bit = |n: u8| how & 1 << n != 0;
    let keys = match how >> 5 & 3 {
        0 => &[][..],
        n => &KEYS[usize::from(n) - 1..],
    };
    let label = if bit(0) { "shop" } else { "" };
    let mut from = guard(bit(1), bit(2), label, keys);
    let mut to = guard(bit(1), !bit(2), label, keys);
    let mut packet = Vec::new();
    let receiver = bit(3).then_some(RECEIVER);
    from.wrap(SENDER, receiver, inside, &mut packet).expect("there is a key");
    assert!(packet.len() <= inside.len() + from.overhead(), "more around a body than is said");
    let sealed = !keys.is_empty();
    let sound = packet.clone();
    if by != 0 && usize::from(at) < packet.len() {
        packet[usize::from(at)] ^= by;
        match to.unwrap(RECEIVER, &mut packet, |_| {}) {
            Ok(_) if sealed => panic!("a changed packet opens"),
            Ok(unwrapped) => body(unwrapped.body),
            Err(_) => {}
        }
    }
    let mut again = sound.clone();
    let unwrapped = to.unwrap(RECEIVER, &mut again, |_| {}).expect("an honest packet");
    assert_eq!(unwrapped.body, inside);
    assert_eq!(unwrapped.sealed.map(|seal| (seal.by, seal.addressed)), sealed.then_some((SENDER, bit(3))));
    body(unwrapped.body);
    if sealed {
        let mut again = sound.clone();
        assert_eq!(to.unwrap(RECEIVER, &mut again, |_| {}), Err(WireError::Replayed));
        let mut other = guard(bit(1), bit(2), label, keys);
        let elsewhere = other.unwrap(RECEIVER + 1, &mut sound.clone(), |_| {}).is_ok();
        assert_eq!(elsewhere, !bit(3), "for one node alone, or for all");
        assert_eq!(from.unwrap(SENDER, &mut sound.clone(), |_| {}), Err(WireError::Reflected));
    }
}

/// A count and messages.
fn body(bytes: &[u8]) {
    let Ok(parts) = Parts::of(bytes) else { return };
    let mut read = Vec::new();
    let mut whole = true;
    for part in parts {
        match part {
            Ok(part) => read.push(part),
            Err(_) => whole = false,
        }
    }
    let mut buf = vec![0; bytes.len().max(1)];
    let mut packer = Packer::body(&mut buf);
    for part in &read {
        assert!(packer.push_encoded(part), "what was in a packet has room in one as large");
    }
    if let Some(packet) = packer.finish().filter(|_| whole) {
        assert_eq!(packet, bytes);
    }
    let messages: Vec<Message> = read.iter().filter_map(|part| message(part)).collect();
    pack(&messages, bytes.len());
}

/// One message: what is decoded is decoded again from what it is encoded as.
fn message(bytes: &[u8]) -> Option<Message> {
    let message = codec::decode(bytes).ok()?;
    let written = codec::encoded(&message, usize::MAX).expect("there is room");
    assert!(written.len() <= bytes.len(), "{} bytes, {} are enough", written.len(), bytes.len());
    assert_eq!(codec::decode(&written).as_ref(), Ok(&message));
    assert!(Message::NAMES.get(message.kind()).is_some());
    let mut room = vec![0; written.len()];
    assert_eq!(codec::encode(&message, &mut room), Ok(written.len()));
    assert!(codec::encode(&message, &mut room[1..]).is_err(), "it has no room, and was written");
    assert!(codec::encoded(&message, written.len() - 1).is_err());
    if let Message::Direct(direct) = &message {
        bundle(&direct.parts);
        let mut room = vec![0; written.len()];
        let len = codec::encode_direct(&direct.from, direct.to.as_ref(), direct.parts.as_bytes(), &mut room);
        assert_eq!((len, &room[..]), (Ok(written.len()), &written[..]));
        let (from, to) = (direct.from.name().len(), direct.to.as_ref().map_or(0, |to| to.name().len()));
        assert!(written.len() <= direct.parts.as_bytes().len() + codec::around_direct(from, to));
    }
    Some(message)
}

fn bundle(bundle: &Bundle) {
    let mut bundler = Bundler::default();
    for (kind, bytes) in bundle.parts() {
        assert!(bundler.push(kind, &bytes, usize::MAX));
    }
    assert_eq!((bundler.parts(), bundle.parts().count()), (bundle.count(), bundle.count()));
    assert!(bundler.as_bytes().len() <= bundle.as_bytes().len());
    let again = Bundle::read(bundler.as_bytes()).expect("parts");
    assert!(again.parts().eq(bundle.parts()) && bundle.kinds().count() <= bundle.count());
}

/// Messages in one packet of `room` bytes, as far as they fit.
fn pack(messages: &[Message], room: usize) {
    let mut buf = vec![0; room.max(1)];
    let mut packer = Packer::body(&mut buf);
    let mut packed = Vec::new();
    for message in messages {
        let (before, left) = (packer.len(), packer.room());
        let len = codec::encoded(message, usize::MAX).expect("there is room").len();
        let fitted = packer.push(message);
        assert_eq!(fitted, left >= PART_OVERHEAD + len);
        assert_eq!(packer.len(), if fitted { before + PART_OVERHEAD + len } else { before });
        packed.extend(fitted.then_some(message));
        assert_eq!(packer.count(), packed.len());
    }
    let Some(packet) = packer.finish() else { return };
    let parts = Parts::of(&packet).expect("a body");
    assert!(
        parts
            .map(|part| codec::decode(part.expect("whole")).expect("a message"))
            .eq(packed.into_iter().cloned())
    );
}

fuzz_target!(|data: &[u8]| {
    memory::within(MOST, || match data {
        [0, packet @ ..] => arrive(packet),
        [1, how, low, high, by, inside @ ..] => travel(*how, u16::from_le_bytes([*low, *high]), *by, inside),
        [2, inside @ ..] => body(inside),
        [3, packed @ ..] => {
            let mut out = Vec::new();
            if compress::unpack(packed, &mut out).is_ok() {
                assert!(out.len() <= packed.len() * compress::MAX_RATIO);
                body(&out);
            }
        }
        [4, parts @ ..] => {
            if let Ok(parts) = Bundle::read(parts) {
                bundle(&parts);
            }
        }
        [_, bytes @ ..] => _ = message(bytes),
        [] => {}
    });
});
