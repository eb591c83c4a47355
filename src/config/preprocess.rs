//! How a model wants its images, as three kinds of file say it.
//!
//! | file | keys |
//! | --- | --- |
//! | a section `preprocess` of a configuration, or a YAML file of its own | those of [`Preprocessing`]; an unknown one is an error |
//! | timm's `config.json`, or its `pretrained_cfg` alone | the same names among many others |
//! | Hugging Face's `preprocessor_config.json` | `size`, `crop_size`, `do_center_crop`, `resample`, `image_mean`, … |

use serde::{Deserialize, Serialize};

use super::read::{Reader, Result};
use super::tree::{Key, Node, Value};
use crate::data::{CropMode, Interpolation, PRESETS, Preprocess, PreprocessError};

/// What a file says of the preprocessing; `None` where it says nothing.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Preprocessing {
    /// `preset`: what is not said otherwise; without it timm's own defaults (ImageNet's mean and std, bicubic, crop_pct 0.875).
    pub preset: Option<String>,
    /// `input_size`: side of the square in pixels, 1 to 8192; timm's `[channels, height, width]` too.
    pub input_size: Option<usize>,
    /// `interpolation`: bicubic, bilinear or lanczos.
    pub interpolation: Option<Interpolation>,
    /// `crop_mode`: center, squash or border.
    pub crop_mode: Option<CropMode>,
    /// `crop_pct`, in (0, 1].
    pub crop_pct: Option<f64>,
    /// `mean` of R, G, B in [0, 1].
    pub mean: Option<[f32; 3]>,
    /// `std` of R, G, B, above 0.
    pub std: Option<[f32; 3]>,
    /// `exif_orientation`: whether images are turned upright first; true unless said.
    pub exif_orientation: Option<bool>,
}

const KEYS: [&str; 8] = ["preset", "input_size", "interpolation", "crop_mode", "crop_pct", "mean", "std", "exif_orientation"];
/// timm's DEFAULT_CROP_PCT.
const TIMM_CROP_PCT: f64 = 0.875;
/// Keys that only a `preprocessor_config.json` has.
const HUGGING_FACE: [&str; 5] = ["image_processor_type", "feature_extractor_type", "do_resize", "do_normalize", "image_mean"];

impl Preprocessing {
    /// The preset of that name and nothing else.
    pub fn preset(name: &str) -> Self {
        Self { preset: Some(name.to_owned()), ..Self::default() }
    }

    /// For a model that takes images of `size` × `size` pixels.
    ///
    /// # Errors
    /// An unknown preset, a value out of range.
    pub fn resolve(&self, size: usize) -> std::result::Result<Preprocess, PreprocessError> {
        let mut p = match &self.preset {
            Some(name) => Preprocess::preset(name, size)?,
            None => Preprocess { crop_pct: TIMM_CROP_PCT, ..Preprocess::imagenet(size) },
        };
        p.interpolation = self.interpolation.unwrap_or(p.interpolation);
        p.crop_mode = self.crop_mode.unwrap_or(p.crop_mode);
        p.crop_pct = self.crop_pct.unwrap_or(p.crop_pct);
        p.mean = self.mean.unwrap_or(p.mean);
        p.std = self.std.unwrap_or(p.std);
        p.exif_orientation = self.exif_orientation.unwrap_or(p.exif_orientation);
        p.validate()?;
        Ok(p)
    }
}

fn find<'n>(pairs: &'n [(Key, Node)], name: &str) -> Option<&'n (Key, Node)> {
    pairs.iter().find(|(k, v)| k.name == name && v.value != Value::Null)
}

