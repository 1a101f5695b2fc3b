"""grpcurl, which knows a service by what its reflection tells, without TLS and with it."""

import base64
import json
import subprocess

import numpy as np
import pytest

SERVICE = "inference.GRPCInferenceService"


def grpcurl(flags, *arguments):
    """grpcurl's output; a gRPC error is one of its own."""
    return subprocess.run(
        ["grpcurl", "-max-time", "30", *flags, *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout


@pytest.fixture(params=["plain", "tls"])
def server(request):
    """The flags that trust, and the address."""
    if request.param == "plain":
        return ["-plaintext"], request.getfixturevalue("models")["digits"]
    address, certificate = request.getfixturevalue("secure")
    return ["-cacert", certificate], address


def test_reflection(server):
    flags, address = server
    services = grpcurl(flags, address, "list").split()
    assert {SERVICE, "grpc.health.v1.Health"} <= set(services)
    assert f"{SERVICE}.ModelInfer" in grpcurl(flags, address, "list", SERVICE).split()
    described = grpcurl(flags, address, "describe", f"{SERVICE}.ModelInfer")
    assert "rpc ModelInfer ( .inference.ModelInferRequest ) returns ( .inference.ModelInferResponse );" in described
    assert "raw_input_contents" in grpcurl(flags, address, "describe", ".inference.ModelInferRequest")


def test_the_server_and_the_model(server):
    flags, address = server
    assert json.loads(grpcurl(flags, address, f"{SERVICE}/ServerReady")) == {"ready": True}
    asked = ["-d", json.dumps({"name": "digits"}), address, f"{SERVICE}/ModelMetadata"]
    [image] = json.loads(grpcurl(flags, *asked))["inputs"]
    assert image == {"name": "image", "datatype": "FP32", "shape": ["-1", "1", "8", "8"]}


def test_typed_contents(server, digits):
    flags, address = server
    images = np.array([image for image, _ in digits], dtype=np.float32)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(images.shape),
              "contents": {"fp32_contents": images.ravel().tolist()}}
    request = json.dumps({"model_name": "digits", "id": "7", "inputs": [tensor]})
    answer = json.loads(grpcurl(flags, "-d", request, address, f"{SERVICE}/ModelInfer"))
    assert answer["id"] == "7"
    logits = np.frombuffer(base64.b64decode(answer["rawOutputContents"][0]), dtype=np.float32)
    assert logits.reshape(16, 10).argmax(1).tolist() == [seen for _, seen in digits]


def test_mistakes_are_told(server):
    flags, address = server
    asked = [*flags, "-d", json.dumps({"name": "other"}), address, f"{SERVICE}/ModelMetadata"]
    refused = subprocess.run(["grpcurl", *asked], capture_output=True, text=True)
    assert refused.returncode != 0
    assert "NotFound" in refused.stderr and "unknown model other" in refused.stderr
