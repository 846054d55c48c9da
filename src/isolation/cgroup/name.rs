//! A worker's group name: `paddock-<app>-<slot>-<unique>`.
//!
//! Everything in the app and the unique part but letters, digits, `_` and `.` is written `\xNN`, so that a hyphen always
//! separates: the groups of app `my` can never be taken for those of `my-shop`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::FenceName;
use super::hierarchy::Home;

const PREFIX: &str = "paddock";

/// The directory's name.
pub(super) fn of(name: &FenceName) -> String {
    format!("{PREFIX}-{}-{}-{}", escape(&name.app), name.slot, escape(&name.unique))
}

/// Whose directory it is; none if it is not ours.
pub(super) fn parse(directory: &str) -> Option<FenceName> {
    let mut parts = directory.split('-');
    let (prefix, app, slot, unique) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if prefix != PREFIX || parts.next().is_some() {
        return None;
    }
    let name = FenceName { app: unescape(app)?, slot: slot.parse().ok()?, unique: unescape(unique)? };
    // Only what this manager would have written itself: no second spelling of the same name.
    (of(&name) == directory).then_some(name)
}

/// The names of an app's groups below these homes, whoever made them.
pub(super) fn listed<'a>(homes: impl Iterator<Item = &'a Home>, app: &str) -> Vec<FenceName> {
    let mut found = BTreeMap::new();
    for home in homes {
        for entry in std::fs::read_dir(&home.dir).into_iter().flatten().flatten() {
            let directory = entry.file_name().to_string_lossy().into_owned();
            if let Some(name) = parse(&directory).filter(|name| name.app == app) {
                found.insert(directory, name);
            }
        }
    }
    found.into_values().collect()
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
