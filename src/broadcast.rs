//! What is still to be gossiped. Each entry is sent a limited number of times, which grows with the logarithm
//! of the cluster (SWIM, section 4.1), the fewest-sent first.

use std::{borrow::Borrow, cmp::Reverse, collections::BTreeMap, ops::Bound, sync::Arc};

use bytes::Bytes;

use crate::wire::frame::{PART_OVERHEAD, Packer};

/// Own ones first; then fewer transmissions; then longer ones, which are harder to place; then newer ones. The
/// number is never used again, so no entry can take another one's place.
type Rank = (Source, u32, Reverse<usize>, Reverse<u64>);

/// Where a broadcast began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// Here. It goes before what others have begun: nobody else can send it yet.
    Own,
    /// Elsewhere: it is passed on.
    Forwarded,
}

/// How an entry ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It was sent as often as it should be.
    Sent,
    /// A newer one took its place.
    Replaced,
    /// The queue was full, and it had been sent the most; or it was to be passed on, and what began here took
    /// all the room.
    Pruned,
}

#[derive(Debug)]
struct Entry<T, K> {
    name: Option<K>,
    bytes: Bytes,
    ticket: T,
}

/// A broadcast that no packet has room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the broadcast has {len} bytes; a packet holds at most {max}")]
pub struct TooLarge {
    /// Bytes of the broadcast.
    pub len: usize,
    /// Bytes that fit.
    pub max: usize,
}

/// A transmit-limited queue, bounded in entries and in bytes. `T` is what its owner wants back with an entry, and `K`
/// is what entries are named by.
#[derive(Debug)]
pub struct BroadcastQueue<T, K = Arc<str>> {
    entries: BTreeMap<Rank, Entry<T, K>>,
    names: BTreeMap<K, Rank>,
    next: u64,
    bytes: usize,
    /// The room that all from each source would take.
    room: [usize; 2],
    max_entries: usize,
    max_bytes: usize,
    max_len: usize,
}

