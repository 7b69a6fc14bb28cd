//! What a stream with faults says: bytes that are on their way to the other side, under the rules of that direction. It
//! outlives the stream, as a system's buffer does, until it has said all.

use std::{
    collections::VecDeque,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::AsyncWrite,
    time::{Instant, Sleep, sleep_until},
};

use super::{
    super::Connection,
    state::{Budget, Direction, Ends, Look, Rules, Shared},
};

/// Bytes of one direction of a stream that are held up or held back.
pub(super) const WINDOW: usize = 64 << 10;

/// The part of a second for which a stream that is slowed down carries bytes at once.
const SLICE: u64 = 20;

enum Piece {
    Bytes(Bytes),
    End,
}

/// When a direction carries something again.
#[derive(Default)]
pub(super) struct Clock {
    timer: Option<Pin<Box<Sleep>>>,
    free_at: Option<Instant>,
}

impl Clock {
    /// How many of so many bytes may go now, of which the first are due then; else `cx` is woken when some may.
    pub(super) fn poll(
        &mut self,
        due: Option<Instant>,
        look: &Look,
        len: usize,
        cx: &mut Context<'_>,
    ) -> Poll<usize> {
        let free_at = self.free_at.filter(|_| look.rules.rate.is_some());
        if let Some(until) = due.max(free_at)
            && until > Instant::now()
        {
            let mut timer = Box::pin(sleep_until(until));
            if timer.as_mut().poll(cx).is_pending() {
                self.timer = Some(timer);
                return Poll::Pending;
            }
        }
        self.timer = None;
        let len = look
            .rules
            .rate
            .map_or(len, |rate| len.min(usize::try_from((rate.get() / SLICE).max(1)).unwrap_or(usize::MAX)));
        let left = look.budget.map_or(u64::MAX, |budget| budget.left);
        Poll::Ready(len.min(usize::try_from(left).unwrap_or(usize::MAX)))
    }

    /// So many bytes have gone.
    pub(super) fn carried(&mut self, rules: &Rules, len: usize) {
        if let Some(rate) = rules.rate {
            let nanos = len as u128 * 1_000_000_000 / u128::from(rate.get());
            let nanos = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            self.free_at = Some(Instant::now() + nanos);
        }
    }
}

pub(super) struct Wire {
    pub(super) id: u64,
    /// None once the stream has ended by force.
    pub(super) inner: Option<Box<dyn Connection>>,
    going: VecDeque<(Instant, Piece)>,
    bytes: usize,
    clock: Clock,
    /// Why nothing more can be written.
    failed: Option<io::Error>,
    /// Whether the user has said all, or may say no more.
    shut: bool,
}

impl Wire {
    pub(super) fn new(id: u64, inner: Box<dyn Connection>) -> Self {
        let (going, clock) = (VecDeque::new(), Clock::default());
        Self { id, inner: Some(inner), going, bytes: 0, clock, failed: None, shut: false }
    }

    /// Whether something has not left yet.
    pub(super) fn has_words(&self) -> bool {
        !self.going.is_empty() && self.failed.is_none() && self.inner.is_some()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.inner.is_none()
    }

