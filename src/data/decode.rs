//! Image files to 8-bit pixels, with Pillow's conversions.
//!
//! Two differences from Pillow remain: the JPEG decoder (zune-jpeg, not libjpeg-turbo) rounds its inverse transform and
//! its chroma upsampling its own way, which moves single pixels by one or two steps; and CMYK is converted by the
//! decoder, which takes the inks as inverted, as Adobe writes them and every program since.

use std::io::Cursor;
use std::path::Path;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader};

use super::error::DataError;

/// The channels that the model takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Channels {
    /// One channel: Pillow's `convert("L")`, the luma of ITU-R 601.
    Grey,
    /// Three channels: Pillow's `convert("RGB")`.
    #[default]
    Rgb,
}

impl Channels {
    /// How many there are: 1 or 3.
    pub fn count(self) -> usize {
        match self {
            Self::Grey => 1,
            Self::Rgb => 3,
        }
    }

    /// From the size of the model's channel axis; nothing but 1 and 3 has a meaning for an image file.
    pub fn from_count(count: usize) -> Option<Self> {
        match count {
            1 => Some(Self::Grey),
            3 => Some(Self::Rgb),
            _ => None,
        }
    }
}

/// 8-bit pixels, row by row, the channels of a pixel together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pixels {
    /// Width in pixels, at least 1.
    pub(super) width: u32,
    /// Height in pixels, at least 1.
    pub(super) height: u32,
    /// Of `width · height · channels` bytes.
    pub(super) data: Vec<u8>,
}

/// Whether the first bytes are those of a JPEG or PNG file.
pub(super) fn is_image(head: &[u8]) -> bool {
    head.starts_with(&[0xff, 0xd8, 0xff]) || head.starts_with(b"\x89PNG\r\n\x1a\n")
}

/// Reads and decodes one JPEG or PNG file; the content decides which, not the name. `turn` is whether the EXIF orientation is
/// applied, as Pillow's `ImageOps.exif_transpose` does.
pub(super) fn decode(path: &Path, channels: Channels, turn: bool) -> Result<Pixels, DataError> {
    let bytes = std::fs::read(path).map_err(|e| DataError::read(path, &e))?;
    let corrupt = |reason: String| DataError::CorruptImage { path: path.to_path_buf(), reason };
    if bytes.is_empty() {
        return Err(corrupt("the file is empty".to_owned()));
    }
    if !is_image(&bytes) {
        return Err(corrupt("its first bytes are those of neither a JPEG nor a PNG file".to_owned()));
    }
    let mut reader = ImageReader::new(Cursor::new(&bytes));
    let format = if bytes.starts_with(&[0xff]) { ImageFormat::Jpeg } else { ImageFormat::Png };
    if format == ImageFormat::Jpeg && !has_end_of_image(&bytes) {
        // The decoder fills what is missing with grey and says nothing.
        return Err(corrupt("the JPEG data is cut off before its end marker".to_owned()));
    }
    reader.set_format(format);
    let mut decoder = reader.into_decoder().map_err(|e| corrupt(e.to_string()))?;
    // Damaged metadata of an intact image are no reason to refuse it; Pillow does not either.
    let orientation = if turn { decoder.orientation().ok() } else { None };
    let mut image = DynamicImage::from_decoder(decoder).map_err(|e| corrupt(e.to_string()))?;
    if let Some(orientation) = orientation {
        image.apply_orientation(orientation);
    }
    if image.width() == 0 || image.height() == 0 {
        return Err(corrupt("it has no pixels".to_owned()));
    }
    Ok(convert(image, channels))
}

/// Whether an end-of-image marker (FF D9) follows the last start of a scan (FF DA).
fn has_end_of_image(bytes: &[u8]) -> bool {
    let last = |marker: u8| bytes.windows(2).rposition(|w| w == [0xff, marker]);
    match (last(0xda), last(0xd9)) {
        (Some(scan), Some(end)) => end > scan,
        _ => false,
    }
}

/// As Pillow converts: alpha is dropped (not blended), 16-bit colour keeps its high byte, 16-bit grey is clipped to 255
/// (Pillow's mode I;16, odd as that is), luma is `(19595 R + 38470 G + 7471 B + 32768) >> 16`.
fn convert(image: DynamicImage, channels: Channels) -> Pixels {
    let (width, height) = (image.width(), image.height());
    // Grey or colour, 8 bits, alpha gone.
    let (grey, data) = match image {
        DynamicImage::ImageLuma8(p) => (true, p.into_raw()),
        DynamicImage::ImageLumaA8(p) => (true, p.pixels().map(|p| p.0[0]).collect()),
        DynamicImage::ImageLuma16(p) => (true, p.pixels().map(|p| clip(p.0[0])).collect()),
        DynamicImage::ImageLumaA16(p) => (true, p.pixels().map(|p| high_byte(p.0[0])).collect()),
        DynamicImage::ImageRgb8(p) => (false, p.into_raw()),
        DynamicImage::ImageRgb16(p) => (false, p.pixels().flat_map(|p| p.0.map(high_byte)).collect()),
        DynamicImage::ImageRgba16(p) => (false, p.pixels().flat_map(|p| [p.0[0], p.0[1], p.0[2]].map(high_byte)).collect()),
        other => (false, other.into_rgb8().into_raw()),
    };
    let data = match (grey, channels) {
        (true, Channels::Grey) | (false, Channels::Rgb) => data,
        (true, Channels::Rgb) => data.into_iter().flat_map(|v| [v; 3]).collect(),
        (false, Channels::Grey) => data.chunks_exact(3).map(|p| luma(p[0], p[1], p[2])).collect(),
    };
    Pixels { width, height, data }
}

fn high_byte(v: u16) -> u8 {
    (v >> 8) as u8
}

fn clip(v: u16) -> u8 {
    v.min(255) as u8
}

fn luma(r: u8, g: u8, b: u8) -> u8 {
    ((19595 * u32::from(r) + 38470 * u32::from(g) + 7471 * u32::from(b) + 32768) >> 16) as u8
}
