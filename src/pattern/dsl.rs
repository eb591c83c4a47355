//! Building patterns.

use crate::ir::{Op, Tensor};

/// A test of an operator's attributes; the error says what was expected and found.
pub(super) type AttrCheck = fn(&Op) -> Result<(), String>;
/// A test of a constant; the error says what was expected and found.
pub(super) type ConstCheck = fn(&Tensor) -> Result<(), String>;

/// What the computation of one value looks like.
#[derive(Debug, Clone)]
pub struct Pat {
    pub(super) node: PatNode,
    pub(super) name: Option<&'static str>,
}

#[derive(Debug, Clone)]
pub(super) enum PatNode {
    /// Anything; the same name elsewhere must be the same value.
    Var,
    /// A constant tensor.
    Const(ConstCheck, &'static str),
    /// A constant scalar (one element) near a number, relative tolerance 1e-3.
    Near(f32),
    /// An operator with its inputs in order (or either order, for two).
    Op {
        op_type: &'static str,
        inputs: Vec<Pat>,
        commute: bool,
        port: Option<u32>,
        check: Option<AttrCheck>,
        form: Option<&'static str>,
    },
    /// The first alternative that lets the rest match.
    Any(Vec<Pat>),
    /// `inner` behind any number of steps.
    Chain { steps: Vec<Pat>, inner: Box<Pat> },
    /// Inside a step: what the step does something to, the rest of the chain.
    Hole,
}

/// Any value, bound to a name.
pub fn var(name: &'static str) -> Pat {
    Pat { node: PatNode::Var, name: Some(name) }
}

/// Any constant tensor, bound to a name.
pub fn konst(name: &'static str) -> Pat {
    Pat { node: PatNode::Const(|_| Ok(()), "a constant"), name: Some(name) }
}

/// A constant of one element, bound to a name.
pub fn scalar(name: &'static str) -> Pat {
    let one = |t: &Tensor| {
        if t.len() == 1 { Ok(()) } else { Err(format!("a single number expected, found a constant of shape {:?}", t.shape)) }
    };
    Pat { node: PatNode::Const(one, "a single number"), name: Some(name) }
}

/// A constant that passes a test, bound to a name; `what` names it in messages.
pub fn tensor(name: &'static str, what: &'static str, check: fn(&Tensor) -> Result<(), String>) -> Pat {
    Pat { node: PatNode::Const(check, what), name: Some(name) }
}

/// A constant of one element near a number.
pub fn near(value: f32) -> Pat {
    Pat { node: PatNode::Near(value), name: None }
}

/// An operator of the default domain with these inputs in this order. Inputs that the pattern leaves out at the end may
/// be there.
pub fn op<const N: usize>(op_type: &'static str, inputs: [Pat; N]) -> Pat {
    Pat { node: PatNode::Op { op_type, inputs: inputs.into(), commute: false, port: None, check: None, form: None }, name: None }
}

/// An operator of two inputs in either order.
pub fn commute(op_type: &'static str, a: Pat, b: Pat) -> Pat {
    let mut p = op(op_type, [a, b]);
    if let PatNode::Op { commute, .. } = &mut p.node {
        *commute = true;
    }
    p
}

/// The first alternative that lets the rest match.
pub fn any_of<const N: usize>(alternatives: [Pat; N]) -> Pat {
    Pat { node: PatNode::Any(alternatives.into()), name: None }
}

/// `inner` behind any number of steps, none included; [`rest`] in a step stands for what the step is applied to. The values
/// that steps make are listed under the chain's name ([`Match::list`](super::Match::list)).
pub fn chain<const N: usize>(name: &'static str, steps: [Pat; N], inner: Pat) -> Pat {
    Pat { node: PatNode::Chain { steps: steps.into(), inner: Box::new(inner) }, name: Some(name) }
}

/// In a step of a [`chain`]: what the step is applied to. A step may say it more than once; all must lead to the same `inner`.
pub fn rest() -> Pat {
    Pat { node: PatNode::Hole, name: None }
}

/// Any constant, not bound to a name: what steps of a chain read besides the chain.
pub fn constant() -> Pat {
    Pat { node: PatNode::Const(|_| Ok(()), "a constant"), name: None }
}

impl Pat {
    /// Binds the value to a name.
    #[must_use]
    pub fn named(mut self, name: &'static str) -> Pat {
        self.name = Some(name);
        self
    }

    /// Adds a test of the operator's attributes.
    #[must_use]
    pub fn check(mut self, test: fn(&Op) -> Result<(), String>) -> Pat {
        if let PatNode::Op { check, .. } = &mut self.node {
            *check = Some(test);
        }
        self
    }

    /// The value must leave this output port of the operator.
    #[must_use]
    pub fn port(mut self, at: u32) -> Pat {
        if let PatNode::Op { port, .. } = &mut self.node {
            *port = Some(at);
        }
        self
    }

    /// Labels an operator with the exporter's form that it gives away: what [`Match::forms`](super::Match::forms) lists when
    /// the arm that holds it has matched.
    #[must_use]
    pub fn form(mut self, label: &'static str) -> Pat {
        if let PatNode::Op { form, .. } = &mut self.node {
            *form = Some(label);
        }
        self
    }

    /// The operator types that the value may come from, or `None` when it may be anything.
    pub(super) fn roots(&self) -> Option<Vec<&'static str>> {
        match &self.node {
            PatNode::Op { op_type, .. } => Some(vec![op_type]),
            PatNode::Any(alternatives) => {
                alternatives.iter().map(Pat::roots).collect::<Option<Vec<_>>>().map(|v| v.into_iter().flatten().collect())
            }
            PatNode::Chain { steps, inner } => {
                let all = steps.iter().chain([inner.as_ref()]);
                all.map(Pat::roots).collect::<Option<Vec<_>>>().map(|v| v.into_iter().flatten().collect())
            }
            _ => None,
        }
    }
}
