//! What TCP does where segments are lost: it sends them again, after a time that doubles with each failure, and keeps
//! the order, so that what is lost holds up what comes after it.
//!
//! A model of it, with what matters to those who wait: a piece of a stream is as many segments as it fills. They go
//! out in flights of a window. What a flight has lost goes out again at once if three others of it were acknowledged,
//! and else after the retransmission time-out, one segment at first. An acknowledgment covers what came before it, so
//! one that is lost costs nothing until a window is full. Nothing of this draws a chance on a link that loses no
//! segment in either direction. Left out: congestion, selective acknowledgments, and that a real stream is given up
//! after a quarter of an hour.

use std::{io, time::Duration};

use super::state::{Delivery, Pair, State};

/// What a segment carries over Ethernet.
const SEGMENT: usize = 1448;

/// Segments that go out before the first is acknowledged (RFC 6928).
const WINDOW: u32 = 10;

/// The retransmission time-out on a fast network: Linux has no shorter one.
const TIMEOUT: Duration = Duration::from_millis(200);

/// The same for a dial, before anything is known of the way (RFC 6298).
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);

/// It doubles up to this.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(120);

/// Segments that arrive after one that is lost tell the sender so (RFC 5681).
const DUPLICATES: u32 = 3;

/// So often the question of a dial is sent again, and so is its answer; then the dial fails, after about a minute.
const DIAL_RETRIES: u32 = 6;

/// One direction of a stream: what of it is under way.
pub(super) struct Flow {
    /// Pieces that fell due and were not taken in.
    due: u32,
    /// Segments of the first of them that have not arrived, once it is on its way.
    left: u32,
    /// Segments that may go out at once.
    window: u32,
    /// Segments that have arrived since the sender last heard so.
    unheard: u32,
    /// Time-outs in a row.
    tries: u32,
    /// It waits for a time-out, or for the next flight.
    waits: bool,
}

impl Default for Flow {
    fn default() -> Self {
        Self { due: 0, left: 0, window: WINDOW, unheard: 0, tries: 0, waits: false }
    }
}

/// What became of the segments that went out.
struct Flight {
    /// Segments of the piece that have not arrived.
    left: u32,
    /// The sender hears too little to send more before its time-out.
    stuck: bool,
}

fn timeout(first: Duration, tries: u32) -> Duration {
    first.saturating_mul(1 << tries.min(16)).min(LONGEST_TIMEOUT)
}

impl State {
    /// A piece of a stream falls due, or what was under way goes out again: takes in what arrives.
    pub(super) fn transmit(&mut self, stream: u64, side: usize, again: bool) {
        let Some((pair, flow)) = self.flow(stream, side) else { return };
        if !again {
            flow.due += 1;
            if flow.waits {
                return;
            }
        }
        flow.waits = false;
        // Where nothing of a piece is left, the end of the last one goes out again, which was taken in, unheard of.
        if again
            && flow.left == 0
            && self.fly(stream, side, pair, 1).is_none_or(|flight| flight.left > 0 || flight.stuck)
        {
            return self.time_out(stream, side, pair);
        }
        while let Some((_, flow)) = self.flow(stream, side)
            && flow.due > 0
        {
            let left = if flow.left > 0 {
                flow.left
            } else {
                self.next_piece(stream, side).div_ceil(SEGMENT).max(1) as u32
            };
            let Some(Flight { left, stuck }) = self.fly(stream, side, pair, left) else { return };
            let Some((_, flow)) = self.flow(stream, side) else { return };
            flow.left = left;
            if left == 0 {
                flow.due -= 1;
                self.arrive_item(stream, side);
            }
            if stuck {
                return self.time_out(stream, side, pair);
            }
            if left > 0 {
                return self.go_on(stream, side, pair, Duration::ZERO);
            }
        }
    }

    /// Segments of a piece of which so many are left go out, as many as may.
    fn fly(&mut self, stream: u64, side: usize, (from, to): Pair, left: u32) -> Option<Flight> {
        let (there, back) = (self.link((from, to)).segment_loss, self.link((to, from)).segment_loss);
        let (_, flow) = self.flow(stream, side)?;
        if there <= 0.0 && back <= 0.0 {
            (flow.window, flow.unheard, flow.tries) = (WINDOW, 0, 0);
            return Some(Flight { left: 0, stuck: false });
        }
        let flight = left.min(flow.window);
        let arrived = (0..flight).filter(|_| !self.chance(there)).count() as u32;
        let heard = (0..arrived).any(|_| !self.chance(back));
        let (_, flow) = self.flow(stream, side)?;
        if heard {
            (flow.unheard, flow.tries) = (0, 0);
            flow.window = if arrived == flight { flow.window * 2 } else { flow.window / 2 }.clamp(1, WINDOW);
        } else {
            flow.unheard += arrived;
        }
        let left = left - arrived;
        let stuck = match left {
            0 => flow.unheard >= flow.window,
            _ => !heard || arrived < flight && arrived < DUPLICATES,
        };
        Some(Flight { left, stuck })
    }

    fn time_out(&mut self, stream: u64, side: usize, pair: Pair) {
        let Some((_, flow)) = self.flow(stream, side) else { return };
        let time = timeout(TIMEOUT, flow.tries);
        flow.tries += 1;
        flow.window = 1;
        self.stats.timeouts += 1;
        self.go_on(stream, side, pair, time);
    }

    /// What is under way goes out again after a round trip and some time.
    fn go_on(&mut self, stream: u64, side: usize, (from, to): Pair, time: Duration) {
        let Some((_, flow)) = self.flow(stream, side) else { return };
        flow.waits = true;
        let back = self.latency((to, from));
        self.schedule((from, to), back + time, Delivery::Item { stream, side, again: true });
    }

    /// The question of a dial, or its answer: it arrives, or is lost and comes again later, or fails for good.
    pub(super) fn shake_hands(&mut self, pair: Pair, mut delivery: Delivery) -> Option<Delivery> {
        let loss = self.link(pair).segment_loss;
        let lost = self.chance(loss);
        let (Delivery::Syn(dial) | Delivery::SynAck(dial, _)) = &mut delivery else { return Some(delivery) };
        if !lost {
            dial.tries = 0;
            return Some(delivery);
        }
        self.stats.timeouts += 1;
        if dial.tries < DIAL_RETRIES {
            let time = timeout(DIAL_TIMEOUT, dial.tries);
            dial.tries += 1;
            self.schedule(pair, time, delivery);
        } else if let Delivery::Syn(dial) | Delivery::SynAck(dial, _) = delivery {
            self.answers.push((dial.answer, Err(io::ErrorKind::TimedOut.into())));
        }
        None
    }
}
