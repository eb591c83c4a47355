#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};

use image::{GrayImage, ImageBuffer, Luma, LumaA, Rgb, RgbImage, Rgba};
use ndarray::{Array1, Array2, Array3, Array4, ArrayD, IxDyn, ShapeBuilder};
use ndarray_npy::{NpzWriter, write_npy};
use proptest::prelude::*;

use super::*;

mod arrays;
mod atomic;
mod folder;
mod preprocess;

/// A picture with slopes and edges in each channel, no two channels alike.
fn pattern(width: u32, height: u32) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let ramp = (x * 255 / width.max(1)) as u8;
        let check = if (x / 5 + y / 7) % 2 == 0 { 240 } else { 15 };
        Rgb([ramp, check, (x * 31 + y * 17) as u8])
    })
}

/// What timm does, in f64 and in one two-dimensional step: weights of Keys's cubic, widened when shrinking.
fn oracle(image: &RgbImage, p: &Preprocess) -> Array3<f64> {
    let (w, h) = (image.width() as usize, image.height() as usize);
    let short = (p.size as f64 / p.crop_pct).floor() as usize;
    let (nw, nh) = if w <= h {
        (short, short * h / w)
    } else {
        (short * w / h, short)
    };
    let (wx, wy) = (weights(w, nw), weights(h, nh));
    // Python's round: half to even.
    let offset = |n: usize| ((n - p.size) as f64 / 2.0).round_ties_even() as usize;
    let (left, top) = (offset(nw), offset(nh));
    Array3::from_shape_fn((3, p.size, p.size), |(c, y, x)| {
        let mut v = 0.0;
        for (j, b) in wy[top + y].iter().enumerate().filter(|(_, b)| **b != 0.0) {
            for (i, a) in wx[left + x].iter().enumerate().filter(|(_, a)| **a != 0.0) {
                v += a * b * f64::from(image.get_pixel(i as u32, j as u32).0[c]);
            }
        }
        (v.clamp(0.0, 255.0) / 255.0 - f64::from(p.mean[c])) / f64::from(p.std[c])
    })
}

fn weights(from: usize, to: usize) -> Vec<Vec<f64>> {
    let cubic = |t: f64| {
        let (t, a) = (t.abs(), -0.5);
        if t < 1.0 {
            ((a + 2.0) * t - (a + 3.0)) * t * t + 1.0
        } else if t < 2.0 {
            (((t - 5.0) * t + 8.0) * t - 4.0) * a
        } else {
            0.0
        }
    };
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    (0..to)
        .map(|o| {
            let centre = (o as f64 + 0.5) * scale;
            let row: Vec<f64> = (0..from)
                .map(|i| cubic((i as f64 + 0.5 - centre) / stretch))
                .collect();
            let sum: f64 = row.iter().sum();
            row.iter().map(|v| v / sum).collect()
        })
        .collect()
}

fn images(preprocess: Preprocess) -> Options {
    Options {
        preprocess: Some(preprocess),
        ..Options::default()
    }
}

fn open(path: &Path, options: &Options) -> Dataset {
    Dataset::open(path, options).unwrap()
}

fn first(path: &Path, options: &Options) -> ArrayD<f32> {
    open(path, options).sample(0).unwrap().inputs.remove(0).1
}

/// The message, with the folder of the test cut out.
fn message(dir: &Path, result: Result<impl std::fmt::Debug, DataError>) -> String {
    let text = result.expect_err("this must be an error").to_string();
    text.replace(&format!("{}/", dir.display()), "")
        .replace(&dir.display().to_string(), "DIR")
}

macro_rules! snapshot {
    ($name:literal, $value:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/data"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $value) })
    };
}

use snapshot;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// No bytes make the readers panic.
    #[test]
    fn any_bytes_give_a_result(bytes in proptest::collection::vec(any::<u8>(), 0..200), start in 0usize..4) {
        let dir = tempfile::tempdir().unwrap();
        let starts: [(&str, &[u8]); 4] = [
            ("a.jpg", &[0xff, 0xd8, 0xff, 0xe0]),
            ("a.png", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR"),
            ("a.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (9"),
            ("a.npz", b"PK\x03\x04"),
        ];
        let path = dir.path().join(starts[start].0);
        fs::write(&path, [starts[start].1, &bytes].concat()).unwrap();
        if let Ok(d) = Dataset::open(&path, &images(Preprocess::none(4))) {
            let _ = d.sample(0);
        }
    }

    /// The crop keeps the middle: what is left and right of it differs by at most one pixel.
    #[test]
    fn every_image_size_gives_the_model_size(w in 1u32..80, h in 1u32..80, size in 1usize..40, pct in 0.5f64..=1.0) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.png");
        pattern(w, h).save(&path).unwrap();
        let p = Preprocess { crop_pct: pct, ..Preprocess::none(size) };
        let a = first(&path, &images(p));
        prop_assert_eq!(a.shape(), &[3, size, size]);
        prop_assert!(a.iter().all(|v| (0.0..=1.0).contains(v)));
    }
}
