//! Amounts of bytes.

use thiserror::Error;

/// Suffixes and their factors, in the order in which a text may use them; systemd.exec(5): "K, M, G, T, P and E, to
/// the base 1024".
const SUFFIXES: [(&str, u64); 8] =
    [("E", 1 << 60), ("P", 1 << 50), ("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10), ("B", 1), ("", 1)];

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SizeError {
    /// Nothing there.
    #[error("empty")]
    Empty,
    /// Not a number where one must be.
    #[error("not a size")]
    Malformed,
    /// Right but for the way its unit is spelled.
    #[error("not a size: units are single capital letters")]
    Spelling(String),
    /// Does not fit.
    #[error("too large")]
    TooLarge,
    /// Below zero.
    #[error("negative")]
    Negative,
}

impl SizeError {
    /// What to write instead.
    pub fn remedy(&self) -> String {
        match self {
            Self::Empty | Self::Malformed | Self::Negative => {
                "bytes, or a number with K, M, G or T (steps of 1024), such as \"512M\"".to_owned()
            }
            Self::Spelling(text) => format!("write {text:?}"),
            Self::TooLarge => "a size is less than 16E (2^64 bytes)".to_owned(),
        }
    }
}

/// A size in bytes as `parse_size()` of systemd's `parse-util.c` reads it, base 1024: `512M`, `1.5G`, `1G 512M`;
/// white space around it is nothing. `infinity` and percentages are not sizes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim_matches(is_space);
    if trimmed.is_empty() {
        return Err(SizeError::Empty);
    }
    match parse_terms(trimmed) {
        Err(SizeError::Malformed) => Err(suggest(trimmed)),
        other => other,
    }
}

/// The white space of systemd's `WHITESPACE`.
const fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r')
}

/// One term after the other, each with a smaller unit than the one before.
fn parse_terms(text: &str) -> Result<u64, SizeError> {
    let mut rest = text;
    let mut units = SUFFIXES.as_slice();
    let mut sum: u64 = 0;
    while !rest.is_empty() {
        rest = rest.trim_start_matches(is_space);
        if rest.starts_with('-') {
            return Err(SizeError::Negative);
        }
        rest = rest.strip_prefix('+').unwrap_or(rest);
        let (whole, after) = digits(rest);
        if whole.is_empty() {
            return Err(SizeError::Malformed);
        }
        let whole: u64 = whole.parse().map_err(|_| SizeError::TooLarge)?;
        let mut fraction = "";
        rest = after;
        if let Some(after) = rest.strip_prefix('.') {
            (fraction, rest) = digits(after);
        }
        rest = rest.trim_start_matches(is_space);
        let (index, suffix, factor) = units
            .iter()
            .enumerate()
            .find(|(_, (suffix, _))| rest.starts_with(suffix))
            .map(|(index, (suffix, factor))| (index, *suffix, *factor))
            .ok_or(SizeError::Malformed)?;
        rest = rest.strip_prefix(suffix).unwrap_or(rest);
        units = units.get(index + 1..).unwrap_or_default();
        let term = whole.checked_mul(factor).ok_or(SizeError::TooLarge)?;
        sum = sum
            .checked_add(term)
            .and_then(|sum| sum.checked_add(scale_fraction(fraction, factor)))
            .ok_or(SizeError::TooLarge)?;
    }
    Ok(sum)
}

/// Leading digits, and what follows them.
fn digits(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// `0.fraction * factor`, rounded down. Factors are at most 2^60, so eighteen decimals say all there is to say.
fn scale_fraction(fraction: &str, factor: u64) -> u64 {
    let mut value: u128 = 0;
    let mut scale: u128 = 1;
    for digit in fraction.bytes().take(18) {
        value = value * 10 + u128::from(digit - b'0');
        scale *= 10;
    }
    u64::try_from(value * u128::from(factor) / scale).unwrap_or(u64::MAX)
}

/// The usual other spellings (`512m`, `512MB`, `512MiB`, `2 GiB`) get their own remedy.
fn suggest(text: &str) -> SizeError {
    let upper = text.to_ascii_uppercase();
    let bare =
        upper.strip_suffix("IB").or_else(|| upper.strip_suffix('B')).unwrap_or(&upper).trim_end_matches(is_space);
    match parse_terms(bare) {
        Ok(_) => SizeError::Spelling(bare.to_owned()),
        Err(_) => SizeError::Malformed,
    }
}

/// `512M`, `1536M`, `1G`: the largest unit that divides it, so that it reads back as the same number.
pub fn render_size(bytes: u64) -> String {
    SUFFIXES
        .iter()
        .filter(|(suffix, _)| *suffix != "B")
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor))
        .map_or_else(|| bytes.to_string(), |(suffix, factor)| format!("{}{suffix}", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_read_as_systemd_reads_them() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("512M", 512 << 20),
            ("512 M", 512 << 20),
            (" 512M ", 512 << 20),
            ("+1K", 1024),
            ("1.5G", 3 << 29),
            ("10.M", 10 << 20),
            ("0.5K", 512),
            ("1.5", 1),
            ("1G 512M", (1 << 30) + (512 << 20)),
            ("1G512M", (1 << 30) + (512 << 20)),
            ("1E", 1 << 60),
            ("15E", 15 << 60),
            ("1.000000000000000000000000000001K", 1024),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        let spelled = |text: &str| SizeError::Spelling(text.to_owned());
        let cases = [
            ("", SizeError::Empty),
            ("  ", SizeError::Empty),
            ("M", SizeError::Malformed),
            ("lots", SizeError::Malformed),
            ("5 5", SizeError::Malformed),
            ("1M 1G", SizeError::Malformed),
            ("1M 1M", SizeError::Malformed),
            ("0x10", SizeError::Malformed),
            ("1.5.5M", SizeError::Malformed),
            ("512m", spelled("512M")),
            ("512MB", spelled("512M")),
            ("512 MiB", spelled("512 M")),
            ("2gib", spelled("2G")),
            ("-1", SizeError::Negative),
            ("1G -1M", SizeError::Negative),
            ("16E", SizeError::TooLarge),
            ("18446744073709551616", SizeError::TooLarge),
            ("15.9999999E 15.9999999P 18446744073709551615", SizeError::TooLarge),
        ];
        for (text, error) in cases {
            assert_eq!(parse_size(text), Err(error), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_the_same(bytes: u64, shift in 0u32..60) {
            for bytes in [bytes, bytes << shift, bytes >> shift] {
                prop_assert_eq!(parse_size(&render_size(bytes)), Ok(bytes));
            }
        }

        #[test]
        fn any_text_is_survived(text in "[-+0-9. KMGTPEBiIbkm\\PC]{0,24}") {
            let _ = parse_size(&text);
        }

        #[test]
        fn a_fraction_never_reaches_the_next_whole(whole in 0u64..1000, fraction in "[0-9]{1,30}") {
            let bytes = parse_size(&format!("{whole}.{fraction}M")).unwrap();
            prop_assert!((whole << 20..(whole + 1) << 20).contains(&bytes));
        }
    }
}
