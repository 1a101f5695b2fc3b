"""`carpool local` as a child process that ends with whoever started it."""

import http.client
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import time
import urllib.request
from typing import NamedTuple

from progress import Progress

# A first start loads the model and runs it at every size and length it may meet.
READY_WITHIN = 180.0
END_WITHIN = 30.0


class Batches(NamedTuple):
    """Forward passes, and the rows that they held together."""

    rows: float
    runs: float


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Local:
    """Serves one manifest. Use it in a `with`: the processes are gone after it, whatever happened."""

    def __init__(self, carpool: pathlib.Path, manifest: pathlib.Path, name: str, log: pathlib.Path) -> None:
        self.port = free_port()
        self._name = name
        self._log = log
        with log.open("wb") as output:
            # A session of its own, so that a Ctrl-C meant for the benchmark leaves the shutdown to `__exit__`.
            self._process = subprocess.Popen(
                [carpool, "local", manifest, "--http", f"127.0.0.1:{self.port}"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def __enter__(self) -> "Local":
        try:
            self._wait_until_ready()
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def batches(self) -> Batches:
        """The batches that the workers have run so far."""
        texts = [self._get(f"{worker['admin']}/metrics") for worker in self._workers()]
        return Batches(
            rows=sum(_metric(text, "carpool_batch_size_rows_sum") for text in texts),
            runs=sum(_metric(text, "carpool_batch_size_rows_count") for text in texts),
        )

    def _workers(self) -> list[dict[str, object]]:
        """The workers, from the status file that `carpool local` names once it serves."""
        found = re.search(r"^ +status: +(.+)$", self._log.read_text(errors="replace"), re.MULTILINE)
        try:
            return json.loads(pathlib.Path(found[1]).read_text())["workers"] if found else []
        except FileNotFoundError:
            return []

    def _get(self, url: str) -> str:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()

    def _wait_until_ready(self) -> None:
        progress = Progress(f"starting carpool local, {self._log.stem}:")
        give_up = time.monotonic() + READY_WITHIN
        while not self._ready():
            if self._process.poll() is not None:
                raise SystemExit(f"carpool local ended with {self._process.returncode}; {self._last_words()}")
            if time.monotonic() > give_up:
                raise SystemExit(f"carpool local was not ready in {READY_WITHIN:.0f} s; {self._last_words()}")
            progress.show()
            time.sleep(0.1)
        progress.finish("ready")

    def _ready(self) -> bool:
        """Whether a request would be answered at once. The model is Ready before that: it holds requests by then."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", f"/v2/models/{self._name}/ready")
            return connection.getresponse().status == 200 and any(worker["ready"] for worker in self._workers())
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-20:]
        return "\n".join([f"its last lines, all in {self._log}:", *lines])

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(END_WITHIN)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()


def _metric(text: str, name: str) -> float:
    """A metric without labels, from the text that Prometheus reads."""
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0
