//! Calibration and evaluation data: image folders, arrays, preprocessing.
//!
//! A [`Dataset`] is opened from one path (a folder of images, an image, an `.npy` or an `.npz`) and hands out
//! [`Sample`]s in a fixed order, one at a time, from any thread. Images go through a [`Preprocess`], which does what
//! timm's evaluation transform does; arrays are taken as already preprocessed.

mod arrays;
mod dataset;
mod decode;
mod error;
mod folder;
mod preprocess;

pub use arrays::{NamedArray, read_arrays, save_npz};
pub use dataset::{Dataset, InputSpec, Options, Sample};
pub use decode::Channels;
pub use error::DataError;
pub use preprocess::{CropMode, Interpolation, PRESETS, Preprocess, PreprocessError};

#[cfg(test)]
mod tests;
