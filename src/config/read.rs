//! From the tree of values to a [`Config`]: every name known, every value in its range, or an error that says where.

use super::error::{ConfigError, did_you_mean};
use super::schema::{
    CalibrationMode, Config, Entry, Method, OUTSIDE_BLOCKS, Observer, Rounding, SECTIONS, SITES, Section, WEIGHTS, section_of,
};
use super::tree::{Key, Node, Value};

/// Keys of an entry.
const ENTRY_KEYS: [&str; 22] = [
    "calibration_mode",
    "bit_type",
    "observer_type",
    "quantization_method",
    "percentile_alpha",
    "percentile_sigma",
    "kl_bins",
    "output_quant_enable",
    "enable_profiler",
    "log2_fraction_bits",
    "log2_normalize",
    "max_exponent",
    "ptf_mantissa_bits",
    "ptf_search",
    "keep_accumulator",
    "class_token_codes",
    "ptf_piecewise",
    "reparameterize",
    "group_size",
    "weight_rounding",
    "bias_correction",
    "float",
];
/// Keys of a `bit_type`.
const BIT_TYPE_KEYS: [&str; 4] = ["bits", "signed", "symmetric", "name"];

/// Which entry is being read.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// The `default` of a section, or of everything.
    Default(Option<&'a str>),
    /// A site's.
    Site(&'a str),
}

/// Reads one file.
pub(super) struct Reader<'a> {
    file: &'a str,
    notes: Vec<String>,
    /// Lines of `enable_profiler: true`; one note for all of them.
    profilers: Vec<u64>,
}

pub(super) type Result<T> = std::result::Result<T, ConfigError>;

impl<'a> Reader<'a> {
    pub(super) fn new(file: &'a str) -> Self {
        Self { file, notes: Vec::new(), profilers: Vec::new() }
    }

    /// A single file: `default` and every section.
    pub(super) fn file(mut self, root: &Node, config: &mut Config) -> Result<()> {
        for (key, value) in self.mapping(root, "the file")? {
            if key.name == "default" {
                config.default = self.entry(value, Place::Default(None))?;
            } else if key.name == "preprocess" {
                config.preprocess = Some(self.preprocess_section(value)?);
            } else if key.name == "search" {
                config.search = self.search(value)?;
            } else {
                self.check_section_name(key)?;
                let section = self.section(value, &key.name)?;
                if let Some(slot) = config.section_mut(&key.name) {
                    *slot = section;
                }
            }
        }
        self.finish(config);
        Ok(())
    }

    /// One file of a folder: its `default` is that of its section, and it has no other section.
    pub(super) fn section_file(mut self, root: &Node, section: &str, files: &[(&str, &str)], config: &mut Config) -> Result<()> {
        let mut file_default = Entry::default();
        let mut read = Section::default();
        for (key, value) in self.mapping(root, "the file")? {
            if key.name == "default" {
                file_default = self.entry(value, Place::Default(Some(section)))?;
                continue;
            }
            if ["search", "preprocess"].contains(&key.name.as_str()) {
                let reason = format!(
                    "`{}` stands beside the sections, for which the files of a folder have no place: put all sections into one file.",
                    key.name
                );
                return Err(self.error(key.line, reason));
            }
            self.check_section_name(key)?;
            if key.name != section {
                let file = files.iter().find(|(_, s)| *s == key.name).map_or("", |(f, _)| f);
                return Err(self.error(
                    key.line,
                    format!("the section `{}` belongs in {file}; this file configures `{section}`. Move it there.", key.name),
                ));
            }
            read = self.section(value, section)?;
        }
        read.default = over(&file_default, &read.default);
        if let Some(slot) = config.section_mut(section) {
            *slot = read;
        }
        self.finish(config);
        Ok(())
    }

    fn finish(mut self, config: &mut Config) {
        if let Some(first) = self.profilers.first().copied() {
            let times = match self.profilers.len() {
                1 => String::new(),
                n => format!(" (given {n} times)"),
            };
            self.note(first, format!("`enable_profiler` has no effect{times}: `vitq analyze` measures every site"));
        }
        config.notes.append(&mut self.notes);
    }

    fn check_section_name(&self, key: &Key) -> Result<()> {
        let name = key.name.as_str();
        if SECTIONS.contains(&name) {
            return Ok(());
        }
        let site = name.rsplit('.').next().unwrap_or(name);
        let reason = match section_of(site) {
            Some(section) => format!("site `{name}` stands outside the sections: put it into the section `{section}`."),
            None => {
                let hint = did_you_mean(name, SECTIONS.into_iter().chain(["default", "preprocess", "search"]));
                format!("unknown section '{name}'{hint} Known: default, preprocess, search, {}.", SECTIONS.join(", "))
            }
        };
        Err(self.error(key.line, full_stop(reason)))
    }

