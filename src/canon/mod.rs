//! Many exporter forms in, one canonical form out.

pub mod fold;
