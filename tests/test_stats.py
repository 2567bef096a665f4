"""Intervals against closed forms, other libraries and simulations of their coverage."""

import numpy as np
import pytest
from scipy import optimize
from scipy import stats as scipy_stats

from hhh_jax import stats

SIZES = (12288, 98304, 331776, 786432)


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (7, 10), (50, 50), (512, 1000)])
def test_wilson_is_scipys(successes, n):
    expected = scipy_stats.binomtest(successes, n).proportion_ci(method="wilson")
    np.testing.assert_allclose(stats.wilson(successes, n), (expected.low, expected.high), atol=1e-12)


def test_wilson_takes_ties_and_no_items():
    assert stats.wilson(0, 0) == (0.0, 1.0)
    assert stats.wilson(3, 10) < stats.wilson(3.5, 10) < stats.wilson(4, 10)


def test_sample_averages_to_the_mean_of_a_seed():
    values_SxI = np.array([[1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 1.0, 1.0]])
    groups = np.array(["a", "b", "b", "b"])
    values_SxG, n_items = stats.sample(values_SxI, groups)
    assert n_items == 4 and values_SxG.shape == (2, 2)
    np.testing.assert_allclose(values_SxG.mean(1), values_SxI.mean(1))
    # Group a: mean .625 plus (1 - .625 * 1 item) * 2 groups / 4 items.
    np.testing.assert_allclose(values_SxG[0], [0.625 + 0.375 / 2, 0.625 + (1.5 - 0.625 * 3) / 2])


def test_sample_of_a_ratio_averages_to_the_ratio():
    values_SxG, _ = stats.sample(np.array([[2.0, 30.0, 7.0]]), weights_I=np.array([1.0, 10.0, 4.0]))
    np.testing.assert_allclose(values_SxG.mean(), 39 / 15)


def test_sample_needs_two_groups():
    with pytest.raises(ValueError, match="two groups"):
        stats.sample(np.ones((3, 5)), np.zeros(5))


def test_one_seed_gives_the_textbook_interval():
    difference_I = np.random.default_rng(0).normal(0.2, 1, 400)
    estimate = stats.paired_difference(difference_I, np.zeros(400))
    half = 1.96 * difference_I.std(ddof=1) / 20
    assert (estimate.n_items, estimate.n_seeds) == (400, 1)
    np.testing.assert_allclose(
        estimate[:3], [difference_I.mean(), *(difference_I.mean() + [-half, half])], atol=0.006
    )


def test_an_estimate_says_what_it_rests_on():
    values_SxI = np.tile([1.0, 0.0, 1.0, 1.0, 0.0], (3, 1))
    estimate = stats.estimate([stats.sample(values_SxI, np.array(list("aabbc")))])
    assert (estimate.n_items, estimate.n_groups, estimate.n_seeds) == (5, 3, 3)


def test_groups_count_not_items():
    rng = np.random.default_rng(1)
    a_SxI = rng.normal(0, 1, (3, 80))
    alone = stats.paired_difference(a_SxI, np.zeros((3, 80)))
    copied = stats.paired_difference(np.repeat(a_SxI, 5, 1), np.zeros((3, 400)), np.repeat(np.arange(80), 5))
    np.testing.assert_allclose(alone[:3], copied[:3], atol=1e-5)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(2)
    item_I, noise_SxI = rng.normal(0, 1, 300), rng.normal(0, 0.05, (3, 300))
    paired = stats.paired_difference(item_I + 0.1 + noise_SxI, np.tile(item_I, (3, 1)))
    shuffled = stats.paired_difference(item_I + 0.1 + noise_SxI, np.tile(rng.permutation(item_I), (3, 1)))
    assert paired.lo > 0.09 and paired.hi < 0.11
    assert shuffled.lo < 0 < shuffled.hi


def _simulate(rng, n_seeds, n_groups, per_group, seed_sd, group_sd, noise_sd):
    group_G = rng.normal(0, group_sd, n_groups)
    noise_SxI = rng.normal(0, noise_sd, (n_seeds, n_groups * per_group))
    return rng.normal(0, seed_sd, (n_seeds, 1)) + np.repeat(group_G, per_group) + noise_SxI


