//! vitq compiles a trained Vision Transformer, exported to ONNX, into a fully quantised ONNX model, and carries an
//! integer-only reference of every custom op that the result contains.

pub mod calib;
pub mod canon;
pub mod cli;
pub mod config;
pub mod data;
pub mod fs;
pub mod ir;
pub mod lower;
pub mod onnx;
mod parallel;
pub mod pattern;
pub mod pipeline;
pub mod quant;
pub mod report;
pub mod runtime;
mod simd;
pub mod tune;
pub mod vit;
