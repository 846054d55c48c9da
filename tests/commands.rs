//! The commands that talk to a manager: what they print, where, and their exit codes.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

#[path = "control/manager.rs"]
mod manager;

use std::path::Path;
use std::process::{Command, Output};

use paddock::control::status::StatusReport;
use paddock::control::{Call, ControlReply, ControlRequest};
use snapbox::{assert_data_eq, file};

use manager::{Manager, echo, report, scratch};

/// The program, with nothing in its environment that could lead it elsewhere.
fn paddock(arguments: &[&str], directory: &Path) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paddock"))
        .args(arguments)
        .arg("--runtime-directory")
        .arg(directory)
        .env_clear()
        .output()
        .unwrap()
}

/// Exit code, standard output, standard error.
fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().expect("an exit code"), text(&output.stdout), text(&output.stderr))
}

fn run(arguments: &[&str], directory: &Path) -> (i32, String, String) {
    said(&paddock(arguments, directory))
}

#[test]
fn status_is_a_table_or_exactly_the_report() {
    let mut manager = Manager::start(echo);
    let (code, table, errors) = run(&["status", "shop"], &manager.path);
    assert_eq!((code, errors.as_str()), (0, ""));
    assert!(table.starts_with("shop: ") && table.contains("SLOT"), "{table}");
    assert!(!table.contains('\u{1b}'), "colours without a terminal");
    assert_eq!(run(&["status"], &manager.path), (0, table, String::new()));

    let (code, json, _) = run(&["status", "shop", "--json"], &manager.path);
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<StatusReport>(&json).unwrap(), report());
    assert_data_eq!(json, file!["golden/status.json"]);
    let (_, json, _) = run(&["status", "--json"], &manager.path);
    assert_eq!(serde_json::from_str::<Vec<StatusReport>>(&json).unwrap(), [report()]);
    manager.finish();
}

#[test]
fn ready_is_an_exit_code() {
    for (wanted, code) in [(1, 0), (2, 1)] {
        let manager = Manager::start(move |call: Call| {
            let report = StatusReport { workers_wanted: wanted, ..report() };
            let _ = call.reply.send(ControlReply::Status(Box::new(report)));
        });
        assert_eq!(run(&["status", "--ready"], &manager.path).0, code);
        assert_eq!(run(&["status", "shop", "--ready"], &manager.path).0, code);
        assert_eq!(run(&["status", "shop"], &manager.path).0, 0);
    }
}

#[test]
fn requests_arrive_and_the_answer_is_printed() {
    let manager = Manager::start(echo);
    for (arguments, request) in [
        (&["recycle", "shop", "3"][..], ControlRequest::Recycle { slot: 3 }),
        (&["scale", "shop", "4"], ControlRequest::Scale { workers: 4 }),
        (&["signal", "shop", "SIGUSR1"], signal(None)),
        (&["signal", "shop", "USR1", "2"], signal(Some(2))),
        (&["signal", "shop", "10", "2"], signal(Some(2))),
        (&["reload", "shop"], ControlRequest::Reload { wait: true }),
        (&["reload", "shop", "--no-wait"], ControlRequest::Reload { wait: false }),
    ] {
        assert_eq!(run(arguments, &manager.path), (0, format!("{request:?}\n"), String::new()), "{arguments:?}");
    }
    assert_eq!(run(&["scale", "shop", "0"], &manager.path).0, 2);
    assert_eq!(run(&["signal", "shop", "NOPE"], &manager.path).0, 2);
}

fn signal(slot: Option<u32>) -> ControlRequest {
    ControlRequest::Signal { signal: paddock::config::model::Signal(10), slot }
}

#[test]
fn a_reload_that_is_undone_says_why_with_the_workers_last_words() {
    let (held, holding) = std::sync::mpsc::channel();
    let manager = Manager::start(move |call| held.send(call).unwrap());
    let path = manager.path.clone();
    let client = std::thread::spawn(move || run(&["reload", "shop"], &path));
    let call = holding.recv_timeout(manager::BOUND).unwrap();
    // Steps are for terminals.
    manager.progress.send("slot 0 is starting".to_owned()).unwrap();
    call.reply
        .send(ControlReply::Failed {
            reason: "reload undone: the canary did not get ready".to_owned(),
            last_words: vec!["Traceback:".to_owned(), "\u{1b}[2J\u{9b}ImportError".to_owned()],
        })
        .unwrap();
    let (code, output, errors) = client.join().unwrap();
    assert_eq!((code, output.as_str()), (1, ""));
    assert_eq!(
        errors,
        "paddock: reload undone: the canary did not get ready\n\
         the worker's last words:\n  Traceback:\n  \\x1b[2J\\x9bImportError\n"
    );
}

