"""Archives on HDFS and S3, of real servers: the same dataset as from a folder, read in ranges; failures in one line."""

import contextlib
import csv
import os
import socket
import sys
import tarfile
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from hadoop import configure
from pyspark.errors import PySparkException

from melanoma_spark import config
from melanoma_spark.archives import containers, landing, listing, plan
from melanoma_spark.archives.contents import open_file
from melanoma_spark.errors import ClusterError, ConfigError, DataError, ImageError, error_of_task
from melanoma_spark.images import synthetic
from melanoma_spark.storage import files

SECONDS = 15  # the most that a failure may take to tell
PLACES = ("hdfs", "s3a")
BUCKET = "lesions"

# Valid on all three, and each something to a URL, a glob or a shell. HDFS takes no colon, a CSV no line break.
NAMES = (
    *("with space", " edges ", "br[ack]ets", "{braces,too}", "per%20cent", "100%", "hash#tag", "what?", "st*r"),
    *("semi;colon", "m\u00e9lan\u00f4me", "\u75e3", "e\u0301 decomposed", "plus+and&amp;", "key=value"),
    *("quote'", "$HOME~", "_leading"),
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn archive: odd names in odd folders, a zip, a tar, one of each cut off, and an empty folder."""
    root = tmp_path_factory.mktemp("drawn") / "archive #1, 50%20 [x]"
    synthetic.draw_archive(root, images=60, size=64)
    with (root / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, name in zip(rows, NAMES, strict=False):
        (old,) = root.glob(f"*/{row['image_id']}.*")
        (root / "site {a} [b]? #1").mkdir(exist_ok=True)
        old.rename(root / "site {a} [b]? #1" / f"{name}{old.suffix}")
        row["image_id"] = name
    with (root / "metadata.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    complete = sorted(root.glob("*/image_*"))
    with zipfile.ZipFile(root / "part #1.zip", "w") as zipped:
        for path in complete[:12]:
            zipped.write(path, f"inside/{path.name}")
    with tarfile.open(root / "part 100%.tar", "w") as tar:
        for path in complete[12:24]:
            tar.add(path, path.name)
    for path in complete[:24]:
        path.unlink()
    for name in ("part #1.zip", "part 100%.tar"):
        content = (root / name).read_bytes()
        (root / f"cut {name}").write_bytes(content[: len(content) // 2])
    (root / "empty").mkdir()
    return root


def on_disk(root: Path) -> dict[str, Path]:
    return {str(path.relative_to(root)): path for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def of_s3(s3: dict[str, str], spark) -> Iterator[None]:
    """The environment of S3's client, for this process and for Spark's workers."""
    before = dict(spark.sparkContext.environment)
    with pytest.MonkeyPatch.context() as only_here:
        for name, value in s3.items():
            only_here.setenv(name, value)
        spark.sparkContext.environment.update(s3)
        yield
    spark.sparkContext.environment.clear()
    spark.sparkContext.environment.update(before)


def to_hdfs(root: str, contents: dict[str, bytes]) -> None:
    import hdfs_native

    host, _, folder = root.removeprefix("hdfs://").partition("/")
    client = hdfs_native.Client(f"hdfs://{host}")

    def put(name: str) -> None:
        client.mkdirs(os.path.dirname(f"/{folder}/{name}"), 0o755, True)
        if not name.endswith("/"):
            with client.create(f"/{folder}/{name}") as file:
                file.write(contents[name])

    with ThreadPoolExecutor(24) as many:  # the client sleeps half a second for each
        list(many.map(put, contents))


def to_s3(root: str, contents: dict[str, bytes]) -> None:
    """Folders, of names with a slash at their end, become the empty objects by which consoles mark them."""
    import boto3

    client = boto3.client("s3")
    bucket, _, folder = root.partition("://")[2].partition("/")
    client.create_bucket(Bucket=bucket)
    for name, content in contents.items():
        client.put_object(Bucket=bucket, Key=f"{folder}/{name}".removeprefix("/"), Body=content)


@pytest.fixture(scope="module")
def roots(hdfs, of_s3) -> dict[str, str]:
    """The URL of a folder that is not there yet, on either."""
    return {"hdfs": f"{hdfs.url}/tests", "s3a": f"s3a://{BUCKET}/tests"}


PUT = {"hdfs": to_hdfs, "s3a": to_s3}


@pytest.fixture(scope="module")
def urls(drawn: Path, roots: dict[str, str]) -> dict[str, str]:
    """The drawn archive's URL, by where it is."""
    contents = {name: path.read_bytes() for name, path in on_disk(drawn).items()}
    contents |= {"empty/": b"", "benign/": b""}
    for place, root in roots.items():
        PUT[place](f"{root}/{drawn.name}", contents)
    return {"file": str(drawn), **{place: f"{root}/{drawn.name}" for place, root in roots.items()}}


def settings_of(url: str) -> config.Settings:
    return config.parse({"archive": url, "image_size": 64})


FACTS = ("id", "listed", "accepted", "rejected", "skipped", "counts", "reasons", "groups", "layout")


@pytest.fixture(scope="module")
def from_a_folder(spark, drawn: Path, tmp_path_factory: pytest.TempPathFactory, shared_mlflow: str) -> dict:
    from conftest import open_line

    line = open_line(spark, drawn, tmp_path_factory.mktemp("file") / "w", mlflow={"tracking_uri": shared_mlflow})
    line.stage("ingest")
    return line.manifest("images")


@pytest.mark.parametrize("place", PLACES)
def test_the_dataset_is_the_same_and_the_next_ingest_finds_nothing_new(new_line, urls, from_a_folder, place):
    line = new_line(urls[place])
    line.stage("ingest")
    facts = line.manifest("images")
    assert {name: facts[name] for name in FACTS} == {name: from_a_folder[name] for name in FACTS}
    assert facts["accepted"] == 59  # and a copy
    assert facts["reasons"]["damaged_archive"] == 2
    assert "nothing new" in line.stage("ingest")


@pytest.mark.parametrize("place", PLACES)
def test_every_file_and_member_is_listed_as_on_disk(spark, urls, place):
    def rows(url: str) -> dict[str, tuple]:
        return {
            row.path: (row.length, row.reason, row.role, row.member, row.offset)
            for row in listing.list_archive(spark, settings_of(url)).collect()
        }

    assert rows(urls[place]) == rows(urls["file"])
    started = time.time()
    for row in listing.list_archive(spark, settings_of(urls[place])).collect():
        assert row.source_uri.startswith(f"{urls[place]}/")
        assert row.modified is not None
        assert abs(row.modified.timestamp() - started) < 600


@pytest.mark.parametrize("place", PLACES)
def test_a_landing_folder_is_seen_as_it_is_now(spark, roots, place):
    """A worker of Spark lives on, and must not remember what it has listed."""
    url = f"{roots[place]}/landing"
    PUT[place](url, {"1.jpg": b"content"})
    assert listing.list_archive(spark, settings_of(url)).count() == 1
    before = landing.summarize_settled(url, 2**28, 0)
    assert before == landing.summarize_settled(url, 2**28, 0)
    PUT[place](url, {"2.jpg": b"content"})
    after = landing.summarize_settled(url, 2**28, 0)
    assert (before[0], after[0]) == (1, 2)
    assert before[1] != after[1]
    assert listing.list_archive(spark, settings_of(url)).count() == 2
    assert landing.summarize_settled(url, 2**28, 3600) == (0, ""), "nothing has settled"
    assert listing.settled_files(listing.list_archive(spark, settings_of(url)), 3600).count() == 0


def test_keys_with_two_slashes_are_listed_and_read(of_s3):
    """To S3 a slash is a letter as any other: tools that join `folder/` and `/name` make such keys."""
    import boto3

    names = ("a.jpg", "/b.jpg", "//c.jpg", "sub//d.jpg", "sub///e/f.jpg", "sub/g.jpg", "sub//", "t//labels.csv")
    contents = {name: name.encode() for name in names}
    client = boto3.client("s3")
    for bucket, folder in (("slashes", ""), ("slashes", "deep/"), ("slashes-2", "/")):
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=bucket)
        for name, content in contents.items():
            client.put_object(Bucket=bucket, Key=f"{folder}{name}", Body=content)
    for root in ("s3a://slashes/deep", "s3a://slashes-2"):
        above = "/" if root.endswith("2") else ""
        result = {row.path: row for row in listing.walk_folder(root, "", 2**20)}
        assert set(result) == {above + name for name in names if not name.endswith("/")}
        for path, row in result.items():
            with open_file(root, row.file, row.raw) as file:
                assert file.read().decode() == path.removeprefix(above)
            assert row.source_uri == f"{root}/{path}"
    assert {row.path for row in listing.walk_folder("s3a://slashes", "", 2**20) if not row.path.startswith("deep")} == {
        name for name in names if not name.endswith("/")
    }


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", ["part #1.zip", "part 100%.tar"])
def test_one_container_is_an_archive(spark, urls, drawn, place, name):
    url = f"{urls[place]}/{name}"
    result = listing.list_archive(spark, settings_of(url)).collect()
    assert len(result) == 12
    assert {row.source_uri.partition("!/")[0] for row in result} == {url}
    assert {row.reason for row in result} == {None}


