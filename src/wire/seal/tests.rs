use super::*;

const HEAD: [u8; 3] = [0xB1, 1, 2];

fn key(n: u8) -> Key {
    Key::from_bytes(&[n; 32]).unwrap()
}

fn keys(ns: &[u8]) -> Vec<Key> {
    ns.iter().map(|n| key(*n)).collect()
}

fn seal(seals: &mut Seals, own: u64, to: Option<u64>, body: &[u8]) -> Vec<u8> {
    let mut packet = [&HEAD[..], body].concat();
    seals.seal(own, to, HEAD.len(), &mut packet).unwrap();
    packet
}

fn open(seals: &mut Seals, own: u64, addressed: bool, packet: &[u8]) -> Result<(Sealed, Vec<u8>), WireError> {
    let mut packet = packet.to_vec();
    let sealed = seals.open(own, addressed, HEAD.len(), &mut packet, |_| {})?;
    Ok((sealed, packet[HEAD.len() + SEAL_HEAD..packet.len() - TAG].to_vec()))
}

#[test]
fn what_is_sealed_opens_for_whom_it_is_meant_with_each_size_of_key() {
    for len in [16, 24, 32] {
        let ring = [Key::from_bytes(&vec![len; len.into()]).unwrap()];
        let [mut a, mut b] = [&ring, &ring].map(|ring| Seals::new(ring));
        for body in [&b""[..], b"x", &[7; 1400]] {
            let packet = seal(&mut a, 1, Some(2), body);
            assert_eq!(packet.len(), HEAD.len() + SEAL_HEAD + body.len() + TAG);
            if body.len() > 16 {
                assert!(!packet.windows(16).any(|part| body.starts_with(part)), "it can be read");
            }
            let (sealed, opened) = open(&mut b, 2, true, &packet).unwrap();
            assert_eq!((sealed.by, opened.as_slice()), (1, body));
        }
    }
}

#[test]
fn weak_point_37_a_packet_opens_once_and_at_one_node_and_not_after_its_restart() {
    let ring = keys(&[1]);
    let (mut a, mut b, mut c) = (Seals::new(&ring), Seals::new(&ring), Seals::new(&ring));
    let packet = seal(&mut a, 1, Some(2), b"body");
    assert!(open(&mut b, 2, true, &packet).is_ok());
    assert_eq!(open(&mut b, 2, true, &packet).unwrap_err(), WireError::Replayed);
    assert_eq!(open(&mut c, 3, true, &packet).unwrap_err(), WireError::Seal);
    assert_eq!(open(&mut c, 3, false, &packet).unwrap_err(), WireError::Seal);
    let mut restarted = Seals::new(&ring);
    assert_eq!(open(&mut restarted, 4, true, &packet).unwrap_err(), WireError::Seal);
    assert_eq!(open(&mut a, 1, true, &packet).unwrap_err(), WireError::Reflected);
}

#[test]
fn no_byte_of_a_sealed_packet_can_be_changed_left_out_or_added() {
    let ring = keys(&[1]);
    let (mut a, mut b) = (Seals::new(&ring), Seals::new(&ring));
    let packet = seal(&mut a, 1, Some(2), b"a body of some bytes");
    for place in 0..packet.len() {
        for bit in 0..8 {
            let mut changed = packet.clone();
            changed[place] ^= 1 << bit;
            assert!(open(&mut b, 2, true, &changed).is_err(), "bit {bit} of byte {place}");
        }
        assert!(open(&mut b, 2, true, &packet[..place]).is_err(), "{place} bytes of it");
    }
    assert!(open(&mut b, 2, true, &[&packet[..], &[0]].concat()).is_err());
    assert_eq!(b.senders(), 0, "nothing was kept of all that");
    assert!(open(&mut b, 2, true, &packet).is_ok(), "nor is it taken for received");
}

#[test]
fn keys_change_one_after_the_other_and_nothing_is_lost() {
    let (mut a, mut b) = (Seals::new(&keys(&[1])), Seals::new(&keys(&[1])));
    assert!(open(&mut b, 2, true, &seal(&mut a, 1, Some(2), b"old")).is_ok());
    a.set_keys(&keys(&[2, 1]));
    let packet = seal(&mut a, 1, Some(2), b"new");
    assert_eq!(open(&mut b, 2, true, &packet).unwrap_err(), WireError::Sealed);
    b.set_keys(&keys(&[1, 2]));
    assert_eq!(open(&mut b, 2, true, &packet).unwrap().1, b"new");
    assert_eq!(open(&mut a, 1, true, &seal(&mut b, 2, Some(1), b"old")).unwrap().1, b"old");
    a.set_keys(&keys(&[2]));
    assert_eq!(open(&mut a, 1, true, &seal(&mut b, 2, Some(1), b"old")).unwrap_err(), WireError::Sealed);
    b.set_keys(&keys(&[2]));
    assert_eq!(open(&mut b, 2, true, &packet).unwrap_err(), WireError::Replayed, "also after another change");
}

#[test]
fn weak_point_41_no_two_packets_share_a_nonce_also_after_the_keys_have_changed_and_come_back() {
    let mut a = Seals::new(&keys(&[1]));
    let mut seen = std::collections::BTreeSet::new();
    for round in 0..100_u8 {
        a.set_keys(&keys(&[round % 3]));
        let packet = seal(&mut a, 1, Some(2), b"body");
        assert!(seen.insert(packet[HEAD.len()..HEAD.len() + SEAL_HEAD].to_vec()));
    }
}

