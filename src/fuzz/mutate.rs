//! Inputs from inputs: what libFuzzer does, without its coverage, on any toolchain and the same for the same seed.

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

/// Longer inputs find nothing that shorter ones do not.
const LONGEST: usize = 4096;

/// Numbers at which parsers and sums go wrong.
const NUMBERS: &[&str] =
    &["0", "1", "-1", "255", "256", "65536", "2147483648", "4294967296", "9223372036854775808", "18446744073709551615"];

/// A seeded source of inputs.
pub(super) struct Mutator {
    chance: Xoshiro256PlusPlus,
    words: Vec<Vec<u8>>,
}

impl Mutator {
    /// Words are what the corpus is made of: runs of letters, and of digits.
    pub(super) fn new(seed: u64, corpus: &[Vec<u8>]) -> Self {
        let mut words: Vec<Vec<u8>> = corpus
            .iter()
            .flat_map(|input| input.split(|byte| !byte.is_ascii_alphanumeric() && *byte != b'_'))
            .filter(|word| (2..40).contains(&word.len()))
            .map(<[u8]>::to_vec)
            .collect();
        words.extend(NUMBERS.iter().map(|number| number.as_bytes().to_vec()));
        words.sort();
        words.dedup();
        Self { chance: Xoshiro256PlusPlus::seed_from_u64(seed), words }
    }

    fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound.max(1)).unwrap_or(u64::MAX);
        usize::try_from(self.chance.next_u64() % bound).unwrap_or(0)
    }

    /// One of the corpus, changed in one to eight places.
    pub(super) fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = corpus.get(self.below(corpus.len())).cloned().unwrap_or_default();
        for _ in 0..=self.below(8) {
            self.change(&mut input, corpus);
        }
        input.truncate(LONGEST);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        match self.below(10) {
            0 => drop(input.drain(at..end)),
            1 => {
                let piece = input[at..end].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, piece);
            }
            2 | 3 => {
                let pick = self.below(self.words.len());
                let word = self.words[pick].clone();
                input.splice(at..end, word);
            }
            4 => {
                // The beginning of this one, the end of another.
                let other = &corpus[self.below(corpus.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            5 => {
                let byte = [b'\n', 0, b'=', b'"', 0xff, b' ', b'\\', 0x80][self.below(8)];
                input.insert(at, byte);
            }
            6 => input.truncate(at),
            7 | 8 => {
                let byte = u8::try_from(self.below(256)).unwrap_or(0);
                if let Some(old) = input.get_mut(at) {
                    *old = byte;
                } else {
                    input.push(byte);
                }
            }
            _ => {
                let bit = self.below(8);
                if let Some(old) = input.get_mut(at) {
                    *old ^= 1 << bit;
                }
            }
        }
    }
}
