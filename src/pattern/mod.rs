//! The pattern language, its matcher, and rewrite rules.
//!
//! A [`Pat`] says what the computation of one value looks like, seen from that value backwards. Alternatives and
//! commuted operands are tried exhaustively: the matcher is written in continuation-passing style, so that a choice made
//! early is undone when something later does not fit. When nothing fits, the deepest [`Miss`] says in words where the
//! graph left the pattern.

mod dsl;
mod forms;
mod matcher;
mod rule;

pub use dsl::{Pat, any_of, chain, commute, constant, konst, near, op, rest, scalar, tensor, var};
pub use forms::Forms;
pub use matcher::{Match, Miss, match_given, match_value};
pub use rule::{Facts, NearMiss, Rule, run};
