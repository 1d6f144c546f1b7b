"""Samples of matrix products."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from tests.rules.sample import Sample, normal, sample


def samples() -> Iterator[Sample]:
    yield from _gemm()
    shapes = {
        "matrices": ((3, 4), (4, 5)),
        "rows_of_batches": ((2, 3, 4), (4, 5)),
        "four_dimensions": ((2, 2, 3, 4), (4, 2)),
        "batches": ((2, 3, 4), (2, 4, 5)),
        "broadcast_batches": ((2, 1, 3, 4), (3, 4, 5)),
        "one_batch": ((1, 3, 4), (2, 4, 5)),
        "matrix_batches": ((3, 4), (2, 4, 5)),
        "vectors": ((4,), (4,)),
        "vector_matrix": ((4,), (4, 5)),
        "matrix_vector": ((3, 4), (4,)),
        "vector_batches": ((4,), (2, 4, 5)),
        "batches_vector": ((2, 3, 4), (4,)),
    }
    for name, (a, b) in shapes.items():
        yield sample("MatMul", name, normal(*a), normal(*b), needs_rank=True)
    for a in ((2, 3, 4), (3, 4), (4,)):
        yield sample("MatMul", f"{len(a)}_of_unknown_rank", normal(*a), normal(4, 5), known="B")


def _gemm() -> Iterator[Sample]:
    bias = {"matrix": (3, 5), "row": (5,), "column": (3, 1), "one": (1,), "scalar": (), "flat": (1, 5)}
    for name, shape in bias.items():
        yield sample("Gemm", f"bias_{name}", normal(3, 4), normal(4, 5), np.asarray(normal(*shape)), beta=0.7)
    yield sample("Gemm", "plain", normal(3, 4), normal(4, 5))
    for trans_a in (0, 1):
        for trans_b in (0, 1):
            a = normal(*((4, 3) if trans_a else (3, 4)))
            b = normal(*((5, 4) if trans_b else (4, 5)))
            name = f"transposed_{trans_a}{trans_b}"
            yield sample("Gemm", name, a, b, normal(5), transA=trans_a, transB=trans_b, alpha=0.5, beta=1.5)
