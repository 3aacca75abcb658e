"""Diffusion Model-Augmented Behavioral Cloning for Stable-Baselines3 and imitation."""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sb3_diffbc import envs

if TYPE_CHECKING:
    from sb3_diffbc.bad_demonstrations import DemonstrationScores, score_demonstrations
    from sb3_diffbc.callbacks import TrainingCheckpoints
    from sb3_diffbc.checkpoints import CheckpointError, allow_imitation_checkpoints
    from sb3_diffbc.critic import CriticHistory, DiffusionCritic
    from sb3_diffbc.demonstrations import (
        DemonstrationWarning,
        load_demonstrations,
        validate_demonstrations,
    )
    from sb3_diffbc.demonstrations.splitting import hold_out
    from sb3_diffbc.diffusion_bc import DiffusionBC
    from sb3_diffbc.evaluation import EvaluationResult, evaluate_episodes
    from sb3_diffbc.experts import load_expert
    from sb3_diffbc.export import export_onnx
    from sb3_diffbc.gated_dagger import GatedDAggerTrainer
    from sb3_diffbc.gates import CriticGate
    from sb3_diffbc.monitor import CriticMonitor, MonitoredVecEnv
    from sb3_diffbc.policies import StandardizedActorPolicy, load_policy, save_policy
    from sb3_diffbc.reward import CriticReward
    from sb3_diffbc.rl import to_rl
    from sb3_diffbc.scoring import PolicyResidual

__version__ = (Path(__file__).parent / "version.txt").read_text().strip()

_HOMES = {
    "CheckpointError": "checkpoints",
    "CriticGate": "gates",
    "CriticHistory": "critic",
    "CriticMonitor": "monitor",
    "CriticReward": "reward",
    "DemonstrationScores": "bad_demonstrations",
    "DemonstrationWarning": "demonstrations",
    "DiffusionBC": "diffusion_bc",
    "DiffusionCritic": "critic",
    "EvaluationResult": "evaluation",
    "GatedDAggerTrainer": "gated_dagger",
    "MonitoredVecEnv": "monitor",
    "PolicyResidual": "scoring",
    "StandardizedActorPolicy": "policies",
    "TrainingCheckpoints": "callbacks",
    "allow_imitation_checkpoints": "checkpoints",
    "evaluate_episodes": "evaluation",
    "export_onnx": "export",
    "hold_out": "demonstrations.splitting",
    "load_demonstrations": "demonstrations",
    "load_expert": "experts",
    "load_policy": "policies",
    "save_policy": "policies",
    "score_demonstrations": "bad_demonstrations",
    "to_rl": "rl",
    "validate_demonstrations": "demonstrations",
}

__all__ = [
    "CheckpointError",
    "CriticGate",
    "CriticHistory",
    "CriticMonitor",
    "CriticReward",
    "DemonstrationScores",
    "DemonstrationWarning",
    "DiffusionBC",
    "DiffusionCritic",
    "EvaluationResult",
    "GatedDAggerTrainer",
    "MonitoredVecEnv",
    "PolicyResidual",
    "StandardizedActorPolicy",
    "TrainingCheckpoints",
    "allow_imitation_checkpoints",
    "envs",
    "evaluate_episodes",
    "export_onnx",
    "hold_out",
    "load_demonstrations",
    "load_expert",
    "load_policy",
    "save_policy",
    "score_demonstrations",
    "to_rl",
    "validate_demonstrations",
]


def __getattr__(name: str) -> Any:
    # Gymnasium 0.29 imports this package, for its environments, in the middle of its own import:
    # torch, SB3 and imitation have to wait until somebody asks for something that needs them.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
