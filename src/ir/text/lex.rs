//! Tokens.

use bytes::Bytes;

use super::TextError;

/// A token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Tok<'a> {
    /// An identifier; `inf` and `nan` are identifiers here, numbers where a number is expected.
    Ident(&'a str),
    /// A string, its escapes resolved.
    Str(Bytes),
    /// An integer, as written.
    Int(&'a str),
    /// A number with a point or exponent, or a signed infinity or NaN, as written.
    Float(&'a str),
    /// `=>`.
    Arrow,
    /// A single punctuation character.
    Sym(char),
    /// The end of the text.
    End,
}

impl std::fmt::Display for Tok<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Tok::Ident(s) | Tok::Int(s) | Tok::Float(s) => write!(f, "'{s}'"),
            Tok::Str(_) => f.write_str("a string"),
            Tok::Arrow => f.write_str("'=>'"),
            Tok::Sym(c) => write!(f, "'{c}'"),
            Tok::End => f.write_str("the end of the text"),
        }
    }
}

/// Reads tokens one after another.
#[derive(Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Lexer { text, at: 0 }
    }

    /// An error at a byte offset.
    pub(super) fn error(&self, at: usize, message: impl Into<String>) -> TextError {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        TextError { line, column, message: message.into() }
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    /// Takes the characters that a predicate accepts.
    fn take(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let n = rest.find(|c| !accept(c)).unwrap_or(rest.len());
        self.at += n;
        rest.get(..n).unwrap_or_default()
    }

    /// The next token and the byte offset where it starts.
    pub(super) fn next(&mut self) -> Result<(Tok<'a>, usize), TextError> {
        loop {
            self.take(|c| matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c'));
            if !self.rest().starts_with('#') {
                break;
            }
            self.take(|c| c != '\n');
        }
        let from = self.at;
        let rest = self.rest();
        let second = rest.chars().nth(1);
        let Some(c) = rest.chars().next() else { return Ok((Tok::End, from)) };
        let tok = match c {
            'a'..='z' | 'A'..='Z' | '_' => {
                let word = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
                if word == "hex" && self.rest().starts_with('"') { self.hex(from)? } else { Tok::Ident(word) }
            }
            '"' => self.string(from)?,
            '0'..='9' => self.number(from),
            '-' if second.is_some_and(|c| c.is_ascii_digit()) => {
                self.at += 1;
                self.number(from)
            }
            '-' if second.is_some_and(|c| c.is_ascii_alphabetic()) => {
                self.at += 1;
                self.take(|c| c.is_ascii_alphabetic());
                Tok::Float(self.since(from))
            }
            '=' if second == Some('>') => {
                self.at += 2;
                Tok::Arrow
            }
            c => {
                self.at += c.len_utf8();
                Tok::Sym(c)
            }
        };
        Ok((tok, from))
    }

    fn since(&self, from: usize) -> &'a str {
        self.text.get(from..self.at).unwrap_or_default()
    }

    /// Digits, at most one point, an optional exponent; a sign was taken already.
    fn number(&mut self, from: usize) -> Tok<'a> {
        self.take(|c| c.is_ascii_digit());
        let mut float = false;
        if self.rest().starts_with('.') {
            float = true;
            self.at += 1;
            self.take(|c| c.is_ascii_digit());
        }
        if self.rest().starts_with(['e', 'E']) {
            float = true;
            self.at += 1;
            if self.rest().starts_with(['+', '-']) {
                self.at += 1;
            }
            self.take(|c| c.is_ascii_digit());
        }
        if float { Tok::Float(self.since(from)) } else { Tok::Int(self.since(from)) }
    }

    fn string(&mut self, from: usize) -> Result<Tok<'a>, TextError> {
        let mut out = String::new();
        let mut chars = self.rest().char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '"' => {
                    self.at += i + 1;
                    return Ok(Tok::Str(out.into()));
                }
                '\\' => match chars.next() {
                    Some((_, escaped)) => out.push(escaped),
                    None => break,
                },
                c => out.push(c),
            }
        }
        Err(self.error(from, "this string has no closing quotation mark"))
    }

    fn hex(&mut self, from: usize) -> Result<Tok<'a>, TextError> {
        let Tok::Str(digits) = self.string(from)? else { return Ok(Tok::End) };
        let nibbles: Option<Vec<u8>> = digits.iter().map(|&d| char::from(d).to_digit(16).map(|v| v as u8)).collect();
        match nibbles {
            Some(n) if n.len() % 2 == 0 => {
                Ok(Tok::Str(n.chunks_exact(2).map(|p| p.iter().fold(0, |acc, d| acc << 4 | d)).collect::<Vec<u8>>().into()))
            }
            _ => Err(self.error(from, "hex\"…\" holds an even number of hexadecimal digits")),
        }
    }
}
