//! How slow this machine is: the one factor by which tests wait longer on an emulated processor.
//!
//! Bounds of waits are outcomes that do not come; they are stretched by the helpers that wait. Bounds that a behaviour
//! promises are not: where the processor is emulated, order and counts are asserted and times are not.

use std::sync::OnceLock;
use std::time::Duration;

/// An emulated processor takes a quarter of a second to start a program, and has to share its host's.
const EMULATED: u32 = 6;

/// Whether the processor is one that `qemu` computes; its name is the emulator's own (`target/i386/cpu.c`).
pub(crate) fn is_emulated() -> bool {
    static EMULATED: OnceLock<bool> = OnceLock::new();
    *EMULATED.get_or_init(|| std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|text| text.contains("QEMU TCG")))
}

/// The factor; `PADDOCK_TEST_PACE` is another one.
pub(crate) fn factor() -> u32 {
    static FACTOR: OnceLock<u32> = OnceLock::new();
    *FACTOR.get_or_init(|| {
        let asked = std::env::var("PADDOCK_TEST_PACE").ok().and_then(|text| text.parse().ok());
        asked.unwrap_or(if is_emulated() { EMULATED } else { 1 })
    })
}

/// A bound for this machine.
pub(crate) fn patient(bound: Duration) -> Duration {
    bound * factor()
}

/// The same for a configuration file.
pub(crate) fn patient_text(bound: Duration) -> String {
    format!("{}ms", patient(bound).as_millis())
}

/// Milliseconds for a worker, as a request, its environment or "the code on disk" gives them.
pub(crate) fn millis(bound: i64) -> i64 {
    bound * i64::from(factor())
}

/// A rate of requests that this machine can answer.
pub(crate) fn rate(per_second: f64) -> f64 {
    per_second / f64::from(factor())
}

/// A number of requests, or of what comes of them, that takes as long here as the whole does elsewhere.
pub(crate) fn share(whole: u64) -> u64 {
    whole / u64::from(factor())
}
