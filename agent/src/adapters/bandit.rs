//! What is known of one adapter's quality: a ridge regression of rewards on contexts, with its uncertainty (LinUCB's disjoint model,
//! arXiv 1003.0146, algorithm 1).

use nalgebra::{Cholesky, DMatrix, DVector, Dyn};

/// Rewards seen of one adapter.
#[derive(Debug, Clone)]
pub struct Arm {
    /// λI + Σ x·xᵀ, as its Cholesky factor.
    design: Cholesky<f64, Dyn>,
    /// Σ reward·x.
    response: DVector<f64>,
    /// design⁻¹·response.
    estimate: DVector<f64>,
    ridge: f64,
    /// Rewards seen, as far as they are still trusted.
    seen: f64,
}

impl Arm {
    /// Nothing seen yet. `dimension` is the number of figures of a context, `ridge` λ > 0; `None` where either makes no sense.
    pub fn new(dimension: usize, ridge: f64) -> Option<Self> {
        if dimension == 0 || !(ridge.is_finite() && ridge > 0.0) {
            return None;
        }
        Some(Self {
            design: Cholesky::new(DMatrix::identity(dimension, dimension) * ridge)?,
            response: DVector::zeros(dimension),
            estimate: DVector::zeros(dimension),
            ridge,
            seen: 0.0,
        })
    }

    /// How many rewards it knows, as far as they are still trusted.
    pub fn seen(&self) -> f64 {
        self.seen
    }

    /// The expected reward of a context.
    pub fn mean(&self, context: &DVector<f64>) -> f64 {
        self.estimate.dot(context)
    }

    /// How far off the expectation may be: √(xᵀ·design⁻¹·x), in standard deviations of a reward.
    pub fn deviation(&self, context: &DVector<f64>) -> f64 {
        // With design = L·Lᵀ it is the length of L⁻¹·x.
        let mut half = context.clone();
        if self.design.l_dirty().solve_lower_triangular_mut(&mut half) { half.norm() } else { 0.0 }
    }

    /// Learns a reward.
    pub fn learn(&mut self, context: &DVector<f64>, reward: f64) {
        self.design.rank_one_update(context, 1.0);
        self.response.axpy(reward, context, 1.0);
        self.estimate = self.design.solve(&self.response);
        self.seen += 1.0;
    }

    /// Trusts what was seen so far `keep` times as much (0..=1), so that what changes is learnt anew.
    pub fn fade(&mut self, keep: f64) {
        let size = self.response.len();
        let prior = DMatrix::identity(size, size) * self.ridge;
        let l = self.design.l();
        let seen = &l * l.transpose() - &prior;
        if let Some(design) = Cholesky::new(seen * keep + prior) {
            self.design = design;
            self.response *= keep;
            self.seen *= keep;
            self.estimate = self.design.solve(&self.response);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn vector(figures: &[f64]) -> DVector<f64> {
        DVector::from_column_slice(figures)
    }

    /// Two figures, by hand: design = [[3, 1], [1, 3]], response = (3, 1), so that θ = (1, 0).
    #[test]
    fn it_is_the_ridge_regression() {
        let mut arm = Arm::new(2, 1.0).unwrap();
        arm.learn(&vector(&[1.0, 1.0]), 1.0);
        arm.learn(&vector(&[1.0, 0.0]), 2.0);
        arm.learn(&vector(&[0.0, 1.0]), 0.0);
        assert!((arm.mean(&vector(&[1.0, 0.0])) - 1.0).abs() < 1e-12);
        assert!(arm.mean(&vector(&[0.0, 1.0])).abs() < 1e-12);
        // design⁻¹ = [[3, −1], [−1, 3]] / 8.
        assert!((arm.deviation(&vector(&[1.0, 0.0])) - (3.0f64 / 8.0).sqrt()).abs() < 1e-12);
        assert!((arm.deviation(&vector(&[1.0, 1.0])) - (4.0f64 / 8.0).sqrt()).abs() < 1e-12);
    }

    #[test]
    fn what_fades_is_less_sure_and_drawn_to_nothing() {
        let (mut arm, x) = (Arm::new(1, 1.0).unwrap(), vector(&[1.0]));
        (0..9).for_each(|_| arm.learn(&x, 1.0));
        assert!((arm.mean(&x) - 0.9).abs() < 1e-12);
        let before = arm.deviation(&x);
        arm.fade(0.5);
        // 4.5 of 5.5.
        assert!((arm.mean(&x) - 4.5 / 5.5).abs() < 1e-12 && arm.seen() == 4.5);
        assert!(arm.deviation(&x) > before);
        arm.fade(0.0);
        assert!(arm.mean(&x).abs() < 1e-12 && (arm.deviation(&x) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn settings_without_sense_make_no_arm() {
        assert!(Arm::new(0, 1.0).is_none());
        assert!(Arm::new(2, 0.0).is_none());
        assert!(Arm::new(2, f64::NAN).is_none());
    }
}
