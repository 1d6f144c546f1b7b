"""Where gradients stop in torch they stop in the file: single forms, each against torch's own backward."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.utils.checkpoint
from torch import Tensor, nn
from torch.nn import functional as F

import gradcut
from gradcut.dialect import is_mark
from gradcut.errors import GradcutWarning, TorchExportError
from tests.torch_export.exported import agrees, check_gradients, export, gradients, run

Forward = Callable[["Two", Tensor], Tensor]
X = torch.randn(4, 5, generator=torch.Generator().manual_seed(3))


class Two(nn.Module):
    """Two layers and a buffer, and what a test does with them."""

    def __init__(self, form: Forward) -> None:
        super().__init__()
        self.form = form
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.register_buffer("queue", torch.randn(3, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x).square().mean()


def two(form: Forward) -> Two:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return Two(form)


def marks(path: Path) -> list[str]:
    """What is marked, in the order of the file."""
    nodes = [node for node in gradcut.load(path).graph.all_nodes() if is_mark(node)]
    return [node.inputs[0].name or "" for node in nodes if node.inputs[0] is not None]


def inference(m: Two, x: Tensor) -> Tensor:
    with torch.inference_mode():
        h = m.a(x)
    return m.b(x) + h


def statements(m: Two, x: Tensor) -> Tensor:
    torch.set_grad_enabled(False)
    h = m.a(x)
    torch.set_grad_enabled(True)
    return m.b(h) + h


def both_ways(m: Two, x: Tensor) -> Tensor:
    """A parameter inside a region and outside: only the use inside is stopped."""
    with torch.no_grad():
        scale = m.a(x).abs()
    return m.a(x) * scale


def views(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        part, rest = h[:, :2], h.view(-1, 5)[:, 2:].t()
    return m.b(torch.cat([part, rest.t()], dim=1)) * h


def branches(m: Two, x: Tensor) -> Tensor:
    def one(x: Tensor) -> Tensor:
        with torch.no_grad():
            h = m.a(x)
        return h + m.b(x.detach() * h)

    return torch.cond(x.sum() > -100.0, one, lambda x: m.a(x) + m.b(x), (x,))


def filled(m: Two, x: Tensor) -> Tensor:
    """A queue is written without gradients and read with them."""
    h = m.a(x)
    with torch.no_grad():
        m.queue[:2] = h[:2]
    return m.b(x) @ m.queue.T


def recomputed(m: Two, x: Tensor) -> Tensor:
    return m.b(
        torch.utils.checkpoint.checkpoint(lambda h: torch.tanh(m.a(h)).detach() + m.a(h), x, use_reentrant=False)
    )


#: What a module does, and the number of marks that a person would put.
FORMS: dict[str, tuple[Forward, int]] = {
    "detach": (lambda m, x: m.b(m.a(x).detach()) + m.a(x), 1),
    "stop_gradient": (lambda m, x: m.b(gradcut.torch.stop_gradient(m.a(x))) + m.a(x), 1),
    "data": (lambda m, x: m.b(x) * m.a(x).data, 1),
    "a parameter": (lambda m, x: F.linear(m.b(x), m.a.weight.detach(), m.a.bias), 1),
    "a parameter's data": (lambda m, x: F.linear(m.b(x), m.a.weight.data) + m.a(x), 1),
    "the input": (lambda m, x: m.a(x.detach()), 1),
    "twice": (lambda m, x: m.b(x) * m.a(x).detach().detach(), 2),
    "an integer": (lambda m, x: m.a(x)[:, m.b(x).argmax(1).detach() % 2], 0),
    "a literal": (lambda m, x: m.a(x) * torch.tensor(2.0) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]), 0),
    "a region": (lambda m, x: m.b(x) * torch.no_grad()(m.a)(x), 1),
    "a region that nothing varied enters": (lambda m, x: m.a(x) * torch.no_grad()(m.queue.exp)().sum(), 0),
    "inference mode": (inference, 1),
    "statements": (statements, 1),
    "inside and outside": (both_ways, 1),
    "views": (views, 2),
    "branches": (branches, 2),
    "checkpoint": (recomputed, 1),
    "the maximum": (lambda m, x: F.log_softmax(m.a(x) - m.a(x).max(1, keepdim=True)[0].detach(), dim=1), 1),
}


#: Torch refuses to run this one backward; it means the same.
INSTEAD: dict[str, Forward] = {"inference mode": lambda m, x: m.b(x) + m.a(x).detach()}


class Every(nn.Module):
    """All forms side by side, each with layers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.forms = nn.ModuleDict({name: two(form) for name, (form, _) in FORMS.items()})

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([form(x) for form in self.forms.values()]).sum()


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(Every(), X, tmp_path_factory.mktemp("forms") / "m.onnx")


