//! The graph: nodes, edges, tensors, attributes; its editor, verifier and text form.
