"""The exceptions of CellRay and ``boundary``, which turns foreign ones into them.

Contract: whatever a user can cause ends in one of these classes with a one-line message that names the thing, the
value and the way out. Anything else is a bug: ``boundary`` lets it pass, and where it ends a dataset ``internal`` makes
an ``InternalError`` of it that keeps its stack trace.

::

    CellRayError               exit code 1
    ├── RequestError           a request to a served app; it has an HTTP status
    ├── AtlasError             a dataset's versions in an atlas; the others go on
    ├── PuzzleError            one puzzle cannot be asked; it has a code and the others go on
    ├── StaleWeightsError      rollouts would come, or came, from other weights than the policy's
    ├── SettingError           exit code 2: an option, label file, model or output folder is wrong; the run never starts
    │   ├── InputError         an input path that does not exist or is of no known kind
    │   ├── LabelError         the label set
    │   ├── ModelError         the checkpoint
    │   ├── PluginError        a plugin or its registry
    │   │   └── TissueError    a tissue without a plugin
    │   └── RunLockedError     another run is writing to the same folder
    └── DatasetError           one dataset fails alone, the others go on (exit code 3 if any finished)
        ├── ReadError          the file is damaged or not what it says
        ├── CountsError        no raw counts
        ├── MissingKeyError    the layer or column that was asked for is not there (2 when no dataset has it)
        ├── GeneError          gene identifiers cannot be matched to the model
        ├── EncodeError        the model failed on a shard
        ├── RefineError        GRIT failed
        ├── NoLabelError       every cell was rejected
        ├── LostError          a worker or a node was lost twice, for lack of memory or otherwise
        ├── InternalError      a bug: the trace is kept in the dataset's error.json
        └── WriteError         an output could not be written
    Terminated                 exit code 143: SIGTERM; the same command goes on from there
    └── Interrupted            exit code 130: Ctrl-C, likewise

It does not cover bad cells: those are rows with a reject code (``cellray.schema.RejectCode``).
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final


class CellRayError(Exception):
    """Base of every error a user can cause. ``exit_code`` is what the command line returns."""

    exit_code = 1


class Terminated(BaseException):
    """The process was asked to stop (SIGTERM). Not an ``Exception``, so that no library swallows it on the way out."""

    exit_code = 143


class Interrupted(Terminated):
    """The user pressed Ctrl-C while resumable work was under way."""

    exit_code = 130


class SettingError(CellRayError):
    """A setting is wrong; the run stops before any work."""

    exit_code = 2


class InputError(SettingError):
    """An input does not exist or is of no known kind."""


class LabelError(SettingError):
    """The label set cannot be used."""


class ModelError(SettingError):
    """The checkpoint cannot be used."""


class PluginError(SettingError):
    """A plugin version, or the registry it is in, cannot be used."""


class TissueError(PluginError):
    """There is no plugin of that tissue, or the name is none."""


class PuzzleError(CellRayError):
    """A puzzle cannot be asked; ``code`` says why in one word, for machines."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type["PuzzleError"], tuple[str, str]]:
        return type(self), (self.code, str(self))


class AtlasError(CellRayError):
    """Versions of one dataset in an atlas cannot be used as they are."""


class StaleWeightsError(CellRayError):
    """Rollouts are not of the policy as it is: their weights are older, or give other probabilities."""


class RequestError(CellRayError):
    """A request to a served app cannot be answered; ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status

    def __reduce__(self) -> tuple[type["RequestError"], tuple[int, str]]:
        return type(self), (self.status, str(self))


class RunLockedError(SettingError):
    """Another run is writing to the output folder."""


class DatasetError(CellRayError):
    """One dataset cannot be annotated; the others go on."""


class ReadError(DatasetError):
    """The dataset's file is damaged or is not what its name says."""


class CountsError(DatasetError):
    """The dataset holds no raw counts."""


