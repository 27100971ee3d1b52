from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_spec = importlib.util.spec_from_file_location("method_steps", Path(__file__).with_name("method_steps.py"))
_steps = importlib.util.module_from_spec(_spec)
sys.modules["method_steps"] = _steps
_spec.loader.exec_module(_steps)
