"""The dataclasses of a run, and their YAML. Every default lives here and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import yaml

DEFAULT_BACKBONE = "resnet50"
MAX_RECIPE_BYTES = 2**16
MOST_COMPILED = (
    4  # torch gives up on a function after 8 graphs, and a batch of one video takes one of its own
)

NAMES_EXPECTED = (
    "expected names of classes, or null on the right. Put quotes around names that YAML takes for something else, "
    "such as 'on' and '1'"
)


class RecipeError(ValueError):
    """A recipe that can't be run; the message names the key."""


@dataclass
class Data:
    """Which videos.

    Attributes:
        train: a folder with a sub-folder for each class, a CSV list, or Something-Something's folder of JSON.
        validation: the same for validation; where empty, the validation split that `train` comes with, or else
            `validation_fraction` of it, held out by class.
        video_dir: where the files of a list are; by default beside the list.
        validation_fraction: share held out where there is no validation split, above 0 and below 1.
        group: the column of a list that says whose video it is (by default `group`, `subject`, `person` or `scene`);
            videos of one group are held out together. In folders `CLASS/GROUP/video.mp4` it is the inner one.
        folds: cross-validation: divide all videos into so many parts; each is held out of a run of its own.
        fold: with `folds`, train that run alone, from 1: it is validated on this part and trained on the others.
        num_workers: processes that decode, for each training process.
        on_bad_video: what training does with a file that can't be decoded: "skip" counts and lists it and
            stops the run when more than 1 % and more than 3 are bad, "error" stops at the first. Validation always
            stops.
        quarantine: a list of videos to leave out, as `frameflex data check` writes it.
        cache_frames: keep the training videos' frames, small, so that each video is decoded once: in a quarter of the
            memory, and what doesn't fit there in files in `output`, which go away when the run ends.
        max_decode_seconds: how long opening or reading one video may take; a slower one counts as bad. By default as
            long as it takes.
        multi_label: a video may show several classes, or none: its label is names with `|` between them. Each class
            gets a probability of its own; accuracy is measured as mAP.
        nothing: videos in which none of the classes happens, a folder or file: examples for a class "nothing" of
            their own, or with `multi_label` of no class at all.
        reversed: for `clip.reverse`: which class a video shows when it is played backwards, where names don't tell
            or mislead. `{a: b}` makes two classes each other's reverse, `{a: a}` one its own, and with `{a: null}` it
            is never played backwards.
    """

    train: str
    validation: str | None = None
    video_dir: str | None = None
    validation_fraction: float = 0.2
    group: str | None = None
    folds: int | None = None
    fold: int | None = None
    num_workers: int = 2
    on_bad_video: Literal["skip", "error"] = "skip"
    quarantine: str | None = None
    cache_frames: bool = False
    max_decode_seconds: float | None = None
    multi_label: bool = False
    nothing: str | None = None
    reversed: dict[str, str | None] = field(default_factory=dict)


@dataclass
class Clip:
    """Which frames and pixels of a video.

    Attributes:
        frame_counts: the T's. A plain TSM trains at the largest and is validated at all of them.
        sampling: "segments" (one frame of each of T equal parts) or "dense" (T frames, equally far apart, of a
            `window` of the video).
        window: frames that a dense clip spans, at any T.
        short_side: pixels of the shorter side after resizing, for evaluation with the fit "crop".
        crop_size: pixels that the network sees: the side of a square, or [height, width].
        fit: how a frame comes to `crop_size`: "crop" takes its centre (in training a random part); "whole" resizes
            all of it, whatever its aspect; "pad" keeps the aspect and adds a border. With the last two a training
            clip shows 85 to 100 % of each side.
        mean: of R, G, B on the scale 0 to 1; by default what the backbone's ImageNet weights expect.
        std: likewise.
        multi_scale_crop: sides of training crops, relative to the shorter side of the video; with the fit "crop".
        flip: mirror every second training clip, and exchange left and right in its label. Labels whose
            mirrored name is not among the classes are never mirrored.
        reverse: play every second training clip backwards of classes with a known reverse, and exchange the label:
            "opening" and "closing", by opposites in English names that are both among the classes, and by
            `data.reversed`. Other classes are never played backwards.
        color_jitter: strength from 0 to 1.
        rand_augment: magnitude from 0 (off) to 30.
    """

    frame_counts: tuple[int, ...] = (16,)
    sampling: Literal["segments", "dense"] = "segments"
    window: int = 64
    short_side: int = 256
    crop_size: int | tuple[int, int] = 224
    fit: Literal["crop", "whole", "pad"] = "crop"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    multi_scale_crop: tuple[float, ...] = (1, 0.875, 0.75, 0.66)
    flip: bool = True
    reverse: bool = False
    color_jitter: float = 0.0
    rand_augment: int = 0


