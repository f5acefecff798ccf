"""S3 for fsspec, through s3fs. Credentials and endpoint are the environment's; what fails is an `OSError`, in seconds.

boto3's chain finds them: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE and ~/.aws, or the machine's role;
AWS_ENDPOINT_URL or AWS_ENDPOINT_URL_S3 for a store that is not Amazon's.
"""

from __future__ import annotations

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

READ_AHEAD = 1 << 20  # bytes behind those asked for. s3fs's own 50 MiB would fetch most zips whole for one member
CREDENTIALS = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) in the environment of the driver and of every "
    "worker, or FSSPEC_S3_ANON=true for a public bucket"
)
ENDPOINT = "start the store, or mend AWS_ENDPOINT_URL in the environment of the driver and of every worker"


class S3(S3FileSystem):
    """s3fs, with fewer attempts, without remembered listings, and with errors that a person can use."""

    connect_timeout = 3  # seconds
    retries = 2  # each of them of botocore's three

    def __init__(self, **options: Any) -> None:
        # A worker outlives the archive that it has listed: the next listing must be of what is there then.
        options.setdefault("use_listings_cache", False)
        attempts = {"retries": {"mode": "standard", "total_max_attempts": 3}}
        super().__init__(config_kwargs={**attempts, **options.pop("config_kwargs", {})}, **options)

    async def _call_s3(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Every request. Raises an `OSError` that tells what to do about it."""
        try:
            return await super()._call_s3(method, *args, **kwargs)
        except (BotoCoreError, OSError) as error:
            better = explained(error, kwargs.get("Bucket"))
            if better is None:
                raise
            raise better from error

    async def _ls(self, path: str, detail: bool = True, **options: Any) -> list[Any]:
        # Consoles and Hadoop mark a folder by an empty object of its name: it is no file of the folder.
        found = await super()._ls(path, detail=True, **options)
        found = [info for info in found if info["type"] == "directory" or not info["name"].endswith("/")]
        return found if detail else [info["name"] for info in found]

    async def _expand_path(self, path: Any, *args: Any, **options: Any) -> list[str]:
        return await super()._expand_path(path, *args, **{**options, "assume_literal": True})  # no name is a pattern

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> Any:
        if mode == "rb":
            options.setdefault("requester_pays", self.requester_pays)
            return Reader(self, path, mode, block_size=block_size or READ_AHEAD, **options)
        return super()._open(path, mode, block_size=block_size, **options)


class Reader(S3File):
    """A file that is read in ranges. Raises `OSError` alone."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        try:
            return bytes(super()._fetch_range(start, end))
        except OSError:
            raise
        except Exception as error:  # a connection that ends within the content is aiohttp's
            raise OSError(one_line(error)) from error


def explained(error: Exception, bucket: str | None) -> OSError | None:
    """The `OSError` to raise for a request that failed, with the way out where there is one; None for itself."""
    response = getattr(error.__cause__, "response", None) or {}
    code = response.get("Error", {}).get("Code")
    if code == "NoSuchBucket":
        return OSError(f"there is no bucket {bucket}; mend the URL, or AWS_ENDPOINT_URL where it is another store's")
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return PermissionError(f"{one_line(error)}; {CREDENTIALS}")
    if isinstance(error, PermissionError):
        return PermissionError(f"{one_line(error)}: these credentials may not read it, or are wrong; {CREDENTIALS}")
    if isinstance(error, ConnectionError | HTTPClientError):
        return OSError(f"{one_line(error)}; {ENDPOINT}")
    return None if isinstance(error, OSError) else OSError(one_line(error))


def one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
