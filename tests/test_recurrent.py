"""RNN, GRU and LSTM against torch's: the operators, files that torch exports, and a real one."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import AttributeProto, TensorProto, helper
from torch import nn
from torch.nn.functional import mse_loss
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradcut
from gradcut.runtime.widen import runtime

SEED, T, N, INPUTS, HIDDEN = 11, 5, 3, 4, 2
#: Which of torch's gates stand where in ONNX's weights.
ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}
Arrays = dict[str, np.ndarray]


def in_onnx_order(kind: str, weight: torch.Tensor) -> torch.Tensor:
    parts = weight.chunk(len(ORDER[kind]))
    return torch.cat([parts[gate] for gate in ORDER[kind]])


def operands(kind: str, layer: nn.RNNBase) -> dict[str, torch.Tensor]:
    """W, R and B of the first layer as ONNX has them, functions of torch's parameters."""
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    get = lambda name, suffix: in_onnx_order(kind, getattr(layer, f"{name}_l0{suffix}"))
    return {
        "W": torch.stack([get("weight_ih", s) for s in suffixes]),
        "R": torch.stack([get("weight_hh", s) for s in suffixes]),
        "B": torch.stack([torch.cat([get("bias_ih", s), get("bias_hh", s)]) for s in suffixes]),
    }


def operator(kind: str, feeds: Arrays, **attributes: Any) -> onnx.ModelProto:
    order = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c")
    names = [name if name in feeds else "" for name in order][: 7 if kind == "LSTM" else 6]
    outputs = ["Y", "Y_h", "Y_c"][: 3 if kind == "LSTM" else 2]
    ports = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()
    ]
    untyped = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
    node = helper.make_node(kind, names, outputs, "layer", hidden_size=HIDDEN, **attributes)
    graph = helper.make_graph([node], "g", ports, untyped)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("lengths", [None, (5, 3, 1)], ids=["full", "packed"])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["forward", "both"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_the_operator_has_torchs_gradients(kind: str, bidirectional: bool, lengths: tuple[int, ...] | None) -> None:
    """By X, the weights and the initial states, from every output at once."""
    torch.manual_seed(SEED)
    directions = 1 + bidirectional
    layer = getattr(nn, kind)(INPUTS, HIDDEN, bidirectional=bidirectional).double()
    x = torch.randn(T, N, INPUTS, dtype=torch.double, requires_grad=True)
    states = [torch.randn(directions, N, HIDDEN, dtype=torch.double, requires_grad=True) for _ in range(2)]
    states = states[: 2 if kind == "LSTM" else 1]
    start = tuple(states) if kind == "LSTM" else states[0]
    given = x if lengths is None else pack_padded_sequence(x, list(lengths))
    y, last = layer(given, start)
    y = y if lengths is None else pad_packed_sequence(y, total_length=T)[0]
    y = y.reshape(T, N, directions, HIDDEN).transpose(1, 2)
    outputs = [y, *(last if kind == "LSTM" else [last])]
    cotangents = [torch.randn_like(output) for output in outputs]
    named = dict(layer.named_parameters())
    wanted = [x, *named.values(), *states]
    found = torch.autograd.grad(outputs, wanted, cotangents)
    weights, initial = operands(kind, layer), ("initial_h", "initial_c")
    feeds = {"X": x, **weights, **dict(zip(initial, states, strict=False))}
    arrays = {name: value.detach().numpy().astype(np.float32) for name, value in feeds.items()}
    for parameter, gradient in zip(named.values(), found[1:], strict=False):
        parameter.data = gradient  # so that `operands` puts the gradients in ONNX's order
    gradients_of_states = dict(zip(initial, found[-len(states) :], strict=False))
    expected = {"X": found[0], **operands(kind, layer), **gradients_of_states}
    if lengths is not None:
        arrays["sequence_lens"] = np.array(lengths, np.int32)
    attributes = {"linear_before_reset": 1} if kind == "GRU" else {}
    direction = "bidirectional" if bidirectional else "forward"
    model = operator(kind, arrays, direction=direction, **attributes)
    proto = gradcut.vjp(model, list(expected), [output.name for output in model.graph.output])
    seeds = {
        value.name: cotangent.numpy().astype(np.float32)
        for value, cotangent in zip(proto.graph.input[-len(outputs) :], cotangents, strict=True)
    }
    gradients = runtime(proto)({**arrays, **seeds})[len(outputs) :]
    for name, mine in zip(expected, gradients, strict=True):
        np.testing.assert_allclose(mine, expected[name].detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
def test_what_stands_past_the_end_of_a_sequence_reaches_nothing(kind: str, direction: str) -> None:
    rng, gates = np.random.default_rng(SEED), len(ORDER[kind])
    shapes = {"X": (T, 2, INPUTS), "W": (1, gates * HIDDEN, INPUTS), "R": (1, gates * HIDDEN, HIDDEN)}
    feeds = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    feeds["sequence_lens"] = np.array([2, T], np.int32)
    model = operator(kind, feeds, direction=direction)
    proto = gradcut.vjp(model, ["X", "W", "R"], ["Y", "Y_h"])
    names = [value.name for value in proto.graph.input[-2:]]
    seeds = [rng.standard_normal(shape).astype(np.float32) for shape in ((T, 1, 2, HIDDEN), (1, 2, HIDDEN))]
    clean = runtime(proto)({**feeds, **dict(zip(names, seeds, strict=True))})[2:]
    feeds["X"][2:, 0], seeds[0][2:, :, 0] = np.nan, 1e30
    dirty = runtime(proto)({**feeds, **dict(zip(names, seeds, strict=True))})[2:]
    for mine, theirs in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert not dirty[0][2:, 0].any()


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["Swish"], "its activation 'Swish' is none of those on the operator page"),
        ([], "it names 0 activations; 1 are needed"),
    ],
)
def test_activations_that_cannot_be_are_refused(names: list[str], reason: str) -> None:
    shapes = {"X": (T, N, INPUTS), "W": (1, HIDDEN, INPUTS), "R": (1, HIDDEN, HIDDEN)}
    model = operator("RNN", {name: np.zeros(shape, np.float32) for name, shape in shapes.items()})
    model.graph.node[0].attribute.append(helper.make_attribute("activations", names, attr_type=AttributeProto.STRINGS))
    with pytest.raises(gradcut.GradcutError) as caught:
        gradcut.vjp(model, ["X"], ["Y"])
    assert str(caught.value) == f"node 'layer' (RNN, opset 21) has no gradient here: {reason}"


