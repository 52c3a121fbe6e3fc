"""The documentation: every command that it shows runs, on tiny data, and its pages hang together.

A block of ```` ```sh ```` or ```` ```python ```` runs as it stands; the blocks of a page run one after the other, in
a folder that has the videos and checkpoints which the pages name. A comment on the line above a block says otherwise:

    <!-- parsed only: it needs four GPUs -->    its options (or its Python) are parsed, nothing runs
    <!-- extra: export -->                      the same, but where the extra is installed it runs
    <!-- not run: it installs -->               nothing of it is ours
"""

import argparse
import ast
import contextlib
import glob
import importlib.util
import io
import json
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from helpers import bar_folder, moving_bar, tiny_recipe, write_video

from frameflex.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from frameflex.cli import VERBS, main
from frameflex.cli.data import COMMANDS
from frameflex.engine.recipe_files import parse_recipe
from frameflex.engine.training import train
from frameflex.models import create_model
from frameflex.motion.rendering import render

ROOT = Path(__file__).parents[1]
GENERATED = ("reference/commands/", "reference/recipes.md")
PAGES = [
    ROOT / "README.md",
    *sorted(
        page
        for page in (ROOT / "docs").rglob("*.md")
        if not page.relative_to(ROOT / "docs").as_posix().startswith(GENERATED)
    ),
]
EXTRAS = {"export": ("onnxruntime", "openvino"), "int8": ("openvino", "nncf")}
MODES = ("parsed only", "not run", "extra")

# What makes a command small, behind what the page says. Sizes, and nothing that the page is about.
TINY_TRAINING = shlex.split(
    "--training.epochs 1 --training.batch_size 4 --training.reference_batch_size null --data.num_workers 0 "
    "--clip.short_side 32 --clip.crop_size 32"
)
TINY_NETWORK = shlex.split("--model.backbone test_resnet --model.pretrained false")
TINY = {
    "predict": ["--workers", "0"],
    "evaluate": ["--workers", "0"],
    "calibrate": ["--workers", "0", "--allow-worse"],
    "export": ["--workers", "0"],
}


@dataclass
class Block:
    """A fenced block: its language, its text, and what the comment above it says."""

    page: Path
    line: int
    language: str
    text: str
    mode: str = "runs"
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """The words of each line, comments left out, lines that end in a backslash joined."""
        for line in self.text.replace("\\\n", " ").splitlines():
            if words := shlex.split(line, comments=True):
                yield words


def blocks_of(page: Path) -> list[Block]:
    blocks: list[Block] = []
    above, current = "", None
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        if current is not None:
            if line.startswith("```"):
                blocks.append(current)
                current, above = None, ""
            else:
                current.text += f"{line}\n"
        elif line.startswith("```"):
            current = Block(page, number, line[3:].strip(), "")
            if found := re.fullmatch(r"<!-- ([a-z ]+): (.+) -->", above):
                current.mode, current.reason = found.groups()
        elif line.strip():
            above = line
    return blocks


