use std::collections::BTreeSet;

use super::*;
use crate::wire::frame::Parts;

const BODY: &[u8] = &[1, 3, 0, 3, 7, 7];

fn key(n: u8) -> Key {
    Key::from_bytes(&[n; 16]).unwrap()
}

fn with(config: &Config, label: &str, accepted: &[&str], ring: Option<u8>, sealing: Sealing) -> Guard {
    let labels = Labels { own: label.into(), accepted: accepted.iter().map(|l| (*l).into()).collect() };
    let ring = ring.map(|n| vec![key(n)]);
    Guard::new(config, labels, ring.as_deref(), sealing).unwrap()
}

fn plain(label: &str) -> Guard {
    with(&Config::lan(), label, &[], None, Sealing::Required)
}

fn sealed(sealing: Sealing) -> Guard {
    with(&Config::lan(), "", &[], Some(1), sealing)
}

fn wrap(guard: &mut Guard, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    guard.wrap(1, Some(2), body, &mut out).unwrap();
    assert!(out.len() <= body.len() + guard.overhead() && out.len() >= guard.least_overhead());
    out
}

fn unwrap(guard: &mut Guard, packet: &[u8]) -> Result<Vec<u8>, WireError> {
    let mut packet = packet.to_vec();
    Ok(guard.unwrap(2, &mut packet, |_| {})?.body.to_vec())
}

#[test]
fn what_is_sealed_and_taken_in_follows_the_three_steps() {
    let steps = [Sealing::Off, Sealing::Outgoing, Sealing::Required];
    for from in steps {
        for to in steps {
            let (mut a, mut b) = (sealed(from), sealed(to));
            let taken = unwrap(&mut b, &wrap(&mut a, BODY));
            let expected = if from == Sealing::Off && to == Sealing::Required {
                Err(WireError::Unsealed)
            } else {
                Ok(BODY.to_vec())
            };
            assert_eq!(taken, expected, "{from:?} to {to:?}");
            // Nodes of one step and the next understand each other all the time.
            assert_eq!(sealed(from).seals_out(), from != Sealing::Off);
        }
    }
    assert_eq!(unwrap(&mut plain(""), &wrap(&mut sealed(Sealing::Outgoing), BODY)), Err(WireError::Sealed));
    assert_eq!(unwrap(&mut sealed(Sealing::Required), &wrap(&mut plain(""), BODY)), Err(WireError::Unsealed));
    let set = |outgoing, incoming| Config {
        gossip_verify_outgoing: outgoing,
        gossip_verify_incoming: incoming,
        ..Config::lan()
    };
    let of = |outgoing, incoming| set(outgoing, incoming).sealing();
    assert_eq!([of(false, false), of(true, false), of(true, true)], steps);
    assert_eq!(set(false, true).validate().unwrap_err().field, "gossip_verify_incoming");
}

#[test]
fn a_label_is_heard_if_it_is_ones_own_or_accepted() {
    let mut a = plain("old");
    let packet = wrap(&mut a, BODY);
    let hears = |own: &str, accepted: &[&str]| {
        unwrap(&mut with(&Config::lan(), own, accepted, None, Sealing::Off), &packet)
    };
    assert_eq!(hears("old", &[]), Ok(BODY.to_vec()));
    assert_eq!(hears("new", &["other", "old"]), Ok(BODY.to_vec()));
    for (own, accepted) in [("new", &[][..]), ("", &[]), ("ol", &["oldd", ""]), ("OLD", &[])] {
        assert_eq!(hears(own, accepted), Err(WireError::Label), "{own} {accepted:?}");
    }
    let unlabelled = wrap(&mut plain(""), BODY);
    let mut b = with(&Config::lan(), "new", &[""], None, Sealing::Off);
    assert_eq!(unwrap(&mut b, &unlabelled), Ok(BODY.to_vec()));
    assert_eq!(unwrap(&mut plain("new"), &unlabelled), Err(WireError::Label));
}

#[test]
fn two_clusters_with_one_key_and_different_labels_do_not_open_each_others_packets() {
    let mut a = with(&Config::lan(), "a", &[], Some(1), Sealing::Required);
    let mut packet = wrap(&mut a, BODY);
    let mut b = with(&Config::lan(), "b", &[], Some(1), Sealing::Required);
    assert_eq!(unwrap(&mut b, &packet), Err(WireError::Label));
    packet[3] = b'b';
    assert_eq!(unwrap(&mut b, &packet), Err(WireError::Seal), "the label is sealed in");
}

#[test]
fn labels_and_keys_change_while_a_node_runs() {
    let ring = [key(1)];
    let mut a = with(&Config::lan(), "old", &[], Some(1), Sealing::Off);
    let room = a.overhead();
    a.change(Labels { own: "new".into(), accepted: vec!["old".into()] }, &ring, Sealing::Outgoing).unwrap();
    let mut b = with(&Config::lan(), "new", &[], Some(1), Sealing::Required);
    assert_eq!(unwrap(&mut b, &wrap(&mut a, BODY)), Ok(BODY.to_vec()));
    assert_eq!(a.overhead(), room);
    let long = Labels::new("l".repeat(256));
    assert_eq!(a.change(long, &ring, Sealing::Off).unwrap_err().field, "label");
    assert_eq!(unwrap(&mut b, &wrap(&mut a, BODY)), Ok(BODY.to_vec()), "nothing has changed");
}