@pytest.mark.parametrize(
    ("n_seeds", "per_group", "seed_sd", "group_sd", "noise_sd"),
    [
        (3, 1, 0.0, 0.0, 1.0),  # nothing but noise: a null effect is found in one of twenty
        (3, 1, 0.0, 1.0, 1.0),
        (3, 4, 0.0, 1.0, 1.0),  # grouped items
        (3, 1, 0.05, 0.7, 0.7),
        (3, 1, 0.5, 0.3, 0.5),  # seeds dominate
        (5, 2, 0.1, 0.5, 0.5),
    ],
)
def test_intervals_cover_the_truth(n_seeds, per_group, seed_sd, group_sd, noise_sd):
    rng = np.random.default_rng(3)
    hits, runs = 0, 400
    for _ in range(runs):
        values_SxI = _simulate(rng, n_seeds, 100, per_group, seed_sd, group_sd, noise_sd)
        groups = np.repeat(np.arange(100), per_group)
        estimate = stats.paired_difference(values_SxI, np.zeros_like(values_SxI), groups, n_boot=500)
        hits += estimate.lo <= 0 <= estimate.hi
    assert 0.89 <= hits / runs <= 0.99


def test_ignoring_seeds_would_not_cover():
    """The check above can fail: with the seeds averaged first, half of the intervals miss."""
    rng = np.random.default_rng(4)
    hits = 0
    for _ in range(200):
        values_SxI = _simulate(rng, 3, 100, 1, 0.2, 0.3, 0.5)
        estimate = stats.paired_difference(values_SxI.mean(0), np.zeros(100), n_boot=500)
        hits += estimate.lo <= 0 <= estimate.hi
    assert hits / 200 < 0.7


def test_means_over_tasks_and_their_difference():
    rng = np.random.default_rng(5)
    tasks = [rng.normal(mean, 1, (3, n)) for mean, n in ((0.3, 200), (0.1, 100), (0.0, 400))]
    samples = [stats.sample(task) for task in tasks]
    means = [task.mean() for task in tasks]
    mean = stats.estimate(samples, [1 / 3] * 3)
    difference = stats.estimate(samples, [0.5, 0.5, -1])
    np.testing.assert_allclose(mean.value, np.mean(means))
    np.testing.assert_allclose(difference.value, (means[0] + means[1]) / 2 - means[2])
    assert mean.n_items == 700 and mean.n_seeds == 3
    # Tasks have items of their own, so the variances add.
    single = [task.mean(0).std(ddof=1) / np.sqrt(task.shape[1]) for task in tasks]
    expected = 1.96 * np.sqrt(np.square(single) @ np.square([0.5, 0.5, 1]))
    assert 0.9 * expected < (difference.hi - difference.lo) / 2 < 1.6 * expected


def test_seeds_are_shared_by_tasks():
    """A seed that is good at one task and good at another does not average out; opposite ones cancel."""
    seed_Sx1 = np.array([[-0.3], [0.0], [0.3]])
    noise = np.random.default_rng(6).normal(0, 0.1, (2, 3, 200))
    first = stats.sample(seed_Sx1 + noise[0])
    together = stats.estimate([first, stats.sample(seed_Sx1 + noise[1])], [0.5, 0.5])
    opposite = stats.estimate([first, stats.sample(noise[1] - seed_Sx1)], [0.5, 0.5])
    assert together.hi - together.lo > 0.5
    assert opposite.hi - opposite.lo < 0.1


def test_different_numbers_of_seeds_are_refused():
    with pytest.raises(ValueError, match="numbers of seeds"):
        stats.estimate([stats.sample(np.random.rand(3, 9)), stats.sample(np.random.rand(2, 9))])


def test_the_same_seed_gives_the_same_interval():
    a_SxI = np.random.default_rng(7).normal(size=(3, 50))
    once, again, other = (stats.paired_difference(a_SxI, 0 * a_SxI, seed=seed) for seed in (0, 0, 1))
    assert once == again != other


def test_slope_is_least_squares():
    y_R = np.array([0.1, 0.3, 0.25, 0.5])
    np.testing.assert_allclose(stats.slope_weights(SIZES) @ y_R, np.polyfit(np.log10(SIZES), y_R, 1)[0])
    with pytest.raises(ValueError, match="two model sizes"):
        stats.slope_weights([100, 100])


def _losses(loss_R, noise=0.01, n_documents=80):
    """Three seeds' losses on the same documents, which differ much more from one another than the seeds
    do."""
    rng = np.random.default_rng(8)
    tokens_I, hard_I = rng.integers(50, 400, n_documents), rng.normal(0, 0.2, n_documents)
    samples = []
    for loss in loss_R:
        nats_SxI = tokens_I * (loss * (1 + 0.2 * hard_I) + rng.normal(0, noise, (3, n_documents)))
        samples.append(stats.sample(nats_SxI, None, tokens_I))
    return samples


def test_a_power_law_is_found():
    fit = stats.power_law(_losses([20 * n**-0.09 for n in SIZES]), SIZES)
    assert fit.exponent.lo < 0.09 < fit.exponent.hi < 0.092
    assert fit.exponent.lo > 0.088
    assert fit.coefficient.lo < 20 * 1.02 and fit.coefficient.hi > 20 * 0.98
    assert fit.misfit < 0.005
    assert fit.curvature.lo < 0.002 and fit.curvature.hi > -0.002
    assert not fit.identified  # a power law has no irreducible loss


