"""The protocol and the ratios that every performance claim goes through."""

import random

import pytest

from gistkit.stats import Interval, median_ratio, quantile
from gistkit.timing import Timing, interleave, timed


def test_every_side_runs_once_a_round_in_changing_order() -> None:
    ran: list[str] = []

    def side(name: str) -> Timing:
        ran.append(name)
        return Timing(wall=len(ran), cpu=0)

    samples = interleave(
        {name: lambda name=name: side(name) for name in "abc"}, rounds=20, warmup=2, seed=0
    )
    rounds = [ran[i : i + 3] for i in range(0, len(ran), 3)]
    assert len(rounds) == 22
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1
    # the warm-up does not count, and one index is one round
    for number, one in enumerate(rounds[2:], start=2):
        for turn, name in enumerate(one, start=1):
            assert samples[name][number - 2].wall == 3 * number + turn


def test_the_order_follows_from_the_seed() -> None:
    def orders(seed: int) -> list[str]:
        ran: list[str] = []

        def side(name: str) -> Timing:
            ran.append(name)
            return Timing(1, 1)

        sides = {name: lambda name=name: side(name) for name in "abcd"}
        interleave(sides, rounds=5, warmup=0, seed=seed)
        return ran

    assert orders(1) == orders(1) != orders(2)


def test_a_ratio_is_the_median_of_paired_ratios_not_the_ratio_of_medians() -> None:
    # the machine is ten times slower in half of the rounds; A always takes twice as long as B
    bottom = [1.0, 10.0, 1.0, 10.0, 1.0]
    found = median_ratio([2 * b for b in bottom], bottom, seed=0)
    assert found == Interval(2.0, 2.0, 2.0)


def test_one_disturbed_round_does_not_move_the_median() -> None:
    found = median_ratio([1.0] * 10 + [50.0], [1.0] * 11, seed=0)
    assert found.median == 1.0
    assert found.high == 1.0


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    draw = random.Random(0)
    covered = 0
    for trial in range(200):
        ratios = [draw.lognormvariate(0, 0.2) for _ in range(31)]
        found = median_ratio(ratios, [1.0] * 31, seed=trial, samples=300)
        covered += found.low <= 1.0 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


def test_more_rounds_give_a_narrower_interval() -> None:
    draw = random.Random(1)
    ratios = [draw.lognormvariate(0, 0.2) for _ in range(400)]
    few = median_ratio(ratios[:10], [1.0] * 10, seed=0)
    many = median_ratio(ratios, [1.0] * 400, seed=0)
    assert many.high - many.low < (few.high - few.low) / 2


def test_rounds_must_pair() -> None:
    with pytest.raises(ValueError, match="zip"):
        median_ratio([1.0, 2.0], [1.0], seed=0)


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [((0.9, 0.8, 1.03), "met"), ((1.02, 1.0, 1.04), "open"), ((1.2, 1.04, 1.3), "missed")],
)
def test_a_promise_is_kept_only_where_the_whole_interval_is_below_the_bar(
    interval: tuple[float, float, float], verdict: str
) -> None:
    assert Interval(*interval).verdict(1.03) == verdict


def test_quantiles_lie_between_neighbours() -> None:
    values = [0.0, 1.0, 2.0, 3.0]
    assert quantile(values, 0) == 0.0
    assert quantile(values, 0.5) == 1.5
    assert quantile(values, 1) == 3.0


def test_both_clocks_advance_over_work_and_only_one_over_sleep() -> None:
    import time

    asleep = timed(lambda: time.sleep(0.05))()
    assert asleep.wall >= 0.05
    assert asleep.cpu < asleep.wall
