//! What one datagram may make a node send. A source can be forged, and many questions fit behind one label:
//! without an account per datagram a node would send a multiple of what it gets, to whomever it is told.
//!
//! | question | who asks | what is sent for it |
//! |---|---|---|
//! | ping | anybody | an ack without anything in it, as long as all answers together are no larger than the datagram |
//! | ping, the first of its datagram | a member at its address | the same, and with it the payload and news |
//! | indirect ping | anybody else | a nack at once, within the same account |
//! | indirect ping, the first of its datagram | a member at its address | a ping, a nack, an ack: the price of SWIM's helpers |
//! | further indirect pings | a member at its address | the same, as far as the account goes |
//!
//! Nobody is pinged for a stranger: that would be two packets or three for one, and the second one to somebody
//! else. Who asks is a member; one that this node has not heard of yet, or that does not send from where it can
//! be reached, asks other helpers and has the ping over a stream. The nack at once tells it that the way to its
//! helper is good, so that it does not doubt its own health.

use bytes::Bytes;

use crate::{
    gossip::Piggyback,
    member::NodeId,
    probe::Unheard,
    wire::{
        codec,
        frame::PART_OVERHEAD,
        message::{Ack, IndirectPing, Message, Nack, Ping},
    },
};

/// Room for a ping with two of the longest names.
const LONGEST: usize = 1024;

/// The account of one datagram.
#[derive(Clone, Copy, Debug)]
pub struct Allowance {
    /// Bytes that may still be sent.
    left: usize,
    /// Bytes around the one message of a packet.
    around: usize,
    /// Whether payload and news have gone to somebody already.
    filled: bool,
    /// Whether a member has had its one ping for free.
    relayed: bool,
}

impl Allowance {
    /// The account of a datagram of `len` bytes. `around` are the bytes around the body of its answers.
    pub fn new(len: usize, around: usize) -> Self {
        let around = around + 1 + PART_OVERHEAD;
        Self { left: len, around, filled: false, relayed: false }
    }

    /// An answer to a ping with that number. `member`: a member asks, from its address. It says whether payload
    /// and news may go along.
    ///
    /// # Errors
    /// [`Unheard::TooMuchAsked`].
    pub fn ping(&mut self, seq: u32, member: bool) -> Result<Piggyback, Unheard> {
        let first = member && !self.filled;
        self.filled |= member;
        // Under a longer label than that of its question it may be longer, while a cluster changes its label.
        let paid = self.pay(self.packet(&Message::Ack(Ack { seq, payload: Bytes::new() })));
        if !first {
            paid?;
        }
        Ok(if first { Piggyback::Yes } else { Piggyback::No })
    }

    /// What an indirect ping leads to. `own` is the node that gets it; `member`: a member asks, from its
    /// address.
    ///
    /// # Errors
    /// [`Unheard::TooMuchAsked`].
    pub fn indirect_ping(
        &mut self,
        request: &IndirectPing,
        own: &NodeId,
        member: bool,
    ) -> Result<(), Unheard> {
        let seq = request.seq;
        let nack = self.packet(&Message::Nack(Nack { seq }));
        if !member {
            return self.pay(nack);
        }
        if !std::mem::replace(&mut self.relayed, true) {
            return Ok(());
        }
        let ping = Ping { seq: u32::MAX, target: request.target.clone(), from: own.clone() };
        let ack = Message::Ack(Ack { seq, payload: Bytes::new() });
        self.pay(self.packet(&Message::Ping(ping)) + nack + self.packet(&ack))
    }

    /// Bytes of a packet with this message alone.
    fn packet(&self, message: &Message) -> usize {
        self.around + codec::encode(message, &mut [0; LONGEST]).unwrap_or(LONGEST)
    }

    fn pay(&mut self, bytes: usize) -> Result<(), Unheard> {
        self.left = self.left.checked_sub(bytes).ok_or(Unheard::TooMuchAsked)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::wire::frame::{Envelope, Packer};

    fn ping(seq: u32) -> Ping {
        Ping { seq, target: NodeId::new("n", 7), from: NodeId::new("x", 1) }
    }

    fn request(seq: u32) -> IndirectPing {
        let addr = SocketAddr::from(([10, 0, 0, 1], 7946));
        IndirectPing { seq, target: NodeId::new("m", 7), addr, from: NodeId::new("x", 1) }
    }

    fn len(envelope: &Envelope, messages: &[Message]) -> usize {
        let mut buf = vec![0; 65_000];
        let mut packer = Packer::new(envelope, &mut buf);
        assert!(messages.iter().all(|message| packer.push(message)));
        packer.finish().unwrap().len()
    }

    /// Every label, every width of a number, one question and as many as there can be.
    fn cases() -> impl Iterator<Item = (Envelope, u32, usize)> {
        let labels = [0, 1, 40, 255].map(|len| Envelope::new(&"l".repeat(len)).unwrap());
        labels.into_iter().flat_map(|envelope| {
            [1, 1000, u32::MAX].into_iter().flat_map(move |seq| {
                let envelope = envelope.clone();
                [1, 2, 3, 40, 255].map(move |count| (envelope.clone(), seq, count))
            })
        })
    }

    #[test]
    fn weak_point_34_all_answers_to_one_datagram_are_no_larger_than_it_is_whatever_it_holds() {
        for (envelope, seq, count) in cases() {
            let datagram = len(&envelope, &vec![Message::Ping(ping(seq)); count]);
            let mut allowance = Allowance::new(datagram, envelope.len());
            let answered = (0..count).filter(|_| allowance.ping(seq, false).is_ok()).count();
            let answer = len(&envelope, &[Message::Ack(Ack { seq, payload: Bytes::new() })]);
            assert!((1..=datagram / answer).contains(&answered), "{answered} of {count}");
            assert!(answered == count || (answered + 1) * answer > datagram, "it could have been one more");

            let datagram = len(&envelope, &vec![Message::IndirectPing(request(seq)); count]);
            let mut allowance = Allowance::new(datagram, envelope.len());
            let own = NodeId::new("n", 7);
            let asked = (0..count).filter(|_| allowance.indirect_ping(&request(seq), &own, false).is_ok());
            let answer = len(&envelope, &[Message::Nack(Nack { seq })]);
            assert!((1..=datagram / answer).contains(&asked.count()));
        }
    }

    #[test]
    fn payload_and_news_go_to_a_member_once_for_each_datagram() {
        let mut allowance = Allowance::new(1000, 2);
        let answers = [false, true, true, false].map(|member| allowance.ping(1, member));
        use Piggyback::{No, Yes};
        assert_eq!(answers, [Ok(No), Ok(Yes), Ok(No), Ok(No)]);
    }

    #[test]
    fn a_member_has_one_ping_for_others_whatever_its_size_and_more_only_as_far_as_they_are_paid_for() {
        let envelope = Envelope::new(&"l".repeat(255)).unwrap();
        let own = NodeId::new("n", 7);
        let datagram = len(&envelope, &vec![Message::IndirectPing(request(1)); 200]);
        let mut allowance = Allowance::new(datagram, envelope.len());
        let answers: Vec<_> = (0..200).map(|_| allowance.indirect_ping(&request(1), &own, true)).collect();
        let one = len(&envelope, &[Message::Ping(ping(u32::MAX))])
            + len(&envelope, &[Message::Nack(Nack { seq: 1 })])
            + len(&envelope, &[Message::Ack(Ack { seq: 1, payload: Bytes::new() })]);
        let carried_out = answers.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!(carried_out, 1 + datagram / one);
        assert_eq!(answers.last(), Some(&Err(Unheard::TooMuchAsked)));
    }
}
