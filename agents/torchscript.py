"""Tensors of a TorchScript archive, read without running the program in it."""

from __future__ import annotations

import pickletools
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LARGEST_PROGRAM = 64 * 2**20
"""Bytes of the archive's description of its objects; that of a CLIP model takes under 1 MiB."""
MOST_OBJECTS = 100_000
"""Parts and tensors of one model."""
LONGEST_NAME = 1_000
_REBUILD = "torch._utils _rebuild_tensor_v2"
_MARK = object()
_IGNORED = {"PROTO", "FRAME", "STOP"}


def is_torchscript(path: Path) -> bool:
    """Whether a file is an archive as torch.jit saves it."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of the saved module by their dotted names, as its `state_dict` would give them.

    `torch.jit.load` compiles and may run what is in the archive. Here only the stream that describes the module's
    objects is walked, one operation after the other: names of classes stay words, and nothing is imported or called.

    Parameters
    ----------
    path : Path
        The archive, such as one of the original CLIP models.

    Returns
    -------
    dict of str to Tensor
        On the CPU.

    Raises
    ------
    ValueError
        When the archive is damaged, keeps its numbers compressed, is larger than the limits, or holds objects of an
        unknown kind.

    References
    ----------
    "TorchScript serialization", pytorch/torch/csrc/jit/docs/serialization.md.
    """
    with zipfile.ZipFile(path) as archive:
        files = {entry.filename: entry for entry in archive.infolist()}
        found = [name for name in files if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(found) != 1:
            raise ValueError(f"the archive holds {len(found)} descriptions of a module, not 1")
        if files[found[0]].file_size > LARGEST_PROGRAM:
            raise ValueError(f"its description takes more than {LARGEST_PROGRAM} bytes")
        root = found[0].removesuffix("/data.pkl")
        if f"{root}/byteorder" in files and archive.read(f"{root}/byteorder") != b"little":
            raise ValueError("its numbers are in big-endian order")
        storages = _Storages(lambda key: _stored(archive, f"{root}/data/{key}"))
        return _by_name(_described(archive.read(found[0]), storages))


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Read numbers as torch.jit writes them, which are no larger than the file that holds them."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"its {name} is compressed, which torch.jit never does")
    return archive.read(name)


class _Storages:
    """The archive's runs of numbers, each read once."""

    def __init__(self, read: Callable[[str], bytes]) -> None:
        self._read = read
        self._known: dict[str, torch.Tensor] = {}

    def tensor(self, storage: tuple[Any, ...], offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
        import torch

        _, kind, key, *_ = storage
        if key not in self._known:
            dtype = getattr(torch, _DTYPES[kind])
            data = bytearray(self._read(key))
            self._known[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
        return torch.as_strided(self._known[key], size, stride, offset)  # refuses what lies outside


_DTYPES = {
    "torch HalfStorage": "float16",
    "torch BFloat16Storage": "bfloat16",
    "torch FloatStorage": "float32",
    "torch DoubleStorage": "float64",
    "torch ByteStorage": "uint8",
    "torch CharStorage": "int8",
    "torch ShortStorage": "int16",
    "torch IntStorage": "int32",
    "torch LongStorage": "int64",
    "torch BoolStorage": "bool",
}


def _described(program: bytes, storages: _Storages) -> Any:
    """Walk the operations; a module becomes the dict of its attributes, and what is neither data nor tensor None."""
    stack: list[Any] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = max(i for i, item in enumerate(stack) if item is _MARK)
        items = stack[start + 1 :]
        del stack[start:]
        return items

    for operation, argument, _ in pickletools.genops(program):
        match operation.name:
            case "GLOBAL" | "BINUNICODE" | "SHORT_BINUNICODE" | "BININT" | "BININT1" | "BININT2" | "LONG1" | "BINFLOAT":
                stack.append(argument)
            case "NEWTRUE" | "NEWFALSE" | "NONE":
                stack.append({"NEWTRUE": True, "NEWFALSE": False, "NONE": None}[operation.name])
            case "MARK":
                stack.append(_MARK)
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "EMPTY_TUPLE" | "EMPTY_LIST" | "EMPTY_DICT":
                stack.append({"EMPTY_TUPLE": (), "EMPTY_LIST": [], "EMPTY_DICT": {}}[operation.name])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack[-int(operation.name[-1]) :] = [tuple(stack[-int(operation.name[-1]) :])]
            case "APPEND":
                stack[-2].append(stack.pop())
            case "APPENDS":
                items = since_mark()
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                stack[-1][key] = value
            case "SETITEMS":
                items = since_mark()
                stack[-1].update(zip(items[::2], items[1::2], strict=True))
            case "NEWOBJ":
                stack[-2:] = [{}]
            case "BUILD":
                state = stack.pop()
                if isinstance(state, dict) and isinstance(stack[-1], dict):
                    stack[-1].update(state)
            case "REDUCE":
                call, given = stack[-2:]
                stack[-2:] = [storages.tensor(*given[:4]) if call == _REBUILD else None]
            case "BINPERSID":
                pass  # the tuple that names a storage stands for it
            case name if name not in _IGNORED:
                raise ValueError(f"its description has an operation that is not expected there, {name}")
    return stack[-1]


def _by_name(module: Any) -> dict[str, torch.Tensor]:
    """Flatten nested modules; the limit also ends what holds itself."""
    import torch

    tensors: dict[str, torch.Tensor] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    seen = 0
    while waiting:
        name, value = waiting.pop()
        seen += 1
        if seen > MOST_OBJECTS or len(name) > LONGEST_NAME:
            raise ValueError(f"it holds more than {MOST_OBJECTS} objects, or parts within parts without end")
        if isinstance(value, torch.Tensor):
            tensors[name] = value
        elif isinstance(value, dict):
            waiting += [(f"{name}.{key}" if name else str(key), part) for key, part in value.items()]
    return tensors