@dataclass
class Model:
    """The network.

    Attributes:
        backbone: architecture of timm; null for that of `init`, or resnet50 where there is none.
        pretrained: ImageNet weights: true to download them, or a file.
        init: a checkpoint of frameflex to start from. Its network is used as it is (dropout is the recipe's; a
            `shift` other than its own is added or taken away), and what it expects of its pixels; rows of the
            classifier are kept where class names agree, and new where they don't.
        head: "new", or "fitted": with `init` and classes that it doesn't know, the classifier starts as logistic
            regression on its features of the training videos, fitted before the first step.
        dropout: before the classifier.
        shift: "bidirectional"; "causal", which sees only the past, for streaming; or "none" for a baseline that can't
            see order.
        shift_div: one channel in so many moves in each direction.
        backbone_options: further arguments of timm.create_model.
        frame_norms: method ffn: norms of its own for each frame count.
        frame_scales: method ffn: scales of its own for each frame count.
    """

    backbone: str | None = DEFAULT_BACKBONE
    pretrained: bool | str = True
    init: str | None = None
    head: Literal["new", "fitted"] = "new"
    dropout: float = 0.5
    shift: Literal["bidirectional", "causal", "none"] = "bidirectional"
    shift_div: int = 8
    backbone_options: dict[str, Any] = field(default_factory=dict)
    frame_norms: bool = True
    frame_scales: bool = True


@dataclass
class Objective:
    """What is minimised.

    Attributes:
        label_smoothing: 0 to 1.
        kl_weight: method ffn: λ, the weight of Σ KL(prediction at the largest count ‖ student).
        temperature: method ffn: of both sides of the KL term.
        student_cross_entropy: method ffn: cross-entropy at the smaller counts too; null for true where
            `training.first_phase` is above 0. The published loss has none.
        reverse_kl: method ffn: KL(student ‖ prediction at the largest count) instead.
        counts: method ffn: "drawn": each batch draws one of the frame counts and learns the labels, so that the same
            number of frames makes many more steps. "all": each batch is seen at all of them, and the largest teaches
            the others (the published method).
        random_counts: method ffn with `counts: all`: each step draws the smaller counts from the whole range between
            the smallest and the largest instead of the fixed list; parts of the nearest count serve them.
        class_balance: against rare classes: "sampling" draws videos so that each class is seen as often as any
            other, "loss" weighs each class by how rare it is.
    """

    label_smoothing: float = 0.0
    kl_weight: float = 1.0
    temperature: float = 1.0
    student_cross_entropy: bool | None = None
    reverse_kl: bool = False
    counts: Literal["drawn", "all"] = "drawn"
    random_counts: bool = False
    class_balance: Literal["none", "sampling", "loss"] = "none"


