//! `paddock man`: manual pages, rendered from the command line's definition and the table of keys.

use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::cli::Cli;
use crate::config::key::{Fallback, Key, Shape};
use crate::observe::escape::single_line;

/// The name of the configuration file's page.
const FILE_PAGE: &str = "paddock.toml";

/// Print one page, or write all of them below a directory; 2 if there is no such page.
pub fn run(page: Option<&str>, directory: Option<&Path>) -> ExitCode {
    let pages = match pages() {
        Ok(pages) => pages,
        Err(error) => return fail(&error.to_string(), 1),
    };
    if let Some(directory) = directory {
        return match write_all(&pages, directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&format!("{}: {error}", directory.display()), 1),
        };
    }
    let wanted = page.map_or_else(|| "paddock".to_owned(), page_name);
    let Some(page) = pages.iter().find(|page| page.name == wanted) else {
        let names: Vec<&str> = pages.iter().map(|page| page.name.as_str()).collect();
        let wanted = single_line(&wanted, 200);
        return fail(&format!("no page {wanted:?}; there are {}", names.join(", ")), 2);
    };
    match io::stdout().write_all(&page.text) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// `run`, `paddock run` and `paddock-run` are one page.
fn page_name(page: &str) -> String {
    let bare = page.strip_prefix("paddock-").unwrap_or(page);
    match bare {
        "paddock" | FILE_PAGE => bare.to_owned(),
        "toml" => FILE_PAGE.to_owned(),
        command => format!("paddock-{command}"),
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    let _ = writeln!(io::stderr(), "paddock: {message}");
    ExitCode::from(code)
}

fn write_all(pages: &[Page], directory: &Path) -> io::Result<()> {
    for page in pages {
        let section = directory.join(format!("man{}", page.section));
        std::fs::create_dir_all(&section)?;
        std::fs::write(section.join(page.file_name()), &page.text)?;
    }
    Ok(())
}

/// A manual page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Page {
    /// Such as `paddock-run`.
    pub name: String,
    /// Such as 1.
    pub section: u8,
    /// In roff.
    pub text: Vec<u8>,
}

impl Page {
    /// Such as `paddock-run.1`.
    pub fn file_name(&self) -> String {
        format!("{}.{}", self.name, self.section)
    }
}

/// Every page.
pub fn pages() -> io::Result<Vec<Page>> {
    let mut command = Cli::command();
    command.build();
    let mut pages = vec![command_page(command.clone())?];
    for subcommand in command.get_subcommands().filter(|command| !command.is_hide_set()) {
        let name = format!("paddock-{}", subcommand.get_name());
        pages.push(command_page(subcommand.clone().name(name).flatten_help(false))?);
    }
    pages.push(file_page());
    Ok(pages)
}

