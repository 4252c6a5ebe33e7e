"""A small builder of ONNX graphs: nodes are calls, values are names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper


class Nodes:
    """Nodes and constants of a graph under construction.

    `nodes("Add", a, b)` appends a node and returns the name of its output. Inputs are names of values, or numpy arrays,
    which become constants. `""` leaves out an optional input.

    Args:
        prefix: Prefix of the names of all new values.
    """

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, operator: str, *inputs: str | np.ndarray, **attributes: Any) -> str:
        """Appends a node with one output."""
        return self.several(operator, 1, *inputs, **attributes)[0]

    def several(self, operator: str, outputs: int, *inputs: str | np.ndarray, **attributes: Any) -> list[str]:
        """Appends a node with several outputs."""
        number = len(self.nodes)
        names = [f"{self.prefix}{operator}_{number}_{output}" for output in range(outputs)]
        given = [value if isinstance(value, str) else self.constant(value) for value in inputs]
        self.nodes.append(helper.make_node(operator, given, names, **attributes))
        return names

    def constant(self, value: np.ndarray) -> str:
        """Adds a constant."""
        name = f"{self.prefix}constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def columns(self, *values: str) -> str:
        """Appends nodes that stack vectors `(N,)` as columns: `(N, number of vectors)`."""
        return self("Concat", *(self("Unsqueeze", value, integers(1)) for value in values), axis=1)

    def cast(self, value: str, dtype: type | np.dtype) -> str:
        """Appends a conversion to another data type."""
        return self("Cast", value, to=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))

    def repeat(self, states: list[str], types: list[type], step: Callable[[Nodes, list[str]], list[str]]) -> list[str]:
        """Appends a loop that repeats a step while its condition holds, but runs it at least once.

        Args:
            states: Names of the values at the start.
            types: Their numpy types.
            step: Gets a builder for the body and the names of the states there; returns the names of the condition, a
                bool, and of the next states. It may use values from outside the loop.

        Returns:
            Names of the values at the end.
        """
        prefix = f"{self.prefix}loop_{len(self.nodes)}_"
        body = Nodes(prefix)
        names = [f"{prefix}state_{number}" for number in range(len(states))]
        results = step(body, names)
        kinds = [helper.np_dtype_to_tensor_dtype(np.dtype(kind)) for kind in types]
        graph = helper.make_graph(
            body.nodes,
            prefix + "body",
            [
                helper.make_tensor_value_info(prefix + "round", onnx.TensorProto.INT64, []),
                helper.make_tensor_value_info(prefix + "going", onnx.TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(n, k, None) for n, k in zip(names, kinds, strict=True)),
            ],
            [
                helper.make_tensor_value_info(results[0], onnx.TensorProto.BOOL, []),
                *(helper.make_tensor_value_info(n, k, None) for n, k in zip(results[1:], kinds, strict=True)),
            ],
            initializer=body.constants,
        )
        return self.several("Loop", len(states), "", self.constant(np.array(True)), *states, body=graph)


def integers(*values: int) -> np.ndarray:
    """A constant int64 vector, for shapes and axes."""
    return np.array(values, dtype=np.int64)


def scalar(value: float, dtype: type = np.float32) -> np.ndarray:
    """A constant number."""
    return np.array(value, dtype=dtype)
