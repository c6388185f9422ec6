//! `plimsoll operator`: reconciles the Kubernetes resources.

use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use plimsoll_operator::grpc::GrpcBrain;
use plimsoll_operator::inference_pool::{InferencePools, Picker};
use plimsoll_operator::{EngineImages, FaultCondition, Groups, Operator, OperatorConfig};
use plimsoll_proto::tls::LOOK_EVERY;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::commands::operator_health::{LeaseWatch, OperatorMetrics, SeenBrain};
use crate::failure::{Failure, Outcome};
use crate::health::Health;
use crate::signals;
use crate::tls::{TlsArgs, show};

/// Run the operator
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The scheduler's gRPC address
    #[arg(long, env = "PLIMSOLL_SCHEDULER", default_value = "http://127.0.0.1:9090")]
    pub scheduler: String,
    /// Kubeconfig to use [default: the in-cluster account, or $KUBECONFIG]
    #[arg(long)]
    pub kubeconfig: Option<std::path::PathBuf>,
    /// Namespace of the leader-election Lease
    #[arg(long, env = "POD_NAMESPACE", default_value = "default")]
    pub lease_namespace: String,
    /// This instance's name in the Lease [default: random]
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// Longest time a replica may take to finish its requests before it is deleted, seconds
    #[arg(long, default_value_t = 120)]
    pub drain_timeout_seconds: u64,
    /// Address of probes (/livez, /readyz) and /metrics [default: none]
    #[arg(long)]
    pub http_listen: Option<std::net::SocketAddr>,
    /// Keep an InferencePool for each ModelPool, where the cluster has the Gateway API Inference Extension
    #[arg(long)]
    pub inference_pools: bool,
    /// Endpoint picker of the InferencePools, `SERVICE:PORT` in the pool's namespace; `{pool}` stands for the pool's name
    /// [default: none]
    #[arg(long, value_parser = picker, requires = "inference_pools")]
    pub inference_picker: Option<Picker>,
    /// Make the pods of replicas over several nodes itself, even where the cluster has LeaderWorkerSets
    #[arg(long)]
    pub no_leader_worker_sets: bool,
    /// Node conditions that make a node's accelerators unusable, `TYPE` or `TYPE=STATUS`, separated by commas [default:
    /// those that the node monitors of AKS and EKS and common rules of the node problem detector set]
    #[arg(long, value_delimiter = ',')]
    pub node_faults: Option<Vec<FaultCondition>>,
    /// Let ModelPools, and so their namespaces, be deleted at once: nothing waits for their replicas to drain
    #[arg(long)]
    pub no_finalizers: bool,
    /// Folder of nodes that agents keep adapters in (their --adapter-cache), which engines that load adapters are shown [default: none:
    /// engines fetch adapters themselves]
    #[arg(long, value_parser = absolute)]
    pub adapter_cache_host_path: Option<String>,
    #[command(flatten)]
    pub tls: TlsArgs,
    #[command(flatten)]
    pub images: Images,
}

fn absolute(text: &str) -> Result<String, String> {
    let clean = text.len() > 1 && text.starts_with('/') && !text.split('/').any(|part| part == "..");
    if clean {
        Ok(text.to_owned())
    } else {
        Err(format!("{text:?} is no folder of a node; write /PATH, without `..`"))
    }
}

