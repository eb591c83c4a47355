//! What was done and why, for people and for machines.

pub mod diff;
pub mod sensitivity;
pub mod summary;
