"""Protocols by name, accuracies with their intervals, and the parting of training clips."""

import warnings

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from vidtok.eval.metrics.intervals import (
    accuracy,
    bootstrap_interval,
    majority,
    over_seeds,
    paired_ratio,
    rank_of_label,
    wilson_interval,
)
from vidtok.eval.recognition.clips import Protocol, folds, split_off

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("name", ["16x4x5x3", "17x2x1x1", "17xux2x3"])
def test_a_protocol_is_its_name(name):
    protocol = Protocol.parse(name, size=224, resize=256)
    assert str(protocol) == name and protocol.record()["name"] == name
    assert Protocol.of_head(protocol.for_head()) == protocol


def test_a_protocol_samples_what_it_says():
    times = Protocol.parse("16x4x5x3").sampler()(10.0, 30.0)
    assert times.shape == (5, 16)
    np.testing.assert_allclose(np.diff(times), 4 / 30)
    assert times[0, 0] == 0 and times[-1, -1] == pytest.approx(10 - 1 / 30)
    spread = Protocol.parse("4xux1x1").sampler()(8.0, 30.0)
    np.testing.assert_allclose(spread, [[1, 3, 5, 7]])
    drawn = Protocol.parse("4xux1x1").train_sampler()(8.0, 30.0, np.random.default_rng(0))
    assert (drawn // 2 == [[0, 1, 2, 3]]).all()
    assert Protocol.parse("4x2x8x3").train_sampler()(8.0, 30.0, np.random.default_rng(0)).shape == (1, 4)
    whole = Protocol.parse("4x2x8x3", concat_segments=True)
    assert whole.at_once == 8 and Protocol.of_head(whole.for_head()) == whole
    starts = whole.train_sampler()(8.0, 30.0, np.random.default_rng(0))[:, 0]
    room = 8 - (3 * 2 + 1) / 30
    assert (np.floor(starts / (room + 1 / 30) * 8) == np.arange(8)).all()  # one from each eighth


def test_a_rate_in_the_protocol_is_time():
    protocol = Protocol.parse("5x2x1x1", fps=10)
    assert Protocol.of_head(protocol.for_head()) == protocol
    assert (
        Protocol.of_head({"frames": 5, "size": 128, "fps": 5.0}).sampler()(9.0, 30.0).tolist()
        == protocol.sampler()(9.0, 30.0).tolist()
    )
    np.testing.assert_allclose(np.diff(protocol.sampler()(9.0, 30.0)), 0.2)


@pytest.mark.parametrize("name", ["17x4", "17x4x1x2", "0x4x1x1", "17x0x1x1", "17 x 4 x 1 x 1"])
def test_what_is_no_protocol(name):
    with pytest.raises(ValueError, match="protocol"):
        Protocol.parse(name)


def test_wilson_interval_is_that_of_the_textbook():
    # Wilson's 95 % interval for 8 of 10 and for 0 of 20, to three digits.
    assert wilson_interval(8, 10) == pytest.approx((0.490, 0.943), abs=5e-4)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.161), abs=5e-4)


def test_ranks_and_ties():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.5, 0.0], [0.5, 0.5, 0.0]])
    assert rank_of_label(scores, np.array([0, 0, 1])).tolist() == [2, 0, 1]


def test_accuracy_counts_what_failed():
    labels = np.array([0, 0, 0, 1, 2, 3, 4, 5])
    scores = np.eye(6)[[0, 0, 1, 1, 2, 3, 5, 5]]
    result = accuracy(scores, labels, n_failed=2)
    assert result["top1"]["value"] == 6 / 8 and result["top1_of_total"]["value"] == 6 / 10
    assert (result["n_total"], result["n_used"], result["n_failed"]) == (10, 8, 2)
    assert result["mean_class"]["value"] == pytest.approx((2 / 3 + 4 + 0) / 6)
    assert np.array(result["confusion"]).sum() == 8 and result["confusion"][4][5] == 1
    assert result["top5"]["value"] == 7 / 8  # of class 4, all but class 5 stand before it or are equal
    assert accuracy(scores[:, :5], labels.clip(max=4))["top5"] is None
    for key in ("top1", "mean_class"):
        assert result[key]["low"] < result[key]["value"] < result[key]["high"]


@pytest.mark.parametrize("labels", [[], [6], [-1]])
def test_labels_that_do_not_fit(labels):
    with pytest.raises(ValueError, match=r"no clip was classified|for 6 classes"):
        accuracy(np.zeros((len(labels), 6)), np.array(labels, dtype=int))


def test_accuracies_are_those_of_scikit_learn():
    labels = RNG.integers(6, size=300)
    labels[labels == 3] = 2  # a class without clips
    scores = RNG.normal(size=(300, 6)) + 2 * np.eye(6)[labels]
    result = accuracy(scores, labels)
    assert result["top1"]["value"] == top_k_accuracy_score(labels, scores, k=1, labels=range(6))
    assert result["top5"]["value"] == top_k_accuracy_score(labels, scores, k=5, labels=range(6))
    with warnings.catch_warnings():  # class 3 is predicted, but isn't there
        warnings.simplefilter("ignore")
        assert result["mean_class"]["value"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))


