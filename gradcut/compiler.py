"""`compile`: what the user asked for -> a pipeline -> artifacts."""

from __future__ import annotations

import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from typing import Any, cast

import numpy as np
import onnx_ir as ir

from gradcut import ort_graphs
from gradcut.activity import NO_PATH, Activity, Flow, FlowGraph
from gradcut.artifacts import SCHEMA, VERSION, TrainingArtifacts
from gradcut.cost import Cost, estimate
from gradcut.dialect import is_mark, reported_name
from gradcut.errors import GradcutWarning, LossError, NothingTrainsError, SpecError
from gradcut.graphs import StepNames, Trained, name_trained, optimizer_graph, signature, step_graph
from gradcut.losses import Objective, as_text
from gradcut.ops import Builder, Names
from gradcut.optimizers import AdamW, Group, Groups, Optimizer, UpdatePlan, UpdateRequest, as_groups, parse_optimizer
from gradcut.parameters import Decision, is_bias_or_norm
from gradcut.passes import (
    AttachLoss,
    Differentiate,
    Emit,
    Fold,
    Import,
    Lower,
    Pass,
    Pipeline,
    Propagate,
    Simplify,
    Specialize,
    StopGradient,
)
from gradcut.passes.base import ACTIVITY, DECISIONS, FROZEN, GRADIENTS, LOSS, PIPELINE, TRAINABLE, read_json
from gradcut.passes.importer import inline, name_nodes
from gradcut.passes.loss import attach_graph
from gradcut.passes.pipeline import Watch, collection_held
from gradcut.passes.propagate import main_values
from gradcut.passes.random import DRAWS
from gradcut.passes.specialize import MODES, STATE
from gradcut.passes.stop_gradient import insert_marks
from gradcut.rules import REGISTRY
from gradcut.shared import merged, twins
from gradcut.source import Source, own
from gradcut.spec import as_patterns, match_values
from gradcut.text import join_names

Patterns = str | Sequence[str]
#: The lowest onnxruntime that takes what is emitted, by opset.
RUNTIMES = {21: "1.20", 22: "1.20", 23: "1.22", 24: "1.23", 25: "1.25", 26: "1.26"}


