"""KServe's own Python client, over REST and gRPC, both protocols."""

import asyncio

import kserve
import numpy as np


def asked(digits):
    images = np.array([image for image, _ in digits], dtype=np.float32)
    tensor = kserve.InferInput(name="image", shape=list(images.shape), datatype="FP32")
    return images, tensor, [seen for _, seen in digits]


def test_rest_second_protocol(models, digits):
    images, tensor, labels = asked(digits)
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v2", retries=0))
    url = f"http://{models['digits']}"

    async def run():
        assert await client.is_server_ready(url) and await client.is_model_ready(url, "digits")
        answers = []
        for binary in (True, False):
            tensor.set_data_from_numpy(images, binary_data=binary)
            request = kserve.InferRequest(model_name="digits", infer_inputs=[tensor], request_id="7")
            answers.append(await client.infer(url, request, model_name="digits"))
        return answers

    for answer in asyncio.run(run()):
        assert answer.id == "7"
        assert answer.outputs[0].as_numpy().argmax(1).tolist() == labels


def test_rest_first_protocol(models, digits):
    images, _, labels = asked(digits)
    client = kserve.InferenceRESTClient(kserve.RESTConfig(protocol="v1", retries=0))
    request = {"instances": images.tolist()}
    answer = asyncio.run(client.infer(f"http://{models['digits']}", request, model_name="digits"))
    assert np.array(answer["predictions"]).argmax(1).tolist() == labels


def test_grpc(models, digits):
    images, tensor, labels = asked(digits)
    tensor.set_data_from_numpy(images)

    async def run():
        client = kserve.InferenceGRPCClient(models["digits"])
        assert await client.is_server_ready() and await client.is_model_ready("digits")
        request = kserve.InferRequest(model_name="digits", infer_inputs=[tensor], request_id="7")
        answer = await client.infer(request)
        await client.close()
        return answer

    answer = asyncio.run(run())
    assert answer.id == "7"
    assert answer.outputs[0].as_numpy().argmax(1).tolist() == labels
