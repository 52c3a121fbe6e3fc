"""What a class becomes when its video is mirrored or played backwards: opposites in English class names.

Mirroring exchanges sides and turns alone; playing backwards exchanges them and most other opposites ("open" and
"close"). Learning classes from the reversed videos of their opposites: Price and Damen 2019, arXiv 1909.09422.
"""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

__all__ = [
    "NEVER_FLIPPED",
    "NEVER_REVERSED",
    "describe_directions",
    "describe_reversals",
    "exchange_directions",
    "reverse_directions",
]

NEVER_FLIPPED = -1
NEVER_REVERSED = -1


def exchange_directions(class_names: Sequence[str]) -> list[int]:
    """Find the class that each class becomes when its video is mirrored left to right.

    A class whose name has no word of direction stays itself. One that has is mapped to the class whose name
    is the same with left and right, and clockwise and counterclockwise, exchanged. Only whole words count
    ("upright" and "leftover" have no direction); capitals, separators ("swipe_left", "SwipeLeft") and the
    spellings counterclockwise, counter-clockwise and anticlockwise make no difference. Where the list lacks
    the mirrored class or has it twice, no true label exists for the mirrored video: the class is never
    flipped.

    Directions are found in English names only. With other names pass no flip, or a list of your own.

    Returns:
        for each class the index of its mirror image, or `NEVER_FLIPPED` (-1).

    Example:
        >>> exchange_directions(["Swiping Left", "Swiping Right", "Standing upright", "Turning left"])
        [1, 0, 2, -1]
    """
    keys = [_words_and_sides(name) for name in class_names]
    places: dict[tuple[str, ...], list[int]] = {}
    for index, key in enumerate(keys):
        places.setdefault(key, []).append(index)
    exchanged = []
    for index, key in enumerate(keys):
        mirrored = tuple(_MIRRORED.get(word, word) for word in key)
        if mirrored == key:
            exchanged.append(index)
        elif len(places[key]) == 1 and len(places.get(mirrored, [])) == 1:
            exchanged.append(places[mirrored][0])
        else:
            exchanged.append(NEVER_FLIPPED)
    return exchanged


def describe_directions(class_names: Sequence[str]) -> list[str]:
    """Say in lines for a reader what `exchange_directions` found, so that a run can show it at its start.

    Example:
        >>> for line in describe_directions(["Swiping Left", "Swiping Right", "Turning left", "Waving"]):
        ...     print(line)
        a horizontal flip exchanges "Swiping Left" and "Swiping Right"
        never flipped, its mirrored class is not in the list: "Turning left"
        flipped without a change of label: 1 other class
    """
    exchanged = exchange_directions(class_names)
    lines = [
        f'a horizontal flip exchanges "{class_names[index]}" and "{class_names[mirrored]}"'
        for index, mirrored in enumerate(exchanged)
        if mirrored > index
    ]
    lines += [
        f'never flipped, its mirrored class is not in the list: "{class_names[index]}"'
        for index, mirrored in enumerate(exchanged)
        if mirrored == NEVER_FLIPPED
    ]
    num_same = sum(index == mirrored for index, mirrored in enumerate(exchanged))
    if num_same:
        lines.append(
            f"flipped without a change of label: {num_same} other class{'es' if num_same > 1 else ''}"
        )
    return lines


def reverse_directions(
    class_names: Sequence[str], corrections: Mapping[str, str | None] | None = None
) -> list[int]:
    """Find the class that each class becomes when its video is played backwards.

    Two classes are each other's reverse where their names are the same but for opposites ("opening a door" and
    "closing a door"), all of them exchanged: what pushes from left to right, backwards, pulls from right to left.
    Spellings make no more difference than in `exchange_directions`. It is careful: a class without an opposite
    in the list, or with two, is never played backwards, though some look the same; nor is one whose name says
    that something is not done, only pretended, done in an order ("up then down", "up and down"), or doesn't come back
    (pouring, throwing, breaking); nor postures and states ("thumb up", "lamp on", "closed door") and the hand or side
    that does it ("raising the left hand"). Words of direction count with verbs whose movement backwards is the same
    the other way ("swiping left"; not "serving left"), or by themselves ("left").

    Args:
        class_names: of the list.
        corrections: what the names don't say. `{a: b}` makes two classes each other's reverse, whatever was found
            for either; `{a: a}` makes one its own, and `{a: None}` is never played backwards.

    Returns:
        for each class the index of its reverse, or `NEVER_REVERSED` (-1).

    Raises:
        ValueError: if corrections name a class that isn't in the list, or contradict each other.

    Example:
        >>> reverse_directions(["opening", "closing", "pouring in", "pouring out", "clapping"])
        [1, 0, -1, -1, -1]
        >>> reverse_directions(["opening", "closing", "clapping"], {"clapping": "clapping", "opening": None})
        [-1, -1, 2]
    """
    found = _find_reversals(class_names)
    corrected = _read_corrections(class_names, corrections or {})
    for index in corrected:
        if found[index] != NEVER_REVERSED:
            found[found[index]] = NEVER_REVERSED  # its reverse was this class, which has another one now
    for index, reverse in corrected.items():
        found[index] = reverse
    return found


