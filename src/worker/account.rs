//! Who a worker runs as.

use std::ffi::CString;
use std::io;

use nix::unistd::{Gid, Group, Uid, User};
use serde::{Deserialize, Serialize};

/// A user, its groups, and what its environment says about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Account {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Supplementary groups, `gid` included.
    pub groups: Vec<u32>,
    /// `USER` and `LOGNAME`.
    pub name: String,
    /// `HOME`.
    pub home: String,
    /// `SHELL`.
    pub shell: String,
}

/// Why an account cannot be used; reads after the key's name.
#[derive(Debug, thiserror::Error)]
pub enum AccountError {
    /// No such user or group.
    #[error("there is no {kind} {name:?} on this machine")]
    Missing {
        /// `user` or `group`.
        kind: &'static str,
        /// As configured.
        name: String,
    },
    /// The account database could not be read.
    #[error("looking up {kind} {name:?}: {source}")]
    Lookup {
        /// `user` or `group`.
        kind: &'static str,
        /// As configured.
        name: String,
        /// What the C library said.
        source: io::Error,
    },
    /// Only root can become someone else.
    #[error(
        "user {name:?} is not who this manager runs as, and only root can become someone else; remove `user` or start paddock as root"
    )]
    NotRoot {
        /// As configured.
        name: String,
    },
}

/// Look up `user` and `group`; none when workers stay who the manager is.
///
/// # Errors
/// See [`AccountError`].
pub fn resolve(user: Option<&str>, group: Option<&str>) -> Result<Option<Account>, AccountError> {
    let Some(name) = user else { return Ok(None) };
    let found = find_user(name)?;
    let gid = group.map_or(Ok(found.gid), resolve_group)?;
    if !Uid::effective().is_root() {
        // Nothing to change, and nothing that could be changed.
        return if found.uid == Uid::effective() && gid == Gid::effective() {
            Ok(None)
        } else {
            Err(AccountError::NotRoot { name: name.to_owned() })
        };
    }
    let lookup = |source: io::Error| AccountError::Lookup { kind: "user", name: name.to_owned(), source };
    let c_name = CString::new(found.name.as_bytes()).map_err(|error| lookup(io::Error::other(error)))?;
    let groups = nix::unistd::getgrouplist(&c_name, gid).map_err(|errno| lookup(errno.into()))?;
    Ok(Some(Account {
        uid: found.uid.as_raw(),
        gid: gid.as_raw(),
        groups: groups.into_iter().map(Gid::as_raw).collect(),
        name: found.name,
        home: found.dir.to_string_lossy().into_owned(),
        shell: found.shell.to_string_lossy().into_owned(),
    }))
}

/// A user's id by name or number.
///
/// # Errors
/// See [`AccountError`].
pub fn resolve_user(name: &str) -> Result<Uid, AccountError> {
    if let Ok(number) = name.parse::<u32>() {
        return Ok(Uid::from_raw(number));
    }
    find_user(name).map(|user| user.uid)
}

/// A group's id by name or number.
///
/// # Errors
/// See [`AccountError`].
pub fn resolve_group(name: &str) -> Result<Gid, AccountError> {
    if let Ok(number) = name.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    let missing = || AccountError::Missing { kind: "group", name: name.to_owned() };
    Group::from_name(name)
        .map_err(|errno| AccountError::Lookup { kind: "group", name: name.to_owned(), source: errno.into() })?
        .map(|group| group.gid)
        .ok_or_else(missing)
}

fn find_user(name: &str) -> Result<User, AccountError> {
    let found = match name.parse::<u32>() {
        Ok(number) => User::from_uid(Uid::from_raw(number)),
        Err(_) => User::from_name(name),
    };
    found
        .map_err(|errno| AccountError::Lookup { kind: "user", name: name.to_owned(), source: errno.into() })?
        .ok_or_else(|| AccountError::Missing { kind: "user", name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_user_workers_stay_who_the_manager_is() {
        assert_eq!(resolve(None, None).unwrap(), None);
    }

    #[test]
    fn a_user_that_does_not_exist_is_named() {
        let error = resolve(Some("no-such-user-here"), None).unwrap_err();
        assert!(error.to_string().contains("no-such-user-here"), "{error}");
    }

    #[test]
    fn a_user_brings_its_own_group_and_home() {
        if !Uid::effective().is_root() {
            return;
        }
        let account = resolve(Some("nobody"), None).unwrap().unwrap();
        assert_eq!(account.name, "nobody");
        assert_ne!(account.uid, 0);
        assert!(account.groups.contains(&account.gid));
        let other = resolve(Some("nobody"), Some("root")).unwrap().unwrap();
        assert_eq!(other.gid, 0);
    }
}
