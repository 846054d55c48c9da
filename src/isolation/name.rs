//! A fence's name: `paddock-<app>-<slot>-<unique>`.
//!
//! Everything in the app and the unique part but letters, digits, `_` and `.` is written `\xNN`, as systemd itself
//! escapes (`systemd.unit(5)`), so that a hyphen always separates: the fences of app `my` can never be taken for those
//! of `my-shop`, by us or by a pattern.

use std::fmt::Write as _;

use super::FenceName;

const PREFIX: &str = "paddock";

/// The name in full.
pub(crate) fn of(name: &FenceName) -> String {
    format!("{}-{}-{}", of_app(&name.app), name.slot, escape(&name.unique))
}

/// What every fence of an app begins with, before a hyphen.
pub(super) fn of_app(app: &str) -> String {
    format!("{PREFIX}-{}", escape(app))
}

/// Whose fence it is; none if it is not ours.
pub(crate) fn parse(text: &str) -> Option<FenceName> {
    let mut parts = text.split('-');
    let (prefix, app, slot, unique) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if prefix != PREFIX || parts.next().is_some() {
        return None;
    }
    let name = FenceName { app: unescape(app)?, slot: slot.parse().ok()?, unique: unescape(unique)? };
    // Only what this manager would have written itself: no second spelling of the same name.
    (of(&name) == text).then_some(name)
}

fn escape(part: &str) -> String {
    let mut escaped = String::with_capacity(part.len());
    for byte in part.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.') {
            escaped.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(escaped, "\\x{byte:02x}");
        }
    }
    escaped
}

fn unescape(part: &str) -> Option<String> {
    let mut pieces = part.split("\\x");
    let mut plain = pieces.next()?.as_bytes().to_vec();
    for piece in pieces {
        let (digits, rest) = piece.split_at_checked(2)?;
        plain.push(u8::from_str_radix(digits, 16).ok()?);
        plain.extend_from_slice(rest.as_bytes());
    }
    String::from_utf8(plain).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(app: &str, unique: &str) -> FenceName {
        FenceName { app: app.to_owned(), slot: 3, unique: unique.to_owned() }
    }

    #[test]
    fn b40_apps_whose_names_begin_alike_stay_apart() {
        assert_eq!(of(&name("my", "1f")), "paddock-my-3-1f");
        assert_eq!(of(&name("my-shop", "1f")), "paddock-my\\x2dshop-3-1f");
        assert_eq!(parse("paddock-my\\x2dshop-3-1f"), Some(name("my-shop", "1f")));
        assert_eq!(parse("paddock-my-shop-3-1f"), None);
    }

    #[test]
    fn only_our_own_spelling_is_read_back() {
        for app in ["a", "my-3-x", "a.b_c", "ö/..", ""] {
            let name = name(app, "0-1/2");
            assert_eq!(parse(&of(&name)), Some(name));
        }
        for stranger in [
            "manager",
            "paddock-a-x-1",
            "paddock-a-3",
            "paddock-\\x61-3-1",
            "paddock-a-03-1",
            "paddock-\\xg0-3-1",
            "paddock-\\x6-3-1",
            "paddock-a-3-1-2",
        ] {
            assert_eq!(parse(stranger), None, "{stranger}");
        }
    }
}
