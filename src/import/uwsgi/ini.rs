//! Reading as uWSGI reads: ini files with their includes, the command line, variables, placeholders and logic, down to a
//! plain list of options. What it looks at comes in as [`World`].

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::options::{self, Known, Takes};
use crate::import::ImportError;
use crate::observe::escape::single_line;

/// The most files that one configuration may be made of.
const MOST_FILES: usize = 100;
/// The most options.
const MOST_OPTIONS: usize = 20_000;
/// The longest value, in bytes.
const LONGEST_VALUE: usize = 64 << 10;
/// The most replacements in one value: placeholders may name each other in a circle.
const MOST_REPLACEMENTS: usize = 200;

/// What a configuration may ask about.
pub(super) struct World<'a> {
    /// Environment variables.
    pub(super) variables: BTreeMap<String, String>,
    /// The working directory.
    pub(super) directory: PathBuf,
    /// How many CPUs, for `%k`.
    pub(super) cpus: usize,
    /// For `%h` and if-hostname.
    pub(super) hostname: String,
    /// User name, user number, group name, group number: `%U %u %G %g`.
    pub(super) account: [String; 4],
    /// A file's text, or why there is none.
    pub(super) read: &'a dyn Fn(&Path) -> Result<String, String>,
}

/// An option, as it stands in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Opt {
    pub(super) key: String,
    /// Empty: none given, which means yes.
    pub(super) value: String,
    /// Where it stands: a file and line, `command line` or a variable's name.
    pub(super) origin: String,
}

/// A configuration, resolved.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Resolved {
    pub(super) options: Vec<Opt>,
    /// Files that were read.
    pub(super) files: Vec<String>,
    /// Names that placeholders use.
    pub(super) used: BTreeSet<String>,
    /// What could not be followed: what, and why.
    pub(super) ignored: Vec<(String, String)>,
    /// Words of the command line that are no options.
    pub(super) words: Vec<String>,
}

/// Read the variables of the environment, the file, then the command line, as uWSGI would.
pub(super) fn resolve(file: Option<&str>, words: &[String], world: &World<'_>) -> Result<Resolved, ImportError> {
    let mut reader = Reader {
        world,
        known: options::all(),
        out: Resolved::default(),
        logic: None,
        running: false,
        depth: 0,
        files: 0,
    };
    reader.environment()?;
    if let Some(file) = file {
        reader.ini(file)?;
    }
    reader.command_line(words)?;
    reader.substitute()?;
    Ok(reader.out)
}

/// A condition or a loop that is open.
struct Logic {
    word: String,
    argument: String,
}

struct Reader<'a> {
    world: &'a World<'a>,
    known: BTreeMap<&'static str, Known>,
    out: Resolved,
    logic: Option<Logic>,
    /// Whether a line inside it is being taken over.
    running: bool,
    depth: usize,
    files: usize,
}

fn wrong(text: impl AsRef<str>) -> ImportError {
    ImportError::Text(single_line(text.as_ref(), 1000))
}

/// Variables that uWSGI itself sets for its children; they are no options.
const OWN_VARIABLES: [&str; 8] = [
    "UWSGI_RELOADS",
    "UWSGI_VASSALS_DIR",
    "UWSGI_EMPEROR_FD",
    "UWSGI_EMPEROR_FD_CONFIG",
    "UWSGI_EMPEROR_PROXY",
    "UWSGI_BROODLORD_NUM",
    "UWSGI_JAIL_PID",
    "UWSGI_ORIGINAL_PROC_NAME",
];

