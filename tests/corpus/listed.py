"""Which cases of the corpus have no gradient, and why. Patterns of case names; the lists are exact, see test_corpus.

An entry goes as soon as the cases that it names pass the check: ``python -m tests.corpus --run`` says which.
"""

from __future__ import annotations

_WAITS = "no rule yet"

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
    "test_reduce_l*_empty_set*": "of nothing",
    "test_reduce_m*_empty_set": "of nothing",
    "test_reduce_sum*_empty_set*": "of nothing",
    "test_reshape_allowzero_reordered": "of nothing",
    "test_round": "constant between halves",
    "test_sign": "constant on either side of zero",
    "test_slice_start_out_of_bounds": "nothing is taken",
    "test_split_zero_size_*": "of nothing",
}

#: Cases that gradcut refuses by node, operator, opset and reason.
REFUSED = {
    "test_affine_grid_*": _WAITS,
    "test_attention_4d_causal_nonpad_*[!d]": _WAITS,
    "test_attention_4d_causal_padded_kv_bf16": _WAITS,
    "test_attention_4d_causal_with_past_and_present": _WAITS,
    "test_attention_4d_diff_heads_mask4d_padded_kv": _WAITS,
    "test_attention_4d_gqa_causal_nonpad_decode": _WAITS,
    "test_attention_4d_gqa_causal_nonpad_decode_fp16": _WAITS,
    "test_attention_4d_padded_kv_bf16": _WAITS,
    "test_attention_local_window_ext_cache_*mask": _WAITS,
    "test_attention_local_window_with_past": _WAITS,
    "test_basic_deform_conv_*": _WAITS,
    "test_col2im*": _WAITS,
    "test_convtranspose_output_shape": "pads would be negative",
    "test_cumprod_*": _WAITS,
    "test_deform_conv_*": _WAITS,
    "test_det_*": _WAITS,
    "test_dft*": _WAITS,
    "test_dynamicquantizelinear*": "the model is quantised: it computes in integers",
    "test_flexattentio*[!6]": _WAITS,
    "test_flexattention_fp16": _WAITS,
    "test_gridsample*": _WAITS,
    "test_gru_*": _WAITS,
    "test_loop11": _WAITS,
    "test_lppool_*": _WAITS,
    "test_lrn*": _WAITS,
    "test_lstm_*": _WAITS,
    "test_maxpool_with_argmax_2d_precomputed_strides": "storage_order=1 has no rule",
    "test_melweightmatrix": _WAITS,
    "test_reduce_prod_do_not_keepdims_*": "axes known only at run time",
    "test_reduce_prod_empty_set": "axes known only at run time",
    "test_reduce_prod_keepdims_*": "axes known only at run time",
    "test_reduce_prod_negative_axes_*": "axes known only at run time",
    "test_resize_*_not_larger": "keep_aspect_ratio_policy other than 'stretch' has no rule",
    "test_resize_*_not_smaller": "keep_aspect_ratio_policy other than 'stretch' has no rule",
    "test_resize_tf_crop_and_resize*": "coordinate_transformation_mode='tf_crop_and_resize' has no rule",
    "test_rnn_*": _WAITS,
    "test_roialign_*": _WAITS,
    "test_scan*": _WAITS,
    "test_scatter_elements_with_reduction_*": "reduction='m",
    "test_scatternd_m*": "reduction='m",
    "test_simple_rnn_*": _WAITS,
    "test_stft*": _WAITS,
    "test_tensorscatter*": _WAITS,
}
