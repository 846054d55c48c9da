//! Text that others wrote, made safe to show.

use std::fmt::Write;

/// One line of at most `most` bytes: control characters (and what is not UTF-8) escaped, an end that was cut marked
/// with `…`. A terminal, a log parser and `sd_notify(3)` can take it.
pub fn single_line(text: &str, most: usize) -> String {
    let mut line = String::with_capacity(text.len().min(most));
    for character in text.chars() {
        let before = line.len();
        push_escaped(&mut line, character);
        if line.len() > most {
            line.truncate(before);
            while line.len() + '…'.len_utf8() > most && line.pop().is_some() {}
            line.push('…');
            break;
        }
    }
    line
}

/// As [`single_line`], from bytes.
pub fn single_line_bytes(bytes: &[u8], most: usize) -> String {
    // One byte becomes at least one byte of output: what lies beyond cannot appear.
    let bytes = bytes.get(..most.saturating_add(1)).unwrap_or(bytes);
    let mut line = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        line.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
    single_line(&line, most)
}

fn push_escaped(line: &mut String, character: char) {
    match character {
        '\t' => line.push('\t'),
        '\n' => line.push_str("\\n"),
        '\r' => line.push_str("\\r"),
        // Bidirectional overrides and line separators reorder or break what a reader sees.
        '\u{61c}'
        | '\u{2028}'
        | '\u{2029}'
        | '\u{200e}'
        | '\u{200f}'
        | '\u{202a}'..='\u{202e}'
        | '\u{2066}'..='\u{2069}' => {
            let _ = write!(line, "\\u{{{:x}}}", u32::from(character));
        }
        other if other.is_control() => {
            let _ = write!(line, "\\x{:02x}", u32::from(other));
        }
        other => line.push(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_shown_not_sent() {
        assert_eq!(
            single_line("a\x1b[2Jb\r\n\tc\u{9b}\u{202e}\u{61c}", 99),
            "a\\x1b[2Jb\\r\\n\tc\\x9b\\u{202e}\\u{61c}"
        );
        assert_eq!(single_line_bytes(b"caf\xc3\xa9 \xff\0", 99), "café \\xff\\x00");
    }

    #[test]
    fn a_long_line_is_cut_within_its_bound() {
        assert_eq!(single_line("abcdef", 6), "abcdef");
        assert_eq!(single_line("abcdefg", 6), "abc…");
        for most in 3..12 {
            let cut = single_line_bytes("ééééééééé\x1b".as_bytes(), most);
            assert!(cut.len() <= most, "{cut:?} is longer than {most}");
        }
    }
}
