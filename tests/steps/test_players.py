"""A generator and a discriminator in one session, against torch with two optimizers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.errors import CheckpointError, FeedError, PatternError, SpecError
from tests.steps.players import STEPS, Players, exported, feeds


def artifacts(**options: object) -> gradcut.TrainingArtifacts:
    model = onnx.load_from_string(exported())
    return gradcut.compile(model, **{"steps": STEPS, **options})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def compiled() -> gradcut.TrainingArtifacts:
    return artifacts()


def turns(count: int) -> list[tuple[str, int]]:
    return [(name, batch) for batch in range(count) for name in ("discriminator", "generator", "discriminator")]


def in_torch(count: int) -> tuple[Players, list[float]]:
    """The same turns: each player's norms train in its own step and are inference in the other's."""
    module = Players()
    optimizers = {
        "discriminator": torch.optim.SGD(module.d.parameters(), lr=0.05, momentum=0.9),
        "generator": torch.optim.Adam(module.g.parameters(), lr=2e-3, betas=(0.5, 0.999)),
    }
    losses = []
    for name, batch in turns(count):
        given = {key: torch.from_numpy(array) for key, array in feeds(name, batch).items()}
        module.g.train(name == "generator")
        module.d.train(name == "discriminator")
        optimizers[name].zero_grad()
        if name == "discriminator":
            on_fake, on_real = module.d(module.g(given["z"])), module.d(given["x"])
            # the file calls the discriminator on the fake first, and so its statistics move
            loss = bce(on_real, given["ones"]) + bce(on_fake, given["zeros"])
        else:
            loss = bce(module.d(module.g(given["z"])), given["ones"])
        loss.backward()
        optimizers[name].step()
        losses.append(loss.item())
    return module, losses


@pytest.mark.parametrize("backend", ["host", "graph"])
def test_both_players_follow_torch(compiled: gradcut.TrainingArtifacts, backend: str) -> None:
    session = gradcut.TrainingSession(compiled, optimizer_backend=backend)
    losses = [session.step(name, feeds(name, batch)).loss for name, batch in turns(8)]
    module, expected = in_torch(8)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    found = session.parameters()
    for name, parameter in module.named_parameters():
        np.testing.assert_allclose(found[name], parameter.detach(), rtol=1e-3, atol=1e-5, err_msg=name)
    state = session.state()
    for name, buffer in module.named_buffers():
        if "running" in name:
            np.testing.assert_allclose(state[name], buffer, rtol=1e-3, atol=1e-5, err_msg=name)


def test_what_a_step_does_not_train_is_the_same_bit_for_bit(compiled: gradcut.TrainingArtifacts) -> None:
    session = gradcut.TrainingSession(compiled)
    for name, batch in turns(3):
        before = session.parameters() | session.state()
        session.step(name, feeds(name, batch))
        after = session.parameters() | session.state()
        moved = {key for key in before if before[key].tobytes() != after[key].tobytes()}
        assert moved == {key for key in before if key.startswith(name[0])}, (name, batch)


def test_norms_in_training_mode_move_their_statistics_in_their_own_step_alone() -> None:
    model = onnx.load_from_string(exported())
    for node in model.graph.node:
        if node.op_type == "BatchNormalization":
            node.attribute.append(onnx.helper.make_attribute("training_mode", 1))
            node.output.extend(f"{node.name}_{which}" for which in ("mean", "var"))
    session = gradcut.TrainingSession(gradcut.compile(model, steps=STEPS))
    assert {*session.manifest["steps"]["generator"]["batch_norm"].values()} == {"train"}
    before = session.state()
    session.step("generator", feeds("generator", 0))
    after = session.state()
    assert {key for key in before if before[key].tobytes() != after[key].tobytes()} == {
        "g.1.running_mean",
        "g.1.running_var",
    }


def test_a_step_is_fed_what_its_loss_needs_and_gives_what_that_suffices_for(
    compiled: gradcut.TrainingArtifacts,
) -> None:
    session = gradcut.TrainingSession(compiled)
    result = session.step("generator", feeds("generator", 0))
    assert result.outputs.keys() == {"fake", "on_fake"} and result.step == 1
    result = session.step("discriminator", feeds("discriminator", 0))
    assert result.outputs.keys() == {"fake", "on_fake", "on_real", "loss_1", "loss_2"} and result.step == 1
    assert session.steps == 2
    with pytest.raises(FeedError, match="'x'"):
        session.step("generator", feeds("discriminator", 0))


def test_no_backward_node_of_one_player_is_in_the_step_of_the_other_beyond_its_path() -> None:
    """The generator's step goes through the discriminator, and builds no gradient of its weights."""
    graphs = artifacts().steps
    outputs = {name: {v.name for v in one.training_model.graph.outputs} for name, one in graphs.items()}
    assert not any(name.startswith("d.") for name in outputs["generator"])
    assert not any(name.startswith("g.") for name in outputs["discriminator"])
    served = {n.metadata_props.get("gradcut.adjoint", "") for n in graphs["discriminator"].training_model.graph}
    given = {node.name: node for node in graphs["discriminator"].training_model.graph}
    assert served - {""} and given  # the discriminator's step ends at the fake rows
    assert not any("grad" in (v.name or "") and "g." in (v.name or "") for n in given.values() for v in n.outputs)


