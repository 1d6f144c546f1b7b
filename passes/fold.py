"""`fold`: compute once what depends on no input and no parameter: the shape arithmetic that exporters leave behind.

In bodies too:

1. The Shape of a value whose shape is static, the Size of one, and dimensions that are static where others are not.
2. A node whose operands are all small constants, by onnx's reference evaluator, for operators of shape arithmetic and
   masks, which it gets right; all others stay.
3. CastLike to a known type is Cast.
4. Expand and Reshape to the shape there is already, Flatten of a matrix, and a Slice of everything, give way to their
   operand.

Float initializers are never read: they may be parameters.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from gradcut.dims import FLOATS, same_shape, static_dims
from gradcut.parameters import COMPUTED
from gradcut.passes.base import TRAINABLE, Pass, read_json, register
from gradcut.passes.dead_code import remove_dead

#: What onnx's reference evaluator gets right.
EVALUATED = frozenset(
    """Abs Add And Cast Ceil Concat ConstantOfShape CumSum Div Equal Expand Flatten Floor Gather GatherElements GatherND
    Greater GreaterOrEqual Identity Less LessOrEqual Max Min Mod Mul Neg NonZero Not OneHot Or Pow Range Reciprocal
    ReduceMax ReduceMin ReduceProd ReduceSum Reshape ScatterElements ScatterND Sign Slice Split Sqrt Squeeze Sub
    Tile Transpose Trilu Unsqueeze Where Xor""".split()
)
#: Larger results stay computed at run time: folding them would grow the file.
_LIMIT = 1024
#: An end that exporters write for "to the end"; no dimension is as long.
_END = 2**31 - 1


@register
@dataclass(frozen=True)
class Fold(Pass):
    """Replace constant computations by Constant nodes under the same names.

    Attributes:
        floats: compute what depends on floats too; without it, a gradient by any float that is left stays whole.
    """

    name: ClassVar[str] = "fold"
    floats: bool = True

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        for node in list(model.graph.all_nodes()):
            if node.domain or node.graph is None:
                continue
            if node.op_type == "CastLike":
                _to_cast(node)
            if changes_nothing(node):
                bypass(node)
                continue
            result = static(node)
            if result is None:
                result = self._evaluated(node, model.opset_imports[""])
            if result is not None:
                _replace(node, result)
        remove_dead(model, keep=read_json(model, TRAINABLE) or ())
        return ir.passes.PassResult(model, modified=True)

    def _evaluated(self, node: ir.Node, opset: int) -> np.ndarray[Any, Any] | None:
        if not self.floats and any(value is not None and value.dtype in FLOATS for value in node.inputs):
            return None
        return _evaluated(node, opset)


def _to_cast(node: ir.Node) -> None:
    """Case 3."""
    like = node.inputs[1]
    if like is not None and like.dtype is not None:
        node.op_type = "Cast"
        node.attributes.add(ir.AttrInt64("to", int(like.dtype)))
        node.resize_inputs(1)


def changes_nothing(node: ir.Node) -> bool:
    """Case 4."""
    if node.domain:
        return False
    if node.op_type in ("Expand", "Reshape"):
        return node.inputs[0] is not None and same_shape(node.inputs[0].shape, node.outputs[0].shape)
    if node.op_type == "Flatten":
        return _is_matrix(node)
    return node.op_type == "Slice" and _is_whole(node)


def _is_matrix(node: ir.Node) -> bool:
    """As ONNX's converter puts before a Softmax of old."""
    X, axis = node.inputs[0], node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    return X is not None and X.shape is not None and len(X.shape) == 2 and axis in (1, -1)


def _is_whole(node: ir.Node) -> bool:
    starts, ends, _, steps = ([constant(v) if v is not None else None for v in node.inputs[1:]] + [None] * 4)[:4]
    stepped = len(node.inputs) > 4 and node.inputs[4] is not None and (steps is None or bool((steps != 1).any()))
    if starts is None or ends is None or stepped:
        return False
    return not starts.any() and bool((ends >= _END).all())


