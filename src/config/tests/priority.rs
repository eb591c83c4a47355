//! The most specific word wins, key by key.

use proptest::option::of;
use proptest::prelude::*;

use super::*;

/// One level's words, as they are written into the file.
#[derive(Debug, Clone)]
struct Words {
    bits: Option<u8>,
    signed: Option<bool>,
    symmetric: Option<bool>,
    observer: Option<usize>,
    alpha: Option<u8>,
    float: Option<bool>,
}

fn words() -> impl Strategy<Value = Words> {
    (
        of(4u8..=16),
        of(any::<bool>()),
        of(any::<bool>()),
        of(0usize..4),
        of(51u8..=100),
        of(any::<bool>()),
    )
        .prop_map(|(bits, signed, symmetric, observer, alpha, float)| Words {
            bits,
            signed,
            symmetric,
            observer,
            alpha,
            float,
        })
}

impl Words {
    fn yaml(&self) -> String {
        let mut bit_type = Vec::new();
        let mut keys = Vec::new();
        bit_type.extend(self.bits.map(|v| format!("bits: {v}")));
        bit_type.extend(self.signed.map(|v| format!("signed: {v}")));
        bit_type.extend(self.symmetric.map(|v| format!("symmetric: {v}")));
        if !bit_type.is_empty() {
            keys.push(format!("bit_type: {{{}}}", bit_type.join(", ")));
        }
        keys.extend(
            self.observer
                .map(|v| format!("observer_type: {}", Observer::NAMES[v].0)),
        );
        keys.extend(
            self.alpha
                .map(|v| format!("percentile_alpha: {}", f64::from(v) / 100.0)),
        );
        keys.extend(self.float.map(|v| format!("float: {v}")));
        format!("{{{}}}", keys.join(", "))
    }
}

proptest! {
    #[test]
    fn block_over_site_over_section_over_default_over_built_in(
        levels in proptest::collection::vec(words(), 4),
        other in words(),
        site in prop::sample::select(vec!["attn_qkv", "norm1", "intSoft", "residual2", "mlp_fc1_output"]),
    ) {
        let section = section_of(site).unwrap();
        let text = format!(
            "default: {}\n{section}:\n  blocks.5.{site}: {}\n  default: {}\n  {site}: {}\n  blocks.4.{site}: {}\n",
            levels[0].yaml(), levels[3].yaml(), levels[1].yaml(), levels[2].yaml(), other.yaml(),
        );
        let config = parse("p.yaml", &text).unwrap();
        let none = parse("p.yaml", "").unwrap().resolve(None, site);
        let sources = [Source::Default, Source::Section, Source::Site, Source::Block];
        for (block, depth) in [(Some(5), 4), (Some(6), 3), (None, 3)] {
            let got = config.resolve(block, site);
            // The last level that says something.
            fn last<T>(levels: &[Words], word: impl Fn(&Words) -> Option<T>) -> Option<(usize, T)> {
                levels.iter().enumerate().rev().find_map(|(i, w)| word(w).map(|v| (i, v)))
            }
            let seen = &levels[..depth];
            macro_rules! check {
                ($key:ident, $field:ident, $word:expr) => {
                    let said = last(seen, $word);
                    prop_assert_eq!(&got.$field, said.as_ref().map_or(&none.$field, |(_, v)| v));
                    prop_assert_eq!(got.source(Key::$key), said.map_or(Source::BuiltIn, |(i, _)| sources[i]));
                };
            }
            check!(Bits, bits, |w| w.bits);
            check!(Signed, signed, |w| w.signed);
            check!(Symmetric, symmetric, |w| w.symmetric.or(w.signed));
            check!(Observer, observer, |w| w.observer.map(|i| Observer::NAMES[i].1));
            check!(PercentileAlpha, percentile_alpha, |w| w.alpha.map(|v| f64::from(v) / 100.0));
            check!(Float, float, |w| w.float);
        }
    }
}
