"""From a checked request to the file."""

from __future__ import annotations

import io
import json
import warnings
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.export import ExportedProgram

from gradcut.dialect import declare
from gradcut.errors import GradcutWarning, TorchExportError
from gradcut.model_files import write_model
from gradcut.parameters import FROZEN
from gradcut.text import join_names
from gradcut.torch.arguments import Request
from gradcut.torch.capture import Captured, capture, first_line, hooked, quiet
from gradcut.torch.corrections import correct, corrections
from gradcut.torch.modes import check_norms, keep_modes, moving_instance_norms, set_modes
from gradcut.torch.naming import name_dimensions, name_ports, name_tensors
from gradcut.torch.operators import translations
from gradcut.torch.regions import mark_regions, take_in_regions

IR_VERSION = 10
_STACK_TRACE = "pkg.torch.onnx.stack_trace"


def write(request: Request) -> Path:
    """Write the file that a request asks for; its path."""
    check_norms(request.module)
    captured = capture(request)
    program = captured.program
    take_in_regions(program)
    keep_modes(program)
    correct(program)
    mark_regions(program)
    translated = _translated(request, program)
    _check_parameters(translated.exported_program)
    model = _finished(request, program, translated.model)
    write_model(model, request.path)
    for message in _lost(request, captured, translated.exported_program):
        warnings.warn(message, GradcutWarning, stacklevel=3)
    return request.path


def _translated(request: Request, program: ExportedProgram) -> Any:
    try:
        with quiet(), redirect_stdout(io.StringIO()):
            translated = torch.onnx.export(
                program,
                opset_version=request.opset,
                custom_translation_table={**translations(), **corrections()},
                dynamo=True,
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        raise TorchExportError(
            f"torch cannot write {type(request.module).__name__} as ONNX: {first_line(error)}"
        ) from error
    assert translated is not None
    return translated


def _finished(request: Request, program: ExportedProgram, model: ir.Model) -> ir.Model:
    name_dimensions(model, program, request.dynamic_shapes())
    name_tensors(model, request.module)
    name_ports(model, program, request.input_names, request.output_names)
    frozen = _frozen(request, model)
    set_modes(model, frozen)
    if frozen:
        model.metadata_props[FROZEN] = json.dumps(frozen)
    for node in model.graph.all_nodes():
        node.metadata_props.pop(_STACK_TRACE, None)
    model.ir_version = IR_VERSION
    declare(model)
    return model


def _frozen(request: Request, model: ir.Model) -> list[str]:
    return sorted(
        name
        for name, parameter in request.module.named_parameters()
        if not parameter.requires_grad and parameter.is_floating_point() and name in model.graph.initializers
    )


def _check_parameters(program: ExportedProgram) -> None:
    moved = sorted(set(program.graph_signature.parameters_to_mutate.values()))
    if moved:
        raise TorchExportError(
            f"forward changes the parameter {join_names(moved, 3)}, which a file cannot do: change it between steps, "
            "outside of forward"
        )


def _lost(request: Request, captured: Captured, program: ExportedProgram) -> list[str]:
    """What the file does not do and torch does, a sentence each."""
    messages = [
        f"the file holds for {name} with {bounds}: the code takes another way at other sizes, which it does not have"
        for name, bounds in captured.ranges.items()
    ]
    moved = sorted(set(program.graph_signature.buffers_to_mutate.values()))
    if moved:
        messages.append(
            f"forward changes the buffer {join_names(moved, 3)}: each run computes with the new value, and the file "
            "keeps the old one (only the statistics of BatchNormalization move)"
        )
    norms = moving_instance_norms(request.module)
    if norms:
        messages.append(
            f"{join_names(norms, 3)}: an InstanceNorm in training mode moves its running statistics, and the file "
            "keeps the old ones"
        )
    found = hooked(request.module)
    if found:
        messages.append(
            f"{join_names(found, 3)} {'has' if len(found) == 1 else 'have'} gradient hooks, which stay in torch: "
            "gradients are those without them"
        )
    return messages