impl<T, K: Ord + Clone> BroadcastQueue<T, K> {
    /// At most `max_entries` of `max_bytes` together, each at most `max_len` bytes.
    pub fn new(max_entries: usize, max_bytes: usize, max_len: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            names: BTreeMap::new(),
            next: 0,
            bytes: 0,
            room: [0; 2],
            max_entries,
            max_bytes,
            max_len,
        }
    }

    /// Adds a broadcast. One of the same name is replaced. `ended` gets the ticket of each that had to go.
    ///
    /// # Errors
    /// [`TooLarge`] when no packet has room for it; nothing has changed then.
    pub fn push(
        &mut self,
        source: Source,
        name: Option<K>,
        bytes: Bytes,
        ticket: T,
        mut ended: impl FnMut(T, End),
    ) -> Result<(), TooLarge> {
        if bytes.len() > self.max_len {
            return Err(TooLarge { len: bytes.len(), max: self.max_len });
        }
        if let Some(name) = &name {
            self.invalidate(name, &mut ended);
        }
        while self.entries.len() >= self.max_entries || self.bytes + bytes.len() > self.max_bytes {
            let Some((&last, _)) = self.entries.last_key_value() else { break };
            if last.0 < source {
                ended(ticket, End::Pruned);
                return Ok(());
            }
            let Some(entry) = self.entries.remove(&last) else { break };
            self.forget(last.0, &entry);
            ended(entry.ticket, End::Pruned);
        }
        let rank = (source, 0, Reverse(bytes.len()), Reverse(self.next));
        self.next += 1;
        self.put(rank, Entry { name, bytes, ticket });
        Ok(())
    }

    /// Removes the broadcast of that name.
    pub fn invalidate<Q: Ord + ?Sized>(&mut self, name: &Q, mut ended: impl FnMut(T, End))
    where
        K: Borrow<Q>,
    {
        let Some(&rank) = self.names.get(name) else { return };
        if let Some(entry) = self.entries.remove(&rank) {
            self.forget(rank.0, &entry);
            ended(entry.ticket, End::Replaced);
        }
    }

    /// Fills a packet with what began at `source`, leaving `spare` bytes of it free: tier by tier of
    /// transmissions, in each the first that fits, each at most once. An entry that has then been sent `limit`
    /// times is done.
    pub fn fill(
        &mut self,
        packer: &mut Packer<'_>,
        source: Source,
        spare: usize,
        limit: u32,
        mut ended: impl FnMut(T, End),
    ) {
        let mut sent: Vec<(Rank, Entry<T, K>)> = Vec::new();
        let mut from = Bound::Included((source, 0, Reverse(usize::MAX), Reverse(u64::MAX)));
        loop {
            let room = packer.room().saturating_sub(spare).saturating_sub(PART_OVERHEAD);
            let Some((rank, _)) = self.entries.range((from, Bound::Unbounded)).next() else { break };
            let (of, tier, Reverse(len), _) = *rank;
            if of != source || room == 0 {
                break;
            }
            if len > room {
                // On to the first of this tier that is short enough, or to the next tier.
                from = Bound::Included((source, tier, Reverse(room), Reverse(u64::MAX)));
                continue;
            }
            let rank = *rank;
            let Some(entry) = self.entries.remove(&rank) else { break };
            if !packer.push_encoded(&entry.bytes) {
                self.entries.insert(rank, entry);
                break;
            }
            self.forget(source, &entry);
            sent.push((rank, entry));
        }
        for ((_, tier, len, id), entry) in sent {
            if tier + 1 >= limit {
                ended(entry.ticket, End::Sent);
            } else {
                self.put((source, tier + 1, len, id), entry);
            }
        }
        if self.is_empty() {
            // Emptied maps keep a node each; in a calm cluster nothing waits.
            (self.entries, self.names) = (BTreeMap::new(), BTreeMap::new());
        }
    }

    /// Ends everything as sent: there is nobody left to send it to.
    pub fn finish(&mut self, mut ended: impl FnMut(T, End)) {
        (self.bytes, self.room, self.names) = (0, [0; 2], BTreeMap::new());
        for (_, entry) in std::mem::take(&mut self.entries) {
            ended(entry.ticket, End::Sent);
        }
    }

    fn put(&mut self, rank: Rank, entry: Entry<T, K>) {
        self.bytes += entry.bytes.len();
        self.room[rank.0 as usize] += entry.bytes.len() + PART_OVERHEAD;
        if let Some(name) = &entry.name {
            self.names.insert(name.clone(), rank);
        }
        self.entries.insert(rank, entry);
    }

    fn forget(&mut self, source: Source, entry: &Entry<T, K>) {
        self.bytes -= entry.bytes.len();
        self.room[source as usize] -= entry.bytes.len() + PART_OVERHEAD;
        if let Some(name) = &entry.name {
            self.names.remove(name);
        }
    }

    /// What goes first of what began at `source`: how often it was sent, its length, and its number.
    pub fn first(&self, source: Source) -> Option<(u32, usize, u64)> {
        let from = (source, 0, Reverse(usize::MAX), Reverse(u64::MAX));
        let (&(of, sent, Reverse(len), Reverse(number)), _) = self.entries.range(from..).next()?;
        (of == source).then_some((sent, len, number))
    }

    /// The room of a packet that all that began at `source` would take.
    pub fn room(&self, source: Source) -> usize {
        self.room[source as usize]
    }

    /// Entries that wait.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Most bytes that one broadcast may have.
    pub fn max_len(&self) -> usize {
        self.max_len
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::Envelope;

    fn queue() -> BroadcastQueue<u32> {
        BroadcastQueue::new(100, 10_000, 1000)
    }

    fn text(s: &str) -> Bytes {
        Bytes::copy_from_slice(s.as_bytes())
    }

    /// What one packet with `room` bytes for messages takes.
    fn packet(queue: &mut BroadcastQueue<u32>, room: usize, limit: u32) -> (Vec<String>, Vec<(u32, End)>) {
        let envelope = Envelope::new("").unwrap();
        let mut buf = vec![0; room + 3];
        let mut packer = Packer::new(&envelope, &mut buf);
        let mut ended = Vec::new();
        for source in [Source::Own, Source::Forwarded] {
            queue.fill(&mut packer, source, 0, limit, |ticket, end| ended.push((ticket, end)));
        }
        let packet = packer.finish().unwrap_or_default();
        let parts = if packet.is_empty() {
            Vec::new()
        } else {
            envelope
                .parts(&packet)
                .unwrap()
                .map(|p| String::from_utf8(p.unwrap().to_vec()).unwrap())
                .collect()
        };
        (parts, ended)
    }

    #[test]
    fn the_least_sent_the_longest_and_the_newest_go_first() {
        let mut queue = queue();
        for (i, s) in ["old", "longer", "new"].into_iter().enumerate() {
            queue.push(Source::Own, None, text(s), i as u32, |_, _| {}).unwrap();
        }
        assert_eq!(packet(&mut queue, 1000, 9).0, ["longer", "new", "old"]);
        queue.push(Source::Own, None, text("x"), 9, |_, _| {}).unwrap();
        assert_eq!(packet(&mut queue, 1000, 9).0, ["x", "longer", "new", "old"]);
    }

    #[test]
    fn a_packet_is_filled_with_what_fits_and_each_only_once() {
        let mut queue = queue();
        for s in ["1234567890", "12345678", "123", "12"] {
            queue.push(Source::Own, None, text(s), 0, |_, _| {}).unwrap();
        }
        // 12 of the room for the first; 8 are left: the second needs 10, the third 5; then 3 are left.
        assert_eq!(packet(&mut queue, 20, 9).0, ["1234567890", "123"]);
        assert_eq!(
            packet(&mut queue, 20, 9).0,
            ["12345678", "12", "123"],
            "the tier not sent yet comes first"
        );
        assert_eq!(queue.len(), 4);
    }

    #[test]
    fn an_entry_is_done_after_its_transmissions() {
        let mut queue = queue();
        queue.push(Source::Own, None, text("a"), 7, |_, _| {}).unwrap();
        assert_eq!(packet(&mut queue, 100, 3).1, []);
        assert_eq!(packet(&mut queue, 100, 3).1, []);
        assert_eq!(packet(&mut queue, 100, 3).1, [(7, End::Sent)]);
        assert_eq!(packet(&mut queue, 100, 3).0, Vec::<String>::new());
        assert_eq!((queue.len(), queue.bytes()), (0, 0));
    }

    #[test]
    fn a_name_has_one_entry_which_is_the_newest() {
        let mut queue = queue();
        let mut ended = Vec::new();
        for i in 0..3 {
            queue
                .push(Source::Own, Some("x".into()), text(&format!("v{i}")), i, |t, e| ended.push((t, e)))
                .unwrap();
        }
        queue.push(Source::Own, Some("y".into()), text("w"), 3, |_, _| {}).unwrap();
        assert_eq!(ended, [(0, End::Replaced), (1, End::Replaced)]);
        assert_eq!(packet(&mut queue, 100, 9).0, ["v2", "w"]);
        queue.invalidate("x", |t, e| assert_eq!((t, e), (2, End::Replaced)));
        assert_eq!(packet(&mut queue, 100, 9).0, ["w"]);
    }

    #[test]
    fn weak_point_01_an_entry_never_takes_the_place_of_another() {
        let mut queue = queue();
        queue.push(Source::Own, Some("a".into()), text("x"), 0, |_, _| {}).unwrap();
        // Sent once and put back; in memberlist the numbers start anew here, because the queue is empty meanwhile.
        packet(&mut queue, 100, 9);
        queue.push(Source::Own, Some("b".into()), text("y"), 1, |_, _| {}).unwrap();
        packet(&mut queue, 3, 9);
        assert_eq!(queue.len(), 2);
        let (mut sent, _) = packet(&mut queue, 100, 9);
        sent.sort();
        assert_eq!(sent, ["x", "y"]);
    }

    #[test]
    fn weak_point_10_what_no_packet_can_hold_is_refused_at_once() {
        let mut queue = queue();
        let error = queue.push(Source::Own, None, vec![0; 1001].into(), 0, |_, _| {}).unwrap_err();
        assert_eq!(error, TooLarge { len: 1001, max: 1000 });
        assert!(queue.is_empty());
    }

    #[test]
    fn weak_point_27_the_queue_is_bounded_and_drops_what_was_sent_the_most() {
        let mut queue: BroadcastQueue<_> = BroadcastQueue::new(3, 10, 10);
        let mut ended = Vec::new();
        queue.push(Source::Own, None, text("sent"), 0, |_, _| {}).unwrap();
        packet(&mut queue, 100, 9);
        for (i, s) in ["aa", "bb", "cc"].into_iter().enumerate() {
            queue.push(Source::Own, None, text(s), 1 + i as u32, |t, e| ended.push((t, e))).unwrap();
        }
        assert_eq!(ended, [(0, End::Pruned)]);
        queue.push(Source::Own, None, text("123456789"), 9, |t, e| ended.push((t, e))).unwrap();
        assert_eq!((queue.len(), queue.bytes()), (1, 9));
        assert_eq!(ended.len(), 4);
    }

    #[test]
    fn what_began_here_goes_before_what_is_passed_on_however_often_it_was_sent() {
        let mut queue = queue();
        queue.push(Source::Own, None, text("own"), 0, |_, _| {}).unwrap();
        packet(&mut queue, 100, 9);
        queue.push(Source::Forwarded, None, text("forwarded"), 1, |_, _| {}).unwrap();
        assert_eq!(queue.first(Source::Own), Some((1, 3, 0)));
        assert_eq!(queue.first(Source::Forwarded), Some((0, 9, 1)));
        assert_eq!((queue.room(Source::Own), queue.room(Source::Forwarded)), (5, 11));
        assert_eq!(packet(&mut queue, 11, 9).0, ["own"], "there is room for one of the two");
        assert_eq!(packet(&mut queue, 100, 9).0, ["own", "forwarded"]);
    }

    #[test]
    fn what_is_passed_on_never_pushes_out_what_began_here() {
        let mut queue: BroadcastQueue<_> = BroadcastQueue::new(2, 10, 10);
        let mut ended = Vec::new();
        for (source, ticket) in [
            (Source::Own, 0),
            (Source::Forwarded, 1),
            (Source::Own, 2),
            (Source::Forwarded, 3),
            (Source::Own, 4),
        ] {
            queue.push(source, None, text("x"), ticket, |t, e| ended.push((t, e))).unwrap();
        }
        assert_eq!(ended, [(1, End::Pruned), (3, End::Pruned), (0, End::Pruned)]);
        assert_eq!((queue.len(), queue.room(Source::Own), queue.room(Source::Forwarded)), (2, 6, 0));
    }
}
