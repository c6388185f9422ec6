//! What the agent counts of the requests it took from clients, and the reports made of it.
//!
//! A request is counted once, by the agent that took it from the client, never by the one it hops to. Times are model
//! time: where engines run S times faster than real ones, real milliseconds times S. Only a report's interval is real.

use std::collections::{BTreeMap, VecDeque};

use plimsoll_fleet::telemetry::{AgentReport, LogHistogram, ReplicaTraffic, TrafficReport, Work};
use plimsoll_fleet::{PoolId, ReplicaId, Slo, SloClass};

/// Figures of one finished request.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Finished {
    /// Prompt tokens.
    pub input_tokens: u64,
    /// Answer tokens.
    pub output_tokens: u64,
    /// Prompt tokens from the prefix cache.
    pub cached_tokens: u64,
    /// Time to first token, ms (`None`: it did not stream).
    pub ttft_ms: Option<f64>,
    /// Mean time per token after the first, ms (`None`: it did not stream, or gave one token).
    pub tpot_ms: Option<f64>,
    /// End to end, ms.
    pub e2e_ms: f64,
    /// The objectives of its class that it missed.
    pub missed: Missed,
}

/// Objectives that a finished request missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Missed {
    /// Time to first token.
    pub ttft: bool,
    /// Time per output token.
    pub tpot: bool,
    /// End to end.
    pub e2e: bool,
}

impl Missed {
    /// What a finished request of `output` answer tokens missed of its class's objectives. One that did not stream showed no
    /// first token: it is held to what the objectives together allow end to end, TTFT + TPOT × (tokens − 1).
    pub fn of(
        class: Option<&SloClass>,
        ttft_ms: Option<f64>,
        tpot_ms: Option<f64>,
        e2e_ms: f64,
        output: u64,
    ) -> Self {
        let Some(class) = class else { return Self::default() };
        let slo = &class.slo;
        let allowed = allowed_unstreamed_ms(slo, ttft_ms, output);
        let streamed = ttft_ms.is_some();
        Self {
            ttft: slo.ttft.is_some_and(|o| ttft_ms.is_some_and(|t| t > o.ms)),
            tpot: slo.tpot.is_some_and(|o| streamed && tpot_ms.is_some_and(|t| t > o.ms)),
            e2e: e2e_ms > allowed || slo.e2e.is_some_and(|o| e2e_ms > o.ms),
        }
    }

    /// Whether any.
    pub fn any(self) -> bool {
        self.ttft || self.tpot || self.e2e
    }
}

/// How long an answer that did not stream may take by the objectives of its parts.
fn allowed_unstreamed_ms(slo: &Slo, ttft_ms: Option<f64>, output: u64) -> f64 {
    match (ttft_ms, slo.ttft, slo.tpot) {
        (None, Some(ttft), Some(tpot)) => ttft.ms + tpot.ms * output.saturating_sub(1) as f64,
        (None, Some(ttft), None) if output <= 1 => ttft.ms,
        _ => f64::INFINITY,
    }
}

/// How well a finished request met the objectives of its class, 0..=1: the least of allowed over taken among them, 1 at most.
pub fn attained(
    class: Option<&SloClass>,
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2e_ms: f64,
    output: u64,
) -> f64 {
    let Some(slo) = class.map(|c| &c.slo) else { return 1.0 };
    let share = |allowed_ms: f64, took_ms: f64| if took_ms > allowed_ms { allowed_ms / took_ms } else { 1.0 };
    let streamed = [
        slo.ttft.zip(ttft_ms).map_or(1.0, |(o, took)| share(o.ms, took)),
        slo.tpot.zip(tpot_ms.filter(|_| ttft_ms.is_some())).map_or(1.0, |(o, took)| share(o.ms, took)),
        slo.e2e.map_or(1.0, |o| share(o.ms, e2e_ms)),
        share(allowed_unstreamed_ms(slo, ttft_ms, output), e2e_ms),
    ];
    streamed.into_iter().fold(1.0, f64::min).max(0.0)
}

#[derive(Debug)]
struct Entry {
    report: TrafficReport,
    holding: u64,
    last_arrival_ms: Option<f64>,
    lengths: BTreeMap<(u8, u8), u64>,
}

