//! The faults without nodes: one end has them, the other is bare. Each test runs in memory, in virtual time, and again
//! over sockets on loopback.

use std::{
    future::poll_fn,
    io::ErrorKind,
    num::NonZeroU64,
    sync::Arc,
    time::{Duration, Instant as Clock},
};

use actix_memberlist::network::{
    Connection, Endpoint, Network, SystemNetwork,
    faulty::{Everyone, Faults, Faulty},
    memory::MemoryNetwork,
};
use memberlist_tests::paused;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::{Instant, timeout},
};

type Stream = Box<dyn Connection>;

/// Time for anything that does happen.
const SOON: Duration = Duration::from_secs(30);

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// Runs a test in memory, then over sockets.
fn on_both(test: impl AsyncFn(Arc<dyn Network>)) {
    paused(test(Arc::new(MemoryNetwork::new(1))));
    actix::System::new().block_on(test(Arc::new(SystemNetwork)));
}

/// A node's place with faults, and a peer's without.
struct Two {
    here: Arc<dyn Endpoint>,
    there: Arc<dyn Endpoint>,
    faults: Faults,
}

impl Two {
    async fn on(network: Arc<dyn Network>) -> Self {
        let faulty = Faulty::new(network.clone(), 7);
        let any = "127.0.0.1:0".parse().unwrap();
        let (here, there) = (faulty.bind(any).await.unwrap(), network.bind(any).await.unwrap());
        Self { here, there, faults: faulty.faults() }
    }

    fn say(&self, what: &[u8]) {
        self.here.try_send(what, self.there.local_addr()).unwrap();
    }

    fn answer(&self, what: &[u8]) {
        self.there.try_send(what, self.here.local_addr()).unwrap();
    }

    async fn dial(&self) -> (Stream, Stream) {
        let dialled = timeout(SOON, self.here.dial(self.there.local_addr())).await.unwrap().unwrap();
        (dialled, timeout(SOON, poll_fn(|cx| self.there.poll_accept(cx))).await.unwrap().unwrap().0)
    }
}

async fn heard(at: &Arc<dyn Endpoint>) -> Vec<u8> {
    let mut buf = [0; 2048];
    loop {
        timeout(SOON, poll_fn(|cx| at.poll_readable(cx))).await.expect("something comes").unwrap();
        match at.try_recv(&mut buf) {
            Ok((len, _)) => return buf[..len].to_vec(),
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
        }
    }
}

async fn read(stream: &mut Stream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    timeout(SOON, stream.read_exact(&mut bytes)).await.expect("something comes").unwrap();
    bytes
}

async fn rest(stream: &mut Stream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut bytes = Vec::new();
    let end = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("it ends");
    (bytes, end.err().map(|error| error.kind()))
}

/// Nothing is to be read, not even an end.
async fn is_still(stream: &mut Stream) {
    let read = timeout(ms(100), stream.read(&mut [0; 100])).await;
    assert!(read.is_err(), "{read:?}");
}

#[test]
fn a_cut_drops_datagrams_of_its_direction_and_no_other() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        two.faults.to(&there).unwrap().cut();
        two.say(b"lost");
        two.answer(b"heard");
        assert_eq!(heard(&two.here).await, b"heard");
        two.faults.mend(&there).unwrap();
        two.say(b"whole");
        assert_eq!(heard(&two.there).await, b"whole");

        two.faults.from(&there).unwrap().cut();
        two.answer(b"lost");
        two.say(b"go on");
        assert_eq!(heard(&two.there).await, b"go on");
        // It has come and gone before the next one is let through.
        while two.faults.stats().cut < 2 {
            assert!(two.here.try_recv(&mut [0; 100]).is_err());
            tokio::time::sleep(ms(1)).await;
        }
        two.faults.mend(&there).unwrap();
        two.answer(b"whole");
        assert_eq!(heard(&two.here).await, b"whole");
        assert_eq!(two.faults.stats().cut, 2);
    });
}

#[test]
fn what_is_said_of_everyone_holds_for_all_without_faults_of_their_own() {
    on_both(async |network| {
        let two = Two::on(network.clone()).await;
        let other = network.bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        two.faults.cut(&Everyone).unwrap();
        two.faults.mend(&other.local_addr()).unwrap();
        two.say(b"lost");
        two.here.try_send(b"an exception", other.local_addr()).unwrap();
        assert_eq!(heard(&other).await, b"an exception");
        two.faults.mend(&Everyone).unwrap();
        two.say(b"whole");
        assert_eq!(heard(&two.there).await, b"whole");
        // Who was an exception is none any more, nor is who once had a fault of its own.
        two.faults.cut(&two.there.local_addr()).unwrap();
        two.faults.mend(&two.there.local_addr()).unwrap();
        two.faults.cut(&Everyone).unwrap();
        two.here.try_send(b"lost", other.local_addr()).unwrap();
        two.say(b"lost");
        assert_eq!(two.faults.stats().cut, 3);
    });
}

