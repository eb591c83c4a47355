//! Symbolic sizes: polynomials with integer coefficients over named sizes and floor divisions.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::ir::Dim;

/// Larger polynomials are given up, so that no malformed model makes inference slow.
const MAX_TERMS: usize = 32;
/// Products of more factors are given up.
const MAX_FACTORS: usize = 8;
/// Floor divisions nested deeper than this are given up.
const MAX_DEPTH: usize = 8;

/// An indivisible part of an expression; never negative unless it is a floor division of something that may be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    /// A size with a name in the file.
    Symbol(Arc<str>),
    /// A size of which nothing is known but where it occurs: axis of an output of a node.
    Anon(u32, u32, u32),
    /// `⌊expression / divisor⌋` with a positive divisor.
    Floor(DimExpr, i64),
}

type Product = Vec<Atom>;

/// A symbolic size (or any integer computed from sizes) in normal form, so that equal polynomials are equal values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DimExpr(Repr);

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Const(i64),
    /// Terms with factors sorted, in ascending order of the factors, coefficients not zero; at least one has a factor.
    Sum(Arc<[(Product, i64)]>),
}

impl From<i64> for DimExpr {
    fn from(value: i64) -> Self {
        DimExpr(Repr::Const(value))
    }
}

impl DimExpr {
    /// A named size, not negative.
    pub fn symbol(name: &str) -> DimExpr {
        DimExpr::atom(Atom::Symbol(name.into()))
    }

    /// A size that is known by its place alone, not negative.
    pub(super) fn anonymous(node: u32, port: u32, axis: u32) -> DimExpr {
        DimExpr::atom(Atom::Anon(node, port, axis))
    }

    fn atom(atom: Atom) -> DimExpr {
        DimExpr(Repr::Sum(Arc::new([(vec![atom], 1)])))
    }

    /// The number, if this is one.
    pub fn as_const(&self) -> Option<i64> {
        match self.0 {
            Repr::Const(v) => Some(v),
            Repr::Sum(_) => None,
        }
    }

    /// The number as a size, if this is one and not negative.
    pub fn as_size(&self) -> Option<usize> {
        self.as_const().and_then(|v| usize::try_from(v).ok())
    }

    /// Whether this is a size of which nothing is known but where it occurs.
    pub fn is_anonymous(&self) -> bool {
        matches!(self.single_atom(), Some(Atom::Anon(..)))
    }

    /// The size in a file's notation: a number, a name (an expression's text counts as one), or unknown.
    pub fn to_dim(&self) -> Dim {
        match self.as_const() {
            Some(v) => Dim::Value(v),
            None if self.mentions_anonymous() => Dim::Unknown,
            None => Dim::Param(self.to_string()),
        }
    }

    fn mentions_anonymous(&self) -> bool {
        self.terms().iter().flat_map(|(p, _)| p).any(|a| match a {
            Atom::Symbol(_) => false,
            Atom::Anon(..) => true,
            Atom::Floor(e, _) => e.mentions_anonymous(),
        })
    }

    fn single_atom(&self) -> Option<&Atom> {
        match self.terms() {
            [(product, 1)] => match product.as_slice() {
                [atom] => Some(atom),
                _ => None,
            },
            _ => None,
        }
    }

    /// The terms of a sum; empty for a number.
    fn terms(&self) -> &[(Product, i64)] {
        match &self.0 {
            Repr::Const(_) => &[],
            Repr::Sum(terms) => terms,
        }
    }

    fn to_map(&self) -> BTreeMap<Product, i64> {
        match &self.0 {
            Repr::Const(0) => BTreeMap::new(),
            Repr::Const(v) => BTreeMap::from([(Vec::new(), *v)]),
            Repr::Sum(terms) => terms.iter().cloned().collect(),
        }
    }

    fn from_map(mut map: BTreeMap<Product, i64>) -> Option<DimExpr> {
        map.retain(|_, c| *c != 0);
        if map.len() > MAX_TERMS {
            return None;
        }
        if map.keys().all(Vec::is_empty) {
            return Some(map.values().next().copied().unwrap_or(0).into());
        }
        Some(DimExpr(Repr::Sum(map.into_iter().collect())))
    }

