use std::{
    collections::BTreeSet,
    future::poll_fn,
    net::{IpAddr, Ipv4Addr},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::{Wake, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf},
    time::timeout,
};

use super::{super::SystemNetwork, *};

type Stream = Box<dyn Connection>;

/// Runs a test in an actix system whose clock is paused.
fn simulate<F: Future>(test: F) -> F::Output {
    actix_rt::System::with_tokio_rt(|| {
        tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
    })
    .block_on(test)
}

fn host(n: u8) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)), 7946)
}

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// A task of its own: it goes on only if it is woken.
#[allow(clippy::disallowed_methods)]
fn spawn<T: 'static>(task: impl Future<Output = T> + 'static) -> tokio::task::JoinHandle<T> {
    actix_rt::spawn(task)
}

/// Counts how often it is woken.
#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Count {
    fn take(&self) -> usize {
        self.0.swap(0, Ordering::Relaxed)
    }
}

/// A link without chance: always as late.
fn steady(latency: u64) -> Link {
    Link { latency: ms(latency)..ms(latency), ..Link::default() }
}

async fn bind(network: &impl Network, addr: SocketAddr) -> Arc<dyn Endpoint> {
    network.bind(addr).await.unwrap()
}

/// Two hosts on a steady link.
async fn pair(network: &MemoryNetwork, latency: u64) -> (Arc<dyn Endpoint>, Arc<dyn Endpoint>) {
    network.set_default(steady(latency));
    (bind(network, host(1)).await, bind(network, host(2)).await)
}

async fn receive(endpoint: &Arc<dyn Endpoint>) -> (Vec<u8>, SocketAddr) {
    poll_fn(|cx| endpoint.poll_readable(cx)).await.unwrap();
    let mut buf = [0; 2048];
    let (length, from) = endpoint.try_recv(&mut buf).unwrap();
    (buf[..length].to_vec(), from)
}

async fn received_within(endpoint: &Arc<dyn Endpoint>, limit: u64) -> Option<Vec<u8>> {
    timeout(ms(limit), receive(endpoint)).await.ok().map(|(datagram, _)| datagram)
}

/// All that waits at an endpoint.
fn drain(endpoint: &Arc<dyn Endpoint>) -> Vec<Vec<u8>> {
    let mut buf = [0; 2048];
    std::iter::from_fn(|| endpoint.try_recv(&mut buf).ok().map(|(length, _)| buf[..length].to_vec()))
        .collect()
}

async fn accept(endpoint: &Arc<dyn Endpoint>) -> (Stream, SocketAddr) {
    poll_fn(|cx| endpoint.poll_accept(cx)).await.unwrap()
}

/// A stream from the first endpoint to the second.
async fn connect(from: &Arc<dyn Endpoint>, to: &Arc<dyn Endpoint>) -> (Stream, Stream) {
    let dialled = from.dial(to.local_addr()).await.unwrap();
    (dialled, accept(to).await.0)
}

fn kind<T>(result: io::Result<T>) -> io::ErrorKind {
    result.err().map(|error| error.kind()).unwrap()
}

async fn read_all(stream: &mut Stream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).await.unwrap();
    all
}

/// Writes until the stream takes no more for a second; how much it took.
async fn fill(stream: &mut Stream) -> usize {
    let mut taken = 0;
    while let Ok(written) = timeout(ms(1000), stream.write(&[7; 5000])).await {
        taken += written.unwrap();
    }
    taken
}

#[test]
fn a_datagram_takes_the_latency_of_its_link() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 5).await;
        network.set_link(host(2), host(1), steady(70));
        let start = Instant::now();
        a.try_send(b"ping", host(2)).unwrap();
        assert_eq!(receive(&b).await, (b"ping".to_vec(), host(1)));
        assert_eq!(start.elapsed(), ms(5));
        b.try_send(b"ack", host(1)).unwrap();
        assert_eq!(receive(&a).await, (b"ack".to_vec(), host(2)));
        assert_eq!(start.elapsed(), ms(75));
        assert_eq!(network.stats(), Stats { datagrams: 2, bytes: 7, ..Stats::default() });
    });
}

#[test]
fn a_random_latency_stays_within_its_range() {
    simulate(async {
        let network = MemoryNetwork::new(2);
        let (a, b) = pair(&network, 1).await;
        network.set_default(Link { latency: ms(10)..ms(50), ..Link::default() });
        let mut seen = BTreeSet::new();
        for _ in 0..200 {
            let start = Instant::now();
            a.try_send(b"x", host(2)).unwrap();
            receive(&b).await;
            seen.insert(start.elapsed().as_millis());
        }
        assert!(seen.first() >= Some(&10) && seen.last() <= Some(&50), "{seen:?}");
        assert!(seen.len() > 30, "{seen:?}");
    });
}

#[test]
fn a_datagram_that_does_not_fit_is_cut_off() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        a.try_send(b"abcdef", host(2)).unwrap();
        poll_fn(|cx| b.poll_readable(cx)).await.unwrap();
        let mut buf = [0; 4];
        assert_eq!(b.try_recv(&mut buf).unwrap(), (4, host(1)));
        assert_eq!(&buf, b"abcd");
        assert_eq!(kind(b.try_recv(&mut buf)), io::ErrorKind::WouldBlock);
    });
}

#[test]
fn no_datagram_is_longer_than_udp_allows() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, _b) = pair(&network, 1).await;
        a.try_send(&[0; 65_507], host(2)).unwrap();
        let refused = a.try_send(&[0; 65_508], host(2)).unwrap_err();
        assert_eq!(refused.to_string(), "datagram of 65508 bytes, the limit is 65507");
    });
}

