"""Everything gradcut raises on purpose.

    GradcutError
    ├── ImportModelError          the file cannot be taken in
    │   ├── NotOnnxError              not an ONNX file, or cut short
    │   ├── ExternalDataError         weights outside the file: missing, or outside the model's folder
    │   └── UnsupportedModelError     an opset, operator domain or quantisation that gradcut does not take
    ├── SpecError                 what was asked for does not fit the model (names, patterns, options)
    │   └── PatternError              a pattern that matches nothing; carries the nearest names
    ├── LossError                 the loss is not a scalar, not found, or wants something else than it gets
    ├── NoGradientError           an operator, or a configuration of one, without a rule on an active path
    ├── NothingTrainsError        no trainable reaches the loss
    ├── PipelineError             pipeline text that does not parse, or a pass used out of order
    ├── VerifyError               a pass left an invalid model behind (ours, never the user's)
    ├── ArtifactsError            a directory of artifacts that is missing, damaged or of another version
    ├── CheckpointError           a checkpoint that is damaged or does not fit
    ├── FeedError                 a feed whose name, shape, dtype or value does not fit the graph
    ├── DataError                 a data file that cannot train this model
    ├── NotFiniteError            the loss became NaN or infinite
    ├── GradientCheckError        gradients that disagree with finite differences
    ├── TorchExportError          torch cannot export a module, or its backward is one that no file can hold
    └── MissingExtraError         something optional is not installed; names the extra

Each message says which node, operator, value or file, what is wrong and what to do. ``GradcutError.user`` tells the
user's mistakes (exit code 2) from ours (exit code 1).
"""

from __future__ import annotations

from collections.abc import Iterable


class GradcutError(Exception):
    """Root of every error gradcut raises on purpose."""

    user = True


class GradcutWarning(UserWarning):
    """What was asked for is done, but not as a person would think; the manifest lists the same sentences."""


class ImportModelError(GradcutError):
    """The model file cannot be taken in."""


class NotOnnxError(ImportModelError):
    """The file is not ONNX, or it is cut short."""


class ExternalDataError(ImportModelError):
    """Weights stored beside the model are missing or lie outside its folder."""


class UnsupportedModelError(ImportModelError):
    """The model uses an opset, a domain or a quantisation that gradcut does not take."""


class SpecError(GradcutError):
    """What was asked for does not fit the model."""


class PatternError(SpecError):
    """A pattern matches nothing; ``nearest`` holds the closest names there are."""

    def __init__(self, pattern: str, what: str, nearest: Iterable[str] = ()) -> None:
        self.pattern = pattern
        self.nearest = tuple(nearest)
        hint = f" Nearest: {', '.join(self.nearest)}." if self.nearest else ""
        super().__init__(f"{pattern!r} matches no {what}.{hint}")


class LossError(GradcutError):
    """The loss is not a scalar, cannot be told, or is fed something it does not take."""


class NoGradientError(GradcutError):
    """An operator on an active path has no derivative rule, or its rule does not cover this configuration."""

    def __init__(self, node: str, op: str, opset: int, reason: str) -> None:
        self.node, self.op, self.opset, self.reason = node, op, opset, reason
        super().__init__(f"node {node!r} ({op}, opset {opset}) has no gradient here: {reason}")


class NothingTrainsError(GradcutError):
    """No trainable parameter reaches the loss."""


class PipelineError(GradcutError):
    """Pipeline text that does not parse, or a pass used out of order."""


class VerifyError(GradcutError):
    """A pass left an invalid model behind."""

    user = False


class ArtifactsError(GradcutError):
    """A directory of artifacts that is missing, damaged or of another version."""


class CheckpointError(GradcutError):
    """A checkpoint that is damaged or does not fit the artifacts."""


class FeedError(GradcutError):
    """A feed whose name, shape, dtype or value does not fit the graph."""


class DataError(GradcutError):
    """A data file that cannot train this model."""


class NotFiniteError(GradcutError):
    """The loss became NaN or infinite."""


class GradientCheckError(GradcutError):
    """Gradients disagree with finite differences."""

    user = False


class TorchExportError(GradcutError):
    """torch cannot export the module, or its backward is one that no file can hold."""


class MissingExtraError(GradcutError):
    """Something optional is not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an extra that is not installed: pip install 'gradcut[{extra}]'")
