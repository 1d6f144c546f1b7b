"""The .onnx files that the onnx package ships, differentiated; ``python -m tests.onnx_files`` takes all the large ones."""
