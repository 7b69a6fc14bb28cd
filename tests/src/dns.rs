//! A DNS server on loopback, over UDP and TCP, that says what a test tells it to.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{self, IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

use futures_util::{StreamExt, stream};
use hickory_proto::{
    op::{Message, OpCode, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::oneshot,
};

/// Bytes of an answer over UDP; one that is longer is cut off, and has to be asked for over TCP.
const MAX_UDP: usize = 512;

/// How long an answer may be kept. A resolver that did so would be caught.
const TTL: u32 = 3600;

/// What was asked for, and over what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// In small letters, with the last dot.
    pub name: String,
    /// `A`, `AAAA` or `SRV`.
    pub kind: RecordType,
    /// Over TCP rather than UDP.
    pub tcp: bool,
}

#[derive(Default)]
struct Zone {
    records: BTreeMap<(String, RecordType), Vec<RData>>,
    mute: BTreeSet<(String, RecordType)>,
    asked: Vec<Asked>,
}

/// A server that runs until it is dropped. Names are given with their last dot.
pub struct DnsServer {
    addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl DnsServer {
    /// Starts a server that knows no name.
    pub fn start() -> Self {
        let (udp, tcp) = bind();
        let addr = tcp.local_addr().expect("it is bound");
        let zone: Arc<Mutex<Zone>> = Arc::default();
        let (stop, stopped) = oneshot::channel();
        let served = zone.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let udp = UdpSocket::from_std(udp).expect("a socket");
                let tcp = TcpListener::from_std(tcp).expect("a socket");
                tokio::select! {
                    _ = stopped => {}
                    () = serve_udp(&udp, &served) => {}
                    () = serve_tcp(&tcp, &served) => {}
                }
            });
        });
        Self { addr, zone, stop: Some(stop), thread: Some(thread) }
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Gives a host these addresses in place of those that it had.
    pub fn host(&self, name: &str, addrs: &[IpAddr]) {
        let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addrs.iter().partition(|addr| addr.is_ipv4());
        for (kind, addrs) in [(RecordType::A, v4), (RecordType::AAAA, v6)] {
            self.set(name, kind, addrs.into_iter().map(RData::from).collect());
        }
    }

    /// Gives a service these hosts and ports.
    pub fn service(&self, name: &str, targets: &[(&str, u16)]) {
        let record = |(host, port): &(&str, u16)| {
            RData::SRV(SRV::new(1, 1, *port, Name::from_ascii(host).expect("a name")))
        };
        self.set(name, RecordType::SRV, targets.iter().map(record).collect());
    }

    fn set(&self, name: &str, kind: RecordType, records: Vec<RData>) {
        lock(&self.zone).records.insert((name.to_owned(), kind), records);
    }

    /// Never answers this question.
    pub fn mute(&self, name: &str, kind: RecordType) {
        lock(&self.zone).mute.insert((name.to_owned(), kind));
    }

    /// All that was asked so far.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.zone).asked.clone()
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(zone: &Mutex<Zone>) -> MutexGuard<'_, Zone> {
    zone.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One port that is free for both.
fn bind() -> (net::UdpSocket, net::TcpListener) {
    for _ in 0..100 {
        let tcp = net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback");
        if let Ok(udp) = net::UdpSocket::bind(tcp.local_addr().expect("it is bound")) {
            tcp.set_nonblocking(true).expect("a socket");
            udp.set_nonblocking(true).expect("a socket");
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

async fn serve_udp(udp: &UdpSocket, zone: &Mutex<Zone>) {
    let mut buf = [0; 4096];
    loop {
        // Who asked may be gone when the answer comes, and the next read says so.
        let Ok((len, from)) = udp.recv_from(&mut buf).await else { continue };
        if let Some(answer) = answer(&buf[..len], zone, false) {
            let _ = udp.send_to(&answer, from).await;
        }
    }
}

async fn serve_tcp(tcp: &TcpListener, zone: &Mutex<Zone>) {
    let streams = stream::unfold(tcp, |tcp| async move { Some((tcp.accept().await, tcp)) });
    streams
        .for_each_concurrent(None, |accepted| async {
            if let Ok((stream, _)) = accepted {
                let _ = converse(stream, zone).await;
            }
        })
        .await;
}

async fn converse(mut stream: TcpStream, zone: &Mutex<Zone>) -> io::Result<()> {
    loop {
        let len = stream.read_u16().await?;
        let mut question = vec![0; len.into()];
        stream.read_exact(&mut question).await?;
        if let Some(answer) = answer(&question, zone, true) {
            stream.write_u16(answer.len().try_into().map_err(io::Error::other)?).await?;
            stream.write_all(&answer).await?;
        }
    }
}

fn answer(question: &[u8], zone: &Mutex<Zone>, tcp: bool) -> Option<Vec<u8>> {
    let question = Message::from_vec(question).ok()?;
    let query = question.queries.first()?.clone();
    let (name, kind) = (query.name().to_lowercase().to_string(), query.query_type());
    let mut zone = lock(zone);
    zone.asked.push(Asked { name: name.clone(), kind, tcp });
    let key = (name, kind);
    if zone.mute.contains(&key) {
        return None;
    }
    let mut answer = Message::response(question.metadata.id, OpCode::Query);
    answer.metadata.recursion_desired = true;
    answer.metadata.recursion_available = true;
    answer.add_query(query.clone());
    match zone.records.get(&key) {
        Some(records) => {
            for record in records {
                answer.add_answer(Record::from_rdata(query.name().clone(), TTL, record.clone()));
            }
        }
        None => answer.metadata.response_code = ResponseCode::NXDomain,
    }
    let bytes = answer.to_vec().ok()?;
    if tcp || bytes.len() <= MAX_UDP { Some(bytes) } else { answer.truncate().to_vec().ok() }
}
