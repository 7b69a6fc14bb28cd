//! Options about who is let in, and about what a node keeps over a restart.

use std::ffi::OsString;

use actix_memberlist::{ClusterBuilder, Key};
use lexopt::ValueExt;

/// What they say. All nodes of a cluster have the same key and label.
#[derive(Default)]
pub(crate) struct Access {
    pub(crate) key: Option<Key>,
    pub(crate) label: String,
    pub(crate) accepted: Vec<String>,
    pub(crate) rejoin_file: Option<String>,
}

impl Access {
    /// Takes 32, 48 or 64 hexadecimal digits.
    pub(crate) fn set_key(&mut self, digits: OsString) -> Result<(), lexopt::Error> {
        let key = Key::from_hex(&digits.string()?).map_err(|error| format!("--key: {error}"))?;
        self.key = Some(key);
        Ok(())
    }

    /// Gives a node the key and the labels.
    pub(crate) fn grant(&self, builder: ClusterBuilder) -> ClusterBuilder {
        let builder = builder.label(self.label.as_str()).accept_labels(self.accepted.clone());
        match &self.key {
            Some(key) => builder.key(key.clone()),
            None => builder,
        }
    }

    /// Gives a node a place to keep what it is to know when it is started again. Nodes of one program have a file
    /// each: `part` is added to the name.
    pub(crate) fn remember(&self, builder: ClusterBuilder, part: &str) -> ClusterBuilder {
        match &self.rejoin_file {
            Some(path) => builder.rejoin_file(format!("{path}{part}")),
            None => builder,
        }
    }
}
