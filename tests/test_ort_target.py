"""The target ort-training: what is emitted and what is refused. That ORT Training takes it: tests/ort_training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest

import gradcut
from gradcut import errors
from gradcut.artifacts import GRAPHS
from tests.written import parse

DIGITS = Path(__file__).parents[1] / "models" / "digits.onnx"
LINEAR = """
g (float[n, 3] x) => (float[n, 2] y)
<float[3, 2] w = {0.5, -1, 2, 0.25, 1, -2}, float[2] b = {0, 1}> { t = MatMul (x, w)  y = Add (t, b) }
"""
HALF = """
g (float16[n, 2] x) => (float16[n, 2] y) <float16[2, 2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }
"""
SHARED = """
g (float[n, 2, 3] x) => (float[n, 2, 3] y, float[n, 2, 3] z)
<float[2] s = {1, 2}, float[2] b = {0, 0}, float[2] t = {1, 1}, float[2] mean = {0, 0}, float[2] var = {1, 1}>
{
    y = BatchNormalization (x, s, b, mean, var)
    z = BatchNormalization (x, t, t, mean, var)
}
"""


def compiled(model: object = DIGITS, **options: object) -> gradcut.TrainingArtifacts:
    return gradcut.compile(model, **{"loss": "cross_entropy", "target": "ort-training", **options})


def names(values: object) -> list[str]:
    return [value.name for value in values]


def by_output(graph: ir.Graph) -> dict[str, ir.Node]:
    return {value.name: node for node in graph for value in node.outputs}


def test_training_graph_of_the_head() -> None:
    art = compiled(train=["head.*"])
    graph = art.training_model.graph
    trained = list(art.trainable)
    assert sorted(trained) == ["head.bias", "head.weight"]
    buffers = [f"{name}_grad.accumulation.buffer" for name in trained]
    assert names(graph.inputs) == ["image", "labels", *trained, *buffers, "lazy_reset_grad"]
    assert names(graph.outputs) == ["loss", "logits", *(f"{name}_grad.accumulation.out" for name in trained)]
    made = by_output(graph)
    for name, buffer in zip(trained, buffers, strict=True):
        node = made[f"{name}_grad.accumulation.out"]
        assert (node.domain, node.op_type) == ("com.microsoft", "InPlaceAccumulatorV2")
        assert names(node.inputs) == [buffer, f"{name}_grad", "lazy_reset_grad"]
    assert (graph.inputs[-1].dtype, graph.inputs[-1].shape) == (ir.DataType.BOOL, ir.Shape([1]))
    assert "encoder.conv1.weight" in graph.initializers


def test_every_graph_is_within_what_the_last_release_takes() -> None:
    for graph in compiled().graphs().values():
        onnx.checker.check_model(ir.to_proto(graph))
        assert graph.ir_version == 10
        assert graph.opset_imports[""] == 21
        assert {node.domain for node in graph.graph.all_nodes()} <= {"", "com.microsoft"}


def test_statistics_are_overwritten_in_place_once_every_reader_has_a_copy() -> None:
    art = compiled()
    graph, state = art.training_model.graph, art.manifest["state"]
    assert len(state) == 6
    made = by_output(graph)
    for name, after in state.items():
        node = made[f"{name}_grad.accumulation.out"]
        assert names(node.inputs)[:2] == [name, after]
        assert graph.initializers[node.inputs[2].name].const_value.numpy().tolist() == [True]
        _check_copied(graph, name, node)


def _check_copied(graph: ir.Graph, name: str, write: ir.Node) -> None:
    """Beside the write, one Max reads the input, and the value written depends on it."""
    value = next(value for value in graph.inputs if value.name == name)
    readers = [node for node, _ in value.uses() if node is not write]
    assert [node.op_type for node in readers] == ["Max"]
    behind, open_ = set(), [write.inputs[1]]
    while open_:
        node = open_.pop().producer()
        if node is not None and node not in behind:
            behind.add(node)
            open_ += [operand for operand in node.inputs if operand is not None]
    assert readers[0] in behind


def test_a_statistic_that_another_node_reads_is_copied_for_it_too() -> None:
    art = compiled(parse(SHARED), loss="mse:output=y", train=["s", "b"])
    graph = art.training_model.graph
    assert art.manifest["state"] == {"mean": "mean_next", "var": "var_next"}
    for name in ("mean", "var"):
        _check_copied(graph, name, by_output(graph)[f"{name}_grad.accumulation.out"])


def test_the_optimizer_is_one_kernel_over_sequences() -> None:
    optimizer = gradcut.AdamW(lr=1e-2, betas=(0.8, 0.99), eps=1e-7, weight_decay=0.1)
    model = compiled(optimizer=optimizer).optimizer_model
    (node,) = model.graph
    moments = ["first_order_moments", "second_order_moments"]
    assert names(model.graph.inputs) == ["learning_rate", "step", "params", "gradients", *moments]
    assert names(node.inputs) == names(model.graph.inputs)
    assert all(isinstance(value.type, ir.SequenceType) for value in model.graph.inputs[2:])
    taken = {key: attribute.value for key, attribute in node.attributes.items()}
    assert taken.pop("adam_mode") == 0
    assert taken == pytest.approx({"alpha": 0.8, "beta": 0.99, "epsilon": 1e-7, "weight_decay": 0.1, "correct_bias": 1})


def test_sgd_takes_no_moments() -> None:
    (node,) = compiled(optimizer=gradcut.SGD()).optimizer_model.graph
    assert node.op_type == "SGDOptimizerV2"
    assert names(node.inputs) == ["learning_rate", "params", "gradients"]


def test_artifacts_on_disk_and_back(tmp_path: Path) -> None:
    art = compiled(train=["head.*"])
    art.save(tmp_path / "build")
    again = gradcut.TrainingArtifacts.load(tmp_path / "build")
    assert not (tmp_path / "build" / "step_model.onnx").exists()
    assert again.step_model is None
    assert list(again.manifest["graphs"]) == [name for name in GRAPHS if name not in ("step_model", "state_model")]
    assert again.manifest["runtime"] == {"onnxruntime-training": "==1.19.2"}
    assert again.manifest["names"] == {
        "learning_rate": "learning_rate",
        "step": "step",
        "step_next": None,
        "seed": None,
        "gradient_norm": None,
        "clocks": {},
    }
    ports = again.manifest["graphs"]["training_model"]["inputs"]
    assert [port["role"] for port in ports] == ["user", "label", *["parameter"] * 2, *["gradient"] * 2, "reset"]
    assert sorted(again.tensors) == ["head.bias", "head.weight"]
    assert all(np.array_equal(array, art.tensors[name]) for name, array in again.tensors.items())


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (gradcut.SGD(momentum=0.9), "SGDOptimizerV2 takes no momentum=0.9;"),
        (gradcut.SGD(momentum=0.9, nesterov=True), "SGDOptimizerV2 takes no momentum=0.9, nesterov=True;"),
        (gradcut.SGD(weight_decay=0.1), "SGDOptimizerV2 takes no weight_decay=0.1;"),
        (gradcut.AdamW(amsgrad=True), "AdamWOptimizer takes no amsgrad=True;"),
        (gradcut.AdamW(maximize=True), "AdamWOptimizer takes no maximize=True;"),
    ],
)
def test_an_optimizer_that_its_kernels_do_not_take(optimizer: gradcut.SGD, said: str) -> None:
    with pytest.raises(errors.SpecError) as caught:
        compiled(optimizer=optimizer)
    assert str(caught.value) == f"ORT Training's {said} leave it out, or compile for the target onnx"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"groups": {"head.*": {"lr": 1e-2}, "*.bias": {"eps": 1e-6}}}, "groups='head.*', '*.bias'"),
        ({"no_decay": True}, "no_decay=True"),
        ({"clip_norm": 1.0}, "clip_norm=1.0"),
        ({"clip_value": 0.5, "ema": 0.0}, "clip_value=0.5, ema=0.0"),
    ],
)
def test_what_its_kernels_do_not_do_beside_an_optimizer(options: dict[str, object], said: str) -> None:
    with pytest.raises(errors.SpecError) as caught:
        compiled(**options)
    message = f"ORT Training's AdamWOptimizer takes no {said}; leave it out, or compile for the target onnx"
    assert str(caught.value) == message


def test_optimizers_that_it_has_no_kernel_for() -> None:
    for optimizer in ("adam", "rmsprop", "adagrad", "lars", "lamb"):
        with pytest.raises(errors.SpecError) as caught:
            compiled(optimizer=optimizer)
        assert str(caught.value) == (
            f"ORT Training has no kernel for {optimizer}; it has adamw and sgd; take one of them, or compile for the "
            "target onnx"
        )


def test_an_opset_above_its_last() -> None:
    with pytest.raises(errors.UnsupportedModelError) as caught:
        compiled(parse(LINEAR, opset=22))
    assert str(caught.value) == (
        "the model is of opset 22, and ORT Training ended with 1.19.2, which takes opsets up to 21: "
        "export at opset 21, or compile for the target onnx"
    )


def test_no_loss() -> None:
    with pytest.raises(errors.LossError, match="the target ort-training trains on a loss: name one"):
        compiled(loss=None)


def test_what_moves_is_float32() -> None:
    with pytest.raises(errors.UnsupportedModelError, match="'w' is FLOAT16, and ORT Training moves FLOAT only"):
        compiled(parse(HALF), loss="mse")


def test_a_value_with_a_name_that_it_gives_a_meaning() -> None:
    model = parse(LINEAR.replace("t =", "lazy_reset_grad =").replace("(t,", "(lazy_reset_grad,"))
    with pytest.raises(errors.UnsupportedModelError, match="the model has a value 'lazy_reset_grad', a name that"):
        compiled(model)


def test_the_session_and_the_checkpoint_say_where_they_belong(tmp_path: Path) -> None:
    art = compiled(parse(LINEAR))
    with pytest.raises(errors.ArtifactsError, match=r"of the target ort-training, which onnxruntime\.training\.api"):
        gradcut.TrainingSession(art)
    with pytest.raises(errors.MissingExtraError, match=r"pip install 'gradcut\[ort-training\]'"):
        art.save_ort_checkpoint(tmp_path / "checkpoint")
    with pytest.raises(errors.ArtifactsError, match="these artifacts are of the target onnx; compile with target="):
        compiled(parse(LINEAR), target="onnx").save_ort_checkpoint(tmp_path / "checkpoint")
