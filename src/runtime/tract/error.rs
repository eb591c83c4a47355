//! Why a model cannot be run.

/// Why a model cannot be loaded into the executor, or a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// An operator, an attribute or an element type that the executor does not implement.
    #[error("{node} cannot be run: {what}; {advice}")]
    Unsupported {
        /// The node, with its operator.
        node: String,
        /// What is not implemented.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// A parameter that has to be known before the run is computed in the graph.
    #[error(
        "{node} cannot be run: its input '{input}' is computed by the graph, and the executor needs a constant there; fold the \
         model's constants first"
    )]
    NotConstant {
        /// The node.
        node: String,
        /// The value.
        input: String,
    },
    /// A node contradicts the operator's definition.
    #[error("{node} is malformed: {what}; export the model again")]
    Malformed {
        /// The node.
        node: String,
        /// What is wrong.
        what: String,
    },
    /// A model input has no usable type.
    #[error("the model input '{name}' {what}")]
    ModelInput {
        /// The input.
        name: String,
        /// What is wrong, and what to do.
        what: String,
    },
    /// A tap names no value.
    #[error("no value of the graph is named '{name}', so it cannot be observed{hint}")]
    UnknownTap {
        /// The name asked for.
        name: String,
        /// The nearest known name, as a clause.
        hint: String,
    },
    /// The caller's arrays do not fit the model's inputs.
    #[error("{0}")]
    Feed(String),
    /// The executor refused a model that passed our own checks.
    #[error("the executor cannot load the model ({0}); check that its shapes are consistent: onnx.checker tells more")]
    Load(String),
    /// A run failed.
    #[error("the model failed while running ({0}); check that it runs in onnxruntime with the same input")]
    Run(String),
}

/// An error of tract as one line: its chain of causes without line breaks.
pub(super) fn one_line(e: &tract_onnx::tract_core::internal::TractError) -> String {
    let text = e.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}
