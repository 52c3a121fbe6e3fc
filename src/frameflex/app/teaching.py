"""The room Teach of the page: classes, clips of them, a first answer, and fine-tuning."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from frameflex.app.answers import Answers
from frameflex.app.decoding import SaveClip
from frameflex.app.first_answer import FirstAnswer, features_of
from frameflex.app.lessons import Clip, Lessons
from frameflex.app.pictures import jpeg_address
from frameflex.app.talking import Handler, Talk, number_of
from frameflex.app.training import Training
from frameflex.app.uploads import Receiver, Upload, deleted
from frameflex.deploy.recognizer import Recognizer
from frameflex.video import VideoError

_FEWEST_CLIPS = 2  # of each class, to ask for one by the others
_MOST_CONFUSIONS = 24
_ASIDE = 120  # pixels, of a clip's picture


@dataclass(frozen=True)
class Known:
    """What is known of a clip.

    Attributes:
        picture: its middle frame.
        features: None of one that can't be decoded.
        error: why.
    """

    picture: str = ""
    features: Tensor | None = None
    error: str = ""


@dataclass
class Class:
    """What all tabs share about what is taught.

    Attributes:
        lessons: the folder.
        training: on it.
        use: take another network, from its file.
        tell_all: say something to every tab.
        known: by the file and its state, of the network of now.
    """

    lessons: Lessons
    training: Training
    use: Callable[[Path], Awaitable[None]]
    tell_all: Callable[[Mapping[str, Any]], Awaitable[None]]
    known: dict[tuple[str, int, int], Known] = field(default_factory=dict)
    network: Recognizer | None = None
    looking: asyncio.Lock = field(default_factory=asyncio.Lock)


class Teaching:
    """What one tab teaches.

    Args:
        talk: with the tab.
        answers: those of the network of now.
        shared: with the other tabs.
        receiver: of the tab's files.
        options: gives what training starts from.
    """

    def __init__(
        self,
        talk: Talk,
        answers: Callable[[], Answers],
        shared: Class,
        receiver: Receiver,
        options: Callable[[], list[str]],
    ) -> None:
        self._talk, self._answers, self._shared, self._receiver = talk, answers, shared, receiver
        self._options = options
        self._source: Upload | None = None  # the longer video that clips are cut from

    def handlers(self) -> dict[str, Handler]:
        """By the type of message."""
        return {
            "lessons": self.show,
            "add-class": self.add_class,
            "throw-out-class": self.throw_out_class,
            "throw-out": self.throw_out,
            "put-back": self.put_back,
            "teach": self.teach,
            "source": self.keep_source,
            "cut": self.cut,
            "ask": self.ask,
            "train": self.train,
            "stop-training": self.stop_training,
            "use": self.use,
        }

    def close(self) -> None:
        """The tab is gone."""
        if self._source is not None:
            self._source.delete()

    # Classes and clips

    async def show(self, message: dict[str, Any]) -> None:
        """Say what there is, then look at what is new of it."""
        await self._talk.send(self._list())
        await self._talk.send(self._shared.training.report())
        await self._look()

    def _list(self) -> dict[str, Any]:
        classes = self._shared.lessons.classes()
        return {
            "type": "lessons",
            "folder": str(self._shared.lessons.folder),
            "classes": [
                {"name": name, "clips": [clip.file for clip in clips]} for name, clips in classes.items()
            ],
        }

    async def _changed(self) -> None:
        await self._shared.tell_all(self._list())
        await self._look()

    async def add_class(self, message: dict[str, Any]) -> None:
        """Make a class."""
        name = self._shared.lessons.add_class(str(message["name"]))
        await self._talk.send({"type": "class-added", "name": name})
        await self._changed()

    async def throw_out_class(self, message: dict[str, Any]) -> None:
        """Take a class out."""
        self._shared.lessons.throw_out_class(str(message["name"]))
        await self._changed()

    async def throw_out(self, message: dict[str, Any]) -> None:
        """Take a clip out."""
        self._shared.lessons.throw_out(_clip_of(message))
        await self._changed()

    async def put_back(self, message: dict[str, Any]) -> None:
        """Undo that."""
        self._shared.lessons.put_back(_clip_of(message))
        await self._changed()

    async def teach(self, message: dict[str, Any]) -> None:
        """The file that was sent becomes a clip of a class."""
        with deleted(self._receiver.end()) as upload:
            target = self._shared.lessons.new_path(str(message["label"]))
            await self._save(SaveClip(str(upload.path), str(target), self._answers().limits.of_video))
        await self._saved(message, target)

    async def keep_source(self, message: dict[str, Any]) -> None:
        """The file that was sent is one to cut from."""
        source = self._receiver.end()
        if self._source is not None:
            self._source.delete()
        self._source = source
        await self._talk.send({"type": "source-kept"})

    async def cut(self, message: dict[str, Any]) -> None:
        """A stretch of it becomes a clip of a class."""
        if self._source is None:
            raise ValueError("the longer video is not here any more; choose it again")
        start, end = number_of(message, "start", 0, 1e6), number_of(message, "end", 0, 1e6)
        if end <= start:
            raise ValueError(f"the part ends at {end:.1f} s, before it starts at {start:.1f} s")
        target = self._shared.lessons.new_path(str(message["label"]))
        task = SaveClip(str(self._source.path), str(target), self._answers().limits.of_video, start, end)
        await self._save(task)
        await self._saved(message, target)

    async def _save(self, task: SaveClip) -> None:
        try:
            await self._answers().call(task)
        except VideoError:
            for left in Path(task.target).parent.glob(f".{Path(task.target).stem}.*"):
                left.unlink()  # of a process that was ended while it wrote
            raise

    async def _saved(self, message: dict[str, Any], target: Path) -> None:
        await self._talk.send({"type": "taught", "label": message["label"], "file": target.name})
        await self._changed()

    # The first answer

    async def _look(self) -> None:
        """Look at the clips that nobody looked at, and say to all how well they are told apart."""
        shared = self._shared
        async with shared.looking:
            if shared.network is not self._answers().recognizer:
                shared.known.clear()
                shared.network = self._answers().recognizer
            clips = shared.lessons.clips()
            found: list[tuple[Clip, Known]] = []
            for clip in clips:
                known = await self._known(clip)
                if known is not None:
                    found.append((clip, known))
        await self._talk.send(self._standing(found))

    async def _known(self, clip: Clip) -> Known | None:
        """Of one clip, which is said to the tab; None if it went away meanwhile."""
        shared = self._shared
        try:
            path = shared.lessons.path(clip)
            state = path.stat()
        except (ValueError, OSError):
            return None
        key = str(path), state.st_mtime_ns, state.st_size
        if key not in shared.known:
            shared.known[key] = await self._fresh(path)
        known = shared.known[key]
        picture = {"type": "picture", **vars(clip), "picture": known.picture, "error": known.error}
        await self._talk.send(picture)
        return known

    async def _fresh(self, path: Path) -> Known:
        try:
            picture, features = await self._features(path)
        except VideoError as error:
            return Known(error=str(error))
        return Known(picture, features)

    async def _features(self, path: Path) -> tuple[str, Tensor]:
        answers = self._answers()
        count = min(answers.recognizer.checkpoint.num_frames, answers.limits.max_frames)
        decoded = await answers.decode(path, [count], any_length=True)
        clip = decoded.clip(count, answers.transform)[0]
        features = await answers.do(lambda: features_of(answers.recognizer, clip))
        middle = decoded.crops[decoded.shown(count)[count // 2], 0]
        return jpeg_address(middle.transpose(1, 2, 0), side=_ASIDE), features

    def _first_answer(
        self, found: list[tuple[Clip, Known]]
    ) -> tuple[FirstAnswer, list[str], list[Clip]] | None:
        """Of the classes that have clips enough; None where those are fewer than two."""
        able = [(clip, known.features) for clip, known in found if known.features is not None]
        names = sorted({clip.label for clip, _ in able})
        numbers = {name: sum(clip.label == name for clip, _ in able) for name in names}
        names = [name for name in names if numbers[name] >= _FEWEST_CLIPS]
        able = [(clip, features) for clip, features in able if clip.label in names]
        if len(names) < 2:
            return None
        features = torch.stack([one for _, one in able])
        labels = [names.index(clip.label) for clip, _ in able]
        return FirstAnswer(features, labels, len(names)), names, [clip for clip, _ in able]

    def _standing(self, found: list[tuple[Clip, Known]]) -> dict[str, Any]:
        answer = self._first_answer(found)
        if answer is None:
            text = f"The first answer needs two classes with {_FEWEST_CLIPS} clips each."
            return {"type": "standing", "text": text}
        known, _, clips = answer
        standing = known.standing()
        pictures = {clip: one.picture for clip, one in found}
        return {
            "type": "standing",
            "text": "",
            "right": standing.right,
            "number": standing.number,
            "interval": list(standing.interval),
            "confusions": [
                {
                    "clip": vars(clips[i]),
                    "picture": pictures[clips[i]],
                    "said": vars(clips[j]),
                    "said_picture": pictures[clips[j]],
                }
                for i, j in standing.confusions[:_MOST_CONFUSIONS]
            ],
        }

    async def ask(self, message: dict[str, Any]) -> None:
        """The file that was sent: of which class is it?"""
        shared = self._shared
        with deleted(self._receiver.end()) as upload:
            _, features = await self._features(upload.path)
        found = [(clip, known) for clip in shared.lessons.clips() if (known := await self._known(clip))]
        answer = self._first_answer(found)
        if answer is None:
            raise ValueError(
                f"there are no two classes with {_FEWEST_CLIPS} clips each yet; record some first"
            )
        clips_known, names, clips = answer
        probabilities = clips_known.probabilities(features)
        order = probabilities.argsort(descending=True).tolist()
        pictures = {clip: one.picture for clip, one in found}
        await self._talk.send(
            {
                "type": "told",
                "predictions": [
                    {"label": names[i], "index": i, "probability": float(probabilities[i])} for i in order[:5]
                ],
                "nearest": [
                    {**vars(clips[i]), "picture": pictures[clips[i]]} for i in clips_known.nearest(features)
                ],
            }
        )

    # Fine-tuning

    async def train(self, message: dict[str, Any]) -> None:
        """Start, or go on with what was stopped."""
        training = self._shared.training
        if message.get("go_on"):
            await asyncio.to_thread(training.go_on)
        else:
            options = self._options()
            if message.get("minutes") is not None:
                options += ["--training.minutes", f"{number_of(message, 'minutes', 0.1, 10_000):g}"]
            if sum(bool(clips) for clips in self._shared.lessons.classes().values()) < 2:
                raise ValueError("training needs clips of two classes; record some first")
            await asyncio.to_thread(training.start, options)
        await self._shared.tell_all(training.report())

    async def stop_training(self, message: dict[str, Any]) -> None:
        """Save what there is, and end."""
        self._shared.training.stop()
        await self._shared.tell_all(self._shared.training.report())

    async def use(self, message: dict[str, Any]) -> None:
        """The whole page takes the network that was trained."""
        path = self._shared.training.best
        if path is None:
            raise ValueError("no training has given a network yet")
        await self._shared.use(path)


def _clip_of(message: Mapping[str, Any]) -> Clip:
    return Clip(str(message["label"]), str(message["file"]))
