//! Chooses what calibration alone cannot: by the effect on what the model puts out.

pub mod damage;
pub mod objective;
pub mod range;
pub mod search;
