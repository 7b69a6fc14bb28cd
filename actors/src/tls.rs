//! TLS for streams: the feature `tls`.
//!
//! Everything that nodes say over streams goes through TLS then: exchanges of states, links, uploads, orders, pings
//! of those who do not answer on datagrams. Datagrams do not: what is in them is sealed with the cluster's
//! [key](crate::ClusterBuilder::key), or not at all. With both, what goes over streams is sealed twice.
//!
//! With [`Tls::mutual`] each node shows a certificate, whether it has dialled or was dialled. It is accepted if it is
//! signed by one of the authorities given and bears the *name of the cluster*: a DNS name among its subject
//! alternative names, the same one in the certificates of all nodes, such as `shop.internal`. Nobody looks it up.
//! Members are found by their addresses, which change, and the name of a node is what it says of itself: neither is
//! checked. So a certificate says "a node of this cluster", not which one, and clusters under one authority are told
//! apart by their names.
//!
//! ```
//! # use actix_memberlist::{Cluster, Key, tls::{Tls, TlsError}};
//! # fn example(key: Key) -> Result<(), TlsError> {
//! let tls = Tls::from_pem_files("shop.internal", "node.pem", "node.key", "authority.pem")?;
//! let node = Cluster::builder("a").key(key).tls(tls.clone());
//!
//! // Later, when there are new files: streams that begin from now on use them.
//! tls.replace(&Tls::from_pem_files("shop.internal", "node.pem", "node.key", "authority.pem")?);
//! # Ok(())
//! # }
//! ```
//!
//! A certificate has to do for both ends of a stream: with an extended key usage it needs server *and* client
//! authentication. Keys on a curve (ECDSA P-256, Ed25519) are worth having: the handshake of each stream is work for the
//! node's thread, and RSA is many times slower.

use std::{
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_rustls::TlsAcceptor;
pub use tokio_rustls::rustls;

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerifier},
        verify_server_name,
    },
    crypto::ring,
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject},
    },
    server::{
        ParsedCertificate, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    version::TLS13,
};

/// Certificates, keys and whom to trust, for the streams of a node. A clone is the same: what is
/// [replaced](Self::replace) in one is replaced for all nodes that were given it.
#[derive(Clone)]
pub struct Tls(Arc<Mutex<Ends>>);

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ends { expect, how, .. } = self.ends();
        f.debug_struct("Tls").field("expect", &expect).field("use", &how).finish_non_exhaustive()
    }
}

#[derive(Clone)]
struct Ends {
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
    expect: Expect,
    how: TlsUse,
}

/// How far a running cluster has come on its way to TLS: nodes of one step and of the next understand each other, and
/// those of the first one understand nodes that have no TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TlsUse {
    /// Streams are taken in with TLS and without it, and dialled without.
    Heard,
    /// Streams are taken in with TLS and without it, and dialled with it.
    Spoken,
    /// Nothing goes without TLS.
    #[default]
    Required,
}