fn picker(text: &str) -> Result<Picker, String> {
    let wrong = || format!("{text:?} is no endpoint picker; write SERVICE:PORT, such as {{pool}}-epp:9002");
    let (service, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port = port.parse().ok().filter(|p| *p > 0).ok_or_else(wrong)?;
    if service.is_empty() { Err(wrong()) } else { Ok(Picker { service: service.to_owned(), port }) }
}

/// Images of engines whose pool names none.
#[derive(Debug, clap::Args)]
pub struct Images {
    /// Image of vLLM [default: a version known to work]
    #[arg(long, env = "PLIMSOLL_VLLM_IMAGE")]
    pub vllm_image: Option<String>,
    /// Image of SGLang [default: a version known to work]
    #[arg(long, env = "PLIMSOLL_SGLANG_IMAGE")]
    pub sglang_image: Option<String>,
    /// Image of llama.cpp's server for GPUs [default: its project's]
    #[arg(long, env = "PLIMSOLL_LLAMACPP_IMAGE")]
    pub llamacpp_image: Option<String>,
    /// Image of llama.cpp's server for CPUs [default: its project's]
    #[arg(long, env = "PLIMSOLL_LLAMACPP_CPU_IMAGE")]
    pub llamacpp_cpu_image: Option<String>,
    /// Image of Plimsoll, for simulated engines [default: this version's]
    #[arg(long, env = "PLIMSOLL_IMAGE")]
    pub plimsoll_image: Option<String>,
}

impl Images {
    fn over(&self, defaults: EngineImages) -> EngineImages {
        // An empty value, as templates easily make, is none.
        let or = |given: &Option<String>, default| given.clone().filter(|v| !v.is_empty()).unwrap_or(default);
        EngineImages {
            vllm: or(&self.vllm_image, defaults.vllm),
            sglang: or(&self.sglang_image, defaults.sglang),
            llamacpp: or(&self.llamacpp_image, defaults.llamacpp),
            llamacpp_cpu: or(&self.llamacpp_cpu_image, defaults.llamacpp_cpu),
            plimsoll: or(&self.plimsoll_image, defaults.plimsoll),
        }
    }
}

/// Runs it until a signal.
///
/// # Errors
/// If the API or the configuration is not usable.
pub async fn run(args: &Args) -> Outcome {
    let client = client(args.kubeconfig.as_deref()).await?;
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let mut config = OperatorConfig::default();
    config.lease_namespace.clone_from(&args.lease_namespace);
    if let Some(identity) = &args.identity {
        config.identity.clone_from(identity);
    }
    config.drain_timeout = Duration::from_secs(args.drain_timeout_seconds);
    config.images = args.images.over(config.images);
    if let Some(faults) = &args.node_faults {
        config.faults.clone_from(faults);
    }
    if args.no_leader_worker_sets {
        config.groups = Groups::Pods;
    }
    config.finalizers = !args.no_finalizers;
    config.adapter_cache.clone_from(&args.adapter_cache_host_path);
    config.inference_pools = args
        .inference_pools
        .then(|| InferencePools { picker: args.inference_picker.clone(), ..InferencePools::default() });
    let mutual = args.tls.mutual(&[])?;
    if let Some(mutual) = &mutual {
        mutual.keep_current(LOOK_EVERY, stop.clone());
    }
    let tls = mutual.as_ref().map(|mutual| args.tls.scheduler(mutual)).transpose()?;
    let brain = GrpcBrain::new(&args.scheduler, &config.identity, tls.as_ref())
        .map_err(|e| Failure::caused("--scheduler is not usable", e))?;
    info!(scheduler = %args.scheduler, "operator starts");
    let Some(listen) = args.http_listen else {
        Operator::run_with(client, brain, config, stop).await;
        return Ok(());
    };
    let mut registry = Registry::default();
    if let Some(mutual) = &mutual {
        show(&mut registry, Some(mutual), None);
    }
    let metrics = OperatorMetrics::register(&mut registry);
    let brain = SeenBrain::new(brain, metrics.clone());
    let lease = LeaseWatch::start(client.clone(), &config, metrics, stop.clone());
    let (scheduler, leading) = (brain.opinion(), lease.clone());
    Health::new(registry, stop.clone())
        .ready("lease", move || lease.opinion())
        .ready("scheduler", move || if leading.leading() { scheduler.get() } else { Ok(()) })
        .serve(listen)
        .await?;
    Operator::run_with(client, brain, config, stop).await;
    Ok(())
}

/// A client from a kubeconfig, or from the environment.
///
/// # Errors
/// If there is no usable configuration.
pub async fn client(kubeconfig: Option<&std::path::Path>) -> Result<kube::Client, Failure> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .map_err(|e| Failure::caused(format!("failed to read {}", path.display()), e))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .map_err(|e| Failure::caused(format!("{} is not usable", path.display()), e))?
        }
        None => kube::Config::infer().await.map_err(|e| {
            Failure::caused("found no Kubernetes API", e)
                .hint("set KUBECONFIG, pass --kubeconfig, or run inside a cluster")
        })?,
    };
    kube::Client::try_from(config).map_err(|e| Failure::caused("failed to make a Kubernetes client", e))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    #[test]
    fn pickers_and_faults_are_read_and_nonsense_is_named() {
        let read = |more: &[&str]| Cli::try_parse_from(["x"].iter().chain(more)).map(|c| c.args);
        let args = read(&[
            "--inference-pools",
            "--inference-picker={pool}-epp:9002",
            "--node-faults=XIDErrors,AcceleratedHardwareReady=False",
        ])
        .unwrap();
        assert_eq!(args.inference_picker, Some(Picker { service: "{pool}-epp".into(), port: 9002 }));
        assert_eq!(args.node_faults.map(|f| f.len()), Some(2));
        for wrong in [
            &["--inference-picker=epp:9002"][..],
            &["--inference-pools", "--inference-picker=epp"],
            &["--inference-pools", "--inference-picker=:1"],
            &["--node-faults=a b"],
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
