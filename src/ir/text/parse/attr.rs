//! Attributes: parsing.

use super::{Parser, Result};
use crate::ir::text::lex::Tok;
use crate::ir::text::tensor::{is_special, read_float};
use crate::ir::text::{ATTR_TYPES, is_type_word};
use crate::ir::{Attr, AttrValue, Attrs};

impl Parser<'_> {
    pub(super) fn attributes(&mut self) -> Result<Attrs> {
        let mut out = Attrs::new();
        if self.tok == Tok::Sym('<') {
            self.list('<', '>', |p| {
                let at = p.at;
                let name = p.name("an attribute's name")?;
                if out.get(&name).is_some() {
                    return Err(p.lexer.error(at, format!("the attribute '{name}' is given twice")));
                }
                out.push(p.attribute(name)?);
                Ok(())
            })?;
        }
        Ok(out)
    }

    /// What follows an attribute's name: `: type = value`.
    pub(super) fn attribute(&mut self, name: String) -> Result<Attr> {
        let mut ty = 0usize;
        if self.eat_sym(':')? {
            let at = self.at;
            let word = self.ident("an attribute type")?;
            ty = ATTR_TYPES.iter().position(|&t| t == word).filter(|&i| i > 0).ok_or_else(|| {
                self.lexer.error(at, format!("'{word}' is no attribute type; use one of {}", ATTR_TYPES[1..].join(", ")))
            })?;
        }
        let declared = ATTR_TYPES.get(ty).copied().filter(|_| ty > 0);
        self.expect('=')?;
        let at = self.at;
        let value = match self.tok {
            Tok::Sym('@') => {
                self.bump()?;
                AttrValue::Ref(self.name("the name of an attribute of the function")?, ty as i32)
            }
            Tok::Sym('[') => self.attr_list(declared)?,
            _ => self.attr_value(declared == Some("float"))?,
        };
        match declared {
            Some(word) if word != kind(&value) && !matches!(value, AttrValue::Ref(..)) => Err(self
                .lexer
                .error(at, format!("the attribute '{name}' is declared {word}, and its value is of type {}", kind(&value)))),
            _ => Ok(Attr::new(&name, value)),
        }
    }

    /// One value; where a float is declared, integers are floats.
    fn attr_value(&mut self, float: bool) -> Result<AttrValue> {
        let number = match self.tok {
            Tok::Ident(s) if is_special(s) => Some(s),
            Tok::Float(s) => Some(s),
            Tok::Int(s) if float => Some(s),
            _ => None,
        };
        if let Some(s) = number {
            let v = read_float(s).ok_or_else(|| self.error(format!("{s} is no number that fits a float")))?;
            self.bump()?;
            return Ok(AttrValue::Float(v));
        }
        match self.tok {
            Tok::Int(_) => Ok(AttrValue::Int(self.int()?)),
            Tok::Str(_) => Ok(AttrValue::String(self.bytes()?)),
            Tok::Ident(s) if is_type_word(s) => {
                let ty = self.tensor_type()?;
                if matches!(self.tok, Tok::Ident(_) | Tok::Str(_)) {
                    self.name("the tensor's name")?;
                }
                self.eat_sym('=')?;
                Ok(AttrValue::Tensor(self.elements(&ty)?))
            }
            Tok::Ident(_) => Err(self.error("attributes that hold a graph are not read from text; use an ONNX file")),
            _ => self.unexpected("an attribute's value"),
        }
    }

    fn attr_list(&mut self, declared: Option<&str>) -> Result<AttrValue> {
        let at = self.at;
        let mut items = Vec::new();
        self.list('[', ']', |p| {
            items.push(p.attr_value(declared == Some("floats"))?);
            Ok(())
        })?;
        let (mut floats, mut ints, mut strings, mut tensors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let word = match (declared, items.first()) {
            (Some(word), _) => word,
            (None, Some(AttrValue::Float(_))) => "floats",
            (None, Some(AttrValue::Int(_))) => "ints",
            (None, Some(AttrValue::String(_))) => "strings",
            (None, Some(_)) => "tensors",
            (None, None) => {
                return Err(self.lexer.error(at, "the type of an empty list must be declared, as in name: ints = []"));
            }
        };
        for item in items {
            match (word, item) {
                ("floats", AttrValue::Float(v)) => floats.push(v),
                ("ints", AttrValue::Int(v)) => ints.push(v),
                ("strings", AttrValue::String(v)) => strings.push(v),
                ("tensors", AttrValue::Tensor(v)) => tensors.push(v),
                (_, item) => {
                    return Err(self.lexer.error(at, format!("this list of {word} holds a value of type {}", kind(&item))));
                }
            }
        }
        match word {
            "floats" => Ok(AttrValue::Floats(floats)),
            "ints" => Ok(AttrValue::Ints(ints)),
            "strings" => Ok(AttrValue::Strings(strings)),
            "tensors" => Ok(AttrValue::Tensors(tensors)),
            word => Err(self.lexer.error(at, format!("a list cannot be the value of an attribute of type {word}"))),
        }
    }
}

/// The name of a value's attribute type.
fn kind(value: &AttrValue) -> &'static str {
    match value {
        AttrValue::Float(_) => "float",
        AttrValue::Int(_) => "int",
        AttrValue::String(_) => "string",
        AttrValue::Tensor(_) => "tensor",
        AttrValue::Floats(_) => "floats",
        AttrValue::Ints(_) => "ints",
        AttrValue::Strings(_) => "strings",
        AttrValue::Tensors(_) => "tensors",
        AttrValue::Graph(_) => "graph",
        AttrValue::Graphs(_) => "graphs",
        AttrValue::Ref(..) | AttrValue::Opaque(_) => "undefined",
    }
}
