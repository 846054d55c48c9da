//! Varlink's framing: messages end with a zero byte, and nobody may make us keep more than a bounded one.

/// Bytes as they came, messages as they leave.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: Vec<u8>,
    /// Up to here there is no zero byte.
    searched: usize,
    limit: usize,
}

/// How much is read at a time.
pub(crate) const CHUNK: usize = 4096;

impl Frames {
    /// With the longest message allowed, in bytes, its zero byte not counted.
    pub(crate) const fn new(limit: usize) -> Self {
        Self { buffer: Vec::new(), searched: 0, limit }
    }

    /// The next whole message without its zero byte; none: more must be read.
    pub(crate) fn next(&mut self) -> Result<Option<Vec<u8>>, TooLong> {
        let rest = self.buffer.get(self.searched..).unwrap_or_default();
        let Some(found) = rest.iter().position(|byte| *byte == 0) else {
            self.searched = self.buffer.len();
            return if self.searched > self.limit { Err(TooLong) } else { Ok(None) };
        };
        let end = self.searched + found;
        if end > self.limit {
            return Err(TooLong);
        }
        let rest = self.buffer.split_off(end + 1);
        let mut message = std::mem::replace(&mut self.buffer, rest);
        message.truncate(end);
        self.searched = 0;
        Ok(Some(message))
    }

    /// Whether a message, or the beginning of one, is here.
    pub(crate) fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Whether there is as much here as one message may have.
    pub(crate) fn is_full(&self) -> bool {
        self.buffer.len() > self.limit
    }

    /// Where to read into; it has room for one chunk.
    pub(crate) fn room(&mut self) -> &mut Vec<u8> {
        self.buffer.reserve(CHUNK);
        &mut self.buffer
    }
}

/// A message is longer than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TooLong;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_leave_whole_and_in_order_however_they_came() {
        let mut frames = Frames::new(16);
        let mut got = Vec::new();
        for byte in b"one\0two\0\0thr" {
            frames.room().push(*byte);
            while let Some(message) = frames.next().unwrap() {
                got.push(message);
            }
        }
        assert_eq!(got, [b"one".to_vec(), b"two".to_vec(), Vec::new()]);
        assert!(!frames.is_empty());
        frames.room().extend(b"ee\0");
        assert_eq!(frames.next(), Ok(Some(b"three".to_vec())));
        assert!(frames.is_empty());
    }

    #[test]
    fn a_message_over_the_limit_is_refused_ended_or_not() {
        let mut frames = Frames::new(4);
        frames.room().extend(b"1234\0");
        assert_eq!(frames.next(), Ok(Some(b"1234".to_vec())));
        frames.room().extend(b"12345");
        assert_eq!(frames.next(), Err(TooLong));
        let mut frames = Frames::new(4);
        frames.room().extend(b"12345\0");
        assert_eq!(frames.next(), Err(TooLong));
    }
}
