//! Sizes and times as people read them.

/// Bytes with one decimal and systemd's units, which are powers of 1024: `512.0M`, `1.5G`, `812B`.
pub fn size(bytes: u64) -> String {
    const UNITS: [(u64, char); 4] = [(1 << 40, 'T'), (1 << 30, 'G'), (1 << 20, 'M'), (1 << 10, 'K')];
    for (unit, letter) in UNITS {
        if bytes >= unit {
            // Rounded to tenths; 1023.96K is not yet the next unit's 1.0, and reads 1024.0K.
            let tenths = (u128::from(bytes) * 10 + u128::from(unit / 2)) / u128::from(unit);
            return format!("{}.{}{letter}", tenths / 10, tenths % 10);
        }
    }
    format!("{bytes}B")
}

/// Seconds in their two largest units, as systemd writes them: `2min 3s`, `3d 4h`, `850ms`. Below 10 s one decimal.
pub fn span(seconds: f64) -> String {
    const UNITS: [(u64, &str); 4] = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let milliseconds = (seconds * 1000.0).round();
    // Not a number, negative, or nothing worth showing.
    if milliseconds.is_nan() || milliseconds < 1.0 {
        return "0s".to_owned();
    }
    if milliseconds >= 1e15 {
        return "never".to_owned();
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 1 and 10^15")]
    let milliseconds = milliseconds as u64;
    if milliseconds < 1000 {
        return format!("{milliseconds}ms");
    }
    if milliseconds < 10_000 && !milliseconds.is_multiple_of(1000) {
        return format!("{}.{}s", milliseconds / 1000, milliseconds % 1000 / 100);
    }
    let mut rest = milliseconds / 1000;
    let mut parts: Vec<String> = Vec::new();
    for (unit, name) in UNITS {
        let count = rest / unit;
        rest %= unit;
        // Once it has begun it ends with the next unit, counted or not.
        if count > 0 {
            parts.push(format!("{count}{name}"));
        }
        if parts.len() == 2 || (!parts.is_empty() && count == 0) {
            break;
        }
    }
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024_with_one_decimal() {
        for (bytes, text) in [
            (0, "0B"),
            (1023, "1023B"),
            (1024, "1.0K"),
            (1536, "1.5K"),
            (536_870_912, "512.0M"),
            (1_572_864_000, "1.5G"),
            (u64::MAX, "16777216.0T"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn spans_have_their_two_largest_units() {
        for (seconds, text) in [
            (-3.0, "0s"),
            (f64::NAN, "0s"),
            (f64::INFINITY, "never"),
            (0.0, "0s"),
            (0.3, "300ms"),
            (1.0, "1s"),
            (1.55, "1.5s"),
            (59.9, "59s"),
            (123.0, "2min 3s"),
            (120.0, "2min"),
            (3600.0, "1h"),
            (3605.0, "1h"),
            (10_920.0, "3h 2min"),
            (273_600.0, "3d 4h"),
            (86_400.0 + 60.0, "1d"),
        ] {
            assert_eq!(span(seconds), text, "{seconds}");
        }
    }
}
