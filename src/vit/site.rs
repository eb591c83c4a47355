//! The closed list of quantisation sites and their names: the configuration's vocabulary.

/// The section of a configuration file that a site belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Section {
    /// Weights of Linear layers, and LayerNorm outputs.
    Layers,
    /// Activations inside a block.
    AttnLayer,
    /// Residual sums.
    ResidualLayer,
    /// What lies outside the blocks, and what the first three leave out between two integer steps.
    ExtraLayer,
}

impl Section {
    /// The key in a configuration file.
    pub const fn key(self) -> &'static str {
        match self {
            Section::Layers => "layers",
            Section::AttnLayer => "attn_layer",
            Section::ResidualLayer => "residual_layer",
            Section::ExtraLayer => "extra_layer",
        }
    }
}

macro_rules! sites {
    ($($variant:ident = $name:literal, $section:ident, $doc:literal;)*) => {
        /// A kind of quantisation site.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Site { $(#[doc = $doc] $variant,)* }

        impl Site {
            /// Every site, in the order of the data flow.
            pub const ALL: &'static [Site] = &[$(Site::$variant,)*];

            /// The name in configuration files, plans and reports.
            pub const fn name(self) -> &'static str {
                match self { $(Site::$variant => $name,)* }
            }

            /// The section of a configuration file that it belongs to.
            pub const fn section(self) -> Section {
                match self { $(Site::$variant => Section::$section,)* }
            }

            /// What the site's tensor is.
            pub fn describe(self) -> &'static str {
                match self { $(Site::$variant => $doc,)* }
            }
        }
    };
}

sites! {
    Input = "input", ExtraLayer, "the graph's input";
    PatchEmbed = "patch_embed", ExtraLayer, "the patch embedding: weights of its convolution, and its output with the class token";
    Embed = "embed", ExtraLayer, "the sum with the position embedding, the first block's input";
    Norm1 = "norm1", Layers, "output of the LayerNorm before attention";
    AttnQkv = "attn_qkv", Layers, "weights of q, k and v";
    AttnQkvOutput = "attn_qkv_output", AttnLayer, "q, k and v";
    KvAct = "kv_act", AttnLayer, "the scaled scores q·kᵀ";
    IntSoft = "intSoft", AttnLayer, "the softmax's probabilities";
    SvAttn = "sv_attn", AttnLayer, "attention · v, the input of attn_proj";
    AttnProj = "attn_proj", Layers, "weights of the attention's output projection";
    AttnProjOutput = "attn_proj_output", ExtraLayer, "output of attn_proj";
    QkNorm = "qk_norm", ExtraLayer, "q and k after a normalisation of their own";
    QkRope = "qk_rope", ExtraLayer, "q and k after a rotary embedding";
    TalkingHeads = "talking_heads", ExtraLayer, "weights that mix the heads before or behind the softmax";
    TalkingOutput = "talking_output", ExtraLayer, "the probabilities after heads were mixed";
    AttnNorm = "attn_norm", ExtraLayer, "output of a LayerNorm between sv_attn and attn_proj";
    Residual1 = "residual1", ResidualLayer, "the residual sum after attention";
    Norm2 = "norm2", Layers, "output of the LayerNorm before the MLP";
    MlpFc1 = "mlp_fc1", Layers, "weights of the MLP's first Linear";
    MlpFc1Output = "mlp_fc1_output", ExtraLayer, "output of mlp_fc1, the activation's input";
    MlpGate = "mlp_gate", ExtraLayer, "the activation's output in a gated MLP, before it is multiplied";
    MlpAct = "mlp_act", AttnLayer, "the activation's output, multiplied with the other half in a gated MLP";
    MlpNorm = "mlp_norm", ExtraLayer, "output of a LayerNorm between mlp_act and mlp_fc2";
    MlpFc2 = "mlp_fc2", Layers, "weights of the MLP's second Linear";
    MlpAct2 = "mlp_act2", AttnLayer, "output of mlp_fc2";
    Residual2 = "residual2", ResidualLayer, "the residual sum after the MLP";
    Norm = "norm", ExtraLayer, "output of the final LayerNorm";
    Head = "head", ExtraLayer, "weights of the classifier";
    HeadOutput = "head_output", ExtraLayer, "the logits";
    LayerInput = "layer_input", ExtraLayer, "what a convolution or Linear in no block reads and no other site is";
    Conv = "conv", ExtraLayer, "weights of a convolution in no block";
    ConvOutput = "conv_output", ExtraLayer, "output of a convolution in no block, after its Relu or Clip";
    Linear = "linear", ExtraLayer, "weights of a Linear in no block";
    LinearOutput = "linear_output", ExtraLayer, "output of a Linear in no block, after its Relu or Clip";
    AddOutput = "add_output", ExtraLayer, "a sum in no block, after its Relu or Clip";
    MulOutput = "mul_output", ExtraLayer, "a product of two activations in no block";
    ConcatOutput = "concat_output", ExtraLayer, "activations joined in no block";
    PoolOutput = "pool_output", ExtraLayer, "output of an average pool";
    ActOutput = "act_output", ExtraLayer, "output of an activation function in no block that does more than clip";
}

