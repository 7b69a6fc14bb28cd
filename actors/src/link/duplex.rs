//! Both directions of a connection at once: what has come is read and handled, what there is to say is written, in
//! as few system calls as it fits into.

use std::{
    collections::VecDeque,
    future::poll_fn,
    io,
    io::IoSlice,
    pin::Pin,
    sync::atomic::Ordering::Relaxed,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use memberlist_protocol::wire::{
    WireError,
    link::{Frame, LENGTH, read},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep_until},
};

use crate::{metrics::Counters, network::channel::Channel, streams::Failure};

/// Bytes that are read at once, at most.
const READ: usize = 256 * 1024;

/// Bytes that a connection on which little comes keeps for reading.
const FIRST_READ: usize = 4 * 1024;

/// Bytes that are gathered before they are written.
const WRITE: usize = 256 * 1024;

/// What is longer is not copied for that.
const COPIED: usize = 4 * 1024;

/// Pieces that are written at once.
const PIECES: usize = 64;

/// Turns after which a connection that has more to do lets others have theirs.
const TURNS: usize = 8;

/// A connection that has been silent for so long is asked whether it is there.
pub(super) const SILENT: Duration = Duration::from_secs(5);

/// Silences in a row after which nobody is there.
pub(super) const MISSED: u32 = 3;

