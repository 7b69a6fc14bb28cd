//! Setting a node up.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use actix::Recipient;
use actix_rt::{Arbiter, ArbiterHandle, System};
use bytes::Bytes;
use memberlist_protocol::{config::Config, keyring::Key, member::Tags, wire::guard::Labels};
use tokio::sync::oneshot;

use crate::{
    cluster::Cluster,
    discover::{Discover, Source},
    errors::StartError,
    hooks::Hooks,
    keyring::Keyring,
    network::{Network, SystemNetwork},
    node::{self, Plan},
    questions::Admit,
    resolve::{DnsResolver, Resolver},
    store::{FileStore, Place, Store},
};

/// The port that nodes of a cluster have by custom.
pub const DEFAULT_PORT: u16 = 7946;

/// A node that is not started yet. Without further settings it is one of a LAN on `127.0.0.1:7946`.
#[must_use = "a node runs once it is started"]
pub struct ClusterBuilder {
    plan: Plan,
    arbiter: Option<ArbiterHandle>,
}

impl std::fmt::Debug for ClusterBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Plan { name, bind, .. } = &self.plan;
        f.debug_struct("ClusterBuilder").field("name", name).field("bind", bind).finish_non_exhaustive()
    }
}

impl ClusterBuilder {
    pub(crate) fn new(name: String) -> Self {
        let plan = Plan {
            name,
            config: Arc::new(Config::lan()),
            bind: (Ipv4Addr::LOCALHOST, DEFAULT_PORT).into(),
            advertise: None,
            labels: Labels::new(""),
            keyring: None,
            plaintext: false,
            meta: Bytes::new(),
            tags: Tags::new(),
            ping_payload: Bytes::new(),
            network: Arc::new(SystemNetwork),
            #[cfg(feature = "tls")]
            tls: None,
            resolver: Arc::new(DnsResolver::system()),
            sources: Vec::new(),
            store: None,
            seed: None,
            watchdog: true,
            hooks: Hooks::default(),
            admit: None,
        };
        Self { plan, arbiter: None }
    }

    /// The settings; without them [`Config::lan`].
    pub fn config(mut self, c: Config) -> Self {
        self.plan.config = Arc::new(c);
        self
    }

    /// Where the node listens, for datagrams and streams alike. Port 0 is one port that is free for both.
    ///
    /// Bound to all addresses of its host, `0.0.0.0` or `::`, and not told what to
    /// [advertise](Self::advertise), it is known by the address of the host's default route, or else by its
    /// first private one. A start fails if there is neither.
    pub fn bind(mut self, a: SocketAddr) -> Self {
        self.plan.bind = a;
        self
    }

    /// What the others are told to reach it by, where that is another address; port 0 is the one bound.
    ///
    /// A start fails with an address that leads nobody to the node: none, of many hosts, on loopback while it
    /// is bound elsewhere, link-local in IPv6 (which needs an interface named beside it). One that leads only
    /// some there is a warning in the log: on loopback while the node is bound to all addresses, link-local in
    /// IPv4, one for documentation.
    pub fn advertise(mut self, a: SocketAddr) -> Self {
        self.plan.advertise = Some(a);
        self
    }

    /// The cluster's label, at most 255 bytes. Nodes with another label do not understand each other, so
    /// that two clusters never merge by accident. It is no secret.
    pub fn label(mut self, l: impl Into<String>) -> Self {
        self.plan.labels.own = l.into();
        self
    }

    /// Labels that the node also hears, 16 at most; the empty one is that of nodes without any. A cluster changes
    /// its label in three steps: all hear the new one, all say it, all hear it alone.
    pub fn accept_labels<I: IntoIterator<Item = String>>(mut self, l: I) -> Self {
        self.plan.labels.accepted = l.into_iter().collect();
        self
    }

    /// The cluster's key: everything is sealed with it. Short for [`keyring`](Self::keyring) with one key.
    pub fn key(self, k: Key) -> Self {
        self.keyring(Keyring::new(k))
    }

    /// The cluster's keys. What is changed in the ring later is changed for this node.
    pub fn keyring(mut self, k: Keyring) -> Self {
        self.plan.keyring = Some(k);
        self
    }

    /// Lets the node start off loopback although not everything is sealed: whoever reaches its port can read,
    /// join and forge.
    pub fn plaintext(mut self) -> Self {
        self.plan.plaintext = true;
        self
    }

    /// Metadata that the others see, at most 512 bytes together with the tags.
    pub fn meta(mut self, m: Bytes) -> Self {
        self.plan.meta = m;
        self
    }

    /// A tag that the others see. Tags share 512 bytes with the metadata; each takes four bytes besides its
    /// key and its value.
    pub fn tag(mut self, k: impl Into<String>, v: impl Into<String>) -> Self {
        self.plan.tags.insert(k.into(), v.into());
        self
    }

    /// Who is asked whether a newcomer may in; without it everybody may. See [`Admit`].
    pub fn admit(mut self, to: Recipient<Admit>) -> Self {
        self.plan.admit = Some(to);
        self
    }

