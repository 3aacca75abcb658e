"""Everything about modelling p(s, a): noise schedule, denoiser, encoder and the critic."""

from sb3_diffbc.critic.critic import CriticHistory, DiffusionCritic, Guidance, Noise
from sb3_diffbc.critic.encoder import PairEncoder, relaxed_action
from sb3_diffbc.critic.schedule import NoiseSchedule

__all__ = [
    "CriticHistory",
    "DiffusionCritic",
    "Guidance",
    "Noise",
    "NoiseSchedule",
    "PairEncoder",
    "relaxed_action",
]
