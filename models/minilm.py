"""Fine-tune MiniLM for sentence similarity: `python -m models.minilm`.

One graph reads two sentences with one encoder and gives their cosine similarity. `models/pairs.tsv` holds pairs with a
score from 0 to 1: some from everyday life, most from the tickets of a maker of coffee machines, in words that
MiniLM cannot know: "the red drop" asks for descaling, "E4" is a jammed grinder, "the cloud" is the milk frother. The
last two of the six layers train; embeddings and four layers are frozen, and compiled as inference. A quarter of the
pairs is held out.

Export, compilation and evaluation run in processes of their own, so that the memory printed for training is training's
alone; torch is needed for the export and for nothing else. Evaluation is plain onnxruntime, on the file as exported by
torch and on the one that the session wrote.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import load_model, numpy_helper

import gradcut
from gradcut.report import summarize
from gradcut.runtime.data import split_indices

PAIRS = Path(__file__).with_name("pairs.tsv")
TRAIN = ("encoder.layer.4", "encoder.layer.5")
HELD_OUT = 0.25
SEED = 0
Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Pair:
    """Two sentences and how near they are, from 0 to 1."""

    score: float
    left: str
    right: str


def read_pairs() -> tuple[list[Pair], list[Pair]]:
    """(training, held-out) pairs of `models/pairs.tsv`."""
    with PAIRS.open(encoding="utf-8", newline="") as file:
        rows = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        pairs = [Pair(float(row["score"]), row["left"], row["right"]) for row in rows]
    return tuple([pairs[i] for i in rows] for rows in split_indices(len(pairs), HELD_OUT, SEED))


class Reader:
    """Pairs as the graph's inputs; each side is padded to its own longest sentence."""

    def __init__(self) -> None:
        from tokenizers import Tokenizer

        from models.weights import folder

        self._tokenizer = Tokenizer.from_file(str(folder() / "tokenizer.json"))
        self._tokenizer.enable_truncation(256)
        self._tokenizer.enable_padding(pad_id=0, pad_token="[PAD]")

    def __call__(self, pairs: Sequence[Pair]) -> Feeds:
        feeds: Feeds = {}
        for side in ("left", "right"):
            read = self._tokenizer.encode_batch([getattr(pair, side) for pair in pairs])
            feeds[f"{side}_ids"] = np.array([one.ids for one in read], np.int64)
            feeds[f"{side}_mask"] = np.array([one.attention_mask for one in read], np.int64)
        return feeds


def batches(pairs: Sequence[Pair], rows: int, epoch: int) -> Iterator[list[Pair]]:
    """The pairs in an order of this epoch's own, `rows` at a time."""
    order = np.random.default_rng([SEED, epoch]).permutation(len(pairs))
    for start in range(0, len(pairs), rows):
        yield [pairs[i] for i in order[start : start + rows]]


def export(path: Path) -> None:
    """Write the pair model as one ONNX file."""
    from models.sentences import export as write

    write(path)


def compile_pair(source: Path, target: Path) -> tuple[float, list[str]]:
    """Compile with the last two layers training, and save; returns the seconds of the compilation and its summary."""
    begin = time.perf_counter()
    artifacts = gradcut.compile(source, loss="mse", train=TRAIN, optimizer=gradcut.AdamW(lr=2e-4))
    seconds = time.perf_counter() - begin
    artifacts.save(target, force=True)
    return seconds, [f"{head:>10}  {text}" for head, text in summarize(artifacts, source, "mse").rows()]


def correlations(path: Path, pairs: Sequence[Pair], threads: int) -> tuple[float, float]:
    """(Spearman's, Pearson's) between scores and what a file says in plain onnxruntime; 0 threads: its own choice."""
    import onnxruntime
    from scipy import stats

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    (similarity,) = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"]).run(None, Reader()(pairs))
    scores = [pair.score for pair in pairs]
    return float(stats.spearmanr(scores, similarity).statistic), float(stats.pearsonr(scores, similarity).statistic)


def tune(session: gradcut.TrainingSession, pairs: Sequence[Pair], epochs: int, rows: int) -> list[float]:
    """Train, printing each epoch's loss; returns the seconds of each step."""
    read, seconds = Reader(), []
    for epoch in range(epochs):
        losses = []
        for batch in batches(pairs, rows, epoch):
            feeds = {**read(batch), "labels": np.array([pair.score for pair in batch], np.float32)}
            begin = time.perf_counter()
            losses.append(session.step(feeds).loss)
            seconds.append(time.perf_counter() - begin)
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.4f}", flush=True)
    return seconds


def changed(before: Path, after: Path) -> tuple[set[str], set[str]]:
    """The tensors of two files by name: (those whose bytes differ, those whose bytes are the same)."""
    first, second = (
        {i.name: numpy_helper.to_array(i).tobytes() for i in load_model(path).graph.initializer}
        for path in (before, after)
    )
    differ = {name for name in first if first[name] != second[name]}
    return differ, first.keys() - differ


def apart(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    """(result, peak bytes) of a call in a fresh process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_with_peak, function, *arguments).result()


def _with_peak(function: Callable[..., Any], *arguments: Any) -> tuple[Any, int]:
    return function(*arguments), peak_bytes()


def peak_bytes() -> int:
    """The most memory that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Export, compile, train, write back, compare."""
    parser = argparse.ArgumentParser(prog="python -m models.minilm", description="Fine-tune MiniLM on pairs.tsv.")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--threads", type=int, default=None, help="by default the cores there are")
    parser.add_argument("-o", "--output", type=Path, help="a folder that keeps pair.onnx, build/ and tuned.onnx")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.output or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        run(folder, given.epochs, given.batch_size, given.threads)


def run(folder: Path, epochs: int, rows: int, threads: int | None = None) -> tuple[float, float]:
    """The whole of it; returns Spearman's correlation on the held-out pairs (before, after).

    Args:
        folder: gets pair.onnx where it is not there yet, build/ and tuned.onnx.
    """
    given, build, tuned = folder / "pair.onnx", folder / "build", folder / "tuned.onnx"
    training, held = read_pairs()
    if not given.is_file():
        apart(export, given)
    print(f"{given.name}: {given.stat().st_size / 1e6:.0f} MB")
    (seconds, summary), peak = apart(compile_pair, given, build)
    print(*summary, sep="\n")
    print(f"compiled in {seconds:.1f} s, peak memory {peak / 1e6:.0f} MB", flush=True)
    session = gradcut.TrainingSession(build, threads=threads)
    steps = tune(session, training, epochs, rows)
    print(f"a step on {rows} pairs: {1e3 * np.median(steps):.0f} ms, peak memory {peak_bytes() / 1e6:.0f} MB")
    session.export(tuned)
    differ, same = changed(given, tuned)
    if differ != set(session.artifacts.trainable):
        raise SystemExit(
            f"tensors changed that do not train, or the reverse: {differ ^ set(session.artifacts.trainable)}"
        )
    print(f"{tuned.name}: {len(differ)} tensors trained, {len(same)} bit-identical")
    before, after = (apart(correlations, path, held, threads or 0)[0] for path in (given, tuned))
    for name, one, other in zip(("Spearman", "Pearson"), before, after, strict=True):
        print(f"{len(held)} held-out pairs, {name}'s correlation: {one:.3f} before, {other:.3f} after")
    return before[0], after[0]


if __name__ == "__main__":
    main()
