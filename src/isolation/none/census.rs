//! Looks at all processes of the machine: one for everybody who wants one at that time, and not on the loop's thread.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use rustix::process::Pid;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::super::proc::{self, Stat};
use crate::aside::aside;

/// Every process of the machine, as one look found it.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// When the look began, in clock ticks since boot, as [`Stat::start_time`].
    began: u64,
    processes: HashMap<Pid, Stat>,
    children: HashMap<i32, Vec<Pid>>,
    sessions: HashMap<i32, Vec<Pid>>,
}

impl Table {
    /// Look now. Takes milliseconds where there are hundreds of processes.
    ///
    /// # Errors
    /// What reading `/proc` says.
    fn look() -> io::Result<Self> {
        let now = clock_gettime(ClockId::Boottime);
        let ticks = rustix::param::clock_ticks_per_second();
        let (seconds, nanoseconds) = (u64::try_from(now.tv_sec), u64::try_from(now.tv_nsec));
        let began = seconds.unwrap_or(0) * ticks + nanoseconds.unwrap_or(0) * ticks / 1_000_000_000;
        let mut table = Self { began, ..Self::default() };
        for pid in proc::all()? {
            let Ok(stat) = proc::stat(pid) else { continue };
            table.processes.insert(pid, stat);
            table.children.entry(stat.parent).or_default().push(pid);
            table.sessions.entry(stat.session).or_default().push(pid);
        }
        Ok(table)
    }

    /// One process.
    pub(super) fn get(&self, pid: Pid) -> Option<Stat> {
        self.processes.get(&pid).copied()
    }

    /// Who has this parent.
    pub(super) fn children(&self, parent: Pid) -> &[Pid] {
        self.children.get(&parent.as_raw_pid()).map_or(&[], Vec::as_slice)
    }

    /// Who is in the session that this process leads or led.
    pub(super) fn session(&self, leader: Pid) -> &[Pid] {
        self.sessions.get(&leader.as_raw_pid()).map_or(&[], Vec::as_slice)
    }

    /// Whether it is there, or too young for this look to have seen it.
    pub(super) fn may_live(&self, pid: Pid, started: u64) -> bool {
        self.get(pid).map_or(started + 1 >= self.began, |stat| stat.start_time == started)
    }
}

/// Who looks, and what was seen last.
#[derive(Debug, Default)]
pub(super) struct Census {
    newest: RefCell<Option<Seen>>,
    /// How many looks have begun.
    begun: Cell<u64>,
    /// Whether the last of them is under way.
    looking: Cell<bool>,
    over: Notify,
}

#[derive(Debug, Clone)]
struct Seen {
    /// The how manieth look it was.
    number: u64,
    began: Instant,
    table: Rc<Table>,
}

/// A look under way. Whoever waits for it goes on when it is over, even if that is because nobody wanted it any more.
struct Looking<'a>(&'a Census);

impl Drop for Looking<'_> {
    fn drop(&mut self) {
        self.0.looking.set(false);
        self.0.over.notify_waiters();
    }
}

impl Census {
    /// How it is at some moment from now on.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub(super) async fn look(&self) -> io::Result<Rc<Table>> {
        self.since(self.begun.get() + 1).await
    }

    /// How it was at some moment not longer than `age` ago.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub(super) async fn recent(&self, age: Duration) -> io::Result<Rc<Table>> {
        match self.known(age) {
            Some(table) => Ok(table),
            None => self.since(self.begun.get() + u64::from(!self.looking.get())).await,
        }
    }

    /// The same for whoever cannot wait: on this thread, if nobody has looked so lately.
    ///
    /// # Errors
    /// What reading `/proc` says.
    pub(super) fn recent_now(&self, age: Duration) -> io::Result<Rc<Table>> {
        if let Some(table) = self.known(age) {
            return Ok(table);
        }
        let began = Instant::now();
        let table = Rc::new(Table::look()?);
        // One that is under way began earlier and must not count as later.
        let number = self.newest.borrow().as_ref().map_or(0, |seen| seen.number);
        self.newest.replace(Some(Seen { number, began, table: Rc::clone(&table) }));
        Ok(table)
    }

    fn known(&self, age: Duration) -> Option<Rc<Table>> {
        let newest = self.newest.borrow();
        newest.as_ref().filter(|seen| seen.began.elapsed() <= age).map(|seen| Rc::clone(&seen.table))
    }

    /// The look with this number, or a later one.
    async fn since(&self, number: u64) -> io::Result<Rc<Table>> {
        loop {
            if let Some(seen) = self.newest.borrow().as_ref().filter(|seen| seen.number >= number) {
                return Ok(Rc::clone(&seen.table));
            }
            if self.looking.get() {
                self.over.notified().await;
                continue;
            }
            self.looking.set(true);
            let looking = Looking(self);
            let number = self.begun.get() + 1;
            self.begun.set(number);
            let began = Instant::now();
            let table = Rc::new(aside(Table::look).await??);
            self.newest.replace(Some(Seen { number, began, table }));
            drop(looking);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::pin::pin;
    use std::process::Command;
    use std::task::{Context, Waker};

    fn sleeper() -> (std::process::Child, Pid) {
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = Pid::from_child(&child);
        (child, pid)
    }

    #[tokio::test]
    async fn a_look_sees_who_was_there_when_it_was_asked_for() {
        let census = Census::default();
        for round in 1..=3 {
            let (mut child, pid) = sleeper();
            let table = census.look().await.unwrap();
            let stat = table.get(pid).unwrap();
            assert!(table.children(rustix::process::getpid()).contains(&pid));
            assert!(table.may_live(pid, stat.start_time) && !table.may_live(pid, stat.start_time - 1));
            assert_eq!(census.begun.get(), round);
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[tokio::test]
    async fn many_who_ask_at_a_time_share_one_look() {
        let census = Census::default();
        let (first, second, third, any) =
            tokio::join!(census.look(), census.look(), census.look(), census.recent(Duration::ZERO));
        assert_eq!(census.begun.get(), 2);
        let second = second.unwrap();
        assert!(Rc::ptr_eq(&second, &third.unwrap()));
        assert!(any.unwrap().began >= first.unwrap().began);
        assert!(Rc::ptr_eq(&second, &census.recent(Duration::from_mins(1)).await.unwrap()));
        census.recent_now(Duration::from_mins(1)).unwrap();
        assert_eq!(census.begun.get(), 2);
    }

    #[tokio::test]
    async fn who_asks_while_somebody_looks_gets_the_next_look() {
        let census = Census::default();
        let mut first = pin!(census.look());
        assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let (mut child, pid) = sleeper();
        let (first, second) = tokio::join!(first, census.look());
        assert!(second.unwrap().get(pid).is_some());
        drop(first);
        assert_eq!(census.begun.get(), 2);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_look_that_nobody_wants_any_more_keeps_nobody_waiting() {
        let census = Census::default();
        {
            let mut first = pin!(census.look());
            assert!(first.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        }
        census.look().await.unwrap();
    }

    #[test]
    fn who_is_younger_than_a_look_may_live() {
        let table = Table::look().unwrap();
        let (mut child, pid) = sleeper();
        assert!(table.may_live(pid, proc::stat(pid).unwrap().start_time));
        assert!(!table.may_live(pid, 1));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
