"""What doctor finds: versions, the pair of torch and torchvision, limits of containers, disk, and the job in small."""

from __future__ import annotations

import os
import tomllib
from collections import namedtuple
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from entrep_cli import limits
from entrep_cli.errors import DataError
from entrep_cli.machine import hardware, versions
from entrep_cli.machine.doctor import examinations, examine, examine_weights
from entrep_cli.machine.selftest import self_test
from entrep_cli.models.pretrained import find_weights
from tests.tiny import cache_files

ROOT = Path(__file__).parents[2]


def levels(findings) -> list[str]:
    return [one.level for one in findings]


# ---------------------------------------------------------------- versions


def test_tested_versions_are_those_of_the_constraints():
    lines = (ROOT / "constraints.txt").read_text("utf-8").split()
    constraints = {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}
    tested = versions.tested()["packages"]
    assert {canonicalize_name(name): version for name, version in tested.items()}.items() <= constraints.items()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["dependencies"]
    assert {canonicalize_name(Requirement(line).name) for line in declared} <= set(tested)


def test_packages_against_declared_and_tested(monkeypatch):
    here = {"torch": "2.13.0+cpu", "timm": "1.0.30", "peft": "0.1"}
    monkeypatch.setattr(versions, "tested", lambda: {"python": "3.11", "packages": {"torch": "2.13.0", "timm": "1.0.31", "peft": "0.21.2"}})
    monkeypatch.setattr(metadata, "requires", lambda _: ["torch<3,>=2.6", "timm>=1", "peft>=0.14", "gone>=1", 'pytest>=8; extra == "test"'])

    def version(name):
        if name not in here:
            raise metadata.PackageNotFoundError(name)
        return here[name]

    monkeypatch.setattr(metadata, "version", version)
    found = list(versions.examine_packages())
    assert levels(found) == ["fault", "fault", "warning"]
    assert "peft 0.1" in found[0].what and found[0].advice == "pip install 'peft>=0.14'"
    assert "gone is not installed" in found[1].what
    assert "timm 1.0.30 (1.0.31)" in found[2].what and "torch" not in found[2].what  # +cpu is a build, no version
    assert found[2].advice == "pip install timm==1.0.31 peft==0.21.2"


def test_torch_and_torchvision_as_a_pair(monkeypatch):
    monkeypatch.setattr("entrep_cli.torchvision_ops.declare_missing_ops", lambda: True)
    (found,) = versions.examine_torch_pair()
    assert found.level == "ok" and "torchvision::nms" in found.what and found.details["corrected"]
    monkeypatch.setattr(metadata, "requires", lambda _: ["numpy", "torch==2.9.0"])
    (found,) = versions.examine_torch_pair()
    assert found.level == "warning" and "built for torch==2.9.0" in found.what and "torchvision==" in found.advice

    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(versions.importlib, "import_module", broken)
    (found,) = versions.examine_torch_pair()
    assert found.level == "fault" and "nms does not exist" in found.what


# ---------------------------------------------------------------- hardware


def write(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    return root


@pytest.mark.parametrize(
    "files, processors, memory",
    [
        ({}, None, None),
        ({"proc/self/cgroup": "0::/\n"}, None, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n", "sys/fs/cgroup/memory.max": "max\n"}, None, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n", "sys/fs/cgroup/memory.max": "4096\n"}, 1.5, 4096),
        (  # the tightest of all above counts
            {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "200000 100000\n", "sys/fs/cgroup/a/b/cpu.max": "400000 100000\n"},
            2.0,
            None,
        ),
        (
            {
                "proc/self/cgroup": "4:memory:/x\n1:cpu,cpuacct:/x\n0::/\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/memory/x/memory.limit_in_bytes": "9223372036854771712\n",
            },
            3.0,
            None,
        ),
    ],
)
def test_limits_of_a_container(tmp_path, files, processors, memory):
    root = write(tmp_path, files)
    assert limits.cgroup_processors(root) == processors and limits.cgroup_memory(root) == memory


def test_threads_beyond_the_quota_are_a_warning(monkeypatch):
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for quota in (None, 1.5):
        for module in (limits, hardware):
            monkeypatch.setattr(module, "cgroup_processors", lambda quota=quota: quota)
        assert levels(hardware.examine_threads()) == ["warning" if quota else "ok"]
    (found,) = hardware.examine_threads()
    assert found.level == "warning" and found.advice == "export OMP_NUM_THREADS=2" and "a quota of 1.5" in found.what


def test_disk_and_memory(monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    for free, level in ((80e9, "ok"), (2e9, "warning"), (1e6, "fault")):
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage(0, 0, free))
        (found,) = hardware.examine_disk(tmp_path / "not" / "yet", "results", "export ENTREP_RUNS=FOLDER")
        assert found.level == level and not (tmp_path / "not").exists()
    (found,) = hardware.examine_disk(write(tmp_path, {"file": ""}) / "file" / "runs", "results", "export ENTREP_RUNS=FOLDER")
    assert found.level == "fault" and found.advice == "export ENTREP_RUNS=FOLDER"
    monkeypatch.setattr(hardware, "available_memory", lambda: 32 << 30)
    monkeypatch.setattr(hardware, "cgroup_memory", lambda: 1 << 30)
    (found,) = hardware.examine_memory()
    assert found.level == "warning" and "limit" in found.what


def test_a_device_that_is_not_here_is_a_fault():
    (found,) = hardware.examine_device("cuda:99")
    assert found.level == "fault" and "cuda:99" in found.what


# ---------------------------------------------------------------- all together


def test_weights_in_part_are_a_warning(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    (found,) = examine_weights()
    assert found.level == "ok" and found.what.startswith("none of ")
    cache_files(tmp_path, find_weights("biomedclip").repository, {"open_clip_config.json": "{}"})
    cache_files(tmp_path, find_weights("dinov2-s").repository, {"model.safetensors": "x"})
    (found,) = examine_weights()
    assert found.level == "warning" and found.advice == "entrep weights fetch biomedclip" and found.what.startswith("dinov2-s of ")


def test_an_examination_that_fails_is_a_fault():
    def broken():
        raise ImportError("libtorch.so is gone")
        yield

    def refused():
        raise DataError("The dataset is at fault.")
        yield

    (found,) = examine("torch", broken)
    assert found.level == "fault" and found.what == "ImportError: libtorch.so is gone" and found.advice
    assert examine("self-test", refused)[0].what == "The dataset is at fault."
    areas = [area for area, _ in examinations(with_self_test=False)]
    assert "self-test" not in areas and areas[:3] == ["python", "packages", "torch"]


def test_the_job_in_small(capfd, monkeypatch, tmp_path):
    """It works, says nothing, leaves nothing, and touches nothing of the user's."""
    monkeypatch.setenv("ENTREP_DATA", "mine")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    runs, steps = os.environ["ENTREP_RUNS"], []
    result = self_test("cpu", steps.append)
    assert steps == list(result["steps"]) == ["draw", "split", "train", "predict and validate"] and result["queries"] > 14
    assert os.environ["ENTREP_RUNS"] == runs and not Path(runs).exists() and os.environ["ENTREP_DATA"] == "mine"
    # torch makes a folder of its own for compiled code, once a process, wherever temporary things then go.
    assert [path for path in tmp_path.iterdir() if not path.name.startswith("torchinductor")] == [] and capfd.readouterr() == ("", "")
