"""``gradcut compile``: a model -> training artifacts."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated

import typer

from gradcut.cli.console import PassWatch, PrintAfter, TimePasses, VerifyEach, rows, warn


def command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="An .onnx file, or text (.onnxtxt, .textproto, .json).")
    ],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="DIR", help="Where to write; by default <stem>.gradcut.")
    ] = None,
    loss: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LOSS|FILE.onnx",
            help="cross_entropy:output=logits,axis=1; nll, bce_with_logits, mse, l1, huber, smooth_l1, kl_div, cosine, "
            "neg_cosine; or a scalar output. Several add up: 'mse:output=a + 0.5*l1:output=b'.",
        ),
    ] = None,
    new_head: Annotated[
        list[str] | None,
        typer.Option(metavar="K|OUTPUT=K", help="A fresh last layer of K classes, drawn from --seed."),
    ] = None,
    train: Annotated[
        list[str] | None, typer.Option(metavar="P", help="Parameters or module scopes that train; all by default.")
    ] = None,
    freeze: Annotated[
        list[str] | None, typer.Option(metavar="P", help="Parameters or module scopes that do not; wins over --train.")
    ] = None,
    stop_at: Annotated[
        list[str] | None,
        typer.Option(metavar="P", help="Values, scopes, value->node or scope->scope where gradients stop."),
    ] = None,
    phase: Annotated[
        list[str] | None,
        typer.Option(
            metavar="OPTIONS", help="'epochs=2,train=head.*,lr=1e-3', one after the other; also freeze, stop_at."
        ),
    ] = None,
    optimizer: Annotated[
        str, typer.Option(metavar="SPEC", help="adamw:lr=1e-3; sgd, adam, rmsprop, adagrad, lars, lamb.")
    ] = "adamw",
    group: Annotated[
        list[str] | None, typer.Option(metavar="P:OPTIONS", help="Options of some parameters: 'head.*:lr=1e-2'.")
    ] = None,
    no_decay: Annotated[bool, typer.Option("--no-decay", help="No weight decay on biases and norms.")] = False,
    clip_norm: Annotated[float | None, typer.Option(help="Bound of the norm of all gradients together.")] = None,
    clip_value: Annotated[float | None, typer.Option(help="Bound of each element of a gradient.")] = None,
    ema: Annotated[float | None, typer.Option(help="Keep running averages of parameters, such as 0.999.")] = None,
    target: Annotated[str, typer.Option(help="onnx or ort-training.")] = "onnx",
    batch_norm: Annotated[str, typer.Option(metavar="M", help="auto, train or eval.")] = "auto",
    dropout: Annotated[str, typer.Option(metavar="M", help="auto, train or eval.")] = "auto",
    seed: Annotated[int, typer.Option(help="What Dropout and --new-head draw from.")] = 0,
    quantized: Annotated[str, typer.Option(metavar="Q", help="refuse or straight-through.")] = "refuse",
    strict: Annotated[bool, typer.Option("--strict", help="A trainable the loss does not reach is an error.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a DIR that was trained.")] = False,
    print_ir_after: PrintAfter = None,
    verify_each: VerifyEach = False,
    time_passes: TimePasses = False,
) -> None:
    """Compile MODEL into training graphs."""
    from gradcut.artifacts import check_target
    from gradcut.compiler import compile
    from gradcut.errors import GradcutWarning
    from gradcut.report import summarize
    from gradcut.source import load
    from gradcut.text import counted

    objective = loss or None
    folder = output if output is not None else Path(f"{Path(model).stem}.gradcut")
    check_target(folder, force)
    watch = PassWatch(print_ir_after, time_passes)
    warnings.simplefilter("ignore", GradcutWarning)  # the summary says them
    given = load(model)  # once: a file may be large
    if new_head:
        from gradcut.heads import with_new_heads

        given = with_new_heads(given, new_head, objective, seed)
    artifacts = compile(
        given,
        loss=objective,
        train=train,
        freeze=freeze or (),
        stop_at=stop_at or (),
        phases=phase or None,
        optimizer=optimizer,
        groups=group or (),
        no_decay=no_decay,
        clip_norm=clip_norm,
        clip_value=clip_value,
        ema=ema,
        target=target,
        strict=strict,
        batch_norm=batch_norm,
        dropout=dropout,
        seed=seed,
        quantized=quantized,
        verify_each=verify_each,
        watch=watch.watch,
    )
    artifacts.save(folder, force=force)
    watch.report()
    everything = not (train or freeze or stop_at or phase)
    told: list[tuple[str, str]] = []
    warned: dict[str, None] = {}
    for name, one in (artifacts.steps or {"": artifacts}).items():
        summary = summarize(one, given, objective, batch_norm, dropout, everything)
        lasts = artifacts.manifest["phases"][name] if name else 0
        told += [*([(name, counted(lasts, "epoch"))] if name else []), *summary.rows()]
        warned |= dict.fromkeys(summary.warnings())
    rows([*told, ("files", f"{folder}/ (training_model.onnx, checkpoint.safetensors, manifest.json, ...)")])
    for warning in warned:
        warn(warning)
