//! A case: steps that are put to both servers in order, in a namespace of their own.

use http::Method;
use serde_json::Value;

/// What a step does.
#[derive(Debug, Clone)]
pub enum Action {
    /// One request. A watch must say its `timeoutSeconds`: its events are read to the end.
    Http {
        /// Method.
        method: Method,
        /// Path and query.
        path: String,
        /// Headers beside the defaults.
        headers: Vec<(String, String)>,
        /// Body as it is sent.
        body: String,
    },
    /// A call of kubectl.
    Kubectl {
        /// Arguments.
        args: Vec<String>,
        /// Standard input.
        stdin: String,
    },
    /// Waits, for work that is done in the background, until a GET of the path gives the status code and, where one is
    /// asked for, the text. Nothing is compared but that it came to be.
    Until {
        /// Path.
        path: String,
        /// HTTP status.
        code: u16,
        /// Text that the body must hold.
        text: String,
    },
}

/// One step.
#[derive(Debug, Clone)]
pub struct Step {
    /// Its name within the case; of steps that are called the same the second has ` (2)` after it.
    pub name: String,
    /// What it does.
    pub action: Action,
    /// Whether its answer is compared.
    pub compared: bool,
    /// What of the answer is compared, as a JSON pointer; empty for all.
    pub part: &'static str,
}

/// A case. In paths, bodies and arguments `{ns}` is its namespace and `@{step:/pointer}` a value of an earlier answer's
/// body.
#[derive(Debug, Clone)]
pub struct Script {
    /// Its name.
    pub name: &'static str,
    /// Its steps.
    pub steps: Vec<Step>,
}

impl Script {
    /// A case without a namespace.
    pub fn bare(name: &'static str) -> Self {
        Self { name, steps: Vec::new() }
    }

    /// A case that begins with its namespace, once its ServiceAccount and ConfigMap are there.
    pub fn new(name: &'static str) -> Self {
        let mut script = Self::bare(name);
        script.kubectl("namespace", "create namespace {ns}", "");
        script.until("account", "/api/v1/namespaces/{ns}/serviceaccounts/default", 200, "");
        script.until("bundle", "/api/v1/namespaces/{ns}/configmaps/kube-root-ca.crt", 200, "");
        script
    }

    /// Its namespace.
    pub fn namespace(&self) -> String {
        format!("case-{}", self.name)
    }

    fn push(&mut self, name: &str, action: Action) -> &mut Step {
        let same =
            self.steps.iter().filter(|s| s.name == name || s.name.starts_with(&format!("{name} ("))).count();
        let name = if same == 0 { name.to_owned() } else { format!("{name} ({})", same + 1) };
        self.steps.push(Step { name, action, compared: true, part: "" });
        self.steps.last_mut().unwrap()
    }

    /// A request with headers of its own.
    pub fn request(
        &mut self,
        name: &str,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> &mut Step {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        self.push(name, Action::Http { method, path: path.to_owned(), headers, body: body.to_owned() })
    }

    fn send(&mut self, name: &str, method: Method, path: &str, kind: &str, body: &Value) -> &mut Step {
        self.request(name, method, path, &[("content-type", kind)], &body.to_string())
    }

    /// GET.
    pub fn get(&mut self, name: &str, path: &str) -> &mut Step {
        self.request(name, Method::GET, path, &[], "")
    }

    /// GET in a form that `Accept` names.
    pub fn get_as(&mut self, name: &str, accept: &str, path: &str) -> &mut Step {
        self.request(name, Method::GET, path, &[("accept", accept)], "")
    }

    /// POST of JSON.
    pub fn post(&mut self, name: &str, path: &str, body: Value) -> &mut Step {
        self.send(name, Method::POST, path, "application/json", &body)
    }

    /// PUT of JSON.
    pub fn put(&mut self, name: &str, path: &str, body: Value) -> &mut Step {
        self.send(name, Method::PUT, path, "application/json", &body)
    }

    /// DELETE with options.
    pub fn delete(&mut self, name: &str, path: &str, options: Value) -> &mut Step {
        match options.is_null() {
            true => self.request(name, Method::DELETE, path, &[], ""),
            false => self.send(name, Method::DELETE, path, "application/json", &options),
        }
    }

    /// PATCH, RFC 7386.
    pub fn merge(&mut self, name: &str, path: &str, body: Value) -> &mut Step {
        self.send(name, Method::PATCH, path, "application/merge-patch+json", &body)
    }

    /// PATCH, RFC 6902.
    pub fn json_patch(&mut self, name: &str, path: &str, body: Value) -> &mut Step {
        self.send(name, Method::PATCH, path, "application/json-patch+json", &body)
    }

    /// PATCH, strategic merge.
    pub fn strategic(&mut self, name: &str, path: &str, body: Value) -> &mut Step {
        self.send(name, Method::PATCH, path, "application/strategic-merge-patch+json", &body)
    }

    /// PATCH, server-side apply.
    pub fn apply(&mut self, name: &str, path: &str, body: Value) -> &mut Step {
        self.send(name, Method::PATCH, path, "application/apply-patch+yaml", &body)
    }

    /// A call of kubectl; arguments are split at spaces.
    pub fn kubectl(&mut self, name: &str, args: &str, stdin: &str) -> &mut Step {
        let args: Vec<&str> = args.split(' ').collect();
        self.kubectl_args(name, &args, stdin)
    }

    /// A call of kubectl with arguments that may hold spaces.
    pub fn kubectl_args(&mut self, name: &str, args: &[&str], stdin: &str) -> &mut Step {
        let args = args.iter().map(|a| (*a).to_owned()).collect();
        self.push(name, Action::Kubectl { args, stdin: stdin.to_owned() })
    }

    /// Waits for a GET to give a status code, and a text unless it is empty.
    pub fn until(&mut self, name: &str, path: &str, code: u16, text: &str) -> &mut Step {
        self.push(name, Action::Until { path: path.to_owned(), code, text: text.to_owned() })
    }
}
