//! What a scheduler that does not lead does with requests: it hands them to the one that does, streams included, so that
//! every client may call any of them.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::{Frame, SizeHint};
use plimsoll_proto::tls::{self, ClientTls};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::transport::Channel;

/// Header of a request that was handed on once: never twice.
pub const FORWARDED: &str = "plimsoll-forwarded";
/// Header of the answer of a scheduler that does not lead and has nobody to hand a request to.
pub const STANDBY: &str = "plimsoll-standby";

/// A way to the leader, for as long as it leads.
#[derive(Debug, Clone)]
pub struct Forward {
    channel: Channel,
    ended: CancellationToken,
}

/// An answer that says why there is none.
pub fn unavailable(why: &str) -> http::Response<Body> {
    let mut status = Status::unavailable(why);
    status.metadata_mut().insert(STANDBY, tonic::metadata::MetadataValue::from_static("true"));
    status.into_http()
}

impl Forward {
    /// To the leader at `host:port`, until `ended`. Connects when first used.
    ///
    /// # Errors
    /// Why the address cannot be called.
    pub fn new(address: &str, tls: Option<&ClientTls>, ended: CancellationToken) -> Result<Self, String> {
        let endpoint = tls::endpoint(&format!("http://{address}"), tls)
            .map_err(|e| format!("the leader's address is not usable: {e}"))?
            .connect_timeout(Duration::from_secs(2))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(5))
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        Ok(Self { channel: tls::lazy(&endpoint, tls), ended })
    }

    /// Hands a request on.
    pub async fn call(self, mut request: http::Request<Body>) -> http::Response<Body> {
        if request.headers().contains_key(FORWARDED) {
            return unavailable("this scheduler does not lead; ask the leader");
        }
        request.headers_mut().insert(FORWARDED, http::HeaderValue::from_static("true"));
        let Self { mut channel, ended } = self;
        let answer = async {
            std::future::poll_fn(|cx| channel.poll_ready(cx)).await?;
            channel.call(request).await
        };
        tokio::select! {
            () = ended.cancelled() => unavailable("another scheduler has been elected; try again"),
            answer = answer => match answer {
                Ok(response) => response.map(|body| {
                    Body::new(Until { body, ended: Box::pin(ended.cancelled_owned()), over: false })
                }),
                Err(error) => unavailable(&format!("the scheduler that leads does not answer: {error}")),
            },
        }
    }
}

/// The status that ends an answer.
fn last_word<T>(why: &str) -> Result<Frame<T>, Status> {
    let mut trailers = http::HeaderMap::new();
    Status::unavailable(why).add_header(&mut trailers)?;
    Ok(Frame::trailers(trailers))
}

/// A body that ends, with a status that says so, when the leader is not the leader any more. Without it, a client would
/// wait for news from one that has none, and this scheduler could not stop.
struct Until {
    body: Body,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    over: bool,
}

impl http_body::Body for Until {
    type Data = <Body as http_body::Body>::Data;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if self.ended.as_mut().poll(cx).is_ready() {
            self.over = true;
            return Poll::Ready(Some(last_word(
                "another scheduler has been elected, or this one stops; reconnect",
            )));
        }
        match Pin::new(&mut self.body).poll_frame(cx) {
            // Killed in the middle of a word, as it were. To clients that is no other than a leader that stops.
            Poll::Ready(Some(Err(error))) => {
                self.over = true;
                Poll::Ready(Some(last_word(&format!("the scheduler that led has gone: {}", error.message()))))
            }
            frame => frame,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}
