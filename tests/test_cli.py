"""The commands as a user types them: what they print, write and refuse, and how they end."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx.numpy_helper
import onnx_ir as ir
import onnxruntime as ort
import pytest
from typer.testing import CliRunner

import gradcut
from gradcut.cli.app import app
from gradcut.losses import LOSSES
from gradcut.optimizers import OPTIMIZERS
from gradcut.passes import PASSES
from gradcut.runtime import backend, check
from gradcut.runtime.data import load_npz, split_indices
from models.zoo import MODELS
from tests.exported import exported, text

DIGITS, DATA = str(MODELS / "digits.onnx"), str(MODELS / "digits.npz")
NO_LOSS = "these artifacts have no loss; compile with one: gradcut compile ... --loss cross_entropy"
SMALL = """g (float[N,3] x) => (float[N,2] y)
<float[3,4] w1 = {1,2,3,4,5,6,7,8,9,10,11,12}, float[4,2] w2 = {1,2,3,4,5,6,7,8}>
{ a = MatMul (x, w1)  h = Relu (a)  y = MatMul (h, w2) }"""


class Result:
    """What a command did."""

    def __init__(self, *args: object) -> None:
        done = CliRunner().invoke(app, [str(one) for one in args])
        self.code, self.out, self.err = done.exit_code, done.stdout, done.stderr

    def line(self, heading: str) -> str:
        """The text behind a heading of the summary."""
        return next(row[12:] for row in self.out.splitlines() if row.startswith(heading))


def good(*args: object) -> Result:
    result = Result(*args)
    assert result.code == 0, result.err
    return result


def refused(*args: object) -> str:
    """The one line of a mistake of the user's."""
    result = Result(*args)
    assert result.code == 2, (result.out, result.err)
    assert "Traceback" not in result.err
    assert result.err.startswith("error: ") and result.err.count("\n") == 1
    return result.err.removeprefix("error: ").rstrip()


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.onnx"
    onnx.save(text(SMALL), path)
    return path


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits, head only, compiled and trained as the README does it."""
    folder = tmp_path_factory.mktemp("cli") / "digits"
    good("compile", DIGITS, "--loss", "cross_entropy", "--train", "head.*", "-o", folder)
    good("train", folder, "--data", DATA, "--epochs", 5)
    return folder


# --- the README's way ----------------------------------------------------------------------------------------


def test_the_readme_flow(digits: Path, tmp_path: Path) -> None:
    metrics = [json.loads(line) for line in (digits / "metrics.jsonl").read_text().splitlines()]
    assert [one["epoch"] for one in metrics] == [1, 2, 3, 4, 5]
    assert [one["step"] for one in metrics] == [45, 90, 135, 180, 225]
    assert metrics[-1]["accuracy"] >= 0.90
    tuned = tmp_path / "tuned.onnx"
    said = good("export", digits, "-o", tuned).out
    assert said == f"{tuned}: 2 tensors as of step 225, the rest as it was given\n"

    before, after = onnx.load(DIGITS), onnx.load(tuned)
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in before.graph.initializer}
    for one in after.graph.initializer:
        same = onnx.numpy_helper.to_array(one).tobytes() == weights[one.name].tobytes()
        assert same == (one.name not in ("head.weight", "head.bias")), one.name
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in before.graph.node]

    data = load_npz(DATA)
    _, held = split_indices(len(data["labels"]), 0.2, 0)
    stock = ort.InferenceSession(str(tuned), providers=["CPUExecutionProvider"])
    (logits,) = stock.run(None, {"image": data["image"][held]})
    assert np.mean(logits.argmax(1) == data["labels"][held]) == pytest.approx(metrics[-1]["accuracy"], abs=1e-9)


def test_train_prints_a_line_an_epoch_and_where_the_checkpoint_is(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    good("compile", DIGITS, "--loss", "cross_entropy", "--train", "head.*", "-o", folder)
    lines = good("train", folder, "--data", DATA, "--batch-size", 100).out.splitlines()
    assert lines[0].startswith("epoch 1, step 15, loss ")
    assert "eval loss" in lines[0] and "accuracy" in lines[0]
    said = {line[:12].strip(): line[12:] for line in lines[1:]}
    assert list(said) == ["run", "loss", "held out", "best", "checkpoint", "next"]
    assert said["run"].startswith("1 of 1 epoch, 15 steps; ") and said["run"].endswith(" samples/s")
    assert said["held out"].startswith("accuracy 0.") and said["held out"].endswith(" at step 15")
    assert said["checkpoint"] == str(folder / "checkpoint.safetensors")
    assert said["next"] == f"gradcut export {folder} -o d.onnx"
    again = good("train", folder, "--data", DATA, "--resume").out
    assert again.startswith("run         1 of 1 epoch, 15 steps; nothing was left to do")
    assert "a larger --epochs goes on" in again and "accuracy" in again
    good("compile", DIGITS, "--loss", "cross_entropy", "--train", "head.*", "-o", tmp_path / "new")
    new = good("train", tmp_path / "new", "--data", DATA, "--resume", "--batch-size", 100).out
    assert new.startswith(f"{tmp_path / 'new'} was not trained yet: a new run begins\n")


# --- compile -------------------------------------------------------------------------------------------------


def test_compile_says_what_a_person_wants_to_know(tmp_path: Path) -> None:
    said = good("compile", DIGITS, "--loss", "cross_entropy", "--train", "head.*", "-o", tmp_path / "d")
    assert said.line("trains") == "2 parameters, 2.57 k numbers: head.*"
    assert said.line("frozen") == "9 parameters, 55.9 k numbers: encoder.* (not named by --train)"
    assert said.line("batch norm") == "3 in inference mode"
    assert said.line("files").startswith(f"{tmp_path / 'd'}/ (training_model.onnx, ")
    assert said.err == ""
    art = gradcut.TrainingArtifacts.load(tmp_path / "d")
    emitted = sum(node.op_type != "Constant" and "grad" in (node.name or "") for node in art.training_model.graph)
    full = gradcut.compile(DIGITS, loss="cross_entropy")
    assert said.line("backward").startswith(f"{emitted} nodes emitted; ")
    full_said = good("compile", DIGITS, "--loss", "cross_entropy", "-o", tmp_path / "full")
    count = full_said.line("backward").removesuffix(" nodes emitted, as in full training")
    assert f"; {count} in full training (" in said.line("backward")
    assert full.manifest["cost"]["flops"] > art.manifest["cost"]["flops"]
    assert said.line("step").endswith("in full training (33%)")
    assert "in full training (2%)" in said.line("saved")
    assert full_said.line("batch norm") == "3 train and move their statistics"


def test_compile_without_a_loss_says_the_one_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = good("compile", DIGITS)
    assert said.line("loss") == NO_LOSS
    inputs = gradcut.TrainingArtifacts.load("digits.gradcut").manifest["graphs"]["training_model"]["inputs"]
    assert [port["name"] for port in inputs if port["role"] == "cotangent"] == ["logits_grad"]
    assert refused("train", "digits.gradcut", "--data", DATA) == NO_LOSS


def test_compile_warns_of_unreached_trainables(small: Path, tmp_path: Path) -> None:
    said = good("compile", small, "--loss", "mse", "--stop-at", "h", "-o", tmp_path / "d")
    assert said.err == "warning: w1 gets no gradient and is left out of training: stop-at at h\n"
    assert said.line("trains") == "1 parameter, 8 numbers: w2"
    strict = refused("compile", small, "--loss", "mse", "--stop-at", "h", "--strict", "-o", tmp_path / "e")
    assert strict == "strict: some trainables do not reach the loss (w1: stop-at at h)"
    assert not (tmp_path / "e").exists()


def test_compile_warns_of_what_the_exporter_destroyed(tmp_path: Path) -> None:
    model = onnx.load(DIGITS)
    names = {"encoder.conv2.weight": "val_7", "head.weight": "val_9"}
    for one in model.graph.initializer:
        one.name = names.get(one.name, one.name)
    for node in model.graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
    onnx.save(model, tmp_path / "folded.onnx")
    said = good("compile", tmp_path / "folded.onnx", "--loss", "cross_entropy", "-o", tmp_path / "d")
    assert said.err == (
        "warning: val_7, val_9 stand where weights do, but the file does not name them parameters, as torch's exporter "
        "leaves it with optimize=True: they stay as they are, unless --train names them exactly; "
        'export with gradcut.torch.export(model, args, "model.onnx") to keep every parameter\n'
    )
    lost = (
        "2 weights have lost their names to the exporter's optimizer (val_7, val_9); export with "
        'gradcut.torch.export(model, args, "model.onnx") to keep it trainable\n'
    )
    report = good("inspect", tmp_path / "folded.onnx")
    assert report.err == ""
    assert report.out.endswith("\nlost by the exporter\n  " + lost)


def test_a_refused_full_training_is_said_in_a_line(tmp_path: Path) -> None:
    source = text(SMALL)
    source.graph.node[1].domain = "own"
    source.graph.value_info.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, ["N", 4]))
    source.opset_import.append(onnx.helper.make_opsetid("own", 1))
    onnx.save(source, tmp_path / "m.onnx")
    said = good("compile", tmp_path / "m.onnx", "--loss", "mse", "--train", "w2", "-o", tmp_path / "d")
    why = "node 'Relu_h' (own.Relu, opset 1) has no gradient here: "
    assert f"            full training is refused: {why}" in said.out


@pytest.mark.parametrize("place", ["x", "a"])
def test_a_mark_saves_nothing_of_its_own(place: str, small: Path, tmp_path: Path) -> None:
    said = good("compile", small, "--loss", "mse", "--stop-at", place, "-o", tmp_path / "d")
    assert said.line("saved") == "260 B of activations, as in full training"


def test_passes_can_be_watched(small: Path, tmp_path: Path) -> None:
    compiled = ("compile", small, "--loss", "mse", "-o", tmp_path / "d")
    said = good(*compiled, "--print-ir-after", "propagate", "--time-passes", "--verify-each")
    assert said.err.count("// after propagate") == 1 and "// after import" not in said.err
    assert "ms  differentiate" in said.err and "ms  total" in said.err
    assert "gradcut" in said.err
    everything = good(*compiled, "--print-ir-after", "all").err
    assert everything.count("// after ") >= 8
    assert refused("compile", small, "-o", tmp_path / "e", "--print-ir-after", "nope").startswith(
        "--print-ir-after: there is no pass 'nope'; there are "
    )


def test_trained_artifacts_are_overwritten_only_with_force(small: Path, tmp_path: Path) -> None:
    folder, data = tmp_path / "d", tmp_path / "f.npz"
    np.savez(data, x=np.ones((8, 3), np.float32), labels=np.ones((8, 2), np.float32))
    compiled = ("compile", small, "--loss", "mse", "--optimizer", "sgd:lr=1e-6", "-o", folder)
    good(*compiled)
    good(*compiled)
    good("train", folder, "--data", data)
    line = f"{folder} was trained; it is overwritten only with --force (in Python, force=True)"
    assert refused(*compiled) == line
    (folder / "metrics.jsonl").unlink()
    assert refused(*compiled) == line
    assert refused("train", folder, "--data", data) == (
        f"{folder} was trained for 1 step; go on with --resume, or start over with gradcut compile --force"
    )
    good(*compiled, "--force")
    good("train", folder, "--data", data)


def test_what_is_no_artifacts_is_never_overwritten(small: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    line = refused("compile", small, "--loss", "mse", "-o", tmp_path / "notes", "--force")
    assert line == f"{tmp_path / 'notes'} is there already and holds no artifacts; choose another place"
    assert (tmp_path / "notes" / "a.txt").read_text() == "mine"


def test_updates_are_said_and_trained_by_the_command_line(small: Path, tmp_path: Path) -> None:
    """The command line's manifest is that of the same words in Python."""
    folder, data = tmp_path / "d", tmp_path / "f.npz"
    np.savez(data, x=np.ones((8, 3), np.float32), labels=np.ones((8, 2), np.float32))
    options = (
        "--optimizer",
        "adam:lr=1e-2,weight_decay=0.1",
        "--group",
        "w1:lr=1e-3,beta1=0.8",
        "--group",
        "w*:eps=1e-6",
    )
    more = ("--no-decay", "--clip-norm", 1.0, "--clip-value", 0.5, "--ema", 0.5)
    said = good("compile", small, "--loss", "mse", *options, *more, "-o", folder)
    rows = [line for line in said.out.splitlines() if line.startswith(("group", "clip", "averages"))]
    assert [" ".join(row.split()) for row in rows] == [
        "group w1: lr=0.001, beta1=0.8 (1 tensor)",
        "group w*: eps=1e-06 (2 tensors)",
        "clip each element to 0.5",
        "clip the norm of all gradients to 1",
        "averages of 2 tensors, by 0.5; export --ema",
    ]
    artifacts = gradcut.compile(
        small,
        "mse",
        optimizer=gradcut.Adam(lr=1e-2, weight_decay=0.1),
        groups={"w1": {"lr": 1e-3, "beta1": 0.8}, "w*": {"eps": 1e-6}},
        no_decay=True,
        clip_norm=1.0,
        clip_value=0.5,
        ema=0.5,
    )
    written = json.loads((folder / "manifest.json").read_text())
    assert {**artifacts.manifest, "files": written["files"]} == written
    good("train", folder, "--data", data, "--epochs", 3, "--batch-size", 4)
    good("export", folder, "-o", tmp_path / "plain.onnx")
    good("export", folder, "-o", tmp_path / "ema.onnx", "--ema")
    running = gradcut.TrainingSession(folder)
    for name, expected in (("plain", running.parameters()), ("ema", running.parameters(ema=True))):
        held = {
            one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(tmp_path / f"{name}.onnx").graph.initializer
        }
        for key, array in expected.items():
            np.testing.assert_array_equal(held[key], array)
    assert (tmp_path / "plain.onnx").read_bytes() != (tmp_path / "ema.onnx").read_bytes()


