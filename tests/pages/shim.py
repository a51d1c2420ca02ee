"""What stands for a program on the pages: `python shim.py NAME ARGUMENTS`, run in the folder of a page.

`detr-hf` and `python` are the real ones, in a warm process. What would take hours, a network or several machines is
made small in plain sight: here is all of it.

- benchmarks that train: two steps, two pictures at a time, few scenes (`stage.benchmark_shortly`); records stay there;
- train, eval, predict, benchmark: small pictures, where the page does not say how large;
- benchmark: torch alone, without compiling for it;
- every training: four steps, in Python on small pictures too; a search has two (`stage.train_shortly`);
- app: comes back as soon as the page listens, which stays there until the next one, or until the document is left;
- torchrun and accelerate: two processes on this machine, on the processor;
- make and pytest: what they would run is listed (`--dry-run`, `--collect-only`); they have their own place in CI;
- pip: a checkout and a wheel are resolved without their requirements; what comes from an index must be installed here.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SMALL_TRAINING = {"steps": "2", "eval-every": "2", "seeds": "0", "lr": "1e-4", "batch": "2", "device": "cpu"}
SMALL_TRAINING |= {"work": "scenes", "out": "records"}
SMALL_PICTURES = {
    "train": ["--shortest_edge", "96", "--longest_edge", "160"],
    "eval": ["--image-size", "96"],
    "predict": ["--image-size", "96"],
    "benchmark": ["--size", "96x128", "--runtimes", "torch"],
}


def python(arguments: list[str]) -> int:
    """Returns the exit code of a module or script."""
    from tests.pages.warm import run

    if arguments[:3] == ["-m", "benchmarks", "convergence"]:
        arguments += [word for name, value in SMALL_TRAINING.items() for word in (f"--{name}", value)]
    return run(os.environ["DOCS_WARM"], arguments)


def detr_hf(arguments: list[str]) -> int:
    """Returns the exit code of a verb, on small pictures."""
    small = SMALL_PICTURES.get(arguments[0], [])
    no_model = any(
        word.endswith((".onnx", "results.json")) or Path(word, "panoptic.json").exists() for word in arguments
    )
    if small and small[0] not in arguments and not no_model:
        arguments = [*arguments, *small]
    if arguments[0] == "benchmark":  # it sets up a process of its own for each runtime, from a fresh one
        return subprocess.call([sys.executable, "-m", "detr_hf", *arguments])
    if arguments[0] == "app":
        return app(arguments)
    return python(["-m", "detr_hf", *arguments])


def app(arguments: list[str]) -> int:
    """Returns 0 as soon as the page listens, or the exit code of one that does not."""
    end_app()
    with open("app.log", "w+") as log:
        server = subprocess.Popen([sys.executable, "-m", "detr_hf", *arguments], stdout=log, stderr=log)
        Path(os.environ["DOCS_APP"]).write_text(str(server.pid))
        while server.poll() is None and "http://" not in Path("app.log").read_text():
            time.sleep(0.2)
        if server.poll() is not None:
            sys.stdout.write(Path("app.log").read_text())
    return server.poll() or 0


def end_app() -> None:
    """Ends the page of before, if there is one."""
    noted = Path(os.environ["DOCS_APP"])
    if noted.exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(noted.read_text()), signal.SIGKILL)
        noted.unlink()


def pip(arguments: list[str]) -> int:
    """Returns the exit code of looking at what would be installed."""
    if arguments[0] != "install":
        return subprocess.call([sys.executable, "-m", "pip", *arguments])
    for wanted in [word for word in arguments[1:] if not word.startswith("-") and "://" not in word.split(" @ ")[0]]:
        local = re.fullmatch(r"(\.|\S+\.whl)(?:\[(\S+)\])?", wanted)
        named = re.fullmatch(r"([\w-]+)(?:\[(\S+)\])?(?: @ git\+\S+)?", wanted)
        if not (local or named):
            sys.exit(f"pip: {wanted} is nothing that this test knows.")
        if local or named[1] == "detr-hf":
            _known_extras((local or named)[2])
        else:
            distribution(named[1])  # raises where it is not installed, as what the page names must be for its blocks
    return 0


def _known_extras(extras: str | None) -> None:
    import tomllib

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    if unknown := set((extras or "").split(",")) - {""} - set(known):
        sys.exit(f"pip: no extra {unknown}")


def torchrun(arguments: list[str]) -> int:
    """Returns the exit code of two processes, or of two machines of one each, which are both this one."""
    several = "--nnodes" in arguments
    for flag, value in (("--nproc-per-node", "1" if several else "2"), ("--master-addr", "127.0.0.1")):
        if flag in arguments:
            arguments[arguments.index(flag) + 1] = value
    if "train" in arguments:
        arguments = [*arguments, "--use_cpu", "--max_steps", "2", "--output_dir", "out_of_several"]
    command = [sys.executable, "-m", "torch.distributed.run", *arguments]
    if not several:
        return subprocess.call(command)
    other = command.copy()
    other[other.index("--node-rank") + 1] = "1"
    second = subprocess.Popen(other)
    return subprocess.call(command) or second.wait()


def accelerate(arguments: list[str]) -> int:
    """Returns the exit code of the same through torchrun, which is what `accelerate launch` starts."""
    script = next(number for number, word in enumerate(arguments) if word.endswith(".py"))
    several = "--num_machines" in arguments
    port = ["--nnodes", "2", "--node-rank", "0", "--master-addr", "here", "--master-port", "29511"] if several else []
    launched = ["--nproc-per-node", "2", *port, *arguments[script:]]
    return torchrun([*launched, "--use_cpu", "--max_steps", "2", "--output_dir", "out_of_several"])


PROGRAMS = {
    "detr-hf": detr_hf,
    "python": python,
    "pip": pip,
    "torchrun": torchrun,
    "accelerate": accelerate,
    "pytest": lambda arguments: subprocess.call([sys.executable, "-m", "pytest", "--collect-only", "-q", *arguments]),
    "make": lambda arguments: subprocess.call(["/usr/bin/make", "--dry-run", "--silent", "-C", str(ROOT), *arguments]),
}

if __name__ == "__main__":
    sys.exit(PROGRAMS[sys.argv[1]](sys.argv[2:]))
