"""Settings: typed and frozen, from YAML and words, and every mistake named with what would be right."""

import re

import pytest
import yaml
from conftest import REPO
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError
from samples import examples

from melanoma_spark import config
from melanoma_spark.errors import ConfigError

CONF = REPO / "conf"
# What `str` and YAML agree on: YAML 1.1 takes "no", "1:30" or "2020-01-01" for something else than text.
WORDS = st.from_regex(r"[a-z]{3,8}(/[a-z]{3,8}){0,3}", fullmatch=True).filter(lambda w: yaml.safe_load(w) == w)
SENSIBLE = {
    "archive": WORDS,
    "warehouse": WORDS.map("s3a://bucket/".__add__),
    "image_size": st.integers(32, 1024),
    "seed": st.integers(-(2**31), 2**31),
    "ranks": st.integers(1, 64),
    "backbone.allow_random": st.booleans(),
    "ingest.test_fraction": st.floats(0.001, 0.49),
    "ingest.validation_fraction": st.floats(1e-300, 0.49),
    "ingest.max_pixels": st.integers(1, 10**12),
    "augment.enabled": st.booleans(),
    "augment.zoom": st.floats(0, 0.99),
    "featurize.dtype": st.sampled_from(["float16", "float32"]),
    "head.dropout": st.floats(0, 0.99),
    "head.learning_rate": st.floats(1e-12, 1e12),
    "finetune.batch_size": st.integers(1, 4096),
    "evaluate.operating_point": st.sampled_from(["balanced", "sensitivity>=0.95", "specificity>=0.8"]),
    "register.name": WORDS.filter(lambda word: "/" not in word),
    "score.model": WORDS.map("melanoma@".__add__),
    "mlflow.tracking_uri": WORDS.map("http://server:5000/".__add__),
}


@pytest.fixture
def file(tmp_path):
    """A function: content -> the path of a settings file that holds it."""

    def write(content):
        path = tmp_path / "settings.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def leaves(model, prefix=""):
    """Every dotted key, by looking at the fields alone."""
    for name, field in model.model_fields.items():
        key = prefix + (field.alias or name)
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from leaves(field.annotation, key + ".")
        else:
            yield key


@pytest.mark.parametrize(
    ("word", "key", "near", "valid"),
    [
        ("imagesize=64", "imagesize", "image_size", "archive, augment, backbone, evaluate"),
        ("register_.name=x", "register_", "register", "ranks, register, score"),
        ("head.hiden=3", "head.hiden", "hidden", "batch_size, dropout, epochs, hidden, learning_rate, patience"),
        ("register.nam=x", "register.nam", "name", "action, alias, gate, name"),
        ("ingest.labels.positve=[a]", "ingest.labels.positve", "positive", "negative, positive"),
        (
            "finetune.phases=[{name: a}, {name: b, epoch: 3}]",
            "finetune.phases.1.epoch",
            "epochs",
            "cut, epochs, learning_rate, name, patience",
        ),
    ],
)
def test_unknown_key_is_named_with_a_near_match_and_its_valid_siblings(word, key, near, valid):
    with pytest.raises(ConfigError) as error:
        config.load(None, [word])
    assert f"unknown setting '{key}': did you mean '{near}'? valid here: " in str(error.value)
    assert valid in str(error.value)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("head.hidden=many", "setting head.hidden: .*integer.*; found 'many'"),
        ("ranks=2.5", "setting ranks: .*integer.*; found 2.5"),
        ("ranks=0", "setting ranks: .*greater than or equal to 1; found 0"),
        ("image_size=16", "setting image_size: .*greater than or equal to 32; found 16"),
        ("head.dropout=1", "setting head.dropout: .*less than 1; found 1"),
        ("head.dropout=.nan", "setting head.dropout: .*; found nan"),
        ("head.learning_rate=-1e-3", "setting head.learning_rate: .*greater than 0; found '?-1e-3"),
        ("evaluate.tta=3", "setting evaluate.tta: .*1, 2, 4 or 8; found 3"),
        ("featurize.dtype=int8", "setting featurize.dtype: .*'float16' or 'float32'; found 'int8'"),
        ("ingest.labels.positive=mel", "setting ingest.labels.positive: .*; found 'mel'"),
        ("head=3", "setting head: .*; found 3"),
        ("warehouse=", "setting warehouse: .*string; found None"),
        ("finetune.phases=[{cut: block4_pool}]", r"setting finetune\.phases\.0\.name: Field required"),
        ("finetune.phases=[3]", r"setting finetune\.phases\.0: .*; found 3"),
        *(
            (f"finetune.phases={phases}", ".*each with a name of its own")
            for phases in ("[]", "[{name: a}, {name: a}]")
        ),
        ("head.learning_rate=.inf", r".*head\.learning_rate"),
        (
            "ingest={test_fraction: 0.5, validation_fraction: 0.5}",
            "setting ingest: the shares must stay below 1 together; lower ingest.test_fraction=SHARE",
        ),
        (
            "backbone.weights=random",
            "setting backbone: random weights make useless features; set backbone.weights=imagenet",
        ),
        *((f"register.name={name}", r".*register\.name") for name in ("../x", "a/b", "''", ".", "'a:1'", "' x'")),
        *((word, ".*is not of the form key=value, for example image_size=224") for word in ("seed", "=1", "")),
        ("mlflow.xyzzy=1", "unknown setting 'mlflow.xyzzy': valid here: experiment, system_metrics, tracking_uri$"),
    ],
)
def test_ill_typed_value_is_named_with_its_key_and_what_was_found(word, message):
    with pytest.raises(ConfigError, match=f"^{message}"):
        config.load(None, [word])


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        (["backbone.weights=random", "backbone.allow_random=true"], "backbone.weights", "random"),
        (
            ["ingest.labels.positive=[Spitz, spitz]", "ingest.labels.negative=[other]"],
            "ingest.labels.positive",
            "Spitz,spitz",
        ),
        (["evaluate.operating_point=sensitivity>=0.95"], "evaluate.operating_point", "sensitivity>=0.95"),
        (["seed=1", "seed=2"], "seed", "2"),
        *(([f"archive={text}"], "archive", text) for text in ("/data/box #3", "2020-13-45", "[1", "{", "'")),
    ],
)
def test_values_are_taken_as_they_are_given(words, key, value):
    assert config.flatten(config.load(None, words))[key] == value


