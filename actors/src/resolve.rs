//! Names to addresses: one of the doors through which the world comes in. In production it is DNS, as the
//! system is set up; in a test whatever the test says.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    time::Duration,
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{Name, RData, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::{Instant, timeout},
};

use crate::join::all;

/// How long one question to a DNS server may take before it is asked again.
const ATTEMPT: Duration = Duration::from_secs(2);

/// How long the second family is waited for once the first has answered: RFC 8305 speaks of 50 ms for one
/// connection, but here all addresses are wanted, and a join has seconds.
const SECOND_FAMILY: Duration = Duration::from_millis(500);

/// How long the system's settings are held for true. Short: a name that moves must be seen moving, in
/// `/etc/hosts` too; long enough that a thousand seeds do not read the files a thousand times.
const SETTINGS_LAST: Duration = Duration::from_secs(2);

/// Hosts of one service that are looked up.
const MAX_TARGETS: usize = 64;

/// A resolution in progress. Dropping it ends it.
pub type Resolving = Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send>>;

/// Where the addresses of a name come from.
///
/// It is called on the node's thread and must not block there: a slow answer belongs into the future, slow
/// work onto another thread. The node limits the time, and the number of addresses that it uses.
pub trait Resolver: Send + Sync + 'static {
    /// Finds all addresses of a host, of both families, each with `port`. A name of the form
    /// `_service._proto.domain` is a service: its records say hosts and ports, and `port` means nothing.
    ///
    /// # Errors
    /// Why there is none. A name without an address is [`io::ErrorKind::NotFound`], not an empty list.
    fn resolve(&self, name: &str, port: u16) -> Resolving;
}

/// Whether a name is that of a service, `_service._proto.domain` (RFC 2782), and not that of a host.
pub(crate) fn is_service(name: &str) -> bool {
    let mut labels = name.split('.');
    labels.by_ref().take(2).filter(|label| label.len() > 1 && label.starts_with('_')).count() == 2
        && labels.next().is_some_and(|domain| !domain.is_empty())
}

/// DNS: A and AAAA records of a host, SRV records of a service; over UDP, and over TCP when the answer is cut
/// off. Answers are not kept, so that a name which moves is followed at once.
///
/// ```
/// use actix_memberlist::{Cluster, Config, DnsResolver};
///
/// // Another server than the system's, as consul or a test has.
/// let dns = DnsResolver::with_servers(&["127.0.0.1:8600".parse().unwrap()]);
/// let _ = Cluster::builder("a").resolver(dns);
/// ```
#[derive(Clone)]
pub struct DnsResolver(Arc<Settings>);

/// Questions to DNS servers at once, of all nodes of the process: each holds a socket.
static QUESTIONS: Semaphore = Semaphore::const_new(64);

enum Settings {
    Given(Arc<Setup>),
    System(Mutex<Option<(Instant, Arc<Setup>)>>),
}

impl std::fmt::Debug for DnsResolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &*self.0 {
            Settings::Given(setup) => f.debug_tuple("DnsResolver").field(&setup.config.name_servers).finish(),
            Settings::System(_) => f.write_str("DnsResolver(system)"),
        }
    }
}

impl DnsResolver {
    /// The system's: its hosts file, then its servers and search domains (`/etc/resolv.conf`), read again
    /// when they may have changed. Other sources that a system may have, such as mDNS, are not asked.
    pub fn system() -> Self {
        Self(Arc::new(Settings::System(Mutex::default())))
    }

    /// These servers alone, without hosts file and search domains.
    pub fn with_servers(servers: &[SocketAddr]) -> Self {
        let server = |addr: &SocketAddr| {
            let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
                connection.port = addr.port();
                connection
            });
            NameServerConfig::new(addr.ip(), true, connections.into())
        };
        let config = ResolverConfig::from_name_servers(servers.iter().map(server).collect());
        let setup = Setup { config, options: options(ResolverOpts::default()), ..Setup::default() };
        Self(Arc::new(Settings::Given(Arc::new(setup))))
    }

    async fn setup(&self) -> io::Result<Arc<Setup>> {
        match &*self.0 {
            Settings::Given(setup) => Ok(setup.clone()),
            Settings::System(kept) => {
                let mut kept = kept.lock().await;
                if let Some((_, setup)) = kept.as_ref().filter(|(at, _)| at.elapsed() < SETTINGS_LAST) {
                    return Ok(setup.clone());
                }
                let setup = tokio::task::spawn_blocking(Setup::read).await.map_err(io::Error::other)?;
                let setup = Arc::new(setup);
                *kept = Some((Instant::now(), setup.clone()));
                Ok(setup)
            }
        }
    }
}

impl Default for DnsResolver {
    /// [`DnsResolver::system`].
    fn default() -> Self {
        Self::system()
    }
}

