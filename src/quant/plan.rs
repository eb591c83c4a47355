//! The plan: every quantised value with its parameters, every float one with its reason. JSON that a person can review.

mod constant;
pub(crate) mod groups;
mod text;
mod unknown;

pub use crate::calib::piecewise::Segments;
use crate::ir::DType;
use crate::vit::{Site, SiteRef};

use super::Target;

pub(crate) use constant::channel_axis;
pub use constant::{Constant, ConstantCodes};
pub use groups::Groups;
use text::FlatLists;

/// The version of the plan's format.
pub const PLAN_VERSION: u32 = 1;

/// Integer codes: how many bits, and whether signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Codes {
    /// Width, 4 to 16.
    pub bits: u8,
    /// Two's complement, or from 0.
    pub signed: bool,
}

impl Codes {
    /// The lowest and the highest code of an affine value: the whole range of the width.
    pub fn range(self) -> (i32, i32) {
        let n = 1i32 << self.bits.clamp(1, 30);
        if self.signed { (-n / 2, n / 2 - 1) } else { (0, n - 1) }
    }

    /// The ONNX type that holds the codes: 8 bits, or 16 for wider ones.
    pub fn dtype(self) -> DType {
        match (self.bits > 8, self.signed) {
            (false, true) => DType::I8,
            (false, false) => DType::U8,
            (true, true) => DType::I16,
            (true, false) => DType::U16,
        }
    }

    /// Whether the codes use less than the range of the type that holds them.
    pub fn is_narrow(self) -> bool {
        !matches!(self.bits, 8 | 16)
    }
}

/// What a value's codes mean.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "scheme", rename_all = "snake_case")]
pub enum Scheme {
    /// `real = scale · (q − zero_point)`.
    Affine {
        /// Codes.
        #[serde(flatten)]
        codes: Codes,
        /// The scale, positive.
        scale: f32,
        /// The zero point, within the codes' range.
        zero_point: i32,
    },
    /// `real = scale · f_c · (q − zero_point_c)` with a factor for each channel.
    Ptf {
        /// Codes.
        #[serde(flatten)]
        codes: Codes,
        /// The base scale, positive.
        scale: f32,
        /// The zero point, within the codes' range: one, or one for each channel.
        zero_point: ZeroPoint,
        /// f_c.
        #[serde(flatten)]
        factors: Factors,
    },
    /// Codes of 8 bits of which few occur: a table takes each to the nearest of 2^b levels, so that b bits name it.
    Codebook {
        /// What the codes of 8 bits mean: `Affine` or `Ptf`, of a constant `Weight`.
        grid: Box<Scheme>,
        /// The codes that occur, ascending, at most 128.
        levels: Vec<i32>,
    },
    /// `real = grid(level(q))`: codes with small steps in the middle and large ones beyond a breakpoint. Zero need not be a level.
    Piecewise {
        /// What the levels mean: `Ptf` or `Affine`, signed, four bits wider than the codes.
        grid: Box<Scheme>,
        /// The codes.
        #[serde(flatten)]
        segments: Segments,
    },
    /// A constant: `real = scale_c · q`, signed and symmetric, with codes ±(2^(bits−1) − 1).
    Weight {
        /// Width, 4 to 16.
        bits: u8,
        /// The channel axis, or `None` for one scale.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        axis: Option<usize>,
        /// One scale a channel.
        scales: Vec<f32>,
    },
    /// A constant: `real = scale_c · f · q`, with an integer factor for each group of elements of a channel.
    Groups {
        /// What `f · q` means: a `Weight` of 8 bits with a scale a channel.
        grid: Box<Scheme>,
        /// The width of q, and how elements share factors.
        #[serde(flatten)]
        groups: Groups,
    },
    /// `real = scale · 2^(−q / 2^fraction_bits)`; the highest code is 0.
    Log2 {
        /// Width, 4 to 8.
        bits: u8,
        /// Fraction bits of the exponent, 0 to 4.
        fraction_bits: u8,
        /// What every value is multiplied by, against the error of the rows' sums; near 1.
        #[serde(default = "one", skip_serializing_if = "is_one")]
        scale: f32,
        /// Whether a row's values are divided by their sum, which is near 1 but not 1: what reads them then takes in a
        /// reciprocal a row. `scale` is 1 then.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        normalized: bool,
    },
    /// No codes of its own: the int32 accumulator of a product, in units of input scale × weight scale, or a constant that is added to
    /// it. The sum has the next codes.
    Accumulator,
}

