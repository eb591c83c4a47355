//! HardSwish from the product that exporters write before opset 14.

use crate::ir::NewOp;
use crate::pattern::{Rule, commute, op, var};

pub(super) fn rules() -> Vec<Rule> {
    // x · clamp(x/6 + 1/2, 0, 1); HardSigmoid's own defaults are 0.2 and 0.5.
    let gate = op("HardSigmoid", [var("x")]).check(|op| {
        let (alpha, beta) = (op.attrs.float("alpha").unwrap_or(0.2), op.attrs.float("beta").unwrap_or(0.5));
        if (alpha - 1.0 / 6.0).abs() < 1e-6 && beta == 0.5 {
            Ok(())
        } else {
            Err(format!("{} with alpha 1/6 and beta 0.5 expected, found {alpha} and {beta}", op.op))
        }
    });
    vec![Rule::new(
        "hard-swish",
        // The gate of a squeeze-and-excitation is no near miss.
        "",
        commute("Mul", var("x"), gate).form("HardSigmoid, Mul"),
        |_, _| Ok(()),
        |edit, m, ()| {
            let name = edit.value_name(m.root()).to_owned();
            edit.add(m.root().node, NewOp::std("HardSwish", &name).input(m.value("x")))
        },
    )]
}
