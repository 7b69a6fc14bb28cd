//! Authorities and certificates, made anew by each test.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use actix_memberlist::{
    Tls,
    tls::{
        TlsError,
        rustls::{
            ClientConfig, RootCertStore, ServerConfig,
            crypto::ring,
            pki_types::{CertificateDer, PrivateKeyDer},
            server::WebPkiClientVerifier,
            version::TLS13,
        },
    },
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    date_time_ymd,
};

/// The name in the certificates of a cluster's nodes.
pub const NAME: &str = "shop.internal";

/// A certificate, and the key to it.
pub struct Certified {
    /// The certificate in front, and those between it and the authority.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its key.
    pub key: KeyPair,
    pem: String,
}

impl Certified {
    /// The key as rustls wants it.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.key.serialize_der().into())
    }

    /// Certificate and key in PEM.
    pub fn pem(&self) -> (String, String) {
        (self.pem.clone(), self.key.serialize_pem())
    }

    /// As its owner gives it to a node that trusts those authorities.
    pub fn trusting(&self, name: &str, authorities: &[&Authority]) -> Result<Tls, TlsError> {
        let authorities = authorities.iter().map(|authority| authority.certificate()).collect();
        Tls::mutual(name, self.chain.clone(), self.key(), authorities)
    }
}

static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Who signs certificates.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    /// A new one.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        // Whoever has the name of another one is told from it by its signature alone.
        let name = format!("authority {}", NUMBER.fetch_add(1, Relaxed));
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().expect("a key");
        Self(CertifiedIssuer::self_signed(params, key).expect("a certificate"))
    }

    /// Its own certificate.
    pub fn certificate(&self) -> CertificateDer<'static> {
        self.0.as_ref().der().clone()
    }

    /// The same in PEM.
    pub fn pem(&self) -> String {
        self.0.as_ref().pem()
    }

    /// A certificate for those names or addresses, changed before it is signed.
    pub fn sign(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Certified {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).expect("good names");
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Certified { chain: vec![certificate.der().clone()], key, pem: certificate.pem() }
    }

    /// What a good node of the cluster has.
    pub fn tls(&self) -> Tls {
        self.sign(&[NAME], |_| ()).trusting(NAME, &[self]).expect("a good certificate")
    }

    /// A certificate whose time is over.
    pub fn expired(&self) -> Certified {
        self.sign(&[NAME], |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2000, 1, 1), date_time_ymd(2001, 1, 1));
        })
    }

    /// A certificate whose time has not come.
    pub fn early(&self) -> Certified {
        self.sign(&[NAME], |params| params.not_before = date_time_ymd(3000, 1, 1))
    }

    /// A certificate of servers alone.
    pub fn of_server(&self) -> Certified {
        self.sign(&[NAME], |params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth])
    }

    fn roots(&self) -> Arc<RootCertStore> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate()).expect("a good certificate");
        Arc::new(roots)
    }

    /// rustls's settings of whoever dials and trusts this authority, with that certificate or none.
    pub fn client(&self, own: Option<&Certified>) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_protocol_versions(&[&TLS13]).expect("a version");
        let builder = builder.with_root_certificates(self.roots());
        match own {
            Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key()).expect("a good key"),
            None => builder.with_no_client_auth(),
        }
    }

    /// rustls's settings of whoever is dialled with that certificate, and lets in whom this authority has signed.
    pub fn server(&self, own: &Certified) -> ServerConfig {
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(self.roots(), provider.clone());
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(&[&TLS13]);
        let builder = builder.expect("a version").with_client_cert_verifier(verifier.build().expect("roots"));
        builder.with_single_cert(own.chain.clone(), own.key()).expect("a good key")
    }
}

impl Default for Authority {
    fn default() -> Self {
        Self::new()
    }
}
