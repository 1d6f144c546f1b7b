"""`compile`: what the user asked for -> a pipeline -> artifacts."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import cast

import onnx_ir as ir

from gradcut.artifacts import TrainingArtifacts
from gradcut.compilation import Compilation
from gradcut.errors import GradcutWarning
from gradcut.losses import Objective, as_text
from gradcut.manifest import manifest
from gradcut.optimizers import Groups, Optimizer, UpdateRequest, as_groups
from gradcut.passes import Pipeline
from gradcut.passes.importing.straight_through import allow
from gradcut.passes.loss import attach_graph
from gradcut.passes.pipeline import Watch, collection_held
from gradcut.request import Request, as_optimizer, as_seed
from gradcut.source import Source, own
from gradcut.spec import as_patterns

Patterns = str | Sequence[str]


def compile(
    model: Source,
    loss: Objective = None,
    train: Patterns | None = None,
    freeze: Patterns = (),
    stop_at: Patterns = (),
    optimizer: Optimizer | str | None = None,
    target: str = "onnx",
    strict: bool = False,
    batch_norm: str = "auto",
    dropout: str = "auto",
    seed: int = 0,
    *,
    groups: Groups | None = None,
    no_decay: bool = False,
    clip_norm: float | None = None,
    clip_value: float | None = None,
    ema: float | None = None,
    quantized: str = "refuse",
    verify_each: bool = False,
    watch: Watch | None = None,
) -> TrainingArtifacts:
    """Compile a model into training graphs.

    Args:
        model: a path, a proto or an IR model; it is not changed.
        loss: ``cross_entropy:output=logits,axis=1`` or `gradcut.losses.CrossEntropy` of the same options, a loss graph
            (a path, ``FILE.onnx:its_input=model_output``, or a model), several as ``mse:output=a + 0.5*l1:output=b`` or
            as a list whose items may be (factor, loss); or None: a scalar float output is the loss, and without one the
            cotangents are inputs.
        train: patterns over parameters and module scopes; None: every parameter.
        freeze: likewise; joined with what the model itself freezes, and wins over `train`.
        stop_at: patterns over values, scopes and single uses, for marks that stay in the model.
        optimizer: AdamW() by default.
        strict: a trainable that the loss does not reach is an error; otherwise it is left out of training and said.
        batch_norm, dropout: ``auto``, ``train`` or ``eval``; see `gradcut.passes.Specialize`.
        seed: what Dropout draws from.
        groups: options of the optimizer for some parameters, by the patterns that `train` takes: ``{"head.*": {"lr":
            1e-2}}``, or texts, ``["head.*:lr=1e-2"]``. Options of all groups that match add up, and of two that say the
            same the later wins. The rate of a step is the base's: a group's is that times its lr / the optimizer's lr.
        no_decay: no weight decay on biases and on the scales and biases of norms, see
            `gradcut.parameters.is_bias_or_norm`; a group that says ``weight_decay`` has its way.
        clip_norm, clip_value: bounds of the norm of all gradients together, and of each element (this one first).
        ema: the decay of running averages of the trained parameters, see `gradcut.optimizers.UpdatePlan`.
        quantized: ``refuse`` a quantised model, or ``straight-through``: pairs of QuantizeLinear and DequantizeLinear
            round as before, and their cotangent passes where nothing was clipped; the model keeps it in its metadata.
        verify_each: check the model after every pass. watch: called after every pass with it, the model, seconds.

    Raises:
        GradcutError: see `gradcut.errors`; nothing is written.
    """
    request = Request(
        loss=as_text(loss) or "",
        train=as_patterns(train),
        freeze=as_patterns(freeze),
        stop_at=as_patterns(stop_at),
        update=UpdateRequest(as_optimizer(optimizer), as_groups(groups), no_decay, clip_norm, clip_value, ema),
        target=target,
        strict=strict,
        batch_norm=batch_norm,
        dropout=dropout,
        seed=as_seed(seed),
    )
    given = own(model)
    allow(given, quantized)
    with collection_held():
        work, head = with_loss(given, request, loss, verify_each, watch)
        artifacts = _artifacts(Compilation(request, given, work, head, verify_each, watch))
    for text in artifacts.manifest["warnings"]:
        warnings.warn(text, GradcutWarning, stacklevel=2)
    return artifacts


def with_loss(
    given: ir.Model, request: Request, loss: Objective, verify_each: bool, watch: Watch | None
) -> tuple[ir.Model, Pipeline]:
    """A copy of the model with its loss attached, and the passes that did it."""
    work, head = given.clone(), request.head()
    graph = cast(Source, loss) if as_text(loss) is None else None
    if graph is not None:
        head = Pipeline(head.passes[:-1])
    head.run(work, verify_each=verify_each, watch=watch)
    if graph is not None:
        attach_graph(work, own(graph), {}, "the loss graph")
    return work, head


def _artifacts(compilation: Compilation) -> TrainingArtifacts:
    trained, scalars, graphs = compilation.graphs()
    request = compilation.request
    return TrainingArtifacts(
        {"model": compilation.marked([one.name for one in trained]), **graphs},
        tensors=compilation.tensors(trained),
        manifest=manifest(compilation, graphs, trained, scalars),
        start={"step": 0, "seed": request.seed, "optimizer": request.update.optimizer.spec(), "extra": {}},
    )
