"""Operators for onnx's reference evaluator, by topic: in place of its own, and those that it does not have.

Its own are replaced where they are wrong, round to float32, or are slow: a gradient check evaluates a network a
thousand times, in float64. To add one, write it as an `OpRun` in the module of its topic and put it into that module's
list.
"""

from onnx.reference.op_run import OpRun

from gradcut.runtime.evaluators.contrib import CONTRIB
from gradcut.runtime.evaluators.contrib_attention import CONTRIB_ATTENTION
from gradcut.runtime.evaluators.contrib_bits import MatMulNBits
from gradcut.runtime.evaluators.control import CONTROL, Held
from gradcut.runtime.evaluators.images import IMAGES
from gradcut.runtime.evaluators.ops import OPS
from gradcut.runtime.evaluators.pools import POOLS
from gradcut.runtime.evaluators.quantized import QUANTIZED
from gradcut.runtime.evaluators.recurrent import RECURRENT
from gradcut.runtime.evaluators.sampling import SAMPLERS

#: All of them.
EVALUATORS: list[type[OpRun]] = [
    *OPS,
    *POOLS,
    *IMAGES,
    *SAMPLERS,
    *RECURRENT,
    *CONTROL,
    *CONTRIB,
    *CONTRIB_ATTENTION,
    *QUANTIZED,
    MatMulNBits,
]

__all__ = ["EVALUATORS", "Held"]
