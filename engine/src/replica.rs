//! One replica: a model in a shape on an accelerator, with everything precomputed.

use plimsoll_fleet::{
    AcceleratorClass, ModelArchitecture, RequestClass, Role, Shape, Slo, StepCoefficients, shape::Variant,
};

use crate::kv::KvLayout;
use crate::power::Power;
use crate::predict::{LoadPrediction, predict};
use crate::ranks::PromptCost;
use crate::step::StepTimes;
use crate::{
    DoesNotFit, EngineConfig, LinkTier, LoadLine, MemoryFit, Scheduling, StepBreakdown, StepLoad, load_line,
    memory,
};

/// The performance model of one replica. Cheap to clone, pure, and shared freely between threads.
///
/// ```
/// use plimsoll_engine::{EngineConfig, ReplicaModel};
/// use plimsoll_fleet::{Dtype, Role, Shape, presets, shape::Variant};
///
/// let mut model = presets::model("llama-3.1-70b").ok_or("preset")?;
/// model.max_context_tokens = 32_768;
/// let h100 = presets::accelerator("h100").ok_or("preset")?;
/// let fp8 = Variant { name: "fp8".into(), weights: Dtype::Fp8, kv: Dtype::Bf16, quality: 1.0, source: None };
/// let shape = Shape {
///     variant: "fp8".into(), accelerator: "h100".into(), tensor_parallel: 2, pipeline_parallel: 1,
///     data_parallel: 1, expert_parallel: 1, role: Role::Mixed,
/// };
/// let replica = ReplicaModel::new(&model, &fp8, &h100, &shape, &EngineConfig::default())?;
/// assert!(replica.memory().kv_tokens > 200_000.0);
/// // 36 GB of weights on each GPU at 3.35 TB/s, and 80 layers' overheads.
/// assert!((14.0..20.0).contains(&replica.decode_ms(1.0, 1000.0)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct ReplicaModel {
    pub(crate) times: StepTimes,
    pub(crate) memory: MemoryFit,
    pub(crate) kv: KvLayout,
    pub(crate) role: Role,
    pub(crate) power: Power,
    pub(crate) config: EngineConfig,
    pub(crate) max_context_tokens: u32,
    pub(crate) relative_error: f64,
    api_overhead_ms: f64,
}

impl ReplicaModel {
    /// Models a replica. The longest request is `arch.max_context_tokens`: set it to what the pool serves, which is
    /// often far below what the model could do.
    ///
    /// A replica of role [`Role::Prefill`] computes prompts and one token each; one of role [`Role::Decode`] gets
    /// prompts' keys and values and generates the rest.
    ///
    /// # Errors
    /// [`DoesNotFit`] if the weights or one request of the longest context exceed the memory, the parallelism does
    /// not divide the model or exceeds the link domain, or a figure is out of range.
    pub fn new(
        arch: &ModelArchitecture,
        variant: &Variant,
        acc: &AcceleratorClass,
        shape: &Shape,
        config: &EngineConfig,
    ) -> Result<Self, DoesNotFit> {
        Self::across(arch, variant, acc, shape, config, LinkTier::Domain)
    }

    /// As [`ReplicaModel::new`], with tensor-parallel groups that may reach beyond a link domain, up to `widest`:
    /// over the node's link where the class says what it is ([`AcceleratorClass::node_link`]), or over the network.
    /// All-reduces are then as slow as the weakest link in their ring.
    ///
    /// # Errors
    /// As [`ReplicaModel::new`].
    pub fn across(
        arch: &ModelArchitecture,
        variant: &Variant,
        acc: &AcceleratorClass,
        shape: &Shape,
        config: &EngineConfig,
        widest: LinkTier,
    ) -> Result<Self, DoesNotFit> {
        let (memory, kv) = memory::fit(arch, variant, acc, shape, config, widest)?;
        Ok(Self {
            times: StepTimes::new(arch, variant, acc, shape, &kv, config),
            memory,
            kv,
            role: shape.role,
            power: Power::new(acc, shape),
            config: *config,
            max_context_tokens: arch.max_context_tokens,
            relative_error: acc.calibration.relative_error,
            api_overhead_ms: acc.calibration.api_overhead_ms,
        })
    }

    /// How memory is used.
    pub fn memory(&self) -> &MemoryFit {
        &self.memory
    }

    /// Engine settings.
    pub fn config(&self) -> &EngineConfig {
        &self.config
    }

    /// Longest request (prompt and answer), tokens.
    pub fn max_context_tokens(&self) -> u32 {
        self.max_context_tokens
    }

