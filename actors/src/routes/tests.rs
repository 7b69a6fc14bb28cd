use std::{
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use actix::{
    Actor, ActorContext, Arbiter, AsyncContext, Context, Handler, Message, MessageResult, ResponseFuture,
    WrapFuture,
};
use memberlist_protocol::{
    config::Config,
    keyring::Sealing,
    member::{Member, NodeId},
    members::Members,
    probe::Detector,
    wire::guard::{Guard, Labels},
};
use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};
use serde::{Deserialize, Serialize};
use tokio::{sync::Notify, time::sleep};

use super::*;
use crate::{
    answers::{Answered, Answers},
    hooks::Hooks,
    keyring::Admission,
    network::{Network, SystemNetwork},
    resolve::{Resolver, Resolving},
    ring::{Doors, Shared},
    supervisor::{RestartPolicy, Supervisor},
};

/// Runs a test in an actix system whose clock is paused.
fn simulate<F: Future>(test: F) -> F::Output {
    let runtime =
        || tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    actix_rt::System::with_tokio_rt(runtime).block_on(test)
}

struct Nowhere;

impl Resolver for Nowhere {
    fn resolve(&self, _: &str, _: u16) -> Resolving {
        Box::pin(async { Err(io::ErrorKind::NotFound.into()) })
    }
}

/// What the actors of a node share, without the actors.
async fn ring() -> Shared {
    let config = Arc::new(Config { max_message_size: 1024, ..Config::local() });
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(1);
    let local = Member::new(NodeId::new("me", 1), ([127, 0, 0, 1], 1).into(), 1, Instant::now());
    let view = Members::new(config.clone(), local, 1).view();
    let labels = Labels::new("");
    let guard = Guard::new(&config, labels.clone(), None, Sealing::Off).unwrap();
    let admission = Admission::new(None, labels, Sealing::Off, 0);
    let chance = rng.clone();
    let doors =
        Doors::new(config.clone(), view, false, Arc::new(Nowhere), admission, chance, Hooks::default());
    let endpoint = SystemNetwork.bind(([127, 0, 0, 1], 0).into()).await.unwrap();
    let detector = Detector::new(config, Instant::now(), &mut rng);
    let ring = Rc::new(Ring::new(Arc::new(doors), guard, endpoint, rng, detector));
    ring.supervisor.set(Supervisor::start(RestartPolicy::default(), |_| {})).unwrap();
    ring
}

/// Answers as they come.
#[derive(Default)]
struct Said(Mutex<Vec<(u64, Answered)>>);

impl Answers for Said {
    fn answer(&self, question: u64, answered: Answered) {
        self.0.lock().unwrap().push((question, answered));
    }
}

impl Said {
    fn all(&self) -> Vec<(u64, Answered)> {
        std::mem::take(&mut self.0.lock().unwrap())
    }
}

fn reply(value: impl Serialize) -> Answered {
    Answered::Reply(encoded(&value))
}

fn encoded(value: &impl Serialize) -> Bytes {
    let mut out = Vec::new();
    codec::encode_payload(value, &mut out).unwrap();
    out.into()
}

fn peer() -> Sender {
    Sender::Member(NodeId::new("peer", 7))
}

fn deliver_from<M: PeerMessage>(ring: &Shared, from: &Sender, msg: &M, answer: Option<Answer>) -> Receipt {
    let bytes = encoded(msg);
    ring.routes.deliver(ring, Arrived { from, kind: M::KIND, bytes, reliable: true, answer, until: None })
}

fn tell<M: PeerMessage>(ring: &Shared, msg: &M) -> Receipt {
    deliver_from(ring, &peer(), msg, None)
}

fn ask<M: PeerMessage>(ring: &Shared, msg: &M, said: &Arc<Said>, number: u64) -> Receipt {
    deliver_from(ring, &peer(), msg, Some(Answer::new(said.clone(), number)))
}

fn dropped(ring: &Shared, reason: &str) -> u64 {
    ring.metrics().dropped[reason]
}

/// A number, which the handler keeps.
#[derive(Message, Serialize, Deserialize, Debug, PartialEq)]
#[rtype(result = "u32")]
struct Number(u32);

impl PeerMessage for Number {
    const KIND: &'static str = "number/1";
}