def test_views_that_would_all_be_the_same_are_refused():
    with pytest.raises(ConfigError) as error:
        config.load(None, ["featurize.views=4"])
    assert str(error.value) == (
        "featurize.views=4 would store the same features again and again, because augment.enabled is false; "
        "set augment.enabled=true, or featurize.views=1"
    )
    assert config.load(None, ["featurize.views=4", "augment.enabled=true"]).featurize.views == 4


@pytest.mark.parametrize(
    ("positive", "negative", "named"),
    [
        ("[naevus]", "[naevus]", "'naevus'"),
        ("[a, Spitz-Naevus]", "[b, spitz  naevus]", "'Spitz-Naevus'"),
        ("['1.0', x, Y]", "['1', y]", "'1.0', 'Y'"),
    ],
)
def test_word_that_is_positive_and_negative_is_refused(positive, negative, named):
    with pytest.raises(ConfigError) as error:
        config.load(None, [f"ingest.labels.positive={positive}", f"ingest.labels.negative={negative}"])
    message = str(error.value)
    assert message.startswith(f"setting ingest.labels: {named} is positive and negative; leave it out of ")
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("nothing", ["", "# only a comment\n", "---\n"])
def test_empty_file_gives_the_defaults_and_so_do_they_as_words(file, nothing):
    assert config.load(file(nothing)) == config.load(None) == config.Settings()
    defaults = config.flatten(config.Settings())
    words = [f"{key}={text}" for key, text in defaults.items() if text != "None" and key in SENSIBLE]
    assert len(words) > 10
    assert config.load(None, words) == config.Settings()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"head: [1,\nepochs: }", "is not YAML at line 2: "),
        (b"head:\n\tepochs: 1", "is not YAML at line 2: "),
        (b"seed: 1\0", "is not YAML: unacceptable character #x0000"),
        (b"seed: 2020-13-45", "is not YAML: month must be in 1..12"),
        ("archive: médecine".encode("utf-16"), "is not UTF-8 text"),
        (b"- archive\n- warehouse", ": found a list, expected keys and values"),
        (b"archive", ": found a str, expected keys and values"),
        (b"!!python/object/apply:os.getcwd []", "is not YAML at line 1: could not determine a constructor"),
        (None, ": No such file or directory; see conf/*.yaml for examples"),
        ("a folder", ": Is a directory"),
    ],
)
def test_damaged_file_is_named_with_what_is_wrong_with_it_in_one_line(file, tmp_path, content, message):
    path = tmp_path / "settings.yaml"
    if content == "a folder":
        path.mkdir()
    elif content is not None:
        file(content)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    assert str(error.value).startswith(f"settings file {path}")
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.name)
def test_every_settings_file_of_the_repository_loads(path):
    written = yaml.safe_load(path.read_text())
    flat = config.flatten(config.load(path))
    assert {key: flat[key] for key, value in written.items() if not isinstance(value, dict)} == {
        key: str(value) for key, value in written.items() if not isinstance(value, dict)
    }


