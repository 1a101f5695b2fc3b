//! Options as protobuf.

use std::collections::BTreeMap;

use crate::{
    DecodeError, Parameter, Parameters,
    inference::{InferParameter, infer_parameter::ParameterChoice},
};

pub(super) fn encode(parameters: &Parameters) -> BTreeMap<String, InferParameter> {
    parameters
        .iter()
        .map(|(name, parameter)| {
            let choice = match parameter {
                Parameter::Bool(value) => ParameterChoice::BoolParam(*value),
                Parameter::Int64(value) => ParameterChoice::Int64Param(*value),
                Parameter::String(value) => ParameterChoice::StringParam(value.clone()),
                Parameter::Double(value) => ParameterChoice::DoubleParam(*value),
                Parameter::Uint64(value) => ParameterChoice::Uint64Param(*value),
            };
            (
                name.clone(),
                InferParameter {
                    parameter_choice: Some(choice),
                },
            )
        })
        .collect()
}

pub(super) fn decode(
    parameters: BTreeMap<String, InferParameter>,
) -> Result<Parameters, DecodeError> {
    parameters
        .into_iter()
        .map(|(name, parameter)| {
            let parameter = match parameter.parameter_choice {
                Some(ParameterChoice::BoolParam(value)) => Parameter::Bool(value),
                Some(ParameterChoice::Int64Param(value)) => Parameter::Int64(value),
                Some(ParameterChoice::StringParam(value)) => Parameter::String(value),
                Some(ParameterChoice::DoubleParam(value)) => Parameter::Double(value),
                Some(ParameterChoice::Uint64Param(value)) => Parameter::Uint64(value),
                None => return Err(DecodeError::ParameterWithoutValue { name }),
            };
            Ok((name, parameter))
        })
        .collect()
}