#[test]
fn a_window_takes_each_counter_once_in_any_order_within_its_length() {
    let mut window = Window::default();
    let mut take = |counter| {
        let new = window.is_new(counter);
        if new {
            window.note(counter);
        }
        new
    };
    assert!(take(5) && !take(5) && take(0) && !take(0) && take(4));
    assert!(take(5000) && take(5000 - WINDOW + 1) && !take(5000 - WINDOW) && !take(6));
    assert!(take(4999) && !take(4999));
    for counter in 5001..5001 + 3 * WINDOW {
        assert!(take(counter) && !take(counter), "{counter}");
    }
    assert!(!take(u64::MAX), "there is none after it");
    assert!(take(u64::MAX - 1) && !take(u64::MAX - 1) && take(u64::MAX - 2));
}

#[test]
fn a_window_agrees_with_a_set() {
    let (mut window, mut seen, mut highest) = (Window::default(), std::collections::BTreeSet::new(), 0_u64);
    let mut state = 1_u64;
    for _ in 0..50_000 {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let counter = (highest + (state >> 33) % 200).saturating_sub((state >> 50) % 1500);
        let expected = !seen.contains(&counter) && (counter > highest || highest - counter < WINDOW);
        assert_eq!(window.is_new(counter), expected, "{counter} with {highest}");
        if expected {
            window.note(counter);
            seen.insert(counter);
            highest = highest.max(counter);
        }
    }
}

#[test]
fn windows_of_members_outlive_any_number_of_other_runs() {
    let ring = keys(&[1]);
    let mut b = Seals::new(&ring);
    let mut member = Seals::new(&ring);
    let first = seal(&mut member, 7, Some(2), b"first");
    assert!(open(&mut b, 2, true, &first).is_ok());
    for run in 1000..5000 {
        let mut stranger = Seals::new(&ring);
        let mut packet = seal(&mut stranger, run, Some(2), b"x");
        assert!(b.open(2, true, HEAD.len(), &mut packet, |known| known(7)).is_ok());
        assert!(b.senders() <= SPARE_RUNS + 1);
    }
    assert_eq!(open(&mut b, 2, true, &first).unwrap_err(), WireError::Replayed);
}

fn half([run, number]: [u64; 2]) -> Half {
    Half { run, number }
}

fn opening(n: u8, dialled: [u64; 2]) -> Opening {
    Opening { key: key(n).id(), half: half(dialled) }
}

fn ends() -> (StreamSeals, StreamSeals) {
    let seals = Seals::new(&keys(&[1]));
    let end = |end| seals.stream(b"", opening(1, [1, 10]), half([2, 20]), end).unwrap();
    (end(End::Dialled), end(End::Accepted))
}

fn record(seals: &mut StreamSeals, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    assert_eq!(seals.seal(body, &mut out), Ok(body.len().min(MAX_RECORD)));
    assert_eq!(usize::from(u16::from_le_bytes([out[0], out[1]])), out.len() - 2);
    out.split_off(2)
}

#[test]
fn records_of_a_stream_open_in_their_order_and_direction_only() {
    let (mut there, mut back) = ends();
    let [first, second] = [b"first", b"secnd"].map(|body| record(&mut there, body));
    assert_eq!(back.open(&mut second.clone()), Err(WireError::Seal), "the second before the first");
    assert_eq!(there.open(&mut first.clone()), Err(WireError::Seal), "its own first, reflected");
    let mut body = first.clone();
    back.open(&mut body).unwrap();
    assert_eq!(body, b"first");
    assert_eq!(back.open(&mut first.clone()), Err(WireError::Seal), "the first again");
    assert_eq!(there.open(&mut second.clone()), Err(WireError::Seal), "its own, reflected");
    back.open(&mut second.clone()).unwrap();
    let mut large = record(&mut back, &vec![7; 3 * MAX_RECORD]);
    there.open(&mut large).unwrap();
    assert_eq!(large, [7; MAX_RECORD]);
}

#[test]
fn weak_point_37_no_record_of_one_stream_opens_in_another() {
    let seals = Seals::new(&keys(&[1]));
    let (mut there, _) = ends();
    let recorded = record(&mut there, b"state");
    for (dialled, accepted) in
        [([1, 10], [2, 21]), ([1, 11], [2, 20]), ([1, 10], [3, 20]), ([2, 20], [1, 10])]
    {
        let mut other = seals.stream(b"", opening(1, dialled), half(accepted), End::Accepted).unwrap();
        assert_eq!(other.open(&mut recorded.clone()), Err(WireError::Seal));
    }
    assert!(seals.stream(b"", opening(2, [1, 10]), half([2, 20]), End::Dialled).is_none());
}

#[test]
fn a_stream_whose_label_was_changed_on_its_way_does_not_open() {
    let seals = Seals::new(&keys(&[1]));
    let end = |label: &[u8], end| seals.stream(label, opening(1, [1, 10]), half([2, 20]), end).unwrap();
    let mut there = end(b"ours", End::Dialled);
    let recorded = record(&mut there, b"state");
    for (label, opens) in [(&b"ours"[..], true), (b"", false), (b"other", false), (b"our", false)] {
        let opened = end(label, End::Accepted).open(&mut recorded.clone());
        assert_eq!(opened.is_ok(), opens, "{label:?}");
    }
}

#[test]
fn weak_point_39_an_empty_or_short_record_is_an_error_and_no_panic() {
    let (mut there, mut back) = ends();
    for len in 0..TAG {
        assert_eq!(back.open(&mut vec![0; len]), Err(WireError::Truncated));
    }
    let mut empty = record(&mut there, b"");
    back.open(&mut empty).unwrap();
    assert_eq!(empty, b"");
}

#[test]
fn what_begins_a_stream_is_read_as_it_was_written() {
    let begun = opening(1, [0x0102030405060708, u64::MAX]);
    assert_eq!(Opening::read(begun.to_bytes()), begun);
    assert_eq!(Half::read(begun.half.to_bytes()), begun.half);
}
