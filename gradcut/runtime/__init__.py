"""Running what was compiled. Only this package imports onnxruntime."""
