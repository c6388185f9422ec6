//! `plimsoll scheduler`: forecasts, plans, and tells agents.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use plimsoll_proto::tls::ClientTls;
use plimsoll_proto::v1::ExplainRequest;
use plimsoll_proto::v1::plan_service_client::PlanServiceClient;
use plimsoll_scheduler::plan::PlannerConfig;
use plimsoll_scheduler::planner::EnginePlanner;
use plimsoll_scheduler::service::{
    Candidate, FORWARDED, STANDBY, Scheduler, SchedulerConfig, SchedulerMetrics, SchedulerTls, Standing,
};
use plimsoll_scheduler::store::etcd::EtcdConfig;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataValue;

use crate::advice;
use crate::failure::{Failure, Outcome};
use crate::health::{Health, Opinion, Watched, keep_asking, own_address};
use crate::scheduler_client::Caller;
use crate::signals;
use crate::tls::{TlsArgs, names, show};

/// Run the scheduler
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the gRPC services
    #[arg(long, default_value = "127.0.0.1:9090")]
    pub listen: SocketAddr,
    /// Address of probes (/livez, /readyz), /metrics, and advised replicas (/advice, /metrics/NAMESPACE/POOL) [default:
    /// none]
    #[arg(long)]
    pub http_listen: Option<SocketAddr>,
    /// Folder for plans, history and demand [default: in memory only]
    #[arg(long)]
    pub data: Option<PathBuf>,
    #[command(flatten)]
    pub etcd: EtcdArgs,
    #[command(flatten)]
    pub tls: TlsArgs,
    /// DNS names, separated by commas, of which a client's certificate must have one [default: any certificate of the
    /// authority will do]
    #[arg(long, env = "PLIMSOLL_TLS_ALLOW", value_delimiter = ',')]
    pub tls_allow: Vec<String>,
    /// DNS names, separated by commas, of which a certificate must have one to say what the cluster has: the operator's, and
    /// the schedulers' own where there are several [default: any]
    #[arg(long, env = "PLIMSOLL_TLS_OPERATORS", value_delimiter = ',')]
    pub tls_operators: Vec<String>,
    /// Longest time between plans, seconds
    #[arg(long, default_value_t = 60.0)]
    pub replan_seconds: f64,
    /// What a request costs that misses its objectives because forecast or engine model were wrong, in prices of serving it: above 1,
    /// fleets get headroom where it costs less than it is expected to save, e.g. 10 [default: 0, none beyond the usual margins]
    #[arg(long, default_value_t = 0.0, hide_default_value = true)]
    pub lost_request_price: f64,
    /// Simulated time runs this much faster than the clock (with engines at the same speed)
    #[arg(long, default_value_t = 1.0)]
    pub speed: f64,
}

/// A store in etcd, for two schedulers or more.
#[derive(Debug, clap::Args)]
pub struct EtcdArgs {
    /// Members of an etcd that keeps plans, history and demand instead of a folder, `http(s)://HOST:PORT`, separated by
    /// commas. Of the schedulers that share it, one is elected; the others stand by and hand requests to it
    #[arg(long, value_delimiter = ',', conflicts_with = "data")]
    pub etcd: Vec<String>,
    /// What every key in etcd begins with; installations that share an etcd need different ones
    #[arg(long, default_value = "/plimsoll", requires = "etcd")]
    pub etcd_prefix: String,
    /// Certificate authority of etcd, PEM file [default: the system's, none in Plimsoll's image]
    #[arg(long, requires = "etcd")]
    pub etcd_ca: Option<PathBuf>,
    /// Certificate to show to etcd, PEM file
    #[arg(long, requires = "etcd_key")]
    pub etcd_cert: Option<PathBuf>,
    /// Its key, PEM file
    #[arg(long, requires = "etcd_cert")]
    pub etcd_key: Option<PathBuf>,
    /// User of etcd; the password is in $PLIMSOLL_ETCD_PASSWORD
    #[arg(long, env = "PLIMSOLL_ETCD_USER", requires = "etcd")]
    pub etcd_user: Option<String>,
    /// A leader that etcd does not hear of for so long is replaced, seconds
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=300), requires = "etcd")]
    pub leader_lease_seconds: u64,
    /// This scheduler's name in the election, unlike any other's [default: random]
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,
    /// `host:port` that other schedulers reach this one by [default: the listening address]
    #[arg(long)]
    pub advertise: Option<String>,
    /// Address of this host or pod, at which others reach the port listened on; `--advertise` wins
    #[arg(long, env = "POD_IP")]
    pub advertise_ip: Option<IpAddr>,
}

