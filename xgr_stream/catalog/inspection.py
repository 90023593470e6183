"""What a catalog is like: sizes, levels, collisions, branches without a live item, codes without items."""

from __future__ import annotations

from typing import Any

import numpy as np

from xgr_stream.catalog.catalog import Catalog


def inspect(catalog: Catalog) -> dict[str, Any]:
    """Figures of a catalog, ready for JSON."""
    trie = catalog.trie
    per_leaf = np.diff(trie.item_starts)
    shared = per_leaf > 1
    available = int(catalog.available.sum())
    counts = catalog.live_counts()
    levels = []
    for level, num_codes in enumerate(catalog.codes):
        nodes = trie.num_nodes(level + 1)
        children = np.diff(trie.child_starts[level])
        used = len(np.unique(trie.node_codes[level]))
        levels.append(
            {
                "codes": num_codes,
                "codes_without_items": num_codes - used,
                "nodes": nodes,
                "dead_nodes": int((counts[level + 1] == 0).sum()),
                "mean_children": round(float(children.mean()), 2),
                "max_children": int(children.max()),
            }
        )
    arrays = (*trie.node_codes, *trie.child_starts, *trie.parents, trie.item_starts, trie.items, trie.leaves)
    return {
        "version": catalog.version,
        "items": catalog.num_items,
        "available": available,
        "away": catalog.num_items - available,
        "semantic_ids": trie.num_leaves,
        "shared_semantic_ids": int(shared.sum()),
        "items_that_share_one": int(per_leaf[shared].sum()),
        "most_items_of_one": int(per_leaf.max()),
        "tags": len(catalog.columns.tags.index),
        "trie_bytes": sum(array.nbytes for array in arrays),
        "levels": levels,
    }
