//! The oracle: every op in plain loops with f64 accumulation.
