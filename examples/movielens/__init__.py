"""MovieLens 100K end to end: data, semantic IDs, training, evaluation, and a replay through a real broker."""
