"""The compiled kernels on tensors: passes over memory that PyTorch would make one after the other, as one.

What they compute is said in `_head`, `_layers` and `_attend`, which compute the same by PyTorch where these are
missing: not built, switched off, or given tensors that they do not take. Arithmetic is in float32, but for products of
bfloat16 where the processor has them (`pairs`), whose sums are; results are rounded once. No result depends on the
number of threads, which are PyTorch's own.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any, TypeAlias

import torch

from llamafarm_tuners.pytorch.fast.native import PAIRS, Library, library

_FORMATS = (torch.float32, torch.bfloat16)
_MAPS = Path("/proc/self/maps")
_pointer, _int, _long, _float = ctypes.c_void_p, ctypes.c_int, ctypes.c_ssize_t, ctypes.c_float

_ARGUMENTS: dict[str, list[Any]] = {
    "head": [_pointer, _int, _long, _long, _pointer, _pointer, _int],
    "norm": [_pointer, _int, _long, _long, _pointer, _int, _float, _int, _pointer, _pointer, _int],
    "norm_back": [_pointer, _pointer, _int, _long, _long, _pointer, _pointer, _pointer, _int],
    "gated": [_pointer, _int, _long, _long, _int, _pointer, _int],
    "gated_back": [_pointer, _pointer, _int, _long, _long, _int, _pointer, _int],
    "attend": [_pointer],
    "attend_back": [_pointer],
    "down": [_pointer],
    "up": [_pointer],
    "across": [_pointer],
    "draw": [_pointer, _long, ctypes.c_double, _pointer],
    "pack": [_pointer, _long, _pointer],
    "kept": [_pointer, _pointer, _int, _long, _long, _pointer, _int, _int],
}
_COUNTS = ("head",)
"""Functions that return a number."""

_LANES = 16
"""Numbers in the widest vector."""

GENERATOR_BYTES = 5056
"""Of the state of PyTorch's generator on a CPU, whose beginning is `Generator` in drop.c."""


class _Place(ctypes.Structure):
    """Where heads are: `Place` in attention.c."""

    _fields_ = (("data", _pointer), ("head", ctypes.c_int64), ("token", ctypes.c_int64), ("half", ctypes.c_int32))


class _Call(ctypes.Structure):
    """`Attention` in attention.c."""

    _fields_ = (
        *((name, _Place) for name in ("q", "k", "v", "out", "of_q", "of_k", "of_v")),
        *((name, _pointer) for name in ("totals", "cos", "sin", "q_weight", "k_weight", "bounds")),
        *((name, ctypes.c_int64) for name in ("documents", "heads", "keys", "size", "wide", "pairs", "tokens")),
        *((name, _float) for name in ("scale", "q_eps", "k_eps")),
        *((name, ctypes.c_int32) for name in ("weight_half", "threads", "refused")),
    )


class _Narrow(ctypes.Structure):
    """`Narrow` in lowrank.c."""

    _fields_ = (
        *((name, _pointer) for name in ("x", "y", "matrix", "out", "packed", "mask")),
        *((name, ctypes.c_int64) for name in ("rows", "rank", "wide", "x_row", "y_row", "m_row", "m_column")),
        ("scale", _float),
        *((name, ctypes.c_int32) for name in ("half", "rest", "threads")),
    )


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """An RMSNorm over heads of q or k: weight of (size,), in float32 what it is in its own format, and eps."""

    weight: torch.Tensor
    eps: float
    half: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """What an attention is besides its q, k and v.

    Attributes:
        lengths: Of the documents.
        scale: Of the scores.
        cos: (tokens, pairs), float32; None: nothing is turned.
        sin: As `cos`.
        norms: Over the heads of q and of k.
    """

    lengths: Sequence[int]
    scale: float
    cos: torch.Tensor | None = None
    sin: torch.Tensor | None = None
    norms: tuple[HeadNorm, HeadNorm] | None = None


Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
Mask: TypeAlias = torch.Tensor | None


