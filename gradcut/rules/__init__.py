"""Derivative rules by topic; importing the package registers them all.

To add a rule: in the module of its topic, write a generator under ``@rule("OpType", "operands with a derivative")``
that yields ``(operand, cotangent)`` for each wanted operand, and add samples for it in ``tests/rules/samples.py``.
"""

from gradcut.rules import (
    activation,
    bounded,
    col2im,
    constant,
    control_flow,
    conv,
    deform,
    einsum,
    elementwise,
    grid,
    index,
    loops,
    loss,
    lp_pool,
    matmul,
    norm,
    pool,
    recurrent,
    reduce,
    resize,
    roi,
    shape,
)
from gradcut.rules.adjoint import Adjoint, Cotangents
from gradcut.rules.registry import REGISTRY, Registry, Rule, operand_label, register_rule

__all__ = [
    "REGISTRY",
    "Adjoint",
    "Cotangents",
    "Registry",
    "Rule",
    "activation",
    "bounded",
    "col2im",
    "constant",
    "control_flow",
    "conv",
    "deform",
    "einsum",
    "elementwise",
    "grid",
    "index",
    "loops",
    "loss",
    "lp_pool",
    "matmul",
    "norm",
    "operand_label",
    "pool",
    "recurrent",
    "reduce",
    "register_rule",
    "resize",
    "roi",
    "shape",
]
