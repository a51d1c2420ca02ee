"""The command `detr-hf`: one module a verb, registered here.

A verb's module imports typer and the standard library only, and what it works with inside the function, so that
`detr-hf --help` answers at once. Exit codes: 0 when all went well, 1 when something failed, 2 for a wrong call.
"""

from .main import main as main
