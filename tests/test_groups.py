"""Groups: what shares a key, through whatever chain, stands together, under a name that lasts."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from melanoma_spark.groups import connected_components

KEYS = st.builds("{}:{}".format, st.sampled_from(["patient", "lesion", "pixels", "looks"]), st.integers(0, 6))
ROWS = st.lists(st.lists(KEYS, min_size=1, max_size=4), max_size=15)


def by_hand(rows):
    """For each row the set of rows it is connected to: sets that overlap are merged until none does."""
    sets = [(set(keys), {place}) for place, keys in enumerate(rows)]
    merged = True
    while merged:
        merged = False
        for first in range(len(sets)):
            for second in range(len(sets) - 1, first, -1):
                if sets[first][0] & sets[second][0]:
                    sets[first] = (sets[first][0] | sets[second][0], sets[first][1] | sets[second][1])
                    del sets[second]
                    merged = True
    together = {place: places for _, places in sets for place in places}
    return [together[place] for place in range(len(rows))]


def together(names):
    """For each row the set of rows of the same name."""
    return [{place for place, other in enumerate(names) if other == name} for name in names]


@given(ROWS)
def test_rows_share_a_group_exactly_when_a_chain_of_keys_joins_them(rows):
    assert together(connected_components(rows)) == by_hand(rows)


@given(ROWS)
def test_group_is_named_by_a_key_of_its_own_of_the_most_lasting_kind(rows):
    names = connected_components(rows)
    for name, members in zip(names, together(names), strict=True):
        keys = {key for place in members for key in rows[place]}
        assert name in keys
        kinds = {key.partition(":")[0] for key in keys}
        if "patient" in kinds:
            assert name == min(key for key in keys if key.startswith("patient:"))
        elif "lesion" in kinds:
            assert name == min(key for key in keys if key.startswith("lesion:"))
        else:
            assert name == min(keys)


@given(ROWS, st.randoms(use_true_random=False))
def test_names_do_not_depend_on_the_order_of_rows_or_keys(rows, rng):
    names = connected_components(rows)
    order = list(range(len(rows)))
    rng.shuffle(order)
    shuffled = connected_components([rng.sample(rows[place], len(rows[place])) for place in order])
    assert [names[place] for place in order] == shuffled


@st.composite
def archives(draw):
    """Images of patients who have lesions of their own, and later images of the same patients."""

    def image(place):
        patient = draw(st.integers(0, 4))
        keys = [f"pixels:{place}", f"patient:{patient}"]
        if draw(st.booleans()):
            keys.append(f"lesion:{patient}.{draw(st.integers(0, 2))}")
        return keys

    first = [image(place) for place in range(draw(st.integers(1, 10)))]
    known = {key for keys in first for key in keys if key.startswith("patient:")}
    later = [image(1000 + place) for place in range(draw(st.integers(0, 10)))]
    return first, [keys for keys in later if keys[1] in known]


@given(archives())
def test_more_images_of_known_patients_rename_no_group(archive):
    first, later = archive
    assert connected_components(first + later)[: len(first)] == connected_components(first)


@given(ROWS, ROWS)
def test_more_images_never_part_what_was_together(rows, later):
    before, after = together(connected_components(rows)), together(connected_components(rows + later))
    assert all(members <= after[place] for place, members in enumerate(before))


def test_patients_stay_apart_when_nothing_joins_them():
    assert connected_components([["patient:a"], ["patient:b"], ["patient:a"]]) == [
        "patient:a",
        "patient:b",
        "patient:a",
    ]


def test_a_duplicate_joins_two_patients():
    rows = [["pixels:x", "patient:a"], ["pixels:x", "patient:b"], ["pixels:y", "patient:b"]]
    assert connected_components(rows) == ["patient:a"] * 3


def test_long_chains_are_followed_to_their_end():
    links = [[f"pixels:{place:05d}", f"pixels:{place + 1:05d}"] for place in range(20_000)]
    random.Random(0).shuffle(links)
    assert set(connected_components(links)) == {"pixels:00000"}


def test_no_rows_have_no_groups():
    assert connected_components([]) == []