impl Site {
    /// Whether it is a sum of the residual stream: the first, of patches and positions, or one behind attention or an MLP.
    pub const fn is_sum(self) -> bool {
        matches!(self, Site::Embed | Site::Residual1 | Site::Residual2)
    }

    /// Whether the site comes of the general rules: there may be many in a model, told apart by their values' names.
    pub const fn is_general(self) -> bool {
        matches!(
            self,
            Site::LayerInput
                | Site::Conv
                | Site::ConvOutput
                | Site::Linear
                | Site::LinearOutput
                | Site::AddOutput
                | Site::MulOutput
                | Site::ConcatOutput
                | Site::PoolOutput
                | Site::ActOutput
        )
    }

    /// The site of a name.
    pub fn from_name(name: &str) -> Option<Site> {
        Site::ALL.iter().copied().find(|s| s.name() == name)
    }
}

impl std::fmt::Display for Site {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl serde::Serialize for Site {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl<'de> serde::Deserialize<'de> for Site {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = <std::borrow::Cow<'de, str>>::deserialize(d)?;
        Site::from_name(&name).ok_or_else(|| serde::de::Error::custom(format!("unknown site '{name}'")))
    }
}

/// One site of one model: which tensor it is.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SiteRef {
    /// The block, for sites inside one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block: Option<usize>,
    /// The kind.
    pub site: Site,
    /// Which of several tensors of one site (`q`, `k`, `v`; `weight` where weights and output share a name; the first
    /// value's name for a site of the general rules).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<String>,
    /// Whether the tensor is a constant.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weight: bool,
    /// The values that carry the tensor, producer first: the others are the same elements reshaped, transposed or joined.
    pub values: Vec<String>,
    /// The value to observe in their place: scores before a mask makes some of them vanish.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observe: Option<String>,
    /// The rows that the site is of, from one and up to another, on the axis before the last: those of the class token in a sum of which
    /// another site is the other rows. Of the single value, `observe` names these rows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rows: Option<[usize; 2]>,
}

impl SiteRef {
    /// The full name: `blocks.3.attn_qkv_output.q`.
    pub fn full_name(&self) -> String {
        let mut name = self.block.map_or_else(String::new, |b| format!("blocks.{b}."));
        name.push_str(self.site.name());
        if let Some(part) = &self.part {
            name.push('.');
            name.push_str(part);
        }
        name
    }

    /// The value to observe: the last that carries the tensor, so that what is joined to it on the way is seen too. By the
    /// general rules, and to the output of a LayerNorm, nothing is joined, but a pool or slice (class attention's query) may drop
    /// elements: the first.
    pub fn observed(&self) -> &str {
        if let Some(value) = &self.observe {
            return value;
        }
        let first = self.site.is_general() || matches!(self.site, Site::Input | Site::HeadOutput | Site::Norm1 | Site::Norm2);
        let value = if first { self.values.first() } else { self.values.last() };
        value.map_or("", String::as_str)
    }
}

/// What an accumulator is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accumulated {
    /// Full name of the product's own site.
    pub product: String,
    /// Full names of the sites without whose codes there is none: what is multiplied, what else is added, and the sums.
    pub beside: Vec<String>,
}