#[test]
fn datagrams_are_lost_and_doubled_as_often_as_was_said_and_the_same_ones_for_the_same_seed() {
    on_both(async |network| {
        let mut runs = Vec::new();
        for _ in 0..2 {
            let two = Two::on(network.clone()).await;
            let there = two.there.local_addr();
            two.faults.to(&there).unwrap().loss(0.3).duplicate(0.2);
            let mut got = Vec::new();
            for n in 0..200_u8 {
                two.say(&[n]);
                // One after the other, so that none is lost to a full buffer.
                let stats = two.faults.stats();
                let sent = usize::from(n) + 1 + stats.duplicated as usize - stats.lost as usize;
                while got.len() < sent {
                    got.extend(heard(&two.there).await);
                }
            }
            let stats = two.faults.stats();
            assert!((30..90).contains(&stats.lost) && (10..60).contains(&stats.duplicated), "{stats:?}");
            got.sort_unstable();
            runs.push(got);

            // And those that come.
            two.faults.mend(&there).unwrap();
            two.faults.from(&there).unwrap().duplicate(1.0);
            two.answer(b"twice");
            assert_eq!((heard(&two.here).await, heard(&two.here).await), (b"twice".into(), b"twice".into()));
        }
        assert_eq!(runs[0], runs[1]);
    });
}

#[test]
fn a_delay_holds_datagrams_up_both_ways_and_no_more_than_there_is_room_for() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        two.faults.with(&there).unwrap().delay(ms(200)..ms(200));
        let start = Clock::now();
        let virtually = Instant::now();
        two.say(b"late");
        // The one who sends has to be asked: nothing of the network runs by itself.
        let (_, got) = tokio::join!(timeout(ms(400), heard(&two.here)), heard(&two.there));
        assert_eq!(got, b"late");
        assert!(start.elapsed() >= ms(200) || virtually.elapsed() >= ms(200));
        two.answer(b"late too");
        let virtually = Instant::now();
        assert_eq!(heard(&two.here).await, b"late too");
        assert!(virtually.elapsed() >= ms(150), "{:?}", virtually.elapsed());

        let before = two.faults.stats().delayed;
        for _ in 0..5000 {
            two.say(b"many");
        }
        let stats = two.faults.stats();
        assert_eq!((stats.delayed - before, stats.overflowed), (4096, 904));
    });
}

#[test]
fn a_cut_stream_says_nothing_not_even_that_it_was_closed_and_a_mended_one_goes_on() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        a.write_all(b"one").await.unwrap();
        assert_eq!(read(&mut b, 3).await, b"one");

        two.faults.cut(&there).unwrap();
        a.write_all(b"two").await.unwrap();
        a.flush().await.unwrap();
        b.write_all(b"back").await.unwrap();
        is_still(&mut b).await;
        is_still(&mut a).await;
        let late = two.here.dial(there);
        assert!(timeout(ms(100), late).await.is_err(), "a dial came through");

        two.faults.mend(&there).unwrap();
        // Whoever reads brings home what was written.
        assert_eq!(read(&mut a, 4).await, b"back");
        assert_eq!(read(&mut b, 3).await, b"two");
        let (mut c, mut d) = two.dial().await;

        two.faults.to(&there).unwrap().cut();
        a.write_all(b"three").await.unwrap();
        drop(a);
        c.shutdown().await.unwrap();
        is_still(&mut b).await;
        is_still(&mut d).await;
        // One that said all before it was dropped is silent as well, and other faults make no difference.
        two.faults.from(&there).unwrap().loss(0.1);
        let (e, mut f) = {
            let dialled = two.faults.to(&there).unwrap();
            dialled.mend();
            let both = two.dial().await;
            dialled.cut();
            both
        };
        drop(e);
        two.faults.from(&there).unwrap().loss(0.2);
        is_still(&mut f).await;
        two.faults.mend(&there).unwrap();
        assert_eq!(rest(&mut f).await, (Vec::new(), None));
        let ended = async { (rest(&mut b).await, read_after(&mut c, &mut d).await) };
        // What was dropped is brought home by its endpoint.
        let (ended, _) = tokio::join!(ended, timeout(ms(500), heard(&two.here)));
        assert_eq!(ended.0, (b"three".to_vec(), None));
        assert_eq!(ended.1, (Vec::new(), None));
    });
}

