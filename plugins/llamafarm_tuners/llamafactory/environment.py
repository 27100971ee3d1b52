"""LLaMA-Factory as a backend: what is set up for it, and the environment its process gets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from llamafarm.api import Backend, Comparison, Installed, TrainStrategy

_HERE = Path(__file__).parent


def _parity(state: Installed, folder: Path, train: TrainStrategy) -> Sequence[Comparison]:
    from llamafarm_tuners.llamafactory._parity import compare

    return compare(state, folder, train)


BACKEND = Backend(
    name="llamafactory",
    summary="LLaMA-Factory, whose requirements exclude ours",
    requirements=_HERE / "requirements.txt",
    probe=_HERE / "_probe.py",
    stubs={"torchaudio/__init__.py": '"""Stands in for torchaudio, which text does not need."""\n'},
    disk_bytes=5 << 30,
    parity=_parity,
)

PPO = Backend(
    name="llamafactory-ppo",
    summary="LLaMA-Factory 0.9.3, whose stage ppo works",
    requirements=_HERE / "requirements_ppo.txt",
    probe=_HERE / "_probe.py",
    disk_bytes=5 << 30,
    python_below=(3, 13),
)
"""Beside the current release, because the trl that this stage needs excludes all that the others need."""


def backend_for(stage: str) -> Backend:
    """The environment that trains a stage."""
    return PPO if stage == "ppo" else BACKEND


_KEPT = frozenset(
    {
        "HOME", "USER", "LOGNAME", "LANG", "TZ", "TMPDIR", "TEMP", "SHELL", "LD_LIBRARY_PATH", "XDG_CACHE_HOME",
        "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy",
        "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "OMP_NUM_THREADS", "MKL_NUM_THREADS",
    }
)  # fmt: skip
_KEPT_FAMILIES = ("LC_", "CUDA_", "NVIDIA_", "NCCL_", "PYTORCH_", "HSA_", "HIP_", "ROCR_")
_HUB = frozenset({"HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_XET_CACHE"})


def child_environment(python: Path, given: Mapping[str, str], *, hub: bool, one_gpu: bool) -> dict[str, str]:
    """What LLaMA-Factory's process finds in its environment: an allow-list, so that nothing of ours leads it astray.

    Args:
        python: Its interpreter; its folder is the first on the path.
        given: Our own environment.
        hub: Whether the base model is on the hub: only then it gets a way there, and a token if there is one.
        one_gpu: Show it the first device alone, because one process trains.
    """
    kept = {name: value for name, value in given.items() if name in _KEPT or name.startswith(_KEPT_FAMILIES)}
    kept |= {name: value for name, value in given.items() if name in _HUB}
    kept["PATH"] = os.pathsep.join([str(python.parent), given.get("PATH", os.defpath)])
    kept |= {
        "PYTHONUNBUFFERED": "1",
        "PYTHONNOUSERSITE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "WANDB_MODE": "disabled",
    }
    if hub:
        kept |= {name: given[name] for name in ("HF_TOKEN", "HF_TOKEN_PATH") if name in given}
    else:
        kept |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    if one_gpu:
        kept["CUDA_VISIBLE_DEVICES"] = given.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    return kept