/// Bytes.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "()")]
struct Blob(Bytes);

impl PeerMessage for Blob {
    const KIND: &'static str = "blob/1";
}

/// An answer after so many seconds.
#[derive(Message, Serialize, Deserialize)]
#[rtype(result = "u64")]
struct After(u64);

impl PeerMessage for After {
    const KIND: &'static str = "after/1";
}

/// Goes wrong where it says.
#[derive(Message, Debug, Clone, Copy, PartialEq)]
#[rtype(result = "Outcome")]
enum Trouble {
    Nowhere,
    Read,
    Handle,
    Write,
    Refuse,
    Lengthen,
    Drop,
}

impl PeerMessage for Trouble {
    const KIND: &'static str = "trouble/1";
}

impl Serialize for Trouble {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u8(*self as u8)
    }
}

impl<'de> Deserialize<'de> for Trouble {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use Trouble::*;
        let all = [Nowhere, Read, Handle, Write, Refuse, Lengthen, Drop];
        let trouble = all[usize::from(u8::deserialize(deserializer)?)];
        assert_ne!(trouble, Read, "trouble in Deserialize");
        Ok(trouble)
    }
}

/// The result of a [`Trouble`].
struct Outcome(Trouble);

impl Serialize for Outcome {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Trouble::Write => panic!("trouble in Serialize"),
            Trouble::Refuse => Err(serde::ser::Error::custom("it will not do")),
            Trouble::Lengthen => serializer.serialize_bytes(&[0; 1024]),
            trouble => trouble.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Outcome {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Trouble::deserialize(deserializer).map(Self)
    }
}

impl Drop for Outcome {
    fn drop(&mut self) {
        assert_ne!(self.0, Trouble::Drop, "trouble in Drop");
    }
}

/// Handles all of them.
#[derive(Default)]
struct Desk {
    seen: Rc<RefCell<Vec<u32>>>,
    senders: Rc<RefCell<Vec<NodeId>>>,
    pause: Duration,
}

impl Actor for Desk {
    type Context = Context<Self>;
}

impl actix::Supervised for Desk {}

impl crate::supervisor::Child for Desk {}

impl Handler<Number> for Desk {
    type Result = u32;
    fn handle(&mut self, Number(n): Number, ctx: &mut Context<Self>) -> u32 {
        self.seen.borrow_mut().push(n);
        if !self.pause.is_zero() {
            ctx.wait(sleep(self.pause).into_actor(self));
        }
        n + 1
    }
}

impl Handler<FromPeer<Number>> for Desk {
    type Result = u32;
    fn handle(&mut self, m: FromPeer<Number>, _: &mut Context<Self>) -> u32 {
        self.senders.borrow_mut().push(m.from);
        m.msg.0
    }
}

impl Handler<Blob> for Desk {
    type Result = ();
    fn handle(&mut self, Blob(bytes): Blob, ctx: &mut Context<Self>) {
        self.seen.borrow_mut().push(bytes.len() as u32);
        if !self.pause.is_zero() {
            ctx.wait(sleep(self.pause).into_actor(self));
        }
    }
}

impl Handler<After> for Desk {
    type Result = ResponseFuture<u64>;
    fn handle(&mut self, After(seconds): After, _: &mut Context<Self>) -> Self::Result {
        Box::pin(async move {
            sleep(Duration::from_secs(seconds)).await;
            seconds
        })
    }
}

impl Handler<Trouble> for Desk {
    type Result = MessageResult<Trouble>;
    fn handle(&mut self, trouble: Trouble, _: &mut Context<Self>) -> Self::Result {
        assert_ne!(trouble, Trouble::Handle, "trouble in a handler");
        self.seen.borrow_mut().push(trouble as u32);
        MessageResult(Outcome(trouble))
    }
}

#[derive(Message)]
#[rtype(result = "()")]
struct Stop;