#[test]
fn loss_duplication_and_delay_strike_as_often_as_they_should() {
    simulate(async {
        let network = MemoryNetwork::new(3);
        let (a, b) = pair(&network, 10).await;
        let link = Link { loss: 0.25, duplicate: 0.1, reorder: 0.2, reorder_by: ms(400), ..steady(10) };
        network.set_link(host(1), host(2), link);
        for n in 0..4000_u16 {
            a.try_send(&n.to_be_bytes(), host(2)).unwrap();
        }
        tokio::time::sleep(ms(20)).await;
        let on_time = drain(&b);
        tokio::time::sleep(ms(400)).await;
        let late = drain(&b);

        let stats = network.stats();
        assert!((900..1100).contains(&stats.lost), "{stats:?}");
        assert!((240..360).contains(&stats.duplicated), "{stats:?}");
        assert_eq!((on_time.len() + late.len()) as u64, 4000 - stats.lost + stats.duplicated);
        let share = late.len() as f64 / (on_time.len() + late.len()) as f64;
        assert!((0.16..0.23).contains(&share), "{share}");
        let distinct: BTreeSet<_> = on_time.iter().chain(&late).collect();
        assert_eq!(distinct.len() as u64, 4000 - stats.lost);
        assert!(!late.is_sorted(), "held up by one and the same delay");
    });
}

#[test]
fn without_delays_and_jitter_datagrams_keep_their_order() {
    simulate(async {
        let network = MemoryNetwork::new(3);
        let (a, b) = pair(&network, 10).await;
        for n in 0..1000_u16 {
            a.try_send(&n.to_be_bytes(), host(2)).unwrap();
        }
        tokio::time::sleep(ms(20)).await;
        let all = drain(&b);
        assert!(all.len() == 1000 && all.is_sorted());
    });
}

#[test]
fn a_full_queue_drops_the_newest() {
    simulate(async {
        let network = MemoryNetwork::new(4);
        let (a, b) = pair(&network, 1).await;
        for n in 0..5000_u16 {
            a.try_send(&n.to_be_bytes(), host(2)).unwrap();
        }
        tokio::time::sleep(ms(5)).await;
        let kept = drain(&b);
        assert_eq!(kept.len(), 4096);
        assert_eq!(kept[4095], 4095_u16.to_be_bytes());
        assert_eq!(network.stats().overflowed, 904);
    });
}

#[test]
fn a_cut_swallows_datagrams_in_one_direction_only() {
    simulate(async {
        let network = MemoryNetwork::new(5);
        let (a, b) = pair(&network, 3).await;
        a.try_send(b"on its way", host(2)).unwrap();
        network.cut(host(1), host(2));
        a.try_send(b"into the cut", host(2)).unwrap();
        b.try_send(b"back", host(1)).unwrap();
        assert_eq!(received_within(&a, 10).await.unwrap(), b"back");
        assert_eq!(received_within(&b, 10).await.unwrap(), b"on its way");
        assert_eq!(received_within(&b, 1000).await, None);
        assert_eq!(network.stats().cut, 1);

        network.mend(host(1), host(2));
        assert_eq!(received_within(&b, 1000).await, None);
        a.try_send(b"again", host(2)).unwrap();
        assert_eq!(received_within(&b, 10).await.unwrap(), b"again");
    });
}

#[test]
fn a_partition_parts_the_groups_and_nothing_within_them() {
    simulate(async {
        let network = MemoryNetwork::new(6);
        let mut hosts = Vec::new();
        for n in 0..4 {
            hosts.push(bind(&network, host(n)).await);
        }
        // A link that says so is cut like one that was cut later.
        network.set_link(host(0), host(1), Link { cut: true, ..steady(1) });
        network.partition(&[host(0), host(1)], &[host(2), host(3)]);
        let reached = async || {
            let mut reached = Vec::new();
            for (from, endpoint) in hosts.iter().enumerate() {
                for to in 0..4 {
                    endpoint.try_send(&[from as u8, to], host(to)).unwrap();
                }
            }
            tokio::time::sleep(ms(10)).await;
            hosts.iter().for_each(|endpoint| reached.extend(drain(endpoint)));
            reached.sort();
            reached
        };
        let within = [[0, 0], [1, 0], [1, 1], [2, 2], [2, 3], [3, 2], [3, 3]];
        assert_eq!(reached().await, within);
        network.heal();
        assert_eq!(reached().await.len(), 16);
    });
}

#[test]
fn a_mend_goes_before_a_default_that_is_cut() {
    simulate(async {
        let network = MemoryNetwork::new(6);
        let (a, b) = pair(&network, 1).await;
        network.set_default(Link { cut: true, ..steady(1) });
        network.mend(host(1), host(2));
        a.try_send(b"x", host(2)).unwrap();
        b.try_send(b"x", host(1)).unwrap();
        assert!(received_within(&b, 10).await.is_some());
        assert!(received_within(&a, 10).await.is_none());

        network.cut(host(1), host(2));
        network.set_link(host(1), host(2), steady(1));
        a.try_send(b"x", host(2)).unwrap();
        assert!(received_within(&b, 10).await.is_some(), "so does a link that is set later");
    });
}

#[test]
fn port_zero_counts_up_per_host_and_skips_what_is_taken() {
    simulate(async {
        let network = MemoryNetwork::new(7);
        let at = |n: u8, port| SocketAddr::new(host(n).ip(), port);
        let _taken = bind(&network, at(1, 1025)).await;
        let mut ports = Vec::new();
        let mut endpoints = Vec::new();
        for n in [1, 1, 2, 1] {
            let endpoint = bind(&network, at(n, 0)).await;
            ports.push(endpoint.local_addr());
            endpoints.push(endpoint);
        }
        assert_eq!(ports, [at(1, 1024), at(1, 1026), at(2, 1024), at(1, 1027)]);
    });
}

#[test]
fn an_address_is_free_again_once_its_endpoint_is_dropped() {
    simulate(async {
        let network = MemoryNetwork::new(8);
        let (a, b) = pair(&network, 2).await;
        assert_eq!(kind(network.bind(host(1)).await), io::ErrorKind::AddrInUse);
        let also_b = b.clone();
        drop(b);
        assert_eq!(kind(network.bind(host(2)).await), io::ErrorKind::AddrInUse);
        drop(also_b);
        a.try_send(b"vanishes", host(2)).unwrap();
        tokio::time::sleep(ms(5)).await;

        let b = bind(&network, host(2)).await;
        assert_eq!(received_within(&b, 10).await, None);
        a.try_send(b"arrives", host(2)).unwrap();
        assert_eq!(received_within(&b, 10).await.unwrap(), b"arrives");
    });
}

