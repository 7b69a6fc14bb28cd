//! Both ends of a link, while connections lose their tail, are overtaken and go on all the same, frames come twice or
//! not at all, and one end forgets; and each end alone against somebody who says whatever he likes.

#![no_main]

use std::collections::{BTreeMap, VecDeque};

use libfuzzer_sys::{
    arbitrary::{self, Arbitrary, Unstructured},
    fuzz_target,
};
use memberlist_protocol::{
    link::{
        Ack, Carrier, Heard, Hello, Incoming, Lane, Limits, Outgoing, Overtaken, Place, Received, Sent,
        Settled, Welcome,
    },
    member::NodeId,
    wire::{
        codec,
        link::{self as frames, Frame, What},
        message::Receipt,
        state::Refusal,
    },
};

/// Refusals that are kept at most; above that, one more may not be settled before some are told.
const MAX_REFUSED: usize = 8;
const MAX_BYTES: usize = 1000;

#[derive(Arbitrary, Debug)]
enum Step {
    Push { lane: u8, bytes: u8 },
    Dial(bool),
    Leave { bulk: bool, arrive: u8 },
    GiveUp(bool),
    End,
    Forget,
    TakeBack(u8),
    Send { at: u8, count: u8, astray: Astray },
    ArriveThere { at: u8, count: u8, receipt: u8 },
    Acknowledge(u8),
    ArriveBack { at: u8, count: u8 },
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Astray {
    No,
    Lost,
    Twice,
}

/// Numbers near those that are due, or any.
#[derive(Arbitrary, Debug, Clone, Copy)]
enum Number {
    Near(i8),
    Any(u64),
}

impl Number {
    fn near(self, due: u64) -> u64 {
        match self {
            Self::Near(n) => due.saturating_add_signed((n % 4).into()),
            Self::Any(n) => n,
        }
    }
}

fn carrier(bulk: bool) -> Carrier {
    if bulk { Carrier::Bulk } else { Carrier::Main }
}

fn lane(n: u8) -> Lane {
    Lane::ALL[usize::from(n % 3)]
}

fn receipt(n: u8) -> Receipt {
    // Half of them are taken.
    [Receipt::Taken, Receipt::Busy, Receipt::Taken, Receipt::NoHandler, Receipt::Taken, Receipt::Undecodable]
        [usize::from(n % 6)]
}

/// A connection: what is on its way in each direction, as bytes.
struct Connection {
    place: Place,
    there: VecDeque<Vec<u8>>,
    back: VecDeque<Vec<u8>>,
    begun: bool,
    welcomed: bool,
    /// The sender has given it up; what it has sent may still arrive.
    left: bool,
    /// The receiver has given it up.
    shut: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Told(Settled),
    /// The link has ended.
    Ended(Settled),
}

struct Pair {
    out: Outgoing<u32>,
    max: usize,
    link: u64,
    connection: u64,
    incoming: Incoming,
    connections: Vec<Connection>,
    used: [Option<u64>; 2],
    welcomed: [u64; 2],
    /// By message: the link, the lane and the bytes; what was told, and how the receiver took it.
    sent: Vec<(u64, Lane, usize)>,
    told: BTreeMap<u32, Fate>,
    taken: BTreeMap<u32, Receipt>,
    /// The last one that was taken of each link's lane.
    last: BTreeMap<(u64, Lane), u32>,
}

fn tell(told: &mut BTreeMap<u32, Fate>, id: u32, fate: Fate) {
    let before = told.insert(id, fate);
    assert_eq!(before, None, "{id} was told of, and is told {fate:?}");
}

impl Pair {
    fn new(max: usize) -> Self {
        Self {
            out: Outgoing::new(max, MAX_BYTES),
            max,
            link: 1,
            connection: 0,
            incoming: Incoming::default(),
            connections: Vec::new(),
            used: [None; 2],
            welcomed: [0; 2],
            sent: Vec::new(),
            told: BTreeMap::new(),
            taken: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        let some = |at: u8| (!self.connections.is_empty()).then(|| usize::from(at) % self.connections.len());
        match *step {
            Step::Push { lane: n, bytes } => self.push(lane(n), usize::from(bytes) * 5),
            Step::Dial(bulk) => self.dial(carrier(bulk)),
            Step::Leave { bulk, arrive } => self.leave(carrier(bulk), arrive.into()),
            Step::GiveUp(bulk) => self.give_up(carrier(bulk)),
            Step::End => self.end(),
            Step::Forget => self.incoming = Incoming::default(),
            Step::TakeBack(n) => {
                let told = &mut self.told;
                self.out.take_back(
                    |_, id| id % 4 == u32::from(n % 4),
                    |_, id| {
                        tell(told, id, Fate::Told(Settled::Unsent));
                    },
                );
            }
            Step::Send { at, count, astray } => {
                if let Some(at) = some(at) {
                    (0..=count % 8).for_each(|_| self.send(at, astray));
                }
            }
            Step::ArriveThere { at, count, receipt: n } => {
                if let Some(at) = some(at) {
                    (0..=count % 16).for_each(|_| self.arrive_there(at, receipt(n)));
                }
            }
            Step::Acknowledge(at) => {
                if let Some(at) = some(at) {
                    self.acknowledge(at);
                }
            }
            Step::ArriveBack { at, count } => {
                if let Some(at) = some(at) {
                    (0..=count % 8).for_each(|_| self.arrive_back(at));
                }
            }
        }
        self.connections.retain(|c| !(c.left && c.there.is_empty()));
        self.check();
    }

    /// Its bounds, and a count of what it holds.
    fn check(&self) {
        let open = (0..self.sent.len()).filter(|id| !self.told.contains_key(&(*id as u32)));
        let (count, bytes) = open.fold((0, 0), |(n, sum), id| (n + 1, sum + self.sent[id].2));
        assert_eq!(self.out.held(), (count, bytes), "each that has no outcome is held");
        assert!(count <= self.max && (bytes <= MAX_BYTES || count == 1));
        assert_eq!(Carrier::ALL.iter().all(|carrier| self.out.is_empty(*carrier)), count == 0);
    }

    fn push(&mut self, lane: Lane, bytes: usize) {
        let id = self.sent.len() as u32;
        let room = self.out.has_room(bytes);
        let pushed = self.out.push(lane, id, bytes);
        assert_eq!(pushed.is_ok(), room);
        if room {
            self.sent.push((self.link, lane, bytes));
        }
    }

    fn dial(&mut self, carrier: Carrier) {
        self.leave(carrier, usize::MAX);
        self.connection += 1;
        let hello = Hello {
            from: NodeId::new("a", 1),
            to: NodeId::new("b", 2),
            carrier,
            link: self.link,
            connection: self.connection,
            welcomed: self.welcomed[carrier as usize],
            lanes: self.out.sent(carrier),
            answers: 0,
            longest_answer: 0,
        };
        self.connections.push(Connection {
            place: hello.place(),
            there: VecDeque::from([codec::encode_hello(&hello)]),
            back: VecDeque::new(),
            begun: false,
            welcomed: false,
            left: false,
            shut: false,
        });
        self.used[carrier as usize] = Some(self.connection);
    }

    /// The sender's side of a connection ends. Of what is on its way a part still arrives, or all of it.
    fn leave(&mut self, carrier: Carrier, arrive: usize) {
        let Some(used) = self.used[carrier as usize].take() else { return };
        let at = Place { link: self.link, carrier, connection: used };
        if let Some(connection) = self.connections.iter_mut().find(|c| c.place == at) {
            connection.left = true;
            connection.back.clear();
            connection.there.truncate(arrive);
        }
    }

    fn send(&mut self, at: usize, astray: Astray) {
        let connection = &mut self.connections[at];
        if !connection.welcomed || connection.left || connection.place.link != self.link {
            return;
        }
        let carrier = connection.place.carrier;
        let has_next = self.out.has_next(carrier);
        let next = self.out.next(carrier);
        assert_eq!(next.is_some(), has_next);
        let Some((lane, number, id)) = next else { return };
        assert_eq!(lane.carrier(), carrier);
        let payload = id.to_le_bytes();
        assert!(self.out.was_sent(lane, number) && !self.out.was_sent(lane, u64::MAX));
        let mut bytes = Vec::new();
        frames::begin(
            &Frame::Message { lane, number, what: What::Tell("k"), payload: &payload },
            4,
            &mut bytes,
        );
        bytes.extend_from_slice(&payload);
        let copies = match astray {
            Astray::No => 1,
            Astray::Lost => 0,
            Astray::Twice => 2,
        };
        connection.there.extend(std::iter::repeat_n(bytes.split_off(frames::LENGTH), copies));
    }

    fn arrive_there(&mut self, at: usize, receipt: Receipt) {
        let connection = &mut self.connections[at];
        let sated = connection.place.carrier.lanes().iter().any(|lane| self.incoming.is_sated(*lane));
        if connection.begun && !connection.shut && sated {
            return;
        }
        let Some(bytes) = connection.there.pop_front().filter(|_| !connection.shut) else { return };
        if !connection.begun {
            let hello = codec::decode_hello(&bytes).expect("a hello");
            let answer = self.incoming.begin(&hello);
            (connection.begun, connection.shut) = (true, answer.is_err());
            let limits = Limits { ordered: 1, message: 1 };
            let answer = answer.map(|lanes| Welcome { lanes, limits }).map_err(|_| Refusal::Overtaken);
            connection.back.push_back(codec::encode_welcome(&answer));
            return;
        }
        let Ok(Frame::Message { lane, number, payload, .. }) = frames::read(&bytes) else {
            panic!("no message")
        };
        let id = u32::from_le_bytes(payload.try_into().expect("four bytes"));
        match self.incoming.receive(connection.place, lane, number) {
            Err(_) => connection.shut = true,
            Ok(Received::Again) => {
                assert!(self.taken.contains_key(&id) || self.sent[id as usize].0 == self.link)
            }
            Ok(Received::New) => {
                self.incoming.settle(lane, receipt);
                self.take(id, receipt);
            }
        }
    }

    fn take(&mut self, id: u32, receipt: Receipt) {
        let before = self.taken.insert(id, receipt);
        assert_eq!(before, None, "{id} has come twice");
        if let Some(Fate::Told(told)) = self.told.get(&id) {
            assert_eq!(*told, Settled::InDoubt, "{id} comes after that");
        }
        let (link, lane, _) = self.sent[id as usize];
        let last = self.last.insert((link, lane), id);
        assert!(last.is_none_or(|before| before < id), "{id} comes after {last:?}");
    }

    fn acknowledge(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        if !self.incoming.is_current(connection.place) {
            connection.shut |= connection.begun;
        } else if !connection.shut {
            for lane in connection.place.carrier.lanes() {
                if let Some(Ack { lane, next, refused }) = self.incoming.ack(*lane) {
                    assert!(refused.len() <= MAX_REFUSED && refused.is_sorted_by_key(|(number, _)| *number));
                    let (mut list, mut bytes) = (Vec::new(), Vec::new());
                    frames::append_refused(&refused, &mut list);
                    frames::begin(&Frame::Ack { lane, next, refused: &list }, 0, &mut bytes);
                    connection.back.push_back(bytes.split_off(frames::LENGTH));
                }
            }
        }
    }

    fn arrive_back(&mut self, at: usize) {
        let connection = &mut self.connections[at];
        if connection.left || connection.place.link != self.link {
            return;
        }
        let Some(bytes) = connection.back.pop_front() else { return };
        let (carrier, told) = (connection.place.carrier, &mut self.told);
        let tell = |id, _, settled| tell(told, id, Fate::Told(settled));
        let ended = if !connection.welcomed {
            match codec::decode_welcome(&bytes).expect("a welcome") {
                Ok(welcome) => {
                    connection.welcomed = true;
                    self.welcomed[carrier as usize] = connection.place.connection;
                    self.out.welcomed(carrier, &welcome.lanes, tell).is_err()
                }
                Err(_) => true,
            }
        } else {
            let Ok(Frame::Ack { lane, next, refused }) = frames::read(&bytes) else { panic!("no ack") };
            let refused = frames::refused(refused).expect("a list");
            self.out.acked(lane, next, &refused, tell).is_err()
        };
        if ended {
            self.leave(carrier, usize::MAX);
        }
    }

    /// The sender gives up what it has for a carrier.
    fn give_up(&mut self, carrier: Carrier) {
        self.leave(carrier, usize::MAX);
        let told = &mut self.told;
        self.out.give_up(carrier, |id, _, settled| tell(told, id, Fate::Told(settled)));
        self.out.take_back(
            |lane, _| lane.carrier() == carrier,
            |_, id| tell(told, id, Fate::Told(Settled::Unsent)),
        );
        assert!(self.out.is_empty(carrier));
    }

    /// The sender ends the link, and has another one.
    fn end(&mut self) {
        Carrier::ALL.into_iter().for_each(|carrier| self.leave(carrier, usize::MAX));
        let told = &mut self.told;
        self.out.end(|_, id, settled| tell(told, id, Fate::Ended(settled)));
        assert_eq!(self.out.held(), (0, 0));
        self.out = Outgoing::new(self.max, MAX_BYTES);
        (self.link, self.connection, self.welcomed) = (self.link + 1, 0, [0; 2]);
    }

    /// Nothing goes wrong any more: each message is settled soon, and what was told is true.
    fn finish(&mut self) {
        Carrier::ALL.into_iter().for_each(|carrier| self.leave(carrier, usize::MAX));
        for _ in 0..3 {
            for carrier in Carrier::ALL {
                if self.used[carrier as usize].is_none() {
                    self.dial(carrier);
                }
            }
            for _ in 0..4 * self.max + self.connections.iter().map(|c| c.there.len()).sum::<usize>() {
                for at in 0..self.connections.len() {
                    self.send(at, Astray::No);
                    self.arrive_there(at, Receipt::Taken);
                    self.acknowledge(at);
                    self.arrive_back(at);
                }
                self.connections.retain(|c| !(c.left && c.there.is_empty()));
            }
            // What the receiver has shut, the sender sees end.
            for carrier in Carrier::ALL {
                let at = self.used[carrier as usize].map(|connection| Place {
                    link: self.link,
                    carrier,
                    connection,
                });
                if self.connections.iter().any(|c| c.shut && Some(c.place) == at) {
                    self.leave(carrier, usize::MAX);
                }
            }
        }
        assert_eq!(self.out.held(), (0, 0), "they are held in a calm");
        for id in 0..self.sent.len() as u32 {
            let taken = self.taken.get(&id);
            let fits = match self.told.get(&id) {
                None => false,
                Some(Fate::Told(Settled::Receipt(receipt))) => taken == Some(receipt),
                Some(Fate::Told(Settled::Unsent) | Fate::Ended(Settled::Unsent)) => taken.is_none(),
                Some(_) => true,
            };
            assert!(fits, "{id}: told {:?}, taken {taken:?}", self.told.get(&id));
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Greeting {
    bulk: bool,
    link: u8,
    connection: u8,
    welcomed: u8,
    lanes: Vec<(Number, Number)>,
    answers: Option<u64>,
}

/// A receiver, and somebody who dials and says whatever he likes.
#[derive(Arbitrary, Debug)]
enum Lie {
    Hello(Greeting),
    Message { link: u8, bulk: bool, connection: u8, lane: u8, number: Number, receipt: u8 },
    Many { lane: u8, count: u8, receipt: u8 },
    Ack(u8),
}

/// Where each lane stands, as the receiver has last said it: no number above is new, and below none is.
fn deceive(lies: Vec<Lie>) {
    let mut incoming = Incoming::default();
    let mut next: BTreeMap<Lane, u64> = BTreeMap::new();
    let mut current: [Option<Place>; 2] = [None; 2];
    for lie in lies {
        match lie {
            Lie::Hello(greeting) => {
                let carrier = carrier(greeting.bulk);
                let due =
                    |at: usize| carrier.lanes().get(at).and_then(|lane| next.get(lane)).copied().unwrap_or(0);
                let lanes = greeting.lanes.iter().take(3).enumerate();
                let lanes = lanes
                    .map(|(at, (first, sent))| Sent { first: first.near(due(at)), next: sent.near(due(at)) });
                let hello = Hello {
                    from: NodeId::new("a", 1),
                    to: NodeId::new("b", 2),
                    carrier,
                    link: greeting.link.into(),
                    connection: greeting.connection.into(),
                    welcomed: greeting.welcomed.into(),
                    lanes: lanes.collect(),
                    answers: greeting.answers.unwrap_or(0),
                    longest_answer: 0,
                };
                let (before, link) = (next.clone(), incoming.link());
                let was = current[carrier as usize];
                let Ok(heard) = incoming.begin(&hello) else {
                    assert_eq!(incoming.link(), link, "a hello that is refused changes nothing");
                    assert!(was.is_none_or(|was| incoming.is_current(was) || was.link != link));
                    continue;
                };
                assert_eq!(heard.len(), carrier.lanes().len());
                assert!(incoming.is_current(hello.place()) && hello.link >= link);
                if hello.link > link {
                    next.clear();
                    current = [None; 2];
                }
                current[carrier as usize] = Some(hello.place());
                for ((lane, heard), sent) in carrier.lanes().iter().zip(&heard).zip(&hello.lanes) {
                    let stands = heard.next.unwrap_or(sent.next);
                    assert!((sent.first..=sent.next).contains(&stands) && stands <= 1 << 60);
                    assert!(heard.refused.len() <= MAX_REFUSED);
                    assert!(heard.refused.iter().all(|(number, _)| (sent.first..stands).contains(number)));
                    let known = was.is_some() && hello.link == link;
                    assert!(
                        !known || stands >= before.get(lane).copied().unwrap_or(0),
                        "what came may come again"
                    );
                    next.insert(*lane, stands);
                }
            }
            Lie::Message { link, bulk, connection, lane: n, number, receipt: how } => {
                let (lane, carrier) = (lane(n), carrier(bulk));
                let due = next.get(&lane).copied().unwrap_or(0);
                let (place, number) =
                    (Place { link: link.into(), carrier, connection: connection.into() }, number.near(due));
                let received = incoming.receive(place, lane, number);
                let expected = match current[carrier as usize] {
                    Some(at) if at != place => Err(Overtaken::Replaced),
                    None => Err(Overtaken::Replaced),
                    _ if lane.carrier() != carrier || number > due => Err(Overtaken::Gap),
                    _ if number == due => Ok(Received::New),
                    _ => Ok(Received::Again),
                };
                assert_eq!(received, expected);
                if received == Ok(Received::New) {
                    incoming.settle(lane, receipt(how));
                    next.insert(lane, due + 1);
                }
            }
            Lie::Many { lane: n, count, receipt: how } => {
                let Some(at) = current[lane(n).carrier() as usize] else { continue };
                for _ in 0..count % 32 {
                    let due = next.get(&lane(n)).copied().unwrap_or(0);
                    assert_eq!(incoming.receive(at, lane(n), due), Ok(Received::New));
                    incoming.settle(lane(n), receipt(how));
                    next.insert(lane(n), due + 1);
                }
            }
            Lie::Ack(n) => {
                if current[lane(n).carrier() as usize].is_none() {
                    continue;
                }
                if let Some(ack) = incoming.ack(lane(n)) {
                    assert_eq!(Some(&ack.next), next.get(&lane(n)));
                    assert!(ack.refused.len() <= MAX_REFUSED);
                    assert!(ack.refused.iter().all(|(number, _)| *number < ack.next));
                }
                assert_eq!(incoming.ack(lane(n)), None);
                assert!(!incoming.is_sated(lane(n)), "all has been told");
            }
        }
    }
}

/// Numbers, and what became of them.
type Refused = Vec<(Number, u8)>;

/// A sender, and somebody who answers whatever he likes.
#[derive(Arbitrary, Debug)]
enum Answer {
    Push { lane: u8, bytes: u8 },
    Next { bulk: bool, count: u8 },
    Ack { lane: u8, next: Number, refused: Refused },
    Welcome { bulk: bool, lanes: Vec<(Option<Number>, Refused)> },
    BeginAt { lane: u8, number: u32 },
    GiveUp(bool),
    TakeBack(u8),
}

fn list(refused: &[(Number, u8)], due: u64) -> Vec<(u64, Receipt)> {
    refused.iter().map(|(number, how)| (number.near(due), receipt(*how))).collect()
}

fn answer(max: usize, answers: Vec<Answer>) {
    let mut out = Outgoing::new(max, MAX_BYTES);
    let (mut sizes, mut told) = (Vec::<usize>::new(), BTreeMap::new());
    for answer in answers {
        let tell = |id, (_, _): (Lane, u64), settled| tell(&mut told, id, Fate::Told(settled));
        let first = |out: &Outgoing<u32>, lane: Lane| {
            let at = lane.carrier().lanes().iter().position(|of| *of == lane).expect("one of its own");
            out.sent(lane.carrier())[at].first
        };
        match answer {
            Answer::Push { lane: n, bytes } => {
                let bytes = usize::from(bytes) * 5;
                if out.push(lane(n), sizes.len() as u32, bytes).is_ok() {
                    sizes.push(bytes);
                }
            }
            Answer::Next { bulk, count } => {
                (0..=count % 8).for_each(|_| _ = out.next(carrier(bulk)));
            }
            Answer::Ack { lane: n, next, refused } => {
                let (due, held) = (first(&out, lane(n)), out.held());
                let next = next.near(due);
                if out.acked(lane(n), next, &list(&refused, due), tell).is_err() {
                    assert_eq!((out.held(), first(&out, lane(n))), (held, due), "nonsense settles nothing");
                } else {
                    assert_eq!(first(&out, lane(n)), next);
                }
            }
            Answer::Welcome { bulk, lanes } => {
                let said = out.sent(carrier(bulk));
                let due = |at: usize| said.get(at).map_or(0, |sent| sent.first);
                let lanes = lanes.iter().take(3).enumerate().map(|(at, (next, refused))| Heard {
                    next: next.map(|next| next.near(due(at))),
                    refused: list(refused, due(at)),
                });
                let (lanes, held): (Vec<Heard>, _) = (lanes.collect(), out.held());
                match out.welcomed(carrier(bulk), &lanes, tell) {
                    Err(_) => assert_eq!((out.held(), out.sent(carrier(bulk))), (held, said)),
                    Ok(()) => {
                        for (now, (heard, sent)) in
                            out.sent(carrier(bulk)).iter().zip(lanes.iter().zip(&said))
                        {
                            assert_eq!((now.first, now.next), (heard.next.unwrap_or(sent.next), sent.next));
                        }
                    }
                }
            }
            Answer::BeginAt { lane: n, number } => out.begin_at(lane(n), number.into()),
            Answer::GiveUp(bulk) => out.give_up(carrier(bulk), tell),
            Answer::TakeBack(n) => {
                let told = &mut told;
                out.take_back(
                    |_, id| id % 4 == u32::from(n % 4),
                    |_, id| self::tell(told, id, Fate::Told(Settled::Unsent)),
                );
            }
        }
        let open = (0..sizes.len()).filter(|id| !told.contains_key(&(*id as u32)));
        let held = open.fold((0, 0), |(n, sum), id| (n + 1, sum + sizes[id]));
        assert_eq!(out.held(), held, "each that has no outcome is held");
        assert!(held.0 <= max && (held.1 <= MAX_BYTES || held.0 == 1));
    }
    out.end(|_, id, settled| tell(&mut told, id, Fate::Ended(settled)));
    assert_eq!((told.len(), out.held()), (sizes.len(), (0, 0)));
}

fn fuzz(data: &[u8]) -> arbitrary::Result<()> {
    let mut u = Unstructured::new(data);
    let (who, max) = (u8::arbitrary(&mut u)? % 4, usize::from(u8::arbitrary(&mut u)? % 32) + 1);
    match who {
        0 | 1 => {
            let mut pair = Pair::new(max);
            Vec::<Step>::arbitrary_take_rest(u)?.iter().for_each(|step| pair.step(step));
            pair.finish();
        }
        2 => deceive(Vec::arbitrary_take_rest(u)?),
        _ => answer(max, Vec::arbitrary_take_rest(u)?),
    }
    Ok(())
}

fuzz_target!(|data: &[u8]| {
    let _ = fuzz(data);
});
