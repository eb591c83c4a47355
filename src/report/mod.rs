//! What was done and why, for people and for machines.
