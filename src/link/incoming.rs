//! The receiver's end of a link.

use std::{cmp::Ordering, collections::VecDeque};

use super::{Heard, Hello, Lane, Place, Sent};
use crate::wire::message::Receipt;

/// Refusals that are kept for a sender that may not have heard of them. Beyond that the oldest are forgotten, and
/// what was sent up to there is in doubt if the connection breaks.
const MAX_REFUSED: usize = if cfg!(any(test, fuzzing)) { 8 } else { 8192 };

/// No link gets as far as this: what begins above it lies, and would leave no number for what comes next.
const LAST: u64 = 1 << 60;

/// What a number says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Received {
    /// It is the next one.
    New,
    /// It has been here before.
    Again,
}

/// The connection is not the last one of its link any more, or what comes over it is not what comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Overtaken {
    /// A later connection has taken its place.
    #[error("a later connection has taken its place")]
    Replaced,
    /// Messages are missing in front of this one.
    #[error("messages are missing in front of this one")]
    Gap,
}

/// What is to be said to the sender of a lane: everything below `next` has arrived, and was taken but for `refused`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ack {
    /// Which lane.
    pub lane: Lane,
    /// The number that comes next.
    pub next: u64,
    /// Refused since the last ack, in order.
    pub refused: Vec<(u64, Receipt)>,
}

#[derive(Debug, Default)]
struct Track {
    next: u64,
    /// Below this it has been acknowledged over the present connection.
    said: u64,
    refused: VecDeque<(u64, Receipt)>,
    /// Refusals below this were forgotten.
    forgotten: u64,
}

/// What has arrived from one node.
#[derive(Debug, Default)]
pub struct Incoming {
    /// The number of the link.
    link: u64,
    tracks: [Track; 3],
    /// The last connection of each carrier, once there was one.
    connections: [Option<u64>; 2],
}

impl Incoming {
    /// The link that this is about.
    pub fn link(&self) -> u64 {
        self.link
    }

    /// A connection begins. It takes the place of the one before it; the first one of a later link begins anew. Says
    /// where the lanes of its carrier stand.
    ///
    /// # Errors
    /// [`Overtaken::Replaced`] if a later one is there already; [`Overtaken::Gap`] if the sender contradicts itself.
    pub fn begin(&mut self, hello: &Hello) -> Result<Vec<Heard>, Overtaken> {
        let known = match hello.link.cmp(&self.link) {
            Ordering::Less => return Err(Overtaken::Replaced),
            Ordering::Equal => self.connections[hello.carrier as usize],
            Ordering::Greater => None,
        };
        if known.is_some_and(|known| known >= hello.connection) {
            return Err(Overtaken::Replaced);
        }
        let lanes = hello.carrier.lanes();
        let fits = |(lane, sent): (&Lane, &Sent)| {
            sent.first <= sent.next
                && sent.next <= LAST
                && (known.is_none() || self.tracks[*lane as usize].next <= sent.next)
        };
        if hello.answers > LAST
            || hello.lanes.len() != lanes.len()
            || !lanes.iter().zip(&hello.lanes).all(fits)
        {
            return Err(Overtaken::Gap);
        }
        // One that came too late, to an end that had forgotten all before it, says nothing of what that was.
        let remembers = known.is_some_and(|known| known >= hello.welcomed);
        // A hello that is refused changes nothing.
        if hello.link > self.link {
            *self = Self { link: hello.link, ..Self::default() };
        }
        self.connections[hello.carrier as usize] = Some(hello.connection);
        let heard = |(lane, sent): (&Lane, &Sent)| {
            let track = &mut self.tracks[*lane as usize];
            let knows = sent.first == sent.next || remembers && track.forgotten <= sent.first;
            if !knows {
                // It stays unknown: the sender may not hear of that, and ask again.
                track.forgotten = sent.next;
                track.refused.clear();
            }
            // What is above that was never sent, and what the sender has given up does not come any more.
            track.next = if knows { track.next.max(sent.first) } else { sent.next };
            track.said = track.next;
            while track.refused.front().is_some_and(|(number, _)| *number < sent.first) {
                track.refused.pop_front();
            }
            Heard { next: knows.then_some(track.next), refused: track.refused.iter().copied().collect() }
        };
        Ok(lanes.iter().zip(&hello.lanes).map(heard).collect())
    }