fn command_page(mut command: clap::Command) -> io::Result<Page> {
    let name = command.get_name().to_owned();
    let usage = command.render_usage().to_string();
    let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
    let has_subcommands = command.has_subcommands();
    let man = Man::new(command).source("paddock");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    // A synopsis of forty flags teaches nothing: the usage line stands for it.
    let mut page = Roff::new();
    page.control("SH", ["SYNOPSIS"]);
    page.text([roman(usage.trim_start_matches("Usage:").trim())]);
    page.to_writer(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if has_subcommands {
        man.render_subcommands_section(&mut text)?;
    }
    let mut page = Roff::new();
    add_notes(&mut page, &notes);
    page.control("SH", ["SEE ALSO"]);
    let other = if has_subcommands { "paddock-run" } else { "paddock" };
    page.text([bold(other), roman("(1), "), bold(FILE_PAGE), roman("(5)")]);
    page.to_writer(&mut text)?;
    Ok(Page { name, section: 1, text })
}

/// The paragraphs below a command's help: examples as they are, the others as text.
fn add_notes(page: &mut Roff, notes: &str) {
    for paragraph in notes.split("\n\n") {
        if let Some(examples) = paragraph.strip_prefix("Examples:\n") {
            page.control("SH", ["EXAMPLES"]);
            page.control("EX", []);
            page.text([roman(examples)]);
            page.control("EE", []);
        }
    }
    let mut paragraphs =
        notes.split("\n\n").filter(|paragraph| !paragraph.is_empty() && !paragraph.starts_with("Examples:"));
    if let Some(first) = paragraphs.next() {
        page.control("SH", ["NOTES"]);
        page.text([roman(first)]);
        for paragraph in paragraphs {
            page.control("PP", []);
            page.text([roman(paragraph)]);
        }
    }
}

/// paddock.toml(5).
fn file_page() -> Page {
    let mut page = Roff::new();
    page.control("TH", [FILE_PAGE, "5", "", "", "paddock"]);
    page.control("SH", ["NAME"]);
    page.text([roman("paddock.toml - configuration of an app that paddock runs")]);
    page.control("SH", ["DESCRIPTION"]);
    for paragraph in DESCRIPTION {
        page.control("PP", []);
        page.text([roman(*paragraph)]);
    }
    for table in Key::tables() {
        let heading = if table.is_empty() { "TOP OF THE FILE".to_owned() } else { format!("[{table}]") };
        page.control("SH", [heading.as_str()]);
        for key in Key::ALL.iter().filter(|key| key.spec().table == table) {
            describe(&mut page, *key);
        }
    }
    page.control("SH", ["EXAMPLE"]);
    page.control("EX", []);
    page.text([roman(EXAMPLE)]);
    page.control("EE", []);
    page.control("SH", ["SEE ALSO"]);
    let pages: [Inline; 2] = [bold("paddock"), roman("(1), systemd.exec(5), systemd.time(7), cgroups(7)")];
    page.text(pages);
    Page { name: FILE_PAGE.to_owned(), section: 5, text: page.to_roff().into_bytes() }
}

/// What a key is, its default, its flag and an example.
fn describe(page: &mut Roff, key: Key) {
    let spec = key.spec();
    page.control("TP", []);
    page.text([bold(spec.name), roman(" = "), italic(spec.metavar)]);
    page.text([roman(key.explanation())]);
    let (introduction, default) = match spec.default {
        Fallback::Value(text) => ("Default: ", text),
        Fallback::Unset("required") => ("Required", ""),
        Fallback::Unset(meaning) | Fallback::Derived(meaning) => ("Default: ", meaning),
    };
    let flag = match spec.shape {
        Shape::Command => "after --".to_owned(),
        Shape::One | Shape::Many | Shape::Map => format!("--{}", spec.flag),
        Shape::Switch => format!("--{0}, --no-{0}", spec.flag),
    };
    let fixed = if spec.fixed { " A reload does not change it: it needs a restart." } else { "" };
    page.control("br", []);
    page.text([roman(format!("{introduction}{default}. For example: ")), roman(spec.example)]);
    page.control("br", []);
    page.text([roman("On the command line: "), bold(flag), roman(format!(".{fixed}"))]);
}

const DESCRIPTION: &[&str] = &[
    "A TOML file describes one app: a command, how many copies of it run, and when one is replaced. It is read by \
     paddock run, paddock check and paddock show-config, and again at every reload. A flag of the same name beats the \
     file; the file beats the default. Only `command` is required.",
    "Sizes are bytes, or a number with K, M, G, T, P or E (steps of 1024), such as \"512M\" or \"1.5G\"; where it says so a \
     percentage such as \"12.5%\"; or \"infinity\". Times are seconds, or numbers with us, ms, s, min, h, d, w, M or y, \
     such as \"500ms\" or \"1min 30s\"; or \"infinity\". Both are read as systemd reads them.",
    "Unknown keys, wrong types and impossible combinations are errors; all are told at once, each with its line, \
     column and remedy. A manager that is root refuses a file that others can write or replace.",
];

const EXAMPLE: &str = "\
command = [\"uvicorn\", \"--fd\", \"3\", \"shop:app\"]
workers = 4
ready = \"settle\"
user = \"shop\"

[memory]
max = \"512M\"
budget = \"75%\"

[recycle]
max_requests = 1000
max_requests_jitter = \"5%\"";
