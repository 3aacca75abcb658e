"""The checkpoint format: safetensors and JSON, never pickle.

``file`` writes and reads the file as a whole; its JSON is a :class:`~sb3_diffbc.schema.Model` that
the caller declares. The other modules offer records for the parts of such a model (``spaces``,
``policies``, ``rng``) and named tensors (``state_dicts``). ``safe_globals`` makes imitation's and
SB3's own pickled policies loadable where torch guards against pickles.
"""

from sb3_diffbc.checkpoints.file import (
    CheckpointError,
    load_checkpoint,
    non_finite,
    reading_content,
    save_checkpoint,
)
from sb3_diffbc.checkpoints.policies import (
    PolicyRecord,
    register_features_extractor_class,
    register_policy_class,
)
from sb3_diffbc.checkpoints.rng import RngRecord
from sb3_diffbc.checkpoints.safe_globals import allow_imitation_checkpoints
from sb3_diffbc.checkpoints.spaces import SpaceRecord
from sb3_diffbc.checkpoints.state_dicts import (
    OptimizerRecord,
    build_module,
    check_fit,
    load_module_state,
    load_optimizer_state,
    matching_state,
    module_state,
    optimizer_to_state,
)

__all__ = [
    "CheckpointError",
    "OptimizerRecord",
    "PolicyRecord",
    "RngRecord",
    "SpaceRecord",
    "allow_imitation_checkpoints",
    "build_module",
    "check_fit",
    "load_checkpoint",
    "load_module_state",
    "load_optimizer_state",
    "matching_state",
    "module_state",
    "non_finite",
    "optimizer_to_state",
    "reading_content",
    "register_features_extractor_class",
    "register_policy_class",
    "save_checkpoint",
]
