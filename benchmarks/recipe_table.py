"""The table and the plot of ``recipes.py``: runs grouped by arm and steps, over their seeds."""

from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]


def metric_of(result: dict[str, Any]) -> str:
    """The Frechet distance's name: the first of the distances."""
    return next(iter(result["distances"]))


def summarise(found: list[dict[str, Any]], baseline: str) -> list[Row]:
    """One row for each arm and number of steps, by number of steps and then mean distance.

    ``found``: results of runs with ``arm``, ``steps`` and ``seed``. ``ratio``: of mean distances to those of
    ``baseline`` at equal steps over the seeds that both have, None without any.
    """
    by_arm: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for run in found:
        by_arm.setdefault((run["arm"], run["steps"]), {})[run["seed"]] = run
    rows = []
    for (arm, steps), runs in by_arm.items():
        metric = metric_of(next(iter(runs.values())))
        values = {seed: run["distances"][metric] for seed, run in runs.items()}
        other = {seed: run["distances"][metric] for seed, run in by_arm.get((baseline, steps), {}).items()}
        shared = values.keys() & other.keys()
        rows.append(
            {
                "arm": arm,
                "steps": steps,
                "seeds": list(values),
                "metric": metric,
                "mean": mean(values.values()),
                "lowest": min(values.values()),
                "highest": max(values.values()),
                "kid": _mean_of(runs, "kid_"),
                "recall": _mean_of(runs, "recall"),
                "ratio": mean(values[s] for s in shared) / mean(other[s] for s in shared) if shared else None,
                "seconds": mean(run["seconds"] for run in runs.values()),
                "images_per_second": mean(run["images_per_second"] for run in runs.values()),
                "runs": list(runs.values()),
            }
        )
    return sorted(rows, key=lambda row: (row["steps"], row["mean"]))


def _mean_of(runs: dict[int, dict[str, Any]], prefix: str) -> float | None:
    """Over the seeds, of the first distance whose name begins so; None where a run has none."""
    values = [next((v for k, v in run["distances"].items() if k.startswith(prefix)), None) for run in runs.values()]
    return None if None in values else mean(v for v in values if v is not None)


def table_text(rows: list[Row], teacher: dict[str, Any] | None, baseline: str) -> str:
    """``seconds`` and ``images/s`` are means over the seeds too."""
    metric, run = rows[0]["metric"], rows[0]["runs"][0]
    width = max(len("teacher"), *(len(row["arm"]) for row in rows))
    ratio_title = f"/ {baseline}"
    wide = max(8, len(ratio_title))
    lines = [
        f"{metric} to {run['data']}, {run['num_images']} images, {run['num_inference_steps']} DDIM steps",
        f"{'arm':<{width}}{'steps':>8}{'seeds':>7}{'mean':>10}{'lowest':>10}{'highest':>10}"
        f"  {ratio_title:>{wide}}{'KID':>8}{'recall':>8}{'seconds':>10}{'images/s':>10}",
    ]
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}x"
        lines.append(
            f"{row['arm']:<{width}}{row['steps']:>8}{len(row['seeds']):>7}"
            f"{row['mean']:>10.1f}{row['lowest']:>10.1f}{row['highest']:>10.1f}"
            f"  {ratio:>{wide}}{_shown(row['kid'])}{_shown(row['recall'])}"
            f"{row['seconds']:>10.0f}{row['images_per_second']:>10.1f}"
        )
    if teacher is not None:
        own = {0: teacher}
        figures = f"{_shown(_mean_of(own, 'kid_'))}{_shown(_mean_of(own, 'recall'))}"
        lines.append(f"{'teacher':<{width}}{'':>15}{teacher['distances'][metric]:>10.1f}{'':>{22 + wide}}{figures}")
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return f"{'-' if value is None else format(value, '.3f'):>8}"


def plot(rows: list[Row], teacher: dict[str, Any] | None, path: Path) -> None:
    """Distance against steps and against seconds of training; a line through each arm's means, a point a seed."""
    metric = rows[0]["metric"]
    arms = list(dict.fromkeys(row["arm"] for row in sorted(rows, key=lambda row: row["mean"])))
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.6), sharey=True, layout="constrained")
    colours = plt.get_cmap("tab10" if len(arms) <= 10 else "tab20").colors
    for panel, across in zip(panels, ("steps", "seconds"), strict=True):
        for k, arm in enumerate(arms):
            mine = [row for row in rows if row["arm"] == arm]
            colour, marker = colours[k % len(colours)], "os^Dv"[k // len(colours) % 5]
            line = sorted((row[across], row["mean"]) for row in mine)
            panel.plot(*zip(*line, strict=True), color=colour, marker=marker, markersize=4, label=arm)
            runs = [run for row in mine for run in row["runs"]]
            values = [run["distances"][metric] for run in runs]
            panel.scatter([run[across] for run in runs], values, color=colour, marker=marker, s=14, alpha=0.6)
        if teacher is not None:
            panel.axhline(teacher["distances"][metric], color="black", linestyle="--", label="teacher")
        panel.set(xscale="log", yscale="log", xlabel="steps" if across == "steps" else "seconds of training")
        panel.grid(True, which="both", alpha=0.25)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_formatter("")
        panel.yaxis.set_minor_formatter("{x:g}")
    counts = sorted({row["steps"] for row in rows})
    panels[0].set_xticks(counts, map(str, counts))
    panels[0].set_ylabel(f"{metric} to the data")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    figure.savefig(path, dpi=110)
    plt.close(figure)
