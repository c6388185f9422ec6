//! `meta.k8s.io/v1` tables, as `kubectl get` asks for them.

mod age;
mod builtin;
mod control;
mod jsonpath;
mod more;
#[cfg(test)]
mod tests;
mod workloads;

use jiff::Timestamp;
use serde_json::{Value, json};

pub use age::{human_duration, since};
use jsonpath::JsonPath;

use crate::gvk::GroupKind;

/// What goes into `rows[].object`: the `includeObject` query parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// A `PartialObjectMetadata`: the default.
    #[default]
    Metadata,
    /// The whole object.
    Object,
}

/// One column and how its cells are made.
#[derive(Debug, Clone)]
pub struct Column {
    /// Header; kubectl prints it in capitals.
    pub name: String,
    /// OpenAPI type of the cells, or `date`.
    pub kind: String,
    /// OpenAPI format; `name` marks the column that names the object.
    pub format: String,
    /// What `kubectl explain` users read about it.
    pub description: String,
    /// 0 is always shown, larger only with `-o wide`.
    pub priority: i64,
    source: Source,
}

/// Where a column's cells come from.
#[derive(Debug, Clone)]
enum Source {
    /// Computed, for built-in kinds.
    Computed(fn(&Value, Timestamp) -> Value),
    /// Read, for custom resources.
    Path(JsonPath),
}

/// Why printer columns cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("additionalPrinterColumns[{index}].{field}: {message}")]
pub struct ColumnError {
    /// Index of the column.
    pub index: usize,
    /// Its wrong field.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
}

/// The columns of a kind: those of a custom resource if `printer_columns` (its version's `additionalPrinterColumns`) is
/// given, the built-in ones otherwise, name and age for a kind that has none.
///
/// # Errors
/// [`ColumnError`] for a column that is incomplete or whose JSONPath does not parse.
pub fn columns_for(kind: &GroupKind, printer_columns: Option<&Value>) -> Result<Vec<Column>, ColumnError> {
    let declared = printer_columns.and_then(Value::as_array).filter(|columns| !columns.is_empty());
    let Some(declared) = declared else { return Ok(builtin::columns(kind)) };
    let mut out = vec![builtin::name_column()];
    for (index, column) in declared.iter().enumerate() {
        let text = |field: &'static str| column.get(field).and_then(Value::as_str).unwrap_or_default();
        let required = |field: &'static str| match text(field) {
            "" => Err(ColumnError { index, field, message: "Required value".into() }),
            found => Ok(found.to_owned()),
        };
        let kind = required("type")?;
        if !matches!(kind.as_str(), "integer" | "number" | "string" | "boolean" | "date") {
            let message =
                format!("Invalid value: {kind:?}: must be one of boolean,date,integer,number,string");
            return Err(ColumnError { index, field: "type", message });
        }
        let path = required("jsonPath")?;
        let parsed = JsonPath::parse(&path).map_err(|message| ColumnError {
            index,
            field: "jsonPath",
            message: format!("Invalid value: {path:?}: {message}"),
        })?;
        let description = match text("description") {
            // The API server's own wording for columns without one.
            "" => format!("Custom resource definition column (in JSONPath format): {path}"),
            found => found.to_owned(),
        };
        out.push(Column {
            name: required("name")?,
            kind,
            format: text("format").to_owned(),
            description,
            priority: column.get("priority").and_then(Value::as_i64).unwrap_or(0),
            source: Source::Path(parsed),
        });
    }
    Ok(out)
}

/// A `Table` with one row for each object. The caller adds list metadata (`resourceVersion`, `continue`), and leaves
/// `columnDefinitions` out of all but the first table of a watch.
pub fn render(columns: &[Column], objects: &[Value], include: IncludeObject, now: Timestamp) -> Value {
    let definitions = columns.iter().map(|column| {
        json!({
            "name": column.name, "type": column.kind, "format": column.format,
            "description": column.description, "priority": column.priority,
        })
    });
    let rows = objects.iter().map(|object| {
        let cells = columns.iter().map(|column| cell(column, object, now));
        let mut row = json!({"cells": cells.collect::<Vec<_>>()});
        if let Some((reason, message)) = builtin::completed(object) {
            row["conditions"] =
                json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}]);
        }
        match include {
            IncludeObject::None => row["object"] = Value::Null,
            IncludeObject::Metadata => {
                row["object"] = json!({
                    "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
                    "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
                });
            }
            IncludeObject::Object => row["object"] = object.clone(),
        }
        row
    });
    json!({
        "kind": "Table",
        "apiVersion": "meta.k8s.io/v1",
        "metadata": {},
        "columnDefinitions": definitions.collect::<Vec<_>>(),
        "rows": rows.collect::<Vec<_>>(),
    })
}

/// One cell; `null`, which kubectl prints as nothing, where a path finds nothing or the wrong type.
fn cell(column: &Column, object: &Value, now: Timestamp) -> Value {
    let path = match &column.source {
        Source::Computed(compute) => return compute(object, now),
        Source::Path(path) => path,
    };
    let Some(found) = path.first(object) else { return Value::Null };
    match (column.kind.as_str(), found) {
        (_, Value::Null) => Value::Null,
        ("string", Value::String(text)) => json!(text),
        ("string", other) => json!(other.to_string()),
        ("integer", Value::Number(n)) => match n.as_i64() {
            Some(n) => json!(n),
            None => n.as_f64().map_or(Value::Null, |f| json!(f.trunc() as i64)),
        },
        ("number", Value::Number(_)) | ("boolean", Value::Bool(_)) => found.clone(),
        ("date", Value::String(text)) => match text.parse::<Timestamp>() {
            Ok(time) => json!(human_duration(now.duration_since(time))),
            Err(_) => json!("<invalid>"),
        },
        _ => Value::Null,
    }
}
