//! A bad network between two processes: what each is told of the other's address leads here. It carries datagrams and
//! streams, holds them back, breaks them in the middle, and is late.
//!
//! ```text
//! node 0 ──► doors[1] ═══► node 1        whoever talks to node 1 talks to its door, and node 1 sees it come
//! node 0 ◄═══ doors[0] ◄── node 1        from the other's door, as datagrams of a member have to
//! ```

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream, UdpSocket,
        tcp::{ReadHalf, WriteHalf},
    },
    sync::{broadcast, watch},
    time::sleep,
};

/// Probe intervals of a suspicion between two processes, which may both have to wait for a processor.
pub const SUSPICION: u32 = 5;

/// Bytes that are carried at once: a message of more is never carried whole.
const PIECE: usize = 1000;

/// How the network is for now.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// Streams stand still.
    pub stalled: bool,
    /// What is answered on a stream takes so long.
    pub late: Duration,
}

/// What happens to the streams that are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strike {
    /// They break, without a word to either side but the reset.
    Reset,
    /// They end after so many more bytes, counted both ways.
    Truncate(u64),
    /// What the dialler says ends; what it is answered does not.
    CloseWords,
    /// What it is answered ends; what it says does not.
    CloseAnswers,
}

struct Shared {
    doors: [SocketAddr; 2],
    /// Where the nodes are bound.
    nodes: Mutex<[Option<SocketAddr>; 2]>,
    weather: watch::Sender<Weather>,
    strikes: broadcast::Sender<Strike>,
    /// Bytes that were carried over streams.
    carried: AtomicU64,
    /// Pieces that wait for better weather.
    held: AtomicU64,
}

/// The network between two nodes. It ends with the process.
#[derive(Clone)]
pub struct Proxy(Arc<Shared>);

impl Proxy {
    /// Opens both doors, and carries what comes on a thread of its own.
    ///
    /// # Panics
    ///
    /// If there are no two ports.
    pub fn open() -> Self {
        let (sender, opened) = std::sync::mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let (a, b) = (Door::open().await, Door::open().await);
                let doors = [a.addr, b.addr];
                let shared = Arc::new(Shared {
                    doors,
                    nodes: Mutex::default(),
                    weather: watch::Sender::default(),
                    strikes: broadcast::Sender::new(100),
                    carried: AtomicU64::new(0),
                    held: AtomicU64::new(0),
                });
                let _ = sender.send(Self(shared.clone()));
                let sockets = [&a.udp, &b.udp];
                tokio::join!(
                    shared.datagrams(sockets, 0),
                    shared.datagrams(sockets, 1),
                    shared.streams(&a.tcp, 0),
                    shared.streams(&b.tcp, 1)
                );
            });
        });
        opened.recv().expect("the proxy opens")
    }

    /// What the others are told of a node's address.
    pub fn door(&self, node: usize) -> SocketAddr {
        self.0.doors[node]
    }

    /// Where the node behind a door is.
    pub fn lead(&self, node: usize, to: SocketAddr) {
        self.0.nodes.lock().unwrap_or_else(PoisonError::into_inner)[node] = Some(to);
    }

    /// Changes the weather.
    pub fn weather(&self, change: impl FnOnce(&mut Weather)) {
        self.0.weather.send_modify(change);
    }

    /// Strikes the streams that are open.
    pub fn strike(&self, strike: Strike) {
        let _ = self.0.strikes.send(strike);
    }

    /// Bytes that streams have carried so far.
    pub fn carried(&self) -> u64 {
        self.0.carried.load(Relaxed)
    }

    /// Waits until streams have carried so many bytes in all.
    ///
    /// # Panics
    ///
    /// If that takes longer than `within`.
    pub fn wait_carried(&self, bytes: u64, within: Duration) {
        wait(within, || self.carried() >= bytes, || format!("{} of {bytes} bytes", self.carried()));
    }

    /// Waits until something waits for better weather.
    ///
    /// # Panics
    ///
    /// If that takes longer than `within`.
    pub fn wait_held(&self, within: Duration) {
        wait(within, || self.0.held.load(Relaxed) > 0, || "nothing is held".to_owned());
    }
}

fn wait(within: Duration, done: impl Fn() -> bool, why: impl Fn() -> String) {
    let deadline = Instant::now() + within;
    while !done() {
        assert!(Instant::now() < deadline, "the proxy waits for too long: {}", why());
        thread::sleep(Duration::from_millis(2));
    }
}

struct Door {
    addr: SocketAddr,
    udp: UdpSocket,
    tcp: TcpListener,
}

