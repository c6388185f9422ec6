//! Counters and histograms under vLLM's names, in the Prometheus text format.

use std::fmt::Write as _;

/// Upper bounds of vLLM's buckets, seconds.
const TTFT: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0,
    80.0, 160.0, 640.0, 2560.0,
];
const PER_TOKEN: &[f64] = &[
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
];
const REQUEST: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0,
    960.0, 1920.0, 7680.0,
];

/// A Prometheus histogram of seconds.
#[derive(Debug, Clone)]
pub(crate) struct Histogram {
    bounds: &'static [f64],
    /// One count a bound, and one for what is above all.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        Self { bounds, counts: vec![0; bounds.len() + 1], sum: 0.0 }
    }

    /// Counts one value given in milliseconds.
    pub(crate) fn record_ms(&mut self, ms: f64) {
        let seconds = ms / 1000.0;
        self.counts[self.bounds.partition_point(|b| *b < seconds)] += 1;
        self.sum += seconds;
    }

    fn write(&self, out: &mut String, name: &str, help: &str, labels: &str) {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} histogram\n");
        let mut total = 0;
        for (bound, count) in self.bounds.iter().zip(&self.counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound:?}\"}} {total}");
        }
        total += self.counts.last().copied().unwrap_or(0);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_count{{{labels}}} {total}\n{name}_sum{{{labels}}} {}", self.sum);
    }
}

/// Why a request ended, as vLLM labels it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Finished {
    /// The model ended its answer.
    Stop,
    /// `max_tokens` was reached.
    Length,
    /// The client went away.
    Abort,
}

/// What the engine has counted since it started. Times are virtual.
#[derive(Debug, Clone)]
pub(crate) struct EngineMetrics {
    pub(crate) prompt_tokens: u64,
    pub(crate) generation_tokens: u64,
    pub(crate) finished: [u64; 3],
    pub(crate) ttft: Histogram,
    pub(crate) itl: Histogram,
    pub(crate) tpot: Histogram,
    pub(crate) e2e: Histogram,
    pub(crate) queue: Histogram,
}

impl Default for EngineMetrics {
    fn default() -> Self {
        Self {
            prompt_tokens: 0,
            generation_tokens: 0,
            finished: [0; 3],
            ttft: Histogram::new(TTFT),
            itl: Histogram::new(PER_TOKEN),
            tpot: Histogram::new(PER_TOKEN),
            e2e: Histogram::new(REQUEST),
            queue: Histogram::new(REQUEST),
        }
    }
}

impl EngineMetrics {
    /// Counts one ended request.
    pub(crate) fn count_finished(&mut self, reason: Finished) {
        self.finished[reason as usize] += 1;
    }
}

/// What the replica says of itself at the moment of the scrape.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gauges {
    pub(crate) running: usize,
    pub(crate) waiting: usize,
    pub(crate) kv_usage: f64,
    pub(crate) prefix_queries_tokens: u64,
    pub(crate) prefix_hits_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) kv_blocks: u64,
    pub(crate) block_tokens: u32,
    pub(crate) memory_utilisation: f64,
    pub(crate) max_lora: usize,
    pub(crate) running_lora: Vec<String>,
    pub(crate) waiting_lora: Vec<String>,
    pub(crate) now_unix_s: f64,
}

