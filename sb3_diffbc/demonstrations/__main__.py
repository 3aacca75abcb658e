"""Lists the bundled demonstration sets and checks each against its card.

    python -m sb3_diffbc.demonstrations

The exit status is 1 if a set is not what its card says; the standard error says what is wrong.
"""

from __future__ import annotations

import sys

from sb3_diffbc.demonstrations.cards import check_card, read_card
from sb3_diffbc.demonstrations.loading import bundled_names


def main() -> int:
    """Prints one line per set, and the findings to the standard error; returns the exit status."""
    status = 0
    for name in bundled_names():
        findings = check_card(name)
        if findings:
            status = 1
            print(f"{name}: " + "; ".join(findings), file=sys.stderr)
            continue
        card = read_card(name)
        print(
            f"{name:12} {card.task:12} {card.episodes:5,} episodes {card.transitions:7,} steps  "
            f"{card.score.metric} {card.score.mean:.4g}  {card.expert}"
        )
    return status


if __name__ == "__main__":
    sys.exit(main())
