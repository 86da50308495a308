"""When a trial has no hope any more: rules over values, each with the sentence that says why."""

from __future__ import annotations

from collections.abc import Sequence

from lora_cls.search.folder import Trial

FEWEST = 3
"""Complete trials before a loss is compared with theirs."""
EARLIEST = 0.3
"""Share of the first fold's training before a loss is judged: what learns slowly at first is let learn."""
MARGIN = 0.5
"""How far a loss may lie above the others', as a share of what they have come down by."""


def lost_by_folds(fold_scores: Sequence[float], best: Trial | None, maximized: bool) -> str | None:
    """Why a trial whose folds so far score so is stopped; None where it goes on.

    The forgiving rule of Bergman, Purucker and Hutter (2024), "Don't Waste Your Time: Early Stopping Cross-Validation"
    (arXiv 2405.03389): only a mean that lies below the worst fold of the best trial ends one.

    Examples
    --------
    >>> from datetime import datetime
    >>> best = Trial(0, "complete", {}, 0.7, {0: 0.68, 1: 0.72}, [], None, None, None, 0, 0, 1)
    >>> lost_by_folds([0.66], best, maximized=True)
    'its mean over 1 fold, 0.6600, lies below the worst fold of trial 0, 0.6800'
    >>> lost_by_folds([0.69], best, maximized=True) is None
    True
    """
    if best is None or not best.fold_scores or not fold_scores:
        return None
    mean = sum(fold_scores) / len(fold_scores)
    worst = min(best.fold_scores.values()) if maximized else max(best.fold_scores.values())
    if (mean >= worst) if maximized else (mean <= worst):
        return None
    folds = f"{len(fold_scores)} fold{'s' * (len(fold_scores) > 1)}"
    side = "below" if maximized else "above"
    return f"its mean over {folds}, {mean:.4f}, lies {side} the worst fold of trial {best.number}, {worst:.4f}"


def lost_by_loss(losses: Sequence[tuple[float, float]], ranked: Sequence[Trial]) -> str | None:
    """Why a trial with such a loss curve in its first fold is stopped; None where it goes on.

    It is compared with the better half of the complete trials at the same share of training: its loss must lie above
    all of theirs, by `MARGIN` of what they came down by, at the last two points, after `EARLIEST`.

    Parameters
    ----------
    losses : pairs of share and mean loss, so far
    ranked : complete trials, the best first
    """
    if len(ranked) < FEWEST or len(losses) < 2 or losses[-1][0] < EARLIEST:
        return None
    better = [trial.losses for trial in ranked[: (len(ranked) + 1) // 2] if trial.losses]
    if not better:
        return None
    start = max(curve[0][1] for curve in better)
    for share, loss in losses[-2:]:
        worst = max(min(curve, key=lambda point: abs(point[0] - share))[1] for curve in better)
        limit = worst + MARGIN * max(start - worst, 0.0)
        if loss <= limit:
            return None
    return (
        f"after {share:.0%} of its first fold its loss, {loss:.4f}, lies far above that of the better half of the "
        f"trials there, at most {worst:.4f}"
    )