@dataclass
class Training:
    """How it is minimised.

    Attributes:
        epochs: passes over the training videos.
        minutes: a budget: the first steps are timed, and `epochs` are those that it leaves time for.
        first_phase: method ffn: share of the epochs in which the network is trained at the largest count alone, as a
            plain TSM; the other counts then start from its norms and scales, and all are trained. With
            `objective.counts: all` and from scratch the smaller counts else copy a teacher that knows nothing yet.
            Skipped where `model.init` is given.
        batch_size: videos a step in each process, before accumulation.
        accumulate: batches a step of the optimizer.
        optimizer: "sgd" or "adamw".
        learning_rate: for `reference_batch_size` videos a step; scaled linearly to the real number.
        reference_batch_size: null leaves the learning rate as it is.
        momentum: of SGD.
        nesterov: of SGD.
        weight_decay: 0 or more.
        parameter_groups: "published" (TSM: new classifier's weight at 5 ×, its bias at 10 ×, other biases at 2 ×
            without decay, norms without decay) or "plain" (one rate; no decay on biases and norms).
        schedule: "cosine" to zero, or "steps" (a tenth at each of `milestones`).
        milestones: epochs.
        warmup_epochs: linear from zero.
        clip_grad_norm: largest norm of all gradients together; null for no limit.
        precision: "no" (float32), "bf16" or "fp16".
        validate_every: epochs from one validation to the next; the last epoch is always validated.
        tensorboard: also write TensorBoard's log (needs frameflex[tracking]).
        frozen_stages: stages that are not trained, from the input: 1 is the stem, 2 also the first stage, and so on.
        layer_decay: the learning rate of each block is this times that of the next one; 1 for one rate.
        norms: "tuned", "frozen", or "first": all frozen but the first (partial batch norm of TSN and TSM).
        sync_norms: batch norms take their statistics over all processes; for few videos a process.
        ema_decay: validate and save a running average of the weights and of the norms' statistics, with this decay a
            step, such as 0.9998 (less in the first steps); null for the weights themselves.
        grad_checkpointing: keep no activations inside the stages and compute them again: less memory, more time.
        compile: torch.compile, a graph for each frame count: minutes at the start, faster steps on most GPUs.
        checkpoint_minutes: save where the run stands this often inside an epoch; null for its end alone.
        checkpoint_steps: save it after so many steps, too; null for never.
        keep_checkpoints: of the newest ones, at least 1; one that turns out damaged falls back to the one before.
    """

    epochs: int = 50
    minutes: float | None = None
    first_phase: float = 0.0
    batch_size: int = 8
    accumulate: int = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.01
    reference_batch_size: int | None = 64
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    parameter_groups: Literal["published", "plain"] = "published"
    schedule: Literal["cosine", "steps"] = "cosine"
    milestones: tuple[int, ...] = (20, 40)
    warmup_epochs: float = 0.0
    clip_grad_norm: float | None = 20.0
    precision: Literal["no", "bf16", "fp16"] = "no"
    validate_every: int = 1
    tensorboard: bool = False
    frozen_stages: int = 0
    layer_decay: float = 1.0
    norms: Literal["tuned", "frozen", "first"] = "tuned"
    sync_norms: bool = False
    ema_decay: float | None = None
    grad_checkpointing: bool = False
    compile: bool = False
    checkpoint_minutes: float | None = 15.0
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2