    fn section(&mut self, node: &Node, section: &str) -> Result<Section> {
        let mut result = Section::default();
        for (key, value) in self.mapping(node, &format!("the section `{section}`"))? {
            if key.name == "default" {
                result.default = self.entry(value, Place::Default(Some(section)))?;
                continue;
            }
            let (block, site) = self.address(key)?;
            self.check_site(key, site, section)?;
            let entry = self.entry(value, Place::Site(site))?;
            match block {
                None => {
                    result.sites.insert(site.to_owned(), entry);
                }
                Some(_) if OUTSIDE_BLOCKS.contains(&site) => {
                    return Err(self.error(
                        key.line,
                        format!("`{}`: the site `{site}` is outside the blocks: write `{site}` alone.", key.name),
                    ));
                }
                Some(block) => {
                    let repeated = result.blocks.entry(block).or_default().insert(site.to_owned(), entry);
                    if repeated.is_some() {
                        return Err(self.error(
                            key.line,
                            format!("`{}` names blocks.{block}.{site} a second time: keep one of the two.", key.name),
                        ));
                    }
                }
            }
        }
        Ok(result)
    }

    /// `site` or `blocks.<i>.<site>`.
    fn address<'k>(&self, key: &'k Key) -> Result<(Option<usize>, &'k str)> {
        let Some(rest) = key.name.strip_prefix("blocks.") else {
            return Ok((None, &key.name));
        };
        if let Some((index, site)) = rest.split_once('.')
            && index.bytes().all(|b| b.is_ascii_digit())
            && let Ok(block) = index.parse()
        {
            return Ok((Some(block), site));
        }
        Err(self.error(
            key.line,
            format!(
                "`{}` is not of the form blocks.<number>.<site>, with blocks counted from 0: write blocks.3.attn_qkv, \
                 for instance.",
                key.name
            ),
        ))
    }

    fn check_site(&self, key: &Key, site: &str, section: &str) -> Result<()> {
        match section_of(site) {
            Some(right) if right == section => Ok(()),
            Some(right) => Err(self
                .error(key.line, format!("site `{site}` belongs in the section `{right}`, not in `{section}`: move it there."))),
            None => {
                let here: Vec<&str> = SITES.iter().filter(|(s, _)| *s == section).map(|(_, n)| *n).collect();
                let hint = did_you_mean(site, SITES.iter().map(|(_, n)| *n));
                let reason = format!("unknown site '{site}'{hint} Known in `{section}`: {}.", here.join(", "));
                Err(self.error(key.line, full_stop(reason)))
            }
        }
    }

    fn entry(&mut self, node: &Node, place: Place<'_>) -> Result<Entry> {
        let mut e = Entry::default();
        for (key, value) in self.mapping(node, "an entry")? {
            let (name, line) = (key.name.as_str(), value.line);
            match name {
                "calibration_mode" => {
                    e.calibration_mode = Some(self.choice(value, "calibration mode", &CalibrationMode::NAMES)?);
                }
                "bit_type" => self.bit_type(value, &mut e)?,
                "observer_type" => e.observer = Some(self.choice(value, "observer", &Observer::NAMES)?),
                "quantization_method" => {
                    let method = self.choice(value, "quantization method", &Method::NAMES)?;
                    self.check_method(method, line, place)?;
                    e.method = Some(method);
                }
                "percentile_alpha" => e.percentile_alpha = Some(self.fraction(key, value, 0.5)?),
                "percentile_sigma" => e.percentile_sigma = Some(self.fraction(key, value, 0.0)?),
                "kl_bins" | "kv_bins" => {
                    let bins = self.integer(key, value, 128, 16384)?;
                    if e.kl_bins.replace(bins).is_some() {
                        let reason = "`kl_bins` and `kv_bins` are two spellings of one key: keep one of them.";
                        return Err(self.error(key.line, reason.to_owned()));
                    }
                }
                "log2_fraction_bits" => e.log2_fraction_bits = Some(self.integer(key, value, 0, 4)?),
                "log2_normalize" => e.log2_normalize = Some(self.boolean(key, value)?),
                "max_exponent" => e.max_exponent = Some(self.integer(key, value, 0, 15)?),
                "ptf_mantissa_bits" => e.ptf_mantissa_bits = Some(self.integer(key, value, 0, 3)?),
                "ptf_search" => e.ptf_search = Some(self.boolean(key, value)?),
                "keep_accumulator" => e.keep_accumulator = Some(self.boolean(key, value)?),
                "class_token_codes" => e.class_token_codes = Some(self.boolean(key, value)?),
                "ptf_piecewise" => e.ptf_piecewise = Some(self.boolean(key, value)?),
                "reparameterize" => e.reparameterize = Some(self.boolean(key, value)?),
                "group_size" => {
                    self.check_weights(key, place)?;
                    let size = self.integer(key, value, 0, u16::MAX.into())?;
                    if size == 1 {
                        let reason =
                            "`group_size` is 0 (no groups) or 2 and more: with a factor of its own an element takes 8 bits.";
                        return Err(self.error(key.line, reason.to_owned()));
                    }
                    e.group_size = Some(size);
                }
                "weight_rounding" => {
                    self.check_weights(key, place)?;
                    e.weight_rounding = Some(self.choice(value, "weight rounding", &Rounding::NAMES)?);
                }
                "bias_correction" => {
                    self.check_weights(key, place)?;
                    e.bias_correction = Some(self.boolean(key, value)?);
                }
                "float" => e.float = Some(self.boolean(key, value)?),
                "output_quant_enable" => {
                    let on = self.boolean(key, value)?;
                    e.output_quant_enable = Some(on);
                    if let Place::Site(site) = place
                        && WEIGHTS.contains(&site)
                        && !on
                    {
                        self.note(
                            key.line,
                            format!(
                                "`output_quant_enable: false` has no effect on the weights `{site}`: \
                                 give `float: true` to the site of its output"
                            ),
                        );
                    }
                }
                "enable_profiler" => {
                    if self.boolean(key, value)? {
                        self.profilers.push(key.line);
                    }
                }
                _ => return Err(self.unknown_key(key, "key", &ENTRY_KEYS)),
            }
        }
        Ok(e)
    }

    fn bit_type(&mut self, node: &Node, e: &mut Entry) -> Result<()> {
        let mut label = None;
        if node.value == Value::Null {
            return Err(self.wrong(node.line, "bit_type", "a mapping such as {bits: 8, signed: true}", &node.value));
        }
        for (key, value) in self.mapping(node, "`bit_type`")? {
            match key.name.as_str() {
                "bits" => e.bits = Some(self.integer(key, value, 4, 16)?),
                "signed" => e.signed = Some(self.boolean(key, value)?),
                "symmetric" => e.symmetric = Some(self.boolean(key, value)?),
                "name" => match &value.value {
                    Value::Text(text) => label = Some((key.line, text.clone())),
                    other => {
                        return Err(self.wrong(value.line, "name", "a name such as int8", other));
                    }
                },
                _ => return Err(self.unknown_key(key, "key of bit_type", &BIT_TYPE_KEYS)),
            }
        }
        if let (Some((line, label)), Some(bits)) = (label, e.bits) {
            let digits: String = label.chars().filter(char::is_ascii_digit).collect();
            if label.starts_with("fp") || label.starts_with("float") {
                self.note(line, format!("the name {label} has no effect, the site is quantised to {bits} bits: write `float: true` to leave it in float"));
            } else if !digits.is_empty() && digits != bits.to_string() {
                self.note(line, format!("the name {label} has no effect: `bits: {bits}` decides"));
            }
        }
        Ok(())
    }

    /// Refuses a key of weights in the entry of an activation; in a default it applies to the weights.
    fn check_weights(&self, key: &Key, place: Place<'_>) -> Result<()> {
        match place {
            Place::Site(site) if !WEIGHTS.contains(&site) => Err(self.error(
                key.line,
                format!("`{}` is for weights ({}), so `{site}` cannot have it: remove it.", key.name, WEIGHTS.join(", ")),
            )),
            _ => Ok(()),
        }
    }

    fn check_method(&mut self, method: Method, line: u64, place: Place<'_>) -> Result<()> {
        let name = Method::NAMES.iter().find(|(_, m)| *m == method).map_or("", |(n, _)| n);
        let who = match method {
            Method::Uniform => return Ok(()),
            Method::Log2 => "intSoft only",
            Method::Ptf => "activations other than kv_act and intSoft",
            Method::Codebook => "weights and activations other than kv_act, intSoft, input and head_output",
        };
        match place {
            Place::Default(scope) => {
                let in_scope = |s: &str| scope.is_none_or(|scope| scope == s);
                let mut sites = SITES.iter().filter(|(section, _)| in_scope(section));
                if sites.any(|(_, site)| !method.suits(site)) {
                    let text = format!("`quantization_method: {name}` in a default applies to {who}");
                    self.note(line, text);
                }
                Ok(())
            }
            Place::Site(site) if method.suits(site) => Ok(()),
            Place::Site(site) => {
                Err(self
                    .error(line, format!("quantization_method {name} is for {who}, so `{site}` cannot have it: write Uniform.")))
            }
        }
    }

    /// The pairs of a mapping; nothing at all is an empty one.
    pub(super) fn mapping<'n>(&self, node: &'n Node, what: &str) -> Result<&'n [(Key, Node)]> {
        match &node.value {
            Value::Map(pairs) => Ok(pairs),
            Value::Null => Ok(&[]),
            other => {
                Err(self
                    .error(node.line, format!("{what} must be a mapping of `key: value` lines, but it is {}.", other.describe())))
            }
        }
    }

    pub(super) fn choice<T: Copy>(&self, node: &Node, what: &str, names: &[(&str, T)]) -> Result<T> {
        let known: Vec<&str> = names.iter().map(|(n, _)| *n).collect();
        let Value::Text(text) = &node.value else {
            return Err(self.wrong(node.line, what, &format!("one of {}", known.join(", ")), &node.value));
        };
        names.iter().find(|(n, _)| n == text).map(|(_, v)| *v).ok_or_else(|| {
            let hint = did_you_mean(text, known.iter().copied());
            self.error(node.line, full_stop(format!("unknown {what} '{text}'{hint} Known: {}.", known.join(", "))))
        })
    }

    pub(super) fn boolean(&self, key: &Key, node: &Node) -> Result<bool> {
        match node.value {
            Value::Bool(v) => Ok(v),
            ref other => Err(self.wrong(node.line, &key.name, "true or false", other)),
        }
    }

    pub(super) fn integer<T: TryFrom<i64>>(&self, key: &Key, node: &Node, low: i64, high: i64) -> Result<T> {
        let range = format!("a whole number from {low} to {high}");
        match node.value {
            Value::Int(v) if (low..=high).contains(&v) => {
                T::try_from(v).map_err(|_| self.wrong(node.line, &key.name, &range, &node.value))
            }
            ref other => Err(self.wrong(node.line, &key.name, &range, other)),
        }
    }

    /// A number in (low, 1].
    pub(super) fn fraction(&self, key: &Key, node: &Node, low: f64) -> Result<f64> {
        let value = match node.value {
            Value::Int(v) => v as f64,
            Value::Float(v) => v,
            _ => f64::NAN,
        };
        if value > low && value <= 1.0 {
            return Ok(value);
        }
        Err(self.wrong(node.line, &key.name, &format!("a number above {low} and at most 1"), &node.value))
    }

    pub(super) fn wrong(&self, line: u64, name: &str, wanted: &str, found: &Value) -> ConfigError {
        self.error(line, format!("{name} must be {wanted}, but it is {}.", found.describe()))
    }

    pub(super) fn unknown_key(&self, key: &Key, what: &str, known: &[&str]) -> ConfigError {
        let hint = did_you_mean(&key.name, known.iter().copied());
        let reason = format!("unknown {what} '{}'{hint} Known: {}.", key.name, known.join(", "));
        self.error(key.line, full_stop(reason))
    }

    pub(super) fn error(&self, line: u64, reason: String) -> ConfigError {
        ConfigError::Invalid { file: self.file.to_owned(), line, reason }
    }

    fn note(&mut self, line: u64, text: String) {
        self.notes.push(format!("{}:{line}: {text}", self.file));
    }
}

