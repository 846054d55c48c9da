//! The command line: clap definitions, from which help, completions and manual pages are rendered.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::{PossibleValuesParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Error, FromArgMatches, Parser, Subcommand};

use crate::config::Flags;
use crate::config::key::{Fallback, Key, Shape, Spec};
use crate::config::model::Signal;
use crate::config::signal;

/// paddock's command line.
#[derive(Debug, Parser)]
#[command(
    name = "paddock",
    version,
    about = "Keep N workers of any server command alive, each in a fence of its own",
    long_about = "paddock takes listening sockets from systemd (or binds its own), starts N copies of any server command, \
gives each a cgroup scope with a memory limit of its own, and replaces a copy that was OOM-killed, has served its quota, \
grew too large, got too old or hangs: without losing a request. It is not in the request path.",
    after_help = ROOT_EXAMPLES,
    subcommand_required = true,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// Where the app's lock, control socket and state are, instead of the usual place.
    ///
    /// Otherwise $RUNTIME_DIRECTORY, else /run/paddock/APP for root and $XDG_RUNTIME_DIR/paddock/APP for others.
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub runtime_directory: Option<PathBuf>,

    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

const ROOT_EXAMPLES: &str = "\
Examples:
  paddock run --bind 127.0.0.1:8000 --workers 4 --memory-max 512M \\
      --ready settle -- uvicorn --fd 3 shop:app
  paddock check /etc/paddock/shop.toml
  paddock status
  paddock reload shop

Exit status: 0 done; 1 it failed, or the machine refused; 2 the text of the file or of the
command line is wrong; 3 no such app is running.";

const RUN_EXAMPLES: &str = "\
Examples:
  paddock run /etc/paddock/shop.toml
  paddock run shop.toml --workers 2 --log-format text
  paddock run --bind 127.0.0.1:8000 --workers 4 --memory-max 512M \\
      --max-requests 1000 --max-requests-jitter 5% \\
      --ready settle -- uvicorn --fd 3 shop:app
  paddock run shop.toml --workers 1 --reload-on-change src

A flag beats the file; the file beats the default. Sizes are bytes, or have a unit of 1024
steps (512M, 1.5G); times are seconds, or have units (500ms, 1min 30s), as in systemd.

Signals to the manager: HUP, a rolling reload; TERM, a graceful stop; INT, QUIT or a second
TERM, a fast stop; TTIN and TTOU, one worker more or less; USR1, status to the log; USR2,
replace the manager's binary in place.";

const CHECK_EXAMPLES: &str = "\
Examples:
  paddock check /etc/paddock/shop.toml
  paddock check --no-start queue.toml

The worker gets the environment, user, limits and isolation that `run` would give it, but
stand-in sockets, never the app's addresses: a live manager of the same app notices nothing.
For workers that take real tasks from a queue as soon as they start, use --no-start.";

const SHOW_CONFIG_EXAMPLES: &str = "\
Examples:
  paddock show-config /etc/paddock/shop.toml
  paddock show-config shop.toml --workers 8 > wider.toml

What is printed is a configuration file that says the same.";

const STATUS_EXAMPLES: &str = "\
Examples:
  paddock status
  paddock status shop --json
  paddock status shop --ready && echo all workers are ready";

const RELOAD_EXAMPLES: &str = "\
Examples:
  paddock reload shop || paddock status shop

The name, the isolation, [listen] and [control] cannot be changed by a reload: they need a
restart, and reload says so.";

const WORKER_EXAMPLES: &str = "\
Examples:
  paddock recycle shop 2";

const SCALE_EXAMPLES: &str = "\
Examples:
  paddock scale shop 8";

const SIGNAL_EXAMPLES: &str = "\
Examples:
  paddock signal shop USR1
  paddock signal shop ABRT 2";

const STOP_EXAMPLES: &str = "\
Examples:
  paddock stop shop
  paddock stop shop --fast";

const REAP_EXAMPLES: &str = "\
Examples:
  paddock reap shop

Workers outlive a manager that was killed, and the next one adopts them. Without a next one,
this stops them. The shipped units call it where no next one will come.";

