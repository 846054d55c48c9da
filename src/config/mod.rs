//! Text in, a [`model::Config`] that cannot be wrong out.

pub mod model;
