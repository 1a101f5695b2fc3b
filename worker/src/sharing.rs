//! The rows that may share a batch, so that no answer depends on who else is in it.

use carpool_crds::{Dimension, LoadedReason, Model, TensorSpec};

/// The limits on sharing a batch: as much as the manifest allows and as running the model has shown to change no
/// answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sharing {
    /// Whether requests of different lengths share a batch, the shorter padded.
    pub padded: bool,
    /// The most rows that run together, whatever `maxBatchSize` says.
    pub max_rows: usize,
    /// Whether less is shared than the manifest asks for, and of which kind that is.
    pub reason: LoadedReason,
    /// The reason in a sentence for users; empty where nothing is to be said.
    pub message: String,
}

impl Sharing {
    /// The limits that a model's declaration sets.
    #[must_use]
    pub fn declared(model: &Model) -> Self {
        let all = Self {
            padded: model
                .inputs
                .iter()
                .any(|input| model.padding(input).is_some() && is_variable(input)),
            max_rows: usize::MAX,
            reason: LoadedReason::Loaded,
            message: String::new(),
        };
        let unnamed = |output: &&TensorSpec| output.shape.contains(&Dimension::Size(-1));
        if let Some(output) = model.outputs.iter().find(unnamed) {
            return all.unbatched(
                LoadedReason::Unbatched,
                &format!(
                    "the dimension -1 of output {} may depend on the whole batch; give it the name of the input's dimension \
                     that it follows, such as seq in both shapes, or a name of its own where the inputs' shapes alone decide it",
                    output.name
                ),
            );
        }
        let free = model.outputs.iter().find_map(|output| {
            let mut names = output.shape.iter().filter_map(Dimension::name);
            let name = names.find(|name| axis(model, name).is_none())?;
            Some((output, name))
        });
        match free {
            Some((output, name)) if all.padded => all.unpadded(&format!(
                "output {} has a dimension {name}, which is none of an input, so padding can't be cut off it",
                output.name
            )),
            _ => all,
        }
    }

    /// Limits batches to rows of equal shape, which need no padding, for a reason.
    #[must_use]
    pub fn unpadded(mut self, why: &str) -> Self {
        self.padded = false;
        self.say(
            LoadedReason::Unpadded,
            &format!("served unpadded (only requests of equal shape share a batch): {why}"),
        );
        self
    }

    /// Limits batches to single rows, for a reason.
    #[must_use]
    pub fn unbatched(mut self, reason: LoadedReason, why: &str) -> Self {
        self.padded = false;
        self.max_rows = 1;
        self.say(
            reason,
            &format!("served unbatched (every row runs alone): {why}"),
        );
        self
    }

    /// Adds a note for users.
    #[must_use]
    pub fn noted(mut self, reason: LoadedReason, note: &str) -> Self {
        self.say(reason, note);
        self
    }

    fn say(&mut self, reason: LoadedReason, message: &str) {
        self.reason = self.reason.min(reason);
        if !self.message.is_empty() {
            self.message.push_str("; ");
        }
        self.message.push_str(message);
    }
}

/// Whether a tensor has a dimension in which items may differ.
#[must_use]
pub fn is_variable(spec: &TensorSpec) -> bool {
    spec.shape
        .iter()
        .any(|dimension| dimension.fixed().is_none())
}

/// The first input with a dimension of this name, and the dimension's axis, the batch dimension not counted.
#[must_use]
pub fn axis(model: &Model, name: &str) -> Option<(usize, usize)> {
    model.inputs.iter().enumerate().find_map(|(index, input)| {
        let mut dimensions = input.shape.iter();
        let axis = dimensions.position(|dimension| dimension.name() == Some(name))?;
        Some((index, axis))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(inputs: &str, output: &str) -> Sharing {
        let yaml = format!(
            "{{uri: file://m, inputs: {inputs}, outputs: [{{name: out, datatype: FP32, shape: {output}}}]}}"
        );
        Sharing::declared(&serde_yaml::from_str(&yaml).unwrap())
    }

    #[test]
    fn only_what_the_manifest_says_is_padded() {
        let variable = "[{name: x, datatype: INT64, shape: [seq]}]";
        let padded = "[{name: x, datatype: INT64, shape: [seq], pad: 0}]";
        assert!(!declared(variable, "[2]").padded);
        assert!(declared(padded, "[2]").padded);
        assert!(declared(padded, "[seq, 2]").padded);
        // The model has no dimension to pad.
        assert!(!declared("[{name: x, datatype: INT64, shape: [3], pad: 0}]", "[2]").padded);
        for sharing in [declared(variable, "[2]"), declared(padded, "[seq, 2]")] {
            assert_eq!(
                (sharing.reason, sharing.max_rows),
                (LoadedReason::Loaded, usize::MAX)
            );
            assert_eq!(sharing.message, "");
        }
    }

    #[test]
    fn an_output_that_may_depend_on_the_batch_runs_alone() {
        let sharing = declared("[{name: x, datatype: INT64, shape: [-1], pad: 0}]", "[-1]");
        assert_eq!((sharing.padded, sharing.max_rows), (false, 1));
        assert_eq!(sharing.reason, LoadedReason::Unbatched);
        assert!(
            sharing.message.contains("output out"),
            "{}",
            sharing.message
        );
    }

    #[test]
    fn an_output_of_a_length_of_its_own_is_not_padded() {
        let sharing = declared(
            "[{name: x, datatype: INT64, shape: [seq], pad: 0}]",
            "[frames]",
        );
        assert_eq!((sharing.padded, sharing.max_rows), (false, usize::MAX));
        assert_eq!(sharing.reason, LoadedReason::Unpadded);
        assert!(sharing.message.contains("frames"), "{}", sharing.message);
    }

    #[test]
    fn the_gravest_limit_is_told_with_all_reasons() {
        let sharing = declared("[{name: x, datatype: INT64, shape: [seq], pad: 0}]", "[2]");
        let sharing = sharing
            .unpadded("a")
            .unbatched(LoadedReason::Unbatched, "b")
            .noted(LoadedReason::Unproven, "c");
        assert_eq!(sharing.reason, LoadedReason::Unbatched);
        assert_eq!(
            sharing.message,
            "served unpadded (only requests of equal shape share a batch): a; served unbatched (every row runs alone): b; c"
        );
    }
}
