//! **Transport** is between the network and the ring. It takes datagrams apart and gives each message to the
//! one actor that understands it; it sends packets; it opens and accepts streams, each of which is a task of
//! its own (see [`streams`](crate::streams)).

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::atomic::Ordering::Relaxed,
    task::{Context as Cx, Poll, Waker},
    time::Duration,
};

use actix::{Actor, Context, StreamHandler};
use memberlist_protocol::{
    allowance::Allowance,
    bucket::Bucket,
    config::Config,
    member::{NodeId, canonical},
    members::Ignored,
    probe::{self, Dialled, Unheard},
    wire::{
        WireError, codec,
        frame::Parts,
        guard::Unwrapped,
        message::{Direct, Message},
    },
};
use tokio::time::Instant;

use delivering::Backlog;
use sending::Outgoing;

use crate::{
    errors::JoinError,
    errors::{AskError, Cause, NotSent},
    exchanges,
    inbox::{self, Alarm, Turns},
    link,
    logs::{self, Line, say},
    messages::{TRANSPORT, ToDelegates, ToDetector, ToState, ToTransport},
    metrics::{Lost, up},
    ring::{Shared, now},
    rollout,
    sources::{Accepted, Sources, Turn},
    streams::{self, Permit},
    supervisor::Child,
    uploads,
};

mod delivering;
mod sending;

/// Datagrams that are taken from the network in one turn. What waits longer waits in the kernel.
const RECEIVED_PER_TURN: usize = 64;

/// Streams from outside the networks allowed that are closed in a row, before others have a turn.
const SHUT_OUT_PER_TURN: usize = 64;

/// Largest datagram there is.
const MAX_DATAGRAM: usize = 65_536;

/// First pause after an error of the socket; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(5);

/// Longest pause after errors of the socket.
const MAX_PAUSE: Duration = Duration::from_secs(1);

thread_local! {
    /// One for all nodes of a thread: it is used for the length of one call.
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; MAX_DATAGRAM]);

    /// The same, for what is sent.
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What survives a restart: streams that were accepted and are not served yet, and how many are open.
pub(crate) struct Kept {
    accepted: VecDeque<Accepted>,
    pub(crate) open: Rc<Open>,
    outgoing: Outgoing,
    backlog: Backlog,
    /// After errors on reading datagrams.
    reading: Pause,
    /// After errors on accepting streams: datagrams are read all the same.
    accepting: Pause,
    /// Strangers that are answered.
    strangers: Bucket,
}

impl Kept {
    pub(crate) fn new(ring: &Shared) -> Self {
        Self {
            accepted: VecDeque::new(),
            open: Open::new(&ring.config, ring.bodies_of_source()),
            outgoing: Outgoing::default(),
            backlog: Backlog::default(),
            reading: Pause::default(),
            accepting: Pause::default(),
            strangers: Bucket::new(ring.config.max_stranger_answers),
        }
    }
}

/// What a stream is open for. Each use has a share of the room, so that none keeps the others out: users who
/// send much do not keep a node from being joined, and those who dial it do not keep it from joining.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// The node's own pings and exchanges: they may take whatever is free.
    Own,
    /// Somebody else has dialled: at most half of the room.
    Served,
    /// A link from a peer: these have room of their own.
    Linked,
}

/// How many streams are open.
pub(crate) struct Open {
    /// By use.
    now: [Cell<usize>; 3],
    max: usize,
    max_links: usize,
    crowded: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    /// By where those come from that others have dialled.
    pub(crate) sources: RefCell<Sources>,
}

impl Open {
    fn new(config: &Config, bodies_of_source: usize) -> Rc<Self> {
        let max = config.max_streams;
        let sources = Sources::new(config.max_streams_per_source, max, bodies_of_source);
        Rc::new(Self {
            now: Default::default(),
            max,
            max_links: config.max_links,
            crowded: Cell::default(),
            waker: RefCell::default(),
            sources: RefCell::new(sources),
        })
    }

    fn all(&self) -> usize {
        self.now[..Use::Linked as usize].iter().map(Cell::get).sum()
    }

    fn share(&self, of: Use) -> usize {
        match of {
            Use::Own => self.max,
            Use::Served => self.max / 2,
            Use::Linked => self.max_links,
        }
    }

    /// Whether others may be waiting to be accepted, for whom there is no room, or wait for one from the same
    /// address to end.
    pub(crate) fn is_crowded(&self, from: SocketAddr) -> bool {
        self.crowded.get() || self.sources.borrow().is_crowded(from)
    }

