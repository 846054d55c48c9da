//! Every option of uWSGI's: its name, what it takes, and whether it would start the master.

use std::collections::BTreeMap;

/// What an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Takes {
    Nothing,
    Value,
    /// A value or nothing.
    Either,
}

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) takes: Takes,
    /// Whether uWSGI starts its master for it (UWSGI_OPT_MASTER and its like in its table of options).
    pub(super) master: bool,
    /// Its letter.
    pub(super) letter: Option<char>,
}

/// uWSGI 2.0.31 and its plugins: a name, `n`, `r` or `o` (getopt's three kinds), `m` for the master, a letter.
const LIST: &str = include_str!("options.txt");

/// All of them by name.
pub(super) fn all() -> BTreeMap<&'static str, Known> {
    LIST.lines()
        .filter_map(|line| {
            let mut words = line.split(' ');
            let (name, kind) = (words.next()?, words.next()?);
            let takes = match kind.chars().next()? {
                'n' => Takes::Nothing,
                'r' => Takes::Value,
                _ => Takes::Either,
            };
            let letter = words.next().and_then(|word| word.chars().next());
            Some((name, Known { takes, master: kind.contains('m'), letter }))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_whole() {
        let all = all();
        assert_eq!(all.len(), LIST.lines().count());
        assert_eq!(all.len(), 1254);
        assert_eq!(all["processes"], Known { takes: Takes::Value, master: false, letter: Some('p') });
        assert_eq!(all["cheaper"], Known { takes: Takes::Value, master: true, letter: None });
        assert_eq!(all["master"].takes, Takes::Nothing);
    }
}
