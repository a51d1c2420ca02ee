"""What is installed and what the machine can do, for a report of a fault: versions beside their bounds, processor.

Nothing here needs torch to be there or whole: what cannot be asked is said. No token is read, and none is shown: of
what may hold one, only whether it is set; an address is shown without the name and password in it.
"""

import os
import platform
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..checkpoints.embedded import DEMO_DIGITS, EMBEDDED_MODEL, demo_scene_path, embedded_model_path
from ..version import __version__, version_of
from ..whole_files import is_left, is_leftover
from .timing import cpuinfo, processor_name, status_bytes

OWN = "detr-hf"
WITHOUT_USE = {"test", "dev"}  # extras for who works on the package
SHOWN = (
    *("HF_HOME", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_ENDPOINT"),
    *("HF_HUB_DISABLE_XET", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "CUDA_VISIBLE_DEVICES"),
)
WHETHER_SET = ("HF_TOKEN", "HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy")
MOST_SECONDS, MOST_DEPTH = 5.0, 3  # of looking through a folder
NEAR = 8  # pixels that the middle of a box of the self-test may be off


def diagnose(folders: Iterable[str | Path] = (), self_test: bool = True) -> dict[str, Any]:
    """Returns what is installed, what the machine can do and what it finds, by part; `faults` is the last of them.

    `faults` are sentences on what is not as it must be: a package that is needed and is absent or outside its bounds,
    and a self-test that does not find the digits of the shipped scene.

    Args:
        folders: where to look for what killed commands left, besides this folder and the one for temporary files.
        self_test: whether the shipped model looks at the shipped scene.
    """
    required, stated_in = _required()
    packages = list(packages_and_bounds(required))
    found = {
        "package": {"version": __version__, "folder": _short(Path(__file__).parents[1]), **_installation(stated_in)},
        "system": {
            "python": platform.python_version(),
            "implementation": platform.python_implementation(),
            "prefix": _short(sys.prefix),
            "os": platform.platform(),
            "environment": _environment(),
        },
        "packages": packages,
        "extras": extras(packages),
        "processor": _asked(processor),
        "gpu": _asked(gpu),
        "hub": _asked(hub),
        "leftovers": [_short(path) for path in leftovers([".", tempfile.gettempdir(), *folders])],
        "self_test": _asked(look_at_scene) if self_test else None,
    }
    return found | {"faults": list(_faults(found))}


def packages_and_bounds(required: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yields every package of the `required` lines: `name`, `version`, `wanted`, `within`, and `extras` that bring it.

    `extras` of a package that is always needed is empty; `within` is None for what is not installed.
    """
    from packaging.requirements import Requirement

    bounds: dict[str, tuple[str, list[str]]] = {}
    for line in required:
        requirement = Requirement(line)
        if requirement.name == OWN:
            continue
        extra = re.search(r"extra == .(\w+).", str(requirement.marker or ""))
        wanted, brought_by = bounds.setdefault(requirement.name, (str(requirement.specifier), []))
        if extra:
            brought_by.append(extra[1])
    for name, (wanted, brought_by) in bounds.items():
        if not brought_by or set(brought_by) - WITHOUT_USE:
            version = version_of(name)
            within = None if version is None else Requirement(name + wanted).specifier.contains(version, True)
            yield {"name": name, "version": version, "wanted": wanted, "within": within, "extras": brought_by}


def _required() -> tuple[list[str], str]:
    """Returns the requirements and where they stand: in the checkout's pyproject.toml, or as they were installed."""
    project = Path(__file__).parents[2] / "pyproject.toml"
    if project.is_file():
        import tomllib

        content = tomllib.loads(project.read_text(encoding="utf-8")).get("project", {})
        if content.get("name") == OWN:
            optional = content["optional-dependencies"].items()
            return content["dependencies"] + [
                f'{line}; extra == "{extra}"' for extra, lines in optional for line in lines
            ], _short(project)
    try:
        return metadata.requires(OWN) or [], "the installed distribution"
    except metadata.PackageNotFoundError:
        return [], "nowhere: neither a checkout nor an installed distribution"


def _installation(stated_in: str) -> dict[str, Any]:
    """Returns where the bounds stand, and whether another detr-hf is installed than the one that runs."""
    found: dict[str, Any] = {"bounds_from": stated_in}
    try:
        installed = metadata.distribution(OWN)
    except metadata.PackageNotFoundError:
        return found | {"installed": None}
    there = str(installed.read_text("direct_url.json") or installed.locate_file(""))
    address = re.search(r"file://([^\"]+)", there)
    return found | {"installed": f"{installed.version} ({_short(address[1] if address else there)})"}


def extras(packages: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Returns for each extra the packages that are missing, and what installs them."""
    found: dict[str, dict[str, Any]] = {}
    for package in packages:
        for extra in set(package["extras"]) - WITHOUT_USE:
            entry = found.setdefault(extra, {"missing": [], "install": f"pip install '{OWN}[{extra}]'"})
            if package["version"] is None:
                entry["missing"].append(package["name"])
    return dict(sorted(found.items()))


def processor() -> dict[str, Any]:
    """Returns what computes here, and what torch and oneDNN make of it."""
    found = {
        "name": processor_name(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "cores_limit": cores_limit(),
        "memory_gib": _gib(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")) if os.name == "posix" else None,
        "memory_limit_gib": _gib(_number("memory.max", "memory/memory.limit_in_bytes")),
        "system_says": sorted(
            set(cpuinfo().get("flags", "").split()) & {"avx2", "avx512f", "avx512_bf16", "amx_bf16"}
        ),
    }
    import torch

    from ..model.compiling_detr import bfloat16_hardware

    told = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile")}
    return found | {
        "torch_threads": torch.get_num_threads(),
        "torch_capability": torch.backends.cpu.get_cpu_capability(),
        "onednn": torch.backends.mkldnn.is_available(),
        "bfloat16": bfloat16_hardware(),
        "torch_says": sorted(name for name, ask in told.items() if ask is not None and ask()),
    }


def cores_limit() -> float | None:
    """Returns how many cores' time the control group of this process (a container) may take; None without a limit."""
    quota = _control("cpu.max") or f"{_control('cpu/cpu.cfs_quota_us')} {_control('cpu/cpu.cfs_period_us')}"
    found = re.fullmatch(r"(\d+) (\d+)", quota)
    return round(int(found[1]) / int(found[2]), 2) if found else None


def gpu() -> list[dict[str, Any]] | str:
    """Returns the GPUs that torch can use, or why there are none."""
    import torch

    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return [
            {"name": each.name, "memory_gib": _gib(each.total_memory), "capability": f"{each.major}.{each.minor}"}
            | {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
            for each in properties
        ]
    if torch.backends.mps.is_available():
        return [{"name": "Apple's, by MPS"}]
    built = f"torch is built for CUDA {torch.version.cuda}" if torch.version.cuda else "torch is built without CUDA"
    seen = Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi") is not None
    return f"none that torch can use; {built}" + (", and the system has one of NVIDIA's" if seen else "")


def hub() -> dict[str, Any]:
    """Returns where the cache is and how large, what is left on its disk, and the switches."""
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE)
    size, whole = size_of(cache)
    disk = next(folder for folder in (cache, *cache.absolute().parents) if folder.exists())
    return {
        "cache": _short(cache),
        "cache_gib": _gib(size),
        "cache_size_is_whole": whole,
        "free_gib": _gib(shutil.disk_usage(disk).free),
        "writable": os.access(disk, os.W_OK),
        "offline": constants.is_offline_mode(),
        "endpoint": without_secrets(constants.ENDPOINT),
        "token": get_token() is not None,
    }


def leftovers(folders: Iterable[str | Path]) -> list[Path]:
    """Returns what commands that were killed left in these folders and up to three below; nothing that is in work."""
    found: dict[Path, None] = {}
    for folder in folders:
        top, until = Path(folder).absolute(), time.monotonic() + MOST_SECONDS
        for place, names, files in os.walk(top):
            depth = len(Path(place).relative_to(top).parts)
            candidates = [Path(place, name) for name in (*names, *files) if is_leftover(Path(name))]
            found |= dict.fromkeys(path for path in candidates if is_left(path))
            names[:] = [name for name in names if depth < MOST_DEPTH and not is_leftover(Path(name))]
            if time.monotonic() > until:
                break
    return list(found)


def look_at_scene() -> dict[str, Any]:
    """Returns whether the shipped model finds the digits of the shipped scene, and the seconds it takes."""
    started = time.perf_counter()
    from .detector import Detector

    imported = time.perf_counter()
    detector = Detector.from_pretrained(embedded_model_path())
    loaded = time.perf_counter()
    detections = detector(demo_scene_path(), threshold=0.7)
    first = time.perf_counter()
    again = [time.perf_counter()]
    for _ in range(3):
        detector(demo_scene_path(), threshold=0.7)
        again.append(time.perf_counter())
    middles = [(name, (box[0] + box[2]) / 2, (box[1] + box[3]) / 2) for name, _, _, box in detections]
    middles.sort(key=lambda each: each[1])
    return {
        "passed": are_the_digits(middles),
        "found": [name for name, _, _ in middles],
        "expected": [digit for digit, _ in DEMO_DIGITS],
        "device": str(next(detector.model.parameters()).device),
        "seconds_of_imports": round(imported - started, 2),
        "seconds_of_loading": round(loaded - imported, 2),
        "ms_of_first_picture": round(1000 * (first - loaded), 1),
        "ms_of_next_pictures": round(1000 * min(end - start for start, end in pairwise(again)), 1),
        "memory_mib": _memory_mib(),
    }


def are_the_digits(found: list[tuple[str, float, float]]) -> bool:
    """Whether these names and middles of boxes, from left to right, are those of the shipped scene."""
    return len(found) == len(DEMO_DIGITS) and all(
        name == digit and max(abs(x - at[0]), abs(y - at[1])) < NEAR
        for (name, x, y), (digit, at) in zip(found, DEMO_DIGITS, strict=True)
    )


def size_of(folder: Path) -> tuple[int, bool]:
    """Returns the bytes of the files in a folder, and whether there was time to count all of them."""
    total, until = 0, time.monotonic() + MOST_SECONDS
    for place, _, files in os.walk(folder):
        for name in files:
            try:
                total += os.lstat(os.path.join(place, name)).st_size
            except OSError:  # it went away meanwhile
                continue
        if time.monotonic() > until:
            return total, False
    return total, True


def without_secrets(address: str) -> str:
    """Returns an address without the name, the password and the query that may be in it."""
    parts = urlsplit(address)
    host = parts.netloc.rpartition("@")[2]
    return parts._replace(netloc=host, query="", fragment="").geturl() if host else "(no address)"


def _faults(found: dict[str, Any]) -> Iterator[str]:
    for package in found["packages"]:
        if not package["extras"] and not package["within"]:
            seen = f"is {package['version']}" if package["version"] else "is not installed"
            name, wanted = package["name"], package["wanted"]
            yield f"{name} {seen}, and {wanted or 'any version'} is needed: pip install '{name}{wanted}'"
    test = found["self_test"] or {"passed": True}
    if "cannot" in test:
        yield f"the self-test did not run: {test['cannot']}"
    elif not test["passed"]:
        yield (
            f"the self-test failed: {EMBEDDED_MODEL} found {', '.join(test['found']) or 'nothing'} in the shipped "
            f"scene, where {', '.join(test['expected'])} are to be seen"
        )


def _asked(question: Any) -> Any:
    """Returns the answer, or `cannot` with why there is none: a report is worth most where something is broken."""
    try:
        return question()
    except Exception as error:
        return {"cannot": f"{type(error).__name__}: {error}"}


def _environment() -> dict[str, str]:
    shown = {name: os.environ[name] for name in SHOWN if name in os.environ}
    if "HF_ENDPOINT" in shown:
        shown["HF_ENDPOINT"] = without_secrets(shown["HF_ENDPOINT"])
    return shown | {name: "set (not shown)" for name in WHETHER_SET if os.environ.get(name)}


def _short(path: str | Path) -> str:
    """Returns a path with `~` for the user's folder, whose name is nobody's business."""
    home, text = str(Path.home()), str(path)
    return "~" + text[len(home) :] if home != "/" and (text + "/").startswith(home + "/") else text


def _control(name: str) -> str | None:
    try:
        return Path("/sys/fs/cgroup", name).read_text(encoding="ascii").strip()
    except OSError:
        return None


def _number(*names: str) -> int | None:
    """Returns the first of these limits of the control group that is one."""
    numbers = (int(text) for name in names if (text := _control(name) or "").isdigit())
    return next((number for number in numbers if number < 1 << 60), None)


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 2)


def _memory_mib() -> int | None:
    try:
        return round(status_bytes("VmRSS") / 2**20)
    except OSError:
        return None
