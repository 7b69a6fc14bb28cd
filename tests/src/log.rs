//! What the library logs, for tests to read.

use std::{
    fmt::{Debug, Write},
    sync::{Arc, LazyLock, Mutex},
};

use tracing::{
    Dispatch, Event, Level, Metadata, Subscriber,
    field::{Field, Visit},
    span,
};

use crate::paused;

/// One line: what is said, and the fields.
#[derive(Clone, Debug)]
pub struct Line {
    /// How serious it is.
    pub level: Level,
    /// What it says.
    pub text: String,
    /// Its fields, as `name=value `.
    pub fields: String,
}

/// Keeps what is logged on this thread.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<Line>>>);

/// As long as tracing knows of a single subscriber, a line that is said first where that one does not listen is
/// taken for one that nobody wants. With two more it asks all of them.
static OTHERS: LazyLock<[Dispatch; 2]> = LazyLock::new(|| [(); 2].map(|()| Dispatch::new(Log::default())));

/// Sees to it that what other tests say, or said before, keeps no line from a [`Log`].
pub(crate) fn ready() {
    LazyLock::force(&OTHERS);
}

impl Log {
    /// Runs a test, and gives it what is logged.
    pub fn of<T, F: Future<Output = T>>(test: impl FnOnce(Log) -> F) -> T {
        ready();
        let log = Self::default();
        tracing::subscriber::with_default(log.clone(), || paused(test(log)))
    }

    /// All lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.0.lock().expect("no panic").clone()
    }

    /// Forgets what was said.
    pub fn clear(&self) {
        self.0.lock().expect("no panic").clear();
    }

    /// Lines with these words in their text or their fields.
    pub fn with(&self, words: &str) -> Vec<Line> {
        self.lines().into_iter().filter(|l| l.text.contains(words) || l.fields.contains(words)).collect()
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.text, "{value:?}");
        } else {
            let _ = write!(self.fields, "{}={value:?} ", field.name());
        }
    }
}

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("actix_memberlist")
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line { level: *event.metadata().level(), text: String::new(), fields: String::new() };
        event.record(&mut line);
        self.0.lock().expect("no panic").push(line);
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}
    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}
    fn enter(&self, _: &span::Id) {}
    fn exit(&self, _: &span::Id) {}
}
