//! Two gRPC services on one server, told apart by path, while this scheduler leads; otherwise a way to the leader.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::RwLock;
use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tonic::server::NamedService;

use super::forward::{self, Forward};

/// Whether a scheduler leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    /// It does.
    Leads,
    /// Another does, at this `host:port`; requests are handed to it.
    Follows(String),
    /// Nobody is known to, and why.
    Vacant(String),
}

/// Who answers requests.
#[derive(Clone)]
pub enum Desk<A, B> {
    /// This scheduler: `B` for its paths, `A` for everything else, which answers UNIMPLEMENTED to what it does not know.
    Own(A, B),
    /// The leader.
    Leader(Forward),
    /// Nobody, and why.
    Vacant(String),
}

/// Sends each request to who answers at the moment. Cloning shares it.
pub struct Dispatch<A, B> {
    desk: Arc<RwLock<Desk<A, B>>>,
    standing: watch::Sender<Standing>,
}

impl<A, B> Clone for Dispatch<A, B> {
    fn clone(&self) -> Self {
        Self { desk: Arc::clone(&self.desk), standing: self.standing.clone() }
    }
}

impl<A, B> Dispatch<A, B> {
    /// Nobody answers yet.
    pub fn vacant(why: &str) -> Self {
        Self {
            desk: Arc::new(RwLock::new(Desk::Vacant(why.to_owned()))),
            standing: watch::Sender::new(Standing::Vacant(why.to_owned())),
        }
    }

    /// Follows who answers.
    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// From now on this scheduler answers.
    pub fn lead(&self, first: A, second: B) {
        *self.desk.write() = Desk::Own(first, second);
        self.standing.send_replace(Standing::Leads);
    }

    /// From now on the leader at `address` answers.
    pub fn follow(&self, address: String, forward: Forward) {
        *self.desk.write() = Desk::Leader(forward);
        self.standing.send_replace(Standing::Follows(address));
    }

    /// From now on nobody answers.
    pub fn vacate(&self, why: String) {
        *self.desk.write() = Desk::Vacant(why.clone());
        self.standing.send_replace(Standing::Vacant(why));
    }
}

type Answer = http::Response<Body>;

impl<A, B> Service<http::Request<Body>> for Dispatch<A, B>
where
    A: Service<http::Request<Body>, Response = Answer, Error = Infallible> + Clone,
    B: Service<http::Request<Body>, Response = Answer, Error = Infallible> + NamedService + Clone,
    A::Future: Send + 'static,
    B::Future: Send + 'static,
{
    type Response = Answer;
    type Error = Infallible;
    type Future = BoxFuture<Answer, Infallible>;

    // Generated services are always ready.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let desk = self.desk.read().clone();
        match desk {
            Desk::Own(mut first, mut second) => {
                let service =
                    request.uri().path().trim_start_matches('/').split('/').next().unwrap_or_default();
                if service == B::NAME {
                    Box::pin(second.call(request))
                } else {
                    Box::pin(first.call(request))
                }
            }
            Desk::Leader(forward) => Box::pin(async move { Ok(forward.call(request).await) }),
            Desk::Vacant(why) => {
                Box::pin(async move { Ok(forward::unavailable(&format!("no scheduler leads: {why}"))) })
            }
        }
    }
}