MEMBERS, MEMBER = 24, 1 << 20


@pytest.fixture(scope="module")
def large(roots, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip and a tar of 24 MiB, there too."""
    folder = tmp_path_factory.mktemp("large")
    with zipfile.ZipFile(folder / "large.zip", "w") as zipped, tarfile.open(folder / "large.tar", "w") as tar:
        for number in range(MEMBERS):
            (folder / "member").write_bytes(os.urandom(MEMBER))
            zipped.write(folder / "member", f"{number}.jpg")
            tar.add(folder / "member", f"{number}.jpg")
    (folder / "member").unlink()
    for place, root in roots.items():
        PUT[place](f"{root}/large", {path.name: path.read_bytes() for path in folder.iterdir()})
    return folder


@pytest.fixture
def fetched(monkeypatch) -> list[int]:
    """The lengths of the ranges that are asked for from now on."""
    from melanoma_spark.storage import hdfs, s3

    lengths: list[int] = []
    fetch, read = s3.Reader._fetch_range, hdfs.FileReader.read_range

    def of_s3(self, start, end):
        lengths.append(end - start)
        return fetch(self, start, end)

    def of_hdfs(self, offset, length):
        lengths.append(length)
        return read(self, offset, length)

    monkeypatch.setattr(s3.Reader, "_fetch_range", of_s3)
    monkeypatch.setattr(hdfs.FileReader, "read_range", of_hdfs)
    return lengths


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_members_are_read_without_the_rest_of_their_container(roots, large, fetched, place, kind):
    name = f"large.{kind}"
    complete = (large / name).read_bytes()
    with open_file(f"{roots[place]}/large", name, None) as file:
        members = list(containers.list_members(file, kind))
    assert len(members) == MEMBERS
    if kind == "zip":
        assert sum(fetched) < 3 << 20, "a zip is listed by its end"
    fetched.clear()
    with open_file(f"{roots[place]}/large", name, None) as file:
        for member, content in containers.read_members(file, kind, [members[3], members[17]]):
            assert content is not None
            assert not isinstance(content, ImageError)
            assert content in complete
            assert len(content) == member.size
    assert 2 * MEMBER <= sum(fetched) <= 6 << 20


@pytest.mark.parametrize("place", PLACES)
def test_a_remote_file_is_a_file_of_python(roots, large, place):
    """Containers seek to where a hostile one points, which is beyond its end as well."""
    complete = (large / "large.zip").read_bytes()
    with open_file(f"{roots[place]}/large", "large.zip", None) as file:
        assert file.seek(0, 2) == len(complete)
        assert file.read(10) == b""
        assert file.seek(len(complete) - 5) == file.tell() == len(complete) - 5
        assert file.read(10) == complete[-5:]
        assert file.seek(1 << 40) == 1 << 40
        assert file.read(10) == b""
        assert file.seek(5 << 20) == 5 << 20
        assert file.read(3 << 20) == complete[5 << 20 : 8 << 20]
        assert file.tell() == 8 << 20


def refused(url: str) -> str:
    """The line by which an archive is refused, soon."""
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        plan.locate(url)
    assert time.monotonic() - started < SECONDS
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)
    return str(caught.value)


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port without a server."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """A port where connections are accepted and never answered."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        *((f"{{{place}}}/nowhere #1", "does not exist; give the URL of a folder of images") for place in PLACES),
        *((f"{{{place}}}/{{drawn}}/metadata.csv", "is a file, but not one of") for place in PLACES),
        ("{hdfs}/{drawn}/empty", "holds no files"),
        ("s3a://no-such-bucket/lesions", "there is no bucket no-such-bucket"),
        ("s3a://no-such-bucket", "does not exist"),
        ("s3a://no bucket/lesions", "Invalid bucket name"),
    ],
)
def test_invalid_archives_are_named(roots, urls, drawn, url, message):
    assert message in refused(url.format(**roots, drawn=drawn.name))


