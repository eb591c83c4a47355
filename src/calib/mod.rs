//! Calibration: observers watch the sites while the graph runs.
