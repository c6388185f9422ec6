//! Plays a scenario.

use std::collections::{BTreeMap, HashMap};

use plimsoll_agent::admit::lengths::LengthKey;
use plimsoll_agent::admit::{Offer, Refusal, RefusalReason, Verdict, Wish};
use plimsoll_agent::route::{Availability, MUCH_EXPECTED, Ranked, ReplicaLoad, Request};
use plimsoll_agent::telemetry::{Finished, Missed};
use plimsoll_engine::ReplicaModel;
use plimsoll_engine::sim::SimRequest;
use plimsoll_fleet::telemetry::{AgentReport, EngineReport};
use plimsoll_fleet::{NodeName, PoolId, ReplicaId, ReplicaStatus};
use plimsoll_scheduler::plan::engine_config;

use super::cluster::{Cluster, timestamp};
use super::engine::Engine;
use super::events::Queue;
use super::gateway::{BYTES_PER_TOKEN, Gateway, engine_blocks, router_blocks};
use super::outcome::{End, Outcome, Tally};
use super::{Policy, Scenario, ScenarioError};
use crate::engine_server::core::{Delivery, State};
use crate::trace::TraceRequest;

/// How often agents report, the policy ticks and the operator acts, ms.
const TICK_MS: f64 = 1000.0;
/// How long a router asks again whom it chose when all have gone or drain, as the proxy has it, ms.
const SETTLE_MS: f64 = 3000.0;
/// Time between two such tries, ms.
const AGAIN_MS: f64 = 50.0;
/// What a wait for a pool to wake allows for the delays of the control loops, as the proxy has it, ms.
const LOOP_DELAYS_MS: f64 = 10_000.0;
/// Requests that one pool may hold while it wakes.
const MOST_HELD: usize = 10_000;

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress {
    /// Virtual seconds played.
    pub seconds: f64,
    /// Virtual seconds up to the last arrival.
    pub of_seconds: f64,
    /// Requests that have ended.
    pub ended: u64,
}

#[derive(Debug)]
enum Event {
    /// The next request comes.
    Arrival,
    /// An engine's step ends, or what waits before it is due.
    Look(ReplicaId),
    /// A request is routed again.
    Again(u64),
    /// The cache of a prompt has come over.
    HandedOver(u64),
    Tick,
}

/// Where a request is.
#[derive(Debug, Clone, PartialEq)]
enum Stage {
    Routing,
    /// At the prefill half of a pair, by index of the choice's endpoint.
    Prefill(ReplicaId),
    /// Its cache is under way.
    Transfer,
    /// At the engine that answers.
    Answer(ReplicaId),
}

struct Job {
    traffic: usize,
    request: usize,
    at_ms: f64,
    counted: bool,
    prefix: Vec<u64>,
    order: Vec<Ranked>,
    tried: usize,
    /// A refusal that asking again will not change was among the answers.
    lasting: bool,
    settle_ms: f64,
    stage: Stage,
    /// Its prompt's cache came from another replica.
    handed_over: bool,
    /// Key of the replica of which much was expected to be cached.
    much_cached: Option<u64>,
    first_ms: Option<f64>,
    last_ms: f64,
    cached: u32,
    tokens: u32,
}

struct World<'a> {
    scenario: &'a Scenario,
    /// All requests in order of arrival: (traffic, request).
    arrivals: Vec<(usize, usize)>,
    next_arrival: usize,
    now_ms: f64,
    events: Queue<Event>,
    cluster: Cluster,
    engines: BTreeMap<ReplicaId, Engine>,
    gateway: Gateway,
    jobs: HashMap<u64, Job>,
    tally: Tally,
    sequence: u64,
    ended: u64,
    last_sample_ms: f64,
    route_version: u64,
    plan: u64,
}

