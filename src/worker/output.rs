//! A worker's output: a FIFO in the runtime directory, open for reading and writing at the worker's end.
//!
//! Because the worker itself holds a reading end, a manager that dies breaks no pipe; because the FIFO has a name, the
//! next manager finds it; what nobody reads stays in its buffer.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::files;
use crate::observe::escape::single_line_bytes;
use crate::sys;

/// How many last lines are kept.
const LINES_KEPT: usize = 20;

/// The longest line, in bytes; longer ones are cut into several.
pub(crate) const LINE_MAX: usize = 2048;

/// What a FIFO should hold while its manager is busy or away, in bytes (`F_SETPIPE_SZ`; the system's limit for
/// non-root is `pipe-max-size`, 1 MiB by default).
const BUFFER: usize = 256 * 1024;

/// The reading side; the FIFO is unlinked when dropped.
#[derive(Debug)]
pub struct Output {
    fifo: AsyncFd<OwnedFd>,
    state: RefCell<Heard>,
    path: PathBuf,
}

/// What a worker wrote, as far as it is kept: its last lines, and the beginning of one that is not yet whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heard {
    partial: Vec<u8>,
    last: VecDeque<String>,
}

impl Output {
    /// Make the FIFO at `path`, owned by `owner` (uid, gid).
    ///
    /// # Errors
    /// What `mkfifo(3)`, `open(2)`, `chown(2)` say.
    pub fn create(path: PathBuf, owner: Option<(u32, u32)>) -> io::Result<Self> {
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
        match Self::open(path.clone()) {
            Ok(output) => files::hand_over(&output.path, owner).map(|()| output),
            Err(error) => {
                // Without a descriptor for it nobody else would remove it.
                let _ = std::fs::remove_file(path);
                Err(error)
            }
        }
    }

