"""Operators of ONNX Runtime's own domain that ONNX has by now get its name; called by `import`.

torch's exporter wrote Trilu and GridSample so for opsets that did not have them.
"""

from __future__ import annotations

import onnx_ir as ir

_MICROSOFT = "com.microsoft"
#: GridSample's modes by ONNX's newer names.
_MODES = {"bilinear": "linear", "bicubic": "cubic"}


def use_onnx_names(model: ir.Model) -> None:
    """Rename such nodes; the model is at an opset that has the operators."""
    for node in model.graph.all_nodes():
        if node.domain != _MICROSOFT:
            continue
        if node.op_type in ("Trilu", "GridSample", "Pad"):
            node.domain = ""
        elif node.op_type == "TransposeMatMul":
            node.op_type = "FusedMatMul"
        if node.op_type == "GridSample" and not node.domain:
            mode = node.attributes["mode"].as_string() if "mode" in node.attributes else "bilinear"
            node.attributes.add(ir.AttrString("mode", _MODES.get(mode, mode)))