def test_words_win_over_the_file_and_unknown_keys_are_all_named(file):
    settings = config.load(file("seed: 1\nhead: {epochs: 3, hidden: 8}"), ["head.epochs=5", "ranks=4"])
    assert (settings.seed, settings.head.epochs, settings.head.hidden, settings.ranks) == (1, 5, 8, 4)
    path = file("finetune: {phases: [{name: a}, {name: b}]}")
    settings = config.load(path, ["finetune.phases=[{name: c, cut: block4_pool}]"])
    assert settings.finetune.phases == (config.Phase(name="c", cut="block4_pool"),)
    with pytest.raises(ConfigError, match=r"head\.epochs: head holds the value 3 and has no keys below it"):
        config.load(file("head: 3"), ["head.epochs=1"])

    with pytest.raises(ConfigError, match=r"'head\.epoch'.*'rank'"):
        config.load(file("head: {epoch: 3}\nrank: 2"))
    for content in (b"1: 2", b"head: {null: 2}"):
        with pytest.raises(ConfigError, match="Keys should be strings"):
            config.load(file(content))


@pytest.mark.parametrize("text", ["1e-5", "1E-5", "1.0e-5", "0.00001"])
def test_number_in_scientific_notation_is_a_number(text, file):
    # YAML 1.1 wants a dot and a sign in it, and reads `1e-5` as text.
    assert config.load(None, [f"head.learning_rate={text}"]).head.learning_rate == 1e-5
    phase = f"finetune: {{phases: [{{name: a, learning_rate: {text}}}]}}"
    assert config.load(file(phase)).finetune.phases[0].learning_rate == 1e-5


@pytest.mark.parametrize(
    ("section", "key"), [(None, "seed"), ("head", "epochs"), ("backbone", "weights"), ("ingest", "labels")]
)
def test_settings_are_frozen(section, key):
    settings = config.load(None)
    part = getattr(settings, section) if section else settings
    with pytest.raises(ValidationError, match="frozen"):
        setattr(part, key, getattr(part, key))


def test_flat_settings_name_every_key_with_its_value_as_text():
    settings = config.Settings()
    assert set(config.valid_keys()) == set(leaves(config.Settings))
    names = [phase.name for phase in settings.finetune.phases]
    phases = {f"finetune.phases.{name}.{field}" for name in names for field in config.Phase.model_fields}
    assert set(config.flatten(settings)) == set(config.valid_keys()) - {"finetune.phases"} | phases

    flat = config.flatten(config.load(None, ["head.learning_rate=1e-5", "ingest.labels.positive=[scc, mel]"]))
    assert flat["head.learning_rate"] == "1e-05"
    assert flat["ingest.labels.positive"] == "scc,mel"
    assert flat["finetune.phases.last_block.cut"] == "last_block"


def test_keys_are_described_and_public_settings_hold_no_place():
    valid = config.valid_keys()
    assert [key for key, text in valid.items() if not re.fullmatch(r"\[.*?\] .+", text)] == []
    assert valid["ranks"] == "[2] Horovod ranks in fine-tuning; each takes one Spark slot"
    assert valid["finetune.phases"].startswith("[last_block, all]")

    words = ["archive=/data/ward7", "warehouse=/data/w", "mlflow.tracking_uri=http://user:secret@host:5000", "ranks=3"]
    settings = config.load(None, [*words, "search.trials=5"])
    for result in (config.public_settings(settings), config.notable_settings(settings)):
        assert not any("ward7" in text or "/data/w" in text or "secret" in text for text in result.values())
        assert (result["ranks"], result["search.trials"]) == ("3", "5")
    assert config.public_settings(settings).keys() - config.notable_settings(settings).keys() >= {
        "search.folds",
        "ingest.min_side",
    }
    assert "search.trials" not in config.notable_settings(config.Settings())


@given(st.fixed_dictionaries({}, optional=SENSIBLE))
@examples(0.4)
def test_settings_are_the_same_from_words_nested_mappings_and_flat(values):
    loaded = config.flatten(config.load(None, [f"{key}={value}" for key, value in values.items()]))
    assert {key: loaded[key] for key in values} == {
        key: str(float(value)) if isinstance(value, float) else str(value) for key, value in values.items()
    }
    again = [f"{key}={loaded[key]}" for key in values]
    assert config.flatten(config.load(None, again)) == loaded

    nested: dict = {}
    for key, value in values.items():
        *sections, name = key.split(".")
        place = nested
        for section in sections:
            place = place.setdefault(section, {})
        place[name] = value
    assert config.parse(nested) == config.load(None, [f"{key}={value}" for key, value in values.items()])