const IMPORT_EXAMPLES: &str = "\
Examples:
  paddock import gunicorn --output shop.toml -- -w 4 -c gunicorn.conf.py shop.wsgi:application
  paddock import gunicorn --python /srv/shop/venv/bin/python gunicorn.conf.py
  paddock import uwsgi /etc/uwsgi/shop.ini > shop.toml
  paddock import celery --app shop --output mail.toml -- worker -Q mail -c 8
  paddock import gunicorn --list

Nothing is dropped silently: every setting becomes a key, stays with the server, or stands in
a comment that says why. A configuration that is a program (gunicorn.conf.py, Celery's) is run
by the Python that --python names, for a minute at most; the application of gunicorn is not
imported. GUNICORN_CMD_ARGS and UWSGI_* of the environment are read, too.";

const MAN_EXAMPLES: &str = "\
Examples:
  paddock man | man -l -
  paddock man run | man -l -
  paddock man paddock.toml | man -l -
  paddock man --directory /usr/local/share/man";

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  paddock completions bash > /etc/bash_completion.d/paddock
  paddock completions zsh > /usr/local/share/zsh/site-functions/_paddock
  paddock completions fish > ~/.config/fish/completions/paddock.fish";

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run an app's manager until it is stopped.
    ///
    /// FILE is the app's configuration, see paddock.toml(5). Without it everything comes from flags and the command.
    #[command(after_help = RUN_EXAMPLES)]
    Run {
        /// The configuration.
        #[command(flatten)]
        config: ConfigArgs,
        /// For development: reload when PATH changes, a file or a directory with all below it; repeatable.
        ///
        /// The configuration file is watched, too. What editors, version control, compilers and databases leave beside
        /// the code does not count. While workers serve, a change that does not start leaves them serving; if
        /// nothing has ever started, the manager does not exit but waits for the next change.
        #[arg(long, value_name = "PATH", help_heading = "Development")]
        reload_on_change: Vec<PathBuf>,
    },

    /// Check a configuration, and start one worker of it on stand-in sockets.
    #[command(after_help = CHECK_EXAMPLES)]
    Check {
        /// The configuration.
        #[command(flatten)]
        config: ConfigArgs,
        /// Check the text alone, start nothing.
        #[arg(long)]
        no_start: bool,
    },

    /// Show the values in effect, and where each comes from.
    #[command(after_help = SHOW_CONFIG_EXAMPLES)]
    ShowConfig {
        /// The configuration.
        #[command(flatten)]
        config: ConfigArgs,
        /// Print JSON: an object with `value` and `origin` for each key.
        #[arg(long)]
        json: bool,
    },

    /// Show how an app's workers are doing, or every app's.
    #[command(after_help = STATUS_EXAMPLES)]
    Status {
        /// The app; without it all that run.
        app: Option<String>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
        /// Exit with 1 unless every slot is ready.
        #[arg(long)]
        ready: bool,
    },

    /// Replace an app's workers, one after the other, by ones of the configuration and code on disk.
    ///
    /// The first new worker is the canary: if it does not get ready, or does not hold, the old workers serve on and the
    /// command exits with 1, the reason and the worker's last words.
    #[command(after_help = RELOAD_EXAMPLES)]
    Reload {
        /// The app.
        app: String,
        /// Return at once instead of when the roll is over.
        #[arg(long)]
        no_wait: bool,
    },

    /// Replace one worker, start before stop.
    #[command(after_help = WORKER_EXAMPLES)]
    Recycle {
        /// The app.
        app: String,
        /// The worker's slot, as `status` shows it.
        slot: u32,
    },

    /// Change how many workers an app has, until a reload changes `workers`.
    #[command(after_help = SCALE_EXAMPLES)]
    Scale {
        /// The app.
        app: String,
        /// How many, at least 1.
        #[arg(value_parser = clap::value_parser!(u32).range(1..=10_000))]
        workers: u32,
    },

    /// Send a signal to an app's workers.
    #[command(after_help = SIGNAL_EXAMPLES)]
    Signal {
        /// The app.
        app: String,
        /// The signal, by name (USR1, SIGUSR1) or number.
        #[arg(value_parser = parse_signal)]
        signal: Signal,
        /// Only the worker of this slot.
        slot: Option<u32>,
    },

    /// Stop an app: drain its workers, then end its manager.
    #[command(after_help = STOP_EXAMPLES)]
    Stop {
        /// The app.
        app: String,
        /// Do not wait for requests in flight.
        #[arg(long)]
        fast: bool,
    },

    /// Stop the workers that a dead manager left behind.
    #[command(after_help = REAP_EXAMPLES)]
    Reap {
        /// The app.
        app: String,
        /// Do nothing unless SERVICE_RESULT is "success": for ExecStopPost=, which runs after a crash too.
        #[arg(long)]
        after_stop: bool,
        /// Do nothing unless systemd says that this unit is failed or inactive: for OnFailure=, which some versions also
        /// trigger before a restart.
        #[arg(long, value_name = "UNIT")]
        if_ended: Option<String>,
    },

    /// Make a commented configuration from one of gunicorn's, uWSGI's or Celery's.
    #[command(after_help = IMPORT_EXAMPLES)]
    Import(ImportArgs),

    /// Print a shell's completion script.
    #[command(after_help = COMPLETIONS_EXAMPLES)]
    Completions {
        /// The shell.
        shell: Shell,
    },

    /// Print a manual page, or write all of them.
    #[command(after_help = MAN_EXAMPLES)]
    Man {
        /// A command's name, or `paddock.toml`; without it paddock's own page.
        page: Option<String>,
        /// Write every page below DIR/man1 and DIR/man5.
        #[arg(long, value_name = "DIR", conflicts_with = "page")]
        directory: Option<PathBuf>,
    },
}

