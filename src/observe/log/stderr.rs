//! Lines to a file that others share, without ever waiting for its reader.
//!
//! O_NONBLOCK belongs to the open file, not to us: our workers and the shell that started us have the same one as their
//! stderr. So a pipe or a terminal is opened once more, for us alone.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use rustix::io::{Errno, fcntl_dupfd_cloexec, write};
use rustix::net::{SendFlags, send};

/// What may wait for a reader.
const WAITING_MOST: usize = 256 * 1024;
/// From here on whoever can wait should.
const BEHIND: usize = 64 * 1024;
/// Where poll(2) says that there is room, this much fits (`PIPE_BUF`, pipe(7)).
const CHUNK: usize = 4096;

/// A file for lines.
#[derive(Debug)]
pub struct Stderr {
    /// None: nobody reads.
    file: Option<OwnedFd>,
    way: Way,
    waiting: VecDeque<u8>,
    lost: u64,
    /// The reader has been waited for in vain, and has read nothing since.
    given_up: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A file or a device that takes everything.
    Plain,
    /// Opened again, for us alone, not blocking.
    Own,
    /// A socket: not blocking call by call.
    Socket,
    /// Shared and blocking: ask before each write.
    Ask,
}

impl Stderr {
    /// This process's stderr.
    pub fn of_process() -> Self {
        match fcntl_dupfd_cloexec(io::stderr(), 3) {
            Ok(file) => Self::new(file),
            // Closed: there is nobody to write to.
            Err(_) => Self { file: None, way: Way::Plain, waiting: VecDeque::new(), lost: 0, given_up: false },
        }
    }

    /// Another file.
    pub fn new(file: OwnedFd) -> Self {
        let kind = fstat(&file).map(|stat| FileType::from_raw_mode(stat.st_mode));
        match kind {
            Ok(FileType::Socket) => Self::with(file, Way::Socket),
            Ok(FileType::Fifo | FileType::CharacterDevice) => match reopen(&file) {
                Ok(own) => Self::with(own, Way::Own),
                Err(_) => Self::with(file, Way::Ask),
            },
            _ => Self::with(file, Way::Plain),
        }
    }

    fn with(file: OwnedFd, way: Way) -> Self {
        Self { file: Some(file), way, waiting: VecDeque::new(), lost: 0, given_up: false }
    }

    /// How many lines were dropped since the last call; zero while there is still no room.
    pub fn take_lost(&mut self) -> u64 {
        self.flush();
        if self.waiting.is_empty() { std::mem::take(&mut self.lost) } else { 0 }
    }

    /// A descriptor to wait on for room; none: nothing waits.
    pub fn waits_on(&self) -> Option<OwnedFd> {
        let file = self.file.as_ref().filter(|_| !self.waiting.is_empty())?;
        fcntl_dupfd_cloexec(file, 3).ok()
    }

    /// Whether a reader who may still come lags behind.
    pub fn is_behind(&self) -> bool {
        self.waiting.len() >= BEHIND && !self.given_up
    }

    /// Nobody is to wait for this reader until he reads again.
    pub fn give_up(&mut self) {
        self.given_up = true;
    }

    /// Write a line (its end included), or keep it until there is room, or drop it.
    pub fn line(&mut self, line: &[u8]) {
        if self.waiting.len() + line.len() > WAITING_MOST {
            self.flush();
            if self.waiting.len() + line.len() > WAITING_MOST {
                self.lost += 1;
                return;
            }
        }
        self.waiting.extend(line);
        self.flush();
    }

    /// Write what waits, as far as there is room.
    pub fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let (head, _) = self.waiting.as_slices();
            match self.write(head) {
                Ok(written) => {
                    drop(self.waiting.drain(..written.min(head.len())));
                    self.given_up = false;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                // Nobody reads any more.
                Err(_) => self.waiting.clear(),
            }
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        let Some(file) = &self.file else {
            return Err(Errno::BADF);
        };
        match self.way {
            Way::Plain | Way::Own => write(file, bytes),
            Way::Socket => send(file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
            Way::Ask => {
                let mut polled = [PollFd::new(file, PollFlags::OUT)];
                if poll(&mut polled, Some(&Timespec::default()))? == 0 {
                    return Err(Errno::AGAIN);
                }
                write(file, bytes.get(..CHUNK).unwrap_or(bytes))
            }
        }
    }
}

fn reopen(file: impl AsFd) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    let flags = OFlags::WRONLY | OFlags::APPEND | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use rustix::fs::fcntl_getfl;
    use rustix::pipe::pipe;

    use super::*;

    fn fill(err: &mut Stderr) -> u64 {
        let line = [b'x'; 100];
        for _ in 0..1_000_000 {
            err.line(&line);
            if err.lost > 0 {
                return err.lost;
            }
        }
        panic!("the reader's buffer never fills");
    }

    #[test]
    fn a_stalled_pipe_costs_lines_not_time_and_stays_blocking_for_others() {
        let (reader, writer) = pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let mut err = Stderr::new(writer);
        assert_eq!(err.way, Way::Own);
        assert_eq!(fill(&mut err), 1);
        assert!(!fcntl_getfl(&shared).unwrap().contains(OFlags::NONBLOCK));
        assert_eq!(err.take_lost(), 0, "there is still no room");

        let mut reader = std::fs::File::from(reader);
        let mut buffer = vec![0; 256 * 1024];
        let mut count = reader.read(&mut buffer).unwrap();
        while !err.waiting.is_empty() {
            err.flush();
            count += reader.read(&mut buffer).unwrap();
        }
        assert_eq!(count % 100, 0, "no line is torn");
        assert_eq!(err.take_lost(), 1);
        err.line(b"back\n");
        assert_eq!(reader.read(&mut buffer).unwrap(), 5);
    }

    #[test]
    fn a_pipe_that_cannot_be_opened_again_is_asked_first() {
        let (_reader, writer) = pipe().unwrap();
        let mut err = Stderr::with(writer, Way::Ask);
        assert_eq!(fill(&mut err), 1);
    }

    #[test]
    fn a_stalled_socket_costs_lines_not_time() {
        let (_reader, writer) = UnixStream::pair().unwrap();
        let mut err = Stderr::new(writer.into());
        assert_eq!(err.way, Way::Socket);
        assert_eq!(fill(&mut err), 1);
    }

    #[test]
    fn a_reader_that_has_left_is_forgotten() {
        let (reader, writer) = pipe().unwrap();
        drop(reader);
        let mut err = Stderr::with(writer, Way::Ask);
        err.line(b"hello\n");
        assert!(err.waiting.is_empty());
    }
}
