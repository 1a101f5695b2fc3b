"""OpenAI's own Python client, for embeddings."""

import base64
import concurrent.futures

import numpy as np
import openai
import pytest


@pytest.fixture
def client(minilm):
    return openai.OpenAI(base_url=f"http://{minilm}/v1", api_key="none", max_retries=0)


def same(given, sentences):
    expected = [sentence["embedding"] for sentence in sentences]
    return np.allclose([row.embedding for row in given.data], expected, atol=1e-4)


# The client asks for base64 where it is not told otherwise.
@pytest.mark.parametrize("asked", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}, {"dimensions": 384}])
def test_a_list(client, sentences, asked):
    answer = client.embeddings.create(model="minilm", input=[sentence["text"] for sentence in sentences], **asked)
    assert answer.object == "list" and answer.model == "minilm"
    assert [row.index for row in answer.data] == list(range(len(sentences)))
    if asked.get("encoding_format") == "base64":
        for row in answer.data:
            row.embedding = np.frombuffer(base64.b64decode(row.embedding), "<f4")
    assert same(answer, sentences)
    tokens = sum(sentence["tokens"] for sentence in sentences)
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (tokens, tokens)


def test_strings_that_share_batches(client, sentences):
    def ask(sentence):
        answer = client.embeddings.create(model="minilm", input=sentence["text"])
        return same(answer, [sentence]) and answer.usage.prompt_tokens == sentence["tokens"]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(ask, sentences * 8))


def test_mistakes_are_told(client):
    with pytest.raises(openai.NotFoundError) as raised:
        client.embeddings.create(model="other", input="a")
    assert (raised.value.code, raised.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="token ids are not taken") as raised:
        client.embeddings.create(model="minilm", input=[[101, 102]])
    assert (raised.value.type, raised.value.param) == ("invalid_request_error", "input")
    with pytest.raises(openai.BadRequestError, match="the model gives 384, and no other number; given 256"):
        client.embeddings.create(model="minilm", input="a", dimensions=256)
