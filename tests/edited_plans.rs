//! Plans that a person edited: what does not fit is refused, what cannot be is noted.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use common::block::*;
use common::digits::{Digits, parsed};
use vitq::lower::lower;
use vitq::quant::{Codes, FloatSite, QuantPlan, Scheme, Target, ZeroPoint};
use vitq::vit::Site;

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
        (
            "scales of input channels",
            refused(|p| {
                if let Scheme::Weight { axis, .. } = &mut site(p, "blocks.0.attn_qkv.q").scheme {
                    *axis = Some(0);
                }
            }),
        ),
        (
            "no bits",
            refused(|p| {
                if let Scheme::Affine { codes, .. } = &mut site(p, "blocks.0.sv_attn").scheme {
                    codes.bits = 0;
                }
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
        ("even codes of probabilities", Target::Integer, |p| {
            let codes = Codes { bits: 8, signed: false };
            site(p, "blocks.0.intSoft").scheme = Scheme::Affine { codes, scale: 1.0 / 255.0, zero_point: 0 };
        }),
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

/// A plan names sites of its model, all of them: what is none is refused, what is not named is said.
#[test]
fn a_plan_is_of_the_sites_of_its_model() {
    let digits = Digits::new(2);
    let plan = digits.plan(&parsed("{}"), Target::Integer);
    let lowered = |edit: &dyn Fn(&mut QuantPlan)| {
        let mut plan = plan.clone();
        edit(&mut plan);
        vitq::pipeline::lower(&digits.source, &plan).map(|(_, report)| report.notes).map_err(|e| e.to_string())
    };
    assert_eq!(lowered(&|_| ()), Ok(vec![]));
    let renamed = lowered(&|p| site(p, "blocks.2.sv_attn").name = "blocks.9.foo".to_owned()).unwrap_err();
    assert!(renamed.contains("site blocks.9.foo is none of the model's"), "{renamed}");
    let moved = lowered(&|p| site(p, "blocks.2.sv_attn").site.block = Some(1)).unwrap_err();
    assert!(moved.contains("site blocks.2.sv_attn is none of the model's"), "{moved}");
    let float = |name: &str| FloatSite { name: name.to_owned(), site: Site::SvAttn, reason: "of my own will".to_owned() };
    let nowhere = lowered(&|p| p.float.push(float("blocks.9.sv_attn"))).unwrap_err();
    assert!(nowhere.contains("site blocks.9.sv_attn is none of the model's"), "{nowhere}");
    let notes = lowered(&|p| p.sites.retain(|s| !s.name.ends_with("sv_attn"))).unwrap();
    assert!(notes.iter().any(|n| n.starts_with("the plan says nothing of blocks.0.sv_attn and 3 more")), "{notes:?}");
    let on_purpose = lowered(&|p| {
        let at = p.sites.iter().position(|s| s.name == "blocks.2.sv_attn").unwrap();
        let gone = p.sites.remove(at);
        p.float.push(float(&gone.name));
    });
    let of_names = |n: &&String| n.starts_with("the plan says nothing");
    assert_eq!(on_purpose.unwrap().iter().find(of_names), None);
}
