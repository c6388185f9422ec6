//! What shapes would do for a model and its demand: asked ([`ask`]), worked out ([`rows`]) and shown ([`table`],
//! [`detail`]). Pure but for the files that [`ask`] reads.

pub mod ask;
pub mod detail;
pub mod engine_flags;
pub mod rows;
pub mod table;
