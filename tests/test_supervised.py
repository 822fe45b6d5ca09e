"""How rows fall into the batches of supervised fine-tuning."""

from collections import Counter
from itertools import islice
from random import Random

from cagsr.supervised import POOL, _batches


def test_every_row_comes_once_before_any_comes_again():
    rows, size = 11 * POOL * 3, 3
    lengths = [Random(7).randrange(100) for _ in range(rows)]
    batches = list(islice(_batches(lengths, size, Random(0)), 2 * rows // size))
    assert all(len(batch) == size for batch in batches)
    first = [row for batch in batches[: rows // size] for row in batch]
    assert sorted(first) == list(range(rows))
    assert set(Counter(row for batch in batches for row in batch).values()) == {2}


def test_fewer_rows_than_a_batch_come_again_within_it():
    (batch,) = islice(_batches([5, 3], 7, Random(0)), 1)
    assert len(batch) == 7
    assert set(batch) <= {0, 1}


def test_a_pool_is_no_larger_than_the_data_so_that_a_row_is_not_beside_itself():
    batches = list(islice(_batches([9] * 13, 5, Random(0)), 40))
    assert all(len(set(batch)) >= 3 for batch in batches)
    counts = Counter(row for batch in batches for row in batch)
    assert max(counts.values()) - min(counts.values()) <= 1


def test_a_batch_holds_rows_of_like_length_and_batches_come_in_random_order():
    lengths = list(range(5 * POOL))
    Random(1).shuffle(lengths)
    batches = list(islice(_batches(lengths, 5, Random(0)), POOL))
    spans = [max(lengths[row] for row in batch) - min(lengths[row] for row in batch) for batch in batches]
    assert max(spans) == 4
    shortest = [min(lengths[row] for row in batch) for batch in batches]
    assert shortest != sorted(shortest)
