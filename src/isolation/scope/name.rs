//! Names of units: `paddock-<app>-<slot>-<unique>.scope` in `paddock-<app>.slice`.
//!
//! Everything in the app and the unique part but letters, digits, `_` and `.` is written `\xNN`, as systemd itself
//! escapes (`systemd.unit(5)`): a hyphen always separates, so the pattern of app `my` never matches a unit of `my-shop`, and
//! the slice of `my-shop` is not inside the slice of `my`.

use std::fmt::Write as _;

use super::super::FenceName;

/// The slice of an app's workers.
pub(super) fn slice(app: &str) -> String {
    format!("paddock-{}.slice", escape(app))
}

/// The scope of a worker; the second and later attempts for the same worker have names of their own.
pub(super) fn scope(name: &FenceName, attempt: u32) -> String {
    let again = if attempt == 0 { String::new() } else { format!(".{attempt}") };
    format!("paddock-{}-{}-{}{again}.scope", escape(&name.app), name.slot, escape(&name.unique))
}

/// What matches the scopes of an app and of no other, as systemd reads patterns: `fnmatch(3)` with `FNM_NOESCAPE`.
pub(super) fn pattern(app: &str) -> String {
    format!("paddock-{}-*-*.scope", escape(app))
}

/// Whose scope it is; none if it is not one of ours.
pub(super) fn parse(unit: &str) -> Option<FenceName> {
    let mut parts = unit.strip_suffix(".scope")?.split('-');
    let (prefix, app, slot, unique) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if prefix != "paddock" || parts.next().is_some() {
        return None;
    }
    let name = FenceName { app: unescape(app)?, slot: slot.parse().ok()?, unique: unescape(unique)? };
    // No second spelling of the same name.
    (scope(&name, 0) == unit).then_some(name)
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

    fn name(app: &str) -> FenceName {
        FenceName { app: app.to_owned(), slot: 12, unique: "1f_3".to_owned() }
    }

    #[test]
    fn b40_units_of_apps_whose_names_begin_alike_stay_apart() {
        assert_eq!(slice("my"), "paddock-my.slice");
        assert_eq!(slice("my-shop"), r"paddock-my\x2dshop.slice");
        assert_eq!(scope(&name("my"), 0), "paddock-my-12-1f_3.scope");
        assert_eq!(scope(&name("my-shop"), 2), r"paddock-my\x2dshop-12-1f_3.2.scope");
        assert_eq!(pattern("my-shop"), r"paddock-my\x2dshop-*-*.scope");
        assert_eq!(pattern("my"), "paddock-my-*-*.scope");
    }

    #[test]
    fn only_our_own_names_are_read_back() {
        for app in ["my", "my-shop", "a.b_c"] {
            assert_eq!(parse(&scope(&name(app), 0)), Some(name(app)));
        }
        assert_eq!(parse("paddock-my-12-1f_3.2.scope").unwrap().unique, "1f_3.2");
        for other in [
            "paddock-my-shop-12-1.scope",
            "paddock-my-12-1.service",
            "paddock-my-012-1.scope",
            r"paddock-\x6dy-1-1.scope",
            "paddock-my-1.scope",
            "run-r1.scope",
        ] {
            assert_eq!(parse(other), None, "{other}");
        }
    }
}