/// What one end still reads, while the other is polled.
async fn read_after(polled: &mut Stream, reads: &mut Stream) -> (Vec<u8>, Option<ErrorKind>) {
    let mut buf = [0; 10];
    tokio::select! {
        biased;
        read = polled.read(&mut buf) => panic!("{read:?}"),
        rest = rest(reads) => rest,
    }
}

#[test]
fn a_pause_holds_streams_and_dials_and_lets_datagrams_pass() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        two.faults.pause(&there).unwrap();
        a.write_all(b"waits").await.unwrap();
        is_still(&mut b).await;
        two.say(b"passes");
        assert_eq!(heard(&two.there).await, b"passes");
        let dial = two.here.dial(there);
        let mut dial = std::pin::pin!(dial);
        assert!(timeout(ms(100), &mut dial).await.is_err());
        two.faults.resume(&there).unwrap();
        assert!(timeout(SOON, dial).await.unwrap().is_ok());
        // One that is under way waits for its answer.
        let dial = two.here.dial(there);
        let mut dial = std::pin::pin!(dial);
        assert!(futures_util::poll!(&mut dial).is_pending());
        two.faults.pause(&there).unwrap();
        assert!(timeout(ms(100), &mut dial).await.is_err());
        two.faults.resume(&there).unwrap();
        assert!(timeout(SOON, dial).await.unwrap().is_ok());
        b.write_all(b"!").await.unwrap();
        assert_eq!(read(&mut a, 1).await, b"!");
        assert_eq!(read(&mut b, 5).await, b"waits");
    });
}

#[test]
fn a_stalled_stream_takes_what_there_is_room_for_and_then_no_more_while_dials_pass() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        two.faults.to(&there).unwrap().stall();
        let mut taken = 0;
        while let Ok(written) = timeout(ms(100), a.write(&[7; 10_000])).await {
            taken += written.unwrap();
            assert!(taken <= 64 << 10, "{taken}");
        }
        assert_eq!(taken, 64 << 10);
        is_still(&mut b).await;
        b.write_all(b"back").await.unwrap();
        assert_eq!(read(&mut a, 4).await, b"back");
        // So it is with one that is opened later.
        let (mut c, mut d) = two.dial().await;
        c.write_all(b"stays").await.unwrap();
        is_still(&mut d).await;
        two.faults.mend(&there).unwrap();
        let says = async {
            a.write_all(b"end").await.unwrap();
            a.read(&mut [0]).await
        };
        let got = tokio::select! {
            biased;
            read = says => panic!("{read:?}"),
            got = read(&mut b, taken + 3) => got,
        };
        assert!(got.ends_with(b"end"));
    });
}

#[test]
fn a_reset_breaks_the_streams_that_are_open_and_no_later_one() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        let reader = async { a.read(&mut [0; 10]).await.unwrap_err().kind() };
        let breaker = async {
            tokio::task::yield_now().await;
            assert_eq!(two.faults.with(&there).unwrap().reset(), 1);
        };
        assert_eq!(
            timeout(SOON, async { tokio::join!(reader, breaker).0 }).await,
            Ok(ErrorKind::ConnectionReset)
        );
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::ConnectionReset);
        assert_eq!(rest(&mut b).await.0, b"");
        let (mut c, mut d) = two.dial().await;
        c.write_all(b"later").await.unwrap();
        assert_eq!(read(&mut d, 5).await, b"later");
    });
}

#[test]
fn a_truncated_stream_ends_after_so_many_bytes_for_both() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        assert_eq!(two.faults.to(&there).unwrap().truncate(5), 1);
        a.write_all(b"a long message").await.unwrap();
        assert_eq!(rest(&mut b).await, (b"a lon".to_vec(), None));
        assert_eq!(a.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(rest(&mut a).await.0, b"");
        drop(a);

        let (mut a, mut b) = two.dial().await;
        assert_eq!(two.faults.from(&there).unwrap().truncate(3), 1);
        b.write_all(b"a long answer").await.unwrap();
        assert_eq!(rest(&mut a).await, (b"a l".to_vec(), None));
        assert_eq!(a.write(b"more").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        assert_eq!(rest(&mut b).await.0, b"");
    });
}