@pytest.fixture(scope="module")
def found(every: Path) -> dict[str, np.ndarray]:
    return gradients(every, {"x": X})


@pytest.mark.parametrize("form", FORMS)
def test_gradients_stop_where_they_do_in_torch(form: str, found: dict[str, np.ndarray]) -> None:
    forward = INSTEAD.get(form, FORMS[form][0])
    prefix = f"forms.{form}."
    mine = {name.removeprefix(prefix): one for name, one in found.items() if name.startswith(prefix)}
    check_gradients(mine, _torch(two(forward)))


def test_there_are_as_many_marks_as_a_person_would_put(every: Path) -> None:
    assert len(marks(every)) == sum(count for _, count in FORMS.values())


def test_the_file_computes_what_the_module_does(every: Path) -> None:
    np.testing.assert_allclose(run(every, {"x": X})[0], Every()(X).detach().numpy(), rtol=1e-5)


def _torch(module: nn.Module) -> dict[str, np.ndarray]:
    module(X).backward()
    return {name: p.grad.numpy() for name, p in module.named_parameters() if p.grad is not None}


def test_what_a_region_writes_into_a_buffer_is_a_constant_too(tmp_path: Path) -> None:
    module = two(filled)
    with pytest.warns(GradcutWarning, match=r"^forward changes the buffer queue: each run computes with the new value"):
        path = gradcut.torch.export(module, X, tmp_path / "m.onnx")
    expected = _torch(two(filled))
    assert expected.keys() == {"b.weight", "b.bias"}
    check_gradients(gradients(path, {"x": X}), expected)


def test_marks_are_nodes_that_gradcut_and_the_runtime_know(tmp_path: Path) -> None:
    path = export(two(FORMS["detach"][0]), X, tmp_path / "m.onnx")
    model = gradcut.load(path)
    assert list(model.functions) == [("gradcut", "StopGradient", "")]
    cut = gradcut.analyze(path, of=["output"], wrt=["a.weight"]).cut
    assert "mark" in {edge.reason for edge in cut}
    texts = [value for node in model.graph.all_nodes() for value in node.metadata_props.values()]
    assert not [text for text in texts if str(Path(torch.__file__).parent) in text]  # no paths of this machine


def test_scopes_are_module_paths(tmp_path: Path) -> None:
    path = export(two(both_ways), X, tmp_path / "m.onnx")
    artifacts = gradcut.compile(path, train=["a"])
    assert artifacts.trainable == ("a.weight", "a.bias")


def test_stop_gradient_is_detach_in_torch() -> None:
    x = torch.ones(2, requires_grad=True)
    y = gradcut.torch.stop_gradient(x)
    assert not y.requires_grad and torch.equal(y, x)
    (x * gradcut.torch.stop_gradient(x * x)).sum().backward()
    assert x.grad is not None and torch.equal(x.grad, torch.ones(2))
    with pytest.raises(gradcut.errors.SpecError, match=r"takes a torch\.Tensor, not list"):
        gradcut.torch.stop_gradient([1.0])  # type: ignore[arg-type]