    /// API server time before a request reaches the engine's queue, milliseconds.
    pub fn api_overhead_ms(&self) -> f64 {
        self.api_overhead_ms
    }

    /// Relative error (p90) that predictions with this calibration were seen to have.
    pub fn relative_error(&self) -> f64 {
        self.relative_error
    }

    /// Most requests that run at once: [`EngineConfig::max_running`] on each attention rank.
    pub fn max_running(&self) -> u32 {
        self.config.max_running.saturating_mul(self.times.ranks.count as u32)
    }

    /// Whether prompts have steps of their own beside decoding.
    pub(crate) fn prompts_first(&self) -> bool {
        self.config.scheduling == Scheduling::PrefillFirst && self.role == Role::Mixed
    }

    /// What prompts cost others where `prompts` begin in a decode step on average, in bursts of `burst`: a share of
    /// their rank's time, and, prompts first, of steps of their own. Of such steps there are `1 − e^(−ν/b)` for each of
    /// decoding, those in which some prompt came. `decoding` is the share of time that decode steps take.
    pub(crate) fn prompt_cost(&self, prompts: f64, burst: f64, decoding: f64) -> PromptCost {
        let steps = match self.prompts_first() {
            false => 0.0,
            true if prompts <= 1e-12 => 1.0 / burst,
            true => -(-prompts / burst).exp_m1() / prompts,
        };
        let (rank, variance) = self.times.ranks.share(self.times.ranks.gathered(prompts, decoding));
        PromptCost { rank, variance, steps }
    }

    pub(crate) fn batched_tokens(&self) -> f64 {
        f64::from(self.config.max_batched_tokens)
    }

    /// The phases it serves.
    pub fn role(&self) -> Role {
        self.role
    }

    /// KV cache that a request of this context takes, in tokens that every attention layer keeps (the unit of
    /// [`MemoryFit::kv_tokens`]): fewer than the context where layers have a window, more where they keep a state.
    pub fn footprint_tokens(&self, context_tokens: f64) -> f64 {
        self.kv.footprint(context_tokens)
    }

    /// Tokens that one step yields for a running request in expectation: 1 without speculative decoding.
    pub fn tokens_per_step(&self) -> f64 {
        self.times.yielded
    }

    /// Arithmetic and communication of a prompt of `new_tokens` after `cached_tokens` found in the cache,
    /// milliseconds: what it adds to the steps that carry it, however it is cut into chunks.
    pub fn prefill_ms(&self, new_tokens: f64, cached_tokens: f64) -> f64 {
        self.times.prompt(new_tokens, cached_tokens)
    }

    /// A step of `batch` requests that decode, `mean_context` tokens long, milliseconds. Each gets one token
    /// ([`ReplicaModel::tokens_per_step`] with speculative decoding); LoRA adapters are as many as expected.
    pub fn decode_ms(&self, batch: f64, mean_context: f64) -> f64 {
        self.times.decode(batch, batch * mean_context)
    }

    /// A mixed step, milliseconds: decode and prefill share one weight read.
    pub fn step_ms(&self, step: &StepLoad) -> f64 {
        self.times.breakdown(step).total_ms()
    }

    /// Where the time of a step goes.
    pub fn step_breakdown(&self, step: &StepLoad) -> StepBreakdown {
        self.times.breakdown(step)
    }

    /// Mean TPOT with `concurrency` requests of varied lengths kept in flight, milliseconds: `D(B, s) + (B −
    /// 1)/osl · w(isl)`, where B of them decode: the share of a request's life after its first token.
    pub fn closed_loop_tpot_ms(&self, concurrency: f64, input_tokens: f64, output_tokens: f64) -> f64 {
        self.closed_loop(concurrency, input_tokens, output_tokens, 1.0)
    }

    /// The same with requests of equal lengths. Prompts first, they end and begin together: their prompts are
    /// computed while nobody decodes, and delay those that have their first token already, half of them on average.
    pub fn closed_loop_tpot_equal_ms(&self, concurrency: f64, input_tokens: f64, output_tokens: f64) -> f64 {
        let share = if self.config.scheduling == Scheduling::PrefillFirst { 0.5 } else { 1.0 };
        self.closed_loop(concurrency, input_tokens, output_tokens, share)
    }

