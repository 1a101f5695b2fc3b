//! The names of tensors that mean something to Carpool, in manifests and in requests.

/// The input that holds texts, where a model takes text.
pub const TEXT: &str = "text";
/// The input that holds the query that documents are scored for: one for all of them, or one for each.
pub const QUERY: &str = "query";
/// The input that holds the documents that are scored for a query.
pub const DOCUMENT: &str = "document";
/// The output that holds the most probable label of each text.
pub const LABEL: &str = "label";
/// The output that holds the probability of each text's label, or a document's score for its query.
pub const SCORE: &str = "score";
/// The output that holds the embedding of each text.
pub const EMBEDDING: &str = "embedding";
/// The output that holds the number of tokens that were read of each text, those that the tokenizer adds among them.
pub const TOKENS: &str = "tokens";
/// The output that says of each text whether it was cut; also the parameter of outputs that says whether any was.
pub const TRUNCATED: &str = "truncated";

/// The model's input that holds the ids of a text's tokens.
pub const INPUT_IDS: &str = "input_ids";
/// The model's input that says which tokens of a padded text are real.
pub const ATTENTION_MASK: &str = "attention_mask";
/// The model's input that says which sentence of a text each token belongs to.
pub const TOKEN_TYPE_IDS: &str = "token_type_ids";