impl Door {
    /// One port for both.
    async fn open() -> Self {
        for _ in 0..20 {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("a port");
            let addr = tcp.local_addr().expect("an address");
            if let Ok(udp) = UdpSocket::bind(addr).await {
                return Self { addr, udp, tcp };
            }
        }
        panic!("no port is free for UDP and TCP");
    }
}

impl Shared {
    fn node(&self, node: usize) -> Option<SocketAddr> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)[node]
    }

    /// Carries what is for one node.
    async fn datagrams(&self, sockets: [&UdpSocket; 2], node: usize) {
        let mut buf = vec![0; 65_536];
        loop {
            // A node that is not there makes the socket report that: it is as if the datagram were lost.
            let Ok((len, _)) = sockets[node].recv_from(&mut buf).await else { continue };
            if let Some(to) = self.node(node) {
                let _ = sockets[1 - node].send_to(&buf[..len], to).await;
            }
        }
    }

    /// Carries the streams to one node.
    #[allow(clippy::disallowed_methods, reason = "no node of the library runs here")]
    async fn streams(self: &Arc<Self>, door: &TcpListener, node: usize) {
        loop {
            let Ok((dialled, _)) = door.accept().await else { continue };
            let (shared, strikes) = (self.clone(), self.strikes.subscribe());
            tokio::spawn(async move {
                let Some(to) = shared.node(node) else { return };
                if let Ok(accepted) = TcpStream::connect(to).await {
                    shared.relay(dialled, accepted, strikes).await;
                }
            });
        }
    }

    async fn relay(
        &self,
        mut dialled: TcpStream,
        mut accepted: TcpStream,
        mut strikes: broadcast::Receiver<Strike>,
    ) {
        let struck = {
            let _ = (dialled.set_nodelay(true), accepted.set_nodelay(true));
            let left = AtomicU64::new(u64::MAX);
            let (open, _) = watch::channel([true; 2]);
            let ((dr, dw), (ar, aw)) = (dialled.split(), accepted.split());
            let both = async {
                let words = self.carry(dr, aw, &left, open.subscribe(), 0);
                tokio::join!(words, self.carry(ar, dw, &left, open.subscribe(), 1));
            };
            let mut both = std::pin::pin!(both);
            loop {
                tokio::select! {
                    biased;
                    strike = strikes.recv() => match strike {
                        Ok(Strike::Truncate(bytes)) => left.store(bytes, Relaxed),
                        Ok(Strike::CloseWords) => open.send_modify(|open| open[0] = false),
                        Ok(Strike::CloseAnswers) => open.send_modify(|open| open[1] = false),
                        Ok(Strike::Reset) | Err(_) => break true,
                    },
                    () = &mut both => break false,
                    // All that it was to carry: the end comes in the middle of something.
                    () = spent(&left) => break false,
                }
            }
        };
        if struck {
            let _ = (dialled.set_zero_linger(), accepted.set_zero_linger());
        }
    }

    /// Carries one direction of a stream to its end.
    async fn carry(
        &self,
        mut from: ReadHalf<'_>,
        mut to: WriteHalf<'_>,
        left: &AtomicU64,
        mut open: watch::Receiver<[bool; 2]>,
        direction: usize,
    ) {
        let mut buf = [0; PIECE];
        let mut weather = self.weather.subscribe();
        let carried: io::Result<()> = async {
            loop {
                let len = tokio::select! {
                    biased;
                    _ = open.wait_for(|open| !open[direction]) => return Ok(()),
                    len = from.read(&mut buf) => len?,
                };
                if len == 0 {
                    return Ok(());
                }
                let late = weather.borrow().late;
                if direction == 1 && !late.is_zero() {
                    sleep(late).await;
                }
                if weather.borrow().stalled {
                    let _held = Held::new(&self.held);
                    let _ = weather.wait_for(|weather| !weather.stalled).await;
                }
                let room = left.load(Relaxed);
                let len = len.min(usize::try_from(room).unwrap_or(usize::MAX));
                to.write_all(&buf[..len]).await?;
                self.carried.fetch_add(len as u64, Relaxed);
                if room < u64::MAX {
                    left.store(room - len as u64, Relaxed);
                }
            }
        }
        .await;
        let _ = (carried, to.shutdown().await);
    }
}

/// Counts a piece for as long as it waits.
struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn new(held: &'a AtomicU64) -> Self {
        held.fetch_add(1, Relaxed);
        Self(held)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

/// Waits until nothing is left.
async fn spent(left: &AtomicU64) {
    while left.load(Relaxed) > 0 {
        sleep(Duration::from_millis(1)).await;
    }
}