class Kernels:
    """The functions of a library. Rows are contiguous, on the CPU, in float32 or bfloat16."""

    def __init__(self, found: Library) -> None:
        self._functions: dict[str, Any] = {}
        for name, arguments in _ARGUMENTS.items():
            function = getattr(found.loaded, f"llamafarm_{name}_{found.level}")
            function.argtypes, function.restype = arguments, _int if name in _COUNTS else None
            self._functions[name] = function
        self.threaded = _share_threads(found.loaded)
        self.pairs = found.level == PAIRS

    def threads(self) -> int:
        """How many threads a function may use now."""
        return int(torch.get_num_threads()) if self.threaded else 1

    def head(self, logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """softmax(logits) - onehot(wanted) in place of the logits of (rows, columns); returns -log softmax, (rows,).

        Raises:
            IndexError: If some `wanted` is no column.
        """
        rows, columns = logits.shape
        losses = torch.empty(rows, dtype=torch.float64)
        wanted = wanted.contiguous()
        given = logits.data_ptr(), _half(logits), rows, columns, wanted.data_ptr(), losses.data_ptr(), self.threads()
        if self._functions["head"](*given):
            raise IndexError(f"a target is not below {columns}")
        return losses

    def norm(
        self, x: torch.Tensor, weight: torch.Tensor, half: bool, eps: float, factor: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """RMSNorm of rows, and their factors, which may be known; `half`: the weight multiplies in bfloat16."""
        rows, columns, out = x.numel() // x.shape[-1], x.shape[-1], torch.empty_like(x)
        factors = torch.empty((rows, 1)) if factor is None else factor
        given = x.data_ptr(), _half(x), rows, columns, weight.data_ptr(), int(half), eps, int(factor is not None)
        self._functions["norm"](*given, factors.data_ptr(), out.data_ptr(), self.threads())
        return out, factors

    def norm_back(
        self, x: torch.Tensor, gradient: torch.Tensor, weight: torch.Tensor, factors: torch.Tensor
    ) -> torch.Tensor:
        """The gradient of x, given that of the normed rows."""
        rows, columns, out = x.numel() // x.shape[-1], x.shape[-1], torch.empty_like(x)
        given = x.data_ptr(), gradient.data_ptr(), _half(x), rows, columns, weight.data_ptr(), factors.data_ptr()
        self._functions["norm_back"](*given, out.data_ptr(), self.threads())
        return out

    def gated(self, both: torch.Tensor, activation: str) -> torch.Tensor:
        """activation(gate) * up of (rows, gate and up)."""
        rows, columns = both.shape[0], both.shape[1] // 2
        out = both.new_empty((rows, columns))
        given = both.data_ptr(), _half(both), rows, columns, int(activation != "silu"), out.data_ptr()
        self._functions["gated"](*given, self.threads())
        return out

    def gated_back(self, both: torch.Tensor, gradient: torch.Tensor, activation: str) -> torch.Tensor:
        """The gradient of `both`, given that of the product."""
        rows, columns, out = both.shape[0], both.shape[1] // 2, torch.empty_like(both)
        given = both.data_ptr(), gradient.data_ptr(), _half(both), rows, columns, int(activation != "silu")
        self._functions["gated_back"](*given, out.data_ptr(), self.threads())
        return out

    def down(
        self, x: torch.Tensor, matrix: torch.Tensor, scale: float, mask: Mask = None, *, rest: bool
    ) -> torch.Tensor:
        """`scale * x M'`, (rows, rank), for M of (rank, wide) in float32; `rest`: with what rounding M loses.

        Here and below rows of (rows, wide) count, or grow, where a mask in bits keeps them.
        """
        y, each = x.new_empty((len(x), len(matrix))), 2 if rest else 1
        blocks = -(-len(matrix) // _LANES)
        self._narrow("down", (x, y, mask), (matrix, None), scale, each * blocks * _LANES * matrix.shape[1], rest=rest)
        return y

    def up(self, y: torch.Tensor, x: torch.Tensor, matrix: torch.Tensor, scale: float, mask: Mask = None) -> None:
        """`y += scale * x M`, for x of (rows, rank) and M of (rank, wide) in float32."""
        self._narrow("up", (x, y, mask), (matrix, None), scale, matrix.numel())

    def across(self, x: torch.Tensor, y: torch.Tensor, scale: float, out: torch.Tensor, mask: Mask = None) -> None:
        """`scale * x' y`, (rank, wide), for x of (rows, rank), goes into `out`, which is float32."""
        self._narrow("across", (x, y, mask), (None, out), scale, (len(x) + 1) * x.shape[1])

    def _narrow(
        self,
        name: str,
        rows: tuple[torch.Tensor, torch.Tensor, Mask],
        narrow: tuple[torch.Tensor | None, torch.Tensor | None],
        scale: float,
        units: int,
        *,
        rest: bool = False,
    ) -> None:
        (x, y, mask), (matrix, out) = rows, narrow
        shape = matrix if matrix is not None else out
        assert shape is not None
        packed = torch.empty(units, dtype=torch.int32)
        call = _Narrow(x=x.data_ptr(), y=y.data_ptr(), packed=packed.data_ptr(), rows=len(x), scale=scale)
        call.matrix, call.out, call.mask = (None if one is None else one.data_ptr() for one in (*narrow, mask))
        (call.rank, call.wide), (call.m_row, call.m_column) = shape.shape, shape.stride()
        call.x_row, call.y_row, call.half, call.rest = x.stride(0), y.stride(0), _half(x), int(rest)
        call.threads = self.threads()
        self._functions[name](ctypes.byref(call))

    def draw(self, generator: torch.Generator, rows: int, columns: int, share: float) -> torch.Tensor:
        """A mask in bits, (rows, columns / 8), of which a share is set, by the Mersenne twister of a generator."""
        state, mask = generator.get_state(), torch.empty((rows, columns // 8), dtype=torch.uint8)
        self._functions["draw"](state.data_ptr(), rows * columns, share, mask.data_ptr())
        generator.set_state(state)
        return mask

    def pack(self, mask: torch.Tensor) -> torch.Tensor:
        """A mask in bits from one in bytes."""
        bits = torch.empty((len(mask), mask.shape[1] // 8), dtype=torch.uint8)
        self._functions["pack"](mask.data_ptr(), mask.numel(), bits.data_ptr())
        return bits

    def kept(self, x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor, *, add: bool) -> None:
        """What a mask in bits keeps of x goes into y, or is added to it."""
        given = x.data_ptr(), mask.data_ptr(), _half(x), *x.shape, y.data_ptr(), int(add)
        self._functions["kept"](*given, self.threads())

    def attend(self, parts: Tensors, shape: Shape, out: torch.Tensor) -> torch.Tensor:
        """Causal attention within documents.

        Args:
            parts: q of (heads, tokens, size), k and v of (key heads, tokens, size), the last without gaps.
            shape: The rest.
            out: (heads, tokens, size of v): where the result goes.

        Returns:
            (heads, tokens): what `attend_back` wants.
        """
        totals = torch.empty(parts[0].shape[:2])
        call, held = self._call(parts, shape, totals)
        call.out = _place(out)
        self._attend("attend", call)
        del held
        return totals

    def attend_back(
        self, gradient: torch.Tensor, parts: Tensors, shape: Shape, totals: torch.Tensor, into: Tensors
    ) -> None:
        """The gradients of `parts` go `into`, given that of `out`, (heads, tokens, size of v)."""
        call, held = self._call(parts, shape, totals)
        call.out = _place(gradient)
        call.of_q, call.of_k, call.of_v = (_place(part) for part in into)
        self._attend("attend_back", call)
        del held

    def _attend(self, name: str, call: _Call) -> None:
        self._functions[name](ctypes.byref(call))
        if call.refused:
            raise MemoryError("no main memory for the scores of attention")

    def _call(self, parts: Tensors, shape: Shape, totals: torch.Tensor) -> tuple[_Call, object]:
        """The arguments, and what must live as long as they are used."""
        q, k, v = parts
        bounds = (ctypes.c_int64 * (len(shape.lengths) + 1))(0, *accumulate(shape.lengths))
        call = _Call(q=_place(q), k=_place(k), v=_place(v), totals=totals.data_ptr(), bounds=ctypes.addressof(bounds))
        (call.heads, call.tokens, call.size), call.documents = q.shape, len(shape.lengths)
        call.keys, call.wide, call.scale = len(k), v.shape[2], shape.scale
        if shape.cos is not None and shape.sin is not None:
            call.cos, call.sin, call.pairs = shape.cos.data_ptr(), shape.sin.data_ptr(), shape.cos.shape[1]
        if shape.norms is not None:
            (of_q, of_k), call.weight_half = shape.norms, int(shape.norms[0].half)
            call.q_weight, call.q_eps = of_q.weight.data_ptr(), of_q.eps
            call.k_weight, call.k_eps = of_k.weight.data_ptr(), of_k.eps
        call.threads = self.threads()
        return call, bounds


_wanted = [True]
"""Whether they may be used: the innermost `switched`."""


@contextmanager
def switched(wanted: bool) -> Iterator[str]:
    """While it lasts, the kernels are used or not.

    Yields:
        Which are, in words.
    """
    _wanted.append(wanted)
    try:
        yield library().told if wanted else "switched off"
    finally:
        _wanted.pop()


def kernels(*given: torch.Tensor) -> Kernels | None:
    """The kernels, if they can be used, and on tensors like these."""
    found = _kernels() if _wanted[-1] else None
    same = all(one.device.type == "cpu" and one.dtype == given[0].dtype and one.dtype in _FORMATS for one in given)
    return found if same else None


def attention_kernels(given: Sequence[torch.Tensor], lengths: Sequence[int], keys: int) -> Kernels | None:
    """The kernels, if they take heads like these, and have work for all threads: a key head of a document is one's."""
    found = kernels(*given)
    dense = all(part.stride(-1) == 1 for part in given)
    return found if found and dense and len(lengths) * keys >= found.threads() else None


@cache
def _kernels() -> Kernels | None:
    found = library()
    return None if found.loaded is None else Kernels(found)


def _share_threads(loaded: Any) -> bool:
    """Give the library the threads of the OpenMP that PyTorch has loaded."""
    lines = _MAPS.read_text(encoding="utf-8", errors="replace").splitlines() if _MAPS.is_file() else []
    paths = {line.split(maxsplit=5)[-1] for line in lines if "/" in line}
    for name in ("libgomp", "libiomp5", "libomp"):
        for path in sorted(one for one in paths if Path(one).name.startswith(name)):
            try:
                runtime = ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_NOW)
                loaded.llamafarm_use_threads(ctypes.cast(runtime.GOMP_parallel, _pointer))
            except (OSError, AttributeError):
                continue
            return True
    return False


def _half(x: torch.Tensor) -> int:
    return int(x.dtype == torch.bfloat16)


def _place(x: torch.Tensor) -> _Place:
    return _Place(x.data_ptr(), x.stride(0), x.stride(1), _half(x))
