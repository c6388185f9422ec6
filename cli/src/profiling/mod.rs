//! From measurements of an endpoint to a calibration: which points ([`points`]), what came of them ([`report`]), and the
//! manifest ([`manifest`]). Pure.

pub mod manifest;
pub mod points;
pub mod report;