    /// Read on from a FIFO that an earlier manager made.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn open(path: PathBuf) -> io::Result<Self> {
        // Open for both, so that it opens at once and never reports an end (`fifo(7)`).
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fifo = rustix::fs::open(&path, flags, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&fifo)?.st_mode) != FileType::Fifo {
            return Err(io::Error::other("it is no FIFO"));
        }
        // A smaller buffer is no reason not to start.
        let _ = rustix::pipe::fcntl_setpipe_size(&fifo, BUFFER);
        Ok(Self { fifo: sys::watch(fifo, Interest::READABLE)?, state: RefCell::default(), path })
    }

    /// Read on from an open FIFO, where an earlier image of this process had stopped.
    ///
    /// # Errors
    /// What `epoll_ctl(2)` says.
    pub fn keep(fifo: OwnedFd, heard: Heard, path: PathBuf) -> io::Result<Self> {
        Ok(Self { fifo: sys::watch(fifo, Interest::READABLE)?, state: RefCell::new(heard), path })
    }

    /// The FIFO itself.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.fifo.get_ref().as_fd()
    }

    /// What was read so far, as much of it as is kept.
    pub fn heard(&self) -> Heard {
        self.state.borrow().clone()
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The worker's end: blocking, readable and writable.
    ///
    /// # Errors
    /// What `open(2)` says.
    pub fn worker_end(&self) -> io::Result<OwnedFd> {
        // Opened anew, for whether it blocks is the open file's; by its descriptor, so that it is the same FIFO.
        let path = format!("/proc/self/fd/{}", self.fifo.get_ref().as_raw_fd());
        Ok(rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Hand every line to `line`, as it was written, for ever; `pace` is waited for in between.
    pub async fn forward(&self, line: impl Fn(&[u8]), pace: impl AsyncFn()) {
        while let Ok(mut guard) = self.fifo.readable().await {
            // Cleared first: what is written from here on wakes us again.
            guard.clear_ready();
            while self.read_some(&line) {
                // A worker that never stops writing must not hold the loop.
                pace().await;
            }
        }
    }

    /// Read what is there now; to be called when the worker is dead.
    pub fn drain(&self, line: impl Fn(&[u8])) {
        // A process that the worker left may go on writing: what fits the buffer is enough.
        for _ in 0..=(BUFFER / CHUNK) {
            if !self.read_some(&line) {
                break;
            }
        }
        let mut state = self.state.borrow_mut();
        let rest = std::mem::take(&mut state.partial);
        if !rest.is_empty() {
            state.finish_line(&rest, &line);
        }
    }

    /// The last lines, oldest first, control characters escaped.
    pub fn last_words(&self) -> Vec<String> {
        self.state.borrow().last.iter().cloned().collect()
    }

    fn read_some(&self, line: &impl Fn(&[u8])) -> bool {
        let mut chunk = [0_u8; CHUNK];
        match rustix::io::read(self.fifo.get_ref(), &mut chunk) {
            Ok(count) => {
                self.state.borrow_mut().take(chunk.get(..count).unwrap_or_default(), line);
                count > 0
            }
            Err(_) => false,
        }
    }
}

const CHUNK: usize = 16 * 1024;

impl Heard {
    pub(crate) fn take(&mut self, bytes: &[u8], line: &impl Fn(&[u8])) {
        let mut pieces = bytes.split(|byte| *byte == b'\n').peekable();
        while let Some(piece) = pieces.next() {
            self.partial.extend_from_slice(piece);
            let complete = pieces.peek().is_some();
            // One that is just as long as allowed may still end here.
            while complete || self.partial.len() > LINE_MAX {
                let rest = self.partial.split_off(self.partial.len().min(LINE_MAX));
                let whole = std::mem::replace(&mut self.partial, rest);
                self.finish_line(&whole, line);
                if self.partial.is_empty() {
                    break;
                }
            }
        }
    }

    fn finish_line(&mut self, bytes: &[u8], line: &impl Fn(&[u8])) {
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        line(bytes);
        let text = single_line_bytes(bytes, 4 * LINE_MAX);
        if self.last.len() >= LINES_KEPT {
            self.last.pop_front();
        }
        self.last.push_back(text);
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Write;

    fn lines_of(chunks: &[&[u8]]) -> Vec<String> {
        let lines = RefCell::new(Vec::new());
        let mut state = Heard::default();
        for chunk in chunks {
            state.take(chunk, &|line: &[u8]| lines.borrow_mut().push(String::from_utf8_lossy(line).into_owned()));
        }
        lines.into_inner()
    }

    #[test]
    fn lines_are_put_together_and_long_ones_cut() {
        assert_eq!(lines_of(&[b"one\ntw", b"o\r\n\nthr"]), ["one", "two", ""]);
        let long = vec![b'x'; LINE_MAX * 2 + 5];
        let lengths: Vec<usize> = lines_of(&[&long, b"\n"]).iter().map(String::len).collect();
        assert_eq!(lengths, [LINE_MAX, LINE_MAX, 5]);
        let longest = "x".repeat(LINE_MAX);
        assert_eq!(lines_of(&[longest.as_bytes(), b"\n"]), [longest]);
    }

    #[tokio::test]
    async fn last_words_survive_their_writer_and_are_bounded() {
        let directory = files::test_directory("output");
        let output = Output::create(directory.join("o"), None).unwrap();
        let mut worker = File::from(output.worker_end().unwrap());
        for number in 0..50 {
            writeln!(worker, "line {number}").unwrap();
        }
        write!(worker, "unfinished \x1b[0m").unwrap();
        drop(worker);
        output.drain(|_| {});
        let words = output.last_words();
        assert_eq!(words.len(), LINES_KEPT);
        assert_eq!(words.first().unwrap(), "line 31");
        assert_eq!(words.last().unwrap(), "unfinished \\x1b[0m");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_manager_that_is_gone_breaks_no_pipe() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let directory = files::test_directory("output-gone");
        let mut worker = runtime.block_on(async {
            let output = Output::create(directory.join("o"), None).unwrap();
            File::from(output.worker_end().unwrap())
        });
        writeln!(worker, "still here").unwrap();
        std::fs::remove_dir_all(directory).unwrap();
    }
}
