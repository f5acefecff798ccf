"""Content ids: equal for equal content, whatever its order or container, and for nothing else."""

import json
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from melanoma_spark import __version__, lineage

PLAIN = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(
    PLAIN,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
FACTS = st.dictionaries(st.text(max_size=3), VALUES, max_size=4)
TENSORS = st.lists(
    arrays(np.float32, array_shapes(min_dims=1, max_dims=3, max_side=4), elements=st.floats(-5, 5, width=32)),
    max_size=4,
)


def turned_round(facts):
    """The same facts, every mapping in reverse order."""
    if isinstance(facts, dict):
        return {key: turned_round(facts[key]) for key in reversed(facts)}
    return [turned_round(fact) for fact in facts] if isinstance(facts, list) else facts


@given(FACTS)
def test_order_of_keys_does_not_matter_at_any_depth(facts):
    assert lineage.content_id(turned_round(facts)) == lineage.content_id(facts)


@given(FACTS, FACTS)
def test_facts_have_one_id_exactly_when_they_are_equal_as_json(first, second):
    same = json.dumps(first, sort_keys=True) == json.dumps(second, sort_keys=True)
    assert (lineage.content_id(first) == lineage.content_id(second)) == same


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ([1, 2], [2, 1]),
        (["1"], [1]),
        ([1], [1.0]),
        ([None], [False]),
        ([["a"], "b"], ["a", ["b"]]),
        ({"a": 1}, {"b": 1}),
    ],
)
def test_order_type_and_nesting_of_values_matter(first, second):
    assert lineage.content_id(first) != lineage.content_id(second)


def test_ids_and_commit_are_those_of_earlier_releases_and_of_the_checkout():
    empty = lineage.content_id({}), lineage.tensors_id([])
    assert all(re.fullmatch("[0-9a-f]{16}", result) for result in empty)
    # Written down from release 0.1.0: with other ids every warehouse would be made anew.
    assert lineage.content_id({"b": [1, "ä"], "a": None}) == "3d6f860d37ce3698"
    assert lineage.tensors_id([np.arange(6, dtype=np.float32).reshape(2, 3)]) == "3378efc20f15f0e8"

    assert lineage.checkout() == REPO.resolve()
    assert re.fullmatch(rf"[0-9a-f]{{40}}|release {re.escape(__version__)}", lineage.commit())


@given(TENSORS.filter(len), st.data())
def test_every_value_matters_but_not_how_it_lies_in_memory(tensors, data):
    copies = [np.asfortranarray(tensor.copy()) for tensor in tensors]
    assert lineage.tensors_id(copies) == lineage.tensors_id(iter(tensors))
    changed = [tensor.copy() for tensor in tensors]
    tensor = data.draw(st.sampled_from(changed))
    place = data.draw(st.integers(0, tensor.size - 1))
    tensor.reshape(-1)[place] += 1
    assert lineage.tensors_id(changed) != lineage.tensors_id(tensors)


def test_shape_dtype_order_and_number_of_tensors_matter():
    tensor = np.zeros((2, 3), np.float32)
    others = [
        [tensor.reshape(3, 2)],
        [tensor.reshape(6)],
        [tensor.astype(np.float64)],
        [tensor.astype(np.int32)],
        [tensor.astype(">f4")],
        [tensor, tensor],
        [tensor[:1], tensor[1:]],
        [np.zeros((0, 3), np.float32), tensor],
        [],
    ]
    assert len({lineage.tensors_id(tensors) for tensors in [[tensor], *others]}) == 1 + len(others)
    first, second = np.ones(3, np.float32), np.zeros(3, np.float32)
    assert lineage.tensors_id([first, second]) != lineage.tensors_id([second, first])


def test_outside_a_checkout_the_release_stands_for_the_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(lineage, "checkout", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert lineage.commit() == f"release {__version__}"


def test_without_git_the_release_stands_for_the_commit(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert lineage.commit() == f"release {__version__}"


def test_a_package_in_a_zip_finds_its_checkout(tmp_path):
    shipped = tmp_path / "shipped.zip"
    with zipfile.ZipFile(shipped, "w") as archive:
        for name in ("__init__.py", "lineage.py"):
            archive.write(REPO / "melanoma_spark" / name, f"melanoma_spark/{name}")
    job = tmp_path / "checkout" / "jobs" / "job.py"
    job.parent.mkdir(parents=True)
    job.write_text(
        f"import sys; sys.path.insert(0, {str(shipped)!r})\n"
        "from melanoma_spark import lineage; print(lineage.__file__); print(lineage.checkout())"
    )
    output = subprocess.run([sys.executable, str(job)], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert output.splitlines() == [f"{shipped}/melanoma_spark/lineage.py", str((tmp_path / "checkout").resolve())]
