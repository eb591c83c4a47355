//! Windows that slide over spatial axes: convolutions, pools, and changes of resolution.

use super::ctx::{self, Ctx, Known, known, one, wrong};
use super::{DimExpr, Shape};

/// `Conv` and `ConvInteger`: data 0, kernel 1.
pub(super) fn conv(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    conv_of(c, c.shape(0)?, c.shape(1)?)
}

/// `QLinearConv`: data 0, kernel 3.
pub(super) fn qlinear_conv(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    conv_of(c, c.shape(0)?, c.shape(3)?)
}

fn conv_of(c: &Ctx, x: &[DimExpr], w: &[DimExpr]) -> Known<Vec<Option<Shape>>> {
    let ([n, _, spatial @ ..], [m, _, kernel @ ..]) = (x, w) else {
        return wrong("a convolution takes inputs of rank 3 or more");
    };
    if spatial.len() != kernel.len() {
        return wrong(format!("a kernel with {} spatial axes cannot slide over {}", kernel.len(), spatial.len()));
    }
    let kernel = match c.op.attrs.ints("kernel_shape") {
        Some(k) => k.iter().map(|&v| Some(v)).collect(),
        None => kernel.iter().map(DimExpr::as_const).collect::<Vec<_>>(),
    };
    let mut shape = vec![n.clone(), m.clone()];
    shape.extend(slide(c, spatial, &kernel)?);
    one(shape)
}

/// `MaxPool`, `AveragePool`, `LpPool`.
pub(super) fn pool(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let [n, channels, spatial @ ..] = c.shape(0)? else { return wrong("a pool takes an input of rank 3 or more") };
    let kernel: Vec<Option<i64>> = known(c.op.attrs.ints("kernel_shape"))?.iter().map(|&v| Some(v)).collect();
    let mut shape = vec![n.clone(), channels.clone()];
    shape.extend(slide(c, spatial, &kernel)?);
    Ok(vec![Some(shape); c.outputs])
}

/// `Global*Pool`: every spatial axis becomes 1.
pub(super) fn global_pool(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    one(c.shape(0)?.iter().enumerate().map(|(i, d)| if i < 2 { d.clone() } else { 1.into() }).collect())
}

/// One window attribute for each spatial axis.
fn window(c: &Ctx, name: &str, default: i64, count: usize) -> Known<Vec<i64>> {
    match c.op.attrs.ints(name) {
        None => Ok(vec![default; count]),
        Some(v) if v.len() == count => Ok(v.to_vec()),
        Some(v) => wrong(format!("attribute {name} has {} numbers and needs {count}", v.len())),
    }
}

fn slide(c: &Ctx, spatial: &[DimExpr], kernel: &[Option<i64>]) -> Known<Vec<DimExpr>> {
    let n = spatial.len();
    if kernel.len() != n {
        return wrong(format!("kernel_shape has {} numbers and the input {n} spatial axes", kernel.len()));
    }
    let (strides, dilations) = (window(c, "strides", 1, n)?, window(c, "dilations", 1, n)?);
    let pads = window(c, "pads", 0, 2 * n)?;
    let auto = c.op.attrs.str("auto_pad").unwrap_or("NOTSET");
    let ceil = c.int("ceil_mode", 0) != 0;
    if strides.iter().chain(&dilations).any(|&v| v <= 0) {
        return wrong("strides and dilations must be positive");
    }
    let pad = |i: usize| if auto == "VALID" { Some(0) } else { pads.get(i)?.checked_add(*pads.get(i + n)?) };
    let size = |i: usize| -> Option<DimExpr> {
        let (d, stride, dilation) = (spatial.get(i)?, *strides.get(i)?, *dilations.get(i)?);
        if auto.starts_with("SAME") {
            return d.ceil_div(stride);
        }
        let reach = (*kernel.get(i)?)?.checked_sub(1)?.checked_mul(dilation)?.checked_add(1)?;
        let room = d.plus(pad(i)?.checked_sub(reach)?)?;
        let down = room.floor_div(stride)?.plus(1)?;
        if !ceil {
            return Some(down);
        }
        let up = room.ceil_div(stride)?.plus(1)?;
        // Whether a last window that starts in the padding counts differs between operator sets and runtimes.
        let last = up.plus(-1)?.times(stride)?;
        let inside = d.plus(*pads.get(i)?)?;
        if up == down || last.less(&inside) == Some(true) { Some(up) } else { None }
    };
    let out: Vec<DimExpr> = (0..n).map(|i| c.or_anon(size(i), 0, i + 2)).collect();
    match out.iter().position(|d| d.as_const().is_some_and(|v| v < 0)) {
        Some(i) => wrong(format!("the window is larger than spatial axis {i}")),
        None => Ok(out),
    }
}

