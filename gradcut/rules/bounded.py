"""Operators whose derivatives are finite wherever their operands are, overflow aside.

Where only these lie between a value and the loss, its cotangent is finite, and a mask may be a factor instead of a
selection, which the runtime takes twice as long for. The others have a place where the value is finite and the slope
is not: Sqrt and norms at 0, Log, Pow, a divisor. What divides by zero may be thrown away by a selection behind it, so
that the loss is finite all the same: a divisor has to be known.
"""

from __future__ import annotations

import onnx_ir as ir

from gradcut.rules.registry import bounded


def _by_numbers(node: ir.Node) -> bool:
    """Whether a division is by a constant without zeros."""
    divisor = node.inputs[1]
    tensor = None if divisor is None else ir.convenience.get_const_tensor(divisor)
    return tensor is not None and bool((tensor.numpy() != 0).all())


bounded("Add Sub Mul Neg Sum Mean Abs Exp Erf Sin Cos Sigmoid Tanh Where Max Min Clip Dropout CumSum Trilu TopK")
bounded("Relu LeakyRelu PRelu Elu Celu Selu Gelu HardSigmoid HardSwish Mish Swish Softplus Softsign")
bounded("Shrink ThresholdedRelu")
bounded("MatMul Gemm Einsum Conv ConvTranspose AveragePool MaxPool GlobalAveragePool GlobalMaxPool MaxUnpool Resize")
bounded("Col2Im DeformConv LRN MaxRoiPool RoiAlign")
bounded("BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization")
bounded("RNN GRU LSTM")
bounded("Softmax LogSoftmax SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss")
bounded("ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceSumSquare")
bounded("Identity Reshape Flatten Squeeze Unsqueeze Expand Tile Transpose Concat Split Slice Pad")
bounded("Gather GatherElements GatherND ScatterElements ScatterND TensorScatter DepthToSpace SpaceToDepth")
bounded("CenterCropPad Compress OneHot Range ReverseSequence Unique")
bounded("Div", unless="B", given=_by_numbers)
