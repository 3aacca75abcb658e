"""Every way in for demonstrations: file formats, bundled sets and checks before training."""

from sb3_diffbc.demonstrations.cards import Card, check_card, read_card
from sb3_diffbc.demonstrations.loading import bundled_names, load_demonstrations
from sb3_diffbc.demonstrations.validation import DemonstrationWarning, validate_demonstrations

__all__ = [
    "Card",
    "DemonstrationWarning",
    "bundled_names",
    "check_card",
    "load_demonstrations",
    "read_card",
    "validate_demonstrations",
]