/// What is imported, and where to.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ImportArgs {
    /// What stood where paddock stands now.
    pub peer: Peer,
    /// Its configuration file: gunicorn.conf.py, uwsgi.ini or celeryconfig.py.
    ///
    /// A section of a uwsgi.ini other than [uwsgi] is named behind a colon. Without it gunicorn finds its file by itself.
    #[arg(value_hint = clap::ValueHint::FilePath)]
    pub file: Option<String>,
    /// The same as FILE.
    #[arg(short, long, value_name = "FILE", conflicts_with = "file", value_hint = clap::ValueHint::FilePath)]
    pub config: Option<String>,
    /// The Celery application, as `celery -A` names it.
    #[arg(short = 'A', long, value_name = "MODULE:APP")]
    pub app: Option<String>,
    /// The Python that runs the application; default: that of $VIRTUAL_ENV, else python3 from PATH.
    #[arg(long, value_name = "PATH", value_hint = clap::ValueHint::ExecutablePath)]
    pub python: Option<PathBuf>,
    /// Write to FILE instead of standard output.
    #[arg(short, long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// Replace an output file that is there.
    #[arg(long, requires = "output")]
    pub force: bool,
    /// Print what becomes of each of the peer's settings, and read nothing.
    #[arg(long)]
    pub list: bool,
    /// The peer's own command line; the program's name in front may be there or not.
    #[arg(last = true, allow_hyphen_values = true, value_name = "ARGUMENT", value_hint = clap::ValueHint::CommandWithArguments)]
    pub arguments: Vec<String>,
}

/// Whose configuration can be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Peer {
    /// gunicorn
    Gunicorn,
    /// uWSGI
    Uwsgi,
    /// Celery
    Celery,
}

/// Shells with a completion script.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// bash
    Bash,
    /// zsh
    Zsh,
    /// fish
    Fish,
}

fn parse_signal(text: &str) -> Result<Signal, String> {
    signal::parse(text).ok_or_else(|| "no such signal; a name such as USR1, or a number from 1 to 64".to_owned())
}

/// A configuration: a file, a flag for each key, a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigArgs {
    /// The configuration file.
    pub file: Option<PathBuf>,
    /// The flags that were given; the command is one of them.
    pub flags: Flags,
}

const FILE: &str = "FILE";

impl FromArgMatches for ConfigArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let file = matches.get_one::<PathBuf>(FILE).cloned();
        let mut flags = Flags::new();
        for key in Key::ALL {
            let mut texts: Vec<String> = Vec::new();
            if let Some(given) = matches.get_many::<String>(id(*key)) {
                texts.extend(given.cloned());
            }
            if key.spec().shape == Shape::Switch && matches.get_flag(&negative(*key)) {
                texts.push("false".to_owned());
            }
            if !texts.is_empty() {
                flags.insert(*key, texts);
            }
        }
        Ok(Self { file, flags })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

