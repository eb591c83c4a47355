//! Quantisation parameters against arithmetic in f64, and the plan as a file.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use ndarray::ArrayD;
use proptest::prelude::*;
use vitq::calib::piecewise::Segments;
use vitq::calib::run::{Failure, Forward, ForwardSession, Named, OnValue};
use vitq::calib::{Digest, SampleSource, calibrate};
use vitq::config::load::parse;
use vitq::quant::plan::{ConstantsFile, Groups, Reparameterized};
use vitq::quant::{
    Codes, Factors, FloatSite, ModelFacts, PlanError, QuantPlan, Scheme, SitePlan, Target, ZeroPoint, make_plan, recordings,
};
use vitq::vit::{Site, SiteRef};

/// An executor that shows one tensor.
struct Shows(Vec<f32>);
struct Session<'a>(&'a [f32]);

impl Forward for Shows {
    fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> {
        Ok(Box::new(Session(&self.0)))
    }
}

impl ForwardSession for Session<'_> {
    fn run(&mut self, _: &[(String, ArrayD<f32>)], on_value: &mut OnValue<'_>) -> Result<Vec<ArrayD<f32>>, Failure> {
        on_value(0, &[1, self.0.len()], self.0);
        Ok(Vec::new())
    }
}

struct One;

impl SampleSource for One {
    fn len(&self) -> usize {
        1
    }

    fn get(&self, _: usize) -> Result<Option<Named>, Failure> {
        Ok(Some(Vec::new()))
    }
}

/// The parameters of a tensor with these elements: codes, scale, zero point.
fn affine(values: &[f32], bits: u8, signed: bool, symmetric: bool) -> (Codes, f32, i32) {
    let yaml = format!("default: {{bit_type: {{bits: {bits}, signed: {signed}, symmetric: {symmetric}}}}}");
    let config = parse("test.yaml", &yaml).unwrap();
    let site = SiteRef {
        block: None,
        site: Site::Input,
        part: None,
        weight: false,
        values: vec!["v".to_owned()],
        observe: None,
        rows: None,
    };
    let taps = recordings(std::slice::from_ref(&site), &config);
    let stats = calibrate(&Shows(values.to_vec()), &taps, &One, Digest::default(), 1, &()).unwrap();
    let facts = ModelFacts {
        digest: String::new(),
        sites: vec![site],
        accumulated: [].into(),
        multiplied: [].into(),
        norms: [].into(),
        reparameterized: vec![],
        constants: [].into(),
        before_gelu: [].into(),
    };
    let plan = make_plan(&facts, &stats, &config, Target::Integer, 2).unwrap();
    let Scheme::Affine { codes, scale, zero_point } = plan.sites[0].scheme else { panic!("{:?}", plan.sites[0]) };
    (codes, scale, zero_point)
}

/// What ONNX's QuantizeLinear and DequantizeLinear make of a number, in f64.
fn round_trip(x: f32, (codes, scale, zero): (Codes, f32, i32)) -> f64 {
    let (low, high) = codes.range();
    let q = (f64::from(x) / f64::from(scale)).round_ties_even() + f64::from(zero);
    (q.clamp(f64::from(low), f64::from(high)) - f64::from(zero)) * f64::from(scale)
}

