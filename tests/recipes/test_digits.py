"""SimSiam on the digits, from the command line: with the mark it learns, without it it collapses.

Settings: three quarters of the images train, 60 epochs of 10 batches of 128, three seeds, projector 128-128-128
without a norm at its end, predictor 32; views by turns, scalings, shifts and noise. The README shows the picture.
"""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime import InferenceSession

import gradcut
from models.zoo import MODELS
from tests.recipes import plain
from tests.test_cli import good, refused

DATA = MODELS / "digits.npz"
SMALL = "simsiam:projector=128,dim=128,predictor=32,last_bn=false"
Records = dict[tuple[str, int], list[dict[str, Any]]]
MARKED, BARE = "with the mark", "without it"


def records(folder: Path) -> Records:
    found: Records = defaultdict(list)
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        found[record["run"], record["seed"]].append(record)
    return found


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proof") / "simsiam"
    good("recipe", SMALL, plain.encoder_file(), "--data", DATA, "-o", folder, "--compare", "--seeds", 3, "--epochs", 60)
    return folder


def test_the_mark_keeps_it_from_collapse(proof: Path) -> None:
    """FACTS: plain torch has 0.81 to 0.84 and -0.83 to -0.85 with the mark, 0.05 to 0.07 and -0.998 without."""
    found = records(proof)
    assert len(found) == 6
    for (name, seed), lines in found.items():
        assert len(lines) == 61 and lines[-1]["step"] == 600
        spreads, last = [line["std"] for line in lines[1:]], lines[-1]
        if name == MARKED:
            assert min(spreads) > 0.5 and max(spreads) < 2.0, (seed, spreads)
        else:
            assert last["loss"] < -0.98 and last["std"] < 0.2, (seed, last)


def test_what_is_learned_helps_1nn(proof: Path) -> None:
    found = records(proof)
    last = {name: np.mean([found[name, seed][-1]["knn"] for seed in range(3)]) for name in (MARKED, BARE)}
    untrained = np.mean([found[MARKED, seed][0]["knn"] for seed in range(3)])
    assert last[MARKED] >= untrained + 0.05, (last, untrained)
    assert last[MARKED] >= last[BARE] + 0.10, last


def test_every_epoch_has_its_diagnostics(proof: Path) -> None:
    blocks = {"conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "predictor.0", "predictor.1", "predictor.3"}
    blocks |= {"projector.0", "projector.1", "projector.3", "projector.4", "projector.6"}
    for lines in records(proof).values():
        for line in lines[1:]:
            assert line["gradient_norms"].keys() == blocks
            assert all(norm > 0 for norm in line["gradient_norms"].values())
            assert -1.0 <= line["loss"] < 1.0 and 0.0 < line["knn"] < 1.0


def test_the_picture_has_both_curves(proof: Path) -> None:
    picture = ET.fromstring((proof / "curves.svg").read_text())
    paths = [one for one in picture.iter("{http://www.w3.org/2000/svg}path") if one.get("fill") == "none"]
    assert len(paths) == 3 * 6  # spread, loss and 1-NN of six runs
    texts = " ".join(one.text or "" for one in picture.iter("{http://www.w3.org/2000/svg}text"))
    assert MARKED in texts and BARE in texts and "seeds 0, 1, 2" in texts and SMALL in texts


def test_the_first_run_is_kept(proof: Path) -> None:
    """The artifacts go on from its checkpoint, and the encoder that came out is the one that is in it."""
    session = gradcut.TrainingSession(proof)
    assert session.steps == 600
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(proof / "encoder.onnx").graph.initializer}
    now = {**session.parameters(), **session.state()}
    assert all(np.array_equal(array, now[name]) for name, array in weights.items())
    stock = InferenceSession(str(proof / "encoder.onnx"), providers=["CPUExecutionProvider"])
    assert np.isfinite(stock.run(None, {"image": plain.digits()[0][:4]})[0]).all()


