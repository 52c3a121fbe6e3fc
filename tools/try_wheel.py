"""Install a wheel where there is no source tree, and use it from an empty folder: what the wheel lacks shows here.

    python tools/try_wheel.py dist/frameflex-0.1.0-py3-none-any.whl

A new environment gets the wheel alone. The packages that it depends on are taken from the environment that runs this,
because a second copy of torch is 5 GB; pip checks that they are what the wheel asks for.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

import frameflex

SAY_WHERE = "import frameflex, pathlib; print(pathlib.Path(frameflex.__file__).parent)"


def try_wheel(wheel: Path) -> None:
    """Raises CalledProcessError or RuntimeError where something that the wheel should have is missing."""
    with tempfile.TemporaryDirectory() as temporary:
        home, empty = Path(temporary, "env"), Path(temporary, "empty")
        empty.mkdir()
        venv.create(home, with_pip=False)
        python = home / "bin/python"
        places = {"base": str(home), "platbase": str(home)}
        site = Path(sysconfig.get_path("purelib", "venv", vars=places))
        # A line of a .pth file adds the folder alone, without the editable frameflex that the folder's own .pth adds.
        (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

        def run(*command: str | Path) -> str:
            environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
            done = subprocess.run(
                [str(word) for word in command],
                cwd=empty,
                env=environment,
                text=True,
                stdout=subprocess.PIPE,
                check=True,
            )
            return done.stdout.strip()

        run(python, "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", wheel.resolve())
        run(python, "-m", "pip", "check")
        package = Path(run(python, "-c", SAY_WHERE))
        if not package.is_relative_to(site):
            raise RuntimeError(f"frameflex comes from {package}; expected it in {site}")
        program = home / "bin/frameflex"
        for got, expected in (
            (run(program, "--version"), f"frameflex {frameflex.__version__}"),
            (run(program, "demo", "--help"), "--quick"),
            (run(program, "train", "--help"), "finetune_folder.yaml"),
            (run(program, "train", "motion_ffn.yaml", "--print_config"), "frame_counts"),
        ):
            if expected not in got:
                raise RuntimeError(f"the installed frameflex says {got!r}; expected {expected!r} in it")
        missing = _data_files(Path(frameflex.__file__).parent) - _data_files(package)
        if missing:
            raise RuntimeError(f"the wheel lacks {sorted(missing)}; see [tool.hatch] in pyproject.toml")
        print(f"{wheel.name} works from an empty folder")


def _data_files(package: Path) -> set[str]:
    """What is no Python in a package, caches left out."""
    files = (path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {path.relative_to(package).as_posix() for path in files if path.suffix != ".py"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    try:
        try_wheel(parser.parse_args().wheel)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        sys.exit(f"try_wheel: {error}")
