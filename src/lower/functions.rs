//! The function bodies of the custom ops, in ONNX's textual syntax.

use super::LowerError;
use crate::ir::{Function, text};

const SOURCES: [(&str, &str); 8] = [
    ("PtfLayerNorm", include_str!("functions/PtfLayerNorm.onnxtxt")),
    ("LogIntSoftmax", include_str!("functions/LogIntSoftmax.onnxtxt")),
    ("LogDequantize", include_str!("functions/LogDequantize.onnxtxt")),
    ("LogNormalize", include_str!("functions/LogNormalize.onnxtxt")),
    ("LutGelu", include_str!("functions/LutGelu.onnxtxt")),
    ("Lut", include_str!("functions/Lut.onnxtxt")),
    ("ChannelLutGelu", include_str!("functions/ChannelLutGelu.onnxtxt")),
    ("ChannelLut", include_str!("functions/ChannelLut.onnxtxt")),
];

/// The names of the custom ops.
pub fn function_names() -> impl Iterator<Item = &'static str> {
    SOURCES.iter().map(|(name, _)| *name)
}

/// The function of a custom op of domain `ai.vitq`.
///
/// # Errors
/// When there is none of that name, or its text does not parse.
pub fn function(name: &str) -> Result<Function, LowerError> {
    let fail = |what: String| LowerError::Function { name: name.to_owned(), what };
    let (_, source) = SOURCES.iter().find(|(n, _)| *n == name).ok_or_else(|| fail("there is none of that name".to_owned()))?;
    text::parse_function(source).map_err(|e| fail(e.to_string()))
}
