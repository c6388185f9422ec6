//! Leader election over a coordination Lease: a pure decision and a small shell around it.
//!
//! As in client-go, a holder counts as gone only after its Lease has not changed, as seen here, for the Lease's whole
//! duration: clocks of different machines are never compared.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::{Client, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config::OperatorConfig;

/// What to do about the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// There is none: create it.
    Create,
    /// It is ours: renew it.
    Renew,
    /// It was released or has expired: take it.
    TakeOver,
    /// Somebody else holds it: look again after this time.
    Wait(Duration),
}

/// Decides, from the holder as last read (`None`: there is no Lease; empty: released) and the time for which that has
/// been seen so. A Lease that was there and is gone was deleted, most likely with all else of this installation: one that
/// is about to be stopped must not leave another behind.
pub fn decide(holder: Option<&str>, unchanged_for: Duration, me: &str, duration: Duration) -> Decision {
    match holder {
        None if unchanged_for >= duration => Decision::Create,
        None => Decision::Wait((duration - unchanged_for).min(duration / 5)),
        Some("") => Decision::TakeOver,
        Some(holder) if holder == me => Decision::Renew,
        Some(_) if unchanged_for >= duration => Decision::TakeOver,
        Some(_) => Decision::Wait((duration - unchanged_for).min(duration / 5)),
    }
}

/// Takes part in the election until stopped; the receiver says whether this instance leads. Releases the Lease at the end.
pub fn elect(
    client: Client,
    config: &OperatorConfig,
    stop: CancellationToken,
) -> (watch::Receiver<bool>, tokio::task::JoinHandle<()>) {
    let (leads, receiver) = watch::channel(false);
    let elector = Elector {
        api: Api::namespaced(client, &config.lease_namespace),
        name: config.lease_name.clone(),
        me: config.identity.clone(),
        duration: config.lease_duration,
    };
    (receiver, tokio::spawn(elector.run(leads, stop)))
}

struct Elector {
    api: Api<Lease>,
    name: String,
    me: String,
    duration: Duration,
}

impl Elector {
    async fn run(self, leads: watch::Sender<bool>, stop: CancellationToken) {
        // The version last seen, and since when.
        let mut seen: Option<(String, Instant)> = None;
        let mut renewed: Option<Instant> = None;
        loop {
            let pause = tokio::select! {
                () = stop.cancelled() => break,
                tried = tokio::time::timeout(self.duration / 3, self.step(&mut seen)) => match tried {
                    Ok(Ok(Some(wait))) => {
                        renewed = None;
                        wait
                    }
                    Ok(Ok(None)) => {
                        renewed = Some(Instant::now());
                        self.duration / 3
                    }
                    Ok(Err(error)) => {
                        warn!(%error, "failed to read or write the leader Lease; retrying");
                        self.duration / 10
                    }
                    Err(_) => {
                        warn!("the Kubernetes API is slow to answer for the leader Lease; retrying");
                        Duration::ZERO
                    }
                },
            };
            // Stop acting well before others may take over.
            let leading = renewed.is_some_and(|at| at.elapsed() < self.duration * 2 / 3);
            leads.send_if_modified(|now| {
                let changed = *now != leading;
                if changed {
                    info!(identity = %self.me, leading, "leadership changed");
                }
                *now = leading;
                changed
            });
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
        leads.send_replace(false);
        if renewed.is_some() {
            // Followers need not wait for the Lease to expire.
            match tokio::time::timeout(Duration::from_secs(5), self.release()).await {
                Ok(Ok(())) => debug!("released the leader Lease"),
                Ok(Err(error)) => warn!(%error, "failed to release the leader Lease; it will expire"),
                Err(_) => warn!("releasing the leader Lease timed out; it will expire"),
            }
        }
    }

    /// One look and one try: `None` if the Lease is ours now, else the time to wait.
    async fn step(&self, seen: &mut Option<(String, Instant)>) -> Result<Option<Duration>, kube::Error> {
        let lease = self.api.get_opt(&self.name).await?;
        let version = lease.as_ref().map(|lease| lease.resource_version().unwrap_or_default());
        let unchanged_for = match (version, &seen) {
            // Never seen: it is the first.
            (None, None) => self.duration,
            (version, Some((known, since))) if *known == version.clone().unwrap_or_default() => {
                since.elapsed()
            }
            (version, _) => {
                *seen = Some((version.unwrap_or_default(), Instant::now()));
                Duration::ZERO
            }
        };
        let holder = lease
            .as_ref()
            .map(|l| l.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default());
        let written = match (decide(holder.as_deref(), unchanged_for, &self.me, self.duration), lease) {
            (Decision::Wait(wait), _) => return Ok(Some(wait)),
            (Decision::Create, _) | (_, None) => {
                let lease = Lease {
                    metadata: ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() },
                    spec: Some(self.spec(None)),
                };
                self.api.create(&PostParams::default(), &lease).await
            }
            (Decision::Renew | Decision::TakeOver, Some(mut lease)) => {
                // The resourceVersion read makes this fail if anyone else was faster.
                lease.spec = Some(self.spec(lease.spec.as_ref()));
                self.api.replace(&self.name, &PostParams::default(), &lease).await
            }
        };
        match written {
            Ok(_) => Ok(None),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(Some(self.duration / 5)),
            Err(error) => Err(error),
        }
    }

    fn spec(&self, old: Option<&LeaseSpec>) -> LeaseSpec {
        let now = MicroTime(Timestamp::now());
        let mine = old.is_some_and(|s| s.holder_identity.as_deref() == Some(self.me.as_str()));
        LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(self.duration.as_secs().max(1)).ok(),
            acquire_time: old
                .filter(|_| mine)
                .and_then(|s| s.acquire_time.clone())
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(
                old.and_then(|s| s.lease_transitions).unwrap_or(0) + i32::from(old.is_some() && !mine),
            ),
            ..LeaseSpec::default()
        }
    }

    async fn release(&self) -> Result<(), kube::Error> {
        let Some(mut lease) = self.api.get_opt(&self.name).await? else { return Ok(()) };
        if let Some(spec) =
            lease.spec.as_mut().filter(|s| s.holder_identity.as_deref() == Some(self.me.as_str()))
        {
            spec.holder_identity = Some(String::new());
            self.api.replace(&self.name, &PostParams::default(), &lease).await?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rstest::rstest;

    const S: fn(u64) -> Duration = Duration::from_secs;

    #[rstest]
    #[case::none(None, S(15), Decision::Create)]
    #[case::deleted(None, S(0), Decision::Wait(S(3)))]
    #[case::released(Some(""), S(0), Decision::TakeOver)]
    #[case::mine(Some("me"), S(99), Decision::Renew)]
    #[case::fresh(Some("other"), S(0), Decision::Wait(S(3)))]
    #[case::nearly(Some("other"), S(14), Decision::Wait(S(1)))]
    #[case::expired(Some("other"), S(15), Decision::TakeOver)]
    fn the_lease_is_taken_only_when_free(
        #[case] holder: Option<&str>,
        #[case] unchanged: Duration,
        #[case] expected: Decision,
    ) {
        assert_eq!(decide(holder, unchanged, "me", S(15)), expected);
    }
}
