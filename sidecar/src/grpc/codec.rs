//! Messages of inference as bytes: requests go to the queue as they came, answers to the client as the worker wrote them.

use bytes::{Buf, BufMut, Bytes};
use carpool_protocol::inference::ModelInferResponse;
use prost::{
    Message,
    encoding::{WireType, encode_key, encode_varint, encoded_len_varint},
};
use tonic::{
    Status,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
};

/// The answer to a request, an encoded `ModelInferResponse` in two parts: protobuf messages that follow each other are one.
#[derive(Debug)]
pub struct Answer {
    /// The names that the worker leaves out.
    names: Vec<u8>,
    answer: Bytes,
}

impl Answer {
    /// Adds to a worker's answer the model's name and version and the request's identifier.
    pub fn new(model: &str, version: &str, id: String, answer: Bytes) -> Self {
        let names = ModelInferResponse {
            model_name: model.to_owned(),
            model_version: version.to_owned(),
            id,
            ..ModelInferResponse::default()
        };
        Self {
            names: names.encode_to_vec(),
            answer,
        }
    }

    /// The bytes of the message.
    pub fn len(&self) -> usize {
        self.names.len() + self.answer.len()
    }

    fn put(self, buffer: &mut EncodeBuf<'_>) {
        buffer.put_slice(&self.names);
        buffer.put(self.answer);
    }
}

/// The answer to one message of a stream, an encoded `ModelStreamInferResponse`.
#[derive(Debug)]
pub struct StreamAnswer {
    /// Empty where there is an answer.
    pub error: String,
    /// The answer; of a message that failed it has names alone.
    pub answer: Answer,
}

/// The numbers of the fields of `ModelStreamInferResponse`.
const ERROR_MESSAGE: u32 = 1;
const INFER_RESPONSE: u32 = 2;

/// The codec of single messages.
#[derive(Debug, Clone, Copy)]
pub struct Raw;

/// The codec of a stream of messages.
#[derive(Debug, Clone, Copy)]
pub struct RawStream;

impl Codec for Raw {
    type Encode = Answer;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Codec for RawStream {
    type Encode = StreamAnswer;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Raw;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        // A slice of what was received.
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}

impl Encoder for Raw {
    type Item = Answer;
    type Error = Status;

    fn encode(&mut self, answer: Answer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.reserve(answer.len());
        answer.put(buffer);
        Ok(())
    }
}

impl Encoder for RawStream {
    type Item = StreamAnswer;
    type Error = Status;

    fn encode(&mut self, item: StreamAnswer, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        let StreamAnswer { error, answer } = item;
        let length = answer.len() as u64;
        buffer.reserve(answer.len() + error.len() + 2 * (1 + encoded_len_varint(length)));
        if !error.is_empty() {
            prost::encoding::string::encode(ERROR_MESSAGE, &error, buffer);
        }
        encode_key(INFER_RESPONSE, WireType::LengthDelimited, buffer);
        encode_varint(length, buffer);
        answer.put(buffer);
        Ok(())
    }
}