impl Resolver for DnsResolver {
    fn resolve(&self, name: &str, port: u16) -> Resolving {
        let (resolver, name) = (self.clone(), name.to_owned());
        Box::pin(async move {
            let asking = Asking::new(resolver.setup().await?)?;
            if is_service(&name) { asking.service(&name).await } else { asking.host(&name, port).await }
        })
    }
}

/// What a resolver goes by.
#[derive(Default)]
struct Setup {
    config: ResolverConfig,
    options: ResolverOpts,
    hosts: Hosts,
    /// Why no server is known.
    trouble: Option<String>,
}

impl Setup {
    /// Reads the system's files, which blocks.
    fn read() -> Self {
        let hosts = Hosts::from_system().unwrap_or_default();
        match read_system_conf() {
            Ok((config, system)) => Self { config, options: options(system), hosts, trouble: None },
            // The hosts file may be all that is wanted.
            Err(error) => Self { hosts, trouble: Some(error.to_string()), ..Self::default() },
        }
    }

    /// The names that a name may stand for, the likeliest first; resolv.conf(5) tells how.
    fn candidates(&self, name: &str) -> io::Result<Vec<Name>> {
        let parsed = if name.is_ascii() { Name::from_ascii(name) } else { Name::from_utf8(name) };
        let name = parsed.map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error.to_string()))?;
        if name.is_fqdn() {
            return Ok(vec![name]);
        }
        let mut names: Vec<Name> = Vec::new();
        for domain in self.config.search.iter().chain(&self.config.domain) {
            // One that gets too long with it cannot exist.
            if let Ok(long) = name.clone().append_domain(domain)
                && !names.contains(&long)
            {
                names.push(long);
            }
        }
        let first = usize::from(name.num_labels()) > self.options.ndots || name.is_localhost();
        let mut plain = name;
        plain.set_fqdn(true);
        names.retain(|long| *long != plain);
        names.insert(if first { 0 } else { names.len() }, plain);
        Ok(names)
    }
}

fn options(mut options: ResolverOpts) -> ResolverOpts {
    options.cache_size = 0;
    options.timeout = options.timeout.min(ATTEMPT);
    options
}

/// One resolution: it has its own sockets, and leaves nothing behind when it ends or is dropped.
struct Asking {
    setup: Arc<Setup>,
    dns: TokioResolver,
}

impl Asking {
    fn new(setup: Arc<Setup>) -> io::Result<Self> {
        let mut builder =
            TokioResolver::builder_with_config(setup.config.clone(), TokioRuntimeProvider::default());
        *builder.options_mut() = setup.options.clone();
        let dns = builder.build().map_err(said)?;
        Ok(Self { setup, dns })
    }

    async fn service(&self, name: &str) -> io::Result<Vec<SocketAddr>> {
        let mut last = nothing();
        for name in self.setup.candidates(name)? {
            match self.records(&name, RecordType::SRV).await {
                Ok(records) => {
                    let mut targets: Vec<_> = records
                        .into_iter()
                        .filter_map(|record| match record {
                            // A dot for a target, or port 0: there is no such service here.
                            RData::SRV(srv) if srv.port != 0 && !srv.target.is_root() => {
                                Some((srv.priority, srv.target, srv.port))
                            }
                            _ => None,
                        })
                        .collect();
                    targets.sort();
                    targets.truncate(MAX_TARGETS);
                    let found = all(targets.iter().map(|(_, host, port)| self.fully(host, *port))).await;
                    return together(found);
                }
                Err(error) => last = worse(last, error),
            }
        }
        Err(last)
    }

    async fn host(&self, name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        let names = self.setup.candidates(name)?;
        // The file knows short names as they are.
        if let Ok(name) = Name::from_utf8(name).or_else(|_| Name::from_ascii(name)) {
            let listed: Vec<_> = [RecordType::A, RecordType::AAAA]
                .into_iter()
                .filter_map(|kind| self.setup.hosts.lookup_static_host(&Query::query(name.clone(), kind)))
                .flat_map(|lookup| with_port(lookup.answers().iter().map(|record| &record.data), port))
                .collect();
            if !listed.is_empty() {
                return Ok(listed);
            }
        }
        let mut last = nothing();
        for name in names {
            match self.fully(&name, port).await {
                Ok(addrs) => return Ok(addrs),
                Err(error) => last = worse(last, error),
            }
        }
        Err(last)
    }

    /// Both families of one full name. One that never answers does not hold up the other for long.
    async fn fully(&self, name: &Name, port: u16) -> io::Result<Vec<SocketAddr>> {
        let (mut v4, mut v6) =
            (pin!(self.records(name, RecordType::A)), pin!(self.records(name, RecordType::AAAA)));
        let (first, second) = tokio::select! {
            biased;
            first = &mut v4 => (first, v6),
            first = &mut v6 => (first, v4),
        };
        let second = match &first {
            Ok(_) => timeout(SECOND_FAMILY, second).await.unwrap_or(Ok(Vec::new())),
            Err(_) => second.await,
        };
        together([first, second].map(|family| family.map(|records| with_port(&records, port))).into())
    }

