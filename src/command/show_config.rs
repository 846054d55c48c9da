//! `paddock show-config`: the values in effect, and where each comes from.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use serde_json::{Map, Value, json};

use crate::config::key::{Fallback, Key};
use crate::config::render;
use crate::config::{self, Invocation, Loaded};

/// Print them; 1 if the file cannot be read, 2 if it is wrong.
pub fn run(invocation: &Invocation, json: bool) -> ExitCode {
    let colour = std::io::stderr().is_terminal();
    match config::load(invocation) {
        Ok(loaded) => {
            let warnings = loaded.warnings.render_warnings(colour);
            if !warnings.is_empty() {
                let _ = writeln!(std::io::stderr(), "{warnings}\n");
            }
            let text = if json { as_json(&loaded) } else { as_toml(&loaded) };
            match std::io::stdout().write_all(text.as_bytes()) {
                Ok(()) => ExitCode::SUCCESS,
                Err(_) => ExitCode::FAILURE,
            }
        }
        Err(wrong) => {
            let _ = writeln!(std::io::stderr(), "{}", wrong.render_errors(colour));
            ExitCode::from(wrong.exit_code())
        }
    }
}

/// A configuration file that says the same, each value with its origin in a comment.
pub fn as_toml(loaded: &Loaded) -> String {
    let mut text = String::new();
    let mut table = "";
    let width = Key::ALL.iter().map(|key| assignment(*key, loaded).chars().count()).filter(|width| *width <= 48).max();
    let width = width.unwrap_or(0);
    for key in Key::ALL {
        let spec = key.spec();
        if spec.table != table {
            table = spec.table;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "\n[{table}]");
        }
        let _ = writeln!(text, "{:width$}  # {}", assignment(*key, loaded), origin(*key, loaded));
    }
    text
}

/// `name = value`, or a comment if there is no value.
fn assignment(key: Key, loaded: &Loaded) -> String {
    let name = key.spec().name;
    match render::value(key, &loaded.config) {
        Some(value) => format!("{name} = {}", render::toml(&value)),
        None => format!("# {name}"),
    }
}

fn origin(key: Key, loaded: &Loaded) -> String {
    let place = loaded.origin(key);
    match key.spec().default {
        _ if key == Key::Environment && !loaded.environment_origins.is_empty() => variables(loaded),
        Fallback::Unset(meaning) | Fallback::Derived(meaning) if !loaded.origins.contains_key(&key) => {
            format!("{place}: {meaning}")
        }
        Fallback::Value(_) | Fallback::Unset(_) | Fallback::Derived(_) => place,
    }
}

/// Where each variable stands, if not all in one place.
fn variables(loaded: &Loaded) -> String {
    let names = loaded.environment_origins.keys();
    let places: Vec<String> = names.map(|name| format!("{name}: {}", loaded.variable_origin(name))).collect();
    places.join(", ")
}

/// An object with `value` and `origin` of each key.
pub fn as_json(loaded: &Loaded) -> String {
    let object: Map<String, Value> = Key::ALL
        .iter()
        .map(|key| {
            let value = render::value(*key, &loaded.config);
            (key.path(), json!({ "value": value, "origin": origin(*key, loaded) }))
        })
        .collect();
    format!("{:#}\n", Value::Object(object))
}
