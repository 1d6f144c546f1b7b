"""The encoder that a recipe is given: what of it is the embedding, and how it comes back trained."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.errors import FeedError, SpecError
from gradcut.ops import Builder, Names
from gradcut.passes import Specialize
from gradcut.passes.importing.functions import inline
from gradcut.passes.propagate import main_values
from gradcut.recipes.assembly import cut_to, imported, one_float_output
from gradcut.runtime.export import export
from gradcut.source import Source, own
from gradcut.subgraphs import body_tensors

Array = np.ndarray[Any, Any]
#: One view of a batch: an array, or arrays by the names of the encoder's inputs.
View = Array | Mapping[str, Array]


class Encoder:
    """An exported model with one of its values as the embedding [N, d].

    Args:
        source: the model.
        output: the value to take; by default its only float output. Maps [N, C, H, W] are averaged over H and W.
        pooled: False takes the value as it is, of any shape.

    Attributes:
        given: the model as it was given. model: imported, cut to the embedding.

    Raises:
        SpecError: it is unclear which value is meant, or it is no [N, d] or [N, C, H, W] of known width.
    """

    def __init__(self, source: Source, output: str | None = None, pooled: bool = True) -> None:
        self.given = own(source)
        self.model = imported(self.given)
        value = one_float_output(self.model, output, "the encoder" if pooled else "the model")
        cut_to(self.model, [_pooled(self.model, value) if pooled else value])
        if not {*main_values(self.given.graph), *body_tensors(self.given.graph)} >= {*self.model.graph.initializers}:
            inline(self.given)  # a weight inside a function has its name in the calls' place

    @property
    def embedding(self) -> ir.Value:
        return self.model.graph.outputs[0]

    @property
    def inputs(self) -> list[str]:
        """The names of what the embedding is computed from, as the given model has them."""
        return [value.name or "" for value in self.model.graph.inputs]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the embedding."""
        assert self.embedding.dtype is not None
        return np.dtype(self.embedding.dtype.numpy())

    @property
    def width(self) -> int:
        """d."""
        return int(self.embedding.shape[1])  # type: ignore[index, arg-type]

    def arrays(self, view: View) -> list[Array]:
        """A view's arrays in the order of `inputs`.

        Raises:
            FeedError: it does not name the inputs.
        """
        names = self.inputs
        if isinstance(view, Mapping):
            if {*view} != {*names}:
                raise FeedError(f"a view names the encoder's inputs, {', '.join(names)}, not {', '.join(view)}")
            return [view[name] for name in names]
        if len(names) != 1:
            raise FeedError(f"the encoder takes {', '.join(names)}; give a view as arrays by these names")
        return [view]

    def inference(self, moving: Collection[str]) -> ir.Model:
        """The encoder up to its embedding in inference mode, with the weights of these names as inputs."""
        model = self.model.clone()
        Specialize(batch_norm="eval", dropout="eval", draws=False)(model)
        for name in [name for name in model.graph.initializers if name in moving]:
            value = model.graph.initializers.pop(name)
            value.const_value = None
            model.graph.inputs.append(value)
        return model

    def export(self, tensors: Mapping[str, Array], path: str | os.PathLike[str]) -> None:
        """Write the model as it was given, with these values in it; its marks are stripped."""
        export(self.given, {name: tensors[name] for name in self.model.graph.initializers if name in tensors}, path)


def _pooled(model: ir.Model, value: ir.Value) -> ir.Value:
    """[N, C, H, W] averaged over H and W; [N, d] as it is."""
    shape = value.shape
    if shape is None or len(shape) not in (2, 4) or not isinstance(shape[1], int):
        have = "a value of unknown shape" if shape is None else str(shape)
        raise SpecError(
            f"the embedding is [N, d] or maps [N, C, H, W] with d or C known, and {value.name!r} is {have}; name "
            "another value: output=NAME"
        )
    if len(shape) == 2:
        return value
    b = Builder(Names.of(model), prefix="pooled/")
    mean = b.op("ReduceMean", value, b.ints([2, 3]), keepdims=0, shape=ir.Shape([shape[0], shape[1]]))
    model.graph.extend(b.nodes)
    return mean
