"""Videos in, labels out."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from frameflex.arguments import check_path, checked_num_frames, finite_number, shown, whole
from frameflex.checkpoint import Checkpoint, load_checkpoint
from frameflex.data.clips import ClipDataset
from frameflex.data.loading import read_batches
from frameflex.data.records import VideoList, VideoRecord
from frameflex.data.transforms import VIEWS, EvalTransform
from frameflex.deploy.inputs import is_many, open_input
from frameflex.export import is_export, load_exported
from frameflex.export.running import ExportedModel
from frameflex.models.clips import classify_views
from frameflex.models.precision import chosen_precision, computing_in
from frameflex.storage import Place, place_of
from frameflex.video import Limits, VideoError

if TYPE_CHECKING:
    from frameflex.deploy.explaining import Explanation
    from frameflex.deploy.inputs import Video


@dataclass(frozen=True)
class Prediction:
    """One possible answer.

    Attributes:
        label: name of the class.
        index: of the class among the model's outputs.
        probability: 0 to 1.
    """

    label: str
    index: int
    probability: float


def load(
    source: str | Path, *, device: str | torch.device | None = None, precision: str | None = None
) -> Recognizer:
    """A network that is ready to recognise, from a name, a path or an address.

    Args:
        source: the name of published weights (`frameflex.list_models(pretrained=True)`), a ``.safetensors`` file, a
            folder of `Checkpoint.save_pretrained` or of `frameflex export`, a repository ``owner/name`` of the
            Hugging Face hub, or an address ``hf://`` or ``https://`` with a checksum.
        device: where the network runs; by default the best there is.
        precision: as for a `Recognizer`.

    Raises:
        FileNotFoundError, CheckpointError: if there is nothing of that name, or it can't be used.
        ValueError: if the device or the export can't do the precision.

    Examples:
        >>> import frameflex
        >>> recognizer = frameflex.load("best.safetensors")
        >>> recognizer("clip.mp4", num_frames=4)[0].label
        'going right'
        >>> [answers[0].label for answers in recognizer(["clip.mp4", open("clip.mp4", "rb").read()])]
        ['going right', 'going right']
        >>> recognizer.pipeline("clip.mp4", top_k=1)
        [{'score': 1.0, 'label': 'going right'}]
    """
    return Recognizer.from_pretrained(source, device=device, precision=precision)


class Recognizer:
    """Recognise actions with a checkpoint.

    Args:
        checkpoint: as `load_checkpoint` gives it.
        device: where the network runs; by default the best there is.
        precision: what the network computes in: "float32", "bfloat16", "float16", "int8", or "auto" for the fastest
            of those that the device is made for (bfloat16 on CPUs with AMX or AVX512-BF16 and on GPUs from compute
            capability 8.0). By default float32, and an export's own.
        limits: how much each video may ask for when it is read.

    Attributes:
        precision: what it computes in, "auto" resolved.

    Raises:
        ValueError: if the device or the export can't do the precision.

    Example::

        recognizer = Recognizer.from_checkpoint("best.safetensors")
        print(recognizer("clip.mp4", num_frames=8)[0].label)
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        limits: Limits | None = None,
    ) -> None:
        if not isinstance(checkpoint, Checkpoint):
            raise TypeError(
                f"checkpoint is {shown(checkpoint)}; expected a Checkpoint. frameflex.load makes a Recognizer of a "
                "path or a name"
            )
        self.checkpoint = checkpoint
        self.limits = limits or Limits()
        self.device = chosen_device(device)
        self.precision = precision_of(checkpoint.model, precision, self.device)
        self.model = checkpoint.model.eval().to(self.device).to(memory_format=torch.channels_last)

    @classmethod
    def from_checkpoint(
        cls,
        path: str | Path,
        *,
        device: str | torch.device | None = None,
        precision: str | None = None,
        limits: Limits | None = None,
    ) -> Recognizer:
        """Load a ``.safetensors`` checkpoint, or an export of `frameflex export`, which runs on the CPU.

        Raises:
            FileNotFoundError, CheckpointError: as `load_checkpoint` and `load_exported`.
        """
        check_path(path, "path", "a .safetensors file or an export")
        if is_export(path):
            return cls(load_exported(path), device="cpu", precision=precision, limits=limits)
        return cls(load_checkpoint(path), device=device, precision=precision, limits=limits)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, *, device: str | torch.device | None = None, precision: str | None = None
    ) -> Recognizer:
        """As `load`."""
        check_path(source, "source", "a name of published weights, a path or an address")
        if is_export(source):
            return cls(load_exported(source), device="cpu", precision=precision)
        return cls(Checkpoint.from_pretrained(source), device=device, precision=precision)

    @overload
    def __call__(
        self,
        video: Video,
        *,
        num_frames: int | None = ...,
        budget: str | Sequence[int] | None = ...,
        confidence: float = ...,
        top: int = ...,
        views: str = ...,
    ) -> list[Prediction]: ...

    @overload
    def __call__(
        self,
        video: list[Any] | tuple[Any, ...],
        *,
        num_frames: int | None = ...,
        budget: str | Sequence[int] | None = ...,
        confidence: float = ...,
        top: int = ...,
        views: str = ...,
    ) -> list[list[Prediction]]: ...

    def __call__(
        self,
        video: Any,
        *,
        num_frames: int | None = None,
        budget: str | Sequence[int] | None = None,
        confidence: float = 0.8,
        top: int = 5,
        views: str = "1x1",
    ) -> Any:
        """Recognise one video, or each of a list.

        Args:
            video: a path, the bytes of a file, a binary file object, an address ``http://``, ``https://`` or of
                object storage (``s3://``); frames as an array or tensor, RGB uint8 ``(T, H, W, 3)`` or
                ``(T, 3, H, W)``, or of another range or layout that can be told apart; a list of pictures (Pillow's,
                or arrays). A list of these is several videos.
            num_frames: T, frames to look at, at least 1; by default the largest trained count.
            budget: frame counts, such as (4, 8), to look at the smallest first and at the next only while the highest
                probability is below ``confidence``; "auto" for the trained ones. The video is decoded once, for all
                of them.
            confidence: for ``budget``; `frameflex evaluate --adaptive` finds both for a data set.
            top: how many answers, best first.
            views: "temporal views x crops": 1x1, 2x1, 1x3 or 2x3.

        Returns:
            ``top`` predictions, or as many as there are classes; for a list of videos a list of these.

        Raises:
            VideoError: if a video can't be decoded.
            FileNotFoundError: if there is no such file.
            ValueError: if an argument is out of range, or an array's layout or range can't be told.
            NotFinite: if the network gives NaN or infinite logits; a ValueError, too.
        """
        if is_many(video):
            options: dict[str, Any] = {"num_frames": num_frames, "budget": budget, "confidence": confidence}
            return [self(one, **options, top=top, views=views) for one in video]
        counts, top, confidence = (
            self._counts(num_frames, budget),
            _checked_top(top),
            _checked_confidence(confidence),
        )
        name, clips = self._clips(video, counts, views)
        return self.ranked(self.look(clips, confidence, [name])[0], top)

    @overload
    def pipeline(self, video: Video, *, top_k: int = ..., **options: Any) -> list[dict[str, Any]]: ...

    @overload
    def pipeline(
        self, video: list[Any] | tuple[Any, ...], *, top_k: int = ..., **options: Any
    ) -> list[list[dict[str, Any]]]: ...

    def pipeline(self, video: Any, *, top_k: int = 5, **options: Any) -> Any:
        """The same in the form of transformers' pipeline "video-classification".

        Args:
            video: as for a call.
            top_k: how many answers.
            options: further ones of a call.

        Returns:
            ``[{"score": 0.97, "label": "…"}, …]``, best first; for a list of videos a list of these.
        """
        if is_many(video):
            return [self.pipeline(one, top_k=top_k, **options) for one in video]
        answers = self(video, top=top_k, **options)
        return [{"score": answer.probability, "label": answer.label} for answer in answers]

    def logits(self, video: Video, *, num_frames: int | None = None, views: str = "1x1") -> Tensor:
        """The scores ``(K,)`` behind the predictions, averaged over views; arguments as for a call."""
        if is_many(video):
            raise ValueError(f"video is a list of {len(video)}; expected one. Call logits for each")  # type: ignore[arg-type]
        counts = self._counts(num_frames, None)
        name, clips = self._clips(video, counts, views)
        return self._classify(clips[counts[0]], [name])[0]

    def recognize_many(
        self,
        videos: Sequence[str | Place],
        *,
        num_frames: int | None = None,
        budget: str | Sequence[int] | None = None,
        confidence: float = 0.8,
        top: int = 5,
        views: str = "1x1",
        batch_size: int = 8,
        num_workers: int = 0,
    ) -> Generator[tuple[Place, list[Prediction] | VideoError], None, None]:
        """Recognise many files, in batches, decoding ahead.

        Args:
            videos: files, here or in object storage.
            num_frames: as for one video.
            budget: as for one video.
            confidence: as for one video.
            top: as for one video.
            views: as for one video.
            batch_size: videos through the network at once.
            num_workers: processes that decode; with none a thread does, while the network works.

        Yields:
            each file with its predictions, in the order given; a file that can't be decoded with its error.

        Raises:
            ValueError, TypeError: at once, if an argument is wrong.
        """
        paths = _checked_files(videos)
        top, confidence = _checked_top(top), _checked_confidence(confidence)
        batch_size = whole(batch_size, "batch_size", least=1)
        num_workers = whole(num_workers, "num_workers")
        dataset = self._dataset(paths, self._counts(num_frames, budget), views)
        return self._recognize_files(dataset, paths, confidence, top, batch_size, num_workers)

    def _recognize_files(
        self,
        dataset: ClipDataset,
        paths: Sequence[Place],
        confidence: float,
        top: int,
        batch_size: int,
        num_workers: int,
    ) -> Generator[tuple[Place, list[Prediction] | VideoError], None, None]:
        with read_batches(dataset, batch_size=batch_size, num_workers=num_workers) as batches:
            for batch in batches:
                answers: dict[int, list[Prediction] | VideoError] = {
                    bad.index: VideoError(bad.reason) for bad in batch.bad
                }
                if len(batch):
                    names = [str(paths[index]) for index in batch.indices.tolist()]
                    logits = self.look(batch.clips, confidence, names)
                    answers |= {
                        index: self.ranked(row, top)
                        for index, row in zip(batch.indices.tolist(), logits, strict=True)
                    }
                for index in sorted(answers):
                    yield paths[index], answers[index]

    def clip_rule(
        self,
        num_frames: int | None = None,
        views: str = "1x1",
        *,
        budget: str | Sequence[int] | None = None,
    ) -> ClipDataset:
        """Which frames of a video the network is shown, and how they are prepared; arguments as for a call."""
        return self._dataset([], self._counts(num_frames, budget), views)

    def explain(
        self, video: Video, *, num_frames: int | None = None, label: str | None = None, top: int = 5
    ) -> Explanation:
        """Why a video has its label: where the network looked, which frames mattered, what it says of it backwards.

        Args:
            video: as for a call.
            num_frames: as for a call.
            label: the class to explain; by default the likeliest.
            top: how many predictions, forwards and backwards.

        Raises:
            ValueError: if there is no such class, or the network is an export.
            VideoError, FileNotFoundError: as for a call.

        Examples:
            >>> why = recognizer.explain("clip.mp4")
            >>> int(why.importance.argmax())  # the frame that mattered most
            3
        """
        from frameflex.deploy.explaining import explain

        return explain(self, video, num_frames=num_frames, label=label, top=top)

    def best(self, probabilities: Tensor, top: int) -> list[Prediction]:
        """The ``top`` likeliest classes of ``(K,)``, or as many as there are, best first."""
        return best_of(probabilities, self.checkpoint.class_names, top)

    def probabilities(self, clips: Tensor) -> Tensor:
        """Probabilities ``(B, K)`` of clips ``(B, V, 3, T, h, w)``, on the CPU."""
        return self._probabilities(self._classify(clips) / self.checkpoint.temperature(clips.shape[3]))

    def look(
        self,
        clips: Mapping[int, Tensor],
        confidence: float,
        names: Sequence[str],
        *,
        batch_size: int | None = None,
    ) -> Tensor:
        """Logits ``(B, K)`` of clips ``{T: (B, V, 3, T, h, w)}``: of the first count that is sure, video by video.

        They are divided by their count's temperature, so that a probability of 0.8 means the same at each. Names are
        for errors; with a batch size the network is always shown as many videos: see `classify_views`.
        """
        first, *others = sorted(clips)
        logits = self._classify(clips[first], names, batch_size) / self.checkpoint.temperature(first)
        for count in others:
            unsure = self._probabilities(logits).amax(1) < confidence
            if not unsure.any():
                break
            asked = [name for name, open_ in zip(names, unsure.tolist(), strict=True) if open_]
            again = self._classify(clips[count][unsure], asked, batch_size)
            again = again / self.checkpoint.temperature(count)
            logits = logits.index_put((unsure,), again)
        return logits

    def ranked(self, logits: Tensor, top: int) -> list[Prediction]:
        """The ``top`` best answers of logits ``(K,)``, best first."""
        return self.best(self._probabilities(logits), top)

    def _counts(self, num_frames: int | None, budget: str | Sequence[int] | None) -> tuple[int, ...]:
        if (
            budget is not None
            and budget != "auto"
            and (isinstance(budget, (str, bytes)) or not isinstance(budget, Iterable))
        ):
            raise ValueError(f'budget is {shown(budget)}; expected "auto", or frame counts such as (4, 8)')
        if budget is not None and num_frames is not None:
            raise ValueError("both num_frames and budget are given; expected one of them")
        if isinstance(budget, str):
            return self.checkpoint.frame_counts
        if budget is not None:
            counts = sorted({checked_num_frames(count, "budget") for count in budget})
            if not counts:
                raise ValueError('budget has no frame count; expected "auto", or some such as (4, 8)')
            return tuple(counts)
        return (self.checkpoint.num_frames if num_frames is None else checked_num_frames(num_frames),)

    def _clips(self, video: Video, frame_counts: Sequence[int], views: str) -> tuple[str, dict[int, Tensor]]:
        """Name and clips ``{T: (1, V, 3, T, h, w)}`` of one video."""
        dataset = self._dataset([], frame_counts, views)
        with open_input(video, limits=self.limits) as reader:
            return reader.name, {count: clip[None] for count, clip in dataset.clips(reader).items()}

    def _dataset(self, paths: Sequence[Place], frame_counts: Sequence[int], views: str) -> ClipDataset:
        if not isinstance(views, str) or views not in VIEWS:
            raise ValueError(f"views is {views!r}; expected one of {', '.join(VIEWS)}")
        num_views, num_crops = VIEWS[views]
        records = [VideoRecord(path, None, str(path)) for path in paths]
        return ClipDataset(
            VideoList(records, self.checkpoint.class_names, limits=self.limits),
            frame_counts=frame_counts,
            transform=EvalTransform(self.checkpoint.preprocessing, num_crops=num_crops),
            training=False,
            num_views=num_views,
            on_bad_video="skip",
            **self.checkpoint.sampling,
        )

    def _classify(self, clips: Tensor, names: Sequence[str] = (), batch_size: int | None = None) -> Tensor:
        with torch.inference_mode(), computing(self.model, self.precision, self.device):
            logits = classify_views(self.model, clips.to(self.device), names=names, batch_size=batch_size)
            return logits.cpu()  # (B, K)

    def _probabilities(self, logits: Tensor) -> Tensor:
        """Of all classes together, or of each on its own where a video may show several."""
        return logits.sigmoid() if self.checkpoint.multi_label else logits.softmax(-1)