impl Reader<'_> {
    /// `UWSGI_MAX_REQUESTS=5` is `max-requests = 5`; what names no option is nothing.
    fn environment(&mut self) -> Result<(), ImportError> {
        let given: Vec<(String, String)> = self
            .world
            .variables
            .iter()
            .filter(|(name, _)| !OWN_VARIABLES.contains(&name.as_str()))
            .filter_map(|(name, value)| Some((name.strip_prefix("UWSGI_")?, name, value)))
            .map(|(bare, _, value)| (bare.to_ascii_lowercase().replace('_', "-"), value.clone()))
            .collect();
        for (key, value) in given {
            if self.known.contains_key(key.as_str()) {
                let origin = format!("UWSGI_{}", key.to_ascii_uppercase().replace('-', "_"));
                self.add(&key, &value, &origin)?;
            }
        }
        Ok(())
    }

    fn command_line(&mut self, words: &[String]) -> Result<(), ImportError> {
        const ORIGIN: &str = "command line";
        let mut rest = words.iter();
        while let Some(word) = rest.next() {
            if word == "--" {
                let words: Vec<String> = rest.by_ref().cloned().collect();
                self.out.words.extend(words);
            } else if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let (key, takes) = self.long(name)?;
                let value = match (takes, value) {
                    (Takes::Value, None) => {
                        Some(rest.next().cloned().ok_or_else(|| wrong(format!("--{key} takes a value")))?)
                    }
                    (Takes::Nothing, Some(_)) => return Err(wrong(format!("--{key} takes no value"))),
                    (_, value) => value,
                };
                self.add(&key, &value.unwrap_or_default(), ORIGIN)?;
            } else if word.len() > 1 && word.starts_with('-') {
                let mut letters = word.chars().skip(1);
                while let Some(letter) = letters.next() {
                    let found = self.known.iter().find(|(_, known)| known.letter == Some(letter));
                    let Some((key, takes)) = found.map(|(key, known)| ((*key).to_owned(), known.takes)) else {
                        return Err(wrong(format!("uWSGI has no option -{letter}")));
                    };
                    let key = self.canonical(&key, letter);
                    let tail: String = if takes == Takes::Nothing { String::new() } else { letters.by_ref().collect() };
                    let value = if takes == Takes::Value && tail.is_empty() {
                        rest.next().cloned().ok_or_else(|| wrong(format!("-{letter} takes a value")))?
                    } else {
                        tail
                    };
                    self.add(&key, &value, ORIGIN)?;
                }
            } else {
                self.word(word)?;
            }
        }
        Ok(())
    }

    /// Several names share a letter: the usual one.
    fn canonical(&self, key: &str, letter: char) -> String {
        let usual = ["socket", "processes", "chmod-socket", "help", "xml", "yaml"];
        let same = usual.iter().find(|name| self.known.get(**name).is_some_and(|known| known.letter == Some(letter)));
        same.map_or_else(|| key.to_owned(), |name| (*name).to_owned())
    }

    /// A long option, which getopt allows to be cut short as long as it stays the only one.
    fn long(&self, name: &str) -> Result<(String, Takes), ImportError> {
        if let Some(known) = self.known.get(name) {
            return Ok((name.to_owned(), known.takes));
        }
        let mut found = self.known.iter().filter(|(option, _)| option.starts_with(name));
        match (found.next(), found.next()) {
            (Some((option, known)), None) => Ok(((*option).to_owned(), known.takes)),
            (Some((one, _)), Some((other, _))) => {
                Err(wrong(format!("--{name} may be --{one}, --{other} or others: write it out")))
            }
            (None, _) => Err(wrong(format!("uWSGI has no option --{name}"))),
        }
    }

    /// A word that is no option: a configuration file by its ending, else something that uWSGI's plugins look at.
    fn word(&mut self, word: &str) -> Result<(), ImportError> {
        let bare = word
            .rsplit_once(':')
            .filter(|(file, _)| Path::new(file).extension().is_some_and(|ending| ending == "ini"))
            .map_or(word, |(file, _)| file);
        match Path::new(bare).extension().and_then(|ending| ending.to_str()) {
            Some("ini") => self.ini(word),
            Some(ending @ ("xml" | "yaml" | "yml" | "json" | "js")) => {
                self.out.ignored.push((word.to_owned(), format!("only ini files are read, and this is {ending}")));
                Ok(())
            }
            _ => {
                self.out.words.push(word.to_owned());
                Ok(())
            }
        }
    }

    /// A file, or `file:section`, or `:section` of the file that is being read.
    fn ini(&mut self, name: &str) -> Result<(), ImportError> {
        self.files += 1;
        self.depth += 1;
        if self.files > MOST_FILES || self.depth > 20 {
            return Err(wrong(format!("{name}: too many files include each other")));
        }
        let (file, section) = match name.rsplit_once(':') {
            Some((file, section)) if !section.contains('/') => {
                (file, if section.is_empty() { "uwsgi" } else { section })
            }
            _ => (name, "uwsgi"),
        };
        if file.contains("://") || file == "-" {
            return Err(wrong(format!("{file}: only files are read")));
        }
        let file = match (file, self.out.files.last()) {
            ("", Some(current)) => current.clone(),
            ("", None) => return Err(wrong(format!("{name}: which file?"))),
            _ => file.to_owned(),
        };
        let path = self.world.directory.join(&file);
        let text = (self.world.read)(&path)
            .map_err(|reason| ImportError::Machine(single_line(&format!("{file}: {reason}"), 1000)))?;
        let text = magic(&text, &path, &file, section, self.world);
        self.out.files.push(file.clone());
        let mut current = "";
        let mut there = false;
        for (index, line) in text.split('\n').enumerate() {
            let line = line.trim_matches([' ', '\t', '\r']);
            if line.is_empty() || line.starts_with([';', '#']) {
                continue;
            }
            if let Some(title) = line.strip_prefix('[') {
                // uWSGI cuts the last character, whatever it is.
                current = title.get(..title.len().saturating_sub(1)).unwrap_or(title);
                there |= current == section;
            } else if current == section {
                let (key, value) = line.split_once('=').unwrap_or((line, ""));
                let trim = |text: &str| text.trim_matches([' ', '\t', '\r']).to_owned();
                self.add(&trim(key), &trim(value), &format!("{file}:{}", index + 1))?;
            }
        }
        self.depth -= 1;
        if !there {
            return Err(wrong(format!("{file} has no section [{section}]")));
        }
        Ok(())
    }

    /// One more option, if the open condition lets it through; immediate ones act at once.
    fn add(&mut self, key: &str, value: &str, origin: &str) -> Result<(), ImportError> {
        if matches!(key, "end" | "endfor" | "endif" | "end-if" | "end-for") {
            self.logic = None;
            return Ok(());
        }
        let Some(logic) = self.logic.as_ref().filter(|_| !self.running) else {
            return self.put(key, value, origin);
        };
        let values = self.judge(logic);
        // What a line inside includes is not judged again.
        self.running = true;
        let result = values.iter().try_for_each(|with| self.put(key, &value.replace("%(_)", with), origin));
        self.running = false;
        result
    }

    /// What `%(_)` stands for in each copy of a line inside a condition or a loop; none: the line is left out.
    fn judge(&self, logic: &Logic) -> Vec<String> {
        let argument = logic.argument.as_str();
        let path = || self.world.directory.join(argument);
        let once = |yes: bool| if yes { vec![argument.to_owned()] } else { Vec::new() };
        let pair = |value: Option<&str>| {
            let wanted = argument.split_once('=').map(|(_, wanted)| wanted);
            value.is_some_and(|value| wanted.is_none_or(|wanted| wanted == value))
        };
        let name = argument.split_once('=').map_or(argument, |(name, _)| name);
        let variable = self.world.variables.get(name).map(String::as_str);
        let option = self.value(name);
        match logic.word.as_str() {
            "for" => argument.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect(),
            "for-times" => (1..=argument.trim().parse::<u32>().unwrap_or(0).min(1000)).map(|n| n.to_string()).collect(),
            "for-readline" => match (self.world.read)(&path()) {
                Ok(text) => text.lines().take(1000).map(str::to_owned).collect(),
                Err(_) => Vec::new(),
            },
            "if-env" | "ifenv" if pair(variable) => variable.map(str::to_owned).into_iter().collect(),
            "if-not-env" => {
                if pair(variable) {
                    Vec::new()
                } else {
                    vec![String::new()]
                }
            }
            "if-opt" if pair(option) => option.map(str::to_owned).into_iter().collect(),
            "if-not-opt" => {
                if pair(option) {
                    Vec::new()
                } else {
                    vec![String::new()]
                }
            }
            "if-exists" | "ifexists" => once(path().exists()),
            "if-not-exists" => once(!path().exists()),
            "if-file" => once(path().is_file()),
            "if-not-file" => once(!path().is_file()),
            "if-dir" | "ifdir" | "if-directory" => once(path().is_dir()),
            "if-not-dir" => once(!path().is_dir()),
            "if-hostname" => once(argument == self.world.hostname),
            "if-not-hostname" => once(argument != self.world.hostname),
            "if-not-reload" => once(true),
            _ => Vec::new(),
        }
    }

    fn put(&mut self, key: &str, value: &str, origin: &str) -> Result<(), ImportError> {
        if self.out.options.len() >= MOST_OPTIONS {
            return Err(wrong(format!("{origin}: more than {MOST_OPTIONS} options")));
        }
        match key {
            "ini" | "include" | "inherit" if self.is_ini(value) => self.ini(value),
            "set" | "set-placeholder" | "set-ph" => match value.split_once('=') {
                Some((key, value)) => self.put(key, value, origin),
                None => Err(wrong(format!("{origin}: {key} = {value}: a placeholder is NAME=VALUE"))),
            },
            "for-glob" | "if-plugin" | "if-not-plugin" | "ifplugin" | "if-hostname-match" | "if-not-hostname-match" => {
                self.out.ignored.push((format!("{key} = {value}"), format!("{origin}: its lines are left out")));
                self.open(key, value, origin)
            }
            _ if key.starts_with("for") && self.known.contains_key(key) => self.open(key, value, origin),
            _ if key.starts_with("if") && self.known.contains_key(key) => self.open(key, value, origin),
            _ => {
                let origin = origin.to_owned();
                self.out.options.push(Opt { key: key.to_owned(), value: value.to_owned(), origin });
                Ok(())
            }
        }
    }

    fn is_ini(&mut self, name: &str) -> bool {
        let other = [".xml", ".yaml", ".yml", ".json", ".js"].iter().any(|ending| name.ends_with(ending));
        let is_ini = !other && !name.contains('(') && !name.contains("://");
        if !is_ini {
            let reason = "only ini files are read, and their names must not depend on a placeholder";
            self.out.ignored.push((format!("include = {name}"), reason.to_owned()));
        }
        is_ini
    }

    fn open(&mut self, key: &str, value: &str, origin: &str) -> Result<(), ImportError> {
        if self.logic.is_some() {
            return Err(wrong(format!("{origin}: {key} inside another: uWSGI knows no logic inside logic")));
        }
        self.logic = Some(Logic { word: key.to_owned(), argument: value.to_owned() });
        Ok(())
    }

    /// The first option of a name, as placeholders see it.
    fn value(&self, name: &str) -> Option<&str> {
        self.out.options.iter().find(|option| option.key == name).map(|option| option.value.as_str())
    }

    /// Variables, then files, then placeholders, each through all options: uWSGI's order.
    fn substitute(&mut self) -> Result<(), ImportError> {
        for symbol in ['$', '@', '%'] {
            for index in 0..self.out.options.len() {
                let Some(option) = self.out.options.get(index) else { continue };
                let replaced = self.replace(symbol, &option.value.clone(), &option.origin.clone())?;
                if let Some(option) = self.out.options.get_mut(index) {
                    option.value = replaced;
                }
            }
        }
        Ok(())
    }

    fn replace(&mut self, symbol: char, value: &str, origin: &str) -> Result<String, ImportError> {
        let mut value = value.to_owned();
        let mut from = 0;
        let mut replaced = 0;
        while let Some((start, end)) = tag(&value, symbol, from) {
            let name = value.get(start + 2..end).unwrap_or_default().to_owned();
            let with = match symbol {
                '$' => self.world.variables.get(&name).cloned(),
                '@' => self.file(&name, origin),
                _ => self.placeholder(&name),
            };
            let Some(with) = with else {
                from = end;
                continue;
            };
            replaced += 1;
            value.replace_range(start..=end, &with);
            if replaced > MOST_REPLACEMENTS || value.len() > LONGEST_VALUE {
                return Err(wrong(format!("{origin}: {symbol}({name}) leads back to itself, or to too much text")));
            }
            from = 0;
        }
        Ok(value)
    }

    fn file(&mut self, name: &str, origin: &str) -> Option<String> {
        if name.contains("://") {
            self.out.ignored.push((format!("@({name})"), format!("{origin}: only files are read")));
            return None;
        }
        match (self.world.read)(&self.world.directory.join(name)) {
            Ok(text) => Some(text.strip_suffix('\n').unwrap_or(&text).to_owned()),
            Err(reason) => {
                self.out.ignored.push((format!("@({name})"), format!("{origin}: {reason}")));
                None
            }
        }
    }

    /// `%(name)`, or several names and numbers with `+ - * / ++ --` between them, from left to right; without an
    /// operator they are joined.
    fn placeholder(&mut self, key: &str) -> Option<String> {
        if !key.contains(' ') {
            self.out.used.insert(key.to_owned());
            return self.value(key).map(str::to_owned);
        }
        let number = |text: &str| -> i64 {
            let digits: String = text
                .trim_start()
                .char_indices()
                .take_while(|(at, c)| c.is_ascii_digit() || (*at == 0 && matches!(c, '-' | '+')))
                .map(|(_, c)| c)
                .collect();
            digits.parse().unwrap_or(0)
        };
        let mut current = String::new();
        let mut operator = "";
        for word in key.split(' ').filter(|word| !word.is_empty()) {
            match word {
                "+" | "-" | "*" | "/" => {
                    operator = word;
                    continue;
                }
                "++" => current = number(&current).wrapping_add(1).to_string(),
                "--" => current = number(&current).wrapping_sub(1).to_string(),
                _ => {
                    let value = if word.bytes().all(|byte| byte.is_ascii_digit()) {
                        word.to_owned()
                    } else {
                        self.out.used.insert(word.to_owned());
                        self.value(word).unwrap_or_default().to_owned()
                    };
                    let (one, other) = (number(&current), number(&value));
                    current = match operator {
                        "+" => one.wrapping_add(other).to_string(),
                        "-" => one.wrapping_sub(other).to_string(),
                        "*" => one.wrapping_mul(other).to_string(),
                        "/" => one.checked_div(other).unwrap_or(0).to_string(),
                        _ => current + &value,
                    };
                }
            }
            operator = "";
        }
        Some(current)
    }
}

