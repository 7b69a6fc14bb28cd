//! The sender's end of a link.

use std::collections::VecDeque;

use super::{Carrier, Heard, Lane, Sent};
use crate::wire::message::Receipt;

/// There is no room for one more message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too much waits for this peer")]
pub struct Full;

/// The other side says that it has what it was not sent, or what it has long settled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it settles what it was not sent")]
pub struct Nonsense;

/// What has become of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// The receiver has said it.
    Receipt(Receipt),
    /// It was sent, and nobody knows what became of it.
    InDoubt,
    /// It was never sent.
    Unsent,
}

/// Messages of one lane: first those that were sent and are not settled, then those that were not sent.
#[derive(Debug)]
struct Track<T> {
    waiting: VecDeque<(T, usize)>,
    /// The number of the first of them.
    first: u64,
    /// How many of them were sent, over any connection.
    sent: usize,
    /// How many of them were sent over the present one.
    here: usize,
}

impl<T> Default for Track<T> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), first: 0, sent: 0, here: 0 }
    }
}

impl<T> Track<T> {
    fn pop(&mut self) -> Option<(T, usize)> {
        let item = self.waiting.pop_front()?;
        self.first += 1;
        self.sent = self.sent.saturating_sub(1);
        self.here = self.here.saturating_sub(1);
        Some(item)
    }
}

/// What a node has to say to another one, and what it has said that is not settled. `T` is a message with whatever
/// is to be told of its fate.
#[derive(Debug)]
pub struct Outgoing<T> {
    tracks: [Track<T>; 3],
    /// Messages, and their bytes, that it holds.
    count: usize,
    bytes: usize,
    max: usize,
    max_bytes: usize,
}

impl<T> Outgoing<T> {
    /// Room for `max` messages of `max_bytes` together. One that is larger than that alone finds room when nothing
    /// else is there.
    pub fn new(max: usize, max_bytes: usize) -> Self {
        Self { tracks: Default::default(), count: 0, bytes: 0, max, max_bytes }
    }

    /// The numbers of a lane of which nothing was sent begin there.
    pub fn begin_at(&mut self, lane: Lane, number: u64) {
        let track = &mut self.tracks[lane as usize];
        if track.sent == 0 {
            track.first = number;
        }
    }

    /// Messages that are not settled, and their bytes.
    pub fn held(&self) -> (usize, usize) {
        (self.count, self.bytes)
    }

    /// Whether nothing is held that has to go over `carrier`.
    pub fn is_empty(&self, carrier: Carrier) -> bool {
        carrier.lanes().iter().all(|lane| self.tracks[*lane as usize].waiting.is_empty())
    }

    /// Whether a message of that number was ever sent.
    pub fn was_sent(&self, lane: Lane, number: u64) -> bool {
        let track = &self.tracks[lane as usize];
        number < track.first + track.sent as u64
    }

    /// Whether there is something that has not gone over the present connection.
    pub fn has_next(&self, carrier: Carrier) -> bool {
        carrier.lanes().iter().any(|lane| {
            let track = &self.tracks[*lane as usize];
            track.here < track.waiting.len()
        })
    }

    /// Whether there is room for a message of `bytes`.
    pub fn has_room(&self, bytes: usize) -> bool {
        self.count < self.max && (self.bytes + bytes <= self.max_bytes || self.count == 0)
    }

    /// Adds a message of `bytes` to the end of a lane.
    ///
    /// # Errors
    /// The message, when there is no room for it.
    pub fn push(&mut self, lane: Lane, message: T, bytes: usize) -> Result<(), (Full, T)> {
        if !self.has_room(bytes) {
            return Err((Full, message));
        }
        self.count += 1;
        self.bytes += bytes;
        self.tracks[lane as usize].waiting.push_back((message, bytes));
        Ok(())
    }