def test_evaluation_and_gradients_leave_everything_as_it_was(compiled: gradcut.TrainingArtifacts) -> None:
    session = gradcut.TrainingSession(compiled)
    before = session.parameters() | session.state()
    assert np.isfinite(session.evaluate("generator", feeds("generator", 0)).loss)
    gradients = session.gradients("generator", feeds("generator", 0))
    assert set(gradients) == {name for name in before if name.startswith("g.") and "running" not in name}
    after = session.parameters() | session.state()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert session.steps == 0


def test_a_directory_holds_the_model_and_the_state_once(compiled: gradcut.TrainingArtifacts, tmp_path: Path) -> None:
    folder = tmp_path / "players"
    compiled.save(folder)
    assert {path.name for path in folder.iterdir()} == {
        "model.onnx",
        "checkpoint.safetensors",
        "manifest.json",
        "discriminator",
        "generator",
    }
    graphs = {f"{name}.onnx" for name in ("training_model", "optimizer_model", "step_model", "eval_model")}
    for step in STEPS:
        assert {path.name for path in (folder / step).iterdir()} == graphs
    loaded = gradcut.TrainingArtifacts.load(folder)
    assert list(loaded.steps) == list(STEPS) and loaded.trainable == compiled.trainable
    (folder / "generator" / "eval_model.onnx").write_bytes(b"")
    with pytest.raises(gradcut.errors.ArtifactsError, match=r"generator/eval_model\.onnx"):
        gradcut.TrainingArtifacts.load(folder)


def test_large_weights_that_nothing_moves_lie_beside_the_graphs_that_hold_them(tmp_path: Path) -> None:
    model = onnx.load_from_string(exported())
    wide = onnx.numpy_helper.from_array(np.ones((256, 256), np.float32), "wide")
    model.graph.initializer.append(wide)
    model.graph.node.append(onnx.helper.make_node("Expand", ["on_fake", "size"], ["spread"]))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["spread", "wide"], ["looked"]))
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1, 256]), "size"))
    model.graph.output.append(onnx.helper.make_tensor_value_info("looked", 1, ["rows", 256]))
    artifacts = gradcut.compile(model, steps=STEPS)
    artifacts.save(tmp_path / "a")
    for place in (tmp_path / "a", *(tmp_path / "a" / step for step in STEPS)):
        assert (place / "weights.bin").stat().st_size == 4 * 256 * 256
        assert (place / "weights.bin").stat().st_nlink == 1  # neither onnx nor the runtime reads a linked one
    session = gradcut.TrainingSession(tmp_path / "a")
    assert session.step("generator", feeds("generator", 0)).outputs["looked"].shape == (16, 256)
    session.save_checkpoint(tmp_path / "a" / "checkpoint.safetensors")
    for step in STEPS:
        for file in sorted((tmp_path / "a" / step).glob("*.onnx")):
            onnx.checker.check_model(file, full_check=True)
            ort.InferenceSession(file)
    session.export(tmp_path / "session.onnx")
    command = CliRunner().invoke(app, ["export", str(tmp_path / "a"), "-o", str(tmp_path / "command.onnx")])
    assert command.exit_code == 0, command.output
    assert (tmp_path / "command.onnx").read_bytes() == (tmp_path / "session.onnx").read_bytes()


def test_saving_again_replaces_the_folders_of_steps_that_are_gone(tmp_path: Path) -> None:
    artifacts().save(tmp_path / "a")
    (tmp_path / "a" / "notes.txt").write_text("mine")
    only = {"generator": STEPS["generator"]}
    artifacts(steps=only).save(tmp_path / "a")
    assert not (tmp_path / "a" / "discriminator").exists()
    assert (tmp_path / "a" / "notes.txt").read_text() == "mine"


