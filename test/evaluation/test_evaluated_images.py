"""What an evaluation keeps of a batch."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from keypoint_detection.batch import Batch
from keypoint_detection.errors import InputError
from keypoint_detection.evaluation.images import EvaluatedImages, images_of_batch, metric_values
from keypoint_detection.evaluation.summary import summarise
from keypoint_detection.metrics import METRICS, KeypointMetric
from keypoint_detection.train.callbacks import MetricsLogger
from keypoint_detection.train.evaluation_row import EvaluationRow


def shrunk_image():
    return Batch(
        images=torch.zeros(1, 3, 20, 30),
        keypoints=torch.tensor([[[[10.0, 5.0]]]]),
        heatmaps=None,
        sizes=torch.tensor([[20, 30]]),
        labelled=torch.ones(1, 1, dtype=torch.bool),
        transforms=torch.diag(torch.tensor([2.0, 2.0, 1.0])).double()[None],
        indices=torch.tensor([0]),
    )


def make_evaluated():
    annotations = SimpleNamespace(channel_names=("a",), name=lambda index: "a.png", path=lambda index: Path("a.png"))
    return EvaluatedImages(annotations, [2.0])


def test_labels_of_a_shrunk_image_are_compared_in_pixels_of_its_file():
    evaluated = make_evaluated()
    evaluated.add(shrunk_image(), torch.tensor([[[[20.0, 10.0]]]], dtype=torch.float64), torch.tensor([[[0.9]]]))
    values, image = evaluated.values(), evaluated.images[0]
    assert (values["meanAP"], values["median_distance"]) == (1, 0)
    assert (image.width, image.height) == (60, 40)
    assert image.truths[0].tolist() == [[20, 10]]


def test_what_pads_a_batch_is_no_keypoint_and_no_image():
    nan = math.nan
    batch = Batch(
        images=torch.zeros(3, 3, 40, 60),
        keypoints=torch.tensor([[[[nan, nan]], [[7, 8]]]]).repeat(3, 1, 1, 1),
        heatmaps=None,
        sizes=torch.tensor([[40, 60]] * 3),
        labelled=torch.tensor([[True, False], [False, False], [True, True]]),
        transforms=torch.eye(3, dtype=torch.float64).repeat(3, 1, 1),
        indices=torch.tensor([5, 6, -1]),  # the first one; one of which nothing counts; and a blank
    )
    xy = torch.tensor([[[[1, 2], [nan, nan]], [[3, 4], [5, 6]]]]).repeat(3, 1, 1, 1)
    scores = torch.tensor([[[0.5, 0], [0.75, 0.25]]]).repeat(3, 1, 1)
    annotations = SimpleNamespace(name=lambda index: f"{index}.png", path=lambda index: Path(f"{index}.png"))
    ((index, image),) = images_of_batch(annotations, batch, xy, scores).items()
    assert (index, image.name, image.path, image.width, image.height) == (5, "5.png", Path("5.png"), 60, 40)
    assert [values.tolist() for values in image.xy] == [[[1, 2]], [[3, 4], [5, 6]]]
    assert [values.tolist() for values in image.scores] == [[0.5], [0.75, 0.25]]
    assert [values.tolist() for values in image.truths] == [[], [[7, 8]]]
    assert image.labelled.tolist() == [True, False]


def test_nothing_of_a_batch_that_a_worker_shares_is_kept_since_each_holds_a_file_open():
    evaluated = make_evaluated()
    batch = Batch(*(None if value is None else value.share_memory_() for value in shrunk_image()))
    xy, scores = torch.tensor([[[[20.0, 10.0]]]]).share_memory_(), torch.tensor([[[0.9]]]).share_memory_()
    evaluated.add(batch, xy, scores)
    for tensor in (xy, scores, *(value for value in batch if value is not None)):
        tensor.zero_()  # seen by whoever still reads the shared memory
    image = evaluated.images[0]
    assert (evaluated.values()["meanAP"], image.labelled.tolist()) == (1, [True])
    assert [values[0].tolist() for values in (image.truths, image.xy)] == [[[20, 10]], [[20, 10]]]
    assert image.scores[0].tolist() == pytest.approx([0.9])


@pytest.mark.parametrize("unit", ["pixel", "image"])
def test_errors_are_counted_in_the_numbers_that_recall_and_precision_are_of(unit):
    # The true keypoint is at (20, 10), and the detection farther from it than allowed by less than float32 can tell.
    limit = {"pixel": 2.0, "image": 2 / math.hypot(60, 40)}[unit]
    annotations = SimpleNamespace(channel_names=("a",), name=lambda index: "a.png", path=lambda index: Path("a.png"))
    evaluated = EvaluatedImages(annotations, [limit], unit)
    evaluated.add(shrunk_image(), torch.tensor([[[[22 + 1e-9, 10]]]], dtype=torch.float64), torch.tensor([[[0.9]]]))
    evaluation = summarise(evaluated, limit, [0.5], {})
    assert evaluation.errors.counts.tolist() == [[0]] * 5
    assert evaluation.errors.average_precision.tolist() == [1]
    assert [evaluation.mean[key] for key in ("recall", "precision", "average_precision")] == [1, 1, [1]]
    assert evaluated.values()["meanAP"] == 1


def named(name):
    """A metric of one's own that has a value of this name."""

    class Count(KeypointMetric):
        def compute(self):
            return {"count": 3, name: 0.5}

    return Count


def values_beside(name):
    """The values of all metrics where one point is found, with a metric of one's own that has a value of this name."""
    metrics = {key: metric(["a"], [2.0]) for key, metric in {**METRICS, "mine": named(name)}.items()}
    labelled, indices = torch.ones(1, 1, dtype=torch.bool), torch.arange(1)
    for metric in metrics.values():
        metric.update(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 1), torch.zeros(1, 1, 1, 2), labelled, indices)
    return metric_values(metrics)


@pytest.mark.parametrize(("taken", "owner"), [("recall", "localization"), ("loss", "training")])
def test_a_metric_of_ones_own_does_not_take_the_place_of_another(taken, owner, monkeypatch):
    with pytest.raises(InputError, match=f"^metric mine: '{taken}' is already logged by {owner}, expected a unique"):
        values_beside(taken)
    monkeypatch.setitem(METRICS, "mine", named(taken))
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)  # where GPUs could exchange no state of a CPU
    for start in (make_evaluated, lambda: MetricsLogger(EvaluationRow(), ["a"])):  # before any image is seen
        with pytest.raises(InputError, match=f"^metric mine: '{taken}' is already logged by {owner}"):
            start()
    monkeypatch.undo()
    values = values_beside("count/a")
    assert (values["count"], values["count/a"], values["recall"], values["meanAP"]) == (3.0, 0.5, 1.0, 1.0)
