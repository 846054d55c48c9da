//! Requests of operators: from the control socket and by signal.

use crate::aside::begin_aside;
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::control::server::{Call, Reply};
use crate::supervisor::action::Action;
use crate::supervisor::event::{Event, Request};
use crate::supervisor::id::{ConfigId, RequestId, SlotId};
use crate::supervisor::note::Level;
use crate::supervisor::time::Time;

use super::generation::{Prepared, Problem};
use super::manager::Manager;

/// A configuration that was read again, off the loop.
pub struct Reread {
    /// Who waits for the roll; none: nobody.
    waiting: Option<Reply>,
    result: Result<Box<Prepared>, Problem>,
}

impl Manager {
    /// A client of the control socket asks.
    pub(super) fn called(&mut self, call: Call, now: Time, actions: &mut Vec<Action>) {
        let Call { request, reply, .. } = call;
        let request = match request {
            ControlRequest::Status => {
                // A client that left wants nothing.
                let _ = reply.send(ControlReply::Status(Box::new(self.status(now))));
                return;
            }
            ControlRequest::Reload { wait } => {
                if wait {
                    self.read_again(Some(reply));
                } else {
                    self.read_again(None);
                    let message = "the configuration is being read; the roll follows if it is right".to_owned();
                    let _ = reply.send(ControlReply::Done { message });
                }
                return;
            }
            ControlRequest::Recycle { slot } => Request::Recycle { slot: SlotId(slot) },
            ControlRequest::Scale { workers } => Request::Scale { workers },
            ControlRequest::Signal { signal, slot } => Request::Signal { signal, slot: slot.map(SlotId) },
            ControlRequest::Stop { fast } => Request::Stop { fast },
        };
        let id = self.awaiting(reply);
        self.step(Event::Request { id: Some(id), request }, now, actions);
    }

    /// Read the configuration again. Looking up users can wait for a directory server, so another thread does it.
    pub(super) fn read_again(&mut self, waiting: Option<Reply>) {
        self.rereads.push(self.deeds.begin());
        let (source, answers) = (self.source.clone(), self.reread.clone());
        begin_aside(move || {
            let result = source.read_again().map(Box::new);
            let _ = answers.send(Reread { waiting, result });
        });
    }

    /// It has been read.
    pub(super) fn reread(&mut self, reread: Reread, now: Time, actions: &mut Vec<Action>) {
        self.rereads.pop();
        let Reread { waiting, result } = reread;
        match result {
            Ok(prepared) => {
                let config = ConfigId(self.last_config.0 + 1);
                self.last_config = config;
                let policy = Box::new(prepared.policy.clone());
                self.configs.insert(config, (*prepared).into());
                let id = waiting.map(|reply| self.awaiting(reply));
                self.step(Event::Request { id, request: Request::Reload { config, policy } }, now, actions);
            }
            Err(problem) => {
                let Problem { wrong_text, reason } = problem;
                self.log.say(Level::Error, &format!("reload refused, the configuration in force stays: {reason}"));
                if let Some(reply) = waiting {
                    let _ = reply.send(if wrong_text {
                        ControlReply::Invalid { reason }
                    } else {
                        ControlReply::Failed { reason, last_words: Vec::new() }
                    });
                }
            }
        }
    }

    fn awaiting(&mut self, reply: Reply) -> RequestId {
        self.last_request = RequestId(self.last_request.0 + 1);
        self.replies.insert(self.last_request, reply);
        self.last_request
    }
}