#[test]
fn a_stream_carries_both_directions_with_latency() {
    simulate(async {
        let network = MemoryNetwork::new(9);
        let (a, b) = pair(&network, 10).await;
        let start = Instant::now();
        let mut dialled = a.dial(host(2)).await.unwrap();
        assert_eq!(start.elapsed(), ms(20), "a question and an answer");
        let (mut accepted, from) = accept(&b).await;
        assert_eq!(from, "10.0.0.1:40000".parse().unwrap());
        assert_eq!(start.elapsed(), ms(30));

        dialled.write_all(b"hello").await.unwrap();
        let mut buf = [0; 5];
        accepted.read_exact(&mut buf).await.unwrap();
        assert_eq!((&buf, start.elapsed()), (b"hello", ms(40)));
        accepted.write_all(b"world").await.unwrap();
        dialled.read_exact(&mut buf).await.unwrap();
        assert_eq!((&buf, start.elapsed()), (b"world", ms(50)));
        let stats = network.stats();
        assert_eq!((stats.dials, stats.chunks, stats.bytes), (1, 2, 10));

        let _second = a.dial(host(2)).await.unwrap();
        assert_eq!(accept(&b).await.1.port(), 40_001);
    });
}

#[test]
fn chunks_arrive_in_order_whatever_their_latencies() {
    simulate(async {
        let network = MemoryNetwork::new(10);
        let (a, b) = pair(&network, 1).await;
        let chaos = Link { latency: ms(1)..ms(300), loss: 0.9, duplicate: 0.9, reorder: 0.9, ..steady(1) };
        network.set_default(chaos);
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        let sent: Vec<u8> = (0..10_000_u32).map(|n| (n % 251) as u8).collect();
        for part in sent.chunks(97) {
            dialled.write_all(part).await.unwrap();
            tokio::time::sleep(ms(1)).await;
        }
        dialled.shutdown().await.unwrap();
        assert!(read_all(&mut accepted).await == sent);
    });
}

#[test]
fn a_shutdown_ends_one_direction_after_its_latency() {
    simulate(async {
        let network = MemoryNetwork::new(11);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        let start = Instant::now();
        dialled.write_all(b"last").await.unwrap();
        dialled.shutdown().await.unwrap();
        assert_eq!(kind(dialled.write(b"more").await), io::ErrorKind::BrokenPipe);
        assert_eq!(read_all(&mut accepted).await, b"last");
        assert_eq!(start.elapsed(), ms(10));
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        assert_eq!(read_all(&mut dialled).await, b"answer");
        assert_eq!(start.elapsed(), ms(20));
    });
}

