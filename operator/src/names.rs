//! Labels, annotations and other names the operator writes.

/// Label: name of the ModelPool.
pub const POOL: &str = "plimsoll.dev/pool";
/// Label: the replica's identity; annotation of the same name: the replica's [`crate::ReplicaRecord`] as JSON.
pub const REPLICA: &str = "plimsoll.dev/replica";
/// Label of each pod of a replica over several nodes: `0` is the one that serves. Pods without it are whole replicas.
pub const RANK: &str = "plimsoll.dev/rank";
/// Label: name of the variant.
pub const VARIANT: &str = "plimsoll.dev/variant";
/// Label: name of the accelerator class.
pub const ACCELERATOR: &str = "plimsoll.dev/accelerator";
/// Label: mixed, prefill or decode.
pub const ROLE: &str = "plimsoll.dev/role";
/// Annotation: when the replica began to drain (RFC 3339).
pub const DRAINING: &str = "plimsoll.dev/draining";
/// Annotation: what the replica was made from, to tell those that run an older engine configuration.
pub const TEMPLATE: &str = "plimsoll.dev/template";
/// Annotations by which autoscalers leave the node of a replica alone that may serve: the plan alone moves replicas. They go
/// when the replica drains.
pub const UNDISTURBED: [(&str, &str); 2] =
    [("karpenter.sh/do-not-disrupt", "true"), ("cluster-autoscaler.kubernetes.io/safe-to-evict", "false")];
/// Finalizer of ModelPools: their replicas drain before they go.
pub const FINALIZER: &str = "plimsoll.dev/drain";
/// Label: who manages an object.
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Value of [`MANAGED_BY`].
pub const PLIMSOLL: &str = "plimsoll";
/// Port of an engine's API on its pod.
pub const ENGINE_PORT: i32 = 8000;
/// Port at which a vLLM engine tells others how to read its KV cache.
pub const HAND_OVER_PORT: i32 = 5600;
/// Port at which an SGLang prefill engine and decode engines meet.
pub const BOOTSTRAP_PORT: i32 = 8998;
/// Port at which the pods of a replica over several nodes find one another.
pub const RENDEZVOUS_PORT: i32 = 29_500;

/// FNV-1a, 64 bits: stable across builds and platforms.
pub fn digest(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

/// A label value for a name: the name itself up to 63 characters, else its beginning and a digest of the whole.
pub fn label_value(name: &str) -> String {
    if name.len() <= 63 {
        return name.to_owned();
    }
    let mut cut = 54;
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    format!("{}-{}", name[..cut].trim_end_matches(['.', '-']), &digest(name)[..8])
}

/// A DNS label (RFC 1035) for a name: the name itself where it is one, else its beginning and a digest of the whole.
pub fn dns_label(name: &str, longest: usize) -> String {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let letter = name.starts_with(|c: char| c.is_ascii_lowercase());
    if letter && name.len() <= longest && name.chars().all(plain) && !name.ends_with('-') {
        return name.to_owned();
    }
    let begin: String = name.chars().filter(|c| plain(*c)).take(longest.saturating_sub(11)).collect();
    format!("p-{begin}-{}", &digest(name)[..8])
}

/// Name of the headless Service under which a pool's leaders are found by their workers.
pub fn group_service(pool: &str) -> String {
    format!("{}-ranks", dns_label(pool, 57))
}

/// The selector of a pool's replicas: pods that serve.
pub fn pool_selector(pool: &str) -> String {
    format!("{MANAGED_BY}={PLIMSOLL},{POOL}={}", label_value(pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_become_distinct_label_values() {
        let (a, b) = (format!("{}-a", "x".repeat(80)), format!("{}-b", "x".repeat(80)));
        assert!(label_value(&a).len() <= 63);
        assert_ne!(label_value(&a), label_value(&b));
        assert_eq!(label_value("chat"), "chat");
    }

    #[test]
    fn names_become_dns_labels() {
        assert_eq!(dns_label("chat-3", 63), "chat-3");
        for name in ["team.chat", "3-chat", "chat-", &"x".repeat(80)] {
            let label = dns_label(name, 57);
            assert!(label.len() <= 57 && label.starts_with("p-") && !label.contains('.'), "{label}");
            assert_ne!(label, dns_label(&format!("{name}2"), 57));
        }
        assert_eq!(group_service("chat"), "chat-ranks");
    }
}
