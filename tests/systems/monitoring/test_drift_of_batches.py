"""Batches unlike the training images: abstained from where the settings ask for it, and counted by their tables."""

import pytest

from melanoma_spark.monitoring import statistics


def test_unlike_images_are_abstained_from_where_flags_abstain(noise):
    section = noise.context.settings.score
    strict = section.quality.model_copy(update={"action": "abstain"})
    calm = section.drift.model_copy(update={"minimum": 100})
    output = noise.stage("score", score=section.model_copy(update={"quality": strict, "drift": calm}))
    assert "0 scored + 60 abstained" in output
    assert "too few to tell: 60 images that training has not seen, 100 are needed" in output
    rows = noise.scores()
    own = rows[rows["status"] == "abstained"]
    assert own["detail"].str.contains("unlike: far from the training images in feature space").all()
    assert own["probability"].isna().all()


def test_metadata_of_the_tables_is_counted_for_scored_images(noise):
    (noise.archive / "broken.jpg").write_bytes(b"\xff\xd8\xff and no more")
    seen = {}
    with pytest.MonkeyPatch.context() as only_here:
        compare = statistics.compare_with_reference

        def spy(reference, numbers, metadata, rows, **more):
            seen.update(metadata=metadata)
            return compare(reference, numbers, metadata, rows, **more)

        only_here.setattr(statistics, "compare_with_reference", spy)
        noise.stage("score")
    assert seen["metadata"]["sex"] == {"female": 30, "male": 30}
    assert seen["metadata"]["age"] == {"40-49": 60}
    assert seen["metadata"]["site"] == {"unknown": 60}