def bypass(node: ir.Node) -> None:
    if not node.outputs[0].is_graph_output():
        assert node.inputs[0] is not None
        ir.convenience.replace_all_uses_with(node.outputs[0], node.inputs[0])


def static(node: ir.Node) -> np.ndarray[Any, Any] | None:
    """Case 1."""
    if node.op_type == "Gather":
        return _dimensions(node)
    if node.op_type not in ("Shape", "Size") or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    if node.op_type == "Shape" and shape is not None:
        start, end = (node.attributes[key].as_int() if key in node.attributes else None for key in ("start", "end"))
        shape = ir.Shape(list(shape)[start:end])
    dims = static_dims(shape)
    if dims is None:
        return None
    return np.asarray(dims if node.op_type == "Shape" else math.prod(dims), dtype=np.int64)


def _dimensions(node: ir.Node) -> np.ndarray[Any, Any] | None:
    """Those of a Shape that a Gather picks."""
    whole, index = node.inputs[:2]
    shaped = None if whole is None else whole.producer()
    if shaped is None or (shaped.domain, shaped.op_type) != ("", "Shape") or shaped.attributes or index is None:
        return None
    shape, picked = shaped.inputs[0].shape if shaped.inputs[0] is not None else None, constant(index)
    if shape is None or picked is None or not all(-len(shape) <= at < len(shape) for at in picked.reshape(-1)):
        return None
    dims = [shape[int(at)] for at in picked.reshape(-1)]
    known = [dim for dim in dims if isinstance(dim, int)]
    return np.asarray(known, dtype=np.int64).reshape(picked.shape) if len(known) == len(dims) else None


def _evaluated(node: ir.Node, opset: int) -> np.ndarray[Any, Any] | None:
    """Case 2."""
    if node.op_type not in EVALUATED:
        return None
    operands = [None if value is None else constant(value) for value in node.inputs]
    if any(operand is None and value is not None for operand, value in zip(operands, node.inputs, strict=True)):
        return None
    return evaluated(node, operands, opset)


def evaluated(node: ir.Node, operands: list[Any], opset: int) -> np.ndarray[Any, Any] | None:
    """What a node of one small result gives of these operands."""
    size = static_dims(node.outputs[0].shape)
    if len(node.outputs) != 1 or not node.inputs or size is None or math.prod(size) > _LIMIT:
        return None
    return _run(node, operands, opset)


def constant(value: ir.Value) -> np.ndarray[Any, Any] | None:
    """A small constant that is no parameter."""
    if value.is_graph_input() or (value.is_initializer() and value.dtype in FLOATS):
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return tensor.numpy() if tensor is not None and tensor.size <= _LIMIT else None


def _run(node: ir.Node, operands: list[Any], opset: int) -> np.ndarray[Any, Any] | None:
    """One node by itself; an operator that the evaluator does not have stays for the runtime."""
    present = [(value, array) for value, array in zip(node.inputs, operands, strict=True) if value is not None]
    inputs = {value.name or "": array for value, array in present}
    try:
        results: Any = ReferenceEvaluator(ir.to_proto(node), opsets={"": opset}).run(None, inputs)
    except Exception:  # the evaluator raises whatever its Python code does
        return None
    result = np.asarray(results[0])
    return None if result.dtype.kind in "OUS" else result


def _replace(node: ir.Node, result: np.ndarray[Any, Any]) -> None:
    output, graph = node.outputs[0], node.graph
    assert isinstance(graph, ir.Graph)
    if output.dtype is not None and ir.DataType.from_numpy(result.dtype) != output.dtype:
        return
    folded = ir.Node(
        "",
        "Constant",
        [],
        attributes=[ir.AttrTensor("value", ir.Tensor(result, name=output.name))],
        outputs=[ir.Value(name=output.name, type=output.type, shape=ir.Shape(result.shape))],
        name=node.name,
        metadata_props={**node.metadata_props, COMPUTED: "1"},
    )
    folded.outputs[0].dtype = ir.DataType.from_numpy(result.dtype)
    graph.insert_before(node, folded)
    ir.convenience.replace_all_uses_with(output, folded.outputs[0], replace_graph_outputs=True)
    graph.remove(node, safe=True)