def test_an_irreducible_loss_is_found_where_it_can_be():
    fit = stats.power_law(_losses([2.0 + 300 * n**-0.5 for n in SIZES], noise=0.002), SIZES)
    assert fit.curvature.lo > 0  # flattens
    assert fit.identified
    assert fit.offset[0].value == pytest.approx(2.0, abs=0.1)
    assert fit.offset[2].value == pytest.approx(0.5, abs=0.05)


def test_a_broken_law_is_told():
    fit = stats.power_law(_losses([6.0, 4.5, 4.4, 4.6]), SIZES)
    assert fit.misfit > 0.04 and fit.curvature.lo > 0


def test_offset_fit_is_scipys():
    loss_R = np.array([4.4, 3.1, 2.8, 2.65])
    weighted, _ = optimize.curve_fit(
        lambda n, c, log_a, b: c + np.exp(log_a) * n**-b,
        SIZES,
        loss_R,
        p0=(2, 3, 0.3),
        sigma=loss_R,
        maxfev=20000,
    )
    c, a, exponent = stats.fit_offset(loss_R[None], SIZES)[:, 0]
    np.testing.assert_allclose([c, np.log(a), exponent], weighted, rtol=0.03)


def test_a_line_through_points_is_least_squares_in_log_log():
    loss_R = np.array([4.4, 3.1, 2.8, 2.65])
    line = stats.power_law_line(loss_R, SIZES)
    slope, level = np.polyfit(np.log(SIZES), np.log(loss_R), 1)
    np.testing.assert_allclose([line.exponent, line.coefficient], [-slope, np.exp(level)])
    distance_R = np.exp(level) * np.power(np.asarray(SIZES, float), slope) / loss_R - 1
    assert line.misfit == pytest.approx(np.abs(distance_R).max()) and line.misfit > stats.MISFIT
    fit = stats.power_law([stats.sample(np.full((2, 9), loss) + np.linspace(-1e-9, 1e-9, 9)) for loss in loss_R], SIZES)
    assert (fit.exponent.value, fit.coefficient.value, fit.misfit) == pytest.approx(tuple(line), rel=1e-6)


def test_broken_fits_are_flagged():
    good = stats.power_law(_losses([20 * n**-0.09 for n in SIZES]), SIZES)
    assert stats.flaws(good.misfit, good.curvature, good.exponent) == []
    bent = stats.power_law(_losses([6.0, 4.5, 4.4, 4.6]), SIZES)
    told = [f"misses a loss by {bent.misfit:.1%}", "flattens"]
    assert stats.flaws(bent.misfit, bent.curvature, bent.exponent) == told
    level = stats.power_law(_losses([5.0, 5.0, 5.0, 5.0], noise=0.3), SIZES)
    assert "has no slope beyond its interval" in stats.flaws(level.misfit, level.curvature, level.exponent)


def test_power_law_needs_three_sizes():
    with pytest.raises(ValueError, match="three model sizes"):
        stats.power_law(_losses([5.0, 4.0]), SIZES[:2])


def test_calibration_error_by_hand():
    confidence, right = np.array([0.52, 0.54, 0.97, 0.99, 0.99]), np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    mean, accuracy, n = stats.reliability(confidence, right)
    np.testing.assert_allclose(mean, [0.53, 2.95 / 3])
    np.testing.assert_allclose(accuracy, [0.5, 2 / 3])
    np.testing.assert_array_equal(n, [2, 3])
    by_bins = np.abs(accuracy - mean) @ n / n.sum()
    assert by_bins == pytest.approx((2 * 0.03 + 3 * (2.95 / 3 - 2 / 3)) / 5)
    assert stats.calibration_error(confidence, right) == pytest.approx(by_bins)


def test_calibration_error_tells_calibrated_from_overconfident():
    rng = np.random.default_rng(0)
    margin = np.abs(rng.normal(0, 2, 50_000))
    right = rng.random(len(margin)) < 1 / (1 + np.exp(-margin))
    calibrated, twice = (stats.calibration_error(1 / (1 + np.exp(-scale * margin)), right) for scale in (1, 2))
    assert calibrated < 0.01 and 0.03 < twice < 0.2


def test_where_nothing_varies_the_interval_holds_the_value():
    """As of a model that gives all of ETHICS' virtue items, one right of five a group, the same label."""
    groups_I = np.arange(1000) // 5
    right_SxI = np.tile(np.arange(1000) % 5 != 0, (3, 1))
    found = stats.estimate([stats.sample(right_SxI, groups_I)])
    assert found.lo <= found.value <= found.hi
    assert found.value == pytest.approx(0.8) and found.hi - found.lo < 1e-12
