//! Calibration and evaluation data: image folders, arrays, preprocessing.
//!
//! A [`Dataset`] is opened from one path (a folder of images, an image, an `.npy` or an `.npz`) and hands out
//! [`Sample`]s in a fixed order, one at a time, from any thread. Images go through a [`Preprocess`], which does what
//! timm's evaluation transform does; arrays are taken as already preprocessed. [`write_atomic`] is how every output
//! file of this crate is written.

mod arrays;
mod atomic;
mod dataset;
mod decode;
mod error;
mod folder;
mod preprocess;

pub use arrays::{NamedArray, read_arrays, save_npz};
pub use atomic::{AtomicWriteError, write_atomic};
pub use dataset::{Dataset, InputSpec, Options, Sample};
pub use decode::Channels;
pub use error::DataError;
pub use preprocess::{Interpolation, Preprocess, PreprocessError};

#[cfg(test)]
mod tests;
