"""BatchNormalization and Dropout as their modules' modes say.

torch's exporter writes every BatchNormalization in inference mode, and attention's Dropout too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

import onnx_ir as ir
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

from gradcut.errors import TorchExportError
from gradcut.parameters import KEEPS_MODE, constant_tensor
from gradcut.torch.aliases import root
from gradcut.torch.operators import BATCH_NORM, DROPOUT
from gradcut.torch.regions import graphs

#: ONNX Runtime shares initializers of up to so many numbers.
_SHARED_BY_RUNTIME = 8
_EMBEDDINGS = {torch.ops.aten.embedding.default, torch.ops.aten.embedding_bag.padding_idx}
_COUNTER = "num_batches_tracked"


def check_norms(module: nn.Module) -> None:
    """Refuse cumulative averages: their momentum is of the number of batches, and ONNX's is a constant."""
    for name, one in module.named_modules():
        cumulative = isinstance(one, nn.modules.batchnorm._NormBase) and one.momentum is None
        if cumulative and one.training and one.track_running_stats:
            raise TorchExportError(
                f"{name or 'the module'} ({type(one).__name__}) has momentum=None, a cumulative average, which ONNX "
                "does not have: give it a momentum, or put it in eval mode"
            )


def moving_instance_norms(module: nn.Module) -> list[str]:
    """Those whose running statistics a forward in torch would move; ONNX has none."""
    kinds = nn.modules.instancenorm._InstanceNorm
    norms = ((name, one) for name, one in module.named_modules() if isinstance(one, kinds))
    return [name or "the module" for name, one in norms if one.training and one.track_running_stats]


def keep_modes(program: ExportedProgram) -> None:
    """Put behind operators of ours what torch's exporter writes in one mode alone.

    1. A BatchNormalization that trains, without its counter, which nothing here reads.
    2. A Dropout that does not train.

    Raises:
        TorchExportError: an embedding has an option that changes gradients, or its table.
    """
    counters = {
        spec.arg.name
        for spec in program.graph_signature.input_specs
        if (spec.target or "").rpartition(".")[2] == _COUNTER
    }
    for module in graphs(program):
        for node in reversed(list(module.graph.nodes)):  # a count of two batches reads that of one
            if node.op == "call_function":
                _check_embedding(node)
                _keep(module, node, counters)


def _check_embedding(node: Node) -> None:
    if node.target is torch.ops.aten.embedding_renorm_.default:
        raise TorchExportError(
            "an Embedding with max_norm scales the rows of its table in forward, which a file cannot do: scale what is "
            "looked up, or the table between steps"
        )
    by_frequency = node.target in _EMBEDDINGS and len(node.args) > 3 and node.args[3]
    if by_frequency:
        raise TorchExportError(
            "an Embedding with scale_grad_by_freq=True divides gradients by how often a row is looked up, which no "
            "file can hold: leave it out"
        )


def _keep(module: GraphModule, node: Node, counters: Collection[str]) -> None:
    if node.target is torch.ops.aten.batch_norm.default:
        x, weight, bias, mean, var, training, momentum, eps, *_ = node.args
        if training and mean is not None:  # without statistics of its own it is written out
            node.target = BATCH_NORM
            node.args = (x, weight, bias, mean, var, momentum, eps)
    elif node.target is torch.ops.aten.dropout.default:
        x, p, training = node.args
        if not training and p:
            node.target, node.args = DROPOUT, (x, p)
    elif node.target is torch.ops.aten.add_.Tensor and not node.users and root(node).name in counters:
        module.graph.erase_node(node)


def set_modes(model: ir.Model, frozen: Collection[str]) -> None:
    """Write down what the graph alone does not say.

    1. A Dropout without a mode (attention's) trains, as it has a ratio above 0 in training alone.
    2. The mode of a BatchNormalization is the module's choice where gradcut would take another: in inference mode,
       and in training mode with frozen scale and bias.
    """
    small = _small_tensors(model)
    for node in list(model.graph.all_nodes()):
        if node.domain == "" and node.op_type == "Dropout":
            _set_dropout(node)
        if node.domain == "" and node.op_type == "BatchNormalization":
            training = "training_mode" in node.attributes and node.attributes["training_mode"].as_int() == 1
            affine = {value.name for value in node.inputs[1:3] if value is not None}
            if not training or affine & set(frozen):
                node.metadata_props[KEEPS_MODE] = "1"
            if training and any(small[_print(value)] > 1 for value in node.inputs[3:5] if value is not None):
                _copy_statistics(node)


def _set_dropout(node: ir.Node) -> None:
    ratio = constant_tensor(node.inputs[1]) if len(node.inputs) > 1 and node.inputs[1] is not None else None
    if len(node.inputs) > 2 or ratio is None or float(ratio.numpy()) == 0.0:
        return
    true = ir.node("Constant", [], attributes={"value": ir.tensor(True)}, name=f"{node.name}_training")
    true.outputs[0].name = f"{node.outputs[0].name}_training"
    true.outputs[0].dtype, true.outputs[0].shape = ir.DataType.BOOL, ir.Shape([])
    node.prepend(true)
    node.resize_inputs(3)
    node.replace_input_with(2, true.outputs[0])


# --- a defect of ONNX Runtime's ------------------------------------------------------------------------------


def _copy_statistics(node: ir.Node) -> None:
    """Have a BatchNormalization read copies of its statistics.

    ONNX Runtime makes one of equal initializers of at most eight numbers, and its kernel writes the running statistics
    over the ones it reads: in a fresh module over scale and bias as well, and the outputs are wrong. A sequence is
    what its optimizer leaves alone.
    """
    statistics = list(node.inputs[3:5])
    sequence = ir.node("SequenceConstruct", statistics, name=f"{node.name}_statistics")
    sequence.outputs[0].name = f"{node.outputs[0].name}_statistics"
    new = [sequence]
    for index, value in enumerate(statistics):
        assert value is not None
        position = ir.node("Constant", [], attributes={"value": ir.tensor(index)}, name=f"{node.name}_position_{index}")
        copy = ir.node("SequenceAt", [sequence.outputs[0], position.outputs[0]], name=f"{node.name}_statistic_{index}")
        for one in (position, copy):
            one.outputs[0].name = f"{one.name}_value"
        copy.outputs[0].type, copy.outputs[0].shape = value.type, value.shape
        node.replace_input_with(3 + index, copy.outputs[0])
        new += [position, copy]
    for one in new:
        one.metadata_props.update(node.metadata_props)
    node.prepend(new)


def _small_tensors(model: ir.Model) -> Counter[tuple[object, ...]]:
    """How often each tensor of at most eight numbers is in the model."""
    constants = [node.outputs[0] for node in model.graph.all_nodes() if node.op_type == "Constant"]
    return Counter(filter(None, map(_print, [*model.graph.initializers.values(), *constants])))


def _print(value: ir.Value) -> tuple[object, ...]:
    tensor = constant_tensor(value)
    if tensor is None or tensor.size > _SHARED_BY_RUNTIME:
        return ()
    return (tensor.dtype, tuple(tensor.shape), tensor.numpy().tobytes())