def describe_reversals(
    class_names: Sequence[str], corrections: Mapping[str, str | None] | None = None
) -> list[str]:
    """Say in lines for a reader what `reverse_directions` gives, so that a run can show it at its start.

    Example:
        >>> for line in describe_reversals(["open", "close", "clap", "pour"], {"clap": "clap"}):
        ...     print(line)
        playing backwards exchanges "open" and "close"
        played backwards without a change of label: "clap"
        never played backwards, no opposite is known: 1 other class
    """
    reversals = reverse_directions(class_names, corrections)
    lines = [
        f'playing backwards exchanges "{class_names[index]}" and "{class_names[reverse]}"'
        for index, reverse in enumerate(reversals)
        if reverse > index
    ]
    lines += [
        f'played backwards without a change of label: "{class_names[index]}"'
        for index, reverse in enumerate(reversals)
        if reverse == index
    ]
    num_never = reversals.count(NEVER_REVERSED)
    if num_never == len(reversals):
        lines.append("nothing is played backwards: no two classes are known to be opposites")
    elif num_never:
        lines.append(
            "never played backwards, no opposite is known: "
            f"{num_never} other class{'es' if num_never > 1 else ''}"
        )
    return lines


def _read_corrections(class_names: Sequence[str], corrections: Mapping[str, str | None]) -> dict[int, int]:
    """Indices for names, both ways; `NEVER_REVERSED` for None."""
    place = {name: index for index, name in enumerate(class_names)}
    corrected: dict[int, int] = {}

    def note(name: str, reverse: str | None) -> None:
        index = place[name]
        new = NEVER_REVERSED if reverse is None else place[reverse]
        if corrected.setdefault(index, new) != new:
            raise ValueError(f'the reverse of "{name}" is given twice; expected one class, or null for none.')

    for pair in corrections.items():
        for name in pair:
            if name is not None and name not in place:
                close = get_close_matches(str(name), class_names, n=1)
                hint = f'Did you mean "{close[0]}"?' if close else "Correct it, or leave it out."
                shown = ", ".join(f'"{known}"' for known in class_names[:5])
                more = ", …" if len(class_names) > 5 else ""
                raise ValueError(f'"{name}" is no class; expected one of {shown}{more}. {hint}')
    for name, reverse in corrections.items():
        note(name, reverse)
        if reverse is not None:
            note(reverse, name)
    return corrected


def _find_reversals(class_names: Sequence[str]) -> list[int]:
    keys = [_words_and_opposites(name) for name in class_names]
    alike: dict[tuple[str, ...], list[int]] = {}  # classes whose names are the same but for opposites
    for index, key in enumerate(keys):
        if key:
            alike.setdefault(tuple("" if word in _HAVE_OPPOSITES else word for word in key), []).append(index)
    candidates: list[list[int]] = [[] for _ in class_names]
    for group in alike.values():
        for index in group:
            candidates[index] = [other for other in group if _are_opposite(keys[index], keys[other])]
    return [
        others[0] if len(others) == 1 and len(candidates[others[0]]) == 1 else NEVER_REVERSED
        for others in candidates
    ]


def _are_opposite(key: tuple[str, ...], other: tuple[str, ...]) -> bool:
    return all(
        frozenset((a, b)) in _REVERSED
        for a, b in zip(key, other, strict=True)
        if a in _HAVE_OPPOSITES or b in _HAVE_OPPOSITES
    )


# Directions in capitals: the words beside them are lower case, so no class name can contain one by accident.
_MIRRORED = {
    "LEFT": "RIGHT",
    "RIGHT": "LEFT",
    "CLOCKWISE": "COUNTERCLOCKWISE",
    "COUNTERCLOCKWISE": "CLOCKWISE",
}
_SIDE = re.compile(r"(left|right)(wards?|most|hand|handed)?")
_TURN = re.compile(r"(counter|anti|contra)?clockwise|c?cw|acw")


