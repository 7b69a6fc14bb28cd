//! What becomes of a question that a peer has asked.

use std::sync::Arc;

use bytes::Bytes;
use memberlist_protocol::wire::{codec, link::How};
use serde::Serialize;

use crate::{errors::AskError, supervisor::catch};

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

impl Answered {
    /// A handler's result as bytes, if they are not more than `max`.
    pub(crate) fn encode(result: impl Serialize, max: usize) -> Self {
        let mut out = Vec::new();
        // What serde and `Drop` call is the user's.
        let encoded = catch(|| {
            let encoded = codec::encode_payload(&result, &mut out);
            drop(result);
            encoded
        });
        match encoded {
            Ok(Ok(())) if out.len() <= max => Self::Reply(out.into()),
            Ok(Ok(())) => Self::Unfit(format!("the reply has {} bytes; at most {max} fit", out.len())),
            Ok(Err(why)) | Err(why) => Self::Unfit(why),
        }
    }

    /// As it goes over the wire.
    pub(crate) fn split(self) -> (How, Bytes) {
        match self {
            Self::Reply(bytes) => (How::Reply, bytes),
            Self::HandlerGone => (How::HandlerGone, Bytes::new()),
            Self::Unfit(why) => (How::Unfit, Bytes::from(why)),
        }
    }
}

/// What the asker is told.
pub(crate) fn told(how: How, payload: Bytes) -> Result<Bytes, AskError> {
    match how {
        How::Reply => Ok(payload),
        How::HandlerGone => Err(AskError::HandlerGone),
        How::Unfit => {
            let why = String::from_utf8_lossy(&payload[..payload.len().min(200)]);
            Err(AskError::Reply(why.chars().filter(|c| !c.is_control()).collect()))
        }
    }
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