impl Reader<'_> {
    /// A file of its own; in JSON the keys that are none of ours are timm's or Hugging Face's own business.
    pub(super) fn preprocessing_file(&self, root: &Node, json: bool) -> Result<Preprocessing> {
        let pairs = self.mapping(root, "the file")?;
        if let Some((_, section)) = find(pairs, "preprocess") {
            return self.preprocess_section(section);
        }
        if HUGGING_FACE.iter().any(|k| find(pairs, k).is_some()) {
            return self.hugging_face(root, pairs);
        }
        match find(pairs, "pretrained_cfg") {
            Some((_, cfg)) => self.preprocess_keys(cfg, false),
            None if json && !KEYS.iter().any(|k| find(pairs, k).is_some()) => Err(self.error(
                root.line,
                format!(
                    "says nothing of the preprocessing: a timm config.json has `pretrained_cfg`, a preprocessor_config.json `image_mean`, and a file of your own some of {}.",
                    KEYS.join(", ")
                ),
            )),
            None => self.preprocess_keys(root, !json),
        }
    }

    /// The section of a configuration.
    pub(super) fn preprocess_section(&self, node: &Node) -> Result<Preprocessing> {
        if let Value::Text(name) = &node.value {
            self.check_preset(node, name)?;
            return Ok(Preprocessing::preset(name));
        }
        self.preprocess_keys(node, true)
    }

    fn preprocess_keys(&self, node: &Node, strict: bool) -> Result<Preprocessing> {
        let mut p = Preprocessing::default();
        for (key, value) in self.mapping(node, "the preprocessing")? {
            match key.name.as_str() {
                // timm writes null where its default holds.
                name if value.value == Value::Null && KEYS.contains(&name) => {}
                "preset" => match &value.value {
                    Value::Text(name) => {
                        self.check_preset(value, name)?;
                        p.preset = Some(name.clone());
                    }
                    other => return Err(self.wrong(value.line, "preset", &format!("one of {}", PRESETS.join(", ")), other)),
                },
                "input_size" => p.input_size = Some(self.side(key, value)?),
                "interpolation" => p.interpolation = Some(self.choice(value, "interpolation", &Interpolation::NAMES)?),
                "crop_mode" => p.crop_mode = Some(self.choice(value, "crop mode", &CropMode::NAMES)?),
                "crop_pct" => p.crop_pct = Some(self.fraction(key, value, 0.0)?),
                "mean" => p.mean = Some(self.triple(key, value, f64::NEG_INFINITY)?),
                "std" => p.std = Some(self.triple(key, value, 0.0)?),
                "exif_orientation" => p.exif_orientation = Some(self.boolean(key, value)?),
                _ if strict => return Err(self.unknown_key(key, "key of the preprocessing", &KEYS)),
                _ => {}
            }
        }
        Ok(p)
    }

    fn check_preset(&self, node: &Node, name: &str) -> Result<()> {
        match Preprocess::preset(name, 1) {
            Ok(_) => Ok(()),
            Err(e) => Err(self.error(node.line, e.to_string())),
        }
    }

    /// `224`, or `[3, 224, 224]`.
    fn side(&self, key: &Key, node: &Node) -> Result<usize> {
        let wanted = "the side of a square in pixels, 1 to 8192, or [channels, height, width] with equal height and width";
        let wrong = || self.wrong(node.line, &key.name, wanted, &node.value);
        match &node.value {
            Value::List(items) => match items.as_slice() {
                [_, h, w] if h.value == w.value => self.integer(key, h, 1, 8192),
                _ => Err(wrong()),
            },
            Value::Int(_) => self.integer(key, node, 1, 8192).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }

    /// Three numbers above `low`; one stands for all three.
    fn triple(&self, key: &Key, node: &Node, low: f64) -> Result<[f32; 3]> {
        let wanted = if low == 0.0 { "a list of three numbers above 0" } else { "a list of three numbers" };
        let wrong = || self.wrong(node.line, &key.name, wanted, &node.value);
        let number = |n: &Node| {
            let v = match n.value {
                Value::Int(v) => v as f64,
                Value::Float(v) => v,
                _ => return Err(wrong()),
            };
            if v > low && (v as f32).is_finite() { Ok(v as f32) } else { Err(wrong()) }
        };
        match &node.value {
            Value::List(items) => match items.as_slice() {
                [v] => Ok([number(v)?; 3]),
                [r, g, b] => Ok([number(r)?, number(g)?, number(b)?]),
                _ => Err(wrong()),
            },
            _ => Ok([number(node)?; 3]),
        }
    }

    /// An image processor of Hugging Face's transformers.
    fn hugging_face(&self, root: &Node, pairs: &[(Key, Node)]) -> Result<Preprocessing> {
        let flag = |name: &str, default: bool| match find(pairs, name) {
            Some((key, value)) => self.boolean(key, value),
            None => Ok(default),
        };
        let refuse = |node: &Node, what: &str| {
            Err(self.error(node.line, format!("{what} is not supported: give an .npy of preprocessed samples.")))
        };
        let mut p = Preprocessing { preset: Some("none".to_owned()), ..Preprocessing::default() };
        if !flag("do_rescale", true)? {
            return refuse(root, "`do_rescale: false` (values from 0 to 255)");
        }
        if let Some((_, node)) = find(pairs, "rescale_factor")
            && !matches!(node.value, Value::Float(f) if (f * 255.0 - 1.0).abs() < 1e-6)
        {
            return refuse(node, "a `rescale_factor` other than 1/255");
        }
        if flag("do_normalize", true)? {
            for (name, low) in [("image_mean", f64::NEG_INFINITY), ("image_std", 0.0)] {
                let value = match find(pairs, name) {
                    Some((key, node)) => self.triple(key, node, low)?,
                    None => return Err(self.error(root.line, format!("`{name}` is missing beside `do_normalize`: add it."))),
                };
                if low == 0.0 { p.std = Some(value) } else { p.mean = Some(value) }
            }
        }
        p.interpolation = Some(match find(pairs, "resample").map(|(_, node)| (node, &node.value)) {
            None | Some((_, Value::Int(2))) => Interpolation::Bilinear,
            Some((_, Value::Int(3))) => Interpolation::Bicubic,
            Some((_, Value::Int(1))) => Interpolation::Lanczos,
            Some((node, _)) => return refuse(node, "a `resample` other than 1 (lanczos), 2 (bilinear) and 3 (bicubic)"),
        });
        let crop = if flag("do_center_crop", false)? { self.hugging_face_size(pairs, "crop_size")? } else { None };
        let Some(size) = self.hugging_face_size(pairs, "size")? else {
            return Err(self.error(root.line, "`size` is missing: give {height, width} or {shortest_edge}.".to_owned()));
        };
        let own_pct = find(pairs, "crop_pct").map(|(key, node)| self.fraction(key, node, 0.0)).transpose()?;
        let (side, pct) = match (crop, size) {
            (Some((crop, _)), (resized, _)) if resized >= crop => (crop, share(crop, resized)),
            (None, (side, true)) if own_pct.is_some() => (side, own_pct.unwrap_or(1.0)),
            (None, (side, false)) => (side, 1.0),
            _ => return refuse(root, "a resize that leaves no square of the model's size"),
        };
        p.input_size = Some(side);
        p.crop_pct = Some(pct);
        p.crop_mode = Some(if size.1 { CropMode::Center } else { CropMode::Squash });
        Ok(p)
    }

    /// A side, and whether it is that of the shortest edge.
    fn hugging_face_size(&self, pairs: &[(Key, Node)], name: &str) -> Result<Option<(usize, bool)>> {
        let Some((key, node)) = find(pairs, name) else { return Ok(None) };
        let Value::Map(inner) = &node.value else {
            // Before transformers 4.26: one number, a square for `size` of a ViT.
            return Ok(Some((self.integer(key, node, 1, 8192)?, false)));
        };
        if let Some((key, edge)) = find(inner, "shortest_edge") {
            return Ok(Some((self.integer(key, edge, 1, 8192)?, true)));
        }
        match (find(inner, "height"), find(inner, "width")) {
            (Some((key, h)), Some((_, w))) if h.value == w.value => Ok(Some((self.integer(key, h, 1, 8192)?, false))),
            _ => Err(self.wrong(node.line, &key.name, "{height, width} of a square, or {shortest_edge}", &node.value)),
        }
    }
}

/// The `crop_pct` for which timm's `floor(crop / crop_pct)` is `resized`.
fn share(crop: usize, resized: usize) -> f64 {
    let (c, r) = (crop as f64, resized as f64);
    if (c / (c / r)).floor() == r { c / r } else { c / (r + 0.5) }
}

#[cfg(test)]
#[path = "tests/preprocess.rs"]
mod tests;
