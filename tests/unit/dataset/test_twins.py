"""Twins: thumbnails compared in all orientations, hashed so that few pairs are compared, and joined within limits."""

import io

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from melanoma_spark.dataset import groups, twins
from melanoma_spark.dataset.groups import Group
from melanoma_spark.images import hashes, synthetic


def pictures(count, seed=0):
    """Thumbnails of blurred noise, uint8 (count, 1024)."""
    noise = np.random.default_rng(seed).normal(size=(count, 32, 32))
    smooth = gaussian_filter(noise, (0, 3, 3))
    return (128 + 300 * smooth).clip(0, 255).astype(np.uint8).reshape(count, -1)


def turned(thumbnails):
    return [
        np.ascontiguousarray(view).reshape(len(thumbnails), -1)
        for squares in (thumbnails.reshape(-1, 32, 32), thumbnails.reshape(-1, 32, 32).swapaxes(1, 2))
        for view in (squares, squares[:, ::-1], squares[:, :, ::-1], squares[:, ::-1, ::-1])
    ]


def test_correlation_is_numpy_s_in_the_best_orientation():
    ones, others = pictures(5), pictures(5, seed=1)
    result = twins.correlate(twins.standardize(ones), twins.standardize(others))
    for place in range(5):
        each = [np.corrcoef(view[place], others[place])[0, 1] for view in turned(ones)]
        assert result[place] == pytest.approx(max(each), abs=1e-5)


def test_flat_thumbnails_are_nobody_s_twins():
    flat = np.full((2, 1024), 7, np.uint8)
    flat[:, :3] += 1
    assert not twins.standardize(flat).any()


def test_waves_are_scipy_s():
    squares = twins.standardize(pictures(3)).reshape(-1, 32, 32)
    cosines = twins._cosines()
    assert cosines @ squares @ cosines.T == pytest.approx(dctn(squares, axes=(1, 2), norm="ortho")[:, :8, :8], abs=1e-5)


def test_features_are_the_same_in_all_orientations_and_never_farther_apart_than_thumbnails():
    ones, others = pictures(40), pictures(40, seed=1)
    features = twins.invariants(twins.standardize(ones))
    for view in turned(ones):
        assert twins.invariants(twins.standardize(view)) == pytest.approx(features, abs=1e-5)
    distance = np.linalg.norm(features - twins.invariants(twins.standardize(others)), axis=1)
    correlation = twins.correlate(twins.standardize(ones), twins.standardize(others))
    assert (distance <= np.sqrt(2 - 2 * correlation) + 1e-4).all()


def rows_of(names, thumbnails):
    features = [row.tobytes() for row in twins.invariants(twins.standardize(thumbnails))]
    return pd.DataFrame({"pixel_sha256": names, "thumbnail": [bytes(row) for row in thumbnails], "features": features})


def search(thumbnails, images):
    """What `find_twins` does, in one process."""
    features = twins.invariants(twins.standardize(thumbnails))
    names = [f"{place:06d}" for place in range(len(thumbnails))]
    result = {}
    for table in range(twins.TABLES):
        code, place = twins.hash_codes(features, table, images)
        rows = rows_of(names, thumbnails)
        rows = rows.assign(code=code, place=place).sort_values(["code", "place"], ignore_index=True)
        pairs = twins.compare_neighbors(rows, 0, twins.least_correlation(images))
        result |= {(row.first, row.second): row.correlation for row in pairs.itertuples()}
    return result


def test_turned_and_darkened_images_are_found_among_others():
    many = pictures(600)
    again = [(view[:4] * 0.8 + 5).astype(np.uint8) for view in turned(many)[1:]]
    result = search(np.concatenate([many, *again]), 600)
    expected = {(f"{lesion:06d}", f"{600 + 4 * view + lesion:06d}") for lesion in range(4) for view in range(7)}
    assert expected <= result.keys()
    assert all(int(one) % 4 == int(other) % 4 for one, other in result)


def test_rows_that_were_carried_over_are_not_compared_again():
    rows = rows_of(list("abcd"), np.repeat(pictures(1), 4, axis=0)).assign(code=[1, 1, 1, 2])
    ends = {(row.first, row.second) for row in twins.compare_neighbors(rows, 0, 0.97).itertuples()}
    assert ends == {("a", "b"), ("a", "c"), ("b", "c")}
    later = {(row.first, row.second) for row in twins.compare_neighbors(rows, 2, 0.97).itertuples()}
    assert later == {("a", "c"), ("b", "c")}
    assert twins.compare_neighbors(rows, 4, 0.97).empty


def test_more_images_need_a_higher_correlation_and_have_smaller_buckets():
    assert [round(twins.least_correlation(n), 3) for n in (1, 2_500, 100_000, 10_000_000)] == [0.97, 0.97, 0.981, 0.989]
    features = twins.invariants(twins.standardize(pictures(2000)))
    few, many = (len(np.unique(twins.hash_codes(features, 0, images)[0])) for images in (2_000, 200_000))
    assert many > 1.2 * few


def test_a_thumbnail_is_the_mean_of_cells_and_turns_with_the_image():
    image = np.asarray(Image.open(io.BytesIO(synthetic.lesion_jpeg(3, True, 128))).convert("RGB"))
    thumbnail = hashes.gray_thumbnail(image)
    gray = np.asarray(Image.fromarray(image).convert("L"), float)
    assert thumbnail == pytest.approx(gray.reshape(32, 4, 32, 4).mean(axis=(1, 3)), abs=0.5001)
    assert (hashes.gray_thumbnail(np.rot90(image)) == np.rot90(thumbnail)).all()


def group(name, images=1, side=""):
    return Group(name, images, side)


def test_groups_of_twins_are_named_by_the_most_lasting_name():
    pairs = [(group("looks:b"), group("looks:a")), (group("looks:b"), group("patient:z"))]
    assert groups.join_twins(pairs) == (
        dict.fromkeys(("looks:a", "looks:b", "patient:z"), "patient:z"),
        ["joined"] * 2,
    )


def test_twins_rename_no_group_that_has_a_lasting_name():
    pairs = [
        (group("patient:p1"), group("looks:x")),
        (group("looks:x"), group("patient:p2")),
        (group("lesion:l"), group("patient:p1")),
    ]
    names, outcomes = groups.join_twins(pairs)
    assert outcomes == ["joined", "different ids", "different ids"]
    assert names == {
        "patient:p1": "patient:p1",
        "looks:x": "patient:p1",
        "patient:p2": "patient:p2",
        "lesion:l": "lesion:l",
    }


def test_look_alikes_do_not_run_together():
    chain = [(group(f"looks:{at:04d}"), group(f"looks:{at + 1:04d}")) for at in range(500)]
    names, outcomes = groups.join_twins(chain)
    sizes = pd.Series(names).value_counts()
    assert sizes.max() == groups.MOST_TWINS
    assert outcomes.count("too many alike") == len(sizes) - 1
    large = [(group("patient:p", 80), group("looks:a"))]
    assert groups.join_twins(large)[1] == ["too many alike"]


def test_a_shipped_split_stands():
    pairs = [
        (group("looks:a", 1, "train"), group("looks:b", 1, "test")),
        (group("looks:b", 1, "test"), group("looks:b", 1, "test")),
    ]
    assert groups.join_twins(pairs) == (
        {"looks:a": "looks:a", "looks:b": "looks:b"},
        ["two sides of the shipped split", "one group"],
    )
