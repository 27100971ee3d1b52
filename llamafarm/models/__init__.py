"""Base models: where they are, loading them, and generating with them. Importing this loads nothing heavy."""

from __future__ import annotations

import os
import sys
from typing import Any

# Kernels that a model's config names would otherwise be fetched from the hub and run. transformers reads the variable
# when it is first imported, so it has to be set here; bitsandbytes heeds none, and asks for the package alone.
if os.environ.setdefault("USE_HUB_KERNELS", "0") == "0":
    modules: dict[str, Any] = sys.modules  # None as a module: not to be imported
    modules.setdefault("kernels", None)