def test_the_bootstrap_is_that_of_scipy():
    values = RNG.normal(size=50)
    ours = bootstrap_interval(lambda indices: values[indices].mean(), 50)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20000, vectorized=True)
    assert ours == pytest.approx((theirs.confidence_interval.low, theirs.confidence_interval.high), abs=0.05)
    assert bootstrap_interval(lambda indices: float(len(indices)), 1) == (1, 1)


def test_majority_of_several_tasks_is_that_of_each_clips_own():
    same_task = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
    result = majority(np.array([0, 0, 0, 1, 3, 2, 3]), np.array([0, 1, 2, 3, 3]), 4, 0, same_task)
    assert result["class"] is None and result["top1"]["value"] == 3 / 5  # classes 0 and 3


def test_majority_is_that_of_training():
    result = majority(np.array([1, 1, 0]), np.array([0, 0, 0, 1]), 3)
    assert result["class"] == 1 and result["top1"]["value"] == 0.25


def test_seeds_give_mean_and_deviation():
    correct = RNG.random((3, 400)) < 0.7
    result = over_seeds(correct)
    assert result["mean"] == correct.mean() and result["deviation"] == pytest.approx(correct.mean(1).std(ddof=1))
    assert result["low"] < correct.mean() < result["high"] and result["high"] - result["low"] < 0.15
    assert over_seeds(correct[:1])["interval"] == "Wilson"


def test_intervals_over_groups_are_wider_where_groups_agree():
    groups = [str(i // 20) for i in range(200)]
    correct = np.repeat(np.arange(10) % 2, 20)[None].astype(bool)  # a group is right or wrong as a whole
    clips, whole = over_seeds(np.repeat(correct, 2, 0)), over_seeds(np.repeat(correct, 2, 0), groups)
    assert whole["interval"] == "bootstrap over groups and seeds" and whole["mean"] == 0.5
    assert whole["high"] - whole["low"] > 3 * (clips["high"] - clips["low"])
    one = over_seeds(correct, groups)
    assert one["interval"] == "bootstrap over groups" and one["deviation"] is None
    pair = paired_ratio(correct, ~correct, groups_N=groups)["difference"]
    assert pair["low"] < -0.4 and pair["high"] > 0.4


def test_pairing_narrows_the_ratio():
    theirs = RNG.random((2, 300)) < 0.6
    same = paired_ratio(theirs[:1], theirs[:1])
    assert same["ratio"] == {"value": 1, "low": 1, "high": 1}
    ours = theirs & (RNG.random((2, 300)) < 0.9)  # right on most of the clips that theirs is right on, and no others
    found = paired_ratio(ours, theirs)
    assert found["ratio"]["high"] < 1 and found["ratio"]["low"] < found["ratio"]["value"] < found["ratio"]["high"]
    assert found["difference"]["value"] == pytest.approx(ours.mean() - theirs.mean())
    unpaired = paired_ratio(RNG.permuted(ours, axis=1), theirs)
    widths = [r["ratio"]["high"] - r["ratio"]["low"] for r in (found, unpaired)]
    assert widths[0] < widths[1]
    good_and_bad = np.stack([np.arange(300) < 200, np.arange(300) < 100])  # two heads; each loses a tenth elsewhere
    lost = good_and_bad & (np.arange(300) % 10 > 0)
    of_heads, of_any = (paired_ratio(lost, good_and_bad, same_heads=same) for same in (True, False))
    assert of_heads["ratio"]["value"] == of_any["ratio"]["value"] == pytest.approx(0.9)
    assert of_heads["ratio"]["low"] > 0.8 and of_any["ratio"]["low"] < 0.6
    with pytest.raises(ValueError, match="not the same clips"):
        paired_ratio(ours[:, :5], theirs)


def test_groups_stay_together():
    labels, groups = RNG.integers(3, size=60), [str(i // 6) for i in range(60)]
    kept, apart = split_off(labels, groups, 0.3)
    assert not {groups[i] for i in kept} & {groups[i] for i in apart} and len(kept) + len(apart) == 60
    name, parts = folds(labels, groups)
    assert name == "5 folds by group"
    assert all(not {groups[i] for i in train} & {groups[i] for i in test} for train, test in parts)


def test_without_groups_classes_keep_their_shares():
    labels = np.repeat([0, 1], [40, 10])
    _, apart = split_off(labels, None, 0.2)
    assert np.bincount(labels[apart]).tolist() == [8, 2]
    assert folds(labels, None)[0] == "5 stratified folds" and folds(labels[38:42], None, 3)[0] == "3 folds"
    with pytest.raises(ValueError, match="one side empty"):
        split_off(labels, None, 0.001)
