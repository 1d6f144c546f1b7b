"""The options of ``gradcut train``, in the groups that its help shows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

_DATA, _RATE, _JUDGE, _FILES = "Data", "Steps and learning rate", "Evaluation", "Running"


class Grouped(TyperCommand):
    """Its help lists the options by their panel."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = "Arguments" if parameter.param_type_name == "argument" else None
                panel = heading or getattr(parameter, "rich_help_panel", None) or _FILES
                groups.setdefault(panel, []).append(record)
        for name, records in groups.items():
            with formatter.section(name):
                formatter.write_dl(records)


def _option(panel: str, text: str, *names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=text, metavar=metavar, rich_help_panel=panel)


Folder = Annotated[Path, typer.Argument(metavar="DIR", help="What gradcut compile wrote.")]
Sources = Annotated[
    list[str],
    _option(
        _DATA,
        "Arrays by graph input name: an .npz, .safetensors or .parquet file; NAME=FILE.npy, repeated for every input; "
        "a folder of .npy files; or module:function, called once an epoch (with epoch= and seed= where it takes them), "
        "which yields batches.",
        metavar="F",
    ),
]
EvalSources = Annotated[list[str] | None, _option(_DATA, "Held-out data, of any of these forms.", metavar="F")]
EvalSplit = Annotated[
    float | None, _option(_DATA, "Share of the rows held out instead; 0.2 by default.", metavar="SHARE")
]
BatchSize = Annotated[int | None, _option(_DATA, "Rows a batch; 32 by default.", metavar="N")]
Seed = Annotated[int | None, _option(_DATA, "Of the split and the shuffling; 0 by default.", metavar="N")]
Epochs = Annotated[
    int | None, _option(_RATE, "Of the whole run, those before a --resume included; 1 by default.", metavar="N")
]
StepsPerEpoch = Annotated[
    int | None, _option(_RATE, "End an epoch after so many updates, if the data do not before.", metavar="N")
]
Accumulate = Annotated[int | None, _option(_RATE, "Batches an update; 1 by default.", metavar="N")]
Rate = Annotated[float | None, _option(_RATE, "Learning rate; the optimizer's own by default.", metavar="X")]
ScheduleText = Annotated[
    str | None,
    _option(
        _RATE,
        "Of the learning rate over the whole run: cosine:warmup=100, linear:final=0.1, step:every=1000, constant.",
        metavar="SPEC",
    ),
]
EvalEvery = Annotated[
    int | None, _option(_JUDGE, "Evaluate after so many updates too, not at ends of epochs alone.", metavar="N")
]
Metrics = Annotated[
    list[str] | None,
    _option(
        _JUDGE,
        "accuracy, f1, precision, recall, top5, mse, mae, r2 or loss; may be repeated. The first decides which "
        "checkpoint is the best.",
        metavar="NAME",
    ),
]
Patience = Annotated[
    int | None, _option(_JUDGE, "Stop after so many evaluations in a row without improvement.", metavar="N")
]
MinDelta = Annotated[
    float | None, _option(_JUDGE, "By how much one has to improve to count for --patience; 0.", metavar="X")
]
EvalEma = Annotated[
    bool,
    _option(_JUDGE, "Evaluate the running averages of the parameters (compile --ema) in their place.", "--eval-ema"),
]
Device = Annotated[str, _option(_FILES, "cpu or cuda.", metavar="NAME")]
Resume = Annotated[bool, _option(_FILES, "Go on from the checkpoint in DIR, with the options of its run.", "--resume")]
CheckpointEvery = Annotated[
    int, _option(_FILES, "Updates between checkpoints; 0: at ends of epochs alone.", metavar="N")
]
LogDir = Annotated[Path | None, _option(_FILES, "Write TensorBoard event files there.", metavar="DIR")]
