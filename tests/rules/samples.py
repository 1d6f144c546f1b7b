"""Every rule's samples: what the suite checks a rule with. A rule without samples fails `test_rules`.

To give a new rule its samples, yield them in the module of its topic; a new module goes into the list here.
"""

from __future__ import annotations

from tests.rules import (
    samples_attention,
    samples_contrib,
    samples_control_flow,
    samples_conv,
    samples_elementwise,
    samples_index,
    samples_matmul,
    samples_more,
    samples_norm,
    samples_pool,
    samples_quantized,
    samples_recurrent,
    samples_reduce,
    samples_sampling,
    samples_select,
    samples_shape,
    samples_windows,
)
from tests.rules.sample import Sample

_MODULES = (
    samples_elementwise,
    samples_matmul,
    samples_more,
    samples_control_flow,
    samples_conv,
    samples_pool,
    samples_norm,
    samples_reduce,
    samples_select,
    samples_sampling,
    samples_shape,
    samples_index,
    samples_windows,
    samples_attention,
    samples_contrib,
    samples_recurrent,
    samples_quantized,
)
SAMPLES: tuple[Sample, ...] = tuple(sample for module in _MODULES for sample in module.samples())
