"""Compiled products that stay: how many, and that the libraries heed it."""

from __future__ import annotations

import sys

import pytest

from llamafarm.testing.fresh import fresh
from llamafarm_tuners.pytorch import onednn

GROWS = """
import os
import torch
from llamafarm_tuners.pytorch.onednn import keep_few
os.environ.pop("ONEDNN_PRIMITIVE_CACHE_CAPACITY", None)
os.environ.pop("LRU_CACHE_CAPACITY", None)
if arguments[0]:
    keep_few()
def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096
weight = torch.rand(64, 176)
def products(start, stop):
    for tokens in range(start, stop):
        torch.ops.mkldnn._linear_pointwise(torch.rand(tokens, 176), weight, None, "none", [], "")
    return resident()
filled = products(40, 200)
answer = products(200, 400) - filled
"""


def test_what_the_user_has_set_stays():
    given = {"LRU_CACHE_CAPACITY": "7"}
    onednn.keep_few(given)
    assert given == {"LRU_CACHE_CAPACITY": "7", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": str(onednn.KEPT)}
    assert onednn.kept(given) == onednn.KEPT
    assert onednn.kept({**given, "LRU_CACHE_CAPACITY": "500"}) == 500
    assert onednn.kept({"LRU_CACHE_CAPACITY": "many"}) == onednn.kept({}) == onednn.KEPT


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_new_shapes_cost_no_memory_once_as_many_are_there():
    """200 more shapes: with a thousand kept they take 100 MiB and more, and next to nothing otherwise."""
    grown = fresh(GROWS, True)
    if fresh(GROWS, False) < 40 * 2**20:
        pytest.skip("products of float32 are not compiled on this processor")
    assert grown < 20 * 2**20


@pytest.mark.parametrize(
    ("details", "width", "compiled"),
    [
        ({}, 4.0, False),
        ({"maker": "GenuineIntel"}, 4.0, False),
        ({"maker": "AuthenticAMD"}, 4.0, True),
        ({}, 2.0, True),
    ],
)
def test_where_products_are_compiled(details, width, compiled):
    assert onednn.computes(details, width) is compiled
