//! What becomes of a question that a peer has asked.

use std::sync::Arc;

use bytes::Bytes;

/// An answer to a peer's question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answered {
    /// The handler's result, as bytes.
    Reply(Bytes),
    /// The handler has stopped or panicked.
    HandlerGone,
    /// Its result cannot be encoded, or is too large: why.
    Unfit(String),
}

/// Who brings answers back. Called from any thread; it does not wait.
pub(crate) trait Answers: Send + Sync {
    fn answer(&self, question: u64, answered: Answered);
}

/// The duty to answer one question. Dropped without an answer, it says that the handler is gone.
pub(crate) struct Answer {
    to: Option<Arc<dyn Answers>>,
    question: u64,
}

impl Answer {
    pub(crate) fn new(to: Arc<dyn Answers>, question: u64) -> Self {
        Self { to: Some(to), question }
    }

    pub(crate) fn give(mut self, answered: Answered) {
        if let Some(to) = self.to.take() {
            to.answer(self.question, answered);
        }
    }

    /// Ends the duty without a word: the asker learns from the receipt what has become of its question.
    pub(crate) fn waive(mut self) {
        self.to = None;
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        if let Some(to) = self.to.take() {
            to.answer(self.question, Answered::HandlerGone);
        }
    }
}
