"""Processor time and memory of processes, from /proc."""

import contextlib
import os
import pathlib

TICKS = os.sysconf("SC_CLK_TCK")


def family(process: int) -> list[int]:
    """A process and all that it started, however deep."""
    found = [process]
    for own in found:
        with contextlib.suppress(FileNotFoundError):
            for task in pathlib.Path(f"/proc/{own}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


def processor_seconds(processes: list[int]) -> float:
    total = 0
    for process in processes:
        with contextlib.suppress(FileNotFoundError):
            fields = pathlib.Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / TICKS


def resident_mb(processes: list[int]) -> float:
    """Pages that several processes share count in parts (PSS): forked workers share most of Python."""
    total = 0
    for process in processes:
        with contextlib.suppress(FileNotFoundError, PermissionError):
            lines = pathlib.Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
            total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1e3
