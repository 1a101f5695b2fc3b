//! `carpool infer`: one real inference, with an input made from the model's own metadata. `helm test` runs it.

use http_body_util::{BodyExt, Full};
use hyper::{
    Method, Request, StatusCode, Uri,
    body::Bytes,
    header::{CONTENT_TYPE, HeaderValue},
    http::uri::{InvalidUri, Scheme},
};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// Arguments of `carpool infer`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Address of the model, such as sentiment.default or <http://localhost:8080>.
    url: String,

    /// The model's name.
    #[arg(long)]
    model: String,

    /// Time that both requests may take together; a model at zero workers needs some seconds.
    #[arg(long, default_value = "50s")]
    timeout: carpool_crds::Duration,
}

/// Reasons for which there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The address isn't one.
    #[error(
        "{url:?} is not where a model is: {message}; HOST, HOST:PORT or http://HOST:PORT is needed"
    )]
    Address {
        /// The address as it was given.
        url: String,
        /// The fault of the address.
        message: String,
    },
    /// Nothing answers there.
    #[error("failed to reach {uri}: {message}")]
    Unreachable {
        /// The URL that was asked.
        uri: Uri,
        /// The error, down to its cause.
        message: String,
    },
    /// The server answered with an error.
    #[error("{uri} answered {status}: {body}")]
    Refused {
        /// The URL that was asked.
        uri: Uri,
        /// The HTTP status.
        status: StatusCode,
        /// The server's message.
        body: String,
    },
    /// The answer is not what the protocol asks for.
    #[error("{uri} answered with something else than the protocol asks for: {message}")]
    Malformed {
        /// The URL that was asked.
        uri: Uri,
        /// The fault of the answer.
        message: String,
    },
    /// The answer took too long.
    #[error("no answer within {0}")]
    TimedOut(carpool_crds::Duration),
}

/// A tensor as metadata declares it: the shape has the batch dimension first, and -1 is variable.
#[derive(Debug, Deserialize)]
struct Declared {
    name: String,
    datatype: String,
    shape: Vec<i64>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    inputs: Vec<Declared>,
}

#[derive(Debug, Deserialize, Serialize)]
struct Tensor {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    data: Vec<Value>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    outputs: Vec<Tensor>,
}

/// Sends one inference and prints the outputs, one JSON object a line.
pub async fn run(args: Args) -> Result<(), InferError> {
    let outputs = tokio::time::timeout(args.timeout.0, infer(&args.url, &args.model))
        .await
        .map_err(|_| InferError::TimedOut(args.timeout))??;
    for output in outputs {
        println!("{}", json!(output));
    }
    Ok(())
}

async fn infer(url: &str, model: &str) -> Result<Vec<Tensor>, InferError> {
    let client = Client::builder(TokioExecutor::new()).build_http();
    let base = format!("{}/v2/models/{model}", base(url)?);
    let metadata: Metadata = call(&client, Method::GET, &base, Bytes::new()).await?;
    let inputs: Vec<Tensor> = metadata.inputs.iter().map(example).collect();
    let uri = format!("{base}/infer");
    let body = json!({ "inputs": inputs }).to_string();
    let answer: Answer = call(&client, Method::POST, &uri, body.into()).await?;
    Ok(answer.outputs)
}

/// The URL before the protocol's path. Without a scheme it is HTTP.
fn base(url: &str) -> Result<String, InferError> {
    let wrong = |message: String| InferError::Address {
        url: url.to_owned(),
        message,
    };
    let base = if url.contains("://") {
        url.to_owned()
    } else {
        format!("http://{url}")
    };
    let uri: Uri = base
        .parse()
        .map_err(|error: InvalidUri| wrong(error.to_string()))?;
    if uri.scheme() != Some(&Scheme::HTTP) {
        let scheme = uri.scheme_str().unwrap_or_default();
        return Err(wrong(format!("carpool infer does not speak {scheme}")));
    }
    Ok(base.trim_end_matches('/').to_owned())
}

/// Makes one row: zeros, `false` or a greeting. A variable dimension has one element.
fn example(declared: &Declared) -> Tensor {
    let shape: Vec<usize> = declared
        .shape
        .iter()
        .map(|&size| usize::try_from(size).unwrap_or(1))
        .collect();
    let element = match declared.datatype.as_str() {
        "BYTES" => json!("hello"),
        "BOOL" => json!(false),
        _ => json!(0),
    };
    Tensor {
        name: declared.name.clone(),
        datatype: declared.datatype.clone(),
        data: vec![element; shape.iter().product()],
        shape,
    }
}

async fn call<T: for<'de> Deserialize<'de>>(
    client: &Client<HttpConnector, Full<Bytes>>,
    method: Method,
    url: &str,
    body: Bytes,
) -> Result<T, InferError> {
    let uri: Uri = url
        .parse()
        .map_err(|error: InvalidUri| InferError::Address {
            url: url.to_owned(),
            message: error.to_string(),
        })?;
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri.clone();
    request
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let unreachable = |error: &dyn std::error::Error| InferError::Unreachable {
        uri: uri.clone(),
        message: causes(error),
    };
    let response = client.request(request).await.map_err(|e| unreachable(&e))?;
    let status = response.status();
    let body = response.into_body().collect().await;
    let body = body.map_err(|e| unreachable(&e))?.to_bytes();
    if status != StatusCode::OK {
        return Err(InferError::Refused {
            uri,
            status,
            body: String::from_utf8_lossy(&body).into_owned(),
        });
    }
    serde_json::from_slice(&body).map_err(|error| InferError::Malformed {
        uri,
        message: error.to_string(),
    })
}

/// An error with what caused it: hyper's own says little.
fn causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        message = format!("{message}: {error}");
        cause = error.source();
    }
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    fn declared(datatype: &str, shape: &[i64]) -> Declared {
        Declared {
            name: "x".to_owned(),
            datatype: datatype.to_owned(),
            shape: shape.to_owned(),
        }
    }

    #[test]
    fn an_example_has_the_declared_shape_with_one_row() {
        let tensor = example(&declared("FP32", &[-1, 1, 2, 3]));
        assert_eq!(tensor.shape, [1, 1, 2, 3]);
        assert_eq!(tensor.data, vec![json!(0); 6]);
    }

    #[test]
    fn an_example_holds_what_its_datatype_is_in_json() {
        assert_eq!(example(&declared("BYTES", &[-1, 1])).data, ["hello"]);
        assert_eq!(example(&declared("BOOL", &[-1])).data, [false]);
        assert_eq!(example(&declared("INT64", &[-1, -1])).data, [0]);
    }

    #[test]
    fn an_address_needs_no_scheme() {
        for (given, expected) in [
            ("localhost:8080", "http://localhost:8080"),
            ("sentiment.default", "http://sentiment.default"),
            ("127.0.0.1:1/", "http://127.0.0.1:1"),
            ("http://h:1/under/", "http://h:1/under"),
        ] {
            assert_eq!(base(given).unwrap(), expected);
        }
        for (given, expected) in [
            (
                "https://h",
                "\"https://h\" is not where a model is: carpool infer does not speak https; HOST, HOST:PORT",
            ),
            ("http://", "\"http://\" is not where a model is: "),
            ("", "\"\" is not where a model is: "),
            ("a b", "\"a b\" is not where a model is: "),
        ] {
            let error = base(given).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }

    #[tokio::test]
    async fn where_nothing_listens_the_cause_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let error = infer(&format!("http://{address}"), "m").await.unwrap_err();
        assert!(error.to_string().contains("refused"), "{error}");
    }
}