@dataclass
class Recipe:
    """A whole run.

    Attributes:
        data: which videos.
        output: folder of the run: recipe, log, checkpoints.
        method: "tsm" (one network, trained at the largest frame count), "ffn" (one network, trained at all of
            them together) or "separate" (a plain TSM for each count).
        clip: which frames and pixels.
        model: the network.
        objective: what is minimised.
        training: how it is minimised.
        seed: of everything random.
    """

    data: Data
    output: str = "runs/frameflex"
    method: Literal["tsm", "ffn", "separate"] = "tsm"
    clip: Clip = field(default_factory=Clip)
    model: Model = field(default_factory=Model)
    objective: Objective = field(default_factory=Objective)
    training: Training = field(default_factory=Training)
    seed: int = 0

    def __post_init__(self) -> None:
        counts = self.clip.frame_counts
        if not counts or min(counts) < 1 or len(set(counts)) != len(counts):
            raise RecipeError(
                f"clip.frame_counts is {list(counts)}; expected different T's of at least 1 each"
            )
        for name, value, low in (
            ("training.epochs", self.training.epochs, 1),
            ("training.batch_size", self.training.batch_size, 1),
            ("training.accumulate", self.training.accumulate, 1),
            ("training.validate_every", self.training.validate_every, 1),
            ("data.num_workers", self.data.num_workers, 0),
            ("clip.window", self.clip.window, 1),
            ("training.frozen_stages", self.training.frozen_stages, 0),
            ("training.keep_checkpoints", self.training.keep_checkpoints, 1),
            ("training.checkpoint_steps", self.training.checkpoint_steps or 1, 1),
        ):
            if value < low:
                raise RecipeError(f"{name} is {value}; expected at least {low}")
        if not 0 < self.data.validation_fraction < 1:
            raise RecipeError(
                f"data.validation_fraction is {self.data.validation_fraction}; expected above 0 and below 1"
            )
        self._check_folds()
        self._check_reversal()
        if self.model.head == "fitted" and (not self.model.init or self.data.multi_label):
            raise RecipeError("model.head fitted goes with model.init and one label a video; set it to new")
        if not self.training.learning_rate > 0:
            raise RecipeError(f"training.learning_rate is {self.training.learning_rate}; expected above 0")
        if not 0 <= self.training.first_phase < 1:
            raise RecipeError(
                f"training.first_phase is {self.training.first_phase}; expected a share of the epochs, 0 or more and "
                "below 1"
            )
        if not 0 < self.training.layer_decay <= 1:
            raise RecipeError(
                f"training.layer_decay is {self.training.layer_decay}; expected above 0 and at most 1"
            )
        if self.training.ema_decay is not None and not 0 < self.training.ema_decay < 1:
            raise RecipeError(
                f"training.ema_decay is {self.training.ema_decay}; expected above 0 and below 1, or null for none"
            )
        if self.training.minutes is not None and not self.training.minutes > 0:
            raise RecipeError(
                f"training.minutes is {self.training.minutes}; expected above 0, or null for epochs"
            )
        if self.training.checkpoint_minutes is not None and not self.training.checkpoint_minutes > 0:
            raise RecipeError(
                f"training.checkpoint_minutes is {self.training.checkpoint_minutes}; expected above 0, or null for "
                "none"
            )
        if self.training.compile:
            self._check_compile()
        if self.objective.random_counts and self.draws_counts:
            raise RecipeError(
                "objective.random_counts draws the smaller counts of a step that sees all; it goes with "
                "objective.counts all"
            )
        if self.objective.temperature <= 0 or self.objective.kl_weight < 0:
            raise RecipeError("objective.temperature must be above 0 and objective.kl_weight at least 0")

    def _check_folds(self) -> None:
        folds, fold = self.data.folds, self.data.fold
        if folds is None and fold is None:
            return
        if folds is None or folds < 2:
            raise RecipeError(f"data.folds is {folds}; expected at least 2")
        if fold is not None and not 1 <= fold <= folds:
            raise RecipeError(f"data.fold is {fold}; expected 1 to {folds}, or none to train all of them")
        for what, given in (
            ("method separate", self.method == "separate"),
            ("data.multi_label", self.data.multi_label),
        ):
            if given:
                raise RecipeError(f"data.folds doesn't go with {what}; leave out one of them")

    def _check_reversal(self) -> None:
        for name, other in self.data.reversed.items():
            if not isinstance(name, str) or not isinstance(other, str | None):
                raise RecipeError(f"data.reversed holds {name!r}: {other!r}; {NAMES_EXPECTED}")
        if self.data.multi_label and (self.clip.reverse or self.data.reversed):
            raise RecipeError(
                "clip.reverse and data.reversed don't go with data.multi_label; leave out one or the other"
            )
        if self.clip.reverse and self.model.shift == "none":
            raise RecipeError(
                "clip.reverse doesn't go with model.shift none: that network can't tell a clip from its reverse. "
                "Leave out one of them"
            )

    def _check_compile(self) -> None:
        for name, given in (
            ("objective.random_counts", self.objective.random_counts),
            ("training.sync_norms", self.training.sync_norms),
        ):
            if given:
                raise RecipeError(f"training.compile and {name} don't go together; turn one of them off")
        if len(self.trained_counts) > MOST_COMPILED:
            raise RecipeError(
                f"training.compile makes a graph for each of {len(self.trained_counts)} frame counts; at most "
                f"{MOST_COMPILED}. Turn it off, or train at fewer counts"
            )

    @property
    def trained_counts(self) -> tuple[int, ...]:
        """The T's that the network sees in training, ascending."""
        counts = tuple(sorted(self.clip.frame_counts))
        return counts if self.method == "ffn" else counts[-1:]

    @property
    def frames_a_video(self) -> int:
        """Frames of each training video that go forward and backward over the whole run: its compute."""
        counts, alone = self.trained_counts, self.first_phase_epochs
        together = sum(counts) / (len(counts) if self.draws_counts else 1)
        return round(alone * counts[-1] + (self.training.epochs - alone) * together)

    @property
    def reverses(self) -> bool:
        """Whether clips are played backwards; one of a single frame can't be."""
        return self.clip.reverse and self.trained_counts[-1] > 1

    @property
    def draws_counts(self) -> bool:
        """Whether each batch is seen at one frame count, drawn for it."""
        return self.method == "ffn" and self.objective.counts == "drawn"

    @property
    def first_phase_epochs(self) -> int:
        """Epochs at the largest count alone, before all counts of a frame-flexible network are trained together."""
        if self.method != "ffn" or self.model.init:
            return 0
        epochs = self.training.epochs
        return min(round(self.training.first_phase * epochs), epochs - 1)

    @property
    def students_learn_labels(self) -> bool:
        """Whether the smaller counts of a frame-flexible network have cross-entropy, too."""
        asked = self.objective.student_cross_entropy
        return self.training.first_phase > 0 if asked is None else asked

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        return _plain(asdict(self))

    def save(self, path: Path) -> None:
        """Write the whole effective recipe as YAML."""
        path.write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        """The whole effective recipe: a key a line, lists in brackets."""
        return yaml.dump(self.to_dict(), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(
    list, lambda dumper, values: dumper.represent_sequence("tag:yaml.org,2002:seq", values, flow_style=True)
)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file of keys and values; executes nothing of it.

    Recipes have no use for YAML's aliases, with which a few hundred bytes can stand for gigabytes.

    Raises:
        RecipeError: if it is not YAML, is no mapping, has aliases, or is larger than `MAX_RECIPE_BYTES`.
        OSError: if it can't be read.
    """
    with path.open("rb") as file:
        content = file.read(MAX_RECIPE_BYTES + 1)
    if len(content) > MAX_RECIPE_BYTES:
        raise RecipeError(f"{path} has more than {MAX_RECIPE_BYTES} bytes; expected a recipe")
    try:
        values = yaml.load(content, _Loader)  # a SafeLoader
    except RecipeError as error:
        raise RecipeError(f"{path}: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError) as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise RecipeError(
            f"{path} holds {type(values).__name__}; expected keys and values as in recipes/motion.yaml"
        )
    return values


class _Loader(yaml.SafeLoader):
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise RecipeError("has an alias (*name); expected plain values. Write them out")
        return super().compose_node(parent, index)


def check_keys(values: Mapping[str, Any], origin: str) -> None:
    """Refuse unknown keys of a recipe, with the known one that was probably meant.

    Args:
        values: the nested mapping that a YAML file holds.
        origin: for the message.

    Raises:
        RecipeError: naming the first unknown key.
    """
    known = known_keys()
    groups = {key.split(".")[0] for key in known if "." in key}
    if not isinstance(values, Mapping):
        raise RecipeError(
            f"{origin} holds {type(values).__name__}; expected keys and values as in recipes/motion.yaml"
        )
    for key, value in values.items():
        if key in groups and isinstance(value, Mapping):
            for inner in value:
                check_key(f"{key}.{inner}", known, origin)
        elif key not in groups:
            check_key(str(key), known, origin)


def check_key(key: str, known: list[str], origin: str) -> None:
    """Refuse one dotted key that is not among the known ones."""
    if key in known:
        return
    last = key.rsplit(".", 1)[-1]
    close = get_close_matches(key, known, n=1, cutoff=0.75) or [
        name
        for name in known
        if name.rsplit(".", 1)[-1] in get_close_matches(last, [name.rsplit(".", 1)[-1]])
    ]
    hint = f"Did you mean {close[0]}?" if close else "See frameflex train --help for all keys"
    raise RecipeError(f"{origin}: unknown key {key}. {hint}")


def known_keys() -> list[str]:
    """Every key of a recipe, dotted."""
    keys: list[str] = []
    for name, value in Recipe(Data("")).to_dict().items():
        if isinstance(value, dict):
            keys += [f"{name}.{inner}" for inner in value]
        else:
            keys.append(name)
    return keys
