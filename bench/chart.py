"""The article's chart: total time against client threads."""

import pathlib

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot  # noqa: E402 (the backend must be chosen first)
from matplotlib.axes import Axes  # noqa: E402

LINES = {
    "unbatched": ("one at a time (maxBatchSize 1), through Redis", "#c2410c", "-", "o"),
    "batched": ("batched by Carpool, through Redis", "#1d4ed8", "-", "o"),
    "alone": ("the model alone in full batches, no server", "#57534e", "--", "s"),
}


def draw(runs: dict[str, list[dict[str, float]]], queries: int, folder: pathlib.Path) -> None:
    """Writes chart.svg and chart.png."""
    # The same figures give the same file.
    matplotlib.rcParams["svg.hashsalt"] = "carpool"
    matplotlib.rcParams["font.size"] = 11
    figure, axes = pyplot.subplots(figsize=(8.5, 5.2), layout="constrained")
    for mode, (label, colour, style, marker) in LINES.items():
        threads = [run["threads"] for run in runs[mode]]
        seconds = [run["seconds"] for run in runs[mode]]
        axes.plot(threads, seconds, style, color=colour, marker=marker, markersize=5, linewidth=2, label=label)
    last_one, last_many = runs["unbatched"][-1], runs["batched"][-1]
    total = last_many["queries"]
    axes.set_title(
        f"{total:,} questions from {last_many['threads']} threads: "
        f"{last_one['seconds']:.1f} s one at a time, {last_many['seconds']:.1f} s in batches\n",
        loc="left",
        fontsize=13,
        fontweight="bold",
    )
    axes.text(
        0,
        1.03,
        f"sentiment of movie-review sentences, on a CPU; each thread asks {queries} questions, one after the other",
        transform=axes.transAxes,
        fontsize=10,
        color="#57534e",
    )
    axes.set_xlabel("client threads")
    axes.set_ylabel("total time, seconds")
    axes.set_xticks([run["threads"] for run in runs["batched"]])
    axes.margins(x=0.12)
    axes.set_ylim(bottom=0)
    write_last_values(axes, runs)
    axes.grid(axis="y", color="#e7e5e4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(folder / "chart.svg", metadata={"Date": None})
    figure.savefig(folder / "chart.png", dpi=160)
    pyplot.close(figure)


def write_last_values(axes: Axes, runs: dict[str, list[dict[str, float]]]) -> None:
    """Writes each line's last value beside its end, moved up as far as the one below it needs."""
    lowest = 0.0
    line_height = 0.05 * axes.get_ylim()[1]
    for mode in sorted(LINES, key=lambda mode: runs[mode][-1]["seconds"]):
        last = runs[mode][-1]
        height = max(last["seconds"], lowest)
        lowest = height + line_height
        axes.annotate(
            f"{last['seconds']:.1f} s",
            (last["threads"], height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=LINES[mode][1],
        )