    /// The next message to be sent over the present connection, with its number. It counts as sent.
    pub fn next(&mut self, carrier: Carrier) -> Option<(Lane, u64, &mut T)> {
        let lane = *carrier.lanes().iter().find(|lane| {
            let track = &self.tracks[**lane as usize];
            track.here < track.waiting.len()
        })?;
        let track = &mut self.tracks[lane as usize];
        let number = track.first + track.here as u64;
        track.here += 1;
        track.sent = track.sent.max(track.here);
        let (message, _) = track.waiting.get_mut(track.here - 1)?;
        Some((lane, number, message))
    }

    /// The receiver has everything of the lane below `next`; all of it was taken but `refused`, in order of their
    /// numbers. `tell` gets each message that is settled by it, with its number.
    ///
    /// # Errors
    /// [`Nonsense`] if that was not sent over the present connection; nothing is settled then.
    pub fn acked(
        &mut self,
        lane: Lane,
        next: u64,
        refused: &[(u64, Receipt)],
        mut tell: impl FnMut(T, (Lane, u64), Settled),
    ) -> Result<(), Nonsense> {
        let track = &self.tracks[lane as usize];
        let settled = next.checked_sub(track.first).ok_or(Nonsense)?;
        if settled > track.here as u64 {
            return Err(Nonsense);
        }
        self.settle(lane, next, refused, &mut tell);
        Ok(())
    }

    fn settle(
        &mut self,
        lane: Lane,
        next: u64,
        refused: &[(u64, Receipt)],
        tell: &mut impl FnMut(T, (Lane, u64), Settled),
    ) {
        let mut refused = refused.iter().peekable();
        while self.tracks[lane as usize].first < next {
            let number = self.tracks[lane as usize].first;
            let Some((message, bytes)) = self.tracks[lane as usize].pop() else { return };
            self.let_go(bytes);
            while refused.next_if(|(refused, _)| *refused < number).is_some() {}
            let receipt = refused.next_if(|(refused, _)| *refused == number).map(|(_, receipt)| *receipt);
            tell(message, (lane, number), Settled::Receipt(receipt.unwrap_or(Receipt::Taken)));
        }
    }

    /// What a new connection's hello says of the lanes that go over `carrier`.
    pub fn sent(&self, carrier: Carrier) -> Vec<Sent> {
        let of = |lane: &Lane| {
            let track = &self.tracks[*lane as usize];
            Sent { first: track.first, next: track.first + track.sent as u64 }
        };
        carrier.lanes().iter().map(of).collect()
    }

    /// A new connection has been welcomed. What the other side has is settled, what it does not have goes again; if
    /// it does not know what it has, all that was sent is in doubt.
    ///
    /// # Errors
    /// [`Nonsense`] if it claims to have what was not sent, or not to have what it has acknowledged.
    pub fn welcomed(
        &mut self,
        carrier: Carrier,
        lanes: &[Heard],
        mut tell: impl FnMut(T, (Lane, u64), Settled),
    ) -> Result<(), Nonsense> {
        let said = self.sent(carrier);
        let fits = |(heard, sent): (&Heard, &Sent)| {
            heard.next.is_none_or(|next| (sent.first..=sent.next).contains(&next))
        };
        if lanes.len() != said.len() || !lanes.iter().zip(&said).all(fits) {
            return Err(Nonsense);
        }
        for (lane, heard) in carrier.lanes().iter().zip(lanes) {
            match heard.next {
                Some(next) => self.settle(*lane, next, &heard.refused, &mut tell),
                None => self.doubt(*lane, &mut tell),
            }
            self.tracks[*lane as usize].here = 0;
        }
        Ok(())
    }

    /// Gives up what was sent over `carrier` and is not settled.
    pub fn give_up(&mut self, carrier: Carrier, mut tell: impl FnMut(T, (Lane, u64), Settled)) {
        for lane in carrier.lanes() {
            self.doubt(*lane, &mut tell);
        }
    }

