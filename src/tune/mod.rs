//! Chooses what calibration alone cannot: by the effect on what the model puts out.
//!
//! [`objective`] simulates a plan; [`damage`] measures what one site does alone; [`search`] changes ranges ([`range`]) and
//! [`widths`] the bits of the sites that do most, within what their products [`cost`]; [`room`] widens ranges for samples that they were not
//! taken from.
//!
//! Weights: the moments ([`gram`]) of what every [`linear`] layer reads, its [`rows`] weighted by what depends on them, decide how
//! [`gptq`] rounds and what goes into the [`bias`]; the same weights decide the [`levels`] of codebooks.

pub mod bias;
pub mod cost;
pub mod damage;
pub mod gptq;
pub mod gram;
pub mod levels;
pub mod linear;
pub mod objective;
pub mod range;
pub mod room;
pub mod rows;
pub mod search;
pub mod widths;
