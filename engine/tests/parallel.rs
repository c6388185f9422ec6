//! Experts and attention ranks, and links beyond a domain.

#![allow(clippy::unwrap_used, reason = "a test may stop at once")]

mod common;

use common::{arch, arrivals, class, csv, data, percentile, shape, variant};
use plimsoll_engine::links::{allreduce_ms, tier};
use plimsoll_engine::sim::{Replica, SimPolicy, SimRequest, simulate};
use plimsoll_engine::{DoesNotFit, Draft, EngineConfig, LinkTier, ReplicaModel, Speculation, StepLoad};
use plimsoll_fleet::{AcceleratorClass, Dtype, NodeLink, Percentile, Shape, presets};

fn deepseek(tp: u32, dp: u32, ep: u32) -> Result<ReplicaModel, DoesNotFit> {
    let acc = presets::accelerator("h200").unwrap();
    let shape = Shape { data_parallel: dp, expert_parallel: ep, ..shape("h200", tp, 1) };
    let v = variant(Dtype::Fp8, Dtype::Bf16);
    ReplicaModel::new(&arch("deepseek-v3", 8192), &v, &acc, &shape, &EngineConfig::default())
}

/// Latent attention is copied by tensor parallelism and divided by data parallelism: eight ranks hold almost eight
/// times as much, less what their own copies of the attention weights take.
#[test]
fn attention_ranks_multiply_the_cache() {
    let (tensor, data) = (deepseek(8, 1, 8).unwrap(), deepseek(1, 8, 8).unwrap());
    let per_gpu = data.memory().weights_bytes_per_gpu - tensor.memory().weights_bytes_per_gpu;
    // 15.3 GB besides routed experts and 3.7 GB of tables in 16 bits: seven eighths more on each GPU.
    assert!((16e9..17e9).contains(&per_gpu), "{per_gpu}");
    let ratio = data.memory().kv_tokens / tensor.memory().kv_tokens;
    assert!((5.0..7.5).contains(&ratio), "{ratio}");
    // Attention of a long context is read by one rank each.
    let load = |m: &ReplicaModel| {
        m.step_breakdown(&StepLoad { running: 64.0, context_tokens: 64.0 * 4000.0, ..StepLoad::default() })
    };
    // 8 times as much, less what the fullest rank has beyond its share.
    assert!((7.0..8.0).contains(&(load(&tensor).kv_ms / load(&data).kv_ms)));
    // A single request gains nothing from ranks, and loses the split of attention weights.
    assert!(data.decode_ms(1.0, 1000.0) > tensor.decode_ms(1.0, 1000.0));
    assert!(data.decode_ms(256.0, 4000.0) < tensor.decode_ms(256.0, 4000.0));
}

/// Whole experts fall unevenly on ranks: one token hits up to three of eight on one GPU where slices would share
/// evenly; a large batch hits all anyway.
#[test]
fn whole_experts_are_uneven() {
    let (sliced, whole) = (deepseek(8, 1, 1).unwrap(), deepseek(8, 1, 8).unwrap());
    assert_eq!(sliced.memory().weights_bytes_per_gpu, whole.memory().weights_bytes_per_gpu);
    let weights = |m: &ReplicaModel, running: f64| {
        m.step_breakdown(&StepLoad { running, context_tokens: running, ..StepLoad::default() }).weights_ms
    };
    assert!(weights(&whole, 1.0) > 1.3 * weights(&sliced, 1.0));
    assert!(weights(&whole, 512.0) < 1.01 * weights(&sliced, 512.0));
    let config = EngineConfig { expert_skew: 1.5, ..EngineConfig::default() };
    let acc = presets::accelerator("h200").unwrap();
    let shape = Shape { expert_parallel: 8, ..shape("h200", 8, 1) };
    let v = variant(Dtype::Fp8, Dtype::Bf16);
    let skewed = ReplicaModel::new(&arch("deepseek-v3", 8192), &v, &acc, &shape, &config).unwrap();
    let ratio = skewed.prefill_ms(4000.0, 0.0) / whole.prefill_ms(4000.0, 0.0);
    assert!((1.1..1.5).contains(&ratio), "{ratio}");
}