def test_averages_that_were_not_kept_are_not_exported(small: Path, tmp_path: Path) -> None:
    good("compile", small, "--loss", "mse", "-o", tmp_path / "d")
    line = "there are no running averages; compile with --ema 0.999 (in Python, ema=0.999) to keep them"
    assert refused("export", tmp_path / "d", "-o", tmp_path / "e.onnx", "--ema") == line
    assert not (tmp_path / "e.onnx").exists()


MISTAKES = {
    "no file": (["nope.onnx"], "nope.onnx: there is no such file"),
    "no loss of that name": (
        ["MODEL", "--loss", "cross_entropi"],
        "there is no loss 'cross_entropi'. Nearest: cross_entropy. There are bce_with_logits, cosine, cross_entropy, "
        "huber, kl_div, l1, mse, neg_cosine, nll, smooth_l1, a scalar output of the model by its "
        "name, or a graph of your own: FILE.onnx",
    ),
    "pattern": (
        ["MODEL", "--loss", "mse", "--train", "w7"],
        "'w7' matches no parameter and no module scope. Nearest: w2, w1.",
    ),
    "stop at": (
        ["MODEL", "--loss", "mse", "--stop-at", "hh"],
        "'hh' matches no value and no module scope. Nearest: h.",
    ),
    "optimizer": (
        ["MODEL", "--optimizer", "adan"],
        "'adan' is no optimizer. Nearest: adam. There are sgd, adamw, adam, rmsprop, adagrad, lars, lamb.",
    ),
    "group": (
        ["MODEL", "--loss", "mse", "--group", "w7:lr=1e-2"],
        "'w7' matches no parameter that trains and no module scope of one (--group). Nearest: w2, w1.",
    ),
    "group option": (
        ["MODEL", "--loss", "mse", "--optimizer", "sgd", "--group", "w1:momentom=0.9"],
        "group 'w1': 'momentom' is no option of sgd. Nearest: momentum. There are lr, momentum, dampening, "
        "weight_decay, nesterov, maximize.",
    ),
    "group text": (
        ["MODEL", "--loss", "mse", "--group", "w1"],
        "'w1' is not a group; write PATTERN:option=value,..., such as 'head.*:lr=1e-2'",
    ),
    "clip norm": (["MODEL", "--clip-norm", "0"], "clip_norm must be above 0, or left out, and is 0.0"),
    "clip value": (["MODEL", "--clip-value", "nan"], "clip_value is a finite number, not nan"),
    "ema": (["MODEL", "--ema", "1.5"], "ema must be from 0 to below 1, such as 0.999, and is 1.5"),
    "target": (["MODEL", "--target", "tpu"], None),
    "batch norm": (["MODEL", "--batch-norm", "off"], None),
    "nothing trains": (["MODEL", "--freeze", "*"], None),
    "usage": (["MODEL", "--trian", "w1"], None),
    "seed": (["MODEL", "--seed", "x"], None),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(name: str, small: Path, tmp_path: Path) -> None:
    args, line = MISTAKES[name]
    there = sorted(tmp_path.iterdir())
    said = refused("compile", *(str(small) if one == "MODEL" else one for one in args), "-o", tmp_path / "d")
    assert line is None or said == line
    assert sorted(tmp_path.iterdir()) == there


def test_a_file_that_is_not_onnx(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"hello")
    whole = Path(DIGITS).read_bytes()
    (tmp_path / "b.onnx").write_bytes(whole[: len(whole) // 2])
    for name in ("a.onnx", "b.onnx"):
        assert refused("compile", tmp_path / name).startswith(f"{tmp_path / name} ")


# --- train ---------------------------------------------------------------------------------------------------


def test_data_that_do_not_fit_are_refused_before_a_step(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    good("compile", DIGITS, "--loss", "cross_entropy", "--train", "head.*", "-o", folder)
    before = (folder / "checkpoint.safetensors").read_bytes()
    data, file = load_npz(DATA), tmp_path / "f.npz"

    def says(**arrays: np.ndarray) -> str:
        np.savez(file, **arrays)
        return refused("train", folder, "--data", file)

    labels = data["labels"].copy()
    labels[17] = 10
    assert says(image=data["image"], labels=labels) == (
        f"{file}: feed 'labels' holds label 10 at row 17; the model has 10 classes, 0 to 9"
    )
    assert says(image=data["image"], label=labels) == (
        f"{file} lacks 'labels' ('labels' may be 'label'); it has 'image', 'label'"
    )
    assert says(image=data["image"][:-1], labels=data["labels"]).startswith(f"{file}: 'image' has 1796 rows and ")
    assert says(image=data["image"].astype(np.float16).view(np.int16), labels=data["labels"]) == (
        f"{file}: feed 'image' is int16; the graph takes float32: use .astype('float32')"
    )
    assert says(image=data["image"][:, 0], labels=data["labels"]) == (
        f"{file}: feed 'image' has shape [1797, 8, 8]; the graph takes [?, 1, 8, 8]"
    )
    assert refused("train", folder, "--data", tmp_path / "no.npz") == f"{tmp_path / 'no.npz'}: no such file"
    assert refused("train", folder, "--data", DATA, "--device", "cuda").startswith("device 'cuda': ")
    assert refused("train", folder, "--data", DATA, "--eval-split", "1.5") == (
        "--eval-split is 1.5; it is at least 0 and below 1"
    )
    assert refused("train", folder, "--data", DATA, "--epochs", "0") == "--epochs is 0; it is at least 1"
    assert refused("train", folder, "--data", DATA, "--lr", "-1") == "--lr must be at least 0, and is -1.0"
    assert refused("train", tmp_path, "--data", DATA).startswith(f"{tmp_path} holds no artifacts")
    assert (folder / "checkpoint.safetensors").read_bytes() == before
    assert not (folder / "metrics.jsonl").exists()


def test_a_missing_runtime_names_the_extra(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "ort", None)
    line = refused("train", digits, "--data", DATA, "--resume")
    assert line == "a training session needs an extra that is not installed: pip install 'gradcut[cpu]'"


def test_compile_opt_inspect_visualize_export_need_no_runtime(tmp_path: Path) -> None:
    calls = [
        ["compile", DIGITS, "--loss", "cross_entropy", "-o", str(tmp_path / "d")],
        ["inspect", DIGITS],
        ["explain", str(tmp_path / "d"), "head.weight"],
        ["visualize", str(tmp_path / "d"), "-o", str(tmp_path / "g.svg")],
        ["export", str(tmp_path / "d"), "-o", str(tmp_path / "t.onnx")],
        ["opt", DIGITS, "-p", "import", "-o", str(tmp_path / "o.onnx")],
    ]
    code = f"""
import sys
sys.modules["onnxruntime"] = sys.modules["numba"] = sys.modules["torch"] = None
from typer.testing import CliRunner
from gradcut.cli.app import app
for call in {calls!r}:
    done = CliRunner().invoke(app, call)
    assert done.exit_code == 0, (call, done.stderr)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# --- the other commands --------------------------------------------------------------------------------------


def test_opt_prints_text_or_writes_it(small: Path, tmp_path: Path) -> None:
    pipeline = "import,propagate{of=y wrt=w2},differentiate,simplify,lower"
    printed = good("opt", small, "-p", pipeline).out
    assert "w2_grad" in printed and printed.lstrip().startswith("<")
    good("opt", small, "-p", pipeline, "-o", tmp_path / "o.onnxtxt", "--verify-each")
    assert (tmp_path / "o.onnxtxt").read_text().strip() == printed.strip()
    good("opt", small, "-p", pipeline, "-o", tmp_path / "o.onnx")
    stock = ort.InferenceSession(str(tmp_path / "o.onnx"), providers=["CPUExecutionProvider"])
    assert [value.name for value in stock.get_outputs()] == ["y", "w2_grad"]
    assert "a model is written as .onnx, or as text: .onnxtxt, .onnxtext, .txt, .textproto, " in refused(
        "opt", small, "-p", "import", "-o", tmp_path / "o.svg"
    )
    wrong = Result("opt", small, "-p", "import,,")
    assert wrong.code == 2 and wrong.err == "error: a pass is expected here\n  import,,\n         ^\n"


@pytest.mark.parametrize("suffix", [".onnx", ".onnxtxt", ".textproto"])
def test_opt_writes_weights_that_lay_beside_the_model(suffix: str, tmp_path: Path) -> None:
    """Elsewhere the file would not find them."""
    proto = onnx.load(DIGITS)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    target = tmp_path / "elsewhere" / f"o{suffix}"
    target.parent.mkdir()
    good("opt", tmp_path / "m.onnx", "-p", "import", "-o", target)
    held = gradcut.load(target).graph.initializers["head.weight"].const_value
    given = gradcut.load(DIGITS).graph.initializers["head.weight"].const_value
    assert held is not None and given is not None
    np.testing.assert_array_equal(held.numpy(), given.numpy())


def test_the_help_of_compile_lists_every_loss_and_optimizer() -> None:
    listed = re.findall(r"\w+", good("compile", "--help").out)
    assert {*LOSSES, *OPTIMIZERS} <= {*listed}


def test_the_help_of_opt_lists_every_pass() -> None:
    listed = good("opt", "--help").out.partition("Passes:\n")[2]
    starts = [line.split()[0] for line in listed.splitlines() if line.startswith("  ") and line[2] != " "]
    assert [one.partition("{")[0] for one in starts] == sorted(PASSES)
    assert "propagate{of wrt}" in listed and "Mark the cut of one question." in listed


def test_check_compares_with_finite_differences(small: Path, tmp_path: Path) -> None:
    said = good("check", small, "--wrt", "w*").out
    assert said.splitlines()[-1] == "2 gradients agree with finite differences"
    np.savez(tmp_path / "f.npz", x=np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32))
    good("check", small, "--data", tmp_path / "f.npz", "--seed", "3")
    assert refused("check", small, "--wrt", "nope").startswith("'nope' matches no value.")
    np.savez(tmp_path / "wide.npz", x=np.ones((9, 4), np.float32))
    assert refused("check", small, "--data", tmp_path / "wide.npz") == (
        f"{tmp_path / 'wide.npz'}: feed 'x' has shape [4, 4]; the graph takes [N, 3]"
    )
    np.savez(tmp_path / "nan.npz", x=np.full((9, 3), np.nan, np.float32))
    assert refused("check", small, "--data", tmp_path / "nan.npz") == (
        f"{tmp_path / 'nan.npz'}: feed 'x' holds nan in its first 4 rows, and nan has no slope"
    )
    assert "--rows" in refused("check", small, "--data", tmp_path / "f.npz", "--rows", "0")
    assert "--seed" in refused("check", small, "--seed", "-1")
    assert good("check", small, "--seconds", "0").out.splitlines()[-1] == (
        "1 gradients agree with finite differences, and 2 others together, "
        "for which 0 s were too short one by one (--seconds, --wrt)"
    )


def test_check_ends_with_one_where_a_gradient_is_wrong(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = check.check_gradients

    def planted(*args: object, **options: object) -> check.CheckReport:
        report = honest(*args, **options)  # type: ignore[arg-type]
        return replace(report, values=(replace(report.values[0], ok=False), *report.values[1:]))

    monkeypatch.setattr(check, "check_gradients", planted)
    done = Result("check", small, "--wrt", "w*")
    assert (done.code, done.err) == (1, "error: 1 of 2 gradients are wrong\n")


def test_inspect_lists_every_decision_with_its_reason(tmp_path: Path) -> None:
    said = good("inspect", DIGITS)
    assert said.line("opset") == "21 (IR version 10)"
    assert said.line("exporter").startswith("pytorch ")
    assert said.line("outputs") == "logits FLOAT[batch, 10]"
    rows = [" ".join(row.split()) for row in said.out.splitlines()]
    assert "encoder.conv2.weight 64x32x3x3 18432 the file says PARAMETER" in rows
    assert "encoder.bn1.running_var 32 32 mean or variance of a BatchNormalization" in rows
    assert "encoder.conv1 7 nodes" in rows
    marked = gradcut.freeze(gradcut.stop_gradient(DIGITS, "relu"), "head.bias")
    ir.save(marked, tmp_path / "m.onnx")
    again = good("inspect", tmp_path / "m.onnx")
    assert again.line("marks") == "relu (mark)"
    assert "frozen; the file says PARAMETER" in again.out


def test_explain(digits: Path, tmp_path: Path) -> None:
    says = lambda name: good("explain", digits, name).out.strip()
    assert says("head.weight") == (
        "head.weight trains: its gradient is the output head.weight_grad of training_model.onnx"
    )
    assert says("encoder.conv1.weight") == "encoder.conv1.weight gets no gradient: it is not among what --train names"
    assert says("relu") == "relu gets no gradient: nothing that trains lies before it (not-trained)"
    assert says("logits") == "logits carries a gradient: it lies between head.bias, head.weight and loss"
    assert says("image") == "image gets no gradient: it is an input of the model, and only parameters train"
    assert says("labels") == "labels gets no gradient: only the loss reads it, and nothing that trains lies before it"
    for name in ("val_6", "val_17", "val_19"):
        assert says(name) == f"{name} gets no gradient: it depends on no input and no parameter"
    assert refused("explain", digits, "heat.weight").startswith(
        "the model has no value 'heat.weight'. Nearest: head.wei"
    )
    good("compile", exported("mlp"), "--loss", "cross_entropy", "--stop-at", "relu", "-o", tmp_path / "m")
    cut = good("explain", tmp_path / "m", "linear").out.strip()
    assert cut == "linear gets no gradient: every path from it to loss is cut: stop-at at relu"
    assert good("explain", tmp_path / "m", "body.0.weight").out.startswith(
        "body.0.weight gets no gradient: stop-at at "
    )


def test_visualize_writes_svg_and_png(digits: Path, tmp_path: Path) -> None:
    good("visualize", digits, "-o", tmp_path / "g.svg")
    assert b"backward of Gemm" in (tmp_path / "g.svg").read_bytes()
    good("visualize", DIGITS, "-o", tmp_path / "g.png")
    assert (tmp_path / "g.png").read_bytes().startswith(b"\x89PNG")
    assert (
        refused("visualize", digits, "-o", tmp_path / "g.pdf")
        == f"{tmp_path / 'g.pdf'}: a picture ends in .svg or .png"
    )
    assert not (tmp_path / "g.pdf").exists()


# --- how commands end ----------------------------------------------------------------------------------------


def test_usage_errors_are_one_line() -> None:
    assert refused("nope") == "No such command 'nope'."
    assert refused("compile") == "Missing argument 'MODEL'."
    assert refused("export", "d").startswith("Missing option '-o'")


def test_a_fault_of_ours_ends_with_one(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ValueError("planted")

    monkeypatch.setattr("gradcut.compiler.compile", broken)
    plain = Result("compile", small)
    assert (plain.code, plain.err) == (1, "error: internal error: ValueError: planted; run with --debug\n")
    for args in (["--debug", "compile", small], ["compile", small, "--debug"]):
        shown = Result(*args)
        assert shown.code == 1 and "Traceback" in shown.err and "ValueError: planted" in shown.err


def test_an_interrupt_ends_with_130(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("gradcut.compiler.compile", interrupted)
    done = Result("compile", small)
    assert (done.code, done.err) == (130, "error: interrupted\n")


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "gradcut", "--help"], capture_output=True, text=True, check=True)
    for command in ("compile", "train", "export", "opt", "check", "visualize", "inspect", "explain"):
        assert command in done.stdout
    wrong = subprocess.run([sys.executable, "-m", "gradcut", "compile", "no.onnx"], capture_output=True, text=True)
    assert (wrong.returncode, wrong.stderr, wrong.stdout) == (2, "error: no.onnx: there is no such file\n", "")
    assert "gradcut" in good("--version").out
