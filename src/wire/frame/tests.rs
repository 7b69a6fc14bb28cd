use std::net::SocketAddr;

use super::*;
use crate::{
    accusation::Evidence,
    member::{MAX_META, MAX_NAME, NodeId, PackedTags, Tags, Versions},
    wire::{bundle::Bundle, message::*},
};

fn envelope(label: &str) -> Envelope {
    Envelope::new(label).unwrap()
}

fn packet(label: &str, messages: &[Message]) -> Bytes {
    let mut buf = [0; 1400];
    let mut packer = Packer::new(&envelope(label), &mut buf);
    for message in messages {
        assert!(packer.push(message));
    }
    packer.finish().unwrap()
}

fn open(label: &str, packet: &[u8]) -> Result<Vec<Message>, WireError> {
    envelope(label).parts(packet)?.map(|part| codec::decode(part?)).collect()
}

fn id(name: &str) -> NodeId {
    NodeId::new(name, 0x0102_0304_0506_0708)
}

fn alive() -> Alive {
    Alive {
        id: id("b"),
        incarnation: 3,
        addr: SocketAddr::from(([127, 0, 0, 1], 7946)),
        tags: PackedTags::pack(&Tags::from([("k".into(), "v".into())])),
        meta: Bytes::from_static(b"m"),
        versions: Versions::CURRENT,
    }
}

fn each_kind() -> Vec<Message> {
    vec![
        Message::Ping(Ping { seq: 300, target: id("b"), from: id("a") }),
        Message::IndirectPing(IndirectPing {
            seq: 1,
            target: id("b"),
            addr: "[::1]:7946".parse().unwrap(),
            from: id("a"),
        }),
        Message::Ack(Ack { seq: u32::MAX, payload: Bytes::from_static(b"hi") }),
        Message::Nack(Nack { seq: 7 }),
        Message::Suspect(Suspect {
            id: id("b"),
            incarnation: 3,
            from: "a".into(),
            evidence: Evidence::NoAnswer { direct: true, helpers: 3, nacks: 2, healthy: true },
        }),
        Message::Alive(alive()),
        Message::Dead(Dead {
            id: id("b"),
            incarnation: 3,
            from: "c".into(),
            by: "a".into(),
            confirmed_by: vec!["d".into()],
            evidence: Evidence::PushPull,
        }),
        Message::User(UserBroadcast {
            origin: id("a"),
            id: 9,
            kind: "k/1".into(),
            bytes: Bytes::from_static(b"news"),
        }),
        Message::Direct(Direct { from: id("a"), to: Some(id("b")), parts: Bundle::of("k", b"hi") }),
        Message::Wait(Wait { from: id("a"), to: id("b"), millis: 20 }),
    ]
}

#[test]
fn each_message_survives_the_wire_alone_and_together() {
    for message in each_kind() {
        assert_eq!(open("", &packet("", std::slice::from_ref(&message))), Ok(vec![message]));
    }
    assert_eq!(open("shop", &packet("shop", &each_kind())), Ok(each_kind()));
}

/// What wire 1 looks like, for ever. A change of these bytes is another wire version.
#[test]
fn golden_bytes_of_wire_1() {
    let run = "0807060504030201";
    let golden = [
        format!("00fb2c01_0162{run}_0161{run}"),
        format!("0101_0162{run}_0100000000000000000000000000000001fb0a1f_0161{run}"),
        "02fcffffffff_026869".into(),
        "0307".into(),
        format!("04_0162{run}_03_0161_00030302"),
        format!("05_0162{run}_03_007f000001fb0a1f_0601006b010076_016d_010101000000"),
        format!("06_0162{run}_03_0163_0161_0164_00_02000000"),
        format!("07_0161{run}_09_036b2f31_046e657773"),
        format!("08_0161{run}_0162{run}_06_010200_6b_6869"),
        format!("09_0161{run}_0162{run}_14"),
    ];
    assert_eq!((each_kind().len(), golden.len()), (Message::KINDS, Message::KINDS));
    for (message, golden) in each_kind().iter().zip(golden) {
        let bytes = codec::encoded(message, 1400).unwrap();
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, golden.replace('_', ""), "{message:?}");
    }
    assert_eq!(packet("", &[Message::Nack(Nack { seq: 7 })])[..], [0xB1, 0, 1, 2, 0, 3, 7]);
    assert_eq!(packet("x", &[Message::Nack(Nack { seq: 7 })])[..], [0xB1, 244, 1, b'x', 0, 1, 2, 0, 3, 7]);
}

