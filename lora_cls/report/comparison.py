"""A comparison of runs as Markdown, CSV, one HTML page, and a figure."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lora_cls.errors import RunError, visible
from lora_cls.evaluation.comparison import COST_NOTE, Compared, Comparison, Seeds
from lora_cls.files import make_folder, write_bytes, write_csv
from lora_cls.report.offline import fill_page
from lora_cls.report.sentences import Cells, interval_text
from lora_cls.report.templating import fill

HEADER = (
    "", "run", "what", "{metric} (95 %)", "untuned", "minus the best (95 %)", "train min", "train rows/s",
    "s per 1,000 texts", "peak GiB", "trained parameters",
)  # fmt: skip
COSTS = ("train_minutes", "train_rows_per_second", "seconds_per_1000_texts", "peak_memory_gib", "trainable_parameters")
SCORES, COST = (0, 1, 3, 4, 5), (0, 1, 2, 6, 7, 8, 9, 10)  # columns of two tables, so that neither is too wide
INK = "#1b1f24"
WIDTH, HEIGHT = 648, 360
COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf")
MARKERS = ("M-4,0a4,4 0 1,0 8,0a4,4 0 1,0 -8,0z", "M-4,-4h8v8h-8z", "M0,-5l5,5l-5,5l-5,-5z", "M0,-5l5,9h-10z")
"""Circle, square, diamond, triangle, as paths around a point."""


def write_comparison(comparison: Comparison, out: Path) -> list[Path]:
    """Write `compare.md`, `compare.csv`, `compare.svg` and `compare.html`, which holds the figure.

    Raises
    ------
    RunError
        If `out` is a run folder, or cannot be made.
    """
    if os.path.isfile(out / "recipe.yaml"):
        raise RunError(f"{out} is a run folder: choose another folder with --out.")
    make_folder(out)
    picture = figure(comparison)
    write_bytes(out / "compare.md", markdown(comparison).encode())
    write_csv(out / "compare.csv", comparison.table())
    write_bytes(out / "compare.svg", picture.encode())
    write_bytes(out / "compare.html", html(comparison, picture).encode())
    return [out / f"compare.{kind}" for kind in ("md", "csv", "svg", "html")]


def markdown(comparison: Comparison, picture: str = "compare.svg") -> str:
    """The comparison as Markdown; `picture` is the path of the figure, seen from the file."""
    return fill("compare.md.j2", **_shown(comparison), names=_numbered(comparison), picture=picture)


def html(comparison: Comparison, picture: str) -> str:
    """One page without any other file: tables and the figure."""
    # drawn in the ink of the page, on its ground
    svg = picture[picture.index("<svg") :].replace(INK, "currentColor")
    more = {"score_columns": SCORES, "cost_columns": COST, "picture": svg}
    return fill_page("compare.html.j2", _shown(comparison) | more)


def _shown(comparison: Comparison) -> dict[str, Any]:
    """What both templates say."""
    return {
        "where": where_scored(comparison),
        "header": comparison_header(comparison),
        "metric": comparison.metric.title,
        "cells": comparison_cells(comparison),
        "labels": label_cells(comparison),
        "seeds": [seeds_sentence(seeds) for seeds in comparison.seeds],
        "note": comparison.note,
        "cost_note": COST_NOTE,
    }


def figure(comparison: Comparison) -> str:
    """SVG of the metric with its interval against minutes of training, logarithmic."""
    runs, named = comparison.runs, _numbered(comparison)
    left, right, top, bottom = 62, WIDTH - 40 - 6.5 * min(max(map(len, named)), 40), 12, HEIGHT - 44
    ends = np.log10([_minutes(run) for run in runs])
    margin = max(0.1 * (ends.max() - ends.min()), 0.05)
    first, last = ends.min() - margin, ends.max() + margin
    least, most = min(run.score.low for run in runs), max(run.score.high for run in runs)
    room = max(0.05 * (most - least), 1e-4)
    least, most = least - room, most + room

    def x(minutes: float) -> float:
        return float(left + (np.log10(minutes) - first) / (last - first) * (right - left))

    def y(score: float) -> float:
        return float(bottom - (score - least) / (most - least) * (bottom - top))

    # places are found with y upwards
    places = _free_places(
        [
            np.array([(x(_minutes(run)), HEIGHT - y(f1)) for f1 in (run.score.low, run.score.estimate, run.score.high)])
            for run in runs
        ]
    )
    points = [
        {
            "name": name if len(name) <= 40 else f"{name[:39]}…",
            "number": i + 1,
            "colour": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i // len(COLOURS) % len(MARKERS)],
            "x": x(_minutes(run)),
            "y": y(run.score.estimate),
            "low": y(run.score.low),
            "high": y(run.score.high),
            "number_x": place[0],
            "number_y": HEIGHT - place[1],
        }
        for i, (run, name, place) in enumerate(zip(runs, named, places, strict=True))
    ]
    step = _step((most - least) / 5)
    scores = [k * step for k in range(int(np.ceil(least / step)), int(np.floor(most / step)) + 1)]
    return fill(
        "compare.svg.j2",
        metric=comparison.metric.title,
        width=WIDTH,
        height=max(HEIGHT, 16 * len(runs) + 30),  # of the names beside it
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        ink=INK,
        points=points,
        x_ticks=[(x(minutes), f"{minutes:.3g}") for minutes in _minutes_shown(10**first, 10**last)],
        y_ticks=[(y(score), f"{score:.{max(0, int(np.ceil(-np.log10(step))))}f}") for score in scores],
    )


def _step(about: float) -> float:
    """1, 2 or 5 times a power of ten, no less than `about`."""
    power = 10.0 ** np.floor(np.log10(about))
    return float(next(digit * power for digit in (1, 2, 5, 10) if digit * power >= about * (1 - 1e-9)))


def _minutes_shown(first: float, last: float) -> list[float]:
    """Ticks of the logarithmic axis: 1, 2 and 5 times the powers of ten; where fewer than two lie there, finer ones."""
    powers = range(int(np.floor(np.log10(first))), int(np.floor(np.log10(last))) + 1)
    ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
    inside = [tick for tick in ticks if first <= tick <= last]
    if len(inside) >= 2:
        return inside
    step = _step((last - first) / 4)
    return [k * step for k in range(int(np.ceil(first / step)), int(np.floor(last / step)) + 1)]


def _minutes(run: Compared) -> float:
    return max(run.cost["train_minutes"] or 0.0, 1e-3)


def _free_places(ends: Sequence[np.ndarray]) -> list[tuple[float, float]]:
    """Where the runs' numbers stand: for each the nearest place, in pixels, that hides no point, interval or number.

    Parameters
    ----------
    ends : of each run the lower end, the point and the upper end of its interval, ndarray of shape (3, 2), in pixels
    """
    # boxes as left, bottom, right, top; a number is 20 by 16
    taken = [(low[0] - 5, low[1] - 3, low[0] + 5, high[1] + 3) for low, _, high in ends]
    places = []
    for _, (x, y), _ in ends:
        around = [
            (x + radius * np.cos(angle), y + radius * np.sin(angle))
            for radius in range(18, 130, 8)
            for angle in np.pi * np.array([0, 1, 0.15, 0.85, -0.15, 1.15, 0.3, 0.7, -0.3, 1.3, 0.5, 1.5])
        ]
        free = (
            place
            for place in around
            if not any(
                left < place[0] + 10 and place[0] - 10 < right and bottom < place[1] + 8 and place[1] - 8 < top
                for left, bottom, right, top in taken
            )
        )
        place = next(free, around[0])
        taken.append((place[0] - 10, place[1] - 8, place[0] + 10, place[1] + 8))
        places.append((float(place[0]), float(place[1])))
    return places


def comparison_header(comparison: Comparison) -> list[str]:
    """What stands over the columns of `comparison_cells`."""
    return [name.format(metric=comparison.metric.title) for name in HEADER]


def comparison_cells(comparison: Comparison) -> Cells:
    rows = []
    for number, run in enumerate(comparison.runs, start=1):
        gap = "best" if run.difference is None else _sign_cell(run)
        name = f"{run.name} (OPTIMISTIC)" if run.optimistic else run.name
        minutes, speed, latency, memory, trained = (run.cost[key] for key in COSTS)
        rows.append(
            [
                str(number),
                name,
                run.recipe,
                interval_text(run.score),
                "-" if run.untuned is None else f"{run.untuned:.4f}",
                gap,
                "-" if minutes is None else f"{minutes:.1f}" if minutes >= 0.1 else f"{minutes:.3f}",
                "-" if speed is None else f"{speed:.1f}",
                "-" if latency is None else f"{latency:.2f}",
                "-" if memory is None else f"{memory:.2f}",
                "-" if trained is None else f"{trained:,.0f}",
            ]
        )
    return rows


def label_cells(comparison: Comparison) -> list[tuple[str, list[tuple[str, bool]]]]:
    """Of each label its name, and of each run F1 and whether none has more."""
    rows = []
    for j, label in enumerate(comparison.label_names):
        winners = comparison.winners(j)
        rows.append((label, [(f"{run.f1[j]:.3f}", run.name in winners) for run in comparison.runs]))
    return rows


def _numbered(comparison: Comparison) -> list[str]:
    return [f"{number} {visible(run.name)}" for number, run in enumerate(comparison.runs, start=1)]


def where_scored(comparison: Comparison) -> str:
    if comparison.over == "parts":
        return f"{comparison.n_rows} held-out rows of one fold, cross-fitted over {comparison.n_parts} parts of them"
    return f"{comparison.n_rows} rows, {comparison.n_folds} folds"


def _sign_cell(run: Compared) -> str:
    assert run.difference is not None
    return interval_text(run.difference, "+") + ("" if run.difference.high < 0 else " (not shown to be worse)")


def seeds_sentence(seeds: Seeds) -> str:
    return (
        f"{len(seeds.names)} seeds of one recipe ({', '.join(seeds.names)}): mean {seeds.mean:.4f}, standard deviation "
        f"{seeds.sd:.4f}, from {seeds.low:.4f} to {seeds.high:.4f}."
    )
