"""Selects the best arm for each test speaker from the recorded runs that exclude this speaker from training.

    python experiments/02_avmnist/choice/choose.py

Each model is trained without two speakers. Its accuracy on one of them informs the choice for the fold that tests the
other.
"""

from __future__ import annotations

import json
import pathlib
import statistics

METRIC = "digit/accuracy"
RESULTS = pathlib.Path(__file__).with_name("results.json")


def accuracies(folds: dict[str, dict]) -> dict[str, list[float]]:
    """Returns {test speaker: accuracies on each of the other speakers, without training on either}."""
    found: dict[str, list[float]] = {}
    for fold in folds.values():
        one, other = fold["overrides"]["data.held_out"], fold["overrides"]["data.validation"]
        found.setdefault(one, []).append(fold["metrics"]["validation"][METRIC]["mean"])
        found.setdefault(other, []).append(fold["metrics"]["test"][METRIC]["mean"])
    return found


def main() -> None:
    arms = {arm: accuracies(folds) for arm, folds in json.loads(RESULTS.read_text())["arms"].items()}
    means = {arm: {speaker: statistics.fmean(values) for speaker, values in of.items()} for arm, of in arms.items()}
    speakers = sorted(next(iter(means.values())))
    best = {speaker: max(means, key=lambda arm: means[arm][speaker]) for speaker in speakers}
    print("| | " + " | ".join(f"to test {speaker}" for speaker in speakers) + " | mean |")
    print("|---|" + "---:|" * (len(speakers) + 1))
    for arm, of in means.items():
        cells = [f"**{of[s]:.4f}**" if best[s] == arm else f"{of[s]:.4f}" for s in speakers]
        print(f"| {arm} | " + " | ".join(cells) + f" | {statistics.fmean(of.values()):.4f} |")


if __name__ == "__main__":
    main()
