//! The queue of broadcasts against a plain list that does the same without any order kept: what is pushed, replaced,
//! taken and dropped is the same in both, and so is what each packet holds.

#![no_main]

use std::cmp::Reverse;

use bytes::Bytes;
use libfuzzer_sys::{
    arbitrary::{self, Arbitrary},
    fuzz_target,
};
use memberlist_protocol::{
    broadcast::{BroadcastQueue, End, Source, TooLarge},
    config::Config,
    gossip::{Gossip, Piggyback},
    wire::{
        frame::{MAX_PARTS, PART_OVERHEAD, Packer, Parts},
        message::{Message, Nack},
    },
};

#[derive(Arbitrary, Debug)]
struct Life {
    max_entries: u8,
    max_bytes: u16,
    max_len: u8,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    Push { forwarded: bool, name: Option<u8>, len: u8 },
    Invalidate(u8),
    Fill { forwarded: bool, room: u16, taken: u8, spare: u8, limit: u8 },
    Many { forwarded: bool, count: u8 },
    Finish,
}

fn source(forwarded: bool) -> Source {
    if forwarded { Source::Forwarded } else { Source::Own }
}

/// A few names, so that they meet.
fn name(n: u8) -> String {
    format!("n{}", n % 8)
}

/// An entry, with the place that its order of coming gave it.
#[derive(Clone, Debug)]
struct Entry {
    source: Source,
    sent: u32,
    number: u32,
    name: Option<String>,
    bytes: Bytes,
}

impl Entry {
    fn rank(&self) -> (Source, u32, Reverse<usize>, Reverse<u32>) {
        (self.source, self.sent, Reverse(self.bytes.len()), Reverse(self.number))
    }
}

struct Bench {
    queue: BroadcastQueue<u32>,
    plain: Vec<Entry>,
    max_entries: usize,
    max_bytes: usize,
    max_len: usize,
    /// How many were pushed, and how many have ended.
    pushed: u32,
    ended: u32,
}

impl Bench {
    fn new(life: &Life) -> Self {
        let max_len = usize::from(life.max_len) + 1;
        // As settings have it: there is room for some, and for each that a packet has room for.
        let (max_entries, max_bytes) =
            (usize::from(life.max_entries) + 1, usize::from(life.max_bytes).max(max_len));
        let queue = BroadcastQueue::new(max_entries, max_bytes, max_len);
        Self { queue, plain: Vec::new(), max_entries, max_bytes, max_len, pushed: 0, ended: 0 }
    }

    fn push(&mut self, source: Source, name: Option<String>, len: usize) {
        let number = self.pushed;
        // No message is empty, and each is another one.
        let bytes: Bytes = number.to_le_bytes().into_iter().cycle().take(len.max(1)).collect();
        let (mut ended, mut expected) = (Vec::new(), Vec::new());
        let pushed =
            self.queue.push(source, name.as_deref().map(Into::into), bytes.clone(), number, |t, e| {
                ended.push((t, e))
            });
        if bytes.len() > self.max_len {
            assert_eq!(pushed, Err(TooLarge { len: bytes.len(), max: self.max_len }));
            assert!(ended.is_empty());
            return;
        }
        assert_eq!(pushed, Ok(()));
        self.pushed += 1;
        if let Some(at) = name.as_ref().and_then(|name| self.at(name)) {
            expected.push((self.plain.remove(at).number, End::Replaced));
        }
        let mut refused = false;
        while self.plain.len() == self.max_entries || self.bytes() + bytes.len() > self.max_bytes {
            let (at, last) =
                self.plain.iter().enumerate().max_by_key(|(_, entry)| entry.rank()).expect("it is full");
            if last.source < source {
                refused = true;
                break;
            }
            expected.push((self.plain.remove(at).number, End::Pruned));
        }
        if refused {
            expected.push((number, End::Pruned));
        } else {
            self.plain.push(Entry { source, sent: 0, number, name, bytes });
        }
        self.ends(&ended, &expected);
    }

    fn at(&self, name: &str) -> Option<usize> {
        self.plain.iter().position(|entry| entry.name.as_deref() == Some(name))
    }

    fn bytes(&self) -> usize {
        self.plain.iter().map(|entry| entry.bytes.len()).sum()
    }

    fn ends(&mut self, ended: &[(u32, End)], expected: &[(u32, End)]) {
        assert_eq!(ended, expected);
        self.ended += ended.len() as u32;
    }

    fn invalidate(&mut self, name: &str) {
        let (mut ended, mut expected) = (Vec::new(), Vec::new());
        self.queue.invalidate(name, |t, e| ended.push((t, e)));
        if let Some(at) = self.at(name) {
            expected.push((self.plain.remove(at).number, End::Replaced));
        }
        self.ends(&ended, &expected);
    }

    fn fill(&mut self, source: Source, room: usize, taken: usize, spare: usize, limit: u32) {
        let mut buf = vec![0; 1 + room];
        let mut packer = Packer::body(&mut buf);
        let taken = usize::from(packer.push_encoded(&vec![0; taken]));
        let mut left = packer.room().saturating_sub(spare);
        let (before, mut parts_left) = (packer.room(), MAX_PARTS - taken);
        let mut ended = Vec::new();
        self.queue.fill(&mut packer, source, spare, limit, |t, e| ended.push((t, e)));
        assert!(packer.room() + spare.min(before) >= before.min(spare), "more than is free");
        let packet = packer.finish().unwrap_or_default();
        let parts = Parts::of(&packet).into_iter().flatten().map(|part| part.expect("whole"));
        let sent: Vec<Bytes> = parts.skip(taken).map(Bytes::copy_from_slice).collect();
        assert!(packet.len() <= 1 + room);

        // In the order of their ranks, each that there is room for.
        let mut order: Vec<u32> = Vec::new();
        self.plain.sort_by_key(Entry::rank);
        for entry in self.plain.iter().filter(|entry| entry.source == source) {
            if PART_OVERHEAD + entry.bytes.len() <= left && parts_left > 0 {
                (left, parts_left) = (left - PART_OVERHEAD - entry.bytes.len(), parts_left - 1);
                order.push(entry.number);
            }
        }
        let mut expected = Vec::new();
        let mut bytes = Vec::new();
        for number in order {
            let at = self.plain.iter().position(|entry| entry.number == number).expect("it is there");
            bytes.push(self.plain[at].bytes.clone());
            self.plain[at].sent += 1;
            if self.plain[at].sent >= limit {
                expected.push((number, End::Sent));
                self.plain.remove(at);
            }
        }
        assert_eq!(sent, bytes);
        self.ends(&ended, &expected);
    }

