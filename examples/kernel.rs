//! Runs the integer reference of one `ai.vitq` op on arrays of an .npz file, or makes the op's constants.
//!
//! ```text
//! kernel OP IN.npz OUT.npz           the op's inputs by name → the op's output by name
//! kernel params OP IN.npz OUT.npz    real parameters by name → the op's constants by name
//! ```
//!
//! | OP | inputs | real parameters |
//! | --- | --- | --- |
//! | Lut, LutGelu | x, table | activation (0 gelu, 1 gelu tanh, 2 silu, 3 quick gelu, 4 sigmoid, 5 tanh, 6 hard swish), x (any array of the input's type), in_scale, in_zero_point, out_scale, out_zero_point, y_range |
//! | ChannelLut, ChannelLutGelu | x, table (rows × codes), rows (int32) | as Lut, with in_exponents and out_exponents (a channel each) |
//! | LogDequantize | code, table | bits, r |
//! | LogNormalize | code, table | bits, r, n |
//! | LogIntSoftmax | x, exp_table, log_step, mantissa_table, bias, shift, top | scale, n, bits, r, rounding (0 logarithm, 1 probability, 2 reciprocal) |
//! | PtfLayerNorm | x, x_zero_point, multiplier, eps, gamma, beta, shift, y_range | gamma, beta, eps, in_scale, x_zero_point, exponents, out_scale, out_zero_point, y_range |
//! | Requantize | acc (int32), multiplier (int32), shift (uint32), zero_point (int32), y_range (int32) | ratio |
//!
//! Real parameters are float64 and int64 arrays, scalars as arrays of no axes; `x_zero_point` and `y_range` (lowest and
//! highest code) have the type of their tensor's codes, which decides the kernel's types.

use ndarray::{ArrayD, IxDyn, OwnedRepr};
use ndarray_npy::{NpzReader, NpzWriter, ReadNpyError, ReadNpzError};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs::File;
use std::process::ExitCode;
use vitq::quant::tables::layer_norm::{LayerNormSpec, LayerNormTables};
use vitq::quant::tables::log_softmax::{LogRounding, LogSoftmaxTables, log_dequantize_table, log_normalize_table};
use vitq::quant::tables::lut::{Activation, activation_table, channel_tables};
use vitq::quant::tables::requantize::multiplier_and_shift;
use vitq::quant::tables::{Affine, CodeType, Ptf};
use vitq::runtime::kernels::layer_norm::{PtfLayerNorm, ptf_layer_norm};
use vitq::runtime::kernels::log_normalize::log_normalize;
use vitq::runtime::kernels::log_softmax::{LogIntSoftmax, log_int_softmax};
use vitq::runtime::kernels::lut::{lookup, lookup_by_channel};
use vitq::runtime::kernels::requantize::Requantizer;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

macro_rules! arrays {
    ($($variant:ident $type:ty),*) => {
        /// An array of one of the element types that the ops use.
        #[derive(Clone)]
        enum Array { $($variant(ArrayD<$type>)),* }

        $(impl From<ArrayD<$type>> for Array {
            fn from(array: ArrayD<$type>) -> Self { Self::$variant(array) }
        }
        impl Element for $type {
            const NAME: &'static str = stringify!($type);
            fn of(array: &Array) -> Option<&ArrayD<Self>> {
                match array { Array::$variant(a) => Some(a), _ => None }
            }
        })*

        impl Array {
            fn read(npz: &mut NpzReader<File>, name: &str) -> Result<Self> {
                $(match npz.by_name::<OwnedRepr<$type>, IxDyn>(name) {
                    Ok(array) => return Ok(Self::$variant(array.as_standard_layout().into_owned())),
                    Err(ReadNpzError::Npy(ReadNpyError::WrongDescriptor(_))) => {}
                    Err(error) => return Err(format!("{name}: {error}").into()),
                })*
                Err(format!("{name}: this element type serves no op").into())
            }

            fn write(&self, npz: &mut NpzWriter<File>, name: &str) -> Result<()> {
                match self { $(Self::$variant(array) => npz.add_array(name, array)?),* }
                Ok(())
            }
        }
    };
}

/// An element type of an [`Array`].
trait Element: Copy + Sized {
    const NAME: &'static str;
    fn of(array: &Array) -> Option<&ArrayD<Self>>;
}

arrays!(I8 i8, U8 u8, I16 i16, U16 u16, I32 i32, U32 u32, I64 i64, U64 u64, F32 f32, F64 f64);

/// Named arrays.
#[derive(Default)]
struct Named(BTreeMap<String, Array>);

