from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from affsup_cli.reporting.select.statistics import paired_difference, summarize

VALUES = st.floats(min_value=0, max_value=100)


@given(st.lists(VALUES, min_size=2, max_size=12))
def test_mean_and_sample_deviation_agree_with_numpy(values: list[float]) -> None:
    summary = summarize(values)
    assert summary.n == len(values)
    assert summary.mean == pytest.approx(np.mean(values), abs=1e-9)
    assert summary.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)


def test_a_single_value_has_no_deviation() -> None:
    summary = summarize([91.5])
    assert (summary.mean, summary.std, summary.n) == (91.5, None, 1)


@given(st.lists(st.tuples(VALUES, VALUES), min_size=2, max_size=12))
def test_the_paired_interval_agrees_with_scipys_t_distribution(pairs: list[tuple[float, float]]) -> None:
    treatment, baseline = ({seed: pair[side] for seed, pair in enumerate(pairs)} for side in (0, 1))
    paired = paired_difference(treatment, baseline)
    assert paired is not None
    differences = np.array([first - second for first, second in pairs])
    half = stats.t.ppf(0.975, len(pairs) - 1) * differences.std(ddof=1) / np.sqrt(len(pairs))
    assert paired.mean == pytest.approx(differences.mean(), abs=1e-9)
    assert (paired.low, paired.high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=1e-8)


def test_pairs_are_made_by_seed_and_seeds_of_one_side_are_left_out() -> None:
    paired = paired_difference({2: 12.0, 0: 10.0, 5: 50.0}, {0: 9.0, 2: 10.0, 1: 99.0})
    assert paired is not None
    assert paired.seeds == (0, 2)
    assert paired.mean == pytest.approx(1.5)


def test_without_a_pair_there_is_no_difference() -> None:
    assert paired_difference({}, {0: 9.0, 1: 9.5}) is None
    assert paired_difference({7: 11.0}, {0: 9.0, 1: 9.5}) is None


def test_one_pair_has_a_difference_without_an_interval() -> None:
    paired = paired_difference({0: 10.5, 7: 11.0}, {0: 9.0, 1: 9.5})
    assert paired is not None
    assert (paired.mean, paired.low, paired.high, paired.seeds) == (1.5, None, None, (0,))
