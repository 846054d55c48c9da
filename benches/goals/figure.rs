//! One figure, its goal, and the table of all of them.

use std::fmt::Write as _;

use serde_json::{Value, json};

/// What a figure is to be.
#[derive(Debug, Clone, Copy)]
enum Goal {
    AtMost(f64),
    AtLeast(f64),
    /// It explains another one.
    None,
}

/// A measure and what came out.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    measure: String,
    value: f64,
    goal: Goal,
}

impl Figure {
    /// Met if it is no higher.
    pub(crate) fn at_most(measure: impl Into<String>, value: f64, goal: f64) -> Self {
        Self { measure: measure.into(), value, goal: Goal::AtMost(goal) }
    }

    /// Met if it is no lower.
    pub(crate) fn at_least(measure: impl Into<String>, value: f64, goal: f64) -> Self {
        Self { measure: measure.into(), value, goal: Goal::AtLeast(goal) }
    }

    /// Without a goal.
    pub(crate) fn plain(measure: impl Into<String>, value: f64) -> Self {
        Self { measure: measure.into(), value, goal: Goal::None }
    }

    /// None: there is no goal. A figure that is no number meets none.
    pub(crate) fn is_met(&self) -> Option<bool> {
        match self.goal {
            Goal::AtMost(goal) => Some(self.value <= goal),
            Goal::AtLeast(goal) => Some(self.value >= goal),
            Goal::None => None,
        }
    }

    fn goal(&self) -> String {
        match self.goal {
            Goal::AtMost(goal) => format!("<= {goal}"),
            Goal::AtLeast(goal) => format!(">= {goal}"),
            Goal::None => String::new(),
        }
    }
}

/// For people.
pub(crate) fn table(figures: &[Figure]) -> String {
    let width = figures.iter().map(|figure| figure.measure.chars().count()).max().unwrap_or(0).max("measure".len());
    let mut text = format!("{:width$}  {:>9}  {:>8}  met\n", "measure", "figure", "goal");
    for figure in figures {
        let met = figure.is_met().map_or("", |met| if met { "yes" } else { "NO" });
        let value = if figure.value >= 100.0 { format!("{:.0}", figure.value) } else { format!("{:.3}", figure.value) };
        let line = format!("{:width$}  {value:>9}  {:>8}  {met}", figure.measure, figure.goal());
        let _ = writeln!(text, "{}", line.trim_end());
    }
    text
}

/// For programs.
pub(crate) fn json(figures: &[Figure]) -> Value {
    let row = |figure: &Figure| {
        let (at_most, at_least) = match figure.goal {
            Goal::AtMost(goal) => (Some(goal), None),
            Goal::AtLeast(goal) => (None, Some(goal)),
            Goal::None => (None, None),
        };
        json!({
            "measure": figure.measure, "figure": figure.value,
            "at_most": at_most, "at_least": at_least, "met": figure.is_met(),
        })
    };
    figures.iter().map(row).collect()
}

/// NaN of nothing.
pub(crate) fn median(figures: impl IntoIterator<Item = f64>) -> f64 {
    quantile(figures, 0.5)
}

/// The figure below which that share of all lies.
pub(crate) fn quantile(figures: impl IntoIterator<Item = f64>, share: f64) -> f64 {
    let mut figures: Vec<f64> = figures.into_iter().collect();
    figures.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a small count")]
    let place = (figures.len() as f64 * share) as usize;
    figures.get(place).copied().unwrap_or(f64::NAN)
}