impl EtcdArgs {
    /// What to stand for election with, if there is an etcd. `password` belongs to `--etcd-user`.
    fn candidate(&self, listen: SocketAddr, password: Option<String>) -> Result<Option<Candidate>, Failure> {
        // An empty value, as templates easily make, is none.
        let endpoints: Vec<String> = self.etcd.iter().filter(|e| !e.is_empty()).cloned().collect();
        if endpoints.is_empty() {
            return Ok(None);
        }
        let user = match (self.etcd_user.clone().filter(|u| !u.is_empty()), password) {
            (Some(user), Some(password)) => Some((user, password)),
            (Some(_), None) => {
                return Err(
                    Failure::new("--etcd-user comes with a password").hint("set PLIMSOLL_ETCD_PASSWORD")
                );
            }
            (None, _) => None,
        };
        let etcd = EtcdConfig {
            prefix: self.etcd_prefix.clone(),
            ca: self.etcd_ca.clone(),
            cert: self.etcd_cert.clone(),
            key: self.etcd_key.clone(),
            user,
            lease: Duration::from_secs(self.leader_lease_seconds),
            ..EtcdConfig::new(endpoints)
        };
        let identity = self.identity.clone().unwrap_or_else(|| {
            // Distinct per process and per start; in a cluster the pod's name is used instead.
            format!("scheduler-{}-{}", std::process::id(), jiff::Timestamp::now().as_millisecond())
        });
        let advertise = self.advertise.clone().or_else(|| {
            let port = Some(listen.port()).filter(|p| *p != 0)?;
            Some(SocketAddr::new(self.advertise_ip?, port).to_string())
        });
        if advertise.is_none() && listen.ip().is_unspecified() {
            return Err(Failure::new(format!("other schedulers cannot reach this one at {listen}"))
                .hint("say where they can: --advertise HOST:PORT or --advertise-ip ADDRESS"));
        }
        Ok(Some(Candidate { etcd, identity, advertise }))
    }
}

/// Runs it until a signal.
///
/// # Errors
/// If it cannot listen or open its store.
pub async fn run(args: &Args) -> Outcome {
    let stop = CancellationToken::new();
    signals::cancel_on_signal(stop.clone());
    let mut registry = Registry::default();
    let password = std::env::var("PLIMSOLL_ETCD_PASSWORD").ok();
    let metrics = SchedulerMetrics::new(&mut registry);
    let advised = metrics.advised();
    let tls = match args.tls.mutual(&args.tls_allow)? {
        Some(mutual) => Some(SchedulerTls {
            leader: args.tls.scheduler(&mutual)?,
            operators: names(&args.tls_operators)?,
            mutual,
        }),
        None => None,
    };
    if let Some(tls) = &tls {
        show(&mut registry, Some(&tls.mutual), None);
    }
    let own_tls = tls.as_ref().map(|tls| tls.leader.clone());
    let config = SchedulerConfig {
        tls,
        etcd: args.etcd.candidate(args.listen, password)?,
        metrics,
        listen: args.listen,
        data_dir: args.data.clone(),
        replan_interval: Duration::from_secs_f64(args.replan_seconds.clamp(0.1, 86_400.0)),
        time_scale: args.speed,
        ..SchedulerConfig::new(std::sync::Arc::new(EnginePlanner::new(PlannerConfig {
            lost_request_price: args.lost_request_price,
            ..PlannerConfig::default()
        })))
    };
    let handle = Scheduler::start(config, stop.clone())
        .await
        .map_err(|e| Failure::caused("the scheduler cannot start", e))?;
    tracing::info!(addr = %handle.addr(), "scheduler listens");
    if let Some(listen) = args.http_listen {
        let grpc = Watched::shut("it has not been called yet");
        let addr = handle.addr();
        tokio::spawn(keep_asking(grpc.clone(), stop.clone(), move || call(addr, own_tls.clone())));
        let (again, standing) = (grpc.clone(), handle.standing());
        Health::new(registry, stop)
            .live("grpc", move || again.get())
            .ready("grpc", move || grpc.get())
            // One that stands by is ready as well: it hands requests to the leader.
            .ready("leader", move || match &*standing.borrow() {
                Standing::Leads | Standing::Follows(_) => Ok(()),
                Standing::Vacant(why) => Err(format!("no scheduler leads: {why}")),
            })
            .routes(advice::router(advised))
            .serve(listen)
            .await?;
    }
    handle.join().await.map_err(|e| Failure::caused("the scheduler stopped", e))
}