def test_a_run_is_repeatable_and_one_run_has_one_curve(tmp_path: Path) -> None:
    for name in ("a", "b"):
        made = good("recipe", SMALL, plain.encoder_file(), "--data", DATA, "-o", tmp_path / name, "--epochs", 1)
        assert made.line("recipe") == f"{SMALL} (non-contrastive)" and made.line("feeds") == "view1, view2"
    for file in ("metrics.jsonl", "curves.svg", "encoder.onnx", "training_model.onnx"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    assert list(records(tmp_path / "a")) == [("simsiam", 0)]


def test_without_data_it_only_compiles(tmp_path: Path) -> None:
    good("recipe", SMALL, plain.encoder_file(), "-o", tmp_path / "a", "--no-stop-gradient")
    assert not (tmp_path / "a" / "metrics.jsonl").exists()
    views = dict(zip(("view1", "view2"), plain.view_batches(1, 8, 0)[0], strict=True))
    assert gradcut.TrainingSession(tmp_path / "a").step(views).step == 1
    model = gradcut.load(tmp_path / "a" / "model.onnx")
    assert not any(node.domain == "gradcut" for node in model.graph)


@pytest.mark.parametrize("recipe", ["byol:projector=32,dim=16,predictor=32", "moco:projector=32,dim=16,queue=256"])
@pytest.mark.parametrize("more", [[], ["--freeze", "conv1*"]])
def test_other_recipes_train_too(recipe: str, more: list[str], tmp_path: Path) -> None:
    args = plain.encoder_file(), "--data", DATA, "-o", tmp_path / "a", "--epochs", 2
    said = good("recipe", recipe, *args, "--optimizer", "sgd:lr=0.05", *more)
    if "byol" in recipe:
        assert said.line("recipe") == f"{recipe},steps=20 (non-contrastive)"
    (lines,) = records(tmp_path / "a").values()
    assert [line["step"] for line in lines] == [0, 10, 20]
    assert not any("conv1" in block for block in lines[-1]["gradient_norms"]) if more else lines[-1]["gradient_norms"]


REFUSED: dict[str, tuple[list[Any], str]] = {
    "recipe": (["simsam", "ENCODER"], "'simsam' is no recipe. Nearest: simsiam."),
    "option": (["simsiam:width=3", "ENCODER"], "simsiam has no option 'width'."),
    "kind": (["simsiam:dim=wide", "ENCODER"], "simsiam: dim is int, not 'wide'"),
    "encoder": (["simsiam", "nope.onnx"], "nope.onnx: there is no such file"),
    "embedding": (
        ["simsiam", "ENCODER", "--embedding", "feature"],
        "the encoder has no value 'feature'. Nearest: feat",
    ),
    "data": (["simsiam", "ENCODER", "--data", "nope.npz"], "nope.npz: no such file"),
    "augment": (["simsiam", "ENCODER", "--augment", "blur=1"], "'blur' is no way to augment."),
    "amount": (["simsiam", "ENCODER", "--augment", "flip=2"], "augmentation: flip is 2; it is from 0 to 1"),
    "epochs": (["simsiam", "ENCODER", "--epochs", 0], "0 epochs and 1 seeds: at least one of each is trained"),
    "mark": (["simsiam:stop_gradient=false", "ENCODER", "--compare"], "simsiam: there is no mark to take out"),
    "twice": (["simsiam", "ENCODER", "--train", "conv9.*"], "'conv9.*' matches no parameter and no module scope."),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes_write_nothing(case: str, tmp_path: Path) -> None:
    args, message = REFUSED[case]
    given = [plain.encoder_file() if one == "ENCODER" else one for one in args]
    assert refused("recipe", *given, "-o", tmp_path / "out").startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedule", "cosin"], "'cosin' is no schedule"),
        (["--schedule", "cosine:warmup=9999"], "warmup"),
        (["--eval-split", 1.5], "the share of images that are held out is 1.5"),
        (["--batch-size", 0], "make no batch of 0"),
        (["--seeds", 0], "60 epochs and 0 seeds"),
        (["--optimizer", "sgdd"], "'sgdd' is no optimizer"),
    ],
)
def test_options_that_do_not_fit_cost_nothing(options: list[Any], message: str, tmp_path: Path) -> None:
    args = "recipe", SMALL, plain.encoder_file(), "--data", DATA, "-o", tmp_path / "out"
    assert message in refused(*args, *options)
    assert not (tmp_path / "out").exists()


UNFIT = {
    "flat": (lambda images: images.reshape(len(images), -1), "images are floats [N, C, H, W], called 'image' or alone"),
    "few": (lambda images: images[:50], "38 images make no batch of 128"),
    "wide": (
        lambda images: images.repeat(2, 3),
        "feed 'view1' has shape [128, 1, 8, 16]; the graph takes",
    ),
    "double": (lambda images: images.astype(np.float64), "feed 'view1' is float64; the graph takes float32"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_data_that_do_not_fit_cost_nothing(case: str, tmp_path: Path) -> None:
    change, message = UNFIT[case]
    np.savez(tmp_path / "data.npz", image=change(plain.digits()[0]))
    args = "recipe", SMALL, plain.encoder_file(), "--data", tmp_path / "data.npz", "-o", tmp_path / "out"
    assert message in refused(*args)
    assert not (tmp_path / "out").exists()
