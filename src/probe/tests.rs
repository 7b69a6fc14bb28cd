use rand::{SeedableRng, rngs::Xoshiro256PlusPlus};

use super::*;
use crate::view::Roster;

/// The run under whose seal answers come.
const ANSWERED_BY: u64 = 7;

/// A detector under test among members `m1` to `mN`, with a clock of its own.
struct Bench {
    detector: Detector,
    view: View,
    now: Instant,
    rng: Xoshiro256PlusPlus,
}

fn id(name: &str) -> NodeId {
    NodeId::new(name, 1)
}

fn addr(n: usize) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n as u8], 7946))
}

fn member(n: usize) -> Member {
    let name = if n == 0 { "self".into() } else { format!("m{n}") };
    Member::new(id(&name), addr(n), 4, Instant::now())
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

impl Bench {
    fn new(members: usize) -> Self {
        Self::with(members, Config::lan())
    }

    fn with(members: usize, config: Config) -> Self {
        let (now, mut rng) = (Instant::now(), Xoshiro256PlusPlus::seed_from_u64(9));
        let mut roster = Roster::new(0);
        for n in 0..=members {
            roster.put(Arc::new(member(n)));
        }
        let view = View::new(1, roster.get("self").unwrap().clone(), roster);
        Self { detector: Detector::new(Arc::new(config), now, &mut rng), view, now, rng }
    }

    fn put(&mut self, member: Member) {
        let mut roster = self.view.roster().clone();
        let member = Arc::new(member);
        roster.put(member.clone());
        let local = if member.name() == "self" { member } else { self.view.local().clone() };
        self.view = View::new(1, local, roster);
    }

    /// Goes to the next moment that the detector asks for.
    fn step(&mut self) -> Vec<Action> {
        self.now = self.detector.due().unwrap().max(self.now);
        self.detector.on_time(&self.view, self.now, &mut self.rng).into_vec()
    }

    fn ack(&mut self, seq: u32) -> Result<Option<Action>, Unheard> {
        self.detector.ack(&Ack { seq, payload: Bytes::new() }, ANSWERED_BY, self.now)
    }

    /// Runs one round in which the target never answers, and `nacks` helpers say so.
    fn failed_round(&mut self, nacks: usize) -> Vec<Action> {
        let ping = self.step();
        assert_eq!(pings(&ping).len(), 1, "{ping:?}");
        let asked = self.step();
        let helpers: Vec<u32> = requests(&asked).iter().map(|request| request.seq).collect();
        for seq in &helpers[..nacks] {
            self.detector.nack(&Nack { seq: *seq }).unwrap();
        }
        self.step()
    }
}

fn messages(actions: &[Action]) -> impl Iterator<Item = &Message> {
    actions.iter().flat_map(|action| match action {
        Action::Send { messages, .. } => messages.as_slice(),
        _ => &[],
    })
}

fn pings(actions: &[Action]) -> Vec<&Ping> {
    messages(actions).filter_map(|m| if let Message::Ping(ping) = m { Some(ping) } else { None }).collect()
}

fn requests(actions: &[Action]) -> Vec<&IndirectPing> {
    messages(actions).filter_map(|m| if let Message::IndirectPing(p) = m { Some(p) } else { None }).collect()
}

#[test]
fn a_ping_that_is_answered_ends_the_round_and_is_measured() {
    let mut bench = Bench::new(3);
    let sent = bench.step();
    let ping = pings(&sent)[0].clone();
    assert!(bench.detector.expects(ping.seq));
    bench.now += ms(20);
    let measured = bench.ack(ping.seq).unwrap();
    assert_eq!(measured, Some(Action::Measured { id: ping.target, rtt: ms(20), payload: Bytes::new() }));
    assert_eq!(bench.ack(ping.seq), Err(Unheard::UnknownSequence), "an answer counts once");
    assert_eq!(
        bench.detector.due(),
        Some(bench.now - ms(20) + ms(1000)),
        "the next round is an interval later"
    );
}

#[test]
fn without_an_answer_others_are_asked_and_a_stream_is_tried() {
    let mut bench = Bench::new(8);
    let target = pings(&bench.step())[0].target.clone();
    let start = bench.now;
    let asked = bench.step();
    assert_eq!(bench.now - start, ms(500));
    let requests = requests(&asked);
    assert_eq!(requests.len(), 3);
    assert!(requests.iter().all(|request| request.target == target));
    let stream = asked
        .iter()
        .find_map(|a| if let Action::StreamPing { deadline, .. } = a { Some(*deadline) } else { None });
    assert_eq!(stream, Some(start + ms(1000)));
    // The answer of any helper is good.
    assert_eq!(bench.ack(requests[1].seq), Ok(None));
    assert_eq!(bench.detector.score(), 0);
}

#[test]
fn streams_are_not_tried_where_that_is_switched_off() {
    let streams = |config: Config| {
        let mut bench = Bench::with(8, config);
        let target = pings(&bench.step())[0].target.name().to_owned();
        let asked = bench.step();
        assert_eq!(requests(&asked).len(), 3);
        (target, asked.iter().filter(|a| matches!(a, Action::StreamPing { .. })).count())
    };
    let (target, on) = streams(Config::lan());
    assert_eq!(on, 1);
    assert_eq!(streams(Config { disable_tcp_pings: true, ..Config::lan() }).1, 0);
    let names = |name: &str| [name.to_owned()].into();
    let for_it = Config { disable_tcp_pings_for: names(&target), ..Config::lan() };
    assert_eq!(streams(for_it), (target, 0));
    let for_another = Config { disable_tcp_pings_for: names("another"), ..Config::lan() };
    assert_eq!(streams(for_another).1, 1);
}

#[test]
fn without_any_answer_the_member_is_accused_at_the_end_of_the_interval() {
    let mut bench = Bench::new(8);
    let start = bench.detector.due().unwrap();
    let actions = bench.failed_round(3);
    assert_eq!(bench.now - start, ms(1000));
    let Action::Accuse { incarnation: 4, evidence, .. } = &actions[0] else { panic!("{actions:?}") };
    assert_eq!(*evidence, Evidence::NoAnswer { direct: true, helpers: 3, nacks: 3, healthy: true });
}

#[test]
fn a_stream_that_answers_ends_the_round_at_once() {
    let mut bench = Bench::new(8);
    let seq = pings(&bench.step())[0].seq;
    bench.step();
    let mut dialled = |heard| bench.detector.stream_ping(seq, heard, &bench.view, bench.now);
    // A refusal is worth as much as silence, unless it is set to count.
    assert_eq!(dialled(Dialled::Silent), Ok(Actions::new()));
    assert_eq!(dialled(Dialled::Refused), Ok(Actions::new()));
    assert!(matches!(&dialled(Dialled::Answered).unwrap()[..], [Action::UdpLost { .. }]));
    assert_eq!(dialled(Dialled::Answered), Err(Unheard::UnknownSequence));
    assert!(!bench.step().iter().any(|a| matches!(a, Action::Accuse { .. })));
}

#[test]
fn health_falls_with_each_missing_nack_and_rises_with_each_answer() {
    for (nacks, score) in [(3, 0), (2, 1), (0, 3)] {
        let mut bench = Bench::new(8);
        bench.failed_round(nacks);
        assert_eq!(bench.detector.score(), score, "{nacks} nacks");
    }
    let mut alone = Bench::new(1);
    let next_round = alone.failed_round(0);
    assert_eq!(alone.detector.score(), 1, "nobody could be asked");
    let seq = pings(&next_round)[0].seq;
    alone.ack(seq).unwrap();
    assert_eq!(alone.detector.score(), 0);
}

#[test]
fn a_nack_counts_once_however_often_it_comes() {
    let mut bench = Bench::new(8);
    bench.step();
    let asked = bench.step();
    let seq = requests(&asked)[0].seq;
    for _ in 0..5 {
        bench.detector.nack(&Nack { seq }).unwrap();
    }
    let actions = bench.step();
    let Action::Accuse { evidence: Evidence::NoAnswer { nacks, .. }, .. } = actions[0] else {
        panic!("{actions:?}")
    };
    assert_eq!(nacks, 1);
}

#[test]
fn a_round_takes_longer_when_health_is_doubtful() {
    let mut bench = Bench::new(8);
    bench.detector.doubt(2);
    let start = bench.detector.due().unwrap();
    bench.failed_round(3);
    assert_eq!(bench.now - start, ms(3000));
    assert_eq!(bench.detector.degraded_rounds(), 2, "this one, and the one that has begun after it");
}

#[test]
fn a_suspect_is_told_along_with_the_ping() {
    let mut bench = Bench::new(1);
    bench.put(member(1).turned(MemberState::Suspect, 6, bench.now));
    let actions = bench.step();
    let [Message::Ping(_), Message::Suspect(m)] = &messages(&actions).collect::<Vec<_>>()[..] else {
        panic!()
    };
    assert_eq!((m.id.name(), m.incarnation, &*m.from), ("m1", 6, "self"));
}

#[test]
fn one_that_is_held_for_gone_and_pings_is_told_of_it() {
    let mut bench = Bench::new(2);
    let ping = Ping { seq: 5, target: id("self"), from: id("m1") };
    for (state, told) in [(MemberState::Suspect, true), (MemberState::Dead, true), (MemberState::Left, true)]
    {
        bench.put(member(1).turned(state, 6, bench.now));
        let answer = bench.detector.ping(&ping, addr(1), Piggyback::Yes, &Bytes::new(), &bench.view);
        let Ok(Action::Send { messages, .. }) = answer else { panic!() };
        assert_eq!(messages.len() == 2, told, "{state}");
        let from_elsewhere = bench.detector.ping(&ping, addr(9), Piggyback::Yes, &Bytes::new(), &bench.view);
        assert!(matches!(from_elsewhere, Ok(Action::Send { messages, .. }) if messages.len() == 1));
    }
}

#[test]
fn each_member_is_probed_once_in_each_pass_and_the_gone_never() {
    let mut bench = Bench::new(20);
    bench.put(member(3).turned(MemberState::Dead, 4, bench.now));
    bench.put(member(4).turned(MemberState::Left, 4, bench.now));
    for _ in 0..3 {
        let mut probed: Vec<String> = (0..18)
            .map(|_| {
                let sent = bench.step();
                let ping = pings(&sent)[0].clone();
                bench.ack(ping.seq).unwrap();
                ping.target.name().to_owned()
            })
            .collect();
        probed.sort();
        probed.dedup();
        assert_eq!(probed.len(), 18);
        assert!(!probed.contains(&"m3".into()) && !probed.contains(&"m4".into()));
    }
}

#[test]
fn each_pass_goes_round_in_another_order() {
    let mut bench = Bench::new(20);
    let mut pass = || -> Vec<String> {
        (0..20)
            .map(|_| {
                let ping = pings(&bench.step())[0].clone();
                bench.ack(ping.seq).unwrap();
                ping.target.name().to_owned()
            })
            .collect()
    };
    let (first, second) = (pass(), pass());
    assert_ne!(first, second);
    assert!(!first.is_sorted() && !second.is_sorted());
}

#[test]
fn a_newcomer_is_probed_within_the_pass_or_the_next() {
    let mut bench = Bench::new(5);
    bench.step();
    bench.put(member(9));
    bench.detector.newcomer("m9".into(), 7, &mut bench.rng);
    let mut found = false;
    for _ in 0..11 {
        found |= pings(&bench.step()).iter().any(|ping| ping.target.name() == "m9");
    }
    assert!(found);
}

#[test]
fn the_order_of_probes_is_bounded() {
    let mut bench = Bench::new(5);
    for i in 0..1000 {
        bench.detector.newcomer(format!("x{i}").into(), 5, &mut bench.rng);
    }
    assert!(bench.detector.order.len() <= 26);
}

#[test]
fn an_interval_of_zero_switches_probing_off() {
    let bench = Bench::with(5, Config { probe_interval: Duration::ZERO, ..Config::lan() });
    assert_eq!(bench.detector.due(), None);
}

#[test]
fn a_node_that_left_accuses_nobody() {
    let mut bench = Bench::new(5);
    bench.put(member(0).turned(MemberState::Left, 4, bench.now));
    assert!(bench.step().is_empty());
}

#[test]
fn only_the_run_that_is_meant_answers_a_ping() {
    let bench = Bench::new(2);
    let ping = |target: NodeId| Ping { seq: 5, target, from: id("m1") };
    let answer = |ping: &Ping, from| {
        bench.detector.ping(ping, from, Piggyback::Yes, &Bytes::from_static(b"load"), &bench.view)
    };
    assert_eq!(answer(&ping(id("other")), addr(1)), Err(Unheard::NotForMe));
    assert_eq!(answer(&ping(NodeId::new("self", 99)), addr(1)), Err(Unheard::NotForMe));
    let Ok(Action::Send { to, messages, piggyback, .. }) = answer(&ping(id("self")), addr(1)) else {
        panic!()
    };
    assert_eq!((to, piggyback), (addr(1), Piggyback::Yes));
    assert_eq!(messages[0], Message::Ack(Ack { seq: 5, payload: Bytes::from_static(b"load") }));
}

#[test]
fn weak_point_34_a_stranger_is_answered_where_it_is_and_with_less_than_it_sent() {
    let bench = Bench::new(2);
    let ping = Ping { seq: 5, target: id("self"), from: id("stranger") };
    let answer = bench.detector.ping(&ping, addr(77), Piggyback::Yes, &vec![0; 400].into(), &bench.view);
    let Ok(Action::Send { to, messages, piggyback, .. }) = answer else { panic!() };
    assert_eq!((to, piggyback), (addr(77), Piggyback::No));
    assert_eq!(messages[0], Message::Ack(Ack { seq: 5, payload: Bytes::new() }));
}

#[test]
fn weak_point_34_nobody_is_pinged_for_others_who_is_no_member() {
    let mut bench = Bench::new(2);
    for (target, at) in [("nobody", 2), ("m2", 99)] {
        let request = IndirectPing { seq: 1, target: id(target), addr: addr(at), from: id("m1") };
        let answer = bench.detector.indirect_ping(&request, addr(1), &bench.view, bench.now, &mut bench.rng);
        assert_eq!(answer, Err(Unheard::UnknownTarget));
    }
}

#[test]
fn weak_point_35_a_stranger_has_nobody_pinged_and_is_told_so_at_once() {
    let mut bench = Bench::new(2);
    let request = |from| IndirectPing { seq: 9, target: id("m2"), addr: addr(2), from: id(from) };
    for (from, at) in [("stranger", 77), ("m1", 77)] {
        let sent =
            bench.detector.indirect_ping(&request(from), addr(at), &bench.view, bench.now, &mut bench.rng);
        let messages = smallvec![Message::Nack(Nack { seq: 9 })];
        let nack = Action::Send {
            to: addr(at),
            run: id(from).run(),
            messages,
            piggyback: Piggyback::No,
            report: None,
        };
        assert_eq!(sent, Ok(nack), "{from}");
    }
    assert!(bench.detector.relays.is_empty());
    let sent = bench.detector.indirect_ping(&request("m1"), addr(1), &bench.view, bench.now, &mut bench.rng);
    assert!(matches!(sent, Ok(Action::Send { to, piggyback: Piggyback::Yes, .. }) if to == addr(2)));
    let oneself = IndirectPing { seq: 1, target: id("self"), addr: addr(0), from: id("m1") };
    let answer = bench.detector.indirect_ping(&oneself, addr(1), &bench.view, bench.now, &mut bench.rng);
    assert_eq!(answer, Err(Unheard::UnknownTarget));
}

#[test]
fn weak_point_34_a_member_whose_datagram_has_had_its_news_gets_an_ack_alone() {
    let bench = Bench::new(2);
    let ping = Ping { seq: 5, target: id("self"), from: id("m1") };
    let answer = bench.detector.ping(&ping, addr(1), Piggyback::No, &vec![0; 400].into(), &bench.view);
    let Ok(Action::Send { messages, piggyback, .. }) = answer else { panic!() };
    assert_eq!(piggyback, Piggyback::No);
    assert_eq!(messages[..], [Message::Ack(Ack { seq: 5, payload: Bytes::new() })]);
}

#[test]
fn weak_point_27_one_asker_does_not_use_up_the_indirect_pings_of_others() {
    let config =
        Config { max_relays: 5, max_relays_per_source: 3, probe_interval: Duration::ZERO, ..Config::lan() };
    let mut bench = Bench::with(3, config);
    let ask = |bench: &mut Bench, from: usize| {
        let request =
            IndirectPing { seq: 70, target: id("m3"), addr: addr(3), from: id(&format!("m{from}")) };
        bench.detector.indirect_ping(&request, addr(from), &bench.view, bench.now, &mut bench.rng)
    };
    let seqs: Vec<_> = (0..3).map(|_| pings(&[ask(&mut bench, 1).unwrap()])[0].seq).collect();
    assert_eq!(ask(&mut bench, 1), Err(Unheard::TooManyRelaysOfSource));
    assert!(ask(&mut bench, 2).is_ok() && ask(&mut bench, 2).is_ok(), "another one has room");
    assert_eq!(ask(&mut bench, 2), Err(Unheard::TooManyRelays));
    // What has its answer makes room for the next, and so does time.
    bench.ack(seqs[0]).unwrap();
    assert!(ask(&mut bench, 1).is_ok());
    assert_eq!(ask(&mut bench, 1), Err(Unheard::TooManyRelaysOfSource));
    while bench.detector.due().is_some() {
        bench.step();
    }
    assert!(bench.detector.relays_of.is_empty());
    assert!(ask(&mut bench, 1).is_ok());
}

#[test]
fn weak_point_02_a_helper_passes_an_ack_on_or_says_early_that_there_is_none() {
    let config = Config { probe_interval: Duration::ZERO, count_refusals: false, ..Config::lan() };
    let mut bench = Bench::with(2, config);
    let request = IndirectPing { seq: 70, target: id("m2"), addr: addr(2), from: id("m1") };
    let start = bench.now;
    let sent =
        bench.detector.indirect_ping(&request, addr(1), &bench.view, bench.now, &mut bench.rng).unwrap();
    let seq = pings(&[sent])[0].seq;
    let late = bench.step();
    assert_eq!(messages(&late).collect::<Vec<_>>(), [&Message::Nack(Nack { seq: 70 })]);
    assert_eq!(bench.now - start, bench.detector.config.nack_delay());
    // The ack may still come, and is passed on once.
    let Ok(Some(Action::Send { to, messages, .. })) = bench.ack(seq) else { panic!() };
    assert_eq!((to, &messages[0]), (addr(1), &Message::Ack(Ack { seq: 70, payload: Bytes::new() })));
    assert_eq!(bench.ack(seq), Err(Unheard::UnknownSequence));
}

#[test]
fn a_host_that_refuses_is_evidence_that_helpers_look_for_too() {
    let config = Config { count_refusals: true, ..Config::lan() };
    // Whoever is refused waits a little for its helpers, and then says what it has seen.
    let mut bench = Bench::with(8, config.clone());
    let seq = pings(&bench.step())[0].seq;
    let start = bench.now;
    bench.step();
    assert_eq!(bench.detector.stream_ping(seq, Dialled::Refused, &bench.view, bench.now), Ok(Actions::new()));
    let actions = bench.step();
    assert!(matches!(&actions[..], [Action::Accuse { evidence: Evidence::Refused, .. }]), "{actions:?}");
    assert_eq!((bench.now - start, bench.detector.score()), (ms(700), 0));
    // A helper without an answer dials before it says so, and is a witness itself.
    let mut bench = Bench::with(2, Config { probe_interval: Duration::ZERO, ..config.clone() });
    let request = IndirectPing { seq: 70, target: id("m2"), addr: addr(2), from: id("m1") };
    let start = bench.now;
    bench.detector.indirect_ping(&request, addr(1), &bench.view, bench.now, &mut bench.rng).unwrap();
    let dials = bench.step();
    let [Action::StreamPing { seq, addr: to, .. }] = dials[..] else { panic!("{dials:?}") };
    assert_eq!((bench.now - start, to), (bench.detector.config.nack_delay() / 4, addr(2)));
    let told = bench.detector.stream_ping(seq, Dialled::Refused, &bench.view, bench.now).unwrap();
    let all: Vec<_> = messages(&told).collect();
    assert!(
        matches!(&all[..], [Message::Nack(Nack { seq: 70 }), Message::Suspect(s)] if s.evidence == Evidence::Refused)
    );
    assert!(matches!(&told[1], Action::Accuse { incarnation: 4, evidence: Evidence::Refused, .. }));
    // If it is not refused, it says in time that it has no answer.
    bench.detector.indirect_ping(&request, addr(1), &bench.view, bench.now, &mut bench.rng).unwrap();
    let start = bench.now;
    let dials = bench.step();
    let [Action::StreamPing { seq, .. }] = dials[..] else { panic!("{dials:?}") };
    assert_eq!(bench.detector.stream_ping(seq, Dialled::Silent, &bench.view, bench.now), Ok(Actions::new()));
    let mut late = Vec::new();
    while late.is_empty() {
        late = bench.step();
    }
    assert_eq!(messages(&late).collect::<Vec<_>>(), [&Message::Nack(Nack { seq: 70 })]);
    assert_eq!(bench.now - start, bench.detector.config.nack_delay());
}

#[test]
fn weak_point_27_indirect_pings_for_others_are_bounded_and_end() {
    let config = Config { max_relays: 2, probe_interval: Duration::ZERO, ..Config::lan() };
    let mut bench = Bench::with(2, config);
    let request = IndirectPing { seq: 70, target: id("m2"), addr: addr(2), from: id("m1") };
    let ask = |bench: &mut Bench| {
        bench.detector.indirect_ping(&request, addr(1), &bench.view, bench.now, &mut bench.rng)
    };
    assert!(ask(&mut bench).is_ok() && ask(&mut bench).is_ok());
    assert_eq!(ask(&mut bench), Err(Unheard::TooManyRelays));
    while bench.detector.due().is_some() {
        bench.step();
    }
    assert!(bench.detector.expected.is_empty());
    assert!(ask(&mut bench).is_ok());
}

#[test]
fn weak_point_37_the_number_of_a_ping_cannot_be_guessed_from_the_last_one() {
    let mut bench = Bench::new(5);
    let mut seqs: Vec<u32> = (0..50)
        .map(|_| {
            let seq = pings(&bench.step())[0].seq;
            bench.ack(seq).unwrap();
            seq
        })
        .collect();
    let steps = seqs.windows(2).filter(|pair| pair[1].wrapping_sub(pair[0]) < 1000).count();
    assert_eq!(steps, 0);
    seqs.sort_unstable();
    seqs.dedup();
    assert_eq!(seqs.len(), 50);
    assert_eq!(bench.ack(seqs[0].wrapping_add(1)), Err(Unheard::UnknownSequence));
}

#[test]
fn a_round_that_this_node_slept_through_accuses_nobody() {
    let mut bench = Bench::new(8);
    bench.step();
    bench.now += Duration::from_secs(60);
    let actions = bench.detector.on_time(&bench.view, bench.now, &mut bench.rng);
    assert!(!actions.iter().any(|a| matches!(a, Action::Accuse { .. })), "{actions:?}");
    assert_eq!(bench.detector.score(), 1, "its own health is in doubt");
}

#[test]
fn a_ping_that_cannot_leave_asks_others_at_once_and_says_so() {
    let mut bench = Bench::new(8);
    let seq = pings(&bench.step())[0].seq;
    let start = bench.now;
    bench.detector.send_failed(seq, bench.now);
    let asked = bench.step();
    assert_eq!((bench.now - start, requests(&asked).len()), (ms(0), 3));
    let actions = bench.step();
    let Action::Accuse { evidence: Evidence::NoAnswer { direct, .. }, .. } = actions[0] else {
        panic!("{actions:?}")
    };
    assert!(!direct);
}

fn ask(bench: &mut Bench, name: &str, to: usize) -> (u32, Action) {
    bench
        .detector
        .ask(NodeId::new(name, NodeId::ANY_RUN), addr(to), &bench.view, bench.now, &mut bench.rng)
        .unwrap()
}

#[test]
fn a_question_is_for_whoever_goes_by_the_name_and_its_answer_is_measured() {
    let mut bench = Bench::new(2);
    for (name, to) in [("m1", 1), ("m1", 77), ("stranger", 77)] {
        let (seq, sent) = ask(&mut bench, name, to);
        let ping = pings(std::slice::from_ref(&sent))[0].clone();
        assert_eq!(ping.target, NodeId::new(name, NodeId::ANY_RUN));
        let Action::Send { to: at, run, piggyback: news, report, .. } = sent else { panic!() };
        assert_eq!((at, run, news, report), (addr(to), NodeId::ANY_RUN, Piggyback::No, Some(seq)));
        assert!(bench.detector.expects(seq));
        bench.now += ms(30);
        assert_eq!(bench.ack(seq), Ok(Some(Action::Answered { seq, rtt: ms(30), by: ANSWERED_BY })));
        assert_eq!(bench.ack(seq), Err(Unheard::UnknownSequence));
    }
}

#[test]
fn a_question_without_an_answer_ends_after_the_probe_timeout_and_harms_nobody() {
    let config = Config { probe_interval: Duration::ZERO, ..Config::lan() };
    let mut bench = Bench::with(2, config);
    let (seq, _) = ask(&mut bench, "m1", 1);
    let start = bench.now;
    assert_eq!(bench.step(), [Action::Unanswered { seq, why: NoAnswer::InTime }]);
    assert_eq!(bench.now - start, ms(500));
    assert_eq!((bench.ack(seq), bench.detector.score()), (Err(Unheard::UnknownSequence), 0));
    let (seq, _) = ask(&mut bench, "m1", 1);
    let failed = bench.detector.send_failed(seq, bench.now);
    assert_eq!(failed, Some(Action::Unanswered { seq, why: NoAnswer::NotSent }));
    assert_eq!(bench.detector.due(), None, "nothing is left of it");
}

#[test]
fn questions_are_bounded_and_make_room_when_they_end() {
    let mut bench = Bench::new(2);
    for _ in 0..MAX_QUESTIONS {
        ask(&mut bench, "m1", 1);
    }
    let more =
        |b: &mut Bench| b.detector.ask(NodeId::anybody(), addr(1), &b.view, b.now, &mut b.rng).map(drop);
    assert_eq!(more(&mut bench), Err(TooManyQuestions));
    bench.now += ms(500);
    bench.detector.on_time(&bench.view, bench.now, &mut bench.rng);
    assert_eq!(more(&mut bench), Ok(()));
}

#[test]
fn a_ping_of_run_0_is_answered_by_any_run_of_the_name_alone() {
    let bench = Bench::new(2);
    let ping = |name| Ping { seq: 5, target: NodeId::new(name, NodeId::ANY_RUN), from: id("m1") };
    assert!(bench.detector.ping(&ping("self"), addr(1), Piggyback::Yes, &Bytes::new(), &bench.view).is_ok());
    let other = bench.detector.ping(&ping("other"), addr(1), Piggyback::Yes, &Bytes::new(), &bench.view);
    assert_eq!(other, Err(Unheard::NotForMe));
}

#[test]
fn only_an_answer_to_the_direct_ping_within_the_probe_timeout_is_measured() {
    let mut bench = Bench::new(8);
    let seq = pings(&bench.step())[0].seq;
    bench.now += ms(500);
    let in_time =
        bench.detector.ack(&Ack { seq, payload: Bytes::from_static(b"load") }, ANSWERED_BY, bench.now);
    assert!(
        matches!(in_time, Ok(Some(Action::Measured { rtt, payload, .. })) if rtt == ms(500) && payload == "load")
    );

    let seq = pings(&bench.step())[0].seq;
    bench.step();
    bench.now += ms(1);
    let score = bench.detector.score();
    assert_eq!(bench.ack(seq), Ok(None), "late");
    assert_eq!(bench.detector.score(), score);
    assert!(!bench.detector.expects(seq), "it has ended the round all the same");
}
