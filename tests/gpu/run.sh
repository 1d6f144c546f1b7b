#!/usr/bin/env bash
# CUDA against CPU, in one call, on any machine with a GPU and an environment made by: pip install '.[cuda]'
# Models come from models/*.onnx; those that are missing are exported first, which needs the torch extra
# (elsewhere: python -m models.build mlp bert_tiny).
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHONPATH=. exec "${PYTHON:-python3}" -m tests.gpu.check "$@"
