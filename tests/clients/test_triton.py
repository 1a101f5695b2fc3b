"""NVIDIA's tritonclient, over HTTP and gRPC."""

import queue

import numpy as np
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton_http
from tritonclient.utils import InferenceServerException

TRITON = [triton_http, triton_grpc]
TEXTS = np.array([["I love you"], ["I hate you"]], dtype=object)


@pytest.fixture
def images(digits):
    return np.array([image for image, _ in digits], dtype=np.float32)


@pytest.fixture
def labels(digits):
    return [seen for _, seen in digits]


def tensor(module, name, datatype, array):
    made = module.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


@pytest.mark.parametrize("module", TRITON, ids=["http", "grpc"])
def test_the_server_and_the_model_describe_themselves(models, module):
    client = module.InferenceServerClient(models["digits"])
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready("digits")
    as_json = {} if module is triton_http else {"as_json": True}
    assert client.get_server_metadata(**as_json)["name"] == "carpool"
    [image] = client.get_model_metadata("digits", **as_json)["inputs"]
    assert (image["name"], image["datatype"]) == ("image", "FP32")
    assert [int(size) for size in image["shape"]] == [-1, 1, 8, 8]
    config = client.get_model_config("digits", **as_json)
    config = config.get("config", config)
    assert config["input"][0]["data_type"] == "TYPE_FP32" and int(config["max_batch_size"]) > 1
    index = client.get_model_repository_index(**as_json)
    [model] = index["models"] if isinstance(index, dict) else index
    assert (model["name"], model["state"]) == ("digits", "READY")


@pytest.mark.parametrize("binary_input", [True, False])
@pytest.mark.parametrize("binary_output", [True, False])
def test_http_in_binary_and_in_json(models, images, labels, binary_input, binary_output):
    client = triton_http.InferenceServerClient(models["digits"])
    image = triton_http.InferInput("image", list(images.shape), "FP32")
    image.set_data_from_numpy(images, binary_data=binary_input)
    wanted = triton_http.InferRequestedOutput("logits", binary_data=binary_output)
    answer = client.infer("digits", [image], outputs=[wanted], request_id="7")
    assert answer.as_numpy("logits").argmax(1).tolist() == labels
    assert answer.get_response()["id"] == "7"


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("module", TRITON, ids=["http", "grpc"])
def test_compressed(models, images, labels, module, coding):
    client = module.InferenceServerClient(models["digits"])
    if module is triton_http:
        codings = {"request_compression_algorithm": coding, "response_compression_algorithm": coding}
    else:
        codings = {"compression_algorithm": coding}
    answer = client.infer("digits", [tensor(module, "image", "FP32", images)], **codings)
    assert answer.as_numpy("logits").argmax(1).tolist() == labels


def test_http_async(models, images, labels):
    client = triton_http.InferenceServerClient(models["digits"], concurrency=8)
    rows = [tensor(triton_http, "image", "FP32", images[row : row + 1]) for row in range(16)]
    asked = [client.async_infer("digits", [row]) for row in rows]
    assert [int(one.get_result().as_numpy("logits").argmax()) for one in asked] == labels


def test_grpc_async(models, images, labels):
    client = triton_grpc.InferenceServerClient(models["digits"])
    answers = queue.Queue()
    for row in range(16):
        image = tensor(triton_grpc, "image", "FP32", images[row : row + 1])
        client.async_infer("digits", [image], lambda result, error: answers.put((result, error)), request_id=str(row))
    got = dict()
    for _ in range(16):
        result, error = answers.get(timeout=20)
        assert error is None
        got[int(result.get_response().id)] = int(result.as_numpy("logits").argmax())
    assert [got[row] for row in range(16)] == labels


def test_grpc_stream_in_order_and_past_a_mistake(models, images, labels):
    client = triton_grpc.InferenceServerClient(models["digits"])
    answers = queue.Queue()
    client.start_stream(lambda result, error: answers.put((result, error)))
    for row in range(16):
        image = tensor(triton_grpc, "image", "FP32", images[row : row + 1])
        client.async_stream_infer("digits", [image], request_id=str(row))
        if row == 7:
            client.async_stream_infer("digits", [tensor(triton_grpc, "other", "FP32", images[:1])])
    got, mistakes = [], []
    for _ in range(17):
        result, error = answers.get(timeout=20)
        if error is None:
            got.append((int(result.get_response().id), int(result.as_numpy("logits").argmax())))
        else:
            mistakes.append((len(got), error.message()))
    client.stop_stream()
    assert got == list(enumerate(labels))
    assert mistakes == [(8, 'unknown input "other"; the model takes "image"')]


@pytest.mark.parametrize("module", TRITON, ids=["http", "grpc"])
def test_texts(models, module):
    client = module.InferenceServerClient(models["sentiment"])
    answer = client.infer("sentiment", [tensor(module, "text", "BYTES", TEXTS)])
    assert answer.as_numpy("label").tolist() == [[b"POSITIVE"], [b"NEGATIVE"]]
    assert (answer.as_numpy("score") > 0.9).all()


@pytest.mark.parametrize("module", TRITON, ids=["http", "grpc"])
def test_mistakes_are_told(models, images, module):
    client = module.InferenceServerClient(models["digits"])
    with pytest.raises(InferenceServerException, match="unknown model other; this is digits"):
        client.infer("other", [tensor(module, "image", "FP32", images)])
    with pytest.raises(InferenceServerException, match="expected datatype FP32, given FP64"):
        client.infer("digits", [tensor(module, "image", "FP64", images.astype(np.float64))])
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.register_system_shared_memory("region", "/key", 64)
    with pytest.raises(InferenceServerException, match="shared memory is not served"):
        client.register_cuda_shared_memory("region", b"aGFuZGxl", 0, 64)


def test_grpc_deadline(models, images):
    client = triton_grpc.InferenceServerClient(models["digits"])
    with pytest.raises(InferenceServerException) as raised:
        client.infer("digits", [tensor(triton_grpc, "image", "FP32", images)], client_timeout=1e-6)
    assert raised.value.status() == "StatusCode.DEADLINE_EXCEEDED"
