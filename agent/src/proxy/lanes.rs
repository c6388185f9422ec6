//! Where connections are served: on the runtime at hand, or on threads of their own.
//!
//! A thread of its own has a runtime for itself: a connection, the requests on it and the engines' connections that answer
//! them stay on one thread, so that nothing that happens to a request wakes another.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

use super::handler::Proxy;

/// All of them.
#[derive(Debug)]
pub(crate) struct Lanes {
    lanes: Vec<Lane>,
    stop: CancellationToken,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Lane {
    runtime: Handle,
    own: bool,
    proxy: Proxy,
    /// Connections.
    open: Arc<AtomicUsize>,
}

/// A connection's place on a lane.
#[derive(Debug)]
struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    /// So many threads; 0: the runtime that this is called on.
    ///
    /// # Errors
    /// Where the system has no more threads or descriptors.
    pub(crate) fn start(threads: usize, proxy: &Proxy) -> io::Result<Self> {
        let mut made = Self { lanes: Vec::new(), stop: CancellationToken::new(), threads: Vec::new() };
        let lane = |runtime, own, proxy| Lane { runtime, own, proxy, open: Arc::default() };
        if threads == 0 {
            let runtime = Handle::current();
            runtime.spawn(proxy.upstream.clone().keep_tidy(made.stop.clone()));
            made.lanes.push(lane(runtime, false, proxy.clone()));
        }
        for i in 0..threads {
            let runtime = Builder::new_current_thread().enable_all().build()?;
            let proxy = Proxy { upstream: proxy.upstream.anew(), ..proxy.clone() };
            let (handle, upstream, stop) =
                (runtime.handle().clone(), proxy.upstream.clone(), made.stop.clone());
            let thread = std::thread::Builder::new().name(format!("serve-{i}")).spawn(move || {
                runtime.block_on(upstream.keep_tidy(stop));
                // A name that is still being looked up must not hold up the end.
                runtime.shutdown_background();
            })?;
            made.threads.push(thread);
            made.lanes.push(lane(handle, true, proxy));
        }
        Ok(made)
    }

    /// Serves a connection where there are fewest.
    ///
    /// # Errors
    /// Where it cannot be moved there.
    pub(super) fn serve<F>(
        &self,
        stream: TcpStream,
        serve: impl FnOnce(TcpStream, Proxy) -> F + Send + 'static,
    ) -> io::Result<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Some(lane) = self.lanes.iter().min_by_key(|lane| lane.open.load(Ordering::Relaxed)) else {
            return Ok(());
        };
        lane.open.fetch_add(1, Ordering::Relaxed);
        let (open, proxy) = (Open(lane.open.clone()), lane.proxy.clone());
        if !lane.own {
            let served = serve(stream, proxy);
            lane.runtime.spawn(async move {
                served.await;
                drop(open);
            });
            return Ok(());
        }
        let stream = stream.into_std()?;
        lane.runtime.spawn(async move {
            match TcpStream::from_std(stream) {
                Ok(stream) => serve(stream, proxy).await,
                Err(error) => tracing::warn!(%error, "cannot serve a connection"),
            }
            drop(open);
        });
        Ok(())
    }

    /// Ends all threads, and with them what they still do.
    pub(super) async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::task::spawn_blocking(move || {
            self.threads.into_iter().map(JoinHandle::join).filter(Result::is_err).count()
        });
        if !matches!(ended.await, Ok(0)) {
            tracing::error!("a thread that serves requests panicked");
        }
    }
}
