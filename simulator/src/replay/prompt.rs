//! Prompts of a wanted length, and shared prefixes where the trace has them.

use crate::text::{MESSAGE_OVERHEAD_TOKENS, REPLY_OVERHEAD_TOKENS, text_of};
use crate::trace::{TRACE_BLOCK_TOKENS, TraceRequest};

use super::ReplayEndpoint;

/// Multiplier that spreads consecutive numbers over all seeds (the golden ratio's, as in Fibonacci hashing).
const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;

/// The prompt's text: as many tokens as the trace says, less what the chat template adds. Each of the trace's
/// blocks has a text of its own, so that requests that share blocks share exactly that prefix; without blocks
/// each request's text is its own.
pub(super) fn prompt(
    request: &TraceRequest,
    index: u64,
    endpoint: ReplayEndpoint,
    most: Option<u32>,
    seed: u64,
) -> String {
    let template = match endpoint {
        ReplayEndpoint::Chat => MESSAGE_OVERHEAD_TOKENS + REPLY_OVERHEAD_TOKENS,
        ReplayEndpoint::Completions => 0,
    };
    let tokens = request.input_tokens.min(most.unwrap_or(u32::MAX)).saturating_sub(template).max(1);
    if request.blocks.is_empty() {
        return text_of((index + 1).wrapping_mul(SPREAD) ^ seed, tokens);
    }
    let mut text = String::with_capacity(tokens as usize * 4);
    let mut left = tokens;
    for block in &request.blocks {
        let take = left.min(TRACE_BLOCK_TOKENS);
        text.push_str(&text_of(!block.wrapping_mul(SPREAD) ^ seed, take));
        left -= take;
        if left == 0 {
            return text;
        }
    }
    // Lengths count, not blocks: the rest is this request's own.
    text.push_str(&text_of((index + 1).wrapping_mul(SPREAD) ^ seed, left));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(input_tokens: u32, blocks: &[u64]) -> TraceRequest {
        TraceRequest { at_ms: 0.0, input_tokens, output_tokens: 1, blocks: blocks.to_vec() }
    }

    fn make(r: &TraceRequest, index: u64) -> String {
        prompt(r, index, ReplayEndpoint::Completions, None, 0)
    }

    #[test]
    fn lengths_are_the_traces() {
        assert_eq!(make(&request(1000, &[]), 0).len(), 4000);
        assert_eq!(make(&request(1000, &[1, 2]), 0).len(), 4000);
        assert_eq!(make(&request(1000, &[1]), 0).len(), 4000);
        assert_eq!(prompt(&request(1000, &[]), 0, ReplayEndpoint::Chat, None, 0).len(), (1000 - 7) * 4);
        assert_eq!(prompt(&request(1000, &[]), 0, ReplayEndpoint::Completions, Some(10), 0).len(), 40);
        assert_eq!(prompt(&request(1, &[]), 0, ReplayEndpoint::Chat, None, 0).len(), 4);
    }

    #[test]
    fn blocks_share_their_prefix_and_nothing_else() {
        let (a, b) = (make(&request(1400, &[1, 2, 3]), 0), make(&request(1400, &[1, 2, 9]), 1));
        assert_eq!(a[..4096], b[..4096]);
        assert_ne!(a[4096..4196], b[4096..4196]);
        let (a, b) = (make(&request(1400, &[]), 0), make(&request(1400, &[]), 1));
        assert_ne!(a[..64], b[..64]);
    }
}