impl Handler<Stop> for Desk {
    type Result = ();
    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

/// Time for all that can happen at once.
async fn settle() {
    sleep(Duration::from_millis(1)).await;
}

fn seen(desk: &Rc<RefCell<Vec<u32>>>) -> Vec<u32> {
    std::mem::take(&mut *desk.borrow_mut())
}

/// A handler of numbers that takes its time.
fn slow(ring: &Shared, number: u64, pause: Duration) -> Rc<RefCell<Vec<u32>>> {
    let desk = Desk { pause, ..Desk::default() };
    let heard = desk.seen.clone();
    Serving::typed::<Number>(number, desk.start().recipient()).open(ring);
    heard
}

#[test]
fn a_question_is_answered_with_the_result_and_a_message_is_not_answered() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        let heard = slow(&ring, 1, Duration::ZERO);
        assert_eq!(tell(&ring, &Number(1)), Receipt::Taken);
        assert_eq!(ask(&ring, &Number(2), &said, 20), Receipt::Taken);
        assert_eq!(said.all(), [], "nothing is said before the receipt");
        settle().await;
        assert_eq!((said.all(), seen(&heard)), (vec![(20, reply(3u32))], vec![1, 2]));
    });
}

#[test]
fn sixty_four_are_in_the_mailbox_and_1024_wait_in_order_and_the_rest_is_refused() {
    simulate(async {
        let ring = ring().await;
        // Its mailbox has room for 16 alone.
        let heard = slow(&ring, 1, Duration::from_secs(10));
        let other = Desk::default();
        let blobs = other.seen.clone();
        Serving::typed::<Blob>(2, other.start().recipient()).open(&ring);
        let taken = |from: u32| {
            let receipts = (from..).map(|n| tell(&ring, &Number(n)));
            receipts.take_while(|receipt| *receipt == Receipt::Taken).count()
        };
        assert_eq!(taken(0), 1024);
        settle().await;
        assert_eq!(taken(1024), 65, "one is done, and 64 are on their way");
        settle().await;
        assert_eq!(taken(1089), 0);
        assert_eq!(tell(&ring, &Number(0)), Receipt::Busy);
        assert_eq!(dropped(&ring, "handler_busy"), 4, "each of the three that were too many, and this one");
        assert_eq!(tell(&ring, &Blob(Bytes::new())), Receipt::Taken, "another KIND flows");
        settle().await;
        assert_eq!(seen(&blobs), [0]);
        sleep(Duration::from_secs(100)).await;
        assert_eq!(taken(1089), 10, "ten more are done");
        sleep(Duration::from_secs(20_000)).await;
        assert_eq!(seen(&heard), (0..1099).collect::<Vec<_>>());
    });
}

#[test]
fn four_mib_are_in_the_mailbox_and_as_many_wait_and_a_single_one_may_be_larger() {
    simulate(async {
        let ring = ring().await;
        let desk = Desk { pause: Duration::from_secs(10), ..Desk::default() };
        let heard = desk.seen.clone();
        Serving::typed::<Blob>(1, desk.start().recipient()).open(&ring);
        let taken = |len: usize| {
            let receipts = (0..10).map(|_| tell(&ring, &Blob(vec![0; len].into())));
            receipts.take_while(|receipt| *receipt == Receipt::Taken).count()
        };
        const MIB: usize = (1 << 20) - 8;
        let mut all = Vec::new();
        for _ in 0..4 {
            all.push(taken(MIB));
            settle().await;
        }
        assert_eq!(all, [4, 4, 1, 0], "one is done, four are on their way, four wait");
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(seen(&heard), [MIB as u32; 9]);
        let mut all = Vec::new();
        for _ in 0..4 {
            all.push(taken(8 * MIB));
            settle().await;
        }
        assert_eq!(all, [1, 1, 1, 0]);
        assert_eq!(taken(1), 0);
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(seen(&heard), [8 * MIB as u32; 3]);
    });
}

#[test]
fn an_answer_that_takes_long_holds_no_other_back() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        Serving::typed::<After>(1, Desk::default().start().recipient()).open(&ring);
        for seconds in [1000, 3, 2] {
            assert_eq!(ask(&ring, &After(seconds), &said, seconds), Receipt::Taken);
        }
        sleep(Duration::from_secs(5)).await;
        assert_eq!(said.all(), [(2, reply(2u64)), (3, reply(3u64))]);
        for n in 0..200 {
            assert_eq!(ask(&ring, &After(0), &said, n), Receipt::Taken);
        }
        settle().await;
        assert_eq!(said.all().len(), 200, "one long one leaves room for 63");
        sleep(Duration::from_secs(1000)).await;
        assert_eq!(said.all(), [(1000, reply(1000u64))]);
    });
}

