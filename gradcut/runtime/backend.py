"""The only door to onnxruntime: providers, session options, values on a device."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from gradcut.errors import FeedError, GradcutError, MissingExtraError
from gradcut.runtime.memory import returned_at_once
from gradcut.source import MAX_BYTES, take_in, weights_size

try:
    import onnxruntime as ort
except ImportError:  # compile works without a runtime
    ort = None

Array = np.ndarray[Any, Any]
DEVICES = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
#: Types that onnxruntime's Python bindings make no values of.
_NOT_BOUND = frozenset({"tensor(string)", "tensor(bfloat16)"})
#: Fusions that the runtime's CPU kernels lose by: Add and LayerNormalization apart take a fifth of the time, which is
#: 12 % of a step of BERT-mini's head.
_SLOWER = ("SkipLayerNormFusion",)
#: A smaller weight stays in the proto.
_HANDED_OVER = 1 << 16


class DeviceError(GradcutError):
    """The device that was asked for is not there."""


def require(device: str) -> None:
    """Raise, in one line, where the runtime or the device is missing."""
    if device not in DEVICES:
        raise DeviceError(f"there is no device {device!r}; there are {', '.join(DEVICES)}")
    if ort is None:
        raise MissingExtraError("a training session", "cuda" if device == "cuda" else "cpu")
    if DEVICES[device] not in ort.get_available_providers():
        both = _installed("onnxruntime") and _installed("onnxruntime-gpu")
        hint = (
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other: uninstall both, then "
            "pip install 'gradcut[cuda]'"
            if both
            else "pip install 'gradcut[cuda]' in an environment without onnxruntime"
        )
        raise DeviceError(f"device 'cuda': this onnxruntime has no CUDA provider; {hint}")


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def cores() -> int:
    """The cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


class Runner:
    """One graph in the runtime, with bindings that outlive a run.

    Args:
        graph: the graph, or its file (weights beside it are found from there).
        options: more provider options, such as ``{"use_tf32": "0"}`` for CUDA.
    """

    def __init__(
        self,
        graph: ir.Model | Path,
        device: str,
        threads: int | None,
        options: Mapping[str, str] | None = None,
    ) -> None:
        require(device)
        self.device = device
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = threads or cores()
        settings.log_severity_level = 4  # what it would print, `run` raises
        settings.enable_mem_pattern = False  # 10-25 % less peak memory at the same speed
        # idle workers would spin on the cores that the host optimizer and the caller need between two runs
        settings.add_session_config_entry("session.force_spinning_stop", "1")
        source: str | bytes = str(graph)
        if isinstance(graph, ir.Model):
            source, self._beside = _serialized(graph)  # kept: the runtime reads the weights where they are
            settings.add_external_initializers(list(self._beside), list(self._beside.values()))
        provider: Any = (DEVICES[device], dict(options or {})) if options else DEVICES[device]
        providers = [provider] if device == "cpu" else [provider, DEVICES["cpu"]]
        slower = list(_SLOWER) if device == "cpu" else []
        try:
            with returned_at_once():
                self.session = ort.InferenceSession(source, settings, providers=providers, disabled_optimizers=slower)
        except Exception as error:
            raise GradcutError(f"onnxruntime does not take the emitted graph: {error}") from error
        if DEVICES[device] not in self.session.get_providers():
            raise DeviceError(f"device {device!r}: onnxruntime could not start it (is the GPU's driver there?)")
        for value in self.session.get_inputs():
            if not value.type.startswith("tensor(") or value.type in _NOT_BOUND:
                raise GradcutError(f"input {value.name!r} is {value.type}, which a session cannot bind")
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs() if value.type.startswith("tensor(")]
        self.binding = self.session.io_binding()

    def run(self, inputs: Mapping[str, Any], outputs: Mapping[str, Any], kept: Collection[str] = ()) -> dict[str, Any]:
        """Run on device values; an output without a buffer of its own is allocated and returned, on the CPU.

        Args:
            kept: outputs without a buffer that stay on the device.

        No value may be both an input and an output: the runtime would overwrite it while others still read it.
        """
        for name in self.inputs:
            self.binding.bind_ortvalue_input(name, inputs[name])
        for name in self.outputs:
            if name in outputs:
                self.binding.bind_ortvalue_output(name, outputs[name])
            else:
                self.binding.bind_output(name, self.device if name in kept else "cpu")
        try:
            self.session.run_with_iobinding(self.binding)
        except Exception as error:
            raise FeedError(f"onnxruntime could not run the graph on these feeds: {error}") from error
        results = dict(zip(self.outputs, self.binding.get_outputs(), strict=True))
        return {name: value for name, value in results.items() if name not in outputs}


