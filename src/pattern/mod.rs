//! The pattern language, its matcher, and rewrite rules.
