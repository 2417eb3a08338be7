"""The embedded world: captions of coloured shapes, their renderer, a rule-based verifier. Needs numpy and scipy."""
