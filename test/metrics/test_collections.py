"""Metrics in a collection of torchmetrics, which lets those of equal states share them, are what they are alone."""

import copy
import pickle

import pytest
import torch
import torch.distributed as dist
from torchmetrics import MetricCollection
from two_processes import run_in_two_processes

from keypoint_detection.metrics import METRICS, KeypointAveragePrecision

NAN = float("nan")
CHANNELS = ("nose", "paw")
# Whether torchmetrics compares the states, lets nothing be shared, or is told what shares them.
GROUPINGS = (True, False, [[*METRICS, "near"]])


def batches(count, *, complete, numbered, first=0):
    """`count` batches of 3 images, `complete` if no detection or keypoint is missing, else NaN."""
    generator = torch.Generator().manual_seed(first)
    result = []
    for number in range(first, first + count):
        truths = torch.rand(3, 2, 4, 2, generator=generator) * 30
        xy = torch.cat([truths + torch.randn(3, 2, 4, 2, generator=generator), truths.flip(1)[:, :, :2]], 2)
        if not complete:
            xy[torch.rand(3, 2, 6, generator=generator) < 0.3] = NAN
            truths[torch.rand(3, 2, 4, generator=generator) < 0.3] = NAN
        labelled = torch.rand(3, 2, generator=generator) < 0.8
        indices = torch.arange(3) + 3 * number if numbered else torch.full((3,), -1)
        result.append((xy, torch.rand(3, 2, 6, generator=generator), truths, labelled, indices))
    return result


KINDS = [
    {"complete": complete, "numbered": numbered} for complete, numbered in ((True, True), (True, False), (False, True))
]


def new_metrics():
    """One of every kind, and one that differs from another by its distances alone."""
    metrics = {name: METRICS[name](CHANNELS, (2.0, 4.5)) for name in METRICS}
    return metrics | {"near": METRICS["average_precision"](CHANNELS, (1.0,))}


def collection(grouping):
    return MetricCollection(new_metrics(), compute_groups=grouping)


def update(metrics, parts):
    for part in parts:
        metrics.update(*part)
    return metrics


def alone(parts):
    """The values of each metric, by its own updates."""
    return {name: same(update(metric, parts).compute()) for name, metric in new_metrics().items()}


def same(values):
    return pytest.approx(values, abs=1e-12, nan_ok=True)


def values_of(metrics, copied=True):
    return {name: metric.compute() for name, metric in metrics.items(copy_state=copied)}


