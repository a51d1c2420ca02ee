"""A process that has imported the slow libraries, and forks for every command of a page: `python warm.py SOCKET`.

So a block with five commands takes seconds, not a minute of imports; what runs is the same code with the same
arguments, folder, environment and files as in a process of its own. `run` is the other side, for the shims.
"""

import array
import importlib
import json
import os
import runpy
import socket
import sys
import traceback

SLOW = ("transformers", "detr_hf.cli.main", "detr_hf.data.loading", "detr_hf.evaluation.running")


def serve(address: str) -> None:
    """Answers for ever: each connection is a command, its child's exit code the answer."""
    import torch

    from tests.pages.stage import benchmark_shortly, train_shortly

    torch.set_num_threads(1)
    for name in SLOW:
        importlib.import_module(name)
    train_shortly()
    benchmark_shortly()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen()
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()
            while _reap():
                pass


def _reap() -> bool:
    """Whether a child that had ended was buried."""
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


def _answer(connection: socket.socket) -> None:
    """Runs what is asked for in a child of this child, so that its exit code is known even if it is killed."""
    text, files, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    child = os.fork()
    if child == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
        os._exit(_run(json.loads(text)))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.send(array.array("i", [status]).tobytes())
    os._exit(0)


def _run(asked: dict) -> int:
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    arguments = asked["arguments"]
    sys.path[0] = asked["folder"]
    code: object = 0
    try:
        if arguments[0] == "-m":
            sys.argv = arguments[1:]
            runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as leaving:
        code = leaving.code
    except BaseException:
        traceback.print_exc()
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return int(code or 0)


def run(address: str, arguments: list[str]) -> int:
    """Returns the exit code of `python arguments` as the warm process runs it, with this one's input and output."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        asked = {"arguments": arguments, "folder": os.getcwd(), "environment": dict(os.environ)}
        socket.send_fds(connection, [json.dumps(asked).encode()], [0, 1, 2])
        return array.array("i", connection.recv(4))[0]


if __name__ == "__main__":
    serve(sys.argv[1])
