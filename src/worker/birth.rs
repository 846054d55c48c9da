//! How a child is born: in its cgroups, with next to nothing of ours.

use std::cell::RefCell;
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::io::DupFlags;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitOptions};

use crate::sys::{self, Birthplace, Newborn, Pointers};

/// As many descriptors as a child needs: three standard ones, the one for its failure, and the `tasks` of three v1 groups.
const ROOM: usize = 7;

/// A program to be started.
#[derive(Debug)]
pub struct Program<'a> {
    /// Its file.
    pub path: &'a CStr,
    /// What it is called, and its arguments.
    pub arguments: &'a [&'a CStr],
    /// Its whole environment, each `NAME=value`.
    pub environment: &'a [&'a CStr],
    /// Its standard input.
    pub input: BorrowedFd<'a>,
    /// Its standard output and error.
    pub output: BorrowedFd<'a>,
}

/// A few low numbers for the descriptors that a child needs: it gets a copy of the table up to there, however long it is.
#[derive(Debug)]
pub struct Nursery {
    null: OwnedFd,
    low: RefCell<Vec<OwnedFd>>,
}

impl Nursery {
    /// Take the lowest numbers that are free; the earlier, the better.
    ///
    /// # Errors
    /// What opening `/dev/null` says.
    pub fn new() -> io::Result<Self> {
        let null = OwnedFd::from(File::options().read(true).write(true).open("/dev/null")?);
        let low = (0..ROOM).map(|_| null.try_clone()).collect::<io::Result<_>>()?;
        Ok(Self { null, low: RefCell::new(low) })
    }

    /// `/dev/null`, for reading and writing.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Start a child that is in these cgroups before its first instruction: moving another process waits for all
    /// processors (`cgroup_threadgroup_rwsem`, `kernel/cgroup/cgroup.c`); a thread that moves itself through `tasks`, and a
    /// birth, do not. Whether it could join a v1 group is for whoever looks where it is.
    ///
    /// # Errors
    /// What `clone3(2)` or `execve(2)` say; then there is no child.
    pub fn bear(&self, birthplace: &Birthplace, program: &Program<'_>) -> io::Result<Pid> {
        let (failure, failure_of_child) = pipe_with(PipeFlags::CLOEXEC)?;
        let mut low = self.low.borrow_mut();
        let needed = [program.input, program.output, program.output, failure_of_child.as_fd()];
        let all: Vec<_> = needed.into_iter().chain(birthplace.tasks.iter().map(AsFd::as_fd)).collect();
        let lent = low.iter_mut().zip(&all).try_for_each(|(low, fd)| rustix::io::dup3(fd, low, DupFlags::CLOEXEC));
        let numbers: Vec<RawFd> = low.iter().map(AsRawFd::as_raw_fd).collect();
        let born = lent.map_err(io::Error::from).and_then(|()| {
            let [input, output, errors, failure, tasks @ ..] = numbers.as_slice() else {
                return Err(io::Error::other("too few descriptors"));
            };
            sys::clone_into(&Newborn {
                cgroup: birthplace.cgroup.as_ref().map(AsFd::as_fd),
                tasks: tasks.iter().copied().take(birthplace.tasks.len()).collect(),
                standard: [*input, *output, *errors],
                failure: *failure,
                needs_below: numbers.iter().max().map_or(0, |highest| highest + 1),
                path: program.path,
                arguments: Pointers::to(program.arguments),
                environment: Pointers::to(program.environment),
            })
        });
        // Whoever waits for the end of one of these must not wait for us.
        low.iter_mut().try_for_each(|low| rustix::io::dup3(&self.null, low, DupFlags::CLOEXEC))?;
        drop(failure_of_child);
        let pid = born?;
        // execve closes the pipe.
        let mut said = Vec::new();
        let _ = File::from(failure).read_to_end(&mut said);
        let Ok(errno) = <[u8; size_of::<i32>()]>::try_from(said) else { return Ok(pid) };
        let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
        Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
    }
}
