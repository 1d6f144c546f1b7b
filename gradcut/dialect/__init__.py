"""The `gradcut` dialect: marks, and adjoint operators for backward computations with several good lowerings.

Each op is a model-local function whose body is standard ONNX, so a model stays valid and runs in stock ONNX Runtime
after every pass. Bodies are written once as Python functions over `gradcut.ops.Builder`: with attribute references
they give the function, with the attributes of one call they give its reference lowering.

To add an op, write its body under `@dialect_op` in the module of its topic; the name must be a C identifier, and
where another configuration needs another structure it is another op (functions have no overloads here).
"""

from gradcut.dialect import conv, elementwise, kept, norm, pool, relatives, shape, straight
from gradcut.dialect.core import DIALECT, DOMAIN, DialectOp, declare, dialect_op, expand
from gradcut.dialect.marks import (
    MARK,
    is_derived,
    is_mark,
    mark_reason,
    new_mark,
    reported_name,
    stand_for,
)
from gradcut.dialect.relatives import is_relative, is_transparent

__all__ = [
    "DIALECT",
    "DOMAIN",
    "MARK",
    "DialectOp",
    "conv",
    "declare",
    "dialect_op",
    "elementwise",
    "expand",
    "is_derived",
    "is_mark",
    "is_relative",
    "is_transparent",
    "kept",
    "mark_reason",
    "new_mark",
    "norm",
    "pool",
    "relatives",
    "reported_name",
    "shape",
    "stand_for",
    "straight",
]