    fn depth(&self) -> usize {
        let inner = |a: &Atom| if let Atom::Floor(e, _) = a { 1 + e.depth() } else { 0 };
        self.terms().iter().flat_map(|(p, _)| p).map(inner).max().unwrap_or(0)
    }

    /// The sum; `None` when it grows too large.
    pub fn add(&self, other: &DimExpr) -> Option<DimExpr> {
        if let (Some(a), Some(b)) = (self.as_const(), other.as_const()) {
            return a.checked_add(b).map(DimExpr::from);
        }
        let mut map = self.to_map();
        for (product, c) in other.to_map() {
            let slot = map.entry(product).or_insert(0);
            *slot = slot.checked_add(c)?;
        }
        DimExpr::from_map(map)
    }

    /// The negative.
    pub fn neg(&self) -> Option<DimExpr> {
        self.mul(&(-1).into())
    }

    /// The difference; `None` when it grows too large.
    pub fn sub(&self, other: &DimExpr) -> Option<DimExpr> {
        self.add(&other.neg()?)
    }

    /// The product; `None` when it grows too large.
    pub fn mul(&self, other: &DimExpr) -> Option<DimExpr> {
        if let (Some(a), Some(b)) = (self.as_const(), other.as_const()) {
            return a.checked_mul(b).map(DimExpr::from);
        }
        let (a, b) = (self.to_map(), other.to_map());
        let mut map: BTreeMap<Product, i64> = BTreeMap::new();
        for (p, c) in &a {
            for (q, d) in &b {
                let mut product = [p.as_slice(), q.as_slice()].concat();
                product.sort_unstable();
                if product.len() > MAX_FACTORS {
                    return None;
                }
                let slot = map.entry(product).or_insert(0);
                *slot = slot.checked_add(c.checked_mul(*d)?)?;
            }
        }
        DimExpr::from_map(map)
    }

    /// The sum plus a number.
    pub fn plus(&self, n: i64) -> Option<DimExpr> {
        self.add(&n.into())
    }

    /// The product with a number.
    pub fn times(&self, n: i64) -> Option<DimExpr> {
        self.mul(&n.into())
    }

    /// `⌊self / divisor⌋` for a positive divisor. Multiples of the divisor are drawn out of the floor, so that
    /// `⌊(H − 16) / 16⌋ + 1` is `⌊H / 16⌋`.
    pub fn floor_div(&self, divisor: i64) -> Option<DimExpr> {
        if divisor <= 0 {
            return None;
        }
        let (mut whole, mut rest) = (BTreeMap::new(), BTreeMap::new());
        for (product, c) in self.to_map() {
            whole.insert(product.clone(), c.div_euclid(divisor));
            rest.insert(product, c.rem_euclid(divisor));
        }
        let (whole, rest) = (DimExpr::from_map(whole)?, DimExpr::from_map(rest)?);
        if rest.as_const().is_some() {
            return Some(whole);
        }
        let floor = match rest.single_atom() {
            Some(Atom::Floor(inner, d)) => Atom::Floor(inner.clone(), d.checked_mul(divisor)?),
            _ => Atom::Floor(rest, divisor),
        };
        let floor = DimExpr::atom(floor);
        if floor.depth() > MAX_DEPTH { None } else { whole.add(&floor) }
    }

    /// `⌈self / divisor⌉` for a positive divisor.
    pub fn ceil_div(&self, divisor: i64) -> Option<DimExpr> {
        self.plus(divisor.checked_sub(1)?)?.floor_div(divisor)
    }

    /// `self − divisor · ⌊self / divisor⌋` for a positive divisor.
    pub fn modulo(&self, divisor: i64) -> Option<DimExpr> {
        self.sub(&self.floor_div(divisor)?.times(divisor)?)
    }