# --- what a file cannot say ----------------------------------------------------------------------------------


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(_ctx: object, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(_ctx: object, gradient: Tensor) -> Tensor:
        return gradient


def shared(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    other = h.detach()
    other.add_(1.0)
    return m.b(h)


def behind_its_back(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    with torch.no_grad():
        h.mul_(2.0)
    return m.b(h)


def normalised(m: Two, x: Tensor) -> Tensor:
    with torch.no_grad():
        m.a.weight.div_(2.0)
    return m.a(x)


def reversed_by_hook(m: Two, x: Tensor) -> Tensor:
    h = m.a(x)
    h.register_hook(lambda gradient: -gradient)
    return m.b(h)


def reentrant(m: Two, x: Tensor) -> Tensor:
    return m.b(torch.utils.checkpoint.checkpoint(m.a, x, use_reentrant=True))


def looked_up(m: Two, x: Tensor, **options: Any) -> Tensor:
    return m.b(F.embedding(x.argmax(1), m.a.weight, **options))


REFUSED: dict[str, tuple[Forward, str]] = {
    "a function with a backward": (
        lambda m, x: m.b(Rounded.apply(m.a(x))),
        r"^the module calls Rounded, a torch\.autograd\.Function, whose backward no file can hold; write a straight-",
    ),
    "a hook": (reversed_by_hook, r"^forward calls register_hook on a tensor, and what the hook makes of a gradient"),
    "shared memory": (
        shared,
        r"^aten\.add_ \(test_marks\.py:\d+: return self\.form\(self, x\).*\) changes in place a tensor that shares",
    ),
    "in place in a region": (
        behind_its_back,
        r"^aten\.mul_ \(test_marks\.py:\d+: .*\) changes linear in place inside torch\.no_grad\(\)",
    ),
    "a parameter in a region": (normalised, r"^aten\.div_ \(.*\) changes p_a_weight in place inside torch\.no_grad"),
    "rows scaled in place": (
        partial(looked_up, max_norm=1.0),
        r"^an Embedding with max_norm scales the rows of its table in forward, which a file cannot do",
    ),
    "gradients by frequency": (
        partial(looked_up, scale_grad_by_freq=True),
        r"^an Embedding with scale_grad_by_freq=True divides gradients by how often a row is looked up",
    ),
    "reentrant checkpoint": (reentrant, r"^torch\.utils\.checkpoint with use_reentrant=True cannot be traced; give it"),
}


@pytest.mark.parametrize("form", REFUSED)
def test_refused(form: str, tmp_path: Path) -> None:
    forward, message = REFUSED[form]
    with pytest.raises(TorchExportError, match=message) as caught:
        gradcut.torch.export(two(forward), X, tmp_path / "m.onnx")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_what_is_written_in_place_after_a_detach_and_read_there_alone_is_fine(tmp_path: Path) -> None:
    def form(m: Two, x: Tensor) -> Tensor:
        other = m.a(x).detach()
        other.add_(1.0).clamp_(min=0.1)
        return m.b(x) * other

    agrees(two(form), export(two(form), X, tmp_path / "m.onnx"), {"x": X})


def test_hooks_of_modules_and_parameters_are_warned_of(tmp_path: Path) -> None:
    module = two(FORMS["detach"][0])
    module.a.register_full_backward_hook(lambda *_: None)
    module.b.weight.register_hook(lambda gradient: 2 * gradient)
    with pytest.warns(GradcutWarning, match=r"^a, b\.weight have gradient hooks, which stay in torch"):
        gradcut.torch.export(module, X, tmp_path / "m.onnx")


def test_torch_is_left_as_it_was(tmp_path: Path) -> None:
    before = torch.autograd.Function.__dict__["apply"], torch.Tensor.register_hook, torch.inference_mode.__enter__
    export(two(inference), X, tmp_path / "m.onnx")
    assert (
        torch.autograd.Function.__dict__["apply"],
        torch.Tensor.register_hook,
        torch.inference_mode.__enter__,
    ) == before
    assert "data" not in torch.Tensor.__dict__ and torch.ones(2, requires_grad=True).data.requires_grad is False
    assert torch.backends.mha.get_fastpath_enabled()


def test_the_same_module_gives_the_same_bytes(tmp_path: Path) -> None:
    one = export(two(views), X, tmp_path / "one.onnx").read_bytes()
    assert export(two(views), X, tmp_path / "two.onnx").read_bytes() == one