def test_unreachable_name_nodes_are_named(nobody, silent, monkeypatch):
    message = refused(f"hdfs://127.0.0.1:{nobody}/lesions")
    assert "Connection refused" in message
    assert "hdfs://HOST:8020/path" in message
    from melanoma_spark.storage import hdfs

    monkeypatch.setattr(hdfs, "GREETING_SECONDS", 1)
    assert "no name node answered in 1 s; name the host" in refused(f"hdfs://127.0.0.1:{silent}/lesions")


@pytest.mark.parametrize("url", ["hdfs:///lesions", "hdfs://NoService/lesions"])
def test_an_undefined_name_service_is_named(url, monkeypatch):
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("HADOOP_HOME", raising=False)
    assert "HADOOP_CONF_DIR" in refused(url)


@pytest.mark.parametrize("url", ["hdfs://Lesions", "hdfs://"])
def test_name_services_come_from_hadoops_configuration(hdfs, urls, nobody, tmp_path, monkeypatch, url):
    configure(
        tmp_path,
        core_site={"fs.defaultFS": "hdfs://Lesions"},
        hdfs_site={
            "dfs.nameservices": "Lesions",
            "dfs.ha.namenodes.Lesions": "one,two",
            "dfs.namenode.rpc-address.Lesions.one": f"127.0.0.1:{nobody}",
            "dfs.namenode.rpc-address.Lesions.two": f"127.0.0.1:{hdfs.port}",
        },
    )
    monkeypatch.setenv("HADOOP_CONF_DIR", str(tmp_path))
    path = urls["hdfs"].removeprefix(hdfs.url)
    assert plan.locate(url + path) == (url + path, "")
    assert plan.locate(f"{url}{path}/part #1.zip") == (url + path, "part #1.zip")


