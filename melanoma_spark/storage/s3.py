"""S3 for fsspec by s3fs. Every failure is an `OSError`, within seconds.

Credentials and endpoint come from the environment.
boto3's chain finds them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE and ~/.aws, or the machine's role;
AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 for a store that is not Amazon's.
"""

from typing import Any

from botocore.exceptions import (
    BotoCoreError,
    ConnectionError,
    HTTPClientError,
    NoCredentialsError,
    PartialCredentialsError,
)
from s3fs import S3FileSystem
from s3fs.core import S3File

READ_AHEAD = 1 << 20  # bytes; with s3fs's own 50 MiB one member of a zip would fetch most zips entirely
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) in the environment of the driver and of every "
    "worker, or FSSPEC_S3_ANON=true for a public bucket"
)
ENDPOINT = "start the store, or correct AWS_ENDPOINT_URL in the environment of the driver and of every worker"


class S3(S3FileSystem):  # type: ignore[misc, unused-ignore]
    """s3fs with fewer attempts, without cached listings, and with errors that say what to do."""

    connect_timeout = 3  # seconds
    retries = 2  # each with botocore's three attempts

    def __init__(self, **options: Any) -> None:
        # A worker process lists archives again later, and must see what is there then.
        options.setdefault("use_listings_cache", False)
        attempts = {"retries": {"mode": "standard", "total_max_attempts": 3}}
        super().__init__(config_kwargs={**attempts, **options.pop("config_kwargs", {})}, **options)

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Send a request. Raises an `OSError` that says what to do."""
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except (BotoCoreError, OSError) as error:
            better = explain_error(error, kwargs.get("Bucket"))
            if better is None:
                raise
            raise better from error

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        place = path.rpartition("://")[2]
        if "//" in f"{place}/":  # in or below the folder of the empty name, which s3fs takes for the one above
            bucket, _, key = place.partition("/")
            entries = [info async for info in self._iterdir(bucket, delimiter="/", prefix=f"{key}/")]
        else:
            entries = await super()._ls(path, detail=True, **options)
        # Consoles and Hadoop mark a folder by an empty object of its name, which is no file.
        entries = [info for info in entries if info["type"] == "directory" or not info["name"].endswith("/")]
        return entries if detail else [info["name"] for info in entries]

    async def _expand_path(self, path: Any, *args: Any, **options: Any) -> list[str]:
        literal = {**options, "assume_literal": True}  # no name is a pattern
        return list(await super()._expand_path(path, *args, **literal))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode == "rb":
            options.setdefault("requester_pays", self.requester_pays)
            return Reader(self, path, mode, block_size=block_size or READ_AHEAD, **options)
        return super()._open(path, mode, block_size=block_size, **options)


class Reader(S3File):  # type: ignore[misc, unused-ignore]
    """A file that is read in ranges. Raises only `OSError`."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        try:
            return bytes(super()._fetch_range(start, end))
        except OSError:
            raise
        except Exception as error:  # aiohttp's, of a connection that ends early
            raise OSError(one_line(error)) from error


def explain_error(error: Exception, bucket: str | None) -> OSError | None:
    """Return the `OSError` to raise for a request that failed, with a hint; None to raise the error itself."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    if code == "NoSuchBucket":
        return OSError(f"there is no bucket {bucket}; correct the URL, or AWS_ENDPOINT_URL for another store")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return PermissionError(f"{one_line(error)}; {CREDENTIALS}")
    if isinstance(error, PermissionError):
        return PermissionError(f"{one_line(error)}: these credentials may not read it, or are wrong; {CREDENTIALS}")
    if isinstance(error, ConnectionError | HTTPClientError):
        return OSError(f"{one_line(error)}; {ENDPOINT}")
    return None if isinstance(error, OSError) else OSError(one_line(error))


def one_line(error: Exception) -> str:
    """Return an error's message in one line."""
    return " ".join(str(error).split()) or type(error).__name__
