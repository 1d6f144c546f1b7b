"""A new head on a trained body: the last layer with weights replaced by a fresh one of another number of classes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import onnx
import onnx.shape_inference
import onnx_ir as ir
from onnx_ir.passes.common._c_api_utils import call_onnx_api

from gradcut.dims import is_float
from gradcut.errors import SpecError
from gradcut.heads.behind import activations, check_readers, drop, readers, tell_shapes
from gradcut.heads.constants import Array, Operand, described, name_parameters, put
from gradcut.heads.find import Head, find_head
from gradcut.heads.follow import Dims, Follower
from gradcut.losses import Objective, as_text, parse_loss, parse_terms, split_path
from gradcut.ops import Names
from gradcut.passes.base import FROZEN, read_json, write_json
from gradcut.passes.importer import check_opset
from gradcut.passes.importing.functions import inline
from gradcut.passes.propagate import main_values
from gradcut.passes.stop_gradient import frozen_names
from gradcut.source import Source, load
from gradcut.text import join_names, nearest

#: Model metadata: the names of the tensors that `replace_head` made, as JSON.
HEAD = "gradcut.head"
_ACTIVATIONS = ("keep", "drop")


def replace_head(model: Source, classes: int, *, seed: int = 0, output: str = "", activation: str = "keep") -> ir.Model:
    """Replace the last layer with weights by a fresh one that gives `classes` numbers; all before it stays as it is.

    The layer is a Gemm, a MatMul with a constant side and the Add behind it, or a Conv. Its weight and bias keep their
    names, dtypes and layouts; a weight that something else reads too stays, and the head gets a tensor of its own,
    ``<name>_head``. Without a bias it stays without. What stands behind follows: written shapes, Resize, Softmax.

    The weight is drawn as torch.nn.Linear and torch.nn.Conv2d draw theirs by default, uniform within +-1 / sqrt(fan_in)
    (He et al. 2015 with a = sqrt(5)), by NumPy's PCG64 from `seed`, class by class; the bias is zeros. The same seed
    gives the same bytes.

    Args:
        model: a path, a proto or an IR model, which is changed in place.
        classes: at least 1.
        output: the value whose head it is, an output of the model or an inner one; by default the only float output.
        activation: ``drop`` takes a Softmax, LogSoftmax or Sigmoid at the end away, so that the output, under its name,
            holds logits; ``keep`` leaves it.

    Raises:
        SpecError: no such layer before the output, named with what stands there instead; or what lies behind it cannot
            take another number of classes.
    """
    _check_arguments(classes, seed, activation)
    loaded = load(model)
    check_opset(loaded)
    value = _output(loaded, output)
    if _calls_functions(loaded, value):
        inline(loaded)
        value = main_values(loaded.graph)[value.name or ""]
    return _replaced(loaded, value, int(classes), int(seed), activation)


def new_parameters(model: ir.Model) -> dict[str, str]:
    """The tensors that replacing heads has made, by name, each as ``fc.weight [5, 512]``."""
    known = main_values(model.graph)
    return {name: described(known[name]) for name in _noted(model) if name in known}


def with_new_heads(model: Source, asked: Sequence[str], loss: Objective, seed: int = 0) -> ir.Model:
    """`replace_head` as the command line asks for it.

    Args:
        asked: ``K``, or ``OUTPUT=K``, each a head; without an output, that of the one loss, or the only float output.
        loss: a loss that wants logits has the activation at the end of its output dropped.

    Raises:
        SpecError: no number of classes, or as `replace_head`.
    """
    terms = parse_terms(as_text(loss) or "") if loss else []
    losses = [parse_loss(term.text) for term in terms if split_path(term.text)[0] is None]
    loaded = load(model)
    for number, one in enumerate(asked):
        output, _, classes = (part.strip() for part in one.rpartition("="))
        if not classes.isdecimal():
            raise SpecError(f"--new-head is K or OUTPUT=K, with K classes, such as 10 or logits=10; not {one!r}")
        if not output and len(losses) == 1:
            output = losses[0].output
        logits = any(term.wants == "logits" and term.output in ("", output) for term in losses)
        activation = "drop" if logits else "keep"
        replace_head(loaded, int(classes), seed=seed + number, output=output, activation=activation)
    return loaded


def _replaced(model: ir.Model, value: ir.Value, classes: int, seed: int, activation: str) -> ir.Model:
    head = find_head(value)
    names, shapes = Names.of(model), _shapes(model)
    behind = readers(head)
    check_readers(head, behind)
    follower = Follower(head.classes, classes, shapes, names)
    axis = head.class_axis
    axes = {head.layer.outputs[0].name or "": axis}
    for step in head.behind:
        axis = follower.through(step, axis)
        axes[step.node.outputs[0].name or ""] = axis
    touched = {value.name or "" for node in (head.layer, *behind) for value in node.outputs}
    follower.mend()
    made = _fresh(head, classes, seed, names)
    if activation == "drop":
        drop(model.graph, activations(head))
    tell_shapes(model.graph, touched, axes, classes, lambda: _shapes(model))
    name_parameters(model.graph, made)
    _note(model, [one.name or "" for one in made])
    return model


def _check_arguments(classes: int, seed: int, activation: str) -> None:
    for what, number, least in (("classes", classes, 1), ("seed", seed, 0)):
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < least:
            raise SpecError(f"replace_head: {what} is a whole number of at least {least}, not {number!r}")
    if activation not in _ACTIVATIONS:
        raise SpecError(f"replace_head: activation is {' or '.join(_ACTIVATIONS)}, not {activation!r}")


def _output(model: ir.Model, name: str) -> ir.Value:
    outputs = [value for value in model.graph.outputs if is_float(value)]
    if not name:
        if len(outputs) == 1:
            return outputs[0]
        listed = join_names(value.name or "" for value in outputs) or "none"
        raise SpecError(
            f"replace_head: which output's head is meant is unclear; the float outputs are {listed}. Say output=NAME "
            "(--new-head NAME=K)."
        )
    known = main_values(model.graph)
    if name not in known:
        hint = ", ".join(nearest(name, known)) or join_names(value.name or "" for value in outputs)
        raise SpecError(f"replace_head: the model has no value {name!r}. Nearest: {hint}.")
    return known[name]


def _calls_functions(model: ir.Model, value: ir.Value) -> bool:
    """Whether the way back from a value meets a function of the model's before any layer."""
    while (node := value.producer()) is not None:
        if node.op_identifier() in model.functions and node.domain != "gradcut":
            return True
        if node.op_type in ("Gemm", "MatMul", "Conv") or not node.inputs or node.inputs[0] is None:
            return False
        value = node.inputs[0]
    return False


