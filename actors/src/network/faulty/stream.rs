//! A stream with faults, as the node holds it. What it holds back goes on its way whenever it is polled, as nodes do all
//! the time with a stream that they read from; once it is dropped, when its endpoint is.

use std::{
    collections::VecDeque,
    io,
    io::IoSlice,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering::Relaxed},
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{
    super::Connection,
    state::{Budget, Direction, Ends, Look, Shared, Slot},
    wire::{Clock, WINDOW, Wire},
};

/// Bytes that are read at once from a stream that is held up.
const READ: usize = 16 << 10;

pub(super) struct FaultyStream {
    shared: Arc<Shared>,
    slot: Arc<Slot>,
    id: u64,
    /// Always there, until this is dropped.
    wire: Option<Wire>,
    coming: VecDeque<(Instant, Came)>,
    /// Bytes in `coming`.
    bytes: usize,
    clock: Clock,
}

enum Came {
    Bytes(Bytes),
    End,
    Broken(io::Error),
}

impl FaultyStream {
    pub(super) fn new(
        shared: Arc<Shared>,
        inner: Box<dyn Connection>,
        peer: Option<SocketAddr>,
        seen: Option<SocketAddr>,
    ) -> Self {
        let slot = Arc::<Slot>::default();
        let id = shared.with(|state| state.open(peer, seen, slot.clone()));
        let (coming, clock) = (VecDeque::new(), Clock::default());
        Self { shared, slot, id, wire: Some(Wire::new(id, inner)), coming, bytes: 0, clock }
    }

    fn is_calm(&self) -> bool {
        !self.slot.touched.load(Relaxed)
    }

    fn inner(&mut self) -> Option<&mut Box<dyn Connection>> {
        self.wire.as_mut()?.inner.as_mut()
    }

    /// Does something past all rules. Whoever has to wait hears of rules that come meanwhile.
    fn past<T>(
        &mut self,
        direction: Direction,
        cx: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut Box<dyn Connection>>, &mut Context<'_>) -> Poll<T>,
    ) -> Option<Poll<T>> {
        if !self.is_calm() {
            return None;
        }
        let done = act(Pin::new(self.inner()?), cx);
        if done.is_ready() {
            return Some(done);
        }
        self.slot.wait(direction, cx);
        self.is_calm().then_some(done)
    }

    /// Brings on its way what was written, and finds out whether the rules are over.
    fn run(&mut self, direction: Direction, cx: &mut Context<'_>) {
        self.slot.wait(direction, cx);
        let Some(wire) = &mut self.wire else { return };
        if wire.run(&self.shared, cx) {
            // Whoever waits for room may be another task.
            self.slot.wake_other(direction);
        }
        if !wire.has_words() && self.coming.is_empty() && !wire.is_closed() {
            self.shared.with(|state| state.calm(self.id));
        }
    }

    /// What has not left yet goes on its way when this is polled again, whether or not there are rules.
    fn heed_words(&self) {
        if self.wire.as_ref().is_some_and(Wire::has_words) {
            self.slot.touched.store(true, Relaxed);
        }
    }

    /// Reads ahead what is held up.
    fn read_ahead(&mut self, look: &Look, cx: &mut Context<'_>) {
        while self.bytes < WINDOW && !matches!(self.coming.back(), Some((_, Came::End | Came::Broken(_)))) {
            let mut space = vec![0; READ];
            let mut buf = ReadBuf::new(&mut space);
            let Some(inner) = self.inner() else { return };
            let Poll::Ready(read) = Pin::new(inner).poll_read(cx, &mut buf) else { return };
            let came = match (read, buf.filled()) {
                (Err(error), _) => Came::Broken(error),
                (Ok(()), []) => Came::End,
                (Ok(()), bytes) => Came::Bytes(Bytes::copy_from_slice(bytes)),
            };
            if let Came::Bytes(bytes) = &came {
                self.bytes += bytes.len();
            }
            let delay = look.rules.delay.clone();
            let delay = delay.map(|range| self.shared.with(|state| state.between(range)));
            let due = Instant::now() + delay.unwrap_or_default();
            // Nothing overtakes what came before: one after the other is looked at.
            self.coming.push_back((due, came));
        }
    }

