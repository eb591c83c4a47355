//! LayerNorms whose outputs nothing but Linears read: their channels can be scaled without any change of what the model computes.

use super::{Site, SiteRef};
use crate::ir::{Graph, Use, Value};

/// The constants around a LayerNorm's output. To divide a channel of it is to divide an element of the norm's weight and bias; to make
/// up for that is to multiply a row of the weights that read it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Norm {
    /// The name of the norm's weight, `[channels]`.
    pub scale: String,
    /// The name of the norm's bias, `[channels]`, if it has one.
    pub bias: Option<String>,
    /// The names of the weights that read the output, each `[channels, out]`.
    pub weights: Vec<String>,
}

/// What is around a site, when it is such an output and every constant is of this use alone.
pub(super) fn find(graph: &Graph, site: &SiteRef) -> Option<Norm> {
    if site.weight || !matches!(site.site, Site::Norm1 | Site::Norm2 | Site::Norm) {
        return None;
    }
    let values: Vec<Value> = site.values.iter().map(|name| graph.value(name)).collect::<Option<_>>()?;
    let norm = values.first()?.node;
    if !graph.is_op(norm, "LayerNormalization") && !graph.is_op(norm, "RMSNormalization") {
        return None;
    }
    // The one name of a constant vector that nothing else reads, of as many elements as there are channels.
    let own = |port: u32, channels: Option<usize>| {
        let value = graph.input(norm, port)?;
        let &[n] = graph.constant(value)?.shape.as_slice() else { return None };
        let fits = graph.use_count(value) == 1 && channels.is_none_or(|c| c == n);
        fits.then(|| (graph.value_name(value).to_owned(), n))
    };
    let (scale, channels) = own(1, None)?;
    let bias = match graph.input(norm, 2) {
        Some(_) => Some(own(2, Some(channels))?.0),
        None => None,
    };
    let carries = |u: &Use| values.contains(&Value { node: u.node, port: 0 });
    if values.iter().any(|&v| graph.is_output(v)) {
        return None;
    }
    let readers = values.iter().flat_map(|&v| graph.uses(v)).filter(|u| !carries(u));
    let weights = |u: Use| {
        let weights = graph.input(u.node, 1).filter(|_| u.port == 0 && graph.is_op(u.node, "MatMul"))?;
        let fits = matches!(graph.constant(weights)?.shape.as_slice(), [rows, _] if *rows == channels);
        (fits && graph.use_count(weights) == 1).then(|| graph.value_name(weights).to_owned())
    };
    let weights: Vec<String> = readers.map(weights).collect::<Option<_>>()?;
    (!weights.is_empty()).then_some(Norm { scale, bias, weights })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ir::text::parse_model;

    /// A norm named n and what comes after it.
    fn found(norm: &str, after: &str, outputs: &str) -> Option<Norm> {
        let text = format!(
            "<ir_version: 9, opset_import: [\"\" : 20]>\ng (float[1, 4, 2] x) => ({outputs})\n<float[2] g = {{1, 2}}, float[2] b = {{3, 4}}, \
             float[2, 3] w = {{1, 2, 3, 4, 5, 6}}, float[2, 1] v = {{1, 2}}, int64[2] rows = {{4, 2}}>\n{{\n  {norm}\n  {after}\n}}"
        );
        let graph = parse_model(&text).unwrap().graph;
        let values = ["n", "r"].into_iter().filter(|v| graph.value(v).is_some()).map(str::to_owned).collect();
        let site = SiteRef { block: Some(0), site: Site::Norm1, part: None, weight: false, values, observe: None, rows: None };
        find(&graph, &site)
    }

    const NORM: &str = "n = LayerNormalization <axis = -1> (x, g, b)";

    #[test]
    fn what_only_linears_read() {
        let w = |weights: &[&str]| Some(weights.iter().map(|&w| w.to_owned()).collect::<Vec<_>>());
        let both = found(NORM, "y = MatMul (n, w)\n  z = MatMul (n, v)", "float[1, 4, 3] y, float[1, 4, 1] z").unwrap();
        assert_eq!((both.scale.as_str(), both.bias.as_deref()), ("g", Some("b")));
        assert_eq!(Some(both.weights), w(&["w", "v"]));
        // Behind what only moves its rows, and without a bias.
        let moved =
            found("n = RMSNormalization <axis = -1> (x, g)", "r = Reshape (n, rows)\n  y = MatMul (r, w)", "float[4, 3] y")
                .unwrap();
        assert_eq!((moved.bias, Some(moved.weights)), (None, w(&["w"])));
    }

    #[test]
    fn near_misses() {
        for (norm, after, outputs, why) in [
            (NORM, "y = MatMul (n, w)\n  z = Add (n, x)", "float[1, 4, 3] y, float[1, 4, 2] z", "a sum reads it too"),
            (NORM, "y = MatMul (n, w)", "float[1, 4, 3] y, float[1, 4, 2] n", "it is an output"),
            (NORM, "y = MatMul (n, w)\n  z = Mul (x, g)", "float[1, 4, 3] y, float[1, 4, 2] z", "its weight is used elsewhere"),
            (NORM, "y = MatMul (n, w)\n  z = MatMul (x, w)", "float[1, 4, 3] y, float[1, 4, 3] z", "so are the Linear's"),
            (NORM, "t = Transpose <perm = [0, 2, 1]> (x)\n  y = MatMul (n, t)", "float[1, 4, 4] y", "no constant weights"),
            (NORM, "t = Transpose <perm = [0, 2, 1]> (x)\n  y = MatMul (t, n)", "float[1, 2, 2] y", "it is the right operand"),
            ("n = LayerNormalization <axis = -1> (x, g, g)", "y = MatMul (n, w)", "float[1, 4, 3] y", "one constant is both"),
            ("n = Mul (x, g)", "y = MatMul (n, w)", "float[1, 4, 3] y", "no norm"),
        ] {
            assert_eq!(found(norm, after, outputs), None, "{why}");
        }
    }
}
