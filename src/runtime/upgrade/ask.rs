//! Asking another image whether it can take over: it runs as a child, gets what it would get, and answers.
//!
//! Whatever the file on disk is (garbage, another program, a paddock that is too old), nothing but its own time is lost.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::pipe::PipeFlags;
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::config::model::Signal;
use crate::observe::escape::single_line_bytes;
use crate::supervisor::event::Ended;
use crate::sys;
use crate::worker::process::Process;

/// The one argument that makes paddock answer.
pub const ROLE: &str = "can-take-over";

/// How long the answer may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The most that is kept of what comes through each of its pipes, in bytes.
const KEPT: usize = 8 * 1024;

/// The most that is read there, in bytes; after that it is left to block.
const READ: usize = 256 * 1024;

/// The most of it that is repeated, in bytes.
const REPEAT: usize = 400;

/// An image that has been asked.
#[derive(Debug)]
pub struct Question {
    process: Rc<Process>,
    answer: Pipe,
    complaints: Pipe,
    expected: String,
}

/// Write a text into memory that has a descriptor (`memfd_create(2)`), to be read from its beginning.
///
/// # Errors
/// What the kernel says.
pub fn in_memory(text: &[u8]) -> io::Result<OwnedFd> {
    let memory = rustix::fs::memfd_create("paddock", MemfdFlags::CLOEXEC | MemfdFlags::NOEXEC_SEAL)
        // Linux before 6.3 does not know that flag.
        .or_else(|_| rustix::fs::memfd_create("paddock", MemfdFlags::CLOEXEC))?;
    let mut file = File::from(memory);
    file.write_all(text)?;
    rustix::fs::seek(&file, SeekFrom::Start(0))?;
    Ok(file.into())
}

impl Question {
    /// Start `image` in its role and give it the text; `expected` is what it will say if it agrees, which nobody can say
    /// who has not understood the text.
    ///
    /// # Errors
    /// What `fork(2)`, `execve(2)`, `memfd_create(2)` say.
    pub fn put(image: BorrowedFd<'_>, text: &[u8], expected: String) -> io::Result<Self> {
        let (answer, theirs) = Pipe::new()?;
        let (complaints, errors) = Pipe::new()?;
        let child = Command::new(format!("/proc/self/fd/{}", image.as_raw_fd()))
            .arg0("paddock")
            .arg(ROLE)
            .stdin(Stdio::from(in_memory(text)?))
            .stdout(Stdio::from(theirs))
            .stderr(Stdio::from(errors))
            .spawn()?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a child without a pid"))?;
        Ok(Self { process: Rc::new(Process::open(pid)?), answer, complaints, expected })
    }

    /// Its process: a child whose end is awaited.
    pub fn process(&self) -> &Rc<Process> {
        &self.process
    }

    /// Wait for the answer, up to a bound.
    ///
    /// # Errors
    /// Why it cannot take over, as a fragment.
    pub async fn answered(mut self) -> Result<(), String> {
        let Ok(ended) = tokio::time::timeout(PATIENCE, self.listen()).await else {
            return Err(format!("it did not answer within {} seconds", PATIENCE.as_secs()));
        };
        self.answer.take();
        self.complaints.take();
        let said = self.complaints.heard.trim_ascii();
        let said = said.get(said.len().saturating_sub(REPEAT)..).unwrap_or(said);
        let because =
            if said.is_empty() { String::new() } else { format!(": {}", single_line_bytes(said, 2 * REPEAT)) };
        match ended {
            Ended::Exit(0) if self.answer.heard.trim_ascii() == self.expected.as_bytes() => Ok(()),
            Ended::Exit(0) => Err("it does not understand the question; is it a paddock at all?".to_owned()),
            // Clap's code for a command line that it does not know.
            Ended::Exit(2) => Err(format!("it does not know how to take over{because}")),
            Ended::Exit(_) if !said.is_empty() => Err(single_line_bytes(said, 2 * REPEAT)),
            Ended::Exit(code) => Err(format!("it refused with exit code {code}")),
            Ended::Signal(signal) => Err(format!("it died of signal {}{because}", signal.0)),
            Ended::Unknown => Err(format!("how it ended is not known{because}")),
        }
    }

    async fn listen(&mut self) -> Ended {
        loop {
            tokio::select! {
                biased;
                ended = self.process.ended() => return ended,
                () = self.answer.more() => {}
                () = self.complaints.more() => {}
            }
        }
    }
}

impl Drop for Question {
    /// Nobody waits for its answer any more, be it that the manager ends. Whoever reaps orphans reaps this one, whenever the
    /// kernel lets go of it.
    fn drop(&mut self) {
        let _ = self.process.signal(Signal(nix::libc::SIGKILL));
    }
}

/// The reading end of a pipe, and what came out of it.
#[derive(Debug)]
struct Pipe {
    end: AsyncFd<OwnedFd>,
    heard: Vec<u8>,
    read: usize,
    /// Nothing more will come, or be listened to.
    over: bool,
}

impl Pipe {
    fn new() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&ours, true)?;
        Ok((Self { end: sys::watch(ours, Interest::READABLE)?, heard: Vec::new(), read: 0, over: false }, theirs))
    }

    /// Wait for more, and take it. Pending for ever when it is over. Cancel-safe.
    async fn more(&mut self) {
        if self.over {
            return std::future::pending().await;
        }
        match self.end.readable().await {
            Ok(mut guard) => guard.clear_ready(),
            Err(_) => self.over = true,
        }
        self.take();
    }

    /// Take what is there.
    fn take(&mut self) {
        let mut chunk = [0_u8; KEPT];
        while !self.over {
            match rustix::io::read(self.end.get_ref(), &mut chunk) {
                Ok(count) => {
                    let room = KEPT - self.heard.len().min(KEPT);
                    self.heard.extend_from_slice(chunk.get(..count.min(room)).unwrap_or_default());
                    self.read += count;
                    self.over = count == 0 || self.read >= READ;
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{CWD, Mode, OFlags};

    async fn ask(program: &str, expected: &str) -> Result<(), String> {
        let image = rustix::fs::openat(CWD, program, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        let question = Question::put(std::os::fd::AsFd::as_fd(&image), b"the state\n", expected.to_owned());
        question.map_err(|error| error.to_string())?.answered().await
    }

    #[tokio::test]
    async fn only_the_expected_words_are_an_answer() {
        // `true` and `cat` are not paddock, whatever their exit status says; `cat` takes the role for a file's name.
        assert!(ask("/bin/true", "yes").await.unwrap_err().contains("does not understand"));
        assert!(ask("/bin/false", "yes").await.unwrap_err().contains("exit code 1"));
        assert!(ask("/bin/cat", "the state").await.unwrap_err().contains(ROLE));
        assert!(ask("/etc/passwd", "yes").await.is_err());
    }
}
