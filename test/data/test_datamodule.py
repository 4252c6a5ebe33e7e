import json
import logging
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from data_sets import write_data_set

from keypoint_detection.data import loading, parts
from keypoint_detection.data.augment import Augmentation
from keypoint_detection.data.datamodule import KeypointsDataModule
from keypoint_detection.data.images import scan_sizes
from keypoint_detection.data.loading import automatic_num_workers, loader_arguments
from keypoint_detection.errors import InputError

AUGMENTATION = Augmentation(rotation=180, horizontal_flip=0.5, vertical_flip=0.5, cutmix=0.5, noise=0.2)


@pytest.fixture
def folder(tmp_path):
    keypoints = [{"a": [[1 + index, 2]], "b": []} for index in range(10)]
    write_data_set(tmp_path, [(20, 10)] * 5 + [(10, 20)] * 5, keypoints)
    return tmp_path


def make(folder, **arguments):
    given = {"heatmap_sigma": 2.0, "heatmap_stride": 2, "batch_size": 3, "num_workers": 0, **arguments}
    return KeypointsDataModule(folder / "dataset.json", **given)


def ready(folder, **arguments):
    module = make(folder, **arguments)
    module.setup()
    return module


def stand_in(rank=0, world=1, device="cpu"):
    """What the data module asks of a trainer, for a device and processes that this machine does not have."""
    loops = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop
    strategy = SimpleNamespace(root_device=torch.device(device))
    return SimpleNamespace(strategy=strategy, num_devices=1, global_rank=rank, world_size=world, fit_loop=loops)


def test_split_off_validation(folder):
    module = ready(folder, validation_split_ratio=0.3, seed=5)
    assert len(module.train_annotations) == 7
    assert len(module.validation_annotations) == 3
    assert module.test_annotations is None
    assert module.channel_names == ("a", "b")
    names = [module.train_annotations.name(i) for i in range(7)]
    assert module.split["train"] == names
    assert sorted(names + module.split["validation"]) == [f"{i:03d}.png" for i in range(10)]
    widths = [20 if int(name[:3]) < 5 else 10 for name in names]
    assert module.train_sizes[:, 0].tolist() == widths
    parts = module.parts
    module.setup("fit")
    assert module.parts is parts


def test_the_sizes_of_the_parts_are_said(folder, caplog):
    with caplog.at_level("INFO"):
        ready(folder, validation_split_ratio=0.3)
    assert "dataset.json: 7 images to train on, 3 to validate on" in caplog.text


@pytest.mark.parametrize("empty_channels", ["absent", "ignore"])
def test_labels_without_any_keypoint_are_refused_as_they_teach_nothing(tmp_path, empty_channels, caplog):
    path = write_data_set(tmp_path, [(20, 10)] * 4, [{"a": []}] * 4)
    with pytest.raises(InputError) as error:
        ready(tmp_path, empty_channels=empty_channels)
    assert str(error.value) == f"{path}: no training image has any keypoint, expected at least one to learn from"
    assert not [record for record in caplog.records if "keypoint" in record.getMessage()]


def test_where_all_keypoints_were_split_off_another_seed_is_advised(tmp_path):
    write_data_set(tmp_path, [(20, 10)] * 4, [{"a": [[3, 4]]}] + [{"a": []}] * 3)
    ends = set()
    for seed in range(20):
        try:
            ready(tmp_path, seed=seed)
        except InputError as error:
            ends.add(str(error).partition("dataset.json: ")[2])
    assert ends == {
        "no training image has any keypoint, expected at least one to learn from; another --seed gives another split"
    }


def test_the_curriculum_decides_which_batches_are_changed(folder):
    plain, module = ready(folder), ready(folder, augmentation=AUGMENTATION)
    module.curriculum = lambda epoch, batch: (1.0, batch > 0)
    batches = zip(plain.train_dataloader(), module.train_dataloader(), strict=True)
    assert [torch.equal(own.images, as_it_is.images) for as_it_is, own in batches] == [True, False, False]


def test_a_split_is_used_again(folder):
    first = ready(folder, seed=1)
    again = ready(folder, seed=2, validation_split_ratio=0.5, split=first.split)
    assert again.split["train"] == first.split["train"]
    assert again.split["validation"] == first.split["validation"]
    with pytest.raises(InputError, match=r"split: .*other\.png"):
        ready(folder, split=first.split | {"train": ["other.png"]})


