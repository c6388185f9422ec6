//! End-to-end suites: they start the built binary and drive it from outside, with the clients people use (kubectl, the
//! `openai` package) where those can be had and by the same HTTP calls of their own where not.
//!
//! [`system`] starts and kills processes, [`release`] runs the chart's pods as such, [`kubernetes`] holds a real cluster,
//! [`apiserver`] a real API server alone, [`kubectl`] speaks to the Kubernetes API, [`openai`] to the gateway, [`traffic`]
//! counts what became of many requests.

pub mod apiserver;
pub mod kubectl;
pub mod kubernetes;
pub mod openai;
pub mod pod;
pub mod relay;
pub mod release;
pub mod system;
pub mod traffic;

/// What a step of a suite fails with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// Polls until `probe` gives a value, for at most `seconds`; the last complaint is the error.
///
/// # Errors
/// What `probe` said last, once the time is over.
pub async fn eventually<T, F, Fut>(what: &str, seconds: u64, mut probe: F) -> Result<T, Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, Error>>,
{
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(seconds);
    loop {
        match probe().await {
            Ok(value) => return Ok(value),
            Err(error) if tokio::time::Instant::now() >= deadline => {
                return Err(format!("{what}: not within {seconds} s; last: {error}").into());
            }
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(200)).await,
        }
    }
}