    /// A message has arrived over that connection.
    ///
    /// # Errors
    /// [`Overtaken`]: it must not be handled, and the connection has to end.
    pub fn receive(&self, at: Place, lane: Lane, number: u64) -> Result<Received, Overtaken> {
        if !self.is_current(at) {
            return Err(Overtaken::Replaced);
        }
        let next = self.tracks[lane as usize].next;
        match number {
            _ if lane.carrier() != at.carrier || number > next => Err(Overtaken::Gap),
            _ if number == next => Ok(Received::New),
            _ => Ok(Received::Again),
        }
    }

    /// Whether no later connection has taken its place.
    pub fn is_current(&self, at: Place) -> bool {
        self.link == at.link && self.connections[at.carrier as usize] == Some(at.connection)
    }

    /// What became of the message that came next.
    pub fn settle(&mut self, lane: Lane, receipt: Receipt) {
        let track = &mut self.tracks[lane as usize];
        if receipt != Receipt::Taken {
            if track.refused.len() == MAX_REFUSED {
                track.forgotten = track.refused.pop_front().map_or(0, |(number, _)| number + 1);
            }
            track.refused.push_back((track.next, receipt));
        }
        track.next += 1;
    }

    /// Whether so many refusals are to be told first that one more might be forgotten unsaid.
    pub fn is_sated(&self, lane: Lane) -> bool {
        let track = &self.tracks[lane as usize];
        track.refused.len() == MAX_REFUSED && track.refused.front().is_some_and(|(n, _)| *n >= track.said)
    }

    /// What the sender has not been told over the present connection.
    pub fn ack(&mut self, lane: Lane) -> Option<Ack> {
        let track = &mut self.tracks[lane as usize];
        if track.said == track.next {
            return None;
        }
        let from = track.refused.partition_point(|(number, _)| *number < track.said);
        let refused = track.refused.range(from..).copied().collect();
        track.said = track.next;
        Some(Ack { lane, next: track.next, refused })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::Carrier, *};
    use crate::member::NodeId;

    fn hello(connection: u64, first: u64, next: u64) -> Hello {
        let (from, to) = (NodeId::new("a", 1), NodeId::new("b", 2));
        let lanes = vec![Sent { first: 0, next: 0 }, Sent { first, next }];
        let (carrier, welcomed) = (Carrier::Main, connection - 1);
        Hello { from, to, link: 1, carrier, connection, welcomed, lanes, answers: 0, longest_answer: 0 }
    }

    fn receive(incoming: &mut Incoming, connection: u64, number: u64) -> Result<Received, Overtaken> {
        let at = Place { link: 1, carrier: Carrier::Main, connection };
        let received = incoming.receive(at, Lane::Ordered, number)?;
        if received == Received::New {
            incoming.settle(Lane::Ordered, if number == 2 { Receipt::Busy } else { Receipt::Taken });
        }
        Ok(received)
    }

    #[test]
    fn each_message_is_taken_once_and_none_is_skipped() {
        let mut incoming = Incoming::default();
        assert_eq!(receive(&mut incoming, 1, 0), Err(Overtaken::Replaced), "before any hello");
        let welcome = incoming.begin(&hello(1, 0, 0)).unwrap();
        assert_eq!(welcome[1], Heard { next: Some(0), refused: vec![] });
        let all = [0, 1, 1, 0, 2, 4].map(|number| receive(&mut incoming, 1, number));
        let (new, again) = (Ok(Received::New), Ok(Received::Again));
        assert_eq!(all, [new, new, again, again, new, Err(Overtaken::Gap)]);
        let ack = Ack { lane: Lane::Ordered, next: 3, refused: vec![(2, Receipt::Busy)] };
        assert_eq!(incoming.ack(Lane::Ordered), Some(ack));
        assert_eq!(incoming.ack(Lane::Ordered), None);
        let at = hello(1, 0, 0).place();
        assert_eq!(incoming.receive(at, Lane::Bulk, 0), Err(Overtaken::Gap), "not that way");
    }

