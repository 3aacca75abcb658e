"""The critic: noise schedule, network, encoder, fit and sampler."""

from sb3_diffbc.critic.critic import DiffusionCritic
from sb3_diffbc.critic.denoiser import ResidualDenoiser
from sb3_diffbc.critic.encoder import PairEncoder, relaxed_action
from sb3_diffbc.critic.fitting import CriticHistory
from sb3_diffbc.critic.schedule import Noise, NoiseSchedule

__all__ = [
    "CriticHistory",
    "DiffusionCritic",
    "Noise",
    "NoiseSchedule",
    "PairEncoder",
    "ResidualDenoiser",
    "relaxed_action",
]
