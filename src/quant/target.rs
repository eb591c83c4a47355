//! What each deployment target runs in integers.

use crate::vit::{Site, SiteRef};

/// Where the emitted model is meant to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// Everything quantised: custom ops with function bodies, PTF residuals. For NPUs, FPGAs and as the bit-exact reference.
    Integer,
    /// onnxruntime's CPU provider: only forms that fuse to its integer kernels, no custom op.
    OnnxRuntime,
}

/// A head, of 64 channels as a rule, has as many multiply-accumulates for each probability, so that making its code costs as much as an
/// integer product gains; and most probabilities are below the step of 8 evenly spaced bits.
const ATTENTION_BY_V: &str = "onnxruntime's integer product of probabilities and v is no faster than its float one, and its codes cost most of the accuracy";

impl Target {
    /// Every target by its name.
    pub const NAMES: [(&'static str, Target); 2] = [("integer", Target::Integer), ("onnxruntime", Target::OnnxRuntime)];

    /// The name on the command line and in plans.
    pub fn name(self) -> &'static str {
        match self {
            Target::Integer => "integer",
            Target::OnnxRuntime => "onnxruntime",
        }
    }

    /// Why a site stays in float on this target, or `None` when it is quantised. `multiplied` says whether a MatMul or
    /// convolution reads the site.
    pub(super) fn keeps_float(self, site: &SiteRef, multiplied: bool) -> Option<&'static str> {
        if self == Target::Integer {
            return None;
        }
        let of_v = site.site == Site::AttnQkvOutput && site.part.as_deref() == Some("v");
        match site.site {
            Site::KvAct => Some(
                "onnxruntime's integer MatMul writes the float scores that Softmax reads: a Q/DQ pair between costs time and accuracy",
            ),
            Site::IntSoft | Site::TalkingHeads | Site::TalkingOutput => Some(ATTENTION_BY_V),
            _ if of_v => Some(ATTENTION_BY_V),
            _ if multiplied || site.site.is_general() => None,
            Site::Residual1 | Site::Residual2 => {
                Some("LayerNormalization runs in float on onnxruntime, and a scale a channel would not fuse")
            }
            Site::HeadOutput => Some("the model's own output: onnxruntime's integer MatMul writes floats directly"),
            Site::Embed if site.weight => Some("it is added in float on onnxruntime"),
            _ if site.weight => None,
            // A convolution is integer only with codes on both sides.
            Site::Input | Site::PatchEmbed => None,
            _ => Some("the operator that reads it runs in float on onnxruntime, and its integer MatMul writes floats directly"),
        }
    }

    /// Whether a site's codes are signed on this target whatever the configuration says: onnxruntime's fastest kernels
    /// multiply unsigned left operands with signed right ones.
    pub(super) fn signed(self, site: &SiteRef) -> Option<bool> {
        let right_operand = site.site == Site::AttnQkvOutput && site.part.as_deref() != Some("q");
        match self {
            Target::Integer => None,
            Target::OnnxRuntime => Some(site.weight || right_operand),
        }
    }

    /// A site with those of its values that get a Q/DQ pair: what only carries its elements has one too, so that a chain stays
    /// integer, but not behind onnxruntime's patch convolution, where the sum with the positions is made in float.
    pub fn coded(self, site: &SiteRef) -> SiteRef {
        let mut coded = site.clone();
        if self == Target::OnnxRuntime && site.site == Site::PatchEmbed {
            coded.values.truncate(1);
        }
        coded
    }

    /// Whether a Linear is fastest as a Gemm on rows: onnxruntime's integer MatMul leaves the bias to an Add of its own, its integer
    /// Gemm starts from it.
    pub fn adds_biases_in_gemm(self) -> bool {
        self == Target::OnnxRuntime
    }

    /// Whether an int32 accumulator may take other constants than a bias a channel before it is requantised: onnxruntime's integer
    /// kernels end in codes or floats.
    pub fn keeps_accumulators(self) -> bool {
        self == Target::Integer
    }

    /// Whether LayerNorm, softmax and activation functions become custom integer ops.
    pub fn has_custom_ops(self) -> bool {
        self == Target::Integer
    }
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