def test_files_of_their_own(folder, caplog):
    sizes, keypoints = [(8, 8)] * 5, [{"b": [], "a": [[3, 4]], "c": []}] * 5
    (folder / "other").mkdir()
    write_data_set(folder / "other", sizes, keypoints, "validation.json")
    write_data_set(folder / "other", sizes, keypoints, "test.json")
    paths = {
        "json_validation_dataset_path": folder / "other" / "validation.json",
        "image_validation_dataset_path": folder / "other",
        "json_test_dataset_path": folder / "other" / "test.json",
        "image_test_dataset_path": str(folder / "other"),
    }
    with caplog.at_level(logging.WARNING):
        module = ready(folder, keypoint_channels="a b", **paths)
    said = f"{folder / 'dataset.json'}: no training image has a keypoint of b, which therefore cannot be learned"
    assert caplog.messages == [said]
    assert [len(module.train_annotations), len(module.validation_annotations), len(module.test_annotations)] == [
        10,
        5,
        5,
    ]
    assert module.test_annotations.channel_names == ("a", "b")
    assert sum(len(batch.images) for batch in module.test_dataloader()) == 5
    with pytest.raises(InputError, match="split: the images of 'test'"):
        ready(folder, keypoint_channels="a b", split=module.split | {"test": ["x.png"]}, **paths)
    with caplog.at_level(logging.WARNING):
        module = ready(folder, json_test_dataset_path=folder / "dataset.json")
    assert "in both train and test" in caplog.text
    assert sum(len(batch.images) for batch in module.predict_dataloader()) == 10


def test_images_are_relative_to_the_folder_that_is_given_or_to_their_own_file(folder):
    paths = {"json_validation_dataset_path": "a/validation.json", "json_test_dataset_path": "b/test.json"}
    given = {"image_validation_dataset_path": "elsewhere"}

    def folders(*arguments, **more):
        module = KeypointsDataModule("data/train.json", *arguments, **paths, **more)
        return {name: str(root) for name, (_, root) in module.files.items()}

    assert folders() == {"train": "data", "validation": "a", "test": "b"}
    assert folders("images") == {"train": "images", "validation": "images", "test": "images"}
    assert folders("images", **given) == {"train": "images", "validation": "elsewhere", "test": "images"}
    assert folders(**given) == {"train": "data", "validation": "elsewhere", "test": "b"}


@pytest.mark.parametrize("nothing", ["", " ", []])
def test_no_channel_is_not_all_of_them(folder, nothing):
    with pytest.raises(InputError, match=r"dataset\.json: keypoint_channels is empty, expected some of: a, b$"):
        ready(folder, keypoint_channels=nothing)


def test_channels_of_all_files_are_made_of_the_same(folder):
    for file, channels in (("same", ["a", "b"]), ("less", ["b"])):
        labels = {"dataset": [{"image_path": "000.png", **{name: [[0.5, 0.5]] for name in channels}}]}
        (folder / f"{file}.json").write_text(json.dumps(labels))
    module = ready(folder, json_validation_dataset_path=folder / "same.json", keypoint_channels="c=b a")
    assert [part.channel_names for part in module.parts.annotations.values()] == [("c", "a")] * 2
    with pytest.raises(InputError) as raised:  # or `b` would validate what `a` and `b` train
        ready(folder, json_validation_dataset_path=folder / "less.json", keypoint_channels="a=b")
    line = f'"a" consists of "b" in that file, but of "a" and "b" in {folder / "dataset.json"}, expected the same'
    assert str(raised.value) == f"{folder / 'less.json'}: channel {line}"


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_folder_without_its_file_is_refused(folder, name):
    with pytest.raises(InputError) as error:
        make(folder, **{f"image_{name}_dataset_path": "photos"})
    assert str(error.value) == f"--image_{name}_dataset_path photos: expected --json_{name}_dataset_path with it"


def test_without_a_test_file(folder):
    module = ready(folder)
    with pytest.raises(InputError, match="json_test_dataset_path"):
        module.test_dataloader()
    predicted = [batch.indices for batch in module.predict_dataloader()]
    assert torch.cat(predicted).tolist() == list(range(len(module.validation_annotations)))


