//! What wire 1 looks like on streams, for ever; the messages themselves are beside the frame. A change of
//! these bytes is another version of the wire.

use bytes::Bytes;

use super::{
    codec,
    frame::{Envelope, OTHER_WIRE, StreamKind},
    message::{Address, Alive, Message, Receipt, Remembered, Suspect},
    state::{Refusal, State, StateHeader},
};
use crate::{
    accusation::Evidence,
    link::{Carrier, Heard, Hello, Limits, Sent, Welcome},
    member::{MemberState, NodeId, PackedTags, Tags, Versions},
};

const RUN: &str = "0807060504030201";

fn id(name: &str) -> NodeId {
    NodeId::new(name, 0x0102_0304_0506_0708)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// `golden` with the run in place of `RUN`, and without what is there for the eye.
fn golden(text: &str) -> String {
    text.replace("RUN", RUN).replace('_', "")
}

fn remembered(addr: &str, state: MemberState) -> Remembered {
    let alive = Alive {
        id: id("b"),
        incarnation: 300,
        addr: addr.parse().unwrap(),
        tags: PackedTags::pack(&Tags::from([("k".into(), "v".into())])),
        meta: Bytes::from_static(b"m"),
        versions: Versions::from_bytes([1, 1, 1, 2, 4, 3]),
    };
    Remembered { alive, state }
}

#[test]
fn golden_bytes_of_a_full_state() {
    let header = StateHeader {
        from: id("a"),
        versions: Versions::CURRENT,
        join: true,
        tentative: false,
        members: 0,
        user_len: 0,
    };
    let states = [MemberState::Alive, MemberState::Suspect, MemberState::Dead, MemberState::Left];
    let members: Vec<_> = states
        .into_iter()
        .map(|state| remembered("127.0.0.1:7946", state))
        .chain([remembered("[::1]:7946", MemberState::Alive)])
        .collect();
    let bytes = State::encode(header, members.clone().into_iter(), b"user");
    let rest = "_0162RUN_fb2c01_007f000001fb0a1f_0601006b010076_016d_010101020403";
    let last = "00_0162RUN_fb2c01_0100000000000000000000000000000001fb0a1f_0601006b010076_016d_010101020403";
    let expected =
        format!("00_0161RUN_010101000000_01_05_04_00{rest}_01{rest}_02{rest}_03{rest}_{last}_75736572");
    assert_eq!(hex(&bytes), golden(&expected));
    let mut state = State::decode(bytes, "me").unwrap().unwrap();
    assert!(members.iter().all(|member| state.next_member().as_ref() == Some(member)));
}

#[test]
fn golden_bytes_of_each_refusal() {
    let all = [
        (Refusal::Label, "01_00_00"),
        (Refusal::Wire, "01_01_00"),
        (Refusal::Version, "01_02_00"),
        (Refusal::Key, "01_03_00"),
        (Refusal::NameTaken, "01_04_00"),
        (Refusal::Removed, "01_05_00"),
        (Refusal::Vetoed("no".into()), "01_06_026e6f"),
        (Refusal::Address, "01_07_00"),
    ];
    for (refusal, expected) in all {
        let bytes = State::refuse(refusal.clone());
        assert_eq!(hex(&bytes), golden(expected), "{refusal:?}");
        assert_eq!(State::decode(bytes, "me"), Ok(Err(refusal)));
    }
    let later = State::decode(Bytes::from_static(&[1, 99, 0]), "me");
    assert_eq!(later, Ok(Err(Refusal::Vetoed("refusal 99".into()))), "one that a later version may add");
}

#[test]
fn golden_bytes_of_each_evidence() {
    let all = [
        (Evidence::NoAnswer { direct: true, helpers: 3, nacks: 2, healthy: true }, "00_030302"),
        (Evidence::Refused, "01_000000"),
        (Evidence::PushPull, "02_000000"),
        (Evidence::Hearsay, "03_000000"),
        (Evidence::ForceLeave, "04_000000"),
        (Evidence::Announced, "05_000000"),
        (Evidence::Replaced, "06_000000"),
    ];
    for (evidence, expected) in all {
        let message = Message::Suspect(Suspect { id: id("b"), incarnation: 3, from: "a".into(), evidence });
        let bytes = codec::encoded(&message, 1400).unwrap();
        assert_eq!(hex(&bytes), golden(&format!("04_0162RUN_03_0161_{expected}")), "{evidence:?}");
        assert_eq!(codec::decode(&bytes), Ok(message));
    }
}

#[test]
fn golden_bytes_that_open_a_stream_and_that_refuse_its_wire() {
    let open = |label, kind| hex(&Envelope::new(label).unwrap().open_stream(kind));
    assert_eq!(open("", StreamKind::PushPull), golden("b1_00_01"));
    assert_eq!(open("", StreamKind::Ping), golden("b1_00_02"));
    assert_eq!(open("x", StreamKind::PushPull), golden("b1_f40178_00_01"));
    assert_eq!(hex(&OTHER_WIRE), golden("ffffffff_b1_b1"));
}

#[test]
fn golden_bytes_of_the_last_word_of_a_join() {
    let versions = Versions::CURRENT;
    for (join, tentative, byte) in [(false, false, "00"), (true, false, "01"), (true, true, "02")] {
        let header = StateHeader { from: id("a"), versions, join, tentative, members: 3, user_len: 0 };
        assert_eq!(hex(&State::head(&header, 4)), golden(&format!("00_0161RUN_010101000000_{byte}_03_04")));
    }
}

#[test]
fn golden_bytes_of_users_streams() {
    let direct = codec::encode_address(&Address::Direct { from: id("a"), to: id("b") });
    assert_eq!(hex(&direct), golden("00_0161RUN_0162RUN"));
    let broadcast = codec::encode_address(&Address::Broadcast { origin: id("a"), id: 9, kind: "".into() });
    assert_eq!(hex(&broadcast), golden("01_0161RUN_09_00"));
    let typed = codec::encode_address(&Address::Broadcast { origin: id("a"), id: 9, kind: "k/1".into() });
    assert_eq!(hex(&typed), golden("01_0161RUN_09_036b2f31"));
    let receipts = [Receipt::Taken, Receipt::NoHandler, Receipt::Busy, Receipt::NotMe, Receipt::Undecodable];
    assert_eq!(receipts.map(codec::encode_receipt), [0, 1, 2, 3, 4]);
    let open = Envelope::new("").unwrap().open_stream(StreamKind::Link);
    assert_eq!(hex(&open), "b10003");
}

#[test]
fn golden_bytes_of_the_first_words_of_a_link() {
    let lanes = vec![Sent { first: 1, next: 2 }, Sent { first: 3, next: 300 }];
    let (from, to) = (id("a"), id("b"));
    let (carrier, longest_answer) = (Carrier::Main, 70_000);
    let hello =
        Hello { from, to, link: 7, carrier, connection: 9, welcomed: 8, lanes, answers: 4, longest_answer };
    let bytes = codec::encode_hello(&hello);
    assert_eq!(hex(&bytes), golden("0161RUN_0162RUN_07_00_09_08_020102_03fb2c01_04_fc70110100"));
    assert_eq!(codec::decode_hello(&bytes), Ok(hello));
    let heard = Heard { next: Some(5), refused: vec![(3, Receipt::Busy)] };
    let limits = Limits { ordered: 5, message: 300 };
    let welcome = Ok(Welcome { lanes: vec![Heard { next: None, refused: vec![] }, heard], limits });
    let bytes = codec::encode_welcome(&welcome);
    assert_eq!(hex(&bytes), "00020000010509030000000000000002_05_fb2c01".replace('_', ""));
    assert_eq!(codec::decode_welcome(&bytes), Ok(welcome));
    let refused = Err(Refusal::NotMe);
    assert_eq!(hex(&codec::encode_welcome(&refused)), "010800");
    assert_eq!(codec::decode_welcome(&[1, 8, 0]), Ok(refused));
}