/// What the certificate of whoever was dialled has to bear.
#[derive(Clone, Debug)]
enum Expect {
    Name(ServerName<'static>),
    Address,
}

/// Certificates that are of no use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, #[source] io::Error),
    /// A file has no certificate or key in PEM in it, or a broken one.
    #[error("no good PEM in {0}: {1}")]
    Pem(PathBuf, #[source] pem::Error),
    /// The name of the cluster is no DNS name.
    #[error("{0:?} is no DNS name")]
    Name(String),
    /// There is no certificate of this node's own.
    #[error("there is no certificate of this node's own")]
    NoCertificate,
    /// There is no authority to trust.
    #[error("there is no authority to trust")]
    NoAuthority,
    /// An authority's certificate is broken.
    #[error("the certificate of an authority is of no use: {0}")]
    Authority(#[source] Error),
    /// The key is of a kind that is not known, or does not fit the certificate.
    #[error("the key does not do for the certificate: {0}")]
    Key(#[source] Error),
    /// Nodes with these settings would not accept this node's own certificate.
    #[error("the others would not accept this node's own certificate: {0}")]
    Own(#[source] Error),
}

impl Tls {
    /// Mutual authentication: only nodes that show a certificate with this name, of one of these authorities, get a
    /// stream, and are given one.
    ///
    /// `certificates` begins with the node's own; those between it and the authority follow, if there are any. TLS 1.3
    /// alone is spoken, and sessions are not resumed: each stream sees whole certificates.
    ///
    /// # Errors
    /// [`TlsError`]; also when nodes with these very settings would refuse the certificate, unless it is its time that
    /// is over, or has not come.
    pub fn mutual(
        name: &str,
        certificates: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        authorities: Vec<CertificateDer<'static>>,
    ) -> Result<Self, TlsError> {
        let name = server_name(name)?;
        let (own, between) = certificates.split_first().ok_or(TlsError::NoCertificate)?;
        let provider = Arc::new(ring::default_provider());
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(TlsError::Authority)?;
        }
        if roots.is_empty() {
            return Err(TlsError::NoAuthority);
        }
        let roots = Arc::new(roots);
        let unusable = |error: rustls::server::VerifierBuilderError| {
            TlsError::Authority(Error::General(error.to_string()))
        };
        let dialled = WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone());
        let dialled = dialled.build().map_err(unusable)?;
        let accepted = WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
        // Strangers need not know whom this node trusts.
        let accepted = accepted.clear_root_hint_subjects().build().map_err(unusable)?;
        let accepted = Arc::new(OfCluster { inner: accepted, name: name.clone() });

        let now = UnixTime::now();
        in_time(accepted.verify_client_cert(own, between, now).map(drop))?;
        in_time(dialled.verify_server_cert(own, between, &name, &[], now).map(drop))?;

        let versions = [&TLS13];
        let client = ClientConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions);
        let client = client.map_err(TlsError::Key)?.with_webpki_verifier(dialled);
        let client = client.with_client_auth_cert(certificates.clone(), key.clone_key());
        let mut client = client.map_err(TlsError::Key)?;
        // A ticket of one node is nothing to another of that name, and a certificate may be out of date by then.
        client.resumption = Resumption::disabled();
        let server = ServerConfig::builder_with_provider(provider).with_protocol_versions(&versions);
        let server = server.map_err(TlsError::Key)?.with_client_cert_verifier(accepted);
        let mut server = server.with_single_cert(certificates, key).map_err(TlsError::Key)?;
        server.send_tls13_tickets = 0;
        Ok(Self::of(client, server, Expect::Name(name)))
    }

    /// The same from files in PEM: this node's certificate and those between it and the authority, its key, and the
    /// authorities' certificates. It blocks while they are read.
    ///
    /// # Errors
    /// As [`mutual`](Self::mutual); [`TlsError::Read`], [`TlsError::Pem`].
    pub fn from_pem_files(
        name: &str,
        certificates: impl AsRef<Path>,
        key: impl AsRef<Path>,
        authorities: impl AsRef<Path>,
    ) -> Result<Self, TlsError> {
        let all = |path: &Path| {
            let bytes = std::fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error))?;
            let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
            all.map_err(|error| TlsError::Pem(path.to_owned(), error))
        };
        let (certificates, authorities) = (all(certificates.as_ref())?, all(authorities.as_ref())?);
        let path = key.as_ref();
        let bytes = std::fs::read(path).map_err(|error| TlsError::Read(path.to_owned(), error))?;
        let bytes = zeroize::Zeroizing::new(bytes);
        let key =
            PrivateKeyDer::from_pem_slice(&bytes).map_err(|error| TlsError::Pem(path.to_owned(), error))?;
        Self::mutual(name, certificates, key, authorities)
    }

    /// With rustls's settings of one's own: other verifiers, revocation lists, certificates that a resolver gives,
    /// keys in hardware. What they do not demand nobody demands: without a verifier of clients whoever reaches the port
    /// gets a stream. `name` is the one that `client` is to verify at whoever is dialled. All nodes share it, so
    /// tickets are mostly of no use.
    ///
    /// rustls is that of [`tls::rustls`](rustls), with the provider `ring` and TLS 1.3; more of it is switched on by
    /// naming it among one's own dependencies.
    ///
    /// # Errors
    /// [`TlsError::Name`].
    pub fn with_configs(name: &str, client: ClientConfig, server: ServerConfig) -> Result<Self, TlsError> {
        Ok(Self::of(client, server, Expect::Name(server_name(name)?)))
    }

    /// The same, but it is the IP address under which a node is dialled that `client` is to verify: each certificate
    /// has its node's address among its subject alternative names.
    pub fn with_configs_by_address(client: ClientConfig, server: ServerConfig) -> Self {
        Self::of(client, server, Expect::Address)
    }

    fn of(client: ClientConfig, server: ServerConfig, expect: Expect) -> Self {
        let (client, server) = (Arc::new(client), Arc::new(server));
        Self(Arc::new(Mutex::new(Ends { client, server, expect, how: TlsUse::Required })))
    }

    fn lock(&self) -> MutexGuard<'_, Ends> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether streams have to be under TLS; at first they have. A cluster is taken to TLS while it runs in three steps:
    /// each node is started anew with TLS and [`TlsUse::Heard`]; each is set to [`TlsUse::Spoken`]; each is set to
    /// [`TlsUse::Required`]. Streams that are open stay as they are. Until the last step whoever could get a stream
    /// without TLS still can.
    pub fn set_use(&self, how: TlsUse) {
        self.lock().how = how;
    }

    /// What was [set](Self::set_use).
    pub fn uses(&self) -> TlsUse {
        self.lock().how
    }

    /// Streams that are dialled or accepted from now on are under what `with` has now, but for its
    /// [use](Self::set_use). Those that are open stay as they are.
    ///
    /// To change the authority of a running cluster, let all nodes trust both, then give all of them certificates of
    /// the new one, then let all trust that one alone.
    pub fn replace(&self, with: &Tls) {
        let ends = with.ends();
        let mut own = self.lock();
        *own = Ends { how: own.how, ..ends };
    }

    fn ends(&self) -> Ends {
        self.lock().clone()
    }

    /// For a stream that is accepted.
    pub(crate) fn server(&self) -> (TlsAcceptor, TlsUse) {
        let ends = self.ends();
        (ends.server.into(), ends.how)
    }

    /// For a dial, if it is to be under TLS: also the name to be verified there.
    pub(crate) fn client(&self, to: SocketAddr) -> Option<(Arc<ClientConfig>, ServerName<'static>)> {
        let ends = self.ends();
        if ends.how == TlsUse::Heard {
            return None;
        }
        let name = match ends.expect {
            Expect::Name(name) => name,
            Expect::Address => ServerName::IpAddress(to.ip().to_canonical().into()),
        };
        Some((ends.client, name))
    }
}

fn server_name(name: &str) -> Result<ServerName<'static>, TlsError> {
    match ServerName::try_from(name.to_owned()) {
        Ok(dns @ ServerName::DnsName(_)) => Ok(dns),
        _ => Err(TlsError::Name(name.to_owned())),
    }
}

/// Clocks may be wrong, and certificates made in advance: that is the matter of whoever is shown one.
fn in_time(verified: Result<(), Error>) -> Result<(), TlsError> {
    use CertificateError::{Expired, ExpiredContext, NotValidYet, NotValidYetContext};
    match verified {
        Err(Error::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Ok(()),
        verified => verified.map_err(TlsError::Own),
    }
}

/// Accepts whoever is of the authority, and of the cluster.
#[derive(Debug)]
struct OfCluster {
    inner: Arc<dyn ClientCertVerifier>,
    name: ServerName<'static>,
}

impl ClientCertVerifier for OfCluster {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(own, between, now)?;
        verify_server_name(&ParsedCertificate::try_from(own)?, &self.name)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, own, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, own, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
