"""Medians of CPU seconds, so that a busy machine matters little, and the machine that they are of."""

import os
import platform
import statistics
import time
from pathlib import Path

import torch

REPEATS = 7


def cpu_seconds(work, repeats=REPEATS):
    """The median of CPU seconds of a call, after one that warms up."""
    work()
    spent = []
    for _ in range(repeats):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return statistics.median(spent)


def processor():
    file = Path("/proc/cpuinfo")
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def machine():
    """What the figures are of: rows (name, value)."""
    count = 32_000_000
    source, target = torch.rand(count, dtype=torch.float64), torch.empty(count, dtype=torch.float64)
    copy = 16 * count / cpu_seconds(lambda: target.copy_(source)) / 1e9
    square = torch.rand(1024, 1024, dtype=torch.float64)
    multiply = 2 * 1024**3 / cpu_seconds(lambda: square @ square) / 1e9
    numbers = torch.rand(32_768, dtype=torch.float64)
    out = torch.empty_like(numbers)
    exponential = cpu_seconds(lambda: [torch.exp(numbers, out=out) for _ in range(100)]) / 100 / len(numbers) * 1e9
    return [
        ("processor", f"{processor()}, {os.cpu_count()} cores seen, one thread used"),
        ("vector instructions", torch.backends.cpu.get_cpu_capability()),
        ("torch", torch.__version__),
        ("copying, read and written", f"{copy:.1f} GB/s"),
        ("multiply-adds (matrix product, float64)", f"{multiply:.1f} Gflop/s"),
        ("exponential of a float64 in cache", f"{exponential:.2f} ns"),
    ]
