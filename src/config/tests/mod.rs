#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;

use super::load::parse;
use super::schema::*;
use super::*;

mod errors;
mod priority;

macro_rules! snapshot {
    ($name:literal, $value:expr) => {
        insta::with_settings!({
            snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/config"),
            prepend_module_to_snapshot => false,
            omit_expression => true,
        }, { insta::assert_snapshot!($name, $value) })
    };
}
use snapshot;

fn read(text: &str) -> Config {
    parse("x.yaml", text).unwrap()
}

/// One line a site.
fn table(config: &Config) -> String {
    let mut lines = Vec::new();
    for (section, site) in SITES {
        let c = config.resolve(None, site);
        let extra = match (c.method, c.observer) {
            (Method::Log2, _) => format!(" r={}{}", c.log2_fraction_bits, if c.log2_normalize { " normalized" } else { "" }),
            (Method::Ptf, _) => format!(" max_exponent={}", c.max_exponent),
            (_, Observer::Percentile) => {
                format!(" alpha={} sigma={}", c.percentile_alpha, c.percentile_sigma)
            }
            _ if c.group_size > 0 => format!(" groups of {}", c.group_size),
            _ => String::new(),
        };
        lines.push(format!(
            "{section:14} {site:16} {:?} {} bits {} {} {:?} {:?}{extra}{}{}{}",
            c.calibration_mode,
            c.bits,
            if c.signed { "signed" } else { "unsigned" },
            if c.symmetric { "symmetric" } else { "affine" },
            c.observer,
            c.method,
            if c.weight_rounding == Rounding::Gptq { " gptq" } else { "" },
            if c.bias_correction { " bias correction" } else { "" },
            if c.float { " FLOAT" } else { "" },
        ));
    }
    lines.extend(config.notes().iter().map(|n| format!("note: {n}")));
    lines.join("\n")
}

/// A file as users of the older system have it, every key written out.
const OLD_FILE: &str = "\
# Quantization
default:
  calibration_mode: channel_wise  # layer_wise or channel_wise
  bit_type:
    bits: 8
    signed: true
    name: int8
  observer_type: PercentileObserver
  quantization_method: Uniform
  percentile_alpha: 0.95
  percentile_sigma: 0.01
  kv_bins: 2048

layers:
  attn_qkv:
    bit_type: {bits: 16, name: int16}
  attn_proj:
  mlp_fc1: {observer_type: OmseObserver}

attn_layer:
  kv_act:
    calibration_mode: layer_wise
    bit_type:
      bits: 8
      symmetric: False
      name: int8
    observer_type: KLObserver
    kl_bins: 4096
    enable_profiler: True
    output_quant_enable: True

residual_layer:
  residual1:
    calibration_mode: layer_wise
    percentile_alpha: 1
";

#[test]
fn presets_load_and_say_what_they_should() {
    snapshot!("preset_int8", table(&preset("int8").unwrap().unwrap()));
    snapshot!("preset_fqvit", table(&preset("fqvit").unwrap().unwrap()));
    snapshot!("preset_w4a8", table(&preset("w4a8").unwrap().unwrap()));
    snapshot!("preset_w6a6", table(&preset("w6a6").unwrap().unwrap()));
    snapshot!("preset_w4a4", table(&preset("w4a4").unwrap().unwrap()));
    snapshot!("preset_seed", table(&preset("seed").unwrap().unwrap()));
    assert!(preset("int9").is_none());
}

#[test]
fn the_default_preset_is_what_an_empty_file_means() {
    let preset = preset("int8").unwrap().unwrap();
    for text in ["", "# nothing\n", "---\n", "layers:\nattn_layer: {}\n"] {
        let empty = read(text);
        for (_, site) in SITES {
            let strip = |c: SiteConfig| SiteConfig { sources: Default::default(), ..c };
            assert_eq!(strip(empty.resolve(None, site)), strip(preset.resolve(None, site)), "{site}");
            assert!(empty.resolve(Some(3), site).sources.is_empty());
        }
    }
}

#[test]
fn an_old_file_loads_unchanged() {
    let config = read(OLD_FILE);
    snapshot!("old_file", table(&config));
    let kv_act = config.resolve(None, "kv_act");
    assert_eq!((kv_act.kl_bins, kv_act.symmetric, kv_act.signed), (4096, false, true));
    assert_eq!(kv_act.source(Key::Symmetric), Source::Site);
    assert_eq!(kv_act.source(Key::Signed), Source::Default);
    assert_eq!(kv_act.source(Key::MaxExponent), Source::BuiltIn);
    // bit_type is merged key by key, and an empty entry is the default.
    let qkv = config.resolve(None, "attn_qkv");
    assert_eq!((qkv.bits, qkv.signed, qkv.symmetric), (16, true, true));
    assert_eq!(config.resolve(None, "attn_proj"), config.resolve(None, "mlp_fc2"));
    assert_eq!(config.resolve(None, "sv_attn").kl_bins, 2048, "kv_bins is kl_bins");
}

