"""What a plugin author tests with: contract suites to inherit, and pytest fixtures.

    from llamafarm.testing.contracts import MethodContract

    class TestMyMethod(MethodContract):
        component = MyMethod

The fixtures (`tiny_model_dir`, `tiny_dataset`, `run_strategy`) come with the installation: pytest finds them through
the `pytest11` entry point. This package imports nothing, so that a pytest run which needs none of it pays nothing.
"""

from __future__ import annotations
