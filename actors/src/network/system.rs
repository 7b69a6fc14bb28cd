//! UDP and TCP on one port.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use if_addrs::IfOperStatus;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::{Binding, Connection, Dialing, Endpoint, Host, Interface, Network};

/// Connections that wait to be accepted. tokio's own 128 overflows when some hundred nodes join one seed
/// at once, and the kernel retries what it dropped only after a second.
const BACKLOG: i32 = 4096;

/// What is asked of the kernel for datagrams that wait to be read; it may give less. It counts what is around
/// them as well, and doubles the number for that: 64 MiB in all, which only a flood fills.
const RECEIVE_BUFFER: usize = 32 << 20;

/// Attempts to find one port that is free for UDP and TCP alike.
const PORT_ATTEMPTS: usize = 10;

/// The system's sockets: UDP and TCP on one port, over IPv4 or IPv6.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    fn bind(&self, addr: SocketAddr) -> Binding {
        Box::pin(async move {
            let attempts = if addr.port() == 0 { PORT_ATTEMPTS } else { 1 };
            let mut last = io::Error::from(io::ErrorKind::AddrInUse);
            for _ in 0..attempts {
                match Sockets::bind(addr) {
                    Ok(sockets) => {
                        // Before the reactor has seen the socket once, every send reports WouldBlock.
                        sockets.udp.writable().await?;
                        return Ok(Arc::new(sockets) as Arc<dyn Endpoint>);
                    }
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }

    fn host(&self) -> Host {
        let interfaces = if_addrs::get_if_addrs().unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot list the interfaces of this host");
            Vec::new()
        });
        let interfaces = interfaces.into_iter().map(|one| Interface {
            ip: one.ip(),
            // Some systems do not say: then it has an address, and that is all that is known.
            up: !matches!(one.oper_status, IfOperStatus::Down | IfOperStatus::NotPresent),
            name: one.name,
        });
        Host {
            routed: DOCUMENTATION.into_iter().filter_map(source).collect(),
            interfaces: interfaces.collect(),
        }
    }
}

/// Addresses that only the default routes lead to (RFC 5737, RFC 3849).
const DOCUMENTATION: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

/// Where packets to `to` would come from. None is sent: a datagram socket that connects asks for the route.
fn source(to: IpAddr) -> Option<IpAddr> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = std::net::UdpSocket::bind((any, 0)).ok()?;
    socket.connect((to, 9)).ok()?;
    socket.local_addr().ok().map(|addr| addr.ip())
}

struct Sockets {
    udp: UdpSocket,
    tcp: TcpListener,
    local: SocketAddr,
}

impl Sockets {
    fn bind(addr: SocketAddr) -> io::Result<Self> {
        let tcp = Socket::new(Domain::for_address(addr), Type::STREAM, Some(Protocol::TCP))?;
        // A restarted node takes its port again while connections of its last run still linger.
        #[cfg(unix)]
        tcp.set_reuse_address(true)?;
        bind(&tcp, addr)?;
        tcp.listen(BACKLOG)?;
        let local = tcp.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;

        let udp = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))?;
        bind(&udp, local)?;
        enlarge(&udp);

        Ok(Self { udp: UdpSocket::from_std(udp.into())?, tcp: TcpListener::from_std(tcp.into())?, local })
    }
}

/// Who administers the network may go beyond the system's limit. Less than asked for is no reason to fail: a flood
/// then drops earlier.
fn enlarge(udp: &Socket) {
    #[cfg(target_os = "linux")]
    if nix::sys::socket::setsockopt(udp, nix::sys::socket::sockopt::RcvBufForce, &RECEIVE_BUFFER).is_ok() {
        return;
    }
    let _ = udp.set_recv_buffer_size(RECEIVE_BUFFER);
}

fn bind(socket: &Socket, addr: SocketAddr) -> io::Result<()> {
    if addr.is_ipv6() {
        // "::" takes IPv4 as well, so that one node serves both families of a dual-stack host.
        socket.set_only_v6(addr.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&addr.into())
}

impl Endpoint for Sockets {
    fn local_addr(&self) -> SocketAddr {
        self.local
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.udp.poll_recv_ready(cx)
    }

    fn try_recv(&self, buf: &mut [u8]) -> io::Result<(usize, SocketAddr)> {
        self.udp.try_recv_from(buf)
    }

    fn try_send(&self, datagram: &[u8], to: SocketAddr) -> io::Result<()> {
        self.udp.try_send_to(datagram, for_socket(self.local, to)).map(drop)
    }

    fn poll_writable(&self, cx: &mut Context<'_>) -> Poll<()> {
        // An error is reported by the next attempt to send.
        self.udp.poll_send_ready(cx).map(drop)
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(Box<dyn Connection>, SocketAddr)>> {
        self.tcp.poll_accept(cx).map_ok(|(stream, from)| {
            let _ = stream.set_nodelay(true);
            (Box::new(stream) as Box<dyn Connection>, from)
        })
    }

    fn dial(&self, to: SocketAddr) -> Dialing {
        Box::pin(async move {
            let stream = TcpStream::connect(to).await?;
            let _ = stream.set_nodelay(true);
            Ok(Box::new(stream) as Box<dyn Connection>)
        })
    }
}

/// An IPv6 socket reaches IPv4 addresses in their mapped form only.
fn for_socket(local: SocketAddr, to: SocketAddr) -> SocketAddr {
    match (local, to.ip()) {
        (SocketAddr::V6(_), IpAddr::V4(ip)) => SocketAddr::new(ip.to_ipv6_mapped().into(), to.port()),
        _ => to,
    }
}
