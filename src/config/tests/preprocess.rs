//! Preprocessing from files.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use super::*;
use crate::config::load::{parse, parse_preprocessing};

fn of(name: &str, text: &str) -> Preprocess {
    let p = parse_preprocessing(name, text).unwrap();
    p.resolve(p.input_size.unwrap_or(224)).unwrap()
}

fn error(name: &str, text: &str) -> String {
    parse_preprocessing(name, text).unwrap_err().to_string()
}

#[test]
fn a_section_of_a_configuration() {
    let text = "default: {bit_type: {bits: 8}}\npreprocess:\n  preset: inception\n  crop_mode: squash\n  interpolation: lanczos\n  crop_pct: 1\n  exif_orientation: false\n";
    let config = parse("c.yaml", text).unwrap();
    let p = config.preprocess.clone().unwrap().resolve(32).unwrap();
    let expected = Preprocess {
        crop_mode: CropMode::Squash,
        interpolation: Interpolation::Lanczos,
        crop_pct: 1.0,
        exif_orientation: false,
        ..Preprocess::inception(32)
    };
    assert_eq!(p, expected);
    // The same file serves where only the preprocessing is wanted.
    assert_eq!(of("c.yaml", text), Preprocess { size: 224, ..expected });
    assert_eq!(parse("c.yaml", "preprocess: clip").unwrap().preprocess.unwrap().resolve(8).unwrap(), Preprocess::clip(8));
    assert!(parse("c.yaml", "default: {}").unwrap().preprocess.is_none());
}

#[test]
fn timms_config_json() {
    let text = r#"{
        "architecture": "vit_base_patch16_clip_384", "num_classes": 1000, "num_features": 768, "global_pool": "token",
        "pretrained_cfg": {"tag": "x", "custom_load": false, "input_size": [3, 384, 384], "fixed_input_size": true,
            "interpolation": "bilinear", "crop_pct": 0.95, "crop_mode": "border", "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6],
            "test_input_size": null, "pool_size": null, "first_conv": "patch_embed.proj", "classifier": "head"}}"#;
    let p = of("config.json", text);
    assert_eq!((p.size, p.crop_pct, p.crop_mode, p.interpolation), (384, 0.95, CropMode::Border, Interpolation::Bilinear));
    assert_eq!((p.mean, p.std), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6]));
    // The pretrained_cfg alone, and what it leaves out is timm's default.
    let p = of("cfg.json", r#"{"url": "", "input_size": [3, 240, 240], "crop_pct": null, "mean": [0.5, 0.5, 0.5]}"#);
    assert_eq!(p, Preprocess { crop_pct: 0.875, mean: [0.5; 3], ..Preprocess::imagenet(240) });
}

#[test]
fn a_preprocessor_config_json() {
    let vit = r#"{"do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_processor_type": "ViTImageProcessor",
        "image_std": [0.5, 0.5, 0.5], "resample": 2, "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224}}"#;
    let squash = Preprocess {
        crop_pct: 1.0,
        crop_mode: CropMode::Squash,
        interpolation: Interpolation::Bilinear,
        ..Preprocess::inception(224)
    };
    assert_eq!(of("preprocessor_config.json", vit), squash);
    assert_eq!(of("p.json", &vit.replace(r#"{"height": 224, "width": 224}"#, "224")), squash);
    let clip = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_normalize": true, "do_resize": true,
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": {"shortest_edge": 224}}"#;
    let p = of("p.json", clip);
    assert_eq!(
        p,
        Preprocess {
            crop_pct: 1.0,
            mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
            std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
            ..Preprocess::clip(224)
        }
    );
    for (crop, resized) in [(224, 256), (224, 248), (299, 341), (518, 592), (100, 3)] {
        let text = clip
            .replace("224, \"width\": 224", &format!("{crop}, \"width\": {crop}"))
            .replace("edge\": 224", &format!("edge\": {resized}"));
        match parse_preprocessing("p.json", &text) {
            Ok(p) => {
                let p = p.resolve(crop).unwrap();
                assert_eq!(((p.size as f64 / p.crop_pct).floor() as usize, p.size), (resized, crop));
            }
            Err(e) => assert!(crop > resized && e.to_string().contains("no square"), "{e}"),
        }
    }
    assert!(error("p.json", &vit.replace("0.00392156862745098", "1.0")).contains("rescale_factor"));
    assert!(error("p.json", &vit.replace("\"resample\": 2", "\"resample\": 0")).contains("resample"));
    assert!(error("p.json", &vit.replace("\"height\": 224", "\"height\": 192")).contains("size must be"));
}

#[test]
fn what_is_not_understood_says_where() {
    for (text, words) in [
        ("crop_mode: centre", "p.yaml:1: unknown crop mode 'centre': did you mean center? Known: center, squash, border."),
        ("mean: [0, 0, 0]\ninterpolation: nearest", "p.yaml:2: unknown interpolation 'nearest'"),
        ("crop_percent: 1", "unknown key of the preprocessing 'crop_percent'"),
        ("crop_pct: 1.5", "crop_pct must be a number above 0 and at most 1"),
        ("mean: [0, 0]", "mean must be a list of three numbers"),
        ("std: [0, 1, 1]", "std must be a list of three numbers above 0"),
        ("std: [.inf, 1, 1]", "p.yaml:1"),
        ("input_size: [3, 224, 192]", "input_size must be"),
        ("input_size: 0", "input_size must be"),
        ("preset: imagnet", "did you mean imagenet?"),
        ("preprocess: 5", "must be a mapping"),
        ("[]", "must be a mapping"),
    ] {
        let error = error("p.yaml", text);
        assert!(error.contains(words) && error.starts_with("p.yaml:"), "{text}: {error}");
    }
    assert!(error("model.json", "{\"layers\": 12}").contains("says nothing of the preprocessing"));
}
