//! Decides every quantisation parameter; touches no graph.
