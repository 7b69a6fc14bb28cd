//! Spans of time as people write them, in settings: `200ms`, `1m 30s`, `3days`.

use std::time::Duration;

use serde::{Deserialize, Deserializer, Serializer, de};

/// A span that was read.
pub(crate) struct Span(Duration);

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        span.0
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = String::deserialize(from)?;
        let span = humantime::parse_duration(&text).map_err(|error| {
            let text: String = text.chars().take(40).collect();
            de::Error::custom(format!("{text:?} is no span of time such as \"200ms\" or \"1m 30s\": {error}"))
        })?;
        Ok(Self(span))
    }
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    Span::deserialize(from).map(Duration::from)
}

pub(crate) fn serialize<S: Serializer>(span: &Duration, to: S) -> Result<S::Ok, S::Error> {
    to.collect_str(&humantime::format_duration(*span))
}
