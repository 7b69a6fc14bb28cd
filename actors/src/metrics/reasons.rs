//! Why something is dropped, each reason with a counter and a name of its own.

use memberlist_protocol::{
    members::Ignored,
    probe::Unheard,
    wire::{WireError, state::Refusal},
};

/// Why the node itself dropped something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    /// News that found its inbox full.
    InboxNews,
    /// Control that found its inbox full.
    InboxControl,
    /// A packet that the network did not take just then.
    WouldBlock,
    /// A packet that could not be sent at all.
    SendFailed,
    /// Messages that no packet has room for.
    NoRoom,
    /// News or broadcasts that had to make room for newer.
    Pruned,
    /// A stream that was not opened for want of room.
    TooManyStreams,
    /// A stream that was closed because too many from its address are open and wait.
    TooManyStreamsOfSource,
    /// A stream that took too long.
    StreamTimeout,
    /// A stream that broke.
    StreamBroken,
    /// A stream that the other side refused for its label or its key.
    StreamRefused,
    /// A stream with somebody who speaks no TLS.
    NoTls,
    /// A stream with somebody whose certificate is not accepted.
    TlsCertificate,
    /// A stream that the other side has ended with a TLS alert.
    TlsAlert,
    /// A stream that ended without TLS's farewell.
    TlsCut,
    /// A stream of which the TLS handshake, or what came after it, is broken.
    TlsBroken,
    /// A user's broadcast that had been seen.
    SeenBroadcast,
    /// A user's message that nobody handles here.
    NoHandler,
    /// A user's message whose handler has too much to do.
    HandlerBusy,
    /// A user's message that is none of the type that its handler wants.
    Undecodable,
    /// An answer to a peer's question for which there was no room.
    AnswerUnfit,
    /// An answer of a peer for which nobody waits.
    AnswerUnheard,
    /// An answered probe that a subscriber had no room for.
    PingUnheard,
    /// An event of a link that a subscriber had no room for.
    LinkUnheard,
    /// A subscriber that lagged behind, and got a snapshot instead of events.
    SubscriberLagged,
    /// A message whose handler panicked.
    Panicked,
    /// Messages and events that a handler took with it when it stopped.
    HandlerGone,
    /// A peer's question whose time was over before its handler was free.
    Expired,
    /// A message of a user over a stream that has not got through, or of which that is not known.
    Undelivered,
    /// A user's bytes that were for another node.
    NotForUs,
    /// A user's bytes for an address at which nobody has answered.
    NobodyThere,
    /// A question that the application did not answer in time.
    QuestionLate,
    /// A question to an actor of the application that had stopped, or panicked over it.
    QuestionFailed,
    /// A shared state that had no room, or that nobody shares here.
    Unshared,
    /// A joiner that refused this node after all.
    JoinRefused,
    /// A socket that reported an error on reading.
    ReadFailed,
    /// A socket that reported an error on accepting a stream.
    AcceptFailed,
    /// A packet from outside the networks that are allowed.
    NotAllowedPacket,
    /// A stream from outside the networks that are allowed.
    NotAllowedStream,
    /// A peer that does not speak what this node understands, or the other way round.
    RefusedVersion,
    /// A peer whose address is outside the networks that are allowed.
    RefusedAddress,
    /// A peer whose name is another one's.
    RefusedName,
    /// A peer that was refused for another reason.
    RefusedOther,
    /// A seed beyond those that a source may give.
    TooManySeeds,
    /// An address beyond those that one name may have.
    TooManyAddrs,
}

impl Lost {
    pub(crate) const ALL: [(Self, &'static str); 45] = [
        (Self::InboxNews, "inbox_news"),
        (Self::InboxControl, "inbox_control"),
        (Self::WouldBlock, "would_block"),
        (Self::SendFailed, "send_failed"),
        (Self::NoRoom, "no_room"),
        (Self::Pruned, "pruned"),
        (Self::TooManyStreams, "too_many_streams"),
        (Self::TooManyStreamsOfSource, "too_many_streams_of_source"),
        (Self::StreamTimeout, "stream_timeout"),
        (Self::StreamBroken, "stream_broken"),
        (Self::StreamRefused, "stream_refused"),
        (Self::NoTls, "no_tls"),
        (Self::TlsCertificate, "tls_certificate"),
        (Self::TlsAlert, "tls_alert"),
        (Self::TlsCut, "tls_cut"),
        (Self::TlsBroken, "tls_broken"),
        (Self::SeenBroadcast, "seen_broadcast"),
        (Self::NoHandler, "no_handler"),
        (Self::HandlerBusy, "handler_busy"),
        (Self::Undecodable, "undecodable"),
        (Self::AnswerUnfit, "answer_lost"),
        (Self::AnswerUnheard, "answer_unheard"),
        (Self::PingUnheard, "ping_unheard"),
        (Self::LinkUnheard, "link_unheard"),
        (Self::SubscriberLagged, "subscriber_lagged"),
        (Self::Panicked, "panicked"),
        (Self::HandlerGone, "handler_gone"),
        (Self::Expired, "expired"),
        (Self::Undelivered, "undelivered"),
        (Self::NotForUs, "not_for_us"),
        (Self::NobodyThere, "nobody_there"),
        (Self::QuestionLate, "question_late"),
        (Self::QuestionFailed, "question_failed"),
        (Self::Unshared, "unshared"),
        (Self::JoinRefused, "join_refused"),
        (Self::ReadFailed, "read_failed"),
        (Self::AcceptFailed, "accept_failed"),
        (Self::NotAllowedPacket, "not_allowed_packet"),
        (Self::NotAllowedStream, "not_allowed_stream"),
        (Self::RefusedVersion, "refused_version"),
        (Self::RefusedAddress, "refused_address"),
        (Self::RefusedName, "refused_name"),
        (Self::RefusedOther, "refused_other"),
        (Self::TooManySeeds, "too_many_seeds"),
        (Self::TooManyAddrs, "too_many_addresses"),
    ];

    /// What a refusal of this node's own is counted as.
    pub(crate) fn refused(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Version => Self::RefusedVersion,
            Refusal::Address => Self::RefusedAddress,
            Refusal::NameTaken => Self::RefusedName,
            _ => Self::RefusedOther,
        }
    }
}

