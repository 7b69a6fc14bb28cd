//! Seeds from a file.

use std::{io, path::PathBuf};

use tokio::io::AsyncReadExt;

use super::{Discover, Seeds, lines};

/// Bytes of a file that are read: a thousand seeds with comments.
const MAX_BYTES: u64 = 1 << 20;

/// A file with one seed a line and comments after `#`, read anew each time, at most 1 MiB.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FromFile(PathBuf);

impl FromFile {
    /// The seeds are in this file. It need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

impl Discover for FromFile {
    fn seeds(&mut self) -> Seeds<'_> {
        Box::pin(async move {
            let error =
                |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.0.display()));
            // Opening a pipe would wait for its writer, on a thread that nothing can wake.
            if !tokio::fs::metadata(&self.0).await.map_err(error)?.is_file() {
                return Err(error(io::Error::other("not a regular file")));
            }
            let mut file = tokio::fs::File::open(&self.0).await.map_err(error)?.take(MAX_BYTES + 1);
            let mut text = Vec::new();
            file.read_to_end(&mut text).await.map_err(error)?;
            if text.len() as u64 > MAX_BYTES {
                return Err(error(io::Error::other(format!("it has more than {MAX_BYTES} bytes"))));
            }
            lines(text).map_err(error)
        })
    }
}
