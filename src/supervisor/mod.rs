//! The decision core: **pure**. No clock, no randomness of its own, no files, no processes.
//!
//! `step(event, now, actions)` takes what happened and says what to do; `next_deadline()` says when it wants to be
//! woken for nothing else than the passing of time; `snapshot()` says how things stand.

pub mod action;
pub mod event;
pub mod id;
pub mod note;
pub mod policy;
pub mod time;
