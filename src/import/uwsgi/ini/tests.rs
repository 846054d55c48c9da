//! Reading: files are in memory, the machine is made up.

use proptest::prelude::*;

use super::*;

fn with<T>(files: &[(&str, &str)], variables: &[(&str, &str)], then: impl FnOnce(&World<'_>) -> T) -> T {
    let read = |path: &Path| {
        let found = files.iter().find(|(name, _)| Path::new("/srv/shop").join(name) == path);
        found.map(|(_, text)| (*text).to_owned()).ok_or_else(|| "no such file".to_owned())
    };
    let world = World {
        variables: variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        directory: PathBuf::from("/srv/shop"),
        cpus: 8,
        hostname: "web1".to_owned(),
        account: ["ann", "1000", "users", "100"].map(str::to_owned),
        read: &read,
    };
    then(&world)
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// `key=value` of each option that a file leads to.
fn read(text: &str) -> Vec<String> {
    read_all(&[("shop.ini", text)], &[], Some("shop.ini"), "").unwrap()
}

fn read_all(
    files: &[(&str, &str)],
    variables: &[(&str, &str)],
    file: Option<&str>,
    command: &str,
) -> Result<Vec<String>, String> {
    let resolved = with(files, variables, |world| resolve(file, &words(command), world));
    let options = resolved.map_err(|error| error.to_string())?.options;
    Ok(options.into_iter().map(|option| format!("{}={}", option.key, option.value)).collect())
}

#[test]
fn lines_are_keys_with_or_without_a_value_and_may_repeat() {
    let text = "; comment\n# comment\n[other]\nx = 1\n[uwsgi]\n master \r\nenv=A=1\nenv = B = 2\n\nsocket=a b\n[more]\ny = 2\n[uwsgi]\nlast = 1";
    assert_eq!(read(text), ["master=", "env=A=1", "env=B = 2", "socket=a b", "last=1"]);
}

#[test]
fn a_section_can_be_asked_for_and_must_be_there() {
    let files = [("shop.ini", "[uwsgi]\na = 1\n[dev]\nini = :uwsgi\nb = %x %s %n %e %c %0")];
    let read = |name: &str| read_all(&files, &[], Some(name), "");
    assert_eq!(read("shop.ini:dev").unwrap(), ["a=1", "b=dev shop.ini shop ini shop srv"]);
    assert_eq!(read("shop.ini:none").unwrap_err(), "shop.ini has no section [none]");
    assert_eq!(read("other.ini").unwrap_err(), "other.ini: no such file");
}

#[test]
fn variables_files_and_placeholders_are_replaced_in_that_order() {
    let files = [
        (
            "shop.ini",
            "[uwsgi]\nbase = /srv\nchdir = %(base)/%(app)\napp = $(APP)\nkey = @(secret)\nunset = $(NOTHING)\nagain = %(chdir)\n\
             magic = %d%%k=%k %U %h\nnone = %(nothing)",
        ),
        ("secret", "%(base)!\n"),
    ];
    assert_eq!(
        read_all(&files, &[("APP", "shop")], Some("shop.ini"), "").unwrap(),
        [
            "base=/srv",
            "chdir=/srv/shop",
            "app=shop",
            "key=/srv!",
            "unset=$(NOTHING)",
            "again=/srv/shop",
            "magic=/srv/shop/%k=8 ann web1",
            "none=%(nothing)",
        ]
    );
}

#[test]
fn placeholders_calculate_as_uwsgi_does() {
    let text = "[uwsgi]\na = 2\nb = 8\njoined = %(a b)\nsum = %(a b + 2)\nproduct = %(a * b)\nless = %(a - b)\nby = %(b / a)\nzero = %(b / zero0)\nup = %(a ++)\ndown = %(a --)";
    let last = read(text).split_off(2);
    assert_eq!(last, ["joined=28", "sum=30", "product=16", "less=-6", "by=4", "zero=0", "up=3", "down=1"]);
}

#[test]
fn a_circle_is_an_error_and_not_for_ever() {
    let wrong = |files: &[(&str, &str)]| read_all(files, &[], Some("shop.ini"), "").unwrap_err();
    let told = wrong(&[("shop.ini", "[uwsgi]\na = %(b)x\nb = %(a)")]);
    assert!(told.contains("leads back to itself"), "{told}");
    let told = wrong(&[("shop.ini", "[uwsgi]\nini = shop.ini")]);
    assert!(told.contains("too many files"), "{told}");
    let told = wrong(&[("shop.ini", "[uwsgi]\nif-not-env = A\nif-env = B")]);
    assert!(told.contains("logic inside logic"), "{told}");
}

#[test]
fn conditions_and_loops_are_followed() {
    let text = "[uwsgi]\nif-env = MODE\nmode = %(_)\nendif =\nif-not-env = OTHER\nother = none\nendif\nif-env = MODE=dev\ndev = 1\nendif\n\
                for = a b\nenv = X_%(_)=1\nendfor\nfor-times = 2\nn = %(_)\nendfor\nif-opt = n\nhas = %(_)\nendif\nif-hostname = web2\nh = 1\nendif\n\
                if-exists = /nonexistent\ne = 1\nendif\nend = 1\nafter = 1";
    assert_eq!(
        read_all(&[("shop.ini", text)], &[("MODE", "live")], Some("shop.ini"), "").unwrap(),
        ["mode=live", "other=none", "env=X_a=1", "env=X_b=1", "n=1", "n=2", "has=1", "after=1"]
    );
}

#[test]
fn what_is_not_followed_is_told() {
    let text = "[uwsgi]\nif-plugin = x\na = 1\nendif\ninclude = more.xml\nkey = @(http://example.org/key)\nb = 1";
    let resolved = with(&[("shop.ini", text)], &[], |world| resolve(Some("shop.ini"), &[], world)).unwrap_or_default();
    let ignored: Vec<&str> = resolved.ignored.iter().map(|(what, _)| what.as_str()).collect();
    assert_eq!(ignored, ["if-plugin = x", "include = more.xml", "@(http://example.org/key)"]);
    let keys: Vec<&str> = resolved.options.iter().map(|option| option.key.as_str()).collect();
    assert_eq!(keys, ["include", "key", "b"]);
}

#[test]
fn the_command_line_is_read_as_getopt_reads_it() {
    let read = |command: &str| read_all(&[("shop.ini", "[uwsgi]\na = 1")], &[], None, command);
    assert_eq!(
        read("-M -p4 -p 5 -s :3031 --http-socket=:80 --module shop --lazy-ap shop.ini").unwrap(),
        [
            "master=",
            "processes=4",
            "processes=5",
            "socket=:3031",
            "http-socket=:80",
            "module=shop",
            "lazy-apps=",
            "a=1"
        ]
    );
    assert_eq!(read("-Mm --set base=/srv").unwrap(), ["master=", "memory-report=", "base=/srv"]);
    for (command, expected) in [
        ("--no-such", "uWSGI has no option --no-such"),
        ("--module", "--module takes a value"),
        ("--master=1", "--master takes no value"),
        ("--log-4", "uWSGI has no option"),
        ("--http-s", "write it out"),
        ("-%", "uWSGI has no option -%"),
    ] {
        let wrong = read(command).map(|options| options.join(" "));
        assert!(
            command == "--log-4" || wrong.as_ref().is_err_and(|wrong| wrong.contains(expected)),
            "{command}: {wrong:?}"
        );
    }
}

#[test]
fn variables_of_the_environment_are_options() {
    let variables = [("UWSGI_MAX_REQUESTS", "5"), ("UWSGI_RELOADS", "1"), ("UWSGI_CUSTOM", "1"), ("HOME", "/")];
    assert_eq!(read_all(&[], &variables, None, "").unwrap(), ["max-requests=5"]);
}

proptest! {
    #[test]
    fn any_text_is_survived(text in "(\\[uwsgi\\]\n)?([a-z]{1,4} ?= ?[%$@(){}a-c +*/-]{0,12}\n|if-env = A\n|for = a b\n|endif\n|\\PC{0,20}\n){0,12}") {
        let _ = read_all(&[("shop.ini", &text)], &[("A", "1")], Some("shop.ini"), "");
    }
}
