"""Pipeline text, running pipelines, and what `verify` sees."""

from __future__ import annotations

import dataclasses
import random

import onnx_ir as ir
import pytest

import gradcut
from gradcut.errors import PipelineError, VerifyError
from gradcut.passes import PASSES, Import, Pipeline, Propagate, StopGradient, verify
from tests.written import parse

TEXT = "stop-gradient{at=encoder/*},propagate{of=loss wrt=[w,b]},differentiate,simplify,lower{target=onnx}"


def test_text_is_passes_with_options() -> None:
    first, second, *_, last = Pipeline.parse(TEXT).passes
    assert first == StopGradient(at=("encoder/*",))
    assert second == Propagate(of=("loss",), wrt=("w", "b"))
    assert str(last) == "lower"  # a default is not written


def test_blanks_and_lines_do_not_matter() -> None:
    loose = " stop-gradient { at = encoder/* } ,\n propagate{ of=loss\n wrt=[ w , b ] },differentiate,simplify,lower "
    assert Pipeline.parse(loose) == Pipeline.parse(TEXT)


NAMES = ["w", "a b", "a,b", "{", "}", "[x]", "=", "'", '"', "\\", "\\'", "\n", "true", "1", "-2.5e3", "", "é→", "x\ty"]


@pytest.mark.parametrize("seed", range(50))
def test_any_pipeline_parses_back_to_itself(seed: int) -> None:
    rng = random.Random(seed)
    pipeline = Pipeline(tuple(_random_pass(rng) for _ in range(rng.randint(1, 5))))
    assert Pipeline.parse(str(pipeline)) == pipeline
    assert str(Pipeline.parse(str(pipeline))) == str(pipeline)


def _random_pass(rng: random.Random) -> gradcut.passes.Pass:
    cls = PASSES[rng.choice(sorted(PASSES))]
    chosen = [field for field in dataclasses.fields(cls) if rng.random() < 0.6]
    return cls(**{field.name: _random_value(rng, str(field.type)) for field in chosen})


def _random_value(rng: random.Random, kind: str) -> object:
    name = lambda: "".join(rng.choices(NAMES, k=rng.randint(1, 3)))
    if kind.startswith("tuple"):
        return tuple(name() for _ in range(rng.randrange(4)))
    return {"str": name(), "bool": rng.random() < 0.5, "int": rng.randint(-9, 9), "float": rng.random()}[kind]


