"""What settings may be, where the command line says it, too: names and a limit; light, so that --help is."""

from __future__ import annotations

from typing import Literal

Precision = Literal["fp32", "bf16"]  # of matrix products in torch
TrainingPrecision = Literal["auto", "bf16", "fp32"]
ServedPrecision = Literal["fp32", "int8"]
Eviction = Literal["lru", "lfu", "size"]
Turns = Literal["auto", "fingerprint", "meaning"]
LogMode = Literal["text", "json", "off"]
StsForm = Literal["triplet", "scored"]
Sampling = Literal["top", "uniform", "weighted"]
Ruling = Literal["lowest", "mean"]
Output = Literal["triplets", "pairs"]
Search = Literal["auto", "exact", "index"]
Storage = Literal["float16", "float32"]
LARGEST_CALL = 1 << 20  # texts of one call of an encoder