#[test]
fn impossible_experts_are_refused() {
    let text = |tp, dp, ep| deepseek(tp, dp, ep).unwrap_err().to_string();
    assert!(text(8, 1, 3).contains("does not divide the 8 accelerators of a stage; use 1, 2, 4, 8"));
    assert!(text(1, 512, 512).contains("256 experts do not make 512 parts"));
    let acc = presets::accelerator("h100").unwrap();
    let dense = Shape { data_parallel: 2, ..shape("h100", 1, 1) };
    let v = variant(Dtype::Bf16, Dtype::Bf16);
    let model = arch("llama-3.1-8b", 8192);
    let error = ReplicaModel::new(&model, &v, &acc, &dense, &EngineConfig::default()).unwrap_err();
    assert!(error.to_string().contains("a dense model has no experts"));
}

/// Tensor parallelism over two NVLink pairs is refused, and priced where asked.
#[test]
fn groups_beyond_a_domain_are_priced_when_asked() {
    let pairs = presets::accelerator("a100-80-pcie").unwrap();
    let sxm = presets::accelerator("a100-80").unwrap();
    let model = arch("llama-3.1-70b", 8192);
    let v = variant(Dtype::Bf16, Dtype::Bf16);
    let config = EngineConfig::default();
    let new = |acc: &AcceleratorClass, tp, widest| {
        ReplicaModel::across(&model, &v, acc, &shape(&acc.name, tp, 1), &config, widest)
    };
    let refused = ReplicaModel::new(&model, &v, &pairs, &shape("a100-80-pcie", 4, 1), &config);
    assert!(matches!(refused, Err(DoesNotFit::LinkDomain { link_domain_size: 2, .. })));
    let over_pcie = new(&pairs, 4, LinkTier::Node).unwrap();
    let inside = new(&sxm, 4, LinkTier::Domain).unwrap();
    assert!(matches!(new(&pairs, 8, LinkTier::Node), Err(DoesNotFit::LinkDomain { .. })));
    let over_network = new(&pairs, 8, LinkTier::Network).unwrap();
    // 80 layers × 2 × 50 µs of latency; prompts pay for bandwidth.
    let extra = over_pcie.decode_ms(1.0, 1000.0) - inside.decode_ms(1.0, 1000.0);
    assert!((7.5..11.0).contains(&extra), "{extra}");
    assert!(over_pcie.prefill_ms(2000.0, 0.0) > 1.4 * inside.prefill_ms(2000.0, 0.0));
    assert!(over_network.prefill_ms(2000.0, 0.0) > over_pcie.prefill_ms(2000.0, 0.0));
}

