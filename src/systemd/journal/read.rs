//! Reading back what a worker wrote.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::process::Command;

use crate::observe::escape::{single_line, single_line_bytes};

/// The most that `journalctl` may print for us.
const OUTPUT_MOST: u64 = 256 * 1024;
/// The longest line shown.
const LINE_MOST: usize = 1024;

/// The last `most` lines that processes of `unit` wrote, oldest first, control characters escaped; none if journald does
/// not answer within `bound`. journald is first made to take in what has been written before (`journalctl --sync`, for
/// root), so that the last words of a process that just died are among them.
pub async fn last_lines(unit: &str, most: u32, bound: Duration) -> Vec<String> {
    last_lines_by(Path::new("journalctl"), unit, most, bound).await
}

async fn last_lines_by(program: &Path, unit: &str, most: u32, bound: Duration) -> Vec<String> {
    tokio::time::timeout(bound, async {
        let _ = run(program, &["--sync"]).await;
        let unit = format!("_SYSTEMD_UNIT={unit}");
        let lines = format!("--lines={most}");
        let output = run(
            program,
            &["--quiet", "--no-pager", "--output=json", "--output-fields=MESSAGE", &lines, "_TRANSPORT=stdout", &unit],
        )
        .await;
        output.lines().filter_map(parse).collect()
    })
    .await
    .unwrap_or_default()
}

/// What it printed; empty if it could not be run. Killed when the caller gives up.
async fn run(program: &Path, arguments: &[&str]) -> String {
    let spawned = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn();
    let Ok(mut child) = spawned else {
        return String::new();
    };
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        let _ = stdout.take(OUTPUT_MOST).read_to_end(&mut output).await;
    }
    let _ = child.wait().await;
    String::from_utf8_lossy(&output).into_owned()
}

/// journald writes text as a string, anything else as an array of bytes, and null when it is too long to print.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "MESSAGE")]
    message: serde_json::Value,
}

pub(crate) fn parse(line: &str) -> Option<String> {
    let line: Line = serde_json::from_str(line).ok()?;
    if let Some(text) = line.message.as_str() {
        return Some(single_line(text, LINE_MOST));
    }
    let bytes: Vec<u8> = serde_json::from_value(line.message).ok()?;
    Some(single_line_bytes(&bytes, LINE_MOST))
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    #[test]
    fn text_and_bytes_are_read_and_made_safe() {
        assert_eq!(parse(r#"{"MESSAGE":"a\u001b[0m"}"#).unwrap(), "a\\x1b[0m");
        assert_eq!(parse(r#"{"MESSAGE":[97,255,10]}"#).unwrap(), "a\\xff\\n");
        for other in [r#"{"MESSAGE":null}"#, r#"{"MESSAGE":[300]}"#, r#"{"_PID":"1"}"#, "no json"] {
            assert_eq!(parse(other), None);
        }
    }

    fn script(test: &str, body: &str) -> PathBuf {
        let directory = std::env::temp_dir().join(format!("paddock-read-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("journalctl");
        std::fs::write(&path, body).unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[tokio::test]
    async fn lines_are_asked_for_by_unit_after_a_sync() {
        let program = script(
            "lines",
            r#"#!/bin/sh
if [ "$1" = --sync ]; then touch "$0.synced"; exit; fi
[ -e "$0.synced" ] || exit 1
printf '{"MESSAGE":"%s"}\n' "$@"
"#,
        );
        let lines = last_lines_by(&program, "a.scope", 7, Duration::from_mins(1)).await;
        assert!(lines.contains(&"_SYSTEMD_UNIT=a.scope".to_owned()), "{lines:?}");
        assert!(lines.contains(&"--lines=7".to_owned()), "{lines:?}");
        std::fs::remove_dir_all(program.parent().unwrap()).unwrap();
    }

    #[tokio::test]
    async fn a_journal_that_does_not_answer_is_not_waited_for() {
        let program = script("hangs", "#!/bin/sh\nexec sleep 600\n");
        let answer = last_lines_by(&program, "a.scope", 5, Duration::from_millis(100));
        let lines = tokio::time::timeout(Duration::from_mins(1), answer).await.unwrap();
        assert_eq!(lines, Vec::<String>::new());
        std::fs::remove_dir_all(program.parent().unwrap()).unwrap();
    }
}
