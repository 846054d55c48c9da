//! Names of units: `paddock-<app>-<slot>-<unique>.scope` in `paddock-<app>.slice`.
//!
//! A hyphen always separates, so the pattern of app `my` never matches a unit of `my-shop`, and the slice of `my-shop`
//! is not inside the slice of `my`.

use super::super::{FenceName, name};

/// The slice of an app's workers.
pub(super) fn slice(app: &str) -> String {
    format!("{}.slice", name::of_app(app))
}

/// The scope of a worker; the second and later attempts for the same worker have names of their own.
pub(crate) fn scope(fence: &FenceName, attempt: u32) -> String {
    let again = if attempt == 0 { String::new() } else { format!(".{attempt}") };
    format!("{}{again}.scope", name::of(fence))
}

/// What matches the scopes of an app and of no other, as systemd reads patterns: `fnmatch(3)` with `FNM_NOESCAPE`.
pub(super) fn pattern(app: &str) -> String {
    format!("{}-*-*.scope", name::of_app(app))
}

/// Whose scope it is; none if it is not one of ours.
pub(crate) fn parse(unit: &str) -> Option<FenceName> {
    name::parse(unit.strip_suffix(".scope")?)
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