def test_batches_of_an_evaluation_have_one_size_however_many_headers_are_read_at_first(folder, monkeypatch):
    monkeypatch.setattr(parts, "scan_sizes", partial(scan_sizes, limit=2))
    module = ready(folder, validation_split_ratio=0.6, batch_size=10)
    assert (module.train_sizes == 0).any()
    for batch in module.val_dataloader():
        assert (batch.sizes == batch.sizes[0]).all()
    assert sum(len(batch.indices) for batch in module.val_dataloader()) == 6


def test_keypoints_outside_are_left_out_of_an_evaluation_however_many_headers_are_read_at_first(tmp_path, monkeypatch):
    keypoints = [{"a": [[1, 2], [90, 2]]} if index in (3, 4) else {"a": [[1, 2]] * 5} for index in range(6)]
    write_data_set(tmp_path, [(20, 10)] * 6, keypoints)
    write_data_set(tmp_path, [(20, 10)] * 6, keypoints, "other.json")
    monkeypatch.setattr(parts, "scan_sizes", partial(scan_sizes, limit=2))
    module = ready(tmp_path, json_validation_dataset_path=tmp_path / "other.json")
    assert module.validation_annotations.counts().tolist() == [[5], [5], [5], [1], [1], [5]]


def test_an_image_that_cannot_be_read_is_skipped_in_an_evaluation_too(folder, monkeypatch):
    monkeypatch.setattr(parts, "scan_sizes", partial(scan_sizes, limit=2))
    (folder / "005.png").write_bytes(b"no image")
    module = ready(folder, json_validation_dataset_path=folder / "dataset.json", corrupt_images="skip")
    labelled = {}
    for batch in module.val_dataloader():
        labelled |= zip(batch.indices.tolist(), batch.labelled.any(dim=1).tolist(), strict=True)
    assert labelled == {index: index != 5 for index in range(10)}


def test_only_training_is_augmented(folder):
    module = ready(folder, validation_split_ratio=0.5, augmentation=AUGMENTATION)
    assert module.dataset("train").augmentation is module.augmentation
    assert module.dataset("validation").augmentation is None
    assert ready(folder).dataset("train").augmentation is None
    plain = ready(folder, validation_split_ratio=0.5)
    for a, b in zip(module.val_dataloader(), plain.val_dataloader(), strict=True):
        assert torch.equal(a.images, b.images)


def test_only_training_images_are_kept_in_full_size(folder):
    module = ready(folder, image_size=8, cache_images=True, augmentation=AUGMENTATION)
    assert [module.dataset(stage).cache.image_size for stage in ("train", "validation")] == [None, (8, 8)]


def test_epochs_differ_and_runs_do_not(folder):
    def epoch(module, number):
        loader = module.train_dataloader()
        loader.sampler.set_epoch(number)
        return list(loader)

    first, again = ready(folder, seed=3), ready(folder, seed=3)
    for a, b in zip(epoch(first, 1), epoch(again, 1), strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.indices, b.indices)
    indices = [torch.cat([batch.indices for batch in epoch(first, number)]).tolist() for number in (0, 1)]
    assert indices[0] != indices[1]
    assert sorted(indices[0]) == sorted(indices[1]) == list(range(9))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_loader_that_is_read_again_without_a_trainer_goes_on_with_the_next_epoch(folder, num_workers):
    module = ready(folder, augmentation=AUGMENTATION, num_workers=num_workers)
    loader = module.train_dataloader()
    first, second = list(loader), list(loader)
    orders = [torch.cat([batch.indices for batch in epoch]).tolist() for epoch in (first, second)]
    assert orders[0] != orders[1]
    again = module.train_dataloader()
    again.sampler.set_epoch(1)
    for a, b in zip(again, second, strict=True):
        assert torch.equal(a.images, b.images)


def test_order_and_changes_go_by_the_seed_of_the_training(folder):
    first = ready(folder, seed=1, augmentation=AUGMENTATION)
    second = ready(folder, seed=2, augmentation=AUGMENTATION, split=first.split)
    orders = [torch.cat([batch.indices for batch in module.train_dataloader()]).tolist() for module in (first, second)]
    assert orders[0] != orders[1]
    assert not torch.equal(first.dataset("train")[0].images, second.dataset("train")[0].images)


