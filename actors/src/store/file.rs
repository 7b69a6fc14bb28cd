//! A record in a file.

use std::{
    ffi::OsString,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    path::{Path, PathBuf},
};

use memberlist_protocol::rejoin::MAX_RECORD;

use super::Store;

/// A file, at most 256 KiB, for its owner's eyes alone. It is written beside its place, as `name.new`, flushed to the
/// disk and then moved there, so that a crash leaves the old one or the new one. If there is a link in its place, the
/// file takes the place of the link; a directory, a device, a pipe or a socket is left as it is, and nothing is kept. Two nodes must not share one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStore(PathBuf);

impl FileStore {
    /// The record is kept in this file. Its directory must exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    fn directory(&self) -> &Path {
        self.0.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."))
    }

    /// Where it is written first. There is one such place, so that crashes leave one such file at most.
    fn beside(&self) -> io::Result<PathBuf> {
        let mut name: OsString = self.0.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        name.push(".new");
        Ok(self.0.with_file_name(name))
    }

    fn write(&self, beside: &Path, record: &[u8]) -> io::Result<()> {
        let mut options = OpenOptions::new();
        // One that exists would be followed where it leads.
        options.write(true).create_new(true);
        #[cfg(unix)]
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let mut file = options.open(beside)?;
        file.write_all(record)?;
        file.sync_all()?;
        fs::rename(beside, &self.0)?;
        // The name as well is to survive. Elsewhere directories cannot be opened.
        #[cfg(unix)]
        File::open(self.directory())?.sync_all()?;
        Ok(())
    }
}

impl Store for FileStore {
    fn load(&mut self) -> io::Result<Option<Vec<u8>>> {
        let file = match fs::metadata(&self.0) {
            // Opening a pipe would wait for its writer.
            Ok(data) if !data.is_file() => return Err(io::Error::other("not a regular file")),
            Ok(_) => File::open(&self.0)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut record = Vec::new();
        // One byte more shows that it is too long to be a record.
        file.take(MAX_RECORD as u64 + 1).read_to_end(&mut record)?;
        Ok(Some(record))
    }

    fn save(&mut self, record: &[u8]) -> io::Result<()> {
        // A device or a socket would be gone for everybody on this host.
        let there = fs::symlink_metadata(&self.0).map(|data| data.file_type());
        if there.is_ok_and(|kind| !kind.is_file() && !kind.is_symlink()) {
            return Err(io::Error::other("not a regular file"));
        }
        let beside = self.beside()?;
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let written = self.write(&beside, record);
        if written.is_err() {
            // A full disk gets its bytes back.
            let _ = fs::remove_file(&beside);
        }
        written
    }

    fn place(&self) -> String {
        self.0.display().to_string()
    }
}