def _words_and_sides(name: str) -> tuple[str, ...]:
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = [word.lower() for word in re.findall(r"[^\W\d_]+|\d+", apart)]
    key: list[str] = []
    for word in words:
        if side := _SIDE.fullmatch(word):
            key.append(side[1].upper())
            if side[2]:
                key.append(side[2])
        elif _TURN.fullmatch(word):
            against = word not in ("clockwise", "cw")
            if key and key[-1] in ("counter", "anti", "contra"):
                against = True
                key.pop()
            key.append("COUNTERCLOCKWISE" if against else "CLOCKWISE")
        else:
            key.append(word)
    return tuple(key)


# Which verb or particle may take another's place when a video is played backwards.
_OPPOSITE_VERBS = """
    open close, open shut, push pull, put take, put remove, put pick, rise fall, raise lower, lift lower,
    enter leave, enter exit, sit stand, fold unfold, attach detach, connect disconnect, cover uncover, lock unlock,
    wrap unwrap, zip unzip, button unbutton, plug unplug, pack unpack, load unload, screw unscrew, tie untie,
    stack unstack, insert remove, assemble disassemble, extend retract, expand contract, expand shrink, grow shrink,
    inflate deflate, ascend descend, grab release, grasp release, appear disappear, tighten loosen, bend straighten,
    increase decrease, clench unclench, mount dismount, hook unhook, buckle unbuckle, wind unwind, dress undress
""".upper()
_OPPOSITE_PARTICLES = """
    LEFT RIGHT, CLOCKWISE COUNTERCLOCKWISE, UP DOWN, FORWARD BACKWARD, IN OUT, INTO OUT_OF, IN OUT_OF, INTO OUT,
    ON OFF, ONTO OFF, TOWARDS AWAY, IN AWAY, TOGETHER APART, TO FROM, IN FROM, INTO FROM, ON FROM, ONTO FROM
"""
_REVERSED = frozenset(
    frozenset(pair.split()) for pair in f"{_OPPOSITE_VERBS},{_OPPOSITE_PARTICLES}".split(",")
)
_HAVE_OPPOSITES = frozenset(word for pair in _REVERSED for word in pair)


def _forms(verbs: str) -> dict[str, str]:
    """Spellings of English verbs, and the verb of each; some that don't occur do no harm."""
    forms: dict[str, str] = {}
    for verb in verbs.split():
        stem, last = verb.removesuffix("e"), verb[-1]
        doubled = (f"{verb}{last}ing", f"{verb}{last}ed")
        plain = (verb, f"{verb}s", f"{verb}es", f"{stem}ing", f"{stem}ed")
        forms |= dict.fromkeys((*plain, *doubled), verb)
        if verb.endswith("ie"):
            forms[f"{verb[:-2]}ying"] = verb
    return forms


_VERBS = {
    form: verb.upper()
    for form, verb in _forms(_OPPOSITE_VERBS.replace(",", " ").lower()).items()
    if not form.endswith("ed")  # "closed" may be how a door is
} | dict.fromkeys(("move", "moves", "moving"), "move")
_PHRASES = [  # longer ones first
    (r"upside down", "upsidedown"),
    (r"in front", "infront"),
    (r"approach(?:es|ing)?(?: to)?", "move TOWARDS"),
    (r"out of", "OUT_OF"),
    (r"off of", "OFF"),
    (r"away(?: from)?", "AWAY"),
    (r"(?:close|closer|near|nearer) to|towards?", "TOWARDS"),
    (r"up(?:wards?)?", "UP"),
    (r"down(?:wards?)?", "DOWN"),
    (r"forwards?", "FORWARD"),
    (r"backwards?", "BACKWARD"),
    (r"in(?:wards?)?", "IN"),
    (r"out(?:wards?)?", "OUT"),
    (r"(into|on|onto|off|together|apart)", None),  # the word itself
]
_BODY = "hand hands handed arm arms leg legs foot feet knee elbow shoulder ear eye side most"

