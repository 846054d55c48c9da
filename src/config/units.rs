//! Sizes and times, read exactly as systemd reads them, and written so that they can be read again.

mod share;
mod size;
mod time;

pub use share::{PercentageError, parse_permyriad, render_permyriad};
pub use size::{SizeError, parse_size, render_size};
pub use time::{TimeError, parse_time, render_time};
