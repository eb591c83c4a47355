//! The YAML configuration.
//!
//! [`schema`] is the vocabulary as plain types, [`load`] reads files and presets into it. Of this module only
//! `load.rs` names a YAML crate: it turns text into a tree with positions, which `read.rs` checks and turns into a
//! [`Config`].

mod defaults;
mod error;
pub mod load;
mod origin;
mod preprocess;
mod read;
pub mod schema;
mod search;
mod tree;

pub use error::ConfigError;
pub use load::{PRESETS, load, load_preprocessing, preset};
pub use preprocess::Preprocessing;
pub use schema::{Config, SiteConfig};

#[cfg(test)]
mod tests;
