"""Whether a row's answer depends on who else is in its batch, for models as strangers bring them.

Each model is served by `carpool local`. Its requests are sent one at a time, then all at once and over again, and every
answer in company is held against the one alone. Prints a table: whether rows were padded, whether they shared a batch, the
largest difference, how long the model took to prove itself, and what users are told.
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import re
from typing import Any

from server import Local

ROUNDS = 5
# Long enough for requests that are sent together to meet in one batch.
BATCHING = {"maxDelay": "300ms", "maxBatchSize": 8}
MOST_REQUESTS = 8

Request = list[dict[str, Any]]
Answer = list[list[float]]


def infer(port: int, name: str, request: Request) -> Answer | str:
    """The values of all outputs, or the error."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    body = json.dumps({"inputs": request}).encode()
    connection.request("POST", f"/v2/models/{name}/infer", body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    answer = json.loads(response.read())
    connection.close()
    if response.status != 200:
        return f"{response.status} {answer['error']}"
    return [[float(value is True) if isinstance(value, bool) else value for value in output["data"]] for output in answer["outputs"]]


def difference(alone: Answer | str, together: Answer | str) -> float:
    """The largest absolute difference; infinite where one failed or is of another length."""
    if isinstance(alone, str) or isinstance(together, str):
        return 0.0 if alone == together else float("inf")
    if [len(output) for output in alone] != [len(output) for output in together]:
        return float("inf")
    pairs = [pair for outputs in zip(alone, together) for pair in zip(*outputs)]
    return max((abs(a - b) if not isinstance(a, str) else float(a != b) for a, b in pairs), default=0.0)


def measure(carpool: pathlib.Path, folder: pathlib.Path, name: str, spec: dict[str, Any], requests: list[Request]) -> list[str]:
    """A row of the table."""
    manifest = folder / f"{name}.yaml"
    document = {"apiVersion": "carpool.dev/v1alpha1", "kind": "BatchedModel", "metadata": {"name": name}, "spec": spec}
    manifest.write_text(json.dumps(document))
    log = folder / f"{name}.log"
    try:
        with Local(carpool, manifest, name, log) as local:
            alone = [infer(local.port, name, request) for request in requests]
            before, padding = local.batches(), local.series("carpool_worker_padding_ratios_sum")
            largest = 0.0
            with concurrent.futures.ThreadPoolExecutor(MOST_REQUESTS) as threads:
                for _ in range(ROUNDS):
                    together = list(threads.map(lambda request: infer(local.port, name, request), requests))
                    largest = max([largest, *(difference(*pair) for pair in zip(alone, together))])
            after, padded = local.batches(), local.series("carpool_worker_padding_ratios_sum")
    except SystemExit as ended:
        return [name, "-", "-", "not served", "", str(ended).splitlines()[-1]]
    size = (after.rows - before.rows) / max(after.runs - before.runs, 1)
    text = log.read_text(errors="replace")
    told = re.search(r"served (unpadded|unbatched)[^\n]*", text)
    proved = re.search(r"warmed up.*? took=(\S+)", text)
    failed = next((answer for answer in alone if isinstance(answer, str)), "")
    return [
        name,
        "yes" if padded != padding else "no",
        f"yes, {size:.1f}" if size > 1.05 else "no",
        f"{largest:.1g}",
        proved[1] if proved else "",
        told[0] if told else failed,
    ]


def examples(models: pathlib.Path, root: pathlib.Path) -> list[tuple[str, dict[str, Any], list[Request]]]:
    """The project's own examples, with held-out requests."""
    image = {"name": "image", "datatype": "FP32", "shape": [1, 8, 8]}
    digits = {"uri": f"file://{models}/digits/artifact", "inputs": [image], "outputs": [{"name": "logits", "datatype": "FP32", "shape": [10]}]}
    images = json.loads((models / "digits/heldout.json").read_text())[:MOST_REQUESTS]
    tokens = [{"name": name, "datatype": "INT64", "shape": ["seq"]} for name in ("input_ids", "attention_mask")]
    sentiment = {
        "uri": f"file://{models}/sentiment/artifact", "inputs": tokens,
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}],
        "text": {"tokenizer": "tokenizer.json", "maxLength": 128, "labels": ["NEGATIVE", "POSITIVE"]},
    }
    texts = json.loads((models / "sentiment/heldout.json").read_text())[:MOST_REQUESTS]
    return [
        ("digits", digits, [[{**image, "shape": [1, 1, 8, 8], "data": [item["image"]]}] for item in images]),
        (
            "sentiment", sentiment,
            [[{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [item["text"]]}] for item in texts],
        ),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--carpool", type=pathlib.Path, required=True, help="the binary")
    parser.add_argument("--cases", type=pathlib.Path, required=True, help="what tests/models/strangers.py made")
    parser.add_argument("--models", type=pathlib.Path, required=True, help="what examples/*/build made")
    parser.add_argument("--output", type=pathlib.Path, required=True, help="folder for manifests and logs")
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    cases = examples(given.models, given.output)
    for folder in sorted(given.cases.iterdir()):
        case = json.loads((folder / "case.json").read_text())
        cases.append((folder.name, {**case["model"], "uri": f"file://{folder.resolve()}"}, case["requests"]))
    table = [["model", "padded", "batched, mean rows", "largest difference", "warm-up", "told"]]
    for name, model, requests in cases:
        spec = {"model": model, "batching": BATCHING, "scaling": {"minReplicas": 1, "maxReplicas": 1}}
        specs = {name: spec}
        if name == "one-row":
            specs["one-row-single"] = {**spec, "batching": {**BATCHING, "maxBatchSize": 1}}
        for name, spec in specs.items():
            table.append(measure(given.carpool, given.output, name, spec, requests))
            print(" | ".join(table[-1]), flush=True)
    (given.output / "answers.md").write_text(
        "\n".join(["| " + " | ".join(table[0]) + " |", "|---" * len(table[0]) + "|", *("| " + " | ".join(row) + " |" for row in table[1:]), ""])
    )
    print(f"table: {given.output / 'answers.md'}")


if __name__ == "__main__":
    main()