impl Named {
    fn read(path: &str) -> Result<Self> {
        let file = File::open(path).map_err(|e| format!("cannot open {path}: {e}"))?;
        let mut npz = NpzReader::new(file)?;
        let mut named = Self::default();
        for name in npz.names()? {
            let array = Array::read(&mut npz, &name)?;
            named.0.insert(name, array);
        }
        Ok(named)
    }

    fn write(&self, path: &str) -> Result<()> {
        let file = File::create(path).map_err(|e| format!("cannot create {path}: {e}"))?;
        let mut npz = NpzWriter::new(file);
        for (name, array) in &self.0 {
            array.write(&mut npz, name)?;
        }
        npz.finish()?;
        Ok(())
    }

    fn any(&self, name: &str) -> Result<&Array> {
        self.0.get(name).ok_or_else(|| format!("the input has no array named {name}").into())
    }

    fn array<T: Element>(&self, name: &str) -> Result<&ArrayD<T>> {
        T::of(self.any(name)?).ok_or_else(|| format!("{name} must be {}", T::NAME).into())
    }

    fn slice<T: Element>(&self, name: &str) -> Result<&[T]> {
        self.array::<T>(name)?.as_slice().ok_or_else(|| format!("{name} is not contiguous").into())
    }

    fn scalar<T: Element>(&self, name: &str) -> Result<T> {
        match self.slice::<T>(name)? {
            [value] => Ok(*value),
            other => Err(format!("{name} has {} elements, not one", other.len()).into()),
        }
    }

    fn pair<T: Element>(&self, name: &str) -> Result<[T; 2]> {
        match self.slice::<T>(name)? {
            [low, high] => Ok([*low, *high]),
            other => Err(format!("{name} has {} elements, not two", other.len()).into()),
        }
    }

    fn put<T>(&mut self, name: &str, shape: &[usize], values: Vec<T>) -> Result<()>
    where
        Array: From<ArrayD<T>>,
    {
        let array = ArrayD::from_shape_vec(IxDyn(shape), values)?;
        self.0.insert(name.to_owned(), array.into());
        Ok(())
    }

    /// Codes of the type that `like` has.
    fn put_codes(&mut self, name: &str, shape: &[usize], codes: &[i32], like: &Array) -> Result<()> {
        macro_rules! convert {
            ($($variant:ident $type:ty),*) => {
                match like {
                    $(Array::$variant(_) => {
                        let codes: std::result::Result<Vec<$type>, _> =
                            codes.iter().map(|&c| <$type>::try_from(c)).collect();
                        self.put(name, shape, codes?)
                    })*
                    _ => Err(format!("{name} must hold 8- or 16-bit codes").into()),
                }
            };
        }
        convert!(I8 i8, U8 u8, I16 i16, U16 u16)
    }
}

fn code_type(array: &Array) -> Result<CodeType> {
    match array {
        Array::I8(_) => Ok(CodeType::Int8),
        Array::U8(_) => Ok(CodeType::Uint8),
        Array::I16(_) => Ok(CodeType::Int16),
        Array::U16(_) => Ok(CodeType::Uint16),
        _ => Err("codes have 8 or 16 bits".into()),
    }
}

fn codes(array: &Array) -> Result<Vec<i32>> {
    Ok(match array {
        Array::I8(a) => a.iter().map(|&v| v.into()).collect(),
        Array::U8(a) => a.iter().map(|&v| v.into()).collect(),
        Array::I16(a) => a.iter().map(|&v| v.into()).collect(),
        Array::U16(a) => a.iter().map(|&v| v.into()).collect(),
        _ => return Err("codes have 8 or 16 bits".into()),
    })
}

/// `2^exponent`, of exponents from 0 to 15.
fn powers_of_two(exponents: &[i64]) -> Result<Vec<u32>> {
    exponents.iter().map(|&e| Ok(1u32 << u32::try_from(e).ok().filter(|&e| e < 16).ok_or("exponents are 0 to 15")?)).collect()
}

fn range(array: &Array) -> Result<(i32, i32)> {
    match codes(array)?[..] {
        [low, high] => Ok((low, high)),
        _ => Err("y_range has two codes".into()),
    }
}

