//! Summaries: the numbers first, as structures that serialise to JSON; their text for a terminal is made from the same
//! structures, by `Display`.

mod compile;
mod inspect;
mod text;

pub use compile::{
    CompileSummary, Lowered, Phase, Quality, SchemeCount, SiteGroup, adjusted, left_in_float, quantised, searched,
};
pub use inspect::{BlockRow, InspectSummary, Interface, inspect};
pub use text::{bytes, decibels, percent, seconds};