#[test]
fn a_question_whose_time_is_over_before_its_turn_is_not_heard() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        let heard = slow(&ring, 1, Duration::from_secs(10));
        let ask = |n: u32, within: Option<u64>| {
            let until = within.map(|within| crate::ring::now() + Duration::from_secs(within));
            let (bytes, answer) = (encoded(&Number(n)), Some(Answer::new(said.clone(), n.into())));
            let arrived = Arrived { from: &peer(), kind: Number::KIND, bytes, reliable: true, answer, until };
            assert_eq!(ring.routes.deliver(&ring, arrived), Receipt::Taken);
        };
        // One is handled, and 64 are in the mailbox: the next ones wait in the queue.
        (0..65).for_each(|n| ask(n, None));
        settle().await;
        ask(65, Some(5));
        ask(66, Some(5000));
        sleep(Duration::from_secs(2000)).await;
        assert_eq!(seen(&heard), (0..65).chain([66]).collect::<Vec<_>>());
        assert_eq!(dropped(&ring, "expired"), 1);
    });
}

#[test]
fn what_nobody_serves_or_nobody_can_read_is_refused_and_counted_and_the_receipt_is_all_that_is_said() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        assert_eq!(ask(&ring, &Number(1), &said, 1), Receipt::NoHandler);
        let heard = slow(&ring, 1, Duration::ZERO);
        let give = |bytes: &'static [u8]| {
            let (bytes, answer) = (Bytes::from_static(bytes), Some(Answer::new(said.clone(), 2)));
            let from = &peer();
            ring.routes.deliver(
                &ring,
                Arrived { from, kind: Number::KIND, bytes, reliable: true, answer, until: None },
            )
        };
        assert_eq!([give(b""), give(b"\x01\x02"), give(b"\xfb")], [Receipt::Undecodable; 3]);
        let from = &peer();
        for kind in ["", "number/2", "numbe"] {
            let answer = Some(Answer::new(said.clone(), 3));
            let arrived = Arrived {
                from,
                kind,
                bytes: Bytes::from_static(b"\x05"),
                reliable: false,
                answer,
                until: None,
            };
            assert_eq!(ring.routes.deliver(&ring, arrived), Receipt::NoHandler, "{kind:?}");
        }
        assert_eq!((dropped(&ring, "undecodable"), dropped(&ring, "no_handler")), (3, 4));
        assert_eq!(give(b"\x05"), Receipt::Taken);
        settle().await;
        assert_eq!((seen(&heard), said.all()), (vec![5], vec![(2, reply(6u32))]));
    });
}

#[test]
fn wherever_a_message_panics_it_is_the_only_one_that_is_lost() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        let supervisor = ring.supervisor.get().unwrap();
        let heard = Rc::new(RefCell::new(Vec::new()));
        let kept = heard.clone();
        let desk = supervisor.supervise("desk", 16, move || Desk { seen: kept.clone(), ..Desk::default() });
        Serving::typed::<Trouble>(1, desk.recipient()).open(&ring);
        use Trouble::*;
        for trouble in [Read, Handle, Write, Refuse, Lengthen, Drop] {
            let receipt = if trouble == Read { Receipt::Undecodable } else { Receipt::Taken };
            assert_eq!(ask(&ring, &trouble, &said, 1), receipt);
            assert_eq!(tell(&ring, &trouble), receipt);
            assert_eq!(ask(&ring, &Nowhere, &said, 2), Receipt::Taken);
            settle().await;
            let mut all = said.all();
            assert_eq!(all.pop(), Some((2, reply(Nowhere))), "{trouble:?}");
            let fate = all.pop().map(|(_, fate)| fate);
            match trouble {
                Read => assert_eq!(fate, None),
                Handle => assert_eq!(fate, Some(Answered::HandlerGone)),
                Refuse => assert_eq!(fate, Some(Answered::Unfit("it will not do".into()))),
                _ => assert!(matches!(fate, Some(Answered::Unfit(_))), "{trouble:?}: {fate:?}"),
            }
            assert_eq!(all, []);
        }
        assert_eq!(heard.borrow().len(), 4 * 2 + 6);
        assert_eq!(dropped(&ring, "handler_gone"), 2);
    });
}