#[test]
fn a_half_closed_stream_goes_on_in_the_other_direction() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        assert_eq!(two.faults.to(&there).unwrap().half_close(), 1);
        // The stream learns of it when it is looked at.
        b.write_all(b"still").await.unwrap();
        assert_eq!(read(&mut a, 5).await, b"still");
        assert_eq!(rest(&mut b).await, (Vec::new(), None));
        assert_eq!(a.write(b"x").await.unwrap_err().kind(), ErrorKind::BrokenPipe);
        b.write_all(b"here").await.unwrap();
        assert_eq!(read(&mut a, 4).await, b"here");
        drop(a);

        let (mut a, mut b) = two.dial().await;
        assert_eq!(two.faults.from(&there).unwrap().half_close(), 1);
        b.write_all(b"unheard").await.unwrap();
        assert_eq!(rest(&mut a).await, (Vec::new(), None));
        a.write_all(b"said").await.unwrap();
        assert_eq!(read(&mut b, 4).await, b"said");
    });
}

#[test]
fn a_throttled_stream_carries_so_many_bytes_a_second_and_a_late_one_keeps_its_order() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        two.faults.with(&there).unwrap().throttle(NonZeroU64::new(20_000).unwrap());
        let start = Instant::now();
        a.write_all(&[1; 10_000]).await.unwrap();
        let mut quiet = [0];
        // Whoever waits for an answer brings on its way what was said.
        let got = tokio::select! {
            biased;
            read = a.read(&mut quiet) => panic!("{read:?}"),
            got = read(&mut b, 10_000) => got,
        };
        assert_eq!(got, [1; 10_000]);
        // The first slice goes at once.
        assert!(start.elapsed() >= ms(440), "{:?}", start.elapsed());

        two.faults.mend(&there).unwrap();
        two.faults.with(&there).unwrap().delay(ms(1)..ms(40));
        let said: Vec<u8> = (0..100).collect();
        let says = async {
            for byte in &said {
                b.write_all(&[*byte]).await.unwrap();
                tokio::time::sleep(ms(2)).await;
            }
            b.shutdown().await.unwrap();
        };
        let (_, got) = tokio::join!(says, rest(&mut a));
        assert_eq!(got, (said, None));
    });
}

#[test]
fn who_cannot_hear_a_peer_does_not_learn_by_writing_either_that_it_has_gone() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, b) = two.dial().await;
        two.faults.from(&there).unwrap().cut();
        drop(b);
        // A write may still be taken, since the word of it is on its way.
        for _ in 0..10 {
            match timeout(ms(100), a.write(b"x")).await {
                Err(_) => {}
                Ok(written) => assert_eq!(written.unwrap(), 1),
            }
        }
        is_still(&mut a).await;
        two.faults.mend(&there).unwrap();
        let learns = async { while a.write(b"x").await.is_ok() {} };
        timeout(SOON, learns).await.unwrap();
    });
}

#[allow(clippy::disallowed_methods, reason = "a task of its own: it goes on only if it is woken")]
fn apart<T: 'static>(task: impl Future<Output = T> + 'static) -> tokio::task::JoinHandle<T> {
    actix_rt::spawn(task)
}

#[test]
fn whoever_waits_learns_of_what_is_changed() {
    on_both(async |network| {
        let two = Two::on(network).await;
        let there = two.there.local_addr();
        let (mut a, mut b) = two.dial().await;
        let reads = apart(async move { (read(&mut a, 3).await, a.read(&mut [0; 10]).await, a) });
        two.faults.cut(&there).unwrap();
        b.write_all(b"one").await.unwrap();
        tokio::time::sleep(ms(50)).await;
        assert!(!reads.is_finished());
        two.faults.mend(&there).unwrap();
        tokio::time::sleep(ms(50)).await;
        assert_eq!(two.faults.with(&there).unwrap().reset(), 1);
        let (got, broken, _) = timeout(SOON, reads).await.expect("it is woken").unwrap();
        assert_eq!((got, broken.unwrap_err().kind()), (b"one".to_vec(), ErrorKind::ConnectionReset));

        // Whoever reads brings on its way what others have said, although that comes later.
        let here = two.here.clone();
        let reads = apart(async move { heard(&here).await });
        tokio::time::sleep(ms(50)).await;
        two.faults.to(&there).unwrap().delay(ms(20)..ms(20));
        tokio::time::sleep(ms(50)).await;
        two.say(b"late");
        assert_eq!(heard(&two.there).await, b"late");
        two.answer(b"end");
        assert_eq!(timeout(SOON, reads).await.unwrap().unwrap(), b"end");
    });
}
