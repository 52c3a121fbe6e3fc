"""Calibration error before and after a temperature for each count, and three rules for the compute dial.

    python benchmarks/confidence.py CHECKPOINT DATA [--frames 4,8,16] [--repeats 20]

Temperatures and thresholds are fitted on a random half of the validation videos and measured on the other half, many
times over. A threshold is the cheapest that loses at most half a point on the half it is chosen on.
"""

import argparse

import torch

from frameflex.checkpoint import load_checkpoint
from frameflex.data.datasets import load_split
from frameflex.engine.confidence import calibration_error, fit_temperature
from frameflex.engine.evaluation import evaluate

RULES = (
    "probability",
    "probability at the temperature",
    "margin at the temperature",
    "agreement of two looks",
)
THRESHOLDS = [*(step / 100 for step in range(100)), 0.995, 0.999, 1.01]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint")
    parser.add_argument("data")
    parser.add_argument("--frames", default="4,8,16")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    counts = sorted(int(count) for count in args.frames.split(","))
    checkpoint = load_checkpoint(args.checkpoint)
    measured = evaluate(
        checkpoint.model,
        load_split(args.data, "validation", classes=checkpoint.class_names),
        preprocessing=checkpoint.preprocessing,
        frame_counts=counts,
        **checkpoint.sampling,
    )
    logits, labels = measured.logits, measured.labels
    costs = {count: measured.at(count).gflops for count in counts}
    generator = torch.Generator().manual_seed(0)
    errors, outcomes = [], {rule: [] for rule in RULES}
    for _ in range(args.repeats):
        order = torch.randperm(len(labels), generator=generator)
        chosen_on, rest = order[: len(order) // 2], order[len(order) // 2 :]
        fitted = {t: fit_temperature(logits[t][chosen_on], labels[chosen_on]) for t in counts}
        scaled = {t: logits[t][rest] / fitted[t] for t in counts}
        drawn = {t: scaled[t].softmax(1).multinomial(1, generator=generator)[:, 0] for t in counts}
        errors.append(
            [
                [calibration_error(logits[t][rest], labels[rest]) for t in counts],
                [calibration_error(scaled[t], labels[rest]) for t in counts],
                [calibration_error(scaled[t], drawn[t]) for t in counts],
            ]
        )
        for rule in RULES:
            used = logits if rule == "probability" else {t: logits[t] / fitted[t] for t in counts}
            needed = top1(logits[counts[-1]], labels, chosen_on) - 0.005 - 1e-9
            tried = [
                (threshold, *look(rule, used, labels, costs, threshold, chosen_on))
                for threshold in THRESHOLDS
            ]
            allowed = [(cost, threshold) for threshold, right, cost in tried if right >= needed]
            threshold = min(allowed)[1] if allowed else THRESHOLDS[-1]
            right, cost = look(rule, used, labels, costs, threshold, rest)
            drop = top1(logits[counts[-1]], labels, rest) - right
            outcomes[rule].append((100 * drop, 100 * cost / costs[counts[-1]]))
    before, after, chance = (100 * torch.tensor(errors).mean(0)).tolist()
    for i, count in enumerate(counts):
        print(
            f"T = {count}: top-1 {100 * measured.at(count).top1:.1f} %, ECE {before[i]:.1f} %, "
            f"then {after[i]:.1f} % ({chance[i]:.1f} % by chance)"
        )
    for rule, found in outcomes.items():
        drop, cost = torch.tensor(found).mean(0).tolist()
        print(f"{rule}: {drop:.2f} points lost at {cost:.0f} % of the GFLOPs of {counts[-1]} frames alone")


def top1(logits, labels, part):
    return float((logits[part].argmax(1) == labels[part]).double().mean())


def look(rule, logits, labels, costs, threshold, part):
    """Top-1 and mean cost where each video stops at the first count at which the rule is satisfied."""
    going, former = torch.ones(len(part), dtype=torch.bool), None
    right, cost, counts = 0.0, 0.0, sorted(logits)
    for count in counts:
        cost += costs[count] * float(going.double().mean())
        best = logits[count][part].softmax(1).topk(2, dim=1)
        guess = best.indices[:, 0]
        score = best.values[:, 0] - best.values[:, 1] if rule.startswith("margin") else best.values[:, 0]
        sure = score >= threshold
        if rule.startswith("agreement") and former is not None:
            sure = sure | (guess == former)
        stops = going & (sure if count != counts[-1] else torch.ones_like(sure))
        right += float(((guess == labels[part]) & stops).double().mean())
        going, former = going & ~stops, guess
    return right, cost


if __name__ == "__main__":
    main()