#[test]
fn a_dropped_end_is_an_end_of_file_and_then_a_reset_for_who_keeps_writing() {
    simulate(async {
        let network = MemoryNetwork::new(12);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, accepted) = connect(&a, &b).await;
        drop(accepted);
        assert_eq!(read_all(&mut dialled).await, b"");
        dialled.write_all(b"anyone?").await.unwrap();
        tokio::time::sleep(ms(25)).await;
        assert_eq!(kind(dialled.write(b"anyone?").await), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(dialled.read(&mut [0; 4]).await), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn an_endpoint_that_goes_away_resets_its_streams() {
    simulate(async {
        let network = MemoryNetwork::new(13);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        let mut waiting = a.dial(host(2)).await.unwrap();
        tokio::time::sleep(ms(10)).await;
        accepted.write_all(b"before").await.unwrap();

        let start = Instant::now();
        drop(b);
        assert_eq!(kind(accepted.write(b"x").await), io::ErrorKind::ConnectionReset);
        let mut buf = [0; 6];
        dialled.read_exact(&mut buf).await.unwrap();
        assert_eq!(kind(dialled.read(&mut buf).await), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(waiting.read(&mut buf).await), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(dialled.write(b"x").await), io::ErrorKind::ConnectionReset);
        assert_eq!(start.elapsed(), ms(10));
    });
}

#[test]
fn a_reset_wakes_readers_and_writers_on_both_sides() {
    simulate(async {
        let network = MemoryNetwork::new(13);
        let (a, b) = pair(&network, 10).await;
        let (mut near_reader, mut far_reader) = connect(&a, &b).await;
        let (mut near_writer, mut far_writer) = connect(&a, &b).await;
        fill(&mut near_writer).await;
        fill(&mut far_writer).await;
        let start = Instant::now();
        let when = move |result: io::Result<usize>| (kind(result), start.elapsed());
        let waiting = [
            spawn(async move { when(near_reader.read(&mut [0]).await) }),
            spawn(async move { when(near_writer.write(b"x").await) }),
            spawn(async move { when(far_reader.read(&mut [0]).await) }),
            spawn(async move { when(far_writer.write(b"x").await) }),
        ];
        tokio::task::yield_now().await;
        drop(b);
        for (each, after) in waiting.into_iter().zip([10, 10, 0, 0]) {
            assert_eq!(each.await.unwrap(), (io::ErrorKind::ConnectionReset, ms(after)));
        }
    });
}

#[test]
fn a_dial_does_not_outlive_its_endpoint() {
    simulate(async {
        let network = MemoryNetwork::new(14);
        let (a, b) = pair(&network, 10).await;
        let dialling = a.dial(host(2));
        drop(a);
        assert_eq!(kind(dialling.await), io::ErrorKind::ConnectionAborted);
        assert!(timeout(ms(1000), accept(&b)).await.is_err());
    });
}

#[test]
fn a_dial_to_nobody_is_refused_after_one_latency() {
    simulate(async {
        let network = MemoryNetwork::new(14);
        let (a, b) = pair(&network, 10).await;
        drop(b);
        let start = Instant::now();
        assert_eq!(kind(a.dial(host(2)).await), io::ErrorKind::ConnectionRefused);
        assert_eq!(start.elapsed(), ms(10));
        assert_eq!((network.stats().dials, network.stats().refused), (1, 1));
    });
}

#[test]
fn a_host_that_vanishes_during_the_handshake_resets_the_stream() {
    simulate(async {
        let network = MemoryNetwork::new(14);
        let (a, b) = pair(&network, 10).await;
        let (dialled, ()) = tokio::join!(a.dial(host(2)), async {
            tokio::time::sleep(ms(15)).await;
            drop(b);
        });
        assert_eq!(kind(dialled.unwrap().read(&mut [0]).await), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_dial_that_was_given_up_opens_nothing() {
    simulate(async {
        let network = MemoryNetwork::new(14);
        let (a, b) = pair(&network, 10).await;
        assert!(timeout(ms(15), a.dial(host(2))).await.is_err());
        assert!(timeout(ms(1000), accept(&b)).await.is_err());
    });
}

#[test]
fn no_dial_gets_through_a_cut_in_either_direction() {
    simulate(async {
        let network = MemoryNetwork::new(15);
        let (a, b) = pair(&network, 10).await;
        network.cut(host(1), host(2));
        assert!(timeout(ms(60_000), a.dial(host(2))).await.is_err());
        assert!(timeout(ms(60_000), b.dial(host(1))).await.is_err());
        for _ in 0..10 {
            assert!(timeout(ms(100), a.dial(host(2))).await.is_err());
        }
        let held = network.with(|state| state.held[&(host(1), host(2))].len());
        assert!(held <= 2, "{held} dials are held that nobody waits for");
        drop(b);
        assert!(timeout(ms(60_000), a.dial(host(2))).await.is_err(), "nor does a refusal");

        let b = bind(&network, host(2)).await;
        let (dialled, ()) = tokio::join!(a.dial(host(2)), async {
            tokio::time::sleep(ms(500)).await;
            network.mend(host(1), host(2));
        });
        dialled.unwrap().write_all(b"x").await.unwrap();
        assert_eq!(accept(&b).await.1.port(), 40_000, "the dials given up left nothing");
        assert!(timeout(ms(1000), accept(&b)).await.is_err());
    });
}

#[test]
fn a_cut_holds_chunks_back_until_it_is_mended() {
    simulate(async {
        let network = MemoryNetwork::new(16);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        dialled.write_all(b"in flight ").await.unwrap();
        network.partition(&[host(1)], &[host(2)]);
        dialled.write_all(b"held ").await.unwrap();
        assert!(timeout(ms(60_000), accepted.read(&mut [0; 4])).await.is_err());
        network.mend(host(2), host(1));
        accepted.write_all(b"answer").await.unwrap();
        let mut buf = [0; 6];
        assert!(timeout(ms(11), dialled.read_exact(&mut buf)).await.is_ok(), "the other way is open");

        let start = Instant::now();
        network.heal();
        dialled.write_all(b"new").await.unwrap();
        drop(dialled);
        assert_eq!(read_all(&mut accepted).await, b"in flight held new");
        assert_eq!(start.elapsed(), ms(10));
    });
}

#[test]
fn a_stream_takes_64_kib_until_they_are_read() {
    simulate(async {
        let network = MemoryNetwork::new(17);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        assert_eq!(fill(&mut dialled).await, 65_536);
        accepted.read_exact(&mut [0; 1000]).await.unwrap();
        assert_eq!(fill(&mut dialled).await, 1000);
        assert_eq!(fill(&mut accepted).await, 65_536, "the other direction has room of its own");
    });
}

#[test]
fn a_large_transfer_flows_through_the_window() {
    simulate(async {
        let network = MemoryNetwork::new(18);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n % 253) as u8).collect();
        let writing = sent.clone();
        spawn(async move { dialled.write_all(&writing).await.unwrap() });
        let reading = spawn(async move { read_all(&mut accepted).await });
        assert!(timeout(ms(1000), reading).await.unwrap().unwrap() == sent);
    });
}

#[test]
fn a_reader_that_is_dropped_frees_a_writer_that_waits() {
    simulate(async {
        let network = MemoryNetwork::new(19);
        let (a, b) = pair(&network, 10).await;
        let (mut dialled, accepted) = connect(&a, &b).await;
        fill(&mut dialled).await;
        let writing = spawn(async move { dialled.write_all(&[0; 1 << 20]).await });
        tokio::task::yield_now().await;
        drop(accepted);
        let written = timeout(ms(1000), writing).await.unwrap().unwrap();
        assert_eq!(kind(written), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_paused_host_hears_nothing_until_it_is_resumed() {
    simulate(async {
        let network = MemoryNetwork::new(20);
        let (a, b) = pair(&network, 1).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        network.pause(host(2));
        a.try_send(b"one", host(2)).unwrap();
        a.try_send(b"two", host(2)).unwrap();
        dialled.write_all(b"chunk").await.unwrap();
        let second = timeout(ms(100), a.dial(host(2))).await;
        assert!(second.unwrap().is_ok(), "its kernel still completes handshakes");

        let mut buf = [0; 5];
        assert_eq!(received_within(&b, 1000).await, None);
        assert_eq!(kind(b.try_recv(&mut buf)), io::ErrorKind::WouldBlock);
        assert!(timeout(ms(1000), accept(&b)).await.is_err());
        assert!(timeout(ms(1000), accepted.read(&mut buf)).await.is_err());

        network.resume(host(2));
        assert_eq!(receive(&b).await.0, b"one");
        assert_eq!(drain(&b), [b"two"]);
        assert_eq!(accept(&b).await.1.port(), 40_001);
        assert_eq!(accepted.read(&mut buf).await.unwrap(), 5);
    });
}

#[test]
fn what_arrives_during_a_pause_wakes_nobody_before_its_end() {
    simulate(async {
        let network = MemoryNetwork::new(20);
        let (a, b) = pair(&network, 1).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        let (mut far_reader, mut full) = connect(&a, &b).await;
        fill(&mut full).await;

        let counts: [Arc<Count>; 4] = std::array::from_fn(|_| Arc::default());
        let wakers = counts.clone().map(Waker::from);
        let mut wait = || {
            let [datagram, stream, chunk, room] = wakers.each_ref().map(Context::from_waker);
            assert!(b.poll_readable(&mut { datagram }).is_pending());
            assert!(b.poll_accept(&mut { stream }).is_pending());
            let reading = Pin::new(&mut accepted).poll_read(&mut { chunk }, &mut ReadBuf::new(&mut [0]));
            assert!(reading.is_pending());
            assert!(Pin::new(&mut full).poll_write(&mut { room }, b"x").is_pending());
        };
        wait();
        network.pause(host(2));
        a.try_send(b"x", host(2)).unwrap();
        dialled.write_all(b"x").await.unwrap();
        let _second = a.dial(host(2)).await.unwrap();
        far_reader.read_exact(&mut [0; 9]).await.unwrap();
        tokio::time::sleep(ms(100)).await;
        assert_eq!(counts.each_ref().map(|count| count.take()), [0; 4]);
        wait();
        network.resume(host(2));
        assert_eq!(counts.each_ref().map(|count| count.take()), [1; 4]);
    });
}

#[test]
fn nothing_is_taken_from_a_paused_host() {
    simulate(async {
        let network = MemoryNetwork::new(21);
        let (a, b) = pair(&network, 1).await;
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        network.pause(host(1));
        assert_eq!(kind(a.try_send(b"x", host(2))), io::ErrorKind::WouldBlock);
        assert!(timeout(ms(1000), dialled.write(b"x")).await.is_err());
        assert!(timeout(ms(1000), dialled.shutdown()).await.is_err());
        let (written, stream, ()) = tokio::join!(dialled.write_all(b"late"), a.dial(host(2)), async {
            assert!(timeout(ms(1000), accept(&b)).await.is_err());
            assert!(timeout(ms(1000), accepted.read(&mut [0])).await.is_err());
            network.resume(host(1));
        });
        assert!(written.is_ok() && stream.is_ok());
        a.try_send(b"x", host(2)).unwrap();
        assert!(received_within(&b, 10).await.is_some());
        accepted.read_exact(&mut [0; 4]).await.unwrap();
        accept(&b).await;
    });
}

#[test]
fn an_earlier_delivery_is_not_kept_waiting_by_a_later_one() {
    simulate(async {
        let network = MemoryNetwork::new(22);
        let (a, b) = pair(&network, 60_000).await;
        a.try_send(b"slow", host(2)).unwrap();
        tokio::time::sleep(ms(10)).await;
        network.set_default(steady(1));
        a.try_send(b"fast", host(2)).unwrap();
        assert_eq!(received_within(&b, 2).await.unwrap(), b"fast");
        assert_eq!(receive(&b).await.0, b"slow");
    });
}

#[test]
fn the_network_lives_as_long_as_somebody_uses_it() {
    simulate(async {
        let network = MemoryNetwork::new(23);
        let (shared, earlier) = (Arc::downgrade(&network.0), network.0.earlier.clone());
        assert_eq!(Arc::strong_count(&earlier), 2);
        let (a, b) = pair(&network, 1).await;
        drop(network);
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        dialled.write_all(b"x").await.unwrap();
        assert_eq!(accepted.read(&mut [0]).await.unwrap(), 1);
        drop((a, b, dialled));
        assert!(shared.strong_count() > 0);
        drop(accepted);
        tokio::time::sleep(ms(1)).await;
        assert_eq!((shared.strong_count(), Arc::strong_count(&earlier)), (0, 1), "the driver has ended");
    });
}

#[test]
fn an_idle_driver_ends_with_its_network() {
    simulate(async {
        let network = MemoryNetwork::new(23);
        let earlier = network.0.earlier.clone();
        let endpoints = pair(&network, 1).await;
        tokio::time::sleep(ms(10)).await;
        assert_eq!(Arc::strong_count(&earlier), 3);
        drop((network, endpoints));
        tokio::time::sleep(ms(1)).await;
        assert_eq!(Arc::strong_count(&earlier), 1);
    });
}

#[test]
fn closed_streams_leave_nothing_behind() {
    simulate(async {
        let network = MemoryNetwork::new(23);
        let (a, b) = pair(&network, 1).await;
        for n in 0..4 {
            let (mut dialled, accepted) = connect(&a, &b).await;
            dialled.write_all(b"unread").await.unwrap();
            if n % 2 == 0 {
                tokio::time::sleep(ms(5)).await;
            }
            drop(accepted);
        }
        let never_accepted = a.dial(host(2)).await.unwrap();
        tokio::time::sleep(ms(5)).await;
        drop(b);
        assert_eq!(network.with(|state| state.streams.len()), 1, "the one that its dialler still holds");
        drop(never_accepted);
        assert_eq!(network.with(|state| state.streams.len()), 0);
    });
}

#[test]
fn a_network_goes_on_in_the_next_runtime() {
    let network = MemoryNetwork::new(24);
    for _ in 0..2 {
        let network = network.clone();
        simulate(async move {
            let (a, b) = pair(&network, 1).await;
            a.try_send(b"x", host(2)).unwrap();
            assert!(received_within(&b, 10).await.is_some());
        });
    }
}

#[test]
fn who_is_woken_may_come_back_at_once() {
    /// Takes what has come, and answers it, before the call that woke it returns.
    struct Eager(Arc<dyn Endpoint>, Mutex<Vec<u8>>);

    impl Wake for Eager {
        fn wake(self: Arc<Self>) {
            let mut buf = [0; 8];
            let (length, from) = self.0.try_recv(&mut buf).unwrap();
            self.1.lock().unwrap().extend(&buf[..length]);
            self.0.try_send(b"ack", from).unwrap();
        }
    }

    simulate(async {
        let network = MemoryNetwork::new(25);
        let (a, b) = pair(&network, 1).await;
        let eager = Arc::new(Eager(b.clone(), Mutex::default()));
        let waker = eager.clone().into();
        assert!(b.poll_readable(&mut Context::from_waker(&waker)).is_pending());
        a.try_send(b"ping", host(2)).unwrap();
        assert_eq!(received_within(&a, 10).await.unwrap(), b"ack");
        assert_eq!(*eager.1.lock().unwrap(), b"ping");
    });
}

/// Five hosts that answer each datagram with two to the next hosts, while their numbers last, and one stream.
async fn gossip(network: MemoryNetwork) {
    let chaos = Link { loss: 0.05, duplicate: 0.05, reorder: 0.1, ..Link::default() };
    network.set_default(chaos);
    let mut hosts = Vec::new();
    for n in 0..5 {
        hosts.push(bind(&network, host(n)).await);
    }
    let (mut dialled, mut accepted) = connect(&hosts[0], &hosts[1]).await;
    dialled.write_all(b"state").await.unwrap();
    accepted.shutdown().await.unwrap();

    let local = tokio::task::LocalSet::new();
    let mut tasks = tokio::task::JoinSet::new();
    for (n, endpoint) in hosts.iter().cloned().enumerate() {
        let next = move |heard: u8, step: usize| host(((n + step + usize::from(heard)) % 5) as u8);
        tasks.spawn_local_on(
            async move {
                let mut heard = 0_u8;
                loop {
                    let (datagram, _) = receive(&endpoint).await;
                    heard = heard.wrapping_add(datagram[0]);
                    if let Some(left) = datagram[0].checked_sub(1) {
                        endpoint.try_send(&[left, heard], next(heard, 1)).unwrap();
                        endpoint.try_send(&[left, heard], next(heard, 2)).unwrap();
                    }
                }
            },
            &local,
        );
    }
    hosts[0].try_send(&[9, 0], host(1)).unwrap();
    local.run_until(tokio::time::sleep(Duration::from_secs(2))).await;
}

fn gossip_trace(seed: u64, hash_order: bool) -> Trace {
    let trace = Trace::keeping(50);
    let network = MemoryNetwork::new(seed).with_trace(trace.clone());
    network.plant_hash_order(hash_order);
    simulate(gossip(network));
    trace
}

#[test]
fn one_seed_is_one_run_and_another_seed_another() {
    let (first, second, other) = (gossip_trace(1, false), gossip_trace(1, false), gossip_trace(2, false));
    assert!(first.counts()["datagram"] > 300, "{first:?}");
    assert_eq!(first.lines(), second.lines());
    assert_eq!((first.hash(), first.counts()), (second.hash(), second.counts()));
    assert_ne!(first.hash(), other.hash());
}

#[test]
fn a_planted_hash_order_shows_in_the_trace() {
    let plain = gossip_trace(1, false).hash();
    assert!((0..5).any(|_| gossip_trace(1, true).hash() != plain));
}

#[test]
fn the_trace_tells_what_was_sent() {
    simulate(async {
        let trace = Trace::keeping(10);
        let network = MemoryNetwork::new(26).with_trace(trace.clone());
        let (a, b) = pair(&network, 1).await;
        a.try_send(&[1], host(2)).unwrap();
        network.cut(host(1), host(2));
        a.try_send(&[2], host(2)).unwrap();
        network.heal();
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        let second = connect(&a, &b).await;
        accepted.write_all(&[3, 4]).await.unwrap();
        dialled.shutdown().await.unwrap();
        drop(b);
        tokio::time::sleep(ms(5)).await;
        // Nothing more is said on a stream that is reset.
        drop((dialled, accepted, second));
        let (out, back) = ("10.0.0.1:7946->10.0.0.2:7946", "10.0.0.2:7946->10.0.0.1:7946");
        let expected = [
            format!("0 datagram {out} 1 01"),
            format!("0 lost {out} 1 02"),
            format!("0 dial {out} 0"),
            format!("3000 dial {out} 0"),
            format!("6000 chunk {back} 2 0304"),
            format!("6000 close {out} 3 66696e"),
            format!("6000 close {back} 5 7265736574"),
            format!("6000 close {back} 5 7265736574"),
        ];
        assert_eq!(trace.lines(), expected);
    });
}

#[test]
fn system_and_memory_network_agree_on_the_rules_of_a_stream() {
    async fn conversation(network: impl Network) -> Vec<String> {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (a, b) = (bind(&network, loopback).await, bind(&network, loopback).await);
        let mut said = Vec::new();
        a.try_send(b"datagram", b.local_addr()).unwrap();
        said.push(format!("{:?}", receive(&b).await.1 == a.local_addr()));
        said.push(format!("{:?}", kind(b.try_recv(&mut [0; 8]))));
        let (mut dialled, mut accepted) = connect(&a, &b).await;
        dialled.write_all(b"question").await.unwrap();
        dialled.shutdown().await.unwrap();
        said.push(String::from_utf8(read_all(&mut accepted).await).unwrap());
        accepted.write_all(b"answer").await.unwrap();
        drop(accepted);
        said.push(String::from_utf8(read_all(&mut dialled).await).unwrap());
        let gone = b.local_addr();
        drop(b);
        said.push(format!("{:?}", kind(a.dial(gone).await)));
        said
    }
    let memory = simulate(conversation(MemoryNetwork::new(27)));
    let system = actix_rt::System::new().block_on(conversation(SystemNetwork));
    assert_eq!(memory, system);
}

/// Sends `count` numbered datagrams, a millisecond apart, and says which arrive.
async fn arrived(network: &MemoryNetwork, link: Link, count: u8) -> Vec<Vec<u8>> {
    let (a, b) = pair(network, 1).await;
    network.set_link(host(1), host(2), link);
    let mut all = Vec::new();
    for i in 0..count {
        a.try_send(&[i; 40], host(2)).unwrap();
        tokio::time::sleep(ms(2)).await;
        all.extend(drain(&b));
    }
    all
}

#[test]
fn losses_of_a_burst_come_together() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let bursts = Some(Bursts { begin: 0.05, end: 0.2, loss: 1.0 });
        let all = arrived(&network, Link { bursts, ..steady(1) }, 250).await;
        let lost: Vec<_> = (0..250u8).filter(|i| !all.iter().any(|each| each[0] == *i)).collect();
        assert_eq!(network.stats().lost, lost.len() as u64);
        let runs = 1 + lost.windows(2).filter(|two| two[1] != two[0] + 1).count();
        assert!(lost.len() >= 20 && lost.len() > 2 * runs, "{} lost in {runs} bursts", lost.len());
    });
}

#[test]
fn a_datagram_above_the_largest_is_lost_and_one_of_that_size_is_not() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        network.set_link(host(1), host(2), Link { largest: 100, ..steady(1) });
        a.try_send(&[1; 101], host(2)).unwrap();
        a.try_send(&[2; 100], host(2)).unwrap();
        assert_eq!(received_within(&b, 10).await, Some(vec![2; 100]));
        assert_eq!(network.stats().too_large, 1);
    });
}

#[test]
fn a_corrupt_datagram_keeps_its_length_and_a_truncated_one_its_beginning() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let all = arrived(&network, Link { corrupt: 1.0, ..steady(1) }, 20).await;
        assert_eq!(all.len(), 20);
        let spoilt = all.iter().zip(0..).filter(|(each, i)| each.len() == 40 && **each != [*i; 40]).count();
        // Bits that are turned over twice are as they were.
        assert!(spoilt >= 18, "{spoilt}");

        let network = MemoryNetwork::new(1);
        let all = arrived(&network, Link { truncate: 1.0, ..steady(1) }, 20).await;
        assert!(all.iter().zip(0..).all(|(each, i)| each.len() < 40 && each.iter().all(|byte| *byte == i)));
        assert_eq!((all.len(), network.stats().spoilt), (20, 20));
    });
}

