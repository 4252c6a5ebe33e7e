"""What is right and wrong in a sweep file, and the command lines of its runs."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from configuration import DEFAULT_SWEEP, TEST_DATASET

from keypoint_detection.errors import InputError
from keypoint_detection.sweep.flag_check import check_flags
from keypoint_detection.sweep.sweep_file import own_program, read_sweep_file
from keypoint_detection.train import train

OWN = TEST_DATASET.parents[1] / "keypoint_detection" / "train"


def read(folder, changes, **parameters):
    content = {**DEFAULT_SWEEP, "parameters": DEFAULT_SWEEP["parameters"] | parameters, **changes}
    path = folder / "sweep.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in content.items() if value is not ...}))
    return read_sweep_file(path)


def test_the_programs_folder_is_where_runs_start(tmp_path, monkeypatch):
    sweep = read_sweep_file(OWN / "sweep.yaml")
    assert (sweep.program, sweep.folder) == (OWN / "train.py", OWN)
    assert own_program() == Path(train.__file__)
    (tmp_path / "train.py").write_text("")
    monkeypatch.chdir(tmp_path)
    sweep = read_sweep_file(OWN / "sweep.yaml")
    assert (sweep.program, sweep.folder) == (tmp_path / "train.py", tmp_path)
    assert read(tmp_path, {"program": ...}).program == own_program()
    assert read(tmp_path, {"program": None}).program == own_program()


def test_the_librarys_own_program_is_found_where_there_is_no_copy_of_it(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    assert read(tmp_path, {"program": "train.py"}).program == own_program()
    assert f"using {own_program()}" in caplog.text
    with pytest.raises(InputError, match=r"program mine\.py: no such file"):
        read(tmp_path, {"program": "mine.py"})


def test_the_command_of_a_run_is_wandbs(tmp_path, monkeypatch):
    flags = {"rate": 0.001, "augment": True, "name": "a b", "size": [1, 2], "none": None}
    program = {"program": str(OWN / "train.py")}
    words = ["--rate=0.001", "--augment=True", "--name=a b", "--size=[1, 2]", "--none=null"]
    assert read(tmp_path, program).command(flags) == [sys.executable, str(OWN / "train.py"), *words]
    monkeypatch.setenv("CARD", "3")
    command = ["${env}", "CUDA=${envvar:CARD}", "${interpreter}", "-u", "${program}", "--fast=1", "${args_no_hyphens}"]
    assert read(tmp_path, {**program, "command": command}).command(flags) == [
        "/usr/bin/env", "CUDA=3", sys.executable, "-u", str(OWN / "train.py"), "--fast=1",
        *(word.removeprefix("--") for word in words),
    ]  # fmt: skip
    command = read(tmp_path, {**program, "command": ["${program}", "${args_json}"]}).command(flags)
    assert json.loads(command[1]) == flags
    forms = {
        "args_no_boolean_flags": ["--rate=0.5", "--on"],
        "args_no_equals": ["--rate", "0.5", "--on", "True", "--off", "False"],
        "args_append_hydra": ["+rate=0.5", "+on=True", "+off=False"],
        "args_override_hydra": ["++rate=0.5", "++on=True", "++off=False"],
    }
    for macro, expected in forms.items():
        sweep = read(tmp_path, {**program, "command": ["${program}", f"${{{macro}}}"]})
        assert sweep.command({"rate": 0.5, "on": True, "off": False})[1:] == expected


def test_numbers_that_are_equal_to_a_boolean_are_told_as_numbers(tmp_path):
    sweep = read(tmp_path, {"program": ..., "command": ["${program}", "${args_no_boolean_flags}"]})
    assert sweep.command({"hf": 0.0, "a": True, "b": False, "c": 1})[1:] == ["--hf=0.0", "--a", "--c=1"]


@pytest.mark.parametrize(
    ("count", "changes", "expected"),
    [
        (5, {}, 5),
        (5, {"run_cap": 3}, 5),
        (None, {"run_cap": 3}, 3),
        (None, {"method": "grid"}, 8),
        (5, {"method": "grid"}, 5),
        (50, {"method": "grid"}, 8),
    ],
)
def test_how_many_runs_there_are(tmp_path, count, changes, expected):
    assert read(tmp_path, {"program": ..., **changes}).runs(count) == expected


@pytest.mark.parametrize("count", [None, 0, -1])
def test_a_sweep_without_an_end_is_bad_input(tmp_path, count):
    with pytest.raises(InputError, match="--count"):
        read(tmp_path, {"program": ...}).runs(count)


@pytest.mark.parametrize(("goal", "told"), [({}, 1), ({"goal": "minimize"}, 0), ({"goal": "maximize"}, 0)])
def test_that_a_metric_without_a_goal_is_to_be_low_is_told(tmp_path, caplog, goal, told):
    sweep = read(tmp_path, {"program": ..., "metric": {"name": "validation/meanAP", **goal}})
    assert sweep.maximize == (goal.get("goal") == "maximize")
    assert [record.message for record in caplog.records] == told * [
        f"{tmp_path / 'sweep.yaml'}: metric.goal is missing, so it is minimize: the best run has the lowest "
        "validation/meanAP"
    ]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"method": "randm"}, "method is 'randm', expected one of grid, random, bayes"),
        ({"method": ...}, "method is None"),
        ({"metric": ...}, "metric is missing"),
        ({"metric": {"goal": "maximize"}}, "metric is missing"),
        ({"metric": {"name": "a", "goal": "up"}}, "metric.goal is 'up'"),
        ({"parameters": ...}, "parameters is missing"),
        ({"parametres": {}}, "parametres: unknown entry (did you mean parameters?)"),
        ({"program": "no_such.py"}, "program no_such.py: no such file"),
        ({"run_cap": 0}, "run_cap is 0"),
        ({"command": "python train.py"}, "expected a list"),
        (
            {"command": ["${program}", "${args_json_file}"]},
            "command: ${args_json_file}: unknown, expected some of ${env}",
        ),
        ({"program": 3}, "program is 3, expected the name of a script"),
        ({"method": "grid", "parameters": {"a": {"min": 0.0, "max": 1.0}}}, "parameters.a: method grid"),
        ({"parameters": {"a": {"min": 2, "max": 1}}}, "parameters.a: min is 2"),
    ],
)
def test_a_wrong_file_is_one_line_that_names_file_and_entry(tmp_path, changes, named):
    with pytest.raises(InputError) as error:
        read(tmp_path, {"program": ..., **changes})
    assert str(error.value).startswith(f"{tmp_path / 'sweep.yaml'}: ")
    assert named in str(error.value)
    assert "\n" not in str(error.value)


def test_a_parameter_that_stands_in_the_file_twice_is_named(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("method: random\nparameters:\n  seed: {value: 1}\n  loss: {value: mse}\n  seed: {value: 2}\n")
    with pytest.raises(InputError, match=rf"^{path}: seed appears twice, expected it once$"):
        read_sweep_file(path)


def test_a_parameter_that_contains_itself_is_named(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("method: random\nparameters:\n  seed: &x {values: [1, *x]}\n")
    with pytest.raises(InputError, match=rf"^{path}: parameters.seed.values\[1\] is an alias of what contains it"):
        read_sweep_file(path)


@pytest.mark.parametrize("content", ["a: [", "a: b: c", "- 1", "", None, b"\xff\xfe\x00"])
def test_what_is_no_sweep_file_is_one_line(tmp_path, content):
    path = tmp_path / "sweep.yaml"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=r"sweep\.yaml") as error:
        read_sweep_file(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        (
            {"learnin_rate": {"values": [1, 2]}},
            r"parameters\.learnin_rate: expected a flag .*did you mean learning_rate",
        ),
        ({"learning_rate": {"values": [0.1, "fast"]}}, r"parameters\.learning_rate: .*fast"),
        ({"max_epochs": {"min": 1.0, "max": 2.5}}, r"parameters\.max_epochs: .*1\.0"),
        ({"loss": {"values": ["bce", "nonsense"]}}, r"parameters\.loss: .*nonsense"),
        (
            {"loss": {"values": ["bce", "nonsense", "mse"], "probabilities": [0.5, 0.3, 0.2]}},
            r"parameters\.loss: .*nons",
        ),
        ({"backbone_type": {"value": "Unett"}}, r"parameters\.backbone_type: .*Unett"),
        ({"run_dir": {"value": "runs"}}, r"parameters\.run_dir: is set by the sweep"),
    ],
)
def test_parameters_are_checked_as_flags(tmp_path, parameters, named):
    with pytest.raises(InputError, match=named) as error:
        check_flags(read(tmp_path, {"program": ...}, **parameters))
    assert "\n" not in str(error.value)


def test_the_smallest_sweep_has_nothing_wrong(tmp_path):
    check_flags(read(tmp_path, {"program": ...}))


def test_a_missing_required_flag_is_named(tmp_path):
    sweep = read(tmp_path, {"program": ..., "parameters": {"max_epochs": {"value": 1}}})
    with pytest.raises(InputError, match="json_dataset_path"):
        check_flags(sweep)


@pytest.mark.parametrize(
    "words",
    [["--json_dataset_path=x", "${args}"], ["${args}", "--json_dataset_path", "x"], ["--config=base.yaml", "${args}"]],
)
def test_flags_of_the_command_are_not_missing(tmp_path, words):
    (tmp_path / "train.py").symlink_to(own_program())
    (tmp_path / "base.yaml").write_text("json_dataset_path: x\n")
    command = ["${interpreter}", "${program}", *words]
    check_flags(read(tmp_path, {"command": command, "parameters": {"learning_rate": {"values": [0.1, 0.2]}}}))
    with pytest.raises(InputError, match=r"parameters\.learning_rate: .*fast"):
        check_flags(read(tmp_path, {"command": command, "parameters": {"learning_rate": {"value": "fast"}}}))


def test_a_wrong_flag_of_the_command_is_named(tmp_path):
    with pytest.raises(InputError, match=r"sweep\.yaml: command: unknown flag: --btch_size=3"):
        check_flags(read(tmp_path, {"program": ..., "command": ["${program}", "--btch_size=3", "${args}"]}))


def test_what_differs_from_an_earlier_file_is_named(tmp_path):
    before = read(tmp_path, {"program": ..., "parameters": {"a": {"value": 1}, "b": {"value": 1}, "c": {"value": 1}}})
    after = {"a": {"value": 1}, "b": {"value": 2}, "d": {"value": 1}}
    now = read(tmp_path, {"program": ..., "method": "grid", "parameters": after})
    assert now.differences(before.identity) == ["method", "parameters.b", "parameters.c", "parameters.d"]
    assert now.differences(now.identity) == []


@pytest.mark.parametrize(
    ("name", "channels", "problem"),
    [
        ("validation/mAP", None, "expected a metric that training logs (did you mean validation/meanAP?)"),
        ("validation/mAP", "a b=c", "expected a metric that training logs (did you mean validation/meanAP?)"),
        ("loss", None, "expected a metric that training logs"),
        ("train/meanAP", None, "expected a metric that training logs"),
        ("validation/loss/c", "a b=c", "expected a metric that training logs"),
        ("validation/AP/b", "a b=c", "expected a metric that training logs"),
        (
            "validation/AP/any",
            None,
            "expected a metric that training logs (did you mean validation/AP/any/d=2, validation/AP/any/d=4?)",
        ),
        ("validation/AP", None, "expected a metric that training logs"),
        ("validation/meanAP/any", None, "expected a metric that training logs"),
        ("validation/meanAP/d=8", None, "expected a metric that training logs"),
        ("validation/meanAP/d=2.0", None, "expected a metric that training logs (did you mean validation/meanAP/d=2?)"),
        ("validation/AP/b/d=1.2.3", "a b=c", "expected a metric that training logs"),
        ("validation/loss/d=2", "a", "expected a metric that training logs"),
        ("validation/recall/d=4", "a", "expected a metric that training logs"),
        ("validation/meanAP", None, None),
        ("validation/AP/any/d=2", None, None),
        ("validation/AP/b/d=2", "a b=c", None),
        ("validation/AP/b=c/d=4", "a b=c", None),  # a file may have a channel of that name
        ("validation/loss/d=2", None, None),
        ("best/recall/left/paw", "left/paw", None),
        ("test/loss/a", "a b=c", None),
        ("train/loss", None, None),
    ],
)
def test_a_metric_that_no_training_logs_is_refused_before_one(tmp_path, name, channels, problem):
    parameters = {"json_dataset_path": {"value": "x"}}
    if channels:
        parameters["keypoint_channels"] = {"value": channels}
    sweep = read(tmp_path, {"program": ..., "metric": {"name": name}, "parameters": parameters})
    if problem is None:
        check_flags(sweep)
        return
    with pytest.raises(InputError) as error:
        check_flags(sweep)
    assert f"metric.name {name!r}: {problem}" in str(error.value)


def test_the_distance_of_a_metric_is_one_that_the_runs_have(tmp_path):
    def check(distance, **parameter):
        parameters = {"json_dataset_path": {"value": "x"}, "maximal_gt_keypoint_pixel_distances": parameter}
        metric = {"name": f"validation/meanAP/d={distance}"}
        check_flags(read(tmp_path, {"program": ..., "metric": metric, "parameters": parameters}))

    check("8", value="2 8")
    check("8", values=["2 8", "8"])
    with pytest.raises(InputError, match="expected a metric that training logs"):
        check("4", value="2 8")
    with pytest.raises(InputError, match="expected positive numbers"):
        check("4", value="-4")


def test_a_sweep_whose_yaml_has_numbers_among_its_keys_can_go_on(tmp_path):
    path = tmp_path / "sweep.yaml"
    path.write_text("{method: random, metric: {name: a}, parameters: {b: {value: {1: x, y: 2}}, 3: {value: 4}}}")
    sweep = read_sweep_file(path)
    assert json.loads(sweep.identity)["parameters"] == {"b": {"value": {"1": "x", "y": 2}}, "3": {"value": 4}}
    assert sweep.differences(sweep.identity) == []
