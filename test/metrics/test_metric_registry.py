"""What every registered metric keeps to, and the values of each by hand."""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from two_processes import run_in_two_processes

from keypoint_detection.metrics import METRICS
from keypoint_detection.metrics.localization import best_f1

NAN = float("nan")
CHANNELS = ("nose", "paw")
DISTANCES = (2.0, 4.5)


def random_batch(indices, seed=0):
    """The same detections and true keypoints for an index wherever it is asked for."""
    rows = []
    for index in indices:
        generator = torch.Generator().manual_seed(1000 * seed + index)
        truths = torch.rand(2, 4, 2, generator=generator) * 30
        xy = torch.cat(
            [truths + torch.randn(2, 4, 2, generator=generator), torch.rand(2, 2, 2, generator=generator) * 30], 1
        )
        scores = (torch.rand(2, 6, generator=generator) * 10).round() / 10
        xy[torch.rand(2, 6, generator=generator) < 0.3] = NAN
        truths[torch.rand(2, 4, generator=generator) < 0.3] = NAN
        rows.append((xy, scores, truths, torch.rand(2, generator=generator) < 0.8, torch.tensor(index)))
    return [torch.stack(values) for values in zip(*rows, strict=True)]


def value_of(name, *batches):
    metric = METRICS[name](CHANNELS, DISTANCES)
    for batch in batches:
        metric.update(*batch)
    return metric.compute()