    #[test]
    fn a_later_connection_takes_over_and_says_what_the_sender_may_not_have_heard() {
        let mut incoming = Incoming::default();
        incoming.begin(&hello(1, 0, 0)).unwrap();
        for number in 0..4 {
            receive(&mut incoming, 1, number).unwrap();
        }
        incoming.ack(Lane::Ordered);
        let welcome = incoming.begin(&hello(2, 1, 6)).unwrap();
        assert_eq!(welcome[1], Heard { next: Some(4), refused: vec![(2, Receipt::Busy)] });
        assert_eq!(receive(&mut incoming, 1, 4), Err(Overtaken::Replaced), "what is left of the old one");
        assert_eq!(receive(&mut incoming, 2, 4), Ok(Received::New));
        assert_eq!(incoming.begin(&hello(2, 1, 6)), Err(Overtaken::Replaced));
        assert_eq!(incoming.begin(&hello(1, 1, 6)), Err(Overtaken::Replaced));
        // The refusal has been heard of.
        assert_eq!(incoming.begin(&hello(3, 5, 6)).unwrap()[1], Heard { next: Some(5), refused: vec![] });
    }

    #[test]
    fn who_knows_nothing_says_so_and_goes_on_behind_what_is_in_doubt() {
        let mut incoming = Incoming::default();
        let welcome = incoming.begin(&hello(7, 3, 5)).unwrap();
        assert_eq!(welcome[1].next, None);
        assert_eq!(receive(&mut incoming, 7, 4), Ok(Received::Again), "it must not be handled");
        assert_eq!(receive(&mut incoming, 7, 5), Ok(Received::New));
        // The sender has not heard that, and still asks for the first two.
        assert_eq!(incoming.begin(&hello(8, 3, 6)).unwrap()[1].next, None);
    }

    #[test]
    fn a_later_link_begins_anew_and_an_earlier_one_has_no_place_any_more() {
        let mut incoming = Incoming::default();
        incoming.begin(&hello(1, 0, 0)).unwrap();
        receive(&mut incoming, 1, 0).unwrap();
        // It counts its connections anew as well.
        let later = Hello { link: 2, ..hello(1, 0, 0) };
        assert_eq!(incoming.begin(&later).unwrap()[1], Heard { next: Some(0), refused: vec![] });
        assert_eq!(receive(&mut incoming, 1, 0), Err(Overtaken::Replaced));
        assert_eq!(incoming.receive(later.place(), Lane::Ordered, 0), Ok(Received::New));
        assert_eq!(incoming.begin(&hello(9, 0, 0)), Err(Overtaken::Replaced));
    }

    #[test]
    fn what_the_sender_has_given_up_is_not_waited_for() {
        let mut incoming = Incoming::default();
        incoming.begin(&hello(1, 0, 0)).unwrap();
        receive(&mut incoming, 1, 0).unwrap();
        let welcome = incoming.begin(&hello(2, 4, 4)).unwrap();
        assert_eq!(welcome[1].next, Some(4));
        assert_eq!(receive(&mut incoming, 2, 4), Ok(Received::New));
    }

    #[test]
    fn a_sender_that_contradicts_itself_is_not_let_in() {
        let mut incoming = Incoming::default();
        assert_eq!(incoming.begin(&hello(1, 3, 2)), Err(Overtaken::Gap));
        incoming.begin(&hello(1, 0, 0)).unwrap();
        for number in 0..4 {
            receive(&mut incoming, 1, number).unwrap();
        }
        assert_eq!(incoming.begin(&hello(2, 1, 3)), Err(Overtaken::Gap), "it has sent more than that");
        assert_eq!(incoming.begin(&Hello { lanes: vec![], ..hello(2, 1, 5) }), Err(Overtaken::Gap));
    }

    #[test]
    fn refusals_that_nobody_asks_for_are_forgotten_some_time() {
        let mut incoming = Incoming::default();
        incoming.begin(&hello(1, 0, 0)).unwrap();
        for _ in 0..100_000 {
            incoming.settle(Lane::Ordered, Receipt::Busy);
            incoming.ack(Lane::Ordered);
        }
        assert_eq!(incoming.tracks[1].refused.len(), MAX_REFUSED);
        let next =
            |incoming: &mut Incoming, n, first| incoming.begin(&hello(n, first, 100_000)).unwrap()[1].next;
        assert_eq!(next(&mut incoming, 2, 100_000 - MAX_REFUSED as u64), Some(100_000));
        assert_eq!(next(&mut incoming, 3, 10), None, "nobody can say what became of the first");
    }
}