    fn doubt(&mut self, lane: Lane, tell: &mut impl FnMut(T, (Lane, u64), Settled)) {
        while self.tracks[lane as usize].sent > 0 {
            let number = self.tracks[lane as usize].first;
            let Some((message, bytes)) = self.tracks[lane as usize].pop() else { return };
            self.let_go(bytes);
            tell(message, (lane, number), Settled::InDoubt);
        }
    }

    /// Takes back what was never sent and `is_over`.
    pub fn take_back(&mut self, mut is_over: impl FnMut(Lane, &T) -> bool, mut tell: impl FnMut(Lane, T)) {
        for (at, lane) in Lane::ALL.into_iter().enumerate() {
            let track = &mut self.tracks[at];
            if !track.waiting.iter().skip(track.sent).any(|(message, _)| is_over(lane, message)) {
                continue;
            }
            let unsent = track.waiting.split_off(track.sent);
            for (message, bytes) in unsent {
                if is_over(lane, &message) {
                    self.let_go(bytes);
                    tell(lane, message);
                } else {
                    self.tracks[at].waiting.push_back((message, bytes));
                }
            }
        }
    }

    /// Ends everything.
    pub fn end(&mut self, mut tell: impl FnMut(Lane, T, Settled)) {
        for (lane, track) in Lane::ALL.into_iter().zip(&mut self.tracks) {
            let sent = std::mem::take(&mut track.sent);
            (track.first, track.here) = (track.first + sent as u64, 0);
            for (at, (message, _)) in std::mem::take(&mut track.waiting).into_iter().enumerate() {
                tell(lane, message, if at < sent { Settled::InDoubt } else { Settled::Unsent });
            }
        }
        (self.count, self.bytes) = (0, 0);
    }

