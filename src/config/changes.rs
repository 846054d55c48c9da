//! What differs between two configurations.

use super::key::Key;
use super::model::Config;
use super::render;

/// Keys whose value differs, in the order of the documentation.
pub fn changed(old: &Config, new: &Config) -> Vec<Key> {
    let differs = |key: &Key| render::value(*key, old) != render::value(*key, new);
    Key::ALL.iter().copied().filter(differs).collect()
}

/// Changed keys that a reload cannot follow: the name, the fence, the sockets and the control socket stay what they
/// are until the manager is started again.
pub fn needing_restart(old: &Config, new: &Config) -> Vec<Key> {
    let mut keys = changed(old, new);
    keys.retain(|key| key.spec().fixed);
    keys
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::load_flags;

    fn config(flags: &[(Key, &[&str])]) -> Config {
        let mut all: Vec<(Key, &[&str])> = vec![(Key::Name, &["shop"]), (Key::Command, &["a"])];
        all.extend(flags);
        load_flags(&all).unwrap().config
    }

    #[test]
    fn a_reload_follows_everything_but_name_fence_sockets_and_control() {
        let old = config(&[]);
        assert_eq!(needing_restart(&old, &config(&[(Key::Workers, &["3"]), (Key::MaxRequests, &["9"])])), []);
        let new = config(&[
            (Key::Bind, &["127.0.0.1:1"]),
            (Key::ControlGroup, &["adm"]),
            (Key::Isolation, &["none"]),
            (Key::Name, &["other"]),
            (Key::Surge, &["0"]),
        ]);
        let keys = [Key::Name, Key::Isolation, Key::Bind, Key::Names, Key::ControlGroup];
        assert_eq!(needing_restart(&old, &new), keys);
        assert_eq!(changed(&old, &old), []);
    }
}