/// Plays a scenario under a policy; `progress` is told of each virtual second. O(requests · answer tokens).
///
/// # Errors
/// [`ScenarioError`] if it cannot be played.
pub fn simulate(
    scenario: &Scenario,
    policy: &mut dyn Policy,
    mut progress: impl FnMut(Progress),
) -> Result<Outcome, ScenarioError> {
    scenario.check()?;
    let mut arrivals: Vec<(usize, usize)> = scenario
        .traffic
        .iter()
        .enumerate()
        .flat_map(|(t, traffic)| (0..traffic.trace.requests.len()).map(move |r| (t, r)))
        .collect();
    let at = |(t, r): (usize, usize)| arrival_ms(&scenario.traffic[t].trace.requests[r]);
    arrivals.sort_by(|a, b| at(*a).total_cmp(&at(*b)).then(a.cmp(b)));
    let end_ms = arrivals.last().map_or(0.0, |last| at(*last));
    let mut world = World {
        scenario,
        arrivals,
        next_arrival: 0,
        now_ms: 0.0,
        events: Queue::new(),
        cluster: Cluster::new(scenario.cluster.clone()),
        engines: BTreeMap::new(),
        gateway: Gateway::default(),
        jobs: HashMap::new(),
        tally: Tally::new(scenario.cluster.pools.iter().map(|p| p.id.clone())),
        sequence: 0,
        ended: 0,
        last_sample_ms: 0.0,
        route_version: 0,
        plan: 0,
    };
    let mut changes = Vec::new();
    world.events.add(0.0, Event::Tick);
    world.expect_arrival();
    let over_ms = end_ms + scenario.settings.grace_seconds * 1000.0;
    while let Some((at_ms, event)) = world.events.next() {
        if at_ms > over_ms || (at_ms > end_ms && world.jobs.is_empty()) {
            break;
        }
        world.now_ms = at_ms;
        match event {
            Event::Arrival => world.arrive(),
            Event::Look(replica) => world.look(&replica),
            Event::Again(id) => world.route(id),
            Event::HandedOver(id) => world.handed_over(id),
            Event::Tick => {
                world.tick(policy, end_ms);
                changes.extend(policy.take_records());
                world.events.add(at_ms + TICK_MS, Event::Tick);
                let (seconds, of_seconds) = (at_ms / 1000.0, end_ms / 1000.0);
                progress(Progress { seconds, of_seconds, ended: world.ended });
            }
        }
    }
    let left: Vec<u64> = world.jobs.keys().copied().collect();
    left.into_iter().for_each(|id| world.end(id, End::Failed));
    let seconds = (end_ms / 1000.0 - scenario.settings.warm_up_seconds).max(0.0);
    Ok(world.tally.outcome(policy.name(), seconds, changes))
}

fn arrival_ms(request: &TraceRequest) -> f64 {
    if request.at_ms.is_finite() { request.at_ms.max(0.0) } else { 0.0 }
}

