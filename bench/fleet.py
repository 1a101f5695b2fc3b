#!/usr/bin/env python3
"""Measures an operator that serves many models: processor time, memory, calls to the API server, and how late its Lease
was renewed. Models lie in namespaces with a quota of no pods, so only their other objects are made."""

import argparse
import http.client
import json
import os
import queue
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from datetime import datetime, timezone
from pathlib import Path

import base64
import tempfile

ROOT = Path(__file__).resolve().parent.parent
SYSTEM = "fleet-system"
PER_NAMESPACE = 50
ADMIN = "127.0.0.1:19090"
GROUP = "/apis/carpool.dev/v1alpha1"
LEASE = f"/apis/coordination.k8s.io/v1/namespaces/{SYSTEM}/leases/carpool-operator"
TICKS = os.sysconf("SC_CLK_TCK")
# Verbs that change nothing, as the operator's metrics name them.
READS = ("get", "list", "watch")


class Api:
    """The API server, through the client certificate of $KUBECONFIG; one connection for each thread."""

    def __init__(self):
        config = json.loads(
            subprocess.check_output(["kubectl", "config", "view", "--raw", "--minify", "--output=json"])
        )
        cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
        self.host = cluster["server"].removeprefix("https://")
        authority = base64.b64decode(cluster["certificate-authority-data"]).decode()
        self.tls = ssl.create_default_context(cadata=authority)
        with tempfile.NamedTemporaryFile() as pem:
            for part in ("client-certificate-data", "client-key-data"):
                pem.write(base64.b64decode(user[part]) + b"\n")
            pem.flush()
            self.tls.load_cert_chain(pem.name)
        self.local = threading.local()

    def connection(self):
        return http.client.HTTPSConnection(self.host, context=self.tls, timeout=120)

    def call(self, method, path, body=None, kind="application/json", accept="application/json"):
        if not hasattr(self.local, "connection"):
            self.local.connection = self.connection()
        data = None if body is None else json.dumps(body)
        for again in (True, False):
            try:
                self.local.connection.request(method, path, data, {"Content-Type": kind, "Accept": accept})
                response = self.local.connection.getresponse()
                text = response.read()
                break
            except (http.client.HTTPException, OSError):
                self.local.connection = self.connection()
                if not again:
                    raise
        if response.status >= 300 and response.status not in (404, 409):
            raise RuntimeError(f"{method} {path}: {response.status} {text[:300].decode()}")
        return json.loads(text)

    def all(self, method, calls):
        """Makes many calls, several at a time."""
        todo = queue.SimpleQueue()
        failures = []
        for call in calls:
            todo.put(call)

        def work():
            try:
                while True:
                    self.call(method, *todo.get_nowait())
            except queue.Empty:
                pass
            except Exception as error:  # told by the main thread
                failures.append(error)

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]


def namespace_of(number):
    return f"fleet-{number // PER_NAMESPACE}"


def model_path(number):
    return f"{GROUP}/namespaces/{namespace_of(number)}/batchedmodels/model-{number}"


def model(number):
    return {
        "apiVersion": "carpool.dev/v1alpha1",
        "kind": "BatchedModel",
        "metadata": {"name": f"model-{number}", "namespace": namespace_of(number)},
        "spec": {
            "model": {
                "uri": f"pvc://models/model-{number}",
                "inputs": [
                    {"name": "input_ids", "datatype": "INT64", "shape": [-1]},
                    {"name": "attention_mask", "datatype": "INT64", "shape": [-1]},
                ],
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2]}],
            },
            "scaling": {"minReplicas": 1, "maxReplicas": 4},
        },
    }


def populate(api, first, last):
    namespaces = sorted({namespace_of(number) for number in range(first, last)} | {SYSTEM})
    api.all("POST", [("/api/v1/namespaces", {"metadata": {"name": name}}) for name in namespaces])
    quota = {"metadata": {"name": "no-pods"}, "spec": {"hard": {"pods": "0"}}}
    api.all("POST", [(f"/api/v1/namespaces/{name}/resourcequotas", quota) for name in namespaces])
    api.all("POST", [(model_path(number).rsplit("/", 1)[0], model(number)) for number in range(first, last)])


class Lease(threading.Thread):
    """Follows the Lease's renewals in a watch."""

    def __init__(self, api):
        super().__init__(daemon=True)
        self.api, self.renewals = api, []

    def run(self):
        path = LEASE.rsplit("/", 1)[0] + "?watch=true&fieldSelector=metadata.name=carpool-operator&timeoutSeconds=3600"
        connection = self.api.connection()
        connection.timeout = 3600
        connection.request("GET", path)
        for line in connection.getresponse():
            renewed = json.loads(line)["object"].get("spec", {}).get("renewTime")
            if renewed:
                when = datetime.fromisoformat(renewed.replace("Z", "+00:00")).astimezone(timezone.utc)
                self.renewals.append(when.timestamp())

    def worst(self, since, until):
        inside = [when for when in self.renewals if since <= when <= until]
        return round(max((b - a for a, b in zip(inside, inside[1:])), default=0), 2)


