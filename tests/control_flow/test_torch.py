"""Python's loops and branches as torch's exporters write them; one step of SGD against torch's gradients."""

from __future__ import annotations

import io
import logging
import warnings
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch._higher_order_ops.scan import scan
from torch._higher_order_ops.while_loop import while_loop

import gradcut

SEED = 20260803
Tensor = torch.Tensor


class Layers(nn.Module):
    """Two products into gates, and a head."""

    def __init__(self, gates: int = 1) -> None:
        super().__init__()
        self.i, self.h, self.head = nn.Linear(3, gates * 4), nn.Linear(4, gates * 4), nn.Linear(4, 2)


# --- torch.jit.script --------------------------------------------------------------------------------------------


class Lstm(Layers):
    """Collects what it gives in a list, and stacks it."""

    def forward(self, x: Tensor) -> Tensor:
        h, c = torch.zeros(x.size(1), 4), torch.zeros(x.size(1), 4)
        outs = torch.jit.annotate(list[torch.Tensor], [])
        for t in range(x.size(0)):
            i, f, g, o = (self.i(x[t]) + self.h(h)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
            outs.append(h)
        return self.head(torch.stack(outs))


class Gru(Layers):
    """Gives its last state alone; from the last step to the first."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(1), 4)
        for t in range(x.size(0)):
            a, b = self.i(x[x.size(0) - 1 - t]), self.h(h)
            z, r = torch.sigmoid(a[:, :4] + b[:, :4]), torch.sigmoid(a[:, 4:8] + b[:, 4:8])
            h = (1 - z) * torch.tanh(a[:, 8:] + r * b[:, 8:]) + z * h
        return self.head(h)


class Branching(Layers):
    """An If in the Loop; concatenates what it collects."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(1), 4)
        outs = torch.jit.annotate(list[torch.Tensor], [])
        for t in range(x.size(0)):
            a = self.i(x[t]) + self.h(h)
            h = torch.tanh(a) if bool(a.sum() > 0) else torch.sigmoid(a) * x[t].sum(1, keepdim=True)
            outs.append(h.unsqueeze(0))
        return self.head(torch.cat(outs, 0))


class Unbound(Layers):
    """Goes through the rows of x as a list, puts what it gives in front, and joins it along an axis that is there."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(1), 4)
        outs = torch.jit.annotate(list[torch.Tensor], [])
        for row in x.unbind(0):
            h = torch.tanh(self.i(row) + self.h(h))
            outs.insert(0, h)
        return self.head(torch.cat(outs, 0))


class Lists(Layers):
    """Reads what it has collected: all of it in each turn, and some behind the Loop."""

    def forward(self, x: Tensor) -> Tensor:
        rows = x.unbind(0)
        outs = [torch.tanh(self.i(rows[0]))]
        for t in range(len(rows)):
            outs.append(torch.sigmoid(self.h(torch.stack(outs).sum(0)) * self.i(rows[len(rows) - 1 - t]) + outs[-1]))
        return self.head(outs[-1] * outs[0])


class While(Layers):
    """Ends by a condition on the values, or after seven turns."""

    def forward(self, x: Tensor) -> Tensor:
        count, y = 0, self.i(x)
        while bool(y.abs().sum() < 40.0) and count < 7:
            y = y + torch.tanh(self.h(y))
            count += 1
        return self.head(y)


def scripted(module: nn.Module, x: Tensor) -> onnx.ModelProto:
    file = io.BytesIO()
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            torch.jit.script(module), (x,), file, dynamo=False, opset_version=17, input_names=["x"],
            output_names=["y"], do_constant_folding=False, dynamic_axes={"x": {0: "T", 1: "N"}},
        )  # fmt: skip
    return onnx.load_from_string(file.getvalue())


@pytest.mark.parametrize("kind", [Lstm, Gru, Branching, Unbound, Lists, While])
def test_scripted_loops(kind: type[Layers]) -> None:
    """A file for sequences of any length."""
    torch.manual_seed(SEED)
    module = kind({Lstm: 4, Gru: 3}.get(kind, 1))
    model = scripted(module, torch.randn(4, 2, 3))
    assert any(node.op_type == "Loop" for node in model.graph.node)
    session = gradcut.TrainingSession(gradcut.compile(model, "mse:output=y", optimizer=gradcut.SGD(lr=1.0)))
    for steps in (4, 1, 6):
        compare(session, module, torch.randn(steps, 2, 3))


def compare(session: gradcut.TrainingSession, module: nn.Module, x: Tensor) -> None:
    """One step by rate 1, against torch's loss and gradients; the module goes along."""
    y = module(x)
    labels = torch.randn_like(y).detach()
    module.zero_grad()
    expected = nn.functional.mse_loss(y, labels)
    expected.backward()
    before = session.parameters()
    step = session.step({"x": x.numpy(), "labels": labels.numpy()})
    assert step.loss == pytest.approx(float(expected.detach()), rel=1e-5)
    after = session.parameters()
    assert after.keys() == {name for name, _ in module.named_parameters()}
    for name, parameter in module.named_parameters():
        wanted: Any = np.zeros(parameter.shape) if parameter.grad is None else parameter.grad.numpy()
        scale = max(1.0, float(np.abs(before[name]).max()), float(np.abs(wanted).max()))
        np.testing.assert_allclose(before[name] - after[name], wanted, rtol=1e-4, atol=2e-6 * scale, err_msg=name)
        parameter.data.copy_(torch.from_numpy(after[name]))


# --- torch's own control flow ------------------------------------------------------------------------------------


class Cond(Layers):
    def forward(self, x: Tensor) -> Tensor:
        y = self.i(x)
        y = torch.cond(x.sum() > 0, lambda y: torch.tanh(self.h(y)), lambda y: y.sin() * 2, (y,))
        return self.head(y)


class Scanned(Layers):
    def forward(self, x: Tensor) -> Tensor:
        def step(h: Tensor, here: Tensor) -> tuple[Tensor, Tensor]:
            h = torch.tanh(self.i(here) + self.h(h))
            return h, h * 2

        return self.head(scan(step, x.new_zeros(2, 4), x)[1])


class Repeated(Layers):
    """Torch does not differentiate its while_loop: `unrolled` says the same."""

    unrolled = False

    def forward(self, x: Tensor) -> Tensor:
        y = self.i(x)
        if self.unrolled:
            for _ in range(3):
                y = y + torch.tanh(self.h(y))
            return self.head(y)
        count = torch.zeros((), dtype=torch.int64)
        turn = lambda n, y: (n + 1, y + torch.tanh(self.h(y)))
        return self.head(while_loop(lambda n, y: n < 3, turn, (count, y))[1])


@pytest.mark.parametrize(
    ("kind", "op", "x"),
    [
        (Cond, "If", torch.ones(2, 3)),
        (Cond, "If", -torch.ones(2, 3)),
        (Scanned, "Scan", torch.linspace(-1, 1, 30).reshape(5, 2, 3)),
        (Repeated, "Loop", torch.linspace(-1, 1, 6).reshape(2, 3)),
    ],
    ids=["cond_true", "cond_false", "scan", "while_loop"],
)
def test_control_flow_of_torch(kind: type[Layers], op: str, x: Tensor) -> None:
    torch.manual_seed(SEED)
    module = kind()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(module, (x,), dynamo=True, optimize=False, output_names=["y"], verbose=False)
    assert program is not None
    model = program.model_proto
    assert any(node.op_type == op for node in model.graph.node)
    session = gradcut.TrainingSession(gradcut.compile(model, "mse:output=y", optimizer=gradcut.SGD(lr=1.0)))
    if isinstance(module, Repeated):
        module.unrolled = True
    compare(session, module, x)