/// All-reduce over measured topologies: DGX, two NVLink pairs joined by PCIe, two nodes.
#[test]
fn collectives_as_measured() {
    let Some(dir) = data() else { return };
    let a100 = presets::accelerator("a100-80").unwrap();
    let node_link = Some(NodeLink { accelerators: 4, bytes_per_second: 32e9, alpha_us: 50.0 });
    let pairs = AcceleratorClass { link_domain_size: 2, node_link, ..a100.clone() };
    // The measured nodes have one slow card each: 6 GB/s of bus bandwidth.
    let alone = AcceleratorClass { link_domain_size: 1, nic_bytes_per_second: 8.6e9, ..a100.clone() };
    let h100 = presets::accelerator("h100").unwrap();
    let rows = csv(&dir.join("ops").join("vidur_collectives.csv"));
    for (name, network, workers, per_node, acc, expected) in [
        ("A100 TP8, one domain", "a100_dgx", "8", "8", &a100, LinkTier::Domain),
        ("A100 TP4, one domain", "a100_dgx", "4", "4", &a100, LinkTier::Domain),
        ("A100 pair", "a100_pairwise_nvlink", "2", "2", &pairs, LinkTier::Domain),
        ("A100 TP4 over two pairs", "a100_pairwise_nvlink", "4", "4", &pairs, LinkTier::Node),
        ("A100 TP2 over two nodes", "a100_dgx", "2", "1", &alone, LinkTier::Network),
        ("H100 TP8, one domain", "h100_dgx", "8", "8", &h100, LinkTier::Domain),
    ] {
        let n: u32 = workers.parse().unwrap();
        assert_eq!(tier(acc, n), expected);
        let mut errors: Vec<f64> = rows
            .iter()
            .filter(|r| r["network"] == network && r["collective"] == "all_reduce")
            .filter(|r| r["num_workers"] == workers && r["devices_per_node"] == per_node)
            .filter_map(|r| {
                let bytes: f64 = r["size_bytes"].parse().unwrap();
                // A decode step's and a prompt chunk's messages.
                (bytes >= 5e5)
                    .then(|| allreduce_ms(acc, n, bytes) / r["median_ms"].parse::<f64>().unwrap() - 1.0)
            })
            .collect();
        let bias = errors.iter().sum::<f64>() / errors.len() as f64;
        errors.iter_mut().for_each(|e| *e = e.abs());
        let (median, p90) = (percentile(&mut errors, 0.5), percentile(&mut errors, 0.9));
        println!(
            "{name}: {} sizes, error median {:.0} %, p90 {:.0} %, bias {:+.0} %",
            errors.len(),
            100.0 * median,
            100.0 * p90,
            100.0 * bias
        );
        assert!(median < 0.45, "{name}");
    }
    // Blind to topology, the pairs would be taken as six times as fast as they are.
    let blind = allreduce_ms(&a100, 4, 16e6) / allreduce_ms(&pairs, 4, 16e6);
    assert!(blind < 0.25, "{blind}");
}

/// Attention ranks that step together, each with a queue and a cache of its own, against the closed form: the fullest
/// rank and the one with a prompt set the pace.
#[test]
fn ranks_that_wait_for_each_other_agree_with_the_simulation() {
    println!("each: simulated, closed form, error; TTFT p95 | TPOT p50 | TPOT p95");
    for (tp, dp) in [(1, 8), (2, 4), (4, 2)] {
        let model = deepseek(tp, dp, 8).unwrap();
        for (input, output) in [(300.0, 600.0), (1000.0, 300.0), (4000.0, 300.0)] {
            for load in [0.1, 0.3, 0.6, 0.8] {
                let mix = [class(input, output)];
                let rps = load * model.saturation_rps(&mix);
                let count = 6000;
                let requests = arrivals(&mix, rps, 1.0, count, 11);
                let out = simulate(Replica::new(model.clone(), SimPolicy::default()), &requests);
                let out = &out[out.len() / 4..];
                let c = model.predict(&mix, rps, 1.0).classes[0].clone();
                let mut ttft: Vec<f64> = out.iter().map(|o| o.ttft_ms).collect();
                let mut tpot: Vec<f64> = out.iter().filter_map(|o| o.tpot_ms).collect();
                let pairs = [
                    (percentile(&mut ttft, 0.95), c.ttft_ms(Percentile::P95)),
                    (percentile(&mut tpot, 0.5), c.tpot_ms(Percentile::P50)),
                    (percentile(&mut tpot, 0.95), c.tpot_ms(Percentile::P95)),
                ];
                let cells: Vec<String> = pairs
                    .iter()
                    .map(|(sim, form)| format!("{sim:7.0} {form:7.0} {:+4.0}%", 100.0 * (form / sim - 1.0)))
                    .collect();
                let name = format!("TP{tp} DP{dp} {input}/{output} at {load}");
                println!("{name:28} {rps:6.1} rps | {}", cells.join(" | "));
                let [ttft95, tpot50, tpot95] = pairs.map(|(sim, form)| form / sim - 1.0);
                assert!((-0.2..0.6).contains(&ttft95), "{name}");
                assert!(tpot50.abs() < 0.12 && tpot95.abs() < 0.15, "{name}");
            }
        }
    }
}