def best_of(probabilities: Tensor, names: Sequence[str], top: int) -> list[Prediction]:
    """The ``top`` likeliest classes of ``(K,)``, or as many as there are, best first."""
    top = _checked_top(top)
    best = probabilities.topk(min(top, len(probabilities)))
    return [
        Prediction(names[index], index, probability)
        for probability, index in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]


def _checked_top(top: Any) -> int:
    return whole(top, "top", least=1)


def _checked_confidence(confidence: Any) -> float:
    return finite_number(confidence, "confidence", "a probability from 0 to 1", least=0, most=1)


def _checked_files(videos: Any) -> list[Place]:
    if isinstance(videos, (str, bytes, os.PathLike)):
        raise ValueError(f"videos is {videos!r}; expected a list. For one file, call the recognizer itself")
    if not isinstance(videos, Iterable):
        raise TypeError(f"videos is {shown(videos)}; expected a list of files' paths")
    files = list(videos)
    for place, video in enumerate(files):
        check_path(
            video,
            f"videos[{place}]",
            "a file's path. What is in memory or elsewhere, also in a list, takes a call of the recognizer itself",
        )
    return [place_of(video) for video in files]


def precision_of(model: nn.Module, precision: str | None, device: torch.device) -> str:
    """What a checkpoint's model, or an export, computes in on a device; `Recognizer` says what can be asked for.

    Raises:
        ValueError: if there is no such precision, or the device or the export can't do it.
    """
    if isinstance(model, ExportedModel):
        return model.compute_in(precision)
    return chosen_precision(precision or "float32", device)


def computing(
    model: nn.Module, precision: str, device: torch.device
) -> contextlib.AbstractContextManager[object]:
    """A block in which the model computes in a precision; an export does so by itself."""
    return contextlib.nullcontext() if isinstance(model, ExportedModel) else computing_in(precision, device)


def chosen_device(device: str | torch.device | None) -> torch.device:
    """A device by name, or the best there is.

    Raises:
        ValueError: if there is no such device here.
    """
    if device is None:
        return best_device()
    if not isinstance(device, (str, int, torch.device)) or isinstance(device, bool):
        raise ValueError(f"device is {shown(device)}; expected a name, such as cpu, cuda, cuda:1 or mps")
    known = "expected cpu, cuda, cuda:1, mps or another device of torch"
    try:
        chosen = torch.device(device)
        if chosen.type != "meta":
            torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError, ImportError, TypeError) as error:
        # torch's own words of a missing driver, a build without CUDA, a number too high
        cause = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        raise ValueError(
            f"device is {str(device)!r}, which can't be used here ({cause}); {known}. Here the best is "
            f"{best_device()}"
        ) from error
    return chosen


def best_device() -> torch.device:
    """CUDA where there is a GPU, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
