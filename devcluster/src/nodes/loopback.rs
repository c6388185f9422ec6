//! Loopback addresses for simulated pods.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU32, Ordering};

/// First address of the range, 127.64.0.0/10; 127.0.0.0/10, where people's own servers are, stays free.
const BASE: u32 = 0x7f40_0000;
/// Addresses in the range but for its first and its last two.
const COUNT: u32 = 0x3f_fffd;
/// Addresses tried for one pod before giving up: others on the machine may hold some.
const TRIES: u32 = 4096;

/// Loopback addresses for pods, from 127.64.0.0/10 in turn; they repeat after four million. Where the system lets processes
/// bind to all of 127.0.0.0/8 (Linux does), a pod bound to its own one keeps its container ports, and clients find it at its
/// pod IP as on a real cluster; elsewhere fall back to 127.0.0.1 and [`RunningPod::with_port`](super::RunningPod::with_port).
#[derive(Debug)]
pub struct LoopbackIps {
    next: AtomicU32,
}

impl Default for LoopbackIps {
    /// Starts at a place of this process's own, so that several on one machine seldom try the same address.
    fn default() -> Self {
        Self::starting_at(std::process::id().wrapping_mul(251))
    }
}

impl LoopbackIps {
    /// Starts at the `n`th address of the range, modulo its size.
    pub fn starting_at(n: u32) -> Self {
        Self { next: AtomicU32::new(n % COUNT) }
    }

    /// The next address.
    pub fn allocate(&self) -> Ipv4Addr {
        let n = self.next.fetch_add(1, Ordering::Relaxed) % COUNT;
        Ipv4Addr::from(BASE + 1 + n)
    }

    /// Calls `start` with one address after another until it succeeds, or fails for another reason than that the address
    /// is `taken`; then with which address it did.
    ///
    /// # Errors
    /// What `start` last failed with: another reason, or 4096 addresses in a row were taken.
    pub async fn start_on_free<T, E, F>(
        &self,
        mut start: impl FnMut(Ipv4Addr) -> F,
        taken: impl Fn(&E) -> bool,
    ) -> Result<(Ipv4Addr, T), E>
    where
        F: Future<Output = Result<T, E>>,
    {
        let mut tries = 1;
        loop {
            let ip = self.allocate();
            match start(ip).await {
                Ok(started) => return Ok((ip, started)),
                Err(error) if tries < TRIES && taken(&error) => tries += 1,
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_are_loopback_and_differ() {
        let ips = LoopbackIps::default();
        let some: BTreeSet<Ipv4Addr> = (0..600).map(|_| ips.allocate()).collect();
        assert_eq!(some.len(), 600);
        assert!(some.iter().all(Ipv4Addr::is_loopback));
    }

    #[test]
    fn the_range_has_an_end_and_starts_over() {
        let ips = LoopbackIps::starting_at(COUNT - 1);
        assert_eq!(ips.allocate(), Ipv4Addr::new(127, 127, 255, 253));
        assert_eq!(ips.allocate(), Ipv4Addr::new(127, 64, 0, 1));
        let ips = LoopbackIps { next: AtomicU32::new(u32::MAX) };
        assert!(ips.allocate().is_loopback() && ips.allocate().is_loopback());
    }

    #[tokio::test]
    async fn taken_addresses_are_passed_over_and_other_failures_are_not() {
        let ips = LoopbackIps::starting_at(0);
        let start = |ip: Ipv4Addr| async move { if ip.octets()[3] < 3 { Err("taken") } else { Ok(ip) } };
        let (ip, started) = ips.start_on_free(start, |e| *e == "taken").await.unwrap();
        assert_eq!((ip, started), (Ipv4Addr::new(127, 64, 0, 3), ip));
        let mut calls = 0;
        let broken = |_| {
            calls += 1;
            async { Err::<(), _>("broken") }
        };
        assert_eq!(ips.start_on_free(broken, |e| *e == "taken").await, Err("broken"));
        assert_eq!(calls, 1);
        let all = ips.start_on_free(|_| async { Err::<(), _>("taken") }, |_| true).await;
        assert_eq!(all, Err("taken"), "it gives up in the end");
    }
}
