//! OpenAPI v2 in protobuf, the only form in which Helm 3 and kubectl before 1.27 read it. Field numbers are those of
//! `openapiv2/OpenAPIv2.proto` in `github.com/google/gnostic-models`.

use serde_json::Value;

/// The media type asked for and answered with; a name with `@`, which is not one, is older.
pub(in crate::api) const MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
/// What clients ask for until they know of [`MEDIA_TYPE`].
pub(in crate::api) const OLD_MEDIA_TYPE: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";

/// A message that is being written.
#[derive(Debug, Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            // The low seven bits.
            self.0.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn bytes(&mut self, number: u64, bytes: &[u8]) {
        self.varint(number << 3 | 2);
        self.varint(bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, number: u64, message: &Message) {
        self.bytes(number, &message.0);
    }

    fn text(&mut self, number: u64, value: &Value) {
        if let Some(text) = value.as_str() {
            self.bytes(number, text.as_bytes());
        }
    }

    fn texts(&mut self, number: u64, value: &Value) {
        value.as_array().into_iter().flatten().for_each(|item| self.text(number, item));
    }

    fn flag(&mut self, number: u64, value: &Value) {
        if value == true {
            self.varint(number << 3);
            self.varint(1);
        }
    }

    fn int(&mut self, number: u64, value: &Value) {
        if let Some(value) = value.as_i64() {
            self.varint(number << 3);
            self.varint(value.cast_unsigned());
        }
    }

    fn double(&mut self, number: u64, value: &Value) {
        if let Some(value) = value.as_f64() {
            self.varint(number << 3 | 1);
            self.0.extend_from_slice(&value.to_le_bytes());
        }
    }

    /// `Any`: YAML text, which JSON is.
    fn any(&mut self, number: u64, value: &Value) {
        if !value.is_null() {
            let mut any = Message::default();
            any.bytes(2, value.to_string().as_bytes());
            self.message(number, &any);
        }
    }

    /// `NamedAny` for each extension.
    fn extensions(&mut self, number: u64, object: &Value) {
        for (name, value) in object.as_object().into_iter().flatten().filter(|(k, _)| k.starts_with("x-")) {
            let mut extension = Message::default();
            extension.bytes(1, name.as_bytes());
            extension.any(2, value);
            self.message(number, &extension);
        }
    }

    /// Each entry of a map as a named message.
    fn named(&mut self, number: u64, map: &Value, make: impl Fn(&Value) -> Message) {
        for (name, value) in map.as_object().into_iter().flatten() {
            let mut entry = Message::default();
            entry.bytes(1, name.as_bytes());
            entry.message(2, &make(value));
            self.message(number, &entry);
        }
    }

    /// A message that holds only another.
    fn wrapped(number: u64, inner: &Message) -> Message {
        let mut out = Message::default();
        out.message(number, inner);
        out
    }
}

/// The document.
pub(super) fn encode(document: &Value) -> Vec<u8> {
    let mut info = Message::default();
    info.text(1, &document["info"]["title"]);
    info.text(2, &document["info"]["version"]);
    let mut paths = Message::default();
    paths.named(2, &document["paths"], path_item);
    let mut definitions = Message::default();
    definitions.named(1, &document["definitions"], schema);
    let mut out = Message::default();
    out.text(1, &document["swagger"]);
    out.message(2, &info);
    out.message(8, &paths);
    out.message(9, &definitions);
    out.0
}

fn path_item(item: &Value) -> Message {
    let mut out = Message::default();
    for (number, method) in [(2, "get"), (3, "put"), (4, "post"), (5, "delete"), (8, "patch")] {
        if item[method].is_object() {
            out.message(number, &operation(&item[method]));
        }
    }
    out
}