impl World<'_> {
    fn trace_request(&self, job: &Job) -> &TraceRequest {
        &self.scenario.traffic[job.traffic].trace.requests[job.request]
    }

    fn expect_arrival(&mut self) {
        if let Some((t, r)) = self.arrivals.get(self.next_arrival).copied() {
            self.events.add(arrival_ms(&self.scenario.traffic[t].trace.requests[r]), Event::Arrival);
        }
    }

    /// The next request comes.
    fn arrive(&mut self) {
        let Some((traffic, request)) = self.arrivals.get(self.next_arrival).copied() else { return };
        let id = self.next_arrival as u64;
        self.next_arrival += 1;
        self.expect_arrival();
        let from = &self.scenario.traffic[traffic];
        let counted = self.now_ms >= self.scenario.settings.warm_up_seconds * 1000.0;
        let job = Job {
            traffic,
            request,
            at_ms: self.now_ms,
            counted,
            prefix: router_blocks(&from.trace.requests[request], id),
            order: Vec::new(),
            tried: 0,
            lasting: false,
            settle_ms: self.now_ms + SETTLE_MS,
            stage: Stage::Routing,
            handed_over: false,
            much_cached: None,
            first_ms: None,
            last_ms: self.now_ms,
            cached: 0,
            tokens: 0,
        };
        self.tally.arrived(&from.pool, counted);
        let class = self.class_name(&from.pool, &from.slo_class);
        self.gateway.book.arrived(&from.pool, &class, self.now_ms);
        self.jobs.insert(id, job);
        self.route(id);
    }

    /// The name under which a class is counted.
    fn class_name(&self, pool: &PoolId, class: &str) -> String {
        let pool = self.scenario.cluster.pools.iter().find(|p| &p.id == pool);
        let found = pool
            .and_then(|p| p.slo_classes.iter().find(|c| c.name == class).or_else(|| p.slo_classes.first()));
        found.map_or(plimsoll_fleet::slo::DEFAULT_SLO_CLASS, |c| c.name.as_str()).to_owned()
    }

    /// Answer tokens that a client allows, if it says.
    fn allowed(&self, request: &TraceRequest) -> Option<f64> {
        self.scenario.settings.lengths_known.then(|| f64::from(request.output_tokens.max(1)))
    }

    /// Chooses where a request goes, and asks there.
    fn route(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        let from = &self.scenario.traffic[job.traffic];
        let trace = &from.trace.requests[job.request];
        let allowed = self.allowed(trace);
        let Some(gate) = self.gateway.gates.get_mut(&from.pool) else {
            // No routes have come yet: as before the first table, it is asked again.
            self.events.add(self.now_ms + AGAIN_MS, Event::Again(id));
            return;
        };
        let (class, objective) = match gate.class(&from.slo_class) {
            Some(class) => (class.name.clone(), class.slo.ttft.map(|o| o.ms)),
            None => (String::new(), None),
        };
        let expected = gate.stats.expected_output(&class);
        let request = Request {
            class: &class,
            prefix: &job.prefix,
            prompt_tokens: f64::from(trace.input_tokens.max(1)),
            tokens_per_block: gate.tokens_per_block(),
            expected_output: allowed.map_or(expected, |most| expected.min(most)).max(1.0),
            adapter: None,
            ttft_objective_ms: objective,
        };
        let view = gate.view.clone();
        let engines = &self.engines;
        let load = |i: usize| match engines.get(&view.route.endpoints[i].replica) {
            Some(engine) => engine.load(),
            None => ReplicaLoad { availability: Availability::Unhealthy, ..ReplicaLoad::default() },
        };
        let choice = gate.choose(&request, load);
        if choice.order.is_empty() {
            let (wait_ms, full) = (view.route.wake_wait_ms, gate.held.len() >= MOST_HELD);
            let slack_ms = if wait_ms > 0.0 { LOOP_DELAYS_MS } else { 0.0 };
            if full || self.now_ms - job.at_ms >= wait_ms + slack_ms {
                self.end(id, End::Refused);
            } else if gate.held.insert(id) {
                self.gateway.book.holding(&from.pool, &class, true);
            }
            return;
        }
        self.release(id);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.much_cached = choice
                .order
                .first()
                .filter(|first| first.prefill.is_none() && first.cached_tokens >= MUCH_EXPECTED)
                .map(|first| view.keys[first.endpoint]);
            (job.order, job.tried, job.lasting) = (choice.order, 0, false);
        }
        self.attempt(id);
    }

    /// A request that waited for its pool does not any more.
    fn release(&mut self, id: u64) {
        let Some(job) = self.jobs.get(&id) else { return };
        let from = &self.scenario.traffic[job.traffic];
        let class = self.class_name(&from.pool, &from.slo_class);
        if self.gateway.gates.get_mut(&from.pool).is_some_and(|gate| gate.held.remove(&id)) {
            self.gateway.book.holding(&from.pool, &class, false);
            if let Some(job) = self.jobs.get_mut(&id) {
                job.settle_ms = self.now_ms + SETTLE_MS;
            }
        }
    }

    /// Asks the replicas of a choice, one after the other, until one takes it in.
    fn attempt(&mut self, id: u64) {
        loop {
            let Some(job) = self.jobs.get(&id) else { return };
            let Some(ranked) = job.order.get(job.tried).copied() else { break };
            let pool = &self.scenario.traffic[job.traffic].pool;
            let Some(gate) = self.gateway.gates.get(pool) else { break };
            let endpoints = &gate.view.route.endpoints;
            let first = ranked.prefill.map_or(ranked.endpoint, |p| p.endpoint);
            let replica = endpoints.get(first).map(|e| e.replica.clone());
            let Some(replica) = replica else { break };
            let stage = match ranked.prefill {
                Some(_) => Stage::Prefill(replica.clone()),
                None => Stage::Answer(replica.clone()),
            };
            if self.ask(id, &replica, stage) {
                return;
            }
        }
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.stage = Stage::Routing;
        if job.lasting || self.now_ms >= job.settle_ms {
            self.end(id, End::Refused);
        } else {
            self.events.add(self.now_ms + AGAIN_MS, Event::Again(id));
        }
    }

    /// Asks one replica's agent for admission; whether it was taken in or waits.
    fn ask(&mut self, id: u64, replica: &ReplicaId, stage: Stage) -> bool {
        let Some(job) = self.jobs.get(&id) else { return true };
        let Some(ranked) = job.order.get(job.tried).copied() else { return false };
        let from = &self.scenario.traffic[job.traffic];
        let trace = self.trace_request(job);
        let waited = self.now_ms - job.at_ms;
        let gate = self.gateway.gates.get(&from.pool);
        let class = gate.and_then(|gate| gate.class(&from.slo_class));
        let prefills = matches!(stage, Stage::Prefill(_));
        let expected = match (prefills, gate, self.allowed(trace)) {
            (true, ..) => 1.0,
            (_, Some(gate), most) => {
                let expected = gate.stats.expected_output(class.map_or("", |c| c.name.as_str()));
                most.map_or(expected, |most| expected.min(most)).max(1.0)
            }
            (_, None, most) => most.unwrap_or(1.0),
        };
        let prompt = f64::from(trace.input_tokens.max(1));
        let slo = class.map(|c| c.slo).unwrap_or_default();
        let left = |limit: Option<plimsoll_fleet::Objective>| limit.map(|o| o.ms - waited);
        let wish = Wish {
            priority: 0,
            whose: LengthKey { tenant: 0, class: job.traffic as u64 },
            weight: 1.0,
            prompt_tokens: prompt,
            cached_tokens: match (prefills, ranked.prefill, job.handed_over) {
                (true, Some(partner), _) => partner.cached_tokens,
                // All but the last token has come over.
                (false, _, true) => prompt - 1.0,
                _ => ranked.cached_tokens,
            },
            expected_output: expected,
            most_output: if prefills { Some(1.0) } else { self.allowed(trace) },
            first_token_in_ms: left(slo.ttft),
            tpot_ms: slo.tpot.map(|o| o.ms),
            finish_in_ms: left(slo.e2e),
            stage_in_ms: None,
            deadline_in_ms: None,
            streaming: true,
        };
        let Some(engine) = self.engines.get_mut(replica) else {
            self.refused(id, RefusalReason::EngineDown);
            return false;
        };
        let (offer, displaced) = engine.offer(self.now_ms, id, &wish);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.stage = stage;
        }
        let taken = match offer {
            Offer::Admitted => {
                self.start(id, replica);
                true
            }
            Offer::Queued => true,
            Offer::Refused(Refusal { reason, .. }) => {
                self.refused(id, reason);
                false
            }
        };
        if let Some(verdict) = displaced {
            self.heed(replica, verdict);
        }
        taken
    }

    /// A replica will not have it: the next of the choice, if any.
    fn refused(&mut self, id: u64, reason: RefusalReason) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.lasting |=
            matches!(reason, RefusalReason::QueueFull | RefusalReason::Deadline | RefusalReason::Displaced);
        let from = job.order.get(job.tried).map(|r| r.endpoint);
        job.tried += 1;
        job.handed_over = false;
        let to = job.order.get(job.tried).map(|r| r.endpoint);
        let traffic = &self.scenario.traffic[job.traffic];
        if let (Some(from), Some(to), Some(gate)) = (from, to, self.gateway.gates.get_mut(&traffic.pool)) {
            let class = gate.class(&traffic.slo_class).map(|c| c.name.clone()).unwrap_or_default();
            let request = Request {
                class: &class,
                prefix: &job.prefix,
                prompt_tokens: 0.0,
                tokens_per_block: 1.0,
                expected_output: 1.0,
                adapter: None,
                ttft_objective_ms: None,
            };
            let view = gate.view.clone();
            let endpoints = view.route.endpoints.len();
            if from < endpoints && to < endpoints {
                gate.memory.shift(&view, &request, from, to);
            }
        }
    }

    /// What became of a request that waited for admission.
    fn heed(&mut self, replica: &ReplicaId, (id, verdict): Verdict) {
        match verdict {
            Ok(()) => self.start(id, replica),
            Err(refusal) => {
                self.refused(id, refusal.reason);
                self.attempt(id);
            }
        }
    }

    /// An admitted request goes to the engine.
    fn start(&mut self, id: u64, replica: &ReplicaId) {
        let (Some(job), Some(engine)) = (self.jobs.get(&id), self.engines.get_mut(replica)) else { return };
        let trace = &self.scenario.traffic[job.traffic].trace.requests[job.request];
        let prefills = matches!(job.stage, Stage::Prefill(_));
        let request = SimRequest {
            id,
            prompt_blocks: engine_blocks(trace, engine.block_tokens()),
            prompt_tokens: trace.input_tokens.max(1),
            output_tokens: if prefills { 1 } else { trace.output_tokens.max(1) },
            priority: 0,
            adapter: None,
            prefill_here: !job.handed_over,
        };
        engine.start(self.now_ms, request);
        self.look_at(replica);
    }

    /// An engine's step ends.
    fn look(&mut self, replica: &ReplicaId) {
        if let Some(engine) = self.engines.get_mut(replica)
            && engine.due_ms <= self.now_ms
        {
            engine.due_ms = f64::INFINITY;
            self.look_at(replica);
        }
    }

    /// Does what is due at an engine, and sees to it that it is looked at when its next step ends.
    fn look_at(&mut self, replica: &ReplicaId) {
        let Some(engine) = self.engines.get_mut(replica) else { return };
        let mut deliveries = Vec::new();
        if let Some(at_ms) = engine.advance(self.now_ms, &mut deliveries)
            && at_ms < engine.due_ms
        {
            engine.due_ms = at_ms;
            self.events.add(at_ms, Event::Look(replica.clone()));
        }
        if deliveries.is_empty() {
            return;
        }
        for delivery in &deliveries {
            self.delivered(replica, delivery);
        }
        self.pump(replica);
    }

    /// Lets in who waits, as far as there is room.
    fn pump(&mut self, replica: &ReplicaId) {
        let Some(engine) = self.engines.get_mut(replica) else { return };
        for verdict in engine.admission.pump(self.now_ms) {
            self.heed(replica, verdict);
        }
    }

    /// A token came, or the engine refused.
    fn delivered(&mut self, replica: &ReplicaId, delivery: &Delivery) {
        let id = delivery.id;
        let (Some(job), Some(engine)) = (self.jobs.get_mut(&id), self.engines.get_mut(replica)) else {
            return;
        };
        if delivery.state == State::Refused {
            engine.admission.remove(self.now_ms, id);
            // A prompt that is too long is too long everywhere.
            self.end(id, End::Refused);
            return;
        }
        engine.admission.produced(self.now_ms, id, 1.0);
        let prefilled = matches!(job.stage, Stage::Prefill(_));
        if !prefilled {
            job.first_ms.get_or_insert(self.now_ms);
            job.last_ms = self.now_ms;
            job.tokens = delivery.tokens;
        }
        if !job.handed_over {
            job.cached = delivery.cached_tokens;
        }
        if delivery.state != State::Done {
            return;
        }
        engine.admission.finished(id, Some(f64::from(delivery.tokens)));
        engine.admission.remove(self.now_ms, id);
        if prefilled {
            job.stage = Stage::Transfer;
            let transfer_ms =
                job.order.get(job.tried).and_then(|r| r.prefill).map_or(0.0, |p| p.transfer_ms.max(0.0));
            self.events.add(self.now_ms + transfer_ms, Event::HandedOver(id));
            return;
        }
        let replica = replica.clone();
        self.finish(id, &replica);
    }

    /// The cache of a prompt has come over: now the decode half.
    fn handed_over(&mut self, id: u64) {
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.handed_over = true;
        let ranked = job.order.get(job.tried).copied();
        let pool = &self.scenario.traffic[job.traffic].pool;
        let gate = self.gateway.gates.get(pool);
        let replica = ranked
            .zip(gate)
            .and_then(|(r, gate)| gate.view.route.endpoints.get(r.endpoint))
            .map(|e| e.replica.clone());
        match replica {
            Some(replica) => {
                if !self.ask(id, &replica, Stage::Answer(replica.clone())) {
                    self.attempt(id);
                }
            }
            // The table has changed under it.
            None => self.events.add(self.now_ms + AGAIN_MS, Event::Again(id)),
        }
    }

    /// A request's last token came.
    fn finish(&mut self, id: u64, replica: &ReplicaId) {
        let Some(job) = self.jobs.get(&id) else { return };
        let from = &self.scenario.traffic[job.traffic];
        let trace = &from.trace.requests[job.request];
        let (first_ms, e2e_ms) = (job.first_ms.unwrap_or(self.now_ms), self.now_ms - job.at_ms);
        let ttft_ms = first_ms - job.at_ms;
        let tpot_ms = (job.tokens > 1).then(|| (job.last_ms - first_ms) / f64::from(job.tokens - 1));
        let class = self.class_name(&from.pool, &from.slo_class);
        let gate = self.gateway.gates.get_mut(&from.pool);
        let slo_class = gate.as_ref().and_then(|gate| gate.class(&from.slo_class));
        let output = u64::from(job.tokens);
        let finished = Finished {
            input_tokens: u64::from(trace.input_tokens.max(1)),
            output_tokens: output,
            cached_tokens: u64::from(job.cached),
            ttft_ms: Some(ttft_ms),
            tpot_ms,
            e2e_ms,
            missed: Missed::of(slo_class, Some(ttft_ms), tpot_ms, e2e_ms, output),
        };
        let computed = !job.handed_over;
        let own = Finished {
            cached_tokens: if computed { finished.cached_tokens } else { finished.input_tokens },
            ..finished
        };
        if let Some(gate) = gate {
            let bytes = (trace.input_tokens.max(1) * BYTES_PER_TOKEN) as usize;
            gate.stats.learn(&class, bytes, finished.input_tokens, output);
            if let Some(key) = job.much_cached {
                gate.memory.found(key, finished.cached_tokens);
            }
        }
        self.gateway.book.finished(&from.pool, &class, &finished);
        self.gateway.book.replica_finished(replica, &class, &own);
        self.end(id, End::Finished(finished));
    }

    /// A request is over.
    fn end(&mut self, id: u64, end: End) {
        self.release(id);
        let Some(job) = self.jobs.remove(&id) else { return };
        let from = &self.scenario.traffic[job.traffic];
        let class = self.class_name(&from.pool, &from.slo_class);
        match end {
            End::Finished(_) => {}
            End::Refused => self.gateway.book.refused(&from.pool, &class),
            End::Failed => self.gateway.book.failed(&from.pool, &class),
        }
        self.tally.ended(&from.pool, job.counted, end);
        self.ended += 1;
    }

    /// A virtual second: the cluster moves on, agents report, the policy decides, the operator acts.
    fn tick(&mut self, policy: &mut dyn Policy, end_ms: f64) {
        let (now_ms, now) = (self.now_ms, timestamp(self.now_ms));
        let counted = now_ms >= self.scenario.settings.warm_up_seconds * 1000.0 && now_ms < end_ms;
        for status in self.cluster.advance(now_ms) {
            self.serve(&status);
        }
        if let Some(snapshot) = self.cluster.news() {
            policy.snapshot(snapshot, now);
        }
        for report in self.reports() {
            policy.report(&report, now);
        }
        policy.tick(now);
        let orders = policy.orders();
        if let Some(table) = orders.routes.filter(|t| t.version != self.route_version) {
            self.route_version = table.version;
            self.gateway.follow(table, self.scenario.settings.seed);
            for endpoint in table.pools.iter().flat_map(|p| &p.endpoints) {
                if let Some(engine) = self.engines.get_mut(&endpoint.replica) {
                    engine.configure(&endpoint.coefficients);
                }
            }
        }
        let mut refused: Vec<(ReplicaId, Vec<Verdict>)> = Vec::new();
        for (id, engine) in &mut self.engines {
            let draining = orders.draining.contains(id);
            if draining != engine.admission.draining() {
                engine.admission.set_draining(draining);
                if draining {
                    refused.push((id.clone(), engine.admission.refuse_waiting(RefusalReason::Draining)));
                }
            }
        }
        if let Some(plan) = orders.plan {
            let gone = self.cluster.apply(plan, orders.drained, now_ms);
            for id in gone {
                if let Some(mut engine) = self.engines.remove(&id) {
                    refused.push((id, engine.close()));
                }
            }
            if plan.number != self.plan {
                self.plan = plan.number;
                for pool in &plan.pools {
                    self.tally.wanted(&pool.pool, pool.replicas.len() as u32, counted);
                }
            }
        }
        for (replica, verdicts) in refused {
            verdicts.into_iter().for_each(|verdict| self.heed(&replica, verdict));
        }
        let serving: Vec<ReplicaId> = self.engines.keys().cloned().collect();
        serving.iter().for_each(|replica| self.pump(replica));
        let held: Vec<u64> = self.gateway.gates.values().flat_map(|g| g.held.iter().copied()).collect();
        held.into_iter().for_each(|id| self.route(id));
        self.count(counted);
    }

    /// Adds what is held to the bill, and takes a sample now and then.
    fn count(&mut self, counted: bool) {
        let every_ms = self.scenario.settings.sample_seconds * 1000.0;
        let sampled = self.now_ms - self.last_sample_ms >= every_ms;
        for pool in &self.scenario.cluster.pools {
            let (held, ready, usd_per_hour) = self.cluster.held(&pool.id);
            if counted {
                self.tally.held(&pool.id, TICK_MS / 1000.0, held, usd_per_hour);
            }
            if sampled {
                let (at, passed) = (self.now_ms / 1000.0, (self.now_ms - self.last_sample_ms) / 1000.0);
                self.tally.sample(&pool.id, at, passed, held, ready, usd_per_hour);
            }
        }
        if sampled {
            self.last_sample_ms = self.now_ms;
        }
    }

    /// A replica has come to serve.
    fn serve(&mut self, status: &ReplicaStatus) {
        let cluster = &self.scenario.cluster;
        let pool = cluster.pools.iter().find(|p| p.id == status.pool);
        let class = cluster.accelerators.iter().find(|a| a.name == status.shape.accelerator);
        let (Some(pool), Some(class), Some(node)) = (pool, class, status.nodes.first()) else { return };
        let Some(variant) = pool.variants.iter().find(|v| v.name == status.shape.variant) else { return };
        let config = engine_config(pool, &cluster.adapters);
        match ReplicaModel::new(&pool.served_architecture(), variant, class, &status.shape, &config) {
            Ok(model) => {
                let slowdown = self.scenario.settings.slowdown;
                self.engines.insert(status.id.clone(), Engine::new(node.clone(), model, slowdown));
            }
            Err(error) => {
                tracing::warn!(replica = %status.id, %error, "a replica does not fit and never serves")
            }
        }
    }

    /// What agents report of the last second: the gateway of its clients, the others of their engines.
    fn reports(&mut self) -> Vec<AgentReport> {
        self.sequence += 1;
        let now_ms = self.now_ms;
        let mut engines: BTreeMap<NodeName, Vec<EngineReport>> =
            self.cluster.nodes().map(|n| (n.clone(), Vec::new())).collect();
        for (id, engine) in &mut self.engines {
            let report = engine.report(id, now_ms);
            engines.entry(engine.node.clone()).or_default().push(report);
        }
        let report = |agent: String, node: Option<NodeName>, engines: Vec<EngineReport>| AgentReport {
            address: format!("{agent}.agent:8080"),
            agent,
            node,
            sequence: self.sequence,
            incarnation: 1,
            interval_seconds: TICK_MS / 1000.0,
            traffic: Vec::new(),
            engines,
            replicas: Vec::new(),
            route_version: self.route_version,
            adapters: Vec::new(),
        };
        let mut gateway = report("gateway".to_owned(), None, Vec::new());
        gateway.traffic = self.gateway.book.take();
        gateway.replicas = self.gateway.book.take_replicas();
        let nodes = engines.into_iter().map(|(node, engines)| report(node.to_string(), Some(node), engines));
        std::iter::once(gateway).chain(nodes).collect()
    }
}
