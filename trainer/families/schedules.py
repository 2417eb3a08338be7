"""Noise levels as the models' own schedulers have them: those of DDPM models and those of flow matching."""

from collections.abc import Sequence
from typing import Any

from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler

from trainer.diffusion import Schedule
from trainer.families.family import ModelError

PREDICTION_TYPES = ("epsilon", "v_prediction")


def ddpm_schedule(pipeline: Any, steps: int) -> Schedule:
    """DDIM's levels, whatever sampler the pipeline comes with: they belong to how the model was trained.

    Raises:
        ModelError: the model predicts something else, or noise where there is no signal; was distilled to
            skip levels; or its scheduler has no levels of DDPM's kind.
    """
    config = pipeline.scheduler.config
    if pipeline.unet.config.time_cond_proj_dim:
        raise ModelError(
            f"{pipeline.name_or_path} is distilled (latent consistency); give the model it was made from"
        )
    if "beta_schedule" not in config:  # those of EDM, such as Playground's
        raise ModelError(
            f"{pipeline.name_or_path} has a {config['_class_name']}, whose noise levels are not DDPM's; "
            "give a model with a DDIM, DDPM, PNDM, Euler or DPM-Solver scheduler"
        )
    if config.prediction_type not in PREDICTION_TYPES:
        raise ModelError(
            f"{pipeline.name_or_path} predicts {config.prediction_type!r}; "
            f"supported are {', '.join(PREDICTION_TYPES)}"
        )
    scheduler = DDIMScheduler.from_config(config)
    if config.prediction_type == "epsilon" and not scheduler.alphas_cumprod[-1]:
        raise ModelError(
            f"{pipeline.name_or_path} predicts noise, which where there is nothing else says nothing of a "
            "picture: in its scheduler_config.json set rescale_betas_zero_snr to false, or prediction_type "
            "to what it was trained for"
        )
    final = float(scheduler.final_alpha_cumprod)
    return Schedule.spaced(scheduler.alphas_cumprod, steps, config.prediction_type, final_alpha_bar=final)


def flow_schedule(
    pipeline: Any, steps: int, *, tokens: int, sigmas: Sequence[float] | None = None
) -> Schedule:
    """The levels of Euler's method for flow matching, shifted towards noise as the model asks for.

    Args:
        pipeline: whose scheduler says how sigmas are shifted (arXiv 2403.03206, section 5.3.2).
        steps: T.
        tokens: patches of a picture; dynamic shifting grows with them.
        sigmas: (T,) before shifting; None takes the scheduler's.

    Raises:
        ModelError: the pipeline has another scheduler.
    """
    if not isinstance(pipeline.scheduler, FlowMatchEulerDiscreteScheduler):
        raise ModelError(
            f"{pipeline.name_or_path} has a {type(pipeline.scheduler).__name__}; "
            "supported is FlowMatchEulerDiscreteScheduler"
        )
    config = pipeline.scheduler.config
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    shift = config.base_shift + slope * (tokens - config.base_image_seq_len)
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=shift)
    return Schedule.of_flow(scheduler.timesteps, scheduler.sigmas)
