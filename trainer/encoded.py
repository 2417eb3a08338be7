"""Text features of prompts, encoded some at a time; those of prompts met lately are not computed again.

Shapes: N prompts.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch

from trainer.families.family import Conditioning

KEPT = 512
"""Prompts whose features are kept, in the host's memory; SDXL's take half a megabyte each, FLUX's eight."""
AT_A_TIME = 16
"""Prompts that text encoders read at a time; bounds their memory."""

_HOST = torch.device("cpu")


class Encoded:
    """What text encoders make of prompts.

    Args:
        encode: N prompts to N rows; called for prompts that are not kept.
    """

    def __init__(self, encode: Callable[[Sequence[str]], Conditioning]) -> None:
        self._encode = encode
        self._kept: OrderedDict[str, Conditioning] = OrderedDict()

    def __call__(self, prompts: Sequence[str]) -> Conditioning:
        """N rows, in the host's memory."""
        wanted = dict.fromkeys(prompts)
        found = {text: self._kept[text] for text in wanted if text in self._kept}
        missing = [text for text in wanted if text not in found]
        for first in range(0, len(missing), AT_A_TIME):
            some = missing[first : first + AT_A_TIME]
            features = self._encode(some).to(_HOST)
            found |= {text: features.take(torch.tensor([row])) for row, text in enumerate(some)}
        self._keep(found)
        return Conditioning.joined([found[text] for text in prompts])

    def _keep(self, found: dict[str, Conditioning]) -> None:
        for text, features in found.items():
            self._kept[text] = features
            self._kept.move_to_end(text)
        while len(self._kept) > KEPT:
            self._kept.popitem(last=False)
