//! Giving back memory that only busy times needed, once it has been quiet for a moment.

use std::time::Duration;

use crate::supervisor::time::Time;

/// How quiet a time is worth it: what is given back comes again at a cost of microseconds for each page that is used.
const MOMENT: Duration = Duration::from_secs(5);

/// When to give back; a manager that rests has given back and is not woken again.
#[derive(Debug, Default)]
pub struct Calm {
    at: Option<Time>,
}

impl Calm {
    /// Something was done, or somebody asked.
    pub fn stir(&mut self, now: Time) {
        self.at = Some(now.after(MOMENT));
    }

    /// When [`Calm::comes`] is to be asked.
    pub const fn at(&self) -> Option<Time> {
        self.at
    }

    /// Whether it has become quiet by now; said once.
    pub fn comes(&mut self, now: Time) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_once_after_each_stir_and_later_if_stirred_again() {
        let second = |seconds| Time::from_boot(Duration::from_secs(seconds));
        let mut calm = Calm::default();
        assert!(!calm.comes(second(100)));
        calm.stir(second(1));
        calm.stir(second(4));
        assert_eq!(calm.at(), Some(second(9)));
        assert!(!calm.comes(second(8)));
        assert!(calm.comes(second(9)));
        assert!(!calm.comes(second(20)) && calm.at().is_none());
    }
}
