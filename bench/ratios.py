"""The ratios of a run of `make bench` beside those in `baseline.json`.

Only ratios between figures of one run are kept: the figures themselves depend on the machine and on what else it does.
With --write they become the baseline, together with the machine that they are of.
"""

import argparse
import json
import os
import pathlib
import platform

BASELINE = pathlib.Path(__file__).with_name("baseline.json")


def article(folder: pathlib.Path) -> dict[str, float]:
    runs = json.loads((folder / "demo" / "summary.json").read_text())["runs"]
    last = {way: own[-1] for way, own in runs.items()}
    threads = last["batched"]["threads"]
    return {
        f"article, {threads} threads: one at a time / batched, seconds": last["unbatched"]["seconds"] / last["batched"]["seconds"],
        f"article, {threads} threads: batched / the model alone, seconds": last["batched"]["seconds"] / last["alone"]["seconds"],
    }


def latency(folder: pathlib.Path) -> dict[str, float]:
    summary = json.loads((folder / "bench" / "latency.json").read_text())
    parts = summary["meanMicrosecondsByPart"]
    forward = next(mean for part, mean in parts.items() if "forward pass" in part)
    return {"one idle client: p50 / the forward pass": summary["microseconds"]["p50"] / forward}


def peers(folder: pathlib.Path) -> dict[str, float]:
    summary = json.loads((folder / "bench" / "peers" / "peers.json").read_text())
    own, best = summary["medians"]["carpool"], summary["medians"][summary["best"]]
    return {
        f"bert-tiny, {summary['clients']} clients: carpool / mosec, requests/s": own["requests"] / best["requests"],
        f"bert-tiny, {summary['clients']} clients: carpool / mosec, CPU a request": own["cpu_microseconds"] / best["cpu_microseconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=pathlib.Path, required=True, help="the folder that the measurements were left in")
    parser.add_argument("--write", action="store_true", help="make them the baseline")
    given = parser.parse_args()
    now = {**article(given.output), **latency(given.output), **peers(given.output)}
    now = {name: round(ratio, 2) for name, ratio in now.items()}
    before = json.loads(BASELINE.read_text())["ratios"] if BASELINE.exists() else {}
    print(f"{'baseline':>9} {'now':>7}")
    for name, ratio in now.items():
        print(f"{before.get(name, '–'):>9} {ratio:>7}  {name}")
    if given.write:
        machine = {"processors": len(os.sched_getaffinity(0)), "architecture": platform.machine(), "device": "cpu"}
        BASELINE.write_text(json.dumps({"machine": machine, "ratios": now}, indent=2) + "\n")


if __name__ == "__main__":
    main()
