"""GenEval (arXiv 2310.11513): whether a picture holds the objects that its prompt asks for."""
