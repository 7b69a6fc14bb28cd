//! A connection that can be sealed: from then on whatever is written to it goes out in sealed records, and
//! whatever comes in is opened before it is read.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
};

use memberlist_protocol::wire::{
    WireError,
    frame::{Barrier, REFUSED},
    seal::{MAX_RECORD, StreamSeals, TAG},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use zeroize::Zeroize;

use super::Connection;

/// Bytes of a record's length.
const LENGTH: usize = 2;

/// The other side does not take in what it is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the other side refuses the stream: its label or its key is not the one there")]
pub(crate) struct Refused(pub(crate) Barrier);

/// A connection, and its seals once both sides have agreed on them.
pub(crate) struct Channel {
    inner: Box<dyn Connection>,
    seals: Option<StreamSeals>,
    /// Written by the user, not sealed yet.
    plain: Vec<u8>,
    /// Sealed, not written yet, from this place on.
    out: (Vec<u8>, usize),
    /// Read: a record with its length, or a part of one.
    record: Vec<u8>,
    /// Opened, not taken by the user yet, from this place on.
    opened: (Vec<u8>, usize),
}

impl Channel {
    pub(crate) fn new(inner: Box<dyn Connection>) -> Self {
        Self {
            inner,
            seals: None,
            plain: Vec::new(),
            out: Default::default(),
            record: Vec::new(),
            opened: Default::default(),
        }
    }

    /// Seals what is written from now on. Nothing may wait to be written.
    pub(crate) fn seal(&mut self, seals: StreamSeals) {
        self.seals = Some(seals);
    }

    /// Reads and writes as if it were not sealed, to tell the other side that its seals do not fit.
    pub(crate) fn unseal(&mut self) {
        self.seals = None;
    }

    fn seal_plain(&mut self) -> io::Result<()> {
        if let Some(seals) = &mut self.seals {
            seals.seal(&self.plain, &mut self.out.0).map_err(invalid)?;
        }
        self.plain.clear();
        Ok(())
    }

    /// Writes what is sealed.
    fn poll_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (out, at) = &mut self.out;
        while *at < out.len() {
            match ready!(Pin::new(&mut self.inner).poll_write(cx, &out[*at..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => *at += written,
            }
        }
        out.clear();
        *at = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads until there are `len` bytes of the record. Says whether there are, or the stream has ended before
    /// the first.
    fn poll_record(&mut self, cx: &mut Context<'_>, len: usize) -> Poll<io::Result<bool>> {
        while self.record.len() < len {
            let at = self.record.len();
            self.record.resize(len, 0);
            let mut buf = ReadBuf::new(&mut self.record[at..]);
            let read = Pin::new(&mut self.inner).poll_read(cx, &mut buf);
            let got = buf.filled().len();
            self.record.truncate(at + got);
            ready!(read)?;
            match got {
                0 if at == 0 => return Poll::Ready(Ok(false)),
                0 => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                _ => {}
            }
        }
        Poll::Ready(Ok(true))
    }

    /// Opens the next record; nothing at the end of the stream.
    fn poll_open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        if !ready!(self.poll_record(cx, LENGTH))? {
            return Poll::Ready(Ok(false));
        }
        if self.record[..LENGTH] == REFUSED[..LENGTH] {
            ready!(self.poll_record(cx, REFUSED.len() + 1))?;
            let why = Barrier::read(self.record[REFUSED.len()]).map_err(invalid)?;
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, Refused(why))));
        }
        let len = usize::from(u16::from_le_bytes([self.record[0], self.record[1]]));
        if len > MAX_RECORD + TAG {
            return Poll::Ready(Err(invalid(WireError::TooLong)));
        }
        ready!(self.poll_record(cx, LENGTH + len))?;
        self.record.drain(..LENGTH);
        if let Some(seals) = &mut self.seals {
            seals.open(&mut self.record).map_err(invalid)?;
        }
        if self.record.is_empty() {
            // Nobody sends one, and one after the other would keep this thread.
            return Poll::Ready(Err(invalid(WireError::Empty)));
        }
        self.opened = (std::mem::take(&mut self.record), 0);
        Poll::Ready(Ok(true))
    }
}

fn invalid(error: WireError) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}

/// What goes over a sealed stream may be a key.
impl Drop for Channel {
    fn drop(&mut self) {
        if self.seals.is_some() {
            self.plain.zeroize();
            self.record.zeroize();
            self.opened.0.zeroize();
        }
    }
}