def test_a_folder_that_a_user_may_not_read_is_named(hdfs, roots, monkeypatch):
    import hdfs_native

    client = hdfs_native.Client(hdfs.url)
    client.mkdirs("/closed", 0o700, True)
    client.set_permission("/closed", 0o700)
    monkeypatch.setenv("HADOOP_USER_NAME", "somebody-else")
    fsspec.get_filesystem_class("hdfs").clear_instance_cache()
    try:
        assert "cannot be read: Permission denied: user=somebody-else" in refused(f"{hdfs.url}/closed")
        with pytest.raises(ClusterError, match=r"^cannot write .*: Permission denied: user=somebody-else"):
            files.check_writable(f"{hdfs.url}/closed/warehouse")
    finally:
        fsspec.get_filesystem_class("hdfs").clear_instance_cache()


@pytest.fixture
def other_s3(of_s3, monkeypatch) -> Iterator[pytest.MonkeyPatch]:
    """S3's environment to change: clients keep what they started with."""
    kind = fsspec.get_filesystem_class("s3a")
    kind.clear_instance_cache()
    yield monkeypatch
    kind.clear_instance_cache()


def test_an_unreachable_store_is_named(other_s3, nobody):
    other_s3.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{nobody}")
    message = refused(f"s3a://{BUCKET}/lesions")
    assert f"127.0.0.1:{nobody}" in message
    assert "correct AWS_ENDPOINT_URL" in message


