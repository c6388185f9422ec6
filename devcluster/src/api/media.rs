//! What form and media type an answer is wanted in.

use http::HeaderMap;
use serde_json::Value;

use crate::server::status::ApiError;

/// Media type of YAML.
pub(super) const YAML: &str = "application/yaml";
/// Media type of JSON.
pub(super) const JSON: &str = "application/json";
/// Media type of Kubernetes' protobuf.
pub(super) const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// Media types of answers, as a server names them where it can serve none that is wanted. Protobuf is for clients that
/// take another type as well: they get that.
const SERVED: [&str; 3] = [JSON, YAML, PROTOBUF];

/// What form the client wants objects in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// As they are.
    Object,
    /// `meta.k8s.io` Table, in this version.
    Table(MetaVersion),
    /// `meta.k8s.io` PartialObjectMetadata of one object, in this version.
    Metadata(MetaVersion),
    /// `meta.k8s.io` PartialObjectMetadataList, in this version.
    MetadataList(MetaVersion),
}

/// A version of `meta.k8s.io`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetaVersion {
    /// `v1`.
    V1,
    /// `v1beta1`.
    V1Beta1,
}

impl MetaVersion {
    /// As `apiVersion` has it.
    pub fn api_version(self) -> &'static str {
        match self {
            Self::V1 => "meta.k8s.io/v1",
            Self::V1Beta1 => "meta.k8s.io/v1beta1",
        }
    }
}

/// What an answer is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// What a client asks for: the first of what it accepts, by weight and then in its order, that can be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// The form of objects.
    pub form: Form,
    /// The media type.
    pub media: Media,
}

impl Wanted {
    /// Reads `Accept`; `built_in` is whether the resource is one of Kubernetes' own, which are looked for by more media types
    /// but only where a type is named in full.
    ///
    /// # Errors
    /// 406 if nothing that is accepted can be served.
    pub fn read(headers: &HeaderMap, built_in: bool) -> Result<Self, ApiError> {
        let whatever = Self { form: Form::Object, media: Media::Json };
        let accept = headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
        if accept.is_empty() {
            return Ok(whatever);
        }
        let mut clauses: Vec<Clause<'_>> = accept.split(',').map(Clause::parse).collect();
        if built_in && !clauses.iter().any(|clause| clause.media == "*/*" || SERVED.contains(&clause.media)) {
            return Err(ApiError::no_such_media(&SERVED.join(", ")));
        }
        clauses.sort_by(|a, b| b.weight.total_cmp(&a.weight).then(a.vague().cmp(&b.vague())));
        clauses
            .iter()
            .find_map(Clause::wanted)
            .ok_or_else(|| ApiError::not_acceptable(if built_in { &SERVED } else { &SERVED[..2] }))
    }
}

/// One of the things that a client accepts.
struct Clause<'a> {
    media: &'a str,
    weight: f64,
    parameters: Vec<(&'a str, &'a str)>,
}

impl<'a> Clause<'a> {
    fn parse(text: &'a str) -> Self {
        let mut parts = text.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default();
        let parameters: Vec<(&str, &str)> = parts.filter_map(|p| p.split_once('=')).collect();
        let weight = parameters.iter().find(|(key, _)| *key == "q").and_then(|(_, q)| q.parse().ok());
        Self { media, weight: weight.unwrap_or(1.0), parameters }
    }

    /// How little it says of the type.
    fn vague(&self) -> u8 {
        match self.media {
            "*/*" => 2,
            media if media.ends_with("/*") => 1,
            _ => 0,
        }
    }

    fn wanted(&self) -> Option<Wanted> {
        let media = match self.media {
            JSON | "*/*" | "application/*" => Media::Json,
            YAML => Media::Yaml,
            _ => return None,
        };
        let get = |name: &str| self.parameters.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
        let (kind, group, version) = (get("as"), get("g"), get("v"));
        if kind.is_none() && group.is_none() && version.is_none() {
            return Some(Wanted { form: Form::Object, media });
        }
        let version = match (group, version) {
            (Some("meta.k8s.io"), Some("v1")) => MetaVersion::V1,
            (Some("meta.k8s.io"), Some("v1beta1")) => MetaVersion::V1Beta1,
            _ => return None,
        };
        let form = match kind {
            Some("Table") => Form::Table(version),
            Some("PartialObjectMetadata") => Form::Metadata(version),
            Some("PartialObjectMetadataList") => Form::MetadataList(version),
            _ => return None,
        };
        Some(Wanted { form, media })
    }
}

/// A document in YAML.
///
/// # Errors
/// Why it cannot be written.
pub(super) fn to_yaml(value: &Value) -> Result<String, ApiError> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false, yaml_12: false };
    serde_saphyr::to_string_with_options(value, options).map_err(ApiError::internal)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(accept: &str) -> Result<Wanted, ApiError> {
        Wanted::read(&[(http::header::ACCEPT, accept.parse().unwrap())].into_iter().collect(), true)
    }

    #[test]
    fn accept_headers_choose_a_form() {
        let form = |accept: &str| wanted(accept).map(|w| w.form);
        let table = Ok(Form::Table(MetaVersion::V1));
        assert_eq!(form("application/json;as=Table;v=v1;g=meta.k8s.io,application/json"), table);
        assert_eq!(
            form("application/json;as=Table;v=v1beta1;g=meta.k8s.io"),
            Ok(Form::Table(MetaVersion::V1Beta1))
        );
        assert_eq!(form("application/json"), Ok(Form::Object));
        assert_eq!(form("application/json;as=Chair;v=v1;g=meta.k8s.io,application/json"), Ok(Form::Object));
        for refused in ["text/html", "application/vnd.kubernetes.protobuf", "application/json;as=Table;v=v1"]
        {
            assert_eq!(form(refused).unwrap_err().code, 406, "{refused}");
        }
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json"), Ok(Form::Object));
    }

    #[test]
    fn the_heavier_and_the_plainer_type_comes_first() {
        let media = |accept: &str| wanted(accept).unwrap().media;
        assert_eq!(media("application/json;q=0.5,application/yaml"), Media::Yaml);
        assert_eq!(media("*/*,application/yaml"), Media::Yaml);
        assert_eq!(wanted("application/*").unwrap_err().code, 406);
        assert_eq!(media("application/yaml;q=0.1,*/*"), Media::Json);
    }

    #[test]
    fn yaml_reads_as_what_was_written() {
        let value = serde_json::json!({
            "a": ["yes", "1", "1e3", "0x1", "~", "", " x ", "a: b", "# c", "two\nlines\n", "null", "12:30", "\u{1}"],
            "b": {"c": 1, "d": null, "e": 1.5, "f": true, "g": [], "h": {}}, "on": "off",
        });
        let text = to_yaml(&value).unwrap();
        assert_eq!(serde_saphyr::from_str::<Value>(&text).unwrap(), value, "{text}");
    }
}