@pytest.mark.parametrize(("empty_channels", "labelled"), [("absent", [True, True]), ("ignore", [True, False])])
def test_what_an_empty_channel_means_is_said_to_all_parts(folder, empty_channels, labelled):
    module = ready(folder, empty_channels=empty_channels)  # of whose channels the second one is empty
    for stage in ("train", "validation"):
        assert module.dataset(stage)[0].labelled.tolist() == labelled


def test_validation_batches_hold_one_size(folder):
    module = ready(folder, validation_split_ratio=0.8, batch_size=4)
    seen = []
    for batch in module.val_dataloader():
        assert (batch.sizes == torch.tensor(batch.images.shape[2:])).all()
        seen += batch.indices.tolist()
    assert sorted(seen) == list(range(8))


def test_files_of_many_sizes_share_a_batch_where_they_are_resized_to_one(tmp_path):
    sizes = [(20, 10), (10, 20), (40, 20), (60, 30)]
    path = write_data_set(tmp_path, sizes, [{"a": [[1, 2]]}] * 4)
    module = ready(tmp_path, json_validation_dataset_path=path, image_size=8, batch_size=4)
    batches = list(module.val_dataloader())
    assert [batch.indices.tolist() for batch in batches] == [[0, 2, 3], [1]]
    assert [tuple(batch.images.shape[2:]) for batch in batches] == [(4, 8), (8, 4)]


@pytest.mark.parametrize("where", ["loader", "device"])
def test_heatmaps_are_the_same_wherever_they_are_rendered(folder, where):
    module = ready(folder, render_heatmaps_on=where)
    batch = next(iter(module.train_dataloader()))
    assert (batch.heatmaps is None) == (where == "device")
    rendered = module.on_after_batch_transfer(batch, 0).heatmaps
    reference = next(iter(ready(folder, render_heatmaps_on="auto").train_dataloader())).heatmaps
    assert torch.equal(rendered, reference)


def test_values_may_be_chosen_after_setup(folder):
    module = ready(folder, heatmap_sigma=None, heatmap_stride=None, batch_size=None)
    with pytest.raises(InputError, match=r"batch_size: .*None"):
        module.train_dataloader()
    module.batch_size = 2
    with pytest.raises(InputError, match="heatmap_sigma"):
        module.train_dataloader()
    module.heatmap_sigma, module.heatmap_stride, module.image_size = 3.0, 4, [8, 8]
    assert max(next(iter(module.train_dataloader())).images.shape[2:]) == 8


def test_a_batch_knows_the_sizes_of_its_files(folder):
    batches = ready(folder, image_size=[8, 8]).val_dataloader()
    for batch in batches:
        assert max(batch.images.shape[2:]) == 8
        assert batch.file_sizes().norm(dim=1).tolist() == pytest.approx([np.hypot(10, 20)] * len(batch.images))


def test_each_process_reads_its_share(folder):
    module = ready(folder, validation_split_ratio=0.5, batch_size=2)
    assert module.batches_per_epoch() == len(module.train_dataloader()) == 3
    trained, validated = [], []
    for rank in range(2):
        part = ready(folder, validation_split_ratio=0.5, batch_size=2)
        part.trainer = stand_in(rank=rank, world=2)
        trained.append([int(index) for batch in part.train_dataloader() for index in batch.indices])
        validated.append([int(index) for batch in part.val_dataloader() for index in batch.indices if index >= 0])
    assert len(trained[0]) == len(trained[1]) == 3
    assert set(trained[0]) | set(trained[1]) == set(range(5))
    assert sorted(validated[0] + validated[1]) == list(range(5))
    assert all(index % 2 == rank for rank in range(2) for index in validated[rank])


def test_on_another_device_heatmaps_are_rendered_there(folder):
    module = ready(folder)
    assert next(iter(module.train_dataloader())).heatmaps is not None
    module.trainer = stand_in(device="meta")
    assert next(iter(module.train_dataloader())).heatmaps is None


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_what_is_read_on_the_host_stays_there_and_what_a_device_has_not_is_not_sent(folder, device, monkeypatch):
    sent = []

    def send(module, batch, to, dataloader_idx):
        sent.append(batch)
        return type(batch)(*(None if part is None else part.to("meta") for part in batch))

    monkeypatch.setattr(pl.LightningDataModule, "transfer_batch_to_device", send)
    module = ready(folder)
    batch = next(iter(module.train_dataloader()))
    moved = module.transfer_batch_to_device(batch, torch.device(device), 0)
    assert torch.equal(moved.sizes, batch.sizes)
    assert {part.device.type for name, part in moved._asdict().items() if name != "sizes"} == {"meta"}
    has_float64 = any(part.dtype == torch.float64 for part in sent[0])
    assert has_float64 == (device == "cuda")


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_memory_is_pinned_for_the_device_that_reads_it_faster_then(device):
    assert loader_arguments(2, stand_in(device=device))["pin_memory"] == (device == "cuda")