#[test]
fn a_handler_that_stops_takes_along_what_waits_and_every_question_is_told() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        let desk = Desk { pause: Duration::from_secs(1), ..Desk::default() }.start();
        Serving::typed::<Number>(1, desk.clone().recipient()).open(&ring);
        for n in 0..100 {
            assert_eq!(ask(&ring, &Number(n), &said, u64::from(n)), Receipt::Taken);
        }
        settle().await;
        desk.do_send(Stop);
        sleep(Duration::from_secs(200)).await;
        let all = said.all();
        let answered = all.iter().filter(|(_, answered)| *answered != Answered::HandlerGone).count();
        let mut questions: Vec<_> = all.iter().map(|(question, _)| *question).collect();
        questions.sort_unstable();
        assert_eq!(questions, (0..100).collect::<Vec<_>>());
        assert_eq!((answered, dropped(&ring, "handler_gone")), (65, 35));
        assert_eq!(ask(&ring, &Number(1), &said, 1), Receipt::NoHandler);
        assert!(ring.routes.table.borrow().typed.is_empty(), "its address is not kept");
        assert_eq!(*ring.pumps.borrow(), 0);
        assert_eq!(said.all(), []);
        let idle = Desk::default().start();
        Serving::typed::<Number>(2, idle.clone().recipient()).open(&ring);
        settle().await;
        idle.send(Stop).await.unwrap();
        settle().await;
        assert_eq!(tell(&ring, &Number(1)), Receipt::NoHandler, "nothing has come since it stopped");
    });
}

#[test]
fn of_two_handlers_of_one_kind_the_later_one_gets_what_comes_and_the_earlier_one_what_waits() {
    simulate(async {
        let ring = ring().await;
        let first = slow(&ring, 1, Duration::from_millis(10));
        for n in 0..100 {
            tell(&ring, &Number(n));
        }
        let desk = Desk::default();
        let senders = desk.senders.clone();
        Serving::from_peer::<Number>(2, desk.start().recipient()).open(&ring);
        assert_eq!(tell(&ring, &Number(100)), Receipt::Taken);
        sleep(Duration::from_secs(10)).await;
        assert_eq!(seen(&first), (0..100).collect::<Vec<_>>());
        assert_eq!(*senders.borrow(), [NodeId::new("peer", 7)]);
        assert_eq!(*ring.pumps.borrow(), 1, "the pump of the first has ended");
        let third = slow(&ring, 3, Duration::ZERO);
        // The first two have no say any more.
        ring.routes.remove(1);
        ring.routes.remove(2);
        assert_eq!(tell(&ring, &Number(101)), Receipt::Taken);
        settle().await;
        assert_eq!((seen(&third), senders.borrow().len()), (vec![101], 1));
        ring.routes.remove(3);
        assert_eq!(tell(&ring, &Number(102)), Receipt::NoHandler);
    });
}

#[test]
fn a_subscription_that_ends_leaves_its_handler_what_is_in_the_mailbox() {
    simulate(async {
        let (ring, said) = (ring().await, Arc::<Said>::default());
        let heard = slow(&ring, 1, Duration::from_millis(10));
        for n in 0..100 {
            ask(&ring, &Number(n), &said, u64::from(n));
        }
        settle().await;
        ring.routes.remove(1);
        let gone: Vec<_> = (65..100).map(|n| (n, Answered::HandlerGone)).collect();
        assert_eq!(said.all().split_off(1), gone);
        sleep(Duration::from_secs(10)).await;
        assert_eq!((seen(&heard).len(), said.all().len(), *ring.pumps.borrow()), (65, 64, 0));
    });
}

#[test]
fn the_end_of_the_node_leaves_the_handlers_what_waits() {
    simulate(async {
        let ring = ring().await;
        let heard = slow(&ring, 1, Duration::from_millis(10));
        for n in 0..100 {
            tell(&ring, &Number(n));
        }
        ring.routes.close();
        assert_eq!(tell(&ring, &Number(100)), Receipt::NoHandler);
        sleep(Duration::from_secs(10)).await;
        assert_eq!((seen(&heard).len(), *ring.pumps.borrow()), (100, 0));
    });
}