#[test]
fn what_is_replayed_was_said_before_and_comes_besides_what_is_said() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let all = arrived(&network, Link { replay: 1.0, ..steady(1) }, 20).await;
        let again = network.stats().replayed as usize;
        assert_eq!((all.len(), again), (20 + 19, 19), "but for the first one, which none came before");
        let mut newest = 0;
        for each in all {
            assert!(each[0] <= newest + 1 && each[0] + 8 >= newest, "{} after {newest}", each[0]);
            newest = newest.max(each[0]);
        }
    });
}

#[test]
fn a_link_that_refuses_answers_a_dial_at_once_and_lets_datagrams_through() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        network.set_link(host(1), host(2), Link { refuse: true, ..steady(1) });
        assert_eq!(kind(a.dial(host(2)).await), io::ErrorKind::ConnectionRefused);
        a.try_send(b"x", host(2)).unwrap();
        assert_eq!(received_within(&b, 10).await, Some(b"x".to_vec()));
        connect(&b, &a).await;
    });
}

#[test]
fn what_is_written_to_a_mute_link_waits_until_it_is_no_longer_mute() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        network.set_link(host(1), host(2), Link { mute: true, ..steady(1) });
        let (mut one, mut other) = connect(&a, &b).await;
        one.write_all(b"hello").await.unwrap();
        let mut buf = [0; 5];
        assert!(timeout(ms(5000), other.read_exact(&mut buf)).await.is_err());
        network.set_link(host(1), host(2), steady(1));
        timeout(ms(10), other.read_exact(&mut buf)).await.unwrap().unwrap();
        assert_eq!(&buf, b"hello");
    });
}

