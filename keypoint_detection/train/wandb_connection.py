"""What can be known about wandb before a run starts: the requested mode, and whether there are a login and a server."""

import http.client
import os
import ssl
import urllib.error
import urllib.request
from typing import Literal

import wandb
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from keypoint_detection.errors import InputError
from keypoint_detection.wording import first_line

WandbMode = Literal["auto", "online", "offline", "disabled"]

# Values of WANDB_MODE (`dryrun` and `run` are older names), and what they mean here.
ENVIRONMENT_MODES = {
    "online": "online",
    "run": "online",
    "offline": "offline",
    "dryrun": "offline",
    "disabled": "disabled",
}


def requested_mode(wandb_mode: WandbMode) -> WandbMode:
    """The requested mode: the argument, else WANDB_MODE, else what `wandb offline` or `wandb disabled` has stored."""
    environment = os.environ.get("WANDB_MODE")
    if environment is not None and environment not in ENVIRONMENT_MODES:
        raise InputError(f"WANDB_MODE is {environment!r}, expected one of {', '.join(ENVIRONMENT_MODES)}")
    if wandb_mode == "online" and ENVIRONMENT_MODES.get(environment or "", "online") != "online":
        raise InputError(f"wandb mode is 'online', but WANDB_MODE is {environment!r}; expected them to agree")
    if wandb_mode != "auto":
        return wandb_mode
    if environment is not None:
        return ENVIRONMENT_MODES[environment]
    stored = ENVIRONMENT_MODES.get(wandb.setup().settings.mode, "online")
    return "auto" if stored == "online" else stored


def check_login(wandb_mode: WandbMode) -> None:
    """Checks the login as `create_wandb_logger` does, but before the data is read.

    Args:
        wandb_mode: See `create_wandb_logger`.

    Raises:
        InputError: If the run has to be online and there is no login.
    """
    if is_rank_zero() and requested_mode(wandb_mode) == "online":
        trouble = login_trouble()
        if trouble is not None:
            raise not_online(trouble)


def not_online(trouble: str) -> InputError:
    """The error for a run that has to be online and cannot be."""
    return InputError(f"wandb mode is 'online', but {trouble}; expected a login and a server, or another mode")


def is_rank_zero() -> bool:
    """Whether this is the process that owns the run."""
    # Before the strategy starts, Lightning considers the first process of every node rank zero.
    return rank_zero_only.rank == 0 and os.environ.get("NODE_RANK", "0") == "0"


def login_trouble() -> str | None:
    """Why there is no usable login; None if there is one. Asks neither the server nor the user."""
    try:
        found = wandb.login(prompt=False, verify=False)
    except wandb.errors.AuthenticationError as error:
        return f"the login is not valid ({first_line(error)})"
    return None if found else "there is no login (`wandb login` or WANDB_API_KEY)"


def server_trouble(timeout: float) -> str | None:
    """Why wandb's server cannot be reached; None if anything answers.

    `wandb.init` would find out too, but makes three retries of 5 s before its own timeout even starts.
    """
    url = wandb.setup().settings.base_url
    try:
        urllib.request.urlopen(url, timeout=timeout).close()
    except urllib.error.HTTPError:
        return None  # an answer, if not a good one
    except OSError as error:
        reason = getattr(error, "reason", error)
        # Certificates are left to wandb, whose client may know more of them.
        return None if isinstance(reason, ssl.SSLError) else f"{url} cannot be reached ({reason})"
    except http.client.HTTPException:
        return None
    return None