#[test]
fn a_folder_has_one_default_for_each_section() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    write("weight_config.yaml", "default: {bit_type: {bits: 6}}\nlayers:\n  mlp_fc1: {bit_type: {bits: 5}}\n");
    write(
        "activation_config.yaml",
        "default:\n  bit_type: {bits: 12, signed: true}\n  observer_type: OmseObserver\nattn_layer:\n  default: {bit_type: {bits: 10}}\n  kv_act:\n",
    );
    let config = load(dir.path().to_str().unwrap()).unwrap();
    let bits = |site: &str| config.resolve(None, site).bits;
    assert_eq!((bits("attn_qkv"), bits("mlp_fc1"), bits("norm1")), (6, 5, 6));
    assert_eq!((bits("kv_act"), bits("residual1"), bits("input")), (10, 8, 8));
    let kv_act = config.resolve(None, "kv_act");
    assert_eq!((kv_act.observer, kv_act.symmetric), (Observer::Omse, true));
    assert_eq!(config.resolve(None, "attn_qkv").observer, Observer::Minmax);
    assert_eq!(kv_act.source(Key::Bits), Source::Section);
    // Split or in one file: the same.
    let single = read(
        "layers:\n  default: {bit_type: {bits: 6}}\n  mlp_fc1: {bit_type: {bits: 5}}\nattn_layer:\n  default: {bit_type: {bits: 10, signed: true}, observer_type: OmseObserver}\n",
    );
    for (_, site) in SITES {
        assert_eq!(single.resolve(None, site), config.resolve(None, site), "{site}");
    }
}

#[test]
fn one_block_can_differ() {
    let config = read(
        "attn_layer:\n  mlp_act: {bit_type: {bits: 12}}\n  blocks.7.mlp_act: {bit_type: {bits: 16}}\n  blocks.11.mlp_act2: {float: true}\n",
    );
    assert_eq!(config.resolve(Some(7), "mlp_act").bits, 16);
    assert_eq!(config.resolve(Some(7), "mlp_act").source(Key::Bits), Source::Block);
    assert_eq!(config.resolve(Some(6), "mlp_act").bits, 12);
    assert_eq!(config.resolve(None, "mlp_act").bits, 12);
    assert!(config.resolve(Some(11), "mlp_act2").float);
    assert!(!config.resolve(Some(10), "mlp_act2").float);
    assert_eq!(config.named_in_blocks().collect::<Vec<_>>(), [(7, "mlp_act"), (11, "mlp_act2")]);
}

#[test]
fn output_quant_enable_leaves_an_activation_in_float_and_no_weight() {
    let config = read(
        "default: {output_quant_enable: false}\nattn_layer:\n  kv_act: {output_quant_enable: true}\n  sv_attn: {float: false}\nlayers:\n  attn_qkv: {output_quant_enable: false}\n",
    );
    let float = |site: &str| config.resolve(None, site).float;
    assert!(float("mlp_act") && float("norm1") && float("residual1"));
    assert!(!float("kv_act") && !float("sv_attn") && !float("mlp_fc1") && !float("attn_qkv"));
    assert_eq!(config.notes().len(), 1, "{:?}", config.notes());
}

#[test]
fn anchors_and_merge_keys_work() {
    let config = read(
        "attn_layer:\n  kv_act: &a\n    bit_type: {bits: 12}\n    observer_type: KLObserver\n  sv_attn: *a\n  mlp_act:\n    <<: *a\n    observer_type: OmseObserver\n",
    );
    let c = |site: &str| config.resolve(None, site);
    assert_eq!((c("sv_attn").bits, c("sv_attn").observer), (12, Observer::Kl));
    assert_eq!((c("mlp_act").bits, c("mlp_act").observer), (12, Observer::Omse));
}

#[test]
fn notes_say_what_has_no_effect() {
    let config = read(
        "default: {quantization_method: Log2, enable_profiler: true}\nlayers:\n  attn_qkv: {bit_type: {bits: 16, name: fp16}, enable_profiler: true}\n  mlp_fc1: {bit_type: {bits: 4, name: int8}, output_quant_enable: false}\n",
    );
    assert_eq!(config.resolve(None, "attn_qkv").method, Method::Uniform);
    assert_eq!(config.resolve(None, "intSoft").method, Method::Log2);
    assert_eq!(config.resolve(None, "residual1").method, Method::Ptf);
    snapshot!("notes", config.notes().join("\n"));
}

#[test]
fn a_config_survives_serialisation() {
    for (name, text) in PRESETS {
        let config = parse(name, text).unwrap();
        let json = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    }
    let config = read("layers:\n  blocks.3.attn_qkv: {bit_type: {bits: 5}}\n");
    let json = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<Config>(&json).unwrap(), config);
    let site = config.resolve(Some(3), "attn_qkv");
    assert_eq!(serde_json::from_str::<SiteConfig>(&serde_json::to_string(&site).unwrap()).unwrap(), site);
}

#[test]
fn every_site_is_in_one_section_and_unique() {
    for (i, (section, site)) in SITES.iter().enumerate() {
        assert!(SECTIONS.contains(section));
        assert_eq!(SITES.iter().position(|(_, s)| s == site), Some(i), "{site} twice");
    }
    assert!(WEIGHTS.iter().chain(&OUTSIDE_BLOCKS).all(|s| section_of(s).is_some()));
}
