"""The optimizers, each a frozen dataclass with torch.optim's argument names and defaults, and how they are applied.

An optimizer says which state it keeps per parameter (`slots`), prints itself as text (`spec`) and builds its
update out of plain ONNX operators. State and formulas are those of the torch.optim documentation, so that a
checkpoint means the same here, in `gradcut.runtime.host_optimizer` and in torch; torch has no LARS and no LAMB, whose
formulas are their papers'.
"""

from gradcut.optimizers.adam import Adam, AdamW
from gradcut.optimizers.adaptive import Adagrad, RMSprop
from gradcut.optimizers.base import Optimizer, Scalars, check_rate
from gradcut.optimizers.groups import Group, Groups, UpdateRequest, as_groups
from gradcut.optimizers.layerwise import LAMB, LARS
from gradcut.optimizers.parse import OPTIMIZERS, parse_optimizer, with_options
from gradcut.optimizers.plan import EMA, NORM_EPS, UpdatePlan
from gradcut.optimizers.sgd import SGD

__all__ = [
    "EMA",
    "LAMB",
    "LARS",
    "NORM_EPS",
    "OPTIMIZERS",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Group",
    "Groups",
    "Optimizer",
    "RMSprop",
    "Scalars",
    "UpdatePlan",
    "UpdateRequest",
    "as_groups",
    "check_rate",
    "parse_optimizer",
    "with_options",
]
