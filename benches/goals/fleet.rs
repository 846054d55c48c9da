//! A manager with workers that say when they began.

use std::path::Path;
use std::time::Duration;

use crate::support::cgroup::Group;
use crate::support::manager::{App, Dir, Manager};
use crate::support::suite::Mode;
use crate::worker::{self, Tick, Ticks};

/// The manager, and who lives in each of its slots.
pub(crate) struct Fleet {
    pub(crate) manager: Manager,
    ticks: Ticks,
    pids: Vec<u32>,
}

impl Fleet {
    /// Starts it; all workers are ready.
    pub(crate) fn start(mode: Mode, workers: usize) -> Self {
        let program = std::env::current_exe().expect("this program's path").display().to_string();
        // As `/run` is: the runtime directory of a service is never on a disk.
        let mut app = App::new_in(mode, Dir::create_in(Path::new("/dev/shm")))
            .set("command", vec![program, worker::ROLE.to_owned()]);
        app.put("workers", i64::try_from(workers).expect("a count"));
        app.put("timeouts.start", "60s");
        if mode == Mode::Cgroup {
            app.put("memory.max", "32M");
        }
        let clock = app.dir.path().join("clock");
        let ticks = Ticks::bind(&clock);
        let mut manager = app.worker(worker::CLOCK, clock.display().to_string()).start();
        manager.wait_told_ready(Duration::from_mins(1));
        let mut pids = vec![0; workers];
        for _ in 0..workers {
            let tick = ticks.next();
            pids[tick.slot] = tick.pid;
        }
        assert_eq!(manager.wait_ready(workers).isolation(), mode.key(), "the mode that was asked for");
        Self { manager, ticks, pids }
    }

    /// The worker in a slot.
    pub(crate) fn pid(&self, slot: usize) -> u32 {
        self.pids[slot]
    }

    /// The next worker that begins.
    pub(crate) fn next(&mut self) -> Tick {
        let tick = self.ticks.next();
        self.pids[tick.slot] = tick.pid;
        tick
    }
}

/// The modes that this machine has without systemd.
pub(crate) fn modes() -> Vec<Mode> {
    let cgroup = Group::create(&format!("pt-{}-try", std::process::id()));
    if let Err(error) = &cgroup {
        crate::say(&format!("no figures for cgroup mode: {error}"));
    }
    cgroup.is_ok().then_some(Mode::Cgroup).into_iter().chain([Mode::None]).collect()
}