@pytest.fixture(autouse=True)
def few_batches_at_once(monkeypatch):
    monkeypatch.setattr("keypoint_detection.metrics.base._BATCHES_AT_ONCE", 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("copied", [True, False])
def test_each_metric_of_a_collection_has_the_value_that_it_has_alone(kind, grouping, copied):
    metrics = collection(grouping)
    for count in (4, 1, 3):  # epochs
        parts = batches(count, **kind, first=10 * count)
        update(metrics, parts)
        assert values_of(metrics, copied) == alone(parts)
        more = batches(2, **kind, first=50)  # to ask takes nothing away
        update(metrics, more)
        assert metrics["near"].compute() == alone([*parts, *more])["near"]
        assert values_of(metrics, copied) == alone([*parts, *more])
        metrics.reset()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_collection_computes_what_its_metrics_compute_alone(kind, grouping):
    parts = batches(5, **kind)
    metrics = collection(grouping)
    expected = {}
    for name, values in alone(parts).items():
        expected |= {f"{name}_{key}": value for key, value in values.expected.items()}
    assert update(metrics, parts[:4]).compute().keys() == expected.keys()
    assert update(metrics, parts[4:]).compute() == same(expected)
    renamed = metrics.clone(prefix="val/")
    assert renamed.compute() == same({f"val/{key}": value for key, value in expected.items()})


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize(
    "copied", [lambda metrics: metrics.clone(), copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_of_a_collection_go_on_by_themselves(grouping, copied):
    parts = batches(7, complete=True, numbered=True)
    metrics = update(collection(grouping), parts[:3])
    twin = copied(metrics)
    update(metrics, parts[3:4])
    update(twin, parts[4:])
    assert values_of(metrics) == alone(parts[:4])
    assert values_of(twin) == alone([*parts[:3], *parts[4:]])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("grouping", GROUPINGS)
def test_forward_of_a_collection_is_the_value_of_the_batch_and_adds_it(kind, grouping):
    parts = batches(6, **kind)
    metrics = collection(grouping)
    seen = []
    for number, part in enumerate(parts):
        seen.append(part)
        if number in (0, 3, 4):
            found = metrics(*part)
            for name, values in alone([part]).items():
                assert {key: found[f"{name}_{key}"] for key in values.expected} == values
        else:
            metrics.update(*part)
    assert values_of(metrics, copied=False) == alone(seen)
    assert values_of(metrics) == alone(seen)


@pytest.mark.parametrize("computed", [False, True])
def test_a_metric_that_joins_later_has_seen_what_came_since(computed):
    parts = batches(6, complete=True, numbered=True)
    metrics = update(MetricCollection({"average_precision": new_metrics()["average_precision"]}), parts[:3])
    if computed:
        metrics.compute()
    metrics.add_metrics({name: metric for name, metric in new_metrics().items() if name != "average_precision"})
    found = values_of(update(metrics, parts[3:]))
    for name, later in alone(parts[3:]).items():
        assert found[name] == (alone(parts)[name] if name == "average_precision" else later)


def test_a_metric_that_leaves_something_out_is_not_updated_by_another():
    class Sure(METRICS["localization"]):
        def update(self, xy, scores, truths, labelled, indices):
            super().update(xy.where((scores > 0.1)[..., None], NAN), scores, truths, labelled, indices)

    parts = batches(4, complete=True, numbered=True)
    first = parts[0][1].clamp_min(0.2)  # of which it leaves out none
    parts[0] = (parts[0][0], first, *parts[0][2:])
    metrics = MetricCollection({"all": METRICS["localization"](CHANNELS, (2.0,)), "sure": Sure(CHANNELS, (2.0,))})
    sure = update(Sure(CHANNELS, (2.0,)), parts).compute()
    every = update(METRICS["localization"](CHANNELS, (2.0,)), parts).compute()
    assert sure != every
    assert values_of(update(metrics, parts)) == {"all": same(every), "sure": same(sure)}


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
@pytest.mark.parametrize("name", METRICS)
def test_states_hold_all_that_was_seen(name):
    parts = batches(5, complete=False, numbered=True)
    metric, loaded, other = (new_metrics()[name] for _ in range(3))
    metric.persistent(True)
    update(metric, parts[:3])
    loaded.load_state_dict(metric.state_dict())
    assert loaded.compute() == alone(parts[:3])[name]
    update(other, parts[3:]).merge_state(metric.metric_state)
    assert other.compute() == alone(parts)[name]
    assert metric.compute() == alone(parts[:3])[name]


@pytest.mark.parametrize("grouping", [True, False, [["near", "wide"]]])
def test_lists_of_detections_in_a_collection(grouping):
    metrics = MetricCollection(
        {"near": KeypointAveragePrecision([1.0]), "wide": KeypointAveragePrecision([2.0])}, compute_groups=grouping
    )
    # Per image a hit at 1.5 px, and in the second a false one above it.
    truth, near, far = torch.tensor([[5.0, 5.0]]), torch.tensor([[5.0, 6.5]]), torch.tensor([[20.0, 5.0]])
    for _ in range(2):
        metrics.update([(near, torch.tensor([0.5]))], [truth])
        metrics.update([(torch.cat([near, far]), torch.tensor([0.5, 0.9]))], [truth])
        # wide: precision 2/3 at all recalls
        assert {name: metric.compute() for name, metric in metrics.items()} == {
            "near": {1.0: 0.0},
            "wide": {2.0: pytest.approx(2 / 3)},
        }
        metrics.reset()


def compute_in_process(rank, rendezvous, results):
    """Body of one of two processes."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mine, more = batches(4 - rank, complete=True, numbered=True, first=10 * rank), batches(1, **KINDS[0], first=50)
    found = []
    for grouping in GROUPINGS:
        metrics = update(collection(grouping), mine)
        found += [values_of(metrics, copied=False), values_of(update(metrics, more)), values_of(metrics)]
        metrics.reset()
        found.append(values_of(update(metrics, mine[1:])))
    results.put((rank, found))
    dist.barrier()
    dist.destroy_process_group()


def test_a_collection_of_two_processes_gives_the_values_of_one(tmp_path):
    found = run_in_two_processes(compute_in_process, tmp_path / "rendezvous")
    first, second = batches(4, **KINDS[0]), batches(3, **KINDS[0], first=10)
    with_more = alone([*first, *second, *batches(1, **KINDS[0], first=50)])
    expected = [alone([*first, *second]), with_more, with_more, alone([*first[1:], *second[1:]])] * len(GROUPINGS)
    for rank in range(2):
        assert found[rank] == expected
