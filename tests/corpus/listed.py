"""Which cases of the corpus have no gradient, and why. Patterns of case names; the lists are exact, see test_corpus.

An entry goes as soon as the cases that it names pass the check: ``python -m tests.corpus --run`` says which.
"""

from __future__ import annotations

_NO_RULE = "there is no derivative rule for this operator"  # FlexAttention is a preview, which no runtime has

#: The derivative is zero wherever there is one.
FLAT = {
    "test_bernoulli*": "random",
    "test_castlike_FLOAT8*": "between types of which only one has gradients; the other operand says a type alone",
    "test_castlike_FLOAT4*": "likewise",
    "test_castlike_INT*": "from integers; the other operand says a type alone",
    "test_castlike_UINT*": "likewise",
    "test_ceil*": "constant between integers",
    "test_floor*": "constant between integers",
    "test_hardmax_*": "constant between ties",
    "test_melweightmatrix": "its edges are rounded to numbers of bins",
    "test_reduce_l*_empty_set*": "of nothing",
    "test_reduce_m*_empty_set": "of nothing",
    "test_reduce_prod_empty_set": "of nothing",
    "test_reduce_sum*_empty_set*": "of nothing",
    "test_reshape_allowzero_reordered": "of nothing",
    "test_round": "constant between halves",
    "test_sign": "constant on either side of zero",
    "test_slice_start_out_of_bounds": "nothing is taken",
    "test_split_zero_size_*": "of nothing",
}

#: Cases that gradcut refuses, and a piece of what it says.
REFUSED = {
    "test_flexattentio*[!6]": _NO_RULE,
    "test_flexattention_fp16": _NO_RULE,
    "test_scan_sum": "the Scan of opset 8 has a batch axis",
}