fn run(op: &str, input: &Named) -> Result<Named> {
    let mut output = Named::default();
    match op {
        "Lut" | "LutGelu" | "ChannelLut" | "ChannelLutGelu" | "LogDequantize" => {
            let (from, to) = if op == "LogDequantize" { ("code", "value") } else { ("x", "y") };
            macro_rules! table {
                ($x:expr, $($variant:ident),*) => {
                    match input.any("table")? {
                        $(Array::$variant(t) => {
                            let table = t.as_slice().ok_or("table is not contiguous")?;
                            let x = $x.as_slice().ok_or("codes are not contiguous")?;
                            let y = if op.starts_with("Channel") {
                                lookup_by_channel(x, table, input.slice("rows")?)?
                            } else {
                                lookup(x, table)?
                            };
                            output.put(to, $x.shape(), y)?;
                        })*
                        _ => return Err("table must be int8, uint8, int16, uint16 or float32".into()),
                    }
                };
            }
            match input.any(from)? {
                Array::I8(x) => table!(x, I8, U8, I16, U16, F32),
                Array::U8(x) => table!(x, I8, U8, I16, U16, F32),
                Array::I16(x) => table!(x, I8, U8, I16, U16, F32),
                Array::U16(x) => table!(x, I8, U8, I16, U16, F32),
                _ => return Err("codes have 8 or 16 bits".into()),
            }
        }
        "LogNormalize" => {
            let Array::U8(x) = input.any("code")? else { return Err("codes are uint8".into()) };
            let n = x.shape().last().copied().ok_or("code has no axis")?;
            let rows = log_normalize(x.as_slice().ok_or("code is not contiguous")?, n, input.slice("table")?)?;
            let quotients =
                rows.weights.chunks(n).zip(&rows.sums).flat_map(|(w, &s)| w.iter().map(move |&w| w as f32 / s as f32));
            output.put("value", x.shape(), quotients.collect::<Vec<f32>>())?;
        }
        "LogIntSoftmax" => {
            let constants = LogIntSoftmax {
                exp_table: input.slice("exp_table")?,
                log_step: input.scalar("log_step")?,
                mantissa_table: input.slice("mantissa_table")?,
                bias: input.scalar("bias")?,
                shift: input.scalar("shift")?,
                top: input.scalar("top")?,
            };
            macro_rules! softmax {
                ($x:expr) => {{
                    let n = $x.shape().last().copied().ok_or("x has no axis")?;
                    let x = $x.as_slice().ok_or("x is not contiguous")?;
                    output.put("code", $x.shape(), log_int_softmax(x, n, &constants)?)?;
                }};
            }
            match input.any("x")? {
                Array::I8(x) => softmax!(x),
                Array::U8(x) => softmax!(x),
                _ => return Err("x must be int8 or uint8".into()),
            }
        }
        "PtfLayerNorm" => {
            macro_rules! norm {
                ($x:expr, $($variant:ident $type:ty),*) => {
                    match input.any("y_range")? {
                        $(Array::$variant(_) => {
                            let constants = PtfLayerNorm {
                                x_zero_points: input.slice("x_zero_point")?,
                                multiplier: input.slice("multiplier")?,
                                eps: input.scalar("eps")?,
                                gamma: input.slice("gamma")?,
                                beta: input.slice("beta")?,
                                shift: input.scalar("shift")?,
                                y_range: input.pair::<$type>("y_range")?,
                            };
                            let x = $x.as_slice().ok_or("x is not contiguous")?;
                            output.put("y", $x.shape(), ptf_layer_norm(x, &constants)?)?;
                        })*
                        _ => return Err("y_range must hold 8- or 16-bit codes".into()),
                    }
                };
            }
            match input.any("x")? {
                Array::I8(x) => norm!(x, I8 i8, U8 u8, I16 i16, U16 u16),
                Array::U8(x) => norm!(x, I8 i8, U8 u8, I16 i16, U16 u16),
                Array::I16(x) => norm!(x, I8 i8, U8 u8, I16 i16, U16 u16),
                Array::U16(x) => norm!(x, I8 i8, U8 u8, I16 i16, U16 u16),
                _ => return Err("x must hold 8- or 16-bit codes".into()),
            }
        }
        "Requantize" => {
            let [low, high] = input.pair("y_range")?;
            let requantizer =
                Requantizer::new(input.scalar("multiplier")?, input.scalar("shift")?, input.scalar("zero_point")?, low, high)?;
            let acc = input.array::<i32>("acc")?;
            let y = acc.iter().map(|&a| requantizer.apply(a)).collect();
            output.put("y", acc.shape(), y)?;
        }
        _ => return Err(format!("there is no op {op}").into()),
    }
    Ok(output)
}

