"""What decides numbers besides a cell: this package's code, the processor, threads, and torch's switches."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path
from typing import Any

import torch

# The folders whose sources decide numbers: the core, how it is computed, what goes in, and the experiments.
_DECIDES = (".", "policies", "methods", "inputs", "experiments")


def code_files() -> list[Path]:
    """The sources of this package that numbers may depend on."""
    root = Path(__file__).parents[1]
    return sorted(path for folder in _DECIDES for path in (root / folder).glob("*.py"))


# Variables by which libraries below torch choose instructions or precision when a process starts.
_VARIABLES = (
    "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG", "DNNL_DEFAULT_FPMATH_MODE", "DNNL_MAX_CPU_ISA", "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS", "NVIDIA_TF32_OVERRIDE", "ONEDNN_DEFAULT_FPMATH_MODE", "ONEDNN_MAX_CPU_ISA",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "TRANSFORMERS_SDPA_FORCE_GQA",
)  # fmt: skip
_PROCESS = uuid.uuid4().hex

# When this module is imported, as the others are: sources may be edited while a process runs on the old ones.
_CODE = hashlib.sha256(b"".join(hashlib.sha256(path.read_bytes()).digest() for path in code_files())).hexdigest()


def versions() -> dict[str, str]:
    """The code that decides numbers: this package's sources by hash, torch, and transformers."""
    import transformers

    return {"knorm_core": _CODE, "torch": torch.__version__, "transformers": transformers.__version__}


def environment(device: str) -> dict[str, Any]:
    """What decides numbers besides a cell: code, processor, threads, and torch's switches for the whole process."""
    kind = torch.device(device).type
    if kind == "cuda":
        kind = torch.cuda.get_device_name(device)
    elif kind == "cpu":
        kind = f"cpu {torch.backends.cpu.get_cpu_capability()}"
    return {**versions(), "device": kind, "threads": torch.get_num_threads(), "switches": switches(device)}


def switches(device: str) -> dict[str, Any]:
    """Every switch of torch for the whole process or thread that changes a number."""
    kind = torch.device(device).type
    values: dict[str, Any] = {
        "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else "off",
        "float32_matmul_precision": _matmul_precision(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "mkldnn": [torch.backends.mkldnn.enabled, _float32_products(torch.backends.mkldnn)],
        "attention": [
            torch.backends.cuda.math_sdp_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
        ],
        "denormals": "kept" if bool(torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1 > 0) else "flushed",
        "variables": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        "code": _code_around(),
    }
    if kind == "cuda":
        products = torch.backends.cuda.matmul
        values["reduced_precision"] = [
            _float32_products(torch.backends.cuda),
            products.allow_fp16_reduced_precision_reduction,
            products.allow_bf16_reduced_precision_reduction,
        ]
    return values


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # torch 2.9 and later refuse to say, once it was set backend by backend
        return "by backend"


def _code_around() -> list[str]:
    """Code of others that torch calls for every module or function in this process, which no other process has."""
    modules = torch.nn.modules.module
    hooks = [*modules._global_forward_pre_hooks.values(), *modules._global_forward_hooks.values()]
    modes = [
        *torch.overrides._get_current_function_mode_stack(),
        *torch.utils._python_dispatch._get_current_dispatch_mode_stack(),
    ]
    around = [*hooks, *(mode for mode in modes if type(mode).__name__ != "DeviceContext")]
    return [f"{getattr(each, '__qualname__', type(each).__qualname__)} {id(each)} in {_PROCESS}" for each in around]


def _float32_products(backend: Any) -> Any:
    """How precise a backend's float32 matrix products are; torch 2.9 gave the switch another name."""
    products = getattr(backend, "matmul", None)
    precision = getattr(products, "fp32_precision", None) or getattr(products, "allow_tf32", None)
    return "ieee" if precision == "none" else precision  # where nobody has said anything, and where it was put back