fn operation(operation: &Value) -> Message {
    let mut out = Message::default();
    out.text(5, &operation["operationId"]);
    out.texts(7, &operation["consumes"]);
    for parameter in operation["parameters"].as_array().into_iter().flatten() {
        let mut query = Message::default();
        query.text(2, &parameter["in"]);
        query.text(4, &parameter["name"]);
        query.text(6, &parameter["type"]);
        query.flag(20, &parameter["uniqueItems"]);
        // ParametersItem { Parameter { NonBodyParameter { QueryParameterSubSchema } } }
        let item = Message::wrapped(1, &Message::wrapped(2, &Message::wrapped(3, &query)));
        out.message(8, &item);
    }
    let mut responses = Message::default();
    responses.named(1, &operation["responses"], |response| {
        let mut described = Message::default();
        described.text(1, &response["description"]);
        Message::wrapped(1, &described)
    });
    out.message(9, &responses);
    out.extensions(13, operation);
    out
}

fn schema(schema: &Value) -> Message {
    let mut out = Message::default();
    out.text(1, &schema["$ref"]);
    out.text(2, &schema["format"]);
    out.text(3, &schema["title"]);
    out.text(4, &schema["description"]);
    out.any(5, &schema["default"]);
    out.double(6, &schema["multipleOf"]);
    out.double(7, &schema["maximum"]);
    out.flag(8, &schema["exclusiveMaximum"]);
    out.double(9, &schema["minimum"]);
    out.flag(10, &schema["exclusiveMinimum"]);
    out.int(11, &schema["maxLength"]);
    out.int(12, &schema["minLength"]);
    out.text(13, &schema["pattern"]);
    out.int(14, &schema["maxItems"]);
    out.int(15, &schema["minItems"]);
    out.flag(16, &schema["uniqueItems"]);
    out.int(17, &schema["maxProperties"]);
    out.int(18, &schema["minProperties"]);
    out.texts(19, &schema["required"]);
    schema["enum"].as_array().into_iter().flatten().for_each(|value| out.any(20, value));
    match &schema["additionalProperties"] {
        Value::Object(_) => {
            let item = Message::wrapped(1, &self::schema(&schema["additionalProperties"]));
            out.message(21, &item);
        }
        Value::Bool(true) => out.message(21, &Message(vec![2 << 3, 1])),
        _ => {}
    }
    if schema["type"].is_string() {
        let mut kind = Message::default();
        kind.text(1, &schema["type"]);
        out.message(22, &kind);
    }
    if schema["items"].is_object() {
        out.message(23, &Message::wrapped(1, &self::schema(&schema["items"])));
    }
    if schema["properties"].is_object() {
        let mut properties = Message::default();
        properties.named(1, &schema["properties"], self::schema);
        out.message(25, &properties);
    }
    out.extensions(31, schema);
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn numbers_and_lengths_are_as_protobuf_wants_them() {
        let mut m = Message::default();
        m.int(11, &json!(300));
        assert_eq!(m.0, [0x58, 0xac, 0x02]);
        let mut m = Message::default();
        m.int(1, &json!(-1));
        assert_eq!(m.0, [0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01]);
        let mut m = Message::default();
        m.double(7, &json!(1));
        assert_eq!(m.0, [0x39, 0, 0, 0, 0, 0, 0, 0xf0, 0x3f]);
        let mut m = Message::default();
        m.text(31, &json!("ab"));
        assert_eq!(m.0, [0xfa, 0x01, 2, b'a', b'b']);
    }

    #[test]
    fn a_schema_is_written_with_its_extensions() {
        let message = schema(&json!({"type": "object", "properties": {"a": {"$ref": "#/d"}}, "x-y": ["z"]}));
        let expected = [
            [0xb2, 0x01, 8, 0x0a, 6].as_slice(),
            b"object",
            &[0xca, 0x01, 12, 0x0a, 10, 0x0a, 1, b'a', 0x12, 5, 0x0a, 3],
            b"#/d",
            &[0xfa, 0x01, 14, 0x0a, 3],
            b"x-y",
            &[0x12, 7, 0x12, 5],
            br#"["z"]"#,
        ];
        assert_eq!(message.0, expected.concat());
    }
}
