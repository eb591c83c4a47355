//! Keys of a plan that nothing reads: an edit with a typing error must not be one without effect. Where keys of several types lie side by
//! side (`serde(flatten)`) the reader itself cannot tell.

use serde_json::Value;

use super::QuantPlan;

/// Keys that are not written where they say nothing.
const LEFT_OUT: [&str; 14] = [
    "constants",
    "reparameterized",
    "block",
    "part",
    "weight",
    "observe",
    "rows",
    "axis",
    "scale",
    "normalized",
    "mantissa_bits",
    "mantissas",
    "note",
    "search",
];

/// The first key in a plan's text that reading and writing it loses, with where it stands.
pub(super) fn key(given: &Value, plan: &QuantPlan) -> Option<String> {
    let read = serde_json::to_value(plan).ok()?;
    lost(given, &read, "the plan")
}

fn lost(given: &Value, read: &Value, place: &str) -> Option<String> {
    match (given, read) {
        (Value::Object(given), Value::Object(read)) => given.iter().find_map(|(key, value)| match read.get(key) {
            Some(known) => lost(value, known, &format!("{key} of {place}")),
            None if LEFT_OUT.contains(&key.as_str()) => None,
            None => {
                let known = read.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
                Some(format!("unknown key '{key}' in {place}, which has {known}"))
            }
        }),
        (Value::Array(given), Value::Array(read)) => given.iter().zip(read).find_map(|(given, read)| {
            let name = read.get("name").or_else(|| read.get("site")).and_then(Value::as_str);
            let place = name.map_or_else(|| place.to_owned(), |name| format!("{name} ({place})"));
            lost(given, read, &place)
        }),
        _ => None,
    }
}