#[test]
fn a_piece_that_is_reset_breaks_its_stream_on_both_sides() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        let (mut one, mut other) = connect(&a, &b).await;
        network.set_link(host(1), host(2), Link { reset: 1.0, ..steady(1) });
        one.write_all(b"hello").await.unwrap();
        let mut buf = [0; 5];
        assert_eq!(kind(other.read_exact(&mut buf).await), io::ErrorKind::ConnectionReset);
        assert_eq!(kind(one.read_exact(&mut buf).await), io::ErrorKind::ConnectionReset);
        assert_eq!(network.stats().broken, 1);
    });
}

#[test]
fn streams_between_two_hosts_can_be_reset_and_others_stay() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        let c = bind(&network, host(3)).await;
        let ((mut one, _other), (mut third, mut fourth)) = (connect(&a, &b).await, connect(&a, &c).await);
        network.reset_streams(host(2), host(1));
        let mut buf = [0; 1];
        assert_eq!(kind(one.read_exact(&mut buf).await), io::ErrorKind::ConnectionReset);
        third.write_all(b"x").await.unwrap();
        fourth.read_exact(&mut buf).await.unwrap();
    });
}

#[test]
fn a_host_that_fails_to_send_says_so_and_hears_all_the_same() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        network.fail_sends(host(1), Some(io::ErrorKind::NetworkUnreachable));
        assert_eq!(kind(a.try_send(b"x", host(2))), io::ErrorKind::NetworkUnreachable);
        assert_eq!(kind(a.dial(host(2)).await), io::ErrorKind::NetworkUnreachable);
        b.try_send(b"y", host(1)).unwrap();
        assert_eq!(received_within(&a, 10).await, Some(b"y".to_vec()));
        network.fail_sends(host(1), None);
        a.try_send(b"x", host(2)).unwrap();
        assert_eq!(received_within(&b, 10).await, Some(b"x".to_vec()));
        assert_eq!(network.stats().unsent, 1);
    });
}

