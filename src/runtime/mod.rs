//! Executors and the integer kernels of the custom ops.

pub mod kernels;
pub mod tract;
