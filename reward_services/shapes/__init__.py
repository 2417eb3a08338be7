"""The embedded world: captions of coloured shapes, their renderer and verifier. Needs numpy and scipy."""
