"""The arithmetic of causal attention within documents, in float32, forward and backward.

With q, k, v of a head and document, scores S = scale q k' (no later key), weights P = softmax(S) and result P v; for
the gradient g of the result:
    dv = P' g,   dP = g v',   dS = P∘(dP - sum(dP∘P)),   dq = scale dS k,   dk = scale dS' q

`Flash` is PyTorch's kernel. Its products go through MKL, which takes its slower road on other makers' processors, so
there `Blocks` computes the same with oneDNN's batched products: some rows of a document at a time against the keys
up to the last of them. Weights are computed again on the way back, so memory stays linear in the tokens. Documents are
filled up to a multiple of 16 or 32, as oneDNN compiles a kernel for each new shape (half a millisecond).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch

from llamafarm_tuners.pytorch.fast._linear import batched_products, batched_products_pay

_attend = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu  # noqa: SLF001  # what F.sdpa calls
_attend_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward  # noqa: SLF001
_softmax_backward = torch.ops.aten._softmax_backward_data.out  # noqa: SLF001  # what softmax's own way back calls

_FINE, _COARSE, _FINE_UP_TO = 16, 32, 128
"""Documents are filled up to a multiple of the first up to the third, of the second beyond."""

_ROWS = 160
"""Queries at a time, about: fewer are slow products, with more of them keys are multiplied that are masked."""

_SCORES = 2**19
"""Scores at a time, about: with their gradients they fit into the second and third cache."""

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def attend(parts: Tensors, lengths: Sequence[int], scale: float, out: torch.Tensor) -> list[torch.Tensor]:
    """Causal attention within documents.

    Args:
        parts: q of (heads, tokens, size), k and v of (key heads, tokens, size), float32.
        lengths: Of the documents.
        scale: Of the scores.
        out: (tokens, heads, size): where the result goes.

    Returns:
        What `attend_backward` wants.
    """
    return (_blocks if batched_products_pay() else _flash)(parts, lengths, scale, out)


def attend_backward(
    gradient: torch.Tensor,
    parts: Tensors,
    done: tuple[torch.Tensor, Sequence[torch.Tensor]],
    lengths: Sequence[int],
    scale: float,
    into: Tensors,
) -> None:
    """The way back of `attend`.

    Args:
        gradient: Of `out`, (heads, tokens, size) in float32.
        parts: What `attend` was given.
        done: Its `out`, and what it returned.
        lengths: Of the documents.
        scale: Of the scores.
        into: Like `parts`: where the gradients of q, k, v go.
    """
    if batched_products_pay():
        _blocks_backward(gradient, parts, lengths, scale, into)
    else:
        _flash_backward(gradient, parts, done, lengths, scale, into)


def _flash(parts: Tensors, lengths: Sequence[int], scale: float, out: torch.Tensor) -> list[torch.Tensor]:
    sums, start = [], 0
    for length in lengths:
        q, k, v = (part[None, :, start : start + length] for part in parts)
        result, total = _attend(q, k, v, 0.0, True, scale=scale)
        out[start : start + length] = result[0].transpose(0, 1)
        sums.append(total)
        start += length
    return sums


def _flash_backward(
    gradient: torch.Tensor,
    parts: Tensors,
    done: tuple[torch.Tensor, Sequence[torch.Tensor]],
    lengths: Sequence[int],
    scale: float,
    into: Tensors,
) -> None:
    out, start = done[0].transpose(0, 1).float(), 0
    for length, total in zip(lengths, done[1], strict=True):
        span = slice(start, start + length)
        q, k, v = (part[None, :, span] for part in parts)
        given = gradient[None, :, span], q, k, v, out[None, :, span], total
        for target, piece in zip(into, _attend_backward(*given, 0.0, True, scale=scale), strict=True):
            target[:, span] = piece[0]
        start += length


class _Piece(NamedTuple):
    """Some heads of a document.

    Attributes:
        keys: Which key heads.
        queries: Which query heads: as many for each key head.
        start: The document's first token.
        length: Its tokens.
        filled: Its tokens with what they are filled up with.
    """

    keys: slice
    queries: slice
    start: int
    length: int
    filled: int

    @property
    def span(self) -> slice:
        """The document's tokens."""
        return slice(self.start, self.start + self.length)

    def blocks(self) -> Iterator[tuple[int, int, slice]]:
        """The document's queries some at a time: from, to, and which tokens that is, without the filling."""
        rows = _rows(self.filled)
        for first in range(0, self.filled, rows):
            last = min(first + rows, self.filled)
            yield first, last, slice(self.start + first, self.start + min(last, self.length))


