"""What obedient models answer to the prompts of the recipes, for tests; `langcache`'s are in `embedsmith.testing`."""

from embedsmith.answers.e5 import write_e5_answer
from embedsmith.answers.rag import write_rag_answer

__all__ = ["write_e5_answer", "write_rag_answer"]
