//! JSON with a note of the fields that are there twice, which a server tells clients of. The last of them counts.

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

/// Reads a body; also the paths of fields that repeat, in their order.
///
/// # Errors
/// Where it is no JSON.
pub(super) fn parse(bytes: &[u8]) -> Result<(Value, Vec<String>), serde_json::Error> {
    let mut repeated = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = At { path: String::new(), repeated: &mut repeated }.deserialize(&mut deserializer)?;
    deserializer.end()?;
    Ok((value, repeated))
}

struct At<'a> {
    path: String,
    repeated: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut out = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, out.len());
            match items.next_element_seed(At { path, repeated: &mut *self.repeated })? {
                Some(item) => out.push(item),
                None => return Ok(out.into()),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut out = Map::new();
        while let Some(key) = fields.next_key::<String>()? {
            let path = if self.path.is_empty() { key.clone() } else { format!("{}.{key}", self.path) };
            if out.contains_key(&key) && !self.repeated.contains(&path) {
                self.repeated.push(path.clone());
            }
            let value = fields.next_value_seed(At { path, repeated: &mut *self.repeated })?;
            out.insert(key, value);
        }
        Ok(out.into())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn repeated_fields_are_named_and_the_last_counts() {
        let (value, repeated) =
            parse(br#"{"a": 1, "b": [{"c": null, "c": -2, "c": 3}], "a": {"d": 1.5}}"#).unwrap();
        assert_eq!(value, json!({"a": {"d": 1.5}, "b": [{"c": 3}]}));
        assert_eq!(repeated, ["b[0].c", "a"]);
    }

    proptest::proptest! {
        #[test]
        fn it_reads_as_serde_json_does(text in r#"[\[\]{}",:a0-9.truefalsn \\-]{0,40}"#) {
            let plain = serde_json::from_str::<Value>(&text);
            let ours = parse(text.as_bytes());
            proptest::prop_assert_eq!(plain.as_ref().ok(), ours.as_ref().ok().map(|(value, _)| value));
            if let (Err(plain), Err(ours)) = (plain, ours) {
                proptest::prop_assert_eq!(plain.to_string(), ours.to_string());
            }
        }
    }
}
