//! timm's evaluation transform: resize, centre crop, scale, normalise.

use fast_image_resize::images::{Image, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use ndarray::Array3;
use serde::{Deserialize, Serialize};

use super::decode::{Channels, Pixels};

/// The filter of the resize. All are antialiased: when shrinking, the filter widens with the factor, as in Pillow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interpolation {
    /// Pillow's BILINEAR, a triangle.
    Bilinear,
    /// Pillow's BICUBIC, Keys's cubic with a = −0.5 (Catmull-Rom).
    #[default]
    Bicubic,
    /// Pillow's LANCZOS, three lobes.
    Lanczos,
}

impl Interpolation {
    /// Every filter by timm's name.
    pub const NAMES: [(&'static str, Self); 3] =
        [("bicubic", Self::Bicubic), ("bilinear", Self::Bilinear), ("lanczos", Self::Lanczos)];
}

/// How an image that is no square becomes one: timm's `crop_mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CropMode {
    /// The short side is resized, the aspect ratio kept, and the ends of the long side are lost.
    #[default]
    Center,
    /// Both sides are resized, each by its own factor.
    Squash,
    /// The long side is resized, the aspect ratio kept, and a border of the mean's colour is added.
    Border,
}

impl CropMode {
    /// Every mode by timm's name.
    pub const NAMES: [(&'static str, Self); 3] = [("center", Self::Center), ("squash", Self::Squash), ("border", Self::Border)];
}

/// How a model wants its images, in timm's terms.
///
/// The image is resized to `floor(size / crop_pct)` as [`CropMode`] says, `size × size` is cut from the centre, and each value
/// becomes `(v / 255 − mean) / std`. That is `transforms_imagenet_eval` of timm 1.0, on top of torchvision's `Resize` and
/// `CenterCrop` and of Pillow's resampling in 8 bits.
#[derive(Debug, Clone, PartialEq)]
pub struct Preprocess {
    /// Side of the square that the model takes, in pixels, at least 1.
    pub size: usize,
    /// Share of the resized short side that the crop keeps, in (0, 1].
    pub crop_pct: f64,
    /// What happens to an image that is no square.
    pub crop_mode: CropMode,
    /// The resize filter.
    pub interpolation: Interpolation,
    /// Whether an image is first turned as its EXIF orientation says. timm itself never turns one; photos straight from a
    /// camera need it.
    pub exif_orientation: bool,
    /// Subtracted from R, G, B in [0, 1].
    pub mean: [f32; 3],
    /// Then divides R, G, B; above 0.
    pub std: [f32; 3],
}

/// A [`Preprocess`] that cannot be carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum PreprocessError {
    /// No preset has this name.
    #[error(
        "unknown preprocessing `{name}`{} Known: imagenet (ImageNet mean and std: DeiT and most others), inception (0.5 and 0.5: the augreg ViTs), clip (OpenAI's mean and std), none (values in [0, 1]); or a YAML file, timm's config.json, or a preprocessor_config.json.",
        suggestion(name)
    )]
    UnknownPreset {
        /// The name given.
        name: String,
    },
    /// A size of 0, or too large to be meant.
    #[error("the input size {size} is out of range: give the side of the model's input image in pixels, 1 to {MAX_SIZE}.")]
    Size {
        /// The size given.
        size: usize,
    },
    /// A crop share outside (0, 1], or so small that the resized image would be enormous.
    #[error(
        "the crop share {crop_pct} is out of range: it is the part of the resized short side that is kept, above 0 and at most 1 (timm's default is 0.875), and size / crop_pct may not pass {MAX_SIZE}."
    )]
    CropPct {
        /// The share given.
        crop_pct: f64,
    },
    /// A mean or std that is not finite, or a std that is not above 0.
    #[error("the normalisation mean {mean:?}, std {std:?} is out of range: all six must be finite, and each std above 0.")]
    Normalisation {
        /// The mean given.
        mean: [f32; 3],
        /// The standard deviation given.
        std: [f32; 3],
    },
    /// The resizing library refused.
    #[error("an image of {width} × {height} pixels could not be resized: {reason}. Remove it or save it at another size.")]
    Resize {
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
        /// The library's words.
        reason: String,
    },
    /// An image so long and thin that its resized form would be enormous.
    #[error(
        "an image of {width} × {height} pixels is too long and thin to be resized to a short side of {short}: its long side would be {long} pixels. Crop it or remove it."
    )]
    AspectRatio {
        /// Width of the image.
        width: u32,
        /// Height of the image.
        height: u32,
        /// Short side after the resize.
        short: usize,
        /// Long side after the resize.
        long: u64,
    },
}