/// The next `X(…)` from a byte on, brackets inside it balanced: where X stands and where the last bracket.
fn tag(value: &str, symbol: char, from: usize) -> Option<(usize, usize)> {
    let opening = format!("{symbol}(");
    let mut from = from;
    loop {
        let start = from + value.get(from..)?.find(&opening)?;
        let mut depth = 0_usize;
        for (offset, character) in value.get(start + 2..)?.char_indices() {
            match character {
                '(' => depth += 1,
                ')' if depth > 0 => depth -= 1,
                ')' if offset > 0 => return Some((start, start + 2 + offset)),
                ')' => break,
                _ => {}
            }
        }
        from = start + 2;
    }
}

/// The text with its `%d` and their like replaced: they mean where the file is and what the machine is called. A letter
/// that means nothing is replaced by nothing, as uWSGI does it.
fn magic(text: &str, path: &Path, given: &str, section: &str, world: &World<'_>) -> String {
    let full = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    let show = |path: Option<&Path>| path.map(|path| path.display().to_string()).unwrap_or_default();
    let directory = show(full.parent());
    let name = full.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let stem = name.rsplit_once('.').map_or(name.as_str(), |(stem, _)| stem).to_owned();
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending).to_owned();
    let [user, uid, group, gid] = &world.account;
    let mut result = String::with_capacity(text.len());
    let mut rest = text.chars();
    while let Some(character) = rest.next() {
        if character != '%' {
            result.push(character);
            continue;
        }
        match rest.next() {
            None | Some('%') => result.push('%'),
            Some('(') => result.push_str("%("),
            Some('o' | 'O') => result.push_str(given),
            Some('p' | 'P') => result.push_str(&full.display().to_string()),
            Some('s' | 'S') => result.push_str(&name),
            Some('d' | 'D') => {
                result.push_str(&directory);
                if !directory.ends_with('/') {
                    result.push('/');
                }
            }
            Some('n' | 'N') => result.push_str(&stem),
            Some('e' | 'E') => result.push_str(&ending),
            Some('c' | 'C') => result.push_str(directory.rsplit('/').next().unwrap_or_default()),
            Some('x' | 'X') => result.push_str(section),
            Some('v') => result.push_str(&world.directory.display().to_string()),
            Some('k') => result.push_str(&world.cpus.to_string()),
            Some('h') => result.push_str(&world.hostname),
            Some('U') => result.push_str(user),
            Some('u') => result.push_str(uid),
            Some('G') => result.push_str(group),
            Some('g') => result.push_str(gid),
            Some(digit) if digit.is_ascii_digit() => {
                let index = digit.to_digit(10).and_then(|digit| usize::try_from(digit).ok()).unwrap_or(0);
                result.push_str(directory.split('/').filter(|part| !part.is_empty()).nth(index).unwrap_or_default());
            }
            // A line must end all the same.
            Some('\n') => result.push('\n'),
            Some(_) => {}
        }
    }
    result
}

#[cfg(test)]
mod tests;