/// The zero point of a value whose channels have exponents: in JSON a number, or a list of one for each channel.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum ZeroPoint {
    /// The same for all channels.
    Tensor(i32),
    /// One for each channel.
    Channels(Vec<i32>),
}

impl ZeroPoint {
    /// Of one for each channel; one alone where they do not differ.
    pub fn of_channels(zero_points: Vec<i32>) -> ZeroPoint {
        match zero_points[..] {
            [first, ref rest @ ..] if rest.iter().all(|&z| z == first) => ZeroPoint::Tensor(first),
            _ => ZeroPoint::Channels(zero_points),
        }
    }

    /// The numbers: one, or one for each channel.
    pub fn as_slice(&self) -> &[i32] {
        match self {
            ZeroPoint::Tensor(one) => std::slice::from_ref(one),
            ZeroPoint::Channels(each) => each,
        }
    }

    /// The same with every number changed.
    #[must_use]
    pub fn map(&self, f: impl Fn(i32) -> i32) -> ZeroPoint {
        match self {
            ZeroPoint::Tensor(one) => ZeroPoint::Tensor(f(*one)),
            ZeroPoint::Channels(each) => ZeroPoint::Channels(each.iter().map(|&z| f(z)).collect()),
        }
    }
}

/// For each of some codes its nearest level, the lower one of two.
pub fn nearest_levels(levels: &[i32], codes: impl Iterator<Item = i32>) -> Vec<i32> {
    let mut levels = levels.to_vec();
    levels.sort_unstable();
    let to = |code: i32| {
        let above = levels.partition_point(|&level| level < code);
        let beside = [above.checked_sub(1), Some(above)].into_iter().flatten().filter_map(|at| levels.get(at).copied());
        beside.min_by_key(|&level| ((level - code).abs(), level)).unwrap_or(code)
    };
    codes.map(to).collect()
}

fn one() -> f32 {
    1.0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(scale: &f32) -> bool {
    *scale == 1.0
}

impl Scheme {
    /// The width of a code.
    pub fn bits(&self) -> u8 {
        match self {
            Scheme::Affine { codes, .. } | Scheme::Ptf { codes, .. } => codes.bits,
            // As many as name each level, at most 7.
            Scheme::Codebook { levels, .. } => (levels.len().max(2).next_power_of_two().trailing_zeros() as u8).clamp(1, 8),
            Scheme::Piecewise { segments, .. } => segments.bits,
            Scheme::Groups { groups, .. } => groups.bits,
            Scheme::Weight { bits, .. } | Scheme::Log2 { bits, .. } => *bits,
            Scheme::Accumulator => 32,
        }
    }
}

/// The factors of channels: powers of two `2^α_c` (PTF, arXiv 2111.13824, equation 5), or `(1 + m_c / 2^b) · 2^α_c` with b bits of a
/// mantissa, an integer multiplier times a unit either way.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Factors {
    /// α_c, one hexadecimal digit a channel.
    pub exponents: String,
    /// b, 0 to 3.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mantissa_bits: u8,
    /// m_c, one digit a channel, below 2^b; empty where b is 0.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub mantissas: String,
}

/// The largest b of [`Factors`].
pub const MAX_MANTISSA_BITS: u8 = 3;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(bits: &u8) -> bool {
    *bits == 0
}

fn digits(text: &str) -> Option<Vec<u8>> {
    text.chars().map(|c| c.to_digit(16).and_then(|d| u8::try_from(d).ok())).collect()
}

fn to_digits(numbers: impl IntoIterator<Item = u8>) -> String {
    numbers.into_iter().filter_map(|n| char::from_digit(u32::from(n), 16)).collect()
}

