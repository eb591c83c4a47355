//! Chooses what calibration alone cannot: by the effect on what the model puts out.

pub mod objective;
