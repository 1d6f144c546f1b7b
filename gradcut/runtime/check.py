"""Gradients against finite differences: ``<u, J v> = <J^T u, v>`` for random u and v.

The right side comes from the graph that `gradcut.vjp` emits, the left from central differences of the model itself
in float64. One pair of random directions looks at every element of a gradient at once. What is constant by meaning
is held still in the differences: marked values, and what random operators drew.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from gradcut.api import VJP, vjp
from gradcut.errors import GradientCheckError
from gradcut.ops import FLOATS, is_float
from gradcut.parameters import parameters
from gradcut.passes.importer import Import
from gradcut.passes.base import json_value
from gradcut.rules import REGISTRY
from gradcut.runtime.differences import Differences, Slope
from gradcut.runtime.feeds import random_feeds
from gradcut.runtime.replay import Draws, expose_draws
from gradcut.runtime.widen import Array, reference, runtime, widen
from gradcut.source import Source, own