def test_every_pass_is_known_by_its_name_and_its_defaults() -> None:
    for name, cls in PASSES.items():
        assert str(cls()) == name
        assert Pipeline.parse(name).passes == (cls(),)
        assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an empty pipeline\n  \n  ^"),
        ("simplify,", "a pass is expected here\n  simplify,\n           ^"),
        ("simplify lower", "',' is expected here\n  simplify lower\n           ^"),
        ("lower{target onnx}", "'=' is expected here\n  lower{target onnx}\n               ^"),
        ("lower{target=", "a value is expected here\n  lower{target=\n               ^"),
        ("lower{target=onnx", "an option is expected here\n  lower{target=onnx\n                   ^"),
        ("propagate{of=[a,b}", "a value is expected here\n  propagate{of=[a,b}\n                   ^"),
        ("lower{target='onnx}", "this is not pipeline text\n  lower{target='onnx}\n               ^"),
        (
            "import,simplfy",
            "there is no pass 'simplfy'; there are body-draws, capture, differentiate, emit, fold, import, loss, "
            "lower, narrow, propagate, simplify, specialize, stop-gradient\n  import,simplfy\n         ^",
        ),
        ("lower{traget=onnx}", "pass 'lower' has no option 'traget'; it has target\n  lower{traget=onnx}\n        ^"),
        (
            "lower{target=[a,b]}",
            "option 'target' of pass 'lower' takes one value, not 2\n  lower{target=[a,b]}\n        ^",
        ),
        ("lower{target=a target=b}", "option 'target' is given twice\n  lower{target=a target=b}\n                 ^"),
        (
            "differentiate{keep=1}",
            "option 'keep' of pass 'differentiate' is bool, not '1'\n  differentiate{keep=1}\n                ^",
        ),
        ("import,\nsimplify{,}", "an option is expected here\n  simplify{,}\n           ^"),
    ],
)  # fmt: skip
def test_an_error_shows_the_place(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as raised:
        Pipeline.parse(text)
    assert str(raised.value) == message


# --- running -------------------------------------------------------------------------------------------------

LINEAR = "g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { h = Mul (x, w)  y = Relu (h) }"


def test_a_pipeline_runs_in_place_and_is_a_pass_itself() -> None:
    model = ir.from_proto(parse(LINEAR))
    result = Pipeline.parse("import,propagate{of=y wrt=w},differentiate,simplify,lower")(model)
    assert result.model is model
    assert [value.name for value in model.graph.outputs] == ["y", "w_grad"]


def test_each_pass_is_watched_and_verified() -> None:
    seen: list[str] = []
    pipeline = Pipeline.parse("import,stop-gradient{at=h},propagate{of=y wrt=w},differentiate,simplify,lower")
    model = ir.from_proto(parse(LINEAR))
    pipeline.run(model, verify_each=True, watch=lambda one, model, seconds: seen.append(one.name))
    assert seen == [one.name for one in pipeline.passes]


class Break(gradcut.passes.Pass):
    """Leaves a model behind that no runtime takes."""

    name = "break"

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        model.graph.append(ir.Node("", "Relu", [], name="broken", outputs=[ir.Value(name="z")]))
        return ir.passes.PassResult(model, modified=True)


Break = dataclasses.dataclass(frozen=True)(Break)


def test_a_pass_that_breaks_the_model_is_named() -> None:
    with pytest.raises(VerifyError, match=r"^after break the model is invalid: ") as raised:
        Pipeline((Import(), Break())).run(ir.from_proto(parse(LINEAR)), verify_each=True)
    assert not raised.value.user


# --- verify --------------------------------------------------------------------------------------------------


def valid() -> ir.Model:
    model = ir.from_proto(parse(LINEAR.replace("Relu (h)", "gradcut.StopGradient (h)")))
    Import()(model)
    verify(model, "import")
    return model


def test_two_nodes_of_one_name() -> None:
    model = valid()
    model.graph[1].name = model.graph[0].name
    with pytest.raises(VerifyError, match="after it two nodes are called 'Mul_h'"):
        verify(model, "it")


def test_a_call_to_a_function_that_is_not_there() -> None:
    model = valid()
    model.functions.clear()
    with pytest.raises(VerifyError, match="node 'StopGradient_y' calls StopGradient, which the model does not hold"):
        verify(model, "it")


def test_a_call_without_one_of_its_attributes() -> None:
    text = "g (float[1,4] x) => (float[1,4] y) { y = Softmax (x) }"
    model = ir.from_proto(parse(text))
    Pipeline.parse("import,propagate{of=y wrt=x},differentiate")(model)
    verify(model, "differentiate")
    (call,) = [node for node in model.graph if node.domain == "gradcut"]
    del call.attributes["axis"]
    with pytest.raises(VerifyError, match="\\(SoftmaxGrad\\) lacks axis"):
        verify(model, "it")


def test_a_value_that_nothing_makes() -> None:
    model = valid()
    model.graph[0].replace_input_with(0, ir.Value(name="ghost"))
    with pytest.raises(VerifyError, match=r"after it the model is invalid: .*ghost"):
        verify(model, "it")


@pytest.mark.parametrize("end", ["emit", "emit,emit"])
@pytest.mark.parametrize(("wrt", "after"), [("x", []), ("h", []), ("w", ["w"])])
def test_emit_takes_whatever_was_asked_for_and_once_is_enough(wrt: str, after: list[str], end: str) -> None:
    pipeline = f"import,propagate{{of=y wrt={wrt}}},differentiate,simplify,lower,{end}"
    result = Pipeline.parse(pipeline).run(ir.from_proto(parse(LINEAR)), verify_each=True)
    assert [value.name for value in result.graph.inputs] == ["x", "y_grad", *after]
    assert [value.name for value in result.graph.outputs] == ["y", f"{wrt}_grad"]