#[test]
fn who_wants_to_know_the_sender_gets_no_message_without_one() {
    simulate(async {
        let ring = ring().await;
        let desk = Desk::default();
        let senders = desk.senders.clone();
        Serving::from_peer::<Number>(1, desk.start().recipient()).open(&ring);
        let nobody = Sender::Address(([127, 0, 0, 1], 9).into());
        let stranger = NodeId::new("stranger", 3);
        assert_eq!(deliver_from(&ring, &nobody, &Number(1), None), Receipt::NoHandler);
        assert_eq!(
            deliver_from(&ring, &Sender::Stranger(stranger.clone()), &Number(1), None),
            Receipt::Taken
        );
        settle().await;
        assert_eq!(*senders.borrow(), [stranger]);
        let heard = slow(&ring, 2, Duration::ZERO);
        assert_eq!(deliver_from(&ring, &nobody, &Number(7), None), Receipt::Taken);
        settle().await;
        assert_eq!(seen(&heard), [7]);
    });
}

/// Counts, and says when there are enough.
struct Counter {
    left: Arc<AtomicUsize>,
    done: Arc<Notify>,
}

impl Actor for Counter {
    type Context = Context<Self>;
}

impl Handler<Blob> for Counter {
    type Result = ();
    fn handle(&mut self, _: Blob, _: &mut Context<Self>) {
        if self.left.fetch_sub(1, Relaxed) == 1 {
            self.done.notify_one();
        }
    }
}

/// Processor time of this thread.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    Duration::from_nanos(text.split(' ').next().and_then(|ns| ns.parse().ok()).unwrap_or(0))
}

/// What a message costs, for whoever changes something here:
/// `cargo test --release -p actix-memberlist --lib -- --ignored --nocapture cost`.
#[test]
#[ignore = "a measurement: asked for by hand"]
fn cost_of_a_message_from_its_bytes_to_its_handler() {
    const ROUNDS: usize = 2000;
    let cases = [(16, 64), (16, 1000), (1024, 64), (1024, 1000)];
    for (capacity, batch, apart) in cases.iter().flat_map(|(c, b)| [(*c, *b, false), (*c, *b, true)]) {
        actix_rt::System::new().block_on(async {
            let ring = ring().await;
            for kind in ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"] {
                let desk = Desk::default().start().recipient();
                let route = Typed::<Number, _, _> {
                    queue: Queue::new(desk),
                    kind,
                    wrap: |_| Some(|msg| msg),
                    _reads: PhantomData,
                };
                ring.routes.table.borrow_mut().typed.insert(kind, (1, Rc::new(route)));
            }
            let (left, done) = (Arc::<AtomicUsize>::default(), Arc::<Notify>::default());
            let parts = (left.clone(), done.clone());
            let counter = move |ctx: &mut Context<Counter>| {
                ctx.set_mailbox_capacity(capacity);
                let (left, done) = parts;
                Counter { left, done }
            };
            let other = Arbiter::new();
            let counter = match apart {
                true => Counter::start_in_arbiter(&other.handle(), counter),
                false => Counter::create(counter),
            };
            Serving::typed::<Blob>(1, counter.recipient()).open(&ring);
            let (bytes, from) = (encoded(&Blob(Bytes::from(vec![7; 64]))), peer());
            let (mut delivering, start, busy) = (Duration::ZERO, Instant::now(), cpu());
            for _ in 0..ROUNDS {
                left.store(batch, Relaxed);
                let began = Instant::now();
                for _ in 0..batch {
                    let bytes = bytes.clone();
                    let arrived =
                        Arrived { from: &from, kind: Blob::KIND, bytes, reliable: true, answer: None, until: None };
                    assert_eq!(ring.routes.deliver(&ring, arrived), Receipt::Taken);
                }
                delivering += began.elapsed();
                done.notified().await;
            }
            let each = |time: Duration| time.as_nanos() / (ROUNDS * batch) as u128;
            println!(
                "mailbox {capacity}, {batch} at once, another thread: {apart}: deliver {} ns, node's thread {} ns, handled after {} ns",
                each(delivering),
                each(cpu() - busy),
                each(start.elapsed())
            );
            other.stop();
        });
    }
}
