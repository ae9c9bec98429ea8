"""Where it was measured: what a latency figure means nothing without."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

BUSY_CORES = 0.25
_BUSY = ("user", "nice", "system", "irq", "softirq", "steal")


@dataclass(frozen=True)
class Environment:
    """The machine, the software and the load, recorded beside the numbers.

    Attributes:
        device: the accelerator's name, or "cpu".
        threads: intra-op threads of torch.
        load_before, load_after: one-minute load average at the start and the end.
        others_busy_cores: CPU time that other processes took during the measurement, per second of it.
    """

    knorm: str
    torch: str
    transformers: str
    python: str
    platform: str
    cpu: str
    cpu_capability: str
    cores: int
    device: str
    dtype: str
    attention: str
    threads: int
    interop_threads: int
    load_before: float
    load_after: float
    others_busy_cores: float

    @property
    def busy(self) -> bool:
        """Whether other processes took so much that times are to be read with care."""
        return self.others_busy_cores > BUSY_CORES


@contextmanager
def watched(model: nn.Module) -> Iterator[Callable[[], Environment]]:
    """Watch the machine's load from here on; what is yielded returns the environment up to that moment."""
    import psutil

    def times() -> tuple[float, float]:
        machine, own = psutil.cpu_times(), process.cpu_times()
        return sum(getattr(machine, kind, 0.0) for kind in _BUSY), own.user + own.system

    process = psutil.Process()
    load_before = psutil.getloadavg()[0]
    begin, (machine_before, own_before) = time.monotonic(), times()

    def environment() -> Environment:
        machine, own = times()
        others = (machine - machine_before) - (own - own_before)
        parameter = next(model.parameters())
        config: Any = model.config
        return Environment(
            knorm=_version("knorm"),
            torch=torch.__version__,
            transformers=_version("transformers"),
            python=platform.python_version(),
            platform=platform.platform(),
            cpu=cpu_name(),
            cpu_capability=torch.backends.cpu.get_cpu_capability(),
            cores=psutil.cpu_count() or 1,
            device=torch.cuda.get_device_name(parameter.device) if parameter.is_cuda else parameter.device.type,
            dtype=str(parameter.dtype).removeprefix("torch."),
            attention=str(config._attn_implementation),
            threads=torch.get_num_threads(),
            interop_threads=torch.get_num_interop_threads(),
            load_before=load_before,
            load_after=psutil.getloadavg()[0],
            others_busy_cores=max(0.0, others) / max(time.monotonic() - begin, 1e-9),
        )

    yield environment


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def cpu_name() -> str:
    """The processor's name, as it tells the system."""
    # platform.processor() is empty on most Linux systems
    description = Path("/proc/cpuinfo")
    if description.exists():
        for line in description.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