    fn check(&self) {
        assert_eq!((self.queue.len(), self.queue.bytes()), (self.plain.len(), self.bytes()));
        assert!(self.plain.len() <= self.max_entries && self.bytes() <= self.max_bytes);
        assert_eq!(self.pushed, self.ended + self.plain.len() as u32);
        for source in [Source::Own, Source::Forwarded] {
            let of = || self.plain.iter().filter(|entry| entry.source == source);
            let first = of().min_by_key(|entry| entry.rank());
            let first = first.map(|entry| (entry.sent, entry.bytes.len()));
            assert_eq!(self.queue.first(source).map(|(sent, len, _)| (sent, len)), first);
            assert_eq!(
                self.queue.room(source),
                of().map(|entry| PART_OVERHEAD + entry.bytes.len()).sum::<usize>()
            );
        }
    }

    fn finish(&mut self) {
        let mut ended = Vec::new();
        self.queue.finish(|t, e| ended.push((t, e)));
        self.plain.sort_by_key(Entry::rank);
        let expected: Vec<_> = self.plain.drain(..).map(|entry| (entry.number, End::Sent)).collect();
        self.ends(&ended, &expected);
    }
}

/// The same steps for the queues of a node: each packet is within its size, and each ticket comes back once.
fn gossip(life: &Life) {
    let size = 64 + usize::from(life.max_len);
    let config = Config {
        udp_buffer_size: size,
        max_user_broadcasts: usize::from(life.max_entries) + 1,
        ..Config::lan()
    };
    let mut gossip = Gossip::<u32>::new(&config, 0);
    let (mut pushed, mut open) = (0, std::collections::BTreeSet::new());
    for step in &life.steps {
        let mut ended = Vec::new();
        let mut end = |ticket: Option<u32>, _| ended.extend(ticket);
        match step {
            Step::Push { forwarded: true, name: None, len } => {
                let _ = gossip.forward(vec![2; usize::from(*len).max(1)].into(), &mut end);
            }
            Step::Push { forwarded: true, name: Some(about), len } => {
                let _ = gossip.news(name(*about).into(), vec![1; usize::from(*len).max(1)].into());
            }
            Step::Push { forwarded: false, name: of, len } => {
                let replaces: Vec<String> = of.iter().map(|n| name(n / 8)).collect();
                let bytes = vec![3; usize::from(*len).max(1)].into();
                let of = of.map(|n| name(n).into());
                if gossip.user(of, &replaces, bytes, Some(pushed), &mut end).is_ok() {
                    open.insert(pushed);
                }
                pushed += 1;
            }
            Step::Invalidate(n) => gossip.invalidate(Some(&name(*n)), &[name(n / 8)], &mut end),
            Step::Fill { limit, taken, .. } => {
                let limit = u32::from(*limit % 8) + 1;
                let in_front = vec![0; usize::from(*taken)];
                let packet = match taken % 3 {
                    0 => gossip.packet(limit, &mut end),
                    1 => gossip.packet_of(&in_front, limit, &mut end),
                    _ => {
                        gossip.packet_with(&[Message::Nack(Nack { seq: 7 })], Piggyback::Yes, limit, &mut end)
                    }
                };
                if let Some(packet) = packet {
                    assert!(packet.len() <= size);
                    assert!(Parts::of(&packet).into_iter().flatten().all(|part| part.is_ok()));
                }
            }
            Step::Many { .. } => {}
            Step::Finish => gossip.finish(&mut end),
        }
        for ticket in ended {
            assert!(open.remove(&ticket), "{ticket} ends again");
        }
        assert!(gossip.len().1 <= usize::from(life.max_entries) + 1);
    }
    // Each packet takes something, so that none waits for ever.
    let mut packets = 0;
    while !gossip.is_empty() {
        let packet = gossip.packet(1, |ticket, _| open.retain(|open| Some(*open) != ticket));
        assert!(packet.is_some(), "{:?} wait, and nothing goes", gossip.len());
        packets += 1;
        assert!(packets <= 100_000);
    }
    assert!(open.is_empty());
}

fuzz_target!(|life: Life| {
    let mut bench = Bench::new(&life);
    for step in &life.steps {
        match step {
            Step::Push { forwarded, name: of, len } => {
                bench.push(source(*forwarded), of.map(name), (*len).into())
            }
            Step::Invalidate(n) => bench.invalidate(&name(*n)),
            Step::Fill { forwarded, room, taken, spare, limit } => {
                let (room, taken) = (usize::from(*room % 4096), usize::from(*taken));
                bench.fill(source(*forwarded), room, taken, (*spare).into(), u32::from(*limit % 8));
            }
            Step::Many { forwarded, count } => {
                (0..*count % 32).for_each(|_| bench.push(source(*forwarded), None, 1));
            }
            Step::Finish => bench.finish(),
        }
        bench.check();
    }
    gossip(&life);
});
