"""Operators whose derivatives are finite wherever their operands and outputs are, overflow aside.

Where only these lie between a value and the loss, its cotangent is finite, and a mask may be a factor instead of a
selection, which the runtime takes twice as long for. The others have a place where the value is finite and the slope
is not: Sqrt and norms at 0, Log, Pow, a divisor.
"""

from __future__ import annotations

from gradcut.rules.registry import bounded

bounded("Add Sub Mul Neg Sum Mean Abs Exp Erf Sin Cos Sigmoid Tanh Where Max Min Clip Dropout CumSum Trilu TopK")
bounded("Relu LeakyRelu PRelu Elu Celu Selu Gelu HardSigmoid HardSwish Mish Swish Softplus Softsign ThresholdedRelu")
bounded("MatMul Gemm Einsum Conv ConvTranspose AveragePool MaxPool GlobalAveragePool GlobalMaxPool MaxUnpool Resize")
bounded("BatchNormalization LayerNormalization InstanceNormalization GroupNormalization RMSNormalization")
bounded("Softmax LogSoftmax SoftmaxCrossEntropyLoss NegativeLogLikelihoodLoss")
bounded("ReduceSum ReduceMean ReduceMax ReduceMin ReduceL1 ReduceSumSquare")
bounded("Identity Reshape Flatten Squeeze Unsqueeze Expand Tile Transpose Concat Split Slice Pad")
bounded("Gather GatherElements GatherND ScatterElements ScatterND DepthToSpace SpaceToDepth")
bounded("Div", unless="B")
