"""What storage libraries raise becomes an error that says what to do."""

import errno
import ftplib

import pytest
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from airflow_arcadia.batch.storage import explain, explained
from airflow_arcadia.exceptions import BatchError, BatchInputError


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (NoCredentialsError(), BatchInputError, "credentials are missing or wrong"),
        (ftplib.error_perm("530 Login incorrect."), BatchInputError, "credentials are missing or wrong"),  # noqa: S321
        (PermissionError("Forbidden"), BatchInputError, "may not be used: Forbidden"),
        (OSError(errno.EROFS, "Read-only file system"), BatchInputError, "may not be used"),
        (OSError(errno.ENAMETOOLONG, "File name too long"), BatchInputError, "too long"),
        (FileNotFoundError("The specified bucket does not exist"), BatchInputError, "cannot be found"),
        (ConnectionRefusedError("refused"), BatchError, "cannot be reached"),
        (EndpointConnectionError(endpoint_url="http://x"), BatchError, "cannot be reached"),
        (OSError(errno.EIO, "Input/output error"), BatchError, "cannot be used: OSError"),
    ],
)
def test_each_kind_is_worded(error: Exception, kind: type[Exception], said: str):
    told = explain(error, "The output s3://b/o.jsonl", "No row was sent.")
    assert type(told) is kind
    assert str(told).startswith("The output s3://b/o.jsonl ")
    assert said in str(told)
    assert "No row was sent." in str(told)


def test_what_no_library_of_storage_raised_is_not_touched():
    assert explain(ValueError("ours"), "The output x") is None
    with pytest.raises(ValueError, match="ours"), explained("The output x"):
        raise ValueError("ours")


def test_an_error_that_says_what_to_do_already_is_kept():
    with pytest.raises(BatchError, match="mine"), explained("The output x"):
        raise BatchError("mine", what_to_do="")
