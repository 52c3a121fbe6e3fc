"""How a failure is told, by kind, without importing what did not run."""

import subprocess
import sys
from importlib import import_module

import pytest

from frameflex.cli.options import _ERRORS, is_ours, one_line


@pytest.mark.parametrize(("name", "module"), _ERRORS.items())
def test_every_kind_of_error_is_where_the_command_line_looks_for_it(name, module):
    kind = getattr(import_module(module), name)
    assert kind.__module__ == module
    error = kind("it is so")
    assert is_ours(error, name)
    if name != "Interrupted":
        assert one_line(error) == "it is so"
    assert not is_ours(RuntimeError("it is so"), *_ERRORS)
    assert one_line(RuntimeError("it is so")).startswith("RuntimeError: it is so (run again")


@pytest.mark.parametrize(
    "arguments", [["--help"], ["predict", "--help"], ["serve", "x.safetensors", "--token-file", "nowhere"]]
)
def test_help_and_errors_in_arguments_do_not_wait_for_torch(arguments):
    code = (
        "import sys; from frameflex.cli import main; status = main(sys.argv[1:]); "
        "heavy = {'torch', 'timm', 'torchvision', 'torchmetrics', 'accelerate', 'matplotlib'} & set(sys.modules); "
        "print('loaded', sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert "loaded []" in done.stdout, done.stdout + done.stderr