/// Asks the service what needs its state but costs nothing: a pool whose name cannot be. A refusal is an answer; that it
/// stands by is one too. What it asks goes no further: whether the leader answers is not this scheduler's health.
async fn call(addr: SocketAddr, tls: Option<ClientTls>) -> Opinion {
    let caller = Caller { url: format!("http://{}", own_address(addr)), tls };
    let mut client = PlanServiceClient::new(caller.connect().await.map_err(|e| causes(e.as_ref()))?);
    let mut request = tonic::Request::new(ExplainRequest { pool: "?".to_owned() });
    request.metadata_mut().insert(FORWARDED, MetadataValue::from_static("true"));
    match client.explain(request).await {
        Err(s)
            if matches!(
                s.code(),
                tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown
            ) && !s.metadata().contains_key(STANDBY) =>
        {
            Err(s.message().to_owned())
        }
        _ => Ok(()),
    }
}

/// An error with its causes.
fn causes(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
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

    fn read(more: &[&str]) -> Result<Args, clap::Error> {
        Cli::try_parse_from(["x"].iter().chain(more)).map(|c| c.args)
    }

    #[test]
    fn a_candidate_is_made_of_flags_and_what_is_missing_is_named() {
        let candidate = |more: &[&str], password: Option<&str>| {
            let args = read(more).unwrap();
            args.etcd.candidate(args.listen, password.map(str::to_owned))
        };
        assert!(candidate(&[], None).unwrap().is_none());
        assert!(candidate(&["--etcd="], None).unwrap().is_none());
        let all = ["--etcd=http://a:2379,http://b:2379", "--etcd-user=root", "--listen=0.0.0.0:9090"];
        let found =
            candidate(&[&all[..], &["--advertise-ip=10.0.0.7"]].concat(), Some("secret")).unwrap().unwrap();
        assert_eq!(found.etcd.endpoints, ["http://a:2379", "http://b:2379"]);
        assert_eq!(found.etcd.user, Some(("root".into(), "secret".into())));
        assert_eq!(found.advertise.as_deref(), Some("10.0.0.7:9090"));
        assert!(!format!("{found:?}").contains("secret"));
        let missing = candidate(&all, None).unwrap_err().to_string();
        assert!(missing.contains("PLIMSOLL_ETCD_PASSWORD"), "{missing}");
        let nowhere = candidate(&all, Some("secret")).unwrap_err().to_string();
        assert!(nowhere.contains("--advertise-ip"), "{nowhere}");
        for wrong in [
            &["--etcd=http://a:2379", "--data=x"][..],
            &["--etcd-prefix=/x"],
            &["--etcd=http://a:2379", "--etcd-cert=x"],
            &["--etcd=http://a:2379", "--leader-lease-seconds=1"],
        ] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