#[test]
fn the_largest_honest_messages_fit_a_default_packet() {
    let long = |c: char| c.to_string().repeat(MAX_NAME);
    let messages = [
        Message::Alive(Alive { id: id(&long('b')), meta: vec![0; MAX_META - 6].into(), ..alive() }),
        Message::Ping(Ping { seq: u32::MAX, target: id(&long('b')), from: id(&long('a')) }),
        Message::Dead(Dead {
            id: id(&long('b')),
            incarnation: u32::MAX,
            from: long('a').into(),
            by: long('c').into(),
            confirmed_by: vec![long('d').into(), long('e').into()],
            evidence: Evidence::Hearsay,
        }),
    ];
    for message in messages {
        assert_eq!(open("", &packet("", std::slice::from_ref(&message))), Ok(vec![message]));
    }
}

#[test]
fn a_type_of_a_users_message_has_a_name_of_at_most_64_bytes() {
    let named = |len: usize| {
        let message =
            UserBroadcast { origin: id("a"), id: 9, kind: "k".repeat(len).into(), bytes: Bytes::new() };
        let user = codec::decode(&codec::encoded(&Message::User(message), 1400).unwrap()).map(drop);
        let address = Address::Broadcast { origin: id("a"), id: 9, kind: "k".repeat(len).into() };
        let address = codec::decode_address(&codec::encode_address(&address)).map(drop);
        (user, address)
    };
    assert_eq!(named(MAX_KIND), (Ok(()), Ok(())));
    assert_eq!(named(MAX_KIND + 1), (Err(WireError::Name), Err(WireError::Name)));
}

#[test]
fn labels_must_be_the_same_on_both_sides() {
    let nack = [Message::Nack(Nack { seq: 7 })];
    for (theirs, ours) in [("", "a"), ("a", ""), ("a", "b"), ("a", "ab"), ("ab", "a")] {
        assert_eq!(open(ours, &packet(theirs, &nack)), Err(WireError::Label), "{theirs} {ours}");
    }
    let error = Envelope::new(&"x".repeat(256)).unwrap_err();
    assert_eq!((error.field, &*error.value), ("label", "256 bytes long"));
    let longest = "x".repeat(MAX_LABEL);
    assert_eq!(open(&longest, &packet(&longest, &nack)), Ok(nack.to_vec()));
}

#[test]
fn a_stream_begins_with_its_label_and_what_follows_is_left_as_it_is() {
    let longest = "x".repeat(MAX_LABEL);
    for (label, overhead) in [("", 0), ("x", 3), ("shop", 6), (&longest, 257)] {
        let ours = envelope(label);
        let opening = ours.open_stream(StreamKind::PushPull);
        assert_eq!((ours.len(), opening.len()), (2 + overhead, 3 + overhead));
        let rest = [&[StreamKind::PushPull.byte()][..], b"and what follows"].concat();
        let stream = [&opening[..], b"and what follows"].concat();
        assert_eq!(ours.strip(&stream), Ok(&rest[..]));
        assert_eq!(ours.strip(&opening[..ours.len()]), Ok(&[][..]), "nothing follows so far");
        for cut in 0..ours.len() {
            assert_eq!(ours.strip(&opening[..cut]), Err(WireError::Truncated), "cut at {cut}: read on");
        }
        for theirs in ["", "y", "xx", "shopping"].into_iter().filter(|theirs| *theirs != label) {
            assert_eq!(envelope(theirs).strip(&stream), Err(WireError::Label), "{label} is not {theirs}");
        }
        // A label of no length is none of theirs and none of ours.
        assert_eq!(ours.strip(&[WIRE, LABEL, 0, 0, 1]), Err(WireError::Label));
    }
}

