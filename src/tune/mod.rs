//! Chooses what calibration alone cannot: by the effect on what the model puts out.

pub mod bias;
pub mod damage;
pub mod gptq;
pub mod gram;
pub mod linear;
pub mod objective;
pub mod range;
pub mod search;