class MissingKeyError(DatasetError):
    """The layer or gene column that the user asked for is not in the dataset."""

    exit_code = 2


class GeneError(DatasetError):
    """The dataset's genes cannot be matched to the model's."""


class EncodeError(DatasetError):
    """The model failed on a shard."""


class RefineError(DatasetError):
    """Refinement failed."""


class NoLabelError(DatasetError):
    """Every cell of the dataset was rejected, so that it has no label at all."""


class LostError(DatasetError):
    """Workers that had the dataset in hand were lost, again when it was begun once more."""


class InternalError(DatasetError):
    """A bug of ours or of a library stopped the dataset; ``trace`` is its traceback."""

    def __init__(self, message: str, trace: str = "") -> None:
        super().__init__(message)
        self.trace = trace

    def __reduce__(self) -> tuple[type["InternalError"], tuple[str, str]]:
        return type(self), (str(self), self.trace)


class WriteError(DatasetError):
    """An output could not be written."""


def one_line(error: BaseException) -> str:
    """Return ``error`` as one line: its text without line breaks, or its class name when it has none."""
    return " ".join(str(error).split()) or type(error).__name__


_IO: Final = (OSError, EOFError, MemoryError, UnicodeDecodeError)

# Format errors of libraries by module. One that was never imported has raised nothing, so none is imported for this.
_FORMAT: Final = {
    "csv": ("Error",),
    "json": ("JSONDecodeError",),
    "lzma": ("LZMAError",),
    "pyarrow": ("ArrowInvalid", "ArrowSerializationError", "ArrowNotImplementedError"),
    "safetensors": ("SafetensorError",),
    "torch": ("OutOfMemoryError",),
    "yaml": ("YAMLError",),
    "zipfile": ("BadZipFile",),
    "zlib": ("error",),
}


def is_foreign(error: BaseException) -> bool:
    """Whether ``error`` is one of input, output, memory or a file's format, which no code of ours can prevent."""
    if isinstance(error, _IO) or _of_hdf5(error):
        return True
    modules = ((sys.modules.get(module), names) for module, names in _FORMAT.items())
    known = (getattr(module, name, None) for module, names in modules if module for name in names)
    return any(isinstance(one, type) and isinstance(error, one) for one in known)


def _of_hdf5(error: BaseException) -> bool:
    """Whether the HDF5 library raised ``error``: it has no classes of its own, but compiled frames and set words."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    said = str(error).lstrip("'\"").startswith(("Unable to ", "Can't "))
    return said and trace is not None and trace.tb_frame.f_code.co_filename.startswith("h5py")


@contextmanager
def boundary(error_class: type[CellRayError], what: str, *formats: type[Exception]) -> Iterator[None]:
    """Re-raise errors of input, output and file formats as ``error_class``; a bug passes and keeps its trace.

    Parameters
    ----------
    error_class
        Class raised for errors of libraries. Errors of ours pass unchanged but gain a note.
    what
        The thing at hand, e.g. ``"dataset 'liver' rows 0-8192"``; it stands in front of the message.
    *formats
        Further classes that mean a wrong format here, as ``ValueError`` does where a record is parsed.
    """
    try:
        yield
    except CellRayError as error:
        error.add_note(what)
        raise
    except Exception as error:
        if not isinstance(error, formats) and not is_foreign(error):
            raise
        msg = f"{what}: {one_line(error)}"
        raise error_class(msg) from error


LOADING: Final = (ValueError, KeyError, TypeError, RuntimeError)
"""What the libraries of language models make of a folder that holds no such model, or a damaged one."""


def internal(error: BaseException, what: str) -> InternalError:
    """Return the ``InternalError`` that stands for a bug; an error with a trace already has one."""
    if isinstance(error, InternalError):
        return error
    msg = f"{what}: {type(error).__name__}: {one_line(error)}; this is a bug of CellRay"
    return InternalError(msg, "".join(traceback.format_exception(error)))