    /// Whether there is room for one more stream of that use, when `waiting` have been promised some.
    pub(crate) fn has_room(&self, of: Use, waiting: usize) -> bool {
        let in_all = of == Use::Linked || self.all() + waiting < self.max;
        in_all && self.now[of as usize].get() + waiting < self.share(of)
    }

    /// Room for one more stream.
    pub(crate) fn permit(self: &Rc<Self>, of: Use) -> Option<Permit> {
        self.permit_of(of, None)
    }

    fn permit_of(self: &Rc<Self>, of: Use, from: Option<SocketAddr>) -> Option<Permit> {
        let room = self.has_room(of, 0);
        room.then(|| {
            self.take(of);
            Permit::new(self.clone(), of, from)
        })
    }

    pub(crate) fn take(&self, of: Use) {
        let now = &self.now[of as usize];
        now.set(now.get() + 1);
    }

    /// Room for a stream from there.
    fn permit_for(self: &Rc<Self>, from: SocketAddr) -> Option<Permit> {
        self.permit_of(Use::Served, Some(from))
    }

    pub(crate) fn release(&self, of: Use, from: Option<SocketAddr>) {
        if let Some(from) = from {
            self.sources.borrow_mut().leave(from);
        }
        let now = &self.now[of as usize];
        now.set(now.get() - 1);
        // Whoever waits to be accepted has a turn.
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// When to try the socket again after it reported errors.
#[derive(Default)]
struct Pause {
    until: Option<Instant>,
    last: Duration,
}

impl Pause {
    fn is_over(&self) -> bool {
        self.until.is_none_or(|until| until <= Instant::now())
    }

    fn lengthen(&mut self) {
        self.last = (self.last * 2).clamp(FIRST_PAUSE, MAX_PAUSE);
        self.until = Some(Instant::now() + self.last);
    }

    /// Forgets a pause that is over, but not how long it was.
    fn lapse(&mut self) {
        if self.is_over() {
            self.until = None;
        }
    }

    fn end(&mut self) {
        *self = Self::default();
    }
}

pub(crate) struct Transport {
    ring: Shared,
    kept: Rc<RefCell<Kept>>,
    alarm: Alarm,
}

impl Transport {
    pub(crate) fn new(ring: Shared, kept: Rc<RefCell<Kept>>) -> Self {
        Self { ring, kept, alarm: Alarm::default() }
    }

    fn hear(&self, item: ToTransport) {
        match item {
            ToTransport::Packet { to, run, bytes, report } => {
                self.send(to, run, &bytes, report);
            }
            ToTransport::StreamPing { seq, target, addr, deadline } => {
                let pinged = move |ring: &Shared, heard| {
                    ring.command(ring.detector_inbox(), ToDetector::StreamPinged { seq, heard });
                };
                match self.permit(Use::Own) {
                    Some(permit) => {
                        let ring = self.ring.clone();
                        self.ring.spawn("stream ping", async move {
                            let result = streams::ping(&ring, permit, seq, target, addr, deadline).await;
                            pinged(&ring, result);
                        });
                    }
                    None => pinged(&self.ring, Dialled::Silent),
                }
            }
            ToTransport::Link { link } => link::start(&self.ring, link),
            ToTransport::Upload(upload) => match self.permit(Use::Own) {
                Some(permit) => self.ring.spawn("upload", uploads::send(self.ring.clone(), permit, upload)),
                None => {
                    let busy = AskError::NotSent(NotSent::Never(Cause::Busy));
                    drop(upload.reply.send(Err(busy)));
                }
            },
            ToTransport::PushPull { addr, why } => {
                let Some(permit) = self.permit(Use::Own) else { return };
                let ring = self.ring.clone();
                self.ring.spawn("push/pull", async move {
                    if let Err(error) = exchanges::push_pull(&ring, permit, addr, why).await {
                        let error = logs::text(error);
                        say!(ring, Line::NoExchange, debug, %addr, %error, "no exchange of states");
                    }
                });
            }
            ToTransport::Farewell { packets, reply } => {
                let sent = packets.iter().filter(|(to, run, bytes)| self.send_now(*to, *run, bytes)).count();
                let _ = reply.send(sent);
            }
            ToTransport::Order { member, order, mut reply } => {
                let Some(permit) = self.permit(Use::Own) else {
                    return drop(reply.send(Err("there is no room for another stream here".into())));
                };
                let ring = self.ring.clone();
                self.ring.spawn("order", async move {
                    let (id, addr) = (member.id.clone(), member.addr);
                    let standing = tokio::select! {
                        biased;
                        () = reply.closed() => return,
                        standing = rollout::give(&ring, &permit, id, addr, order, None) => standing,
                    };
                    let _ = reply.send(standing);
                });
            }
            ToTransport::Join { addr, why, mut reply } => {
                let Some(permit) = self.permit(Use::Own) else {
                    return drop(reply.send(Err(JoinError::Busy)));
                };
                let ring = self.ring.clone();
                self.ring.spawn("join", async move {
                    let joined = tokio::select! {
                        biased;
                        // Nobody waits any more: the join was dropped, or its time is up.
                        () = reply.closed() => return,
                        joined = exchanges::push_pull(&ring, permit, addr, why) => joined,
                    };
                    let _ = reply.send(joined);
                });
            }
        }
    }

    fn permit(&self, of: Use) -> Option<Permit> {
        let permit = self.kept.borrow().open.permit(of);
        if permit.is_none() {
            self.ring.counters.drop(Lost::TooManyStreams);
            let max = self.ring.config.max_streams;
            say!(self.ring, Line::TooManyStreams, warn, max, "no room for another stream: see max_streams");
        }
        permit
    }

    fn receive_some(&self) {
        for _ in 0..RECEIVED_PER_TURN {
            let received = BUFFER.with_borrow_mut(|buffer| match self.ring.endpoint.try_recv(buffer) {
                Ok((len, from)) => {
                    self.kept.borrow_mut().reading.end();
                    self.ring.hooks.strike(TRANSPORT, "datagram");
                    self.receive(&mut buffer[..len], from);
                    Ok(())
                }
                Err(error) => Err(error),
            });
            match received {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => {
                    self.ring.counters.drop(Lost::ReadFailed);
                    say!(self.ring, Line::NotRead, warn, %error, "cannot read datagrams");
                    self.kept.borrow_mut().reading.lengthen();
                    return;
                }
            }
        }
    }

    fn receive(&self, datagram: &mut [u8], from: SocketAddr) {
        let counters = &self.ring.counters;
        up(&counters.packets_received);
        counters.bytes_received.fetch_add(datagram.len() as u64, Relaxed);
        let from = canonical(from);
        if !self.ring.config.allows(from.ip()) {
            counters.drop(Lost::NotAllowedPacket);
            return;
        }
        if let Err(error) = self.take_apart(datagram, from) {
            counters.drop(error);
            let (len, hint) = (datagram.len(), logs::hint(error));
            say!(self.ring, Line::Packet(error), warn, %from, len, hint, "packet dropped: {error}");
            tracing::trace!(%from, %error, len, "dropped");
        }
    }

    fn take_apart(&self, datagram: &mut [u8], from: SocketAddr) -> Result<(), WireError> {
        let ring = &self.ring;
        let mut guard = ring.guard();
        let view = ring.view.borrow();
        let runs = |each: &mut dyn FnMut(u64)| view.all().for_each(|member| each(member.id.run()));
        let open = guard.is_open();
        let mut allowance = Allowance::new(datagram.len(), guard.least_overhead());
        let Unwrapped { body, sealed } = guard.unwrap(view.local().id.run(), datagram, runs)?;
        drop(view);
        if open && sealed.is_none() {
            up(&ring.counters.packets_unsealed);
        }
        let to_anybody = sealed.is_some_and(|sealed| !sealed.addressed);
        let by = sealed.map_or(NodeId::ANY_RUN, |sealed| sealed.by);
        for part in Parts::of(body)? {
            let message = codec::decode(part?)?;
            // What is for anybody opens at everybody, and again after a restart.
            let is_harmless = match &message {
                Message::Ping(_) => true,
                Message::Direct(Direct { to: None, .. }) => open,
                _ => false,
            };
            if to_anybody && !is_harmless {
                return Err(WireError::Unaddressed);
            }
            ring.counters.received(&message);
            if let Err(unheard) = self.pass_on(message, from, by, &mut allowance) {
                ring.counters.drop(unheard);
            }
        }
        Ok(())
    }

    /// Gives a message to the actor that understands it. What is answered has to be within the datagram's
    /// allowance; what nobody would answer wakes no actor.
    fn pass_on(
        &self,
        message: Message,
        from: SocketAddr,
        by: u64,
        allowance: &mut Allowance,
    ) -> Result<(), Unheard> {
        let ring = &self.ring;
        let detector = ring.detector_inbox();
        match message {
            Message::Ping(ping) => {
                let view = ring.view.borrow();
                if !view.local().id.answers_to(&ping.target) {
                    return Err(Unheard::NotForMe);
                }
                let member = probe::member_at(&view, &ping.from, from).is_some();
                let piggyback = allowance.ping(ping.seq, member)?;
                self.stranger(member)?;
                ring.news(detector, ToDetector::Ping { ping, from, piggyback });
            }
            Message::IndirectPing(request) => {
                let view = ring.view.borrow();
                if probe::pingable(&view, &request).is_none() {
                    return Err(Unheard::UnknownTarget);
                }
                let member = probe::member_at(&view, &request.from, from).is_some();
                allowance.indirect_ping(&request, &view.local().id, member)?;
                self.stranger(member)?;
                if !member {
                    ring.counters.drop(Unheard::UnknownAsker);
                }
                ring.news(detector, ToDetector::IndirectPing { request, from });
            }
            // Only an answer that is waited for gets into the lane of control.
            Message::Ack(ack) if ring.detector.borrow().expects(ack.seq) => {
                ring.command(detector, ToDetector::Ack { ack, by });
            }
            Message::Ack(_) => return Err(Unheard::UnknownSequence),
            Message::Nack(nack) if ring.detector.borrow().expects(nack.seq) => {
                ring.command(detector, ToDetector::Nack(nack));
            }
            Message::Nack(_) => return Err(Unheard::UnknownSequence),
            // While many join, nearly all is an echo: it would fill the inbox, and push out what is not.
            Message::Alive(m) if ring.view.borrow().is_echo(&m) => {
                ring.hooks.meets("alive", || "alive");
                ring.counters.drop(Ignored::Stale);
            }
            Message::Alive(m) => ring.news(&ring.state, ToState::Alive(m)),
            Message::Suspect(m) if self.is_about_self(&m.id) => {
                self.accused(m.incarnation, ToState::Suspect(m));
            }
            Message::Suspect(m) => ring.news(&ring.state, ToState::Suspect(m)),
            Message::Dead(m) if self.is_about_self(&m.id) => self.accused(m.incarnation, ToState::Dead(m)),
            Message::Dead(m) => ring.news(&ring.state, ToState::Dead(m)),
            Message::User(m) => ring.news(&ring.delegates, ToDelegates::User(m)),
            Message::Direct(message) => self.put_by(message, from),
            Message::Wait(message) => return self.hold(&message, from),
        }
        Ok(())
    }

    /// Whether there is time for one more stranger.
    fn stranger(&self, member: bool) -> Result<(), Unheard> {
        let answered = member || self.kept.borrow_mut().strangers.take(now());
        if answered { Ok(()) } else { Err(Unheard::TooManyStrangers) }
    }

    fn is_about_self(&self, id: &NodeId) -> bool {
        self.ring.view.borrow().local().id == *id
    }

    /// Of the accusations against this node one waits, that of the highest incarnation: one that it would not
    /// heed must not take the place of one that it has to.
    fn accused(&self, incarnation: u32, accusation: ToState) {
        let own = self.ring.view.borrow().local().incarnation;
        match incarnation.checked_sub(own) {
            // Its accuser has missed an answer.
            None => self.ring.news(&self.ring.state, accusation),
            Some(step) if step > self.ring.config.max_incarnation_step => {
                self.ring.counters.drop(Ignored::IncarnationStep);
            }
            Some(_) => self.ring.state.accusation(incarnation, accusation),
        }
    }

    fn serve_accepted(&self) {
        loop {
            let mut kept = self.kept.borrow_mut();
            // Those who find no room just now have been promised some.
            if kept.accepted.is_empty() || !kept.open.has_room(Use::Served, 0) {
                return;
            }
            let Some((connection, from)) = kept.accepted.pop_front() else { return };
            let Some(permit) = kept.open.permit_for(from) else { return };
            drop(kept);
            up(&self.ring.counters.streams_accepted);
            self.ring.hooks.strike(TRANSPORT, "stream");
            let ring = self.ring.clone();
            self.ring.spawn("stream", streams::serve(ring, permit, connection, from));
        }
    }

    fn set_alarm(&self) {
        let kept = self.kept.borrow();
        self.ring.counters.streams_open.store(kept.open.all() as u64, Relaxed);
        let until =
            [kept.reading.until, kept.accepting.until, kept.backlog.until()].into_iter().flatten().min();
        let until = until.map(Instant::into_std);
        self.alarm.set(until.into_iter().chain(self.ring.casts.held_until()).min());
    }

    /// Whether the network has something, for as long as there is room for it.
    fn readiness(&self) -> crate::inbox::Ready {
        let (endpoint, kept, ring) = (self.ring.endpoint.clone(), self.kept.clone(), self.ring.clone());
        Box::new(move |cx: &mut Cx<'_>| {
            let mut kept = kept.borrow_mut();
            let mut shut_out = 0;
            let readable = kept.reading.is_over() && endpoint.poll_readable(cx).is_ready();
            while kept.accepting.is_over() && kept.open.has_room(Use::Served, kept.accepted.len()) {
                match endpoint.poll_accept(cx) {
                    Poll::Ready(Ok((connection, from))) => {
                        kept.accepting.end();
                        let from = canonical(from);
                        if ring.config.allows(from.ip()) {
                            let turn = kept.open.sources.borrow_mut().enter((connection, from));
                            match turn {
                                Turn::Now(stream) => {
                                    kept.accepted.push_back(stream);
                                    continue;
                                }
                                Turn::Later => continue,
                                Turn::Never => too_many_of_source(&ring, from),
                            }
                        } else {
                            // It is closed before anything is read.
                            ring.counters.drop(Lost::NotAllowedStream);
                        }
                        shut_out += 1;
                        if shut_out == SHUT_OUT_PER_TURN {
                            cx.waker().wake_by_ref();
                            break;
                        }
                    }
                    Poll::Ready(Err(error)) => {
                        ring.counters.drop(Lost::AcceptFailed);
                        say!(ring, Line::NotAccepted, warn, %error, "cannot accept a stream");
                        kept.accepting.lengthen();
                        // The alarm is set in a turn.
                        return true;
                    }
                    Poll::Pending => break,
                }
            }
            while kept.open.has_room(Use::Served, kept.accepted.len()) {
                let next = kept.open.sources.borrow_mut().next();
                let Some(stream) = next else { break };
                kept.accepted.push_back(stream);
            }
            kept.open.crowded.set(!kept.open.has_room(Use::Served, kept.accepted.len()));
            ring.counters.streams_open.store(kept.open.all() as u64, Relaxed);
            keep(&mut kept.open.waker.borrow_mut(), cx.waker());
            keep(&mut kept.backlog.waker, cx.waker());
            let backlog = kept.backlog.is_ready(&ring);
            let open = kept.outgoing.is_open(&*endpoint, cx);
            let casts = open && (kept.outgoing.holds() || ring.casts.is_ready(now(), cx.waker()));
            readable || backlog || casts || (!kept.accepted.is_empty() && kept.open.has_room(Use::Served, 0))
        })
    }
}

/// Keeps a waker, which mostly is there already.
fn keep(place: &mut Option<Waker>, waker: &Waker) {
    match place {
        Some(known) => known.clone_from(waker),
        none => *none = Some(waker.clone()),
    }
}

fn too_many_of_source(ring: &Shared, from: SocketAddr) {
    ring.counters.drop(Lost::TooManyStreamsOfSource);
    let max = ring.config.max_streams_per_source;
    say!(
        ring,
        Line::TooManyOfSource,
        warn,
        %from,
        max,
        "too many streams from one address: see max_streams_per_source"
    );
}

impl Actor for Transport {
    type Context = Context<Self>;
}

impl actix::Supervised for Transport {}

impl Child for Transport {
    fn boot(&mut self, ctx: &mut Context<Self>) {
        // Whoever was here before may have been told of a link and not have started it.
        for link in self.ring.links.all() {
            link::start(&self.ring, link);
        }
        self.set_alarm();
        let turns = Turns::new(self.ring.transport.clone(), self.alarm.clone(), Some(self.readiness()));
        Self::add_stream(turns, ctx);
    }
}

impl StreamHandler<inbox::Turn> for Transport {
    fn handle(&mut self, _: inbox::Turn, _: &mut Context<Self>) {
        self.send_held();
        self.ring.turn(TRANSPORT, &self.ring.transport, |item| self.hear(item));
        self.ring.hooks.strike(TRANSPORT, "outbox");
        self.send_casts();
        self.serve_accepted();
        let mut kept = self.kept.borrow_mut();
        kept.reading.lapse();
        kept.accepting.lapse();
        let readable = kept.reading.until.is_none();
        drop(kept);
        if readable {
            self.receive_some();
        }
        self.deliver_some();
        self.set_alarm();
    }
}
