"""Models on this machine, by `carpool local`, for clients that know nothing of it."""

import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "carpool"
ROOT = Path(__file__).resolve().parents[2]


def manifest(name, folder):
    """An example's manifest, with its artifact where the example's `build` has put it."""
    text = (ROOT / "examples" / name / "model.yaml").read_text()
    path = folder / f"{name}.yaml"
    path.write_text(text.replace("file://artifact", f"file://{CACHE}/models/{name}/artifact"))
    return str(path)


@contextlib.contextmanager
def served(names, folder, *arguments):
    """The addresses of these models, HOST:PORT by name, once they are ready."""
    files = [manifest(name, folder) for name in names]
    local = subprocess.Popen(
        ["carpool", "local", "--http", "127.0.0.1:0", *arguments, *files],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )
    addresses, ready = {}, set()
    for line in local.stdout:
        sys.stderr.write(line)
        if found := re.match(r"(\w+): https?://(\S+)", line):
            addresses[found[1]] = found[2]
        if found := re.match(r"(\w+): the model is loaded, ready", line):
            ready.add(found[1])
        if len(addresses) == len(names) and ready == addresses.keys():
            break
    else:
        pytest.exit(f"carpool local ended with {local.wait()}", 1)
    yield addresses
    local.terminate()
    local.wait(30)


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """The addresses of the models, HOST:PORT by name, once they are ready."""
    with served(("digits", "sentiment"), tmp_path_factory.mktemp("models")) as addresses:
        yield addresses


@pytest.fixture(scope="session")
def secure(tmp_path_factory):
    """The address of the model of digits by TLS, HOST:PORT, and the file of the certificate to trust."""
    folder = tmp_path_factory.mktemp("secure")
    certificate = str(folder / "tls.crt")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1",
         "-keyout", str(folder / "tls.key"), "-out", certificate, "-subj", "/CN=digits",
         "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"],
        check=True, stderr=subprocess.DEVNULL,
    )
    with served(("digits",), folder, "--tls-dir", str(folder)) as addresses:
        yield addresses["digits"], certificate


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """The address of the model of embeddings."""
    with served(["minilm"], tmp_path_factory.mktemp("models")) as addresses:
        yield addresses["minilm"]


@pytest.fixture(scope="session")
def sentences():
    """Sentences, with the embeddings and numbers of tokens that sentence-transformers gives them by the same weights."""
    return json.loads((CACHE / "models/minilm/heldout.json").read_text())


@pytest.fixture(scope="session")
def digits(models):
    """Held-out images, and the digits that the model sees in them, each asked for alone."""
    rows = json.loads((CACHE / "models/digits/heldout.json").read_text())[:16]
    for row in rows:
        tensor = {"name": "image", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": [row["image"]]}
        url = f"http://{models['digits']}/v2/models/digits/infer"
        body = json.dumps({"inputs": [tensor]}).encode()
        request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
        answer = json.load(urllib.request.urlopen(request, timeout=30))
        logits = answer["outputs"][0]["data"]
        row["seen"] = logits.index(max(logits))
    assert sum(row["seen"] == row["label"] for row in rows) >= 14
    return [(row["image"], row["seen"]) for row in rows]


def pytest_terminal_summary(terminalreporter):
    """The line by which `hack/test` counts."""
    count = lambda what: len(terminalreporter.stats.get(what, []))
    failed = count("failed") + count("error")
    word = "FAILED" if failed else "ok"
    terminalreporter.write_line(
        f"test result: {word}. {count('passed')} passed; {failed} failed; {count('skipped')} ignored"
    )
