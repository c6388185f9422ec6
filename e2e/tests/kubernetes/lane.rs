//! What differs between the clusters that the suite runs on.

use plimsoll_e2e::Error;
use plimsoll_e2e::kubectl::Kubectl;

/// A pod by name, and which life of it this is: another one after a restart.
pub type Life = (String, String);

/// A cluster with a release of the chart in namespace `plimsoll`.
pub trait Lane {
    /// Speaks to the API.
    fn kubectl(&self) -> &Kubectl;

    /// The nodes with accelerators.
    fn nodes(&self) -> &[String];

    /// Runs helm in the repository's root, and waits until the parts are what the release then says.
    async fn helm(&self, args: &[&str]) -> Result<String, Error>;

    /// Base URL of the OpenAI API at the gateways' Service.
    async fn openai(&self) -> Result<String, Error>;

    /// The pods of a part, besides those about to go.
    async fn parts(&self, component: &str) -> Result<Vec<Life>, Error>;

    /// Parts' pods that are not ready or not gone yet, and what else their controllers have still to do.
    async fn unsettled(&self) -> Result<Vec<String>, Error>;

    /// Kills what runs in a part's pod, as `kill -9` does.
    async fn crash_part(&self, name: &str) -> Result<(), Error>;

    /// Deletes a part's pod, which ends in order; does not wait for it.
    async fn delete_part(&self, name: &str) -> Result<(), Error>;

    /// Kills what runs in an engine's pod, as `kill -9` does.
    async fn crash_engine(&self, name: &str) -> Result<(), Error>;

    /// Takes the Kubernetes API away from everybody in the cluster, or gives it back.
    async fn set_api(&self, there: bool) -> Result<(), Error>;

    /// Restarts the kubelet of a node; says whether there is one.
    async fn restart_kubelet(&self) -> Result<bool, Error>;

    /// Lets the cluster lose a node, with what runs on it or only with its kubelet, or gives it back.
    async fn set_node(&self, name: &str, there: bool) -> Result<(), Error>;

    /// Whether the cluster's own scheduler and controllers run: they bind pods, allocate devices, act on autoscalers.
    fn has_own_controllers(&self) -> bool;

    /// An image of engines other than the one they run.
    fn other_image(&self) -> &'static str;

    /// An image that engines cannot start from, if the cluster looks at images.
    fn no_image(&self) -> Option<&'static str>;

    /// The last of what the parts that decide have said.
    async fn logs(&self) -> String;

    /// Ends the cluster; what is left of it on this machine.
    async fn end(self) -> Result<Vec<String>, Error>;
}