/// Counts since the last report.
#[derive(Debug, Default)]
pub struct TrafficBook {
    entries: BTreeMap<(PoolId, String), Entry>,
    /// By replica and class.
    replicas: BTreeMap<(ReplicaId, String), ReplicaTraffic>,
    /// Requests by adapter.
    adapters: BTreeMap<String, u64>,
}

fn empty(pool: &PoolId, class: &str) -> TrafficReport {
    TrafficReport {
        pool: pool.clone(),
        slo_class: class.to_owned(),
        arrived: 0,
        finished: 0,
        attained: 0,
        refused: 0,
        failed: 0,
        holding: 0,
        lengths: Vec::new(),
        input_tokens: LogHistogram::default(),
        output_tokens: LogHistogram::default(),
        cached_tokens: 0,
        ttft_ms: LogHistogram::default(),
        tpot_us: LogHistogram::default(),
        e2e_ms: LogHistogram::default(),
        interarrival_moments: (0.0, 0.0),
    }
}

impl TrafficBook {
    fn entry(&mut self, pool: &PoolId, class: &str) -> &mut Entry {
        self.entries.entry((pool.clone(), class.to_owned())).or_insert_with(|| Entry {
            report: empty(pool, class),
            holding: 0,
            last_arrival_ms: None,
            lengths: BTreeMap::new(),
        })
    }

    /// A request arrived.
    pub fn arrived(&mut self, pool: &PoolId, class: &str, now_ms: f64) {
        let e = self.entry(pool, class);
        e.report.arrived += 1;
        if let Some(last) = e.last_arrival_ms.replace(now_ms) {
            let gap_s = (now_ms - last).max(0.0) / 1000.0;
            e.report.interarrival_moments.0 += gap_s * gap_s;
            e.report.interarrival_moments.1 += gap_s;
        }
    }

    /// A request was refused.
    pub fn refused(&mut self, pool: &PoolId, class: &str) {
        self.entry(pool, class).report.refused += 1;
    }

    /// A request failed at an engine.
    pub fn failed(&mut self, pool: &PoolId, class: &str) {
        self.entry(pool, class).report.failed += 1;
    }

    /// A request began (`true`) or ceased to wait for the pool to wake.
    pub fn holding(&mut self, pool: &PoolId, class: &str, more: bool) {
        let e = self.entry(pool, class);
        e.holding = if more { e.holding + 1 } else { e.holding.saturating_sub(1) };
    }

    /// A request finished.
    pub fn finished(&mut self, pool: &PoolId, class: &str, f: &Finished) {
        let e = self.entry(pool, class);
        let r = &mut e.report;
        r.finished += 1;
        r.attained += u64::from(!f.missed.any());
        r.cached_tokens += f.cached_tokens;
        r.input_tokens.record(f.input_tokens as f64);
        r.output_tokens.record(f.output_tokens as f64);
        if let Some(ttft) = f.ttft_ms {
            r.ttft_ms.record(ttft);
        }
        if let Some(tpot) = f.tpot_ms {
            r.tpot_us.record(tpot * 1000.0);
        }
        r.e2e_ms.record(f.e2e_ms);
        *e.lengths.entry((log2_bucket(f.input_tokens), log2_bucket(f.output_tokens))).or_default() += 1;
    }

    fn replica(&mut self, replica: &ReplicaId, class: &str) -> &mut ReplicaTraffic {
        self.replicas.entry((replica.clone(), class.to_owned())).or_insert_with(|| ReplicaTraffic {
            replica: replica.clone(),
            slo_class: class.to_owned(),
            finished: 0,
            failed: 0,
            missed_ttft: 0,
            missed_tpot: 0,
            missed_e2e: 0,
            work: Work::default(),
        })
    }

    /// One replica served a request from its first token to its last.
    pub fn replica_finished(&mut self, replica: &ReplicaId, class: &str, f: &Finished) {
        let r = self.replica(replica, class);
        r.finished += 1;
        r.missed_ttft += u64::from(f.missed.ttft);
        r.missed_tpot += u64::from(f.missed.tpot);
        r.missed_e2e += u64::from(f.missed.e2e);
        let decode_tokens = f.output_tokens.saturating_sub(1);
        if let Some(tpot_ms) = f.tpot_ms.filter(|t| t.is_finite() && *t >= 0.0) {
            r.work.add(&Work {
                input_tokens: f.input_tokens,
                cached_tokens: f.cached_tokens,
                output_tokens: f.output_tokens,
                decode_tokens,
                decode_us: (1e3 * tpot_ms * decode_tokens as f64) as u64,
            });
        }
    }

