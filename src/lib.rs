//! paddock: a worker manager for Linux services.
//!
//! The map, in the order in which to read it:
//!
//! * [`config`] turns text (file and command line) into a [`config::model::Config`] that cannot be wrong;
//! * [`supervisor`] **decides**: a pure state machine, events in, actions out, no clock, no files, no processes;
//! * `runtime` **performs**: the only loop, which turns what happens into events and actions into deeds;
//! * the adapters touch the world: [`isolation`] (fences around workers), `worker` (making a process and
//!   hearing it), `systemd` (activation, notification, journal), `control` (the socket of `paddock status`);
//! * `cli` and `command` are the command line; `trust` says who else could change a file; `aside` and `closing`
//!   keep what may block away from the loop; `sys` holds every raw system call.

// The laws of the simulation speak of this crate by its name.
#[cfg(any(test, fuzzing))]
extern crate self as paddock;

pub mod aside;
pub mod cli;
pub mod closing;
pub mod command;
pub mod config;
pub mod control;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod import;
pub mod isolation;
pub mod observe;
pub mod runtime;
pub mod supervisor;
pub mod sys;
pub mod systemd;
pub mod trust;
pub mod worker;
