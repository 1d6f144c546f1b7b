"""Weights of operators whose derivative has no rule yet, so that `inspect` names their parameters."""

from __future__ import annotations

from gradcut.rules.registry import weights

for _op_type in ("RNN", "GRU", "LSTM"):
    weights(_op_type, "W R B")
