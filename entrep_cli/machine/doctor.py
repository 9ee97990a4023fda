"""Everything that can prevent entrep from working on a machine, examined one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from entrep_cli.errors import EntrepError, first_line
from entrep_cli.machine import hardware, versions
from entrep_cli.machine.caches import cache_root, folder_size
from entrep_cli.machine.findings import Finding
from entrep_cli.machine.selftest import self_test
from entrep_cli.models.pretrained import pretrained_weights
from entrep_cli.workspace import runs_dir

_LARGE_CACHE = 20e9
_SLOW_TEST = 60.0


def examinations(*, device: str = "auto", with_self_test: bool = True, on_step: Callable[[str], None] | None = None) -> Sequence[tuple]:
    """(area, function) each, in the order of what depends on what."""
    all_of_them = [
        ("python", versions.examine_python),
        ("packages", versions.examine_packages),
        ("torch", versions.examine_torch_pair),
        ("device", lambda: hardware.examine_device(device)),
        ("threads", hardware.examine_threads),
        ("memory", hardware.examine_memory),
        ("disk", lambda: hardware.examine_disk(runs_dir(), "results", "export ENTREP_RUNS=FOLDER")),
        ("disk", lambda: hardware.examine_disk(hub_cache(), "pretrained weights", "export HF_HOME=FOLDER")),
        ("caches", examine_caches),
        ("weights", examine_weights),
        ("self-test", lambda: examine_by_test(device, on_step)),
    ]
    return all_of_them if with_self_test else all_of_them[:-1]


def examine(area: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """The findings of one examination; one that itself fails is a fault, for it uses what the commands use."""
    try:
        return list(look())
    except Exception as error:
        what = error.what if isinstance(error, EntrepError) else f"{type(error).__name__}: {first_line(error)}"
        advice = "ENTREP_DEBUG=1 entrep demo" if area == "self-test" else "pip install --force-reinstall ., in the checkout"
        return [Finding(area, "fault", what, advice)]


def hub_cache() -> Path:
    """Where pretrained weights are cached, by the hub's library."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def examine_caches() -> Iterator[Finding]:
    sizes = {"entrep": folder_size(cache_root()), "hub": folder_size(hub_cache())}
    what = f"{sizes['entrep'] / 1e9:.2f} GB in {cache_root()}, {sizes['hub'] / 1e9:.2f} GB in {hub_cache()}."
    large = sizes["entrep"] > _LARGE_CACHE
    yield Finding("caches", "warning" if large else "ok", what, "entrep cache clear --older-than 7" if large else None, {"bytes": sizes})


def examine_weights() -> Iterator[Finding]:
    """Which pretrained weights are here; only incomplete ones are worth a warning."""
    states = {weights.name: weights.state for weights in pretrained_weights()}
    here = [name for name, state in states.items() if state == "here"]
    incomplete = [name for name, state in states.items() if state == "incomplete"]
    what = f"{', '.join(here) if here else 'none'} of {len(states)} pretrained weights {'is' if len(here) < 2 else 'are'} here."
    if incomplete:
        what += f" Incomplete: {', '.join(incomplete)}."
        yield Finding("weights", "warning", what, f"entrep weights fetch {' '.join(incomplete)}", {"states": states})
    else:
        yield Finding("weights", "ok", what, None if here else "entrep weights list", {"states": states})


def examine_by_test(device: str, on_step: Callable[[str], None] | None) -> Iterator[Finding]:
    result = self_test(device, on_step)
    steps = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in result["steps"].items())
    what = f"A phantom dataset was drawn, learned, answered and validated in {result['seconds']:.0f} s ({steps})"
    if result["seconds"] > _SLOW_TEST:
        yield Finding("self-test", "warning", f"{what}: slow; is the machine busy?", "uptime", result)
    else:
        yield Finding("self-test", "ok", f"{what}.", None, result)
