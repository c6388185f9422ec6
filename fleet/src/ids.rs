//! Validated names.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{kind} name {value:?} is invalid: {problem}; use lower-case letters, digits, '-' and '.', at most 253 characters"
)]
pub struct InvalidName {
    /// What was being named, e.g. `node`.
    pub kind: &'static str,
    /// The offending text.
    pub value: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

fn check_dns_subdomain(kind: &'static str, value: &str) -> Result<(), InvalidName> {
    let problem = if value.is_empty() {
        Some("it is empty")
    } else if value.len() > 253 {
        Some("it is too long")
    } else if !value.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.') {
        Some("it has a character that is not allowed")
    } else if !value.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
        || !value.bytes().last().is_some_and(|b| b.is_ascii_alphanumeric())
    {
        Some("it must start and end with a letter or digit")
    } else {
        None
    };
    match problem {
        Some(problem) => Err(InvalidName { kind, value: value.to_owned(), problem }),
        None => Ok(()),
    }
}

/// A pool's identity: the namespace and name of its ModelPool. Shown as `namespace/name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PoolId {
    namespace: String,
    name: String,
}

impl PoolId {
    /// Builds an identity from its two parts.
    ///
    /// # Errors
    /// [`InvalidName`] if either part is not a DNS-1123 subdomain.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Result<Self, InvalidName> {
        let (namespace, name) = (namespace.into(), name.into());
        check_dns_subdomain("namespace", &namespace)?;
        check_dns_subdomain("ModelPool", &name)?;
        Ok(Self { namespace, name })
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The ModelPool's name within the namespace.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PoolId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

impl From<PoolId> for String {
    fn from(id: PoolId) -> Self {
        id.to_string()
    }
}

impl FromStr for PoolId {
    type Err = InvalidName;

    /// Parses `namespace/name`; a bare `name` means namespace `default`.
    fn from_str(s: &str) -> Result<Self, Self::Err> {
        match s.split_once('/') {
            Some((namespace, name)) => Self::new(namespace, name),
            None => Self::new("default", s),
        }
    }
}

impl TryFrom<String> for PoolId {
    type Error = InvalidName;

    fn try_from(s: String) -> Result<Self, Self::Error> {
        s.parse()
    }
}

macro_rules! name_type {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Validates and wraps a name.
            ///
            /// # Errors
            /// [`InvalidName`] if it is not a DNS-1123 subdomain.
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidName> {
                let value = value.into();
                check_dns_subdomain($kind, &value)?;
                Ok(Self(value))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidName;

            fn from_str(s: &str) -> Result<Self, Self::Err> {
                Self::new(s)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidName;

            fn try_from(s: String) -> Result<Self, Self::Error> {
                Self::new(s)
            }
        }
    };
}

name_type!(
    /// A Kubernetes node's name.
    NodeName,
    "node"
);
name_type!(
    /// A replica's identity within its pool's namespace; on Kubernetes, the name of its (first) pod.
    ///
    /// The planner invents it once (`<pool>-<serial>`), so that applying a plan twice never makes two replicas.
    ReplicaId,
    "replica"
);

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    #[rstest]
    #[case("a", true)]
    #[case("gpu-node-1.zone-a", true)]
    #[case("", false)]
    #[case("-a", false)]
    #[case("A", false)]
    #[case("a_b", false)]
    fn names_follow_dns_1123(#[case] text: &str, #[case] ok: bool) {
        assert_eq!(NodeName::new(text).is_ok(), ok, "{text:?}");
    }

    #[test]
    fn pool_id_round_trips_through_json() {
        let id: PoolId = "team-a/chat".parse().unwrap();
        let json = serde_json::to_string(&id).unwrap();
        assert_eq!(json, "\"team-a/chat\"");
        assert_eq!(serde_json::from_str::<PoolId>(&json).unwrap(), id);
        assert_eq!("chat".parse::<PoolId>().unwrap().namespace(), "default");
        assert!(serde_json::from_str::<PoolId>("\"a/B\"").is_err());
    }
}
