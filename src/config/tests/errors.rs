//! Every error names file, line and the way out.

use super::*;

fn fail(text: &str) -> String {
    let error = parse("configs/x.yaml", text).expect_err(text);
    error.to_string()
}

#[test]
fn names() {
    let cases = [
        "layers:\n  attn_qkv:\n    observer_type: MinMaxObserver\n",
        "layers:\n  attn_qkv:\n    observer_type: Histogram\n",
        "default:\n  calibration_mode: channelwise\n",
        "default:\n  quantization_method: log2\n",
        "default:\n\n  percentil_alpha: 0.9\n",
        "default:\n  colour: red\n",
        "default:\n  bit_type: {bit: 8}\n",
        "layer:\n  attn_qkv:\n",
        "foo: 1\n",
        "norm1:\n  bit_type: {bits: 8}\n",
        "blocks.3.kv_act: {float: true}\n",
        "layers:\n  attn_qvk:\n",
        "layers:\n  zzzzz:\n",
        "layers:\n  residual1:\n",
        "attn_layer:\n  blocks.2.attn_qkv:\n",
        "attn_layer:\n  intsoft:\n",
        "layers:\n  blocks.x.attn_qkv:\n",
        "layers:\n  blocks.3:\n",
        "layers:\n  blocks.-1.attn_qkv:\n",
        "layers:\n  blocks.3.attn_qvk:\n",
        "extra_layer:\n  blocks.3.head:\n",
        "layers:\n  blocks.3.attn_qkv:\n  blocks.03.attn_qkv:\n",
    ];
    snapshot!("unknown_names", cases.map(fail).join("\n"));
}

#[test]
fn values() {
    let cases = [
        "default: {bit_type: {bits: 3}}\n",
        "default: {bit_type: {bits: 17}}\n",
        "default: {bit_type: {bits: 8.5}}\n",
        "default: {bit_type: {bits: eight}}\n",
        "default: {bit_type: {bits: 99999999999999999999}}\n",
        "default: {bit_type: {signed: 1}}\n",
        "default: {bit_type: {name: 8}}\n",
        "default: {bit_type: int8}\n",
        "default:\n  bit_type:\n",
        "default: {percentile_alpha: 0.5}\n",
        "default: {percentile_alpha: 95}\n",
        "default: {percentile_alpha: .nan}\n",
        "default: {percentile_alpha: high}\n",
        "default: {percentile_sigma: 0}\n",
        "default: {percentile_sigma: 1.5}\n",
        "default: {kl_bins: 10}\n",
        "default: {kl_bins: 2048, kv_bins: 2048}\n",
        "default: {log2_fraction_bits: 5}\n",
        "default: {max_exponent: 16}\n",
        "default: {max_exponent: -1}\n",
        "default: {float: 0}\n",
        "default: {observer_type: }\n",
        "default: {observer_type: [MinmaxObserver]}\n",
        "default: {observer_type: 5}\n",
        "default: {group_size: 1}\n",
        "default: {group_size: 70000}\n",
        "layers:\n  norm1: {group_size: 8}\n",
        "default: {weight_rounding: up}\n",
        "default: {weight_rounding: true}\n",
        "default: {bias_correction: gptq}\n",
        "layers:\n  norm1: {weight_rounding: gptq}\n",
        "attn_layer:\n  blocks.1.mlp_act: {bias_correction: true}\n",
        "search: {clip: maybe}\n",
        "search: {widen_to_db: 0}\n",
        "search: {float_share: 1.5}\n",
        "search: {rangs: true}\n",
        "search: 3\n",
        "default: yes please\n",
        "default: [1]\n",
        "layers: 3\n",
        "- a\n- b\n",
        "layers:\n  attn_qkv: {quantization_method: Log2}\n",
        "layers:\n  attn_qkv: {quantization_method: PTF}\n",
        "attn_layer:\n  kv_act:\n    quantization_method: PTF\n",
    ];
    snapshot!("bad_values", cases.map(fail).join("\n"));
}

#[test]
fn syntax() {
    let cases = [
        "default:\n  bit_type: {bits: 8\nlayers:\n",
        "default:\n\tbits: 8\n",
        "default:\n  a: b: c\n",
        "layers:\n  attn_qkv:\nlayers:\n  mlp_fc1:\n",
        "default: {float: true}\n---\ndefault: {float: false}\n",
        "default: *nowhere\n",
        "? [a, b]\n: 1\n",
        "\"unclosed\n",
    ];
    snapshot!("syntax_errors", cases.map(fail).join("\n"));
}

#[test]
fn files() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let message = |name: &str| {
        let text = load(&path(name)).unwrap_err().to_string();
        text.replace(&format!("{}/", dir.path().display()), "")
    };
    fs::create_dir(path("empty")).unwrap();
    fs::create_dir(path("wrong")).unwrap();
    fs::write(path("wrong/weight_config.yaml"), "layers:\n  attn_qkv:\nattn_layer:\n  kv_act:\n").unwrap();
    fs::create_dir(path("typo")).unwrap();
    fs::write(path("typo/residual_config.yaml"), "default:\nresidual_layer:\n  residual3:\n").unwrap();
    fs::create_dir(path("beside")).unwrap();
    fs::write(path("beside/weight_config.yaml"), "layers:\n  attn_qkv:\nsearch: {clip: false}\n").unwrap();
    fs::write(path("bytes.yaml"), [0xff, 0xfe, 0x00]).unwrap();
    let mut text = ["nowhere.yaml", "empty", "wrong", "typo", "beside", "bytes.yaml"].map(message).to_vec();
    text.push(load("int9").unwrap_err().to_string());
    snapshot!("file_errors", text.join("\n"));
}

proptest::proptest! {
    /// No text makes the reader panic.
    #[test]
    fn any_text_gives_a_result(text in "(default|layers|attn_layer)?[:{\\[ \n#&*<>\"'a-c0-9.~|-]{0,60}") {
        let _ = parse("x.yaml", &text);
    }
}