    fn closed_loop(&self, concurrency: f64, input_tokens: f64, output_tokens: f64, share: f64) -> f64 {
        /// Rounds of the fixed point in B.
        const ROUNDS: usize = 4;
        let context = input_tokens + 0.5 * output_tokens;
        let fits = self.memory.kv_tokens / self.kv.footprint(context);
        let batch = concurrency.min(f64::from(self.max_running())).min(fits);
        let (rank_work, all_work) = self.times.work(input_tokens, 0.0);
        // Of requests under way together the contexts differ by their answers' lengths so far.
        let deviation = output_tokens / 12f64.sqrt();
        // While a client waits for its first token it neither decodes nor, once it has it, is delayed by its own
        // prompt.
        let mut decoding = batch;
        let mut tpot: f64 = 0.0;
        for _ in 0..ROUNDS {
            let step = self.times.decode_of(decoding, decoding * context, deviation) / self.times.yielded;
            let cost =
                self.prompt_cost(decoding * self.times.yielded / output_tokens, 1.0, step / tpot.max(step));
            // Steps that prompts have to themselves are left out: clients that began together stay so, and their prompts
            // share steps (as simulated and as measured with SGLang).
            let work = share * (cost.rank * rank_work + all_work);
            tpot = step + (decoding - 1.0).max(0.0) / output_tokens * work;
            let ttft = self.api_overhead_ms + self.prefill_ms(input_tokens, 0.0) + 1.5 * step;
            let decode = output_tokens * tpot;
            decoding = 1.0 + (batch - 1.0).max(0.0) * decode / (decode + ttft);
        }
        tpot
    }

    /// Step time made linear around requests of `typical_context` tokens, for use on the request path.
    pub fn coefficients(&self, typical_context: f64) -> StepCoefficients {
        let typical = if typical_context.is_finite() { typical_context.max(1.0) } else { 1024.0 };
        // The secant between one request and a well-filled batch; the curve in between (roofline knee, experts
        // hit) lies close to it.
        let fits = self.memory.kv_tokens / self.kv.footprint(typical);
        let full = fits.min(f64::from(self.max_running())).max(2.0);
        let (one, many) = (self.times.decode(1.0, 0.0), self.times.decode(full, 0.0));
        let per_request = (many - one) / (full - 1.0);
        let prompt = typical.min(self.batched_tokens());
        let (of_rank, of_all) = self.times.work(prompt, 0.0);
        // Requests are served at this many tokens a step.
        let yielded = self.times.yielded;
        StepCoefficients {
            base_ms: (one - per_request) / yielded,
            per_request_ms: per_request / yielded,
            per_context_token_ms: self.times.context_token(typical) / yielded,
            // Attention ranks compute prompts side by side.
            per_prefill_token_ms: (of_rank / self.times.ranks.count + of_all) / prompt,
            api_overhead_ms: self.api_overhead_ms,
            // In tokens of such contexts, whatever their layers keep of them.
            kv_tokens: fits * typical,
            max_running: self.max_running(),
            max_batched_tokens: self.config.max_batched_tokens,
        }
    }

    /// Latencies and utilisation when `mix` arrives at `total_rps` requests per second (the classes' own rates give
    /// its proportions). `arrival_scv` is the squared coefficient of variation of inter-arrival times; 1 is Poisson,
    /// and smaller values are taken as 1.
    pub fn predict(&self, mix: &[RequestClass], total_rps: f64, arrival_scv: f64) -> LoadPrediction {
        predict(self, mix, total_rps, arrival_scv)
    }

    /// The highest rate of `mix` on this one replica at which every objective holds.
    ///
    /// `slos` gives the objectives of an SLO class by name. An objective's percentile is over all requests of its
    /// SLO class in the mix: a few long prompts may miss it if enough others hold it. Latencies are taken
    /// `1 + margin` times as long as predicted, and the rate stays below [`crate::MAX_UTILISATION`]`/(1 + margin)`
    /// of saturation.
    pub fn load_line(
        &self,
        mix: &[RequestClass],
        slos: &dyn Fn(&str) -> Slo,
        arrival_scv: f64,
        margin: f64,
    ) -> LoadLine {
        load_line::load_line(self, mix, slos, arrival_scv, margin)
    }

    /// The load line of one class alone.
    pub fn class_rate(&self, class: &RequestClass, slo: &Slo, arrival_scv: f64, margin: f64) -> LoadLine {
        let slo = *slo;
        self.load_line(std::slice::from_ref(class), &|_| slo, arrival_scv, margin)
    }

    /// The highest rate of `mix` at which the queue stays finite, whatever the latency, requests per second.
    pub fn saturation_rps(&self, mix: &[RequestClass]) -> f64 {
        if mix.is_empty() { 0.0 } else { 1e3 * crate::mix::Mix::new(self, mix).saturation_per_ms() }
    }
}
