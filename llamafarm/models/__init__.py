"""Base models: where they are, loading them, and generating with them. Importing this loads nothing heavy."""

from __future__ import annotations

import os

# Attention kernels named in a model's config would otherwise be fetched from the hub and run. Read by transformers
# when it is first imported, so it has to be set here.
os.environ.setdefault("USE_HUB_KERNELS", "0")