/// A stop between the unknown name and the known ones, where no question mark stands.
fn full_stop(reason: String) -> String {
    reason.replacen("' Known", "'. Known", 1)
}

/// `top` where it says something, else `base`.
fn over(base: &Entry, top: &Entry) -> Entry {
    // An entry that says `symmetric` or `float` in its own words must not be overruled by what lies below it.
    let symmetric = top.symmetric.or(if top.signed.is_some() { None } else { base.symmetric });
    let float = top.float.or(if top.output_quant_enable.is_some() { None } else { base.float });
    Entry {
        calibration_mode: top.calibration_mode.or(base.calibration_mode),
        bits: top.bits.or(base.bits),
        signed: top.signed.or(base.signed),
        symmetric,
        observer: top.observer.or(base.observer),
        method: top.method.or(base.method),
        percentile_alpha: top.percentile_alpha.or(base.percentile_alpha),
        percentile_sigma: top.percentile_sigma.or(base.percentile_sigma),
        kl_bins: top.kl_bins.or(base.kl_bins),
        log2_fraction_bits: top.log2_fraction_bits.or(base.log2_fraction_bits),
        log2_normalize: top.log2_normalize.or(base.log2_normalize),
        max_exponent: top.max_exponent.or(base.max_exponent),
        ptf_mantissa_bits: top.ptf_mantissa_bits.or(base.ptf_mantissa_bits),
        ptf_search: top.ptf_search.or(base.ptf_search),
        keep_accumulator: top.keep_accumulator.or(base.keep_accumulator),
        class_token_codes: top.class_token_codes.or(base.class_token_codes),
        ptf_piecewise: top.ptf_piecewise.or(base.ptf_piecewise),
        reparameterize: top.reparameterize.or(base.reparameterize),
        group_size: top.group_size.or(base.group_size),
        weight_rounding: top.weight_rounding.or(base.weight_rounding),
        bias_correction: top.bias_correction.or(base.bias_correction),
        float,
        output_quant_enable: top.output_quant_enable.or(base.output_quant_enable),
    }
}
