"""The passes, one file each; see `gradcut.passes.pipeline` for their text form.

To add a pass: a frozen dataclass on `gradcut.passes.base.Pass` under ``@register``, in a file of its own.
"""

from gradcut.passes.base import PASSES, Pass
from gradcut.passes.body_draws import BodyDraws
from gradcut.passes.differentiate import Differentiate
from gradcut.passes.emit import Emit
from gradcut.passes.fold import Fold
from gradcut.passes.importer import Import
from gradcut.passes.loss import AttachLoss
from gradcut.passes.lower import Lower
from gradcut.passes.narrow import Capture, Narrow
from gradcut.passes.pipeline import Pipeline
from gradcut.passes.propagate import Propagate
from gradcut.passes.simplify import Simplify
from gradcut.passes.specialize import Specialize
from gradcut.passes.stop_gradient import StopGradient
from gradcut.passes.verify import verify

__all__ = [
    "PASSES",
    "AttachLoss",
    "BodyDraws",
    "Capture",
    "Differentiate",
    "Emit",
    "Fold",
    "Import",
    "Lower",
    "Narrow",
    "Pass",
    "Pipeline",
    "Propagate",
    "Simplify",
    "Specialize",
    "StopGradient",
    "verify",
]
