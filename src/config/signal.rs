//! Signals by name and number, signal(7).

use nix::sys::signal::Signal as Named;

use super::model::Signal;

/// SIGKILL.
pub const KILL: Signal = Signal(9);
/// SIGSTOP.
pub const STOP: Signal = Signal(19);

/// The first real-time signal that the C library leaves to programs, and the last.
const REAL_TIME: (i32, i32) = (34, 64);

/// The signal of a name, with or without `SIG` (`TERM`, `SIGTERM`, `RTMIN+3`), or of a number, 1 to 64.
pub fn parse(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=REAL_TIME.1).contains(&number).then_some(Signal(number));
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Ok(named) = format!("SIG{name}").parse::<Named>() {
        return Some(Signal(named as i32));
    }
    let offset = |rest: &str, sign: char| match rest.strip_prefix(sign) {
        Some(digits) => digits.parse::<u8>().ok().map(i32::from),
        None => rest.is_empty().then_some(0),
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        REAL_TIME.0 + offset(rest, '+')?
    } else if let Some(rest) = name.strip_prefix("RTMAX") {
        REAL_TIME.1 - offset(rest, '-')?
    } else {
        return None;
    };
    (REAL_TIME.0..=REAL_TIME.1).contains(&number).then_some(Signal(number))
}

/// Its name without `SIG`, or its number.
pub fn name(signal: Signal) -> String {
    if let Ok(named) = Named::try_from(signal.0) {
        let name = named.as_str();
        return name.strip_prefix("SIG").unwrap_or(name).to_owned();
    }
    if (REAL_TIME.0..=REAL_TIME.1).contains(&signal.0) {
        return format!("RTMIN+{}", signal.0 - REAL_TIME.0);
    }
    signal.0.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_signal_7() {
        for (number, expected) in [(1, "HUP"), (6, "ABRT"), (9, "KILL"), (15, "TERM"), (34, "RTMIN+0")] {
            assert_eq!(name(Signal(number)), expected);
        }
    }

    #[test]
    fn every_name_reads_as_its_signal() {
        for number in (1..=31).chain(34..=64) {
            let signal = Signal(number);
            assert_eq!(parse(&name(signal)), Some(signal));
            assert_eq!(parse(&format!("SIG{}", name(signal))), Some(signal));
            assert_eq!(parse(&format!("sig{}", name(signal).to_lowercase())), Some(signal));
            assert_eq!(parse(&number.to_string()), Some(signal));
        }
        assert_eq!(parse("RTMAX-30"), Some(Signal(34)));
    }

    #[test]
    fn what_is_no_signal_is_none() {
        for text in ["", "0", "65", "-1", "SIG", "TERMINATE", "RTMIN+31", "RTMAX-31", "RTMIN3", "SIGSIGTERM"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