    /// A try at a replica failed, whether or not another one then served the request.
    pub fn replica_failed(&mut self, replica: &ReplicaId) {
        self.replica(replica, "").failed += 1;
    }

    /// Counts a request for an adapter that the routes know.
    pub fn adapter_asked(&mut self, served_name: &str) {
        match self.adapters.get_mut(served_name) {
            Some(count) => *count += 1,
            None => drop(self.adapters.insert(served_name.to_owned(), 1)),
        }
    }

    /// Takes how many requests asked for each adapter and starts again.
    pub fn take_adapters(&mut self) -> Vec<(String, u64)> {
        std::mem::take(&mut self.adapters).into_iter().collect()
    }

    /// Takes what each replica served and starts again.
    pub fn take_replicas(&mut self) -> Vec<ReplicaTraffic> {
        std::mem::take(&mut self.replicas).into_values().collect()
    }

    /// Takes the counts and starts again. A (pool, class) with nothing to say is left out: in a report that came, that
    /// means none.
    pub fn take(&mut self) -> Vec<TrafficReport> {
        let mut out = Vec::new();
        for ((pool, class), e) in &mut self.entries {
            let mut report = std::mem::replace(&mut e.report, empty(pool, class));
            report.holding = e.holding;
            report.lengths =
                std::mem::take(&mut e.lengths).into_iter().map(|((i, o), n)| (i, o, n)).collect();
            let silent =
                report.arrived + report.finished + report.refused + report.failed + report.holding == 0;
            if !silent {
                out.push(report);
            }
        }
        out
    }

    /// Forgets pools that are gone and hold nobody.
    pub fn retain(&mut self, known: impl Fn(&PoolId) -> bool) {
        self.entries.retain(|(pool, _), e| {
            known(pool) || e.holding > 0 || e.report.arrived + e.report.finished + e.report.failed > 0
        });
    }
}

/// `floor(log2 n)`; 0 counts as 1.
pub fn log2_bucket(n: u64) -> u8 {
    n.max(1).ilog2() as u8
}

/// Reports sent but not yet taken in by the scheduler. They are sent again, unchanged, after a reconnect; what happens
/// meanwhile stays in the [`TrafficBook`] and goes into the next report, so nothing is lost or counted twice.
#[derive(Debug, Default)]
pub struct Outbox {
    unacked: VecDeque<AgentReport>,
    sequence: u64,
}

/// Most reports under way at once.
const WINDOW: usize = 8;

impl Outbox {
    /// Whether another report may be made.
    pub fn has_room(&self) -> bool {
        self.unacked.len() < WINDOW
    }

    /// Numbers a report and keeps it until it is acknowledged.
    pub fn add(&mut self, mut report: AgentReport) -> &AgentReport {
        self.sequence += 1;
        report.sequence = self.sequence;
        self.unacked.push_back(report);
        &self.unacked[self.unacked.len() - 1]
    }

    /// The scheduler has taken in everything up to this number.
    pub fn acknowledge(&mut self, sequence: u64) {
        while self.unacked.front().is_some_and(|r| r.sequence <= sequence) {
            self.unacked.pop_front();
        }
    }

    /// What to send first on a new stream.
    pub fn unacknowledged(&self) -> impl Iterator<Item = &AgentReport> {
        self.unacked.iter()
    }
}

#[cfg(test)]
mod tests {
    use plimsoll_fleet::{Objective, Percentile};

    use super::*;

