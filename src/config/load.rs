//! Files and presets to a [`Config`]; the only file that names a YAML crate.

use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

use super::error::{ConfigError, did_you_mean};
use super::preprocess::Preprocessing;
use super::read::Reader;
use super::schema::{ATTN_LAYER, Config, EXTRA_LAYER, LAYERS, RESIDUAL_LAYER};
use super::tree::{Key, Node, Value};

/// The embedded presets as `(name, text)`, the default one first.
pub const PRESETS: [(&str, &str); 8] = [
    ("int8", include_str!("../../configs/int8.yaml")),
    ("int8-attn4", include_str!("../../configs/int8-attn4.yaml")),
    ("mixed", include_str!("../../configs/mixed.yaml")),
    ("w4a8", include_str!("../../configs/w4a8.yaml")),
    ("w6a6", include_str!("../../configs/w6a6.yaml")),
    ("w4a4", include_str!("../../configs/w4a4.yaml")),
    ("fqvit", include_str!("../../configs/fqvit.yaml")),
    ("seed", include_str!("../../configs/seed.yaml")),
];

/// The files of a folder, and the section that each of them configures.
const FILES: [(&str, &str); 4] = [
    ("weight_config.yaml", LAYERS),
    ("activation_config.yaml", ATTN_LAYER),
    ("residual_config.yaml", RESIDUAL_LAYER),
    ("extra_config.yaml", EXTRA_LAYER),
];

/// Loads a preset by its name, a YAML file, or a folder with at least one of `weight_config.yaml`,
/// `activation_config.yaml`, `residual_config.yaml` and `extra_config.yaml`.
///
/// A preset goes before a file of the same name, which can be given as `./name`. In a folder, the `default` of each file
/// is that of its own section.
///
/// # Errors
/// [`ConfigError`] with file and line if there is no such configuration, or it says something that is not understood.
pub fn load(name: &str) -> Result<Config, ConfigError> {
    if let Some(result) = preset(name) {
        return result;
    }
    let path = Path::new(name);
    if path.is_dir() {
        return load_folder(path);
    }
    if !path.exists() {
        let names: Vec<&str> = PRESETS.iter().map(|(n, _)| *n).collect();
        return Err(ConfigError::Missing {
            name: name.to_owned(),
            hint: match did_you_mean(name, names.iter().copied()) {
                hint if hint.is_empty() => ".".to_owned(),
                hint => hint,
            },
            presets: names.join(", "),
        });
    }
    parse(name, &read_text(path)?)
}

/// An embedded preset: `int8` (the default), `w4a8`, `w6a6`, `w4a4` (fewer bits), `fqvit` (FQ-ViT's published method) or `seed`; `None` for any other
/// name.
pub fn preset(name: &str) -> Option<Result<Config, ConfigError>> {
    PRESETS.iter().find(|(n, _)| *n == name).map(|(n, text)| parse(n, text))
}

/// Reads the text of a single file; `name` is how messages call it.
///
/// # Errors
/// [`ConfigError`] as [`load`].
pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    let mut config = Config { name: name.to_owned(), ..Config::default() };
    Reader::new(name).file(&tree(name, text)?, &mut config)?;
    Ok(config)
}

/// Reads how a model wants its images: the section `preprocess` of a configuration, a YAML file with the keys of that section,
/// timm's `config.json`, or a `preprocessor_config.json`.
///
/// # Errors
/// [`ConfigError`] with file and line, as [`load`].
pub fn load_preprocessing(path: &Path) -> Result<Preprocessing, ConfigError> {
    let name = path.display().to_string();
    parse_preprocessing(&name, &read_text(path)?)
}

/// Reads the text of such a file; `name` is how messages call it, and its ending tells JSON from YAML.
///
/// # Errors
/// As [`load_preprocessing`].
pub fn parse_preprocessing(name: &str, text: &str) -> Result<Preprocessing, ConfigError> {
    // JSON is YAML, so one parser reads both, and knows the lines of both.
    Reader::new(name).preprocessing_file(&tree(name, text)?, name.to_ascii_lowercase().ends_with(".json"))
}

