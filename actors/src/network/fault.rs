//! How a stream under TLS fails, as whoever uses the stream can find it in the error that it gets.

use std::{io, net::SocketAddr};

use crate::{logs::Line, metrics::Lost};

/// A stream that TLS has ended.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kind}")]
pub(crate) struct TlsFault {
    /// Who is at the other end.
    pub(crate) with: SocketAddr,
    pub(crate) kind: TlsFaultKind,
    /// The handshake has failed, and what the other side still says has to be read, or it might not hear why.
    pub(crate) linger: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(not(feature = "tls"), expect(dead_code, reason = "without the feature nobody makes one"))]
pub(crate) enum TlsFaultKind {
    #[error("it speaks no TLS, and this node nothing else: check that each node of the cluster is given TLS")]
    NoTls,
    #[error("its certificate is not accepted: {0}")]
    Certificate(String),
    #[error("it ends the stream with a TLS alert: {0}")]
    Alert(String),
    #[error("it ends the stream without the farewell that TLS demands: something may be missing")]
    Cut,
    #[error("the TLS handshake or what came after it is broken: {0}")]
    Broken(String),
}

impl TlsFault {
    /// What it is counted as.
    pub(crate) fn lost(&self) -> Lost {
        match self.kind {
            TlsFaultKind::NoTls => Lost::NoTls,
            TlsFaultKind::Certificate(_) => Lost::TlsCertificate,
            TlsFaultKind::Alert(_) => Lost::TlsAlert,
            TlsFaultKind::Cut => Lost::TlsCut,
            TlsFaultKind::Broken(_) => Lost::TlsBroken,
        }
    }

    /// The kind of line that tells of it.
    pub(crate) fn line(&self) -> Line {
        match self.kind {
            TlsFaultKind::NoTls => Line::NoTls,
            TlsFaultKind::Certificate(_) => Line::TlsCertificate,
            TlsFaultKind::Alert(_) => Line::TlsAlert,
            TlsFaultKind::Cut => Line::TlsCut,
            TlsFaultKind::Broken(_) => Line::TlsBroken,
        }
    }

    /// What an error tells of TLS, if it does.
    pub(crate) fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}
