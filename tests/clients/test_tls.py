"""tritonclient and curl by TLS, on the one port that HTTP and gRPC share."""

import json
import ssl
import subprocess

import gevent.ssl
import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException


def client(module, address, certificate):
    if module is triton_grpc:
        return module.InferenceServerClient(address, ssl=True, root_certificates=certificate)
    trusting = lambda: gevent.ssl.create_default_context(cafile=certificate)
    return module.InferenceServerClient(address, ssl=True, ssl_context_factory=trusting)


@pytest.mark.parametrize("module", [triton_http, triton_grpc], ids=["http", "grpc"])
def test_triton(secure, digits, module):
    triton = client(module, *secure)
    assert triton.is_server_ready() and triton.is_model_ready("digits")
    images = np.array([image for image, _ in digits], dtype=np.float32)
    tensor = module.InferInput("image", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images)
    answer = triton.infer("digits", [tensor])
    assert answer.as_numpy("logits").argmax(1).tolist() == [seen for _, seen in digits]


def test_a_certificate_of_nobody_is_refused(secure):
    address, _ = secure
    with pytest.raises(ssl.SSLError):
        triton_http.InferenceServerClient(address, ssl=True).is_server_live()
    with pytest.raises(InferenceServerException):
        triton_grpc.InferenceServerClient(address, ssl=True).is_server_live(client_timeout=5)


@pytest.mark.parametrize("version", ["1.1", "2"])
def test_curl(secure, version):
    address, certificate = secure
    told = subprocess.run(
        ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "30", "--cacert", certificate,
         f"--http{version}", "--write-out", "\n%{http_version}", f"https://{address}/v2/models/digits"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    metadata, spoken = told.rsplit("\n", 1)
    assert spoken == version and json.loads(metadata)["name"] == "digits"