    /// What comes with the node's answers to pings, at most 512 bytes; see [`Cluster::set_ping_payload`].
    pub fn ping_payload(mut self, p: impl Into<Bytes>) -> Self {
        self.plan.ping_payload = p.into();
        self
    }

    /// The thread that the node's actors live on; without it they get one of their own. Do not let anything
    /// block there. Many nodes may share one.
    pub fn arbiter(mut self, a: ArbiterHandle) -> Self {
        self.arbiter = Some(a);
        self
    }

    /// The network; without it [`SystemNetwork`].
    pub fn network<N: Network>(mut self, n: N) -> Self {
        self.plan.network = Arc::new(n);
        self
    }

    /// Puts all streams under TLS, over whatever network. Datagrams are not: they still want a [`key`](Self::key), and
    /// off loopback a start without one still fails. See [`tls`](crate::tls).
    ///
    /// A node that has TLS and one that has none exchange no states and have no links; both say so.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, t: crate::Tls) -> Self {
        self.plan.tls = Some(t);
        self
    }

    /// Where the addresses of names come from; without it [`DnsResolver::system`].
    pub fn resolver<R: Resolver>(mut self, r: R) -> Self {
        self.plan.resolver = Arc::new(r);
        self
    }

    /// Where seeds come from: the node asks at its start, and again for as long as it runs, and joins those
    /// that are no members; see [`discover`](crate::discover). Each call adds a source, 16 at most.
    pub fn seeds<D: Discover>(mut self, d: D) -> Self {
        self.plan.sources.push(Source::new(d));
        self
    }

    /// The file that keeps this node's incarnation and the members that it knew, so that it comes back after a
    /// restart without being told a seed: see [`store`](crate::store). Its directory must exist. It needs no secrecy
    /// beyond that of the members' addresses.
    ///
    /// Nothing that is wrong with it keeps the node from starting. A disk that does not answer delays the start by a
    /// second, the end by half a second, and nothing else.
    pub fn rejoin_file(self, p: impl Into<PathBuf>) -> Self {
        self.store(FileStore::new(p))
    }

    /// The same with another place than a file.
    pub fn store<S: Store>(mut self, s: S) -> Self {
        self.plan.store = Some(Place::new(s));
        self
    }

    /// The same with a place in memory.
    #[cfg(feature = "testing")]
    pub fn memory_store(mut self, s: &crate::store::MemoryStore) -> Self {
        self.plan.store = Some(Place::Memory(s.clone()));
        self
    }

    /// Where chance begins. Without it the system gives a start that nobody can guess: use this for tests. With
    /// a key never use it elsewhere: two starts from one number seal different things alike, and whoever
    /// listens can then read and forge.
    pub fn seed(mut self, s: u64) -> Self {
        self.plan.seed = Some(s);
        self
    }

    /// Panics that a test injects. It also leaves the watchdog out, which knows real time only.
    #[cfg(feature = "testing")]
    pub fn strikes(mut self, s: crate::testing::Strikes) -> Self {
        self.plan.hooks.strikes = Some(s);
        self.without_watchdog()
    }

    /// Where a test wants the node's events and restarts recorded. It also leaves the watchdog out.
    #[cfg(feature = "testing")]
    pub fn trace(mut self, t: crate::trace::Trace) -> Self {
        self.plan.hooks.trace = Some(t);
        self.without_watchdog()
    }

    /// Leaves the watchdog out, which knows real time only.
    #[cfg(feature = "testing")]
    pub fn without_watchdog(mut self) -> Self {
        self.plan.watchdog = false;
        self
    }

    /// Starts the node. It is bound and answers when this returns.
    ///
    /// # Errors
    /// [`StartError`]. Nothing is left running or bound then, nor when the future is dropped.
    pub async fn start(self) -> Result<Cluster, StartError> {
        let advertised = self.plan.check()?;
        let thread = match self.arbiter {
            Some(_) => None,
            None if System::try_current().is_none() => return Err(StartError::NoSystem),
            None => Some(Arbiter::try_new().map_err(StartError::Thread)?),
        };
        let arbiter = match (&thread, self.arbiter) {
            (Some(thread), _) => thread.handle(),
            (None, Some(arbiter)) => arbiter,
            (None, None) => return Err(StartError::NoSystem),
        };
        let own_thread = thread.is_some();
        // If this future is dropped, so is the guard, and the thread stops.
        let guard = StopThread(thread);
        let (sender, started) = oneshot::channel();
        let plan = self.plan.with_faults();
        let accepted = arbiter.spawn(async move {
            let _ = sender.send(node::start(plan, advertised, own_thread).await);
        });
        let gone = || StartError::Thread(std::io::Error::other("the arbiter has stopped"));
        if !accepted {
            return Err(gone());
        }
        let (doors, node) = started.await.map_err(|_| gone())??.take().ok_or_else(gone)?;
        Ok(Cluster::new(doors, node, guard.keep()))
    }
}

struct StopThread(Option<Arbiter>);

impl StopThread {
    fn keep(mut self) -> Option<Arbiter> {
        self.0.take()
    }
}

impl Drop for StopThread {
    fn drop(&mut self) {
        if let Some(thread) = self.0.take() {
            thread.stop();
        }
    }
}
