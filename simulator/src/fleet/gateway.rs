//! The router: the product's choice with its memory, and what it counts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use plimsoll_agent::PoolStats;
use plimsoll_agent::route::{self, BLOCK_BYTES, Choice, Memory, PoolView, ReplicaLoad, Request};
use plimsoll_agent::telemetry::TrafficBook;
use plimsoll_fleet::{PoolId, RouteTable, SloClass};

use crate::trace::{TRACE_BLOCK_TOKENS, TraceRequest};

/// Bytes of text for each prompt token.
pub(super) const BYTES_PER_TOKEN: u32 = 4;

/// One pool at the router.
#[derive(Debug)]
pub(super) struct Gate {
    pub(super) view: Arc<PoolView>,
    pub(super) memory: Memory,
    pub(super) stats: PoolStats,
    /// Requests that wait for a replica.
    pub(super) held: BTreeSet<u64>,
}

impl Gate {
    /// The SLO class of this name, else the default one.
    pub(super) fn class(&self, name: &str) -> Option<&SloClass> {
        let classes = &self.view.route.slo_classes;
        classes.iter().find(|c| c.name == name).or_else(|| classes.first())
    }

    /// Chooses and takes note of it, as the proxy does.
    pub(super) fn choose(&mut self, request: &Request<'_>, load: impl Fn(usize) -> ReplicaLoad) -> Choice {
        let choice = route::choose(&self.view, request, load, &mut self.memory);
        if let Some(first) = choice.order.first() {
            self.memory.record(&self.view, request, first.endpoint);
            if let Some(partner) = first.prefill {
                self.memory.remember(&self.view, request, partner.endpoint);
            }
        }
        choice
    }

    /// Prompt tokens that one hashed block stands for.
    pub(super) fn tokens_per_block(&self) -> f64 {
        BLOCK_BYTES as f64 / self.stats.bytes_per_token()
    }
}

/// The router.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    pub(super) gates: BTreeMap<PoolId, Gate>,
    pub(super) book: TrafficBook,
}

impl Gateway {
    /// Routes by a new table.
    pub(super) fn follow(&mut self, table: &RouteTable, seed: u64) {
        self.gates.retain(|id, gate| !gate.held.is_empty() || table.pools.iter().any(|p| &p.pool == id));
        for (i, pool) in table.pools.iter().enumerate() {
            let view = Arc::new(PoolView::new(pool.clone(), table.version));
            match self.gates.get_mut(&pool.pool) {
                Some(gate) => {
                    gate.memory.retain(&view);
                    gate.view = view;
                }
                None => {
                    let memory = Memory::new(seed.wrapping_add(i as u64));
                    let (stats, held) = (PoolStats::default(), BTreeSet::new());
                    self.gates.insert(pool.pool.clone(), Gate { view, memory, stats, held });
                }
            }
        }
    }
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = a.rotate_left(5) ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    x ^ (x >> 32)
}

/// Chained hashes of a prompt in blocks of `block_tokens`: over what the trace says that prompts share, then, if `own` is given,
/// of text that nobody else sends.
fn hashes(request: &TraceRequest, block_tokens: u32, own: Option<u64>) -> Vec<u64> {
    let known = u64::from(TRACE_BLOCK_TOKENS) * request.blocks.len() as u64;
    let whole = request.input_tokens / block_tokens.max(1);
    let mut out = Vec::with_capacity(whole as usize);
    let mut chain = 0x5EED;
    for i in 0..whole {
        let end = u64::from(i + 1) * u64::from(block_tokens);
        if end <= known {
            let first = u64::from(i) * u64::from(block_tokens) / u64::from(TRACE_BLOCK_TOKENS);
            let last = (end - 1) / u64::from(TRACE_BLOCK_TOKENS);
            for block in first..=last {
                chain = mix(chain, request.blocks[block as usize]);
            }
        } else {
            let Some(own) = own else { break };
            chain = mix(chain, own);
        }
        chain = mix(chain, u64::from(i));
        out.push(chain);
    }
    out
}

/// What the router hashes of a prompt: 256 bytes a block.
pub(super) fn router_blocks(request: &TraceRequest, id: u64) -> Vec<u64> {
    hashes(request, BLOCK_BYTES as u32 / BYTES_PER_TOKEN, Some(mix(id, 0xF1EE7)))
}

/// What an engine finds again of a prompt, in blocks of its own size.
pub(super) fn engine_blocks(request: &TraceRequest, block_tokens: u32) -> Vec<u64> {
    hashes(request, block_tokens, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input_tokens: u32, blocks: &[u64]) -> TraceRequest {
        TraceRequest { at_ms: 0.0, input_tokens, output_tokens: 1, blocks: blocks.to_vec() }
    }

    #[test]
    fn prompts_share_what_the_trace_says_and_nothing_else() {
        let (a, b) = (request(2000, &[7, 8, 9]), request(2000, &[7, 8, 5]));
        let (x, y) = (engine_blocks(&a, 16), engine_blocks(&b, 16));
        assert_eq!(x.len(), 3 * 512 / 16);
        assert_eq!(x[..64], y[..64]);
        assert!(x[64..].iter().zip(&y[64..]).all(|(x, y)| x != y));
        let (x, y) = (router_blocks(&a, 1), router_blocks(&b, 2));
        assert_eq!(x.len(), 2000 / 64);
        assert_eq!(x[..16], y[..16]);
        assert!(x[16..].iter().zip(&y[16..]).all(|(x, y)| x != y));
        let unknown = request(2000, &[]);
        assert!(engine_blocks(&unknown, 16).is_empty());
        assert_ne!(router_blocks(&unknown, 1), router_blocks(&unknown, 2));
    }
}
