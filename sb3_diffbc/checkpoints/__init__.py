"""The checkpoint format: safetensors and JSON, never pickle.

`file` writes and reads the file as a whole. The other modules turn the parts of a trainer into
tensors and JSON and back: `spaces`, `policies`, `modules`, `optimizers` and `rng`. `trust` makes
imitation's and SB3's own pickled policies loadable where torch guards against pickles.
"""

from sb3_diffbc.checkpoints.errors import CheckpointError
from sb3_diffbc.checkpoints.file import load_checkpoint, reading_content, save_checkpoint
from sb3_diffbc.checkpoints.modules import load_module_state, module_state
from sb3_diffbc.checkpoints.optimizers import load_optimizer_state, optimizer_to_state
from sb3_diffbc.checkpoints.policies import (
    policy_from_json,
    policy_to_json,
    register_features_extractor_class,
    register_policy_class,
)
from sb3_diffbc.checkpoints.rng import numpy_rng_from_json, numpy_rng_to_json
from sb3_diffbc.checkpoints.spaces import space_from_json, space_to_json
from sb3_diffbc.checkpoints.trust import allow_imitation_checkpoints

__all__ = [
    "CheckpointError",
    "allow_imitation_checkpoints",
    "load_checkpoint",
    "load_module_state",
    "load_optimizer_state",
    "module_state",
    "numpy_rng_from_json",
    "numpy_rng_to_json",
    "optimizer_to_state",
    "policy_from_json",
    "policy_to_json",
    "reading_content",
    "register_features_extractor_class",
    "register_policy_class",
    "save_checkpoint",
    "space_from_json",
    "space_to_json",
]