    fn let_go(&mut self, bytes: usize) {
        self.count -= 1;
        self.bytes -= bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Told = Vec<(u32, u64, Settled)>;

    fn filled(n: u32) -> Outgoing<u32> {
        let mut out = Outgoing::new(10, 1000);
        for i in 0..n {
            out.push(Lane::Ordered, i, 10).unwrap();
        }
        out
    }

    fn send(out: &mut Outgoing<u32>, n: usize) -> Vec<(u64, u32)> {
        std::iter::from_fn(|| out.next(Carrier::Main).map(|(_, number, m)| (number, *m))).take(n).collect()
    }

    fn heard(next: impl Into<Option<u64>>) -> Heard {
        Heard { next: next.into(), refused: Vec::new() }
    }

    const TAKEN: Settled = Settled::Receipt(Receipt::Taken);

    #[test]
    fn messages_are_numbered_as_they_are_sent_and_settled_in_order_with_what_was_refused() {
        let mut out = filled(4);
        assert_eq!(send(&mut out, 3), [(0, 0), (1, 1), (2, 2)]);
        let mut told = Told::new();
        let busy = [(0, Receipt::NoHandler), (1, Receipt::Busy)];
        out.acked(Lane::Ordered, 3, &busy, |m, (_, n), s| told.push((m, n, s))).unwrap();
        let of = |receipt| Settled::Receipt(receipt);
        assert_eq!(told, [(0, 0, of(Receipt::NoHandler)), (1, 1, of(Receipt::Busy)), (2, 2, TAKEN)]);
        assert_eq!(out.held(), (1, 10));
        assert_eq!(send(&mut out, 9), [(3, 3)]);
        assert!(!out.has_next(Carrier::Main) && !out.is_empty(Carrier::Main));
    }

    #[test]
    fn an_ack_of_what_was_not_sent_settles_nothing() {
        let mut out = filled(3);
        send(&mut out, 2);
        assert_eq!(out.acked(Lane::Ordered, 3, &[], |_, _, _| panic!()), Err(Nonsense));
        assert_eq!(out.acked(Lane::Urgent, 1, &[], |_, _, _| panic!()), Err(Nonsense));
        out.acked(Lane::Ordered, 2, &[], |_, _, _| ()).unwrap();
        assert_eq!(out.acked(Lane::Ordered, 1, &[], |_, _, _| panic!()), Err(Nonsense));
    }

    #[test]
    fn after_a_cut_what_has_arrived_is_settled_and_the_rest_goes_again_under_its_numbers() {
        let mut out = filled(5);
        send(&mut out, 4);
        assert_eq!(out.sent(Carrier::Main)[1], Sent { first: 0, next: 4 });
        let mut told = Told::new();
        let lanes = [heard(0), Heard { next: Some(2), refused: vec![(1, Receipt::Busy)] }];
        out.welcomed(Carrier::Main, &lanes, |m, (_, n), s| told.push((m, n, s))).unwrap();
        assert_eq!(told, [(0, 0, TAKEN), (1, 1, Settled::Receipt(Receipt::Busy))]);
        assert_eq!(send(&mut out, 9), [(2, 2), (3, 3), (4, 4)]);
    }

    #[test]
    fn whoever_has_forgotten_leaves_what_was_sent_in_doubt_and_gets_the_rest() {
        let mut out = filled(3);
        send(&mut out, 2);
        let mut told = Told::new();
        out.welcomed(Carrier::Main, &[heard(None), heard(None)], |m, (_, n), s| told.push((m, n, s)))
            .unwrap();
        assert_eq!(told, [(0, 0, Settled::InDoubt), (1, 1, Settled::InDoubt)]);
        assert_eq!(out.sent(Carrier::Main)[1], Sent { first: 2, next: 2 });
        assert_eq!(send(&mut out, 9), [(2, 2)]);
    }

    #[test]
    fn a_welcome_that_cannot_be_is_nonsense() {
        let mut out = filled(3);
        send(&mut out, 2);
        for lanes in [vec![], vec![heard(0)], vec![heard(0), heard(3)], vec![heard(1), heard(0)]] {
            assert_eq!(out.welcomed(Carrier::Main, &lanes, |_, _, _| panic!()), Err(Nonsense));
        }
    }

    #[test]
    fn a_resend_that_is_cut_as_well_is_still_in_doubt() {
        let mut out = filled(3);
        send(&mut out, 3);
        out.welcomed(Carrier::Main, &[heard(0), heard(1)], |_, _, _| ()).unwrap();
        assert_eq!(send(&mut out, 1), [(1, 1)]);
        let mut told = Vec::new();
        out.end(|_, m, s| told.push((m, s)));
        assert_eq!(told, [(1, Settled::InDoubt), (2, Settled::InDoubt)]);
        assert_eq!(out.held(), (0, 0));
    }

    #[test]
    fn urgent_ones_go_first_and_bulk_by_itself() {
        let mut out = filled(2);
        out.push(Lane::Bulk, 7, 500).unwrap();
        out.push(Lane::Urgent, 8, 1).unwrap();
        assert_eq!(send(&mut out, 9), [(0, 8), (0, 0), (1, 1)]);
        assert!(matches!(out.next(Carrier::Bulk), Some((Lane::Bulk, 0, 7))));
        assert!(out.next(Carrier::Bulk).is_none());
    }

    #[test]
    fn it_is_bounded_in_messages_and_in_bytes_but_takes_a_single_large_one() {
        let mut out = filled(10);
        assert_eq!(out.push(Lane::Urgent, 1, 0), Err((Full, 1)));
        let mut out = filled(0);
        out.push(Lane::Bulk, 1, 5000).unwrap();
        assert_eq!(out.push(Lane::Bulk, 2, 1), Err((Full, 2)));
    }

    #[test]
    fn what_was_never_sent_can_be_taken_back() {
        let mut out = filled(5);
        send(&mut out, 2);
        let mut told = Vec::new();
        out.take_back(|_, m| m % 2 == 1, |_, m| told.push(m));
        assert_eq!(told, [3], "1 was sent");
        assert_eq!(out.held(), (4, 40));
        assert_eq!(send(&mut out, 9), [(2, 2), (3, 4)]);
    }
}