    #[test]
    fn answers_that_do_not_stream_are_held_to_the_sum() {
        let o = |ms| Some(Objective { percentile: Percentile::P95, ms });
        let class = SloClass {
            name: "default".into(),
            slo: Slo { ttft: o(100.0), tpot: o(10.0), e2e: None },
            match_headers: Default::default(),
            expected_share: 1.0,
        };
        assert!(!Missed::of(Some(&class), None, None, 190.0, 10).any());
        assert!(Missed::of(Some(&class), None, None, 191.0, 10).e2e);
        assert!(!Missed::of(Some(&class), Some(99.0), Some(9.0), 1e6, 10).any());
        let slow = Missed::of(Some(&class), Some(99.0), Some(11.0), 1.0, 10);
        assert_eq!(slow, Missed { tpot: true, ..Missed::default() });

        // How well says the same, by degrees.
        assert_eq!(attained(Some(&class), None, None, 190.0, 10), 1.0);
        assert!((attained(Some(&class), None, None, 380.0, 10) - 0.5).abs() < 1e-12);
        assert_eq!(attained(Some(&class), Some(99.0), Some(9.0), 1e6, 10), 1.0);
        assert!((attained(Some(&class), Some(125.0), Some(40.0), 1.0, 10) - 0.25).abs() < 1e-12);
        assert_eq!(attained(None, Some(1e9), None, 1e9, 1), 1.0);
    }

    #[test]
    fn counts_are_taken_once_and_holding_stays() {
        let pool: PoolId = "default/chat".parse().unwrap();
        let mut b = TrafficBook::default();
        b.arrived(&pool, "default", 0.0);
        b.arrived(&pool, "default", 2000.0);
        b.holding(&pool, "default", true);
        b.finished(
            &pool,
            "default",
            &Finished {
                input_tokens: 1000,
                output_tokens: 5,
                ttft_ms: Some(10.0),
                tpot_ms: Some(2.5),
                e2e_ms: 20.0,
                ..Finished::default()
            },
        );
        let r = b.take().remove(0);
        assert_eq!((r.arrived, r.finished, r.attained, r.holding), (2, 1, 1, 1));
        assert_eq!(r.lengths, [(9, 2, 1)]);
        assert_eq!(r.interarrival_moments, (4.0, 2.0));
        assert!((r.tpot_us.mean().unwrap() - 2500.0).abs() < 1e-9);
        let again = b.take().remove(0);
        assert_eq!((again.arrived, again.holding), (0, 1));
        b.holding(&pool, "default", false);
        assert!(b.take().is_empty());
    }

    #[test]
    fn what_each_replica_served_is_counted_apart() {
        let (a, b) = (ReplicaId::new("a").unwrap(), ReplicaId::new("b").unwrap());
        let mut book = TrafficBook::default();
        let streamed = Finished {
            input_tokens: 100,
            output_tokens: 11,
            cached_tokens: 16,
            tpot_ms: Some(2.5),
            ..Finished::default()
        };
        book.replica_finished(&a, "default", &streamed);
        let missed = Missed { tpot: true, e2e: true, ..Missed::default() };
        // It did not stream: nobody saw how fast its tokens came.
        book.replica_finished(&a, "default", &Finished { missed, tpot_ms: None, ..streamed });
        book.replica_failed(&b);
        let taken = book.take_replicas();
        assert_eq!((taken[0].finished, taken[0].missed_ttft, taken[0].missed_tpot), (2, 0, 1));
        let work = Work {
            input_tokens: 100,
            cached_tokens: 16,
            output_tokens: 11,
            decode_tokens: 10,
            decode_us: 25_000,
        };
        assert_eq!(taken[0].work, work);
        assert_eq!((&taken[1].replica, taken[1].failed, taken[1].finished), (&b, 1, 0));
        assert!(book.take_replicas().is_empty());
    }

    #[test]
    fn unacknowledged_reports_are_kept_in_order_and_bounded() {
        let report = AgentReport {
            agent: "a".into(),
            node: None,
            address: String::new(),
            sequence: 0,
            incarnation: 1,
            interval_seconds: 1.0,
            traffic: vec![],
            engines: vec![],
            replicas: vec![],
            route_version: 0,
            adapters: vec![],
        };
        let mut o = Outbox::default();
        while o.has_room() {
            o.add(report.clone());
        }
        assert_eq!(o.unacknowledged().map(|r| r.sequence).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
        o.acknowledge(6);
        o.acknowledge(3);
        assert_eq!(o.add(report).sequence, 9);
        assert_eq!(o.unacknowledged().count(), 3);
    }
}