# Names with one of these have no opposite. It is not done, or what is done shows in how it ends:
_NOT_DONE = {
    "almost",
    "but",
    "cannot",
    "doesn",
    "never",
    "no",
    "not",
    "nothing",
    "slightly",
    "so",
    "until",
    "without",
}
_NOT_DONE |= {*_forms("attempt fail let pretend try"), "tries", "unsuccessfully"}
_NOT_DONE |= {"then", "before", "after"}  # or in an order, which backwards is another one
# Backwards it is against gravity, or what is broken becomes whole:
_NO_WAY_BACK = _forms(
    "bite blow bounce break burn chew chop crush cut dive drink drop eat explode hit hop hurl jab jump kick leap "
    "melt pour punch rip scatter shoot slap slice smash spill spit spray spread sprinkle strike tear throw tip toss"
)
# A posture or an exercise ("push ups"), which are the same backwards:
_POSTURES = _forms("face hold keep lean lie look palm point pose show sign stay thumb") | {"ups": "ups"}
# Who goes somewhere is seen to go there backwards, which only "forward" and "backward" tell:
_GOING = _forms("crawl cycle dance drive jog march ride run skate ski sprint swim walk")
_GOERS = (
    "car truck bus bike bicycle motorbike motorcycle vehicle person pedestrian man woman people dog cat horse"
)
_OFF_IS_NO_FALL = _forms("climb get put step switch take turn")
# Verbs that run backwards as the same movement the other way. With others, left and right, up and down and so on
# may be places, postures or movements of one way: "person left", "hand up", "serve left". By themselves they count.
_MOVING = _VERBS.keys() | _forms(
    "approach bring carry circle climb drag flip gesture go motion move movement pan pinch roll rotate scroll shift "
    "slide spin step sweep swipe switch tilt turn twist zoom"
)
_WAYS = frozenset(_OPPOSITE_PARTICLES.replace(",", " ").split()) - {"CLOCKWISE", "COUNTERCLOCKWISE"}
_WHICH_SIDE = (
    rf"\b(?:LEFT|RIGHT)(?= (?:{_BODY.replace(' ', '|')})\b)",
    r"\b(?:at|on)(?: the)? (?:LEFT|RIGHT)\b",
    r"\bfrom(?: the)? (?:LEFT|RIGHT)\b(?!.*\bto\b)",
)


def _words_and_opposites(name: str) -> tuple[str, ...]:
    """As `_words_and_sides`, with all that playing backwards exchanges in capitals; empty where nothing is known."""
    words = _words_and_sides(name)
    if any(word in _NOT_DONE or word in _NO_WAY_BACK or word in _POSTURES for word in words):
        return ()
    text = " ".join(words)
    for pattern in _WHICH_SIDE:
        text = re.sub(pattern, lambda found: found[0].lower().replace("on ", "at "), text)
    for pattern, token in _PHRASES:
        text = re.sub(rf"\b{pattern}\b", token or (lambda found: found[0].upper()), text)
    key = [_VERBS.get(word, word) for word in text.split()]
    for i, word in enumerate(key):
        after = next((other for other in key[i + 1 :] if other != "the"), "")
        if word in ("to", "from") and after not in _HAVE_OPPOSITES:  # "to the wall", and not "to the left"
            key[i] = word.upper()
        elif word == "TOWARDS" and after in ("LEFT", "RIGHT"):
            key[i] = "to"
    if _has(key, "COVER") and "with" in key:  # what is uncovered loses what it was covered with
        key = key[: key.index("with")]
    return tuple(key) if _runs_backwards(words, key) else ()


def _runs_backwards(words: Sequence[str], key: Sequence[str]) -> bool:
    """Whether what has an opposite in a name is a movement, and backwards the one that the opposite says."""
    exchanged = _HAVE_OPPOSITES.intersection(key)
    if not exchanged or _goes_both_ways(key):
        return False
    if not {"SIT", "STAND"} <= exchanged and (
        ("SIT" in exchanged and "DOWN" not in exchanged) or ("STAND" in exchanged and "UP" not in exchanged)
    ):
        return False
    if "OFF" in exchanged and _OFF_IS_NO_FALL.keys().isdisjoint(words):
        return False
    along = exchanged <= {"FORWARD", "BACKWARD"}
    who = next((word for word in words if word not in ("a", "the") and not word.isdigit()), "")
    goes = exchanged <= _WAYS and who in _GOERS.split()
    if not along and (goes or not _GOING.keys().isdisjoint(words)):
        return False
    moving = _MOVING | _GOING.keys() if along else _MOVING
    if exchanged.isdisjoint(("UP", "DOWN")):
        moving = moving | _forms("get").keys()
    alone = all(word in exchanged or word.isdigit() or word in ("to", "the", "from") for word in key)
    return exchanged.isdisjoint(_WAYS) or alone or not moving.isdisjoint(words)


def _goes_both_ways(key: Sequence[str]) -> bool:
    """Whether a name has two opposites, as "up and down" has; "left to right" is one movement."""
    for i, first in enumerate(key):
        for j in range(i + 1, len(key)):
            joined = {"to"} <= set(key[i + 1 : j]) <= {"to", "the"}
            if frozenset((first, key[j])) in _REVERSED and not joined:
                return True
    return False


def _has(key: Sequence[str], words: str) -> bool:
    return not set(words.split()).isdisjoint(key)
