//! A record of what happened, for the tests of determinism: two runs from one seed are the same run when
//! their traces have the same hash.

use std::{
    collections::{BTreeMap, VecDeque},
    fmt::{self, Display, Write},
    hash::Hasher,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use siphasher::sip::SipHasher13;
use tokio::time::Instant;

/// Fixed, so that a hash can be compared between processes and machines.
const KEYS: (u64, u64) = (0x6d65_6d62_6572_6c69, 0x7374_2074_7261_6365);

/// Bytes of a record's content that its line shows.
const SHOWN: usize = 16;

/// A rolling hash over everything recorded, a count per kind and, if asked for, the last lines as text.
/// Clones write to the same record.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Record>>);

struct Record {
    hasher: SipHasher13,
    start: Option<Instant>,
    counts: BTreeMap<&'static str, u64>,
    lines: VecDeque<String>,
    kept: usize,
}

impl Trace {
    /// An empty trace that keeps no text.
    #[must_use]
    pub fn new() -> Self {
        Self::keeping(0)
    }

    /// An empty trace that keeps the last `lines` records as text.
    #[must_use]
    pub fn keeping(lines: usize) -> Self {
        Self(Arc::new(Mutex::new(Record {
            hasher: SipHasher13::new_with_keys(KEYS.0, KEYS.1),
            start: None,
            counts: BTreeMap::new(),
            lines: VecDeque::new(),
            kept: lines,
        })))
    }

    /// Adds one record: the microseconds of tokio's clock since the first record, what happened, to whom,
    /// and its content.
    pub fn record(&self, kind: &'static str, who: impl Display, bytes: &[u8]) {
        let who = who.to_string();
        self.lock().add(kind, &who, bytes);
    }

    /// The hash of all records so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.lock().hasher.finish()
    }

    /// How many records there are of each kind.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.lock().counts.clone()
    }

    /// The last records as text, oldest first; none unless the trace was made by [`Trace::keeping`]. A line
    /// reads `microseconds kind who length`, then the first 16 bytes of the content in hexadecimal.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lock().lines.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Trace {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let record = self.lock();
        f.debug_struct("Trace")
            .field("hash", &format_args!("{:016x}", record.hasher.finish()))
            .field("counts", &record.counts)
            .finish_non_exhaustive()
    }
}

impl Record {
    fn add(&mut self, kind: &'static str, who: &str, bytes: &[u8]) {
        let now = Instant::now();
        let elapsed = now.saturating_duration_since(*self.start.get_or_insert(now));
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);

        self.hasher.write(&micros.to_le_bytes());
        for part in [kind.as_bytes(), who.as_bytes(), bytes] {
            // Lengths first, or the end of one part could pass for the start of the next.
            self.hasher.write(&(part.len() as u64).to_le_bytes());
            self.hasher.write(part);
        }
        *self.counts.entry(kind).or_default() += 1;

        if self.kept > 0 {
            if self.lines.len() == self.kept {
                self.lines.pop_front();
            }
            let mut line = format!("{micros} {kind} {who} {}", bytes.len());
            for (i, byte) in bytes.iter().take(SHOWN).enumerate() {
                let _ = write!(line, "{}{byte:02x}", if i == 0 { " " } else { "" });
            }
            self.lines.push_back(line);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn paused<F: Future>(test: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap()
            .block_on(test)
    }

    #[test]
    fn equal_records_at_equal_times_give_equal_hashes() {
        let run = || {
            paused(async {
                let trace = Trace::new();
                trace.record("event", "a", b"joined");
                tokio::time::sleep(Duration::from_millis(7)).await;
                trace.record("event", "b", b"left");
                trace.hash()
            })
        };
        assert_eq!(run(), run());
    }

    #[test]
    fn the_hash_is_the_same_on_every_machine_and_in_every_release() {
        paused(async {
            let trace = Trace::new();
            trace.record("datagram", "a->b", &[1, 2, 3]);
            assert_eq!(trace.hash(), 0xa5e6_ff4a_5a6f_e0d4, "{:#x}", trace.hash());
        });
    }

    #[test]
    fn time_kind_who_bytes_and_order_all_count() {
        paused(async {
            let hash = |records: &[(&'static str, &str, &[u8])]| {
                let trace = Trace::new();
                records.iter().for_each(|&(kind, who, bytes)| trace.record(kind, who, bytes));
                trace.hash()
            };
            let plain = hash(&[("event", "a", b"x"), ("event", "b", b"y")]);
            assert_ne!(plain, hash(&[("lost", "a", b"x"), ("event", "b", b"y")]));
            assert_ne!(plain, hash(&[("event", "c", b"x"), ("event", "b", b"y")]));
            assert_ne!(plain, hash(&[("event", "a", b"z"), ("event", "b", b"y")]));
            assert_ne!(plain, hash(&[("event", "b", b"y"), ("event", "a", b"x")]));

            let late = Trace::new();
            late.record("event", "a", b"x");
            tokio::time::sleep(Duration::from_millis(1)).await;
            late.record("event", "b", b"y");
            assert_ne!(plain, late.hash());
        });
    }

    #[test]
    fn bytes_that_move_from_one_part_to_the_next_change_the_hash() {
        let hash = |who: &str, bytes: &[u8]| {
            let trace = Trace::new();
            trace.record("event", who, bytes);
            trace.hash()
        };
        assert_ne!(hash("ab", b"c"), hash("a", b"bc"));
    }

    #[test]
    fn time_starts_with_the_first_record() {
        let run = |idle: u64| {
            paused(async move {
                tokio::time::sleep(Duration::from_millis(idle)).await;
                let trace = Trace::new();
                trace.record("event", "a", b"x");
                tokio::time::sleep(Duration::from_millis(1)).await;
                trace.record("event", "a", b"x");
                trace.hash()
            })
        };
        assert_eq!(run(0), run(30));
    }

    #[test]
    fn records_are_counted_by_kind() {
        let trace = Trace::new();
        for kind in ["dial", "lost", "dial"] {
            trace.clone().record(kind, "a", b"");
        }
        assert_eq!(trace.counts(), BTreeMap::from([("dial", 2), ("lost", 1)]));
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        paused(async {
            let trace = Trace::keeping(2);
            trace.record("event", "a", b"");
            trace.record("event", "b", &[0xff; 20]);
            tokio::time::sleep(Duration::from_millis(3)).await;
            trace.record("close", 7, b"");
            assert_eq!(
                trace.lines(),
                ["0 event b 20 ffffffffffffffffffffffffffffffff", "3000 close 7 0"].map(String::from)
            );
            let silent = Trace::new();
            silent.record("event", "a", b"");
            assert!(silent.lines().is_empty());
        });
    }
}