def _serialized(model: ir.Model) -> tuple[bytes, dict[str, Any]]:
    """The graph as bytes, and the weights that are handed over beside them: one message holds 2 GB at most."""
    inside, beside = model.clone(), dict[str, Any]()
    take_in(inside)  # what lies in a file has no path once the graph is bytes
    weights = {name: v.const_value for name, v in inside.graph.initializers.items() if v.const_value is not None}
    if weights_size(inside) > MAX_BYTES:
        for name, tensor in weights.items():
            if _is_handed_over(tensor):
                shape = ir.Shape(tensor.shape.numpy())
                place = ir.ExternalTensor("memory", 0, tensor.nbytes, tensor.dtype, shape=shape, name=name)
                inside.graph.initializers[name].const_value = place
                beside[name] = to_device(tensor.numpy(), "cpu")
    return bytes(ir.to_proto(inside).SerializeToString()), beside


def _is_handed_over(tensor: ir.TensorProtocol) -> bool:
    return tensor.nbytes >= _HANDED_OVER and np.dtype(tensor.dtype.numpy()).kind in "fiub"


def to_device(array: Array, device: str) -> Any:
    """A device value; on CPU it shares the array's memory."""
    return ort.OrtValue.ortvalue_from_numpy(array, device, 0)


def scalar(value: float, dtype: Any) -> Any:
    """A number of a step, on the CPU whatever the device is."""
    return to_device(np.asarray(value, dtype=dtype), "cpu")


class Slot:
    """One tensor of state: the value a run reads, and a spare of the same size that a run may write.

    On CPU `array` is the current value's own memory, so a host optimizer may update it between runs.
    """

    def __init__(self, initial: Array, device: str) -> None:
        self.device = device
        self.array = _aligned(initial)
        self.current = to_device(self.array, device)
        self._spare: Any = None
        self._spare_array: Array | None = None

    @property
    def spare(self) -> Any:
        """Made when first asked for: a frozen or host-updated tensor never needs one."""
        if self._spare is None:
            self._spare_array = _aligned(np.zeros_like(self.array))
            self._spare = to_device(self._spare_array, self.device)
        return self._spare

    @property
    def other(self) -> Array:
        """The spare's memory; on CPU what a run has written there."""
        assert self.spare is not None and self._spare_array is not None
        return self._spare_array

    def swap(self) -> None:
        """What was written becomes what is read."""
        self.array, self._spare_array = self.other, self.array
        self.current, self._spare = self._spare, self.current

    def peek(self) -> Array:
        """The current value, to be read at once: on CPU its own memory."""
        return self.array if self.device == "cpu" else np.asarray(self.current.numpy())

    def numpy(self) -> Array:
        """A copy of the current value."""
        return np.array(self.peek(), copy=True)

    def assign(self, array: Array) -> None:
        """Overwrite the current value."""
        self.array[...] = array
        if self.device != "cpu":
            self.current = to_device(self.array, self.device)


def _aligned(array: Array, boundary: int = 64) -> Array:
    """A C-contiguous copy that starts at a cache line, as the runtime's kernels like it."""
    raw = np.empty(array.nbytes + boundary, np.uint8)
    start = -raw.ctypes.data % boundary
    copy = raw[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
