//! Columns that line up, and give way on a narrow terminal.

use unicode_width::UnicodeWidthStr as _;

use super::terminal::{Colour, Look};

/// One column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its heading.
    pub heading: &'static str,
    /// Numbers are lined up on the right.
    pub right: bool,
    /// Which columns go first when there is no room: the highest number; 0 never goes.
    pub expendable: u8,
    /// Whether it is left out when no row has anything in it.
    pub optional: bool,
    /// Whether its text may be cut short before the column goes.
    pub elastic: bool,
}

/// One cell.
#[derive(Debug, Clone)]
pub struct Cell {
    /// What is in it; empty shows as `-`.
    pub text: String,
    /// How it stands out.
    pub colour: Colour,
}

impl Cell {
    /// A cell like most others.
    pub fn plain(text: impl Into<String>) -> Self {
        Self { text: text.into(), colour: Colour::Plain }
    }

    fn shown(&self) -> &str {
        if self.text.is_empty() { "-" } else { &self.text }
    }
}

/// Between columns.
const GAP: usize = 2;
/// Elastic columns are not cut shorter than this.
const SHORTEST: usize = 12;

/// Lines of text with a heading; every row has one cell for each column.
pub fn render(columns: &[Column], rows: &[Vec<Cell>], look: Look) -> String {
    let mut shown: Vec<(usize, Column, usize)> = columns
        .iter()
        .enumerate()
        .filter(|(at, column)| !column.optional || cells(rows, *at).any(|cell| !cell.text.is_empty()))
        .map(|(at, column)| {
            let widest = cells(rows, at).map(|cell| width(cell.shown())).max().unwrap_or(0);
            (at, *column, widest.max(column.heading.len()))
        })
        .collect();
    if let Some(limit) = look.width {
        fit(&mut shown, limit);
    }
    let mut text = String::new();
    let headings =
        shown.iter().map(|(_, column, wide)| look.paint(Colour::Dim, &pad(column.heading, *wide, column.right)));
    push_line(&mut text, headings, look);
    for row in rows {
        let line = shown.iter().filter_map(|(at, column, wide)| {
            let cell = row.get(*at)?;
            let padded = pad(cell.shown(), *wide, column.right);
            let colour = if cell.text.is_empty() { Colour::Dim } else { cell.colour };
            Some(look.paint(colour, &padded))
        });
        push_line(&mut text, line, look);
    }
    text
}

fn cells(rows: &[Vec<Cell>], at: usize) -> impl Iterator<Item = &Cell> {
    rows.iter().filter_map(move |row| row.get(at))
}

/// Make the lines at most `limit` wide if that can be: cut what is elastic, then leave out what is expendable.
fn fit(shown: &mut Vec<(usize, Column, usize)>, limit: usize) {
    loop {
        let total: usize = shown.iter().map(|(_, _, wide)| wide + GAP).sum::<usize>().saturating_sub(GAP);
        let Some(excess) = total.checked_sub(limit).filter(|excess| *excess > 0) else { return };
        if let Some((_, _, wide)) =
            shown.iter_mut().find(|(_, column, wide)| column.elastic && *wide >= SHORTEST + excess)
        {
            *wide -= excess;
            return;
        }
        let expendable = shown
            .iter()
            .enumerate()
            .filter(|(_, (_, column, _))| column.expendable > 0)
            .max_by_key(|(_, (_, column, _))| column.expendable)
            .map(|(position, _)| position);
        let Some(position) = expendable else { return };
        shown.remove(position);
    }
}

/// Columns of the terminal, of which some scripts take two for a character.
fn width(text: &str) -> usize {
    text.width()
}

fn pad(text: &str, wide: usize, right: bool) -> String {
    let mut shown = text.to_owned();
    if width(text) > wide {
        while width(&shown) >= wide && shown.pop().is_some() {}
        shown.push('…');
    }
    let space = " ".repeat(wide.saturating_sub(width(&shown)));
    if right { space + &shown } else { shown + &space }
}

fn push_line(text: &mut String, cells: impl Iterator<Item = String>, look: Look) {
    let line = cells.collect::<Vec<_>>().join(&" ".repeat(GAP));
    // Padding behind a coloured cell is inside its colour and does no harm there.
    text.push_str(if look.colour { &line } else { line.trim_end() });
    text.push('\n');
}
