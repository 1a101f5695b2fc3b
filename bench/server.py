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
from typing import Any, NamedTuple

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
    """Serves one manifest. Use it in a `with`: the processes are gone after it, whatever happened.

    They also end, soon after, where this one is killed. To the kernel that is the thread that made it, so the main one
    must.
    """

    def __init__(self, carpool: pathlib.Path, manifest: pathlib.Path, name: str, log: pathlib.Path) -> None:
        self.port = free_port()
        self._name = name
        self._log = log
        with log.open("wb") as output:
            # A session of its own, so that a Ctrl-C meant for the benchmark leaves the shutdown to `__exit__`. Where
            # that never runs, the kernel sends the signal: setpriv asks for it and becomes carpool, which ends its own.
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", carpool, "local", manifest, "--http", f"127.0.0.1:{self.port}"],
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
        texts = [_metrics(worker) for worker in self._status().get("workers", [])]
        return Batches(
            rows=sum(sum(_series(text, "carpool_worker_batch_size_rows_sum").values()) for text in texts),
            runs=sum(sum(_series(text, "carpool_worker_batch_size_rows_count").values()) for text in texts),
        )

    def series(self, name: str) -> dict[str, float]:
        """A metric by its labels, over all processes."""
        status = self._status()
        total: dict[str, float] = {}
        for process in [status["proxy"], *status["workers"]]:
            for labels, value in _series(_metrics(process), name).items():
                total[labels] = total.get(labels, 0.0) + value
        return total

    @property
    def process_id(self) -> int:
        """Of `carpool local` itself."""
        return self._process.pid

    def resident(self) -> dict[str, float]:
        """MB of memory that each process holds, `carpool local` first."""
        own = self._process.pid
        children = pathlib.Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return dict(_resident(int(process)) for process in [own, *children])

    def _status(self) -> dict[str, Any]:
        """The status file that `carpool local` names once it serves."""
        found = re.search(r"^ +status: +(.+)$", self._log.read_text(errors="replace"), re.MULTILINE)
        try:
            return json.loads(pathlib.Path(found[1]).read_text()) if found else {}
        except FileNotFoundError:
            return {}

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
            return connection.getresponse().status == 200 and any(worker["ready"] for worker in self._status().get("workers", []))
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


def _metrics(process: dict[str, Any]) -> str:
    with urllib.request.urlopen(f"{process['admin']}/metrics", timeout=5) as response:
        return response.read().decode()


def _series(text: str, name: str) -> dict[str, float]:
    """A metric by its labels, from the text that Prometheus reads."""
    found = re.findall(rf"^{name}(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def _resident(process: int) -> tuple[str, float]:
    status = pathlib.Path(f"/proc/{process}/status").read_text()
    return re.search(r"^Name:\s+(.+)$", status, re.MULTILINE)[1], int(re.search(r"^VmRSS:\s+(\d+)", status, re.MULTILINE)[1]) / 1e3