    async fn records(&self, name: &Name, kind: RecordType) -> io::Result<Vec<RData>> {
        if let Some(trouble) = &self.setup.trouble
            && !name.is_localhost()
        {
            return Err(io::Error::other(format!("no DNS server is known: {trouble}")));
        }
        let _place = QUESTIONS.acquire().await.map_err(|_| io::Error::other("no more questions"))?;
        let lookup = self.dns.lookup(name.clone(), kind).await.map_err(said)?;
        let records: Vec<RData> = lookup.answers().iter().map(|record| record.data.clone()).collect();
        if records.is_empty() { Err(nothing()) } else { Ok(records) }
    }
}

fn with_port<'a>(records: impl IntoIterator<Item = &'a RData>, port: u16) -> Vec<SocketAddr> {
    records.into_iter().filter_map(RData::ip_addr).map(|ip| SocketAddr::new(ip, port)).collect()
}

/// All that was found; if nothing was, the error that says most.
fn together(found: Vec<io::Result<Vec<SocketAddr>>>) -> io::Result<Vec<SocketAddr>> {
    let (mut addrs, mut last) = (Vec::new(), nothing());
    for found in found {
        match found {
            Ok(more) => addrs.extend(more),
            Err(error) => last = worse(last, error),
        }
    }
    if addrs.is_empty() { Err(last) } else { Ok(addrs) }
}

fn nothing() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "no such name, or it has no address")
}

/// Of two errors the one that is not just a "no": it may be gone next time.
fn worse(one: io::Error, other: io::Error) -> io::Error {
    if one.kind() == io::ErrorKind::NotFound { other } else { one }
}

fn said(error: NetError) -> io::Error {
    match error {
        error if error.is_no_records_found() => nothing(),
        NetError::Timeout => io::Error::new(io::ErrorKind::TimedOut, "the DNS server does not answer"),
        NetError::NoConnections => io::Error::other("no DNS server is known, or none can be reached"),
        error => io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn setup(search: &[&str], ndots: usize) -> Setup {
        let search = search.iter().map(|name| Name::from_ascii(name).unwrap()).collect();
        let config = ResolverConfig::from_parts(None, search, vec![]);
        Setup { config, options: ResolverOpts::default().with_ndots(ndots), ..Setup::default() }
    }

    trait Ndots {
        fn with_ndots(self, ndots: usize) -> Self;
    }

    impl Ndots for ResolverOpts {
        fn with_ndots(mut self, ndots: usize) -> Self {
            self.ndots = ndots;
            self
        }
    }

    #[test]
    fn a_short_name_is_sought_in_the_search_domains_first_and_a_long_one_last() {
        let names = |setup: &Setup, name: &str| -> Vec<String> {
            setup.candidates(name).unwrap().iter().map(ToString::to_string).collect()
        };
        let two = setup(&["one.example.", "two.example."], 1);
        assert_eq!(names(&two, "db"), ["db.one.example.", "db.two.example.", "db."]);
        assert_eq!(names(&two, "db.x"), ["db.x.", "db.x.one.example.", "db.x.two.example."]);
        assert_eq!(names(&two, "db.x."), ["db.x."]);
        // As it is in a pod of Kubernetes.
        let five = setup(&["ns.svc.cluster.local."], 5);
        assert_eq!(names(&five, "db.other"), ["db.other.ns.svc.cluster.local.", "db.other."]);
        assert_eq!(names(&setup(&[], 1), "my_db"), ["my_db."]);
    }

    #[test]
    fn a_service_is_told_from_a_host_by_its_first_two_labels() {
        assert!(is_service("_gossip._tcp.example"));
        assert!(is_service("_gossip._tcp.ns.svc.cluster.local."));
        for host in ["my_db", "_db.example", "_a._b", "_a._b.", "_._tcp.example", "db._tcp.example"] {
            assert!(!is_service(host), "{host}");
        }
    }

    #[tokio::test]
    async fn the_hosts_file_answers_for_short_names_too_and_nobody_else_is_asked() {
        let mut hosts = Hosts::default();
        hosts.read_hosts_conf(&b"10.1.2.3 db db.example\nfd00::1 db\n"[..]).unwrap();
        // There is no server to ask, and a search domain that would come first.
        let setup = Setup { hosts, trouble: Some("none".into()), ..setup(&["x.example."], 1) };
        let asking = Asking::new(Arc::new(setup)).unwrap();
        let addrs = asking.host("db", 7).await.unwrap();
        assert_eq!(addrs, ["10.1.2.3:7".parse().unwrap(), "[fd00::1]:7".parse().unwrap()]);
        let error = asking.host("other", 7).await.unwrap_err();
        assert!(error.to_string().contains("no DNS server is known"), "{error}");
        assert!(!asking.host("localhost", 7).await.unwrap().is_empty());
    }
}