impl Lost {
    /// Where it happens.
    pub(crate) fn queue(self) -> &'static str {
        match self {
            Self::InboxNews | Self::InboxControl => "inboxes",
            Self::WouldBlock | Self::SendFailed => "packets_out",
            Self::ReadFailed | Self::AcceptFailed => "sockets",
            Self::NoRoom | Self::Pruned => "broadcasts",
            Self::TooManyStreams
            | Self::TooManyStreamsOfSource
            | Self::StreamTimeout
            | Self::StreamBroken
            | Self::StreamRefused
            | Self::NoTls
            | Self::TlsCertificate
            | Self::TlsAlert
            | Self::TlsCut
            | Self::TlsBroken => "streams",
            Self::SeenBroadcast
            | Self::NoHandler
            | Self::HandlerBusy
            | Self::Undecodable
            | Self::HandlerGone
            | Self::Expired
            | Self::SubscriberLagged
            | Self::AnswerUnfit
            | Self::AnswerUnheard
            | Self::PingUnheard
            | Self::LinkUnheard
            | Self::NotForUs
            | Self::Unshared => "users",
            Self::Undelivered | Self::NobodyThere => "outbox",
            Self::QuestionLate | Self::QuestionFailed => "questions",
            Self::JoinRefused
            | Self::RefusedVersion
            | Self::RefusedAddress
            | Self::RefusedName
            | Self::RefusedOther => "exchanges",
            Self::NotAllowedPacket | Self::NotAllowedStream => "allow_list",
            Self::TooManySeeds | Self::TooManyAddrs => "seeds",
            Self::Panicked => "actors",
        }
    }
}

/// Why something was dropped: a peer's bytes, a message that changes nothing, or the node's own limits.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Reason {
    Wire(WireError),
    Ignored(Ignored),
    Unheard(Unheard),
    Lost(Lost),
}

impl From<WireError> for Reason {
    fn from(error: WireError) -> Self {
        Self::Wire(error)
    }
}

impl From<Ignored> for Reason {
    fn from(ignored: Ignored) -> Self {
        Self::Ignored(ignored)
    }
}

impl From<Unheard> for Reason {
    fn from(unheard: Unheard) -> Self {
        Self::Unheard(unheard)
    }
}

impl From<Lost> for Reason {
    fn from(lost: Lost) -> Self {
        Self::Lost(lost)
    }
}

const WIRE: usize = WireError::ALL.len();

const IGNORED: usize = WIRE + Ignored::ALL.len();

const UNHEARD: usize = IGNORED + Unheard::ALL.len();

pub(crate) const REASONS: usize = UNHEARD + Lost::ALL.len();

impl Reason {
    pub(crate) fn index(self) -> usize {
        match self {
            Self::Wire(error) => place(&WireError::ALL, error),
            Self::Ignored(ignored) => WIRE + place(&Ignored::ALL, ignored),
            Self::Unheard(unheard) => IGNORED + place(&Unheard::ALL, unheard),
            Self::Lost(lost) => UNHEARD + Lost::ALL.iter().position(|(l, _)| *l == lost).unwrap_or(0),
        }
    }

    /// Where each reason occurs, by its name.
    pub(crate) fn queues() -> impl Iterator<Item = (&'static str, &'static str)> {
        let names = Self::names().enumerate();
        names.map(|(i, name)| match i {
            0..WIRE => (name, "wire"),
            WIRE..IGNORED => (name, "members"),
            IGNORED..UNHEARD => (name, "probes"),
            _ => (name, Lost::ALL[(i - UNHEARD).min(Lost::ALL.len() - 1)].0.queue()),
        })
    }

    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        let wire = WireError::ALL.iter().map(|error| error.name());
        let ignored = Ignored::ALL.iter().map(|ignored| ignored.name());
        let unheard = Unheard::ALL.iter().map(|unheard| unheard.name());
        wire.chain(ignored).chain(unheard).chain(Lost::ALL.iter().map(|(_, name)| *name))
    }
}

fn place<T: PartialEq>(all: &[T], one: T) -> usize {
    all.iter().position(|each| *each == one).unwrap_or(0)
}