def _rows(filled: int) -> int:
    count = -(-filled // _ROWS)
    return -(-filled // (count * _FINE)) * _FINE


def _pieces(parts: Tensors, lengths: Sequence[int]) -> Iterator[_Piece]:
    """All documents, with as many heads at a time as fit into the cache."""
    (heads, _, _), (keys, _, _) = parts[0].shape, parts[1].shape
    share, start = heads // keys, 0
    for length in lengths:
        unit = _FINE if length <= _FINE_UP_TO else _COARSE
        filled = -(-length // unit) * unit
        most = max(1, _SCORES // (share * _rows(filled) * filled))
        for first in range(0, keys, most):
            last = min(first + most, keys)
            yield _Piece(slice(first, last), slice(first * share, last * share), start, length, filled)
        start += length


class _Scratch:
    """Memory that is used again for each block: what is new comes from the kernel, page by page."""

    def __init__(self) -> None:
        self._stores: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, *shape: int) -> torch.Tensor:
        count = 1
        for size in shape:
            count *= size
        store = self._stores.get(name)
        if store is None or store.numel() < count:
            store = self._stores[name] = torch.empty(count)
        return store[:count].view(shape)

    def filled(self, name: str, part: torch.Tensor, rows: int, scale: float = 1.0) -> torch.Tensor:
        """(heads, some rows, size) → (heads, rows, size), scaled, and zeros where there was nothing."""
        copy = self(name, len(part), rows, part.shape[2])
        length = part.shape[1]
        torch.mul(part, scale, out=copy[:, :length]) if scale != 1.0 else copy[:, :length].copy_(part)
        copy[:, length:].zero_()
        return copy

    def product(self, name: str, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.bmm(x, y, out=self(name, len(x), x.shape[1], y.shape[2]))


@cache
def _later(rows: int) -> torch.Tensor:
    """(rows, rows): minus infinity where the key comes after the query, else 0."""
    return torch.full((rows, rows), -torch.inf).triu_(1)


def _weights(scratch: _Scratch, queries: torch.Tensor, keys: torch.Tensor, first: int) -> torch.Tensor:
    """P for the queries from `first` to the last of the keys; a key head's queries stand one after the other."""
    scores = scratch.product("scores", queries, keys.transpose(1, 2))
    rows = keys.shape[1] - first
    scores.view(-1, rows, keys.shape[1])[..., first:].add_(_later(rows))
    return torch.softmax(scores, -1, out=scores)


def _blocks(parts: Tensors, lengths: Sequence[int], scale: float, out: torch.Tensor) -> list[torch.Tensor]:
    q, k, v = parts
    scratch = _Scratch()
    with batched_products():
        for piece in _pieces(parts, lengths):
            keys = scratch.filled("k", k[piece.keys, piece.span], piece.filled)
            values = scratch.filled("v", v[piece.keys, piece.span], piece.filled)
            for first, last, span in piece.blocks():
                queries = scratch.filled("q", q[piece.queries, span], last - first, scale).view(
                    len(keys), -1, q.shape[2]
                )
                weights = _weights(scratch, queries, keys[:, :last], first)
                result = scratch.product("result", weights, values[:, :last]).view(-1, last - first, v.shape[2])
                out[span, piece.queries] = result[:, : span.stop - span.start].transpose(0, 1)
    return []


def _blocks_backward(
    gradient: torch.Tensor, parts: Tensors, lengths: Sequence[int], scale: float, into: Tensors
) -> None:
    (q, k, v), (of_q, of_k, of_v) = parts, into
    size, scratch = q.shape[2], _Scratch()
    with batched_products():
        for piece in _pieces(parts, lengths):
            keys = scratch.filled("k", k[piece.keys, piece.span], piece.filled)
            values = scratch.filled("v", v[piece.keys, piece.span], piece.filled)
            of_keys, of_values = scratch("of_k", *keys.shape).zero_(), scratch("of_v", *values.shape).zero_()
            for first, last, span in piece.blocks():
                queries = scratch.filled("q", q[piece.queries, span], last - first, scale).view(len(keys), -1, size)
                given = scratch.filled("g", gradient[piece.queries, span], last - first).view(len(keys), -1, v.shape[2])
                weights = _weights(scratch, queries, keys[:, :last], first)
                of_weights = scratch.product("of_weights", given, values[:, :last].transpose(1, 2))
                of_values[:, :last] += scratch.product("sum", weights.transpose(1, 2), given)
                of_scores = _softmax_backward(of_weights, weights, -1, torch.float32, grad_input=of_weights)
                of_queries = scratch.product("result", of_scores, keys[:, :last]).view(-1, last - first, size)
                torch.mul(of_queries[:, : span.stop - span.start], scale, out=of_q[piece.queries, span])
                of_keys[:, :last] += scratch.product("sum", of_scores.transpose(1, 2), queries)
            of_k[piece.keys, piece.span] = of_keys[:, : piece.length]
            of_v[piece.keys, piece.span] = of_values[:, : piece.length]
