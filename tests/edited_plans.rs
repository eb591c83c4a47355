//! Plans that a person edited: what does not fit is refused, what cannot be is noted.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use vitq::lower::lower;
use vitq::quant::{QuantPlan, Scheme, Target, ZeroPoint};

fn refused(edit: impl Fn(&mut QuantPlan)) -> String {
    let (mut model, mut plan) = planned(&preset("int8"), Target::Integer);
    edit(&mut plan);
    lower(&mut model, &plan).unwrap_err().to_string()
}

#[test]
fn edited_plans_that_do_not_fit_are_refused() {
    let cases: Vec<(&str, String)> = vec![
        ("an unknown value", refused(|p| site(p, "blocks.0.norm1").site.values = vec!["nowhere".to_owned()])),
        ("an unknown constant", refused(|p| site(p, "blocks.0.mlp_fc1").site.values = vec!["nowhere".to_owned()])),
        ("one value twice", refused(|p| site(p, "blocks.0.norm1").site.values = vec!["n2".to_owned()])),
        ("one constant twice", refused(|p| site(p, "blocks.0.mlp_fc2").site.values = vec!["fc1_w".to_owned()])),
        (
            "too few exponents",
            refused(|p| {
                if let Scheme::Ptf { factors, .. } = &mut site(p, "blocks.0.residual1").scheme {
                    factors.exponents.pop();
                    factors.mantissas.pop();
                }
            }),
        ),
        (
            "exponents that are no digits",
            refused(|p| {
                if let Scheme::Ptf { factors, .. } = &mut site(p, "blocks.0.residual1").scheme {
                    "01x0".clone_into(&mut factors.exponents);
                }
            }),
        ),
        (
            "a mantissa of too many bits",
            refused(|p| {
                if let Scheme::Ptf { factors, .. } = &mut site(p, "blocks.0.residual1").scheme {
                    "0080".clone_into(&mut factors.mantissas);
                }
            }),
        ),
        (
            "too few zero points",
            refused(|p| {
                if let Scheme::Ptf { zero_point, .. } = &mut site(p, "blocks.0.residual1").scheme {
                    *zero_point = ZeroPoint::Channels(vec![0; 3]);
                }
            }),
        ),
        (
            "a channel's zero point out of range",
            refused(|p| {
                if let Scheme::Ptf { zero_point, .. } = &mut site(p, "blocks.0.residual1").scheme {
                    *zero_point = ZeroPoint::Channels(vec![0, -128, 128, 0]);
                }
            }),
        ),
        (
            "twenty bits",
            refused(|p| {
                if let Scheme::Affine { codes, .. } = &mut site(p, "blocks.0.sv_attn").scheme {
                    codes.bits = 20;
                }
            }),
        ),
        (
            "a zero point out of range",
            refused(|p| {
                if let Scheme::Affine { zero_point, .. } = &mut site(p, "blocks.0.sv_attn").scheme {
                    *zero_point = 128;
                }
            }),
        ),
        (
            "a negative scale",
            refused(|p| {
                if let Scheme::Affine { scale, .. } = &mut site(p, "blocks.0.sv_attn").scheme {
                    *scale = -1.0;
                }
            }),
        ),
        (
            "too few weight scales",
            refused(|p| {
                if let Scheme::Weight { scales, .. } = &mut site(p, "blocks.0.mlp_fc1").scheme {
                    scales.pop();
                }
            }),
        ),
        (
            "a constant's scheme for a value",
            refused(|p| site(p, "blocks.0.norm1").scheme = Scheme::Weight { bits: 8, axis: None, scales: vec![1.0] }),
        ),
        (
            "a value's scheme for a constant",
            refused(|p| {
                site(p, "blocks.0.mlp_fc1").scheme = Scheme::Log2 { bits: 8, fraction_bits: 0, scale: 1.0, normalized: false }
            }),
        ),
        (
            "log2 codes of a step too fine",
            refused(|p| {
                site(p, "blocks.0.intSoft").scheme = Scheme::Log2 { bits: 8, fraction_bits: 9, scale: 1.0, normalized: false }
            }),
        ),
        (
            "log2 codes of no scale",
            refused(|p| {
                site(p, "blocks.0.intSoft").scheme = Scheme::Log2 { bits: 8, fraction_bits: 3, scale: -1.0, normalized: false }
            }),
        ),
        (
            "normalised rows with a scale",
            refused(|p| {
                site(p, "blocks.0.intSoft").scheme = Scheme::Log2 { bits: 4, fraction_bits: 0, scale: 0.9, normalized: true }
            }),
        ),
        ("a value called a constant", refused(|p| site(p, "blocks.0.mlp_fc1").site.values = vec!["fc1".to_owned()])),
    ];
    let text: String = cases.iter().map(|(what, error)| format!("{what}:\n  {error}\n")).collect();
    snapshot("edited_plans", &text);
}

#[test]
fn log2_codes_that_cannot_be_are_noted() {
    let scores = "blocks.0.kv_act";
    for (what, target, edit) in [
        ("the scores in float", Target::Integer, (|p| p.sites.retain(|s| s.name != "blocks.0.kv_act")) as fn(&mut QuantPlan)),
        ("a target without custom ops", Target::Integer, |p| p.target = Target::OnnxRuntime),
        ("wide scores", Target::Integer, |p| {
            if let Scheme::Affine { codes, .. } = &mut site(p, "blocks.0.kv_act").scheme {
                codes.bits = 16;
            }
        }),
    ] {
        let (mut model, mut plan) = planned(&preset("int8"), target);
        assert!(plan.site(scores).is_some());
        edit(&mut plan);
        let report = lower(&mut model, &plan).unwrap();
        let notes: Vec<&String> =
            report.notes.iter().filter(|n| n.starts_with("Softmax (producing 'probs') stays in float")).collect();
        assert_eq!(notes.len(), 1, "{what}: {:?}", report.notes);
    }
}
