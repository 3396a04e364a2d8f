"""Hard negatives: examples, a corpus and an encoder in; triplets out, in memory that does not grow with the corpus."""

from embedsmith.mining.engines import Engine, LocalEngine, RayEngine
from embedsmith.mining.miner import Miner, MiningReport, MiningResult, Relabelled, mine
from embedsmith.mining.relabelling import Relabeller, Verdict, open_relabeller
from embedsmith.mining.selection import REASONS
from embedsmith.mining.settings import MiningSettings

__all__ = [
    "REASONS",
    "Engine",
    "LocalEngine",
    "Miner",
    "MiningReport",
    "MiningResult",
    "MiningSettings",
    "RayEngine",
    "Relabelled",
    "Relabeller",
    "Verdict",
    "mine",
    "open_relabeller",
]