# --- the new layer -------------------------------------------------------------------------------------------


def _fresh(head: Head, classes: int, seed: int, names: Names) -> list[ir.Value]:
    """The new weight and biases in place of the old ones."""
    rest = [size for axis, size in enumerate(head.weight.shape) if axis != head.axis]
    bound = 1.0 / math.sqrt(max(math.prod(rest), 1))
    drawn = np.random.Generator(np.random.PCG64(seed)).uniform(-bound, bound, [classes, *rest])
    weight = np.moveaxis(drawn, 0, head.axis)
    return [put(head.weight, weight, names), *(put(bias, _zeros(bias, head, classes), names) for bias in head.biases)]


def _zeros(bias: Operand, head: Head, classes: int) -> Array:
    """Of the bias's shape, with `classes` where there were the old ones."""
    shape = list(bias.shape)
    if shape and bias.size == head.classes:
        shape[head.bias_axis(bias)] = classes
    return np.zeros(shape)


def _note(model: ir.Model, parameters: list[str]) -> None:
    """What is new is written down, and is not frozen."""
    if FROZEN in model.metadata_props:
        write_json(model, FROZEN, sorted(frozen_names(model) - set(parameters)))
    others = [name for name in _noted(model) if name not in parameters]
    write_json(model, HEAD, [*others, *parameters])


def _noted(model: ir.Model) -> list[str]:
    names = read_json(model, HEAD)
    return [str(name) for name in names] if isinstance(names, list) else []


# --- shapes --------------------------------------------------------------------------------------------------


def _shapes(model: ir.Model) -> dict[str, Dims]:
    """The shapes that ONNX infers for the main graph's values, None for an open dimension."""
    inferred = None
    with contextlib.suppress(onnx.shape_inference.InferenceError):
        inferred = call_onnx_api(lambda p: onnx.shape_inference.infer_shapes(p, data_prop=True), model)
    if inferred is None:
        return {}
    found = dict[str, Dims]()
    for info in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        if info.type.tensor_type.HasField("shape"):
            dims = info.type.tensor_type.shape.dim
            found[info.name] = [
                dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in dims
            ]
    return found


__all__ = ["HEAD", "new_parameters", "replace_head", "with_new_heads"]
