//! Recursive descent over the tokens. The syntax read here nests to a fixed depth, so the parser does not recurse.

mod attr;

use bytes::Bytes;

use super::build::{Draft, DraftNode};
use super::lex::{Lexer, Tok};
use super::tensor::Collector;
use super::{OTHER_TYPES, TextError, is_type_word};
use crate::ir::{
    Attrs, DType, Dim, Function, Graph, Header, Model, Op, OpName, OpsetImport, Tensor, TensorType, Type, ValueInfo,
};

/// Parses a model: header, graph, functions.
///
/// # Errors
/// The first place that is no ONNX text, or whose graph breaks an invariant.
pub fn parse_model(text: &str) -> Result<Model, TextError> {
    let mut p = Parser::new(text)?;
    let (mut header, mut opsets) = (Header::default(), Vec::new());
    p.header(|p, key| {
        match key {
            "ir_version" => header.ir_version = p.int()?,
            "opset_import" => opsets = p.opsets()?,
            "producer_name" => header.producer_name = p.string()?,
            "producer_version" => header.producer_version = p.string()?,
            "domain" => header.domain = p.string()?,
            "model_version" => header.model_version = p.int()?,
            "doc_string" => header.doc = p.string()?,
            "metadata_props" => header.metadata = p.entries()?,
            _ => return Ok(false),
        }
        Ok(true)
    })?;
    let graph = p.graph()?;
    let mut functions = Vec::new();
    while p.tok != Tok::End {
        functions.push(p.function()?);
    }
    Ok(Model { graph, opsets, functions, header })
}

/// Parses one graph.
///
/// # Errors
/// The first place that is no ONNX text, or whose graph breaks an invariant.
pub fn parse_graph(text: &str) -> Result<Graph, TextError> {
    let mut p = Parser::new(text)?;
    let graph = p.graph()?;
    p.end()?;
    Ok(graph)
}

/// Parses one model-local function.
///
/// # Errors
/// The first place that is no ONNX text, or whose body breaks an invariant.
pub fn parse_function(text: &str) -> Result<Function, TextError> {
    let mut p = Parser::new(text)?;
    let function = p.function()?;
    p.end()?;
    Ok(function)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    tok: Tok<'a>,
    at: usize,
}

