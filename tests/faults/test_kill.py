"""Fine-tuning whose rank, or whose driver, is killed by a real `kill -9`. An executor's: scoring/test_score_kills.py.

What a killed job leaves is the subject of test_crash_points.py; these show that its model of a kill is right.
"""

import json
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from kills import killed_when

from melanoma_spark.errors import DataError
from melanoma_spark.storage import files
from melanoma_spark.storage.manifests import FinetunedManifest
from melanoma_spark.storage.tensors import pack_tensors
from melanoma_spark.training import finetune


def rank_processes() -> dict[int, int]:
    """Rank -> process id, of all Horovod ranks on this machine."""
    result = {}
    for name in os.listdir("/proc"):
        try:
            variables = Path(f"/proc/{int(name)}/environ").read_bytes().split(b"\0")
            command = Path(f"/proc/{name}/cmdline").read_bytes()
        except (ValueError, OSError):
            continue
        ranks = [int(v.removeprefix(b"HOROVOD_RANK=")) for v in variables if v.startswith(b"HOROVOD_RANK=")]
        if ranks and b"gloo_exec_fn" in command and b"sh" not in command.split(b"\0")[0]:
            result[ranks[0]] = int(name)
    return result


def trained(line) -> tuple[dict, list]:
    """What a fine-tuned model is known by, without the time it took; and its tensors."""
    facts = line.manifest("models/finetuned")
    log = [{**epoch, "seconds": 0, "images_per_second": 0, "waited": 0} for epoch in facts["training"]]
    return {"log": json.dumps(log), "id": facts["id"]}, line.tensors(FinetunedManifest)


def same_model(one, other) -> None:
    (facts, tensors), (expected, expected_tensors) = trained(one), trained(other)
    for result, wanted in zip(tensors, expected_tensors, strict=True):
        np.testing.assert_array_equal(result, wanted)
    assert facts == expected


def test_a_rank_killed_in_mid_epoch_costs_the_steps_since_the_last_checkpoint(line, copied):
    shutil.rmtree(copied.folder / "models/finetuned")
    often = copied.context.settings.finetune.model_copy(update={"checkpoint_steps": 1})
    killed = []

    def murder() -> None:
        while not list((copied.folder / "models").glob("finetuned/*/checkpoint.npz")):
            time.sleep(0.02)
        pid = rank_processes()[1]
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    murderer = threading.Thread(target=murder, daemon=True)
    murderer.start()
    output = copied.output_of("finetune", finetune=often)
    murderer.join(timeout=10)
    assert len(killed) == 1
    assert "training on 2 ranks ended early" in output
    assert "starting again from the last checkpoint" in output
    assert re.search(r"block5: resuming from the checkpoint in epoch 1, after step [1-9]", output)
    same_model(copied, line)
    assert not list((copied.folder / "models").rglob("checkpoint.npz"))


def test_killed_finetune_resumes_from_its_last_checkpoint(line, copied, submitted, settings_file):
    shutil.rmtree(copied.folder / "models/finetuned")
    often = {"checkpoint_steps": 1}
    settings = settings_file(archive=str(copied.archive), warehouse=str(copied.folder), finetune=often)
    started = submitted("finetune", "--conf", settings, "--master", "local[2]")
    checkpoints = (copied.folder / "models").glob
    killed_when(started, lambda: list(checkpoints("finetuned/*/checkpoint.npz")))
    assert not (copied.folder / "models/finetuned/manifest.json").exists()
    until = time.monotonic() + 30
    while rank_processes():
        assert time.monotonic() < until, "ranks outlive their driver"
        time.sleep(0.1)
    output = copied.output_of("finetune")
    assert re.search(r"(block5|all): resuming from the checkpoint in epoch \d, after step \d", output)
    same_model(copied, line)


@pytest.mark.parametrize("content", [b"", b"PK no npz", pack_tensors([np.zeros(3)])])
def test_a_checkpoint_that_cannot_be_read_is_an_error_that_names_it(copied, content):
    (target,) = (path for path in (copied.folder / "models/finetuned").iterdir() if path.is_dir())
    (copied.folder / "models/finetuned/manifest.json").unlink()
    (target / "checkpoint.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"checkpoint .*npz cannot be read \(.*\); remove it, and fine-tuning starts"):
        finetune.read_checkpoint(files.url_of(str(target)))
