//! Fuzz targets: everything that comes from outside, as one function each, from bytes to a panic if a law is broken.
//!
//! Only compiled for tests and for `cargo fuzz` (which sets `cfg(fuzzing)`), so nothing of it is in the product. The same
//! functions are driven in two ways: by [`replay`] in every test run, on any toolchain, and by libFuzzer in `fuzz/`.
//! docs/fuzzing.md says how.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a panic is how a target says that a law is broken"
)]

mod config;
mod control;
mod core;
mod kernel;
mod state;
mod words;

#[cfg(test)]
mod mutate;
#[cfg(test)]
mod replay;

/// One target: its name, which is its corpus's too, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: [Target; 12] = [
    ("activation", words::activation),
    ("config", config::file),
    ("control", control::requests),
    ("core", core::steps),
    ("environment_file", config::environment_file),
    ("flags", config::flags),
    ("kernel", kernel::files),
    ("message", words::message),
    ("order", state::order),
    ("output", words::output),
    ("reply", control::reply),
    ("state", state::state),
];

/// Run one target by its name.
///
/// # Panics
/// There is no such target, or a law is broken.
pub fn run(name: &str, bytes: &[u8]) {
    let target = TARGETS.iter().find(|(known, _)| *known == name);
    target.expect("a target of this name").1(bytes);
}

/// Bytes as a source of small decisions; when it is empty, every answer is zero.
struct Source<'a>(&'a [u8]);

impl<'a> Source<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, bound: u8) -> u8 {
        self.byte().checked_rem(bound).unwrap_or(0)
    }

    fn flag(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// One of these.
    fn of<T: Clone>(&mut self, choices: &[T]) -> T {
        let index = usize::from(self.byte()) % choices.len();
        choices[index].clone()
    }

    fn number(&mut self) -> u64 {
        let mut bytes = [0; 8];
        for byte in &mut bytes {
            *byte = self.byte();
        }
        u64::from_le_bytes(bytes)
    }

    /// At most so many bytes.
    fn bytes(&mut self, most: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(most.min(self.0.len()));
        self.0 = rest;
        first
    }
}

/// Nothing in it may move a terminal's cursor, end a line, or reorder what a reader sees.
fn assert_harmless(text: &str) {
    let bad = text.chars().find(|&character| {
        (character.is_control() && character != '\t')
            || matches!(character, '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{61c}')
            || matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    });
    assert!(bad.is_none(), "{bad:?} in {text:?}");
}