@dataclass(frozen=True)
class Request:
    """One compilation, with everything said in one form."""

    loss: str
    train: tuple[str, ...]
    freeze: tuple[str, ...]
    stop_at: tuple[str, ...]
    optimizer: Optimizer
    target: str
    strict: bool
    batch_norm: str
    dropout: str
    seed: int
    groups: tuple[Group, ...] = ()
    no_decay: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None
    ema: float | None = None

    def __post_init__(self) -> None:
        _ = self.update  # what cannot be is said before anything is done

    @property
    def update(self) -> UpdateRequest:
        """What is asked of the optimizer."""
        return UpdateRequest(self.optimizer, self.groups, self.no_decay, self.clip_norm, self.clip_value, self.ema)

    def head(self) -> Pipeline:
        """Up to the loss; what comes after depends on whether there is one."""
        choose = StopGradient(at=self.stop_at, train=self.train, freeze=self.freeze, choose=True)
        return Pipeline((Import(), choose, Fold(), AttachLoss(spec=self.loss)))

    def tail(self, has_loss: bool) -> Pipeline:
        return Pipeline((*self.backward(has_loss), Lower(target=self.target), Emit()))

    def backward(self, has_loss: bool) -> tuple[Pass, ...]:
        return (
            Propagate(),
            Specialize(batch_norm=self.batch_norm, dropout=self.dropout),
            Differentiate(seed="one" if has_loss else "input", keep=True, unreached="drop"),
            Simplify(),
        )


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
        verify_each: check the model after every pass. watch: called after every pass with it, the model, seconds.

    Raises:
        GradcutError: see `gradcut.errors`; nothing is written.
    """
    request = Request(
        loss=as_text(loss) or "",
        train=as_patterns(train),
        freeze=as_patterns(freeze),
        stop_at=as_patterns(stop_at),
        optimizer=_optimizer(optimizer),
        target=target,
        strict=strict,
        batch_norm=batch_norm,
        dropout=dropout,
        seed=_seed(seed),
        groups=as_groups(groups),
        no_decay=no_decay,
        clip_norm=clip_norm,
        clip_value=clip_value,
        ema=ema,
    )
    given = own(model)
    with collection_held():
        work, head = with_loss(given, request, loss, verify_each, watch)
        artifacts = _Compilation(request, given, work, head, verify_each, watch).artifacts()
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


def _seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not -(2**63) <= seed < 2**63:
        raise SpecError(f"seed is an integer of 64 bits, not {seed!r}")
    return int(seed)


def _optimizer(optimizer: Optimizer | str | None) -> Optimizer:
    if isinstance(optimizer, str):
        return parse_optimizer(optimizer)
    if optimizer is not None and not isinstance(optimizer, Optimizer):
        raise SpecError(
            f"an optimizer is gradcut.SGD(...), gradcut.AdamW(...) or text such as 'adamw:lr=1e-3', not {optimizer!r}"
        )
    return optimizer if optimizer is not None else AdamW()


class _Compilation:
    """From a model with its loss attached to artifacts."""

    def __init__(
        self,
        request: Request,
        given: ir.Model,
        work: ir.Model,
        head: Pipeline,
        verify_each: bool,
        watch: Watch | None,
    ) -> None:
        self.request, self.given, self.work = request, given, work
        self.loss = read_json(work, LOSS)
        if request.target == ort_graphs.TARGET:
            ort_graphs.require(work, request.update, self.loss is not None)
        self.pipeline = Pipeline((*head.passes, *request.tail(self.loss is not None).passes))
        self.forward = work.clone()
        self.values = main_values(self.forward.graph)
        self.decisions = self._chosen_from(work.meta[DECISIONS])
        self.user_inputs = [value.name for value in given.graph.inputs if value.name not in given.graph.initializers]
        tail = Pipeline(self.pipeline.passes[len(head.passes) :])
        self.cost: Cost | None = None
        tail.run(work, verify_each=verify_each, watch=self._watched(watch))
        self.activity: Activity = work.meta[ACTIVITY]
        self.gradients = read_json(work, GRADIENTS)
        self.state = read_json(work, STATE) or {}
        self.draws = read_json(work, DRAWS) or {}
        self.modes = read_json(work, MODES) or {}
        self._check_reached()
        self.plan, self.groups, self.spared = self._resolved()

    def _resolved(self) -> tuple[UpdatePlan, dict[str, list[int]], list[str]]:
        known = self.values
        return self.request.update.resolve(
            self.forward.graph, list(self.gradients["wrt"]), lambda name: is_bias_or_norm(known[name])
        )

    def _chosen_from(self, decisions: dict[str, Decision]) -> dict[str, Decision]:
        """As when the trainables were chosen: what `fold` makes a Constant, or a loss brings, is no parameter."""
        return {name: replace(one, value=self.values.get(name, one.value)) for name, one in decisions.items()}

    def _watched(self, watch: Watch | None) -> Watch:
        """Costs are estimated on the simplified graph, before lowering."""

        def see(one: Pass, model: ir.Model, seconds: float) -> None:
            if isinstance(one, Simplify):
                self.cost = estimate(model.graph)
            if watch is not None:
                watch(one, model, seconds)

        return see

    def _check_reached(self) -> None:
        lost = self._overlooked()
        if lost and self.request.strict:
            raise SpecError(
                f"strict: {join_names(lost, 4)} stand where weights do, but the file does not name them parameters; "
                "export it with optimize=False, or name in --train what is to train"
            )
        unreached = self.gradients["unreached"]
        if unreached and (self.request.strict or not self.gradients["wrt"]):
            why = "; ".join(f"{name}: {self.blocked[name]}" for name in unreached[:8])
            what = (
                "no trainable reaches the loss"
                if not self.gradients["wrt"]
                else "strict: some trainables do not reach the loss"
            )
            raise NothingTrainsError(f"{what} ({why})")

    # --- graphs ----------------------------------------------------------------------------------------------

    def artifacts(self) -> TrainingArtifacts:
        request, work = self.request, self.work
        names = Names.of(work)
        scalars = StepNames(
            learning_rate=names.fresh("learning_rate"),
            step=self.draws.get("step") or names.fresh("step"),
            step_next=names.fresh("step_next"),
            seed=self.draws.get("seed"),
            gradient_norm=names.fresh("gradient_norm") if self.plan.clip_norm is not None else None,
        )
        if request.target == ort_graphs.TARGET:
            trained, graphs = ort_graphs.build(work, request.optimizer, self.gradients["wrt"], self.state)
        else:
            trained = name_trained(work, self.gradients["wrt"], self.plan, names)
            graphs = {
                "training_model": work,
                "optimizer_model": optimizer_graph(self.plan, trained, scalars, work.opset_imports[""]),
                "step_model": step_graph(work, self.plan, trained, scalars, self.state),
            }
        graphs["eval_model"] = self._evaluation([one.name for one in trained])
        for graph in graphs.values():
            _sign(graph, self.pipeline)
        return TrainingArtifacts(
            {"model": self._marked([one.name for one in trained]), **graphs},
            tensors=self._tensors(trained),
            manifest=self._manifest(graphs, trained, scalars),
            start={"step": 0, "seed": request.seed, "optimizer": request.optimizer.spec(), "extra": {}},
        )

    def _evaluation(self, trained: Sequence[str]) -> ir.Model:
        passes = (
            Specialize(batch_norm="eval", dropout="eval", draws=False),
            Lower(target=self.request.target),
            Emit(inputs=(*trained, *self.state)),
        )
        model = Pipeline(passes).run(self.forward.clone())
        b = Builder(Names.of(model))
        for position, value in enumerate(model.graph.outputs):
            if value.producer() is None:  # an input or a weight, copied under the name it has in the training graph
                copy = b.op("Identity", value, dtype=value.dtype, shape=value.shape)
                copy.name = self.gradients["of"][value.name]
                model.graph.outputs[position] = copy
        model.graph.extend(b.nodes)
        return model

    def _marked(self, trained: Sequence[str]) -> ir.Model:
        """The model as it was given, with the marks and freezes that were asked for.

        Its functions are inlined where what trains, or a mark, is inside one.
        """
        given, places = self.given, self.request.stop_at
        known = main_values(given.graph)
        if not (known.keys() >= set(trained) and all(_matches(pattern, given.graph) for pattern in places)):
            inline(given)
        unnamed = {node: node.name for node in given.graph.all_nodes()}
        name_nodes(given)  # as the import named them, so that ``value->node`` finds them here too
        found = [pattern for pattern in places if _matches(pattern, given.graph)]
        insert_marks(given, match_values(found, given.graph), "stop-at")
        for node, name in unnamed.items():
            node.name = name
        StopGradient()(given)
        given.metadata_props[FROZEN] = self.forward.metadata_props.get(FROZEN, "[]")
        return given

    def _tensors(self, trained: Sequence[Trained]) -> dict[str, np.ndarray]:
        """What the checkpoint starts with: every trained parameter, its slots, the state that moves."""
        tensors: dict[str, np.ndarray] = {}
        for one in trained:
            tensors[one.name] = _array(self.values[one.name])
            for slot, name in one.slots.items():
                tensors[name] = self.plan.initial(one.name, slot, tensors[one.name], one.slot_dtype.numpy())
        for name in self.state:
            tensors[name] = _array(self.values[name])
        return tensors

    # --- manifest --------------------------------------------------------------------------------------------

    def _manifest(
        self, graphs: Mapping[str, ir.Model], trained: Sequence[Trained], scalars: StepNames
    ) -> dict[str, Any]:
        request = self.request
        opset = self.work.opset_imports[""]
        roles = self._roles(trained, scalars)
        on_ort = request.target == ort_graphs.TARGET
        own = {name: ort_graphs.roles(name, trained, self.state) if on_ort else {} for name in graphs}
        signatures = {name: signature(graph, roles | own[name]) for name, graph in graphs.items()}
        ports = {port["name"] for one in signatures.values() for port in (*one["inputs"], *one["outputs"])}
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "producer": _versions(),
            "target": request.target,
            "opset": opset,
            "runtime": ort_graphs.RUNTIME if on_ort else {"onnxruntime": f">={RUNTIMES.get(opset, '1.26')}"},
            "pipeline": str(self.pipeline),
            "loss": self.loss,
            "optimizer": self._described(),
            "seed": request.seed,
            "names": {key: name if name in ports else None for key, name in asdict(scalars).items()},
            "graphs": signatures,
            "trainable": [self._trainable(one) for one in trained],
            "state": self.state,
            "renamed": {now: name for name, now in self.gradients["of"].items() if now != name},
            "parameters": self._parameters({one.name for one in trained}),
            "batch_norm": self.modes,
            "unreached": {name: self.blocked[name] for name in self.gradients["unreached"]},
            "warnings": list(self._warnings()),
            "cut": [edge._asdict() for edge in self.activity.cut],
            "cost": self.cost.as_dict() if self.cost is not None else {},
        }

    def _described(self) -> dict[str, Any]:
        """How parameters are updated; the optimizer of each, with its options, is at the trainables."""
        update = self.request.update
        return {
            "spec": update.optimizer.spec(),
            "name": update.optimizer.name,
            "lr": update.optimizer.lr,
            "groups": [{"pattern": group.pattern, "options": dict(group.options)} for group in update.groups],
            "no_decay": self.spared,
            "clip_norm": update.clip_norm,
            "clip_value": update.clip_value,
            "ema": update.ema,
        }

    def _trainable(self, one: Trained) -> dict[str, Any]:
        return {
            "name": one.name,
            "gradient": one.gradient,
            "slots": dict(one.slots),
            "next": dict(one.next),
            "optimizer": self.plan.of(one.name).spec(),
            "groups": self.groups[one.name],
        }

    def _warnings(self) -> Iterator[str]:
        """What was asked for and cannot be, a sentence each."""
        lost = self._overlooked()
        if lost:
            yield (
                f"{join_names(lost, 3)} {'stands' if len(lost) == 1 else 'stand'} where weights do, but the file does "
                "not name them parameters, as torch's exporter leaves it with optimize=True: they stay as they are, "
                "unless --train names them exactly; export with optimize=False to keep every parameter"
            )
        yield from self._merged()
        yield from self._twins()
        if self.request.dropout == "train" and not any(n.op_type == "Dropout" for n in self.forward.graph.all_nodes()):
            yield "dropout=train, but the file holds no Dropout: the exporter has removed it"
        if self.request.batch_norm == "train" and not self.modes:
            yield "batch_norm=train, but the file holds no BatchNormalization"

    def _merged(self) -> Iterator[str]:
        """Weights of fresh modules, of which the exporter made one."""
        found = merged(self.given.graph, dict.fromkeys(self.gradients["wrt"]))
        if found:
            listed = join_names((f"{name} in {count} modules" for name, count in found.items()), 3)
            yield (
                f"weights of equal content seem merged by the exporter's optimizer, and train as one ({listed}): "
                "export with torch.onnx.export(..., dynamo=True, optimize=False) to train each of them"
            )

    def _twins(self) -> Iterator[str]:
        """A tied weight that was written twice."""
        trained = {*self.gradients["wrt"]}
        found = [pair for pair in twins(self.decisions.values()) if trained & {*pair}]
        if found:
            listed = join_names((" and ".join(pair) for pair in found), 3)
            yield (
                f"the file holds a weight twice, as exporters write a tied one ({listed}): trained, the two no longer "
                "agree; export with torch.onnx.export(..., dynamo=True, optimize=False), or freeze them"
            )

    def _overlooked(self) -> list[str]:
        """Weights that nobody named, where every parameter was to train."""
        if self.request.train:
            return []
        return [name for name, decision in self.decisions.items() if decision.overlooked]

    def _roles(self, trained: Sequence[Trained], scalars: StepNames) -> dict[str, str]:
        roles = {name: "user" for name in self.user_inputs if name}
        loss = self.loss or {"inputs": [], "loss": None}
        roles |= dict.fromkeys(loss["inputs"], "label")
        roles |= dict.fromkeys(self.gradients["seeds"].values(), "cotangent")
        roles |= dict.fromkeys(self.gradients["of"].values(), "output")
        roles |= {one.name: "parameter" for one in trained}
        roles |= {one.gradient: "gradient" for one in trained}
        roles |= {slot: "slot" for one in trained for slot in one.slots.values()}
        roles |= {name: "next" for one in trained for name in one.next.values()}
        roles |= dict.fromkeys(self.state, "state") | dict.fromkeys(self.state.values(), "next")
        roles |= {scalars.learning_rate: "learning_rate", scalars.step: "step", scalars.step_next: "next"}
        if scalars.gradient_norm is not None:
            roles[scalars.gradient_norm] = "gradient_norm"
        if scalars.seed is not None:
            roles[scalars.seed] = "seed"
        if loss["loss"] is not None:
            roles[loss["loss"]] = "loss"
        return roles

    def _parameters(self, trained: set[str]) -> list[dict[str, Any]]:
        frozen = set(read_json(self.forward, FROZEN) or ())
        wanted = set(read_json(self.forward, TRAINABLE) or ())
        listed, given = [], main_values(self.given.graph)
        for name, decision in self.decisions.items():
            hidden = name not in given  # inside a function of the model's, which stays one where nothing in it trains
            if hidden or (decision.kind != "parameter" and name not in wanted):
                continue
            status = "trained" if name in trained else "frozen" if name in frozen else "not-trained"
            if name in self.gradients["unreached"]:
                status = "unreached"
            listed.append({"name": name, "shape": list(decision.shape), "status": status, "reason": decision.reason})
        return listed

    @property
    def blocked(self) -> dict[str, str]:
        """For each trainable that the loss does not reach: what cut it off."""
        of = [self.loss["loss"]] if self.loss else list(self.gradients["seeds"])
        return blocked_by(self.forward, of, self.gradients["unreached"])


def blocked_by(model: ir.Model, of: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """For each value that has no gradient: the first uses on its ways to `of` that let none through, as one line."""
    if not names:
        return {}
    flow, known = FlowGraph(model.graph, REGISTRY), main_values(model.graph)
    to_output = flow.backward([known[name] for name in of if name in known], lambda _: True)
    lines = {}
    for name in names:
        carrying = flow.forward([known[name]], lambda one: one.blocked is None)
        blocked = (one for one in flow.flows if one.blocked and one.source in carrying and one.target in to_output)
        places = dict.fromkeys(f"{one.blocked} at {reported_name(one.source)}{_consumer(one)}" for one in blocked)
        lines[name] = join_names(places, 3) or NO_PATH
    return lines


def _consumer(flow: Flow) -> str:
    return "" if is_mark(flow.node) else f" -> {flow.node.name}"


def _matches(pattern: str, graph: ir.Graph) -> bool:
    """False for what only the import has made, such as the inside of a function."""
    try:
        return bool(match_values([pattern], graph))
    except SpecError:
        return False


def _array(value: ir.Value) -> np.ndarray:
    tensor = value.const_value
    if tensor is None:
        tensor = ir.convenience.get_const_tensor(value)
    if tensor is None:
        raise LossError(f"{value.name!r} has no value to start training from")
    return np.array(tensor.numpy(), copy=True)


def _sign(model: ir.Model, pipeline: Pipeline) -> None:
    """Who made the graph, and how; passes' own notes go."""
    for key in [key for key in model.metadata_props if key.startswith("gradcut.")]:
        del model.metadata_props[key]
    model.metadata_props[PIPELINE] = str(pipeline)
    model.producer_name, model.producer_version = "gradcut", _own_version()


def _own_version() -> str:
    try:
        return metadata.version("gradcut")
    except metadata.PackageNotFoundError:  # a run from the checkout
        return "0"


def _versions() -> dict[str, str]:
    packages = {name: metadata.version(name) for name in ("onnx", "onnx_ir", "numpy")}
    return {"gradcut": _own_version(), "python": platform.python_version(), **packages}


__all__ = ["Request", "blocked_by", "compile", "with_loss"]