class Operator:
    """An operator as a process of this machine."""

    def __init__(self, program, log):
        environment = dict(os.environ, POD_NAMESPACE=SYSTEM, RUST_LOG="warn,carpool_operator=info")
        self.log = open(log, "wb")
        self.process = subprocess.Popen(
            [program, f"--admin-listen={ADMIN}", "--log-format=json"], env=environment, stdout=self.log, stderr=self.log
        )
        self.began = time.time()

    def seconds(self):
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def memory(self):
        """Memory now and at most, in MiB."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        found = dict(line.split(":", 1) for line in lines)
        return tuple(round(int(found[key].split()[0]) / 1024, 1) for key in ("VmRSS", "VmHWM"))

    def metrics(self):
        with urllib.request.urlopen(f"http://{ADMIN}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        return {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")}

    def calls(self):
        """Calls so far, by verb and kind."""
        found = {}
        for series, value in self.metrics().items():
            name, _, labels = series.partition("{")
            if name == "carpool_operator_api_calls_total":
                labels = dict(label.split("=") for label in labels.rstrip("}").replace('"', "").split(","))
                found[f"{labels['verb']} {labels['resource']}"] = value
        return found

    def reconciles(self):
        return sum(value for name, value in self.metrics().items() if name.startswith("carpool_operator_reconciles"))

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(30)
        self.log.close()


def settle(operator, quiet, limit):
    """Waits until nothing was reconciled for a while. Returns the second of the last reconcile."""
    end, last, since = time.time() + limit, -1, time.time()
    while time.time() < end:
        if operator.process.poll() is not None:
            raise RuntimeError(f"the operator ended with {operator.process.returncode}; {operator.log.name} says why")
        try:
            now = operator.reconciles()
        except OSError:
            now = -1
        if now != last or now <= 0:
            last, since = now, time.time()
        elif time.time() - since > quiet:
            return round(since - operator.began, 1)
        time.sleep(1)
    return None


def window(operator, lease, seconds, work=lambda second: None):
    """Looks at an operator for a while, during which `work` is done."""
    began, before, calls = time.time(), operator.seconds(), operator.calls()
    reconciles = operator.reconciles()
    for second in range(seconds):
        work(second)
        time.sleep(max(0, began + second + 1 - time.time()))
    took = time.time() - began
    a_minute = lambda number: round(number * 60 / took, 1)
    made = {key: a_minute(value - calls.get(key, 0)) for key, value in operator.calls().items()}
    return {
        "cpu_percent": round(100 * (operator.seconds() - before) / took, 2),
        "rss_mib": operator.memory()[0],
        "reconciles_a_minute": a_minute(operator.reconciles() - reconciles),
        "calls_a_minute": {key: value for key, value in sorted(made.items()) if value},
        "lease_worst_gap_s": lease.worst(began - 6, time.time()),
    }


def to_and_fro(api, models):
    """Changes the least number of workers of one model in ten, every 10 s."""

    def work(second):
        mine = [number for number in range(0, models, 10) if number // 10 % 10 == second % 10]
        body = {"spec": {"scaling": {"minReplicas": 2 if second // 10 % 2 == 0 else 1}}}
        api.all("PATCH", [(model_path(number), body, "application/merge-patch+json") for number in mine])

    return work


def start(api, program, folder, name, quiet):
    lease = Lease(api)
    api.call("DELETE", LEASE)
    operator = Operator(program, folder / f"{name}.log")
    lease.start()
    settled = settle(operator, quiet, 400)
    made = operator.calls()
    report = {
        "settled_s": settled,
        "cpu_s": round(operator.seconds(), 1),
        "rss_mib_most": operator.memory()[1],
        "writes": {key: int(value) for key, value in made.items() if key.split()[0] not in READS},
        "reads": {key: int(value) for key, value in made.items() if key.split()[0] in READS},
        "lease_worst_gap_s": lease.worst(operator.began, time.time()),
    }
    return operator, lease, report


def measure(api, program, folder, models, seconds, quiet):
    operator, lease, made = start(api, program, folder, f"{models}-make", quiet)
    operator.stop()
    operator, lease, again = start(api, program, folder, f"{models}-again", quiet)
    result = {"models": models, "made": made, "started_again": again}
    result["idle"] = window(operator, lease, seconds)
    result["scaling"] = window(operator, lease, seconds, to_and_fro(api, models))
    operator.stop()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operator", required=True, help="the binary carpool-operator")
    parser.add_argument("--models", type=int, nargs="+", default=[50, 200, 1000], help="rising numbers of models")
    parser.add_argument("--seconds", type=int, default=60, help="the length of each look")
    parser.add_argument("--quiet", type=int, default=15, help="seconds without a reconcile after which it has settled")
    parser.add_argument("--output", type=Path, default=Path("out/bench/fleet"))
    parser.add_argument("--keep", action="store_true", help="leaves the namespaces")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    api = Api()
    subprocess.run(
        ["kubectl", "apply", "--server-side", "--force-conflicts", "-f", ROOT / "charts/carpool/files/batchedmodels.yaml"], check=True
    )
    subprocess.run(
        ["kubectl", "wait", "--for=condition=Established", "--timeout=60s", "crd/batchedmodels.carpool.dev"], check=True
    )
    results, there = [], 0
    try:
        for models in arguments.models:
            populate(api, there, models)
            there = models
            results.append(
                measure(api, arguments.operator, arguments.output, models, arguments.seconds, arguments.quiet)
            )
            print(json.dumps(results[-1], indent=1), flush=True)
            (arguments.output / "fleet.json").write_text(json.dumps(results, indent=1) + "\n")
    finally:
        if not arguments.keep:
            names = sorted({namespace_of(number) for number in range(there)} | {SYSTEM})
            api.all("DELETE", [(f"/api/v1/namespaces/{name}",) for name in names])


if __name__ == "__main__":
    sys.exit(main())
