"""A Python function that yields batches, named ``module:function``."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import traceback
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradcut.errors import DataError, GradcutError
from gradcut.runtime.data import check_keys
from gradcut.text import nearest

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Stream:
    """Batches as a function of the user's yields them: dicts of arrays by graph input name.

    The function is called once a pass, with ``epoch=`` (0 is the first) and ``seed=`` where it takes them. A resumed
    run calls it again and leaves out the batches that are done, so the run repeats itself only where the function
    does.

    Attributes:
        name: ``module:function``. names: the inputs that a batch must have; others in it are left out.
    """

    name: str
    function: Callable[..., Iterable[Mapping[str, Any]]]
    names: tuple[str, ...]

    @property
    def checksum(self) -> int:
        """Of the name: what a function yields cannot be told before."""
        return zlib.crc32(self.name.encode())

    def batches(self, epoch: int, seed: int) -> Iterator[dict[str, Array]]:
        """One pass.

        Raises:
            DataError: the function raises, or what it yields are no batches.
        """
        batches = self._call(epoch, seed)
        number = 0
        try:
            while (batch := self._next(batches)) is not None:
                number += 1
                where = f"{self.name}, batch {number}"
                if not isinstance(batch, Mapping):
                    kind = type(batch).__name__
                    raise DataError(f"{where} is no dict but {kind}; yield a dict with an array per graph input")
                check_keys(batch, self.names, where)
                yield {name: np.asarray(batch[name]) for name in self.names}
        finally:
            getattr(batches, "close", lambda: None)()
        if not number:
            raise DataError(f"{self.name} yields no batch at epoch {epoch + 1}")

    def _call(self, epoch: int, seed: int) -> Iterator[Any]:
        known: Mapping[str, Any] = {"epoch": epoch, "seed": seed}
        parameters = inspect.signature(self.function).parameters
        every = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
        needed = [
            name
            for name, one in parameters.items()
            if one.default is one.empty and one.kind not in (one.VAR_KEYWORD, one.VAR_POSITIONAL) and name not in known
        ]
        if needed:
            raise DataError(f"{self.name} wants {needed[0]!r}; it is called with epoch= and seed= at most")
        try:
            found = self.function(**{name: value for name, value in known.items() if every or name in parameters})
            if isinstance(found, Mapping) or not isinstance(found, Iterable):
                kind = type(found).__name__
                raise DataError(f"{self.name} gives one {kind}; it should yield batches, a dict of arrays each")
            return iter(found)
        except GradcutError:
            raise
        except Exception as error:
            raise _told(self.name, error) from error

    def _next(self, batches: Iterator[Any]) -> Any:
        try:
            return next(batches)
        except StopIteration:
            return None
        except GradcutError:
            raise
        except Exception as error:
            raise _told(self.name, error) from error


def open_stream(name: str, names: Iterable[str]) -> Stream:
    """The function ``module:function``; modules of the current directory are found as well as installed ones.

    Raises:
        DataError: there is no such module or function, or importing it fails.
    """
    module_name, _, function_name = name.partition(":")
    here = os.getcwd()
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise DataError(f"{name}: there is no module {error.name!r}, installed or in {here}") from None
        raise _told(f"{name}: importing {module_name}", error) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        close = nearest(function_name, [one for one in vars(module) if callable(getattr(module, one))], 1)
        hint = f"; it has {close[0]!r}" if close else ""
        raise DataError(f"{name}: {module_name} has no function {function_name!r}{hint}")
    return Stream(name, function, tuple(names))


def _told(what: str, error: Exception) -> DataError:
    """What the user's code raised, with the last line of it that led there; libraries have no line of theirs."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [one for one in frames if "site-packages" not in one.filename and not one.filename.startswith("<")]
    place = f" ({own[-1].filename}:{own[-1].lineno})" if own else ""
    said = next(iter(str(error).splitlines()), "")
    return DataError(f"{what} failed with {type(error).__name__}: {said}{place}")
