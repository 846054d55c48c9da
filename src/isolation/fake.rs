//! Fences that exist only in memory, for tests of what stands around them: no rights, no kernel, no waiting.

use std::cell::{Cell, RefCell};
use std::collections::{HashSet, VecDeque};
use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::Pid;
use tokio::sync::Notify;

use super::{
    DeathFacts, Fence, FenceError, FenceEvent, FenceLimits, FenceName, Handed, Isolation, Leftover, Leftovers,
    LocalFuture, MemoryReading, Mode,
};

/// A mode that always works, unless it is told to refuse.
#[derive(Default)]
pub struct FakeIsolation {
    made: RefCell<Vec<Rc<FakeFence>>>,
    refusals: RefCell<VecDeque<String>>,
}

impl FakeIsolation {
    /// No fences yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Let one of the next enclosures fail; refusals queue up.
    pub fn refuse(&self, reason: &str) {
        self.refusals.borrow_mut().push_back(reason.to_owned());
    }

    /// Every fence that was made, oldest first, swept ones too.
    pub fn fences(&self) -> Vec<Rc<FakeFence>> {
        self.made.borrow().clone()
    }
}

impl Isolation for FakeIsolation {
    fn mode(&self) -> Mode {
        Mode::Cgroup
    }

    fn enclose<'a>(
        &'a self,
        name: &'a FenceName,
        gate: Pid,
        limits: &'a FenceLimits,
    ) -> LocalFuture<'a, Result<Rc<dyn Fence>, FenceError>> {
        Box::pin(async move {
            if let Some(reason) = self.refusals.borrow_mut().pop_front() {
                return Err(FenceError {
                    what: format!("making a fence for slot {}", name.slot),
                    source: reason.into(),
                });
            }
            let fence = Rc::new(FakeFence {
                name: name.clone(),
                inside: RefCell::new(HashSet::from([gate])),
                limits: Cell::new(*limits),
                memory: Cell::new(MemoryReading { limit: limits.memory_max, ..MemoryReading::default() }),
                facts: Cell::new(DeathFacts { oom_killed: Some(false), peak: None }),
                edge: Cell::new(None),
                events: RefCell::default(),
                changed: Notify::new(),
                kills: Cell::new(0),
                survives: Cell::new(false),
                swept: Cell::new(false),
            });
            self.made.borrow_mut().push(Rc::clone(&fence));
            Ok(fence as Rc<dyn Fence>)
        })
    }

    fn leftovers<'a>(&'a self, app: &'a str) -> LocalFuture<'a, Result<Leftovers, FenceError>> {
        Box::pin(async move {
            let made = self.made.borrow();
            let left = made.iter().filter(|fence| fence.name.app == app && !fence.is_empty());
            let living = left
                .map(|fence| Leftover { name: fence.name.clone(), fence: Rc::clone(fence) as Rc<dyn Fence> })
                .collect();
            Ok(Leftovers { living, dead: Vec::new() })
        })
    }

    fn take_back(
        &self,
        name: &FenceName,
        _data: &serde_json::Value,
        _fd: Option<OwnedFd>,
    ) -> Result<Rc<dyn Fence>, FenceError> {
        let made = self.made.borrow();
        let found = made.iter().find(|fence| fence.name == *name && !fence.is_swept());
        found.map(|fence| Rc::clone(fence) as Rc<dyn Fence>).ok_or_else(|| FenceError {
            what: format!("finding the fence of slot {}", name.slot),
            source: "it is not there".into(),
        })
    }
}

/// A fence that does as it is told.
pub struct FakeFence {
    name: FenceName,
    inside: RefCell<HashSet<Pid>>,
    limits: Cell<FenceLimits>,
    memory: Cell<MemoryReading>,
    facts: Cell<DeathFacts>,
    edge: Cell<Option<u64>>,
    events: RefCell<VecDeque<FenceEvent>>,
    changed: Notify,
    kills: Cell<u32>,
    survives: Cell<bool>,
    swept: Cell<bool>,
}

impl FakeFence {
    /// Whose it is.
    pub fn name(&self) -> &FenceName {
        &self.name
    }

    /// The limits in force.
    pub fn limits(&self) -> FenceLimits {
        self.limits.get()
    }

    /// The armed edge.
    pub fn edge(&self) -> Option<u64> {
        self.edge.get()
    }

    /// How often everything inside was killed.
    pub fn kills(&self) -> u32 {
        self.kills.get()
    }

    /// Whether it was emptied and removed.
    pub fn is_swept(&self) -> bool {
        self.swept.get()
    }

    /// A process appears inside, as by a fork.
    pub fn add(&self, pid: Pid) {
        self.inside.borrow_mut().insert(pid);
    }

    /// A process is over; a sweep that waits may go on.
    pub fn remove(&self, pid: Pid) {
        self.inside.borrow_mut().remove(&pid);
        self.changed.notify_waiters();
    }

    /// Let what is inside outlive a kill, as a process does that hangs in the kernel.
    pub fn survive(&self, survives: bool) {
        self.survives.set(survives);
    }

    /// The worker holds so much now. Passing the armed edge is reported, once.
    pub fn hold(&self, bytes: u64) {
        let before = self.memory.get();
        let now = MemoryReading {
            current: bytes,
            unreclaimable: bytes,
            peak: Some(before.peak.unwrap_or_default().max(bytes)),
            limit: before.limit,
        };
        self.memory.set(now);
        if self.edge.get().is_some_and(|edge| bytes >= edge) {
            self.edge.set(None);
            self.report(FenceEvent::Memory(now));
        }
    }

