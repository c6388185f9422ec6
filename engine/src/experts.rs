//! Mixture of experts: which weights a batch reads, and how evenly its tokens fall on expert-parallel ranks.
//!
//! Of `E` experts of which a token uses `k`, `t` tokens hit `E·(1 − (1 − k/E)^t)` in expectation. With whole experts on
//! `e` ranks, the fullest rank gets more than its share: for random routing, of a mean `m` about `m + √(2 m ln e)` (the
//! largest of `e` binomial loads; Raab and Steger, "Balls into Bins", 1998). This applies to the experts read and to the
//! tokens computed alike. Skewed routing adds to it: [`crate::EngineConfig::expert_skew`].

use plimsoll_fleet::{ModelArchitecture, Shape};

/// Loads of the fullest expert-parallel rank.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ExpertLoad {
    /// Chance that a token leaves a given expert unused.
    miss: f64,
    /// `√(2 e ln e / E)`: excess of experts hit, for a unit root of the share hit.
    hit_excess: f64,
    /// `√(2 e ln e / k)`: excess of tokens computed, for a unit root of the tokens.
    token_excess: f64,
    /// The most that one rank can have over its share.
    most: f64,
    /// Tokens of the fullest rank over the mean from skewed routing.
    skew: f64,
}

/// Share of the experts on the fullest rank, times the ranks: above 1 where they do not divide.
pub(crate) fn fullest_rank(experts: u32, expert_parallel: u32) -> f64 {
    let ranks = expert_parallel.max(1);
    f64::from(experts.div_ceil(ranks)) * f64::from(ranks) / f64::from(experts.max(1))
}

impl ExpertLoad {
    pub(crate) fn new(arch: &ModelArchitecture, shape: &Shape, skew: f64) -> Self {
        let Some(moe) = &arch.moe else {
            return Self { miss: 1.0, hit_excess: 0.0, token_excess: 0.0, most: 1.0, skew: 1.0 };
        };
        let ranks = f64::from(shape.expert_parallel.max(1));
        let spread = 2.0 * ranks * ranks.ln();
        let (experts, used) = (f64::from(moe.experts), f64::from(moe.experts_per_token));
        Self {
            miss: (1.0 - used / experts).clamp(0.0, 1.0),
            hit_excess: (spread / experts).sqrt(),
            token_excess: (spread / used).sqrt(),
            most: ranks,
            skew: if ranks > 1.0 { skew } else { 1.0 },
        }
    }

    /// Share of a rank's experts that `tokens` tokens read, on the rank that reads most.
    pub(crate) fn read(&self, tokens: f64) -> f64 {
        let hit = 1.0 - self.miss.powf(tokens.max(1.0));
        if self.hit_excess > 0.0 {
            (hit + self.hit_excess * hit.sqrt()).min(1.0).min(self.most * hit)
        } else {
            hit
        }
    }

    /// Tokens whose evenly divided work equals that of the fullest rank.
    pub(crate) fn computed(&self, tokens: f64) -> f64 {
        if self.token_excess > 0.0 {
            let fullest = tokens + self.token_excess * tokens.sqrt();
            (fullest * self.skew).min(tokens * self.most)
        } else {
            tokens
        }
    }
}