def test_a_store_that_does_not_answer_is_named(other_s3, silent):
    from melanoma_spark.storage.s3 import S3

    other_s3.setattr(S3, "read_timeout", 1)
    other_s3.setattr(S3, "retries", 1)
    other_s3.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent}")
    assert "Read timeout" in refused(f"s3a://{BUCKET}/lesions")


def test_credentials_that_are_not_there_are_named(other_s3):
    other_s3.delenv("AWS_ACCESS_KEY_ID")
    other_s3.delenv("AWS_SECRET_ACCESS_KEY")
    message = refused(f"s3a://{BUCKET}/lesions")
    assert "Unable to locate credentials; set AWS_ACCESS_KEY_ID" in message


def test_a_worker_without_credentials_is_named(other_s3, spark, urls):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        other_s3.delitem(spark.sparkContext.environment, name)
    with pytest.raises(PySparkException) as caught:
        listing.list_archive(spark, settings_of(urls["s3a"]))
    ours = error_of_task(caught.value)
    assert isinstance(ours, DataError)
    message = f"archive {urls['s3a']} cannot be read by a worker: Unable to locate credentials; set AWS_ACCESS_KEY_ID"
    assert str(ours).startswith(message)
    assert "credentials must be the same on every worker" in str(ours)


def test_a_public_bucket_needs_no_credentials(other_s3, urls):
    other_s3.delenv("AWS_ACCESS_KEY_ID")
    other_s3.delenv("AWS_SECRET_ACCESS_KEY")
    other_s3.setitem(fsspec.config.conf, "s3", {"anon": True})  # as FSSPEC_S3_ANON=true does it at the start
    assert plan.locate(urls["s3a"]) == (urls["s3a"], "")


@pytest.mark.parametrize(
    ("url", "package"), [("hdfs://127.0.0.1:8020/x", "hdfs-native"), ("s3a://b/x", "s3fs"), ("s3://b/x", "s3fs")]
)
def test_a_package_that_is_not_installed_is_named(monkeypatch, url, package):
    protocol = url.partition(":")[0]
    monkeypatch.setitem(sys.modules, package.replace("-", "_"), None)
    monkeypatch.delitem(sys.modules, files.REMOTE[protocol][0].rpartition(".")[0], raising=False)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, protocol, raising=False)
    assert f"run `make install`, or `pip install {package}`" in refused(url)
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        files.exists(url)


@pytest.mark.parametrize("place", PLACES)
def test_small_files_are_written_read_and_moved(roots, urls, place):
    folder = f"{roots[place]}/small #1 [x]; 50%"
    target = files.join(folder, "new", "100% #1.json")
    assert not files.exists(target)
    assert files.list_names(folder, "*") == []
    files.write_json(target, {"old": 1})
    files.write_json(target, {"new": 2})
    assert files.read_json(target) == {"new": 2}
    assert files.list_names(files.join(folder, "new"), "*.json") == ["100% #1.json"]
    files.rename(files.join(folder, "new"), files.join(folder, "moved", "here"))
    assert files.read_json(files.join(folder, "moved", "here", "100% #1.json")) == {"new": 2}
    assert not files.exists(files.join(folder, "new"))
    for content in (b"first", b"second"):  # as two attempts of a task write the same part
        files.write_bytes(files.join(folder, "unfinished"), content)
        files.rename(files.join(folder, "unfinished"), files.join(folder, "part"))
    assert files.read_bytes(files.join(folder, "part")) == b"second"
    assert files.list_names(folder, "*unfinished*") == []
    with pytest.raises(DataError, match=r"^cannot read .*/none: "):
        files.read_bytes(files.join(folder, "none"))
    files.check_writable(folder)
    files.remove(folder)
    files.remove(folder)
    assert not files.exists(folder)