@pytest.mark.parametrize(
    ("device", "where", "said"),
    [
        ("cpu", "auto", ["render_heatmaps_on: loader (workers, if there are any, do it in parallel with training)"]),
        (
            "meta",
            "auto",
            ["render_heatmaps_on: device (nearly free on meta, and less data to transfer)"],
        ),
        ("cpu", "device", []),
        ("meta", "loader", []),
    ],
)
def test_the_place_that_is_chosen_for_rendering_is_said_once(folder, device, where, said, caplog):
    caplog.set_level(logging.INFO, "keypoint_detection")
    module = ready(folder, render_heatmaps_on=where)
    module.train_dataloader()
    module.trainer = stand_in(device=device)
    module.train_dataloader()
    module.val_dataloader()
    assert [message for message in caplog.messages if message.startswith("render_heatmaps_on")] == said


def test_keypoints_outside_their_image_are_left_out(folder, caplog):
    keypoints = [{"a": [[1, 2], [5, 5], [25, 2] if index == 3 else [6, 6]]} for index in range(4)]
    write_data_set(folder, [(20, 10)] * 4, keypoints)
    with caplog.at_level(logging.WARNING):
        module = ready(folder)
    assert "003.png" in caplog.text
    assert module.train_annotations.counts().sum() + module.validation_annotations.counts().sum() == 11


@pytest.mark.parametrize("num_workers", [-1, "many", 1.5])
def test_wrong_number_of_workers(folder, num_workers):
    with pytest.raises(InputError, match="num_workers"):
        ready(folder, num_workers=num_workers).train_dataloader()


def test_cache(folder):
    cached, plain = ready(folder, cache_images=True), ready(folder)
    for _ in range(2):
        for a, b in zip(cached.train_dataloader(), plain.train_dataloader(), strict=True):
            assert torch.equal(a.images, b.images)


def test_maximum_of_keypoints(folder):
    assert ready(folder, keypoint_channel_max_keypoints="1 -1").keypoint_channel_max_keypoints == [1, -1]
    assert ready(folder, keypoint_channel_max_keypoints=3).keypoint_channel_max_keypoints == [3, 3]
    with pytest.raises(InputError, match="keypoint_channel_max_keypoints"):
        ready(folder, keypoint_channel_max_keypoints="1 x")


def test_setup_comes_first(folder):
    with pytest.raises(RuntimeError, match="setup"):
        _ = make(folder).channel_names


@pytest.mark.parametrize(("cores", "processes", "workers"), [(1, 1, 0), (4, 1, 3), (4, 2, 1), (9, 1, 8), (64, 1, 8)])
def test_a_device_gets_a_worker_for_each_core_but_one_up_to_8(cores, processes, workers, monkeypatch):
    monkeypatch.setattr(loading, "usable_cores", lambda: cores)
    assert automatic_num_workers("cuda", processes)[0] == workers


@pytest.mark.parametrize(("cores", "threads", "workers"), [(16, 4, 2), (5, 4, 1), (4, 4, 2), (3, 3, 1), (2, 2, 0)])
def test_a_cpu_gets_at_most_two_workers_of_the_cores_that_it_spares(cores, threads, workers, monkeypatch):
    monkeypatch.setattr(loading, "usable_cores", lambda: cores)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert automatic_num_workers("cpu")[0] == workers


def test_automatic_workers_leave_a_core_to_the_training():
    cpu, _ = automatic_num_workers("cpu")
    gpu, reason = automatic_num_workers("cuda")
    assert 0 <= cpu <= 2
    assert 0 <= gpu <= 8
    assert "cuda" in reason
    assert automatic_num_workers("cuda", 1000)[0] == 0
