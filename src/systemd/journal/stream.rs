//! Streams of lines into the journal: a worker's stdout and stderr.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl, fstat};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, send, shutdown, socket_with,
    sockopt,
};

/// Where journald listens for streams.
const SOCKET: &str = "/run/systemd/journal/stdout";
/// What `sd_journal_stream_fd(3)` asks for: lines that fit in it never make a worker wait for journald.
const SEND_BUFFER: usize = 8 * 1024 * 1024;

/// A stream whose lines carry `identifier` (`SYSLOG_IDENTIFIER`) and, if this process is root, `unit`
/// (`_SYSTEMD_UNIT`), whoever writes them. It blocks, as a program expects of its stdout, and lives as long as
/// somebody has it open.
///
/// Never waits: a journald that takes no connections now is `WouldBlock`.
pub fn open_worker_stream(identifier: &str, unit: &str) -> io::Result<OwnedFd> {
    open_at(Path::new(SOCKET), identifier, unit)
}

fn open_at(path: &Path, identifier: &str, unit: &str) -> io::Result<OwnedFd> {
    if [identifier, unit].iter().any(|text| text.chars().any(char::is_control)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let stream = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // A smaller buffer only fills sooner.
    let _ = sockopt::set_socket_send_buffer_size_force(&stream, SEND_BUFFER)
        .or_else(|_| sockopt::set_socket_send_buffer_size(&stream, SEND_BUFFER));
    connect(&stream, &SocketAddrUnix::new(path)?)?;
    shutdown(&stream, Shutdown::Read)?;
    // Identifier, unit, default priority, whether lines may start with <N>, then forwarding to syslog, kmsg, console.
    let header = format!("{identifier}\n{unit}\n6\n1\n0\n0\n0\n");
    if send(&stream, header.as_bytes(), SendFlags::NOSIGNAL)? != header.len() {
        return Err(Errno::AGAIN.into());
    }
    let flags = fcntl_getfl(&stream)?;
    fcntl_setfl(&stream, flags - OFlags::NONBLOCK)?;
    Ok(stream)
}

/// The worker's own `JOURNAL_STREAM` (`systemd.exec(5)`): device and inode of its stream.
pub fn stream_id(stream: impl AsFd) -> io::Result<String> {
    let stat = fstat(stream)?;
    Ok(format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// Whether this process's stderr is the stream that `JOURNAL_STREAM` speaks of, and not something put there since.
pub fn stderr_is_journal(environment: impl Fn(&str) -> Option<OsString>) -> bool {
    is_stream(environment("JOURNAL_STREAM").as_deref(), io::stderr())
}

fn is_stream(announced: Option<&OsStr>, fd: impl AsFd) -> bool {
    let (Some(announced), Ok(own)) = (announced, stream_id(fd)) else {
        return false;
    };
    announced == OsStr::new(&own)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    use super::*;

    fn place(test: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("paddock-stream-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        directory.join("stdout")
    }

    #[test]
    fn the_stream_begins_with_journald_s_header_and_blocks() {
        let path = place("header");
        let journald = UnixListener::bind(&path).unwrap();
        let stream = open_at(&path, "shop", "paddock-shop-0-1.scope").unwrap();
        assert!(!fcntl_getfl(&stream).unwrap().contains(OFlags::NONBLOCK));
        let mut stream = UnixStream::from(stream);
        stream.write_all(b"hello\n").unwrap();
        drop(stream);
        let mut heard = String::new();
        journald.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "shop\npaddock-shop-0-1.scope\n6\n1\n0\n0\n0\nhello\n");
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_unit_cannot_smuggle_in_header_lines() {
        let path = place("smuggle");
        let _journald = UnixListener::bind(&path).unwrap();
        let error = open_at(&path, "shop", "x.scope\n0").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn a_journald_that_accepts_nothing_is_not_waited_for() {
        let path = place("stalled");
        let _journald = UnixListener::bind(&path).unwrap();
        let mut open = Vec::new();
        let error = loop {
            match open_at(&path, "shop", "") {
                Ok(stream) => open.push(stream),
                Err(error) => break error,
            }
            assert!(open.len() < 100_000, "the backlog never fills");
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
    }

    #[test]
    fn only_the_very_stream_is_the_journal() {
        let (stream, other) = UnixStream::pair().unwrap();
        let id = OsString::from(stream_id(&stream).unwrap());
        assert!(is_stream(Some(&id), &stream));
        assert!(!is_stream(Some(&id), &other));
        assert!(!is_stream(None, &stream));
    }
}