/// How long dials take, in milliseconds, from the shortest to the longest; none if they fail.
async fn dials(there: f64, back: f64, count: u64) -> Vec<Option<u128>> {
    let mut times = Vec::new();
    for seed in 0..count {
        let network = MemoryNetwork::new(seed);
        let (a, b) = pair(&network, 1).await;
        network.set_link(host(1), host(2), Link { segment_loss: there, ..steady(1) });
        network.set_link(host(2), host(1), Link { segment_loss: back, ..steady(1) });
        let begin = Instant::now();
        match a.dial(b.local_addr()).await {
            Ok(_) => times.push(Some(begin.elapsed().as_millis())),
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::TimedOut);
                times.push(None);
            }
        }
    }
    times.sort_unstable_by_key(|time| time.unwrap_or(u128::MAX));
    times
}

#[test]
fn a_dial_is_sent_again_after_one_two_and_four_seconds_whichever_way_its_segments_are_lost() {
    simulate(async {
        let times = dials(0.1, 0.1, 200).await;
        let at_once = times.iter().filter(|time| **time == Some(2)).count();
        assert!((140..=180).contains(&at_once), "{at_once} of 200, where 0.9 * 0.9 are expected");
        assert!(times.iter().all(|time| time.is_some_and(|time| (time - 2) / 1000 < 15)), "{times:?}");

        for (there, back) in [(0.8, 0.0), (0.0, 0.8)] {
            let times = dials(there, back, 200).await;
            let median = times[100].expect("half of them succeed");
            assert!((3_000..16_000).contains(&median), "{median} ms");
            let failed = times.iter().filter(|time| time.is_none()).count();
            assert!((20..=65).contains(&failed), "{failed} of 200, where 0.8 ^ 7 are expected");
        }
        assert!(dials(1.0, 0.0, 3).await.iter().all(Option::is_none));
    });
}

