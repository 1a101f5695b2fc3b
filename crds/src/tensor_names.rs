//! The names of tensors that mean something to Carpool, in manifests and in requests.

/// The input that holds texts, where a model takes text.
pub const TEXT: &str = "text";
/// The output that holds the most probable label of each text.
pub const LABEL: &str = "label";
/// The output that holds the probability of each text's label.
pub const SCORE: &str = "score";

/// The model's input that holds the ids of a text's tokens.
pub const INPUT_IDS: &str = "input_ids";
/// The model's input that says which tokens of a padded text are real.
pub const ATTENTION_MASK: &str = "attention_mask";
/// The model's input that says which sentence of a text each token belongs to.
pub const TOKEN_TYPE_IDS: &str = "token_type_ids";
