//! The only loop: wait, turn what happened into an event, let the supervisor decide, perform.
//!
//! The three phases of a turn (`run`): **wait** for any source; **step**, which is synchronous and touches nothing
//! outside; **perform**, a flat list of deeds that never waits: what takes time becomes a task whose end is an event.

pub mod adopt;
pub mod calm;
pub mod changes;
pub mod clock;
pub mod deeds;
pub mod generation;
mod hear;
pub mod launch;
pub mod listeners;
pub mod manager;
pub mod origin;
pub mod perform;
pub mod reap;
pub mod recover;
pub mod request;
pub mod setup;
pub mod signals;
pub mod state;
pub mod status;
mod succession;
pub mod upgrade;
pub mod watch;
pub mod worker;
