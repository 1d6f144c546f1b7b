"""The .onnx files that the onnx package ships; ``python -m tests.onnx_files`` takes all the large ones."""