/// A prompt on one rank holds up all of them; prompts on all ranks at once hold them up no longer.
#[test]
fn a_prompt_holds_up_all_ranks() {
    let model = deepseek(1, 8, 8).unwrap();
    let step = |prompts: u64| {
        let mut engine = Replica::new(model.clone(), SimPolicy::default());
        for id in 0..prompts {
            let request = SimRequest { id, prompt_tokens: 4000, output_tokens: 2, ..SimRequest::default() };
            engine.submit(0.0, request).unwrap();
        }
        engine.step(0.0).unwrap().duration_ms
    };
    let prompt = model.prefill_ms(4000.0, 0.0);
    assert!(step(1) > prompt, "one prompt costs all its time");
    // Eight: only the products with experts, and the weights of those not hit before, are added.
    assert!(step(8) < 3.0 * step(1), "{} and {}", step(8), step(1));
    assert!(step(9) > step(8) + 0.5 * prompt, "the ninth is somebody's second");
}

/// DeepSeek-R1 in FP8 on eight H200, aggregated: nothing was fitted to these rows, which do not say whether tokens
/// were drafted (some step faster than the weights can be read).
#[test]
fn tpot_of_deepseek() {
    let Some(dir) = data() else { return };
    let mut by_name: std::collections::BTreeMap<String, Vec<f64>> = std::collections::BTreeMap::new();
    for r in csv(&dir.join("e2e").join("aic_silicon_e2e.csv")) {
        let number = |column: &str| r[column].parse::<f64>().unwrap_or(1.0).max(1.0);
        if r["mode"] != "agg" || r["model_path"] != "deepseek-ai/DeepSeek-R1" || number("tp_size") > 8.0 {
            continue;
        }
        let (tp, dp) = (number("tp_size") as u32, number("attention_dp_size") as u32);
        if tp * dp != 8 {
            continue;
        }
        let shape = Shape {
            data_parallel: dp,
            expert_parallel: number("moe_ep_size").min(8.0) as u32,
            ..shape("h200", tp, 1)
        };
        let config = EngineConfig { max_running: 2048, ..EngineConfig::default() };
        let acc = presets::accelerator("h200").unwrap();
        let v = variant(Dtype::Fp8, Dtype::Bf16);
        let model = |config| ReplicaModel::new(&arch("deepseek-v3", 10_240), &v, &acc, &shape, config);
        let Ok(plain) = model(&config) else { continue };
        // One token of the model's own second head, accepted as often as its report says, 85 to 90 %.
        let speculation = Speculation { draft_tokens: 1, acceptance: 0.85, draft: Draft::NGram };
        let drafting = model(&EngineConfig { speculation: Some(speculation), ..config }).unwrap();
        // The batch size is that of one rank.
        let clients = number("concurrency").max(number("batch_size"));
        let (input, output) = (0.9 * number("isl"), 0.9 * number("osl"));
        let tpot = plain.closed_loop_tpot_ms(clients, input, output);
        if dp > 1 {
            println!(
                "  {shape} {clients} × {input:.0}/{output:.0}: {tpot:.1}, measured {}",
                number("silicon_tpot_ms")
            );
        }
        let drafted = drafting.closed_loop_tpot_ms(clients, input, output);
        for (how, tpot) in [("", tpot), (", were tokens drafted", drafted)] {
            let name = format!("{} {shape}{how}", r["backend"]);
            by_name.entry(name).or_default().push(tpot / number("silicon_tpot_ms") - 1.0);
        }
    }
    for (name, errors) in by_name {
        let bias = errors.iter().sum::<f64>() / errors.len() as f64;
        let mut abs: Vec<f64> = errors.iter().map(|e| e.abs()).collect();
        let median = 100.0 * percentile(&mut abs, 0.5);
        println!("{name}: {} rows, TPOT error median {median:.0} %, bias {:+.0} %", abs.len(), 100.0 * bias);
    }
}
