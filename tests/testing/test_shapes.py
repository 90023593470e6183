"""Random models of named shapes and random catalogs: what the benches measure with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from xgr_stream.catalog import Catalog
from xgr_stream.errors import ConfigError
from xgr_stream.testing.shapes import SHAPES, random_catalog, random_model, with_prompt


def test_a_seed_names_a_model() -> None:
    one, same, other = (random_model("tiny", (5, 6), seed=seed) for seed in (1, 1, 2))
    assert one.version == same.version != other.version
    assert one.config.num_layers == SHAPES["tiny"].layers
    assert one.config.vocab_size == 11
    assert one.tokens.codes == (5, 6)


def test_a_prompt_changes_the_context_and_no_weight() -> None:
    model = random_model("tiny", (5, 6), dtype=torch.bfloat16)
    longer = with_prompt(model, 3)
    assert longer.decoder is model.decoder
    assert longer.tokens.context_tokens(4) == model.tokens.context_tokens(4) + 3
    assert longer.version != model.version


def test_a_random_catalog_is_what_a_table_of_it_would_be() -> None:
    catalog = random_catalog((7, 3, 5), 60, seed=4)
    table = {"item_id": catalog.item_ids, "sid": catalog.sids.tolist()}
    assert Catalog.from_table(table, codes=(7, 3, 5)).version == catalog.version
    catalog.check_integrity()
    counts = np.bincount(random_catalog((7, 3, 5), 70_000).sids[:, 0], minlength=7)
    assert counts.min() > 9_000


def test_more_semantic_ids_than_a_key_holds_are_refused() -> None:
    with pytest.raises(ConfigError, match="at most 2\\^62 combinations"):
        random_catalog((1 << 20,) * 4, 5)
