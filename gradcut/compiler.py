"""`compile`: what the user asked for -> a pipeline -> artifacts."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradcut.artifacts import TrainingArtifacts
from gradcut.build import Asked, of_one, of_phases, of_steps
from gradcut.errors import GradcutWarning, SpecError
from gradcut.losses import Objective, as_text
from gradcut.optimizers import Groups, Optimizer, UpdateRequest, as_groups
from gradcut.passes.importing.straight_through import allow
from gradcut.passes.pipeline import Watch, collection_held
from gradcut.phases import Phase, as_phases
from gradcut.request import Request, as_optimizer, as_seed
from gradcut.source import Source, own
from gradcut.spec import as_patterns
from gradcut.state import State, as_states
from gradcut.steps import Patterns, Step, check_steps


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
    steps: Mapping[str, Step] | None = None,
    phases: Sequence[Phase | str] | None = None,
    state: State | Sequence[State] = (),
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
            (a path, ``FILE.onnx:its_input=model_output``, or a model), a scalar float output of the model by its name,
            several as ``mse:output=a + 0.5*l1:output=b`` or as a list whose items may be (factor, loss); or None: the
            only scalar float output is the loss, and without one the cotangents are inputs.
        train: patterns over parameters and module scopes; None: every parameter.
        freeze: likewise; joined with what the model itself freezes, and wins over `train`.
        stop_at: patterns over values, scopes and single uses, for marks that stay in the model.
        optimizer: AdamW() by default.
        strict: a trainable that the loss does not reach is an error; otherwise it is left out of training and said.
        batch_norm, dropout: ``auto``, ``train`` or ``eval``; see `gradcut.passes.Specialize`.
        seed: what Dropout draws from.
        steps: several players or objectives over one set of parameters, by name. What is said of a step alone (loss,
            train, groups, no_decay, clip_norm, clip_value) is then said in its `Step`; `freeze` and `stop_at` hold for
            all of them, `optimizer`, `batch_norm` and `dropout` for those that say none.
        phases: `Phase` or texts, ``["epochs=2,train=head.*", "epochs=3,train=layer4.*,head.*"]``: what trains changes
            as training goes on; `train` is said in them. `gradcut train` goes through them.
        state: tensors that move by graphs of their own after the optimizer, `State` and `EMA`; of several steps, each
            moves those whose update it has the values for, and trains one of the parameters that it reads.
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
    alone = {"loss": loss, "train": train, "groups": groups, "clip_norm": clip_norm, "clip_value": clip_value}
    only = Step(
        loss=loss,
        train=train,
        freeze=freeze,
        stop_at=stop_at,
        optimizer=optimizer,
        groups=groups,
        no_decay=no_decay,
        clip_norm=clip_norm,
        clip_value=clip_value,
        batch_norm=batch_norm,
        dropout=dropout,
    )
    common: dict[str, Any] = {"target": target, "strict": strict, "seed": as_seed(seed)}
    given, states = own(model), as_states(state)
    if states and target != "onnx":
        raise SpecError(f"declared state is compiled for the target onnx; {target} knows none")
    allow(given, quantized)
    with collection_held():
        if steps is not None:
            _require_alone({**alone, "ema": ema, "no_decay": no_decay or None, "phases": phases})
            artifacts = of_steps(given, _players(steps, only, common, states), verify_each, watch)
        elif phases is not None:
            found = as_phases(phases)
            asked = [Asked(one, loss, states) for one in _phased(found, only, {**common, "ema": ema})]
            artifacts = of_phases(given, asked, [one.epochs for one in found.values()], verify_each, watch)
        else:
            artifacts = of_one(given, Asked(_request(only, ema=ema, **common), loss, states), verify_each, watch)
    for text in (*artifacts.manifest["warnings"], *_flat(artifacts)):
        warnings.warn(text, GradcutWarning, stacklevel=2)
    return artifacts


def _flat(artifacts: TrainingArtifacts) -> Iterator[str]:
    """What trains no more because every way to the loss is flat: what else is left out was cut on purpose."""
    for one in artifacts.steps.values() or (artifacts,):
        for name, why in one.manifest["unreached"].items():
            if why.startswith("zero-derivative"):
                yield f"{name} gets no gradient and is left out of training: {why}"


def _request(one: Step, ema: float | None = None, phased: bool = False, **common: Any) -> Request:
    clips = one.clip_norm, one.clip_value
    update = UpdateRequest(as_optimizer(one.optimizer), as_groups(one.groups), one.no_decay, *clips, ema, phased)
    return Request(
        loss=as_text(one.loss) or "",
        train=as_patterns(one.train),
        freeze=as_patterns(one.freeze),
        stop_at=as_patterns(one.stop_at),
        update=update,
        batch_norm=one.batch_norm or "auto",
        dropout=one.dropout or "auto",
        outputs=as_patterns(one.outputs),
        **common,
    )


def _players(
    steps: Mapping[str, Step], every: Step, common: Mapping[str, Any], states: tuple[State, ...]
) -> list[Asked]:
    """Each step with what is said for all of them."""
    check_steps(steps)
    _require_onnx(common["target"])
    asked = []
    for name, step in steps.items():
        whole = replace(
            step,
            freeze=(*as_patterns(every.freeze), *as_patterns(step.freeze)),
            stop_at=(*as_patterns(every.stop_at), *as_patterns(step.stop_at)),
            optimizer=every.optimizer if step.optimizer is None else step.optimizer,
            batch_norm=every.batch_norm if step.batch_norm is None else step.batch_norm,
            dropout=every.dropout if step.dropout is None else step.dropout,
        )
        asked.append(Asked(_request(whole, step=name, narrow=True, **common), step.loss, states))
    return asked


def _phased(phases: Mapping[str, Phase], every: Step, common: Mapping[str, Any]) -> list[Request]:
    """The request of each phase."""
    _require_onnx(common["target"])
    if every.train is not None:
        raise SpecError("with phases=, train belongs into the phases: gradcut.Phase(epochs=..., train=...)")
    optimizer = as_optimizer(every.optimizer)
    requests = []
    for name, phase in phases.items():
        whole = replace(
            every,
            train=phase.train,
            freeze=(*as_patterns(every.freeze), *as_patterns(phase.freeze)),
            stop_at=(*as_patterns(every.stop_at), *as_patterns(phase.stop_at)),
            optimizer=optimizer if phase.lr is None else replace(optimizer, lr=phase.lr),
        )
        requests.append(_request(whole, phased=True, step=name, **common))
    return requests


def _require_onnx(target: str) -> None:
    if target != "onnx":
        raise SpecError(f"several steps or phases are compiled for the target onnx; {target} takes one")


def _require_alone(said: Mapping[str, Any]) -> None:
    """Raise where what belongs into a step is said beside the steps."""
    named = [name for name, value in said.items() if value is not None]
    if named:
        if named[0] == "phases":
            raise SpecError("steps= and phases= exclude each other")
        raise SpecError(f"with steps=, {named[0]} belongs into the step: gradcut.Step({named[0]}=...)")
