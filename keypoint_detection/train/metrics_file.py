"""`metrics.csv` and `hparams.yaml` of a run; `metrics.csv` survives a kill at any moment."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytorch_lightning.core.saving import save_hparams_to_yaml
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities import rank_zero_only

from keypoint_detection.files import write_atomic

STEP = "step"
# Prefixes of the names of the first columns, in order.
_FIRST = (STEP, "epoch", "learning_rate", "train/", "validation/")


class MetricsFile(Logger):
    """Writes a row as soon as something is logged, so that nothing waits in memory.

    The columns about training come first, and columns of one kind are sorted by name. A new column rewrites the file,
    which is then replaced as a whole.

    Args:
        folder: Folder of the run.
        first_step: The file keeps its rows of earlier steps. Its other rows are dropped: they were logged after the
            checkpoint that the run resumes from, and will be logged again.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"
        self.first_step = first_step
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Empty: the folder alone names the run."""
        return ""

    @property
    def version(self) -> str:
        """Empty: the folder alone names the run."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return str(self.path.parent)

    @rank_zero_only
    def log_hyperparams(self, params: Mapping[str, Any]) -> None:
        """Writes the hyperparameters.

        Args:
            params: Values by name.
        """
        save_hparams_to_yaml(self.path.with_name("hparams.yaml"), dict(params))

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Adds a row.

        Args:
            metrics: Values by name.
            step: Number of the optimiser step.
        """
        if self._columns is None:
            self._rewrite([row for row in self._read() if int(row[STEP]) < self.first_step])
        row = {name: str(float(v)) if name != "epoch" else str(int(v)) for name, v in metrics.items()}
        row[STEP] = str(int(step or 0))
        if row.keys() <= set(self._columns):
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        else:
            self._rewrite([*self._read(), row])

    def _read(self) -> list[dict[str, str]]:
        """The rows so far, without a last row that was only partly written."""
        text = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        return [{name: v for name, v in row.items() if v} for row in csv.DictReader(io.StringIO(whole))]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        self._columns = sorted({name for row in rows for name in row}, key=_place)
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns)
        writer.writeheader()
        writer.writerows(rows)
        write_atomic(self.path, text.getvalue())


def _place(name: str) -> tuple[int, str]:
    """Sort key of a column."""
    return next((place for place, start in enumerate(_FIRST) if name.startswith(start)), len(_FIRST)), name
