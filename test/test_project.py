"""The files around the package: dependencies, commands of the README, workflows and containers agree."""

import ast
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import setuptools
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture
def setup_arguments(monkeypatch):
    """What setup.py passes to `setuptools.setup`."""
    found = {}
    monkeypatch.setattr(setuptools, "setup", lambda **arguments: found.update(arguments))
    monkeypatch.chdir(ROOT)
    runpy.run_path(str(ROOT / "setup.py"))
    return found


def readme_command(name):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(rf"<!-- command: {name} -->\n```sh\n(.*?)\n```", text, re.DOTALL)
    assert len(commands) == 1, f"one block is marked as the command {name}"
    return commands[0]


def test_conda_environment_asks_for_the_same_packages(setup_arguments):
    environment = yaml.safe_load((ROOT / "environment.yaml").read_text())
    (from_pip,) = (entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    wanted = {*setup_arguments["install_requires"], *setup_arguments["extras_require"]["dev"]}
    assert set(from_pip) == wanted
    assert len(from_pip) == len(wanted)
    (python,) = (entry for entry in environment["dependencies"] if str(entry).startswith("python"))
    assert setup_arguments["python_requires"] in python


def test_every_imported_package_is_declared(setup_arguments):
    names = {
        "pytorch_lightning": "pytorch-lightning",
        "lightning_fabric": "pytorch-lightning",
        "lightning_utilities": "pytorch-lightning",
        "PIL": "pillow",
        "skimage": "scikit-image",
        "yaml": "pyyaml",
        "segmentation_models_pytorch": "segmentation-models-pytorch",
        "docstring_parser": "jsonargparse",
        "timm": "segmentation-models-pytorch",
        "sqlalchemy": "optuna",
    }
    extras = setup_arguments["extras_require"].values()
    requirements = [*setup_arguments["install_requires"], *(line for extra in extras for line in extra)]
    declared = {re.split(r"[\[<>=~!;\s]", line)[0].lower() for line in requirements}
    for path in (ROOT / "keypoint_detection").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = []
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                modules = [node.module]
            for module in modules:
                top = module.split(".")[0]
                if top not in sys.stdlib_module_names and top != "keypoint_detection":
                    assert names.get(top, top).lower() in declared, f"{path} imports {top}, which setup.py lacks"


def test_packages_hold_their_data_files(setup_arguments):
    # Every file of the package that is not Python has to match a pattern, or an installed copy would lack it.
    patterns = setup_arguments["package_data"]["keypoint_detection"]
    package = ROOT / "keypoint_detection"
    known = {path for pattern in patterns for path in package.glob(pattern)}
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".py":
            assert path in known, f"setup.py's package_data lacks {path.relative_to(ROOT)}"
    folders = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in package.rglob("*.py")}
    assert folders == set(setup_arguments["packages"])


def test_readme_commands_set_everything_up():
    for name in ("train", "test"):
        command = readme_command(name)
        assert "\n" not in command
        assert command.startswith("python3 -m venv .venv && .venv/bin/pip install -q ")
    assert readme_command("test").endswith('".[test]" && .venv/bin/pytest')
    for path in re.findall(r"(?:test|keypoint_detection)/[\w/.]+", readme_command("train")):
        assert (ROOT / path).exists()


def test_readme_links_to_files_that_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^)#]+)", text)
    assert any(link.endswith((".jpg", ".png")) for link in links)
    for link in links:
        assert link.startswith("https://") or (ROOT / link).exists(), link


def test_ci_takes_its_commands_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    program = script[script.index("command_of() {") : script.index("\n}\n") + 3]
    for name in ("train", "test"):
        output = subprocess.run(
            ["bash", "-c", f"{program}\ncommand_of {name}"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert output.stdout.strip() == readme_command(name)
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(ROOT / ".ci" / "run")], check=True)


def test_workflows_and_hooks(setup_arguments):
    workflows = [yaml.safe_load(path.read_text()) for path in (ROOT / ".github" / "workflows").glob("*.yml")]
    jobs = {name: job for workflow in workflows for name, job in workflow["jobs"].items()}
    versions = jobs["pytest"]["strategy"]["matrix"]["python-version"]
    assert versions == ["3.10", "3.11", "3.12", "3.13"]
    for version in versions:
        assert f"Programming Language :: Python :: {version}" in setup_arguments["classifiers"]
    assert any(".ci/run" in step.get("run", "") for step in jobs["pytest"]["steps"])
    assert any("pre-commit run" in step.get("run", "") for step in jobs["pre-commit"]["steps"])
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    hooks = {hook["id"] for repository in repositories for hook in repository["hooks"]}
    assert {"ruff", "ruff-format", "check-yaml", "check-added-large-files"} <= hooks


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_containers_install_the_project(device, setup_arguments):
    folder = ROOT / ".devcontainer" / device
    container = json.loads((folder / "devcontainer.json").read_text())
    assert (folder / container["build"]["dockerfile"]).exists()
    (extra,) = re.findall(r"'\.\[(\w+)\]'", container["postCreateCommand"])
    assert extra in setup_arguments["extras_require"]
    assert ("--gpus=all" in container["runArgs"]) == (device == "gpu")


def test_ruff_is_pinned_to_a_version_that_the_settings_ask_for(setup_arguments):
    repositories = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (pinned,) = (entry["rev"] for entry in repositories if entry["repo"].endswith("ruff-pre-commit"))
    (bound,) = (line for line in setup_arguments["extras_require"]["dev"] if line.startswith("ruff"))
    lowest = tuple(map(int, bound.split(">=")[1].split(".")))
    assert tuple(map(int, pinned.removeprefix("v").split("."))) >= lowest


def test_no_large_files():
    skipped = {".git", ".venv", "runs", "build", "__pycache__", "wandb", ".hypothesis", ".pytest_cache", ".ruff_cache"}
    for path in ROOT.rglob("*"):
        if path.is_file() and not skipped & set(path.relative_to(ROOT).parts):
            assert path.stat().st_size < 600 * 1024, path
