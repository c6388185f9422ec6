//! JSON as a server shows it in its messages.

use serde_json::Value;

/// JSON with an object's fields in the order in which a server writes them; nested objects likewise.
pub fn in_order(value: &Value, order: &[&str]) -> String {
    match value {
        Value::Object(map) => {
            let place = |key: &str| order.iter().position(|o| *o == key).unwrap_or(usize::MAX);
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_by_key(|key| place(key));
            let fields = keys
                .iter()
                .map(|key| format!("{}:{}", Value::from(key.as_str()), in_order(&map[key.as_str()], order)));
            format!("{{{}}}", fields.collect::<Vec<_>>().join(","))
        }
        Value::Array(list) => {
            format!("[{}]", list.iter().map(|item| in_order(item, order)).collect::<Vec<_>>().join(","))
        }
        scalar => scalar.to_string(),
    }
}