/// One end of a link, as its connection sees it.
pub(super) trait End {
    /// Handles a frame.
    fn frame(&mut self, frame: Frame<'_>) -> Result<(), Failure>;

    /// Whether the rest is wanted of a frame that is longer than that, and has only begun to arrive.
    /// If not, it gets the beginning alone, and nothing is kept of what follows.
    fn takes_long(&self, _: &Frame<'_>, _len: usize) -> Result<bool, Failure> {
        Err(WireError::TooLong.into())
    }

    /// Says what there is to say, until `out` is full. It is asked again when `cx` is woken, or something has come.
    fn fill(&mut self, out: &mut Out, cx: &mut Context<'_>) -> Result<(), Failure>;

    /// Whether it has to say something before it can handle another frame.
    fn is_sated(&self) -> bool {
        false
    }

    /// Nothing has come for [`SILENT`], `missed` times in a row.
    fn silent(&mut self, missed: u32, out: &mut Out) -> Result<(), Failure>;
}

/// What is to be written: small pieces one after the other in one buffer, large ones as they are.
#[derive(Default)]
pub(super) struct Out {
    small: Vec<u8>,
    /// Large pieces, and where in `small` they belong.
    large: VecDeque<(usize, Bytes)>,
    large_bytes: usize,
    /// Written already: of `small`, and of the first large piece.
    at: (usize, usize),
}

impl Out {
    /// A frame, and its payload.
    pub(super) fn push(&mut self, frame: &Frame<'_>, payload: &Bytes) {
        memberlist_protocol::wire::link::begin(frame, payload.len(), &mut self.small);
        if payload.len() <= COPIED {
            self.small.extend_from_slice(payload);
        } else {
            self.large.push_back((self.small.len(), payload.clone()));
            self.large_bytes += payload.len();
        }
    }

    /// Whether enough is gathered.
    pub(super) fn is_full(&self) -> bool {
        self.small.len() + self.large_bytes >= WRITE || self.large.len() >= PIECES / 2
    }

    fn is_empty(&self) -> bool {
        self.at.0 == self.small.len() && self.large.is_empty()
    }

    /// Writes what the connection takes. Says how much that was.
    fn poll_write(&mut self, channel: &mut Channel, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut slices = [IoSlice::new(&[]); PIECES];
        let (mut from, mut count) = (self.at.0, 0);
        for (i, (place, bytes)) in self.large.iter().enumerate() {
            if count + 2 >= PIECES {
                break;
            }
            if from < *place {
                slices[count] = IoSlice::new(&self.small[from..*place]);
                count += 1;
                from = *place;
            }
            slices[count] = IoSlice::new(&bytes[if i == 0 { self.at.1 } else { 0 }..]);
            count += 1;
        }
        if count < PIECES && from < self.small.len() && count + 1 < PIECES {
            slices[count] = IoSlice::new(&self.small[from..]);
            count += 1;
        }
        let written = std::task::ready!(Pin::new(channel).poll_write_vectored(cx, &slices[..count]))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.advance(written);
        Poll::Ready(Ok(written))
    }

    fn advance(&mut self, mut written: usize) {
        while written > 0 {
            let to = self.large.front().map_or(self.small.len(), |(place, _)| *place);
            let small = written.min(to - self.at.0);
            self.at.0 += small;
            written -= small;
            if written == 0 {
                break;
            }
            let Some((_, bytes)) = self.large.front() else { break };
            let large = written.min(bytes.len() - self.at.1);
            self.at.1 += large;
            written -= large;
            if self.at.1 == bytes.len() {
                self.large_bytes -= bytes.len();
                self.large.pop_front();
                self.at.1 = 0;
            }
        }
        if self.is_empty() {
            self.small.clear();
            self.at = (0, 0);
        }
    }
}

/// What has come and is not handled.
struct In {
    buffer: Vec<u8>,
    /// Where what is not handled begins and ends.
    from: usize,
    to: usize,
    /// Bytes of a frame that nobody wants, which are still to come.
    unwanted: usize,
    /// Longest frame, and the longest that is taken whatever it is.
    max: usize,
    long: usize,
}

/// Bytes by which any frame can be told from others: those of an answer, which has most.
const HEAD: usize = 1 + 8 + 1 + 8 + 1;

impl In {
    /// The length of the frame that comes next, if it is known.
    fn length(&self) -> Result<Option<usize>, WireError> {
        let Some(len) = self.buffer[self.from..self.to].first_chunk::<LENGTH>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len > self.max { Err(WireError::TooLong) } else { Ok(Some(len)) }
    }

    /// Where the next frame begins and ends, if all of it has come.
    fn frame(&self) -> Result<Option<(usize, usize)>, WireError> {
        let at = self.from + LENGTH;
        Ok(self.length()?.map(|len| (at, at + len)).filter(|(_, to)| *to <= self.to))
    }

    /// Makes room to read into: as much again as has come, within bounds.
    fn make_room(&mut self) -> Result<(), WireError> {
        if self.from == self.to {
            (self.from, self.to) = (0, 0);
            // What a long frame took is not kept for the next one.
            let usual = READ.max(LENGTH + self.long);
            if self.buffer.len() > usual {
                self.buffer = vec![0; usual];
            }
        }
        let wanted = self.length()?.map_or(0, |len| LENGTH + len);
        if self.to == self.buffer.len() || self.from > 0 && self.from + wanted > self.buffer.len() {
            self.buffer.copy_within(self.from..self.to, 0);
            (self.from, self.to) = (0, self.to - self.from);
        }
        if self.to == self.buffer.len() {
            let len = (self.buffer.len() * 2).clamp(FIRST_READ, READ.max(LENGTH + self.max));
            self.buffer.resize(len, 0);
        }
        Ok(())
    }

    /// Of a long frame that has only begun to arrive, what there is, once it can be told what it is; and how long
    /// it will be.
    fn begun(&self) -> Result<Option<(Frame<'_>, usize)>, WireError> {
        let there = &self.buffer[self.from..self.to];
        match self.length()? {
            Some(len) if len > self.long && there.len() >= LENGTH + HEAD => {
                let begun = read(&there[LENGTH..there.len().min(LENGTH + len)])?;
                Ok(Some((begun, len)))
            }
            _ => Ok(None),
        }
    }

    /// Lets the frame go that comes next, however much of it has come.
    fn skip(&mut self) -> Result<(), WireError> {
        let (len, there) = (self.length()?.map_or(0, |len| LENGTH + len), self.to - self.from);
        self.from += len.min(there);
        self.unwanted = len.saturating_sub(there);
        Ok(())
    }

    /// So many bytes have come.
    fn fill(&mut self, len: usize) {
        self.to += len;
        let unwanted = self.unwanted.min(self.to - self.from);
        self.from += unwanted;
        self.unwanted -= unwanted;
    }
}

/// Keeps a connection going until it breaks, says something that it must not, or its end has had enough. Frames have at
/// most `max` bytes, and those above `long` its end is asked about.
pub(super) async fn run(
    counters: &Counters,
    channel: &mut Channel,
    end: &mut impl End,
    long: usize,
    max: usize,
) -> Result<(), Failure> {
    let mut input = In { buffer: vec![0; FIRST_READ], from: 0, to: 0, unwanted: 0, max, long };
    let mut out = Out::default();
    let mut silence = std::pin::pin!(sleep_until(Instant::now() + SILENT));
    let (mut missed, mut heard) = (0, false);
    poll_fn(|cx| {
        for _ in 0..TURNS {
            let mut progress = false;
            // What has come and was not handled goes first.
            if input.frame()?.is_none() {
                input.make_room()?;
                let mut buf = ReadBuf::new(&mut input.buffer[input.to..]);
                if let Poll::Ready(read) = Pin::new(&mut *channel).poll_read(cx, &mut buf) {
                    read?;
                    let len = buf.filled().len();
                    if len == 0 {
                        return Poll::Ready(if input.from == input.to && input.unwanted == 0 {
                            Ok(())
                        } else {
                            Err(WireError::Truncated.into())
                        });
                    }
                    input.fill(len);
                    counters.stream_bytes_received.fetch_add(len as u64, Relaxed);
                    (progress, heard) = (true, true);
                }
            }
            while !end.is_sated()
                && let Some((at, to)) = input.frame()?
            {
                end.frame(read(&input.buffer[at..to])?)?;
                input.from = to;
                progress = true;
            }
            if let Some((frame, len)) = input.begun()?
                && !end.takes_long(&frame, len)?
            {
                end.frame(frame)?;
                input.skip()?;
            }
            if poll_silence(silence.as_mut(), &mut heard, cx) {
                missed += 1;
                end.silent(missed, &mut out)?;
            } else if progress {
                missed = 0;
            }
            let sated = end.is_sated();
            if !out.is_full() {
                end.fill(&mut out, cx)?;
                progress |= sated && !end.is_sated();
            }
            if !out.is_empty() {
                match out.poll_write(channel, cx)? {
                    Poll::Ready(written) => {
                        counters.stream_bytes_sent.fetch_add(written as u64, Relaxed);
                        progress = true;
                    }
                    Poll::Pending => {}
                }
            }
            if out.is_empty() {
                // Who waits for the rest to leave reads on: the other side may wait for that.
                let _ = Pin::new(&mut *channel).poll_flush(cx)?;
            }
            if !progress {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Whether a silence has ended, which begins anew each time that something is heard.
fn poll_silence(mut sleep: Pin<&mut Sleep>, heard: &mut bool, cx: &mut Context<'_>) -> bool {
    if sleep.as_mut().poll(cx).is_pending() {
        return false;
    }
    sleep.as_mut().reset(Instant::now() + SILENT);
    // It is armed again for whoever is heard now and then: no timer is moved with each packet.
    let _ = sleep.as_mut().poll(cx);
    !std::mem::take(heard)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;

    /// Handles three frames before it has to say so.
    #[derive(Default)]
    struct Three {
        handled: u64,
        unsaid: u64,
        said: Vec<u64>,
    }

    impl End for Three {
        fn frame(&mut self, frame: Frame<'_>) -> Result<(), Failure> {
            assert_eq!(frame, Frame::Ping(self.handled));
            assert!(self.unsaid < 3);
            (self.handled, self.unsaid) = (self.handled + 1, self.unsaid + 1);
            Ok(())
        }

        fn fill(&mut self, out: &mut Out, _: &mut Context<'_>) -> Result<(), Failure> {
            if self.unsaid > 0 {
                self.said.push(std::mem::take(&mut self.unsaid));
                out.push(&Frame::Pong(self.handled), &Bytes::new());
            }
            Ok(())
        }

        fn is_sated(&self) -> bool {
            self.unsaid == 3
        }

        fn silent(&mut self, _: u32, _: &mut Out) -> Result<(), Failure> {
            panic!("it has things to do")
        }
    }

    #[tokio::test]
    async fn who_has_to_say_something_first_gets_no_more_and_then_the_rest_of_what_has_come() {
        let (mut there, here) = tokio::io::duplex(64 * 1024);
        let mut all = Vec::new();
        for token in 0..1000 {
            memberlist_protocol::wire::link::begin(&Frame::Ping(token), 0, &mut all);
        }
        there.write_all(&all).await.unwrap();
        there.shutdown().await.unwrap();
        let (mut channel, mut end) = (Channel::new(Box::new(here)), Three::default());
        run(&Counters::default(), &mut channel, &mut end, 100, 100).await.unwrap();
        assert_eq!((end.handled, end.said.iter().max()), (1000, Some(&3)), "{:?}", end.said);
    }
}