/// Writes `count` pieces of `size` bytes over a stream whose segments are lost on both ways, each as soon as the one
/// before it has arrived; says how long all of them took. What arrives is what was written.
async fn carry(there: f64, back: f64, count: u8, size: usize) -> Duration {
    let network = MemoryNetwork::new(1);
    let (a, b) = pair(&network, 1).await;
    let (mut one, mut other) = connect(&a, &b).await;
    network.set_link(host(1), host(2), Link { segment_loss: there, ..steady(1) });
    network.set_link(host(2), host(1), Link { segment_loss: back, ..steady(1) });
    let begin = Instant::now();
    for i in 0..count {
        one.write_all(&vec![i; size]).await.unwrap();
        let mut read = vec![0; size];
        other.read_exact(&mut read).await.unwrap();
        assert_eq!(read, vec![i; size]);
    }
    begin.elapsed()
}

#[test]
fn a_stream_whose_segments_are_lost_is_late_and_whole() {
    simulate(async {
        assert_eq!(carry(0.0, 0.0, 100, 1000).await, ms(100));
        let little = carry(0.1, 0.1, 100, 1000).await;
        assert!((ms(1_000)..ms(6_000)).contains(&little), "{little:?}: one in ten waits for 200 ms, or more");
        let much = carry(0.8, 0.0, 100, 1000).await;
        assert!(much > ms(60_000), "{much:?}");
        // Many segments tell of those that are missing.
        let long = carry(0.1, 0.1, 1, 60_000).await;
        assert!(long > ms(10) && long < ms(2_000), "{long:?}");
    });
}

#[test]
fn acknowledgments_that_are_lost_hold_up_what_comes_after_a_window() {
    simulate(async {
        assert_eq!(carry(0.0, 1.0, 10, 1000).await, ms(10));
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        let (mut one, mut other) = connect(&a, &b).await;
        network.set_link(host(2), host(1), Link { segment_loss: 1.0, ..steady(1) });
        let mut buf = [0; 1];
        for _ in 0..10 {
            one.write_all(b"x").await.unwrap();
            other.read_exact(&mut buf).await.unwrap();
        }
        one.write_all(b"y").await.unwrap();
        assert!(timeout(ms(10_000), other.read_exact(&mut buf)).await.is_err());
        network.set_link(host(2), host(1), steady(1));
        timeout(ms(13_000), other.read_exact(&mut buf)).await.unwrap().unwrap();
        assert_eq!(&buf, b"y");
    });
}

#[test]
fn pieces_behind_one_that_is_lost_wait_for_it_and_keep_their_order() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        let (mut one, mut other) = connect(&a, &b).await;
        network.set_link(host(1), host(2), Link { segment_loss: 1.0, ..steady(1) });
        one.write_all(b"first").await.unwrap();
        tokio::time::sleep(ms(5)).await;
        network.set_link(host(1), host(2), steady(1));
        one.write_all(b", then the second").await.unwrap();
        one.shutdown().await.unwrap();
        let begin = Instant::now();
        assert_eq!(read_all(&mut other).await, b"first, then the second");
        assert_eq!((begin.elapsed(), network.stats().timeouts), (ms(198), 1));
    });
}

#[test]
fn a_link_of_a_pair_goes_before_one_of_the_sender_and_that_before_one_of_the_receiver() {
    simulate(async {
        let network = MemoryNetwork::new(1);
        let (a, b) = pair(&network, 1).await;
        let c = bind(&network, host(3)).await;
        let takes = async |from: &Arc<dyn Endpoint>, to: &Arc<dyn Endpoint>| {
            let begin = Instant::now();
            from.try_send(b"x", to.local_addr()).unwrap();
            received_within(to, 100).await.map(|_| begin.elapsed().as_millis())
        };
        network.set_inward(host(2), Some(steady(5)));
        assert_eq!(takes(&a, &b).await, Some(5));
        network.set_outward(host(1), Some(steady(7)));
        assert_eq!((takes(&a, &b).await, takes(&c, &b).await), (Some(7), Some(5)));
        network.set_link(host(1), host(2), steady(9));
        assert_eq!((takes(&a, &b).await, takes(&a, &c).await), (Some(9), Some(7)));
        network.unplug(host(2));
        assert_eq!((takes(&a, &b).await, takes(&b, &c).await, takes(&a, &c).await), (None, None, Some(7)));
        network.plug_in(host(2));
        network.set_outward(host(1), None);
        network.set_inward(host(2), None);
        assert_eq!(
            (takes(&a, &b).await, takes(&a, &c).await, takes(&c, &b).await),
            (Some(9), Some(1), Some(1))
        );
    });
}
