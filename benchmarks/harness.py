"""What the benchmarks share: the fastest of some passes, peers that may be missing, and one JSON of all of it."""

import argparse
import importlib
import json
import os
import platform
import time
from importlib.metadata import version

_FLAGS = ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile", "asimd", "sve")
skipped, versions = {}, {}


def parser(description):
    """An argument parser with `--repeats` and `--out`."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--repeats", type=int, default=3, help="the fastest of these counts")
    made.add_argument("--out", help="a JSON file for the numbers")
    return made


def peer(module, package):
    """A module and, in `versions`, its package; None, and a line in `skipped`, where it cannot be imported."""
    try:
        found = importlib.import_module(module)
    except Exception as error:  # a broken install (torchvision beside another torch) is no peer
        print(f"skipped {package}: {type(error).__name__}: {error}")
        skipped[package] = str(error)
        return None
    versions[package] = version(package)
    return found


def fastest(functions, repeats):
    """{name: (seconds, result)} of functions that take turns, so that a burst of other load meets all of them."""
    best = {}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            result = function()
            seconds = time.perf_counter() - start
            if name not in best or seconds < best[name][0]:
                best[name] = seconds, result
    return best


def machine():
    """Processor, the instruction sets that matter here, cores and load."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = file.read().splitlines()
    except OSError:
        lines = []
    told = {line.partition(":")[0].strip().lower(): line.partition(":")[2].strip() for line in lines}
    flags = (told.get("flags") or told.get("features") or "").split()
    return {
        "processor": told.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in _FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
    }


def report(args, results, packages=()):
    """Write settings, machine, versions and results to `--out`, or print them."""
    versions.update({package: version(package) for package in ("entrep", "numpy", *packages)})
    whole = {"settings": vars(args), "machine": machine(), "versions": versions, "skipped": skipped, "results": results}
    text = json.dumps(whole, indent=2)
    if args.out:
        with open(args.out, "w", encoding="utf-8") as file:
            file.write(text + "\n")
    else:
        print(text)
