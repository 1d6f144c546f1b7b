"""The relatives of the mark: against torch, closed forms, and the graphs that ONNX Runtime is left with."""
