"""A trial is stopped where it has no hope, and only there."""

from lora_cls.search.folder import Trial
from lora_cls.search.stopping import lost_by_folds, lost_by_loss


def trial(number, score=0.7, folds=None, losses=()):
    return Trial(number, "complete", {}, score, folds or {0: score}, list(losses), None, None, None, 0, 0, 1)


def test_folds_are_forgiven_down_to_the_worst_of_the_best():
    best = trial(3, folds={0: 0.60, 1: 0.80})
    assert lost_by_folds([0.61], best, True) is None
    assert lost_by_folds([0.60], best, True) is None, "as good as the worst is no loss"
    assert "0.5900" in lost_by_folds([0.59], best, True)
    assert lost_by_folds([0.55, 0.66], best, True) is None, "the mean counts"
    assert lost_by_folds([0.1], None, True) is None, "nothing to compare with"


def test_a_loss_is_better_low():
    best = trial(3, folds={0: 0.60, 1: 0.80})
    assert lost_by_folds([0.79], best, False) is None
    assert "above the worst fold of trial 3, 0.8000" in lost_by_folds([0.81], best, False)


CURVE = [(0.1 * i, 1.0 - 0.06 * i) for i in range(1, 11)]  # 0.94 down to 0.40


def ranked(n=4):
    return [trial(i, losses=CURVE) for i in range(n)]


def test_a_flat_loss_is_seen_once_it_should_have_fallen():
    flat = [(0.1 * i, 0.94) for i in range(1, 11)]
    stopped_at = next(i for i in range(1, 11) if lost_by_loss(flat[:i], ranked()))
    assert flat[stopped_at - 1][0] >= 0.3
    assert stopped_at < 10


def test_a_loss_like_theirs_goes_on():
    assert not any(lost_by_loss(CURVE[:i], ranked()) for i in range(1, 11))
    slower = [(share, loss + 0.05) for share, loss in CURVE]
    assert not any(lost_by_loss(slower[:i], ranked()) for i in range(4, 11)), "a little higher is no reason"


def test_one_bad_point_is_no_reason():
    spike = [*CURVE[:5], (0.6, 3.0)]
    assert lost_by_loss(spike, ranked()) is None


def test_too_few_to_compare_with():
    flat = [(0.1 * i, 5.0) for i in range(1, 11)]
    assert lost_by_loss(flat, ranked(2)) is None
    assert lost_by_loss(flat, [trial(i) for i in range(5)]) is None, "of TF-IDF there are no losses"


def test_the_worse_half_sets_no_measure():
    """A bad trial that was complete does not excuse another."""
    bad = [(0.1 * i, 0.94) for i in range(1, 11)]
    others = [*ranked(3), trial(8, losses=bad), trial(9, losses=bad)]
    assert lost_by_loss(bad, others)
