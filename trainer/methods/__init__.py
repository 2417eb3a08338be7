"""What an update learns from branches, by the method's name; all else is the loop's."""

from trainer.methods.method import Method, Part, Terms
from trainer.methods.negative_aware import NegativeAware
from trainer.methods.paired import PairedBranches, PairedStates, PairedSteps
from trainer.methods.policy_gradient import PolicyGradient
from trainer.methods.weighted import WeightedBranches

__all__ = ["METHODS", "Method", "Part", "Terms"]

METHODS: dict[str, type[Method]] = {
    "sft_sharpening": WeightedBranches,
    "rlhf_sharpening": PairedBranches,
    "standard": WeightedBranches,
    "diffusion_dpo": PairedStates,
    "d3po": PairedSteps,
    "ddpo": PolicyGradient,
    "grpo": PolicyGradient,
    "diffusion_nft": NegativeAware,
}