/// A label value, escaped as the text format asks.
fn escape(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The whole page.
pub(crate) fn render(model: &str, m: &EngineMetrics, g: &Gauges) -> String {
    let labels = format!("engine=\"0\",model_name=\"{}\"", escape(model));
    let mut out = String::with_capacity(16 * 1024);
    let mut single = |name: &str, kind: &str, help: &str, value: f64| {
        let _ = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{{{labels}}} {value:?}\n");
    };
    single(
        "vllm:num_requests_running",
        "gauge",
        "Number of requests in model execution batches.",
        g.running as f64,
    );
    single(
        "vllm:num_requests_waiting",
        "gauge",
        "Number of requests waiting to be processed.",
        g.waiting as f64,
    );
    single("vllm:kv_cache_usage_perc", "gauge", "KV-cache usage. 1 means 100 percent usage.", g.kv_usage);
    single(
        "vllm:prefix_cache_queries_total",
        "counter",
        "Prefix cache queries, in terms of number of queried tokens.",
        g.prefix_queries_tokens as f64,
    );
    single(
        "vllm:prefix_cache_hits_total",
        "counter",
        "Prefix cache hits, in terms of number of cached tokens.",
        g.prefix_hits_tokens as f64,
    );
    single(
        "vllm:num_preemptions_total",
        "counter",
        "Cumulative number of preemptions.",
        g.preemptions as f64,
    );
    single(
        "vllm:prompt_tokens_total",
        "counter",
        "Number of prefill tokens processed.",
        m.prompt_tokens as f64,
    );
    single(
        "vllm:generation_tokens_total",
        "counter",
        "Number of generation tokens processed.",
        m.generation_tokens as f64,
    );

    let name = "vllm:request_success_total";
    let _ = write!(out, "# HELP {name} Count of successfully processed requests.\n# TYPE {name} counter\n");
    for (reason, count) in ["stop", "length", "abort"].iter().zip(m.finished) {
        let _ = writeln!(out, "{name}{{{labels},finished_reason=\"{reason}\"}} {:?}", count as f64);
    }
    for (name, help, histogram) in [
        ("vllm:time_to_first_token_seconds", "Histogram of time to first token in seconds.", &m.ttft),
        ("vllm:inter_token_latency_seconds", "Histogram of inter-token latency in seconds.", &m.itl),
        (
            "vllm:request_time_per_output_token_seconds",
            "Histogram of time_per_output_token_seconds per request.",
            &m.tpot,
        ),
        ("vllm:e2e_request_latency_seconds", "Histogram of e2e request latency in seconds.", &m.e2e),
        (
            "vllm:request_queue_time_seconds",
            "Histogram of time spent in WAITING phase for request.",
            &m.queue,
        ),
    ] {
        histogram.write(&mut out, name, help, &labels);
    }

    let name = "vllm:lora_requests_info";
    let _ = write!(
        out,
        "# HELP {name} Running stats on lora requests.\n# TYPE {name} gauge\n\
         {name}{{max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"}} {:?}\n",
        g.max_lora,
        escape(&g.running_lora.join(",")),
        escape(&g.waiting_lora.join(",")),
        g.now_unix_s
    );
    let name = "vllm:cache_config_info";
    let _ = write!(
        out,
        "# HELP {name} Information of the LLMEngine CacheConfig\n# TYPE {name} gauge\n\
         {name}{{block_size=\"{}\",cache_dtype=\"auto\",enable_prefix_caching=\"True\",engine=\"0\",\
         gpu_memory_utilization=\"{}\",num_gpu_blocks=\"{}\"}} 1.0\n",
        g.block_tokens, g.memory_utilisation, g.kv_blocks
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_end_in_infinity() {
        let mut h = Histogram::new(PER_TOKEN);
        for ms in [5.0, 10.0, 11.0, 1e6] {
            h.record_ms(ms);
        }
        let mut out = String::new();
        h.write(&mut out, "x", "h", "a=\"b\"");
        assert!(out.contains("x_bucket{a=\"b\",le=\"0.01\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"80.0\"} 3\n"), "{out}");
        assert!(out.contains("x_bucket{a=\"b\",le=\"+Inf\"} 4\nx_count{a=\"b\"} 4\n"), "{out}");
    }

    #[test]
    fn label_values_are_escaped() {
        let page = render("a\"b\\c", &EngineMetrics::default(), &Gauges::default());
        assert!(page.contains("model_name=\"a\\\"b\\\\c\""), "{page}");
    }
}