    /// The quotient of a division known to leave no rest, when the divisor is a single term that divides every term.
    pub fn div_exact(&self, divisor: &DimExpr) -> Option<DimExpr> {
        if self == divisor && divisor.as_const() != Some(0) {
            return Some(1.into());
        }
        let map = divisor.to_map();
        let (product, coefficient) = map.iter().next().filter(|_| map.len() == 1)?;
        let mut quotient = BTreeMap::new();
        for (mut p, c) in self.to_map() {
            for factor in product {
                let at = p.iter().position(|a| a == factor)?;
                p.remove(at);
            }
            if c.checked_rem(*coefficient)? != 0 {
                return None;
            }
            quotient.insert(p, c.checked_div(*coefficient)?);
        }
        DimExpr::from_map(quotient)
    }

    /// The value for given sizes of the named symbols; `None` when a symbol is not given or the arithmetic overflows.
    pub fn evaluate(&self, size: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        if let Some(v) = self.as_const() {
            return Some(v);
        }
        self.terms().iter().try_fold(0i64, |sum, (product, c)| {
            let term = product.iter().try_fold(*c, |n, atom| {
                n.checked_mul(match atom {
                    Atom::Symbol(name) => size(name)?,
                    Atom::Anon(..) => return None,
                    Atom::Floor(e, d) => e.evaluate(size)?.div_euclid(*d),
                })
            })?;
            sum.checked_add(term)
        })
    }

    /// A number that the expression is never below, if one is evident. Named and anonymous sizes are not negative.
    pub fn lower_bound(&self) -> Option<i64> {
        match &self.0 {
            Repr::Const(v) => Some(*v),
            Repr::Sum(terms) => terms.iter().try_fold(0i64, |sum, (product, c)| {
                let term = if product.is_empty() {
                    *c
                } else if *c > 0 {
                    c.checked_mul(product_bound(product)?)?
                } else {
                    return None;
                };
                sum.checked_add(term)
            }),
        }
    }

    /// Whether the expression is evidently at least `n`.
    pub fn at_least(&self, n: i64) -> bool {
        self.lower_bound().is_some_and(|b| b >= n)
    }

    /// Whether two expressions are equal for every, or for no, value of the symbols; `None` when it depends or is not evident.
    pub fn equals(&self, other: &DimExpr) -> Option<bool> {
        let d = self.sub(other)?;
        match d.as_const() {
            Some(v) => Some(v == 0),
            None if d.at_least(1) || d.neg()?.at_least(1) => Some(false),
            None => None,
        }
    }

    /// Whether `self < other` for every, or for no, value of the symbols; `None` when it depends or is not evident.
    pub fn less(&self, other: &DimExpr) -> Option<bool> {
        if other.sub(self)?.at_least(1) {
            Some(true)
        } else if self.sub(other)?.at_least(0) {
            Some(false)
        } else {
            None
        }
    }
}

fn product_bound(product: &[Atom]) -> Option<i64> {
    let bound = |a: &Atom| match a {
        Atom::Symbol(_) | Atom::Anon(..) => Some(0),
        Atom::Floor(e, d) => e.lower_bound().map(|b| b.div_euclid(*d)),
    };
    match product {
        [single] => bound(single),
        many => many.iter().try_fold(1i64, |n, a| n.checked_mul(bound(a).filter(|b| *b >= 0)?)),
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Atom::Symbol(name) => f.write_str(name),
            Atom::Anon(..) => f.write_str("?"),
            Atom::Floor(e, d) => write!(f, "floor(({e})/{d})"),
        }
    }
}

impl fmt::Display for DimExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Const(v) => return write!(f, "{v}"),
            Repr::Sum(terms) => terms,
        };
        // The constant sorts first; people write it last.
        let (constant, rest): (Vec<_>, Vec<_>) = terms.iter().partition(|(p, _)| p.is_empty());
        for (i, (product, c)) in rest.into_iter().chain(constant).enumerate() {
            match (i, *c < 0) {
                (0, false) => {}
                (0, true) => f.write_str("-")?,
                (_, false) => f.write_str(" + ")?,
                (_, true) => f.write_str(" - ")?,
            }
            let names: Vec<String> = product.iter().map(Atom::to_string).collect();
            match (c.unsigned_abs(), names.is_empty()) {
                (n, true) => write!(f, "{n}")?,
                (1, false) => f.write_str(&names.join("*"))?,
                (n, false) => write!(f, "{n}*{}", names.join("*"))?,
            }
        }
        Ok(())
    }
}
