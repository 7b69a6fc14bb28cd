//! The text of a record, read.

use std::{borrow::Cow, str::FromStr, sync::Arc};

use super::{MAX_PEERS, MAX_RECORD, Peer, Rejoin, RejoinError, VERSION};
use crate::{
    member::{NodeId, canonical, check_addr, check_name},
    wire::frame::MAX_LABEL,
};

/// How each version begins.
pub(super) const MAGIC: &str = "actix-memberlist rejoin ";

/// A label may hold anything; a line ends at its end.
pub(super) fn escaped(label: &str) -> Cow<'_, str> {
    if label.contains(['\\', '\n']) {
        label.replace('\\', "\\\\").replace('\n', "\\n").into()
    } else {
        label.into()
    }
}

fn unescaped(text: &str) -> Option<String> {
    let (mut label, mut chars) = (String::with_capacity(text.len()), text.chars());
    while let Some(c) = chars.next() {
        label.push(match c {
            '\\' => match chars.next()? {
                'n' => '\n',
                '\\' => '\\',
                _ => return None,
            },
            c => c,
        });
    }
    Some(label)
}

/// The lines of a record, one after the other. A carriage return is part of its line.
struct Lines<'a>(std::iter::Peekable<std::str::SplitTerminator<'a, char>>);

impl<'a> Lines<'a> {
    /// The rest of the next line, which must begin like this.
    fn next(&mut self, key: &'static str) -> Result<&'a str, RejoinError> {
        let line = self.0.next().and_then(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.ok_or(RejoinError::Torn(key))
    }

    fn number<T: FromStr>(&mut self, key: &'static str) -> Result<T, RejoinError> {
        self.next(key)?.parse().map_err(|_| RejoinError::Torn(key))
    }
}

pub(super) fn read(bytes: &[u8]) -> Result<Rejoin, RejoinError> {
    use RejoinError::Torn;
    if bytes.len() > MAX_RECORD {
        return Err(RejoinError::Other);
    }
    let Some(rest) = bytes.strip_prefix(MAGIC.as_bytes()) else {
        // Some file systems leave zeros where a write has not come to its end.
        let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let begun = MAGIC.as_bytes().starts_with(&bytes[..written]);
        return Err(if begun { Torn("its beginning") } else { RejoinError::Other });
    };
    let version = rest.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if version != VERSION.as_bytes() {
        let known = rest.contains(&b'\n') && version.len() < 20 && version.iter().all(u8::is_ascii_digit);
        let version = String::from_utf8_lossy(version).into_owned();
        return Err(if known && !version.is_empty() {
            RejoinError::Version(version)
        } else {
            Torn("version")
        });
    }
    let text = std::str::from_utf8(bytes).map_err(|_| Torn("not UTF-8"))?;
    let end = text.strip_suffix('\n').and_then(|text| text.rfind('\n')).ok_or(Torn("crc32"))?;
    let (body, last) = text.split_at(end + 1);
    if last != format!("crc32 {:08x}\n", crc32fast::hash(body.as_bytes())) {
        return Err(Torn("crc32"));
    }
    // From here on only somebody who writes a checksum on purpose comes.
    let mut lines = Lines(body.split_terminator('\n').peekable());
    lines.0.next();
    let label =
        unescaped(lines.next("label")?).filter(|label| label.len() <= MAX_LABEL).ok_or(Torn("label"))?;
    let name = lines.next("name")?;
    check_name(name).map_err(|_| Torn("name"))?;
    let left = match lines.next("state")? {
        "left" => true,
        "running" => false,
        _ => return Err(Torn("state")),
    };
    let incarnation = lines.number("incarnation")?;
    let run = u64::from_str_radix(lines.next("run")?, 16).map_err(|_| Torn("run"))?;
    let written = lines.number("written")?;
    let mut peers = Vec::new();
    while lines.0.peek().is_some() {
        let (addr, name) = lines.next("peer")?.split_once(' ').ok_or(Torn("peer"))?;
        let addr = canonical(addr.parse().map_err(|_| Torn("peer"))?);
        check_name(name).and_then(|()| check_addr(addr, addr)).map_err(|_| Torn("peer"))?;
        if peers.len() == MAX_PEERS {
            return Err(Torn("more than 64 peers"));
        }
        peers.push(Peer { addr, name: Arc::from(name) });
    }
    let record = Rejoin { label, id: NodeId::new(name, run), incarnation, left, written, peers };
    // There is one way to write each record.
    if record.encode() == bytes { Ok(record) } else { Err(Torn("written in another way")) }
}