/// `ConvTranspose`.
pub(super) fn conv_transpose(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let ([n, _, spatial @ ..], [_, per_group, kernel @ ..]) = (c.shape(0)?, c.shape(1)?) else {
        return wrong("a convolution takes inputs of rank 3 or more");
    };
    let count = spatial.len();
    if kernel.len() != count {
        return wrong(format!("a kernel with {} spatial axes cannot slide over {count}", kernel.len()));
    }
    let strides = window(c, "strides", 1, count)?;
    let dilations = window(c, "dilations", 1, count)?;
    let extra = window(c, "output_padding", 0, count)?;
    let pads = window(c, "pads", 0, 2 * count)?;
    let auto = c.op.attrs.str("auto_pad").unwrap_or("NOTSET");
    let fixed = c.op.attrs.ints("output_shape");
    let size = |i: usize| -> Option<DimExpr> {
        if let Some(fixed) = fixed {
            return fixed.get(i + fixed.len().checked_sub(count)?).map(|&v| v.into());
        }
        let d = spatial.get(i)?;
        let stride = *strides.get(i)?;
        if auto.starts_with("SAME") {
            return d.times(stride);
        }
        let pad = if auto == "VALID" { 0 } else { pads.get(i)?.checked_add(*pads.get(i + count)?)? };
        let reach = kernel.get(i)?.as_const()?.checked_sub(1)?.checked_mul(*dilations.get(i)?)?.checked_add(1)?;
        d.plus(-1)?.times(stride)?.plus(extra.get(i)?.checked_add(reach)?.checked_sub(pad)?)
    };
    let channels = per_group.times(c.int("group", 1));
    let mut shape = vec![n.clone(), c.or_anon(channels, 0, 1)];
    shape.extend((0..count).map(|i| c.or_anon(size(i), 0, i + 2)));
    one(shape)
}

/// `Resize` and `Upsample`: by sizes (input 3), or by scales (input 2 of `Resize` ≥ 11, input 1 before, or an attribute).
pub(super) fn resize(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let x = c.shape(0)?;
    let every: Vec<i64> = (0..x.len() as i64).collect();
    let axes = c.op.attrs.ints("axes").unwrap_or(&every);
    let stretch = c.op.attrs.str("keep_aspect_ratio_policy").unwrap_or("stretch") == "stretch";
    let scale_input = if c.op.op.is("Resize") && c.opset >= 11 { 2 } else { 1 };
    let sizes = if scale_input == 2 && c.has(3) { Some(c.contents(3)?) } else { None };
    let scales = match c.op.attrs.get("scales") {
        Some(crate::ir::AttrValue::Floats(v)) => Some(v.clone()),
        _ => c.tensor(scale_input).and_then(|t| t.to_f32().ok()),
    };
    let mut shape = x.to_vec();
    for (i, &a) in axes.iter().enumerate() {
        let a = ctx::axis(a, x.len())?;
        let size = match (&sizes, &scales) {
            (Some(s), _) if stretch => s.get(i).cloned().flatten(),
            (None, Some(s)) => x.get(a).zip(s.get(i)).and_then(|(d, s)| scaled(d, *s)),
            _ => None,
        };
        if let Some(slot) = shape.get_mut(a) {
            *slot = c.or_anon(size, 0, a);
        }
    }
    one(shape)
}

fn scaled(d: &DimExpr, scale: f32) -> Option<DimExpr> {
    match d.as_const() {
        Some(n) if scale.is_finite() && scale > 0.0 => Some(((n as f32 * scale).floor() as i64).into()),
        None if scale >= 1.0 && scale.fract() == 0.0 && scale < 1e6 => d.times(scale as i64),
        _ => None,
    }
}

/// `DepthToSpace` and `SpaceToDepth`.
pub(super) fn depth_space(c: &Ctx) -> Known<Vec<Option<Shape>>> {
    let [n, channels, h, w] = c.shape(0)? else { return wrong("the input must have rank 4") };
    let block = known(c.op.attrs.int("blocksize"))?;
    let square = known(block.checked_mul(block))?;
    if block <= 0 {
        return wrong("blocksize must be positive");
    }
    let (channels, h, w) = if c.op.op.is("DepthToSpace") {
        (channels.floor_div(square), h.times(block), w.times(block))
    } else {
        (channels.times(square), h.floor_div(block), w.floor_div(block))
    };
    one(vec![n.clone(), c.or_anon(channels, 0, 1), c.or_anon(h, 0, 2), c.or_anon(w, 0, 3)])
}