    /// Takes what there is room for.
    pub(super) fn poll_write(
        &mut self,
        shared: &Shared,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.run(shared, cx);
        let look = self.look(shared);
        if look.reset {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if self.failed.is_some() {
            if look.deaf {
                return Poll::Pending;
            }
            return Poll::Ready(Err(self.failed.take().unwrap_or_else(broken)));
        }
        if self.shut || self.inner.is_none() {
            return Poll::Ready(Err(broken()));
        }
        let len = buf.len().min(WINDOW - self.bytes);
        if len == 0 && !buf.is_empty() {
            return Poll::Pending;
        }
        self.put(shared, &look, Piece::Bytes(Bytes::copy_from_slice(&buf[..len])));
        self.bytes += len;
        self.run(shared, cx);
        Poll::Ready(Ok(len))
    }

    /// Says no more, once all before has left.
    pub(super) fn shut(&mut self, shared: &Shared, cx: &mut Context<'_>) {
        if !std::mem::replace(&mut self.shut, true) {
            let look = self.look(shared);
            self.put(shared, &look, Piece::End);
            self.run(shared, cx);
        }
    }

    fn put(&mut self, shared: &Shared, look: &Look, piece: Piece) {
        let delay = look.rules.delay.clone();
        let delay = delay.map(|range| shared.with(|state| state.between(range))).unwrap_or_default();
        // Nothing overtakes what was said before: one after the other is looked at.
        self.going.push_back((Instant::now() + delay, piece));
    }

    fn look(&self, shared: &Shared) -> Look {
        shared.with(|state| state.look(self.id, Direction::To))
    }

    /// Brings on its way what may go. Says whether anything has.
    pub(super) fn run(&mut self, shared: &Shared, cx: &mut Context<'_>) -> bool {
        let mut progress = false;
        loop {
            let look = self.look(shared);
            if look.reset {
                self.end();
                return true;
            }
            if let Some(Budget { left: 0, ends }) = look.budget {
                self.spent(ends, cx);
                return progress;
            }
            let (Some(inner), Some((due, piece))) = (&mut self.inner, self.going.front_mut()) else {
                return progress;
            };
            if look.rules.hold_streams() {
                return progress;
            }
            let len = if let Piece::Bytes(bytes) = piece { bytes.len() } else { 0 };
            let Poll::Ready(len) = self.clock.poll(Some(*due), &look, len, cx) else { return progress };
            let written = match piece {
                Piece::Bytes(bytes) => Pin::new(inner).poll_write(cx, &bytes[..len]),
                Piece::End => Pin::new(inner).poll_shutdown(cx).map_ok(|()| 0),
            };
            let Poll::Ready(written) = written else { return progress };
            progress = true;
            match (written, piece) {
                (Ok(0), Piece::Bytes(bytes)) if !bytes.is_empty() => {
                    self.fail(io::ErrorKind::WriteZero.into());
                }
                (Ok(written), Piece::Bytes(bytes)) => {
                    bytes.advance(written);
                    self.bytes -= written;
                    self.clock.carried(&look.rules, written);
                    shared.with(|state| state.carried(self.id, Direction::To, written));
                    if bytes.is_empty() {
                        self.going.pop_front();
                    }
                }
                (Ok(_), Piece::End) => drop(self.going.pop_front()),
                (Err(error), _) => self.fail(error),
            }
        }
    }

    fn fail(&mut self, error: io::Error) {
        (self.going, self.bytes) = (VecDeque::new(), 0);
        self.failed = Some(error);
    }

    /// As much has gone as was to go.
    fn spent(&mut self, ends: Ends, cx: &mut Context<'_>) {
        (self.going, self.bytes) = (VecDeque::new(), 0);
        match (ends, &mut self.inner) {
            (Ends::Stream, _) => self.end(),
            (Ends::Direction, Some(inner)) => {
                let _ = Pin::new(inner).poll_shutdown(cx);
            }
            (Ends::Direction, None) => {}
        }
        self.shut = true;
    }

    /// The stream ends here and now.
    pub(super) fn end(&mut self) {
        (self.going, self.bytes) = (VecDeque::new(), 0);
        self.inner = None;
        self.shut = true;
    }

    /// Of a stream that was dropped: whether nothing is left to be said, not even that.
    pub(super) fn poll_home(&mut self, shared: &Shared, cx: &mut Context<'_>) -> bool {
        self.run(shared, cx);
        let held = self.look(shared).rules.hold_streams();
        let home = self.inner.is_none() || self.failed.is_some() || (self.going.is_empty() && !held);
        if home {
            shared.with(|state| state.close(self.id));
        }
        home
    }
}

fn broken() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}
