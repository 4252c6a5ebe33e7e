"""Sessions of wandb for the tests of all that talks to it."""

import pytest
import wandb
from wandb_server import WandbServer


@pytest.fixture
def fresh_wandb(monkeypatch, tmp_path_factory):
    """A new session of wandb, which reads the environment anew, in an empty folder."""
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    monkeypatch.setenv("WANDB_CONSOLE", "off")
    wandb.teardown()
    yield
    if wandb.run is not None:
        wandb.finish()
    wandb.teardown()


@pytest.fixture
def wandb_server(fresh_wandb, monkeypatch):
    """A stand-in server that the client is logged in to."""
    with WandbServer() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server
