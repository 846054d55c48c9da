//! Entries with fields, sent without ever waiting for journald.

use std::fmt::Display;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, connect, send, socket_with, sockopt,
};

/// Where journald listens for entries.
const SOCKET: &str = "/run/systemd/journal/socket";
/// An entry's size; what is longer was cut field by field. Well below a datagram's limit (`net.core.wmem_default`).
const ENTRY_MOST: usize = 48 * 1024;
/// The same as journald's own default buffer for senders (`sd_journal_send(3)` uses 8 MiB).
const SEND_BUFFER: usize = 8 * 1024 * 1024;

/// One entry in journald's native format.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    bytes: Vec<u8>,
}

impl Entry {
    /// Add a field. A name that journald would refuse (anything but `A-Z`, `0-9` and `_`, at most 64, not starting with
    /// `_` or a digit) is left out, as is a field for which there is no room left.
    #[must_use]
    pub fn field(mut self, name: &str, value: impl Display) -> Self {
        if is_valid(name) {
            self.push(name, &value.to_string());
        }
        self
    }

    /// Add a field if there is a value.
    #[must_use]
    pub fn maybe(self, name: &str, value: Option<impl Display>) -> Self {
        match value {
            Some(value) => self.field(name, value),
            None => self,
        }
    }

    /// What goes over the wire.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn push(&mut self, name: &str, value: &str) {
        // Name, separator, length and line ends.
        let room = ENTRY_MOST.saturating_sub(self.bytes.len() + name.len() + 16);
        if room == 0 {
            return;
        }
        let value = value.get(..value.floor_char_boundary(room)).unwrap_or_default();
        self.bytes.extend_from_slice(name.as_bytes());
        if value.contains('\n') {
            self.bytes.push(b'\n');
            self.bytes.extend_from_slice(&(value.len() as u64).to_le_bytes());
        } else {
            self.bytes.push(b'=');
        }
        self.bytes.extend_from_slice(value.as_bytes());
        self.bytes.push(b'\n');
    }
}

fn is_valid(name: &str) -> bool {
    name.len() <= 64
        && name.starts_with(|first: char| first.is_ascii_uppercase())
        && name.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b'_')
}

/// journald's datagram socket.
#[derive(Debug)]
pub struct JournalSocket {
    path: PathBuf,
    socket: OwnedFd,
    lost: u64,
}

impl JournalSocket {
    /// journald on this machine.
    pub fn open() -> io::Result<Self> {
        Self::open_at(Path::new(SOCKET))
    }

    /// A journald that listens elsewhere.
    pub fn open_at(path: &Path) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        // A smaller buffer only means that entries are dropped sooner.
        let _ = sockopt::set_socket_send_buffer_size_force(&socket, SEND_BUFFER)
            .or_else(|_| sockopt::set_socket_send_buffer_size(&socket, SEND_BUFFER));
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok(Self { path: path.to_owned(), socket, lost: 0 })
    }

    /// Send it, or drop and count it if journald has no room or is away.
    pub fn send(&mut self, entry: &Entry) {
        if self.try_send(entry).is_err() {
            self.lost += 1;
        }
    }

    /// How many entries were dropped since the last call.
    pub fn take_lost(&mut self) -> u64 {
        std::mem::take(&mut self.lost)
    }

    /// Count more of them.
    pub fn count_lost(&mut self, more: u64) {
        self.lost = self.lost.saturating_add(more);
    }

    /// Whether entries were dropped.
    pub fn has_lost(&self) -> bool {
        self.lost > 0
    }

    /// Send it; an error means that it was not sent. Never waits.
    pub fn try_send(&self, entry: &Entry) -> io::Result<()> {
        let again = || send(&self.socket, entry.as_bytes(), SendFlags::NOSIGNAL);
        match again() {
            Err(Errno::AGAIN) => Err(Errno::AGAIN),
            // journald has made a new socket.
            Err(Errno::CONNREFUSED | Errno::NOTCONN | Errno::CONNRESET) => {
                let address = SocketAddrUnix::new(self.path.as_path())?;
                connect(&self.socket, &address).and_then(|()| again())
            }
            sent => sent,
        }?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn fields_have_journald_s_form() {
        let entry = Entry::default()
            .field("MESSAGE", "two\nlines")
            .field("PRIORITY", 6)
            .maybe("PADDOCK_SLOT", Some(3))
            .maybe("PADDOCK_REASON", None::<&str>);
        let expected = b"MESSAGE\n\x09\0\0\0\0\0\0\0two\nlines\nPRIORITY=6\nPADDOCK_SLOT=3\n";
        assert_eq!(entry.as_bytes(), expected);
    }

    #[test]
    fn a_hostile_field_cannot_add_another() {
        let entry = Entry::default()
            .field("_PID", 1)
            .field("A=B", "c")
            .field("lower", "c")
            .field("0", "c")
            .field(&"X".repeat(65), "c");
        assert_eq!(entry.as_bytes(), b"");
        let entry = Entry::default().field("A", "x\n_PID=1\n");
        assert_eq!(entry.as_bytes(), b"A\n\x09\0\0\0\0\0\0\0x\n_PID=1\n\n");
    }

    #[test]
    fn an_entry_has_a_largest_size() {
        let entry = Entry::default().field("A", "é".repeat(ENTRY_MOST)).field("B", 1);
        assert!(entry.as_bytes().len() <= ENTRY_MOST);
        assert!(entry.as_bytes().len() > ENTRY_MOST - 32);
        assert!(std::str::from_utf8(entry.as_bytes()).is_ok());
    }

    #[test]
    fn a_stalled_journald_loses_entries_and_time_for_nobody() {
        let directory = std::env::temp_dir().join(format!("paddock-journal-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let mut socket = JournalSocket::open_at(&path).unwrap();
        let mut sent = 0_u64;
        while !socket.has_lost() {
            socket.send(&Entry::default().field("N", sent));
            sent += 1;
            assert!(sent < 1_000_000, "the queue never fills");
        }
        socket.send(&Entry::default().field("N", "also lost"));
        assert_eq!(socket.take_lost(), 2);
        assert_eq!(socket.take_lost(), 0);

        let mut buffer = [0; 256];
        for number in 0..sent - 1 {
            let length = journald.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], format!("N={number}\n").as_bytes());
        }

        // A journald that comes back on a new socket is found.
        drop(journald);
        std::fs::remove_file(&path).unwrap();
        let journald = UnixDatagram::bind(&path).unwrap();
        socket.send(&Entry::default().field("N", "back"));
        assert!(!socket.has_lost());
        let length = journald.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"N=back\n");
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