def test_a_resumed_session_goes_on_as_one_that_never_stopped(tmp_path: Path) -> None:
    artifacts().save(tmp_path / "a")
    whole = gradcut.TrainingSession(tmp_path / "a")
    for name, batch in turns(4):
        whole.step(name, feeds(name, batch))
    first = gradcut.TrainingSession(tmp_path / "a")
    for name, batch in turns(2):
        first.step(name, feeds(name, batch))
    first.save_checkpoint(tmp_path / "half.safetensors")
    second = gradcut.TrainingSession(tmp_path / "a")
    second.load_checkpoint(tmp_path / "half.safetensors")
    assert second.steps == 6
    for name, batch in turns(4)[6:]:
        second.step(name, feeds(name, batch))
    expected, found = (one.parameters() | one.state() for one in (whole, second))
    for name, array in expected.items():
        assert array.tobytes() == found[name].tobytes(), name


def test_step_models_alone_are_the_contract_for_a_host(tmp_path: Path) -> None:
    """Each step's one file, run by the runtime alone with one dictionary of state between them."""
    artifacts().save(tmp_path / "a")
    session = gradcut.TrainingSession(tmp_path / "a", optimizer_backend="graph")
    manifest = json.loads((tmp_path / "a" / "manifest.json").read_text())
    state = {name: slot.numpy() for name, slot in session._slots.items()}
    runners = {name: ort.InferenceSession(tmp_path / "a" / name / "step_model.onnx") for name in STEPS}
    counts = dict.fromkeys(STEPS, 0)
    for name, batch in turns(2):
        said = manifest["steps"][name]
        inputs = state | feeds(name, batch)
        inputs[said["names"]["learning_rate"]] = np.asarray(said["optimizer"]["lr"], np.float32)
        inputs[said["names"]["step"]] = np.asarray(counts[name])
        wanted = [port.name for port in runners[name].get_outputs()]
        results = dict(
            zip(
                wanted,
                runners[name].run(None, {p.name: inputs[p.name] for p in runners[name].get_inputs()}),
                strict=True,
            )
        )
        for one in said["trainable"]:
            state |= {key: results[after] for key, after in one["next"].items()}
        state |= {key: results[after] for key, after in said["state"].items()}
        counts[name] = int(results[said["names"]["step_next"]])
        session.step(name, feeds(name, batch))
    for name, slot in session._slots.items():
        np.testing.assert_allclose(state[name], slot.numpy(), rtol=1e-5, atol=1e-7, err_msg=name)


