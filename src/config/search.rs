//! The section `search`.

use super::read::{Reader, Result};
use super::schema::Search;
use super::tree::{Key, Node, Value};

const KEYS: [&str; 6] = ["clip", "ranges", "headroom", "widen_to_db", "widen_to_cost", "float_share"];

impl Reader<'_> {
    /// `search: {clip: true, ranges: true, headroom: true, widen_to_db: 25, widen_to_cost: 1.5, float_share: 0.05}`; every key may be left out.
    pub(super) fn search(&self, node: &Node) -> Result<Search> {
        let mut search = Search::default();
        for (key, value) in self.mapping(node, "the section `search`")? {
            match key.name.as_str() {
                "clip" => search.clip = self.boolean(key, value)?,
                "ranges" => search.ranges = self.boolean(key, value)?,
                "headroom" => search.headroom = self.boolean(key, value)?,
                "widen_to_db" if value.value == Value::Null => search.widen_to_db = None,
                "widen_to_db" => search.widen_to_db = Some(self.number(key, value, 1.0, 60.0)?),
                "widen_to_cost" if value.value == Value::Null => search.widen_to_cost = None,
                "widen_to_cost" => search.widen_to_cost = Some(self.number(key, value, 1.0, 4.0)?),
                "float_share" => search.float_share = self.number(key, value, 0.0, 1.0)?,
                _ => return Err(self.unknown_key(key, "key of search", &KEYS)),
            }
        }
        Ok(search)
    }

    /// A number in [low, high].
    fn number(&self, key: &Key, node: &Node, low: f64, high: f64) -> Result<f64> {
        let value = match node.value {
            Value::Int(v) => v as f64,
            Value::Float(v) => v,
            _ => f64::NAN,
        };
        if (low..=high).contains(&value) {
            return Ok(value);
        }
        Err(self.wrong(node.line, &key.name, &format!("a number from {low} to {high}"), &node.value))
    }
}
