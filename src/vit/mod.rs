//! Finds the blocks of a Vision Transformer and names their quantisation sites.
