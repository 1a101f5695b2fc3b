"""curl, with the forms that its users write by hand."""

import json
import subprocess


def curl(*arguments):
    """curl's output; an HTTP error is one of its own."""
    return subprocess.run(
        ["curl", "--silent", "--show-error", "--fail-with-body", "--max-time", "30", *arguments],
        check=True, stdout=subprocess.PIPE,
    ).stdout


def test_the_article(models):
    url = f"http://{models['sentiment']}/predict"
    for data in (["--json", '{"text": "I love you"}'], ["--data-urlencode", "text=I love you"]):
        answer = json.loads(curl(url, *data))
        assert answer["code"] == "200"
        assert json.loads(answer["data"])["label"] == "POSITIVE"


def test_json_with_compression(models, digits):
    rows = 4 * [image for image, _ in digits]
    tensor = {"name": "image", "datatype": "FP32", "shape": [64, 1, 8, 8], "data": rows}
    url = f"http://{models['digits']}/v2/models/digits/infer"
    answer = json.loads(curl(url, "--compressed", "--json", json.dumps({"inputs": [tensor]})))
    assert answer["outputs"][0]["shape"] == [64, 10]


def test_the_first_protocol(models, digits):
    rows = [image for image, _ in digits]
    url = f"http://{models['digits']}/v1/models/digits:predict"
    answer = json.loads(curl(url, "--json", json.dumps({"instances": rows})))
    assert [row.index(max(row)) for row in answer["predictions"]] == [seen for _, seen in digits]