#[test]
fn each_kind_of_bad_packet_has_its_reason() {
    let nack = packet("", &[Message::Nack(Nack { seq: 7 })]);
    let with = |at: usize, byte: u8| {
        let mut bytes = nack.to_vec();
        bytes[at] = byte;
        bytes
    };
    let part = |bytes: &[u8]| [&[0xB1, 0, 1, bytes.len() as u8, 0], bytes].concat();
    let cases = [
        (vec![], WireError::Truncated),
        (b"GET / HTTP/1.1".to_vec(), WireError::Foreign),
        (with(0, 7), WireError::ForeignMemberlist),
        (with(0, 244), WireError::ForeignMemberlist),
        (with(0, 0xB0), WireError::Foreign),
        (with(0, 0x16), WireError::Tls),
        (with(0, 0xB2), WireError::WireVersion),
        (with(0, 0xBF), WireError::WireVersion),
        (with(0, 0xC0), WireError::Foreign),
        (with(1, 1), WireError::Sealed),
        (with(1, 2), WireError::Checksum),
        (with(1, 4), WireError::Compressed),
        (with(1, 8), WireError::Flags),
        (with(1, 16), WireError::Flags),
        (with(1, 0x80), WireError::Flags),
        (with(2, 0), WireError::Empty),
        (with(2, 2), WireError::Truncated),
        (nack[..5].to_vec(), WireError::Truncated),
        ([&nack[..], b"x"].concat(), WireError::Trailing),
        (with(5, 99), WireError::Kind),
        (part(&[3, 7, 7]), WireError::Trailing),
        (part(&[2, 7, 0xfd, 0, 0, 0, 0, 0, 0, 0, 1]), WireError::Claim),
        (part(&[4, 1, 0xff, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0, 0, 0]), WireError::Malformed),
        (part(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, b'a', 0, 0, 0, 0]), WireError::Name),
        (part(&[&[2, 7, 251, 0x01, 0x02][..], &[0; 513]].concat()), WireError::Truncated),
    ];
    for (bytes, reason) in cases {
        assert_eq!(open("", &bytes), Err(reason), "{bytes:?}");
    }
}

#[test]
fn weak_point_18_metadata_that_is_too_long_is_refused_by_whoever_reads_it() {
    let room = MAX_META - alive().tags.as_bytes().len();
    for (len, fits) in [(room, true), (room + 1, false), (MAX_META + 1, false)] {
        let message = Message::Alive(Alive { meta: vec![0; len].into(), ..alive() });
        let bytes = codec::encoded(&message, 1400).unwrap();
        assert_eq!(codec::decode(&bytes), if fits { Ok(message) } else { Err(WireError::Meta) }, "{len}");
    }
}

#[test]
fn weak_point_03_a_packet_never_holds_more_messages_than_its_count_can_say() {
    let mut buf = vec![0; 65_000];
    let mut packer = Packer::new(&envelope(""), &mut buf);
    let mut pushed = 0;
    while packer.push(&Message::Nack(Nack { seq: pushed })) {
        pushed += 1;
    }
    assert_eq!(pushed as usize, MAX_PARTS);
    assert!(!packer.push_encoded(&[3, 7]));
    assert_eq!(open("", &packer.finish().unwrap()).unwrap().len(), MAX_PARTS);
}

#[test]
fn weak_point_18_a_packet_never_exceeds_its_size() {
    let mut buf = [0; 64];
    let mut packer = Packer::new(&envelope("shop"), &mut buf);
    while packer.push_encoded(b"0123456") {}
    assert!(!packer.push(&each_kind()[0]));
    assert!(packer.finish().unwrap().len() <= 64);
}

#[test]
fn weak_point_26_a_message_keeps_its_own_bytes_and_not_the_datagram_that_it_came_in() {
    let mut datagram = vec![0; 65_000];
    let len = codec::encode(&Message::Alive(alive()), &mut datagram).unwrap();
    let (message, range) = (codec::decode(&datagram[..len]).unwrap(), datagram.as_ptr_range());
    let Message::Alive(m) = &message else { panic!() };
    assert!(!range.contains(&m.meta.as_ptr()) && !range.contains(&m.tags.as_bytes().as_ptr()));
    drop(datagram);
    assert_eq!(m.meta, "m");
}
