//! Percentages, in hundredths of a percent.

use thiserror::Error;

/// Hundredths of a percent in a whole.
const WHOLE: u32 = 10_000;

/// Why a text is not a percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PercentageError {
    /// Not digits, at most two of them behind a point, and a sign.
    #[error("not a percentage")]
    Malformed,
    /// More than the whole.
    #[error("more than 100%")]
    TooMuch,
}

impl PercentageError {
    /// What to write instead.
    pub const fn remedy(self) -> &'static str {
        "\"0%\" to \"100%\", with at most two decimals, such as \"12.5%\""
    }
}

/// A share as `parse_permyriad()` of systemd's `percent-util.c` reads it: `80%`, `12.5%`, `1.25%`, `125‰`, `12.5‰` or
/// `1250‱`, at most 100 %; none if the text does not end like one.
pub fn parse_permyriad(text: &str) -> Option<Result<u32, PercentageError>> {
    let (digits, decimals) = if let Some(digits) = text.strip_suffix('%') {
        (digits, 2)
    } else if let Some(digits) = text.strip_suffix('‰') {
        (digits, 1)
    } else if let Some(digits) = text.strip_suffix('‱') {
        (digits, 0)
    } else {
        return None;
    };
    Some(parse_scaled(digits, decimals))
}

/// Digits with at most `decimals` more behind a point, as a whole number of the last decimal's unit.
fn parse_scaled(text: &str, decimals: usize) -> Result<u32, PercentageError> {
    let (whole, fraction) = match text.split_once('.') {
        None => (text, ""),
        Some((_, "")) => return Err(PercentageError::Malformed),
        Some(parts) => parts,
    };
    let only_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || fraction.len() > decimals || !only_digits(whole) || !only_digits(fraction) {
        return Err(PercentageError::Malformed);
    }
    let padding = std::iter::repeat_n('0', decimals - fraction.len());
    let all: String = whole.chars().chain(fraction.chars()).chain(padding).collect();
    match all.parse::<u32>() {
        Ok(share) if share <= WHOLE => Ok(share),
        Ok(_) | Err(_) => Err(PercentageError::TooMuch),
    }
}

/// `80%`, `12.5%`: the shortest text that [`parse_permyriad`] reads as the same share.
pub fn render_permyriad(share: u32) -> String {
    let (whole, rest) = (share / 100, share % 100);
    match (rest / 10, rest % 10) {
        (0, 0) => format!("{whole}%"),
        (tenths, 0) => format!("{whole}.{tenths}%"),
        (tenths, hundredths) => format!("{whole}.{tenths}{hundredths}%"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn percentages_have_at_most_two_decimals_and_end_at_a_hundred() {
        let cases = [
            ("80%", Some(Ok(8000))),
            ("12.5%", Some(Ok(1250))),
            ("0.01%", Some(Ok(1))),
            ("100%", Some(Ok(10_000))),
            ("100.00%", Some(Ok(10_000))),
            ("125‰", Some(Ok(1250))),
            ("12.5‰", Some(Ok(125))),
            ("1250‱", Some(Ok(1250))),
            ("100.01%", Some(Err(PercentageError::TooMuch))),
            ("99999999999999999999%", Some(Err(PercentageError::TooMuch))),
            ("1.255%", Some(Err(PercentageError::Malformed))),
            ("1.%", Some(Err(PercentageError::Malformed))),
            (".5%", Some(Err(PercentageError::Malformed))),
            ("-1%", Some(Err(PercentageError::Malformed))),
            ("+1%", Some(Err(PercentageError::Malformed))),
            ("%", Some(Err(PercentageError::Malformed))),
            ("5 %", Some(Err(PercentageError::Malformed))),
            ("80", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_permyriad(text), expected, "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_rendered_reads_the_same(share in 0u32..=WHOLE) {
            prop_assert_eq!(parse_permyriad(&render_permyriad(share)), Some(Ok(share)));
        }

        #[test]
        fn any_text_is_survived(text in "\\PC{0,12}%?") {
            let _ = parse_permyriad(&text);
        }
    }
}
