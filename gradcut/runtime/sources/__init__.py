"""Where training data come from: `open_data` gives `Rows` (files) or a `Stream` (a function that yields batches)."""

from gradcut.runtime.sources.opening import open_data
from gradcut.runtime.sources.rows import Rows
from gradcut.runtime.sources.stream import Stream

__all__ = ["Rows", "Stream", "open_data"]
