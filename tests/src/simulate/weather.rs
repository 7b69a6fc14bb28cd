//! What the network is like: links and hosts, as the faults of the moment make them.

use std::time::Duration;

use actix_memberlist::network::memory::{Link, MemoryNetwork};

use super::schedule::{Event, Fault};
use crate::addr;

/// What the network was told last.
pub(super) struct Weather {
    /// From each host to each.
    links: Vec<Link>,
    stopped: Vec<bool>,
    /// What each event was doing: not on, or in which of its turns.
    turns: Vec<u8>,
}

/// A link without faults.
pub(super) fn calm() -> Link {
    Link { latency: Duration::from_micros(300)..Duration::from_millis(2), ..Link::default() }
}

impl Weather {
    pub(super) fn new(nodes: usize) -> Self {
        Self { links: vec![calm(); nodes * nodes], stopped: vec![false; nodes], turns: Vec::new() }
    }

    /// Sets the network as it is at that time.
    pub(super) fn set(&mut self, network: &MemoryNetwork, events: &[Event], now: Duration) {
        let turns: Vec<_> = events.iter().map(|event| turn(event, now)).collect();
        if turns == self.turns {
            return;
        }
        self.turns = turns;
        let nodes = self.stopped.len();
        let on: Vec<_> = events.iter().zip(&self.turns).filter(|(_, turn)| **turn > 0).collect();
        let ways: Vec<_> = on
            .iter()
            .map(|(event, turn)| Way {
                event,
                turn: **turn,
                members: (0..nodes).map(|i| event.who.contains(&i)).collect(),
            })
            .collect();
        for from in 0..nodes {
            for to in (0..nodes).filter(|to| *to != from) {
                let link = link(&ways, from, to);
                if self.links[from * nodes + to] != link {
                    network.set_link(addr(from), addr(to), link.clone());
                    self.links[from * nodes + to] = link;
                }
            }
            let of = |way: &&Way| way.members[from];
            let stopped = ways.iter().filter(of).any(|way| match way.event.fault {
                Fault::Pause => true,
                Fault::Slow(..) => way.turn == 1,
                _ => false,
            });
            if std::mem::replace(&mut self.stopped[from], stopped) != stopped {
                match stopped {
                    true => network.pause(addr(from)),
                    false => network.resume(addr(from)),
                }
            }
            let down = ways.iter().filter(of).any(|way| way.event.fault == Fault::NoNetwork);
            network.fail_sends(addr(from), down.then_some(std::io::ErrorKind::NetworkUnreachable));
        }
    }
}

/// An event that is on.
struct Way<'a> {
    event: &'a Event,
    turn: u8,
    /// Whether it befalls each host.
    members: Vec<bool>,
}

/// 0 while an event is not on; those that come and go have two turns.
fn turn(event: &Event, now: Duration) -> u8 {
    if now < event.at || event.end() <= now {
        return 0;
    }
    let since = now - event.at;
    let first = match event.fault {
        Fault::FlipFlop(time) => (since.as_millis() / time.as_millis().max(1)).is_multiple_of(2),
        Fault::Slow(stopped, running) => {
            since.as_millis() % (stopped + running).as_millis() < stopped.as_millis()
        }
        Fault::LeaveApart(cut) => since < cut,
        _ => true,
    };
    if first { 1 } else { 2 }
}

/// What is in the way from one host to another.
fn link(ways: &[Way<'_>], from: usize, to: usize) -> Link {
    let mut link = calm();
    let either = |a: f64, b: f64| 1.0 - (1.0 - a) * (1.0 - b);
    for Way { event, turn, members } in ways {
        let (sends, hears) = (members[from], members[to]);
        if !sends && !hears {
            continue;
        }
        match &event.fault {
            Fault::Loss(p) => link.loss = either(link.loss, *p),
            Fault::Lossy { to: inward, from: outward } => {
                link.loss = either(link.loss, if hears { *inward } else { 0.0 });
                link.loss = either(link.loss, if sends { *outward } else { 0.0 });
            }
            Fault::Bursts(bursts) => link.bursts = Some(*bursts),
            Fault::Duplicate(p) => link.duplicate = either(link.duplicate, *p),
            Fault::Reorder(p, by) => {
                link.reorder = either(link.reorder, *p);
                link.reorder_by = link.reorder_by.max(*by);
            }
            Fault::Latency(most) => link.latency.end += *most,
            Fault::Largest(most) => link.largest = link.largest.min(*most),
            Fault::Corrupt(p) => link.corrupt = either(link.corrupt, *p),
            Fault::Truncate(p) => link.truncate = either(link.truncate, *p),
            Fault::Replay(p) => link.replay = either(link.replay, *p),
            Fault::Resets(p) => link.reset = either(link.reset, *p),
            Fault::Partition => link.cut |= sends != hears,
            Fault::LeaveApart(_) => link.cut |= sends != hears && *turn == 1,
            Fault::Deaf => link.cut |= hears,
            Fault::Dumb => link.cut |= sends,
            Fault::FlipFlop(_) => link.cut |= hears && *turn == 1,
            Fault::HalfConnected => {
                let one = event.who[0];
                link.cut |= (from == one || to == one) && !(sends && hears);
            }
            Fault::AcceptOnly => {
                link.mute |= hears;
                link.loss = if hears { 1.0 } else { link.loss };
            }
            Fault::Refuse => {
                link.refuse |= hears;
                link.loss = if hears { 1.0 } else { link.loss };
            }
            Fault::Star => link.cut |= from != 0 && to != 0,
            _ => {}
        }
    }
    link
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_that_comes_and_goes_takes_turns_and_those_who_are_apart_meet_again() {
        let second = Duration::from_secs(1);
        let event = |fault| Event { at: second, lasts: 10 * second, fault, who: vec![0, 1] };
        let of = |fault, at: f64| turn(&event(fault), second.mul_f64(at));
        let flip = Fault::FlipFlop(2 * second);
        assert_eq!([0.5, 1.5, 3.5, 5.5, 11.5].map(|at| of(flip.clone(), at)), [0, 1, 2, 1, 0]);
        assert_eq!([0.5, 1.5, 5.5].map(|at| of(Fault::LeaveApart(3 * second), at)), [0, 1, 2]);
        let apart = event(Fault::LeaveApart(3 * second));
        let cut = |turn, from, to| {
            link(&[Way { event: &apart, turn, members: vec![true, true, false] }], from, to).cut
        };
        assert!(cut(1, 0, 2) && cut(1, 2, 1) && !cut(1, 0, 1) && !cut(2, 0, 2));
    }
}
