//! Applies a plan to a graph; decides nothing.
