"""Losses: each builds a scalar from one output of the model and a new label input; several add up with factors.

A loss is named with its wiring, ``cross_entropy:output=logits,axis=1,label_smoothing=0.1``, or made here,
``CrossEntropy(output="logits", weight=[1, 2, 0.5])``. Names, formulas and defaults are those of torch.nn. In place of
labels a loss may read a value of the model, ``neg_cosine:output=p1,target=z2``, through a mark. To add one: a frozen
dataclass on `Loss` in one of the modules here, listed in `LOSSES`.
"""

from gradcut.losses.base import Labels, Loss
from gradcut.losses.classes import NLL, CrossEntropy
from gradcut.losses.elements import L1, MSE, BCEWithLogits, Cosine, Huber, KLDiv, NegCosine, SmoothL1
from gradcut.losses.spec import LOSSES, Objective, Term, as_text, parse_loss, parse_terms, split_path, terms_of
from gradcut.losses.symmetric import symmetric

__all__ = [
    "L1",
    "LOSSES",
    "MSE",
    "NLL",
    "BCEWithLogits",
    "Cosine",
    "CrossEntropy",
    "Huber",
    "KLDiv",
    "Labels",
    "Loss",
    "NegCosine",
    "Objective",
    "SmoothL1",
    "Term",
    "as_text",
    "parse_loss",
    "parse_terms",
    "split_path",
    "symmetric",
    "terms_of",
]