    /// Reads what has been held up for long enough.
    fn poll_late(
        &mut self,
        look: &Look,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        self.read_ahead(look, cx);
        let Some((due, came)) = self.coming.front_mut() else { return Poll::Pending };
        let len = match came {
            Came::Bytes(bytes) => bytes.len().min(buf.remaining()),
            _ => 0,
        };
        let len = ready!(self.clock.poll(Some(*due), look, len, cx));
        match came {
            Came::Bytes(bytes) => {
                buf.put_slice(&bytes[..len]);
                bytes.advance(len);
                self.bytes -= len;
                if bytes.is_empty() {
                    self.coming.pop_front();
                }
                Poll::Ready(Ok(len))
            }
            Came::End => Poll::Ready(Ok(0)),
            Came::Broken(error) => Poll::Ready(Err(error.kind().into())),
        }
    }

    fn poll_now(
        &mut self,
        look: &Look,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<usize>> {
        let len = ready!(self.clock.poll(None, look, buf.remaining(), cx));
        let Some(inner) = self.inner() else { return Poll::Ready(Ok(0)) };
        let mut part = ReadBuf::new(buf.initialize_unfilled_to(len));
        ready!(Pin::new(inner).poll_read(cx, &mut part))?;
        let read = part.filled().len();
        buf.advance(read);
        Poll::Ready(Ok(read))
    }
}

impl AsyncRead for FaultyStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(read) = this.past(Direction::From, cx, |inner, cx| inner.poll_read(cx, buf)) {
            return read;
        }
        this.run(Direction::From, cx);
        let look = this.shared.with(|state| state.look(this.id, Direction::From));
        if look.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if let Some(Budget { left: 0, ends }) = look.budget {
            if let (Ends::Stream, Some(wire)) = (ends, &mut this.wire) {
                wire.end();
            }
            return Poll::Ready(Ok(()));
        }
        if this.wire.as_ref().is_none_or(Wire::is_closed) {
            return Poll::Ready(Ok(()));
        }
        if look.rules.hold_streams() {
            return Poll::Pending;
        }
        let read = if look.rules.delay.is_some() || !this.coming.is_empty() {
            ready!(this.poll_late(&look, cx, buf))?
        } else {
            ready!(this.poll_now(&look, cx, buf))?
        };
        this.clock.carried(&look.rules, read);
        this.shared.with(|state| state.carried(this.id, Direction::From, read));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for FaultyStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(written) = this.past(Direction::To, cx, |inner, cx| inner.poll_write(cx, buf)) {
            return written;
        }
        this.run(Direction::To, cx);
        let Some(wire) = &mut this.wire else { return Poll::Ready(Ok(0)) };
        let written = wire.poll_write(&this.shared, cx, buf);
        this.heed_words();
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if let Some(written) = this.past(Direction::To, cx, |inner, cx| inner.poll_write_vectored(cx, bufs)) {
            return written;
        }
        let first = bufs.iter().find(|buf| !buf.is_empty()).map_or(&[][..], |buf| &buf[..]);
        Pin::new(this).poll_write(cx, first)
    }

    fn is_write_vectored(&self) -> bool {
        let inner = self.wire.as_ref().and_then(|wire| wire.inner.as_ref());
        inner.is_some_and(|inner| inner.is_write_vectored())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(flushed) = this.past(Direction::To, cx, |inner, cx| inner.poll_flush(cx)) {
            return flushed;
        }
        // What is held back counts as sent: a system's buffer has it.
        this.run(Direction::To, cx);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if let Some(shut) = this.past(Direction::To, cx, |inner, cx| inner.poll_shutdown(cx)) {
            return shut;
        }
        this.run(Direction::To, cx);
        if let Some(wire) = &mut this.wire {
            wire.shut(&this.shared, cx);
        }
        this.heed_words();
        Poll::Ready(Ok(()))
    }
}

impl Drop for FaultyStream {
    fn drop(&mut self) {
        let Some(wire) = self.wire.take() else { return };
        let look = self.shared.with(|state| state.look(self.id, Direction::To));
        // That it was closed is a word, too: it does not get through where nothing does.
        if !wire.is_closed() && !look.reset && (wire.has_words() || look.rules.hold_streams()) {
            self.shared.linger(wire);
        } else {
            self.shared.with(|state| state.close(self.id));
        }
    }
}
