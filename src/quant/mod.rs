//! Decides every quantisation parameter; touches no graph.

pub mod tables;