def shown(page: Path) -> list[Block]:
    return [block for block in blocks_of(page) if block.language in ("sh", "python")]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with everything that the pages name."""
    folder = tmp_path_factory.mktemp("docs")
    bar_folder(folder / "my_videos", per_class=6)
    write_video(folder / "clip.mp4", moving_bar(24, rightwards=True))
    write_video(folder / "match.mp4", moving_bar(60, rightwards=False))
    write_video(folder / "new/a.mp4", moving_bar(12, rightwards=True))
    write_video(folder / "new/b.mp4", moving_bar(12, rightwards=False))
    (folder / "videos.csv").write_text("path\nnew/a.mp4\nnew/b.mp4\n")
    (folder / "project-1.json").write_text(json.dumps([labelled("new/a.mp4"), labelled("new/b.mp4")]))
    (folder / "check").mkdir()
    (folder / "check/quarantine.txt").write_text("")
    render(folder / "data/something-something-v2", num_videos=24, size=48, validation_fraction=0.5)
    recipe = tiny_recipe(
        folder / "my_videos", folder / "run", method="ffn", counts=(4, 8), epochs=6, optimizer="adamw"
    )
    [path] = train(recipe)
    trained = load_checkpoint(path)
    save_checkpoint(folder / "best.safetensors", trained)
    save_checkpoint(folder / "frameflex-demo/ffn/last.safetensors", trained)
    for name, shift in (("tsm", "bidirectional"), ("causal", "causal")):
        model = create_model(
            "test_resnet", num_classes=len(trained.class_names), pretrained=False, shift=shift
        )
        checkpoint = Checkpoint(
            model=model,
            class_names=trained.class_names,
            preprocessing=trained.preprocessing,
            frame_counts=(8,),
        )
        save_checkpoint(folder / f"{name}.safetensors", checkpoint)
    shutil.rmtree(folder / "run")
    return folder


def labelled(video: str) -> dict:
    """A task of Label Studio: the halves of a video are of two classes."""
    halves = {"going left": {"start": 1, "end": 6}, "going right": {"start": 7, "end": 12}}
    results = [
        {"type": "timelinelabels", "value": {"ranges": [frames], "timelinelabels": [label]}}
        for label, frames in halves.items()
    ]
    return {"data": {"video": f"/data/local-files/?d={video}"}, "annotations": [{"result": results}]}


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if shown(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_the_commands_of_a_page_run(page, workplace, tmp_path, monkeypatch, capsys):
    shutil.copytree(workplace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    names: dict = {"__name__": "__main__"}
    for block in shown(page):
        if block.mode != "runs" and not (block.mode == "extra" and installed(block.reason)):
            continue
        if block.language == "python":
            exec(compile(block.text, str(block), "exec"), names)
            continue
        for words in block.commands():
            status = main(small(block, words))
            said = capsys.readouterr()
            assert status == 0, f"{block}: {shlex.join(words)}\n{said.out}\n{said.err}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_has_options_that_exist(page):
    for block in shown(page):
        assert block.mode == "runs" or block.mode in MODES, f"{block}: unknown mark {block.mode!r}"
        if block.mode == "extra":
            assert block.reason in EXTRAS, f"{block}: unknown extra {block.reason!r}"
        if block.mode == "not run":
            continue
        if block.language == "python":
            ast.parse(block.text, str(block))
            continue
        for words in block.commands():
            assert_parses(ours(block, words), where=f"{block}: {shlex.join(words)}")


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_help_have_options_that_exist(verb):
    for argv in ([verb],) if verb != "data" else ((verb, name) for name in COMMANDS):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert main([*argv, "--help"]) == 0
        _, _, examples = printed.getvalue().partition("\nexample:\n")
        for line in examples.splitlines():
            words = shlex.split(line, comments=True)
            if "frameflex" in words:
                assert_parses(
                    words[words.index("frameflex") + 1 :], where=f"{shlex.join(argv)} --help: {line}"
                )


def installed(extra: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in EXTRAS[extra])


def ours(block: Block, words: list[str]) -> list[str]:
    """The arguments of frameflex in a command line, which another program may start or feed."""
    assert "frameflex" in words, (
        f"{block}: {shlex.join(words)} is no command of frameflex; mark it as not run"
    )
    return words[words.index("frameflex") + 1 :]


def small(block: Block, words: list[str]) -> list[str]:
    """The arguments of a command, patterns replaced by files as a shell does, and made small."""
    assert words[0] == "frameflex", f"{block}: {shlex.join(words)} is no command of frameflex; mark the block"
    arguments = [file for word in words[1:] for file in (sorted(glob.glob(word)) or [word])]
    if arguments[0] == "train":
        return [*arguments, *TINY_TRAINING, *(() if {"--model.init", "--init"} & {*words} else TINY_NETWORK)]
    if arguments[0] == "export" and "--int8" in arguments:
        arguments += ["--min-agreement", "0"]  # nothing is said about labels of this network
    return [*arguments, *TINY.get(arguments[0], [])]


class Parsed(BaseException):
    """Ends a verb once its options are parsed."""


def assert_parses(argv: list[str], *, where: str) -> None:
    """Nothing of a verb runs but its parser."""
    if argv[0] == "train":
        if argv[1] == "my_videos":  # which isn't there
            options = [word for word in argv[2:] if word != "--any-frame-count"]
            argv = ["train", "finetune_folder.yaml", "--data.train", "my_videos", *options]
        with contextlib.suppress(SystemExit):
            parse_recipe(argv[1:])
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, *args, **kwargs):
        parse(self, *args, **kwargs)
        raise Parsed

    said = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(said):
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        with pytest.raises(Parsed):
            pytest.fail(f"{where}: ends with status {main(argv)}: {said.getvalue()}")


def test_a_wrong_option_on_a_page_is_found():
    with pytest.raises(pytest.fail.Exception, match="unrecognized arguments: --frame"):
        assert_parses(["predict", "best.safetensors", "clip.mp4", "--frame", "8"], where="here")


def test_a_page_of_one_task_has_at_most_400_words():
    for page in (ROOT / "docs/how-to").glob("*.md"):
        prose = re.sub(r"```.*?```|<!--.*?-->", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert len(prose.split()) <= 400, f"{page.name} has {len(prose.split())} words; expected at most 400"


def test_every_page_is_in_the_menu_and_every_picture_is_there():
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    listed = set(_leaves(menu))
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in PAGES[1:]}
    commands = {"reference/commands/index.md", *(f"reference/commands/{verb}.md" for verb in VERBS)}
    assert listed == pages | commands | {"reference/recipes.md"}
    for page in PAGES:
        for target in re.findall(r"!\[[^\]]*\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).is_file(), f"{page.relative_to(ROOT)}: no picture {target}"


def test_every_file_that_the_readme_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", (ROOT / "README.md").read_text(encoding="utf-8")):
        assert target.startswith("https://") or os.path.exists(ROOT / target), f"README.md: no file {target}"


def test_every_target_of_make_that_a_page_names_exists():
    targets = set(
        re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    )
    for page in (*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", ROOT / ".ci/run"):
        named = re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
        assert set(named) <= targets, f"{page.name}: no target {sorted(set(named) - targets)}"


def test_every_test_that_reliability_names_is_there():
    written = " ".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tests, files = (
        re.findall(r"def (test_\w+)", written),
        {path.name for path in (ROOT / "tests").rglob("*.py")},
    )
    named = re.findall(r"`([\w…/.]+)`", (ROOT / "docs/reliability.md").read_text(encoding="utf-8"))
    for name in named:
        if name.endswith(".py"):
            assert name.split("/")[-1] in files or (ROOT / name).is_file(), f"no file {name}"
        elif name.startswith(("test_", "…_")):
            pattern = ".*".join(map(re.escape, name.split("…")))
            assert any(re.fullmatch(pattern, test) for test in tests), f"no test {name}"


def test_every_place_that_contributing_names_is_there():
    table = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("| to add or change |")[1]
    named = re.findall(r"`([\w/.-]+(?:/|\.py|\.md|\.yml))`", table.split("\n\n")[0])
    assert len(named) > 20
    for name in named:
        assert (ROOT / name).exists() or (ROOT / "src/frameflex" / name).exists(), f"no {name}"


def _leaves(entry) -> Iterator[str]:
    if isinstance(entry, str):
        yield entry
    else:
        for item in entry.values() if isinstance(entry, dict) else entry:
            yield from _leaves(item)