def same(values):
    return pytest.approx(values, abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("name", METRICS)
def test_batches_and_repeated_images_do_not_change_a_metric(name):
    expected = value_of(name, random_batch(range(9)))
    assert value_of(name, *(random_batch([index]) for index in range(8, -1, -1))) == same(expected)
    assert value_of(
        name, random_batch([3, 4, 5, 6]), random_batch([5, 6, 7, 8, 0, 0]), random_batch([0, 1, 2])
    ) == same(expected)
    assert value_of(name, random_batch(range(8))) != same(expected)


@pytest.mark.parametrize("name", METRICS)
def test_a_batch_alone_and_another_metric_are_added_to_what_was_seen(name):
    first, second = random_batch(range(5)), random_batch(range(5, 9))
    metric, other = METRICS[name](CHANNELS, DISTANCES), METRICS[name](CHANNELS, DISTANCES)
    metric.update(*first)
    assert metric(*second) == same(value_of(name, second))
    assert metric.compute() == same(value_of(name, first, second))
    metric.reset()
    metric.update(*first)
    other.update(*second)
    metric.merge_state(other)
    assert metric.compute() == same(value_of(name, first, second))


@pytest.mark.parametrize("name", METRICS)
def test_batches_that_workers_of_a_loader_share_are_copied_since_each_holds_a_file_open(name):
    first, second = random_batch(range(5)), random_batch(range(5, 9))
    metric = METRICS[name](CHANNELS, DISTANCES)
    shared = [tensor.clone().share_memory_() for tensor in first]
    metric.update(*shared)
    for tensor in shared:
        tensor.fill_(False)  # seen by whoever still reads the shared memory
    metric.update(*second)
    assert metric.compute() == same(value_of(name, first, second))


@pytest.mark.parametrize("name", METRICS)
def test_rows_stay_on_the_cpu_when_the_metric_follows_its_inputs_to_a_device(name, monkeypatch):
    monkeypatch.setattr("keypoint_detection.metrics.base._BATCHES_AT_ONCE", 2)
    metric = METRICS[name](CHANNELS, DISTANCES)
    for index in range(5):
        metric.to("meta").update(*random_batch([index]))
    assert metric.device.type == "meta"
    assert {rows.device.type for rows in metric.detections} == {"cpu"}
    assert metric.compute() == same(value_of(name, random_batch(range(5))))


@pytest.mark.parametrize("name", METRICS)
def test_images_without_an_index_are_never_repeated(name):
    batch = random_batch(range(5))
    numbered = [*batch[:4], torch.arange(5)]
    unnumbered = [*batch[:4], torch.full((5,), -1)]
    assert value_of(name, unnumbered) == same(value_of(name, numbered))
    some = [*batch[:4], torch.tensor([-1, -1, 7, 9, 7])]  # the last one is there already
    assert value_of(name, some) == same(value_of(name, random_batch(range(4))))


@pytest.mark.parametrize("name", METRICS)
def test_a_channel_that_is_not_labelled_is_left_out(name):
    xy, scores, truths, labelled, indices = random_batch(range(4))
    emptied_xy, emptied_truths = xy.clone(), truths.clone()
    emptied_xy[~labelled], emptied_truths[~labelled] = NAN, NAN
    expected = value_of(name, [emptied_xy, scores, emptied_truths, torch.ones_like(labelled), indices])
    assert not labelled.all()
    assert value_of(name, [xy, scores, truths, labelled, indices]) == same(expected)


@pytest.mark.parametrize("name", METRICS)
def test_a_channel_without_keypoints_is_undefined_and_left_out_of_means(name):
    xy, scores, truths, labelled, indices = random_batch(range(6))
    truths[:, 1], labelled[:] = NAN, True
    both = value_of(name, [xy, scores, truths, labelled, indices])
    alone = METRICS[name](CHANNELS[:1], DISTANCES)
    alone.update(xy[:, :1], scores[:, :1], truths[:, :1], labelled[:, :1], indices)
    expected = alone.compute()
    assert {key: both[key] for key in expected} == same(expected)
    assert all(math.isnan(both[key]) for key in both.keys() - expected.keys())


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_nothing_is_undefined(name):
    batch = random_batch(range(2))
    nothing = [batch[0][:0], batch[1][:0], batch[2][:0], batch[3][:0], batch[4][:0]]
    assert all(math.isnan(value) for value in value_of(name, nothing).values())


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_can_be_reset(name):
    metric = METRICS[name](CHANNELS, DISTANCES)
    metric.update(*random_batch(range(3), seed=1))
    metric.compute()
    metric.reset()
    metric.update(*random_batch(range(5)))
    assert metric.compute() == same(value_of(name, random_batch(range(5))))


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize(("channels", "distances"), [((), (2.0,)), (("nose",), ())])
def test_a_metric_needs_channels_and_distances(name, channels, distances):
    with pytest.raises(ValueError, match="at least one channel and one threshold distance"):
        METRICS[name](channels, distances)


def test_average_precision_by_hand():
    # nose: a hit at 1 px, one at 3 px, a false one between them; paw: nothing detected
    xy = torch.tensor([[[[10.0, 11.0], [50.0, 50.0], [20.0, 23.0]], [[NAN, NAN]] * 3]])
    scores = torch.tensor([[[0.9, 0.8, 0.7], [0.0, 0.0, 0.0]]])
    truths = torch.tensor([[[[10.0, 10.0], [20.0, 20.0]], [[5.0, 5.0], [NAN, NAN]]]])
    values = value_of("average_precision", [xy, scores, truths, torch.ones(1, 2, dtype=torch.bool), torch.tensor([0])])
    wide = 0.5 + 0.5 * 2 / 3
    assert values == same(
        {
            "meanAP": (0.25 + wide / 2) / 2,
            "meanAP/d=2": 0.25,
            "meanAP/d=4.5": wide / 2,
            "AP/nose/d=2": 0.5,
            "AP/nose/d=4.5": wide,
            "AP/paw/d=2": 0.0,
            "AP/paw/d=4.5": 0.0,
        }
    )


def test_localization_by_hand():
    # nose: matched at 1, 3 and 0 px with scores .9, .7, .2, one false at .3; paw: nothing detected
    xy = torch.tensor([[[[10.0, 11.0], [20.0, 23.0], [50.0, 50.0], [30.0, 30.0]], [[NAN, NAN]] * 4]])
    scores = torch.tensor([[[0.9, 0.7, 0.3, 0.2], [0.0] * 4]], dtype=torch.float64)
    truths = torch.tensor([[[[10.0, 10.0], [20.0, 20.0], [30.0, 30.0]], [[5.0, 5.0], [NAN, NAN], [NAN, NAN]]]])
    values = value_of("localization", [xy, scores, truths, torch.ones(1, 2, dtype=torch.bool), torch.tensor([0])])
    # F1 at the four thresholds: 2/4, 4/5, 4/6, 6/7
    assert values == same(
        {
            "median_distance": 1.0,
            "median_distance/nose": 1.0,
            "median_distance/paw": NAN,
            "mean_distance": 4 / 3,
            "mean_distance/nose": 4 / 3,
            "mean_distance/paw": NAN,
            "recall": 0.5,
            "recall/nose": 1.0,
            "recall/paw": 0.0,
            "precision": 0.75,
            "precision/nose": 0.75,
            "precision/paw": NAN,
            "best_f1": 3 / 7,
            "best_f1/nose": 6 / 7,
            "best_f1/paw": 0.0,
            "best_threshold": 0.1,
            "best_threshold/nose": 0.1,
            "best_threshold/paw": NAN,
        }
    )


def test_localization_is_within_the_largest_distance_wherever_it_stands():
    metric = METRICS["localization"](["a"], [4.0, 2.0])
    found, truth = torch.tensor([[[[0.0, 0.0]]]]), torch.tensor([[[[3.0, 0.0]]]])
    metric.update(found, torch.tensor([[[0.5]]]), truth, torch.ones(1, 1, dtype=torch.bool), torch.tensor([0]))
    assert metric.compute()["median_distance"] == 3


@given(
    st.lists(st.tuples(st.integers(1, 20).map(lambda score: score / 20), st.booleans()), min_size=1, max_size=12),
    st.integers(0, 5),
)
def test_no_threshold_beats_the_best_f1_and_it_lies_between_two_scores(detections, unfound):
    scores, right = torch.tensor([score for score, _ in detections]).double(), torch.tensor([r for _, r in detections])
    truths = int(right.sum()) + unfound
    found = best_f1(scores, right, truths)
    if not truths:
        assert all(math.isnan(value) for value in found.values())
        return

    def f1(threshold):
        counted = scores >= threshold
        return 2 * int((counted & right).sum()) / (int(counted.sum()) + truths)

    assert f1(found["best_threshold"]) == pytest.approx(found["best_f1"])
    assert found["best_f1"] == pytest.approx(max(map(f1, scores.tolist())))
    if not right.any():
        assert math.isnan(found["best_threshold"])
        return
    values = scores.tolist()
    counted = [score for score in values if score >= found["best_threshold"]]
    lower = max((score for score in values if score < found["best_threshold"]), default=0.0)
    assert found["best_threshold"] == pytest.approx((min(counted) + lower) / 2)
    as_good = [score for score in values if f1(score) == pytest.approx(found["best_f1"])]
    assert min(counted) == max(as_good)


# What each of two processes sees: uneven, with images that both saw; then one process without a single update.
SHARES = [([[0, 1, 2], [3], [4, 5]], [[6, 7, 0]]), ([[0, 1], [2]], [])]


def compute_in_process(rank, rendezvous, results):
    """Body of one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    found = []
    for share in SHARES:
        for name in METRICS:
            metric = METRICS[name](CHANNELS, DISTANCES)
            for indices in share[rank]:
                metric.update(*random_batch(indices))
            found.append(metric.compute())
            # what was gathered is given back, so that this process can go on
            metric.update(*random_batch([8]))
            found.append(metric.compute())
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_give_the_value_of_one(tmp_path):
    found = run_in_two_processes(compute_in_process, tmp_path / "rendezvous")
    expected = []
    for share in SHARES:
        indices = sorted({index for batches in share for batch in batches for index in batch})
        for name in METRICS:
            expected += [value_of(name, random_batch(indices)), value_of(name, random_batch([*indices, 8]))]
    for rank in range(2):
        assert [same(values) for values in expected] == found[rank]