def test_export_writes_both_players_back(compiled: gradcut.TrainingArtifacts, tmp_path: Path) -> None:
    session = gradcut.TrainingSession(compiled)
    for name, batch in turns(2):
        session.step(name, feeds(name, batch))
    session.export(tmp_path / "tuned.onnx")
    given = feeds("discriminator", 9)
    fake, _, on_real = ort.InferenceSession(tmp_path / "tuned.onnx").run(None, {k: given[k] for k in ("z", "x")})
    result = session.evaluate("discriminator", given)
    np.testing.assert_allclose(result.outputs["fake"], fake, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(result.outputs["on_real"], on_real, rtol=1e-4, atol=1e-5)


def test_marks_and_freezes_of_one_step_are_not_the_others() -> None:
    steps = {
        "cut": gradcut.Step(loss="mse:output=on_fake,labels=y", train=["g.*", "d.*"], stop_at="fake->*"),
        "frozen": gradcut.Step(loss="mse:output=on_fake,labels=y", freeze="d.*"),
        "whole": gradcut.Step(loss="mse:output=on_fake,labels=y"),
    }
    trained = {name: {*one.trainable} for name, one in artifacts(steps=steps).steps.items()}
    every = trained["whole"]
    assert trained["cut"] == {name for name in every if name.startswith("d.")}
    assert trained["frozen"] == {name for name in every if name.startswith("g.")}


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"steps": {}}, SpecError, "at least one"),
        ({"steps": {"a/b": gradcut.Step()}}, SpecError, "'a/b' names no step"),
        ({"steps": {"model.onnx": gradcut.Step()}}, SpecError, "names no step"),
        ({"steps": {"a": "b"}}, SpecError, r"step 'a' is a gradcut.Step\(...\), not 'b'"),
        ({"steps": {"a": gradcut.Step(), "A": gradcut.Step()}}, SpecError, "capitals"),
        ({"loss": "mse"}, SpecError, r"loss belongs into the step: gradcut.Step\(loss=...\)"),
        ({"steps": {"a": gradcut.Step(loss="mse:output=fake", outputs="nothing")}}, PatternError, "nothing"),
        ({"steps": {"a": gradcut.Step(loss="mse:output=fake", train="nothing.*")}}, PatternError, "nothing"),
        ({"target": "ort-training"}, SpecError, "ort-training"),
    ],
)
def test_what_cannot_be(options: dict[str, object], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        artifacts(**options)


def test_sessions_ask_for_the_step(compiled: gradcut.TrainingArtifacts, tmp_path: Path) -> None:
    session = gradcut.TrainingSession(compiled)
    with pytest.raises(SpecError, match="the name of a step comes before the feeds; there are discriminator"):
        session.step(feeds("generator", 0))
    with pytest.raises(SpecError, match=r"no step 'generato'.*Nearest: generator"):
        session.step("generato", feeds("generator", 0))
    with pytest.raises(FeedError, match=r"session\.step takes name, feeds, lr"):
        session.step("generator")  # type: ignore[call-overload]
    single = gradcut.compile(onnx.load_from_string(exported()), loss="mse:output=fake", train="g.*")
    with pytest.raises(SpecError, match="one step, without a name"):
        gradcut.TrainingSession(single).step("generator", feeds("generator", 0))
    gradcut.TrainingSession(single).save_checkpoint(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError):
        session.load_checkpoint(tmp_path / "other.safetensors")


def test_a_step_is_looked_at_as_a_folder(tmp_path: Path) -> None:
    artifacts().save(tmp_path / "a")
    one = gradcut.TrainingArtifacts.load(tmp_path / "a" / "generator")
    assert {*one.trainable} == {name for name in one.trainable if name.startswith("g.")} and one.trainable
    runner = CliRunner()
    drawn = runner.invoke(app, ["visualize", str(tmp_path / "a" / "generator"), "-o", str(tmp_path / "g.svg")])
    assert drawn.exit_code == 0 and (tmp_path / "g.svg").exists(), drawn.output
    told = runner.invoke(app, ["explain", str(tmp_path / "a" / "generator"), "d.0.weight"])
    assert told.exit_code == 0 and "not" in told.output
    for command in (
        ["visualize", "-o", str(tmp_path / "b.svg")],
        ["explain", "d.0.weight"],
        ["train", "--data", "x.npz"],
    ):
        refused = runner.invoke(app, [command[0], str(tmp_path / "a"), *command[1:]])
        assert refused.exit_code == 2 and "discriminator" in refused.output, refused.output


def test_a_constant_that_one_step_trains_is_no_constant_of_the_others() -> None:
    source = """agraph (float[n,2] x) => (float[n,2] y) {
        c = Constant<value_floats=[1.0, 2.0]>()
        two = Constant<value_float=2.0>()
        twice = Mul(c, two)
        scaled = Mul(x, twice)
        y = Add(scaled, w)
    }"""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]>\n{source}')
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "w"))
    steps = {name: gradcut.Step(loss="mse:output=y", train=name) for name in ("c", "w")}
    session = gradcut.TrainingSession(gradcut.compile(model, steps=steps, optimizer="sgd:lr=0.1"))
    given = {"x": np.ones((1, 2), np.float32), "labels": np.zeros((1, 2), np.float32)}
    first = session.step("w", given).loss
    session.step("c", given)
    moved = session.parameters()
    expected = np.mean((2 * moved["c"] + moved["w"]) ** 2)
    assert session.evaluate("w", given).loss == pytest.approx(expected, rel=1e-6) and expected < first


def test_graphs_belong_to_a_step(compiled: gradcut.TrainingArtifacts) -> None:
    with pytest.raises(gradcut.errors.ArtifactsError, match="several steps, and training_model takes one"):
        _ = compiled.training_model


def test_what_steps_train_inside_a_function_comes_back_out(tmp_path: Path) -> None:
    source = """<ir_version: 10, opset_import: ["" : 21, "mine" : 1]>
    agraph (float[n,2] x) => (float[n,2] y) { y = mine.layer(x) }
    <domain: "mine", opset_import: ["" : 21]>
    layer (a) => (d) {
        c = Constant<value_floats=[1.0, 2.0]>()
        s = Mul(a, c)
        k = Constant<value_floats=[3.0, 4.0]>()
        d = Add(s, k)
    }"""
    compiled = gradcut.compile(onnx.parser.parse_model(source), loss="mse:output=y", optimizer="sgd:lr=0.1")
    steps = {name: gradcut.Step(loss="mse:output=y", train=[name]) for name in compiled.trainable}
    assert len(steps) == 2
    gradcut.compile(onnx.parser.parse_model(source), steps=steps, optimizer="sgd:lr=0.1").save(tmp_path / "a")
    session = gradcut.TrainingSession(tmp_path / "a")
    given = {"x": np.ones((1, 2), np.float32), "labels": np.zeros((1, 2), np.float32)}
    for name in steps:
        session.step(name, given)
    session.export(tmp_path / "tuned.onnx")
    (y,) = ort.InferenceSession(tmp_path / "tuned.onnx").run(None, {"x": given["x"]})
    np.testing.assert_allclose(y, sum(session.parameters().values())[None], rtol=1e-6)