/// What must hold of the parameters of any tensor.
fn check(values: &[f32], bits: u8, signed: bool, symmetric: bool) {
    let p @ (codes, scale, zero) = affine(values, bits, signed, symmetric);
    let context = format!("{values:?} in {bits} bits, signed {signed}, symmetric {symmetric}: {p:?}");
    let (low, high) = if signed { (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
    assert_eq!((codes.bits, codes.signed, codes.range()), (bits, signed, (low, high)), "{context}");
    assert!(scale.is_finite() && scale > 0.0, "{context}");
    // Zero is a code, so that 0.0 comes back as 0.0.
    assert!((low..=high).contains(&zero), "{context}");
    assert!(round_trip(0.0, p) == 0.0, "{context}");
    if symmetric {
        assert_eq!(zero, if signed { 0 } else { 1 << (bits - 1) }, "{context}");
    }
    // Whatever was seen comes back within one step (half of it, and half for the zero point's own rounding).
    let slack = 1.0 + 1e-5;
    for &v in values {
        let error = (round_trip(v, p) - f64::from(v)).abs();
        assert!(
            error <= f64::from(scale) * slack || f64::from(v.abs()) < f64::from(f32::MIN_POSITIVE) * 255.0,
            "{v}: {error}; {context}"
        );
    }
    // And no step is wasted: the range, with 0, is as wide as the codes.
    let (lo, hi) = values.iter().fold((0f64, 0f64), |(a, b), &v| (a.min(f64::from(v)), b.max(f64::from(v))));
    let wide = if symmetric { lo.abs().max(hi) / f64::from((1i32 << (bits - 1)) - 1) } else { (hi - lo) / f64::from(high - low) };
    if wide > f64::from(f32::MIN_POSITIVE) {
        assert!((f64::from(scale) / wide - 1.0).abs() < 1e-6, "{context}");
    }
}

#[test]
fn ranges_of_every_kind() {
    let tensors: &[&[f32]] = &[
        &[-1.0, 2.0],
        &[0.0, 0.0],
        // One-sided: the range is widened to hold 0.
        &[3.0, 5.0],
        &[-5.0, -3.0],
        &[7.0],
        &[-577.0, 14.0, 0.1],
        // As large as floats are, and as small.
        &[-3e38, 3e38],
        &[f32::MAX, f32::MIN],
        &[1e-30, -2e-30],
        &[1e-37, 0.0],
        &[1e-44, -1e-44],
        &[1e-20, 1e20],
        &[-0.0],
    ];
    for values in tensors {
        for bits in [4, 5, 6, 8, 12, 16] {
            for (signed, symmetric) in [(true, true), (true, false), (false, true), (false, false)] {
                check(values, bits, signed, symmetric);
            }
        }
    }
}

#[test]
fn a_tensor_of_zeros_has_scale_one() {
    assert_eq!(affine(&[0.0, 0.0], 8, true, true), (Codes { bits: 8, signed: true }, 1.0, 0));
    assert_eq!(affine(&[0.0, 0.0], 8, false, false), (Codes { bits: 8, signed: false }, 1.0, 0));
}

#[test]
fn known_parameters() {
    // 0..2.55 in 8 unsigned bits is steps of 0.01 from 0; −1.28..1.27 signed has zero point 0.
    let (_, scale, zero) = affine(&[0.0, 2.55], 8, false, false);
    assert!((scale - 0.01).abs() < 1e-9 && zero == 0);
    let (_, scale, zero) = affine(&[-1.28, 1.27], 8, true, false);
    assert!((scale - 0.01).abs() < 1e-9 && zero == 0);
    // −0.64..1.91: 64 steps below 0.
    let (_, scale, zero) = affine(&[-0.64, 1.91], 8, false, false);
    assert!((scale - 0.01).abs() < 1e-9 && zero == 64);
}

fn any_codes() -> impl Strategy<Value = Codes> {
    (4u8..=16, any::<bool>()).prop_map(|(bits, signed)| Codes { bits, signed })
}

fn positive() -> impl Strategy<Value = f32> {
    (1u32..0x7f80_0000).prop_map(f32::from_bits)
}

fn any_zero_point() -> impl Strategy<Value = ZeroPoint> {
    prop_oneof![
        any::<i16>().prop_map(|z| ZeroPoint::Tensor(z.into())),
        prop::collection::vec(-32768i32..65536, 0..40).prop_map(ZeroPoint::Channels),
    ]
}

fn any_ptf() -> impl Strategy<Value = Scheme> {
    (any_codes(), positive(), any_zero_point(), prop::collection::vec(0u8..16, 0..40), 0u8..=3).prop_map(
        |(codes, scale, zero_point, e, bits)| {
            let mantissas: Vec<u8> = e.iter().map(|e| e % (1 << bits)).collect();
            Scheme::Ptf { codes, scale, zero_point, factors: Factors::new(&e, bits, &mantissas) }
        },
    )
}

fn any_scheme() -> impl Strategy<Value = Scheme> {
    prop_oneof![
        (any_codes(), positive(), any::<i16>()).prop_map(|(codes, scale, z)| Scheme::Affine {
            codes,
            scale,
            zero_point: z.into()
        }),
        any_ptf(),
        (4u8..=16, prop::option::of(0usize..4), prop::collection::vec(positive(), 0..20))
            .prop_map(|(bits, axis, scales)| Scheme::Weight { bits, axis, scales }),
        (prop::option::of(0usize..4), prop::collection::vec(positive(), 0..20), prop::collection::vec(any::<i32>(), 0..20))
            .prop_map(|(axis, scales, levels)| Scheme::Codebook {
                grid: Box::new(Scheme::Weight { bits: 8, axis, scales }),
                levels
            }),
        (prop::option::of(0usize..4), prop::collection::vec(positive(), 0..20), any::<u8>(), any::<u16>()).prop_map(
            |(axis, scales, bits, size)| Scheme::Groups {
                grid: Box::new(Scheme::Weight { bits: 8, axis, scales }),
                groups: Groups { bits, size: size.into() }
            }
        ),
        (any_ptf(), any::<[u8; 3]>()).prop_map(|(grid, [bits, breakpoint, shift])| Scheme::Piecewise {
            grid: Box::new(grid),
            segments: Segments { bits, breakpoint, shift }
        }),
        (4u8..=8, 0u8..=4, 0.9f32..1.1, any::<bool>()).prop_map(|(bits, fraction_bits, scale, normalized)| Scheme::Log2 {
            bits,
            fraction_bits,
            scale,
            normalized
        }),
    ]
}

fn any_site() -> impl Strategy<Value = SitePlan> {
    let kind = prop::sample::select(Site::ALL.to_vec());
    let site =
        (prop::option::of(0usize..99), kind, prop::option::of("[a-z]{1,4}"), any::<bool>(), prop::collection::vec(".*", 0..3))
            .prop_map(|(block, site, part, weight, values)| SiteRef {
                block,
                site,
                part,
                weight,
                values,
                observe: None,
                rows: None,
            });
    (site, any_scheme(), positive(), positive(), prop::option::of(".*")).prop_map(|(site, scheme, lo, hi, note)| SitePlan {
        name: site.full_name(),
        site,
        scheme,
        observed: [-lo, hi],
        note,
        search: None,
    })
}

fn any_plan() -> impl Strategy<Value = QuantPlan> {
    let target = prop::sample::select(Target::NAMES.map(|(_, t)| t).to_vec());
    let float =
        (".*", prop::sample::select(Site::ALL.to_vec()), ".*").prop_map(|(name, site, reason)| FloatSite { name, site, reason });
    let lists = (prop::collection::vec(any_site(), 0..6), prop::collection::vec(float, 0..3));
    let file = (".*", "[0-9a-f]{64}").prop_map(|(file, sha256)| ConstantsFile { file, sha256 });
    let constants = prop::option::of(file);
    let scaled = (".*", prop::collection::vec(1e-3f32..10.0, 0..5)).prop_map(|(site, factors)| Reparameterized { site, factors });
    let scaled = prop::collection::vec(scaled, 0..3);
    ("[0-9a-f]{64}", target, ".*", constants, scaled, lists).prop_map(
        |(model, target, config, constants, reparameterized, (sites, float))| QuantPlan {
            version: 1,
            model,
            target,
            config,
            constants,
            reparameterized,
            sites,
            float,
        },
    )
}

proptest! {
    #[test]
    fn affine_parameters_of_any_range(values in prop::collection::vec(-1e4f32..1e4, 1..8), bits in 4u8..=16, signed: bool, symmetric: bool) {
        check(&values, bits, signed, symmetric);
    }

    #[test]
    fn a_plan_is_its_text(plan in any_plan()) {
        let text = plan.to_text();
        prop_assert_eq!(QuantPlan::from_text(&text, "plan.json").unwrap(), plan);
        prop_assert_eq!(text.chars().last(), Some('\n'));
    }

    #[test]
    fn damaged_plans_are_refused_and_nothing_panics(plan in any_plan(), at in any::<prop::sample::Index>()) {
        let text = plan.to_text();
        let cut = text.char_indices().nth(at.index(text.chars().count() - 2)).map_or(0, |(i, _)| i);
        let error = QuantPlan::from_text(&text[..cut], "plan.json").unwrap_err().to_string();
        prop_assert!(error.starts_with("plan.json is not a quantisation plan: "), "{}", error);
    }
}

fn empty() -> QuantPlan {
    QuantPlan {
        version: 1,
        model: "ab".repeat(32),
        target: Target::Integer,
        config: "int8".to_owned(),
        constants: None,
        reparameterized: vec![],
        sites: vec![],
        float: vec![],
    }
}

#[test]
fn a_plan_of_another_model_or_version_is_refused() {
    let plan = empty();
    assert!(plan.check_model(&"ab".repeat(32)).is_ok());
    let error = plan.check_model(&"cd".repeat(32)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the plan was made for another model (digest abababababab…, this model has cdcdcdcdcdcd…): make a plan of this model's own statistics"
    );
    let newer = QuantPlan { version: 2, ..plan.clone() }.to_text();
    let error = QuantPlan::from_text(&newer, "p.json").unwrap_err();
    assert!(matches!(error, PlanError::Version { found: 2, .. }), "{error}");
    for text in ["", "[]", "{}", "{\"version\": \"1\"}", "null"] {
        let error = QuantPlan::from_text(text, "p.json").unwrap_err();
        assert!(error.to_string().starts_with("p.json is not a quantisation plan: "), "{error}");
    }
    let unknown = plan.to_text().replace("\"integer\"", "\"toaster\"");
    let error = QuantPlan::from_text(&unknown, "p.json").unwrap_err().to_string();
    assert!(error.contains("toaster") && error.contains("line 4"), "{error}");
}

/// An edit with a typing error is refused, wherever it stands; what the format leaves out where it says nothing may be said.
#[test]
fn a_key_that_nothing_reads_is_refused() {
    let site = SitePlan {
        name: "blocks.0.residual1".to_owned(),
        site: SiteRef {
            block: Some(0),
            site: Site::Residual1,
            part: None,
            weight: false,
            values: vec!["sum".to_owned()],
            observe: None,
            rows: None,
        },
        scheme: Scheme::Piecewise {
            grid: Box::new(Scheme::Ptf {
                codes: Codes { bits: 12, signed: true },
                scale: 0.5,
                zero_point: ZeroPoint::Tensor(0),
                factors: Factors::new(&[1, 0], 0, &[]),
            }),
            segments: Segments { bits: 8, breakpoint: 60, shift: 2 },
        },
        observed: [-1.0, 1.0],
        note: None,
        search: None,
    };
    let float = FloatSite { name: "head".to_owned(), site: Site::Head, reason: "why not".to_owned() };
    let plan = QuantPlan { sites: vec![site], float: vec![float], ..empty() };
    let text = plan.to_text();
    let with = |anchor: &str, key: &str| {
        assert!(text.contains(anchor), "{anchor} in {text}");
        QuantPlan::from_text(&text.replace(anchor, &format!("{key}, {anchor}")), "p.json")
    };
    for (anchor, place) in [
        ("\"observed\"", "blocks.0.residual1"),
        ("\"scheme\": \"piecewise\"", "blocks.0.residual1"),
        ("\"scheme\": \"ptf\"", "grid of blocks.0.residual1"),
        ("\"reason\"", "head"),
    ] {
        let error = with(anchor, "\"bit\": 16").unwrap_err().to_string();
        assert!(error.contains("unknown key 'bit' in ") && error.contains(place), "{error}");
        assert_eq!(with(anchor, "\"note\": null").unwrap(), plan);
    }
}

/// What no observer of the configuration reads is not recorded.
#[test]
fn no_more_is_recorded_than_the_configuration_reads() {
    let recorded = |site: Site, yaml: &str| {
        let site =
            SiteRef { block: Some(0), site, part: None, weight: false, values: vec!["v".to_owned()], observe: None, rows: None };
        recordings(&[site], &parse("test.yaml", yaml).unwrap()).remove(0).recording
    };
    // Hidden units share a range unless each was asked for.
    for (yaml, each) in [
        ("default: {bit_type: {bits: 8}}", false),
        ("attn_layer: {mlp_act: {quantization_method: PTF}}", true),
        ("attn_layer: {mlp_act: {bit_type: {bits: 4}, quantization_method: Codebook}}", true),
    ] {
        let found = recorded(Site::MlpAct, yaml);
        assert_eq!((found.channel_axis, found.channel_sketches, found.sketch), (Some(1), each, true), "{yaml}");
    }
    assert!(recorded(Site::Residual1, "default: {bit_type: {bits: 8}}").channel_sketches);
    // Outliers are for KL.
    for (observer, kept) in [("KLObserver", true), ("OmseObserver", false), ("PercentileObserver", false)] {
        let found = recorded(Site::KvAct, &format!("attn_layer: {{kv_act: {{observer_type: {observer}}}}}"));
        assert_eq!((found.sketch, found.outliers), (true, kept), "{observer}");
    }
}
