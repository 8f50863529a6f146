"""What the run runs on: GPU, driver, versions, and the attention kernels that work."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers.utils import is_flash_attn_2_available

from vitcop.environment import device_name, versions

from .task import Task

PACKAGES = ("flash-attn", "kernels", "triton", "accelerate", "torchvision", "numpy", "jaxtyping", "pillow")
KERNELS = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.MATH)


def run(task: Task) -> None:
    """Fails only where nothing else could run either."""
    device = task.device
    torch.ones(8, 8, device=device).matmul(torch.ones(8, 8, device=device)).sum().item()
    found = task.found
    found |= {
        "device": device_name(device),
        "versions": versions() | {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "sdpa": {kernel.name: _state(kernel, device) for kernel in KERNELS},
        # By its package alone: what transformers fetches in its place is on a hub.
        "flash_attention_2": is_flash_attn_2_available(),
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info()
        found |= {"bytes": {"free": free, "total": total}, "cuda": torch.version.cuda, "driver": _driver()}
    able = [name for name, state in found["sdpa"].items() if state == "works"]
    flash = "works" if found["flash_attention_2"] else "is not installed: not compared"
    found["lines"] += [
        ", ".join([found["device"], *(f"{name} {found['versions'][name]}" for name in ("torch", "transformers"))]),
        f"sdpa with {', '.join(able) or 'none'}; flash_attention_2 {flash}",
    ]
    task.save()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _state(kernel: SDPBackend, device: torch.device) -> str:
    """Whether causal bfloat16 attention works with this kernel alone."""
    states = torch.ones(1, 2, 16, 64, dtype=torch.bfloat16, device=device)
    try:
        with sdpa_kernel(kernel):
            scaled_dot_product_attention(states, states, states, is_causal=True).sum().item()
    except Exception as error:
        return str(error)
    return "works"


def _driver() -> str:
    """What nvidia-smi says."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total,memory.free", "--format=csv,noheader"]
    try:
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