impl AsyncRead for Channel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.seals.is_none() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        loop {
            let (opened, at) = &mut self.opened;
            if *at < opened.len() {
                let len = buf.remaining().min(opened.len() - *at);
                buf.put_slice(&opened[*at..*at + len]);
                *at += len;
                return Poll::Ready(Ok(()));
            }
            if buf.remaining() == 0 || !ready!(self.poll_open(cx))? {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Channel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.seals.is_none() {
            return Pin::new(&mut self.inner).poll_write(cx, buf);
        }
        if self.plain.len() == MAX_RECORD {
            // What was sealed before has to leave first.
            ready!(self.poll_out(cx))?;
            self.seal_plain()?;
        }
        let len = buf.len().min(MAX_RECORD - self.plain.len());
        self.plain.extend_from_slice(&buf[..len]);
        Poll::Ready(Ok(len))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        if self.seals.is_none() {
            return Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        }
        // As much as one record takes.
        let mut taken = 0;
        for buf in bufs.iter().filter(|buf| !buf.is_empty()) {
            if taken > 0 && self.plain.len() == MAX_RECORD {
                break;
            }
            match self.as_mut().poll_write(cx, buf) {
                Poll::Ready(Ok(len)) => taken += len,
                // What was taken before that stays so; the rest is asked for again.
                _ if taken > 0 => break,
                other => return other,
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What was sealed before has to leave first: who flushes after each write would gather records here without
        // end when the other side does not read.
        ready!(self.poll_out(cx))?;
        if !self.plain.is_empty() {
            self.seal_plain()?;
            ready!(self.poll_out(cx))?;
        }
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.as_mut().poll_flush(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use memberlist_protocol::{
        keyring::Key,
        wire::seal::{End, Opening, Seals},
    };
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    fn ends(room: usize) -> (Channel, Channel) {
        let mut seals = Seals::new(&[Key::from_bytes(&[1; 32]).unwrap()]);
        let opening = Opening { key: seals.primary().unwrap(), half: seals.half(1) };
        let accepted = seals.half(2);
        let [a, b] =
            [End::Dialled, End::Accepted].map(|end| seals.stream(b"", opening, accepted, end).unwrap());
        let (x, y) = duplex(room);
        let (mut x, mut y) = (Channel::new(Box::new(x)), Channel::new(Box::new(y)));
        x.seal(a);
        y.seal(b);
        (x, y)
    }

    #[tokio::test]
    async fn bytes_come_out_as_they_went_in_however_they_are_cut() {
        for room in [1, 7, 1000, 100_000] {
            let (mut a, mut b) = ends(room);
            let body: Vec<u8> = (0..100_000_u32).map(|i| (i % 251) as u8).collect();
            let expected = body.clone();
            let write = async {
                for part in body.chunks(7001) {
                    a.write_all(part).await.unwrap();
                }
                a.write_all(b"").await.unwrap();
                a.flush().await.unwrap();
                a.flush().await.unwrap();
                a.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, read) = tokio::join!(write, b.read_to_end(&mut got));
            read.unwrap();
            assert!(got == expected, "{} bytes with room for {room}", got.len());
        }
    }

    #[tokio::test]
    async fn to_somebody_who_does_not_read_it_takes_two_records_and_no_more() {
        let (mut a, mut b) = ends(1000);
        let (mut taken, piece) = (0, [7; 100]);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..10_000 {
            if let Poll::Ready(len) = Pin::new(&mut a).poll_write(&mut cx, &piece) {
                taken += len.unwrap();
            }
            let _ = Pin::new(&mut a).poll_flush(&mut cx);
        }
        assert!(taken <= 2 * MAX_RECORD, "{taken} bytes");
        let mut got = vec![0; taken];
        let (flushed, read) = tokio::join!(a.flush(), b.read_exact(&mut got));
        assert_eq!((flushed.unwrap(), read.unwrap()), ((), taken));
    }

    #[tokio::test]
    async fn what_does_not_open_is_an_error_and_so_is_a_refusal_and_a_cut() {
        let (mut raw, mut b) = ends(1000);
        raw.unseal();
        raw.write_all(&[17, 0]).await.unwrap();
        raw.write_all(&[0; 17]).await.unwrap();
        let error = b.read_u8().await.unwrap_err();
        assert_eq!(error.get_ref().and_then(|e| e.downcast_ref()), Some(&WireError::Seal));

        let (mut raw, mut b) = ends(1000);
        raw.unseal();
        raw.write_all(&Barrier::Key.answer()).await.unwrap();
        let error = b.read_u8().await.unwrap_err();
        assert_eq!(error.get_ref().and_then(|e| e.downcast_ref()), Some(&Refused(Barrier::Key)));

        let (mut raw, mut b) = ends(1000);
        raw.unseal();
        raw.write_all(&[0xFF, 0x7F]).await.unwrap();
        let error = b.read_u8().await.unwrap_err();
        assert_eq!(error.get_ref().and_then(|e| e.downcast_ref()), Some(&WireError::TooLong));

        let (mut raw, mut b) = ends(1000);
        let mut empty = Vec::new();
        raw.seals.as_mut().unwrap().seal(b"", &mut empty).unwrap();
        raw.unseal();
        raw.write_all(&empty).await.unwrap();
        let error = b.read_u8().await.unwrap_err();
        assert_eq!(error.get_ref().and_then(|e| e.downcast_ref()), Some(&WireError::Empty));

        let (mut raw, mut b) = ends(1000);
        raw.unseal();
        raw.write_all(&[17, 0, 1]).await.unwrap();
        drop(raw);
        assert_eq!(b.read_u8().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