impl Args for ConfigArgs {
    fn augment_args(command: clap::Command) -> clap::Command {
        let file = Arg::new(FILE)
            .value_name("FILE")
            .help("The app's configuration, see paddock.toml(5)")
            .value_hint(clap::ValueHint::FilePath)
            .value_parser(clap::value_parser!(PathBuf));
        let flags = Key::ALL.iter().flat_map(|key| arguments(*key));
        command.arg(file).args(flags)
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

/// The id of a key's argument.
fn id(key: Key) -> &'static str {
    match key.spec().shape {
        Shape::Command => "COMMAND",
        Shape::One | Shape::Switch | Shape::Many | Shape::Map => key.spec().flag,
    }
}

/// `--no-KEY` of a switch.
fn negative(key: Key) -> String {
    format!("no-{}", key.spec().flag)
}

/// The heading that a table's flags stand under in the help.
fn heading(table: &str) -> &'static str {
    match table {
        "listen" => "Sockets",
        "memory" => "Memory",
        "recycle" => "Recycling",
        "timeouts" => "Timeouts",
        "restart" => "Restarts",
        "reload" => "Reload",
        "limits" => "Other limits",
        "log" => "Log",
        "control" => "Control socket",
        _ => "The app",
    }
}

/// A key's arguments: one, or two for a switch.
fn arguments(key: Key) -> Vec<Arg> {
    let spec = key.spec();
    let argument = Arg::new(id(key))
        .value_name(spec.metavar)
        .help(summary(key))
        .long_help(explanation(key))
        .help_heading((spec.shape != Shape::Command).then(|| heading(spec.table)))
        .value_parser(ValueParser::string());
    match spec.shape {
        Shape::Command => vec![
            argument
                .last(true)
                .num_args(1..)
                .value_name(spec.metavar)
                .value_hint(clap::ValueHint::CommandWithArguments)
                .allow_hyphen_values(true),
        ],
        Shape::One => vec![named(argument, spec).action(ArgAction::Set).overrides_with(id(key))],
        Shape::Many => vec![delimited(named(argument, spec), key).action(ArgAction::Append)],
        Shape::Map => vec![named(argument, spec).action(ArgAction::Append).short('e').visible_alias("env")],
        Shape::Switch => {
            let positive = named(argument, spec)
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .value_parser(PossibleValuesParser::new(["true", "false"]))
                .action(ArgAction::Set)
                .overrides_with_all([id(key).to_owned(), negative(key)]);
            let negative = Arg::new(negative(key))
                .long(negative(key))
                .help(format!("The same as --{}=false", spec.flag))
                .help_heading(heading(spec.table))
                .action(ArgAction::SetTrue)
                .overrides_with_all([id(key).to_owned(), negative(key)]);
            vec![positive, negative]
        }
    }
}

/// With its flag; the table's name in the plural is understood too.
fn named(argument: Arg, spec: &'static Spec) -> Arg {
    let argument = argument.long(spec.flag);
    match spec.table {
        "timeouts" | "limits" => argument.alias(format!("{}-{}", spec.table, spec.name.replace('_', "-"))),
        _ => argument,
    }
}

/// Names have no comma, so they may be given as `--names http,admin`.
fn delimited(argument: Arg, key: Key) -> Arg {
    if key == Key::Names { argument.value_delimiter(',') } else { argument }
}

/// A line, with the default.
fn summary(key: Key) -> String {
    format!("{}{}", key.summary().trim_end_matches('.'), default_note(key))
}

/// Everything, with the default.
fn explanation(key: Key) -> String {
    format!("{}{}", key.explanation(), default_note(key))
}

fn default_note(key: Key) -> String {
    match key.spec().default {
        Fallback::Value(text) => format!(" [default: {text}]"),
        Fallback::Unset(_) | Fallback::Derived(_) => String::new(),
    }
}

/// Read the command line. What is wrong with it is clap's error, whose exit code is 2.
pub fn parse<I, T>(arguments: I) -> Result<Cli, Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    Cli::try_parse_from(arguments)
}