fn params(op: &str, input: &Named) -> Result<Named> {
    let mut output = Named::default();
    let small = |name: &str| -> Result<u32> { Ok(u32::try_from(input.scalar::<i64>(name)?)?) };
    let code = |name: &str| -> Result<i32> { Ok(i32::try_from(input.scalar::<i64>(name)?)?) };
    match op {
        "Lut" | "LutGelu" | "ChannelLut" | "ChannelLutGelu" => {
            let activation = match input.scalar::<i64>("activation")? {
                0 => Activation::Gelu,
                1 => Activation::GeluTanh,
                2 => Activation::Silu,
                3 => Activation::QuickGelu,
                4 => Activation::Sigmoid,
                5 => Activation::Tanh,
                6 => Activation::HardSwish,
                other => return Err(format!("there is no activation {other}").into()),
            };
            let y_range = input.any("y_range")?;
            let from = Affine { scale: input.scalar("in_scale")?, zero_point: code("in_zero_point")? };
            let to = Affine { scale: input.scalar("out_scale")?, zero_point: code("out_zero_point")? };
            let (x, range) = (code_type(input.any("x")?)?, range(y_range)?);
            if op.starts_with("Channel") {
                let a = powers_of_two(input.slice("in_exponents")?)?;
                let b = powers_of_two(input.slice("out_exponents")?)?;
                let from = Ptf { scale: from.scale, zero_points: &[from.zero_point], multipliers: &a };
                let to = Ptf { scale: to.scale, zero_points: &[to.zero_point], multipliers: &b };
                let t = channel_tables(activation, from, x, to, range)?;
                output.put_codes("table", &[t.count, t.entries.len() / t.count], &t.entries, y_range)?;
                output.put("rows", &[t.rows.len()], t.rows)?;
            } else {
                let table = activation_table(activation, from, x, to, range)?;
                output.put_codes("table", &[table.len()], &table, y_range)?;
            }
        }
        "LogDequantize" => {
            let table = log_dequantize_table(small("bits")?, small("r")?)?;
            output.put("table", &[table.len()], table)?;
        }
        "LogNormalize" => {
            let n = usize::try_from(input.scalar::<i64>("n")?)?;
            let table = log_normalize_table(small("bits")?, small("r")?, n)?;
            output.put("table", &[table.len()], table)?;
        }
        "LogIntSoftmax" => {
            let rounding = match input.scalar::<i64>("rounding")? {
                0 => LogRounding::Logarithm,
                1 => LogRounding::Probability,
                2 => LogRounding::Reciprocal,
                other => return Err(format!("there is no rounding {other}").into()),
            };
            let t = LogSoftmaxTables::new(
                input.scalar("scale")?,
                usize::try_from(input.scalar::<i64>("n")?)?,
                small("bits")?,
                small("r")?,
                rounding,
            )?;
            output.put("exp_table", &[t.exp_table.len()], t.exp_table)?;
            output.put("log_step", &[], vec![t.log_step])?;
            output.put("mantissa_table", &[t.mantissa_table.len()], t.mantissa_table)?;
            output.put("bias", &[], vec![t.bias])?;
            output.put("shift", &[], vec![t.shift])?;
            output.put("top", &[], vec![t.top])?;
        }
        "PtfLayerNorm" => {
            let zero_point = input.any("x_zero_point")?;
            let y_range = input.any("y_range")?;
            let multipliers = powers_of_two(input.slice("exponents")?)?;
            let zero_points = codes(zero_point)?;
            let t = LayerNormTables::new(&LayerNormSpec {
                gamma: input.slice("gamma")?,
                beta: input.slice("beta")?,
                eps: input.scalar("eps")?,
                input: Ptf { scale: input.scalar("in_scale")?, zero_points: &zero_points, multipliers: &multipliers },
                input_type: code_type(zero_point)?,
                output: Ptf { scale: input.scalar("out_scale")?, zero_points: &[code("out_zero_point")?], multipliers: &[] },
                output_range: range(y_range)?,
            })?;
            let channels = [t.multiplier.len()];
            output.0.insert("x_zero_point".into(), zero_point.clone());
            output.put("multiplier", &channels, t.multiplier)?;
            output.put("eps", &[], vec![t.eps])?;
            output.put("gamma", &channels, t.gamma)?;
            output.put("beta", &channels, t.beta)?;
            output.put("shift", &[], vec![t.shift])?;
            output.0.insert("y_range".into(), y_range.clone());
        }
        "Requantize" => {
            let (multiplier, shift) = multiplier_and_shift(input.scalar("ratio")?)?;
            output.put("multiplier", &[], vec![multiplier])?;
            output.put("shift", &[], vec![shift])?;
        }
        _ => return Err(format!("there is no op {op}").into()),
    }
    Ok(output)
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let result = match arguments[..] {
        ["params", op, from, to] => Named::read(from).and_then(|input| params(op, &input)).and_then(|output| output.write(to)),
        [op, from, to] => Named::read(from).and_then(|input| run(op, &input)).and_then(|output| output.write(to)),
        _ => Err("usage: kernel [params] OP IN.npz OUT.npz".into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kernel: {error}");
            ExitCode::FAILURE
        }
    }
}