/// Names of the presets, in the order in which help lists them.
pub const PRESETS: [&str; 4] = ["imagenet", "inception", "clip", "none"];
/// Longest resized short side; guards against typing errors, not against models.
const MAX_SIZE: usize = 8192;
/// Longest resized long side.
const MAX_LONG: u64 = 1 << 20;

fn suggestion(name: &str) -> String {
    PRESETS
        .iter()
        .map(|p| (strsim::jaro_winkler(name, p), p))
        .filter(|(s, _)| *s > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map_or_else(|| ".".to_owned(), |(_, p)| format!(": did you mean {p}?"))
}

impl Preprocess {
    /// timm's `IMAGENET_DEFAULT_MEAN` and `STD`, crop 0.9, bicubic: DeiT and most models trained on ImageNet-1k alone.
    pub fn imagenet(size: usize) -> Self {
        Self::with(size, 0.9, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    }

    /// timm's `IMAGENET_INCEPTION_MEAN` and `STD` (0.5), crop 0.9, bicubic: the augreg ViTs and other Google weights.
    pub fn inception(size: usize) -> Self {
        Self::with(size, 0.9, [0.5; 3], [0.5; 3])
    }

    /// timm's `OPENAI_CLIP_MEAN` and `STD`, bicubic, crop 0.9 as `vit_base_patch16_clip_224.openai` has it; some larger
    /// CLIP models (`vit_large_patch14_clip_224.openai`) have crop 1.0.
    pub fn clip(size: usize) -> Self {
        Self::with(size, 0.9, [0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1])
    }

    /// Resized to `size` (crop 1.0, bicubic) and scaled to [0, 1]; not normalised.
    pub fn none(size: usize) -> Self {
        Self::with(size, 1.0, [0.0; 3], [1.0; 3])
    }

    /// The preset of that name: `imagenet`, `inception`, `clip` or `none`.
    ///
    /// # Errors
    /// [`PreprocessError::UnknownPreset`].
    pub fn preset(name: &str, size: usize) -> Result<Self, PreprocessError> {
        match name {
            "imagenet" => Ok(Self::imagenet(size)),
            "inception" => Ok(Self::inception(size)),
            "clip" => Ok(Self::clip(size)),
            "none" => Ok(Self::none(size)),
            _ => Err(PreprocessError::UnknownPreset { name: name.to_owned() }),
        }
    }

    fn with(size: usize, crop_pct: f64, mean: [f32; 3], std: [f32; 3]) -> Self {
        let (crop_mode, interpolation) = (CropMode::Center, Interpolation::Bicubic);
        Self { size, crop_pct, crop_mode, interpolation, exif_orientation: true, mean, std }
    }

    /// Checks every field against its range.
    ///
    /// # Errors
    /// The first [`PreprocessError`] found.
    pub fn validate(&self) -> Result<(), PreprocessError> {
        if self.size == 0 || self.size > MAX_SIZE {
            return Err(PreprocessError::Size { size: self.size });
        }
        if !(self.crop_pct > 0.0 && self.crop_pct <= 1.0) || self.scale_size() > MAX_SIZE {
            return Err(PreprocessError::CropPct { crop_pct: self.crop_pct });
        }
        let finite = self.mean.iter().chain(&self.std).all(|v| v.is_finite());
        if !finite || self.std.iter().any(|v| *v <= 0.0) {
            return Err(PreprocessError::Normalisation { mean: self.mean, std: self.std });
        }
        Ok(())
    }

    /// Side after the resize (the short one, the long one or both): timm's `math.floor(size / crop_pct)`.
    fn scale_size(&self) -> usize {
        (self.size as f64 / self.crop_pct).floor() as usize
    }

    /// Width and height after the resize. For [`CropMode::Center`] as torchvision's `Resize` computes them: the short side
    /// exactly, the long side `int(short' · long / short)`, rounded down. The integer division equals Python's division of
    /// floats here: the quotient is either whole or at least 1/short away from a whole number. For [`CropMode::Border`] as
    /// timm's `ResizeKeepRatio` does: both sides `round(side / ratio)`, halves to even, with the ratio of the long side.
    fn resized(&self, width: u32, height: u32) -> Result<(u32, u32), PreprocessError> {
        let target = self.scale_size();
        match self.crop_mode {
            CropMode::Center => {}
            CropMode::Squash => return Ok((target as u32, target as u32)),
            CropMode::Border => {
                let ratio = f64::from(width.max(height)) / target as f64;
                let side = |n: u32| ((f64::from(n) / ratio).round_ties_even() as u32).max(1);
                return Ok((side(width), side(height)));
            }
        }
        let (short, long) = (u64::from(width.min(height)), u64::from(width.max(height)));
        let new_long = target as u64 * long / short.max(1);
        if new_long > MAX_LONG {
            return Err(PreprocessError::AspectRatio { width, height, short: target, long: new_long });
        }
        let (s, l) = (target as u32, new_long as u32);
        Ok(if width <= height { (s, l) } else { (l, s) })
    }

    /// The image as `[C, size, size]`, C = 1 or 3, resized, cropped and normalised.
    ///
    /// One channel is normalised with the mean of the three means and of the three standard deviations.
    pub(super) fn apply(&self, image: &Pixels, channels: Channels) -> Result<Array3<f32>, PreprocessError> {
        self.validate()?;
        let (width, height) = self.resized(image.width, image.height)?;
        let resized = resize(image, width, height, channels, self.interpolation)?;
        let (w, h, n, c) = (width as usize, height as usize, self.size, channels.count());
        let (columns, rows) = (window(w, n), window(h, n));
        let (mean, std) = match channels {
            Channels::Rgb => (self.mean, self.std),
            Channels::Grey => ([self.mean.iter().sum::<f32>() / 3.0; 3], [self.std.iter().sum::<f32>() / 3.0; 3]),
        };
        // The border's colour: round(255 · mean) of Python.
        let fill = mean.map(|m| (f64::from(m) * 255.0).round_ties_even().clamp(0.0, 255.0) as u8);
        Ok(Array3::from_shape_fn((c, n, n), |(k, y, x)| {
            let at = rows(y).zip(columns(x)).and_then(|(y, x)| resized.get((y * w + x) * c + k));
            let v = at.copied().unwrap_or(fill[k]);
            (f32::from(v) / 255.0 - mean[k]) / std[k]
        }))
    }
}

/// From a place in the crop to the place in `length` pixels, or `None` in the border: a long side is cut on both ends, a short one
/// padded, the odd pixel at the end.
fn window(length: usize, crop: usize) -> impl Fn(usize) -> Option<usize> {
    let (skip, pad) = (centre_round_half_even(length, crop), crop.saturating_sub(length) / 2);
    move |i| (i + skip).checked_sub(pad).filter(|&at| at < length)
}

/// `int(round((length − crop) / 2.0))` of Python, which rounds halves to even.
fn centre_round_half_even(length: usize, crop: usize) -> usize {
    let d = length.saturating_sub(crop);
    let half = d / 2;
    if d % 2 == 1 && half % 2 == 1 { half + 1 } else { half }
}

/// Pillow's `resize`: first along x, then along y, rounding to 8 bits in between. The two passes are two calls because
/// the library would do them in the other order, which rounds differently. (Pillow 13 takes the other order for some
/// upright images; that moves values by 0.1 of 255 on average.)
fn resize(
    image: &Pixels,
    width: u32,
    height: u32,
    channels: Channels,
    filter: Interpolation,
) -> Result<Vec<u8>, PreprocessError> {
    let pixel = match channels {
        Channels::Grey => PixelType::U8,
        Channels::Rgb => PixelType::U8x3,
    };
    let filter = match filter {
        Interpolation::Bilinear => FilterType::Bilinear,
        Interpolation::Bicubic => FilterType::CatmullRom,
        Interpolation::Lanczos => FilterType::Lanczos3,
    };
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(filter)).use_alpha(false);
    let failed = |reason: String| PreprocessError::Resize { width: image.width, height: image.height, reason };
    let mut resizer = Resizer::new();
    let mut pass = |src: &ImageRef<'_>, to: (u32, u32)| -> Result<Vec<u8>, PreprocessError> {
        if (src.width(), src.height()) == to {
            return Ok(src.buffer().to_vec());
        }
        let mut out = Image::new(to.0, to.1, pixel);
        resizer.resize(src, &mut out, &options).map_err(|e| failed(e.to_string()))?;
        Ok(out.into_vec())
    };
    let source = ImageRef::new(image.width, image.height, &image.data, pixel).map_err(|e| failed(e.to_string()))?;
    let along_x = pass(&source, (width, image.height))?;
    let source = ImageRef::new(width, image.height, &along_x, pixel).map_err(|e| failed(e.to_string()))?;
    pass(&source, (width, height))
}