#[test]
fn a_damaged_packet_is_dropped_whether_sealed_or_with_a_checksum() {
    for ring in [None, Some(1)] {
        let make = || with(&Config::lan(), "", &[], ring, Sealing::Required);
        let packet = wrap(&mut make(), BODY);
        let mut reader = make();
        for at in 2 * 8..packet.len() * 8 {
            let mut damaged = packet.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert!(unwrap(&mut reader, &damaged).is_err(), "bit {at}");
        }
        assert_eq!(unwrap(&mut reader, &packet), Ok(BODY.to_vec()));
    }
    let without = Config { packet_checksum: false, ..Config::lan() };
    let packet = wrap(&mut with(&without, "", &[], None, Sealing::Off), BODY);
    assert_eq!(packet.len(), 2 + BODY.len());
    assert_eq!(unwrap(&mut plain(""), &packet), Ok(BODY.to_vec()), "it need not be there");
}

#[test]
fn a_packet_is_compressed_where_that_makes_it_shorter() {
    let config = Config { compress_packets: true, ..Config::lan() };
    let text: Vec<u8> = b"one member, another member; ".repeat(40);
    for ring in [None, Some(1)] {
        let mut a = with(&config, "", &[], ring, Sealing::Required);
        let mut b = with(&Config::lan(), "", &[], ring, Sealing::Required);
        let (short, long) = (wrap(&mut a, &text), wrap(&mut a, BODY));
        assert!(short.len() < text.len() / 3 && long.len() > BODY.len());
        assert_eq!(unwrap(&mut b, &short), Ok(text.clone()));
        assert_eq!(unwrap(&mut b, &long), Ok(BODY.to_vec()));
    }
}

#[test]
fn weak_point_34_nothing_is_compressed_or_packed_within_another() {
    let config = Config { compress_packets: true, packet_checksum: false, ..Config::lan() };
    let mut a = with(&config, "", &[], None, Sealing::Off);
    // A packet in the place of a message: 40 times the same one, which is honest by itself.
    let inner = wrap(&mut a, &b"\x28\x02\x00\x03\x07".repeat(100));
    let mut body = vec![1];
    body.extend_from_slice(&(inner.len() as u16).to_le_bytes());
    body.extend_from_slice(&inner);
    let packet = wrap(&mut a, &body);
    let taken = unwrap(&mut plain(""), &packet).unwrap();
    let parts: Vec<_> =
        Parts::of(&taken).unwrap().map(|part| crate::wire::codec::decode(part.unwrap())).collect();
    assert_eq!(parts, [Err(WireError::Kind)], "a packet is no message");
}

#[test]
fn no_two_streams_or_packets_of_a_node_begin_alike_under_seal() {
    let (mut a, mut seen) = (sealed(Sealing::Required), BTreeSet::new());
    for _ in 0..100 {
        let Opened::Sealed(head, opening) = a.open_stream(1) else { panic!("it is not sealed") };
        assert!(head.ends_with(&opening.to_bytes()) && seen.insert(opening.half.number));
        assert!(a.admit_stream(Head::of(&head).unwrap()).unwrap());
    }
    let Opened::Plain(head) = sealed(Sealing::Off).open_stream(1) else { panic!("it is sealed") };
    let head = Head::of(&head).unwrap();
    assert_eq!(a.admit_stream(head), Err(WireError::Unsealed));
    assert_eq!(sealed(Sealing::Outgoing).admit_stream(head), Ok(false));
    assert_eq!(plain("x").admit_stream(head), Err(WireError::Label));
}

#[test]
fn bad_labels_are_named() {
    let labels = |own: usize, accepted: &[usize]| Labels {
        own: "l".repeat(own),
        accepted: accepted.iter().map(|len| "l".repeat(*len)).collect(),
    };
    assert_eq!(labels(255, &[0, 255]).check(), Ok(()));
    assert_eq!(labels(256, &[]).check().unwrap_err().field, "label");
    assert_eq!(labels(1, &[256]).check().unwrap_err().field, "accept_labels");
    assert_eq!(labels(1, &[1; MAX_LABELS + 1]).check().unwrap_err().field, "accept_labels");
}

#[test]
fn a_packet_of_a_node_without_keys_stays_within_its_size_whatever_label_it_changes_to() {
    let config = Config::lan();
    for first in ["", "shop"] {
        let mut guard = Guard::new(&config, Labels::new(first), None, Sealing::Required).unwrap();
        let (room, mut out) = (config.udp_buffer_size - guard.overhead(), Vec::new());
        guard.change(Labels::new("x".repeat(SPARE_LABEL)), &[], Sealing::Required).unwrap();
        guard.wrap(1, None, &vec![7; room], &mut out).unwrap();
        assert!(out.len() <= config.udp_buffer_size, "{} bytes after {first:?}", out.len());
    }
}