fn load_folder(folder: &Path) -> Result<Config, ConfigError> {
    let mut config = Config { name: folder.display().to_string(), ..Config::default() };
    let mut found = false;
    for (file, section) in FILES {
        let path = folder.join(file);
        if !path.exists() {
            continue;
        }
        found = true;
        let name = path.display().to_string();
        let root = tree(&name, &read_text(&path)?)?;
        Reader::new(&name).section_file(&root, section, &FILES, &mut config)?;
    }
    if !found {
        let files: Vec<&str> = FILES.iter().map(|(f, _)| *f).collect();
        return Err(ConfigError::EmptyFolder { path: folder.to_path_buf(), files: files.join(", ") });
    }
    Ok(config)
}

fn read_text(path: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(path).map_err(|e| ConfigError::Read { path: path.to_path_buf(), reason: e.to_string() })
}

/// The text as a tree; a file of nothing but comments is an empty one.
fn tree(file: &str, text: &str) -> Result<Node, ConfigError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let silent = |line: &str| line.is_empty() || line.starts_with('#') || line == "---";
    if text.lines().all(|l| silent(l.trim())) {
        return Ok(Node { line: 1, value: Value::Null });
    }
    let root: Spanned<Yaml> = serde_saphyr::from_str(text).map_err(|e| syntax(file, &e))?;
    Ok(node(root))
}

fn syntax(file: &str, error: &serde_saphyr::Error) -> ConfigError {
    let place = error.location();
    let text = error.without_snippet().to_string();
    // The first line is the message; the place is said before it.
    let text = text.lines().next().unwrap_or_default();
    let text = text.split(" at line ").next().unwrap_or_default();
    let text = text.trim_start_matches("error: ").trim_end_matches(['.', ':', ',']);
    // Some messages go on to advise the programmer who called the parser.
    let text = match text {
        t if t.starts_with("multiple YAML documents") => "a second document begins here (`---`): keep one",
        t if t.starts_with("non-finite float") => "a number must be finite",
        t => t.split(", set ").next().unwrap_or(t),
    };
    let reason = text.to_owned();
    ConfigError::Syntax {
        file: file.to_owned(),
        line: place.map_or(1, |l| l.line()),
        column: place.map_or(1, |l| l.column()),
        reason,
    }
}

fn node(spanned: Spanned<Yaml>) -> Node {
    Node { line: spanned.referenced.line(), value: spanned.value.0 }
}

struct Yaml(Value);

impl<'de> Deserialize<'de> for Yaml {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(YamlVisitor)
    }
}

struct YamlVisitor;

impl<'de> Visitor<'de> for YamlVisitor {
    type Value = Yaml;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any YAML value")
    }

    fn visit_unit<E>(self) -> Result<Yaml, E> {
        Ok(Yaml(Value::Null))
    }

    fn visit_none<E>(self) -> Result<Yaml, E> {
        Ok(Yaml(Value::Null))
    }

    fn visit_bool<E>(self, v: bool) -> Result<Yaml, E> {
        Ok(Yaml(Value::Bool(v)))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Yaml, E> {
        Ok(Yaml(Value::Int(v)))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Yaml, E> {
        Ok(Yaml(i64::try_from(v).map_or(Value::Float(v as f64), Value::Int)))
    }

    fn visit_i128<E>(self, v: i128) -> Result<Yaml, E> {
        Ok(Yaml(Value::Float(v as f64)))
    }

    fn visit_u128<E>(self, v: u128) -> Result<Yaml, E> {
        Ok(Yaml(Value::Float(v as f64)))
    }

    fn visit_f64<E>(self, v: f64) -> Result<Yaml, E> {
        Ok(Yaml(Value::Float(v)))
    }

    fn visit_str<E>(self, v: &str) -> Result<Yaml, E> {
        Ok(Yaml(Value::Text(v.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Yaml, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element::<Spanned<Yaml>>()? {
            items.push(node(item));
        }
        Ok(Yaml(Value::List(items)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Yaml, A::Error> {
        let mut pairs = Vec::new();
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            let value = node(map.next_value::<Spanned<Yaml>>()?);
            pairs.push((Key { line: key.referenced.line(), name: key.value }, value));
        }
        Ok(Yaml(Value::Map(pairs)))
    }
}