#[test]
fn a_wrong_configuration_file_is_shown_as_it_was_diagnosed() {
    let manager = Manager::start(|call| {
        let reason = "error: workers: no number\n --> shop.toml:2:11\n".to_owned();
        let _ = call.reply.send(ControlReply::Invalid { reason });
    });
    let (code, output, errors) = run(&["reload", "shop"], &manager.path);
    assert_eq!((code, output.as_str()), (2, ""));
    assert_eq!(errors, "error: workers: no number\n --> shop.toml:2:11\n");
}

#[test]
fn an_app_that_does_not_run_is_exit_code_3() {
    let nowhere = scratch();
    for arguments in [
        &["status", "shop"][..],
        &["status"],
        &["reload", "shop"],
        &["recycle", "shop", "0"],
        &["scale", "shop", "2"],
        &["signal", "shop", "HUP"],
        &["stop", "shop"],
    ] {
        let (code, output, errors) = run(arguments, &nowhere);
        assert_eq!((code, output.as_str()), (3, ""), "{arguments:?}");
        assert!(errors.starts_with("paddock: no "), "{errors}");
    }
    let (code, _, errors) = run(&["reap", "shop"], &nowhere.join("shop"));
    assert_eq!(code, 3, "{errors}");
    assert!(!nowhere.join("shop").exists(), "reap made the directory that it looked for");
    let manager = Manager::start(echo);
    let (code, _, errors) = run(&["stop", "other"], &manager.path);
    assert_eq!(code, 3);
    assert!(errors.contains("shop"), "{errors}");
    assert_eq!(run(&["status", "../shop"], &manager.path).0, 2);
}

#[test]
fn reap_leaves_a_living_manager_alone() {
    let manager = Manager::start(|call| assert_eq!(call.request, ControlRequest::Status));
    let (code, _, errors) = run(&["reap", "shop"], &manager.path);
    assert_eq!(code, 1);
    assert!(errors.contains(&format!("pid {}", std::process::id())) && errors.contains("stop"), "{errors}");
}

#[test]
fn reap_removes_what_a_dead_manager_left_in_the_directory() {
    let directory = scratch().join("shop");
    std::fs::create_dir(&directory).unwrap();
    let left = ["control", "3.notify", "3.pressure", "3.output"];
    for name in left.iter().chain(&["keep"]) {
        std::fs::write(directory.join(name), "").unwrap();
    }
    let (code, output, errors) = run(&["reap", "shop"], &directory);
    assert_eq!((code, output.as_str(), errors.as_str()), (0, "shop has left nothing\n", ""));
    assert!(directory.join("keep").exists());
    assert!(left.iter().all(|name| !directory.join(name).exists()));
}

#[test]
fn stop_waits_for_the_managers_process() {
    // A manager of its own, because this process does not end.
    let directory = scratch().join("shop");
    let mut manager = Command::new(env!("CARGO_BIN_EXE_paddock"))
        .args([
            "run",
            "--name",
            "shop",
            "--isolation",
            "none",
            "--ready",
            "settle",
            "--timeout-settle",
            "10ms",
            "--runtime-directory",
        ])
        .arg(&directory)
        .args(["--", "sh", "-c", "trap 'sleep 0.5; exit 0' TERM; sleep 100 & wait"])
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .stdin(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut tries = 0;
    while run(&["status", "shop", "--ready"], &directory).0 != 0 {
        tries += 1;
        assert!(tries < 300 && manager.try_wait().unwrap().is_none(), "the app does not get ready");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    assert_eq!(run(&["stop", "shop"], &directory), (0, "stopped\n".to_owned(), String::new()));
    let ended = manager.try_wait().unwrap();
    assert_eq!(ended.and_then(|status| status.code()), Some(0), "stop returned before the manager's end");
}