type Result<T, E = TextError> = std::result::Result<T, E>;

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Result<Self> {
        let mut lexer = Lexer::new(text);
        let (tok, at) = lexer.next()?;
        Ok(Parser { lexer, tok, at })
    }

    fn bump(&mut self) -> Result<Tok<'a>> {
        let (tok, at) = self.lexer.next()?;
        self.at = at;
        Ok(std::mem::replace(&mut self.tok, tok))
    }

    fn error(&self, message: impl Into<String>) -> TextError {
        self.lexer.error(self.at, message)
    }

    fn unexpected<T>(&self, wanted: &str) -> Result<T> {
        Err(self.error(format!("expected {wanted}, found {}", self.tok)))
    }

    fn eat(&mut self, tok: &Tok<'_>) -> Result<bool> {
        let hit = self.tok == *tok;
        if hit {
            self.bump()?;
        }
        Ok(hit)
    }

    fn eat_sym(&mut self, c: char) -> Result<bool> {
        self.eat(&Tok::Sym(c))
    }

    fn expect(&mut self, c: char) -> Result<()> {
        if self.eat_sym(c)? { Ok(()) } else { self.unexpected(&format!("'{c}'")) }
    }

    fn end(&self) -> Result<()> {
        if self.tok == Tok::End { Ok(()) } else { self.unexpected("the end of the text") }
    }

    /// `open item, item close`; an empty list and a comma before the end are fine.
    fn list(&mut self, open: char, close: char, mut item: impl FnMut(&mut Self) -> Result<()>) -> Result<()> {
        self.expect(open)?;
        while self.tok != Tok::Sym(close) {
            item(self)?;
            if !self.eat_sym(',')? {
                break;
            }
        }
        self.expect(close)
    }

    fn ident(&mut self, what: &str) -> Result<&'a str> {
        match self.tok {
            Tok::Ident(s) => {
                self.bump()?;
                Ok(s)
            }
            _ => self.unexpected(what),
        }
    }

    fn int(&mut self) -> Result<i64> {
        let Tok::Int(s) = self.tok else { return self.unexpected("an integer") };
        let v = s.parse().map_err(|_| self.error(format!("{s} does not fit 64 bits")))?;
        self.bump()?;
        Ok(v)
    }

    fn bytes(&mut self) -> Result<Bytes> {
        match &self.tok {
            Tok::Str(s) => {
                let s = s.clone();
                self.bump()?;
                Ok(s)
            }
            _ => self.unexpected("a string in double quotes"),
        }
    }

    fn string(&mut self) -> Result<String> {
        let at = self.at;
        String::from_utf8(self.bytes()?.into()).map_err(|_| self.lexer.error(at, "this string must be UTF-8"))
    }

    /// A bare or quoted name.
    fn name(&mut self, what: &str) -> Result<String> {
        match self.tok {
            Tok::Ident(s) => {
                self.bump()?;
                Ok(s.to_owned())
            }
            Tok::Str(_) => self.string(),
            _ => self.unexpected(what),
        }
    }

    /// `<key: value, …>`, if it is there.
    fn header(&mut self, mut field: impl FnMut(&mut Self, &str) -> Result<bool>) -> Result<()> {
        if self.tok != Tok::Sym('<') {
            return Ok(());
        }
        self.list('<', '>', |p| {
            let at = p.at;
            let key = p.ident("a header key such as opset_import")?;
            p.expect(':')?;
            if field(p, key)? { Ok(()) } else { Err(p.lexer.error(at, format!("unknown header key '{key}'"))) }
        })
    }

    fn opsets(&mut self) -> Result<Vec<OpsetImport>> {
        let mut out = Vec::new();
        self.list('[', ']', |p| {
            let domain = p.string()?;
            p.expect(':')?;
            out.push(OpsetImport { domain, version: p.int()? });
            Ok(())
        })?;
        Ok(out)
    }

    fn entries(&mut self) -> Result<Vec<(String, String)>> {
        let mut out = Vec::new();
        self.list('[', ']', |p| {
            let key = p.string()?;
            p.expect(':')?;
            out.push((key, p.string()?));
            Ok(())
        })?;
        Ok(out)
    }

    fn arrow(&mut self) -> Result<()> {
        if self.eat(&Tok::Arrow)? { Ok(()) } else { self.unexpected("'=>'") }
    }

    fn graph(&mut self) -> Result<Graph> {
        let at = self.at;
        let mut d = Draft { name: self.name("the graph's name")?, ..Draft::default() };
        self.values('(', ')', false, &mut |p, name, info, at| {
            if let Some(t) = p.initialiser(&info)? {
                d.inits.push((name.clone(), t, at));
            }
            d.inputs.push((name, info, at));
            Ok(())
        })?;
        self.arrow()?;
        self.values('(', ')', false, &mut |_, name, info, at| {
            d.outputs.push((name, info, at));
            Ok(())
        })?;
        if self.tok == Tok::Sym('<') {
            self.values('<', '>', true, &mut |p, name, info, at| {
                match p.initialiser(&info)? {
                    Some(t) => d.inits.push((name, t, at)),
                    None => d.infos.push((name, info)),
                }
                Ok(())
            })?;
        }
        d.nodes = self.nodes()?;
        d.build(&self.lexer, at)
    }

    fn function(&mut self) -> Result<Function> {
        let at = self.at;
        let (mut domain, mut overload, mut doc, mut opsets) = Default::default();
        self.header(|p, key| {
            match key {
                "domain" => domain = p.string()?,
                "overload" => overload = p.string()?,
                "doc_string" => doc = p.string()?,
                "opset_import" => opsets = p.opsets()?,
                _ => return Ok(false),
            }
            Ok(true)
        })?;
        let op_type = self.name("the function's name")?;
        let (mut attributes, mut attribute_defaults) = (Vec::new(), Attrs::new());
        if self.tok == Tok::Sym('<') {
            self.list('<', '>', |p| {
                let name = p.name("an attribute's name")?;
                if matches!(p.tok, Tok::Sym(':' | '=')) {
                    attribute_defaults.push(p.attribute(name)?);
                } else {
                    attributes.push(name);
                }
                Ok(())
            })?;
        }
        let mut d = Draft { name: op_type.clone(), ..Draft::default() };
        // A typed parameter is an entry of the function's value_info.
        let listed = |info: ValueInfo| ValueInfo { listed: info.ty.is_some(), ..info };
        self.values('(', ')', false, &mut |_, name, info, at| {
            d.inputs.push((name, listed(info), at));
            Ok(())
        })?;
        self.arrow()?;
        self.values('(', ')', false, &mut |_, name, info, at| {
            d.outputs.push((name, listed(info), at));
            Ok(())
        })?;
        if self.tok == Tok::Sym('<') {
            self.values('<', '>', true, &mut |_, name, info, _| {
                d.infos.push((name, info));
                Ok(())
            })?;
        }
        d.nodes = self.nodes()?;
        let body = d.build(&self.lexer, at)?;
        let id = OpName { domain, op_type, overload };
        Ok(Function { id, attributes, attribute_defaults, opsets, body, doc, metadata: Vec::new() })
    }

    /// `type? name, …` between brackets.
    fn values(
        &mut self,
        open: char,
        close: char,
        listed: bool,
        each: &mut dyn FnMut(&mut Self, String, ValueInfo, usize) -> Result<()>,
    ) -> Result<()> {
        self.list(open, close, |p| {
            let at = p.at;
            let ty = match p.tok {
                Tok::Ident(s) if is_type_word(s) => Some(Type::Tensor(p.tensor_type()?)),
                _ => None,
            };
            let name = p.name("a value's name")?;
            each(p, name, ValueInfo { ty, listed, ..ValueInfo::default() }, at)
        })
    }

    fn tensor_type(&mut self) -> Result<TensorType> {
        let at = self.at;
        let word = self.ident("a type")?;
        let Some(dtype) = DType::from_text(word) else {
            let what = if OTHER_TYPES.contains(&word) {
                format!("types of the form {word}(…) are not read here; use dense tensors")
            } else {
                format!("'{word}' is no element type")
            };
            return Err(self.lexer.error(at, what));
        };
        if self.tok != Tok::Sym('[') {
            return Ok(TensorType::new(dtype, Some(Vec::new())));
        }
        let mut dims = Vec::new();
        self.list('[', ']', |p| {
            dims.push(match p.tok {
                Tok::Int(_) => Dim::Value(p.int()?),
                Tok::Sym('?') => p.bump().map(|_| Dim::Unknown)?,
                _ => Dim::Param(p.name("a dimension: a number, a name or '?'")?),
            });
            Ok(())
        })?;
        Ok(TensorType::new(dtype, if dims.is_empty() { None } else { Some(dims) }))
    }

    /// `= {…}` after a typed name, if it is there.
    fn initialiser(&mut self, info: &ValueInfo) -> Result<Option<Tensor>> {
        if !self.eat_sym('=')? {
            return Ok(None);
        }
        match info.tensor_type() {
            Some(ty) => self.elements(ty).map(Some),
            None => Err(self.error("an initialiser needs a type before its name, as in float[2] x = {1, 2}")),
        }
    }

    fn elements(&mut self, ty: &TensorType) -> Result<Tensor> {
        let at = self.at;
        let dims: Option<Vec<usize>> = ty.shape.as_ref().and_then(|dims| dims.iter().map(Dim::value).collect());
        let Some(shape) = dims else {
            return Err(self.error("a constant's shape must be known, each dimension a number of 0 or more"));
        };
        if self.tok == Tok::Sym('[') {
            return Err(self.error("the elements of this tensor are not in the text; print the graph with every element"));
        }
        let mut data = Collector::new(ty.dtype);
        self.list('{', '}', |p| {
            data.push(&p.tok).map_err(|e| p.error(format!("{e}, found {}", p.tok)))?;
            p.bump().map(drop)
        })?;
        data.finish(shape).map_err(|e| self.lexer.error(at, e))
    }

    fn nodes(&mut self) -> Result<Vec<DraftNode>> {
        let mut out = Vec::new();
        self.expect('{')?;
        while !self.eat_sym('}')? {
            out.push(self.node()?);
        }
        Ok(out)
    }

    /// Names between commas; a comma before the end is fine, and between two commas is an empty name.
    fn names(&mut self) -> Result<Vec<String>> {
        let mut out = Vec::new();
        loop {
            match self.tok {
                Tok::Ident(_) | Tok::Str(_) => out.push(self.name("a value's name")?),
                Tok::Sym(',') => out.push(String::new()),
                _ => return Ok(out),
            }
            if !self.eat_sym(',')? {
                return Ok(out);
            }
        }
    }

    fn node(&mut self) -> Result<DraftNode> {
        let at = self.at;
        let mut label = String::new();
        if self.eat_sym('[')? {
            if self.tok != Tok::Sym(']') {
                label = self.name("the node's name")?;
            }
            self.expect(']')?;
        }
        let outputs = self.names()?;
        self.expect('=')?;
        let mut path = vec![self.name("an operator")?];
        while self.eat_sym('.')? {
            path.push(self.name("an operator")?);
        }
        let op_type = path.pop().unwrap_or_default();
        let overload = if self.eat_sym(':')? { self.name("an overload")? } else { String::new() };
        let mut attrs = self.attributes()?;
        self.expect('(')?;
        let inputs = self.names()?;
        self.expect(')')?;
        if attrs.is_empty() {
            attrs = self.attributes()?;
        }
        let op = Op {
            op: OpName { domain: path.join("."), op_type, overload },
            name: label,
            attrs,
            arity: inputs.len(),
            doc: String::new(),
            metadata: Vec::new(),
            extra: Bytes::new(),
        };
        Ok(DraftNode { op, inputs, outputs, at })
    }
}