@pytest.mark.parametrize("nonlinearity", ["relu", "tanh"])
def test_the_slope_where_nothing_is_fed(nonlinearity: str) -> None:
    """Before every activation stands 0, where Relu has a joint: torch's slope there is 0."""
    layer, x = nn.RNN(INPUTS, HIDDEN, bias=False, nonlinearity=nonlinearity), torch.zeros(T, N, INPUTS)
    (expected,) = torch.autograd.grad(layer(x.requires_grad_())[0].sum(), [x])
    feeds = {name: value.detach().numpy() for name, value in (("X", x), *plain_operands(layer).items())}
    proto = gradcut.vjp(operator("RNN", feeds, activations=[nonlinearity.title()]), ["X"], ["Y"])
    seed = {proto.graph.input[-1].name: np.ones((T, 1, N, HIDDEN), np.float32)}
    np.testing.assert_allclose(runtime(proto)({**feeds, **seed})[1], expected.numpy(), rtol=1e-5, atol=1e-6)


def plain_operands(layer: nn.RNNBase) -> dict[str, torch.Tensor]:
    """W and R of a layer of one gate and no bias."""
    return {"W": layer.weight_ih_l0[None], "R": layer.weight_hh_l0[None]}


# --- exported files ----------------------------------------------------------------------------------------------


class Tagger(nn.Module):
    """A recurrent layer and a linear one at each step."""

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__()
        self.layer = getattr(nn, kind)(INPUTS, HIDDEN, **options)
        self.head = nn.Linear(HIDDEN * (1 + self.layer.bidirectional), 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.layer(x)[0])


LAYERS = [
    {},
    {"num_layers": 2},
    {"bidirectional": True},
    {"num_layers": 2, "bidirectional": True, "batch_first": True},
    {"bias": False},
]


def export(module: nn.Module, path: Path, x: torch.Tensor, batch: int, dynamo: bool) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    options: dict[str, Any] = {"dynamo": dynamo, "input_names": ["x"], "output_names": ["y"]}
    if dynamo:
        options |= {"optimize": False, "verbose": False, "dynamic_shapes": ({batch: torch.export.Dim("n")},)}
    else:
        options |= {"opset_version": 17, "dynamic_axes": {"x": {batch: "n"}, "y": {batch: "n"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(module, (x,), path, **options)


def trained(path: Path, module: nn.Module, x: torch.Tensor) -> Arrays:
    """The compiled file's gradients for torch's loss, whose own are left in the module."""
    target = torch.randn_like(module(x))
    mse_loss(module(x), target).backward()
    session = gradcut.TrainingSession(gradcut.compile(path, "mse:output=y"))
    return session.gradients({"x": x.numpy(), "labels": target.numpy()})


@pytest.mark.parametrize("options", LAYERS, ids=str)
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("dynamo", [True, False], ids=["dynamo", "legacy"])
def test_exported_layers_train_as_in_torch(dynamo: bool, kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    """With another batch than the one exported with; the legacy exporter's weights have no names of torch's."""
    torch.manual_seed(SEED)
    module, batch = Tagger(kind, **options), 0 if options.get("batch_first") else 1
    sizes = [T, T, INPUTS]
    sizes[batch] = 2
    export(module, tmp_path / "m.onnx", torch.randn(*sizes), batch, dynamo)
    sizes[batch] = N
    found = trained(tmp_path / "m.onnx", module, torch.randn(*sizes))
    if dynamo:
        assert found.keys() == dict(module.named_parameters()).keys()
        for name, parameter in module.named_parameters():
            np.testing.assert_allclose(found[name], parameter.grad.numpy(), rtol=1e-4, atol=1e-6, err_msg=name)
        return
    expected = [array for parts in legacy_gradients(kind, module) for array in parts]
    assert len(found) == len(expected)
    for array in expected:
        assert any(g.shape == array.shape and np.allclose(g, array, rtol=1e-4, atol=1e-6) for g in found.values())


def legacy_gradients(kind: str, module: Tagger) -> list[list[np.ndarray]]:
    """torch's gradients as the legacy exporter has the weights: in ONNX's order, layer by layer, the head last."""
    layer, order = module.layer, lambda p: in_onnx_order(kind, p.grad)
    suffixes = ("", "_reverse") if layer.bidirectional else ("",)
    found = []
    for at in range(layer.num_layers):
        of = lambda name, at=at: [order(getattr(layer, f"{name}_l{at}{s}")) for s in suffixes]
        stacked = [torch.stack(of("weight_ih")), torch.stack(of("weight_hh"))]
        if layer.bias:
            both = zip(of("bias_ih"), of("bias_hh"), strict=True)
            stacked.append(torch.stack([torch.cat(pair) for pair in both]))
        found.append([tensor.numpy() for tensor in stacked])
    head = module.head
    return [*found, [head.weight.grad.T.numpy(), head.bias.grad.numpy()]]
