"""What the stores in SQL have in common: the columns of an entry, and what goes first when there is too much."""

from __future__ import annotations

from embedsmith.cache.stores import Order

COLUMNS = "id, namespace, partition, text, answer, vector, created, expires, tags"
ORDERS: dict[Order, str] = {"lru": "used, id", "lfu": "uses, used, id", "size": "size desc, used, id"}