impl Factors {
    /// Of an exponent, 0 to 15, and a mantissa for each channel.
    pub fn new(exponents: &[u8], mantissa_bits: u8, mantissas: &[u8]) -> Factors {
        let mantissas = if mantissa_bits == 0 { String::new() } else { to_digits(mantissas.iter().copied()) };
        Factors { exponents: to_digits(exponents.iter().copied()), mantissa_bits, mantissas }
    }

    /// Powers of two.
    pub fn powers_of_two(exponents: &[u8]) -> Factors {
        Factors::new(exponents, 0, &[])
    }

    /// The exponents; `None` for text that is none.
    pub fn exponents(&self) -> Option<Vec<u8>> {
        digits(&self.exponents)
    }

    /// The mantissas, one for each exponent; `None` for text that is none.
    pub fn mantissas(&self) -> Option<Vec<u8>> {
        let exponents = self.exponents.chars().count();
        if self.mantissa_bits == 0 && self.mantissas.is_empty() {
            return Some(vec![0; exponents]);
        }
        let mantissas = digits(&self.mantissas)?;
        let fit = self.mantissa_bits <= MAX_MANTISSA_BITS && mantissas.iter().all(|m| m >> self.mantissa_bits == 0);
        (fit && mantissas.len() == exponents).then_some(mantissas)
    }

    /// Every channel's factor in units of 2^−b, an integer of at most 19 bits; `None` where the text says none.
    pub fn multipliers(&self) -> Option<Vec<u32>> {
        let one = 1u32 << self.mantissa_bits.min(MAX_MANTISSA_BITS);
        let both = self.exponents()?.into_iter().zip(self.mantissas()?);
        Some(both.map(|(e, m)| (one + u32::from(m)) << e).collect())
    }

    /// The scale of multiplier 1, where that of factor 1 is `scale`.
    pub fn unit(&self, scale: f32) -> f64 {
        f64::from(scale) / f64::from(1u32 << self.mantissa_bits.min(MAX_MANTISSA_BITS))
    }

    /// Every channel's scale, where that of factor 1 is `scale`; `None` where the text says none.
    pub fn scales(&self, scale: f32) -> Option<Vec<f32>> {
        let unit = self.unit(scale);
        Some(self.multipliers()?.into_iter().map(|m| (unit * f64::from(m)) as f32).collect())
    }
}

/// One quantised site.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SitePlan {
    /// The full name: `blocks.3.attn_qkv_output.q`.
    pub name: String,
    /// Which tensor it is. All its values get the same codes.
    #[serde(flatten)]
    pub site: SiteRef,
    /// What the codes mean.
    #[serde(flatten)]
    pub scheme: Scheme,
    /// What calibration saw, smallest and largest, of a reparameterized site after its channels' division; for constants, of the tensor
    /// itself.
    pub observed: [f32; 2],
    /// What the configuration asked for and the target changed, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What a search chose instead of what calibration alone says, and what that brought.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
}

impl SitePlan {
    /// Whether it is an activation with codes of its own.
    pub fn rounds(&self) -> bool {
        !self.site.weight && self.scheme != Scheme::Accumulator
    }

    /// Adds to what a search has to say of the site.
    pub fn searched(&mut self, what: &str) {
        self.search = Some(self.search.take().map_or_else(|| what.to_owned(), |known| format!("{known}; {what}")));
    }
}

/// One site left in float.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct FloatSite {
    /// The full name.
    pub name: String,
    /// The kind.
    pub site: Site,
    /// Why.
    pub reason: String,
}

/// A LayerNorm's output that is divided by a factor a channel: its weights and bias are divided, and the rows of the weights that
/// read it multiplied, so that the model computes what it did.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Reparameterized {
    /// The full name of the output's site.
    pub site: String,
    /// What each channel is divided by, above 0.
    pub factors: Vec<f32>,
}