    /// Report this.
    pub fn report(&self, event: FenceEvent) {
        self.events.borrow_mut().push_back(event);
        self.changed.notify_waiters();
    }

    /// What will be known about the death.
    pub fn set_facts(&self, facts: DeathFacts) {
        self.facts.set(facts);
    }

    fn is_empty(&self) -> bool {
        self.inside.borrow().is_empty()
    }
}

impl Fence for FakeFence {
    fn describe(&self) -> String {
        format!("fake {}-{}-{}", self.name.app, self.name.slot, self.name.unique)
    }

    fn contains(&self, pid: Pid) -> bool {
        self.inside.borrow().contains(&pid)
    }

    fn memory(&self) -> Result<MemoryReading, FenceError> {
        Ok(self.memory.get())
    }

    fn arm(&self, edge: Option<u64>) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.edge.set(edge);
            self.hold(self.memory.get().unreclaimable);
            Ok(())
        })
    }

    fn next_event(&self) -> LocalFuture<'_, FenceEvent> {
        Box::pin(async move {
            loop {
                let changed = self.changed.notified();
                if let Some(event) = self.events.borrow_mut().pop_front() {
                    return event;
                }
                changed.await;
            }
        })
    }

    fn set_limits<'a>(&'a self, limits: &'a FenceLimits) -> LocalFuture<'a, Result<Vec<String>, FenceError>> {
        Box::pin(async move {
            self.limits.set(*limits);
            Ok(Vec::new())
        })
    }

    fn kill(&self) -> Result<(), FenceError> {
        self.kills.set(self.kills.get() + 1);
        if !self.survives.get() {
            self.inside.borrow_mut().clear();
            self.changed.notify_waiters();
        }
        Ok(())
    }

    fn death_facts(&self) -> LocalFuture<'_, DeathFacts> {
        Box::pin(async move {
            let facts = self.facts.get();
            DeathFacts { peak: facts.peak.or(self.memory.get().peak), ..facts }
        })
    }

    fn sweep(&self) -> LocalFuture<'_, Result<(), FenceError>> {
        Box::pin(async move {
            self.kill()?;
            loop {
                let changed = self.changed.notified();
                if self.is_empty() {
                    self.swept.set(true);
                    return Ok(());
                }
                changed.await;
            }
        })
    }

    fn hand_over(&self) -> Handed<'_> {
        Handed::default()
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn poll<T>(future: &mut LocalFuture<'_, T>) -> Poll<T> {
        future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now<T>(mut future: LocalFuture<'_, T>) -> T {
        match poll(&mut future) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }

    fn pid(number: i32) -> Pid {
        Pid::from_raw(number).unwrap()
    }

    fn name() -> FenceName {
        FenceName { app: "my".to_owned(), slot: 1, unique: "a".to_owned() }
    }

    #[test]
    fn the_edge_is_reported_once_and_at_once_if_it_was_passed() {
        let isolation = FakeIsolation::new();
        let limits = FenceLimits { memory_max: Some(100), ..FenceLimits::default() };
        let fence = now(isolation.enclose(&name(), pid(7), &limits)).unwrap();
        let fake = isolation.fences().remove(0);
        now(fence.arm(Some(80))).unwrap();
        fake.hold(79);
        assert!(poll(&mut fence.next_event()).is_pending());
        fake.hold(80);
        fake.hold(90);
        assert!(matches!(now(fence.next_event()), FenceEvent::Memory(reading) if reading.unreclaimable == 80));
        assert!(poll(&mut fence.next_event()).is_pending());
        now(fence.arm(Some(85))).unwrap();
        let FenceEvent::Memory(reading) = now(fence.next_event()) else { panic!() };
        assert_eq!((reading.unreclaimable, reading.peak, reading.limit), (90, Some(90), Some(100)));
        assert_eq!(fake.edge(), None);
    }

    #[test]
    fn a_sweep_waits_for_the_last() {
        let isolation = FakeIsolation::new();
        let fence = now(isolation.enclose(&name(), pid(7), &FenceLimits::default())).unwrap();
        let fake = isolation.fences().remove(0);
        fake.add(pid(8));
        fake.survive(true);
        assert!(fence.contains(pid(8)) && !fence.contains(pid(9)));
        let mut sweep = pin!(fence.sweep());
        assert!(sweep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        fake.remove(pid(7));
        assert_eq!(now(isolation.leftovers("my")).unwrap().living.len(), 1);
        assert!(now(isolation.leftovers("other")).unwrap().living.is_empty());
        fake.remove(pid(8));
        assert!(sweep.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready());
        assert!(fake.is_swept());
        assert_eq!(fake.kills(), 1);
        assert!(now(isolation.leftovers("my")).unwrap().living.is_empty());
    }

    #[test]
    fn a_refusal_is_for_one_enclosure() {
        let isolation = FakeIsolation::new();
        isolation.refuse("no room");
        let refused = now(isolation.enclose(&name(), pid(7), &FenceLimits::default())).err().unwrap();
        assert!(refused.to_string().contains("no room"));
        assert!(now(isolation.enclose(&name(), pid(7), &FenceLimits::default())).is_ok());
        assert_eq!(isolation.fences().len(), 1);
    }
}
