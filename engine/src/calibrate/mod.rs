//! Calibration: the coefficients of the latency model from measurements, with their uncertainty.
//!
//! A measurement is an [`Observation`]. [`fit`] finds the coefficients that agree best with many of them and with a
//! [`Prior`], which says what is known beforehand; it needs no more than ten observations of a new combination of
//! engine and accelerator, and [`probes`] says which ten. The result is a [`Fit`]: coefficients, their
//! uncertainty, and the error to expect of predictions, for the planner's margin.
//!
//! [`Online`] then follows a running replica, and says when it has become slower or faster than it was.
//!
//! Coefficients trade off against each other, so a fit is judged by its predictions, not by its coefficients.

mod coefficients;
mod fit;
mod linear;
mod observation;
mod online;
mod prior;
mod probes;

pub use coefficients::Coefficient;
pub use fit::{Fit, FitError, Residual, fit};
pub use observation::{Measured, Metric, Observation, Subject, Workload};
pub use online::{Drift, Ignored, Online, OnlineConfig, Taken, Window};
pub use prior::{Prior, Traits};
pub use probes::{Probe, ProbeLimits, most_telling, probes};
