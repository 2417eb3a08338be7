"""Every setting of a training run: type, unit, range and meaning."""

from trainer.config.algorithm import (
    BranchingConfig,
    LossConfig,
    OptimizerConfig,
    SamplingConfig,
    SelectionConfig,
)
from trainer.config.data import DataConfig, PromptsConfig
from trainer.config.file import ConfigError
from trainer.config.model import LoraConfig, ModelConfig
from trainer.config.rewards import RewardsConfig
from trainer.config.running import (
    BudgetConfig,
    CheckpointConfig,
    ControlConfig,
    EvaluationConfig,
    RanksConfig,
    WatchConfig,
)
from trainer.config.train import TrainConfig, load_config, save_config

__all__ = [
    "BranchingConfig",
    "BudgetConfig",
    "CheckpointConfig",
    "ConfigError",
    "ControlConfig",
    "DataConfig",
    "EvaluationConfig",
    "LoraConfig",
    "LossConfig",
    "ModelConfig",
    "OptimizerConfig",
    "PromptsConfig",
    "RanksConfig",
    "RewardsConfig",
    "SamplingConfig",
    "SelectionConfig",
    "TrainConfig",
    "WatchConfig",
    "load_config",
    "save_config",
]
