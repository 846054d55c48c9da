//! The app's runtime directory and its lock: where it is, who may have made it, who holds it.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use paddock::control::directory::{DirectoryError, LockError, RuntimeDirectory, Surroundings};

/// A fresh directory that nobody else uses.
fn scratch() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("directory-{}-{number}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

#[test]
fn the_lock_keeps_a_second_manager_out_and_names_the_first() {
    let path = scratch().join("shop");
    let first = RuntimeDirectory::create(&path).unwrap();
    let second = RuntimeDirectory::create(&path).unwrap();
    let lock = first.lock("shop").unwrap();
    let error = second.lock("shop").unwrap_err();
    let message = error.to_string();
    let LockError::Held { pid, app, .. } = error else { panic!("{error:?}") };
    assert_eq!((pid, app.as_deref()), (Some(std::process::id()), Some("shop")));
    assert!(message.contains(&format!("pid {}", std::process::id())), "{message}");
    drop(lock);
    let lock = second.lock("shop-with-a-longer-name").unwrap();
    // Somebody who removes the file locks nobody in: the next one makes a new file.
    std::fs::remove_file(path.join("lock")).unwrap();
    drop(lock);
    second.lock("shop").unwrap();
    assert_eq!(std::fs::read_to_string(path.join("lock")).unwrap(), format!("{} shop\n", std::process::id()));
}

#[test]
fn a_directory_that_others_control_is_refused() {
    let scratch = scratch();
    let wrong = |path: &Path, words: &str| {
        let error = RuntimeDirectory::create(path).unwrap_err();
        assert!(matches!(&error, DirectoryError::Wrong { reason, .. } if reason.contains(words)), "{error}");
    };
    let real = scratch.join("real");
    std::fs::create_dir(&real).unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(&real, scratch.join("link")).unwrap();
    wrong(&scratch.join("link"), "symbolic link");
    assert_eq!(std::fs::metadata(&real).unwrap().permissions().mode() & 0o7777, 0o755, "touched through a link");
    std::fs::write(scratch.join("file"), "").unwrap();
    wrong(&scratch.join("file"), "no directory");
    let foreign = if rustix::process::geteuid().is_root() {
        let foreign = scratch.join("foreign");
        std::fs::create_dir(&foreign).unwrap();
        std::os::unix::fs::chown(&foreign, Some(12_345), None).unwrap();
        foreign
    } else {
        PathBuf::from("/usr/bin")
    };
    wrong(&foreign, "another user");
    let open = scratch.join("open");
    std::fs::create_dir(&open).unwrap();
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
    wrong(&open.join("shop"), "everybody");
    // Sticky, as /tmp is: only the owner renames.
    std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o1777)).unwrap();
    RuntimeDirectory::create(&open.join("shop")).unwrap();
    wrong(Path::new("/"), "own directory");
    // A link in place of the lock is not followed.
    let mine = RuntimeDirectory::create(&scratch.join("mine")).unwrap();
    std::os::unix::fs::symlink(scratch.join("file"), mine.path().join("lock")).unwrap();
    assert!(matches!(mine.lock("shop"), Err(LockError::Io { .. })));
}

#[test]
fn a_directory_that_everybody_may_write_is_closed() {
    let path = scratch().join("missing").join("shop");
    std::fs::create_dir_all(&path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
    RuntimeDirectory::create(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o711);
}

#[test]
fn the_directory_is_where_it_says() {
    let s = |flag: Option<&str>, environment: Option<&str>, xdg: Option<&str>, root| Surroundings {
        flag: flag.map(PathBuf::from),
        runtime_directory: environment.map(Into::into),
        xdg_runtime_directory: xdg.map(Into::into),
        root,
    };
    let manager = |s: &Surroundings| s.of_manager("shop").unwrap().display().to_string();
    let client = |s: &Surroundings| -> Vec<String> {
        s.of_client("shop").unwrap().iter().map(|path| path.display().to_string()).collect()
    };
    let everything = s(Some("/a/b"), Some("/c"), Some("/d"), true);
    assert_eq!(manager(&everything), "/a/b");
    assert_eq!(client(&everything), ["/a/b"]);
    assert_eq!(manager(&s(None, Some("/c"), Some("/d"), true)), "/c");
    assert_eq!(manager(&s(None, Some("/run/x:/run/paddock/shop"), None, true)), "/run/paddock/shop");
    assert_eq!(manager(&s(None, Some("relative"), Some("/d"), false)), "/d/paddock/shop");
    assert_eq!(manager(&s(None, None, Some("/d"), true)), "/run/paddock/shop");
    assert_eq!(manager(&s(None, None, Some("/d"), false)), "/d/paddock/shop");
    assert_eq!(client(&s(None, None, Some("/d"), true)), ["/run/paddock/shop"]);
    assert_eq!(client(&s(None, None, Some("/d"), false)), ["/d/paddock/shop", "/run/paddock/shop"]);
    assert_eq!(client(&s(None, None, None, false)), ["/run/paddock/shop"]);
    for nowhere in [s(None, None, None, false), s(None, None, Some("relative"), false)] {
        assert!(matches!(nowhere.of_manager("shop"), Err(DirectoryError::Nowhere)));
    }
    for name in ["", "..", ".x", "a/b", "-x", "é", &"x".repeat(49)] {
        assert!(matches!(everything.of_manager(name), Err(DirectoryError::Name(_))), "{name}");
        assert!(matches!(everything.of_client(name), Err(DirectoryError::Name(_))), "{name}");
    }
    everything.of_manager(&"x".repeat(48)).unwrap();
}

#[test]
fn all_apps_are_found_where_they_may_be() {
    let base = scratch();
    for name in ["b", "a", ".hidden", "not an app"] {
        std::fs::create_dir_all(base.join("paddock").join(name)).unwrap();
    }
    let elsewhere = RuntimeDirectory::create(&base.join("elsewhere")).unwrap();
    let mut surroundings = Surroundings {
        runtime_directory: Some(elsewhere.path().into()),
        xdg_runtime_directory: Some(base.clone().into()),
        ..Default::default()
    };
    let found = |s: &Surroundings| -> Vec<PathBuf> {
        let all = s.all().unwrap().into_iter();
        all.filter_map(|path| path.strip_prefix(&base).ok().map(Path::to_path_buf)).collect()
    };
    assert_eq!(found(&surroundings), [PathBuf::from("paddock/a"), PathBuf::from("paddock/b")]);
    std::fs::write(elsewhere.path().join("control"), "").unwrap();
    assert_eq!(
        found(&surroundings),
        [PathBuf::from("elsewhere"), PathBuf::from("paddock/a"), PathBuf::from("paddock/b")]
    );
    surroundings.flag = Some(base.join("paddock/b"));
    assert_eq!(found(&surroundings), [PathBuf::from("paddock/b")]);
}