/// A file of constants that a plan belongs to.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ConstantsFile {
    /// Its name, in the plan's folder.
    pub file: String,
    /// SHA-256 of its bytes, in hexadecimal.
    pub sha256: String,
}

/// Every decision about one model.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantPlan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// SHA-256 of the model's canonical form, so that no plan meets another model.
    pub model: String,
    /// The target.
    pub target: Target,
    /// The preset's name or the configuration's path.
    pub config: String,
    /// Weights and biases that take the place of the model's own, an `.npz` by their names: those that error-compensated rounding
    /// and bias correction changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub constants: Option<ConstantsFile>,
    /// Sites whose channels' scales stand in the constants around them; the schemes of these sites and of the weights that read them
    /// are of the model so changed, and so are the file's constants: no entry can be changed without the others.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reparameterized: Vec<Reparameterized>,
    /// Quantised sites, in the order of the data flow.
    pub sites: Vec<SitePlan>,
    /// Sites left in float, with the reason.
    pub float: Vec<FloatSite>,
}

/// Why a plan cannot be read or applied.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// The text is no plan.
    #[error("{place} is not a quantisation plan: {what}; make one with `vitq plan`")]
    Parse {
        /// The file.
        place: String,
        /// What is wrong, with line and column.
        what: String,
    },
    /// The plan's format is newer or older.
    #[error("{place} is a plan of version {found}, and this build reads version {PLAN_VERSION}: make it again with `vitq plan`")]
    Version {
        /// The file.
        place: String,
        /// The file's.
        found: u32,
    },
    /// The plan's constants are not those that it was made with.
    #[error(
        "the plan's weights in {place} cannot be used: {what}; keep the file as it was written with the plan, or compile again"
    )]
    Constants {
        /// The file.
        place: String,
        /// What is wrong.
        what: String,
    },
    /// The plan was made for another model.
    #[error(
        "the plan was made for another model (digest {plan}…, this model has {model}…): make a plan of this model's own statistics"
    )]
    OtherModel {
        /// First digits of the plan's digest.
        plan: String,
        /// First digits of the model's digest.
        model: String,
    },
}

impl QuantPlan {
    /// The plan of a site's full name.
    pub fn site(&self, name: &str) -> Option<&SitePlan> {
        self.sites.iter().find(|s| s.name == name)
    }

    /// The text of the plan: JSON, one line a number list.
    pub fn to_text(&self) -> String {
        use serde::Serialize;
        let mut out = Vec::new();
        let mut serializer = serde_json::Serializer::with_formatter(&mut out, FlatLists::default());
        // Strings, numbers and lists into memory: nothing in a plan has a failing serialiser.
        let written = self.serialize(&mut serializer).is_ok();
        debug_assert!(written);
        out.push(b'\n');
        String::from_utf8(out).unwrap_or_default()
    }

    /// Reads a plan; `place` names it in errors.
    ///
    /// # Errors
    /// When the text is no plan, or a plan of another version.
    pub fn from_text(text: &str, place: &str) -> Result<QuantPlan, PlanError> {
        #[derive(serde::Deserialize)]
        struct Version {
            version: u32,
        }
        let parse = |e: serde_json::Error| PlanError::Parse { place: place.to_owned(), what: e.to_string() };
        let Version { version } = serde_json::from_str(text).map_err(parse)?;
        if version != PLAN_VERSION {
            return Err(PlanError::Version { place: place.to_owned(), found: version });
        }
        let plan: QuantPlan = serde_json::from_str(text).map_err(parse)?;
        match unknown::key(&serde_json::from_str(text).map_err(parse)?, &plan) {
            Some(what) => Err(PlanError::Parse { place: place.to_owned(), what }),
            None => Ok(plan),
        }
    }

    /// Checks that the plan was made for a model with this digest.
    ///
    /// # Errors
    /// When it was made for another.
    pub fn check_model(&self, digest: &str) -> Result<(), PlanError> {
        let head = |s: &str| s.chars().take(12).collect();
        if self.model == digest { Ok(()) } else { Err(PlanError::OtherModel { plan: head(&self.model), model: head(digest) }) }
    }
}
