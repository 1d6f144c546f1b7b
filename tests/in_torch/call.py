"""What an operator knows of its node besides the operands."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Call(dict[str, Any]):
    """The attributes of a node.

    Attributes:
        opset: of the file. outputs: how many the node names. dtype: of every float.
        training: what overrides `training_mode`; None: nothing does.
    """

    def __init__(
        self,
        attributes: dict[str, Any],
        opset: int,
        outputs: int = 1,
        dtype: torch.dtype = torch.float64,
        training: bool | None = None,
    ) -> None:
        super().__init__(attributes)
        self.opset, self.outputs, self.dtype, self.training = opset, outputs, dtype, training

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        found = self.get(name, default)
        return found.decode() if isinstance(found, bytes) else found

    def axes(self, operand: Tensor | None, ndim: int) -> list[int]:
        """Axes by operand or attribute, counted from the front; empty where there are none."""
        given = self.get("axes") if operand is None else operand.tolist()
        return [axis % ndim for axis in given or ()]
