//! A TCP relay: stands for what a cluster has between clients and servers (a Service's address, the way to the API), and
//! can be cut.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::Error;

/// Tells where new connections may go.
pub type Targets = Arc<dyn Fn() -> Vec<SocketAddr> + Send + Sync>;

/// A relay that passes each connection to one of its targets in turn, for as long as its value lives.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    cut: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Listens on `listen` (port 0: any) and asks `targets` for each connection.
    ///
    /// # Errors
    /// If it cannot listen.
    pub async fn start(listen: SocketAddr, targets: Targets) -> Result<Self, Error> {
        let listener =
            TcpListener::bind(listen).await.map_err(|e| format!("a relay cannot listen on {listen}: {e}"))?;
        let addr = listener.local_addr()?;
        let (cut, is_cut) = watch::channel(false);
        Ok(Self { addr, cut, task: tokio::spawn(accept(listener, targets, is_cut)) })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Cuts all connections and takes no new ones, or takes them again.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // Its connections end too: their side of the channel closes.
        self.task.abort();
    }
}

async fn accept(listener: TcpListener, targets: Targets, is_cut: watch::Receiver<bool>) {
    let turn = AtomicUsize::new(0);
    loop {
        let Ok((client, _)) = listener.accept().await else { continue };
        if *is_cut.borrow() {
            continue;
        }
        let targets = targets();
        let Some(target) = targets.get(turn.fetch_add(1, Ordering::Relaxed) % targets.len().max(1)).copied()
        else {
            continue;
        };
        let mut cut = is_cut.clone();
        tokio::spawn(async move {
            tokio::select! {
                _ = pass(client, target) => {}
                () = until_cut(&mut cut) => {}
            }
        });
    }
}

async fn until_cut(cut: &mut watch::Receiver<bool>) {
    // A relay that is gone is cut too.
    let _ = cut.wait_for(|cut| *cut).await;
}

async fn pass(mut client: TcpStream, target: SocketAddr) -> std::io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn it_passes_on_until_it_is_cut() -> Result<(), Error> {
        let server = TcpListener::bind("127.0.0.1:0").await?;
        let address = server.local_addr()?;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = server.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    tokio::io::copy(&mut read, &mut write).await
                });
            }
        });
        let relay = Relay::start("127.0.0.1:0".parse()?, Arc::new(move || vec![address])).await?;
        let mut byte = [0];
        let mut held = TcpStream::connect(relay.addr()).await?;
        held.write_all(b"a").await?;
        held.read_exact(&mut byte).await?;
        assert_eq!(&byte, b"a");
        relay.set_cut(true);
        assert!(!matches!(held.read(&mut byte).await, Ok(1..)), "a connection outlived the cut");
        let mut refused = TcpStream::connect(relay.addr()).await?;
        assert!(!matches!(refused.read(&mut byte).await, Ok(1..)), "a cut relay took a connection");
        relay.set_cut(false);
        let mut again = TcpStream::connect(relay.addr()).await?;
        again.write_all(b"b").await?;
        again.read_exact(&mut byte).await?;
        assert_eq!(&byte, b"b");
        Ok(())
    }
}
